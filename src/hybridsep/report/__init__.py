"""What the book is made of: audio players, figures, and the build that executes its chapters."""

import os
from pathlib import Path


def repository_root() -> Path:
    """Return the folder that holds `_config.yml` and `book/`: where a chapter finds the project.

    Looks at the environment variable HYBRIDSEP_ROOT (set by the build), then upwards from the working directory and
    from the clone `hybridsep` in it (Colab's), then upwards from this file.

    Raises:
        FileNotFoundError: none of these places is inside a checkout of the project.
    """
    if declared := os.environ.get("HYBRIDSEP_ROOT"):
        return Path(declared)
    starts = (Path.cwd(), Path.cwd() / "hybridsep", Path(__file__).resolve().parent)
    for folder in (folder for start in starts for folder in (start, *start.parents)):
        if (folder / "_config.yml").is_file() and (folder / "book").is_dir():
            return folder
    raise FileNotFoundError(f"no folder above {Path.cwd()} holds _config.yml and book/; set HYBRIDSEP_ROOT")


def runs_root() -> Path:
    """Return the folder of trained models and results: HYBRIDSEP_RUNS, else `runs/` in the repository."""
    return Path(os.environ.get("HYBRIDSEP_RUNS") or repository_root() / "runs")
