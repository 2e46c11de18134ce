"""The rooms of the library lie one above the other: no module imports from a room above its own."""

import ast
from pathlib import Path

import pytest

import hybridsep

LAYERS = (
    "core", "kernels", "data", "models", "training", "inference", "evaluation", "pipeline", "report", "cli"
)  # fmt: skip
ROOT = Path(hybridsep.__file__).parent


def imported(path: Path) -> set[str]:
    """First names below `hybridsep` that a module imports from, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        # A relative import stays in its room.
        if isinstance(node, ast.ImportFrom) and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name.split(".")[1] for name in names if name.startswith("hybridsep.")}


@pytest.mark.parametrize("room", LAYERS)
def test_no_import_runs_upward(room):
    above = set(LAYERS[LAYERS.index(room) + 1 :])
    upward = {}
    for path in ROOT.rglob("*.py"):
        if path.relative_to(ROOT).parts[0].removesuffix(".py") == room and (found := imported(path) & above):
            upward[str(path.relative_to(ROOT))] = sorted(found)
    assert not upward


def test_every_room_has_its_place():
    rooms = {path.relative_to(ROOT).parts[0].removesuffix(".py") for path in ROOT.rglob("*.py")} - {"__init__"}
    assert rooms <= set(LAYERS)
