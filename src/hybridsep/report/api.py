"""Public API as text: signatures and docstrings in the place of lines like `# hybridsep.inference.search:beam`."""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any

_PLACE = re.compile(r"^# (hybridsep[\w.]*):(\w+)$", re.MULTILINE)


def fill_stubs(folder: Path) -> None:
    """Replace every line `# module:name` of the Markdown pages in a folder by the stub of what it names."""
    for page in folder.glob("*.md"):
        filled = _PLACE.sub(lambda place: stub(getattr(import_module(place[1]), place[2])), page.read_text("utf-8"))
        page.write_text(filled, encoding="utf-8")


def stub(thing: Any) -> str:
    """Return signature and docstring of a function, or of a class and its public methods, as in the source."""
    source = dedent(inspect.getsource(thing))
    (node,) = ast.parse(source).body
    methods = [n for n in node.body if isinstance(n, ast.FunctionDef)] if isinstance(node, ast.ClassDef) else []
    parts: list[Any] = [node, *(m for m in methods if not m.name.startswith("_") and ast.get_docstring(m))]
    heads = []
    for part in parts:
        first = min([part.lineno, *(decorator.lineno for decorator in part.decorator_list)])
        heads.append("\n".join(source.splitlines()[first - 1 : part.body[0].end_lineno]))
    return "\n\n".join(heads)
