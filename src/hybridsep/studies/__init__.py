"""Studies: what takes longer than the book may. Each is run once by its own command, and its small tables are kept with the book."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd

from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import write_atomically
from hybridsep.core.provenance import provenance
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.pipeline.pipeline import Pipeline


class Study:
    """One study in the making: where its models come from and where its tables go.

    Args:
        name: of the study.
        pipeline: makes or finds the models.
        results: folder of all studies' results.

    Attributes:
        notes: what else provenance.json says.
    """

    def __init__(self, name: str, pipeline: Pipeline, results: Path):
        self.name, self.pipeline, self.folder = name, pipeline, results / name
        self.notes: dict[str, str] = {}
        self._started = time.time()

    def evaluation(self, split: str = "test", **changes: object) -> Evaluation:
        """The evaluation of the pipeline's profile with some of its settings changed; models stay the same."""
        return Evaluation(self.changed_pipeline(evaluation=changes), split)

    def changed_pipeline(self, **changes: dict[str, object]) -> Pipeline:
        """The same run with some settings of some blocks of its profile changed, block = {setting: value}."""
        profile = self.pipeline.profile
        blocks = {name: getattr(profile, name).model_copy(update=values) for name, values in changes.items()}
        return Pipeline(
            profile.model_copy(update=blocks),
            self.pipeline.root.parent,
            self.pipeline.data,
            records=self.pipeline.records,
        )

    def write(self, name: str, table: pd.DataFrame) -> None:
        """Keep a table as `name`.csv."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(
            self.folder / f"{name}.csv", table.to_csv(index=False, float_format="%.5g", na_rep="nan").encode()
        )

    def finish(self) -> None:
        """Write provenance.json: settings, hardware, versions and commit; the study is complete."""
        content = {
            "study": self.name,
            "minutes_this_time": round((time.time() - self._started) / 60, 1),
            **provenance(self.pipeline.device),
            **({"notes": self.notes} if self.notes else {}),
            "profile": self.pipeline.profile.model_dump(mode="json"),
        }
        write_atomically(self.folder / "provenance.json", json.dumps(content, indent=1).encode())


def run_study(name: str, pipeline: Pipeline, results: Path) -> Path:
    """Run a study, or what is left of it, and return the folder of its tables.

    Raises:
        HybridsepError: unknown study.
    """
    studies = _studies()
    if name not in studies:
        raise HybridsepError(f"unknown study '{name}': choose one of {', '.join(studies)}")
    study = Study(name, pipeline, results)
    studies[name](study)
    study.finish()
    return study.folder


def _studies() -> dict[str, Callable[[Study], None]]:
    """Every study by its name; the modules are imported when one is asked for, not with this package that they import."""
    from hybridsep.studies import comparison as c
    from hybridsep.studies.baselines import baselines
    from hybridsep.studies.counting import counting
    from hybridsep.studies.half_precision import half_precision
    from hybridsep.studies.improvements import improvements
    from hybridsep.studies.linearity import linearity
    from hybridsep.studies.out_of_domain import out_of_domain
    from hybridsep.studies.protocols import protocols
    from hybridsep.studies.refinement import refinement
    from hybridsep.studies.repeatability import repeatability
    from hybridsep.studies.settings import settings
    from hybridsep.studies.third_instrument import third_instrument
    from hybridsep.studies.windows import windows

    return {
        "two-by-two": c.two_by_two, "protocols": protocols, "settings": settings, "counting": counting, "particles": c.particles,
        "contributions": c.contributions, "precision": c.precision, "repeatability": repeatability, "baselines": baselines, "third-instrument": third_instrument, "windows": windows,
        "refinement": refinement, "linearity": linearity, "out-of-domain": out_of_domain, "half-precision": half_precision, "improvements": improvements,
    }  # fmt: skip
