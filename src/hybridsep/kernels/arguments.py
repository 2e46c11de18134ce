"""What operations refuse: a code that does not exist would be a read outside a tensor on a GPU."""

import torch
from torch import Tensor


def check_codes(name: str, codes: Tensor, size: int) -> None:
    """Refuse codes outside [0, size) by a ValueError that gives `name` and the value."""
    if not codes.numel():
        return
    lowest, highest = torch.stack(codes.aminmax()).tolist()
    if lowest < 0 or highest >= size:
        raise ValueError(f"{name} {lowest if lowest < 0 else highest} lies outside [0, {size})")
