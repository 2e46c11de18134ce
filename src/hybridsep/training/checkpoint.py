"""Checkpoints on disk: written whole or not at all, checked when read, never unpickled."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor
from tqdm import tqdm

from hybridsep.core.files import write_atomically

NEWEST, PREVIOUS = "checkpoint.safetensors", "checkpoint.previous.safetensors"


class Checkpoint(NamedTuple):
    """All that a training needs to go on: weights, buffers and moments by name, and what JSON keeps to the bit, the next step among it."""

    tensors: dict[str, Tensor]
    state: dict


def save_checkpoint(checkpoint: Checkpoint, folder: Path) -> None:
    """Write the newest checkpoint and keep the one before; HybridsepError: the disk is full or the folder not writable.

    The old files are touched only once the new one is on the disk, so a full disk or a kill at any moment leaves a good one.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in checkpoint.tensors.items()}
    state = json.dumps(checkpoint.state)
    content = save(tensors, metadata={"state": state, "sha256": _digest(tensors, state)})
    write_atomically(folder / NEWEST, content, former=folder / PREVIOUS)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest intact checkpoint; a damaged one is said, and removed so that it never takes the good one's place."""
    for path in (folder / NEWEST, folder / PREVIOUS):
        if path.exists():
            if (found := _read(path.read_bytes())) is not None:
                return found
            tqdm.write(f"{path} is damaged; going on from the one before")
            path.unlink()
    return None


def clear_checkpoints(folder: Path) -> None:
    """Remove what only a running training needs."""
    for path in folder.glob("checkpoint*"):
        path.unlink()


def _read(content: bytes) -> Checkpoint | None:
    """Return a checkpoint, None where the format or the digest is wrong."""
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
