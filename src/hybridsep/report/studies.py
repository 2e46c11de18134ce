"""Recorded studies as figures and tables: each function shows what book/results holds of one, or says in one line that it holds nothing."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from html import escape
from inspect import signature
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.axes import Axes
from scipy.stats import chi2

from hybridsep.core.errors import HybridsepError
from hybridsep.core.profiles import load_profile
from hybridsep.evaluation.chunks import Evaluation, read_rows
from hybridsep.evaluation.comparisons import BLIND, MAIN, SOURCES_MEAN, interval_columns, song_values
from hybridsep.evaluation.statistics import Interval, bootstrap_interval
from hybridsep.inference.separator import Separator
from hybridsep.report import repository_root
from hybridsep.report.chapter import (
    METHOD_COLOURS,
    METHOD_LABELS,
    SEARCH_LABELS,
    chunk_values,
    mean_std,
    minutes,
    number,
    p_value,
    score_table,
    signed,
)
from hybridsep.report.conclusion import EFFECT_LABELS as INGREDIENTS
from hybridsep.report.conclusion import (
    OVER_ORACLE_DB,
    REFINEMENTS,
    SIGNIFICANT,
    TO_CEILING_DB,
    answer_of,
    cell_scores,
    effect_sentence,
    over_oracle,
    recorded_comparisons,
    study_answer,
    to_ceiling,
)
from hybridsep.report.figures import PALETTE, results_table, show
from hybridsep.report.verdicts import (
    KNEE_DB,
    SETTING_LABELS,
    STEP_LABELS,
    gap_verdict,
    half_precision_verdict,
    improvements_verdict,
    kind_of_filters,
    knees,
    out_of_domain_verdict,
    particles_verdict,
    protocols_verdict,
    settings_verdict,
    third_instrument_verdict,
    tuning_verdict,
)
from hybridsep.studies.comparison import ONE_FILTER
from hybridsep.studies.half_precision import ANOTHER_SEED, ROUNDING
from hybridsep.studies.improvements import ASIDE, BEFORE_ASIDE, CODEC, FIRST_SHARE, METHOD, START, STEPS, TOGETHER
from hybridsep.studies.linearity import SHARE
from hybridsep.studies.out_of_domain import AS_RENDERED
from hybridsep.studies.protocols import ALL_CELLS
from hybridsep.studies.published import NOT_THE_SAME
from hybridsep.studies.settings import setting_means
from hybridsep.studies.windows import WAYS

SEARCH_COLOURS = dict(
    zip(SEARCH_LABELS, (PALETTE[name] for name in ("purple", "green", "blue", "vermillion")), strict=True)
)
EFFECT_LABELS = {
    "linear": "linear codebook − plain", "counts": "counts − sum", "interaction": "interaction",
    **{f"over {name}": f"Hybrid − {METHOD_LABELS[name]}" for name in ("lass", "lqvae", "plain-sum")},
}  # fmt: skip
CHOICE_LABELS = {
    "oracle": "best sample by the truth, instead of the mean of all (blind)",
    "each source by itself": "each source's best sample by itself, instead of one for both",
    "default window, blind": "museval's default window instead of 1 s, blind estimates",
    "default window, seed": "museval's default window instead of 1 s, best samples by source",
    "codec reference": "codec's reconstruction as reference, instead of the real source",
    "refinement": "refinement, instead of the decoder's own waveforms",
    "seed protocol": "all of the seed's choices together, against blind and real",
    "seed protocol, codec reference": "the same, with the codec's reconstruction as reference",
}
LOGARITHMIC = ("smoothing", "sigma", "particles", "filters")
PRIOR_LABELS = {
    "random codes": "codes drawn at random", "uniform": "no prior (likelihood only)", "unigram": "unigram", "bigram": "bigram", "transformer": "transformer",
}  # fmt: skip
BASELINE_LABELS = {"hpss": "harmonic–percussive masks", "nmf": "learnt spectra (NMF)", "convtasnet": "Conv-TasNet"}
SEPARATOR_LABELS = {**BASELINE_LABELS, "hybrid": "Hybrid, particle filter"}
REFERENCE_LABELS = {"mixture": "mixture, not separated", "codec-linear": "codec ceiling", "irm": "ideal ratio mask"}
CEILING_SPENT_DB = 0.1  # of the codec ceiling, what a weight of L_lin may cost
SONGS = ("tracks", "seconds", "seed", "sample_rate")  # settings that the test songs of a profile follow from
START_SECONDS = 0.01  # how near to each other two starts are one: studies write down five digits
MODEL_SETTINGS = ("data", "vqvae", "prior", "likelihood", "search")
RAW_AND_REFINED = {"none": "", "wiener": ", refined"}


@dataclass(frozen=True)
class Recorded:
    """Tables of a study, by name, and its provenance.json."""

    name: str
    tables: dict[str, pd.DataFrame]
    provenance: dict

    def line(self, *facts: str) -> str:
        """What a reader needs to judge the study's numbers."""
        known = self.provenance
        made = f"study {self.name}, profile {known['profile']['name']}, commit {known['commit']}, {known['hardware']}"
        changed = [f"settings changed since: {', '.join(self.changed)}"] if self.changed else []
        return (
            "; ".join([*facts, made, *changed])
            + f". Again: hybridsep study {self.name} --profile {known['profile']['name']}"
        )

    @property
    def changed(self) -> list[str]:
        """Settings of its profile on which models or searches depend, such as "data.effects", and that the profile of that name has otherwise now."""
        then = self.provenance["profile"]
        try:
            now = load_profile(then["name"]).model_dump(mode="json")
        except HybridsepError:
            return []
        pairs = [(block, {**then[block], **now[block]}) for block in MODEL_SETTINGS if block in then]
        return [
            f"{block}.{key}" for block, keys in pairs for key in keys if then[block].get(key) != now[block].get(key)
        ]


def recorded(name: str) -> Recorded | None:
    """What book/results holds of a study; None where it was never finished."""
    folder = repository_root() / "book" / "results" / name
    if not (folder / "provenance.json").is_file():
        return None
    tables = {path.stem: read_rows(path) for path in sorted(folder.glob("*.csv"))}
    return Recorded(name, tables, json.loads((folder / "provenance.json").read_text()))


SHOWN: dict[str, Callable[[], HTML]] = {}
"""What shows each study, by its name."""


def _shows(name: str) -> Callable:
    """A function that shows a recorded study, and the one line where there is none."""

    def decorate(make: Callable[[Recorded], Iterable[HTML]]) -> Callable[[], HTML]:
        """`make` for a study that is recorded, kept in SHOWN."""

        @functools.wraps(make)
        def shown() -> HTML:
            study = recorded(name)
            if study is None:
                return _paragraph(f"This study has not been recorded yet: hybridsep study {name} would.")
            return HTML("".join(part.data for part in make(study)))

        SHOWN[name] = shown
        return shown

    return decorate


def _paragraph(text: str, strong: bool = False) -> HTML:
    said = escape(text)
    return HTML(f"<p><strong>{said}</strong></p>" if strong else f"<p>{said}</p>")


def _older(study: Recorded) -> HTML:
    return _paragraph(
        f"Recorded in an older form, without the paired differences: run it again (hybridsep study {study.name})."
    )


def _songs(count: int) -> str:
    return f"n = {count} songs"


def _span(row: pd.Series, decimals: int = 2) -> str:
    """Mean and 95 % interval, with signs."""
    mean, low, high = (signed(row[name], decimals) for name in ("mean", "low", "high"))
    return f"{mean} ({low} to {high})"


def _sources(table: pd.DataFrame) -> list[str]:
    return [s for s in dict.fromkeys(table.source) if s and s != SOURCES_MEAN]


def _blind_columns(sources: Iterable[str], **where: str) -> dict[str, dict[str, str]]:
    """One column of blind SDR for each source, as decoded and refined."""
    return {
        f"{s}{label} (dB)": {**BLIND, "source": s, "refine": refine, **where}
        for refine, label in RAW_AND_REFINED.items()
        for s in sources
    }


