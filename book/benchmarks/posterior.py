"""One step of a search without its priors: drawing one pair of codes per particle from p(i, j) ∝ p1(i) p2(j) l(m|i,j)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from itertools import product

import torch
from originals import DensePosterior, Posterior, SparsePosterior
from separators import dtypes, random_likelihood, random_log_probs
from timing import Options, Row, largest_tensor, main, start_settled, time_calls
from torch import Tensor

from hybridsep.core.device import default_device, dtype_name, seeded_generator
from hybridsep.inference.likelihood import Likelihood

CODES, PARTICLES, WIDTH = (512, 1024, 2048), 64, 16
QUICK_CODES, QUICK_PARTICLES = 16, 4


def bench_sum(options: Options) -> Iterator[Row]:
    """Time `sum` beside LQ-VAE's dense [N, K, K] posterior."""
    for codes in _codes(options):
        likelihood = random_likelihood(codes, WIDTH, "sum", default_device())
        yield from _compare(f"sum-{codes}", likelihood, DensePosterior(likelihood), options)


def bench_counts(options: Options) -> Iterator[Row]:
    """Time `counts` beside LASS's list of counted pairs."""
    for codes in _codes(options):
        likelihood = random_likelihood(codes, WIDTH, "counts", default_device())
        yield from _compare(f"counts-{codes}", likelihood, SparsePosterior(likelihood), options)


def _compare(name: str, likelihood: Likelihood, original: Posterior, options: Options) -> Iterator[Row]:
    """Time in float32 and, where it is fast, in bfloat16; with a matrix made for every step, and with one kept from an earlier step."""
    device = default_device()
    particles = options.particles or (QUICK_PARTICLES if options.quick else PARTICLES)
    log_p = random_log_probs(likelihood.codes, particles, device)
    cases = list(product(dtypes(device), (False, True)))
    calls: dict[object, Callable] = {"reference": _theirs(original, log_p)}
    calls |= {(dtype, kept): _ours(likelihood, dtype, log_p, kept) for dtype, kept in cases}
    times = time_calls(calls, options.repeats, options.budget, device)
    largest = {key: largest_tensor(call) for key, call in calls.items()}
    for dtype, kept in cases:
        details = {
            "codes": likelihood.codes, "particles": particles, "dtype": dtype_name(dtype), "matrix": "kept" if kept else "made",
            "ours_largest_tensor_bytes": largest[dtype, kept], "reference_largest_tensor_bytes": largest["reference"],
        }  # fmt: skip
        label = f"{name}/{details['dtype']}-{details['matrix']}"
        yield Row(label, times[dtype, kept], times["reference"], details)


def _ours(likelihood: Likelihood, dtype: torch.dtype, log_p: Tensor, kept: bool) -> Callable[[], object]:
    """Return a step on the same mixture code every time when its matrix is `kept`, else on the next one, whose matrix is then made."""
    likelihood = copy.copy(likelihood.with_precision(dtype if dtype == torch.bfloat16 else torch.float32))
    if not kept:
        likelihood.cache_bytes = 0
    generator, step = seeded_generator(0, device=log_p.device), iter(range(2**31))

    def call() -> object:
        mixture = 0 if kept else next(step) % likelihood.codes
        return likelihood.draw_pairs(torch.tensor([mixture], device=log_p.device), log_p, generator)

    return call


def _theirs(original: Posterior, log_p: Tensor) -> Callable[[], object]:
    generator, step = seeded_generator(0, device=log_p.device), iter(range(2**31))
    return lambda: original.draw(next(step) % log_p.shape[-1], log_p[0, 0], log_p[1, 0], generator)


def _codes(options: Options) -> tuple[int, ...]:
    if options.codes:
        return (options.codes,)
    return (QUICK_CODES,) if options.quick else CODES


BENCHMARKS = {"sum": bench_sum, "counts": bench_counts}

if __name__ == "__main__":
    start_settled()
    main(BENCHMARKS, __doc__)
