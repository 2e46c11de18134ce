"""Write the recorded numbers into README.md: `python book/readme.py`; with `--keys`, list what can be quoted.

A number stands between <!--n:KEY--> and <!--/n-->. Every KEY is looked up in the tables of book/results.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pandas as pd

from hybridsep.report.chapter import minutes, signed
from hybridsep.report.figures import number

RESULTS = Path(__file__).resolve().parent / "results"
README = RESULTS.parents[1] / "README.md"
MARK = re.compile(r"(<!--n:(?P<key>[^>]+)-->).*?(<!--/n-->)")


def values() -> dict[str, str]:
    """Return every quotable number by its key, such as "people hybrid bass refined" or "particles/32 seconds"."""
    return scores() | effects() | training() | speed() | rehearsal()


def scores() -> dict[str, str]:
    """Mean blind SDR of the particle filter over songs, dB: "RUNG METHOD SOURCE" and "RUNG METHOD SOURCE refined", and "RUNG songs"."""
    table = pd.read_csv(RESULTS / "rungs" / "levels.csv")
    rows = table[(table.metric == "sdr") & table.search.fillna("particle").eq("particle")]
    refined = rows.refine.map({"none": "", "wiener": " refined"})
    keys = rows.rung + " " + rows.method + " " + rows.source + refined
    songs = {f"{rung} songs": str(part.n.max()) for rung, part in rows.groupby("rung")}
    return dict(zip(keys, rows["mean"].map(lambda score: number(score, 1)), strict=True)) | songs


def effects() -> dict[str, str]:
    """Differences of SDR in dB, mean of both sources: "RUNG counts" (refined, particle filter), with " low", " decoded", " lass-beam"."""
    table = pd.read_csv(RESULTS / "rungs" / "effects.csv")
    wanted = (table.refine == "wiener") | (table.search == "particle")
    rows = table[wanted & (table.source == "mean")].set_index(["rung", "search", "refine", "effect"])
    ends = {"mean": "", "low": " low", "high": " high"}
    variants = {"particle wiener": "", "particle none": " decoded", "lass-beam wiener": " lass-beam"}
    return {
        f"{rung} {effect}{variants[f'{search} {refine}']}{end}": signed(row[column])
        for (rung, search, refine, effect), row in rows.iterrows()
        for column, end in ends.items()
    }


def training() -> dict[str, str]:
    """How long all shipped models were trained: "training minutes", of one core each."""
    made = json.loads((RESULTS.parent / "record" / "cpu" / "provenance.json").read_text())
    return {"training minutes": number(made["minutes_together"], 0)}


def speed() -> dict[str, str]:
    """Benchmarks, by the names of their rows: "particles/32 seconds", "lqvae/float32 ratio", "recording/hour GB"."""
    files = (RESULTS / "bench").glob("*.json")
    rows = pd.concat(pd.DataFrame(json.loads(file.read_text())["rows"]) for file in files).set_index("name")
    columns = {
        "seconds": (rows.ours_seconds, 1),
        "minutes": (rows.ours_seconds / 60, 1),
        "reference": (rows.reference_seconds, 0),
        "ratio": (rows.ratio, 1),
        "evidence": (rows.nats_per_code, 3),
        "GB": (rows.ours_peak_bytes / 1e9, 1),
    }
    shown = {name: (column.dropna().astype(float), decimals) for name, (column, decimals) in columns.items()}
    return {f"{row} {name}": number(v, d) for name, (column, d) in shown.items() for row, v in column.items()}


def rehearsal() -> dict[str, str]:
    """A newcomer's way from a clone to the page: times of its steps, "together", and sizes, "environment GB"."""
    made = json.loads((RESULTS / "rehearsal.json").read_text())
    took = made["seconds"] | {"together": sum(made["seconds"].values())}
    size = {f"{what} GB": number(count / 1e9, 1) for what, count in made["bytes"].items()}
    return {step: minutes(seconds) for step, seconds in took.items()} | size | {"rehearsed": made["date"]}


def filled(text: str) -> str:
    """Return a text with every marked number as it was recorded; an unknown key raises KeyError."""
    known = values()
    return MARK.sub(lambda mark: f"{mark[1]}{known[mark['key']]}{mark[3]}", text)


if __name__ == "__main__":
    if sys.argv[1:] == ["--keys"]:
        print("\n".join(f"{key}: {value}" for key, value in values().items()))
    else:
        README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
