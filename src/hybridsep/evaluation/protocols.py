"""Scores of separated chunks under protocols, named in the column `selection`, that are never mixed:

    seed: the better sample of each source on its own, picked with the ground truth, scored in museval's default window of 44 100 samples.
    oracle: the pair of samples (one particle) that is best on average over the sources, picked with the ground truth.
    blind: what a user can do; no ground truth.

The metric `sdr` has the protocol's own window. What the window is worth shows beside it: `sdr_1s` of `seed`, `sdr_44100` of all else.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from hybridsep.evaluation.chunks import Chunks
from hybridsep.evaluation.metrics import bss_eval, nan_windows, sdr, si_sdr, stft_distance
from hybridsep.evaluation.rows import chunk_rows, source_rows
from hybridsep.inference.search import SearchResult
from hybridsep.inference.selection import SELECTIONS, take_particle
from hybridsep.inference.separator import Candidates
from hybridsep.inference.wiener import STFT_SIZE, wiener

MUSEVAL_DEFAULT_WINDOW = 44_100  # samples
BLIND_RULE = "lagged mean"


class Scored(NamedTuple):
    """Stems of all chunks, float32 [P, B, T], and the target that they are held against, "real" or "codec"."""

    selection: str
    refine: str
    reference: str
    stems: Tensor
    target: Tensor


def score_candidates(
    chunks: Chunks, found: Candidates, codec: Tensor, method: str, search: str
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Score what a search left under every protocol, and every blind selection rule; `codec` are the sources through the VQ-VAE, [P, B, T]."""
    mixture, targets = found.mixture.cpu(), {"real": chunks.sources, "codec": codec}
    chosen = {rule: both_refined(select(found).cpu(), mixture) for rule, select in SELECTIONS.items()}
    frames, rules, blind = [], [], []
    for reference, target in targets.items():
        for selection, stems in _with_ground_truth(chunks, found, target).items():
            for refine, refined in both_refined(stems, mixture):
                frames.append(_sdr_rows(chunks, method, search, Scored(selection, refine, reference, refined, target)))
        for rule, both in chosen.items():
            scored = [Scored("blind", refine, reference, refined, target) for refine, refined in both]
            for rows in (_sdr_rows(chunks, method, search, each) for each in scored):
                rules.append(rows[rows.metric == "sdr"].assign(selection=rule))
            blind += scored if rule == BLIND_RULE else []
    frames.append(_full_rows(chunks, method, search, blind))
    frames.append(search_rows(chunks, method, search, found.search, found.seconds))
    return pd.concat(frames, ignore_index=True), pd.concat(rules, ignore_index=True)


def search_rows(chunks: Chunks, method: str, search: str, found: SearchResult, seconds: float) -> pd.DataFrame:
    """Return the rows of a search on all chunks: seconds, of so many in all, and evidence in nats per code."""
    per_code = found.log_evidence / found.codes.shape[-1]
    time_rows = chunk_rows(chunks, method, search, "seconds", seconds / len(chunks))
    evidence = chunk_rows(chunks, method, search, "log_evidence", per_code.cpu().numpy())
    return pd.concat([time_rows, evidence], ignore_index=True)


def score_estimates(chunks: Chunks, stems: Tensor, method: str, search: str = "") -> pd.DataFrame:
    """Score blind stems [P, B, T] against the real sources, as they are and with Wiener masks."""
    mixture, target = chunks.mixture[..., : stems.shape[-1]], chunks.sources[..., : stems.shape[-1]]
    scored = [Scored("blind", refine, "real", refined, target) for refine, refined in both_refined(stems, mixture)]
    return _full_rows(chunks, method, search, scored)


def score_references(chunks: Chunks, codecs: Mapping[str, Tensor]) -> pd.DataFrame:
    """Score what is no separation: the mixture itself, the ideal ratio mask, and the sources [P, B, T] out of each codec."""
    signals = {
        "mixture": chunks.mixture.expand_as(chunks.sources),
        "irm": ideal_ratio_mask(chunks.sources, chunks.mixture),
        **{f"codec-{kind}": stems for kind, stems in codecs.items()},
    }
    scored = {name: [Scored("", "none", "real", stems, chunks.sources)] for name, stems in signals.items()}
    return pd.concat([_full_rows(chunks, name, "", each) for name, each in scored.items()], ignore_index=True)


