"""What the scores say about the question of the book, in sentences chosen by tests and not by wishes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hybridsep.report.chapter import METHOD_LABELS, SEARCH_LABELS, SMALLEST_MEANINGFUL, number, signed
from hybridsep.statistics import bootstrap_interval, holm, paired_permutation_test
from hybridsep.studies import effects

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


def comparisons(scores: pd.DataFrame) -> pd.DataFrame:
    """Every effect and every gain of the combination, with the chance that it is none.

    Args:
        scores: from `cell_scores`.

    Returns:
        One row per difference, by its label: mean, low, high (95 % bootstrap interval over songs, dB), p (paired permutation test, two-sided),
        p_holm (corrected for all rows), n (songs).
    """
    rows = {}
    for label, values in {**ingredient_effects(scores), **hybrid_gains(scores)}.items():
        finite = values[np.isfinite(values)]
        span = bootstrap_interval(finite)
        rows[label] = {"mean": span.mean, "low": span.low, "high": span.high, "p": paired_permutation_test(finite, np.zeros(len(finite))), "n": len(finite)}
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.assign(p_holm=holm(table.p.to_numpy()))


def effect_sentence(what: str, row: pd.Series) -> str:
    """One effect, a row of `comparisons`, in one sentence."""
    songs = int(row.n)
    if songs < SMALLEST_MEANINGFUL:
        return f"{what} changes the mean by {signed(row['mean'])} dB, but {songs} songs are too few to say anything."
    span = f"95 % interval {signed(row.low)} to {signed(row.high)} dB, corrected p = {number(float(row.p_holm), 3)}, {songs} songs"
    if row.p_holm < SIGNIFICANT:
        return f"{what} {'raises' if row['mean'] > 0 else 'lowers'} the SDR by {number(abs(row['mean']))} dB ({span})."
    return f"{what} makes no difference that these songs can show beyond chance: {signed(row['mean'])} dB ({span})."


def answer(scores: pd.DataFrame) -> str:
    """Whether the combination beats both methods it is made of, by more than the chance of picking these songs.

    Args:
        scores: from `cell_scores`.
    """
    compared = comparisons(scores)
    rows = compared.loc[[METHOD_LABELS["lass"], METHOD_LABELS["lqvae"]]]
    songs = int(rows.n.min())
    details = ", ".join(
        f"{signed(row['mean'])} dB against {label} (95 % interval {signed(row.low)} to {signed(row.high)}, corrected p = {number(float(row.p_holm), 3)})"
        for label, row in rows.iterrows()
    )
    certain = rows[rows.p_holm < SIGNIFICANT]
    better, worse = list(certain.index[certain["mean"] > 0]), list(certain.index[certain["mean"] < 0])
    rest = " and ".join(label for label in rows.index if label not in better)
    if songs < SMALLEST_MEANINGFUL:
        verdict = "This build is too small to answer"
    elif worse:
        verdict = f"No: the Hybrid separates worse than {' and '.join(worse)}"
    elif not rest:
        verdict = "Yes: the Hybrid separates better than both methods it combines"
    elif better:
        verdict = f"In part: the Hybrid separates better than {' and '.join(better)}; against {rest} chance cannot be ruled out"
    else:
        verdict = "No difference between the Hybrid and the methods it combines could be told from chance"
    return f"{verdict}: {details}; {songs} songs, paired, one training of each model. The p-values are corrected for the {len(compared)} differences looked at, the intervals are not."


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
