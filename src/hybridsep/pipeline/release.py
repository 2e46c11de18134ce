"""What of a run goes out with the project: its record, and the model that nobody has to name."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import SUMS
from hybridsep.core.profiles import Profile
from hybridsep.core.records import RECORDS
from hybridsep.pipeline.pipeline import Pipeline
from hybridsep.pipeline.record import provenance_of, write_record

PROFILE, METHOD = "cpu", "hybrid"


def record_run(pipeline: Pipeline, out: Path, card: Callable[[Pipeline, dict], str]) -> Path:
    """Write the record of a finished run and return its folder.

    Args:
        out: folder of all records.
        card: makes the model card of the run and the provenance of its models.

    Raises:
        HybridsepError: a model is not trained or nothing evaluated yet, or the record is too large.
    """
    steps, name = pipeline.model_steps(), pipeline.profile.name
    missing = [step.label for step in steps if not step.done]
    if not (pipeline.root / "evaluation.csv").is_file():
        missing.append("evaluation.csv")
    if missing:
        raise HybridsepError(f"{pipeline.root} has no {missing[0]} yet: hybridsep evaluate --profile {name} makes it")
    provenance = {"profile": name, **provenance_of({step.key: step.record for step in steps})}
    files = {
        "profile.json": pipeline.profile.model_dump_json(indent=1),
        "provenance.json": json.dumps(provenance, indent=1),
        "README.md": card(pipeline, provenance),
    }
    folders = {step.key: step.folder for step in steps}
    write_record(folders, out / name, {name: text.encode() for name, text in files.items()})
    return out / name


def shipped_model(records: Path | None = RECORDS, profile: str = PROFILE, method: str = METHOD) -> Path:
    """Folder of the trained method that comes with the project, for `Separator.load`; made of the record when first asked for.

    Args:
        records: folder of all records.

    Raises:
        HybridsepError: this copy has no record, or a damaged one.
    """
    record = records and records / profile
    if not record or not (record / SUMS).is_file():
        train = f"train one with 'hybridsep train {method}' and name it with --model runs/{profile}/{method}"
        raise HybridsepError(f"no trained model came with this copy: {train}")
    folder = cache_root() / hashlib.sha256((record / SUMS).read_bytes()).hexdigest()[:16] / method
    if not (folder / SUMS).is_file():
        settings = Profile.model_validate_json((record / "profile.json").read_text())
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
            Pipeline(settings, scratch, records=records).export(method)
            try:
                os.replace(Path(scratch) / profile / method, folder)
            except OSError:
                # Another process may have been faster.
                if not (folder / SUMS).is_file():
                    raise
    return folder


def cache_root() -> Path:
    """Where this user's caches are kept: $XDG_CACHE_HOME/hybridsep, or ~/.cache/hybridsep."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hybridsep"
