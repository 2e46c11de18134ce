"""The inner loops of `hybridsep.kernels`, each beside what the published code does in its place; on a GPU its torch body too.

The draws of pairs are timed by `posterior.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from unittest.mock import patch

import torch
from timing import Options, Row, main, start_settled, time_calls
from torch import Tensor

from hybridsep.core.device import default_device, seeded_generator
from hybridsep.kernels import bodies
from hybridsep.kernels.cache import as_wide_numbers, move_rows
from hybridsep.kernels.counting import count_triples
from hybridsep.kernels.nearest import nearest_code

CODES, WIDTH, VECTORS, TRIPLES, CODES_COUNTED = 2048, 16, 65_536, 1_000_000, 64
SLABS, ROWS, NUMBERS = 20, 512, 4096
QUICK_CODES, QUICK_ROWS, QUICK_SHARE = 16, 4, 1000


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
    # One body counts on every device.
    yield next(_compare("count_triples", lambda: count_triples(*triples, codes), count_in_lists, details, options))


def bench_cache(options: Options) -> Iterator[Row]:
    """Time `move_rows` beside picking every row of every layer anew."""
    rows = options.particles or (QUICK_ROWS if options.quick else ROWS)
    cache = _randn(SLABS, rows, NUMBERS // (QUICK_SHARE if options.quick else 1))
    # Half of the rows go on from one of the others.
    ancestors = torch.arange(rows, device=cache.device)
    ancestors[rows // 2 :] = torch.randint(max(1, rows // 2), (rows - rows // 2,), generator=seeded_generator(1))
    details = {"rows": rows, "slabs": SLABS, "numbers_per_row": cache.shape[2], "rows_moved": rows - rows // 2}
    yield from _compare(
        "reorder_cache",
        lambda: move_rows(as_wide_numbers(cache), ancestors),
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


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=seeded_generator(seed)).to(default_device())


def _codes(options: Options) -> int:
    return options.codes or (QUICK_CODES if options.quick else CODES)


BENCHMARKS = {"nearest": bench_nearest, "counting": bench_counting, "cache": bench_cache}

if __name__ == "__main__":
    start_settled()
    main(BENCHMARKS, __doc__)
