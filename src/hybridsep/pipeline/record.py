"""The run of record: the trained models of one run in little room, kept with the project, and the way back into a run.

`<records>/<profile>/` holds a folder for each step that trained or counted something, under the step's key: done.json, history.csv where
there is one, and packed weights. Beside them lie profile.json, provenance.json, a model card and SHA256SUMS.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import save

from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import check_sums, load_weights, read_sums, write_atomically, write_sums
from hybridsep.core.records import packed, unpacked

if TYPE_CHECKING:
    from hybridsep.pipeline.pipeline import Pipeline

LARGEST_FILE, LARGEST_RECORD = 16_000_000, 60_000_000  # bytes
DONE, HISTORY = "done.json", "history.csv"
WEIGHTS = ("model.safetensors", "likelihood.safetensors")


def record_run(pipeline: "Pipeline", out: Path, card: Callable[["Pipeline", dict], str]) -> Path:
    """Write the record of a finished run into the folder of all records and return its own.

    `card` makes the model card of the run and the provenance of its models. HybridsepError: a model is not trained or nothing evaluated yet,
    or the record is too large.
    """
    steps, name = pipeline.model_steps(), pipeline.profile.name
    missing = [step.label for step in steps if not step.done]
    missing += ["evaluation.csv"] * (not (pipeline.root / "evaluation.csv").is_file())
    if missing:
        raise HybridsepError(f"{pipeline.root} has no {missing[0]} yet: hybridsep evaluate --profile {name} makes it")
    records = {step.key: step.record for step in steps}
    known = ("hardware", "commit", "python")
    distinct = {key: list(dict.fromkeys(r[key] for r in records.values() if key in r)) for key in known}
    packages = {package: version for r in records.values() for package, version in r.get("packages", {}).items()}
    made = {key: round(r["seconds"] / 60, 2) for key, r in records.items()}
    minutes = {"minutes": made, "minutes_together": round(sum(made.values()), 1)}
    provenance = {"profile": name, **distinct, "packages": packages, **minutes}
    files = {
        "profile.json": pipeline.profile.model_dump_json(indent=1),
        "provenance.json": json.dumps(provenance, indent=1),
        "README.md": card(pipeline, provenance),
    }
    folders = {step.key: step.folder for step in steps}
    write_record(folders, out / name, {name: text.encode() for name, text in files.items()})
    return out / name


def write_record(steps: Mapping[str, Path], out: Path, files: Mapping[str, bytes]) -> None:
    """Write a record of steps, key -> folder, and files, name -> content; one that is there is replaced once the new one is complete.

    HybridsepError: a file or the record is too large, or cannot be written; what was there stays as it was.
    """
    contents = dict(files)
    for key, folder in steps.items():
        contents |= {f"{key}/{name}": content for name, content in _step_files(folder).items()}
    largest, total = max(contents, key=lambda name: len(contents[name])), sum(map(len, contents.values()))
    if (size := len(contents[largest])) > LARGEST_FILE:
        limit = f"no file of a record may have more than {LARGEST_FILE / 1e6:g} MB"
        raise HybridsepError(f"{largest} would have {size / 1e6:.1f} MB; {limit}")
    if total > LARGEST_RECORD:
        raise HybridsepError(f"the record would have {total / 1e6:.1f} MB; it may have {LARGEST_RECORD / 1e6:g} MB")
    fresh = out.with_name(f"{out.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        for name, content in contents.items():
            (fresh / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(fresh / name, content)
        write_sums(fresh, contents)
        shutil.rmtree(out, ignore_errors=True)
        fresh.rename(out)
    except OSError as error:
        raise HybridsepError(f"cannot write {out}: {error.strerror}") from None
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def restore_step(record: Path, key: str, folder: Path) -> None:
    """Put a step of a profile's record into its folder of a run: weights in float32, counts to the last; HybridsepError: it is damaged."""
    source = record / key
    try:
        names = [name for name in read_sums(record) if name.startswith(f"{key}/")]
        check_sums(record, [*names, f"{key}/{DONE}"])
        done = json.loads((source / DONE).read_text())
        weights = {name: unpacked(load_weights(source / name)) for name in WEIGHTS if (source / name).is_file()}
    except (ValueError, KeyError, OSError) as error:
        remedy = "take a fresh copy of it, or train without it: --train, or make book TRAIN=1"
        raise HybridsepError(f"record {record}: {error}; {remedy}") from None
    folder.mkdir(parents=True, exist_ok=True)
    if (source / HISTORY).is_file():
        write_atomically(folder / HISTORY, (source / HISTORY).read_bytes())
    for name, tensors in weights.items():
        write_atomically(folder / name, save(tensors))
    write_atomically(folder / DONE, json.dumps(done | {"finished": time.time(), "recorded": True}, indent=1).encode())


def _step_files(step: Path) -> dict[str, bytes]:
    """Return what a record holds of a finished step: name inside the step's folder -> content."""
    done = json.loads((step / DONE).read_text())
    files = {DONE: json.dumps({key: value for key, value in done.items() if key != "recorded"}, indent=1).encode()}
    if (step / HISTORY).is_file():
        files[HISTORY] = (step / HISTORY).read_bytes()
    weights = (name for name in WEIGHTS if (step / name).is_file())
    return files | {name: save(packed(load_weights(step / name))) for name in weights}
