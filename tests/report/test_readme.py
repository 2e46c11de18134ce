"""Every number that README.md marks is the recorded one."""

import json
import re
import runpy

import numpy as np
import pandas as pd

from hybridsep.report import repository_root

ROOT = repository_root()


def test_numbers_in_the_readme_are_the_recorded_ones():

    script = runpy.run_path(str(ROOT / "book" / "headline.py"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert script["MARK"].search(text)
    assert script["filled"](text) == text, "run: python book/headline.py"
    assert json.loads(script["HEADLINE"].read_text()) == script["headline"](), "run: python book/headline.py"


def test_headline_has_the_numbers_that_others_rely_on():
    known = json.loads((ROOT / "book" / "results" / "headline.json").read_text())
    rungs, methods = ("minislakh", "people", "unseen-font"), ("plain-sum", "lass", "lqvae", "hybrid")
    signals = ("mixture", "codec", "ideal-mask", *methods)
    keys = [f"sdr.{r}.{signal}.{s}" for r in rungs for signal in signals for s in ("bass", "drums")]
    keys += [
        f"effect.{e}.{s}.{r}" for e in ("counts", "linear", "interaction") for s in ("particle", "beam") for r in rungs
    ]
    keys += [
        "linearity.hit_rate.plain",
        "linearity.hit_rate.linear",
        "train.minutes",
        "book.minutes",
        "install.minutes",
    ]
    assert set(keys) <= set(known)
    assert all(np.isfinite(entry["value"]) and entry["unit"] for entry in known.values())
    assert all(
        {"low", "high", "n", "trainings"} <= set(known[key]) for key in keys if key.startswith(("sdr", "effect"))
    )


def test_what_the_readme_says_of_effects_holds():
    table = pd.read_csv(ROOT / "book" / "results" / "rungs" / "effects.csv")
    rows = table[table.source == "mean"].set_index(["rung", "search", "refine", "effect"]).sort_index()
    for rung in ("minislakh", "people", "unseen-font"):
        for effect in ("linear", "counts"):
            refined = rows.loc[(rung, "particle", "wiener", effect)]
            assert refined.low < 0 < refined.high
        assert rows.loc[(rung, "particle", "wiener", "over lass")].low < 0.1
    assert all(rows.loc[(rung, "particle", "none", "counts")].low > 0 for rung in ("minislakh", "people"))
    assert rows.loc[("minislakh", "lass-beam", "wiener", "counts")].high < 0


def test_readme_can_be_read_in_four_minutes():
    visible = re.sub(r"<!--.*?-->", "", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(visible.split()) <= 900
