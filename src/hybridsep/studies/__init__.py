"""Studies: what takes longer than the book may. Each is run once by its own command, and its small tables are kept with the book."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from hybridsep.errors import HybridsepError
from hybridsep.evaluation import Evaluation
from hybridsep.pipeline import Pipeline
from hybridsep.provenance import provenance
from hybridsep.training import write_atomically


class Study:
    """One study in the making: where its models come from and where its tables go.

    Args:
        name: of the study.
        pipeline: makes or finds the models.
        results: folder of all studies' results.
    """

    def __init__(self, name: str, pipeline: Pipeline, results: Path):
        self.name, self.pipeline, self.folder = name, pipeline, results / name
        self._started = time.time()

    def evaluation(self, **changes: object) -> Evaluation:
        """The evaluation of the pipeline's profile with some of its settings changed; models stay the same."""
        profile = self.pipeline.profile
        changed = profile.model_copy(update={"evaluation": profile.evaluation.model_copy(update=changes)})
        pipeline = Pipeline(changed, self.pipeline.root.parent, self.pipeline.data)
        return Evaluation(pipeline)

    def write(self, name: str, table: pd.DataFrame) -> None:
        """Keep a table as `name`.csv."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / f"{name}.csv", table.to_csv(index=False, float_format="%.5g", na_rep="nan").encode())

    def finish(self) -> None:
        """Write provenance.json: settings, hardware, versions and commit; the study is complete."""
        content = {
            "study": self.name,
            "minutes_this_time": round((time.time() - self._started) / 60, 1),
            **provenance(self.pipeline.device),
            "profile": self.pipeline.profile.model_dump(mode="json"),
        }
        write_atomically(self.folder / "provenance.json", json.dumps(content, indent=1).encode())


def run_study(name: str, pipeline: Pipeline, results: Path) -> Path:
    """Run a study, or what is left of it, and return the folder of its tables.

    Raises:
        HybridsepError: unknown study.
    """
    from hybridsep.studies import baselines
    from hybridsep.studies import comparison as c

    studies: dict[str, Callable[[Study], None]] = {
        "two-by-two": c.two_by_two, "particles": c.particles, "contributions": c.contributions, "precision": c.precision,
        "baselines": baselines.baselines,
    }  # fmt: skip
    if name not in studies:
        raise HybridsepError(f"unknown study '{name}': choose one of {', '.join(studies)}")
    study = Study(name, pipeline, results)
    studies[name](study)
    study.finish()
    return study.folder
