"""Notebooks find the project, or install it, wherever they are opened."""

import importlib.util
from pathlib import Path

import nbformat
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FIND = 'import importlib.util\n\nimportlib.util.find_spec("hybridsep") or get_ipython()'
IN_A_CLONE = f'{FIND}.run_line_magic("pip", "install -q ..[book]")'
ANYWHERE = f'{FIND}.system("git clone -q {{address}} hybridsep && pip install -q ./hybridsep[book]")'


@pytest.mark.parametrize("path", sorted((ROOT / "book").glob("*.ipynb")), ids=lambda path: path.stem)
def test_first_cell_installs_from_the_configured_address_and_stays_off_the_page(path):
    first = nbformat.read(path, as_version=4).cells[0]
    address = yaml.safe_load((ROOT / "_config.yml").read_text())["repository"]["url"]
    line = ANYWHERE.format(address=address) if address else IN_A_CLONE
    assert first.source.endswith(line)
    assert "remove-cell" in first.metadata.tags


class Shell:
    """Stand-in for IPython that notes what it is asked for."""

    def __init__(self):
        self.asked = []

    def run_line_magic(self, *asked):
        self.asked.append(asked)

    def system(self, *asked):
        self.asked.append(asked)


@pytest.mark.parametrize("line", [IN_A_CLONE, ANYWHERE])
def test_the_cell_installs_only_where_the_project_is_missing(line, monkeypatch):
    shell = Shell()
    exec(line, {"get_ipython": lambda: shell})
    assert not shell.asked
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    exec(line, {"get_ipython": lambda: shell})
    assert "install -q" in shell.asked[0][-1]
