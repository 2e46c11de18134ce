"""The comparison: chunks of test songs, separated by every method and search, scored under protocols that are never mixed.

Protocols, in the column `selection`:
    seed: the better sample of each source on its own, picked with the ground truth, scored in museval's default window of 44 100 samples.
    oracle: the pair of samples (one particle) that is best on average over the sources, picked with the ground truth.
    blind: what a user can do; no ground truth.

The metric `sdr` has the protocol's own window. What the window is worth shows beside it: `sdr_1s` of `seed`, `sdr_44100` of all else.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import save
from torch import Tensor

from hybridsep.core.device import seeded_generator
from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import load_weights, write_atomically
from hybridsep.core.profiles import METHODS, method_spec
from hybridsep.data.stems import StemSet, mix
from hybridsep.evaluation.metrics import bss_eval, nan_windows, sdr, si_sdr, si_sdr_improvement, stft_distance
from hybridsep.inference.search import SearchResult, suffix_lengths
from hybridsep.inference.selection import SELECTIONS, take_particle
from hybridsep.inference.separator import Candidates, Separator
from hybridsep.inference.wiener import STFT_SIZE, wiener
from hybridsep.pipeline.pipeline import Pipeline

COLUMNS = ("track", "start_s", "method", "search", "selection", "refine", "source", "reference", "metric", "value")
MUSEVAL_DEFAULT_WINDOW = 44_100
BLIND_RULE = "mean"
AUDIBLE = 10 ** (-50 / 20)
# Raised when scores are added or change: what was scored before is separated and scored again.
SCORES_VERSION = 3
COURSE_CODES = 16


@dataclass(frozen=True)
class Chunks:
    """Pieces of B different test songs.

    Attributes:
        tracks: names of the songs.
        starts: first sample of each piece in its song.
        sources: float32 [P, B, T].
        names: names of the P sources.
        sample_rate: Hz.
    """

    tracks: tuple[str, ...]
    starts: tuple[int, ...]
    sources: Tensor
    names: tuple[str, ...]
    sample_rate: int

    @property
    def mixture(self) -> Tensor:
        """float32 [B, T]."""
        return mix(self.sources)

    def __len__(self) -> int:
        return len(self.tracks)


@dataclass(frozen=True)
class Run:
    """One method and search on all chunks.

    Attributes:
        rows: scores, in the columns of `evaluation.csv`.
        selections: scores of every blind selection rule; its column `selection` names the rule.
        estimates: blind estimates (posterior mean, not refined), float32 [P, B, T].
        log_evidence: nats per code, float32 [B].
        ess: effective sample size over time, float32 [B, S].
        particles: N.
    """

    rows: pd.DataFrame
    selections: pd.DataFrame
    estimates: Tensor
    log_evidence: Tensor
    ess: Tensor
    particles: int


@dataclass(frozen=True)
class BlindRun:
    """Posterior means of one method and search.

    Attributes:
        rows: scores, in the columns of `evaluation.csv`.
        figures: of the search, mean over chunks.
        course: the search over time, mean over chunks and COURSE_CODES codes: seconds, ess (particles), resampled (share of the codes).
    """

    rows: pd.DataFrame
    figures: dict[str, float]
    course: pd.DataFrame


def choose_chunks(
    stems: StemSet, names: tuple[str, ...], count: int, seconds: float, hop: int, seed: int, split: str = "test"
) -> Chunks:
    """One chunk from each of `count` songs, at a random place where every source is audible in every second.

    Args:
        split: what the songs are called in the error.

    Raises:
        HybridsepError: fewer songs than chunks have such a place.
    """
    length = -(-round(seconds * stems.sample_rate) // hop) * hop
    order = torch.randperm(len(stems), generator=seeded_generator(seed)).tolist()
    tracks, starts, pieces = [], [], []
    for track in order:
        start = _audible_start(stems, track, length, seed)
        if start is not None and len(tracks) < count:
            tracks.append(stems.names[track]), starts.append(start)
            pieces.append(torch.stack([stems.crop(p, track, start, length) for p in range(len(names))]))
    if len(tracks) < count:
        found = f"only {len(tracks)} of {len(stems)} {split} songs have {seconds:g} s in which every source sounds"
        raise HybridsepError(f"{found}; {count} chunks were asked for")
    return Chunks(
        tuple(tracks), tuple(starts), pair_sources(torch.stack(pieces, 1), stems.pairing), names, stems.sample_rate
    )


def pair_sources(sources: Tensor, pairing: str) -> Tensor:
    """Sources [P, B, T] of B places as mixtures are made of them in training; `pairing` as in StemSet."""
    if pairing != "random":
        return sources
    # No two sources of a mixture are of one song. Each further one comes from the next chunk's place.
    return torch.stack([source.roll(-p, 0) for p, source in enumerate(sources)])


def _audible_start(stems: StemSet, track: int, length: int, seed: int) -> int | None:
    generator = seeded_generator(seed, track)
    room = stems.lengths[track] - length
    for _ in range(20 if room >= 0 else 0):
        start = int(torch.randint(room + 1, (1,), generator=generator))
        whole = length // stems.sample_rate * stems.sample_rate or length
        sources = torch.stack([stems.crop(p, track, start, whole) for p in range(len(stems.audio))])
        level = sources.view(len(sources), -1, min(whole, stems.sample_rate)).square().mean(-1).sqrt()
        if (level > AUDIBLE).all():
            return start
    return None


class Evaluation:
    """Runs and scores methods on the test chunks of a pipeline; every run is cached as a step.

    Args:
        split: "validation" for choosing settings, which test songs must not serve for.
    """

    def __init__(self, pipeline: Pipeline, split: str = "test"):
        self.pipeline, self.settings, self.split = pipeline, pipeline.profile.evaluation, split
        profile, settings = pipeline.profile, self.settings
        self.chunks = choose_chunks(
            pipeline.stems(split),
            profile.source_names,
            settings.chunks,
            settings.chunk_seconds,
            profile.vqvae.hop,
            settings.seed,
            split,
        )

    def run(self, method: str, search: str = "particle", particles: int | None = None) -> Run:
        """Separate and score every chunk with one method and search."""
        profile = self.pipeline.profile
        particles = particles or profile.search.particles
        spec = method_spec(method)
        version = self.pipeline.method_version(method)
        step = self.pipeline.step(f"separated-{method}-{search}-{particles}", version, self._chunk_settings())

        def make() -> dict:
            """Search, choose and score; what the step keeps are rows, estimates and figures of the search."""
            label = f"{method}, {search}, N = {particles}"
            found = self.pipeline.separator(method).candidates(
                self.chunks.mixture, search, particles, self.settings.seed, label
            )
            codec = self.codec(spec.vqvae)
            rows, selections = self._score(method, search, found, codec)
            rows.to_csv(step.folder / "rows.csv", index=False, na_rep="nan")
            selections.to_csv(step.folder / "selections.csv", index=False, na_rep="nan")
            per_code = found.search.log_evidence / found.search.codes.shape[-1]
            tensors = {
                "estimates": SELECTIONS[BLIND_RULE](found),
                "log_evidence": per_code,
                "ess": found.search.ess.contiguous(),
            }
            write_atomically(
                step.folder / "run.safetensors", save({k: v.cpu().contiguous() for k, v in tensors.items()})
            )
            resampled = float(found.search.resampled.float().sum(1).mean())
            return {
                "particles": particles,
                "seconds_per_chunk": found.seconds / len(self.chunks),
                "resamplings_per_chunk": resampled,
            }

        self.pipeline.make(step, make)
        tables = (read_rows(step.folder / name) for name in ("rows.csv", "selections.csv"))
        return Run(*tables, **load_weights(step.folder / "run.safetensors"), particles=particles)

    def blind_run(
        self,
        method: str,
        search: str = "particle",
        particles: int | None = None,
        variant: str = "",
        change: Callable[[Separator], Separator] = lambda separator: separator,
        seed: int | None = None,
    ) -> BlindRun:
        """Posterior means alone, scored against the real sources: in memory and time for thousands of particles.

        Args:
            variant: names what `change` makes of the method's separator; part of the cache's key.
            seed: of the search; the evaluation's own when not given.
        """
        particles = particles or self.pipeline.profile.search.particles
        seed = self.settings.seed if seed is None else seed
        version = self.pipeline.method_version(method)
        step = self.pipeline.step(
            f"estimated-{method}-{search}-{particles}-{variant or 'own'}-{seed}", version, self._chunk_settings()
        )

        def make() -> dict:
            """Search and score; what the step keeps are rows, the course and figures of the search."""
            separator = change(self.pipeline.separator(method))
            started = time.perf_counter()
            found = separator.estimate(
                self.chunks.mixture, search, particles, seed, f"{method}, {search}, N = {particles} {variant}".strip()
            )
            seconds = (time.perf_counter() - started) / len(self.chunks)
            rows = self.score_estimates(method, found.stems.cpu(), search)
            per_code = (found.search.log_evidence / found.search.codes.shape[-1]).cpu().numpy()
            figures = [
                self._per_chunk(method, search, "seconds", np.full(len(self.chunks), seconds)),
                self._per_chunk(method, search, "log_evidence", per_code),
            ]
            pd.concat([rows, *figures], ignore_index=True).to_csv(step.folder / "rows.csv", index=False, na_rep="nan")
            _course(found.search, self.chunks.sources.shape[-1] / self.chunks.sample_rate).to_csv(
                step.folder / "course.csv", index=False
            )
            return {
                "seconds_per_chunk": seconds,
                "resamplings_per_chunk": float(found.search.resampled.float().sum(1).mean()),
                "ess": float(found.search.ess.mean()),
                "suffix_codes": float(suffix_lengths(found.search.ancestors.cpu()).float().mean()),
            }

        self.pipeline.make(step, make)
        return BlindRun(
            read_rows(step.folder / "rows.csv"), step.record["figures"], pd.read_csv(step.folder / "course.csv")
        )

    def score_estimates(self, method: str, stems: Tensor, search: str = "") -> pd.DataFrame:
        """Blind scores of stems [P, B, T] against the real sources, as they are and with Wiener masks."""
        mixture, target = self.chunks.mixture[..., : stems.shape[-1]], self.chunks.sources[..., : stems.shape[-1]]
        return self._full_rows(
            method, search, [("blind", refine, "real", refined, target) for refine, refined in _both(stems, mixture)]
        )

    def codec(self, kind: str) -> Tensor:
        """Sources as the VQ-VAE of a kind reconstructs them, the ceiling of every method on it: float32 [P, B, T]."""
        vqvae = self.pipeline.vqvae(kind)
        return torch.stack([vqvae.decode(vqvae.encode(s.to(vqvae.codebook.device))).cpu() for s in self.chunks.sources])

    def references(self) -> pd.DataFrame:
        """Scores of what is no separation: the mixture itself, both codecs, and the ideal ratio mask."""
        kinds = ("plain", "linear")
        codecs = [self.pipeline.vqvae_step(kind).folder.name for kind in kinds]
        step = self.pipeline.step("references", codecs, self._chunk_settings())

        def make() -> dict:
            chunks = self.chunks
            estimates = {
                "mixture": chunks.mixture.expand_as(chunks.sources),
                "irm": ideal_ratio_mask(chunks.sources, chunks.mixture),
            }
            estimates |= {f"codec-{kind}": self.codec(kind) for kind in kinds}
            frames = [
                self._full_rows(name, "", [("", "none", "real", stems, chunks.sources)])
                for name, stems in estimates.items()
            ]
            pd.concat(frames, ignore_index=True).to_csv(step.folder / "rows.csv", index=False, na_rep="nan")
            return {"signals": len(frames)}

        self.pipeline.make(step, make)
        return read_rows(step.folder / "rows.csv")

    def table(self) -> pd.DataFrame:
        """Everything, written to runs/<profile>/evaluation.csv, selections.csv and particles.csv."""
        if self.pipeline.ranks.count > 1:
            return self._shared_table()
        runs = [self.run(method, search) for method, search in self.searched()]
        root = self.pipeline.root
        table = pd.concat([self.references(), *(r.rows for r in runs)], ignore_index=True)
        rules = pd.concat([r.selections for r in runs], ignore_index=True)
        for name, frame in (
            ("evaluation.csv", table),
            ("selections.csv", rules),
            ("particles.csv", self.particle_counts()),
        ):
            write_atomically(root / name, frame.to_csv(index=False, float_format="%.6g", na_rep="nan").encode())
        chosen = {"tracks": self.chunks.tracks, "starts": self.chunks.starts, "sample_rate": self.chunks.sample_rate}
        write_atomically(root / "chunks.json", json.dumps(chosen).encode())
        self.pipeline.write_provenance()
        return table

    def searched(self) -> list[tuple[str, str]]:
        """Methods and searches that are compared, by cell."""
        best = None if self.settings.every_cell else self.best_method()
        return [
            (method, search)
            for method in METHODS
            for search in self.settings.searches
            if search == "particle" or best in (None, method)
        ]

    def _shared_table(self) -> pd.DataFrame:
        """The same table by several processes: each makes some of the runs whole, so that no number depends on how many processes there are."""
        ranks = self.pipeline.ranks
        for method in METHODS:
            self.pipeline.separator(method)
        ranks.wait()
        own = Evaluation(self.pipeline.alone())
        # The second list is known when the first one's runs are there.
        for listed in (lambda: [(method, "particle") for method in METHODS], self.searched):
            runs = [functools.partial(own.run, method, search) for method, search in listed()]
            ranks.together([own.references, *runs][ranks.index :: ranks.count])
        ranks.together([own.table] if ranks.first else [])
        return read_rows(self.pipeline.root / "evaluation.csv")

    def particle_counts(self) -> pd.DataFrame:
        """The particle filter's scores at the usual N of all cells and at `many_particles` of the best, with a column `particles`."""
        runs = [self.run(method, "particle") for method in METHODS]
        runs.append(self.run(self.best_method(), "particle", self.settings.many_particles))
        return pd.concat([r.rows.assign(particles=r.particles) for r in runs], ignore_index=True)

    def best_method(self, search: str = "particle") -> str:
        """The cell of highest blind, refined SDR, mean over chunks and sources."""

        def score(method: str) -> float:
            rows = self.run(method, search).rows
            wanted = (
                (rows.metric == "sdr")
                & (rows.selection == "blind")
                & (rows.refine == "wiener")
                & (rows.reference == "real")
            )
            return float(rows[wanted].value.mean())

        return max(METHODS, key=score)

    def _chunk_settings(self) -> dict:
        return {
            **self.settings.model_dump(include={"chunks", "chunk_seconds", "seed"}),
            "split": self.split,
            "scores": SCORES_VERSION,
        }

    def _score(self, method: str, search: str, found: Candidates, codec: Tensor) -> tuple[pd.DataFrame, pd.DataFrame]:
        real, mixture = self.chunks.sources, found.mixture.cpu()
        frames, rules, blind = [], [], []
        chosen = {rule: _both(select(found).cpu(), mixture) for rule, select in SELECTIONS.items()}
        for reference, target in (("real", real), ("codec", codec)):
            for selection, stems in self._with_ground_truth(found, target).items():
                for refine, refined in _both(stems, mixture):
                    frames.append(self._rows(method, search, selection, refine, reference, refined, target))
            for rule, both in chosen.items():
                for refine, refined in both:
                    rows = self._rows(method, search, "blind", refine, reference, refined, target)
                    rules.append(rows[rows.metric == "sdr"].assign(selection=rule))
                    if rule == BLIND_RULE:
                        blind.append(("blind", refine, reference, refined, target))
        frames.append(self._full_rows(method, search, blind))
        frames.append(
            self._per_chunk(method, search, "seconds", np.full(len(self.chunks), found.seconds / len(self.chunks)))
        )
        frames.append(
            self._per_chunk(
                method, search, "log_evidence", (found.search.log_evidence / found.search.codes.shape[-1]).cpu().numpy()
            )
        )
        return pd.concat(frames, ignore_index=True), pd.concat(rules, ignore_index=True)

    def _with_ground_truth(self, found: Candidates, target: Tensor) -> dict[str, Tensor]:
        """The two oracle protocols: stems [P, B, T] chosen with the ground truth."""
        waveforms = found.waveforms.cpu()

        def scores(window: int) -> Tensor:
            # One mixture after the other: the errors of all particles of all of them would take as much memory as the waveforms.
            each = [
                sdr(found.numpy(), true[:, None].numpy(), window)
                for found, true in zip(waveforms.unbind(1), target.unbind(1), strict=True)
            ]
            return torch.from_numpy(np.nan_to_num(np.stack(each, 1), nan=-99.0))

        pair = scores(self.chunks.sample_rate).mean(0).argmax(1)
        each = scores(self._default_window()).argmax(2)
        seed = torch.stack([take_particle(waveforms, index)[p] for p, index in enumerate(each)])
        return {"oracle": take_particle(waveforms, pair), "seed": seed}

    def _default_window(self) -> int:
        return min(MUSEVAL_DEFAULT_WINDOW, self.chunks.sources.shape[-1])

    def _rows(
        self, method: str, search: str, selection: str, refine: str, reference: str, stems: Tensor, target: Tensor
    ) -> pd.DataFrame:
        """SDR, in the protocol's window and in the other one, and SI-SDR of estimates [P, B, T] against `target`."""
        default, second = self._default_window(), self.chunks.sample_rate
        windows = {"sdr": default, "sdr_1s": second} if selection == "seed" else {"sdr": second, "sdr_44100": default}
        estimates, targets = stems.numpy(), target.numpy()
        values = {name: sdr(estimates, targets, window) for name, window in windows.items()} | {
            "si_sdr": si_sdr(estimates, targets)
        }
        return self._table((method, search, selection, refine), reference, values)

    def _full_rows(self, method: str, search: str, scored: list[tuple[str, str, str, Tensor, Tensor]]) -> pd.DataFrame:
        """Every metric of some estimates (selection, refine, reference, stems [P, B, T], target), in windows of one second.

        All go through BSS Eval together, in as many processes as pay.
        """
        window, mixture = self.chunks.sample_rate, self.chunks.mixture[..., : scored[0][3].shape[-1]].numpy()
        pairs = [(stems.numpy(), target.numpy()) for *_, stems, target in scored]
        together = [np.concatenate(signals, 1) for signals in zip(*pairs, strict=True)]
        evaluated = bss_eval(*together, window, f"{method} {search}".strip() + ", BSS Eval")
        frames = []
        for index, (labels, (estimates, targets)) in enumerate(zip(scored, pairs, strict=True)):
            part = slice(index * len(self.chunks), (index + 1) * len(self.chunks))
            values = {name: evaluated[name][:, part] for name in ("isr", "sir", "sar")} | {
                "si_sdr_improvement": si_sdr_improvement(estimates, targets, mixture),
                "stft_distance": stft_distance(estimates, targets),
                "nan_windows": np.broadcast_to(nan_windows(estimates, targets, window), estimates.shape[:2]),
            }
            frames += [
                self._rows(method, search, *labels),
                self._table((method, search, *labels[:2]), labels[2], values),
            ]
        return pd.concat(frames, ignore_index=True)

    def _table(
        self, protocol: tuple[str, str, str, str], reference: str, values: dict[str, np.ndarray]
    ) -> pd.DataFrame:
        """Rows of metrics [P, B] under one (method, search, selection, refine)."""
        rows = [
            (track, start, *protocol, source, reference, metric, value[p, b])
            for metric, value in values.items()
            for p, source in enumerate(self.chunks.names)
            for b, (track, start) in enumerate(zip(self.chunks.tracks, self._start_seconds(), strict=True))
        ]
        return pd.DataFrame(rows, columns=COLUMNS)

    def _per_chunk(self, method: str, search: str, metric: str, values: np.ndarray) -> pd.DataFrame:
        rows = [
            (track, start, method, search, "", "", "", "", metric, value)
            for track, start, value in zip(self.chunks.tracks, self._start_seconds(), values, strict=True)
        ]
        return pd.DataFrame(rows, columns=COLUMNS)

    def _start_seconds(self) -> list[float]:
        return [round(s / self.chunks.sample_rate, 3) for s in self.chunks.starts]


