"""Search over pairs of code sequences: ancestral, top-k, beam and particle filter.

Every search is pure: priors, likelihood and mixture codes in, code sequences with weights out. All mixtures and particles of a
call advance together. The random numbers of a mixture come from a stream of its own, so they do not depend on its neighbours.

Source of the particle filter: Doucet & Johansen 2009, "A tutorial on particle filtering and smoothing", sec. 4.2 (fully adapted:
the weight of a step does not depend on the code drawn there, so resampling comes before the draw).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from hybridsep.inference.likelihood import Likelihood
from hybridsep.kernels.arguments import check_codes
from hybridsep.kernels.replay import Replayed


class State(Protocol):
    """Histories of B·N particles under the priors of both sources."""

    log_probs: Tensor

    def append(self, codes: Tensor, ancestors: Tensor | None = None) -> None:
        """Particle n goes on from the history of particle ancestors[b, n], its own without them, with codes[:, b, n]; int64 [2, B, N]."""


class Priors(Protocol):
    """The priors of both sources."""

    def start(self, mixtures: int, particles: int, resampled: bool = False) -> State:
        """State before the first code; `resampled` says that particles will go on from the history of others."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found for B mixtures.

    Attributes:
        codes: int64 [2, B, N, S].
        log_weights: float32 [B, N], nats. Particle filter: normalised. Ancestral and top-k: log Π w[t], importance weights.
            Beam: log joint probability.
        log_evidence: float32 [B], nats: estimate of log p(m). For top-k and beam a lower bound.
        ess: float32 [B, S], effective sample size before resampling, in particles.
        resampled: bool [B, S].
        running_evidence: float32 [B, S], nats: the same estimate of log p(m[≤ t]) after each step; its last column is `log_evidence`.
        ancestors: int64 [B, S, N], which particle of the step before each one goes on from.
    """

    codes: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    ess: Tensor
    resampled: Tensor
    running_evidence: Tensor
    ancestors: Tensor


def ancestral(
    priors: Priors,
    likelihood: Likelihood,
    codes: Tensor,
    particles: int,
    generator: torch.Generator,
    on_step: Callable[[], object] | None = None,
) -> SearchResult:
    """N independent samples, each step from the normalised one-step posterior: LASS's and LQ-VAE's sampling.

    This is not a draw from p(z1, z2 | m): the normaliser w[t] is thrown away. It is kept in `log_weights`.
    """
    return _filter(priors, likelihood, codes, particles, generator, 0.0, on_step)


def particle_filter(
    priors: Priors,
    likelihood: Likelihood,
    codes: Tensor,
    particles: int,
    generator: torch.Generator,
    on_step: Callable[[], object] | None = None,
    ess_threshold: float = 0.5,
) -> SearchResult:
    """Sequential Monte Carlo: weights w[t], systematic resampling when the effective sample size falls under a share of N.

    Args:
        codes: mixture codes, int64 [B, S].
        particles: N.
        ess_threshold: share of N under which a mixture's particles are resampled.

    Raises:
        ValueError: no particles, an empty sequence, or a mixture code outside [0, K).
    """
    return _filter(priors, likelihood, codes, particles, generator, ess_threshold, on_step)


def _filter(
    priors: Priors,
    likelihood: Likelihood,
    codes: Tensor,
    particles: int,
    generator: torch.Generator,
    threshold: float,
    on_step: Callable | None,
) -> SearchResult:
    batch, length = _check(codes, particles, likelihood)
    uniforms = mixture_uniforms(generator, batch, length, 2 * particles + 1).to(codes.device)
    state = priors.start(batch, particles, resampled=threshold > 0)
    replayable = codes.is_cuda and likelihood.keeps_host_free and getattr(state, "replayable", False)
    steps = _FilterSteps(state, likelihood, codes, particles, uniforms, threshold, replayable)
    advance = Replayed(steps.advance, codes.device) if replayable else steps.advance
    for t in range(length):
        advance() if t else steps.weigh_and_draw()
        if on_step:
            on_step()
    return steps.result()


class _FilterSteps:
    """The steps of a particle filter, everything they leave written into tensors made before the first.

    With `static` a step has the same shapes and addresses each time, its number is a tensor too, and nothing of it is decided by the host:
    it can be recorded as a CUDA graph. Otherwise the host looks whether anybody has to be resampled.
    """

    def __init__(
        self,
        state: State,
        likelihood: Likelihood,
        codes: Tensor,
        particles: int,
        uniforms: Tensor,
        threshold: float,
        static: bool,
    ):
        (batch, length), device = codes.shape, codes.device
        self._state, self._likelihood, self._codes, self._uniforms = state, likelihood, codes, uniforms
        self._particles, self._threshold, self._static = particles, threshold, static
        self._log_weights = torch.full((batch, particles), -math.log(particles), device=device)
        self._log_evidence = torch.zeros(batch, device=device)
        self._identity = torch.arange(particles, device=device).expand(batch, particles)
        self._pair = torch.zeros(2, batch, particles, dtype=torch.long, device=device)
        self._ancestors = self._identity.clone() if static else self._identity
        self._now: Tensor | int = torch.zeros(1, dtype=torch.long, device=device) if static else 0
        self._drawn = torch.empty(length, 2, batch, particles, dtype=torch.long, device=device)
        self._parents = torch.empty(length, batch, particles, dtype=torch.long, device=device)
        self._sizes, self._evidence = torch.empty(2, length, batch, device=device)
        self._resampled = torch.empty(length, batch, dtype=torch.bool, device=device)

    def advance(self) -> None:
        """Append the pairs of the step before and do the next."""
        self._state.append(self._pair, self._moved)
        self.weigh_and_draw()

    def weigh_and_draw(self) -> None:
        """Weight every particle by the mixture's next code, resample where the weights are poor, and draw pairs."""
        posterior = self._likelihood.posterior(self._at(self._codes), self._state.log_probs, checked=not self._static)
        uniforms = self._at(self._uniforms)
        log_weights = self._log_weights + posterior.log_evidence
        total = log_weights.logsumexp(1, keepdim=True)
        self._log_evidence += total[:, 0]
        log_weights = log_weights - total
        size = 1 / log_weights.exp().square().sum(1)
        poor = size < self._threshold * self._particles
        self._resample(log_weights, poor, uniforms[:, -1])
        pair_uniforms = uniforms[:, :-1].unflatten(1, (2, self._particles)).transpose(0, 1)
        self._pair.copy_(posterior.draw(pair_uniforms, self._moved))
        found = (self._pair, self._ancestors, size, poor, self._log_evidence)
        for kept, value in zip(
            (self._drawn, self._parents, self._sizes, self._resampled, self._evidence), found, strict=True
        ):
            self._keep(kept, value)
        self._now += 1

    def result(self) -> SearchResult:
        """What all steps found.

        Raises:
            ValueError: NaN in the priors' log-probabilities, where no step could look.
        """
        if self._static and self._log_evidence.isnan().any():
            raise ValueError("log-probabilities of the priors hold NaN")
        paths = (x.transpose(0, 1).contiguous() for x in (self._sizes, self._resampled, self._evidence, self._parents))
        return SearchResult(trace_back(self._drawn, self._parents), self._log_weights, self._log_evidence, *paths)

    @property
    def _moved(self) -> Tensor | None:
        return None if self._ancestors is self._identity else self._ancestors

    def _resample(self, log_weights: Tensor, poor: Tensor, uniforms: Tensor) -> None:
        if not self._static and not poor.any():
            self._ancestors = self._identity
            self._log_weights.copy_(log_weights)
            return
        picked = stay_in_place(systematic_resampling(log_weights.exp(), uniforms))
        ancestors = torch.where(poor[:, None], picked, self._identity)
        self._ancestors = self._ancestors.copy_(ancestors) if self._static else ancestors
        self._log_weights.copy_(torch.where(poor[:, None], -math.log(self._particles), log_weights))

    def _at(self, x: Tensor) -> Tensor:
        """This step's part of [B, S, ...]."""
        return x.index_select(1, self._now)[:, 0] if self._static else x[:, self._now]

    def _keep(self, kept: Tensor, value: Tensor) -> None:
        if self._static:
            kept.index_copy_(0, self._now, value[None])
        else:
            kept[self._now] = value


