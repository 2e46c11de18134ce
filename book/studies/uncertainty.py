"""Whether the particles know where they are wrong: rank correlation of their spread with the true error, second by second."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from study import Study, cached_rows, main

from hybridsep.evaluation.chunks import Chunks
from hybridsep.inference.separator import SearchOptions, Separator
from hybridsep.inference.wiener import wiener
from hybridsep.pipeline.pipeline import RUNGS

METHODS = ("hybrid",)  # the one that is shipped
CHUNKS = 24
RESAMPLES = 2000
# What shall predict, and what: the variance against the power of the error, and their ratios to the power of the stem.
PAIRS = (
    ("spread", "error", "none"),
    ("relative_spread", "relative_error", "none"),
    ("relative_spread", "relative_error", "wiener"),
)


def uncertainty(study: Study) -> None:
    """Separate the test songs of every rung once, and correlate spread and error of each source."""
    tables = []
    for rung in RUNGS:
        evaluation = study.evaluation(rung, CHUNKS)
        for method in METHODS:
            key = (study.pipeline.method_version(method), evaluation.chunks.digest)
            make = functools.partial(seconds_table, study.pipeline, method, evaluation.chunks)
            tables.append(
                cached_rows(study.pipeline, f"uncertainty-{method}", key, make).assign(rung=rung, method=method)
            )
            # A killed study leaves what is done.
            table = pd.concat(tables, ignore_index=True)
            study.write("seconds", table)
            study.write("correlations", correlations(table))


def seconds_table(pipeline, method: str, chunks: Chunks) -> pd.DataFrame:
    """Return track, start_s, second, source, refine, and in dB: spread, error, and both relative to the stem's power."""
    separator: Separator = pipeline.separator(method)
    options = SearchOptions("particle", pipeline.profile.search.particles, label=method, spread=True)
    found = separator.estimate(chunks.mixture, options)
    second, per_second = separator.sample_rate, round(separator.sample_rate / separator.hop)
    rows = []
    # [P, B, 2, S, bands] -> level and variance of each second, [P, B, seconds]
    by_second = [part.mean(3).sum(-1) for part in found.spread.split(per_second, 3) if part.shape[3] == per_second]
    level, spread = torch.stack(by_second, -1).unbind(2)
    for refine, stems in (("none", found.stems), ("wiener", wiener(found.stems, chunks.mixture))):
        for n in range(len(by_second)):
            span = slice(n * second, (n + 1) * second)
            truth = chunks.sources[..., span]
            error, power = (x.square().mean(-1) for x in (stems[..., span] - truth, truth))
            values = {"spread": spread[..., n], "error": error}
            values |= {"relative_spread": spread[..., n] / level[..., n], "relative_error": error / power}
            decibels = {name: 10 * value.clamp_min(1e-10).log10().numpy() for name, value in values.items()}
            for p, source in enumerate(chunks.names):
                known = {"track": chunks.tracks, "start_s": chunks.start_seconds, "second": n, "source": source}
                part = pd.DataFrame({**known, "refine": refine, **{k: v[p] for k, v in decibels.items()}})
                # Where a source is silent no error is relative to it.
                rows.append(part[(power[p] > 1e-8).numpy()])
    return pd.concat(rows, ignore_index=True)


def correlations(table: pd.DataFrame) -> pd.DataFrame:
    """Return Spearman's rank correlation of PAIRS: rung, method, source, refine, predictor, rho, low, high (95 % bootstrap over songs), n (seconds), songs."""
    rows = []
    for (rung, method, source), part in table.groupby(["rung", "method", "source"], sort=False):
        for predictor, outcome, refine in PAIRS:
            seconds = part[part.refine == refine]
            songs = [song[[predictor, outcome]].to_numpy() for _, song in seconds.groupby("track")]
            draws = np.random.default_rng(0).integers(len(songs), size=(RESAMPLES, len(songs)))
            drawn = [spearmanr(np.concatenate([songs[i] for i in draw])).statistic for draw in draws]
            low, high = np.quantile(drawn, [0.025, 0.975])
            rho = spearmanr(seconds[predictor], seconds[outcome]).statistic
            known = {"rung": rung, "method": method, "source": source, "refine": refine, "predictor": predictor}
            rows.append({**known, "rho": rho, "low": low, "high": high, "n": len(seconds), "songs": len(songs)})
    return pd.DataFrame(rows)


if __name__ == "__main__":
    main(uncertainty)
