"""What every study shares: its command line, the models and songs it runs on, and where its tables go.

    python book/studies/NAME.py --profile P [--data DIR] [--runs DIR] [--out book/results]

writes the tables of book/results/NAME/. Whatever takes long is a cached step of the pipeline, so that a killed study
goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import load_weights, write_atomically
from hybridsep.core.process import settle_process
from hybridsep.core.profiles import load_profile
from hybridsep.core.provenance import provenance
from hybridsep.evaluation.chunks import Chunks
from hybridsep.evaluation.comparisons import SOURCES_MEAN, interval_columns
from hybridsep.evaluation.metrics import sdr
from hybridsep.evaluation.rows import read_rows, write_rows
from hybridsep.evaluation.statistics import holm, permutation_p
from hybridsep.pipeline.evaluate import Evaluation
from hybridsep.pipeline.pipeline import Pipeline

RESULTS = Path(__file__).parents[1] / "results"


class Study:
    """One study in the making.

    Args:
        name: of the folder of its tables.
        pipeline: makes or finds the models.
        results: folder of all studies' results.

    Attributes:
        notes: what else provenance.json says.
    """

    def __init__(self, name: str, pipeline: Pipeline, results: Path):
        self.name, self.pipeline, self.folder = name, pipeline, results / name
        self.notes: dict[str, str] = {}
        self._started = time.time()

    def evaluation(self, split: str = "test", chunks: int | None = None, **blocks: dict[str, object]) -> Evaluation:
        """Return the evaluation of so many chunks, with settings changed as in `changed`."""
        counted = {"evaluation": {"chunks": chunks}} if chunks else {}
        return Evaluation(self.changed(**counted, **blocks), split)

    def changed(self, **blocks: dict[str, object]) -> Pipeline:
        """Return the same run with some settings of its profile changed, block = {setting: value}."""
        run, profile = self.pipeline, self.pipeline.profile
        changed = {name: getattr(profile, name).model_copy(update=values) for name, values in blocks.items()}
        return Pipeline(profile.model_copy(update=changed), run.root.parent, run.data, records=run.records)

    def write(self, name: str, table: pd.DataFrame) -> None:
        """Keep a table as `name`.csv."""
        self.folder.mkdir(parents=True, exist_ok=True)
        content = table.to_csv(index=False, float_format="%.5g", na_rep="nan")
        write_atomically(self.folder / f"{name}.csv", content.encode())

    def finish(self) -> None:
        """Write provenance.json: settings, hardware, versions, commit. A study without it is not complete."""
        content = {
            "study": self.name,
            "minutes_this_time": round((time.time() - self._started) / 60, 1),
            **provenance(self.pipeline.device),
            **({"notes": self.notes} if self.notes else {}),
            "profile": self.pipeline.profile.model_dump(mode="json"),
        }
        write_atomically(self.folder / "provenance.json", json.dumps(content, indent=1).encode())


def main(run: Callable[..., None], **options: str) -> None:
    """Run a study from the command line; bad input ends in one line and exit status 1.

    Args:
        run: the study, called as run(study, **values of `options`).
        options: further options of this study, name = help.
    """
    parser = argparse.ArgumentParser(description=run.__doc__)
    parser.add_argument("--profile", default="cpu", help="name of a profile, or a .yml file")
    parser.add_argument("--data", type=Path, help="songs in Slakh's layout; synthesised without it")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of all runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of all studies' tables")
    for name, text in options.items():
        parser.add_argument(f"--{name}", help=text)
    given = parser.parse_args()
    settle_process()
    try:
        pipeline = Pipeline(load_profile(given.profile), given.runs, given.data)
        study = Study(run.__name__.replace("_", "-"), pipeline, given.out)
        run(study, **{name: getattr(given, name) for name in options})
        study.finish()
    except (HybridsepError, OSError) as error:
        sys.exit(f"{parser.prog}: {error}")
    print(f"tables in {study.folder}")


def cached_rows(pipeline: Pipeline, name: str, settings: object, make: Callable[[], pd.DataFrame]) -> pd.DataFrame:
    """Return a table that is made once under its settings, as a step of the pipeline."""
    step = pipeline.cache.step(name, settings)

    def write() -> dict:
        table = make()
        write_rows(table, step.folder / "rows.csv")
        return {"rows": len(table)}

    pipeline.cache.make(step, write)
    return read_rows(step.folder / "rows.csv")


def cached_tensors(
    pipeline: Pipeline, name: str, settings: object, make: Callable[[], tuple[dict[str, Tensor], dict]]
) -> tuple[dict[str, Tensor], dict]:
    """Return tensors that are made once under their settings, and the step's record with the figures of `make`."""
    step = pipeline.cache.step(name, settings)

    def write() -> dict:
        tensors, figures = make()
        pipeline.cache.save(step, "tensors", tensors)
        return figures

    pipeline.cache.make(step, write)
    return load_weights(step.folder / "tensors.safetensors"), step.record


def sdr_rows(chunks: Chunks, stems: Tensor) -> pd.DataFrame:
    """Return the SDR in dB of stems [P, B, T]: track, source, sdr."""
    values = sdr(stems.numpy(), chunks.sources[..., : stems.shape[-1]].numpy(), chunks.sample_rate)
    table = pd.DataFrame(values.T, index=pd.Index(chunks.tracks, name="track"), columns=chunks.names)
    return table.reset_index().melt("track", var_name="source", value_name="sdr")


def sources_of(table: pd.DataFrame) -> dict[str, dict[str, str]]:
    """Return what selects the mean of the sources and each source of a table of scores, by its name in the results."""
    return {SOURCES_MEAN: {}} | {source: {"source": source} for source in dict.fromkeys(table.source) if source}


def tested(labels: list[dict[str, object]], differences: list[np.ndarray]) -> pd.DataFrame:
    """Return labels with mean, interval and p of each row of paired differences; p_holm is corrected for all rows."""
    rows = [
        {**label, **interval_columns(values), "p": permutation_p(np.asarray(values))}
        for label, values in zip(labels, differences, strict=True)
    ]
    table = pd.DataFrame(rows)
    return table.assign(p_holm=holm(table.p.to_numpy()))
