"""Which body of an operation runs: Triton on CUDA, plain torch everywhere else.

The Triton body of a torch body has the same name and signature and lives in the module of the same name plus `_triton`. Those modules
are imported only when one of their bodies runs: installations for the CPU have no Triton.
"""

from collections.abc import Callable
from functools import cache, wraps
from importlib import import_module
from importlib.util import find_spec
from typing import TypeVar

import torch
from torch import Tensor

OLDEST = (7, 5)  # compute capability (Turing) from which on Triton is used
Result = TypeVar("Result")


def two_bodies(torch_body: Callable[..., Result]) -> Callable[..., Result]:
    """Make a torch body the door of its operation, through which calls reach the body of their device."""

    @wraps(torch_body)
    def door(*arguments) -> Result:
        return run_body(torch_body, *arguments)

    return door


def run_body(torch_body: Callable[..., Result], *arguments) -> Result:
    """Call `torch_body`, or its Triton body, by the device of the first argument."""
    first = arguments[0]
    if not runs_triton(first):
        return torch_body(*arguments)
    body = getattr(import_module(torch_body.__module__ + "_triton"), torch_body.__name__)
    with torch.cuda.device_of(first):
        return body(*arguments)


def runs_triton(tensor: Tensor) -> bool:
    """Tell whether operations on this tensor run their Triton body."""
    return tensor.is_cuda and _usable(tensor.device)


@cache
def _usable(device: torch.device) -> bool:
    return find_spec("triton") is not None and torch.cuda.get_device_capability(device) >= OLDEST
