"""Markov chains over codes as priors: so simple that what the transformer adds can be seen, and worlds can be enumerated."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MarkovPriors:
    """First-order Markov chains of P sources."""

    first: Tensor  # distribution of the first code, float32 [P, K]
    transition: Tensor  # of the next code given the last, float32 [P, K, K]

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
        chosen = [chain[code] for chain, code in zip(self.priors.transition, codes, strict=True)]
        self.log_probs = torch.stack(chosen).log()
