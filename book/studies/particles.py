"""What a particle filter gives for its time: how many particles, in one filter or in several, and which estimate is made of them.

An estimate is the mean of the whole paths (lag 0), or of each stretch of codes as the particles have it so many codes later.
"""

from __future__ import annotations

import functools
import time

import pandas as pd
import torch
from study import Study, cached_rows, main, sources_of

from hybridsep.evaluation.comparisons import interval_columns, song_values
from hybridsep.evaluation.protocols import score_estimates
from hybridsep.inference.search import SearchResult
from hybridsep.inference.separator import LAGGED_ROWS, SearchOptions, Separator
from hybridsep.inference.smoothing import lagged_mean
from hybridsep.pipeline.evaluate import Evaluation

METHODS, SWEPT = ("lass", "hybrid"), "hybrid"
CHUNKS, VALIDATION_CHUNKS = 12, 12
ONE_FILTER = 0  # as the profile's search.filter_particles
COUNTS, SEVERAL, SEEDS = (2, 8, 32), (128,), (0, 1)
SETTLED = 32
CHOSEN, TRIED = (0, 8), (0, 4, 8, 16, 32)


def particles(study: Study) -> None:
    """Score both estimates against the number of particles on test songs, and every lag on validation songs."""
    tables = []
    tried = ("validation", VALIDATION_CHUNKS, TRIED, [(SETTLED, ONE_FILTER)])
    for split, chunks, lags, sizes in (tried, ("test", CHUNKS, CHOSEN, _sizes())):
        for method in METHODS:
            for count, size in sizes if method == SWEPT else [(SETTLED, ONE_FILTER)]:
                evaluation = study.evaluation(split, chunks, search={"filter_particles": size, "lag": CHOSEN[1]})
                for seed in SEEDS if (split, count) == ("test", SETTLED) else SEEDS[:1]:
                    found = estimates(evaluation, method, count, seed, lags)
                    tables.append(found.assign(split=split, filter_particles=size, particles=count, seed=seed))
        # A killed study leaves the songs that are done.
        table = pd.concat(tables, ignore_index=True)
        study.write("scores", table)
        study.write("differences", differences(table))


def _sizes() -> list[tuple[int, int]]:
    """List particles and filter_particles: one filter of each size, several of SETTLED each."""
    return [(count, ONE_FILTER) for count in COUNTS] + [(count, SETTLED) for count in SEVERAL]


def estimates(evaluation: Evaluation, method: str, count: int, seed: int, lags: tuple[int, ...]) -> pd.DataFrame:
    """Return the rows of every estimate of one search, with `lag`; metric "seconds": search and estimate, CPU time of this process."""
    pipeline, chunks = evaluation.pipeline, evaluation.chunks

    def make() -> pd.DataFrame:
        return searched(pipeline.separator(method))

    @torch.no_grad()
    def searched(separator: Separator) -> pd.DataFrame:
        started = time.process_time()
        mixture, level, found = separator._search(chunks.mixture, SearchOptions("particle", count, seed, method))
        in_search, rows = time.process_time() - started, []
        for lag in lags:
            started = time.process_time()
            stems = estimate(separator, found, lag) / level
            seconds = (in_search + time.process_time() - started) / len(chunks)
            scored = score_estimates(chunks, stems.cpu(), method, "particle")
            scored = scored[scored.metric == "sdr"].assign(lag=lag)
            rows += [scored, scored.assign(metric="seconds", value=seconds)]
        return pd.concat(rows, ignore_index=True)

    key = (pipeline.method_version(method), chunks.digest, count, seed, lags)
    return cached_rows(pipeline, f"particles-{method}", key, make)


def estimate(separator: Separator, found: SearchResult, lag: int) -> torch.Tensor:
    """Return the mean of the particles at a lag, float32 [P, B, T]."""
    if not lag:
        return separator.decode(found.codes, found.log_weights.softmax(-1))
    decode = functools.partial(separator.decode, rows=LAGGED_ROWS)
    return lagged_mean(found, decode, lag, separator.profile.search.stretch, separator._reach, separator.hop)


def differences(table: pd.DataFrame) -> pd.DataFrame:
    """Return paired differences, song by song, mean over seeds, dB: a lag over whole paths, several filters over one of as many particles."""
    names, rows = ["split", "method", "particles", "refine"], []
    for labels, part in table[table.metric == "sdr"].groupby(names, sort=False):
        for source, only in sources_of(part).items():
            known = {**dict(zip(names, labels, strict=True)), "source": source}
            runs = {key: song_values(run, **only) for key, run in part.groupby(["filter_particles", "lag"], sort=True)}
            for (size, lag), values in runs.items():
                others = {"whole paths": (size, 0)} if lag else {}
                others |= {"one filter": (ONE_FILTER, lag)} if size and (ONE_FILTER, lag) in runs else {}
                for over, other in others.items():
                    change = interval_columns((values - runs[other]).to_numpy())
                    rows.append({**known, "filter_particles": size, "lag": lag, "over": over, **change})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main(particles)
