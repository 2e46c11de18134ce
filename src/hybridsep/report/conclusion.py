"""What the scores say about the question of the book, in sentences chosen by intervals and not by wishes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from hybridsep.profiles import METHODS
from hybridsep.report.chapter import METHOD_LABELS, SMALLEST_MEANINGFUL, chunk_values, number, signed
from hybridsep.statistics import Interval, bootstrap_interval

COMBINED = ("linear", "counts")  # the cell with both ingredients


def cell_scores(table: pd.DataFrame, refine: str = "wiener", search: str = "particle") -> pd.DataFrame:
    """Blind SDR of every cell, mean over sources, dB: one row per chunk, one column per method."""
    where = {"metric": "sdr", "selection": "blind", "reference": "real", "refine": refine, "search": search}
    return pd.DataFrame({method: chunk_values(table, method=method, **where) for method in METHODS})


def ingredient_effects(scores: pd.DataFrame) -> dict[str, np.ndarray]:
    """Paired differences per chunk, dB: each ingredient averaged over the other, and their interaction.

    Args:
        scores: from `cell_scores`.
    """

    def mean_of(**spec: str) -> np.ndarray:
        chosen = [name for name, cell in METHODS.items() if all(getattr(cell, key) == value for key, value in spec.items())]
        return scores[chosen].mean(axis=1).to_numpy()

    linear_with = {kind: mean_of(vqvae="linear", likelihood=kind) - mean_of(vqvae="plain", likelihood=kind) for kind in ("sum", "counts")}
    return {
        "The linear codebook, instead of the plain one,": mean_of(vqvae="linear") - mean_of(vqvae="plain"),
        "The counted likelihood, instead of the summed codebook,": mean_of(likelihood="counts") - mean_of(likelihood="sum"),
        "Having both, beyond the sum of the two single effects,": linear_with["counts"] - linear_with["sum"],
    }


def hybrid_gains(scores: pd.DataFrame) -> dict[str, np.ndarray]:
    """Paired differences per chunk, dB, of the cell with both ingredients minus each other cell, by label of the other."""
    combined = next(name for name, cell in METHODS.items() if (cell.vqvae, cell.likelihood) == COMBINED)
    return {METHOD_LABELS[name]: (scores[combined] - scores[name]).to_numpy() for name in METHODS if name != combined}


def intervals(differences: Mapping[str, np.ndarray]) -> dict[str, Interval]:
    """95 % bootstrap interval over songs of each row of differences; chunks without a score are left out."""
    return {what: bootstrap_interval(values[np.isfinite(values)]) for what, values in differences.items()}


def effect_sentence(what: str, interval: Interval, chunks: int) -> str:
    """One effect in one sentence."""
    span = f"95 % interval {signed(interval.low)} to {signed(interval.high)} dB, {chunks} songs"
    if chunks < SMALLEST_MEANINGFUL:
        return f"{what} changes the mean by {signed(interval.mean)} dB, but {chunks} songs are too few to say anything."
    if interval.excludes_zero:
        return f"{what} {'raises' if interval.mean > 0 else 'lowers'} the SDR by {number(abs(interval.mean))} dB ({span})."
    return f"{what} makes no difference that these songs can show: {signed(interval.mean)} dB ({span})."


def answer(gains: Mapping[str, Interval], chunks: int) -> str:
    """Whether the combination beats both methods it is made of.

    Args:
        gains: interval of the combination's gain over each published method, by label.
        chunks: songs behind each interval.
    """
    details = ", ".join(f"{signed(i.mean)} dB against {label} (95 % interval {signed(i.low)} to {signed(i.high)})" for label, i in gains.items())
    better = [label for label, i in gains.items() if i.low > 0]
    worse = [label for label, i in gains.items() if i.high < 0]
    if chunks < SMALLEST_MEANINGFUL:
        verdict = "This build is too small to answer"
    elif len(better) == len(gains):
        verdict = "Yes: the Hybrid separates better than both methods it combines"
    elif worse:
        verdict = f"No: the Hybrid separates worse than {' and '.join(worse)}"
    elif better:
        verdict = f"Only in part: the Hybrid separates better than {' and '.join(better)}, and no difference to the other could be shown"
    else:
        verdict = "No difference could be shown between the Hybrid and the methods it combines"
    return f"{verdict}: {details}; {chunks} songs."
