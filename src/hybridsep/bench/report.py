"""What the benchmarks print and write: rows, a table of them, two figures."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median

import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.figure import Figure

from hybridsep.bench.measure import Timing
from hybridsep.core.device import default_device
from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import write_atomically
from hybridsep.core.provenance import provenance

FIGURES = ("seconds", "min", "max", "repeats", "processor_seconds", "peak_bytes")


@dataclass(frozen=True)
class Options:
    """What the command line chooses.

    Attributes:
        codes: K of the benchmarks on random tables and of LQ-VAE; their own sizes without it.
        particles: N; each benchmark's own without it.
        seconds: length of a chunk.
        model: folder of a trained method; untrained models of the profile `cpu` without it.
        only: name of the one benchmark to run; all without it.
        repeats: rounds at most.
        budget_seconds: of one timed call; it is repeated no more after so long.
        quick: sizes that say nothing about speed, for tests.
        minutes: of a long recording; a song's and an hour without it.
    """

    codes: int | None = None
    particles: int | None = None
    seconds: float = 3.0
    model: Path | None = None
    only: str | None = None
    repeats: int = 5
    budget_seconds: float = 12.0
    quick: bool = False
    minutes: float | None = None

    @property
    def standard(self) -> bool:
        """Whether the sizes are those that goals were set for."""
        return (self.codes, self.particles, self.seconds, self.quick) == (None, None, Options.seconds, False)


@dataclass(frozen=True)
class Goal:
    """What a figure was meant to reach: `field` of its row, at least or at most `value`."""

    field: str
    value: float
    at_most: bool = False

    def __str__(self) -> str:
        return f"{self.field} {'≤' if self.at_most else '≥'} {self.value:g}"

    def met(self, row: dict) -> bool:
        """Whether the row reaches it."""
        return row[self.field] <= self.value if self.at_most else row[self.field] >= self.value


@dataclass(frozen=True)
class Row:
    """One figure: this library's time, the reference's where there is one, and what it was measured on.

    Attributes:
        name: benchmark/case.
        ours, reference: wall times.
        details: sizes, bytes, rates and notes, as further columns.
        goal: what was wanted.
    """

    name: str
    ours: Timing
    reference: Timing | None = None
    details: dict = field(default_factory=dict)
    goal: Goal | None = None

    def as_dict(self) -> dict:
        """Plain JSON values: name, median seconds with extremes, repeats and peak memory, ratio of the medians, details, goal."""
        row = {"name": self.name} | _figures("ours", self.ours) | _figures("reference", self.reference)
        row["ratio"] = self.reference.median / self.ours.median if self.reference else None
        row |= self.details
        if self.goal:
            row |= {"goal": str(self.goal), "goal_met": self.goal.met(row)}
        return row


Benchmark = Callable[[Options], Iterable[Row]]


def run_benchmarks(
    benchmarks: dict[str, Benchmark], options: Options, progress: Callable[[str], object] = lambda line: None
) -> dict:
    """Run them one after the other.

    Args:
        benchmarks: by name.
        options: of all of them.
        progress: gets one line per row.

    Returns:
        {"provenance": {...}, "rows": [{"name", "ours_seconds", "reference_seconds", "ratio", ...}]}, plain JSON values.

    Raises:
        HybridsepError: no benchmark of the name in `options.only`.
    """
    if options.only is not None and options.only not in benchmarks:
        raise HybridsepError(f"unknown benchmark '{options.only}': choose one of {', '.join(benchmarks)}")
    device, began, rows = default_device(), time.perf_counter(), []
    for name in benchmarks if options.only is None else [options.only]:
        for row in benchmarks[name](options):
            rows.append(row.as_dict() | {"device": device.type, "threads": torch.get_num_threads()})
            progress(row_line(rows[-1]))
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(options).items()}
    made = provenance(device) | {
        "options": settings,
        "began": time.strftime("%Y-%m-%d %H:%M"),
        "wall_seconds": time.perf_counter() - began,
    }
    return {"provenance": made, "rows": rows}


def write_json(result: dict, path: Path) -> None:
    """Write what `run_benchmarks` gave."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(result, indent=1).encode())


