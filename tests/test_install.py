"""What an installation without extras, and one with [data], can do; and that what is installed is pinned."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny import RATE, tiny_separator

ROOT = Path(__file__).parents[1]
DATA = (
    "accelerate", "scipy", "pandas", "joblib", "symusic", "pretty_midi", "museval", "threadpoolctl", "fsspec", "indexed_gzip",
    "pooch", "requests", "aiohttp",
)  # fmt: skip
BOOK = ("torchaudio", "librosa", "sklearn", "matplotlib", "IPython", "ipywidgets", "nbformat", "papermill")
WITHOUT = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {missing!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Missing())
"""


def run_without(missing: tuple[str, ...], code: str, *arguments) -> subprocess.CompletedProcess:
    """Run code in a process of its own that cannot import some packages."""
    command = [sys.executable, "-c", WITHOUT.format(missing=set(missing)) + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "song.wav"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal((RATE, 2)), RATE)
    return path


def test_separate_and_separator_need_no_extra(tmp_path, recording):
    tiny_separator().save(tmp_path / "model")
    code = """
import torch
from hybridsep import Separator
from hybridsep.cli import main

found = Separator.load(sys.argv[-1]).separate(torch.randn(4000), 8000)
assert found.stems.shape == (2, 4000)
main()
"""
    arguments = ("separate", recording, tmp_path / "stems", "--model", tmp_path / "model")
    done = run_without(DATA + BOOK, code, *arguments)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "stems").iterdir()} >= {"bass.wav", "drums.wav"}


def test_songs_training_and_scores_need_no_more_than_the_extra_data():
    code = """
import importlib, pkgutil
import hybridsep
for module in pkgutil.walk_packages(hybridsep.__path__, "hybridsep."):
    if ".report" not in module.name and not module.name.endswith(("_triton", "tiles")):
        importlib.import_module(module.name)
"""
    done = run_without(BOOK, code)
    assert done.returncode == 0, done.stderr


def test_a_command_whose_extra_is_missing_says_which(tmp_path):
    arguments = ("data", "synth", tmp_path / "songs", "--tracks", 1)
    done = run_without(DATA + BOOK, "from hybridsep.cli import main; main()", *arguments)
    assert done.returncode == 1 and "pip install 'hybridsep[data]'" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_every_requirement_of_an_extra_is_pinned():
    listed = (ROOT / "pyproject.toml").read_text().split("dependencies = [", 1)[1].split("[project.scripts]")[0]
    named = re.findall(r'"([\w.-]+)', listed)
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    assert all("==" in line for line in lines)
    pinned = {line.split("==")[0].lower().replace("_", "-") for line in lines}
    assert {name.lower().replace("_", "-") for name in named} - {"hybridsep"} <= pinned
