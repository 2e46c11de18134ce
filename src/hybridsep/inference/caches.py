"""Keys and values of the past, for the priors' decoder: a ring per particle, and the same with fixed addresses for CUDA graphs.

Source: Shazeer 2019 (arXiv 1911.02150) for keys and values shared by heads and cached.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hybridsep.kernels.cache import as_wide_numbers, move_rows

if TYPE_CHECKING:
    from hybridsep.inference.decoder import PriorStack

PLACES_AT_ONCE = 32


class PrivateCache:
    """Keys and values of every particle in a ring of its own, for B mixtures and N particles of each."""

    def __init__(self, stack: PriorStack, mixtures: int, particles: int):
        self.window, self.length = stack.settings.window, 0
        # Keys and values, [2, layers, P, B·N, groups, window, D]; and the same as slabs of rows of few wide numbers, [2 · layers · P, B·N, X].
        layers, rows = stack.settings.layers, mixtures * particles
        shape = (2, layers, stack.sources, rows, stack.groups, self.window, stack.head_width)
        self.cache = torch.zeros(shape, dtype=stack.dtype, device=stack.device)
        self._rows, self._attention = as_wide_numbers(self.cache.flatten(4).flatten(0, 2)), _Attention()

    def make_room(self) -> None:
        """Open the place of the next position."""
        self._slot = self.length % self.window
        self.length += 1
        self._filled = min(self.length, self.window)
        # A product of a new shape is compiled and kept with its scratch memory: shapes grow in strides.
        self._visible = min(self.window, -(-self._filled // PLACES_AT_ONCE) * PLACES_AT_ONCE)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Keep a key and a value, [P, B·N, groups, D], and attend to the window.

        Scaled queries [P, B·N, groups, heads per group, D] -> [P · B·N · groups, heads per group, D].
        """
        keys, values = self.cache[:, layer]
        keys[..., self._slot, :] = key
        values[..., self._slot, :] = value
        past_keys, past_values = (part[..., : self._visible, :].flatten(0, 2) for part in (keys, values))
        return self._attention(query.flatten(0, 2), past_keys, past_values, self._filled)

    def reorder(self, ancestors: Tensor) -> None:
        """Let particle n of mixture b go on from the past of particle ancestors[b, n]; int64 [B, N].

        Whoever is anybody's ancestor is its own.
        """
        first = torch.arange(0, self._rows.shape[1], ancestors.shape[1], device=ancestors.device)
        move_rows(self._rows, (ancestors + first[:, None]).flatten())


class StaticCache(PrivateCache):
    """`PrivateCache` with every shape and address the same at each step, the position a number on the device: what a CUDA graph needs."""

    def __init__(self, stack: PriorStack, mixtures: int, particles: int):
        super().__init__(stack, mixtures, particles)
        self.position = torch.full((1,), -1, device=stack.device)
        self._places = torch.arange(self.window, device=stack.device)

    def make_room(self) -> None:
        self.position.add_(1)
        self._now = self.position % self.window
        self._hidden = self._places > self.position

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        keys, values = self.cache[:, layer]
        keys.index_copy_(-2, self._now, key.unsqueeze(-2))
        values.index_copy_(-2, self._now, value.unsqueeze(-2))
        scores = torch.bmm(query.flatten(0, 2), keys.flatten(0, 2).transpose(1, 2))
        return torch.bmm(scores.masked_fill(self._hidden, -torch.inf).softmax(-1), values.flatten(0, 2))


class _Attention:
    """Attention into tensors that are kept from layer to layer, and from step to step while the shapes stay."""

    def __init__(self) -> None:
        self._scores = self._weights = self._mixed = torch.empty(0)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, filled: int) -> Tensor:
        """Attend with scaled queries [R, G, D] to the first `filled` places of keys and values [R, T, D]: [R, G, D]."""
        shape = (*query.shape[:2], key.shape[1])
        if self._scores.shape != shape:
            self._scores, self._weights = query.new_empty(shape), query.new_empty(shape)
            self._mixed = query.new_empty(query.shape)
        scores = torch.bmm(query, key.transpose(1, 2), out=self._scores)
        if filled < key.shape[1]:
            scores[..., filled:] = -torch.inf
        return torch.bmm(torch.softmax(scores, -1, out=self._weights), value, out=self._mixed)
