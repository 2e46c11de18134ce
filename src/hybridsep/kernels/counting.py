"""Counts of triples of codes."""

import torch
from torch import Tensor

from hybridsep.kernels.arguments import check_codes


def count_triples(first: Tensor, second: Tensor, mixture: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """Count how often each distinct triple of K codes, integers of one shape, occurs.

    Returns:
        Sorted keys (m·K + i)·K + j and counts, int64 [distinct] each.

    Raises:
        ValueError: shapes differ, or a code lies outside [0, K).
    """
    if not first.shape == second.shape == mixture.shape:
        shapes = ", ".join(str(list(part.shape)) for part in (first, second, mixture))
        raise ValueError(f"triples of different shapes: {shapes}")
    for name, values in (("first code", first), ("second code", second), ("mixture code", mixture)):
        check_codes(name, values, codes)
    keys = (mixture.long() * codes + first) * codes + second
    return torch.unique(keys, return_counts=True)
