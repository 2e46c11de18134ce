"""What each ingredient of a method is worth: paired differences over songs, with intervals and tests."""

from itertools import product

import numpy as np
import pandas as pd

from hybridsep.core.profiles import METHODS
from hybridsep.evaluation.rows import rows_where
from hybridsep.evaluation.statistics import bootstrap_interval, holm, paired_permutation_test

COMBINED = ("linear", "counts")  # the cell with both ingredients
BLIND = {"metric": "sdr", "selection": "blind", "reference": "real"}
# Sign patterns of the permutation tests: a p-value must stay small after its correction for some hundred comparisons.
PERMUTATIONS = 100_000
SOURCES_MEAN = "mean"
MAIN, FURTHER = "main", "further"
# The comparison that was fixed as the question; every other one is for looking around.
QUESTION = {"search": "particle", "refine": "wiener", "source": SOURCES_MEAN}


def song_values(table: pd.DataFrame, **where: str) -> pd.Series:
    """Return the values of the rows that match, one per song in the order of the table, averaged over sources where several match.

    Args:
        table: rows in the columns of evaluation.csv.
        where: column = value.
    """
    return rows_where(table, **where).groupby(["track", "start_s"], sort=False).value.mean()


def cell_scores(table: pd.DataFrame, **where: str) -> pd.DataFrame:
    """Return the scores of every cell: one row per song, one column per method. `where` as in `song_values`."""
    return pd.DataFrame({method: song_values(table, method=method, **where) for method in METHODS})


def ingredient_effects(scores: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return paired differences per song: "linear" and "counts", each averaged over the other ingredient, and their "interaction".

    Args:
        scores: from `cell_scores`.
    """

    def mean_of(**spec: str) -> np.ndarray:
        """Return the mean over the cells of a kind, one number per song."""
        cells = [name for name, cell in METHODS.items() if all(getattr(cell, k) == v for k, v in spec.items())]
        return scores[cells].mean(axis=1).to_numpy()

    with_sum, with_counts = (
        mean_of(vqvae="linear", likelihood=kind) - mean_of(vqvae="plain", likelihood=kind) for kind in ("sum", "counts")
    )
    return {
        "linear": mean_of(vqvae="linear") - mean_of(vqvae="plain"),
        "counts": mean_of(likelihood="counts") - mean_of(likelihood="sum"),
        "interaction": with_counts - with_sum,
    }


def combination_gains(scores: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return paired differences per song of the cell with both ingredients minus each other cell, by name of the other."""
    combined = next(name for name, cell in METHODS.items() if (cell.vqvae, cell.likelihood) == COMBINED)
    return {name: (scores[combined] - scores[name]).to_numpy() for name in METHODS if name != combined}


def interval_columns(values: np.ndarray) -> dict[str, float]:
    """Return mean, 95 % interval, standard deviation and number of songs of paired differences, as columns; NaN of none."""
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return {**dict.fromkeys(("mean", "low", "high", "std"), np.nan), "n": 0}
    span = bootstrap_interval(finite)
    spread = float(finite.std(ddof=1)) if len(finite) > 1 else np.nan
    return {"mean": span.mean, "low": span.low, "high": span.high, "std": spread, "n": len(finite)}


def effects_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return effects on blind SDR against the real sources, dB: by search, as decoded and refined, of each source and of their mean.

    Args:
        table: rows in the columns of evaluation.csv.

    Returns:
        search, refine, source, effect ("linear", "counts", "interaction", "over METHOD": the combination minus that method), mean, low,
        high (95 % bootstrap interval over songs), std, n, p (paired permutation test), family (MAIN: the rows of the QUESTION, FURTHER: all
        others) and p_holm, corrected for the rows of its family.
    """
    table = table[table.method.isin(METHODS)]
    sources = (SOURCES_MEAN, *dict.fromkeys(s for s in table.source if s))
    rows = []
    for search, refine, source in product(dict.fromkeys(table.search), ("none", "wiener"), sources):
        which = {"search": search, "refine": refine}
        only = {} if source == SOURCES_MEAN else {"source": source}
        scores = cell_scores(table, **BLIND, **which, **only)
        gains = {f"over {name}": values for name, values in combination_gains(scores).items()}
        for effect, values in {**ingredient_effects(scores), **gains}.items():
            spans = interval_columns(values)
            rows.append({**which, "source": source, "effect": effect, **spans, "p": permutation_p(values)})
    effects = pd.DataFrame(rows)
    asked = (effects[list(QUESTION)] == pd.Series(QUESTION)).all(axis=1)
    effects = effects.assign(family=np.where(asked, MAIN, FURTHER))
    return effects.assign(p_holm=effects.groupby("family").p.transform(holm))


def permutation_p(values: np.ndarray) -> float:
    """Return the chance that paired differences have no mean, two-sided; songs without a score are left out."""
    finite = values[np.isfinite(values)]
    return paired_permutation_test(finite, np.zeros(len(finite)), PERMUTATIONS)
