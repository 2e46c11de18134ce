"""What chapters define, for tests: their imports, functions and classes, while nothing of them runs."""

import ast
import functools
from pathlib import Path
from types import SimpleNamespace

import nbformat

BOOK = Path(__file__).resolve().parents[2] / "book"
DEFINING = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef)


@functools.cache
def definitions(chapter):
    cells = [cell for cell in nbformat.read(BOOK / f"{chapter}.ipynb", as_version=4).cells if cell.cell_type == "code"]
    nodes = [node for cell in cells for node in ast.parse(cell.source).body if isinstance(node, DEFINING)]
    namespace = {"__name__": chapter}
    exec(compile(ast.Module(nodes, []), chapter, "exec"), namespace)
    return SimpleNamespace(**namespace)
