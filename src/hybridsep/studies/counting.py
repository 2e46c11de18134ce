"""How many pairs the counted likelihood needs, on validation songs, and how often a pair comes up that none of them was."""

from __future__ import annotations

import pandas as pd
import torch

from hybridsep.core.profiles import method_spec
from hybridsep.data.stems import MIXTURE_RMS
from hybridsep.evaluation.chunks import Chunks
from hybridsep.inference.counts import CountLikelihood
from hybridsep.models.vqvae import VQVAE
from hybridsep.studies import Study
from hybridsep.studies.settings import with_likelihood

METHOD = "hybrid"
CHUNKS = 8
# Of source codes that sound together with their mixture's code. Counted in whole batches, so that the first is a little more.
PAIRS = (10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000, 10_000_000)


def counting(study: Study) -> None:
    """SDR, evidence and unseen pairs against the number of counted pairs; each likelihood is fitted anew to its counts."""
    evaluation = study.evaluation("validation", chunks=CHUNKS)
    pipeline, spec = evaluation.pipeline, method_spec(METHOD)
    vqvae = pipeline.vqvae(spec.vqvae)
    heard = {"validation": evaluation.chunks, "test": study.evaluation().chunks}
    rows, unseen = [], []
    for pairs in PAIRS:
        seconds = pairs * vqvae.hop / pipeline.profile.data.sample_rate
        likelihood = study.changed_pipeline(likelihood={"counted_seconds": seconds}).likelihood(
            spec.vqvae, spec.likelihood
        )
        counted = int(likelihood.counts.sum())
        run = evaluation.blind_run(
            METHOD,
            change=lambda separator, counted, made=likelihood: with_likelihood(separator, made),
            counted=counted,
        )
        rows.append(run.rows[run.rows.metric.isin(("sdr", "log_evidence"))].assign(pairs=counted))
        shares = [{"split": split, **unseen_shares(likelihood, vqvae, chunks)} for split, chunks in heard.items()]
        unseen += [
            {"pairs": counted, "distinct_triples": len(likelihood.keys), "smoothing": likelihood.smoothing, **share}
            for share in shares
        ]
    study.write("scores", pd.concat(rows, ignore_index=True))
    study.write("unseen", pd.DataFrame(unseen))


@torch.no_grad()
def unseen_shares(likelihood: CountLikelihood, vqvae: VQVAE, chunks: Chunks) -> dict[str, float]:
    """Shares of the chunks' true codes whose pair of source codes, and whose triple with the mixture's code, was never counted."""
    mixture = chunks.mixture
    level = MIXTURE_RMS / mixture.square().mean(-1, keepdim=True).sqrt().clamp_min(1e-6)
    signals = [(signal * level).to(vqvae.codebook.device) for signal in (*chunks.sources, mixture)]
    first, second, mixed = (torch.cat([vqvae.encode(part) for part in signal.split(4)]) for signal in signals)
    counted = torch.zeros(likelihood.codes**2, dtype=torch.bool, device=first.device)
    counted[likelihood.pairs] = True
    return {
        "unseen_pairs": 1 - float(counted[first * likelihood.codes + second].float().mean()),
        "unseen_triples": 1 - float(likelihood.seen(mixed, first, second).float().mean()),
    }
