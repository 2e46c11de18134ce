"""What recorded studies say, in sentences chosen by intervals and tests and not by wishes: one function for each study."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd

from hybridsep.evaluation import comparisons as effects
from hybridsep.report.chapter import METHOD_LABELS, SEARCH_LABELS, SMALLEST_MEANINGFUL, number, signed
from hybridsep.report.conclusion import SIGNIFICANT
from hybridsep.studies.half_precision import ANOTHER_SEED, CEILING, NATS, ROUNDING
from hybridsep.studies.improvements import ASIDE, STEPS, TOGETHER
from hybridsep.studies.out_of_domain import AS_RENDERED
from hybridsep.studies.protocols import ALL_CELLS
from hybridsep.studies.settings import WITHOUT_N
from hybridsep.studies.third_instrument import THIRD

SMALL_CHANGE = 0.05  # dB, or nats per code: what rounded weights may cost
KNEE_DB = 0.5  # how close to the best score a number of particles is called enough
SETTING_LABELS = {
    "power": "power of the counts, λ", "smoothing": "pseudo-counts, α", "sigma": "σ, as a factor of the fitted one",
    "temperature": "temperature of the priors", "ess_threshold": "resampling threshold (share of N)", "particles": "particles in a filter, N",
    "filters": "filters averaged",
}  # fmt: skip
STEP_LABELS = {
    "start": "first settings", "refinement": "Wiener refinement", "longer": "priors trained longer", "temperature": "temperature of the priors",
    "effects": "sound effects in training", "particles": "more particles in one filter", "filters": "as many in several filters",
    "first masks": "plain masks of the first window", "masks": "plain masks of the present window", "full trust": "full trust in the estimates",
    "together": "all steps together",
}  # fmt: skip
SINGLE_CHOICES = {
    "oracle": "the best sample by the truth", "each source by itself": "each source's best sample by itself",
    "default window, seed": "museval's default window", "codec reference": "the codec's reconstruction as reference",
}  # fmt: skip


def half_precision_verdict(differences: pd.DataFrame, figures: pd.DataFrame, same_particles: pd.DataFrame) -> str:
    """What is shown of the cost of half precision, and what is not.

    Args:
        differences, figures, same_particles: tables of the study, as `studies.half_precision` writes them.
    """
    change = (figures.rounded - figures.trained).abs()
    exact = [
        f"{what} by {number(float(size), 4)} {unit} at most, {'less' if size < SMALL_CHANGE else 'not less'} than {SMALL_CHANGE:g}"
        for what, unit, size in (
            ("the codec's ceiling", "dB", change[figures.figure == CEILING].max()),
            ("the nats of priors and likelihoods", NATS, change[figures.unit == NATS].max()),
            ("every blind score of the same particles in every chunk", "dB", same_particles.largest.max()),
        )
    ]
    rows = differences[differences.metric != "log_evidence"].set_index(["method", "refine", "source", "metric"])
    rounding, chance = (rows[rows.compared == what] for what in (ROUNDING, ANOTHER_SEED))
    bound = pd.concat([rounding.low.abs(), rounding.high.abs()], axis=1).max(axis=1)
    small = bound < SMALL_CHANGE
    # Two intervals that do not meet.
    apart = ~small & ((rounding.low > chance.high) | (rounding.high < chance.low))
    kinds = [f"{int(small.sum()) or 'none'} shown to change by less than {SMALL_CHANGE:g} dB"]
    if apart.any():
        kinds.append(
            f"{int(apart.sum())} changed otherwise than by another seed, by {number(float(bound[apart].max()))} dB at most"
        )
    rest = ~small & ~apart
    if rest.any():
        kinds.append(
            f"{int(rest.sum())} that cannot be told from another seed, bounded by {number(float(bound[rest].max()))} dB"
        )
    facts = f"95 % intervals over {int(rounding.n.max())} songs, {int(rounding.seeds.max())} pairs of seeds"
    return f"Rounding changes {', '.join(exact)}. Of {len(rounding)} scores of searches made anew: {', '.join(kinds)} ({facts})."


def settings_verdict(differences: pd.DataFrame) -> str:
    """Which settings change the refined SDR beyond chance against the profile's own, and which way.

    Args:
        differences: table of the study, as `settings.differences_table` makes it.
    """
    tried, songs = len(differences), int(differences.n.max())
    if songs < SMALLEST_MEANINGFUL:
        return f"{tried} changes of one setting were tried, but {songs} songs are too few to say anything."
    facts = f"paired on the same {songs} validation songs, p-values corrected for all {tried} values tried"
    certain = differences[differences.p_holm < SIGNIFICANT]
    if certain.empty:
        return f"No setting changes the refined SDR beyond chance: no value tried can be told from the profile's own ({facts})."
    better, worse = certain[certain["mean"] > 0], certain[certain["mean"] < 0]
    best = (
        f"Better than the profile's own beyond chance: {_values(better)}"
        if len(better)
        else "No value tried is better than the profile's own beyond chance"
    )
    rest = tried - len(certain)
    others = [f"worse: {_values(worse)}"] * bool(len(worse)) + [f"{rest} cannot be told from it"] * bool(rest)
    return f"{'; '.join([best, *others])} ({facts})."


def _values(rows: pd.DataFrame) -> str:
    """Settings with what they change, rows of `settings.differences_table`."""
    return ", ".join(
        f"{SETTING_LABELS[row.setting]} {row.tried:g} instead of {row.own:g}, {METHOD_LABELS[row.method]} ({_interval(row)})"
        for _, row in rows.iterrows()
    )


def _interval(row: Mapping[str, float] | pd.Series) -> str:
    return f"{signed(row['mean'])} dB, {signed(row['low'])} to {signed(row['high'])}"


def tuning_verdict(correlation: pd.DataFrame) -> str:
    """Whether settings of higher evidence also score higher, so that one can tune without ground truth.

    Numbers of particles and of filters are left out: more of them raise both.

    Args:
        correlation: table of the study, as `settings.correlation_table` makes it.
    """
    rows = correlation[(correlation.refine == "wiener") & (correlation.settings == WITHOUT_N)].set_index("method")
    songs = int(rows.songs.min())
    if songs < SMALLEST_MEANINGFUL:
        return f"Whether evidence predicts the score cannot be said: {songs} songs are too few."
    kinds = {"higher": rows.low > 0, "lower": rows.high < 0, "unclear": (rows.low <= 0) & (rows.high >= 0)}
    found = {
        kind: " and ".join(METHOD_LABELS[m] for m in rows.index[chosen])
        for kind, chosen in kinds.items()
        if chosen.any()
    }
    if "lower" in found:
        verdict = f"No: with {found['lower']} settings of higher evidence score lower"
    elif "unclear" not in found:
        verdict = "Yes: settings of higher evidence also score higher, with every method"
    elif "higher" in found:
        verdict = f"In part: settings of higher evidence also score higher with {found['higher']}; with {found['unclear']} chance cannot be ruled out"
    else:
        verdict = "Not shown: that settings of higher evidence also score higher cannot be told from chance"
    details = ", ".join(
        f"{METHOD_LABELS[m]} ρ = {number(row.rho_song)} ({number(row.low)} to {number(row.high)}, {int(row.n)} settings)"
        for m, row in rows.iterrows()
    )
    return f"{verdict}. Rank correlation within a song, refined, without numbers of particles, {songs} songs, 95 % intervals, each by itself: {details}."


def protocols_verdict(choices: pd.DataFrame) -> str:
    """How many dB the published protocol's choices are worth together, and which of them is the largest, by ancestral sampling and particle filter.

    Args:
        choices: table of the study, as `protocols.choices_table` makes it.
    """
    pooled = (
        choices[(choices.method == ALL_CELLS) & (choices.source == effects.SOURCES_MEAN)]
        .set_index(["search", "choice"])
        .sort_index()
    )
    songs = int(pooled.n.max())
    if songs < SMALLEST_MEANINGFUL:
        return f"What a protocol is worth cannot be said: {songs} songs are too few."
    said = "; ".join(
        f"by {SEARCH_LABELS[search]} {_protocol_worth(pooled.loc[search])}" for search in ("ancestral", "particle")
    )
    return f"What the seed's choices of a protocol add to the very same separations: {said} (as decoded, mean of both sources and of all cells, 95 % intervals over {songs} songs)."


def _protocol_worth(rows: pd.DataFrame) -> str:
    """Choices of one search, by name: all together, and the largest by itself."""
    total, with_codec = rows.loc["seed protocol"], rows.loc["seed protocol, codec reference"]
    together = (
        f"together {_interval(total)}"
        if total.low > 0 or total.high < 0
        else f"together nothing beyond chance ({_interval(total)})"
    )
    single = rows.loc[list(SINGLE_CHOICES)]
    single = single.assign(
        least=np.where(single.low * single.high > 0, single[["low", "high"]].abs().min(axis=1), 0.0),
        most=single[["low", "high"]].abs().max(axis=1),
    )
    order = single["mean"].abs().sort_values(ascending=False).index
    first, rest = single.loc[order[0]], single.loc[order[1:]]
    name = f"{SINGLE_CHOICES[order[0]]} ({_interval(first)})"
    if first.least == 0:
        largest = f"no choice by itself can be told from none, the largest being {name}"
    elif first.least > rest.most.max():
        largest = f"the largest by itself is {name}"
    else:
        equals = " and ".join(
            f"{SINGLE_CHOICES[c]} ({signed(row['mean'])} dB)" for c, row in rest.iterrows() if row.most >= first.least
        )
        largest = f"the largest by itself, {name}, cannot be told in size from {equals}"
    return f"{together}, with the codec's reconstruction as reference {_interval(with_codec)}; {largest}"


def knees(scores: pd.DataFrame) -> pd.DataFrame:
    """From which N on the refined SDR is within KNEE_DB of the best N of its kind.

    Args:
        scores: rows in the columns of evaluation.csv with `filter_particles` (0: one filter) and `particles`.

    Returns:
        By filter_particles: particles, sdr, best (dB, mean over songs and sources), most (the largest N tried).
    """
    rows = {}
    for size, kind in scores.groupby("filter_particles"):
        means = pd.Series(
            {
                n: effects.song_values(each, **effects.BLIND, refine="wiener").mean()
                for n, each in kind.groupby("particles")
            }
        )
        enough = means.index[means >= means.max() - KNEE_DB][0]
        rows[size] = {"particles": enough, "sdr": means[enough], "best": means.max(), "most": means.index.max()}
    return pd.DataFrame.from_dict(rows, orient="index").astype({"particles": int, "most": int})


def kind_of_filters(size: int) -> str:
    """What searches with this `filter_particles` are called."""
    return f"the mean of filters of {size}" if size else "one filter"


def particles_verdict(scores: pd.DataFrame, differences: pd.DataFrame) -> str:
    """Where more particles stop to pay, in one filter and in several, and what averaging filters gains at equal N.

    Args:
        scores, differences: tables of the study, as `comparison.particles` writes them.
    """
    songs = int(differences.n.max())
    if songs < SMALLEST_MEANINGFUL:
        return f"How many particles are enough cannot be said: {songs} songs are too few."
    found = []
    for size, knee in knees(scores).iterrows():
        figures = f"{number(knee.sdr)} dB, best {number(knee.best)} dB"
        still = f"no knee up to N = {int(knee.most)}, the best score lies there ({figures})"
        found.append(
            f"{kind_of_filters(size)}: {still if knee.particles == knee.most else f'N = {int(knee.particles)} ({figures})'}"
        )
    size = int(scores.filter_particles.max())
    certain = differences[differences.p_holm < SIGNIFICANT]
    listed = ", ".join(f"{_interval(row)} at N = {int(row.particles)}" for _, row in differences.iterrows())
    if certain.empty:
        gain = f"makes no difference beyond chance at any N: {listed}"
    else:
        ways = {"better": certain[certain["mean"] > 0], "worse": certain[certain["mean"] < 0]}
        where = [
            f"{how} beyond chance at N = {', '.join(str(int(n)) for n in rows.particles)}"
            for how, rows in ways.items()
            if len(rows)
        ]
        gain = f"is {' and '.join(where)}: {listed}"
    return (
        f"The first N within {KNEE_DB:g} dB of the best refined SDR: {'; '.join(found)}. At equal N, the mean of filters of {size} instead of one filter {gain} "
        f"({songs} songs, paired, 95 % intervals; p-values corrected for the {len(differences)} numbers compared)."
    )


def improvements_verdict(gains: pd.DataFrame) -> str:
    """Which steps raised the mean of both sources beyond chance, which did not, what they gained together and what remains to the codec's ceiling.

    Args:
        gains: table of the study, as `improvements.gains_table` makes it.
    """
    refined = gains[gains.refine == "wiener"]
    rows = refined[refined.source == effects.SOURCES_MEAN].set_index("step")
    songs = int(rows.n.min())
    if songs < SMALLEST_MEANINGFUL:
        return f"What the steps were worth cannot be said: {songs} songs are too few."
    taken, total = rows.loc[list(STEPS[1:])], rows.loc[TOGETHER]
    raised, lowered, unclear = _by_verdict(taken)
    parts = [
        f"Raised beyond chance by {_steps(raised)}"
        if len(raised)
        else "No single step raised the refined SDR beyond chance"
    ]
    parts += [f"lowered by {_steps(lowered)}"] * bool(len(lowered)) + [
        f"not to be told from chance: {_steps(unclear)}"
    ] * bool(len(unclear))
    better, worse, same = _by_verdict(rows.loc[list(ASIDE)])
    beside = [
        f"{how} {_steps(kind)}"
        for how, kind in (("better by", better), ("worse by", worse), ("not to be told apart:", same))
        if len(kind)
    ]
    beyond = "" if total.p_holm < SIGNIFICANT else ", which cannot be told from chance"
    together = f"From the first settings as decoded to the present ones refined, all steps together are worth {_interval(total)}{beyond}"
    last = refined[refined.step == STEPS[-1]]
    remains = ", ".join(
        f"{row.source} {number(row.remaining)} dB" for _, row in last[last.source != effects.SOURCES_MEAN].iterrows()
    )
    return (
        f"{'; '.join(parts)}. {together}. Other refinements in place of the present one, one filter of few particles: {'; '.join(beside)}. "
        f"To the codec's ceiling remain {remains} ({songs} test songs, mean of both sources, paired, 95 % intervals, p-values corrected for the {len(rows)} differences)."
    )


def _by_verdict(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Rows that are higher beyond chance, lower beyond chance, and neither."""
    certain = rows.p_holm < SIGNIFICANT
    return rows[certain & (rows["mean"] > 0)], rows[certain & (rows["mean"] < 0)], rows[~certain]


