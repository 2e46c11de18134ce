"""Counts of triples of codes, and the sparse rows made of them."""

import torch
from torch import Tensor

from hybridsep.kernels.arguments import check_codes
from hybridsep.kernels.bodies import two_bodies

MOST_CODES = 46340
"""Of a codebook whose pairs can be numbered by an int32."""


def count_triples(first: Tensor, second: Tensor, mixture: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """Count how often each distinct triple occurs.

    Args:
        first, second, mixture: integers of one shape.
        codes: K.

    Returns:
        Sorted keys (m·K + i)·K + j and counts, int64 [distinct] each.

    Raises:
        ValueError: shapes differ, or a code lies outside [0, K).
    """
    shapes = [list(part.shape) for part in (first, second, mixture)]
    if not first.shape == second.shape == mixture.shape:
        raise ValueError(f"triples of different shapes: {', '.join(map(str, shapes))}")
    for name, values in (("first code", first), ("second code", second), ("mixture code", mixture)):
        check_codes(name, values, codes)
    return count_keys(first.flatten(), second.flatten(), mixture.flatten(), codes)


def csr(keys: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """Split sorted keys into rows by mixture code.

    Args:
        keys: of `count_triples`.
        codes: K.

    Returns:
        row_starts int64 [K + 1] and pairs i·K + j, int32 [distinct].

    Raises:
        ValueError: a key lies outside [0, K^3), or pairs do not fit an int32.
    """
    if codes > MOST_CODES:
        raise ValueError(f"{codes} codes have more pairs than an int32 can number; at most {MOST_CODES}")
    check_codes("key", keys, codes**3)
    pairs = codes * codes
    boundaries = torch.arange(codes + 1, device=keys.device) * pairs
    return torch.searchsorted(keys, boundaries), (keys % pairs).int()


@two_bodies
def count_keys(first: Tensor, second: Tensor, mixture: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """See count_triples; tensors [n]."""
    return torch.unique((mixture.long() * codes + first) * codes + second, return_counts=True)
