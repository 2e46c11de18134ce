"""Toy worlds in which the exact posterior is known: two Markov chains over three codes, and mixtures of a few."""

import itertools
import math

import torch
from notebooks import definitions

from hybridsep.inference.markov import MarkovPriors

TabularLikelihood = definitions("05_search").TabularLikelihood
K = 3


def additive_world(seed=0, noise=0.05, floor=0.02):
    """Two sticky chains, less so with a higher floor; the mixture code is the rounded mean of both, with some noise."""
    generator = torch.Generator().manual_seed(seed)
    transition = torch.rand(2, K, K, generator=generator).pow(3) + floor
    transition = transition / transition.sum(-1, keepdim=True)
    start = torch.full((2, K), 1 / K)
    table = torch.full((K, K, K), noise / (K - 1))
    for i, j in itertools.product(range(K), repeat=2):
        table[(i + j) % K, i, j] = 1 - noise
    return MarkovPriors(start, transition), TabularLikelihood(table)


def enumerate_posterior(priors, likelihood, mixture):
    """Exact p(z1, z2 | m) as {(z1, z2): probability}, and p(m)."""
    length = len(mixture)
    sequences = list(itertools.product(range(K), repeat=length))

    def prior(p, z):
        value = float(priors.first[p, z[0]])
        for a, b in itertools.pairwise(z):
            value *= float(priors.transition[p, a, b])
        return value

    marginals = [{z: prior(p, z) for z in sequences} for p in range(2)]
    joint = {}
    for z1, z2 in itertools.product(sequences, repeat=2):
        seen = math.prod(float(likelihood.table[m, i, j]) for m, i, j in zip(mixture, z1, z2, strict=True))
        joint[z1, z2] = marginals[0][z1] * marginals[1][z2] * seen
    total = sum(joint.values())
    return {pair: value / total for pair, value in joint.items()}, total


def smoothed_marginals(priors, likelihood, mixture):
    """Exact p(z1[t] | m) and p(z2[t] | m) of a mixture of any length, by forward and backward messages: float64 [2, S, K]."""
    first, second = priors.transition.double()
    moves = torch.einsum("ac,bd->abcd", first, second)
    seen = likelihood.table[torch.tensor(mixture)].double()
    forward, backward = [torch.outer(*priors.first.double()) * seen[0]], [torch.ones(K, K, dtype=torch.float64)]
    for heard in seen[1:]:
        forward.append(torch.einsum("ab,abcd->cd", forward[-1] / forward[-1].sum(), moves) * heard)
    for heard in seen[1:].flip(0):
        message = torch.einsum("abcd,cd->ab", moves, backward[-1] * heard)
        backward.append(message / message.sum())
    joint = torch.stack(forward) * torch.stack(backward[::-1])
    joint = joint / joint.sum((1, 2), keepdim=True)
    return torch.stack([joint.sum(2), joint.sum(1)])
