"""The run of record: the trained models of one run in little room, kept with the project, and the way back into a run.

`<records>/<profile>/` holds a folder for each step that trained or counted something, under the step's own name, hash included: done.json,
history.csv where there is one, and the weights, floats in float16. Beside them lie profile.json, provenance.json, a model card and SHA256SUMS.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from safetensors.torch import save

from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import check_sums, load_weights, read_sums, write_atomically, write_sums
from hybridsep.core.records import packed, unpacked

LARGEST_FILE, LARGEST_RECORD = 16_000_000, 40_000_000  # bytes
DONE, HISTORY = "done.json", "history.csv"
WEIGHTS = ("model.safetensors", "likelihood.safetensors")


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
