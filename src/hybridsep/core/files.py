"""Files: written whole or not at all, weights as safetensors and never unpickled, SHA-256 sums as the program sha256sum keeps them."""

import hashlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hybridsep.core.errors import HybridsepError

SUMS = "SHA256SUMS"


def write_atomically(path: Path, content: bytes, former: Path | None = None) -> None:
    """Write beside `path`, flush, rename: a reader sees the old file or the new one; `former` keeps the old. HybridsepError: full or read-only."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if former and path.exists():
            os.replace(path, former)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise HybridsepError(f"cannot write {path}: {error.strerror}") from None


def load_weights(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file; HybridsepError: missing, truncated or not safetensors."""
    if not path.is_file():
        raise HybridsepError(f"missing weights {path}")
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise HybridsepError(f"{path} is no intact safetensors file: {error}") from None


def write_sums(folder: Path, contents: Mapping[str, bytes]) -> None:
    """Write SHA256SUMS of files whose contents are given by their names inside `folder`."""
    lines = "".join(f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(contents.items()))
    write_atomically(folder / SUMS, lines.encode())


def read_sums(folder: Path) -> dict[str, str]:
    """Name inside `folder` -> SHA-256 in hexadecimal."""
    lines = (line.split(maxsplit=1) for line in (folder / SUMS).read_text(encoding="utf-8").splitlines())
    return {line[1]: line[0] for line in lines if len(line) == 2}


def check_sums(folder: Path, names: Iterable[str]) -> None:
    """Compare files with SHA256SUMS; HybridsepError: one is missing, or not the one that was summed."""
    known = read_sums(folder)
    for name in names:
        if not (folder / name).is_file():
            raise HybridsepError(f"{name} is missing")
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != known.get(name):
            raise HybridsepError(f"{name} is damaged or of another model: its SHA-256 is not the one in {SUMS}")
