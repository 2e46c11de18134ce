"""What the scores say about the question of the book, in sentences chosen by intervals and not by wishes."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from hybridsep.report.chapter import METHOD_LABELS, SEARCH_LABELS, SMALLEST_MEANINGFUL, number, signed
from hybridsep.statistics import Interval
from hybridsep.studies import effects
from hybridsep.studies.effects import intervals

EFFECT_LABELS = {
    "linear": "The linear codebook, instead of the plain one,",
    "counts": "The counted likelihood, instead of the summed codebook,",
    "interaction": "Having both, beyond the sum of the two single effects,",
}
SIGNIFICANT = 0.05


def cell_scores(table: pd.DataFrame, refine: str = "wiener", search: str = "particle") -> pd.DataFrame:
    """Blind SDR of every cell, mean over sources, dB: one row per chunk, one column per method."""
    return effects.cell_scores(table, **effects.BLIND, refine=refine, search=search)


def ingredient_effects(scores: pd.DataFrame) -> dict[str, np.ndarray]:
    """`effects.ingredient_effects` by what the prose calls each effect."""
    return {EFFECT_LABELS[name]: values for name, values in effects.ingredient_effects(scores).items()}


def hybrid_gains(scores: pd.DataFrame) -> dict[str, np.ndarray]:
    """Paired differences per chunk, dB, of the cell with both ingredients minus each other cell, by label of the other."""
    return {METHOD_LABELS[name]: values for name, values in effects.combination_gains(scores).items()}


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


def study_answer(table: pd.DataFrame) -> str:
    """The conclusion of the 2 × 2 in one sentence: whether the Hybrid wins, where, by how much, and whether it is more than noise.

    Args:
        table: effects.csv of the study.
    """
    parents = {f"over {name}": METHOD_LABELS[name] for name in ("lass", "lqvae")}
    gains = table[table.effect.isin(parents) & (table.refine == "wiener") & (table.source == effects.SOURCES_MEAN)]
    songs = int(gains.n.min())
    if songs < SMALLEST_MEANINGFUL:
        return f"{songs} songs are too few to say anything."
    certain = gains[gains.p_holm < SIGNIFICANT]
    beaten = [set(rows.effect) for _, rows in certain[certain["mean"] > 0].groupby("search")]
    if any(found == set(parents) for found in beaten):
        verdict = "Yes, at least by some search: the Hybrid separates better than both methods it combines, by more than noise"
    elif beaten:
        verdict = "Only in part: the Hybrid separates better than one of the methods it combines, by more than noise"
    else:
        verdict = "No: nowhere does the Hybrid separate better than one of the methods it combines by more than noise"
    shown = certain if len(certain) else gains[gains.search == "particle"]
    details = ", ".join(
        f"{signed(row['mean'])} dB against {parents[row.effect]} by {SEARCH_LABELS[row.search]} ({signed(row.low)} to {signed(row.high)}, p = {number(float(row.p_holm), 3)})"
        for _, row in shown.iterrows()
    )
    return f"{verdict}: {details}; {songs} songs, refined SDR, 95 % intervals, p corrected for {len(table)} comparisons."