def _interval_band(axis: Axes, x: np.ndarray, spans: list[Interval], label: str, colour: str, style: str = "-") -> None:
    axis.plot(x, [s.mean for s in spans], style, marker=".", color=colour, label=label)
    axis.fill_between(x, [s.low for s in spans], [s.high for s in spans], color=colour, alpha=0.15, linewidth=0)


def _interval_of(table: pd.DataFrame, **where: str) -> Interval:
    values = chunk_values(table, **where)
    return bootstrap_interval(values[np.isfinite(values)])


# --- the 2 x 2 -------------------------------------------------------------------------------------------------------------


@_shows("two-by-two")
def show_two_by_two(study: Recorded) -> Iterable[HTML]:
    """Scores of every cell and search, effects with their intervals, and the conclusion."""
    table, effects = study.tables["evaluation"], study.tables["effects"]
    searches = [s for s in SEARCH_LABELS if s in set(table.search)]
    songs = _songs(int(effects.n.max()))
    for refine, label in reversed(REFINEMENTS.items()):
        columns = {
            f"{SEARCH_LABELS[s]}, {p} (dB)": {**BLIND, "search": s, "source": p, "refine": refine}
            for s in searches
            for p in _sources(table)
        }
        yield results_table(score_table(table, METHOD_LABELS, columns, "method", "method"), f"Blind SDR of every cell by every search, {label}.",
                            study.line(songs, "mean ± standard deviation over songs", "reference: the real sources"))  # fmt: skip
    families = effects.family.value_counts()
    yield _paragraph(f"One comparison was fixed as the question: particle filter, refined, mean of both sources. Its {families.pop(MAIN)} differences are corrected together, after Holm. "
                     f"The {families.sum()} others, by other searches, as decoded and of single sources, are for looking around, and are corrected among themselves.")  # fmt: skip
    yield _effects_figure(effects, searches)
    lines = [
        {
            "search": SEARCH_LABELS[row.search],
            "difference": EFFECT_LABELS[row.effect],
            "dB (95 % interval)": _span(row),
            "p": p_value(row.p, 4),
            "p, corrected": p_value(row.p_holm),
            "family": row.family,
        }
        for _, row in effects[(effects.refine == "wiener") & (effects.source == SOURCES_MEAN)].iterrows()
    ]
    yield results_table(pd.DataFrame(lines), "Paired differences of refined SDR, mean of both sources.",
                        study.line(songs, "95 % bootstrap interval over songs", "paired permutation test, two-sided, corrected after Holm for the differences of the family"))  # fmt: skip
    certain = effects[effects.p_holm < SIGNIFICANT].family.value_counts()
    yield _paragraph(
        f"{certain.get(MAIN, 0)} of the {len(effects) - families.sum()} main differences and {certain.drop(MAIN, errors='ignore').sum()} of the {families.sum()} others are more than noise at p < {SIGNIFICANT} after the correction."
    )
    yield _paragraph(study_answer(effects), strong=True)
    for sentence in main_comparison(effects)[1:]:
        yield _paragraph(sentence, strong=True)


def main_comparison(effects: pd.DataFrame) -> list[str]:
    """Whether the Hybrid wins, and what each ingredient is worth, in one sentence each, corrected for the differences of this comparison alone.

    Args:
        effects: effects.csv of the study.
    """
    compared = recorded_comparisons(effects)
    return [answer_of(compared), *(effect_sentence(what, compared.loc[what]) for what in INGREDIENTS.values())]


class Comparison(NamedTuple):
    """The sentences of `main_comparison`; dashes where there is nothing to say."""

    answer: str
    linear: str = "–"
    counts: str = "–"
    interaction: str = "–"


def recorded_comparison() -> Comparison:
    """`main_comparison` of the recorded study of many songs; an answer that says so where there is none."""
    study = recorded("two-by-two")
    if study is None:
        return Comparison("The comparison on many songs has not been recorded yet (hybridsep study two-by-two).")
    first, *others = main_comparison(study.tables["effects"])
    since = f" (Recorded before {', '.join(study.changed)} of the profile changed.)" if study.changed else ""
    return Comparison(first + since, *others)


def show_recorded_targets() -> HTML:
    """The targets that are differences of paired scores, by the recorded study of many songs."""
    study = recorded("two-by-two")
    if study is None:
        return _paragraph("On many songs nothing has been recorded yet: hybridsep study two-by-two would.")
    table = study.tables["evaluation"]
    best = cell_scores(table).mean().idxmax()
    found = [
        (
            f"best cell ({METHOD_LABELS[best]}), blind and refined, over the linear codec's ceiling, {source}",
            TO_CEILING_DB,
            values,
        )
        for source, values in to_ceiling(table, best).items()
    ]
    found += [
        (f"blind particle filter over oracle ancestral, {label}", OVER_ORACLE_DB, over_oracle(table, method))
        for method, label in METHOD_LABELS.items()
    ]
    spans = [interval_columns(values) for _, _, values in found]
    lines = [
        {
            "target": what,
            "from": f"study {study.name}",
            "at least (dB)": wanted,
            "measured (dB, 95 % interval)": _span(pd.Series(span)),
            "reached": "yes" if span["mean"] >= wanted else "no",
        }
        for (what, wanted, _), span in zip(found, spans, strict=True)
    ]
    return results_table(pd.DataFrame(lines), "Targets on many songs, as recorded. The ceiling is that of waveforms as decoded, which the Wiener refinement may pass.",
                         study.line(_songs(max(int(span["n"]) for span in spans)), "paired, mean and 95 % bootstrap interval over songs; reached: by the mean"))  # fmt: skip


def shared_chunks(evaluation: Evaluation) -> str:
    """How many of a build's chunks the recorded study of many songs has too, and which of the two counts."""
    study, chunks = recorded("two-by-two"), evaluation.chunks
    if study is None:
        return "No study of more songs stands beside them."
    settings, own = study.provenance["profile"]["data"], evaluation.pipeline.profile.data.model_dump(mode="json")
    start_s = study.tables["evaluation"].groupby("track").start_s.first()
    # Songs of another seed have the same names.
    same = evaluation.pipeline.data is None and all(own[key] == settings[key] for key in SONGS)
    places = zip(chunks.tracks, chunks.starts, strict=True)
    shared = sum(
        same and track in start_s and abs(start_s[track] - start / chunks.sample_rate) < START_SECONDS
        for track, start in places
    )
    if not shared:
        return f"None of the {len(chunks)} chunks of this build is among the {len(start_s)} of the recorded study."
    which, verb = "The" if shared == len(chunks) else f"{shared} of the", "is" if shared == 1 else "are"
    return f"{which} {len(chunks)} chunks of this build {verb} among the {len(start_s)}; where the two disagree, the {len(start_s)} count."


def _effects_figure(effects: pd.DataFrame, searches: list[str]) -> HTML:
    panels = [SOURCES_MEAN, *_sources(effects)]
    figure, axes = plt.subplots(1, len(panels), figsize=(9.2, 3.8), sharey=True, sharex=True)
    for axis, source in zip(axes, panels, strict=True):
        rows = effects[(effects.refine == "wiener") & (effects.source == source)].set_index(["effect", "search"])
        for e, effect in enumerate(EFFECT_LABELS):
            for s, search in enumerate(searches):
                row, place = rows.loc[(effect, search)], -e - 0.18 * (s - (len(searches) - 1) / 2)
                axis.plot(
                    [row.low, row.high],
                    [place, place],
                    color=SEARCH_COLOURS[search],
                    linewidth=2,
                    label=SEARCH_LABELS[search] if e == 0 else None,
                )
                axis.plot(
                    row["mean"],
                    place,
                    "o",
                    color=SEARCH_COLOURS[search],
                    markersize=4,
                    markerfacecolor=SEARCH_COLOURS[search] if row.p_holm < SIGNIFICANT else "white",
                )
        axis.axvline(0, color="black", linewidth=1)
        axis.set(title="mean of both" if source == SOURCES_MEAN else source, xlabel="difference (dB)")
        axis.set_yticks([-e for e in range(len(EFFECT_LABELS))], list(EFFECT_LABELS.values()))
        axis.grid(axis="y", visible=False)
    axes[-1].legend(fontsize="small")
    return show(figure, "What each ingredient is worth in refined SDR, by search: means and 95 % bootstrap intervals over songs. A filled dot is more than noise after the correction for its family of comparisons.",
                "Intervals of six paired differences for four searches, in three panels: both sources, and each of them, with a line at zero.")  # fmt: skip


