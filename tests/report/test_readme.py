"""Every number that README.md marks is the recorded one."""

import re
import runpy

import pandas as pd

from hybridsep.report import repository_root

ROOT = repository_root()


def test_numbers_in_the_readme_are_the_recorded_ones():

    script = runpy.run_path(str(ROOT / "book" / "readme.py"))
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert script["MARK"].search(text)
    assert script["filled"](text) == text, "run: python book/readme.py"


def test_what_the_readme_says_of_effects_holds():
    table = pd.read_csv(ROOT / "book" / "results" / "rungs" / "effects.csv")
    rows = table[table.source == "mean"].set_index(["rung", "search", "refine", "effect"]).sort_index()
    for rung in ("minislakh", "people", "unseen-font"):
        assert rows.loc[(rung, "particle", "none", "counts")].low > 0
        linear = rows.loc[(rung, "particle", "wiener", "linear")]
        assert linear.low < 0 < linear.high
        assert rows.loc[(rung, "particle", "wiener", "over lass")].low < 0.1
    assert rows.loc[("minislakh", "particle", "wiener", "counts")].low > 0
    assert rows.loc[("minislakh", "lass-beam", "wiener", "counts")].high < 0
    assert all(rows.loc[(rung, "particle", "wiener", "counts")].low < 0 for rung in ("people", "unseen-font"))


def test_readme_can_be_read_in_four_minutes():
    visible = re.sub(r"<!--.*?-->", "", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(visible.split()) <= 900
