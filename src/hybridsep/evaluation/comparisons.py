"""What each ingredient of a method is worth: paired differences over songs, with intervals and tests."""

from itertools import product

import numpy as np
import pandas as pd

from hybridsep.core.profiles import METHODS
from hybridsep.evaluation.rows import rows_where
from hybridsep.evaluation.statistics import bootstrap_interval, holm, permutation_p

COMBINED = "hybrid"  # the cell with both ingredients
BLIND = {"metric": "sdr", "selection": "blind", "reference": "real"}
SOURCES_MEAN = "mean"
MAIN, FURTHER = "main", "further"
# The comparison that was fixed as the question; every other one is for looking around.
QUESTION = {"search": "particle", "refine": "wiener", "source": SOURCES_MEAN}


def song_values(table: pd.DataFrame, **where: str) -> pd.Series:
    """Return the values of the rows with column = value, one per song in the order of the table; of several sources the mean."""
    return rows_where(table, **where).groupby(["track", "start_s"], sort=False).value.mean()


def cell_scores(table: pd.DataFrame, **where: str) -> pd.DataFrame:
    """Return the scores of every cell: one row per song, one column per method. `where` as in `song_values`."""
    return pd.DataFrame({method: song_values(table, method=method, **where) for method in METHODS})


def ingredient_effects(scores: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return paired differences per song of `cell_scores`: "linear" and "counts", each over both others, their "interaction", and each alone."""

    def mean_of(**spec: str) -> np.ndarray:
        cells = [name for name, cell in METHODS.items() if all(getattr(cell, k) == v for k, v in spec.items())]
        return scores[cells].mean(axis=1).to_numpy()

    with_sum, with_counts = (
        mean_of(vqvae="linear", likelihood=kind) - mean_of(vqvae="plain", likelihood=kind) for kind in ("sum", "counts")
    )
    return {
        "linear": mean_of(vqvae="linear") - mean_of(vqvae="plain"),
        "counts": mean_of(likelihood="counts") - mean_of(likelihood="sum"),
        "interaction": with_counts - with_sum,
        "linear alone": with_sum,
        "counts alone": mean_of(vqvae="plain", likelihood="counts") - mean_of(vqvae="plain", likelihood="sum"),
    }


def interval_columns(values: np.ndarray) -> dict[str, float]:
    """Return mean, 95 % interval, standard deviation and number of songs of paired differences, as columns; NaN of none."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return {**dict.fromkeys(("mean", "low", "high", "std"), np.nan), "n": 0}
    spread = float(finite.std(ddof=1)) if len(finite) > 1 else np.nan
    return {**bootstrap_interval(finite)._asdict(), "std": spread, "n": len(finite)}


def effects_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return effects on blind SDR against the real sources, dB: by search, as decoded and refined, of each source and of their mean.

    Columns: search, refine, source, effect (those of `ingredient_effects`, and "over METHOD": the combination minus that method), mean, low,
    high (95 % bootstrap interval over songs), std, n, median, p (paired permutation test), family (MAIN: the rows of the QUESTION, FURTHER: all
    others) and p_holm, corrected for the rows of its family.
    """
    table = table[table.method.isin(METHODS)]
    sources = (SOURCES_MEAN, *dict.fromkeys(s for s in table.source if s))
    rows = []
    for search, refine, source in product(dict.fromkeys(table.search), ("none", "wiener"), sources):
        which = {"search": search, "refine": refine}
        only = {} if source == SOURCES_MEAN else {"source": source}
        scores = cell_scores(table, **BLIND, **which, **only)
        others = (name for name in METHODS if name != COMBINED)
        gains = {f"over {name}": (scores[COMBINED] - scores[name]).to_numpy() for name in others}
        for effect, values in {**ingredient_effects(scores), **gains}.items():
            spans = interval_columns(values)
            found = {**spans, "median": float(np.nanmedian(values)), "p": permutation_p(values)}
            rows.append({**which, "source": source, "effect": effect, **found})
    effects = pd.DataFrame(rows)
    asked = (effects[list(QUESTION)] == pd.Series(QUESTION)).all(axis=1)
    effects = effects.assign(family=np.where(asked, MAIN, FURTHER))
    return effects.assign(p_holm=effects.groupby("family").p.transform(holm))
