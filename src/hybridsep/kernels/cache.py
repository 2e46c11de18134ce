"""Keys and values of particles that are resampled: copied into place, or left where they are and found through a table."""

from __future__ import annotations

import torch
from torch import Tensor

from hybridsep.kernels.bodies import run_body

COPIED_BYTES = 2**22


def reorder_cache(cache: Tensor, ancestors: Tensor) -> None:
    """Give every row the history of its ancestor, in place; only rows that move are copied.

    Args:
        cache: contiguous [C, R, X], C slabs (keys and values of every layer and source) of R rows.
        ancestors: int64 [R]. Every row that is read must stay in place, as `search.stay_in_place` arranges: rows are copied in no
            order, so none may be read and written.

    Raises:
        ValueError: an ancestor that does not exist or does not stay in place, wrong shapes, or a cache that is not contiguous.
    """
    rows = _check_ancestors(ancestors)
    if cache.ndim != 3 or cache.shape[1] != rows or not cache.is_contiguous():
        raise ValueError(f"a cache must be contiguous [C, {rows}, X], not {list(cache.shape)}")
    moving = ancestors[ancestors] != ancestors
    if moving.any():
        raise ValueError(
            f"ancestor {int(ancestors[moving][0])} does not stay in place: its row would be read and written"
        )
    run_body(move_rows, as_wide_numbers(cache), ancestors)


def move_rows(cache: Tensor, ancestors: Tensor) -> None:
    """See reorder_cache; this body reads all of a slab before it writes, so any ancestors will do."""
    moved = (ancestors != torch.arange(len(ancestors), device=ancestors.device)).nonzero()[:, 0]
    rows = cache.flatten(0, 1)
    if rows.dtype == torch.int64 and rows.shape[1] % 2 == 0 and not rows.is_cuda:
        rows = rows.view(torch.complex128)  # the widest number there is: half as many to copy
    # Several slabs in one list, some megabytes at a time: temporary tensors of ever other sizes would leave holes in the memory.
    slabs = torch.arange(0, len(rows), len(ancestors), device=rows.device)[:, None]
    at_once = max(1, COPIED_BYTES // max(1, len(moved) * rows.shape[1] * rows.element_size()))
    for some in slabs.split(at_once):
        rows[(some + moved).flatten()] = rows.index_select(0, (some + ancestors[moved]).flatten())


class AncestryTable:
    """Where the history of every row lies when no key or value is ever moved.

    A row's number at a position of the ring was written by one of its ancestors, in that ancestor's row of the slot. Only this table
    follows the resampling. It is safe to write slot t mod window at step t: what all rows find there is the position that leaves the
    window, and it leaves for all of them at the same step.

    A step is `reorder`, then `write`, then keys and values of every row into its own row of the slot, then `attend_by_ancestry`.

    Attributes:
        rows: int32 [R, window], the physical row in which each row finds each slot; itself before anything is written.
    """

    def __init__(self, rows: int, window: int, device: torch.device | str = "cpu"):
        if rows < 1 or window < 1:
            raise ValueError(f"{rows} rows by {window} positions: at least one of each is needed")
        self._own = torch.arange(rows, dtype=torch.int32, device=device)
        self.rows = self._own[:, None].repeat(1, window)

    def reorder(self, ancestors: Tensor) -> None:
        """Row r goes on from the history of row ancestors[r]; int64 [R], with no promise of who stays in place."""
        if _check_ancestors(ancestors) != len(self.rows):
            raise ValueError(f"{len(ancestors)} ancestors for {len(self.rows)} rows")
        self.rows = self.rows.index_select(0, ancestors)

    def write(self, slot: int) -> None:
        """Every row writes `slot` of its own history into its own physical row."""
        if not 0 <= slot < self.rows.shape[1]:
            raise ValueError(f"slot {slot} lies outside [0, {self.rows.shape[1]})")
        self.rows[:, slot] = self._own


def attend_by_ancestry(query: Tensor, keys: Tensor, values: Tensor, table: Tensor, filled: int) -> Tensor:
    """Attention of every row to its own history, which lies in the rows of its ancestors.

    Args:
        query: scaled queries of H heads that share keys and values, [..., R, H, D].
        keys, values: [..., window, R, D], leading axes as in `query`, any strides, numbers of one type with the query.
        table: physical rows, `AncestryTable.rows`, int32 [R, window].
        filled: slots 0 ... filled − 1 are attended to; their order makes no difference.

    Returns:
        [..., R, H, D].

    Raises:
        ValueError: wrong shapes, or `filled` outside [1, window].
    """
    rows, window = table.shape
    lead, width = query.shape[:-3], query.shape[-1]
    if query.shape[-3] != rows or not keys.shape == values.shape == (*lead, window, rows, width):
        shapes = f"query {list(query.shape)}, keys {list(keys.shape)}, values {list(values.shape)}"
        raise ValueError(f"{shapes} do not fit {rows} rows by {window} positions")
    if not 1 <= filled <= window:
        raise ValueError(f"{filled} filled positions lie outside [1, {window}]")
    query, keys, values = (x.reshape(-1, *x.shape[-3:]) for x in (query, keys, values))
    # Triton bodies compute in no bfloat16: Turing has none.
    attend = attend_rows if query.dtype == torch.bfloat16 else lambda *arguments: run_body(attend_rows, *arguments)
    return attend(query, keys, values, table, filled).view(*lead, rows, -1, width)


def attend_rows(query: Tensor, keys: Tensor, values: Tensor, table: Tensor, filled: int) -> Tensor:
    """See attend_by_ancestry; one leading axis."""
    slots = torch.arange(filled, device=table.device)
    own_keys, own_values = (x[:, slots, table[:, :filled].long()] for x in (keys, values))
    return (query @ own_keys.transpose(-1, -2)).softmax(-1) @ own_values


def _check_ancestors(ancestors: Tensor) -> int:
    """Number of rows."""
    if ancestors.ndim != 1 or not len(ancestors):
        raise ValueError(f"ancestors must be [R], not {list(ancestors.shape)}")
    lowest, highest = torch.stack(ancestors.aminmax()).tolist()
    if lowest < 0 or highest >= len(ancestors):
        raise ValueError(f"ancestor {lowest if lowest < 0 else highest} lies outside [0, {len(ancestors)})")
    return len(ancestors)


def as_wide_numbers(cache: Tensor) -> Tensor:
    """[C, R, X] as the widest integers that divide a row: copies by index go number by number, and no bit of them is looked at."""
    row_bytes = cache.shape[2] * cache.element_size()
    return cache.view(
        next(d for d in (torch.int64, torch.int32, torch.int16, torch.int8) if row_bytes % d.itemsize == 0)
    )
