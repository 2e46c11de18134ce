"""Records: where the trained models that come with the project lie, and how their weights are kept in little room."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

PACKED = "packed_counts"


def records_root() -> Path | None:
    """Folder of all records: of the checkout that this file lies in, else of the installed package; None where there is neither."""
    here = Path(__file__).resolve().parents[1]
    return next(
        (folder for folder in (here.parents[1] / "book" / "record", here / "recorded") if folder.is_dir()), None
    )


RECORDS = records_root()


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Floats in half their room, counted triples as compressed sparse rows; fitted numbers, single ones, keep every bit."""
    small = {
        name: halved(tensor) if tensor.ndim else tensor
        for name, tensor in tensors.items()
        if name not in ("keys", "counts")
    }
    return small | (
        {PACKED: pack_counts(tensors["keys"], tensors["counts"], len(tensors["codebook"]))} if "keys" in tensors else {}
    )


def unpacked(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What `packed` was given, its floats at float16's precision."""
    whole = {
        name: tensor.float() if tensor.dtype == torch.float16 else tensor
        for name, tensor in tensors.items()
        if name != PACKED
    }
    if PACKED in tensors:
        whole |= dict(zip(("keys", "counts"), unpack_counts(tensors[PACKED]), strict=True))
    return whole


def halved(tensor: Tensor) -> Tensor:
    """In float16, unless it holds no floats or a number beyond that range."""
    half = tensor.half() if tensor.is_floating_point() else tensor
    return half.contiguous() if half.isfinite().all() else tensor


def pack_counts(keys: Tensor, counts: Tensor, codes: int) -> Tensor:
    """Counted triples as an archive of numpy's: rows by mixture code, steps from pair to pair within a row, and counts; uint8 [bytes].

    Each array has the smallest unsigned type that holds it and is cut into planes of bytes, of which the upper ones are nearly all zero.

    Args:
        keys: sorted (m·K + i)·K + j, int64 [nnz].
        counts: int32 [nnz].
        codes: K.
    """
    starts = np.searchsorted(keys.numpy(), np.arange(codes + 1) * codes**2)
    pairs = keys.numpy() % codes**2
    steps = np.diff(pairs, prepend=0)
    first = starts[:-1][starts[:-1] < starts[1:]]
    steps[first] = pairs[first]
    archive = io.BytesIO()
    np.savez_compressed(archive, starts=_planes(starts), steps=_planes(steps), counts=_planes(counts.numpy()))
    return torch.frombuffer(bytearray(archive.getvalue()), dtype=torch.uint8)


def unpack_counts(content: Tensor) -> tuple[Tensor, Tensor]:
    """Keys int64 [nnz] and counts int32 [nnz] as `pack_counts` was given them."""
    with np.load(io.BytesIO(content.numpy().tobytes()), allow_pickle=False) as archive:
        starts, steps, counts = (_from_planes(archive[name]) for name in ("starts", "steps", "counts"))
    lengths, codes = np.diff(starts), len(starts) - 1
    sums = np.concatenate([[0], steps.cumsum()])
    pairs = sums[1:] - np.repeat(sums[starts[:-1]], lengths)
    keys = np.repeat(np.arange(codes, dtype=np.int64), lengths) * codes**2 + pairs
    return torch.from_numpy(keys), torch.from_numpy(counts.astype(np.int32))


def _planes(values: np.ndarray) -> np.ndarray:
    """uint8 [bytes of the smallest unsigned type, n], little end first."""
    small = np.min_scalar_type(int(values.max(initial=0))).newbyteorder("<")
    return np.ascontiguousarray(values.astype(small).view(np.uint8).reshape(len(values), small.itemsize).T)


def _from_planes(planes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(planes.T).view(f"<u{len(planes)}").reshape(-1).astype(np.int64)
