"""Where the trained models that come with the project lie, and how their tensors are kept in little room."""

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

COUNTED = ("keys", "counts")
PACKED = "packed_counts"


def records_root() -> Path | None:
    """Return the folder of all records: of the checkout that this file lies in, else of the installed package; None without either."""
    here = Path(__file__).resolve().parents[1]
    places = (here.parents[1] / "book" / "record", here / "recorded")
    return next((folder for folder in places if folder.is_dir()), None)


RECORDS = records_root()


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Pack a model's tensors: floats in float16, single numbers to the bit, counted triples as one compressed archive, uint8 [bytes]."""
    small = {name: halved(tensor) if tensor.ndim else tensor for name, tensor in tensors.items() if name not in COUNTED}
    if "keys" in tensors:
        archive = io.BytesIO()
        np.savez_compressed(archive, keys=tensors["keys"].numpy(), counts=tensors["counts"].numpy())
        small[PACKED] = torch.frombuffer(bytearray(archive.getvalue()), dtype=torch.uint8)
    return small


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return what `packed` was given, its floats at float16's precision."""
    whole = {name: t.float() if t.dtype == torch.float16 else t for name, t in tensors.items() if name != PACKED}
    if PACKED in tensors:
        with np.load(io.BytesIO(tensors[PACKED].numpy().tobytes()), allow_pickle=False) as archive:
            whole |= {name: torch.from_numpy(archive[name]) for name in COUNTED}
    return whole


def halved(tensor: Tensor) -> Tensor:
    """Return a tensor in float16, unless it holds no floats or a number beyond that range."""
    half = tensor.half() if tensor.is_floating_point() else tensor
    return half.contiguous() if half.isfinite().all() else tensor
