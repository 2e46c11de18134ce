"""Importing the library changes nothing in the program that imports it."""

import os
import subprocess
import sys

SNAPSHOT = """
import ctypes, os, random, sys
asked = []

class Spy(ctypes.CDLL):
    def __getattr__(self, name):
        asked.append(name)
        return super().__getattr__(name)

ctypes.CDLL = Spy
"""
LIGHT = (
    SNAPSHOT
    + """
before = dict(os.environ)
import hybridsep
assert "torch" not in sys.modules and "numpy" not in sys.modules, "import hybridsep is light"
assert dict(os.environ) == before and "mallopt" not in asked
assert "Separator" in hybridsep.__all__ and hybridsep.Separator.load
assert dict(os.environ) == before and "mallopt" not in asked
"""
)
WHOLE = (
    SNAPSHOT
    + """
import importlib, pkgutil
import numpy, torch
states = lambda: (random.getstate(), numpy.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist())
before, known, threads = dict(os.environ), states(), torch.get_num_threads()
import hybridsep
for module in pkgutil.walk_packages(hybridsep.__path__, "hybridsep."):
    if not module.name.endswith(("_triton", "tiles", "__main__")):
        importlib.import_module(module.name)
changed = {name for name in set(os.environ) | set(before) if os.environ.get(name) != before.get(name)}
assert not {name for name in changed if name.startswith(("OMP", "GOMP", "MALLOC", "HYBRIDSEP", "PYTHON"))}, changed
assert states() == known and torch.get_num_threads() == threads and "mallopt" not in asked
assert all(hasattr(module, "__spec__") and module.__spec__ for name, module in sys.modules.items() if name.startswith(("musdb", "museval")))
"""
)
SETTLED = (
    SNAPSHOT
    + """
from hybridsep.core.process import settle_process
os.environ["OMP_WAIT_POLICY"] = "ACTIVE"
settle_process()
assert "torch" not in sys.modules, "threads are settled before torch starts them"
assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE" and os.environ["GOMP_SPINCOUNT"] == "5000"
assert sys.platform != "linux" or "mallopt" in asked
"""
)


def run(code: str) -> None:
    names = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_")
    plain = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_import_is_light_and_separator_comes_when_asked_for():
    run(LIGHT)


def test_no_module_changes_environment_allocator_random_state_or_other_modules():
    run(WHOLE)


def test_commands_settle_threads_and_allocator_before_torch_is_there():
    run(SETTLED)