def read_json(path: Path | str) -> dict:
    """Read what `write_json` wrote.

    Raises:
        HybridsepError: it is no such file.
    """
    try:
        result = json.loads(Path(path).read_text())
        result["provenance"], result["rows"]
    except (ValueError, KeyError, TypeError):
        raise HybridsepError(
            f"{path} holds no benchmark results: write them with 'hybridsep bench ... --json FILE'"
        ) from None
    return result


def row_line(row: dict) -> str:
    """A row for a terminal."""
    line = f"{row['name']}: {_spread(row, 'ours')} s"
    if row["ratio"] is not None:
        line += f", reference {_spread(row, 'reference')} s, ratio {row['ratio']:.3g}"
    return line + (f" (goal {row['goal']}: {'met' if row['goal_met'] else 'missed'})" if "goal" in row else "")


def results_frame(result: dict) -> pd.DataFrame:
    """The rows as a table, one figure a line, ready for `report.figures.results_table`; columns that no row fills are left out."""
    lines = [
        {
            "benchmark": row["name"],
            "ours (s)": _spread(row, "ours"),
            "reference (s)": _spread(row, "reference"),
            "ratio": row["ratio"],
            "share": row.get("share"),
            "floor (s)": row.get("floor_seconds"),
            "times the floor": row.get("times_floor"),
            "goal": row.get("goal"),
            "met": {True: "yes", False: "no"}.get(row.get("goal_met")),
            "repeats": row["ours_repeats"],
        }
        for row in result["rows"]
    ]
    return pd.DataFrame(lines).dropna(axis=1, how="all")


def plot_scaling(result: dict) -> Figure:
    """Seconds over the number of particles and over the length of the audio, each with its extremes and a line of proportional cost.

    Raises:
        HybridsepError: the rows of `bench decode` for particles or lengths are missing.
    """
    panels = (("particles/", "particles", "particles"), ("length/", "audio_seconds", "length of the audio (s)"))
    figure, axes = plt.subplots(1, 2, figsize=(8.4, 3.4), layout="constrained")
    for axis, (prefix, column, label) in zip(axes, panels, strict=True):
        rows = [row for row in result["rows"] if row["name"].startswith(prefix)]
        if not rows:
            plt.close(figure)
            raise HybridsepError(f"no rows '{prefix}...': run 'hybridsep bench decode' first")
        sizes, seconds = [row[column] for row in rows], [row["ours_seconds"] for row in rows]
        spread = [
            [row["ours_seconds"] - row["ours_min"] for row in rows],
            [row["ours_max"] - row["ours_seconds"] for row in rows],
        ]
        axis.errorbar(sizes, seconds, spread, marker="o", capsize=3, label="measured")
        axis.plot(sizes, [seconds[-1] * size / sizes[-1] for size in sizes], "--", label="proportional to the last")
        axis.set(xlabel=label, ylabel="time to separate (s)", xscale="log", yscale="log")
        axis.set_xticks(sizes, [f"{size:g}" for size in sizes])
        axis.minorticks_off()
        axis.legend()
    return figure


def _figures(who: str, timing: Timing | None) -> dict:
    values = (None,) * 6
    if timing:
        computed = median(timing.processor_seconds) if timing.processor_seconds else None
        values = (
            timing.median,
            min(timing.seconds),
            max(timing.seconds),
            len(timing.seconds),
            computed,
            timing.peak_bytes,
        )
    return {f"{who}_{name}": value for name, value in zip(FIGURES, values, strict=True)}


def _spread(row: dict, who: str) -> str | None:
    if row[f"{who}_seconds"] is None:
        return None
    return f"{row[f'{who}_seconds']:.3g} [{row[f'{who}_min']:.3g}, {row[f'{who}_max']:.3g}]"
