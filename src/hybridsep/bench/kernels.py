"""The inner loops of `hybridsep.kernels`, each against what the published code does in its place and against what the machine allows.

The floor of an operation is the longer of two times: its bytes, each read or written once, at the rate of a large copy; its floating point
operations at the rate of a large square product. Both rates are measured in the same run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from unittest.mock import patch

import torch
from torch import Tensor

from hybridsep.bench.measure import device_seconds, machine_rates, time_calls
from hybridsep.bench.models import random_likelihood, random_log_probs
from hybridsep.bench.originals import DensePosterior, SparsePosterior
from hybridsep.bench.report import Options, Row
from hybridsep.core.device import default_device, seeded_generator
from hybridsep.inference.search import stay_in_place, systematic_resampling
from hybridsep.kernels import bodies
from hybridsep.kernels.bodies import run_body
from hybridsep.kernels.cache import as_wide_numbers, move_rows
from hybridsep.kernels.counting import count_triples
from hybridsep.kernels.counts import draw_entries
from hybridsep.kernels.nearest import nearest_code
from hybridsep.kernels.sums import draw_pairs, log_marginal

CODES_COUNTED = 64


@dataclass(frozen=True)
class Sizes:
    """What the operations work on.

    Attributes:
        codes: K.
        particles: N of one mixture, of draws.
        width: D of the codebook.
        vectors: to be assigned to their nearest code.
        triples: to be counted.
        slabs, rows, cached: of the cache, keys and values of every layer and source, of every particle, numbers in each.
    """

    codes: int = 2048
    particles: int = 64
    width: int = 16
    vectors: int = 65_536
    triples: int = 1_000_000
    slabs: int = 20
    rows: int = 512
    cached: int = 4096


QUICK = Sizes(codes=16, particles=4, width=3, vectors=64, triples=200, slabs=4, rows=6, cached=32)


@dataclass(frozen=True)
class Work:
    """The least an operation must do: bytes read and written, and floating point operations."""

    bytes: int
    operations: int = 0


def bench_nearest(options: Options) -> Iterator[Row]:
    """`nearest_code` against Jukebox's matrix of all distances."""
    sizes, device = _sizes(options), default_device()
    generator = seeded_generator(0)
    vectors = torch.randn(sizes.vectors, sizes.width, generator=generator).to(device)
    codebook = torch.randn(sizes.codes, sizes.width, generator=generator).to(device)
    work = Work(4 * (vectors.numel() + codebook.numel()) + 8 * sizes.vectors, 2 * sizes.vectors * codebook.numel())
    details = {"codes": sizes.codes, "vectors": sizes.vectors, "width": sizes.width}
    yield from _compare(
        "nearest_code",
        lambda: nearest_code(vectors, codebook),
        lambda: all_distances(vectors, codebook),
        work,
        details,
        options,
    )


def bench_sums(options: Options) -> Iterator[Row]:
    """`draw_pairs_sum` against LQ-VAE's dense posterior."""
    sizes, device = _sizes(options), default_device()
    likelihood = random_likelihood(sizes.codes, sizes.width, "sum", device)
    log_p, mixture = (
        random_log_probs(sizes.codes, sizes.particles, device),
        torch.zeros(1, dtype=torch.long, device=device),
    )
    original, generator = DensePosterior(likelihood), seeded_generator(0, device=device)
    table = likelihood.sums
    uniforms = torch.rand(2, 1, sizes.particles, device=device)

    def ours() -> Tensor:
        marginal = run_body(log_marginal, log_p, mixture, table, likelihood.table, None).exp()
        return run_body(draw_pairs, marginal, log_p, mixture, table, likelihood.table, None, uniforms, None)

    work = Work(table.nbytes + log_p.nbytes, 2 * sizes.particles * sizes.codes**2)
    yield from _compare(
        "draw_pairs_sum",
        ours,
        lambda: original.draw(0, log_p[0, 0], log_p[1, 0], generator),
        work, {"codes": sizes.codes, "particles": sizes.particles}, options,
    )  # fmt: skip


def bench_counts(options: Options) -> Iterator[Row]:
    """`draw_pairs_counts` against LASS's list of scores of all counted pairs."""
    sizes, device = _sizes(options), default_device()
    likelihood = random_likelihood(sizes.codes, sizes.width, "counts", device)
    log_p, mixture = (
        random_log_probs(sizes.codes, sizes.particles, device),
        torch.zeros(1, dtype=torch.long, device=device),
    )
    original, generator = SparsePosterior(likelihood), seeded_generator(0, device=device)
    row_starts = torch.tensor(original.starts, device=device)
    seed = torch.zeros(1, dtype=torch.long, device=device)
    entries = row_starts, likelihood.pairs.int(), original.log_values
    count = original.starts[1] - original.starts[0]
    work = Work(log_p.nbytes + 8 * count + 24 * sizes.particles)
    yield from _compare(
        "draw_pairs_counts",
        lambda: run_body(draw_entries, log_p, mixture, *entries, seed, None),
        lambda: original.draw(0, log_p[0, 0], log_p[1, 0], generator),
        work, {"codes": sizes.codes, "particles": sizes.particles, "counted_pairs": count}, options,
    )  # fmt: skip


