"""Write book/results/headline.json from the recorded tables, README.md's numbers from that, and its figure: `python book/headline.py`.

In README.md a number stands between <!--n:KEY--> and <!--/n-->; KEY is one of headline.json, or KEY|low, KEY|high, KEY|n.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from hybridsep.report.chapter import signed
from hybridsep.report.figures import number

BOOK = Path(__file__).resolve().parent
RESULTS, RECORD = BOOK / "results", BOOK / "record" / "cpu" / "provenance.json"
HEADLINE, README, PICTURE = RESULTS / "headline.json", BOOK.parent / "README.md", BOOK / "assets" / "result.png"
MARK = re.compile(r"(<!--n:(?P<key>[^>|]+)\|?(?P<field>[^>]*)-->).*?(<!--/n-->)")
SEARCHES = {"particle": "particle", "lass-beam": "beam"}
SIGNALS = {"codec-linear": "codec", "irm": "ideal-mask"}
DECIMALS = {"dB": 1, "dB gained": 2, "%": 1, "nats per code": 3}


def headline() -> dict[str, dict]:
    """Return every number that README, landing page and model card state, by its key: value, unit, and low, high, median, n, trainings if known."""
    return linearity() | effects() | scores() | gains() | times()


def linearity() -> dict[str, dict]:
    """How often the mean of two codes is nearest to the mixture's own, on pairs of test songs: "linearity.hit_rate.KIND"."""
    table = pd.read_csv(RESULTS / "rungs" / "linearity.csv").set_index("kind")
    return {f"linearity.hit_rate.{kind}": {"value": 100 * rate, "unit": "%"} for kind, rate in table.hit_rate.items()}


def effects() -> dict[str, dict]:
    """What an ingredient is worth, refined, mean of both sources: "effect.INGREDIENT.SEARCH.RUNG", and as decoded with ".decoded"."""
    table = pd.read_csv(RESULTS / "rungs" / "effects.csv")
    return {
        f"effect.{row.effect.replace(' ', '-')}.{SEARCHES[row.search]}.{row.rung}"
        + ".decoded" * (row.refine == "none"): _spread(row, "dB gained")
        for row in table[table.source == "mean"].itertuples()
    }


def scores() -> dict[str, dict]:
    """Blind SDR, refined where something was separated, particle filter: "sdr.RUNG.SIGNAL.SOURCE"."""
    table = pd.concat([pd.read_csv(RESULTS / study / "levels.csv") for study in ("rungs", "baselines")])
    rows = table[(table.metric == "sdr") & table.search.fillna("particle").eq("particle")]
    refined = set(rows.method[rows.refine == "wiener"])
    rows = rows[(rows.refine == "wiener") | ~rows.method.isin(refined)]
    return {
        f"sdr.{row.rung}.{SIGNALS.get(row.method, row.method)}.{row.source}": _spread(row, "dB")
        for row in rows.itertuples()
    }


def gains() -> dict[str, dict]:
    """What a cell gains over the untouched mixture, refined, particle filter, mean of both sources: "gain.METHOD.RUNG"."""
    table = pd.read_csv(RESULTS / "rungs" / "gains.csv")
    rows = table[(table.over == "mixture") & (table.search == "particle") & (table.source == "mean")]
    return {f"gain.{row.method}.{row.rung}": _spread(row, "dB gained") for row in rows.itertuples()}


def times() -> dict[str, dict]:
    """What training, installation, the book and a separation take, and how that compares with the published code, re-written."""
    made, walked = json.loads(RECORD.read_text()), json.loads((RESULTS / "rehearsal.json").read_text())
    files = (RESULTS / "bench").glob("*.json")
    rows = pd.concat(pd.DataFrame(json.loads(file.read_text())["rows"]) for file in files).set_index("name")
    found = {
        "train.minutes": (made["minutes_together"], "min"),
        "install.minutes": (walked["seconds"]["install"] / 60, "min"),
        "book.minutes": (walked["seconds"]["book"] / 60, "min"),
        "disk.environment": (walked["bytes"]["environment"] / 1e9, "GB"),
        "disk.run": (walked["bytes"]["run"] / 1e9, "GB"),
        "recording.hour.minutes": (rows.ours_seconds["recording/hour"] / 60, "min"),
        "recording.hour.memory": (rows.ours_peak_bytes["recording/hour"] / 1e9, "GB"),
    }
    for name, row in rows.iterrows():
        kind, _, variant = name.partition("/")
        if kind == "particles":
            found[f"seconds.particles.{variant}"] = row.ours_seconds, "s"
            found[f"evidence.particles.{variant}"] = row.nats_per_code, "nats per code"
        if kind == "batch":
            found["seconds.chunk.batch"] = row.ours_seconds / row.mixtures, "s"
        if kind in ("lass", "lqvae") and row.search == "particle" and row.differs == "":
            found[f"ratio.{kind}.{row['dtype']}"] = row.ratio, "times"
    found["seconds.chunk.alone"] = found["seconds.particles.32"]
    return {key: {"value": float(value), "unit": unit} for key, (value, unit) in found.items()}


def filled(text: str) -> str:
    """Return a text with every marked number as headline.json has it; an unknown key raises KeyError."""
    known = json.loads(HEADLINE.read_text())
    return MARK.sub(lambda mark: f"{mark[1]}{shown(known[mark['key']], mark['field'] or 'value')}{mark[4]}", text)


def shown(entry: dict, field: str) -> str:
    """Return a field of an entry as people read it."""
    if field == "n":
        return number(int(entry["n"]))
    decimals = DECIMALS.get(entry["unit"], 0 if entry[field] >= 20 else 1)
    return (signed if entry["unit"] == "dB gained" else number)(entry[field], decimals)


def draw() -> None:
    """Draw README's figure as the landing page does, by the page's own cells."""
    names: dict = {"show": lambda panels, *_: plt.imsave(PICTURE, side_by_side(panels)), "publish": lambda **_: None}
    for cell in nbformat.read(BOOK / "index.ipynb", as_version=4).cells:
        if cell.cell_type == "code" and ("claims" in cell.metadata.get("tags", ()) or cell.id == "ladder"):
            own = {name: names[name] for name in ("show", "publish")}
            exec(cell.source, names)
            names.update(own)


def side_by_side(panels: list[Figure]) -> np.ndarray:
    """Draw figures of one height beside each other: pixels [height, width, 4]."""
    drawn = []
    for figure in panels:
        figure.set_dpi(110)
        figure.canvas.draw()
        drawn.append(np.asarray(figure.canvas.buffer_rgba()))
    return np.hstack(drawn)


def _spread(row: tuple, unit: str) -> dict:
    known = {name: getattr(row, name) for name in ("low", "high", "median", "n") if hasattr(row, name)}
    return {"value": row.mean, **known, "trainings": 1, "unit": unit}


if __name__ == "__main__":
    HEADLINE.write_text(json.dumps(headline(), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    README.write_text(filled(README.read_text(encoding="utf-8")), encoding="utf-8")
    draw()