def _steps(rows: pd.DataFrame) -> str:
    return ", ".join(f"{STEP_LABELS[step]} ({_interval(row)})" for step, row in rows.iterrows())


def out_of_domain_verdict(falls: pd.DataFrame) -> str:
    """In which other sound the separations fall furthest, and in which of them the codec is to blame, its ceiling falling as far.

    Args:
        falls: table of the study, as `out_of_domain.falls_table` makes it.
    """
    rows = (
        falls[(falls.source == effects.SOURCES_MEAN) & (falls.condition != AS_RENDERED)]
        .set_index(["method", "refine", "condition"])
        .sort_index()
    )
    ours, ceiling = rows.loc[("hybrid", "wiener")], rows.loc[("codec-linear", "none")]
    songs = int(ours.n.min())
    if songs < SMALLEST_MEANINGFUL:
        return f"How far the separations fall in other sounds cannot be said: {songs} songs are too few."
    facts = f"refined, mean of both sources, {songs} songs, paired with the same songs as rendered, 95 % intervals, each by itself"
    order = ours["mean"].sort_values().index
    blamed = {condition: _blame(ours.loc[condition], ceiling.loc[condition]) for condition in order}
    worst, *others = order
    if ours.high.min() >= 0:
        return f"In no other sound do the separations fall beyond chance; {worst} changes them most for the worse, by {_interval(ours.loc[worst])} ({facts})."
    elsewhere = "; ".join(
        f"{condition}, {signed(ours.loc[condition, 'mean'])} dB: {blamed[condition]}" for condition in others
    )
    return (
        f"The separations change most for the worse in the condition {worst}, by {_interval(ours.loc[worst])}; the codec's ceiling by {_interval(ceiling.loc[worst])}: "
        f"{blamed[worst]}.{f' The others: {elsewhere}' if elsewhere else ''} ({facts})."
    )


