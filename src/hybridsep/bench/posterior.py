"""One search step without the priors: draw a pair of codes per particle from p(i, j) ∝ p1(i) p2(j) l(m|i,j)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import product

import torch

from hybridsep.bench.measure import largest_tensor, time_calls
from hybridsep.bench.models import dtypes, likelihood_in, random_likelihood, random_log_probs
from hybridsep.bench.originals import DensePosterior, Posterior, SparsePosterior
from hybridsep.bench.report import Goal, Options, Row
from hybridsep.core.device import default_device, dtype_name, seeded_generator
from hybridsep.inference.likelihood import Likelihood

CODES, PARTICLES, WIDTH = (512, 1024, 2048), 64, 16
GOAL_CODES, GOAL_RATIO = 2048, 100
QUICK_CODES, QUICK_PARTICLES = 16, 4


def bench_sum(options: Options) -> Iterator[Row]:
    """`sum` against LQ-VAE's dense [N, K, K] posterior."""
    for codes in _codes(options):
        likelihood = random_likelihood(codes, WIDTH, "sum", default_device())
        goal = Goal("ratio", GOAL_RATIO) if codes == GOAL_CODES and options.standard else None
        yield from _compare(f"sum-{codes}", likelihood, DensePosterior(likelihood), options, goal)


def bench_counts(options: Options) -> Iterator[Row]:
    """`counts` against LASS's list of counted pairs, and against the dense posterior that it would otherwise be."""
    for codes in _codes(options):
        likelihood = random_likelihood(codes, WIDTH, "counts", default_device())
        yield from _compare(f"counts-{codes}", likelihood, SparsePosterior(likelihood), options)


BENCHMARKS = {"sum": bench_sum, "counts": bench_counts}


def _compare(
    name: str, likelihood: Likelihood, original: Posterior, options: Options, goal: Goal | None = None
) -> Iterator[Row]:
    """In float32 and, where it is fast, in bfloat16; with a matrix made for every step, and with one kept from an earlier step."""
    device = default_device()
    particles = options.particles or (QUICK_PARTICLES if options.quick else PARTICLES)
    log_p = random_log_probs(likelihood.codes, particles, device)
    calls: dict[object, Callable] = {"reference": _theirs(original, log_p)}
    calls |= {
        (d, kept): _ours(likelihood_in(likelihood, d), log_p, kept) for d in dtypes(device) for kept in (False, True)
    }
    times = time_calls(calls, options.repeats, options.budget_seconds, device)
    largest = {key: largest_tensor(call) for key, call in calls.items()}
    for dtype, kept in product(dtypes(device), (False, True)):
        details = {
            "codes": likelihood.codes, "particles": particles, "dtype": dtype_name(dtype), "matrix": "kept" if kept else "made",
            "ours_largest_tensor_bytes": largest[dtype, kept], "reference_largest_tensor_bytes": largest["reference"],
        }  # fmt: skip
        yield Row(
            f"{name}/{details['dtype']}-{details['matrix']}", times[dtype, kept], times["reference"], details, goal
        )


def _ours(likelihood: Likelihood, log_p: torch.Tensor, kept: bool) -> Callable[[], object]:
    """A step on the same mixture code every time when its matrix is `kept`, else on the next one, whose matrix is then made."""
    if not kept:
        likelihood.cache_bytes = 0
    generator, step = seeded_generator(0, device=log_p.device), iter(range(2**31))

    def call() -> object:
        mixture = 0 if kept else next(step) % likelihood.codes
        return likelihood.draw_pairs(torch.tensor([mixture], device=log_p.device), log_p, generator)

    return call


def _theirs(original: Posterior, log_p: torch.Tensor) -> Callable[[], object]:
    generator, step = seeded_generator(0, device=log_p.device), iter(range(2**31))
    return lambda: original.draw(next(step) % log_p.shape[-1], log_p[0, 0], log_p[1, 0], generator)


def _codes(options: Options) -> tuple[int, ...]:
    if options.codes:
        return (options.codes,)
    return (QUICK_CODES,) if options.quick else CODES
