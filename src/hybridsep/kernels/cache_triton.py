"""Triton bodies of `cache`."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_X = 1024
BLOCK_T = 32


def move_rows(cache: Tensor, ancestors: Tensor) -> None:
    """See cache.reorder_cache."""
    slabs, rows, width = cache.shape
    _move_rows[(rows, slabs)](cache, ancestors.contiguous(), rows, width, BLOCK_X)


def attend_rows(query: Tensor, keys: Tensor, values: Tensor, table: Tensor, filled: int) -> Tensor:
    """See cache.attend_by_ancestry."""
    lead, rows, heads, width = query.shape
    result = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    _attend_rows[(rows, lead)](
        query.contiguous(), keys, values, table, result, filled, heads, width,
        *keys.stride(), *values.stride(), *table.stride(),
        max(16, triton.next_power_of_2(heads)), BLOCK_T, max(16, triton.next_power_of_2(width)), num_stages=1,
    )  # fmt: skip
    return result


@triton.jit
def _move_rows(cache, ancestors, rows, width, BLOCK_X: tl.constexpr):
    """One row of one slab."""
    row = tl.program_id(0).to(tl.int64)
    slab = tl.program_id(1).to(tl.int64) * rows
    source = tl.load(ancestors + row)
    if source != row:
        for start in range(0, width, BLOCK_X):
            column = start + tl.arange(0, BLOCK_X)
            numbers = tl.load(cache + (slab + source) * width + column, mask=column < width)
            tl.store(cache + (slab + row) * width + column, numbers, mask=column < width)


@triton.jit
def _attend_rows(
    query, keys, values, table, result, filled, heads, width,
    key_lead, key_slot, key_row, key_column, value_lead, value_slot, value_row, value_column, table_row, table_slot,
    BLOCK_H: tl.constexpr, BLOCK_T: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """All heads of one row, BLOCK_T positions at a time; the softmax is rescaled whenever its peak rises."""
    row = tl.program_id(0).to(tl.int64)
    lead = tl.program_id(1).to(tl.int64)
    head = tl.arange(0, BLOCK_H)
    column = tl.arange(0, BLOCK_D)
    real = (head < heads)[:, None] & (column < width)[None, :]
    own = ((lead * tl.num_programs(0) + row) * heads + head[:, None]) * width + column[None, :]
    scaled = tl.load(query + own, mask=real, other=0.0)
    keys += lead * key_lead
    values += lead * value_lead
    peak = tl.full([BLOCK_H], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_H], tl.float32)
    mixed = tl.zeros([BLOCK_H, BLOCK_D], tl.float32)
    for start in range(0, filled, BLOCK_T):
        slot = (start + tl.arange(0, BLOCK_T)).to(tl.int64)
        seen = slot < filled
        within = seen[:, None] & (column < width)[None, :]
        physical = tl.load(table + row * table_row + slot * table_slot, mask=seen, other=0).to(tl.int64)
        key = tl.load(
            keys + (slot * key_slot + physical * key_row)[:, None] + column[None, :] * key_column,
            mask=within,
            other=0.0,
        )
        value = tl.load(
            values + (slot * value_slot + physical * value_row)[:, None] + column[None, :] * value_column,
            mask=within,
            other=0.0,
        )
        scores = tl.where(seen[None, :], tl.dot(scaled, tl.trans(key), input_precision="ieee"), float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp(scores - higher[:, None])
        shrink = tl.exp(peak - higher)
        total = total * shrink + tl.sum(weights, 1)
        mixed = tl.dot(weights.to(value.dtype), value, mixed * shrink[:, None], input_precision="ieee")
        peak = higher
    tl.store(result + own, (mixed / total[:, None]).to(result.dtype.element_ty), mask=real)
