"""What a benchmark measures: seconds, bytes, and the rates that the machine reaches at its best.

Machines are noisy, so calls that are compared take turns, and every figure is a median with its extremes.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

COPIED_BYTES = 2**28
SQUARE = 2048
RATE_SECONDS = 0.5
TRACED_CALLS = 20


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
        """Seconds."""
        return median(self.seconds)

    def scaled(self, factor: float) -> Timing:
        """Times multiplied by a number."""
        return Timing(
            *(tuple(factor * s for s in times) for times in (self.seconds, self.processor_seconds)), self.peak_bytes
        )


def time_calls(
    calls: dict[str, Callable[[], object]], repeats: int, budget_seconds: float, device: torch.device
) -> dict[str, Timing]:
    """Time calls in turn, round by round, so that a slow minute of the machine hits all of them.

    A round before the others warms up and measures memory. Its time counts only for calls that have used up their budget in it.

    Args:
        calls: by name.
        repeats: rounds.
        budget_seconds: of each call; it sits out the rounds after it has used them up.
        device: waited for after every call.
    """
    first, peaks, times = {}, {}, {name: [] for name in calls}
    for name, call in calls.items():
        with _PeakMemory(device) as memory:
            first[name] = _clocks(call, device)
        peaks[name] = memory.peak_bytes
    for _ in range(repeats):
        for name, call in calls.items():
            if first[name][0] + sum(wall for wall, _ in times[name]) < budget_seconds:
                times[name].append(_clocks(call, device))
    return {name: Timing(*zip(*(times[name] or [first[name]]), strict=True), peaks[name]) for name in calls}


def device_seconds(call: Callable[[], object], device: torch.device) -> float | None:
    """Seconds that a call keeps a GPU busy, without the gaps in which it waits for its host; mean of TRACED_CALLS.

    None on a CPU, and where the driver lets nobody trace kernels.
    """
    if device.type != "cuda":
        return None
    with profile(activities=[ProfilerActivity.CUDA]) as recorded:
        for _ in range(TRACED_CALLS):
            call()
        torch.cuda.synchronize(device)
    busy = sum(event.self_device_time_total for event in recorded.key_averages())
    return 1e-6 * busy / TRACED_CALLS if busy else None


class _PeakMemory:
    """Bytes that memory grows by, at most, within the context.

    On CUDA those of torch's allocator. On Linux the resident memory of the process: what was freed before is handed back to the system, the
    kernel's high-water mark is reset (by a 5 written to /proc/self/clear_refs), and read afterwards.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.peak_bytes: int | None = None
        self._before: int | None = None

    def __enter__(self) -> _PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        elif sys.platform == "linux":
            self._before = _start_over()
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            now = torch.cuda.max_memory_allocated(self.device) if self.device.type == "cuda" else status_bytes("VmHWM")
            self.peak_bytes = max(0, now - self._before)


def largest_tensor(call: Callable[[], object]) -> int:
    """Bytes of the largest tensor that `call` makes; views of what it was given do not count."""
    with _LargestTensor() as seen:
        call()
    return seen.bytes


class _LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {_storage(x).data_ptr() for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and _storage(x).data_ptr() not in given:
                self.bytes = max(self.bytes, _storage(x).nbytes())
        return result


@dataclass(frozen=True)
class Rates:
    """What the machine reaches at its best.

    Attributes:
        operations: floating point operations per second of a large square product.
        bytes: read and written per second by a large copy.
    """

    operations: float
    bytes: float

    def floor(self, operations: int, moved_bytes: int) -> float:
        """Seconds under which so much work cannot be done: the longer of both times."""
        return max(operations / self.operations, moved_bytes / self.bytes)

    def as_columns(self) -> dict[str, float]:
        """For a row."""
        return {"square_flop_per_second": self.operations, "copy_bytes_per_second": self.bytes}


@cache
def machine_rates(dtype: torch.dtype, device: torch.device, small: bool = False) -> Rates:
    """Rates of products in `dtype` and of copies, measured once in a process; `small` sizes are for tests."""
    size, copied = (64, 2**16) if small else (SQUARE, COPIED_BYTES)
    source = torch.ones(copied // 4, device=device)
    target = torch.empty_like(source)
    seconds = least_seconds(lambda: target.copy_(source), device)
    return Rates(product_rate(1, size, size, size, dtype, device), 2 * copied / seconds)


def product_rate(batch: int, rows: int, inner: int, columns: int, dtype: torch.dtype, device: torch.device) -> float:
    """Floating point operations per second of `batch` products [rows, inner] × [inner, columns], nothing else going on."""
    left = torch.randn(batch, rows, inner, device=device).to(dtype)
    right = torch.randn(batch, inner, columns, device=device).to(dtype)
    out = torch.empty(batch, rows, columns, dtype=dtype, device=device)
    return 2 * batch * rows * inner * columns / least_seconds(lambda: torch.bmm(left, right, out=out), device)


def least_seconds(call: Callable[[], object], device: torch.device, at_most: float = RATE_SECONDS) -> float:
    """Least seconds of a call repeated for `at_most` seconds, three times at least: what it takes when nothing is in the way."""
    _seconds(call, device)
    times, began = [], time.perf_counter()
    while len(times) < 3 or time.perf_counter() - began < at_most:
        times.append(_seconds(call, device))
    return min(times)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    return _clocks(call, device)[0]


def _clocks(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Seconds by the wall and by the processor."""
    started, computed = time.perf_counter(), time.process_time()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started, time.process_time() - computed


def _storage(x: Tensor) -> torch.UntypedStorage:
    return x.untyped_storage()


def _start_over() -> int | None:
    """Hand freed memory back, reset the high-water mark, and tell the bytes in use; None where the system does not let us."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        return status_bytes("VmRSS")
    except (OSError, AttributeError, StopIteration):
        return None


def status_bytes(field: str) -> int:
    """A field of Linux's /proc/self/status, such as VmHWM, the most memory that the process ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])