def _blame(ours: pd.Series, ceiling: pd.Series) -> str:
    """What made a score fall in another sound, by the changes of the separations and of the codec's ceiling."""
    if ours.high >= 0:
        return "no fall beyond chance"
    if ceiling.high >= 0:
        return "the priors and the likelihood are to blame, since the ceiling does not fall beyond chance"
    if ceiling.low > ours.high:
        return "the codec is to blame in part, and the priors and the likelihood for the rest, since the ceiling falls less"
    return "the codec may be to blame for all of it, since the two falls cannot be told apart in size"


def third_instrument_verdict(scores: pd.DataFrame) -> list[str]:
    """Whether the Hybrid beats no separation at all, and the network of the first pair, in one sentence for each pair.

    Args:
        scores: table of the study, as `third_instrument.third_instrument` writes it.
    """
    signals = {
        "hybrid": {**effects.BLIND, "refine": "wiener"},
        "mixture": {"metric": "sdr", "reference": "real"},
        "convtasnet": {**effects.BLIND, "refine": "none"},
    }
    sentences = []
    for pair, rows in scores.groupby("pair", sort=False):
        sdr = {method: effects.song_values(rows, method=method, **where) for method, where in signals.items()}
        network = "the network of the first pair" if THIRD in pair else "the network trained for this pair"
        found = [
            (other, effects.interval_columns((sdr["hybrid"] - sdr[name]).to_numpy()))
            for other, name in (("the unseparated mixture", "mixture"), (network, "convtasnet"))
        ]
        songs = min(int(row["n"]) for _, row in found)
        if songs < SMALLEST_MEANINGFUL:
            sentences.append(f"{pair}: {songs} songs are too few to say anything.")
            continue
        said = " and ".join(f"{_compared(row)} {other} ({_interval(row)})" for other, row in found)
        sentences.append(
            f"{pair}: the Hybrid, refined, {said}; mean of both sources, {songs} songs, paired, 95 % intervals, each by itself."
        )
    return sentences


