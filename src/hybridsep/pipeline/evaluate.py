"""The comparison: chunks of test songs, separated by every method and search of a pipeline, each run a cached step."""

import functools
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor

from hybridsep.core.files import load_weights, write_atomically
from hybridsep.core.profiles import METHODS, VQVAEKind, method_spec
from hybridsep.evaluation.chunks import Chunks, choose_chunks
from hybridsep.evaluation.comparisons import BLIND
from hybridsep.evaluation.protocols import BLIND_RULE, score_candidates, score_estimates, score_references
from hybridsep.evaluation.rows import chunk_rows, read_rows, rows_where, write_rows
from hybridsep.inference.search import SearchResult, usual_particles
from hybridsep.inference.selection import SELECTIONS
from hybridsep.inference.separator import SearchOptions, Separator
from hybridsep.pipeline.pipeline import Pipeline
from hybridsep.pipeline.steps import Step

# Raised when scores are added or change: what was scored before is separated and scored again.
SCORES_VERSION = 5
COURSE_CODES = 16
KINDS: tuple[VQVAEKind, ...] = ("plain", "linear")


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


class Evaluation:
    """Run and score methods on the test chunks of a pipeline; every run is cached as a step.

    The pipeline's deadline is looked at before each run: OutOfTime leaves what is done, and the same call goes on with the rest.

    Args:
        split: "validation" for choosing settings, which test songs must not serve for; or a rung of test songs, one of `RUNGS`.
        chunks: what is separated instead of the profile's own chunks of the split.
    """

    def __init__(self, pipeline: Pipeline, split: str = "test", chunks: Chunks | None = None):
        self.pipeline, self.settings, self.split = pipeline, pipeline.profile.evaluation, split
        names, hop, own = pipeline.profile.source_names, pipeline.profile.vqvae.hop, self.settings
        self.chunks = chunks or choose_chunks(
            pipeline.stems(split), names, own.chunks, own.chunk_seconds, hop, own.seed, split
        )

    # --- one method and search ---------------------------------------------------------------------------------------------

    def run(self, method: str, search: str = "particle", particles: int | None = None) -> Run:
        """Separate and score every chunk with one method and search, under every protocol."""
        particles = particles or usual_particles(search, self.pipeline.profile.search.particles)
        step = self._step(f"separated-{method}-{search}-{particles}", method, self.settings.seed)

        def make() -> dict:
            """Write rows.csv, selections.csv and run.safetensors."""
            separator, label = self.pipeline.separator(method), f"{method}, {search}, N = {particles}"
            options = SearchOptions(search, particles, self.settings.seed, label)
            found = separator.candidates(self.chunks.mixture, options)
            codec = self.codec(method_spec(method).vqvae)
            rows, selections = score_candidates(self.chunks, found, codec, method, search)
            write_rows(rows, step.folder / "rows.csv")
            write_rows(selections, step.folder / "selections.csv")
            tensors = {
                "estimates": SELECTIONS[BLIND_RULE](found),
                "log_evidence": found.search.log_evidence / found.search.codes.shape[-1],
                "ess": found.search.ess,
            }
            step.save("run", tensors)
            return {
                "particles": particles,
                "seconds_per_chunk": found.seconds / len(self.chunks),
                "resamplings_per_chunk": float(found.search.resampled.float().sum(1).mean()),
            }

        self.pipeline.cache.make(step, make)
        rows, selections = (read_rows(step.folder / name) for name in ("rows.csv", "selections.csv"))
        found = load_weights(step.folder / "run.safetensors")
        return Run(rows, selections, found["estimates"], found["log_evidence"], found["ess"], particles)

    def blind_run(
        self,
        method: str,
        search: str = "particle",
        particles: int | None = None,
        seed: int | None = None,
        change: Callable[..., Separator] | None = None,
        **settings: object,
    ) -> BlindRun:
        """Score posterior means alone, against the real sources: in memory and time for thousands of particles.

        Args:
            seed: of the search; the evaluation's own when not given.
            change: called as change(separator, **settings), returns the separator to run instead of the method's own.
            settings: plain values; with the name of `change` they are the key of the cache.
        """
        particles = particles or usual_particles(search, self.pipeline.profile.search.particles)
        seed = self.settings.seed if seed is None else seed
        changed = (change.__name__, settings) if change else None
        step = self._step(f"estimated-{method}-{search}-{particles}", method, seed, changed)

        def make() -> dict:
            """Write rows.csv and course.csv."""
            separator = self.pipeline.separator(method)
            separator = change(separator, **settings) if change else separator
            label = f"{method}, {search}, N = {particles} {settings or ''}".strip()
            started = time.perf_counter()
            found = separator.estimate(self.chunks.mixture, SearchOptions(search, particles, seed, label))
            seconds = (time.perf_counter() - started) / len(self.chunks)
            per_code = found.search.log_evidence / found.search.codes.shape[-1]
            rows = [
                score_estimates(self.chunks, found.stems.cpu(), method, search),
                chunk_rows(self.chunks, method, search, "seconds", seconds),
                chunk_rows(self.chunks, method, search, "log_evidence", per_code.cpu().numpy()),
            ]
            write_rows(pd.concat(rows, ignore_index=True), step.folder / "rows.csv")
            course = _course(found.search, self.chunks.sources.shape[-1] / self.chunks.sample_rate)
            course.to_csv(step.folder / "course.csv", index=False)
            return {
                "seconds_per_chunk": seconds,
                "resamplings_per_chunk": float(found.search.resampled.float().sum(1).mean()),
                "ess": float(found.search.ess.mean()),
            }

        self.pipeline.cache.make(step, make)
        course = pd.read_csv(step.folder / "course.csv")
        return BlindRun(read_rows(step.folder / "rows.csv"), step.record["figures"], course)

    def codec(self, kind: VQVAEKind) -> Tensor:
        """Return the sources as a VQ-VAE reconstructs them, the ceiling of every method on it: float32 [P, B, T]."""
        vqvae = self.pipeline.vqvae(kind)
        return torch.stack([vqvae.decode(vqvae.encode(s.to(vqvae.codebook.device))).cpu() for s in self.chunks.sources])

    def references(self) -> pd.DataFrame:
        """Score what is no separation: the mixture itself, both codecs, and the ideal ratio mask."""
        codecs = tuple(self.pipeline.vqvae_step(kind) for kind in KINDS)
        step = self.pipeline.cache.step("references", self.chunks.digest, SCORES_VERSION, inputs=codecs)

        def make() -> dict:
            """Write rows.csv."""
            rows = score_references(self.chunks, {kind: self.codec(kind) for kind in KINDS})
            write_rows(rows, step.folder / "rows.csv")
            return {"signals": rows.method.nunique()}

        self.pipeline.cache.make(step, make)
        return read_rows(step.folder / "rows.csv")

    def _step(self, name: str, method: str, *settings: object) -> Step:
        version, inputs = self.pipeline.method_version(method), self.pipeline.method_steps(method)
        return self.pipeline.cache.step(name, version, self.chunks.digest, SCORES_VERSION, *settings, inputs=inputs)

    # --- all of them -------------------------------------------------------------------------------------------------------

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
            content = frame.to_csv(index=False, float_format="%.6g", na_rep="nan")
            write_atomically(self.file(name), content.encode())
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


def _course(found: SearchResult, seconds: float) -> pd.DataFrame:
    """Return the course of a BlindRun whose chunks have so many seconds."""
    each = pd.DataFrame({"ess": found.ess.mean(0).cpu(), "resampled": found.resampled.float().mean(0).cpu()})
    course = each.groupby(each.index // COURSE_CODES).mean()
    return course.assign(seconds=(course.index * COURSE_CODES) * seconds / len(each))
