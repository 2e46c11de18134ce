"""The comparison: chunks of test songs, separated by every method and search of a pipeline, each run a cached step."""

import functools
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from hybridsep.core.files import load_weights, write_atomically
from hybridsep.core.profiles import METHODS, VQVAEKind, method_spec
from hybridsep.evaluation.chunks import Chunks, choose_chunks
from hybridsep.evaluation.comparisons import BLIND
from hybridsep.evaluation.protocols import BLIND_RULE, score_candidates, score_estimates, score_references, search_rows
from hybridsep.evaluation.rows import read_rows, rows_where, write_rows
from hybridsep.inference.search import SearchResult, usual_particles
from hybridsep.inference.selection import SELECTIONS
from hybridsep.inference.separator import SearchOptions, Separator
from hybridsep.pipeline.pipeline import Pipeline
from hybridsep.pipeline.steps import Step

# Raised when scores are added or change: what was scored before is separated and scored again.
SCORES_VERSION = 5
KINDS: tuple[VQVAEKind, ...] = ("plain", "linear")


class Run(NamedTuple):
    """One method and search on all chunks: scores, in the columns of `evaluation.csv`, and those of every blind selection rule.

    Blind estimates (posterior mean, not refined) are float32 [P, B, T], the evidence in nats per code float32 [B], the effective sample size
    over time float32 [B, S].
    """

    rows: pd.DataFrame
    selections: pd.DataFrame
    estimates: Tensor
    log_evidence: Tensor
    ess: Tensor
    particles: int


