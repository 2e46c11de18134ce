"""Decoding with the priors of all sources at once, one code at a time, for search.

`PriorStack` holds the weights of all sources in one tensor per layer, so that a step is one batched product per layer for every
source, mixture and particle. What can be folded into the weights is: the gain of the RMS norm, the scale of the attention.

Sources: Shazeer 2019 (arXiv 1911.02150) for keys and values shared by heads and cached; Su et al. 2021 (arXiv 2104.09864) for rotary
positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridsep.prior import Prior, rotary_angles

ROTATIONS_AT_ONCE = 256


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

    Raises:
        ValueError: the priors differ in shape or codebook size.
    """

    def __init__(self, priors: list[Prior], dtype: torch.dtype = torch.float32):
        first = priors[0]
        if any(p.settings.model_dump(exclude={"training"}) != first.settings.model_dump(exclude={"training"}) or p.codes != first.codes for p in priors):
            raise ValueError("stacked priors must have equal shapes and codebook sizes")
        self.settings, self.codes, self.sources, self.dtype = first.settings, first.codes, len(priors), dtype
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
        self.head = stack("head", gain).to(dtype).contiguous()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.head.device

    def start(self, mixtures: int, particles: int) -> PriorState:
        """State before the first code, for B = `mixtures` times N = `particles` histories of every source."""
        return PriorState(self, mixtures, particles)

    def rotations(self, first: int, count: int) -> Tensor:
        """Rotary positions first ... first + count - 1 as matrices to multiply heads with from the right: [count, D, D]."""
        cosine, sine = rotary_angles(torch.arange(first, first + count, device=self.device), self.settings)
        cosine, sine = torch.diag_embed(cosine), torch.diag_embed(sine)
        return torch.cat([torch.cat([cosine, sine], 2), torch.cat([-sine, cosine], 2)], 1).to(self.dtype)

    def embed(self, codes: Tensor) -> Tensor:
        """Codes int64 [P, R] -> [P, R, W]."""
        return torch.stack([F.embedding(row, table) for row, table in zip(codes, self.embedding, strict=True)])

    def predict(self, x: Tensor) -> Tensor:
        """[P, R, W] -> log-probabilities of the next code, float32 [P, R, K]."""
        return torch.bmm(unit(x), self.head).float().log_softmax(-1)

    def _split(self, project_in: Tensor) -> tuple[Tensor, Tensor]:
        """Columns of [P, W, (heads + 2 groups) · D], all queries, all keys, all values, in the order of `Layer`."""
        columns = project_in.unflatten(2, (-1, self.head_width))
        query, key, value = columns.split([self.settings.heads, self.groups, self.groups], 2)
        query = query.unflatten(2, (self.groups, self.queries)) * self.head_width**-0.5
        return torch.cat([query, key.unsqueeze(3)], 3).flatten(2), value.flatten(2)


class PriorState:
    """Histories of B·N particles under every prior: a ring of keys and values for each particle.

    Attributes:
        log_probs: float32 [P, B, N, K], nats: log p(next code | history of that source).
    """

    def __init__(self, stack: PriorStack, mixtures: int, particles: int):
        self.stack, self.mixtures, self.particles = stack, mixtures, particles
        self.window = stack.settings.window
        rows = mixtures * particles
        shape = (2, stack.settings.layers, stack.sources, rows, stack.groups, self.window, stack.head_width)
        self.cache = torch.zeros(shape, dtype=stack.dtype, device=stack.device)
        flat = self.cache.view(-1, stack.groups * self.window * stack.head_width)
        self._flat = flat.view(_widest(flat.shape[1] * flat.element_size()))
        self.length = 0
        start = torch.full((stack.sources, mixtures, particles), stack.codes, dtype=torch.long, device=stack.device)
        self.log_probs = self._step(start)

    def append(self, codes: Tensor, ancestors: Tensor | None = None) -> None:
        """Particle n of mixture b goes on from the history of particle ancestors[b, n] with its own code.

        Args:
            codes: int64 [P, B, N].
            ancestors: int64 [B, N]; each its own without it.
        """
        if ancestors is not None:
            self._reorder(ancestors)
        self.log_probs = self._step(codes)

    def _reorder(self, ancestors: Tensor) -> None:
        rows = (ancestors + torch.arange(self.mixtures, device=ancestors.device)[:, None] * self.particles).flatten()
        moved = (rows != torch.arange(len(rows), device=rows.device)).nonzero()[:, 0]
        # All layers' rows in one list, and a row as a few wide numbers: copies by index go number by number.
        blocks = torch.arange(0, self._flat.shape[0], len(rows), device=rows.device)[:, None]
        self._flat[(blocks + moved).flatten()] = self._flat.index_select(0, (blocks + rows[moved]).flatten())

    @torch.no_grad()
    def _step(self, codes: Tensor) -> Tensor:
        stack, width = self.stack, self.stack.head_width
        x = stack.embed(codes.flatten(1))
        sources, rows = x.shape[:2]
        if self.length % ROTATIONS_AT_ONCE == 0:
            self._rotations = stack.rotations(self.length, ROTATIONS_AT_ONCE)
        rotation = self._rotations[self.length % ROTATIONS_AT_ONCE]
        slot = self.length % self.window
        self.length += 1
        filled = min(self.length, self.window)
        keys, values = self.cache
        for layer, key, value in zip(stack.layers, keys, values, strict=True):
            normed = unit(x)
            heads = torch.mm(torch.bmm(normed, layer.to_heads).view(-1, width), rotation).view(-1, stack.queries + 1, width)
            key[..., slot, :] = heads[:, -1].view(sources, rows, stack.groups, width)
            value[..., slot, :] = torch.bmm(normed, layer.to_values).view(sources, rows, stack.groups, width)
            mixed = attend(heads[:, :-1], key[..., :filled, :].flatten(0, 2), value[..., :filled, :].flatten(0, 2))
            x = torch.baddbmm(x, mixed.view(x.shape), layer.from_heads)
            hidden = torch.bmm(unit(x), layer.expand).relu_()
            x = torch.baddbmm(x, hidden.mul_(hidden), layer.contract)
        return stack.predict(x).view(*codes.shape, stack.codes)


def unit(x: Tensor) -> Tensor:
    """Vectors of length one along the last axis; zero stays zero."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).add_(1e-6)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of scaled queries: query [R, G, D], key and value [R, T, D] -> [R, G, D]."""
    return torch.bmm(torch.bmm(query, key.transpose(1, 2)).softmax(-1), value)


def _widest(row_bytes: int) -> torch.dtype:
    """The widest type that divides a row."""
    return next(d for d in (torch.complex128, torch.int64, torch.int32, torch.int16) if row_bytes % d.itemsize == 0)
