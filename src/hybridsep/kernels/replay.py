"""Recording a step once as a CUDA graph and replaying it: one launch in the place of hundreds of kernels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hybridsep.kernels.resampling import resample


class Replayed:
    """A step that works on tensors of fixed shapes and addresses and never waits for the device.

    On CUDA it is recorded after one call, which compiles and allocates what a recording must not, and replayed from then on. On other
    devices, and inside the recording of a larger step, it is called as it is. The step leaves its results in the same tensors every time.
    """

    def __init__(self, step: Callable[[], None], device: torch.device):
        self._step, self._records, self._warm = step, device.type == "cuda", False
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Do the step once."""
        if not self._records or not self._warm or torch.cuda.is_current_stream_capturing():
            self._warm = True
            return self._step()
        if self._graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._step()
            self._graph = graph
        self._graph.replay()


class ReplayedFilter:
    """The loop of `search.particle_filter` as a step of static shapes: even its number is a tensor, and nothing is decided by the host.

    Args:
        state: of the priors before the first code, one that writes `log_probs` into the same tensor every time.
        likelihood: one that keeps the host free.
        codes: mixture codes, int64 [B, S].
        uniforms: float32 [B, S, 2N + 1].
        enough: effective sample size under which a mixture's particles are resampled.
    """

    def __init__(self, state: Any, likelihood: Any, codes: Tensor, uniforms: Tensor, enough: float):
        (batch, length), device, particles = codes.shape, codes.device, uniforms.shape[2] // 2
        self._state, self._likelihood, self._codes, self._uniforms = state, likelihood, codes, uniforms
        self._particles, self._enough = particles, enough
        self._now = torch.zeros(1, dtype=torch.long, device=device)
        self._pair = torch.zeros(2, batch, particles, dtype=torch.long, device=device)
        self._ancestors = torch.zeros(batch, particles, dtype=torch.long, device=device)
        self.log_weights = torch.full((batch, particles), -math.log(particles), device=device)
        self.log_evidence = torch.zeros(batch, device=device)
        # Of every step; `heard` are the log-weights before resampling.
        self.drawn = torch.empty(length, 2, batch, particles, dtype=torch.long, device=device)
        self.parents = torch.empty(length, batch, particles, dtype=torch.long, device=device)
        self.heard = torch.empty(length, batch, particles, device=device)
        self.sizes, self.evidence = torch.empty(2, length, batch, device=device)
        self.resampled = torch.empty(length, batch, dtype=torch.bool, device=device)

    def run(self, on_step: Callable[[], object] | None = None) -> ReplayedFilter:
        """Do all steps, from the third on by replaying the second."""
        advance = Replayed(self.advance, self._codes.device)
        for t in range(self._codes.shape[1]):
            advance() if t else self.weigh_and_draw()
            if on_step:
                on_step()
        return self

    def advance(self) -> None:
        """Append the pairs of the step before and do the next."""
        self._state.append(self._pair, self._ancestors)
        self.weigh_and_draw()

    def weigh_and_draw(self) -> None:
        """Weight every particle by the mixture's next code, resample where the weights are poor, and draw pairs."""
        posterior = self._likelihood.posterior(self._at(self._codes), self._state.log_probs, checked=False)
        uniforms = self._at(self._uniforms)
        log_weights = self.log_weights + posterior.log_evidence
        total = log_weights.logsumexp(1, keepdim=True)
        self.log_evidence += total[:, 0]
        heard = log_weights = log_weights - total
        size = 1 / log_weights.exp().square().sum(1)
        poor = size < self._enough
        ancestors, log_weights = resample(log_weights, poor, uniforms[:, -1])
        self._ancestors.copy_(ancestors)
        self.log_weights.copy_(log_weights)
        pair_uniforms = uniforms[:, :-1].unflatten(1, (2, self._particles)).transpose(0, 1)
        self._pair.copy_(posterior.draw(pair_uniforms, self._ancestors))
        found = (self._pair, self._ancestors, heard, size, poor, self.log_evidence)
        kept = (self.drawn, self.parents, self.heard, self.sizes, self.resampled, self.evidence)
        for place, value in zip(kept, found, strict=True):
            place.index_copy_(0, self._now, value[None])
        self._now += 1

    def _at(self, x: Tensor) -> Tensor:
        """This step's part of [B, S, ...]."""
        return x.index_select(1, self._now)[:, 0]
