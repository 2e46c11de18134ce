"""Keys and values of the past, for the priors' decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hybridsep.kernels.bodies import run_body
from hybridsep.kernels.cache import as_wide_numbers, move_rows

if TYPE_CHECKING:
    from hybridsep.inference.decoder import PriorStack


SHARED_FROM = 512


FOLD_EVERY = 16


FIRST_ROOM = 64


PLACES_AT_ONCE = 32


class PrivateCache:
    """Keys and values of every particle in a ring of its own."""

    def __init__(self, stack: PriorStack, mixtures: int, particles: int):
        self.particles, self.window, self.length = particles, stack.settings.window, 0
        rows = mixtures * particles
        shape = (2, stack.settings.layers, stack.sources, rows, stack.groups, self.window, stack.head_width)
        self.cache = torch.zeros(shape, dtype=stack.dtype, device=stack.device)
        self._rows, self._attention = wide_rows(self.cache), _Attention()

    @property
    def nbytes(self) -> int:
        """Memory of all keys and values, in bytes."""
        return self.cache.nbytes

    def make_room(self) -> None:
        """Open the place of the next position."""
        self._slot = self.length % self.window
        self.length += 1
        self._filled = min(self.length, self.window)
        # A product of a new shape is compiled and kept with its scratch memory: shapes grow in strides.
        self._visible = min(self.window, -(-self._filled // PLACES_AT_ONCE) * PLACES_AT_ONCE)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Keep key and value and attend to the window: query [P, R, groups, heads per group, D], key and value [P, R, groups, D]."""
        keys, values = self.cache[:, layer]
        keys[..., self._slot, :] = key
        values[..., self._slot, :] = value
        past = (part[..., : self._visible, :].flatten(0, 2) for part in (keys, values))
        return self._attention(query.flatten(0, 2), *past, self._filled)

    def reorder(self, ancestors: Tensor) -> None:
        """Particle n of mixture b goes on from the past of particle ancestors[b, n]; int64 [B, N]."""
        reorder_rows(self._rows, ancestors)


