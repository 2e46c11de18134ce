"""The inner loops of `hybridsep.kernels`, each beside what the published code does in its place; on a GPU its torch body too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from unittest.mock import patch

import torch
from originals import DensePosterior, SparsePosterior
from separators import random_likelihood, random_log_probs
from timing import Options, Row, main, time_calls
from torch import Tensor

from hybridsep.core.device import default_device, seeded_generator
from hybridsep.kernels import bodies
from hybridsep.kernels.bodies import run_body
from hybridsep.kernels.cache import as_wide_numbers, move_rows
from hybridsep.kernels.counting import count_triples, csr
from hybridsep.kernels.counts import draw_entries
from hybridsep.kernels.nearest import nearest_code
from hybridsep.kernels.sums import draw_pairs, log_marginal

CODES, PARTICLES, WIDTH, VECTORS, TRIPLES, CODES_COUNTED = 2048, 64, 16, 65_536, 1_000_000, 64
SLABS, ROWS, NUMBERS = 20, 512, 4096
QUICK_CODES, QUICK_PARTICLES, QUICK_SHARE = 16, 4, 1000


def bench_nearest(options: Options) -> Iterator[Row]:
    """Time `nearest_code` beside Jukebox's matrix of all distances."""
    vectors = _randn(VECTORS // (QUICK_SHARE if options.quick else 1), WIDTH)
    codebook = _randn(_codes(options), WIDTH, seed=1)

    def all_distances() -> Tensor:
        """As Jukebox's bottleneck (arXiv 2005.00341) finds codes."""
        distances = vectors.square().sum(1, keepdim=True) - 2 * vectors @ codebook.T
        return (distances + codebook.T.square().sum(0, keepdim=True)).min(1).indices

    details = {"codes": len(codebook), "vectors": len(vectors), "width": WIDTH}
    yield from _compare("nearest_code", lambda: nearest_code(vectors, codebook), all_distances, details, options)


def bench_sums(options: Options) -> Iterator[Row]:
    """Time a draw under the sum beside LQ-VAE's dense posterior."""
    codes, particles = _codes(options), _particles(options)
    likelihood, log_p = _inputs("sum", options)
    original, generator = DensePosterior(likelihood), seeded_generator(0, device=log_p.device)
    step = log_p, torch.zeros(1, dtype=torch.long, device=log_p.device), likelihood.sums, likelihood.table, None
    uniforms = torch.rand(2, 1, particles, device=log_p.device)
    yield from _compare(
        "draw_pairs_sum",
        lambda: run_body(draw_pairs, run_body(log_marginal, *step).exp(), *step, uniforms, None),
        lambda: original.draw(0, log_p[0, 0], log_p[1, 0], generator),
        {"codes": codes, "particles": particles}, options,
    )  # fmt: skip


def bench_counts(options: Options) -> Iterator[Row]:
    """Time a draw from counted pairs beside LASS's list of scores of all counted pairs."""
    likelihood, log_p = _inputs("counts", options)
    original, generator = SparsePosterior(likelihood), seeded_generator(0, device=log_p.device)
    first = torch.zeros(1, dtype=torch.long, device=log_p.device)
    entries = *csr(likelihood.keys, likelihood.codes), original.log_values
    details = {"codes": likelihood.codes, "particles": log_p.shape[2], "counted_pairs": int(entries[0][1])}
    yield from _compare(
        "draw_pairs_counts",
        lambda: run_body(draw_entries, log_p, first, *entries, first, None),
        lambda: original.draw(0, log_p[0, 0], log_p[1, 0], generator),
        details, options,
    )  # fmt: skip


def bench_counting(options: Options) -> Iterator[Row]:
    """Time `count_triples` beside LASS's Python lists joined to a sparse tensor."""
    codes, number = _codes(options), TRIPLES // (QUICK_SHARE if options.quick else 1)
    # Of few codes: real triples repeat.
    triples = torch.randint(min(CODES_COUNTED, codes), (3, number), generator=seeded_generator(0)).to(default_device())

    def count_in_lists() -> Tensor:
        """As LASS's `train_sums.py`, which counts every pair in its other order too; here sources are told apart."""
        coordinates = torch.tensor([row.tolist() for row in triples])
        with torch.sparse.check_sparse_tensor_invariants(False):
            return torch.sparse_coo_tensor(coordinates, torch.ones(number), (codes, codes, codes)).coalesce()

    details = {"codes": codes, "triples": number, "distinct": len(count_triples(*triples, codes)[0])}
    yield from _compare("count_triples", lambda: count_triples(*triples, codes), count_in_lists, details, options)


def bench_cache(options: Options) -> Iterator[Row]:
    """Time `move_rows` beside picking every row of every layer anew."""
    rows = options.particles or (QUICK_PARTICLES if options.quick else ROWS)
    cache = _randn(SLABS, rows, NUMBERS // (QUICK_SHARE if options.quick else 1))
    # Half of the rows go on from one of the others.
    ancestors = torch.arange(rows, device=cache.device)
    ancestors[rows // 2 :] = torch.randint(max(1, rows // 2), (rows - rows // 2,), generator=seeded_generator(1))
    details = {"rows": rows, "slabs": SLABS, "numbers_per_row": cache.shape[2], "rows_moved": rows - rows // 2}
    yield from _compare(
        "reorder_cache",
        lambda: run_body(move_rows, as_wide_numbers(cache), ancestors),
        lambda: [slab.index_select(0, ancestors) for slab in cache],
        details, options,
    )  # fmt: skip


def _compare(name: str, ours: Callable, reference: Callable, details: dict, options: Options) -> Iterator[Row]:
    """Yield one row per body that this device has."""
    device = default_device()
    for body in ("torch", "triton") if device.type == "cuda" else ("torch",):
        with patch.object(bodies, "runs_triton", lambda _: False) if body == "torch" else nullcontext():
            times = time_calls({"ours": ours, "reference": reference}, options.repeats, options.budget, device)
        yield Row(f"{name}/{body}", times["ours"], times["reference"], details | {"body": body})


def _inputs(kind: str, options: Options) -> tuple:
    """Return a random likelihood and log-probabilities of both priors."""
    codes, device = _codes(options), default_device()
    return random_likelihood(codes, WIDTH, kind, device), random_log_probs(codes, _particles(options), device)


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded_generator(seed)).to(default_device())


def _codes(options: Options) -> int:
    return options.codes or (QUICK_CODES if options.quick else CODES)


def _particles(options: Options) -> int:
    return options.particles or (QUICK_PARTICLES if options.quick else PARTICLES)


BENCHMARKS = {
    "nearest": bench_nearest, "sums": bench_sums, "counts": bench_counts, "counting": bench_counting, "cache": bench_cache,
}  # fmt: skip

if __name__ == "__main__":
    main(BENCHMARKS, __doc__)
