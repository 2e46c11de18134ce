"""How a benchmark measures and what it writes: seconds, bytes, rows.

Machines are noisy, so calls that are compared take turns, and every figure is a median with its extremes.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hybridsep.core.device import default_device
from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import write_atomically
from hybridsep.core.process import settle_process
from hybridsep.core.provenance import provenance


@dataclass(frozen=True)
class Options:
    """What the command line chooses; fields are its options.

    Attributes:
        profile: whose shape untrained models have.
        model: folder of a trained method; untrained models without it.
        codes: K; the benchmark's own without it.
        particles: N; the benchmark's own without it.
        seconds: length of a chunk.
        minutes: length of a long recording; the benchmark's own without it.
        only: name of the one benchmark to run; all without it.
        repeats: rounds at most.
        budget: seconds after which a timed call is repeated no more.
        quick: sizes that say nothing about speed, for tests.
        json: file for the rows.
    """

    profile: str = "cpu"
    model: Path | None = None
    codes: int | None = None
    particles: int | None = None
    seconds: float = 3.0
    minutes: float | None = None
    only: str | None = None
    repeats: int = 5
    budget: float = 12.0
    quick: bool = False
    json: Path | None = None


@dataclass(frozen=True)
class Timing:
    """One call over its repeats.

    Attributes:
        seconds: wall times.
        processor_seconds: what all threads of the process computed meanwhile; far less than threads times wall where others hold the machine.
        peak_bytes: by how much memory grew at most; None where the system does not tell.
    """

    seconds: tuple[float, ...]
    processor_seconds: tuple[float, ...] = ()
    peak_bytes: int | None = None

    @property
    def median(self) -> float:
        """Return the median wall time in seconds."""
        return median(self.seconds)

    def scaled(self, factor: float) -> Timing:
        """Return the times multiplied by a number."""
        wall, processor = (tuple(factor * s for s in times) for times in (self.seconds, self.processor_seconds))
        return Timing(wall, processor, self.peak_bytes)


@dataclass(frozen=True)
class Row:
    """This library's time, the reference's where there is one, and what they were measured on.

    Attributes:
        name: benchmark/case.
        details: sizes, bytes and notes, as further columns.
    """

    name: str
    ours: Timing
    reference: Timing | None = None
    details: dict = field(default_factory=dict)

    def as_dict(self) -> dict:
        """Return plain JSON values; `ratio` is the reference's median over ours."""
        columns: dict = {"name": self.name}
        for who, timing in (("ours", self.ours), ("reference", self.reference)):
            wall, processor = (timing.seconds, timing.processor_seconds) if timing else ((), ())
            columns |= {
                f"{who}_seconds": median(wall) if wall else None, f"{who}_min": min(wall, default=None),
                f"{who}_max": max(wall, default=None), f"{who}_repeats": len(wall) or None,
                f"{who}_processor_seconds": median(processor) if processor else None,
                f"{who}_peak_bytes": timing.peak_bytes if timing else None,
            }  # fmt: skip
        ratio = self.reference.median / self.ours.median if self.reference else None
        machine = {"device": default_device().type, "threads": torch.get_num_threads()}
        return columns | {"ratio": ratio} | self.details | machine


Benchmarks = dict[str, Callable[[Options], Iterator[Row]]]


def main(benchmarks: Benchmarks, about: str) -> None:
    """Run the benchmarks that the command line asks for, print their rows and write them; bad input ends in one line and exit status 1."""
    parser = argparse.ArgumentParser(description=about.strip().splitlines()[0])
    helps = dict(line.strip().split(": ", 1) for line in Options.__doc__.split("Attributes:")[1].strip().splitlines())
    for option in fields(Options):
        if option.type == "bool":
            kind = {"action": "store_true"}
        else:
            word = option.type.split(" ")[0]
            kind = {"type": {"str": str, "int": int, "float": float, "Path": Path}[word], "default": option.default}
        parser.add_argument(f"--{option.name}", help=helps[option.name], **kind)
    options = Options(**vars(parser.parse_args()))
    try:
        result = run(benchmarks, options, lambda row: print(_line(row), flush=True))
    except HybridsepError as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(options.json, json.dumps(result, indent=1).encode())


