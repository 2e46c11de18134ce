"""SHA-256 of files, kept beside them in the form of the program sha256sum."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

from hybridsep.checkpoint import write_atomically
from hybridsep.errors import HybridsepError

SUMS = "SHA256SUMS"


def write_sums(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write SHA256SUMS of files whose contents are given by their names inside `folder`."""
    lines = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(contents.items()))
    write_atomically(folder / SUMS, lines.encode())


def read_sums(folder: Path) -> dict[str, str]:
    """Name inside `folder` -> SHA-256 in hexadecimal."""
    lines = (line.split(maxsplit=1) for line in (folder / SUMS).read_text(encoding="utf-8").splitlines())
    return {line[1]: line[0] for line in lines if len(line) == 2}


def check_sums(folder: Path, names: Iterable[str]) -> None:
    """Compare files with SHA256SUMS.

    Raises:
        HybridsepError: a file is missing, or not the one that was summed.
    """
    known = read_sums(folder)
    for name in names:
        if not (folder / name).is_file():
            raise HybridsepError(f"{name} is missing")
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != known.get(name):
            raise HybridsepError(f"{name} is damaged or of another model: its SHA-256 is not the one in {SUMS}")
