"""Decoding with the priors of all sources at once, one code at a time, for search.

`PriorStack` holds the weights of all sources in one tensor per layer, so that a step is one batched product per layer for every
source, mixture and particle. What can be folded into the weights is: the gain of the RMS norm, the scale of the attention.

Source: Su et al. 2021 (arXiv 2104.09864) for rotary positions.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from hybridsep.inference.caches import PrivateCache, StaticCache
from hybridsep.kernels.replay import Replayed
from hybridsep.models.prior import Prior, rotary_angles

ROTATIONS_AT_ONCE = 256


@dataclass(frozen=True)
class Layer:
    """Weights of one layer for P sources. W is the width, D that of a head; a group is some query heads and the key they share."""

    to_heads: Tensor  # [P, W, groups · (heads per group + 1) · D]: for each group its queries, then its key
    to_values: Tensor  # [P, W, groups · D]
    from_heads: Tensor  # [P, W, W]
    expand: Tensor  # [P, W, 4W]
    contract: Tensor  # [P, 4W, W]


class PriorStack:
    """The priors of P sources as one module for decoding.

    Args:
        dtype: of the matrix products and of the cache; log-probabilities are always float32.
        temperature: T; the priors are raised to 1/T and normalised again: above 1 they are less sure of themselves.

    Raises:
        ValueError: the priors differ in shape or codebook size, or the temperature is not positive.
    """

    def __init__(self, priors: list[Prior], dtype: torch.dtype = torch.float32, temperature: float = 1.0):
        if not temperature > 0:
            raise ValueError(f"temperature {temperature} is not positive")
        if len({(p.settings.model_dump_json(exclude={"training"}), p.codes) for p in priors}) > 1:
            raise ValueError("stacked priors must have equal shapes and codebook sizes")
        self.settings = settings = priors[0].settings
        self.codes, self.sources, self.dtype = priors[0].codes, len(priors), dtype
        self.groups = settings.kv_heads
        self.queries = settings.heads // self.groups
        self.head_width = settings.width // settings.heads
        # A unit vector times the root of the width is what the RMS norm makes.
        gain = settings.width**0.5

        def stack(name: str, scale: float = 1.0) -> Tensor:
            weights = [p.get_parameter(f"{name}.weight").detach().float() for p in priors]
            return torch.stack([scale * w.T for w in weights])

        self.embedding = torch.stack([p.embedding.weight.detach() for p in priors]).to(dtype)
        self.layers = []
        for i in range(settings.layers):
            block = f"blocks.{i}."
            heads, values = self._split(stack(block + "attention.project_in", gain))
            rest = stack(block + "attention.project_out"), stack(block + "expand", gain), stack(block + "contract")
            self.layers.append(Layer(*(w.to(dtype).contiguous() for w in (heads, values, *rest))))
        self.head = stack("head", gain / temperature).to(dtype).contiguous()
        self.device = self.head.device

    def start(self, mixtures: int, particles: int) -> PriorState:
        """Return the state before the first code, for B = `mixtures` times N = `particles` histories of every source."""
        return (GraphedState if self.device.type == "cuda" else PriorState)(self, mixtures, particles)

    def rotations(self, positions: Tensor) -> Tensor:
        """Return rotary positions [T] as matrices to multiply heads with from the right, [T, D, D]."""
        cosine, sine = rotary_angles(positions, self.settings)
        cosine, sine = torch.diag_embed(cosine), torch.diag_embed(sine)
        return torch.cat([torch.cat([cosine, sine], 2), torch.cat([-sine, cosine], 2)], 1).to(self.dtype)

    def _split(self, project_in: Tensor) -> tuple[Tensor, Tensor]:
        """Columns of [P, W, (heads + 2 groups) · D], all queries, all keys, all values, in the order of `Layer`."""
        columns = project_in.unflatten(2, (-1, self.head_width))
        query, key, value = columns.split([self.settings.heads, self.groups, self.groups], 2)
        query = query.unflatten(2, (self.groups, self.queries)) * self.head_width**-0.5
        return torch.cat([query, key.unsqueeze(3)], 3).flatten(2), value.flatten(2)


class PriorState:
    """Histories of B·N particles under every prior; see `search.State`."""

    cache_type: type[PrivateCache] | type[StaticCache] = PrivateCache

    def __init__(self, stack: PriorStack, mixtures: int, particles: int):
        self.stack, self.cache = stack, self.cache_type(stack, mixtures, particles)
        self.length = 0
        self._room = _Room(stack, mixtures * particles)
        start = torch.full((stack.sources, mixtures, particles), stack.codes, dtype=torch.long, device=stack.device)
        self.log_probs = self._step(start)

    def append(self, codes: Tensor, ancestors: Tensor | None = None) -> None:
        """Let particle n of mixture b go on from the history of particle ancestors[b, n] with its own code, int64 [P, B, N].

        A particle that is anybody's ancestor is its own, as by `kernels.resampling.stay_in_place`.
        """
        if ancestors is not None:
            self.cache.reorder(ancestors)
        self.log_probs = self._step(codes)

    @torch.no_grad()
    def _step(self, codes: Tensor) -> Tensor:
        stack, room, x = self.stack, self._room, self._room.x
        for table, row, embedded in zip(stack.embedding, codes.flatten(1), x, strict=True):
            torch.index_select(table, 0, row, out=embedded)
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


class GraphedState(PriorState):
    """`PriorState` of static shapes, its step replayed as a CUDA graph, alone or as part of a larger one.

    `log_probs` is one tensor, written anew by each step. On other devices the same step runs as it is.
    """

    replayable = True
    cache: StaticCache
    cache_type = StaticCache

    def __init__(self, stack: PriorStack, mixtures: int, particles: int):
        self._codes = torch.zeros(stack.sources, mixtures, particles, dtype=torch.long, device=stack.device)
        # Who held itself would keep the memory of a finished search until Python next looks for such cycles.
        myself = weakref.proxy(self)
        self._replayed = Replayed(lambda: myself._predict(), stack.device)
        super().__init__(stack, mixtures, particles)

    def append(self, codes: Tensor, ancestors: Tensor | None = None) -> None:
        if ancestors is not None:
            self.cache.reorder(ancestors)
        self._codes.copy_(codes)
        self._replayed()

    def _predict(self) -> None:
        self.log_probs = self._step(self._codes)

    def _next_rotation(self) -> Tensor:
        return self.stack.rotations(self.cache.position + 1)[0]


def unit(x: Tensor, norms: Tensor, out: Tensor) -> Tensor:
    """Write vectors of length one along the last axis into `out`, and their lengths into `norms`; zero stays zero."""
    return torch.div(x, torch.linalg.vector_norm(x, dim=-1, keepdim=True, out=norms).add_(1e-6), out=out)


class _Room:
    """What the layers of a step write into, for P sources and R rows: a step allocates nothing layer by layer."""

    def __init__(self, stack: PriorStack, rows: int):
        layer, width = stack.layers[0], stack.settings.width

        def room(*shape: int) -> Tensor:
            return torch.empty(stack.sources, rows, *shape, dtype=stack.dtype, device=stack.device)

        self.x, self.normed, self.norms = room(width), room(width), room(1)
        self.heads, self.value = room(layer.to_heads.shape[2]), room(layer.to_values.shape[2])
        self.hidden, self.scores = room(layer.expand.shape[2]), room(stack.codes)
        self.turned = torch.empty_like(self.heads).view(-1, stack.head_width)
