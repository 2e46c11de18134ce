"""Worlds of a few codes and steps, small enough to list every pair of sequences: what a search should find is known."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from hybridsep.inference.likelihood import Likelihood
from hybridsep.inference.markov import MarkovPriors
from hybridsep.inference.search import SearchResult


class TabularLikelihood(Likelihood):
    """l(m | i, j) from a table [K, K, K] indexed m, i, j."""

    def __init__(self, table: Tensor):
        self.codes, self.table = len(table), table

    def matrix(self, mixture: int) -> Tensor:
        """See Likelihood."""
        return self.table[mixture]

    def log_likelihood(self, mixture: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """See Likelihood."""
        return self.table[mixture, first, second].log()

    def with_power(self, power: float) -> TabularLikelihood:
        """See Likelihood."""
        return TabularLikelihood(self.table.pow(power))

    def to_tensors(self) -> dict[str, Tensor]:
        """See Likelihood."""
        return {"table": self.table}


@dataclass(frozen=True)
class World:
    """Two chains, a likelihood and the exact posterior of one mixture.

    Attributes:
        mixture: int64 [1, S].
        pairs: every pair of sequences, each a tuple of codes.
        prior, observed: p(z1) p(z2) and l(m | z1, z2) of each pair, float64 [len(pairs)].
        probabilities: exact posterior of each pair, float64 [len(pairs)].
        evidence: p(m).
    """

    priors: MarkovPriors
    likelihood: TabularLikelihood
    mixture: Tensor
    pairs: tuple[tuple[tuple[int, ...], ...], ...]
    prior: Tensor
    observed: Tensor
    probabilities: Tensor
    evidence: float


def sticky_world(mixture: list[int], codes: int = 3, seed: int = 0, noise: float = 0.05) -> World:
    """Make two chains with strong habits; the mixture code is the sum of both codes modulo K, except for some noise."""
    generator = torch.Generator().manual_seed(seed)
    transition = torch.rand(2, codes, codes, generator=generator).pow(3) + 0.02
    priors = MarkovPriors(torch.full((2, codes), 1 / codes), transition / transition.sum(-1, keepdim=True))
    table = torch.full((codes, codes, codes), noise / (codes - 1))
    for i, j in itertools.product(range(codes), repeat=2):
        table[(i + j) % codes, i, j] = 1 - noise
    return _enumerate(priors, TabularLikelihood(table), mixture)


def ancestral_probabilities(world: World) -> Tensor:
    """Return the exact probability of every pair under ancestral sampling, float64 [len(pairs)].

    It draws each step from that step's own normalised posterior.
    """
    first, second = torch.tensor(world.pairs).unbind(1)
    starts = (world.priors.first[0][:, None] * world.priors.first[1]).double()
    p1, p2 = world.priors.transition
    moves = (p1[:, None, :, None] * p2[None, :, None, :]).double()  # from i, j to i', j'
    result = torch.ones(len(world.pairs), dtype=torch.float64)
    for t, code in enumerate(world.mixture[0].tolist()):
        joint = (moves if t else starts) * world.likelihood.table[code]
        shares = joint / joint.sum((-2, -1), keepdim=True)
        before = (first[:, t - 1], second[:, t - 1]) if t else ()
        place = (*before, first[:, t], second[:, t])
        result *= shares[place]
    return result


def listing(world: World) -> pd.DataFrame:
    """Return every pair of a world small enough to read, most probable first."""
    first, second = ([" ".join(map(str, codes)) for codes in source] for source in zip(*world.pairs, strict=True))
    columns = {"p₁ p₂": world.prior, "l": world.observed, "product": world.prior * world.observed}
    shares = {"posterior (%)": 100 * world.probabilities, "ancestral (%)": 100 * ancestral_probabilities(world)}
    table = pd.DataFrame({"first source": first, "second source": second, **columns, **shares})
    return table.sort_values("product", ascending=False, kind="stable")


def frequencies(world: World, result: SearchResult, weighted: bool = True) -> Tensor:
    """Return the share of every pair among one mixture's particles, weighted or each once: float64 [len(pairs)]."""
    particles, length = result.log_weights.shape[1], world.mixture.shape[1]
    log_weights = result.log_weights[0] if weighted else torch.zeros(particles)
    weights = log_weights.double().softmax(0)
    # A sequence's place in the list of all sequences is the number it spells.
    places = world.likelihood.codes ** torch.arange(length - 1, -1, -1)
    first, second = (result.codes[:, 0] * places).sum(-1)
    return torch.bincount(first * world.likelihood.codes**length + second, weights, minlength=len(world.pairs))


def total_variation(shares: Tensor, probabilities: Tensor) -> float:
    """Return half the L1 distance between two distributions: 0 where they agree, 1 where they share nothing."""
    return 0.5 * float((shares - probabilities).abs().sum())


def _enumerate(priors: MarkovPriors, likelihood: TabularLikelihood, mixture: list[int]) -> World:
    sequences = list(itertools.product(range(likelihood.codes), repeat=len(mixture)))
    codes = torch.tensor(sequences)

    def chain(source: int) -> Tensor:
        steps = priors.transition[source][codes[:, :-1], codes[:, 1:]].double().prod(1)
        return priors.first[source][codes[:, 0]].double() * steps

    observed = torch.ones(len(codes), len(codes), dtype=torch.float64)
    for t, code in enumerate(mixture):
        observed *= likelihood.table[code][codes[:, None, t], codes[None, :, t]].double()
    prior, observed = (chain(0)[:, None] * chain(1)).flatten(), observed.flatten()
    evidence = float(prior @ observed)
    pairs = tuple(itertools.product(sequences, repeat=2))
    posterior = prior * observed / evidence
    return World(priors, likelihood, torch.tensor([mixture]), pairs, prior, observed, posterior, evidence)
