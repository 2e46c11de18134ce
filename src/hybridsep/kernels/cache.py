"""Keys and values of particles that are resampled, copied into place."""

import torch
from torch import Tensor

from hybridsep.kernels.bodies import two_bodies

COPIED_BYTES = 2**22


@two_bodies
def move_rows(cache: Tensor, ancestors: Tensor) -> None:
    """Give every row the history of its ancestor, int64 [R], in place in a contiguous cache [C, R, X]: C slabs, keys and values of every layer.

    Only rows that move are copied. Every row that is read must stay in place, as `resampling.stay_in_place` arranges: the Triton body copies rows
    in no order, so none may be read and written. The torch body reads all of a slab before it writes.
    """
    moved = (ancestors != torch.arange(len(ancestors), device=ancestors.device)).nonzero()[:, 0]
    rows = cache.flatten(0, 1)
    if rows.dtype == torch.int64 and rows.shape[1] % 2 == 0 and not rows.is_cuda:
        rows = rows.view(torch.complex128)  # the widest number there is: half as many to copy
    # Several slabs in one list, some megabytes at a time: temporary tensors of ever other sizes would leave holes in the memory.
    slabs = torch.arange(0, len(rows), len(ancestors), device=rows.device)[:, None]
    at_once = max(1, COPIED_BYTES // max(1, len(moved) * rows.shape[1] * rows.element_size()))
    for some in slabs.split(at_once):
        rows[(some + moved).flatten()] = rows.index_select(0, (some + ancestors[moved]).flatten())


def as_wide_numbers(cache: Tensor) -> Tensor:
    """View [C, R, X] as the widest integers that divide a row: copies by index go number by number, and no bit of them is looked at."""
    row_bytes, widths = cache.shape[2] * cache.element_size(), (torch.int64, torch.int32, torch.int16, torch.int8)
    return cache.view(next(dtype for dtype in widths if row_bytes % dtype.itemsize == 0))
