"""The pages about the code name what is in the code."""

import ast
import re
import shutil
from pathlib import Path

import pytest

from hybridsep.report.api import fill_stubs

BOOK = Path(__file__).resolve().parents[2] / "book"
LINKS = re.findall(r"\[`(\w+)`\]\(\.\./(src/[\w/]+\.py)\)", (BOOK / "walkthrough.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "file"), sorted(set(LINKS)))
def test_every_name_of_the_walkthrough_is_defined_in_the_file_it_links_to(name, file):
    tree = ast.parse((BOOK.parent / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, (ast.ClassDef, ast.FunctionDef))}


def test_api_page_has_signatures_and_docstrings_and_no_code(tmp_path):
    shutil.copy(BOOK / "api.md", tmp_path)
    fill_stubs(tmp_path)
    page = (tmp_path / "api.md").read_text(encoding="utf-8")
    assert "# hybridsep." not in page
    for expected in ("def separate(", "def particle_filter(", "class Likelihood(ABC):", "@classmethod\n    def fit("):
        assert expected in page
    assert "\n    return " not in page and "self._" not in page
