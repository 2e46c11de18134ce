"""What the script found, as tables of the book."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from hybridsep.bench.report import read_json
from hybridsep.evaluation.chunks import read_rows

KERNELS = {
    "name": "kernel", "ours_seconds": "time (µs)", "device_seconds": "busy (µs)", "floor_seconds": "floor (µs)", "times_floor": "times the floor",
    "device_times_floor": "busy, times the floor", "ratio_to_torch": "torch body, times as long", "ratio": "original, times as long",
}  # fmt: skip
STEPS = {
    "profile": "profile", "windows": "windows", "particles": "N", "step_milliseconds": "step (ms)", "share_of_floor": "share of the weights' floor",
    "share_of_floor_with_cache": "share with the cache", "weights_dominate": "weights dominate", "goal": "goal", "goal_met": "met",
}  # fmt: skip
AUDIO = {
    "profile": "profile", "windows": "windows", "particles": "N", "windows_at_once": "at once", "ours_seconds": "time (s)",
    "times_real_time": "times real time", "memory_peak_gib": "memory (GiB)", "goal": "goal", "goal_met": "met",
}  # fmt: skip
TRAINING = {
    "model": "model", "steps": "steps", "minutes": "minutes", "steps_per_second": "steps per second", "loss": "loss",
    "memory_peak_gib": "memory (GiB)", "left": "left",
}  # fmt: skip
RESUMED = {
    "model": "training", "stops": "stops", "bit_equal": "equal to the bit", "stopped_differs": "largest difference", "whole_differs": "of two whole ones",
    "not_deterministic": "not deterministic", "passed": "passed",
}  # fmt: skip
MICROSECONDS = ("ours_seconds", "device_seconds", "floor_seconds")


@dataclass(frozen=True)
class GpuTable:
    """A table, and on what it was measured.

    Attributes:
        title: what it shows.
        frame: ready for `report.figures.results_table`.
        measured: the device, the commits, and whether its sizes say anything, in one line.
        provenance: of the last call that added to it, plain JSON values.
    """

    title: str
    frame: pd.DataFrame
    measured: str
    provenance: dict


def gpu_tables(folder: Path | str) -> list[GpuTable]:
    """Tables of what `python -m hybridsep.bench.gpu` left in a folder, such as book/results/gpu; none where it never ran.

    Raises:
        HybridsepError: a file there is damaged.
    """
    folder, tables = Path(folder), []
    for stage, make in _STAGES.items():
        if (folder / f"{stage}.json").is_file():
            result = read_json(folder / f"{stage}.json")
            rows = pd.DataFrame([row for row in result["rows"] if "error" not in row])
            tables += [_table(title, frame, result) for title, frame in make(rows, folder) if len(frame)]
    return tables


def _table(title: str, frame: pd.DataFrame, result: dict) -> GpuTable:
    made, rows = result["provenance"], result["rows"]
    commits = " and ".join(sorted({row["commit"] for row in rows}))
    quick = "; sizes that say nothing, to see that it runs" if made["quick"] else ""
    measured = f"{made['hardware']}, torch {made['packages']['torch']}, commit {commits}{quick}"
    return GpuTable(title, frame.dropna(axis=1, how="all").reset_index(drop=True), measured, made)


def _verified(rows: pd.DataFrame, folder: Path) -> list[tuple[str, pd.DataFrame]]:
    groups = rows.groupby(["kernel", "body"], sort=False)
    frame = groups.agg(
        codes=("codes", lambda codes: ", ".join(str(k) for k in sorted(set(codes)))), cases=("cases", "sum"), compared=("compared", "sum"),
        largest_error=("largest_error", "max"), tolerance=("tolerance", "max"), passed=("passed", "all"),
    )  # fmt: skip
    return [
        (
            "Kernels against their definitions in float64",
            frame.reset_index().rename(columns={"largest_error": "largest error", "codes": "K"}),
        )
    ]


def _kernels(rows: pd.DataFrame, folder: Path) -> list[tuple[str, pd.DataFrame]]:
    scaled = rows.assign(**{name: 1e6 * rows[name].astype(float) for name in MICROSECONDS if name in rows})
    return [("Kernels at the sizes of a real run", _chosen(scaled, KERNELS))]


def _decoded(rows: pd.DataFrame, folder: Path) -> list[tuple[str, pd.DataFrame]]:
    steps = rows.name.str.startswith("step/")
    return [
        ("A step of the search", _chosen(rows[steps], STEPS)),
        ("From audio to audio", _chosen(rows[~steps], AUDIO)),
    ]


def _trained(rows: pd.DataFrame, folder: Path) -> list[tuple[str, pd.DataFrame]]:
    resumed = rows.model.str.startswith("resume of")
    return [
        ("Stopped and whole trainings", _chosen(rows[resumed], RESUMED)),
        ("Training of the profile t4", _chosen(rows[~resumed], TRAINING)),
    ]


def _evaluated(rows: pd.DataFrame, folder: Path) -> list[tuple[str, pd.DataFrame]]:
    if not (folder / "evaluation.csv").is_file():
        return []
    scores = read_rows(folder / "evaluation.csv")
    shown = scores[(scores.metric == "sdr") & (scores.reference == "real") & scores.selection.isin(("blind", ""))]
    found = (
        shown.groupby(["method", "search", "refine", "source"], sort=False)
        .value.agg(["mean", "std", "count"])
        .reset_index()
    )
    found = found.rename(columns={"mean": "mean (dB)", "std": "deviation (dB)", "count": "chunks"})
    return [("SDR of the trained models, nothing chosen with the ground truth", found)]


_STAGES = {"verify": _verified, "kernels": _kernels, "decode": _decoded, "train": _trained, "evaluate": _evaluated}


def _chosen(rows: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    return rows[[name for name in columns if name in rows]].rename(columns=columns)