class Evaluation:
    """Run and score methods on the test chunks of a pipeline; every run is cached as a step.

    Args:
        split: "validation" for choosing settings, which test songs must not serve for; or a rung of test songs, one of `RUNGS`.
        chunks: what is separated instead of the profile's own chunks of the split.
    """

    def __init__(self, pipeline: Pipeline, split: str = "test", chunks: Chunks | None = None):
        self.pipeline, self.settings, self.split = pipeline, pipeline.profile.evaluation, split
        names, hop, own = pipeline.profile.source_names, pipeline.profile.vqvae.hop, self.settings
        wanted = (names, own.chunks, own.chunk_seconds, hop, own.seed, split)
        self.chunks = chunks or choose_chunks(pipeline.stems(split), *wanted)

    def run(self, method: str, search: str = "particle", particles: int | None = None) -> Run:
        """Separate and score every chunk with one method and search, under every protocol."""
        particles = particles or usual_particles(search, self.pipeline.profile.search.particles)
        step = self._step(f"separated-{method}-{search}-{particles}", method, self.settings.seed)

        def make() -> dict:
            options = SearchOptions(search, particles, self.settings.seed, f"{method}, {search}, N = {particles}")
            found = self.pipeline.separator(method).candidates(self.chunks.mixture, options)
            codec = self.codec(method_spec(method).vqvae)
            rows, selections = score_candidates(self.chunks, found, codec, method, search)
            write_rows(rows, step.folder / "rows.csv")
            write_rows(selections, step.folder / "selections.csv")
            per_code = found.search.log_evidence / found.search.codes.shape[-1]
            blind = SELECTIONS[BLIND_RULE](found)
            self.pipeline.cache.save(
                step, "run", {"estimates": blind, "log_evidence": per_code, "ess": found.search.ess}
            )
            return {"particles": particles, **_figures(found.search, found.seconds / len(self.chunks))}

        folder = self.pipeline.cache.make(step, make)
        rows, selections = (read_rows(folder / name) for name in ("rows.csv", "selections.csv"))
        return Run(rows, selections, **load_weights(folder / "run.safetensors"), particles=particles)

    def blind_run(
        self,
        method: str,
        search: str = "particle",
        particles: int | None = None,
        seed: int | None = None,
        change: Callable[..., Separator] | None = None,
        **settings: object,
    ) -> pd.DataFrame:
        """Score posterior means alone, against the real sources, with memory and time for thousands of particles: rows as in `Run`.

        Args:
            change: called as change(separator, **settings), returns the separator to run instead of the method's own.
            settings: plain values; with the name of `change` they are the key of the cache.
        """
        particles = particles or usual_particles(search, self.pipeline.profile.search.particles)
        seed = self.settings.seed if seed is None else seed
        changed = (change.__name__, settings) if change else None
        step = self._step(f"estimated-{method}-{search}-{particles}", method, seed, changed)

        def make() -> dict:
            separator = self.pipeline.separator(method)
            separator = change(separator, **settings) if change else separator
            label = f"{method}, {search}, N = {particles} {settings or ''}".strip()
            started = time.perf_counter()
            found = separator.estimate(self.chunks.mixture, SearchOptions(search, particles, seed, label))
            seconds = time.perf_counter() - started
            scores = score_estimates(self.chunks, found.stems.cpu(), method, search)
            rows = [scores, search_rows(self.chunks, method, search, found.search, seconds)]
            write_rows(pd.concat(rows, ignore_index=True), step.folder / "rows.csv")
            return {**_figures(found.search, seconds / len(self.chunks)), "ess": float(found.search.ess.mean())}

        return read_rows(self.pipeline.cache.make(step, make) / "rows.csv")

    def codec(self, kind: VQVAEKind) -> Tensor:
        """Return the sources as a VQ-VAE reconstructs them, the ceiling of every method on it: float32 [P, B, T]."""
        vqvae = self.pipeline.vqvae(kind)
        return torch.stack([vqvae.decode(vqvae.encode(s.to(vqvae.codebook.device))).cpu() for s in self.chunks.sources])

    def references(self) -> pd.DataFrame:
        """Score what is no separation: the mixture itself, both codecs, and the ideal ratio mask."""
        codecs = tuple(self.pipeline.vqvae_step(kind) for kind in KINDS)
        step = self.pipeline.cache.step("references", self.chunks.digest, SCORES_VERSION, inputs=codecs)

        def make() -> dict:
            rows = score_references(self.chunks, {kind: self.codec(kind) for kind in KINDS})
            write_rows(rows, step.folder / "rows.csv")
            return {"signals": rows.method.nunique()}

        return read_rows(self.pipeline.cache.make(step, make) / "rows.csv")

    def _step(self, name: str, method: str, *settings: object) -> Step:
        version, inputs = self.pipeline.method_version(method), self.pipeline.method_steps(method)
        return self.pipeline.cache.step(name, version, self.chunks.digest, SCORES_VERSION, *settings, inputs=inputs)

    def table(self) -> pd.DataFrame:
        """Make everything, and write it to runs/<profile>/evaluation.csv and selections.csv; of other songs to evaluation-<split>.csv."""
        if self.pipeline.ranks.count > 1:
            return self._shared_table()
        runs = [self.run(method, search) for method, search in self.searched()]
        for method in METHODS:
            self.pipeline.export(method)
        table = pd.concat([self.references(), *(r.rows for r in runs)], ignore_index=True)
        rules = pd.concat([r.selections for r in runs], ignore_index=True)
        for name, frame in {"evaluation": table, "selections": rules}.items():
            write_atomically(self.file(name), frame.to_csv(index=False, float_format="%.6g", na_rep="nan").encode())
        self.pipeline.write_provenance()
        return table

    def searched(self) -> list[tuple[str, str]]:
        """List the methods and searches that are compared, by cell."""
        test = self.split == "test"
        best = None if self.settings.every_cell or not test else self.best_method()
        pairs = itertools.product(METHODS, self.settings.searches if test else ("particle",))
        return [(method, search) for method, search in pairs if search == "particle" or best in (None, method)]

    def _shared_table(self) -> pd.DataFrame:
        """Make the table by several processes: each makes some of the runs whole, so that no number depends on how many there are."""
        ranks = self.pipeline.ranks
        for method in METHODS:
            self.pipeline.export(method)
        ranks.wait()
        own = Evaluation(self.pipeline.alone(), self.split, self.chunks)
        # The second list is known when the first one's runs are there.
        for listed in (lambda: [(method, "particle") for method in METHODS], self.searched):
            runs: list[Callable] = [functools.partial(own.run, method, search) for method, search in listed()]
            ranks.together([own.references, *runs][ranks.index :: ranks.count])
        ranks.together([own.table] if ranks.first else [])
        return read_rows(self.file("evaluation"))

    def file(self, name: str) -> Path:
        """Return where a table of these songs is written."""
        return self.pipeline.root / (f"{name}.csv" if self.split == "test" else f"{name}-{self.split}.csv")

    def best_method(self) -> str:
        """Return the cell of highest blind, refined SDR with the particle filter, mean over chunks and sources."""
        scores = {method: rows_where(self.run(method).rows, **BLIND, refine="wiener") for method in METHODS}
        return max(METHODS, key=lambda method: float(scores[method].value.mean()))


def _figures(found: SearchResult, seconds: float) -> dict[str, float]:
    return {"seconds_per_chunk": seconds, "resamplings_per_chunk": float(found.resampled.float().sum(1).mean())}
