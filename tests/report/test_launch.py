"""Notebooks find the project, or install it, wherever they are opened."""

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from hybridsep.report.launch import INSTALL_TAG, install_cell, repository_address, write_install_cells

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = "https://example.org/someone/hybridsep"


@pytest.mark.parametrize("path", sorted((ROOT / "book").glob("*.ipynb")), ids=lambda path: path.stem)
def test_first_cell_installs_from_the_configured_address_and_stays_off_the_page(path):
    first, *others = nbformat.read(path, as_version=4).cells
    assert first.source == install_cell(repository_address(ROOT)), "run: python -m hybridsep.report.launch"
    assert "remove-cell" in first.metadata.tags
    assert not any(INSTALL_TAG in cell.metadata.get("tags", []) for cell in others)


def test_a_new_address_is_written_into_every_notebook_once(tmp_path):
    shutil.copytree(ROOT / "book", tmp_path / "book", ignore=shutil.ignore_patterns("results", "assets"))
    config = yaml.safe_load((ROOT / "_config.yml").read_text())
    (tmp_path / "_config.yml").write_text(yaml.safe_dump({**config, "repository": {"url": ADDRESS}}))
    for _ in range(2):
        write_install_cells(tmp_path)
    for path in (tmp_path / "book").glob("*.ipynb"):
        original, written = (nbformat.read(p, as_version=4) for p in (ROOT / "book" / path.name, path))
        assert written.cells[0].source == install_cell(ADDRESS)
        assert [cell.source for cell in written.cells[1:]] == [cell.source for cell in original.cells[1:]]


def run_cell(source, folder, monkeypatch):
    """Execute an install cell as if the project were missing; commands are not run but returned."""
    commands = []
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HYBRIDSEP_ROOT", "")  # undone after the test, whatever the cell sets
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    exec(compile(source, "cell", "exec"), {})
    return commands


def test_away_from_a_clone_the_project_is_fetched_and_installed(tmp_path, monkeypatch):
    clone, install = run_cell(install_cell(ADDRESS), tmp_path, monkeypatch)
    assert clone == ["git", "clone", "--depth", "1", ADDRESS, str(tmp_path / "hybridsep")]
    assert install[:4] == [sys.executable, "-m", "pip", "install"] and str(tmp_path / "hybridsep") in install


def test_within_a_clone_nothing_is_fetched(tmp_path, monkeypatch):
    (tmp_path / "_config.yml").touch()
    (tmp_path / "book").mkdir()
    (install,) = run_cell(install_cell(""), tmp_path / "book", monkeypatch)
    assert str(tmp_path) in install


def test_without_an_address_the_reader_is_told(tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="open it in a clone"):
        run_cell(install_cell(""), tmp_path, monkeypatch)


def test_where_the_project_is_installed_the_cell_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("it ran a command"))
    exec(compile(install_cell(ADDRESS), "cell", "exec"), {})
