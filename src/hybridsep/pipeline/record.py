"""The run of record: the trained models of one run in little room, kept with the project, and the way back into a run.

`<records>/<profile>/` holds a folder for each step that trained or counted something, under the step's own name, hash included: done.json,
history.csv where there is one, and the weights, floats in float16. Beside them lie profile.json, provenance.json, a model card and SHA256SUMS.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import check_sums, load_weights, read_sums, write_atomically, write_sums
from hybridsep.kernels.counting import csr

LARGEST_FILE, LARGEST_RECORD = 16_000_000, 40_000_000  # bytes
DONE, HISTORY = "done.json", "history.csv"
WEIGHTS = ("model.safetensors", "likelihood.safetensors")
PACKED = "packed_counts"


def records_root() -> Path | None:
    """Folder of all records: of the checkout that this file lies in, else of the installed package; None where there is neither."""
    here = Path(__file__).resolve().parents[1]
    return next(
        (folder for folder in (here.parents[1] / "book" / "record", here / "recorded") if folder.is_dir()), None
    )


RECORDS = records_root()


def write_record(steps: Sequence[Path], out: Path, files: Mapping[str, bytes]) -> None:
    """Write a record whole or not at all; one that is there already is replaced.

    Args:
        steps: folders of finished steps.
        out: folder of the record.
        files: name -> content of what else belongs to it.

    Raises:
        HybridsepError: a file or the record is too large, or cannot be written. What was there stays as it was.
    """
    fresh, former = (out.with_name(f"{out.name}.{state}") for state in ("new", "former"))
    if former.is_dir() and not out.is_dir():
        # An earlier call was killed between the two names.
        former.rename(out)
    contents = {**files, **{name: content for step in steps for name, content in _step_files(step)}}
    _check_sizes({name: len(content) for name, content in contents.items()})
    try:
        for folder in (fresh, former):
            shutil.rmtree(folder, ignore_errors=True)
        for name, content in contents.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(fresh / name, content)
        write_sums(fresh, contents)
        if out.is_dir():
            out.rename(former)
        fresh.rename(out)
    except OSError as error:
        if former.is_dir() and not out.is_dir():
            former.rename(out)
        raise HybridsepError(f"cannot write {out}: {error.strerror}") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(former, ignore_errors=True)


def restore_step(record: Path, folder: Path, inputs: Iterable[Path] = ()) -> None:
    """Put a step of a record where a run finds it done: weights in float32, counts as they were counted.

    Args:
        record: of a profile.
        folder: of the step; its name says which.
        inputs: folders of the recorded steps that it was made from.

    Raises:
        HybridsepError: the record is damaged.
    """
    source = record / folder.name
    try:
        names = [name for name in read_sums(record) if name.startswith(f"{folder.name}/")]
        check_sums(record, [*names, f"{folder.name}/{DONE}"])
        done = json.loads((source / DONE).read_text())
        weights = {name: unpacked(load_weights(source / name)) for name in WEIGHTS if (source / name).is_file()}
    except (ValueError, KeyError, OSError) as error:
        raise HybridsepError(
            f"record {record}: {error}; take a fresh copy of it, or train without it: --train, or make book TRAIN=1"
        ) from None
    folder.mkdir(parents=True, exist_ok=True)
    if (source / HISTORY).is_file():
        write_atomically(folder / HISTORY, (source / HISTORY).read_bytes())
    for name, tensors in weights.items():
        write_atomically(folder / name, save(tensors))
    done |= {"finished": time.time(), "recorded": True, "from_record": from_record(inputs, folder.parent)}
    write_atomically(folder / DONE, json.dumps(done, indent=1).encode())


def from_record(steps: Iterable[Path], run: Path) -> list[str]:
    """What done.json says of the recorded steps that a step depends on: their folders, as seen from the run's."""
    return sorted({Path(os.path.relpath(step, run)).as_posix() for step in steps})


def provenance_of(records: Mapping[str, dict]) -> dict:
    """On what, with what and in how many minutes steps were made.

    Args:
        records: name of a step -> its done.json.
    """
    distinct = {
        key: list(dict.fromkeys(r[key] for r in records.values() if key in r))
        for key in ("hardware", "commit", "python")
    }
    packages = {name: version for r in records.values() for name, version in r.get("packages", {}).items()}
    made = {name: round(r["seconds"] / 60, 2) for name, r in records.items()}
    return {**distinct, "packages": packages, "minutes": made, "minutes_together": round(sum(made.values()), 1)}


# --- tensors ---------------------------------------------------------------------------------------------------------------


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
    starts, pairs = (part.numpy().astype(np.int64) for part in csr(keys, codes))
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


# --- inside ----------------------------------------------------------------------------------------------------------------


def _step_files(step: Path) -> Iterable[tuple[str, bytes]]:
    done = json.loads((step / DONE).read_text())
    yield (
        f"{step.name}/{DONE}",
        json.dumps({k: v for k, v in done.items() if k not in ("recorded", "from_record")}, indent=1).encode(),
    )
    if (step / HISTORY).is_file():
        yield f"{step.name}/{HISTORY}", (step / HISTORY).read_bytes()
    for name in WEIGHTS:
        if (step / name).is_file():
            yield f"{step.name}/{name}", save(packed(load_weights(step / name)))


def _check_sizes(sizes: Mapping[str, int]) -> None:
    name = max(sizes, key=lambda name: sizes[name])
    if sizes[name] > LARGEST_FILE:
        raise HybridsepError(
            f"{name} would have {sizes[name] / 1e6:.1f} MB; no file of a record may have more than {LARGEST_FILE / 1e6:g} MB"
        )
    if sum(sizes.values()) > LARGEST_RECORD:
        raise HybridsepError(
            f"the record would have {sum(sizes.values()) / 1e6:.1f} MB; it may have {LARGEST_RECORD / 1e6:g} MB"
        )