class SharedPast:
    """Keys and values of what all particles of a mixture have in common once, and of the rest for each particle.

    After some resamplings all particles descend from one, and up to there their past is the same. Everybody attends to that part by one
    matrix product per mixture, to its own part by one per particle, and both scores go through one softmax: exact, with memory and traffic
    that hardly grow with the number of particles. The border is the same for all mixtures of a batch and moves every FOLD_EVERY steps.
    """

    def __init__(self, stack: PriorStack, mixtures: int, particles: int):
        self.mixtures, self.particles, self.window = mixtures, particles, stack.settings.window
        self.length = self.border = 0
        self._stack = stack
        self._common, self._own = self._buffer(mixtures, FIRST_ROOM), self._buffer(mixtures * particles, FIRST_ROOM)
        # Position of the first place of either buffer.
        self._common_from = self._own_from = 0
        # Who wrote each place of the own part: where all particles of a mixture say the same, their past is one.
        self._writer = torch.zeros(mixtures, particles, FIRST_ROOM, dtype=torch.int32, device=stack.device)

    @property
    def suffix(self) -> int:
        """Length of the part that is kept for each particle, in codes."""
        return self.length - max(self.border, self._oldest)

    @property
    def nbytes(self) -> int:
        """Memory of all keys and values, in bytes."""
        return self._common.nbytes + self._own.nbytes

    @property
    def _oldest(self) -> int:
        return max(0, self.length - self.window)

    def make_room(self) -> None:
        """Open the place of the next position; now and then move the border to the particles' last common ancestor."""
        if self.length % FOLD_EVERY == 0:
            self._fold()
        self.length += 1
        if self.length - self._own_from > self._own.shape[-2]:
            first = max(self.border, self._oldest)
            used = slice(first - self._own_from, self.length - 1 - self._own_from)
            self._own, self._writer = _with_room(self._own, used), _with_room(self._writer[..., None], used)[..., 0]
            self._own_from = first
        # Before the first code all histories are one.
        names = torch.arange(self.particles if self.length > 1 else 1, dtype=torch.int32, device=self._writer.device)
        self._writer[..., self.length - 1 - self._own_from] = names

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As PrivateCache.attend."""
        place, first = self.length - 1 - self._own_from, max(self.border, self._oldest) - self._own_from
        keys, values = self._own[:, layer]
        keys[..., place, :] = key
        values[..., place, :] = value
        own_keys, own_values, hidden = _places(keys, values, first, place + 1)
        scores = _hide(torch.bmm(query.flatten(0, 2), own_keys.transpose(1, 2)).view(*query.shape[:-1], -1), hidden)
        begin, end = (max(0, p - self._common_from) for p in (self._oldest, self.border))
        if end <= begin:
            return torch.bmm(scores.softmax(-1).flatten(0, 2), own_values).view(query.shape)
        keys, values, hidden = _places(*self._common[:, layer], begin, end)
        common = _hide(self._per_particle(torch.bmm(self._per_mixture(query), keys.transpose(1, 2)), query), hidden)
        weights = torch.cat([common, scores], -1).softmax(-1)
        common, own = weights.split([common.shape[-1], scores.shape[-1]], -1)
        mixed = torch.bmm(own.flatten(0, 2), own_values).view(query.shape)
        return mixed + self._per_particle(torch.bmm(self._per_mixture(common), values), query)

    def reorder(self, ancestors: Tensor) -> None:
        """As PrivateCache.reorder; only what is kept for each particle is copied."""
        reorder_rows(wide_rows(self._own), ancestors)
        self._writer = self._writer.gather(1, ancestors[..., None].expand_as(self._writer))

    def _fold(self) -> None:
        """Move what all particles of every mixture have in common behind the border."""
        first = max(self.border, self._oldest)
        writer = self._writer[..., first - self._own_from : self.length - self._own_from]
        same = (writer == writer[:, :1]).all(1).all(0)
        common = first + int(same.long().cumprod(0).sum())
        if common == self.border:
            return
        if common - self._common_from > self._common.shape[-2]:
            start = min(first, max(self._common_from, self._oldest))
            used = slice(start - self._common_from, max(start, self.border) - self._common_from)
            self._common, self._common_from = _with_room(self._common, used, common - start), start
        one_each = self._own[..., first - self._own_from : common - self._own_from, :].unflatten(
            3, (self.mixtures, -1)
        )[:, :, :, :, 0]
        self._common[..., first - self._common_from : common - self._common_from, :] = one_each
        self.border = common

    def _per_mixture(self, x: Tensor) -> Tensor:
        """[P, B·N, groups, heads per group, X] -> [P · B · groups, N · heads per group, X]."""
        return x.unflatten(1, (self.mixtures, -1)).transpose(2, 3).flatten(0, 2).flatten(1, 2)

    def _per_particle(self, x: Tensor, like: Tensor) -> Tensor:
        """The way back, to the shape of `like` but for its last axis."""
        sources, rows, groups, queries, _ = like.shape
        split = x.view(sources, self.mixtures, groups, -1, queries, x.shape[-1])
        return split.transpose(2, 3).reshape(sources, rows, groups, queries, -1)

    def _buffer(self, rows: int, room: int) -> Tensor:
        stack = self._stack
        shape = (2, stack.settings.layers, stack.sources, rows, stack.groups, room, stack.head_width)
        return torch.zeros(shape, dtype=stack.dtype, device=stack.device)


class StaticCache:
    """`PrivateCache` with every shape and address the same at each step, the position a number on the device: what a CUDA graph needs."""

    def __init__(self, stack: PriorStack, mixtures: int, particles: int):
        self.window = stack.settings.window
        shape = (
            2,
            stack.settings.layers,
            stack.sources,
            mixtures * particles,
            stack.groups,
            self.window,
            stack.head_width,
        )
        self.cache = torch.zeros(shape, dtype=stack.dtype, device=stack.device)
        self.position = torch.full((1,), -1, device=stack.device)
        self._places = torch.arange(self.window, device=stack.device)
        self._rows = wide_rows(self.cache)

    def make_room(self) -> None:
        """Open the place of the next position."""
        self.position.add_(1)
        self._slot = self.position % self.window
        self._hidden = self._places > self.position

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """As PrivateCache.attend."""
        keys, values = self.cache[:, layer]
        keys.index_copy_(-2, self._slot, key.unsqueeze(-2))
        values.index_copy_(-2, self._slot, value.unsqueeze(-2))
        scores = torch.bmm(query.flatten(0, 2), keys.flatten(0, 2).transpose(1, 2)).masked_fill(
            self._hidden, -torch.inf
        )
        return torch.bmm(scores.softmax(-1), values.flatten(0, 2))

    def reorder(self, ancestors: Tensor) -> None:
        """As PrivateCache.reorder."""
        reorder_rows(self._rows, ancestors)


def _places(keys: Tensor, values: Tensor, first: int, last: int) -> tuple[Tensor, Tensor, tuple[int, int]]:
    """Keys and values of the places from `first` to before `last`, and of some around them that are to be hidden: how many before, how many seen.

    A product of a new shape is compiled and kept with its scratch memory, so shapes grow in strides.
    """
    begin = first // PLACES_AT_ONCE * PLACES_AT_ONCE
    end = min(keys.shape[-2], -(-last // PLACES_AT_ONCE) * PLACES_AT_ONCE)
    return keys[..., begin:end, :].flatten(0, 2), values[..., begin:end, :].flatten(0, 2), (first - begin, last - begin)


def _hide(scores: Tensor, seen: tuple[int, int]) -> Tensor:
    """Scores of all but the seen places become minus infinity, in place."""
    scores[..., : seen[0]] = -torch.inf
    scores[..., seen[1] :] = -torch.inf
    return scores


def _with_room(buffer: Tensor, used: slice, needed: int = 0) -> Tensor:
    """The used places of the last axis but one at the front of a new buffer, which has room for `needed` in all and some more."""
    kept = buffer[..., used, :]
    count = kept.shape[-2]
    room = max(needed, count) + min(max(count, FIRST_ROOM), 4 * FIRST_ROOM)
    room = -(-room // PLACES_AT_ONCE) * PLACES_AT_ONCE
    fresh = buffer.new_zeros(*buffer.shape[:-2], room, buffer.shape[-1])
    fresh[..., :count, :] = kept
    return fresh


def wide_rows(cache: Tensor) -> Tensor:
    """A view of keys and values [2, layers, P, R, groups, places, D] as slabs of rows of few wide numbers, [2 · layers · P, R, X]."""
    return as_wide_numbers(cache.flatten(4).flatten(0, 2))


def reorder_rows(rows: Tensor, ancestors: Tensor) -> None:
    """Row (b, n) of every slab goes on from row (b, ancestors[b, n]), in place. Rows [C, B·N, X], ancestors int64 [B, N] of which each is its own."""
    count = rows.shape[1]
    run_body(
        move_rows,
        rows,
        (ancestors + torch.arange(0, count, ancestors.shape[1], device=ancestors.device)[:, None]).flatten(),
    )


class _Attention:
    """Attention into tensors that are kept from layer to layer, and from step to step while the shapes stay."""

    def __init__(self) -> None:
        self._scores = self._weights = self._mixed = torch.empty(0)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, filled: int) -> Tensor:
        """Attention of scaled queries to the first `filled` places: query [R, G, D], key and value [R, T, D] -> [R, G, D]."""
        shape = (*query.shape[:2], key.shape[1])
        if self._scores.shape != shape:
            self._scores, self._weights, self._mixed = (
                query.new_empty(shape),
                query.new_empty(shape),
                query.new_empty(query.shape),
            )
        scores = torch.bmm(query, key.transpose(1, 2), out=self._scores)
        if filled < key.shape[1]:
            scores[..., filled:] = -torch.inf
        return torch.bmm(torch.softmax(scores, -1, out=self._weights), value, out=self._mixed)