def ideal_ratio_mask(sources: Tensor, mixture: Tensor, size: int = STFT_SIZE) -> Tensor:
    """The masks of `wiener` computed from the true sources: what masking can reach at best."""
    return wiener(sources, mixture, size, trust=0.0)


def _course(found: SearchResult, seconds: float) -> pd.DataFrame:
    """The course of a BlindRun whose chunks have so many seconds."""
    each = pd.DataFrame({"ess": found.ess.mean(0).cpu(), "resampled": found.resampled.float().mean(0).cpu()})
    course = each.groupby(each.index // COURSE_CODES).mean()
    return course.assign(seconds=(course.index * COURSE_CODES) * seconds / len(each))


def read_rows(path: Path) -> pd.DataFrame:
    """A table of scores as it was written: empty cells are empty text, "nan" is NaN."""
    return pd.read_csv(path, keep_default_na=False, na_values=["nan"])


def _both(stems: Tensor, mixture: Tensor) -> list[tuple[str, Tensor]]:
    return [("none", stems), ("wiener", wiener(stems, mixture))]


def rows_where(table: pd.DataFrame, **where: str) -> pd.DataFrame:
    """The rows that match all of column = value, for example metric="sdr", selection="blind"."""
    for column, value in where.items():
        table = table[table[column] == value]
    return table


def summarise(table: pd.DataFrame, **where: str) -> pd.DataFrame:
    """Mean, standard deviation and n over chunks of `rows_where`, by the columns not fixed."""
    table = rows_where(table, **where)
    keys = [c for c in COLUMNS if c not in (*where, "track", "start_s", "value")]
    return table.groupby(keys, sort=False).value.agg(["mean", "std", "count"]).reset_index()
