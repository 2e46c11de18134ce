"""Categorical draws by inversion of uniform numbers."""

from __future__ import annotations

import torch
from torch import Tensor


def invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one index per row; never one of weight zero, except 0 where all weights are zero.

    Args:
        weights: not normalised, float32 [R, K].
        uniforms: [R] in [0, 1).

    Returns:
        int64 [R].
    """
    positive = weights > 0
    cumulative = weights.cumsum(1)
    # A parallel sum may rise by rounding where the weight is zero: such a place is never taken.
    past = positive & (cumulative > uniforms[:, None] * cumulative[:, -1:])
    last = (positive * torch.arange(weights.shape[1], device=weights.device)).amax(1)
    return torch.where(past.any(1), past.byte().argmax(1), last)
