"""What the book is made of: audio players, figures, and the build that executes its chapters."""

import os
from pathlib import Path


def repository_root() -> Path:
    """Return the folder that holds `_config.yml` and `book/`: where a chapter finds the project; FileNotFoundError: there is none.

    It is HYBRIDSEP_ROOT (set by the build), or lies above the working directory, the clone `hybridsep` in it (Colab's), or this file.
    """
    if declared := os.environ.get("HYBRIDSEP_ROOT"):
        return Path(declared)
    starts = (Path.cwd(), Path.cwd() / "hybridsep", Path(__file__).resolve().parent)
    for folder in (folder for start in starts for folder in (start, *start.parents)):
        if (folder / "_config.yml").is_file() and (folder / "book").is_dir():
            return folder
    raise FileNotFoundError(f"no folder above {Path.cwd()} holds _config.yml and book/; set HYBRIDSEP_ROOT")
