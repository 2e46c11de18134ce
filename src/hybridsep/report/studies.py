"""Recorded studies: what book/results keeps of one, paired differences for the prose, and two pictures."""

import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from IPython.display import HTML
from matplotlib.axes import Axes

from hybridsep.core.errors import HybridsepError
from hybridsep.core.profiles import load_profile, profile_names
from hybridsep.evaluation.comparisons import interval_columns, song_values
from hybridsep.evaluation.rows import read_rows, rows_where
from hybridsep.pipeline.pipeline import Pipeline
from hybridsep.report import repository_root
from hybridsep.report.chapter import made_with, signed

MODEL_SETTINGS = ("data", "vqvae", "prior", "likelihood", "search")  # blocks of a profile on which scores depend
_read: dict[str, "Study"] = {}


@dataclass(frozen=True)
class Study:
    """A recorded study: `study["effects"]` is its table effects.csv; `provenance` is its provenance.json."""

    name: str
    tables: Mapping[str, pd.DataFrame]
    provenance: Mapping[str, Any]

    def __getitem__(self, table: str) -> pd.DataFrame:
        return self.tables[table]

    def line(self, *facts: str) -> str:
        """Return what a reader needs to judge a table: facts, and settings changed since; `footer` has commit and hardware."""
        changed = ", ".join(self.changed_settings())
        since = [f"settings that are others today: {changed}"] * bool(changed)
        return "; ".join([*facts, *since, f"tables: book/results/{self.name}"]) + "."

    def changed_settings(self) -> list[str]:
        """Return the settings on which scores depend, such as "data.effects", that the profile has otherwise today."""
        then = self.provenance["profile"]
        if then["name"] not in profile_names():
            return []
        now = load_profile(then["name"]).model_dump(mode="json")
        settings = ((block, key) for block in MODEL_SETTINGS for key in {**then[block], **now[block]})
        return [f"{block}.{key}" for block, key in settings if then[block].get(key) != now[block].get(key)]


def read_study(name: str) -> Study:
    """Read a study from book/results; HybridsepError: it was never recorded."""
    folder = repository_root() / "book" / "results" / name
    if not (folder / "provenance.json").is_file():
        raise HybridsepError(f"no recorded study in {folder}: its script is in book/studies")
    tables = {path.stem: read_rows(path) for path in sorted(folder.glob("*.csv"))}
    study = _read[name] = Study(name, tables, json.loads((folder / "provenance.json").read_text()))
    return study


def footer(pipeline: Pipeline | None = None) -> HTML:
    """Return the last lines of a page: what made it, and what made each study that was read for it."""
    lines = [f"This page: {made_with(pipeline)}."] if pipeline else []
    recorded = "Study {study}: profile {profile[name]}, commit {commit}, {hardware}."
    lines += [recorded.format(**study.provenance) for study in _read.values()]
    return HTML(f'<p class="hs-footer" style="font-size:.8rem;opacity:.85">{"<br>".join(map(html.escape, lines))}</p>')


def one_row(table: pd.DataFrame, **where: Any) -> pd.Series:
    """Return the only row with column = value; ValueError: none, or several."""
    rows = rows_where(table, **where)
    if len(rows) != 1:
        raise ValueError(f"{len(rows)} rows have {where}")
    return rows.iloc[0]


def paired(table: pd.DataFrame, one: Mapping[str, Any], other: Mapping[str, Any], **both: Any) -> pd.Series:
    """Compare two groups of scores song by song: mean, low, high (95 % bootstrap interval over songs), std and n of one − other.

    `one`, `other` and `both` are column = value of either group, and of both; where several rows match, as of two sources, their mean counts.
    """
    differences = song_values(table, **one, **both) - song_values(table, **other, **both)
    return pd.Series(interval_columns(differences.to_numpy()))


def interval(row: Mapping[str, float] | pd.Series, unit: str = "\N{NO-BREAK SPACE}dB", decimals: int = 2) -> str:
    """Return "+0.99 dB [+0.62 to +2.10]": a mean and its 95 % interval."""
    mean, low, high = (signed(row[name], decimals) for name in ("mean", "low", "high"))
    return f"{mean}{unit} [{low} to {high}]"


def spans(table: pd.DataFrame, column: str, **where: Any) -> pd.DataFrame:
    """Return mean, low, high, std and n over songs of the scores that match, one row for each value of a column, in rising order."""
    rows = {value: interval_columns(song_values(part, **where).to_numpy()) for value, part in table.groupby(column)}
    return pd.DataFrame.from_dict(rows, orient="index")


def band(axis: Axes, rows: pd.DataFrame, label: str, colour: str, style: str = "-", at: Any = None) -> None:
    """Draw a line through the means of `spans` over its index, or over the places `at`, in a band of their intervals."""
    x = rows.index if at is None else at
    axis.plot(x, rows["mean"], style, marker=".", color=colour, label=label)
    axis.fill_between(x, rows.low, rows.high, color=colour, alpha=0.15, linewidth=0)


def forest(axis: Axes, series: Mapping[str, pd.DataFrame], places: Mapping[str, str], colours: Sequence[str]) -> None:
    """Draw intervals one below the other around a line at zero: label of each colour -> mean, low, high, and perhaps p_holm, by place.

    `places` maps the index of these tables to labels, from top to bottom. Dots of p_holm ≥ 0.05 are hollow.
    """
    y, step = -np.arange(len(places)), 0.7 / len(series)
    for s, ((label, rows), colour) in enumerate(zip(series.items(), colours, strict=True)):
        rows, at = rows.loc[list(places)], y - step * (s - (len(series) - 1) / 2)
        axis.hlines(at, rows.low, rows.high, color=colour, linewidth=2, label=label)
        filled = rows.p_holm < 0.05 if "p_holm" in rows else np.ones(len(rows), bool)
        faces = [colour if full else "white" for full in filled]
        axis.scatter(rows["mean"], at, s=18, c=faces, edgecolors=colour, zorder=3)
    axis.axvline(0, color="black", linewidth=1)
    axis.set_yticks(y, list(places.values()))
    axis.grid(axis="y", visible=False)