def bench_counting(options: Options) -> Iterator[Row]:
    """`count_triples` against LASS's Python lists joined to a sparse tensor."""
    sizes, device = _sizes(options), default_device()
    # Of few codes: real triples repeat.
    triples = torch.randint(min(CODES_COUNTED, sizes.codes), (3, sizes.triples), generator=seeded_generator(0)).to(
        device
    )
    distinct = len(count_triples(*triples, sizes.codes)[0])
    work = Work(triples.nbytes + 16 * distinct)
    details = {"codes": sizes.codes, "triples": sizes.triples, "distinct": distinct}
    calls = lambda: count_triples(*triples, sizes.codes), lambda: count_in_lists(triples, sizes.codes)  # noqa: E731
    yield from _compare("count_triples", *calls, work, details, options)


def bench_cache(options: Options) -> Iterator[Row]:
    """`reorder_cache` against picking every row of every layer anew."""
    sizes, device = _sizes(options), default_device()
    generator = seeded_generator(0)
    cache = torch.randn(sizes.slabs, sizes.rows, sizes.cached, generator=generator).to(device)
    weights = torch.rand(1, sizes.rows, generator=generator).pow(4)
    ancestors = stay_in_place(systematic_resampling(weights / weights.sum(), torch.rand(1, generator=generator)))[0].to(
        device
    )
    moved = int((ancestors != torch.arange(sizes.rows, device=device)).sum())
    work = Work(2 * 4 * sizes.slabs * moved * sizes.cached)
    details = {"rows": sizes.rows, "slabs": sizes.slabs, "numbers_per_row": sizes.cached, "rows_moved": moved}
    calls = (
        lambda: run_body(move_rows, as_wide_numbers(cache), ancestors),
        lambda: [slab.index_select(0, ancestors) for slab in cache],
    )  # noqa: E731
    yield from _compare("reorder_cache", *calls, work, details, options)


BENCHMARKS = {
    "nearest": bench_nearest,
    "sums": bench_sums,
    "counts": bench_counts,
    "counting": bench_counting,
    "cache": bench_cache,
}


def all_distances(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Nearest codes int64 [rows] by the matrix of all squared distances, as Jukebox's bottleneck (arXiv 2005.00341) finds them."""
    distances = (
        vectors.square().sum(1, keepdim=True) - 2 * vectors @ codebook.T + codebook.T.square().sum(0, keepdim=True)
    )
    return distances.min(1).indices


def count_in_lists(triples: Tensor, codes: int) -> Tensor:
    """Counts of triples int64 [3, n] as a sparse [K, K, K], through Python lists as LASS's `train_sums.py` passes them.

    LASS also counts every pair in its other order; here, as in this library, sources are told apart.
    """
    coordinates = torch.tensor([row.tolist() for row in triples])
    with torch.sparse.check_sparse_tensor_invariants(False):
        return torch.sparse_coo_tensor(coordinates, torch.ones(triples.shape[1]), (codes, codes, codes)).coalesce()


def _compare(
    name: str, ours: Callable, reference: Callable, work: Work, details: dict, options: Options
) -> Iterator[Row]:
    """One row per body that this device has."""
    device = default_device()
    rates = machine_rates(torch.float32, device, options.quick)
    floor = rates.floor(work.operations, work.bytes)
    details = details | {"bytes": work.bytes, "flop": work.operations} | rates.as_columns()
    for body in ("torch", "triton") if device.type == "cuda" else ("torch",):
        with patch.object(bodies, "runs_triton", lambda _: False) if body == "torch" else nullcontext():
            times = time_calls({"ours": ours, "reference": reference}, options.repeats, options.budget_seconds, device)
            busy = device_seconds(ours, device)
        floors = {"body": body, "floor_seconds": floor, "times_floor": times["ours"].median / floor}
        floors |= {"device_seconds": busy, "device_times_floor": busy / floor} if busy else {}
        yield Row(f"{name}/{body}", times["ours"], times["reference"], details | floors)


def _sizes(options: Options) -> Sizes:
    sizes = QUICK if options.quick else Sizes()
    chosen = {"codes": options.codes, "particles": options.particles, "rows": options.particles}
    return replace(sizes, **{name: value for name, value in chosen.items() if value})
