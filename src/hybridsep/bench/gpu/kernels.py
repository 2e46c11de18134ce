"""Times of the kernels at the sizes of a real run: beside their floor, their torch body on the same device, and the dense originals."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from hybridsep.bench import kernels
from hybridsep.bench.gpu.session import Part, Session
from hybridsep.bench.report import Options, run_benchmarks


def parts(session: Session) -> Iterator[Part]:
    """One part for each kernel."""
    for name in kernels.BENCHMARKS:
        yield Part(name, partial(_timed, name, session.quick))


def _timed(name: str, quick: bool) -> list[dict]:
    """Rows of `bench kernels`, each with what the torch body takes in its place."""
    options = Options(only=name, quick=True, repeats=2) if quick else Options(only=name, repeats=50, budget_seconds=5.0)
    rows = run_benchmarks(kernels.BENCHMARKS, options)["rows"]
    plain = next(row for row in rows if row["body"] == "torch")
    return [
        row | {"torch_seconds": plain["ours_seconds"], "ratio_to_torch": plain["ours_seconds"] / row["ours_seconds"]}
        for row in rows
    ]
