"""Checkpoints on disk: written whole or not at all, checked when read, never unpickled."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from tqdm import tqdm

from hybridsep.core.files import temporary_name, written

NEWEST, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"


@dataclass(frozen=True)
class Checkpoint:
    """All that a training needs to go on as if it had never stopped.

    Attributes:
        tensors: weights, buffers and the optimisers' moments by name.
        state: numbers and lists that JSON keeps to the bit, the next step among them.
    """

    tensors: dict[str, Tensor]
    state: dict


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the newest checkpoint; the one before is kept.

    The old files are touched only once the new one is on the disk, so a full disk or a kill at any moment leaves a good one.

    Raises:
        HybridsepError: the disk is full or the folder not writable.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    state = json.dumps(checkpoint.state)
    content = save(tensors, metadata={"state": state, "sha256": _digest(tensors, state)})
    with written(folder / NEWEST, content) as temporary:
        if (folder / NEWEST).exists():
            os.replace(folder / NEWEST, folder / PREVIOUS)
        os.replace(temporary, folder / NEWEST)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest intact checkpoint; a damaged one is said, and removed so that it never takes the good one's place."""
    for name in (NEWEST, PREVIOUS):
        path = folder / name
        if not path.exists():
            continue
        if (found := _read(path)) is not None:
            return found
        tqdm.write(f"{path} is damaged; going on from the one before")
        path.unlink()
    return None


def clear_checkpoints(folder: Path) -> None:
    """Remove what only a running training needs."""
    for name in (NEWEST, PREVIOUS, temporary_name(folder / NEWEST).name):
        (folder / name).unlink(missing_ok=True)


def _read(path: Path) -> Checkpoint | None:
    """None where the format or the digest is wrong."""
    content = path.read_bytes()
    try:
        tensors = load(content)
        metadata = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])["__metadata__"]
        intact = metadata["sha256"] == _digest(tensors, metadata["state"])
        return Checkpoint(tensors, json.loads(metadata["state"])) if intact else None
    except (SafetensorError, ValueError, KeyError, TypeError):
        return None


def _digest(tensors: dict[str, Tensor], state: str) -> str:
    """SHA-256 over names, types, shapes and values, in hexadecimal: safetensors itself would not notice a flipped bit."""
    digest = hashlib.sha256(state.encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
