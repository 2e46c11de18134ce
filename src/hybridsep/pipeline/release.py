"""What of a run goes out with the project: its record and the model card."""

import json
from collections.abc import Callable
from pathlib import Path

from hybridsep.core.errors import HybridsepError
from hybridsep.pipeline.pipeline import Pipeline
from hybridsep.pipeline.record import provenance_of, write_record


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
