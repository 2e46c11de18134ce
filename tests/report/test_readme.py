"""Every number that README.md marks is the recorded one."""

import runpy

from hybridsep.report import repository_root


def test_numbers_in_the_readme_are_the_recorded_ones():
    root = repository_root()
    script = runpy.run_path(str(root / "book" / "readme.py"))
    text = (root / "README.md").read_text(encoding="utf-8")
    assert script["MARK"].search(text)
    assert script["filled"](text) == text, "run: python book/readme.py"