def both_refined(stems: Tensor, mixture: Tensor) -> list[tuple[str, Tensor]]:
    """Return stems [P, B, T] as they are and with Wiener masks, each after its name in the column `refine`."""
    return [("none", stems), ("wiener", wiener(stems, mixture))]


def ideal_ratio_mask(sources: Tensor, mixture: Tensor, size: int = STFT_SIZE) -> Tensor:
    """Apply the masks of `wiener` computed from the true sources: what masking can reach at best."""
    return wiener(sources, mixture, size, trust=0.0)


def _with_ground_truth(chunks: Chunks, found: Candidates, target: Tensor) -> dict[str, Tensor]:
    """Return the two protocols that look at the ground truth: stems [P, B, T]."""
    waveforms = found.waveforms.cpu()

    def scores(window: int) -> Tensor:
        # One mixture after the other: the errors of all particles of all of them would take as much memory as the waveforms.
        pairs = zip(waveforms.unbind(1), target.unbind(1), strict=True)
        each = [sdr(found.numpy(), true[:, None].numpy(), window) for found, true in pairs]
        return torch.from_numpy(np.nan_to_num(np.stack(each, 1), nan=-99.0))

    pair = scores(chunks.sample_rate).mean(0).argmax(1)
    each = scores(_default_window(chunks)).argmax(2)
    seed = torch.stack([take_particle(waveforms, index)[p] for p, index in enumerate(each)])
    return {"oracle": take_particle(waveforms, pair), "seed": seed}


def _default_window(chunks: Chunks) -> int:
    return min(MUSEVAL_DEFAULT_WINDOW, chunks.sources.shape[-1])


def _sdr_rows(chunks: Chunks, method: str, search: str, scored: Scored) -> pd.DataFrame:
    """Score SDR, in the protocol's window and in the other one, and SI-SDR."""
    default, second = _default_window(chunks), chunks.sample_rate
    by_default = scored.selection == "seed"
    own_window = {"sdr": default, "sdr_1s": second} if by_default else {"sdr": second, "sdr_44100": default}
    estimates, targets = scored.stems.numpy(), scored.target.numpy()
    values = {name: sdr(estimates, targets, window) for name, window in own_window.items()}
    values["si_sdr"] = si_sdr(estimates, targets)
    return source_rows(chunks, (method, search, scored.selection, scored.refine), scored.reference, values)


def _full_rows(chunks: Chunks, method: str, search: str, scored: Sequence[Scored]) -> pd.DataFrame:
    """Score every metric, in windows of one second; all stems go through BSS Eval together, in as many processes as pay."""
    window, count = chunks.sample_rate, len(chunks)
    mixture = chunks.mixture[..., : scored[0].stems.shape[-1]].numpy()
    estimates, targets = (np.concatenate([getattr(x, name).numpy() for x in scored], 1) for name in ("stems", "target"))
    evaluated = bss_eval(estimates, targets, window, f"{method} {search}".strip() + ", BSS Eval")
    frames = []
    for index, each in enumerate(scored):
        estimates, targets = each.stems.numpy(), each.target.numpy()
        values = {name: evaluated[name][:, index * count : (index + 1) * count] for name in ("isr", "sir", "sar")}
        values["si_sdr_improvement"] = si_sdr(estimates, targets) - si_sdr(mixture, targets)
        values["stft_distance"] = stft_distance(estimates, targets)
        values["nan_windows"] = np.broadcast_to(nan_windows(estimates, targets, window), estimates.shape[:2])
        protocol = (method, search, each.selection, each.refine)
        frames += [_sdr_rows(chunks, method, search, each), source_rows(chunks, protocol, each.reference, values)]
    return pd.concat(frames, ignore_index=True)
