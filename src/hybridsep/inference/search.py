"""Search over pairs of code sequences: ancestral, top-k, beam and particle filter.

Every search is pure: priors, likelihood and mixture codes in, code sequences with weights out. All mixtures and particles of a
call advance together. The random numbers of a mixture come from a stream of its own, so they do not depend on its neighbours.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from hybridsep.inference.likelihood import Likelihood, refuse_impossible
from hybridsep.kernels.counting import check_codes
from hybridsep.kernels.inversion import invert_sequential
from hybridsep.kernels.replay import ReplayedFilter
from hybridsep.kernels.resampling import places, resample

LASS_POWER, LASS_BEAMS = 3.0, 10
OnStep = Callable[[], object] | None  # what is called after each step


class State(Protocol):
    """Histories of B·N particles under the priors of both sources."""

    log_probs: Tensor  # log-probabilities of the next code, nats, float32 [2, B, N, K]

    def append(self, codes: Tensor, ancestors: Tensor | None = None) -> None:
        """Let particle n go on from the history of particle ancestors[b, n], its own without them, with codes[:, b, n]; int64 [2, B, N]."""


class Priors(Protocol):
    """The priors of both sources."""

    def start(self, mixtures: int, particles: int) -> State:
        """Return the state before the first code."""


@dataclass(frozen=True)
class SearchResult:
    """What a search found for B mixtures.

    Attributes:
        codes: int64 [2, B, N, S].
        log_weights: nats, float32 [B, N]. Particle filter: normalised. Ancestral and top-k: log Π w[t], importance weights.
            Beam: log joint probability.
        log_evidence: estimate of log p(m), nats, float32 [B]. For top-k and beam a lower bound.
        ess: effective sample size before resampling, in particles, float32 [B, S].
        resampled: bool [B, S].
        running_evidence: the same estimate of log p(m[≤ t]) after each step, nats, float32 [B, S]; its last column is `log_evidence`.
        ancestors: which particle of the step before each one goes on from, int64 [B, S, N].
        drawn: code that each particle drew at each step, int64 [2, B, S, N]; None unless a filter keeps its steps.
        heard_weights: of the particles of the step before each one, when it has heard its mixture code and nobody is resampled yet:
            normalised, nats, float32 [B, S, N], or None.
    """

    codes: Tensor
    log_weights: Tensor
    log_evidence: Tensor
    ess: Tensor
    resampled: Tensor
    running_evidence: Tensor
    ancestors: Tensor
    drawn: Tensor | None = None
    heard_weights: Tensor | None = None


def particle_filter(
    priors: Priors,
    likelihood: Likelihood,
    codes: Tensor,
    particles: int,
    generator: Generator,
    on_step: OnStep = None,
    ess_threshold: float = 0.5,
) -> SearchResult:
    """Run a particle filter: draw pairs, weight by the evidence w[t] of each step, resample when few particles carry the weight.

    The weight of a step does not depend on the code drawn there, so resampling comes before the draw.

    Args:
        codes: mixture codes, int64 [B, S].
        on_step: called after each step.
        ess_threshold: share of N, see `enough_particles`.

    Raises:
        ValueError: no particles, an empty sequence, a mixture code outside [0, K), or NaN in the priors.
        HybridsepError: a mixture code that is impossible under every pair.

    Source: Doucet & Johansen 2009, "A tutorial on particle filtering and smoothing", sec. 4.2, fully adapted.
    """
    batch, length = _check(codes, particles, likelihood)
    uniforms = mixture_uniforms(generator, batch, length, 2 * particles + 1).to(codes.device)
    state, enough = priors.start(batch, particles), enough_particles(particles, ess_threshold)
    if codes.is_cuda and likelihood.keeps_host_free and getattr(state, "replayable", False):
        return _from_replay(ReplayedFilter(state, likelihood, codes, uniforms, enough).run(on_step), codes)
    log_weights = torch.full((batch, particles), -math.log(particles), device=codes.device)
    log_evidence, own, steps = torch.zeros(batch, device=codes.device), _own(codes, particles), []
    for t in range(length):
        posterior = likelihood.posterior(codes[:, t], state.log_probs)
        log_weights = log_weights + posterior.log_evidence
        total = log_weights.logsumexp(1, keepdim=True)
        log_weights, log_evidence = log_weights - total, log_evidence + total[:, 0]
        size = 1 / log_weights.exp().square().sum(1)
        heard, poor, ancestors = log_weights, size < enough, None
        if poor.any():
            ancestors, log_weights = resample(log_weights, poor, uniforms[:, t, -1])
        pair = posterior.draw(uniforms[:, t, :-1].unflatten(1, (2, particles)).transpose(0, 1), ancestors)
        steps.append((pair, own if ancestors is None else ancestors, heard, size, poor, log_evidence))
        if t + 1 < length:
            state.append(pair, ancestors)
        if on_step:
            on_step()
    return _filtered(log_weights, *(torch.stack(parts) for parts in zip(*steps, strict=True)))


def enough_particles(particles: int, threshold: float) -> float:
    """Return the effective sample size under which N particles are resampled: `threshold` · N.

    Of two particles it is never under 1, half of them: there the share is taken of what lies between 1 and 2, 1 + `threshold`.
    """
    return 1 + threshold if particles == 2 and threshold > 0 else threshold * particles


def ancestral(
    priors: Priors, likelihood: Likelihood, codes: Tensor, particles: int, generator: Generator, on_step: OnStep = None
) -> SearchResult:
    """Draw N independent samples, each step from the normalised one-step posterior: LASS's and LQ-VAE's sampling.

    This is not a draw from p(z1, z2 | m): the normaliser w[t] is thrown away. It is kept in `log_weights`. Arguments as in `particle_filter`.
    """
    return particle_filter(priors, likelihood, codes, particles, generator, on_step, ess_threshold=0.0)


def top_k(
    priors: Priors,
    likelihood: Likelihood,
    codes: Tensor,
    particles: int,
    generator: Generator,
    on_step: OnStep = None,
    k: int = 16,
) -> SearchResult:
    """Draw N independent samples, each step from its k best pairs, renormalised."""
    batch, length = _check(codes, particles, likelihood)
    uniforms = mixture_uniforms(generator, batch, length, particles).to(codes.device)
    state = priors.start(batch, particles)
    drawn, evidence = [], []
    log_weights = torch.zeros(batch, particles, device=codes.device)
    for t in range(length):
        best = likelihood.top_pairs(codes[:, t], state.log_probs, k)
        log_weights = log_weights + best.scores.logsumexp(-1)
        evidence.append(log_weights.logsumexp(1) - math.log(particles))
        choice = invert_sequential(best.scores.softmax(-1).flatten(0, 1), uniforms[:, t].flatten())
        drawn.append(best.codes.gather(-1, choice.view(1, batch, particles, 1).expand(2, -1, -1, -1))[..., 0])
        if t + 1 < length:
            state.append(drawn[-1])
        if on_step:
            on_step()
    own = _own(codes, particles)[:, None].expand(batch, length, particles)
    return _without_resampling(torch.stack(drawn, -1), log_weights, evidence, own)


def beam(
    priors: Priors, likelihood: Likelihood, codes: Tensor, particles: int, generator: Generator, on_step: OnStep = None
) -> SearchResult:
    """Search the pair of sequences of highest joint probability with N = `particles` hypotheses, best first. Draws nothing."""
    batch, length = _check(codes, particles, likelihood)
    state = priors.start(batch, particles)
    drawn, parents, evidence = [], [], []
    # All hypotheses are equal before the first code: one stands for them, or the beam would fill with copies.
    log_weights = torch.full((batch, particles), -math.inf, device=codes.device)
    log_weights[:, 0] = 0.0
    for t in range(length):
        best = likelihood.top_pairs(codes[:, t], state.log_probs, particles, log_weights)
        log_weights, ancestors, pair = _in_place(best.scores[:, 0], best.parents[:, 0], best.codes[:, :, 0])
        drawn.append(pair)
        parents.append(ancestors)
        evidence.append(log_weights.logsumexp(1))
        if t + 1 < length:
            state.append(pair, ancestors)
        if on_step:
            on_step()
    log_weights, order = log_weights.sort(1, descending=True)
    parents[-1] = parents[-1].gather(1, order)
    drawn[-1] = drawn[-1].gather(2, order.expand_as(drawn[-1]))
    ancestry = torch.stack(parents, 1)
    return _without_resampling(trace_back(torch.stack(drawn, 2), ancestry), log_weights, evidence, ancestry)


def lass_beam(priors: Priors, likelihood: Likelihood, *arguments: Any, **settings: Any) -> SearchResult:
    """Run `beam` as LASS does: likelihood at λ = 3, and of the hypotheses the best alone is kept; the published width is LASS_BEAMS.

    Source: `lass_audio/lass/separate.py` of LASS. Its counts are not smoothed, and its code mixes up the scores of hypotheses (it looks them up
    a second time by their parents) and returns the last of them; neither is repeated here.
    """
    found = beam(priors, likelihood.with_power(LASS_POWER), *arguments, **settings)
    best = {"codes": found.codes[:, :, :1], "log_weights": found.log_weights[:, :1]}
    return replace(found, **best, ess=torch.ones_like(found.ess), ancestors=torch.zeros_like(found.ancestors[:, :, :1]))


def lass_top_k(priors: Priors, likelihood: Likelihood, *arguments: Any, **settings: Any) -> SearchResult:
    """Run `top_k` as LASS does: likelihood at λ = 3. LASS then takes the sample that adds up best, `selection.smallest_residual`."""
    return top_k(priors, likelihood.with_power(LASS_POWER), *arguments, **settings)


SEARCHES: dict[str, Callable[..., SearchResult]] = {
    "ancestral": ancestral,
    "topk": top_k,
    "beam": beam,
    "particle": particle_filter,
    "lass-beam": lass_beam,
    "lass-topk": lass_top_k,
}
PUBLISHED = ("lass-beam", "lass-topk")  # searches as a paper runs them: with priors at temperature 1


def usual_particles(search: str, particles: int) -> int:
    """Return how many particles a search has when nobody says: the profile's `particles`, or the published width of LASS's beam."""
    return LASS_BEAMS if search == "lass-beam" else particles


def trace_back(drawn: Tensor, ancestors: Tensor) -> Tensor:
    """Follow every final particle back through its ancestors: `drawn` and `ancestors` of a SearchResult -> codes int64 [2, B, N, S]."""
    _, batch, length, particles = drawn.shape
    lineage = torch.arange(particles, device=drawn.device).expand(batch, particles)
    codes = torch.empty_like(drawn)
    for t in range(length - 1, -1, -1):
        codes[:, :, t] = drawn[:, :, t].gather(-1, lineage.expand(2, batch, particles))
        lineage = ancestors[:, t].gather(-1, lineage)
    return codes.transpose(2, 3).contiguous()


def mixture_uniforms(generator: Generator, mixtures: int, steps: int, each: int) -> Tensor:
    """Return float32 [B, S, each] in [0, 1): the stream of a mixture depends on the generator and on its position only."""
    seeds = torch.randint(2**62, (mixtures,), generator=generator).tolist()
    return torch.stack([torch.rand(steps, each, generator=Generator().manual_seed(seed)) for seed in seeds])


def joined_filters(found: SearchResult, filters: int) -> SearchResult:
    """Join what F filters of each mixture, side by side, found by themselves into one set of particles in which each filter has the same share.

    The particles of one filter soon have one past, a single guess. Guesses of several filters err differently, so that the mean of all is a
    better estimate than that of one filter with as many particles. B·F mixtures with N/F particles become B with N; the evidence is that of
    the filters' mean.

    Source: island particle models, Vergé et al. 2015 (arXiv 1306.3911), without interaction.
    """
    if filters == 1:
        return found

    def apart(x: Tensor, axis: int = 0) -> Tensor:
        """[..., B·F, ...] -> [..., B, F, ...]"""
        return x.unflatten(axis, (-1, filters))

    def mean_of(log_values: Tensor) -> Tensor:
        return apart(log_values).logsumexp(1) - math.log(filters)

    def side_by_side(x: Tensor) -> Tensor:
        """[..., B·F, S, N/F] -> [..., B, S, N]"""
        return apart(x, -3).transpose(-3, -2).flatten(-2)

    first = torch.arange(len(found.codes[0]), device=found.codes.device) % filters * found.codes.shape[2]
    assert found.drawn is not None and found.heard_weights is not None
    return SearchResult(
        codes=apart(found.codes, 1).flatten(2, 3),
        log_weights=(apart(found.log_weights.log_softmax(1)) - math.log(filters)).flatten(1, 2),
        log_evidence=mean_of(found.log_evidence),
        ess=filters**2 / apart(found.ess).reciprocal().sum(1),
        resampled=apart(found.resampled).any(1),
        running_evidence=mean_of(found.running_evidence),
        ancestors=side_by_side(found.ancestors + first[:, None, None]),
        drawn=side_by_side(found.drawn),
        heard_weights=side_by_side(found.heard_weights) - math.log(filters),
    )


def _in_place(log_weights: Tensor, ancestors: Tensor, pair: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hypotheses in an order in which an ancestor that survives is its own: the others alone have to be copied."""
    ancestors, order = ancestors.sort(dim=1, stable=True)
    place = places(ancestors)

    def placed(x: Tensor) -> Tensor:
        return torch.empty_like(x).scatter_(1, place, x.gather(1, order))

    moved = torch.empty_like(ancestors).scatter_(1, place, ancestors)
    return placed(log_weights), moved, torch.stack([placed(codes) for codes in pair])


