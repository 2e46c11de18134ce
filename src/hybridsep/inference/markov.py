"""Markov chains over codes as priors: so simple that what the transformer adds can be seen, and worlds can be enumerated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hybridsep.data.codes import CodeSet

PSEUDO_COUNTS = (1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True)
class MarkovPriors:
    """First-order Markov chains of P sources.

    Attributes:
        first: distribution of the first code, float32 [P, K].
        transition: of the next code given the last, float32 [P, K, K].
    """

    first: Tensor
    transition: Tensor

    def start(self, mixtures: int, particles: int) -> MarkovState:
        """See search.Priors."""
        return MarkovState(self, mixtures, particles)

    def nats_per_code(self, codes: Tensor, source: int) -> float:
        """Return the mean negative log-likelihood of sequences int64 [B, T] of a source, nats per code."""
        chain = self.transition[source][codes[:, :-1], codes[:, 1:]].log().sum()
        return -float((self.first[source][codes[:, 0]].log().sum() + chain) / codes.numel())


class MarkovState:
    """Histories under the chains; only the last code of each matters."""

    def __init__(self, priors: MarkovPriors, mixtures: int, particles: int):
        self.priors = priors
        self.log_probs = priors.first.log()[:, None, None].expand(len(priors.first), mixtures, particles, -1)

    def append(self, codes: Tensor, ancestors: Tensor | None = None) -> None:
        """See search.State."""
        self.log_probs = torch.stack(
            [chain[code] for chain, code in zip(self.priors.transition, codes, strict=True)]
        ).log()


def uniform_priors(sources: int, codes: int) -> MarkovPriors:
    """Return chains under which every code is as likely as any other at any place."""
    first = torch.full((sources, codes), 1 / codes)
    return MarkovPriors(first, first[:, None].expand(sources, codes, codes))


def unigram_priors(codes: CodeSet, size: int) -> MarkovPriors:
    """Return chains of independent codes, as frequent as in the songs, with one pseudo-count a code."""
    first = torch.stack([_shares(torch.bincount(c, minlength=size)) for c in _all_codes(codes)])
    return MarkovPriors(first, first[:, None].expand(len(first), size, size))


def bigram_priors(codes: CodeSet, validation: CodeSet, size: int) -> MarkovPriors:
    """Return chains of each code given the one before it: counted pairs, and pseudo-counts shared out by the unigram.

    The number of pseudo-counts of each source is the one of PSEUDO_COUNTS under which `validation` is likeliest.
    """
    unigram = unigram_priors(codes, size)
    chains = []
    for source, (first, held_out) in enumerate(zip(unigram.first, _all_codes(validation), strict=True)):
        pairs = torch.cat([song[source, :-1].long() * size + song[source, 1:].long() for song in codes.songs])
        counts = torch.bincount(pairs, minlength=size * size).view(size, size).float()
        options = [(counts + alpha * first) / (counts.sum(1, keepdim=True) + alpha) for alpha in PSEUDO_COUNTS]
        chains.append(max(options, key=lambda chain: float(chain[held_out[:-1], held_out[1:]].log().mean())))
    return MarkovPriors(unigram.first, torch.stack(chains))


def _all_codes(codes: CodeSet) -> list[Tensor]:
    """The songs of each source end to end: P times int64 [n]."""
    return list(torch.cat(codes.songs, 1).long())


def _shares(counts: Tensor) -> Tensor:
    return (counts + 1.0) / (counts + 1.0).sum()