# --- protocols -------------------------------------------------------------------------------------------------------------


@_shows("protocols")
def show_protocols(study: Recorded) -> Iterable[HTML]:
    """What each choice is worth in dB, and published scores beside ours."""
    choices, published = study.tables["choices"], study.tables["published"]
    pooled = choices[(choices.method == ALL_CELLS) & choices.search.isin(("ancestral", "particle"))]
    columns = [(search, source) for search in ("ancestral", "particle") for source in _sources(choices)]
    rows = pooled.set_index(["choice", "search", "source"])
    lines = [
        {
            "choice": label,
            **{
                f"{SEARCH_LABELS[search]}, {source} (dB)": f"{signed(row['mean'])} ± {number(row['std'])}"
                for search, source in columns
                for row in (rows.loc[(choice, search, source)],)
            },
        }
        for choice, label in CHOICE_LABELS.items()
    ]
    yield results_table(pd.DataFrame(lines), "What each choice of a protocol adds to the SDR of the very same separations, mean over the four cells.",
                        study.line(_songs(int(pooled.n.max())), "mean ± standard deviation over songs of the paired difference"))  # fmt: skip
    lines = [
        {
            "published by": row.who, "method": METHOD_LABELS[row.method], "search": SEARCH_LABELS.get(row.search, "not said"), "source": row.source,
            "published (dB)": row.published, "ours, seed protocol (dB)": f"{number(row.ours)} ± {number(row['std'])}",
            "published (s)": row.published_seconds, "ours (s)": row.ours_seconds,
        }
        for _, row in published.iterrows()
    ]  # fmt: skip
    yield results_table(pd.DataFrame(lines), "Published scores beside ours under the seed's protocol. " + NOT_THE_SAME,
                        study.line(_songs(int(published.n.max())), "ours: mean ± standard deviation over songs, as decoded; where a search is not said, ours is ancestral", "seconds: one chunk of 3 s"))  # fmt: skip
    yield _paragraph(protocols_verdict(choices), strong=True)


# --- settings and counting -------------------------------------------------------------------------------------------------


@_shows("settings")
def show_settings(study: Recorded) -> Iterable[HTML]:
    """Sweeps, what each setting changes, and evidence against SDR."""
    table, correlation = study.tables["scores"], study.tables["correlation"]
    songs = _songs(table.track.nunique())
    yield _sweeps_figure(table)
    if "differences" in study.tables:
        yield from _changes_of_settings(study)
    yield _evidence_figure(table, correlation)
    lines = [
        {
            "method": METHOD_LABELS[row.method], "SDR": "refined" if row.refine == "wiener" else "as decoded", "settings": row.settings, "n": int(row.n),
            "ρ of the means": row.rho, "ρ within a song (95 % interval)": f"{number(row.rho_song)} ({number(row.low)} to {number(row.high)})",
        }
        for _, row in correlation.iterrows()
    ]  # fmt: skip
    yield results_table(pd.DataFrame(lines), "Spearman's rank correlation of evidence and blind SDR over settings. At λ ≠ 1 the likelihood is no distribution over mixture codes, so its evidence means something else: “comparable” leaves those settings out. More particles raise evidence and SDR alike: “without N” leaves them out too.",
                        study.line(songs, "validation songs; no test song served to choose a setting", "each setting changed alone"))  # fmt: skip
    yield _paragraph(tuning_verdict(correlation), strong=True) if "differences" in study.tables else _older(study)


def _changes_of_settings(study: Recorded) -> Iterable[HTML]:
    changes = study.tables["differences"]
    lines = [
        {
            "method": METHOD_LABELS[row.method], "setting": SETTING_LABELS[row.setting], "tried": f"{row.tried:g}", "profile's own": f"{row.own:g}",
            "change (dB, 95 % interval)": _span(row), "p, corrected": p_value(row.p_holm),
        }
        for _, row in changes.iterrows()
    ]  # fmt: skip
    yield results_table(pd.DataFrame(lines), "What each value changes in the refined SDR, mean of both sources, against the profile's own on the same songs.",
                        study.line(_songs(int(changes.n.max())), "validation songs", "95 % bootstrap interval over songs", "paired permutation test, two-sided, corrected after Holm for all values tried"))  # fmt: skip
    yield _paragraph(settings_verdict(changes), strong=True)


