"""What a likelihood l(m | i, j) of a mixture code given two source codes must answer, and the posterior of one step.

No search ever forms the [N, K, K] posterior of the originals. With l(m|·,·) as a [K, K] matrix, r(i) = p1(i) Σ_j l(m|i,j) p2(j) is one
matrix product for all particles; Σ_i r(i) is the evidence; i is drawn from r and j from p2(j) l(m|i,j). The pair so drawn has
exactly the distribution of the dense posterior.
"""

from __future__ import annotations

import copy
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TypeVar

import torch
from torch import Tensor

from hybridsep.core.device import physical_memory
from hybridsep.core.errors import HybridsepError
from hybridsep.kernels import counts as counted_pairs
from hybridsep.kernels import sums as summed_codes
from hybridsep.kernels.bodies import runs_triton
from hybridsep.kernels.counting import check_codes
from hybridsep.kernels.inversion import invert_sequential

Own = TypeVar("Own", bound="Likelihood")
ROWS_SCORED = 4096


@dataclass(frozen=True)
class PairDraw:
    """One pair of source codes per particle."""

    codes: Tensor  # int64 [2, B, N]
    log_evidence: Tensor  # log Σ_ij p1(i) p2(j) l(m|i,j), nats, float32 [B, N]


@dataclass(frozen=True)
class TopPairs:
    """The best pairs of each group of hypotheses, best first."""

    codes: Tensor  # int64 [2, B, G, k]
    parents: Tensor  # hypothesis of the group that each pair extends, int64 [B, G, k]
    scores: Tensor  # its log-weight + log p1(i) + log p2(j) + log l(m|i,j), nats, float32 [B, G, k]