def top_k(
    priors: Priors,
    likelihood: Likelihood,
    codes: Tensor,
    particles: int,
    generator: torch.Generator,
    on_step: Callable | None = None,
    k: int = 16,
) -> SearchResult:
    """Ancestral sampling from the k best pairs of every step, renormalised."""
    batch, length = _check(codes, particles, likelihood)
    uniforms = mixture_uniforms(generator, batch, length, particles).to(codes.device)
    state = priors.start(batch, particles)
    drawn, evidence = [], []
    log_weights = torch.zeros(batch, particles, device=codes.device)
    for t in range(length):
        best = likelihood.top_pairs(codes[:, t], state.log_probs, k)
        log_weights = log_weights + best.scores.logsumexp(-1)
        evidence.append(log_weights.logsumexp(1) - math.log(particles))
        choice = invert_scores(best.scores, uniforms[:, t])
        pair = best.codes.gather(-1, choice.expand(2, *choice.shape)[..., None])[..., 0]
        drawn.append(pair)
        if t + 1 < length:
            state.append(pair)
        if on_step:
            on_step()
    own = torch.arange(particles, device=codes.device).expand(batch, length, particles)
    return _without_resampling(torch.stack(drawn, -1), log_weights, evidence, own)


def beam(
    priors: Priors,
    likelihood: Likelihood,
    codes: Tensor,
    particles: int,
    generator: torch.Generator,
    on_step: Callable | None = None,
) -> SearchResult:
    """Beam search for the pair of sequences of highest joint probability, N = `particles` hypotheses, best first. Draws nothing."""
    batch, length = _check(codes, particles, likelihood)
    state = priors.start(batch, particles, resampled=True)
    drawn, parents, evidence = [], [], []
    # All hypotheses are equal before the first code: one stands for them, or the beam would fill with copies.
    log_weights = torch.full((batch, particles), -math.inf, device=codes.device)
    log_weights[:, 0] = 0.0
    for t in range(length):
        best = likelihood.top_pairs(codes[:, t], state.log_probs, particles, log_weights)
        log_weights, ancestors, pair = _in_place(best.scores[:, 0], best.parents[:, 0], best.codes[:, :, 0])
        drawn.append(pair), parents.append(ancestors), evidence.append(log_weights.logsumexp(1))
        if t + 1 < length:
            state.append(pair, ancestors)
        if on_step:
            on_step()
    log_weights, order = log_weights.sort(1, descending=True)
    parents[-1] = parents[-1].gather(1, order)
    drawn[-1] = drawn[-1].gather(2, order.expand_as(drawn[-1]))
    found = trace_back(torch.stack(drawn), torch.stack(parents))
    return _without_resampling(found, log_weights, evidence, torch.stack(parents, 1))