def _own(codes: Tensor, particles: int) -> Tensor:
    """Everybody its own ancestor: int64 [B, N]."""
    return torch.arange(particles, device=codes.device).expand(len(codes), particles)


def _filtered(
    log_weights: Tensor, drawn: Tensor, parents: Tensor, heard: Tensor, sizes: Tensor, poor: Tensor, evidence: Tensor
) -> SearchResult:
    """What a filter found, from one entry per step of all but `log_weights`."""
    drawn = drawn.permute(1, 2, 0, 3).contiguous()
    ess, resampled, running, ancestors, weights = (
        x.transpose(0, 1).contiguous() for x in (sizes, poor, evidence, parents, heard)
    )
    codes = trace_back(drawn, ancestors)
    return SearchResult(codes, log_weights, evidence[-1], ess, resampled, running, ancestors, drawn, weights)


def _from_replay(steps: ReplayedFilter, codes: Tensor) -> SearchResult:
    """What a replayed filter found; where no step could look at its values, they are looked at here."""
    for t in range(codes.shape[1] if not steps.log_evidence.isfinite().all() else 0):
        refuse_impossible(steps.evidence[t][:, None], codes[:, t])
    course = (steps.drawn, steps.parents, steps.heard, steps.sizes, steps.resampled, steps.evidence)
    return _filtered(steps.log_weights, *course)


def _without_resampling(codes: Tensor, log_weights: Tensor, evidence: list[Tensor], ancestors: Tensor) -> SearchResult:
    batch, length = codes.shape[1], codes.shape[-1]
    size = (1 / log_weights.softmax(1).square().sum(1))[:, None].expand(batch, length)
    never = torch.zeros(batch, length, dtype=torch.bool, device=codes.device)
    return SearchResult(codes, log_weights, evidence[-1], size, never, torch.stack(evidence, 1), ancestors)


def _check(codes: Tensor, particles: int, likelihood: Likelihood) -> tuple[int, int]:
    if codes.ndim != 2 or not codes.numel():
        raise ValueError(f"mixture codes must be a non-empty [B, S], not {list(codes.shape)}")
    if particles < 1:
        raise ValueError(f"{particles} particles: at least 1 is needed")
    check_codes("mixture code", codes, likelihood.codes)
    return codes.shape[0], codes.shape[1]
