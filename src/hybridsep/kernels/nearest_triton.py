"""Triton body of `nearest`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_R, BLOCK_K = 64, 32


def assign(vectors: Tensor, codebook: Tensor) -> Tensor:
    """See nearest.nearest_code."""
    rows, width = vectors.shape
    found = torch.empty(rows, dtype=torch.long, device=vectors.device)
    tile = max(16, triton.next_power_of_2(width))
    sizes = (rows, len(codebook), width, BLOCK_R, BLOCK_K, tile)
    _assign[(triton.cdiv(rows, BLOCK_R),)](vectors.contiguous(), codebook.contiguous(), found, *sizes, num_stages=1)
    return found


@triton.jit
def _assign(
    vectors, codebook, found, rows, codes, width, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_D: tl.constexpr
):
    """Compare BLOCK_R vectors with the codebook, tile by tile, by ½‖e‖² − v·e."""
    row = tl.program_id(0).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    column = tl.arange(0, BLOCK_D)
    real = (row < rows)[:, None] & (column < width)[None, :]
    vector = tl.load(vectors + row[:, None] * width + column[None, :], mask=real, other=0.0)
    lowest = tl.full([BLOCK_R], float("inf"), tl.float32)
    nearest = tl.zeros([BLOCK_R], tl.int32)
    for start in range(0, codes, BLOCK_K):
        code = start + tl.arange(0, BLOCK_K)
        inside = (code < codes)[:, None] & (column < width)[None, :]
        tile = tl.load(codebook + code[:, None] * width + column[None, :], mask=inside, other=0.0)
        cost = 0.5 * tl.sum(tile * tile, 1)[None, :] - tl.dot(vector, tl.trans(tile), input_precision="ieee")
        cost = tl.where((code < codes)[None, :], cost, float("inf"))
        tile_lowest, at = tl.min(cost, 1, return_indices=True, return_indices_tie_break_left=True)
        # Strictly lower: among equals the tile that came first keeps its code.
        better = tile_lowest < lowest
        lowest = tl.where(better, tile_lowest, lowest)
        nearest = tl.where(better, start + at, nearest)
    tl.store(found + row, nearest.to(tl.int64), mask=row < rows)
