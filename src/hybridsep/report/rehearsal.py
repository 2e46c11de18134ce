"""A newcomer's way to the book, timed: `python -m hybridsep.report.rehearsal FOLDER` clones this repository there, installs it and makes the book."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

from hybridsep.core.device import default_device
from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import write_atomically
from hybridsep.core.provenance import commit, hardware
from hybridsep.report import repository_root

RESULT = Path("book/results/rehearsal.json")
INSTALLED = ".venv/.installed"  # the Makefile's stamp of a finished installation


def rehearse(repository: Path, folder: Path, profile: str = "cpu", tests: bool = False) -> dict:
    """Clone what is committed, install it, make the book, and keep what each step took in `repository`/book/results/rehearsal.json.

    Args:
        repository: a checkout of the project.
        folder: where the clone goes; missing or empty.
        profile: of the book.
        tests: whether `make test` is the last step.

    Returns:
        {"hardware", "date", "commit", "profile", "seconds": {step}, "bytes": {"repository", "environment", "run"}, "chapters": {chapter: seconds}}.

    Raises:
        HybridsepError: the folder holds something, or a step failed; nothing is written then, and the folder stays for a look.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HybridsepError(f"{folder} is not empty: name a folder that a clone can fill")
    date = datetime.now(timezone.utc).date().isoformat()
    # Without --no-local git would only link the objects of a repository on the same disk.
    seconds = {"clone": _time("git", "clone", "--quiet", "--no-local", str(repository.resolve()), str(folder))}
    cloned, size = commit(folder), folder_size(folder)
    seconds["install"] = _time("make", "-C", str(folder), INSTALLED)
    seconds["book"] = _time("make", "-C", str(folder), "book", f"PROFILE={profile}")
    if tests:
        seconds["test"] = _time("make", "-C", str(folder), "test")
    status = json.loads((folder / "_build" / "executed" / "status.json").read_text(encoding="utf-8"))
    result = {
        "hardware": hardware(default_device()),
        "date": date,
        "commit": cloned,
        "profile": profile,
        "seconds": seconds,
        "bytes": {
            "repository": size,
            "environment": folder_size(folder / ".venv"),
            "run": folder_size(folder / "runs"),
        },
        "chapters": {entry["chapter"]: entry["seconds"] for entry in status},
    }
    (repository / RESULT).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(repository / RESULT, (json.dumps(result, indent=1) + "\n").encode())
    return result


def folder_size(folder: Path) -> int:
    """Bytes of all files below a folder; links count as nothing."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def _time(*command: str) -> float:
    """Seconds that a command took in the environment of somebody who has never run this project."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HYBRIDSEP_", "MAKE", "MFLAGS", "VIRTUAL_ENV"))
    }
    started = time.monotonic()
    status = subprocess.run(command, env=environment, check=False).returncode
    if status:
        raise HybridsepError(f"`{' '.join(command)}` ended with status {status}")
    return round(time.monotonic() - started, 1)


def main() -> None:
    """Rehearse in the folder that the command line names."""
    parser = argparse.ArgumentParser(description="time a fresh clone, its installation and its book")
    parser.add_argument("folder", type=Path, help="where the clone goes; missing or empty")
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--tests", action="store_true", help="end with make test")
    options = parser.parse_args()
    try:
        rehearse(repository_root(), options.folder, options.profile, options.tests)
    except HybridsepError as error:
        sys.exit(f"hybridsep: {error}")


if __name__ == "__main__":
    main()