def _compared(row: Mapping[str, float]) -> str:
    """A paired difference as a verb."""
    if row["low"] > 0:
        return "beats"
    return "is worse than" if row["high"] < 0 else "cannot be told from"


def gap_verdict(differences: pd.DataFrame) -> str:
    """How far the Hybrid is from Conv-TasNet on each source, and how much of that is the codec's ceiling.

    Args:
        differences: table of the study, as `baselines.baseline_differences` makes it.
    """
    rows = differences[differences.source != effects.SOURCES_MEAN].set_index("source")
    songs = int(rows.n.min())
    if songs < SMALLEST_MEANINGFUL:
        return f"How far the Hybrid is from Conv-TasNet cannot be said: {songs} songs are too few."
    gaps, over, under = (
        rows[(rows.method == method) & (rows.other == other)]
        for method, other in (("hybrid", "convtasnet"), ("convtasnet", "codec-linear"), ("hybrid", "codec-linear"))
    )
    said = "; ".join(
        f"{source}: {_gap(gaps.loc[source], over.loc[source], under.loc[source])}" for source in gaps.index
    )
    return f"The Hybrid, refined, against Conv-TasNet: {said} ({songs} songs, paired, 95 % intervals, each by itself)."


def _gap(gap: pd.Series, over: pd.Series, under: pd.Series) -> str:
    """One source, from the differences Hybrid − Conv-TasNet, Conv-TasNet − codec ceiling and Hybrid − codec ceiling."""
    if gap.low > 0:
        return f"better ({_interval(gap)})"
    if gap.high >= 0:
        return f"cannot be told from it ({_interval(gap)})"
    worse = f"worse ({_interval(gap)})"
    if over.high < 0:
        return f"{worse}; none of that is the codec's ceiling, below which Conv-TasNet lies as well ({_interval(over)})"
    if over.low <= 0:
        return f"{worse}; none of that is shown to be the codec's ceiling, from which Conv-TasNet cannot be told ({_interval(over)})"
    if under.high < 0:
        return f"{worse}; the codec's ceiling explains {number(over['mean'])} dB of it, by which Conv-TasNet lies above the ceiling ({_interval(over)}), the search and its models the rest, by which the Hybrid lies below ({_interval(under)})"
    where = "lies above the ceiling too" if under.low > 0 else "cannot be told from the ceiling"
    return f"{worse}; all of that may be the codec's ceiling, above which Conv-TasNet lies ({_interval(over)}), while the Hybrid {where} ({_interval(under)})"
