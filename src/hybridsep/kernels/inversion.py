"""Categorical draws by inversion of uniform numbers."""

import torch
from torch import Tensor


def invert(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Draw one index per row, int64 [R], from weights [R, K] that need not be normalised, by uniforms [R] in [0, 1).

    Never one of weight zero, except 0 where all weights are zero.
    """
    positive = weights > 0
    cumulative = weights.cumsum(1)
    # A parallel sum may rise by rounding where the weight is zero: such a place is never taken.
    past = positive & (cumulative > uniforms[:, None] * cumulative[:, -1:])
    last = (positive * torch.arange(weights.shape[1], device=weights.device)).amax(1)
    return torch.where(past.any(1), past.byte().argmax(1), last)


def invert_sequential(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Draw the same in a third of the time, for CPUs: their sums run along a row in order, so they rise only where the weight is positive."""
    cumulative = weights.cumsum(1)
    total = cumulative[:, -1:]
    # The product may round up to the total, beyond which nothing lies.
    targets = torch.minimum(uniforms[:, None] * total, torch.nextafter(total, torch.zeros_like(total)))
    drawn = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    return drawn.masked_fill_(drawn == weights.shape[1], 0)
