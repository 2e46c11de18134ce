"""The products of matrices and the convolutions of a computation: noted while it runs, and done again with nothing else going on."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten
from torch.utils.flop_counter import flop_registry

from hybridsep.bench.measure import least_seconds

SECONDS_EACH = 0.1


@dataclass(frozen=True)
class _Form:
    """A tensor without its values."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype

    def filled(self, device: torch.device) -> Tensor:
        """One of this form, of random numbers."""
        places = 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))
        return torch.randn(places, device=device).to(self.dtype).as_strided(self.shape, self.stride)


class Products(TorchDispatchMode):
    """Notes every product and convolution within the context, backward passes included.

    Attributes:
        operations: of all of them; a multiplication and an addition are two.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self._calls: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func._overloadpacket in flop_registry:
            self.operations += flop_registry[func._overloadpacket](*args, **kwargs, out_val=result)
            leaves, structure = tree_flatten((args, kwargs))
            forms = (_Form(x.shape, x.stride(), x.dtype) if isinstance(x, Tensor) else x for x in leaves)
            self._calls[func, tuple(forms), structure] += 1
        return result

    def seconds_alone(self, device: torch.device) -> float:
        """Seconds that all of them take in the same forms, each by itself at its best."""
        total = 0.0
        for (func, forms, structure), count in self._calls.items():
            filled = tree_map(lambda form: form.filled(device) if isinstance(form, _Form) else form, list(forms))
            args, kwargs = tree_unflatten(filled, structure)
            total += count * least_seconds(lambda: func(*args, **kwargs), device, SECONDS_EACH)
        return total
