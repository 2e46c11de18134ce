"""The groups of benchmarks that the command line knows."""

from __future__ import annotations

from collections.abc import Callable

from hybridsep.bench import decode, kernels, posterior, recording, training
from hybridsep.bench.report import Benchmark, Options, run_benchmarks
from hybridsep.core.errors import HybridsepError

GROUPS: dict[str, dict[str, Benchmark]] = {
    "posterior": posterior.BENCHMARKS,
    "decode": decode.BENCHMARKS,
    "kernels": kernels.BENCHMARKS,
    "training": training.BENCHMARKS,
    "recording": recording.BENCHMARKS,
}


def run_group(group: str, options: Options, progress: Callable[[str], object] = lambda line: None) -> dict:
    """`run_benchmarks` of a group by name.

    Raises:
        HybridsepError: no such group, or no such benchmark in it.
    """
    if group not in GROUPS:
        raise HybridsepError(f"unknown benchmarks '{group}': choose one of {', '.join(GROUPS)}")
    return run_benchmarks(GROUPS[group], options, progress)
