"""The README says what the results say."""

import shutil

from hybridsep.report import repository_root
from hybridsep.report.readme import SCALING, write_speed
from hybridsep.report.speed import BENCH


def test_speeds_in_the_readme_are_those_of_the_recorded_benchmarks(tmp_path):
    root = repository_root()
    shutil.copytree(root / BENCH, tmp_path / BENCH)
    (tmp_path / SCALING).parent.mkdir(parents=True)
    text = (root / "README.md").read_text()
    before, rest = text.split("<!-- speed -->")
    (tmp_path / "README.md").write_text(f"{before}<!-- speed --><!-- /speed -->{rest.split('<!-- /speed -->')[1]}")
    write_speed(tmp_path)
    assert (tmp_path / "README.md").read_text() == text
    assert (tmp_path / SCALING).stat().st_size > 1000
