"""What the chapters say of recorded studies holds in the recorded tables, and every number that is checked is quoted."""

import ast
import re
from pathlib import Path

import nbformat
import pytest

from hybridsep.report import chapter

BOOK = Path(__file__).resolve().parents[2] / "book"
CHAPTERS = [path for path in sorted(BOOK.glob("*.ipynb")) if '"claims"' in path.read_text(encoding="utf-8")]


@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_claims_of_a_chapter_hold_and_are_quoted(path, monkeypatch):
    cells, said = nbformat.read(path, as_version=4).cells, {}
    monkeypatch.setattr(chapter, "publish", said.update)
    namespace = {"publish": said.update}
    for cell in cells:
        if "claims" in cell.metadata.get("tags", ()):
            exec(compile(cell.source, f"{path.name}, cell {cell.id}", "exec"), namespace)
    prose = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    quoted = set(re.findall(r"\{glue:text\}`(\w+)`", prose))
    assert said.keys() <= quoted, f"published, never quoted: {sorted(said.keys() - quoted)}"
    assert not [name for name, text in said.items() if "nan" in str(text).lower() or "undefined" in str(text)]


@pytest.mark.parametrize("path", sorted(BOOK.glob("*.ipynb")), ids=lambda path: path.stem)
def test_what_a_cell_makes_to_be_seen_is_its_last_line(path):
    """Jupyter shows the value of a cell's last line and drops all others."""
    seen = {"show", "results_table", "player_table", "stem_player", "separation_player", "listening_test", "chooser"}
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and "install" not in cell.metadata.get("tags", ()):
            for line in ast.parse(cell.source).body[:-1]:
                call = line.value if isinstance(line, ast.Expr) else None
                assert getattr(getattr(call, "func", None), "id", "") not in seen, (
                    f"{cell.id}: {ast.unparse(line)[:60]}"
                )


@pytest.mark.parametrize("path", sorted(BOOK.glob("*.ipynb")), ids=lambda path: path.stem)
def test_nobody_scrolls_a_line_of_code(path):
    cells = (cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    assert not [line for cell in cells for line in cell.source.splitlines() if len(line) > 100]


def test_chapters_make_claims():
    assert {"index", "02_vqvae", "05_search", "06_comparison", "former_studies"} <= {path.stem for path in CHAPTERS}