def start_settled() -> None:
    """Start this script again with the environment that the commands have: torch reads it when its threads start."""
    if "OMP_WAIT_POLICY" not in os.environ:
        settle_process()
        os.execv(sys.executable, [sys.executable, *sys.argv])


def run(benchmarks: Benchmarks, options: Options, on_row: Callable[[dict], object] = lambda row: None) -> dict:
    """Run benchmarks one after the other.

    Returns:
        {"provenance": {...}, "rows": [{"name", "ours_seconds", "reference_seconds", "ratio", ...}]}, plain JSON values.

    Raises:
        HybridsepError: no benchmark of the name in `options.only`.
    """
    if options.only is not None and options.only not in benchmarks:
        raise HybridsepError(f"unknown benchmark '{options.only}': choose one of {', '.join(benchmarks)}")
    started, began, rows = time.perf_counter(), time.strftime("%Y-%m-%d %H:%M"), []
    for name in benchmarks if options.only is None else [options.only]:
        for row in benchmarks[name](options):
            rows.append(row.as_dict())
            on_row(rows[-1])
    chosen = {name: str(value) if isinstance(value, Path) else value for name, value in asdict(options).items()}
    made = {"options": chosen, "began": began, "wall_seconds": time.perf_counter() - started}
    return {"provenance": provenance(default_device()) | made, "rows": rows}


def _line(row: dict) -> str:
    def spread(who: str) -> str:
        return f"{row[f'{who}_seconds']:.3g} [{row[f'{who}_min']:.3g}, {row[f'{who}_max']:.3g}] s"

    if row["ratio"] is None:
        return f"{row['name']}: {spread('ours')}"
    differs = f" (the reference {row['differs']})" if row.get("differs") else ""
    return f"{row['name']}: {spread('ours')}, reference {spread('reference')}, ratio {row['ratio']:.3g}{differs}"


def time_calls(
    calls: dict[object, Callable[[], object]], repeats: int, budget: float, device: torch.device
) -> dict[object, Timing]:
    """Time calls in turn, round by round, so that a slow minute of the machine hits all of them.

    A round before the others warms up and measures memory. Its time counts only for calls that have used up their budget in it.

    Args:
        calls: by name.
        repeats: rounds.
        budget: seconds of each call; it sits out the rounds after it has used them up.
        device: waited for after every call.
    """
    first, peaks, times = {}, {}, {name: [] for name in calls}
    for name, call in calls.items():
        before = _memory_before(device)
        first[name] = _clocks(call, device)
        if before is not None:
            most = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else status_bytes("VmHWM")
            peaks[name] = max(0, most - before)
    for _ in range(repeats):
        for name, call in calls.items():
            if first[name][0] + sum(wall for wall, _ in times[name]) < budget:
                times[name].append(_clocks(call, device))
    return {name: Timing(*zip(*(times[name] or [first[name]]), strict=True), peaks.get(name)) for name in calls}


def _clocks(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Return the seconds of a call by the wall and by the processor."""
    started, computed = time.perf_counter(), time.process_time()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, time.process_time() - computed


def _memory_before(device: torch.device) -> int | None:
    """Reset what a device calls its most memory, and return the bytes in use; None where the system does not let us.

    On CUDA those of torch's allocator. On Linux the resident memory of the process: what was freed before is handed back to the system, and
    the kernel's high-water mark is reset by a 5 written to /proc/self/clear_refs.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return status_bytes("VmRSS")
    except (OSError, AttributeError, StopIteration):
        return None


def status_bytes(field: str) -> int:
    """Read a field of Linux's /proc/self/status, such as VmHWM, the most memory that the process ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def largest_tensor(call: Callable[[], object]) -> int:
    """Return the bytes of the largest tensor that `call` makes; views of what it was given do not count."""
    with _LargestTensor() as seen:
        call()
    return seen.bytes


class _LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in given:
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return result
