"""Decoding with the priors of all sources at once, one code at a time, for search.

`PriorStack` holds the weights of all sources in one tensor per layer, so that a step is one batched product per layer for every
source, mixture and particle. What can be folded into the weights is: the gain of the RMS norm, the scale of the attention.

Sources: Shazeer 2019 (arXiv 1911.02150) for keys and values shared by heads and cached; Su et al. 2021 (arXiv 2104.09864) for rotary
positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakMethod

import torch
from torch import Tensor

from hybridsep.inference.replay import Replayed
from hybridsep.kernels.bodies import run_body
from hybridsep.kernels.cache import as_wide_numbers, move_rows
from hybridsep.models.prior import Prior, rotary_angles

ROTATIONS_AT_ONCE = 256
SHARED_FROM = 512
FOLD_EVERY = 16
FIRST_ROOM = 64
PLACES_AT_ONCE = 32


@dataclass(frozen=True)
class Layer:
    """Weights of one layer for P sources. W is the width, D that of a head; a group is some query heads and the key they share.

    Attributes:
        to_heads: [P, W, groups · (heads per group + 1) · D]: for each group its queries, then its key.
        to_values: [P, W, groups · D].
        from_heads: [P, W, W].
        expand: [P, W, 4W].
        contract: [P, 4W, W].
    """

    to_heads: Tensor
    to_values: Tensor
    from_heads: Tensor
    expand: Tensor
    contract: Tensor


class PriorStack:
    """The priors of P sources as one module for decoding.

    Args:
        priors: one per source, of equal shape.
        dtype: of the matrix products and of the cache; log-probabilities are always float32.
        temperature: the priors are raised to one over it and normalised again: above 1 they are less sure of themselves.

    Raises:
        ValueError: the priors differ in shape or codebook size, or the temperature is not positive.
    """

    def __init__(self, priors: list[Prior], dtype: torch.dtype = torch.float32, temperature: float = 1.0):
        first = priors[0]
        if not temperature > 0:
            raise ValueError(f"temperature {temperature} is not positive")
        if any(
            p.settings.model_dump(exclude={"training"}) != first.settings.model_dump(exclude={"training"})
            or p.codes != first.codes
            for p in priors
        ):
            raise ValueError("stacked priors must have equal shapes and codebook sizes")
        self.settings, self.codes, self.sources, self.dtype, self.temperature = (
            first.settings,
            first.codes,
            len(priors),
            dtype,
            temperature,
        )
        self.groups = self.settings.kv_heads
        self.queries = self.settings.heads // self.groups
        self.head_width = self.settings.width // self.settings.heads
        # A unit vector times the root of the width is what the RMS norm makes.
        gain = self.settings.width**0.5

        def stack(name: str, scale: float = 1.0) -> Tensor:
            weights = [p.get_submodule(name).weight.detach().float() for p in priors]
            return torch.stack([scale * w.T for w in weights])

        self.embedding = torch.stack([p.embedding.weight.detach() for p in priors]).to(dtype)
        self.layers = []
        for i in range(self.settings.layers):
            block = f"blocks.{i}."
            heads, values = self._split(stack(block + "attention.project_in", gain))
            rest = stack(block + "attention.project_out"), stack(block + "expand", gain), stack(block + "contract")
            self.layers.append(Layer(*(w.to(dtype).contiguous() for w in (heads, values, *rest))))
        self.head = stack("head", gain / temperature).to(dtype).contiguous()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.device

    def start(self, mixtures: int, particles: int, resampled: bool = False) -> PriorState:
        """State before the first code, for B = `mixtures` times N = `particles` histories of every source.

        Particles that are `resampled` soon descend from one ancestor: where the window is long they share their past.
        """
        if self.device.type == "cuda":
            return GraphedState(self, StaticCache(self, mixtures, particles), mixtures, particles)
        shared = resampled and particles > 1 and self.settings.window >= SHARED_FROM
        return PriorState(
            self, (SharedPast if shared else PrivateCache)(self, mixtures, particles), mixtures, particles
        )

    def rotations(self, positions: Tensor) -> Tensor:
        """Rotary positions [T] as matrices to multiply heads with from the right: [T, D, D]."""
        cosine, sine = rotary_angles(positions, self.settings)
        cosine, sine = torch.diag_embed(cosine), torch.diag_embed(sine)
        return torch.cat([torch.cat([cosine, sine], 2), torch.cat([-sine, cosine], 2)], 1).to(self.dtype)

    def embed(self, codes: Tensor, out: Tensor) -> Tensor:
        """Codes int64 [P, R] -> `out` [P, R, W]."""
        for table, row, place in zip(self.embedding, codes, out, strict=True):
            torch.index_select(table, 0, row, out=place)
        return out

    def _split(self, project_in: Tensor) -> tuple[Tensor, Tensor]:
        """Columns of [P, W, (heads + 2 groups) · D], all queries, all keys, all values, in the order of `Layer`."""
        columns = project_in.unflatten(2, (-1, self.head_width))
        query, key, value = columns.split([self.settings.heads, self.groups, self.groups], 2)
        query = query.unflatten(2, (self.groups, self.queries)) * self.head_width**-0.5
        return torch.cat([query, key.unsqueeze(3)], 3).flatten(2), value.flatten(2)


class PriorState:
    """Histories of B·N particles under every prior.

    Attributes:
        cache: keys and values of the past.
        log_probs: float32 [P, B, N, K], nats: log p(next code | history of that source).
    """

    def __init__(self, stack: PriorStack, cache: PrivateCache | SharedPast, mixtures: int, particles: int):
        self.stack, self.cache = stack, cache
        self.length = 0
        self._room = _Room(stack, mixtures * particles)
        start = torch.full((stack.sources, mixtures, particles), stack.codes, dtype=torch.long, device=stack.device)
        self.log_probs = self._step(start)

    def append(self, codes: Tensor, ancestors: Tensor | None = None) -> None:
        """Particle n of mixture b goes on from the history of particle ancestors[b, n] with its own code.

        Args:
            codes: int64 [P, B, N].
            ancestors: int64 [B, N]; each its own without it. A particle that is anybody's ancestor is its own, as by
                `search.stay_in_place`.
        """
        if ancestors is not None:
            self.cache.reorder(ancestors)
        self.log_probs = self._step(codes)

    @torch.no_grad()
    def _step(self, codes: Tensor) -> Tensor:
        stack, room = self.stack, self._room
        x = stack.embed(codes.flatten(1), room.x)
        heads_shape = (*x.shape[:2], stack.groups, stack.queries + 1, stack.head_width)
        rotation = self._next_rotation()
        self.cache.make_room()
        for index, layer in enumerate(stack.layers):
            normed = unit(x, room.norms, room.normed)
            heads = torch.bmm(normed, layer.to_heads, out=room.heads).view(-1, stack.head_width)
            heads = torch.mm(heads, rotation, out=room.turned).view(heads_shape)
            value = torch.bmm(normed, layer.to_values, out=room.value).view(*heads_shape[:3], -1)
            mixed = self.cache.attend(index, heads[..., :-1, :], heads[..., -1, :], value)
            x.baddbmm_(mixed.view(x.shape), layer.from_heads)
            hidden = torch.bmm(unit(x, room.norms, room.normed), layer.expand, out=room.hidden).relu_()
            x.baddbmm_(hidden.mul_(hidden), layer.contract)
        scores = torch.bmm(unit(x, room.norms, room.normed), stack.head, out=room.scores)
        return torch.log_softmax(scores.float(), -1).view(*codes.shape, stack.codes)

    def _next_rotation(self) -> Tensor:
        place = self.length % ROTATIONS_AT_ONCE
        if place == 0:
            positions = torch.arange(self.length, self.length + ROTATIONS_AT_ONCE, device=self.stack.device)
            self._rotations = self.stack.rotations(positions)
        self.length += 1
        return self._rotations[place]


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


class GraphedState(PriorState):
    """`PriorState` of static shapes, its step replayed as a CUDA graph, alone or as part of a larger one.

    `log_probs` is one tensor, written anew by each step. On other devices the same step runs as it is.
    """

    replayable = True

    def __init__(self, stack: PriorStack, cache: StaticCache, mixtures: int, particles: int):
        self._codes = torch.zeros(stack.sources, mixtures, particles, dtype=torch.long, device=stack.device)
        # Who held itself would keep the memory of a finished search until Python next looks for such cycles.
        predict = WeakMethod(self._predict)
        self._replayed = Replayed(lambda: predict()(), stack.device)
        super().__init__(stack, cache, mixtures, particles)

    def append(self, codes: Tensor, ancestors: Tensor | None = None) -> None:
        """See PriorState."""
        if ancestors is not None:
            self.cache.reorder(ancestors)
        self._codes.copy_(codes)
        self._replayed()

    def _predict(self) -> None:
        self.log_probs = self._step(self._codes)

    def _next_rotation(self) -> Tensor:
        return self.stack.rotations(self.cache.position + 1)[0]


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


def unit(x: Tensor, norms: Tensor, out: Tensor) -> Tensor:
    """Vectors of length one along the last axis, in `out`; zero stays zero. Their lengths come to lie in `norms`."""
    return torch.div(x, torch.linalg.vector_norm(x, dim=-1, keepdim=True, out=norms).add_(1e-6), out=out)


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


class _Room:
    """What the layers of a step write into, for P sources and R rows: a step allocates nothing layer by layer."""

    def __init__(self, stack: PriorStack, rows: int):
        layer, width = stack.layers[0], stack.settings.width

        def room(*shape: int) -> Tensor:
            return torch.empty(stack.sources, rows, *shape, dtype=stack.dtype, device=stack.device)

        self.x, self.normed, self.norms = room(width), room(width), room(1)
        self.heads, self.value, self.hidden = (
            room(w.shape[2]) for w in (layer.to_heads, layer.to_values, layer.expand)
        )
        self.turned = torch.empty_like(self.heads).view(-1, stack.head_width)
        self.scores = room(stack.codes)
