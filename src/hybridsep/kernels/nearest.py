"""Assignment of vectors to their nearest code."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS_AT_ONCE = 16384


def nearest_code(vectors: Tensor, codebook: Tensor) -> Tensor:
    """Index of the nearest codebook vector by Euclidean distance, without the whole [rows, K] distance matrix.

    Args:
        vectors: float32 [rows, D].
        codebook: float32 [K, D].

    Returns:
        int64 [rows]; the lowest index among equals.
    """
    half_norms = 0.5 * codebook.square().sum(1)
    parts = [
        torch.addmm(half_norms, part, codebook.T, alpha=-1.0).argmin(1) for part in vectors.split(ROWS_AT_ONCE)
    ]
    return torch.cat(parts) if parts else vectors.new_zeros(0, dtype=torch.long)
