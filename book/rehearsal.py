"""Time a newcomer's way to the page: `python book/rehearsal.py FOLDER` clones what is committed, installs it, makes the book.

What it took goes to book/results/rehearsal.json; nothing is written where a step fails.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path

from hybridsep.core.device import default_device
from hybridsep.core.provenance import commit, hardware

ROOT = Path(__file__).resolve().parents[1]


def rehearse(repository: Path, folder: Path) -> dict:
    """Return hardware, date, commit, and the seconds, bytes and chapters of a clone of `repository` in `folder`."""
    # Without --no-local git would only link the objects of a repository on the same disk.
    seconds = {"clone": timed("git", "clone", "--quiet", "--no-local", str(repository), str(folder))}
    sizes = {"repository": size(folder)}
    seconds["install"] = timed("make", "-C", str(folder), ".venv/.installed")
    seconds["book"] = timed("make", "-C", str(folder), "book")
    sizes |= {"environment": size(folder / ".venv"), "run": size(folder / "runs")}
    status = json.loads((folder / "_build" / "executed" / "status.json").read_text(encoding="utf-8"))
    made = {"hardware": hardware(default_device()), "commit": commit(folder), "seconds": seconds, "bytes": sizes}
    chapters = {entry["chapter"]: entry["seconds"] for entry in status}
    return {"date": datetime.now(timezone.utc).date().isoformat(), **made, "chapters": chapters}


def timed(*command: str) -> float:
    """Return the seconds that a command took in the environment of somebody who has never run this project."""
    own = ("HYBRIDSEP_", "MAKE", "MFLAGS", "VIRTUAL_ENV", "PYTHONPATH")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(own)}
    started = time.monotonic()
    subprocess.run(command, env=environment, check=True)
    return round(time.monotonic() - started, 1)


def size(folder: Path) -> int:
    """Return the bytes of all files below a folder; links count as nothing."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


if __name__ == "__main__":
    found = rehearse(ROOT, Path(sys.argv[1]))
    (ROOT / "book" / "results" / "rehearsal.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
