"""Triton body of `cache`."""

import triton
import triton.language as tl
from torch import Tensor

BLOCK_X = 1024


def move_rows(cache: Tensor, ancestors: Tensor) -> None:
    """See cache.move_rows."""
    slabs, rows, width = cache.shape
    _move_rows[(rows, slabs)](cache, ancestors.contiguous(), rows, width, BLOCK_X)


@triton.jit
def _move_rows(cache, ancestors, rows, width, BLOCK_X: tl.constexpr):
    """Copy one row of one slab."""
    row = tl.program_id(0).to(tl.int64)
    slab = tl.program_id(1).to(tl.int64) * rows
    source = tl.load(ancestors + row)
    if source != row:
        for start in range(0, width, BLOCK_X):
            column = start + tl.arange(0, BLOCK_X)
            numbers = tl.load(cache + (slab + source) * width + column, mask=column < width)
            tl.store(cache + (slab + row) * width + column, numbers, mask=column < width)