def _in_place(log_weights: Tensor, ancestors: Tensor, pair: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hypotheses in an order in which an ancestor that survives is its own: the others alone have to be copied."""
    ancestors, order = ancestors.sort(dim=1, stable=True)
    places = _places(ancestors)

    def placed(x: Tensor) -> Tensor:
        return torch.empty_like(x).scatter_(1, places, x.gather(1, order))

    return (
        placed(log_weights),
        torch.empty_like(ancestors).scatter_(1, places, ancestors),
        torch.stack([placed(codes) for codes in pair]),
    )


SEARCHES: dict[str, Callable[..., SearchResult]] = {
    "ancestral": ancestral,
    "topk": top_k,
    "beam": beam,
    "particle": particle_filter,
}


def trace_back(drawn: Tensor, parents: Tensor) -> Tensor:
    """Follow every final particle back through its ancestors.

    Args:
        drawn: codes drawn at each step, int64 [S, 2, B, N].
        parents: ancestor of each particle of each step, among the particles of the step before, int64 [S, B, N].

    Returns:
        int64 [2, B, N, S].
    """
    length, _, batch, particles = drawn.shape
    lineage = torch.arange(particles, device=drawn.device).expand(batch, particles)
    codes = torch.empty_like(drawn)
    for t in range(length - 1, -1, -1):
        codes[t] = drawn[t].gather(-1, lineage.expand(2, batch, particles))
        lineage = parents[t].gather(-1, lineage)
    return codes.permute(1, 2, 3, 0).contiguous()


def systematic_resampling(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Ancestors by one uniform number per row, spread evenly.

    Args:
        weights: normalised, float32 [B, N].
        uniforms: [B].

    Returns:
        int64 [B, N], ascending; particle n has floor or ceil of N·weights[n] children.
    """
    particles = weights.shape[1]
    positions = (torch.arange(particles, device=weights.device) + uniforms[:, None]) / particles
    return torch.searchsorted(weights.cumsum(1), positions).clamp_max(particles - 1)


def stay_in_place(ancestors: Tensor) -> Tensor:
    """The same children in another order: whoever survives keeps its place, and only the places of the dead are filled anew.

    Args:
        ancestors: int64 [B, N], ascending.
    """
    return torch.empty_like(ancestors).scatter_(1, _places(ancestors), ancestors)


def _places(ancestors: Tensor) -> Tensor:
    """Place of each child, ancestors [B, N] ascending: its ancestor's for the first child of each, those of the dead for the others."""
    extra = F.pad(ancestors[:, 1:] == ancestors[:, :-1], (1, 0))
    dead_first = (
        torch.ones_like(extra).scatter_(1, ancestors, False).byte().sort(dim=1, descending=True, stable=True).indices
    )
    rank = (extra.cumsum(1) - 1).clamp_min_(0)
    return torch.where(extra, dead_first.gather(1, rank), ancestors)


def invert_scores(scores: Tensor, uniforms: Tensor) -> Tensor:
    """Categorical draw from log-scores [B, N, k] by uniforms [B, N] -> int64 [B, N]."""
    cumulative = scores.softmax(-1).cumsum(-1)
    return torch.searchsorted(cumulative, uniforms[..., None] * cumulative[..., -1:], right=True)[..., 0].clamp_max(
        scores.shape[-1] - 1
    )


def mixture_uniforms(generator: torch.Generator, mixtures: int, steps: int, each: int) -> Tensor:
    """float32 [B, S, each] in [0, 1): the stream of a mixture depends on the generator and on its position only."""
    seeds = torch.randint(2**62, (mixtures,), generator=generator).tolist()
    return torch.stack([torch.rand(steps, each, generator=torch.Generator().manual_seed(seed)) for seed in seeds])


def joined_filters(found: SearchResult, filters: int) -> SearchResult:
    """Filters of the same mixtures that ran by themselves, as one set of particles in which each filter has the same share.

    The particles of one filter soon have one past, a single guess. Guesses of several filters err differently, so that the mean of all is a
    better estimate than that of one filter with as many particles.

    Args:
        found: of B·F mixtures with N/F particles, the F filters of a mixture side by side.
        filters: F.

    Returns:
        Of B mixtures with N particles; the evidence is that of the filters' mean.

    Source: island particle models, Vergé et al. 2015 (arXiv 1306.3911), without interaction.
    """
    if filters == 1:
        return found

    def apart(x: Tensor, axis: int = 0) -> Tensor:
        """[..., B·F, ...] -> [..., B, F, ...]"""
        return x.unflatten(axis, (-1, filters))

    def mean_of(log_values: Tensor) -> Tensor:
        return apart(log_values).logsumexp(1) - math.log(filters)

    size = found.log_weights.shape[1]
    ancestors = apart(found.ancestors) + size * torch.arange(filters, device=found.ancestors.device)[:, None, None]
    return SearchResult(
        codes=apart(found.codes, 1).flatten(2, 3),
        log_weights=(apart(found.log_weights.log_softmax(1)) - math.log(filters)).flatten(1, 2),
        log_evidence=mean_of(found.log_evidence),
        ess=filters**2 / apart(found.ess).reciprocal().sum(1),
        resampled=apart(found.resampled).any(1),
        running_evidence=mean_of(found.running_evidence),
        ancestors=ancestors.transpose(1, 2).flatten(2, 3),
    )


def _without_resampling(codes: Tensor, log_weights: Tensor, evidence: list[Tensor], ancestors: Tensor) -> SearchResult:
    batch, length = codes.shape[1], codes.shape[-1]
    size = 1 / log_weights.softmax(1).square().sum(1)
    never = torch.zeros(batch, length, dtype=torch.bool, device=codes.device)
    return SearchResult(
        codes,
        log_weights,
        evidence[-1],
        size[:, None].expand(batch, length),
        never,
        torch.stack(evidence, 1),
        ancestors,
    )


def suffix_lengths(ancestors: Tensor) -> Tensor:
    """How many of the last codes the particles do not have in common by descent, at each step: int64 [B, S, N] -> [B, S]."""
    batch, length, particles = ancestors.shape
    writers = torch.empty(batch, length, particles, dtype=torch.int32, device=ancestors.device)
    found = torch.zeros(batch, length, dtype=torch.long, device=ancestors.device)
    names = torch.arange(particles, dtype=torch.int32, device=ancestors.device)
    first = 0
    for t in range(length):
        writers[:, first:t] = writers[:, first:t].gather(2, ancestors[:, t, None].expand(batch, t - first, particles))
        writers[:, t] = names
        same = (writers[:, : t + 1] == writers[:, : t + 1, :1]).all(2)
        found[:, t] = t + 1 - same.long().cumprod(1).sum(1)
        # Where all mixtures have one ancestor nothing changes any more.
        first = t + 1 - int(found[:, t].max())
    return found


def _check(codes: Tensor, particles: int, likelihood: Likelihood) -> tuple[int, int]:
    if codes.ndim != 2 or not codes.numel():
        raise ValueError(f"mixture codes must be a non-empty [B, S], not {list(codes.shape)}")
    if particles < 1:
        raise ValueError(f"{particles} particles: at least 1 is needed")
    check_codes("mixture code", codes, likelihood.codes)
    return codes.shape[0], codes.shape[1]