def _sweeps_figure(table: pd.DataFrame) -> HTML:
    sweeps = list(dict.fromkeys(zip(table.method, table.setting, strict=True)))
    lines = -(-len(sweeps) // 3)
    figure, axes = plt.subplots(lines, 3, figsize=(9.6, 2.6 * lines), squeeze=False)
    for axis, (method, setting) in zip(axes.flat, sweeps, strict=False):
        rows = table[(table.method == method) & (table.setting == setting)]
        tried = np.array(sorted(rows.tried.unique()))
        for refine, label in RAW_AND_REFINED.items():
            spans = [_interval_of(rows[rows.tried == value], **BLIND, refine=refine) for value in tried]
            _interval_band(axis, tried, spans, f"SDR{label}", PALETTE["blue"], "-" if refine == "wiener" else ":")
        other = axis.twinx()
        other.plot(
            tried,
            [chunk_values(rows[rows.tried == v], metric="log_evidence").mean() for v in tried],
            "--",
            marker=".",
            color=PALETTE["vermillion"],
            label="evidence",
        )
        other.grid(False)
        other.tick_params(axis="y", colors=PALETTE["vermillion"])
        axis.tick_params(axis="y", colors=PALETTE["blue"])
        axis.set(
            title=METHOD_LABELS[method],
            xlabel=SETTING_LABELS[setting],
            xscale="log" if setting in LOGARITHMIC else "linear",
        )
        axis.set_xticks(tried, [f"{value:g}" for value in tried], fontsize="x-small")
        axis.minorticks_off()
    for axis in axes.flat[len(sweeps) :]:
        axis.remove()
    return show(figure, "Each setting changed alone, particle filter, validation songs. Blue: blind SDR (dB, left), refined (solid) and as decoded (dotted), with 95 % intervals over songs. Red, dashed: evidence (nats per code, right).",
                "Small line charts, one for each setting, of SDR on the left axis and evidence on the right.")  # fmt: skip


def _evidence_figure(table: pd.DataFrame, correlation: pd.DataFrame) -> HTML:
    methods = list(dict.fromkeys(table.method))
    lines = -(-len(methods) // 2)
    figure, axes = plt.subplots(lines, 2, figsize=(9.2, 3.2 * lines), squeeze=False)
    for axis, method in zip(axes.flat, methods, strict=False):
        rows = table[table.method == method]
        for s, setting in enumerate(dict.fromkeys(rows.setting)):
            means = setting_means(rows[rows.setting == setting], "wiener").groupby("tried")[["evidence", "sdr"]].mean()
            axis.plot(
                means.evidence,
                means.sdr,
                "o" if rows[rows.setting == setting].comparable.all() else "x",
                color=list(PALETTE.values())[s],
                markersize=5,
                label=SETTING_LABELS[setting],
            )
        found = correlation[
            (correlation.method == method) & (correlation.refine == "wiener") & (correlation.settings == "comparable")
        ].iloc[0]
        axis.set(title=f"{METHOD_LABELS[method]}: ρ = {number(found.rho)}", xlabel="evidence (nats per code)")
        axis.legend(fontsize="x-small")
    for axis in axes.flat[len(methods) :]:
        axis.remove()
    for axis in axes[:, 0]:
        axis.set_ylabel("blind, refined SDR (dB)")
    return show(figure, "Does evidence, which needs no ground truth, predict the score? Each dot is one setting, mean over validation songs; crosses are settings whose evidence is not comparable. ρ: Spearman's rank correlation of the comparable ones.",
                "Scatter charts of SDR against evidence, one for each method, with the rank correlation in the title.")  # fmt: skip


@_shows("counting")
def show_counting(study: Recorded) -> Iterable[HTML]:
    """Score, evidence and unseen pairs against the number of counted pairs."""
    table, unseen = study.tables["scores"], study.tables["unseen"]
    pairs = np.array(sorted(table.pairs.unique()))
    figure, axes = plt.subplots(1, 3, figsize=(9.6, 3.0))
    for refine, label in RAW_AND_REFINED.items():
        spans = [_interval_of(table[table.pairs == n], **BLIND, refine=refine) for n in pairs]
        _interval_band(axes[0], pairs, spans, f"SDR{label}", PALETTE["blue"], "-" if refine == "wiener" else ":")
    _interval_band(
        axes[1],
        pairs,
        [_interval_of(table[table.pairs == n], metric="log_evidence") for n in pairs],
        "evidence",
        PALETTE["vermillion"],
    )
    for split, colour in (("validation", PALETTE["sky"]), ("test", PALETTE["green"])):
        for column, style in (("unseen_pairs", "-"), ("unseen_triples", "--")):
            rows = unseen[unseen.split == split]
            axes[2].plot(
                rows.pairs,
                100 * rows[column],
                style,
                marker=".",
                color=colour,
                label=f"{column.removeprefix('unseen_')}, {split}",
            )
    for axis, what in zip(axes, ("blind SDR (dB)", "evidence (nats per code)", "never counted (%)"), strict=True):
        axis.set(xscale="log", xlabel="counted pairs", ylabel=what)
    axes[0].legend(fontsize="small"), axes[2].legend(fontsize="x-small")
    yield show(figure, "What counting buys: blind SDR and evidence of the Hybrid's particle filter on validation songs, and the share of true pairs of source codes, and of triples with the mixture's code, that were never counted.",
               "Three line charts against the number of counted pairs on a logarithmic axis: SDR, evidence, and shares never counted.")  # fmt: skip
    last = unseen[(unseen.pairs == unseen.pairs.max()) & (unseen.split == "test")].iloc[0]
    yield _paragraph(f"Of the pairs of codes that the test songs really hold, {number(100.0 * last.unseen_pairs, 1)} % were never among {number(int(last.pairs))} counted ones, "
                     f"and {number(100.0 * last.unseen_triples, 1)} % of the triples; they fall back on the summed codebook. {study.line(_songs(table.track.nunique()), '95 % intervals over songs')}.")  # fmt: skip


# --- search ----------------------------------------------------------------------------------------------------------------


@_shows("particles")
def show_particles(study: Recorded) -> Iterable[HTML]:
    """Score, evidence and time against N; effective sample size and resampling."""
    table, search, course = (study.tables[name] for name in ("scores", "search", "course"))
    if "differences" not in study.tables:
        yield _older(study)
        return
    figure, axes = plt.subplots(2, 3, figsize=(9.8, 5.4), layout="constrained")
    # The legend of the second panel serves all but the last.
    for (size, figures), colour, pale in zip(
        search.groupby("filter_particles"), ("blue", "vermillion"), ("sky", "orange"), strict=True
    ):
        counts, rows, label = figures.particles.to_numpy(), table[table.filter_particles == size], kind_of_filters(size)
        for refine, shade, style in (("wiener", colour, "-"), ("none", pale, ":")):
            spans = [_interval_of(rows[rows.particles == n], **BLIND, refine=refine) for n in counts]
            _interval_band(axes[0, 0], counts, spans, f"{label}{RAW_AND_REFINED[refine]}", PALETTE[shade], style)
        _interval_band(
            axes[0, 1],
            counts,
            [_interval_of(rows[rows.particles == n], metric="log_evidence") for n in counts],
            label,
            PALETTE[colour],
        )
        drawn = (figures.seconds_per_chunk, figures.resamplings_per_chunk, 100 * figures.ess / figures.particles)
        for axis, values in zip((axes[0, 2], axes[1, 0], axes[1, 1]), drawn, strict=True):
            axis.plot(counts, values, marker=".", color=PALETTE[colour], label=label)
    shown = [n for n in course.particles[course.filter_particles == ONE_FILTER].unique() if n > 1]
    for i, count in enumerate(shown[:: max(1, len(shown) // 4)]):
        rows = course[(course.filter_particles == ONE_FILTER) & (course.particles == count)]
        axes[1, 2].plot(
            rows.seconds,
            100 * rows.ess / count,
            color=list(PALETTE.values())[i % len(PALETTE)],
            linewidth=1,
            label=f"N = {count}",
        )
    labels = (
        "blind SDR (dB)",
        "evidence (nats per code)",
        "seconds per chunk",
        "resamplings per chunk",
        "effective sample size (% of N)",
        "effective sample size (% of N)",
    )
    for axis, what in zip(axes.flat, labels, strict=True):
        axis.set(ylabel=what, xlabel="particles, N", xscale="log")
    axes[0, 2].set_yscale("log")
    axes[1, 2].set(xscale="linear", xlabel="time in the chunk (s)")
    axes[0, 1].legend(fontsize="x-small"), axes[1, 2].legend(fontsize="x-small")
    yield show(figure, "More particles, in one filter and in several whose means are averaged: blind SDR (solid: refined, dotted: as decoded), evidence and wall time of the Hybrid against N, with 95 % intervals over songs; how often a filter resamples (of several: any of them), and the effective sample size, on average and, of one filter, over time.",
               "Six line charts: SDR, evidence, seconds, resamplings and effective sample size against the number of particles, and effective sample size over time.")  # fmt: skip
    cells = search.set_index(["filter_particles", "particles"])
    lines = []
    for size, knee in knees(table).iterrows():
        row = cells.loc[(size, int(knee.particles))]
        lines.append({
            "kind": kind_of_filters(size), f"first N within {KNEE_DB:g} dB of the best": int(knee.particles), "refined SDR there (dB)": knee.sdr, "best (dB)": knee.best,
            "largest N tried": int(knee.most), "seconds per chunk": row.seconds_per_chunk, "resamplings per chunk": number(row.resamplings_per_chunk, 0),
        })  # fmt: skip
    songs = _songs(table.track.nunique())
    yield results_table(
        pd.DataFrame(lines),
        "Where more particles stop to pay.",
        study.line(songs, "mean over songs and both sources, their intervals in the figure"),
    )
    gains = study.tables["differences"]
    lines = [
        {
            "particles, N": int(row.particles),
            "gain (dB, 95 % interval)": _span(row),
            "p, corrected": p_value(row.p_holm),
        }
        for _, row in gains.iterrows()
    ]
    yield results_table(pd.DataFrame(lines), "What averaging several filters gains over one filter of as many particles: refined SDR, mean of both sources.",
                        study.line(songs, "95 % bootstrap interval over songs", "paired permutation test, two-sided, corrected after Holm"))  # fmt: skip
    yield _paragraph(particles_verdict(table, gains), strong=True)


@_shows("contributions")
def show_contributions(study: Recorded) -> Iterable[HTML]:
    """Poorer priors."""
    table, nats = study.tables["scores"], study.tables["nats"]
    lines = []
    for method in dict.fromkeys(table.method):
        for priors, label in PRIOR_LABELS.items():
            rows = table[(table.method == method) & (table.priors == priors)]
            known = nats[(nats.method == method) & (nats.priors == priors)]
            scores = {
                heading: mean_std(chunk_values(rows, **where))
                for heading, where in _blind_columns(_sources(table)).items()
            }
            nats_text = ", ".join(number(v) for v in known.nats_per_code) or "–"
            lines.append({"method": METHOD_LABELS[method], "priors": label, "nats per code": nats_text, **scores})
    yield results_table(pd.DataFrame(lines), f"What the priors contribute: the same likelihood and particle filter with poorer ones. Nats per code of {', '.join(_sources(table))} on validation songs.",
                        study.line(_songs(table.track.nunique()), "blind, mean ± standard deviation over songs"))  # fmt: skip


@_shows("precision")
def show_precision(study: Recorded) -> Iterable[HTML]:
    """float32 against bfloat16, and their paired differences."""
    table = study.tables["scores"]
    lines = []
    for precision in dict.fromkeys(table.precision):
        rows = table[table.precision == precision]
        scores = {
            heading: mean_std(chunk_values(rows, **where)) for heading, where in _blind_columns(_sources(table)).items()
        }
        figures = {
            "evidence (nats per code)": mean_std(chunk_values(rows, metric="log_evidence"), 3),
            "seconds per chunk": number(rows[rows.metric == "seconds"].value.mean(), 1),
        }
        lines.append({"search in": precision, **scores, **figures})
    facts = _songs(table.track.nunique()), f"mean of {table.seed.nunique()} seeds"
    yield results_table(
        pd.DataFrame(lines),
        "The Hybrid's search in both precisions.",
        study.line(*facts, "± standard deviation over songs"),
    )
    if "differences" not in study.tables:
        yield _older(study)
        return
    changes = study.tables["differences"].set_index("metric")
    lines = [
        {
            "score": f"refined SDR, {'mean of both' if row.source == SOURCES_MEAN else row.source} (dB)",
            "bfloat16 against float32": _span(row),
        }
        for _, row in changes.loc[["sdr"]].iterrows()
    ]
    lines.append(
        {"score": "evidence (nats per code)", "bfloat16 against float32": _span(changes.loc["log_evidence"], 4)}
    )
    lines.append(
        {"score": "seconds", "bfloat16 against float32": f"{number(changes.loc['seconds_ratio', 'mean'])} times"}
    )
    yield results_table(
        pd.DataFrame(lines),
        "What bfloat16 changes, on the same songs with the same seeds.",
        study.line(*facts, "95 % bootstrap interval over songs; the ratio of the times has none"),
    )


@_shows("refinement")
def show_refinement(study: Recorded) -> Iterable[HTML]:
    """Window and trust of the refinement."""
    table = study.tables["scores"]
    refined = table[table["size"] > 0]
    pivot = refined.pivot_table(index="size", columns="trust", values="sdr")
    pivot.columns = [f"trust {trust:g} (dB)" for trust in pivot.columns]
    raw = table[table["size"] == 0].sdr.mean()
    yield results_table(pivot.rename_axis("window (samples)"), f"Refined blind SDR by window and by how far the estimates' phases are trusted (0: plain Wiener masks), mean over the four cells and both sources; as decoded it is {number(raw)} dB.",
                        study.line(_songs(table.track.nunique()), "validation songs"))  # fmt: skip


@_shows("linearity")
def show_linearity(study: Recorded) -> Iterable[HTML]:
    """What the weight of L_lin buys and what it costs."""
    figures, scores = study.tables["figures"].sort_values("weight"), study.tables["scores"]
    weights = figures.weight.to_numpy()
    places = np.arange(len(weights))
    figure, grid = plt.subplots(2, 2, figsize=(8.4, 5.6), layout="constrained")
    axes = grid.flatten()
    axes[0].plot(places, 100 * figures.hit_rate, marker=".", color=PALETTE["blue"], label="measured")
    axes[0].plot(places, 100 * figures.by_chance, ":", marker=".", color=PALETTE["black"], label="by chance")
    axes[1].plot(places, figures.distance, marker=".", color=PALETTE["green"])
    lines = {
        "codec-linear": ("codec ceiling", "none", PALETTE["black"]),
        **{m: (f"{METHOD_LABELS[m]}, refined", "wiener", METHOD_COLOURS[m]) for m in ("lqvae", "hybrid")},
    }
    for method, (label, refine, colour) in lines.items():
        rows = scores[scores.method == method]
        spans = [_interval_of(rows[rows.weight == w], **BLIND, refine=refine) for w in weights]
        _interval_band(axes[2], places, spans, label, colour)
        if method != "codec-linear":
            axes[3].plot(
                places,
                [chunk_values(rows[rows.weight == w], metric="log_evidence").mean() for w in weights],
                marker=".",
                color=colour,
                label=METHOD_LABELS[method],
            )
    labels = ("hit rate (%)", "relative distance", "SDR (dB)", "evidence (nats per code)")
    for axis, label in zip(axes, labels, strict=True):
        axis.set(ylabel=label, xlabel="weight of L_lin")
        axis.set_xticks(places, [f"{w:g}" for w in weights])
    for axis in axes[[0, 2, 3]]:
        axis.legend(fontsize="x-small")
    yield show(figure, "The weight of L_lin, everything trained anew at each with the same shortened budget. Above: how often the mean of two codes is nearest to the mixture's own code, and how far it lies from it. Below: codec ceiling and blind, refined SDR of both methods on that codebook, with 95 % intervals over songs, and their evidence.",
               "Four line charts against the weight of the linear loss: hit rate, latent distance, SDR, evidence.")  # fmt: skip
    chosen = study.provenance["profile"]["vqvae"]["linear_weight"]
    by_weight, names = figures.set_index("weight"), ("codec-linear", "lqvae", "hybrid")
    for weight, why in (
        (figures.weight[figures.hit_rate.idxmax()], "where the hit rate is highest"),
        (chosen, "which this book uses"),
    ):
        codec, lqvae, hybrid = (_interval(_paired_gain(scores[scores.method == m], weight)) for m in names)
        found, without = by_weight.loc[weight], by_weight.loc[0.0]
        yield _paragraph(
            f"Weight {weight:g}, {why}: hit rate {number(100 * found.hit_rate, 1)} % ({number(100 * without.hit_rate, 1)} % without the loss), relative distance {number(found.distance, 3)} "
            f"({number(without.distance, 3)}). Against no loss the codec ceiling changes by {codec} dB, LQ-VAE by {lqvae} dB, the Hybrid by {hybrid} dB."
        )
    yield _paragraph(weight_reason(figures, scores, chosen), strong=True)
    yield _paragraph(
        study.line(
            _songs(scores.track.nunique()),
            "validation songs",
            "95 % intervals over songs",
            "one training each, whose luck they do not cover",
        )
    )


def weight_reason(figures: pd.DataFrame, scores: pd.DataFrame, chosen: float) -> str:
    """By which rule the study picks a weight of L_lin, whether it is the one in use, and what speaks against making much of it.

    Args:
        figures: weight, hit_rate and distance of each weight tried, 0 among them.
        scores: rows of evaluation.csv with a column weight, of the codec and of the methods on it.
        chosen: the weight in use.
    """
    table = figures.set_index("weight").sort_index()
    ceiling = pd.Series(
        {
            w: song_values(
                scores[(scores.method == "codec-linear") & (scores.weight == w)], **BLIND, refine="none"
            ).mean()
            for w in table.index
        }
    )
    change = ceiling - ceiling[0.0]
    kept = table[change > -CEILING_SPENT_DB]
    found = kept.distance.idxmin()
    methods = [m for m in dict.fromkeys(scores.method) if m != "codec-linear"]
    helped = [
        w
        for w in table.index[table.index > 0]
        if all(_paired_gain(scores[scores.method == m], w).low > 0 for m in methods)
    ]
    spent = ", ".join(f"{signed(change[w])} dB at {w:g}" for w in table.index.difference(kept.index))
    return (
        f"The rule: of the weights that cost the codec ceiling less than {CEILING_SPENT_DB:g} dB, the one whose sums of codes lie nearest. That is weight {found:g}, with a relative distance of "
        f"{number(table.distance[found], 3)} against {number(table.distance[0.0], 3)} without the loss and a ceiling of {number(ceiling[found])} against {number(ceiling[0.0])} dB; this book "
        + ("uses it. " if found == chosen else f"uses {chosen:g} instead. ")
        + (f"Other weights cost more ({spent}). " if spent else "")
        + f"It buys little: the hit rate goes from {number(100 * table.hit_rate[0.0], 1)} to {number(100 * table.hit_rate[found], 1)} % ({number(100 * table.hit_rate.iloc[-1], 1)} % at weight {table.index[-1]:g}), and "
        + (
            f"the SDR of all methods rises by more than its interval only at {', '.join(f'{w:g}' for w in helped)}. "
            if helped
            else "at no weight does the SDR of all methods rise by more than its interval. "
        )
        + f"Each weight was trained once, from one seed, with {100 * SHARE:g} % of the steps. The evidence of different codebooks cannot be compared."
    )


def _paired_gain(rows: pd.DataFrame, weight: float) -> Interval:
    """SDR at a weight minus that without the loss, over songs, mean of both sources."""
    refine = "none" if set(rows.method) == {"codec-linear"} else "wiener"
    with_loss, without = (song_values(rows[rows.weight == w], **BLIND, refine=refine) for w in (weight, 0.0))
    return bootstrap_interval((with_loss - without).to_numpy())


def _interval(span: Interval) -> str:
    return f"{signed(span.mean)} ({signed(span.low)} to {signed(span.high)})"


@_shows("windows")
def show_windows(study: Recorded) -> Iterable[HTML]:
    """Windows of a long recording, searched at once or one after the other."""
    scores, changes, times = (
        study.tables["scores"],
        study.tables["differences"].set_index(["way", "metric", "refine"]),
        study.tables["times"].set_index("way"),
    )
    wanted = {
        "SDR (dB)": ("sdr", "none"), "SDR, refined (dB)": ("sdr", "wiener"), "refined, where windows meet (dB)": ("sdr_where_windows_meet", "wiener"),
        "jump, refined (dB)": ("jump_db", "wiener"), "evidence (nats per code)": ("log_evidence", ""),
    }  # fmt: skip
    first, *others = dict.fromkeys(scores.way)
    lines = []
    for way in (first, *others):
        line = {"windows": way}
        for heading, (metric, refine) in wanted.items():
            values = (
                scores[(scores.way == way) & (scores.metric == metric) & (scores.refine == refine)]
                .groupby("track")
                .value.mean()
            )
            line[heading] = mean_std(values) if way == first else _span(changes.loc[(way, metric, refine)])
        lines.append(
            line
            | {
                "seconds, one song": number(times.seconds_alone[way], 1),
                "seconds a song, all together": number(times.seconds[way], 1),
            }
        )
    true = study.tables["jumps_of_true_sources"].drop(columns="track").to_numpy().mean()
    row = times.loc[first]
    yield results_table(pd.DataFrame(lines), f"Songs of {row.song_seconds:g} s in {row.windows:.0f} windows that overlap. First line: mean ± standard deviation over songs; below it what changes, with 95 % intervals over songs. "
                        f"A jump says how much rougher a stem is within 1 ms of where a cross-fade begins or ends than around it; in the true sources it is {number(true)} dB.",
                        study.line(_songs(scores.track.nunique()), "validation songs"))  # fmt: skip
    yield _paragraph(windows_verdict(changes, times), strong=True)


def windows_verdict(changes: pd.DataFrame, times: pd.DataFrame) -> str:
    """What carrying the past on changes, which way `Separator.separate` takes by default, and whether the figures speak for it.

    Args:
        changes: differences.csv, by way, metric and refinement.
        times: times.csv, by way.
    """
    first, *_, carried = WAYS
    sdr, evidence, jump = (
        changes.loc[(carried, *what)] for what in (("sdr", "wiener"), ("log_evidence", ""), ("jump_db", "wiener"))
    )
    slower = times.seconds_alone[carried] / times.seconds_alone[first]
    if sdr.low > 0:
        better, why = carried, "refined stems are better by more than chance"
    elif sdr.high < 0:
        better, why = first, "refined stems are better by more than chance"
    else:
        better, why = (
            (first, "the difference in refined stems may be chance, and it is faster")
            if slower > 1
            else (carried, "it is no slower, and stems may be alike")
        )
    default = carried if signature(Separator.separate).parameters["carry"].default else first
    agrees = "the default" if better == default else f"the default is “{default}” none the less"
    return (
        f"Carried on, against all at once: refined SDR {_span(sdr)} dB, evidence {_span(evidence)} nats per code, jumps {_span(jump)} dB; "
        f"one song alone takes {number(slower, 1)} times as long. So “{better}”, {agrees}: {why}."
    )


# --- others ----------------------------------------------------------------------------------------------------------------


@_shows("improvements")
def show_improvements(study: Recorded) -> Iterable[HTML]:
    """What each step to the present settings was worth, and what was tried beside them."""
    table, gains = study.tables["scores"], study.tables["gains"]
    sources, songs = _sources(table), _songs(table.track.nunique())
    yield _steps_figure(table, sources)
    found = gains[gains.source == SOURCES_MEAN].set_index(["step", "refine"])
    lines = []
    for step, refine in ((START, "none"), *((step, "wiener") for step in (*STEPS[1:], TOGETHER, *ASIDE))):
        rows = table[(table.step == (STEPS[-1] if step == TOGETHER else step)) & (table.method == METHOD)]
        line = {"step": STEP_LABELS[step], "what it is": _steps_of(study.provenance["profile"])[step]}
        line |= {f"{s} (dB)": mean_std(chunk_values(rows, **BLIND, source=s, refine=refine)) for s in sources}
        line["gain, mean of both (dB, 95 % interval)"] = "–" if step == START else _span(found.loc[(step, refine)])
        line["gain as decoded (dB)"] = _span(found.loc[(step, "none")]) if (step, "none") in found.index else "–"
        lines.append(line | {"p, corrected": "–" if step == START else p_value(found.loc[(step, refine), "p_holm"])})
    yield results_table(pd.DataFrame(lines), f"What raised the scores, step by step: blind SDR of the Hybrid, refined but for the first line. Each of the first {len(STEPS)} lines keeps what the lines above it brought, its gain is over the line before; the last {len(ASIDE)} are other refinements of the line “{STEP_LABELS[BEFORE_ASIDE]}”.",
                        study.line(songs, "scores: mean ± standard deviation over songs", "gains: paired, 95 % bootstrap interval over songs", "paired permutation test, two-sided, corrected after Holm for all gains of refined means", "one training of each model"))  # fmt: skip
    yield _paragraph(improvements_verdict(gains), strong=True)


def _steps_of(profile: dict) -> dict[str, str]:
    """What every step is, in numbers of the profile that the study was made with."""
    search, many, steps = (
        profile["search"],
        profile["evaluation"]["many_particles"],
        profile["prior"]["training"]["steps"],
    )
    few, size = search["particles"], search.get("filter_particles", 0)
    windows = {name: f"window {window}, trust {trust:g}" for name, (window, trust) in ASIDE.items()}
    return {
        "start": f"priors trained {max(1, round(FIRST_SHARE * steps))} steps, no effects, temperature 1, one filter of {few}, as decoded",
        "refinement": "the same estimates, refined", "longer": f"priors trained {steps} steps", "temperature": f"temperature {search['temperature']:g}",
        "effects": f"share {profile['data'].get('effects', 0.0):g} of the training stems, all models trained anew", "particles": f"N = {many}",
        "filters": f"N = {many} in filters of {size or many}", TOGETHER: "the last step refined, over the first as decoded", **windows,
    }  # fmt: skip


def _steps_figure(table: pd.DataFrame, sources: list[str]) -> HTML:
    figure, axes = plt.subplots(1, len(sources), figsize=(9.2, 3.6), sharey=True, layout="constrained")
    places, hybrid = np.arange(len(STEPS)), table[table.method == METHOD]
    for axis, source in zip(axes, sources, strict=True):
        for refine, colour in (("none", PALETTE["sky"]), ("wiener", PALETTE["blue"])):
            shown = [
                k for k, step in enumerate(STEPS) if len(hybrid[(hybrid.step == step) & (hybrid.refine == refine)])
            ]
            spans = [
                _interval_of(hybrid[hybrid.step == STEPS[k]], **BLIND, refine=refine, source=source) for k in shown
            ]
            _interval_band(axis, places[shown], spans, REFINEMENTS[refine], colour)
        ceilings = [chunk_values(table[table.step == step], method=CODEC, source=source, **BLIND) for step in STEPS]
        axis.plot(
            places, [np.nanmean(values) for values in ceilings], "--", color=PALETTE["black"], label="codec ceiling"
        )
        axis.set(title=source, ylim=(min(0, axis.get_ylim()[0]), None))
        axis.set_xticks(places, [STEP_LABELS[step] for step in STEPS], rotation=35, ha="right", fontsize="x-small")
    axes[0].set_ylabel("blind SDR (dB)")
    axes[-1].legend(fontsize="x-small")
    return show(figure, "The score after each step, with 95 % intervals over songs, and the ceiling of the codec of that step.",
                "Two line charts, one for each source: blind SDR as decoded and refined over the steps, under the line of the codec's ceiling.")  # fmt: skip


@_shows("baselines")
def show_baselines(study: Recorded) -> Iterable[HTML]:
    """What a user would pick instead beside the Hybrid: scores, what each costs, paired differences, and where the gap lies."""
    if "differences" not in study.tables:
        yield _older(study)
        return
    table, times, differences = (
        study.tables["scores"],
        study.tables["times"].set_index("method"),
        study.tables["differences"],
    )
    sources, songs = _sources(table), _songs(table.track.nunique())
    columns = _blind_columns(sources)
    unrefined = {h: {**w, "selection": ""} for h, w in columns.items() if w["refine"] == "none"}
    kinds = ((SEPARATOR_LABELS, columns), (REFERENCE_LABELS, unrefined))
    lines = pd.concat(
        [score_table(table, labels, wanted, "method", "method") for labels, wanted in kinds], ignore_index=True
    ).fillna("–")
    yield results_table(lines, "What somebody would use instead, on the same chunks, beside the floor and the ceilings.",
                        study.line(songs, "blind, mean ± standard deviation over songs", "reference: the real sources"))  # fmt: skip
    costs = [
        {
            "method": label,
            "training": _duration(row.training_seconds),
            "training steps": _count(row.steps),
            "weights": _count(row.weights),
            "seconds per chunk": number(row.seconds_per_chunk),
        }
        for label, row in ((label, times.loc[method]) for method, label in SEPARATOR_LABELS.items())
    ]
    yield results_table(pd.DataFrame(costs), "What each costs. The network was trained on mixtures of the same training songs, for as long as all of the Hybrid's training took. The Hybrid's weights are those of its VQ-VAE and priors, without the counts.",
                        study.line(f"seconds per chunk: mean of {table.track.nunique()} chunks", "wall time when each was made"))  # fmt: skip
    labels, rows = SEPARATOR_LABELS | REFERENCE_LABELS, differences.set_index(["method", "other", "source"])
    lines = [
        {
            "difference": f"{labels[method]} − {labels[other]}",
            **{
                f"{'mean' if s == SOURCES_MEAN else s} (dB)": f"{_span(row)}, ± {number(row['std'])}"
                for s in (SOURCES_MEAN, *sources)
                for row in (rows.loc[(method, other, s)],)
            },
        }
        for method, other in dict.fromkeys(zip(differences.method, differences.other, strict=True))
    ]
    yield results_table(pd.DataFrame(lines), "Paired differences of SDR: the Hybrid refined, everything else as it is. Mean, 95 % interval and standard deviation over songs.",
                        study.line(songs, "95 % bootstrap interval over songs, each by itself", "reference: the real sources"))  # fmt: skip
    yield _paragraph(gap_verdict(differences), strong=True)


def _count(value: float) -> str:
    return "–" if np.isnan(value) else number(float(value), 0)


def _duration(seconds: float) -> str:
    return "none" if np.isnan(seconds) else minutes(seconds)


@_shows("repeatability")
def show_repeatability(study: Recorded) -> Iterable[HTML]:
    """Spread over seeds, beside the effects of the 2 × 2."""
    spread = study.tables["spread"]
    main = spread[(spread.refine == "wiener") & (spread.source == SOURCES_MEAN)].set_index(["varied", "what"])
    ours = recorded("two-by-two")
    effects = None if ours is None else ours.tables["effects"]
    lines = []
    for what in dict.fromkeys(main.index.get_level_values("what")):
        line = {"what": METHOD_LABELS.get(what, EFFECT_LABELS.get(what, what))}
        for varied in ("training", "search"):
            row = main.loc[(varied, what)]
            line |= {f"{varied}: mean (dB)": row["mean"], f"{varied}: spread (dB)": row["std"]}
        if effects is not None:
            found = effects[(effects.effect == what) & (effects.family == MAIN)]
            line["effect in the 2 × 2 (dB, 95 % interval)"] = _span(found.iloc[0]) if len(found) else "–"
        lines.append(line)
    seeds = int(main.seeds.max())
    yield results_table(pd.DataFrame(lines), "How much is luck: standard deviation over seeds of the mean refined SDR, and of each effect, when only the training's seed or only the search's is another. The trainings are those of the profile smoke, whose models are toys: their spread is that of toys.",
                        study.line(f"{seeds} seeds each", "mean of both sources, particle filter, blind"))  # fmt: skip
    if effects is not None:
        yield _paragraph(luck(main, effects))


def luck(spread: pd.DataFrame, effects: pd.DataFrame) -> str:
    """Which effects of the 2 × 2 are no larger than what other seeds make of them, and how well so few seeds know that.

    Args:
        spread: spread.csv of the study, refined, mean of both sources, by what was varied and what was scored.
        effects: effects.csv of the 2 × 2.
    """
    found = effects[effects.family == MAIN].set_index("effect")["mean"].abs()
    sentences = []
    for varied, of in (
        ("search", "search"),
        ("training", "training (of toys, so that of trained models may be smaller or larger)"),
    ):
        deviation = spread.loc[varied]["std"]
        small = [EFFECT_LABELS[e] for e in INGREDIENTS if found[e] < 2 * deviation[e]]
        sentences.append(f"Smaller than twice the spread over seeds of {of}: {', '.join(small) or 'no effect'}.")
    seeds = int(spread.seeds.min())
    low, high = spread_factors(seeds)
    return " ".join(
        [
            *sentences,
            f"A standard deviation from {seeds} seeds is itself uncertain: the true one lies between {number(low, 1)} and {number(high, 1)} times it (95 %, for normal scores).",
        ]
    )


def spread_factors(seeds: int) -> tuple[float, float]:
    """What a standard deviation of so many normal values is to be multiplied by for the ends of its 95 % interval."""
    return tuple(float(np.sqrt((seeds - 1) / chi2.ppf(q, seeds - 1))) for q in (0.975, 0.025))


@_shows("third-instrument")
def show_third_instrument(study: Recorded) -> Iterable[HTML]:
    """A source that came later."""
    table, priors = study.tables["scores"], study.tables["priors"]
    signals = {
        "hybrid": ("Hybrid, refined", {**BLIND, "refine": "wiener"}), "convtasnet": ("Conv-TasNet of the first pair", {**BLIND, "refine": "none"}),
        "mixture": ("mixture, not separated", {"metric": "sdr"}), "codec-linear": ("codec ceiling", {"metric": "sdr"}), "irm": ("ideal ratio mask", {"metric": "sdr"}),
    }  # fmt: skip
    lines = []
    for pair in dict.fromkeys(table.pair):
        rows = table[table.pair == pair]
        for source in _sources(rows):
            lines.append(
                {
                    "mixture of": pair,
                    "source": source,
                    **{
                        f"{label} (dB)": mean_std(chunk_values(rows, method=m, source=source, **where))
                        for m, (label, where) in signals.items()
                    },
                }
            )
    yield results_table(pd.DataFrame(lines), "A third instrument: its prior was trained on solo recordings alone, with the VQ-VAE and the other priors left as they were; only the counts were made for each pair. The network knows the first two sources, and no other.",
                        study.line(f"n = {table.groupby('pair').track.nunique().max()} songs for each pair", "blind, mean ± standard deviation over songs"))  # fmt: skip
    nats = ", ".join(f"{row.source} {number(row.nats_per_code)}" for _, row in priors.iterrows())
    new = priors.iloc[-1]
    yield _paragraph(
        f"Nats per code of the priors on validation songs: {nats}. The new prior took {minutes(new.seconds)} of training."
    )
    for sentence in third_instrument_verdict(table):
        yield _paragraph(sentence, strong=True)


@_shows("half-precision")
def show_half_precision(study: Recorded) -> Iterable[HTML]:
    """What rounded weights change, beside what another seed changes, and what needs no search."""
    found, figures = study.tables["differences"], study.tables["figures"]
    lines = []
    for (method, refine, source, metric), part in found.groupby(["method", "refine", "source", "metric"], sort=False):
        rows = part.set_index("compared")
        what = " ".join(filter(None, [metric, source, "refined" if refine == "wiener" else ""]))
        line = {"method": METHOD_LABELS[method], "score": what.replace("_", " ")}
        lines.append(
            line
            | {f"{name}: mean difference": _span(rows.loc[name]) for name in (ROUNDING, ANOTHER_SEED)}
            | {"rounding: spread over seeds": rows.loc[ROUNDING].seed_std}
        )
    seeds, songs = int(found.seeds.max()), int(found.n.max())
    yield results_table(pd.DataFrame(lines), "Weights in float16, as they come with the project, minus the trained ones: mean over seeds and songs with 95 % intervals over songs. Beside it what another seed of the search changes with the trained weights: the noise in which a difference is looked for.",
                        study.line(_songs(songs), f"{seeds} seeds of the search", "blind, particle filter", "reference: the real sources", "dB, evidence in nats per code"))  # fmt: skip
    shown = [
        {
            "method": METHOD_LABELS[r.method],
            "figure": f"{r.figure} {r.source}".strip(),
            "trained": r.trained,
            "in float16": r.rounded,
            "change": r.rounded - r.trained,
            "unit": r.unit,
        }
        for r in figures.itertuples()
    ]
    yield results_table(
        pd.DataFrame(shown),
        "What needs no search, and so has no chance in it.",
        study.line("no spread: every figure follows from the weights alone"),
        decimals=4,
    )
    same = study.tables["same_particles"]
    shown = [
        {
            "method": METHOD_LABELS[r.method],
            "score": f"{r.metric} {r.source}{RAW_AND_REFINED[r.refine]}".replace("_", " "),
            "trained (dB)": r.trained,
            "in float16 (dB)": r.rounded,
            "largest change in a chunk (dB)": r.largest,
        }
        for r in same.itertuples()
    ]
    yield results_table(pd.DataFrame(shown), "Blind scores of the same particles: found by the trained models, and weighed and decoded anew by the rounded ones.",
                        study.line(_songs(int(same.n.max())), "mean over songs; spread: the largest change", "reference: the real sources"), decimals=4)  # fmt: skip
    yield _paragraph(half_precision_verdict(found, figures, same), strong=True)


SIGNALS_OUTSIDE = {
    ("hybrid", "wiener"): "Hybrid, refined", ("lass", "wiener"): "LASS, refined", ("codec-linear", "none"): "codec ceiling, linear",
    ("codec-plain", "none"): "codec ceiling, plain", ("mixture", "none"): "mixture, not separated",
}  # fmt: skip


@_shows("out-of-domain")
def show_out_of_domain(study: Recorded) -> Iterable[HTML]:
    """Falls of the scores in other sounds, of methods and of ceilings, and what the models find likely."""
    falls, nats = study.tables["falls"], study.tables["nats"]
    facts = (
        _songs(int(falls.n.max())),
        "blind, particle filter",
        "other SoundFont: " + study.provenance["notes"]["soundfont"],
    )
    yield _falls_figure(falls)
    cells = falls.set_index(["method", "refine", "source", "condition"]).sort_index()
    lines = []
    for condition in dict.fromkeys(falls.condition):
        line = {"condition": condition}
        for source in _sources(falls):
            ours, ceiling = (
                cells.loc[("hybrid", "wiener", source, condition)],
                cells.loc[("codec-linear", "none", source, condition)],
            )
            changes = ("–", "–") if condition == AS_RENDERED else (_span(ours), _span(ceiling))
            line |= dict(
                zip(
                    (f"{source} (dB)", f"{source}, change (95 % interval)", f"{source}, codec ceiling's change"),
                    (ours.score, *changes),
                    strict=True,
                )
            )
        lines.append(line)
    yield results_table(pd.DataFrame(lines), "The Hybrid's refined SDR on the test songs as rendered and in other sounds, with the paired change against the same songs as rendered, and that of the ceiling which the codec sets.",
                        study.line(*facts, "95 % bootstrap interval over songs", "reference: the changed stems"))  # fmt: skip
    lines = []
    for (condition, method), rows in nats.groupby(["condition", "method"], sort=False):
        means = rows.groupby(["part", "source"], sort=False).value.mean()
        lines.append(
            {
                "condition": condition,
                "method": METHOD_LABELS[method],
                **{f"{part} {source}".strip(): value for (part, source), value in means.items()},
            }
        )
    yield results_table(pd.DataFrame(lines), "Nats per code of the true codes: of each source under its prior, and of the mixture given both under the likelihood. What rises most has never met such a sound.",
                        study.line(_songs(nats.track.nunique()), "mean over songs"))  # fmt: skip
    yield _paragraph(out_of_domain_verdict(falls), strong=True)


def _falls_figure(falls: pd.DataFrame) -> HTML:
    sources, conditions = _sources(falls), [c for c in dict.fromkeys(falls.condition) if c != AS_RENDERED]
    figure, axes = plt.subplots(
        1, len(sources), figsize=(9.2, 1.2 + 0.7 * len(conditions)), sharey=True, sharex=True, layout="constrained"
    )
    for axis, source in zip(axes, sources, strict=True):
        rows = falls[falls.source == source].set_index(["method", "refine", "condition"]).sort_index()
        for s, ((method, refine), label) in enumerate(SIGNALS_OUTSIDE.items()):
            places = -np.arange(len(conditions)) - 0.14 * (s - (len(SIGNALS_OUTSIDE) - 1) / 2)
            found, colour = rows.loc[(method, refine)].loc[conditions], list(PALETTE.values())[s]
            axis.hlines(places, found.low, found.high, color=colour, linewidth=2)
            axis.plot(found["mean"], places, "o", color=colour, markersize=4, label=label)
        axis.axvline(0, color="black", linewidth=1)
        axis.set(title=source, xlabel="change of SDR (dB)")
        axis.set_yticks(-np.arange(len(conditions)), conditions)
        axis.grid(axis="y", visible=False)
    axes[-1].legend(fontsize="x-small")
    return show(figure, "How far SDR lies from the same songs as rendered, in each condition: means and 95 % bootstrap intervals over songs. Where the ceiling falls, the codec is at fault; where only the methods fall, priors or likelihood are.",
                "Intervals of paired changes of SDR in every condition, one panel for each source, with a line at no change.")  # fmt: skip
