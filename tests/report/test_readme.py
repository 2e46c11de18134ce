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
    table = pd.read_csv(ROOT / "book" / "results" / "two-by-two" / "effects.csv")
    rows = table[(table.refine == "wiener") & (table.source == "mean")].set_index(["search", "effect"])
    assert rows.loc[("particle", "counts")].low > 0 and rows.loc[("beam", "counts")].high < 0
    for effect in ("linear", "over lass"):
        assert rows.loc[("particle", effect)].low < 0 < rows.loc[("particle", effect)].high


def test_readme_can_be_read_in_four_minutes():
    visible = re.sub(r"<!--.*?-->", "", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(visible.split()) <= 900
