"""Codes: whether they exist, and counts of their triples."""

import torch
from torch import Tensor


def count_triples(first: Tensor, second: Tensor, mixture: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """Count how often each distinct triple of K codes, integers of one shape, occurs: sorted keys (m·K + i)·K + j and counts, int64 [distinct].

    ValueError: shapes differ, or a code lies outside [0, K).
    """
    if not first.shape == second.shape == mixture.shape:
        shapes = ", ".join(str(list(part.shape)) for part in (first, second, mixture))
        raise ValueError(f"triples of different shapes: {shapes}")
    for name, values in (("first code", first), ("second code", second), ("mixture code", mixture)):
        check_codes(name, values, codes)
    keys = (mixture.long() * codes + first) * codes + second
    return torch.unique(keys, return_counts=True)


def check_codes(name: str, codes: Tensor, size: int) -> None:
    """Refuse codes outside [0, size) by a ValueError that gives `name` and the value: on a GPU they would be a read outside a tensor."""
    if not codes.numel():
        return
    lowest, highest = torch.stack(codes.aminmax()).tolist()
    if lowest < 0 or highest >= size:
        raise ValueError(f"{name} {lowest if lowest < 0 else highest} lies outside [0, {size})")