class Likelihood(ABC):
    """l(m | i, j) over a codebook of K codes; an unseen mixture code or pair is unlikely, never an error.

    Attributes:
        codes: K.
        precision: of the products with p2 and of the matrices kept for them; bfloat16 is several times as fast where the CPU has it.
        cache_bytes: room for the matrices that are kept, in bytes: an eighth of main memory at most.
        keeps_host_free: whether `fused` decides nothing by values, so that its step can be recorded as a CUDA graph.
    """

    codes: int
    precision = torch.float32
    cache_bytes = min(3 * 2**27, physical_memory() // 8)
    keeps_host_free = False

    @abstractmethod
    def matrix(self, mixture: int) -> Tensor:
        """Return l(mixture | i, j), float32 [K, K]."""

    @abstractmethod
    def log_likelihood(self, mixture: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Return log l(m | i, j) of given triples, nats; int64 tensors of one shape -> float32 of that shape."""

    @abstractmethod
    def with_power(self, power: float) -> Likelihood:
        """Return the likelihood at λ = `power`: as it was fitted at 1, raised to λ and not normalised again."""

    @abstractmethod
    def to_tensors(self) -> dict[str, Tensor]:
        """Return what `counts.likelihood_from_tensors` needs to rebuild it."""

    def with_precision(self: Own, precision: torch.dtype) -> Own:
        """Return the same likelihood with its products in a precision, and matrices of its own."""
        other = copy.copy(self)
        other.__dict__.pop("_matrices", None)
        other.precision = precision
        return other

    def posterior(self, mixture: Tensor, log_p: Tensor, checked: bool = True) -> StepPosterior | FusedPosterior:
        """Return the one-step posterior of every particle, p(i, j) ∝ p1(i) p2(j) l(m|i,j).

        Args:
            mixture: mixture codes, int64 [B].
            log_p: log-probabilities of the next code under both priors, nats, float32 [2, B, N, K].
            checked: look at the values; a look makes the host wait for the device.

        Raises:
            ValueError: a mixture code outside [0, K), another codebook size, or NaN.
            HybridsepError: a mixture for which every pair of codes is impossible.
        """
        if checked:
            self._check(mixture, log_p)
        posterior = self.fused(mixture, log_p) if runs_triton(log_p) else self._factored(mixture, log_p)
        if checked:
            refuse_impossible(posterior.log_evidence, mixture)
        return posterior

    def fused(self, mixture: Tensor, log_p: Tensor) -> StepPosterior | FusedPosterior:
        """Return `posterior` by the kernels that keep no [K, K] matrix; by matrices where a likelihood has none."""
        return self._factored(mixture, log_p)

    def draw_pairs(self, mixture: Tensor, log_p: Tensor, generator: torch.Generator) -> PairDraw:
        """Draw one pair per particle from the exact one-step posterior; arguments and errors as in `posterior`."""
        posterior = self.posterior(mixture, log_p)
        uniforms = torch.rand(2, *log_p.shape[1:3], generator=generator, device=log_p.device)
        return PairDraw(posterior.draw(uniforms), posterior.log_evidence)

    def top_pairs(self, mixture: Tensor, log_p: Tensor, k: int, log_weights: Tensor | None = None) -> TopPairs:
        """Return the k best pairs of every particle (G = N), or with `log_weights` [B, N] those of all particles of a mixture (G = 1).

        Exact without scoring every pair: r(i) bounds the score of each pair in row i, so after the rows of highest bounds only those
        are scored whose bound exceeds the k-th best pair so far. Where more than ROWS_SCORED do, in a posterior that is nearly flat,
        the lowest of them are left out.
        """
        self._check(mixture, log_p)
        posterior = self._factored(mixture, log_p)
        refuse_impossible(posterior.log_evidence, mixture)
        together = log_weights is not None
        batch, particles, _ = posterior.marginal.shape
        log_weights = log_p.new_zeros(batch, particles) if log_weights is None else log_weights
        highest = log_weights.amax(1, keepdim=True)
        weights = (log_weights - highest).exp()
        bounds = posterior.marginal * weights.to(posterior.marginal)[..., None]
        bounds = bounds.view(batch, 1 if together else particles, -1)
        results = [self._best_of(b, posterior, bounds[b], log_p[0, b], weights[b], k) for b in range(batch)]
        codes, parents, scores = (torch.stack(parts) for parts in zip(*results, strict=True))
        return TopPairs(codes.transpose(0, 1), parents, scores + highest[..., None])

    def _factored(self, mixture: Tensor, log_p: Tensor) -> StepPosterior:
        matrices = [self._matrices(code) for code in mixture.tolist()]
        first, second = log_p.exp()
        low = second.to(self.precision)
        summed = torch.empty_like(low)
        for matrix, p2, out in zip(matrices, low, summed, strict=True):
            torch.mm(p2, matrix.T, out=out)
        return StepPosterior(matrices, second, first * summed)

    @cached_property
    def _matrices(self) -> Callable[[int], Tensor]:
        """Kept while among the last used: a few hundred mixture codes make up most of a recording."""
        room, own = self.cache_bytes // (self.codes**2 * self.precision.itemsize), weakref.proxy(self)
        return lru_cache(max(1, room))(lambda mixture: own.matrix(mixture).to(own.precision))

    def _best_of(
        self, b: int, posterior: StepPosterior, bounds: Tensor, log_first: Tensor, weights: Tensor, k: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Best k pairs of each group of mixture b, bounds [G, R] of its rows: codes [2, G, k], parents [G, k], scores [G, k]."""
        size, first = self.codes, log_first.exp()

        def row_scores(group: Tensor, row: Tensor) -> Tensor:
            code, particle = row % size, row // size if len(bounds) == 1 else group
            table = posterior.matrices[b].index_select(0, code.flatten()).view(*code.shape, size)
            row_weight = weights.to(table)[particle] * first[particle, code]
            return table * posterior.second[b][particle] * row_weight[..., None]

        groups = torch.arange(len(bounds), device=bounds.device)[:, None]
        rows = bounds.topk(min(bounds.shape[1], max(8, k)), 1).indices
        scores = row_scores(groups.expand_as(rows), rows).flatten(1)
        best = scores.topk(min(k, scores.shape[1]), 1)
        row, column, found = rows.gather(1, best.indices // size), best.indices % size, best.values
        possible = _rows_above(bounds.scatter(1, rows, 0.0), found[:, -1:])
        if possible.any():
            group, other = possible.nonzero(as_tuple=True)
            scores = row_scores(group, other)
            place, other_column = (scores > found[group, -1:]).nonzero(as_tuple=True)
            entries = [groups.expand_as(row).flatten(), row.flatten(), column.flatten(), found.flatten()]
            better = [group[place], other[place], other_column, scores[place, other_column]]
            joined = [torch.cat(pair) for pair in zip(entries, better, strict=True)]
            _, row, column, found = _best_entries(joined, found.shape[1])
        return torch.stack([row % size, column]), row // size, found.log()

    def _check(self, mixture: Tensor, log_p: Tensor) -> None:
        if log_p.shape[-1] != self.codes:
            raise ValueError(f"priors over {log_p.shape[-1]} codes, likelihood over {self.codes}")
        check_codes("mixture code", mixture, self.codes)


def refuse_impossible(log_evidence: Tensor, mixture: Tensor) -> None:
    """Refuse evidence, float32 [B, N], that is NaN, or −inf for every particle of a mixture, whose code is `mixture` [B]."""
    if log_evidence.isnan().any():
        raise ValueError("log-probabilities of the priors hold NaN")
    impossible = (log_evidence == -torch.inf).all(1)
    if impossible.any():
        code = int(mixture[impossible][0])
        raise HybridsepError(
            f"mixture code {code}: its likelihood is 0 for every pair of codes that the priors allow; smooth it more, or lower its power"
        )


@dataclass(frozen=True)
class StepPosterior:
    """One-step posterior of B·N particles in factored form."""

    matrices: list[Tensor]  # l(m|i,j) of each mixture's code, B times [K, K]
    second: Tensor  # p2, float32 [B, N, K]
    marginal: Tensor  # r(i), not normalised, float32 [B, N, K]

    @cached_property
    def log_evidence(self) -> Tensor:
        """Log-evidence of the step, nats, float32 [B, N]."""
        return self.marginal.sum(-1).log()

    def draw(self, uniforms: Tensor, ancestors: Tensor | None = None) -> Tensor:
        """Draw pairs int64 [2, B, N] by inversion of uniform numbers [2, B, N]; particle n draws from the posterior of particle ancestors[b, n]."""
        batch, particles, _ = self.marginal.shape
        marginal, second = self.marginal.flatten(0, 1), self.second.flatten(0, 1)
        if ancestors is not None:
            rows = (ancestors + torch.arange(batch, device=ancestors.device)[:, None] * particles).flatten()
            marginal, second = marginal.index_select(0, rows), second.index_select(0, rows)
        first = invert_sequential(marginal, uniforms[0].flatten()).view(batch, particles)
        likelihood = [matrix.index_select(0, row) for matrix, row in zip(self.matrices, first, strict=True)]
        weights = second * torch.cat(likelihood)
        return torch.stack([first, invert_sequential(weights, uniforms[1].flatten()).view(batch, particles)])


class FusedPosterior:
    """`StepPosterior` by kernels: the part of every pair made tile by tile, the counted part from a sparse row, neither ever a matrix.

    With counts the likelihood is a sum of the two, so a draw picks a part by its share of the evidence and then a pair from that part.

    Args:
        dense: argument `tables` of `kernels.sums.log_marginal`.
        entries: argument `rows` of `kernels.counts.draw_entries`; None where nothing is counted.
    """

    def __init__(
        self, mixture: Tensor, log_p: Tensor, dense: summed_codes.Tables, entries: counted_pairs.Rows | None = None
    ):
        self._dense = (log_p, mixture, dense)
        self._sparse = None if entries is None else (log_p, mixture, entries)
        log_marginal = summed_codes.log_marginal(*self._dense)
        of_every_pair = log_marginal.logsumexp(-1)
        self._marginal = (log_marginal - of_every_pair[..., None]).exp_().nan_to_num_(0.0)
        self.log_evidence = of_every_pair
        if entries is not None:
            counted = self._draw_counted(torch.zeros_like(mixture[:1]), None)[1]
            self.log_evidence = torch.logaddexp(of_every_pair, counted)
        self._counted = -torch.expm1(of_every_pair - self.log_evidence)

    def draw(self, uniforms: Tensor, ancestors: Tensor | None = None) -> Tensor:
        """See StepPosterior."""
        if self._sparse is None:
            return self._draw_dense(uniforms, ancestors)
        counted = self._counted if ancestors is None else self._counted.gather(1, ancestors)
        # One uniform number serves twice: which part, and where in it.
        part, rest = uniforms[0] < counted, (uniforms[0] - counted) / (1 - counted).clamp_min(1e-30)
        uniforms = torch.stack([rest.clamp(0, 1 - 2**-24), uniforms[1]])
        seed = (uniforms[1].flatten()[:1].double() * 2**31).long()
        return torch.where(part, self._draw_counted(seed, ancestors)[0], self._draw_dense(uniforms, ancestors))

    def _draw_dense(self, uniforms: Tensor, ancestors: Tensor | None) -> Tensor:
        return summed_codes.draw_pairs(self._marginal, *self._dense, uniforms, ancestors)

    def _draw_counted(self, seed: Tensor, ancestors: Tensor | None) -> tuple[Tensor, Tensor]:
        assert self._sparse is not None
        return counted_pairs.draw_entries(*self._sparse, seed, ancestors)


def _rows_above(bounds: Tensor, least: Tensor) -> Tensor:
    """Which rows may hold a pair better than `least` [G, 1], by their bounds [G, R]: at most ROWS_SCORED in all groups together."""
    limit = min(bounds.shape[1], max(1, ROWS_SCORED // len(bounds)))
    possible = bounds > least
    if int(possible.sum(1).amax()) > limit:
        # Many may be equal, so places are kept and not a threshold.
        possible &= torch.zeros_like(possible).scatter_(1, bounds.topk(limit, 1).indices, True)
    return possible


def _best_entries(entries: list[Tensor], k: int) -> list[Tensor]:
    """Of entries (group, row, column, score), each [E], the k of highest score of every group, best first: four [G, k].

    No group has fewer.
    """
    by_score = entries[3].argsort(descending=True, stable=True)
    order = by_score[entries[0][by_score].argsort(stable=True)]
    counts = entries[0].bincount()
    places = (counts.cumsum(0) - counts)[:, None] + torch.arange(k, device=counts.device)
    return [entry[order[places]] for entry in entries]
