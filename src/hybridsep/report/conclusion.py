"""What the scores say about the question of the book, in sentences chosen by tests and not by wishes."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hybridsep.evaluation import comparisons as effects
from hybridsep.evaluation.statistics import holm
from hybridsep.report.chapter import METHOD_LABELS, SEARCH_LABELS, SMALLEST_MEANINGFUL, number, p_relation, signed

EFFECT_LABELS = {
    "linear": "The linear codebook, instead of the plain one,",
    "counts": "The counted likelihood, instead of the summed codebook,",
    "interaction": "Having both, beyond the sum of the two single effects,",
}
REFINEMENTS = {"none": "as decoded", "wiener": "refined"}
SIGNIFICANT = 0.05
TO_CEILING_DB = -2.0  # how near the best cell, refined, shall come to the ceiling of the linear codec
OVER_ORACLE_DB = 2.0  # what the blind particle filter shall gain over the oracle choice among ancestral samples


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
        One row per difference, by its label: mean, low, high (95 % bootstrap interval over songs, dB), std, n (songs), p (paired permutation
        test, two-sided), p_holm (corrected for all rows).
    """
    values = {**ingredient_effects(scores), **hybrid_gains(scores)}
    rows = {
        label: effects.interval_columns(found) | {"p": effects.permutation_p(found)} for label, found in values.items()
    }
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table.assign(p_holm=holm(table.p.to_numpy()))


def recorded_comparisons(table: pd.DataFrame) -> pd.DataFrame:
    """`comparisons` as a study of many songs has recorded them.

    Args:
        table: effects.csv of the study.
    """
    labels = {**EFFECT_LABELS, **{f"over {name}": label for name, label in METHOD_LABELS.items()}}
    main = table[table.family == effects.MAIN]
    return main.set_index(main.effect.map(labels))


def effect_sentence(what: str, row: pd.Series) -> str:
    """One effect, a row of `comparisons`, in one sentence."""
    songs = int(row.n)
    if songs < SMALLEST_MEANINGFUL:
        return f"{what} changes the mean by {signed(row['mean'])} dB, but {songs} songs are too few to say anything."
    span = (
        f"95 % interval {signed(row.low)} to {signed(row.high)} dB, corrected {p_relation(row.p_holm)}, {songs} songs"
    )
    if row.p_holm < SIGNIFICANT:
        return f"{what} {'raises' if row['mean'] > 0 else 'lowers'} the SDR by {number(abs(row['mean']))} dB ({span})."
    return f"{what} makes no difference that these songs can show beyond chance: {signed(row['mean'])} dB ({span})."


def answer(scores: pd.DataFrame) -> str:
    """Whether the combination beats both methods it is made of, by more than the chance of picking these songs.

    Args:
        scores: from `cell_scores`.
    """
    return answer_of(comparisons(scores))


def answer_of(compared: pd.DataFrame, elsewhere: str = "") -> str:
    """`answer` to what was compared.

    Args:
        compared: from `comparisons`.
        elsewhere: what else belongs to the verdict.
    """
    rows = compared.loc[[METHOD_LABELS["lass"], METHOD_LABELS["lqvae"]]]
    songs = int(rows.n.min())
    details = ", ".join(
        f"{signed(row['mean'])} dB against {label} (95 % interval {signed(row.low)} to {signed(row.high)}, corrected {p_relation(row.p_holm)})"
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
        verdict = "Not shown: no difference between the Hybrid and the methods it combines could be told from chance"
    return f"{verdict}{elsewhere}: {details}; {songs} songs, paired, one training of each model. The p-values are corrected for the {len(compared)} differences looked at, the intervals are not."


def study_answer(table: pd.DataFrame) -> str:
    """The conclusion of the 2 × 2: whether the Hybrid wins, where, by how much, and whether it is more than noise.

    The verdict on the main comparison, and every other search, refinement and source where the Hybrid is certainly better or worse than a
    method it combines.

    Args:
        table: effects.csv of the study.
    """
    parents = {f"over {name}": METHOD_LABELS[name] for name in ("lass", "lqvae")}
    further = table[(table.family == effects.FURTHER) & table.effect.isin(parents)]
    compared = recorded_comparisons(table)
    if compared.n.min() < SMALLEST_MEANINGFUL:
        return answer_of(compared)
    certain = further[further.p_holm < SIGNIFICANT]
    found = {"better": certain[certain["mean"] > 0], "worse": certain[certain["mean"] < 0]}
    elsewhere = [
        f"{how} than {' and '.join(dict.fromkeys(rows.effect.map(parents)))}"
        for how, rows in found.items()
        if len(rows)
    ]
    main = answer_of(compared, f"; elsewhere {' and '.join(elsewhere)}" if elsewhere else "")
    corrected = f"corrected for the {int((table.family == effects.FURTHER).sum())} further differences"
    if certain.empty:
        nowhere = "Nowhere else, by other searches, as decoded or of single sources, could the Hybrid be told from a method it combines"
        return f"{main} {nowhere} (p-values {corrected})."
    details = [
        f"{how} than {', '.join(_where(row, parents[row.effect]) for _, row in rows.iterrows())}"
        for how, rows in found.items()
        if len(rows)
    ]
    return f"{main} Elsewhere the Hybrid is {'; '.join(details)} (95 % intervals; p-values {corrected})."


def _where(row: pd.Series, label: str) -> str:
    """A gain, a row of effects.csv, with all that says of what it is one."""
    stems = "mean of both sources" if row.source == effects.SOURCES_MEAN else row.source
    where = f"{label} by {SEARCH_LABELS[row.search]}, {REFINEMENTS[row.refine]}, {stems}"
    return f"{where} ({signed(row['mean'])} dB, {signed(row.low)} to {signed(row.high)}, {p_relation(row.p_holm)})"


def to_ceiling(table: pd.DataFrame, method: str) -> dict[str, np.ndarray]:
    """Blind, refined SDR of a method's particle filter minus the ceiling of the linear codec, dB: source -> one paired difference per song.

    The ceiling is that of waveforms as decoded, which refinement can pass.

    Args:
        table: rows in the columns of evaluation.csv.
        method: its name.
    """
    sources = [s for s in dict.fromkeys(table[table.method == method].source) if s]
    refined = {"method": method, "search": "particle", "refine": "wiener", **effects.BLIND}
    ceiling = {"method": "codec-linear", "metric": "sdr", "reference": "real"}
    return {
        s: (
            effects.song_values(table, **refined, source=s) - effects.song_values(table, **ceiling, source=s)
        ).to_numpy()
        for s in sources
    }


def over_oracle(table: pd.DataFrame, method: str) -> np.ndarray:
    """SDR of the blind particle filter minus that of the oracle choice among ancestral samples, as decoded, mean of the sources, dB per song.

    Args:
        table: rows in the columns of evaluation.csv.
        method: its name.
    """
    decoded = {"method": method, "refine": "none"}
    blind = effects.song_values(table, **decoded, search="particle", **effects.BLIND)
    return (
        blind - effects.song_values(table, **decoded, search="ancestral", **{**effects.BLIND, "selection": "oracle"})
    ).to_numpy()
