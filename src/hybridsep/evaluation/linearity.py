"""How linear a codebook is: whether the mean of two sources' codes is near the code of their mixture."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hybridsep.core.device import seeded_generator
from hybridsep.inference.sums import sum_table


@dataclass(frozen=True)
class Linearity:
    """Means over triples of codes (first, second, mixture).

    Attributes:
        hit_rate: share for which B(½ q1 + ½ q2) is the mixture's code.
        hit_rate_without_top: the same over triples whose mixture's code is not the most frequent one, which silence may own.
        by_chance: hit_rate with the mixtures of other triples.
        distance: mean of ‖½ q1 + ½ q2 − q_m‖² over the variance of q_m: 0 where the codebook is linear, 1 where the mean of all codes does as well.
    """

    hit_rate: float
    hit_rate_without_top: float
    by_chance: float
    distance: float


def measure_linearity(codebook: Tensor, triples: Tensor) -> Linearity:
    """Linearity of a codebook [K, D] over triples int64 [3, n] of codes of two sources and of their mixture."""
    first, second, mixed = triples
    summed = sum_table(codebook)[first, second].long()
    hit, rarer = (summed == mixed).float(), mixed != mixed.mode().values
    shuffled = mixed[torch.randperm(len(mixed), generator=seeded_generator(0)).to(mixed.device)]
    middle, target = 0.5 * codebook[first] + 0.5 * codebook[second], codebook[mixed]
    spread = (target - target.mean(0)).square().sum(1).mean()
    distance = (middle - target).square().sum(1).mean() / spread
    by_chance = (summed == shuffled).float().mean()
    return Linearity(float(hit.mean()), float(hit[rarer].mean()), float(by_chance), float(distance))
