"""LQ-VAE's likelihood: how near a mixture code lies to the sum of two codes.

Source: Mancusi et al. 2021 (arXiv 2110.05313), sec. 3.3.
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from hybridsep.inference.likelihood import FusedPosterior, Likelihood
from hybridsep.kernels.nearest import nearest_code

SIGMA_SQUARED_GRID = tuple(2.0**e for e in range(-8, 7))


FLOOR_GRID = (1e-4, 1e-3, 1e-2, 3e-2, 0.1, 0.2, 0.3, 0.5, 0.7)


class SumLikelihood(Likelihood):
    """LQ-VAE's likelihood, l(m|i,j) = exp(−‖e_m − B(½ e_i + ½ e_j)‖² / 2σ²), normalised over m and mixed with a uniform floor.

    Everything follows from two tables: c(i,j), the code nearest to the mean of two codes [K, K], and l(m|c) [K, K].
    """

    keeps_host_free = True

    def __init__(self, codebook: Tensor, sigma_squared: float, floor: float):
        self.codes = len(codebook)
        self.codebook, self.sigma_squared, self.floor = codebook, sigma_squared, floor
        self.sums = sum_table(codebook)
        distances = torch.cdist(codebook, codebook, compute_mode="donot_use_mm_for_euclid_dist").square()
        self.table = (1 - floor) * (-distances / (2 * sigma_squared)).softmax(0) + floor / self.codes

    def matrix(self, mixture: int) -> Tensor:
        """See Likelihood."""
        return self.gathered(self.table[mixture])

    @cached_property
    def _sums_wide(self) -> Tensor:
        """Indices for gathering, which only matrices need."""
        return self.sums.long()

    def gathered(self, row: Tensor) -> Tensor:
        """row[c(i, j)] for all pairs: float32 [K] -> [K, K]."""
        return row.expand_as(self._sums_wide).gather(1, self._sums_wide)

    def fused(self, mixture: Tensor, log_p: Tensor) -> FusedPosterior:
        """See Likelihood."""
        return FusedPosterior(self, self.table, None, None, mixture, log_p)

    def log_likelihood(self, mixture: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """See Likelihood."""
        return self.table[mixture, self.sums[first, second].long()].log()

    def to_tensors(self) -> dict[str, Tensor]:
        """See Likelihood."""
        return {"codebook": self.codebook, "sigma_squared": _number(self.sigma_squared), "floor": _number(self.floor)}

    @classmethod
    def fit(cls, codebook: Tensor, triples: Tensor) -> SumLikelihood:
        """Choose σ² and the floor by maximum likelihood on triples int64 [3, n] (first, second, mixture)."""
        sums = sum_table(codebook)[triples[0], triples[1]].long()
        distances = torch.cdist(codebook, codebook, compute_mode="donot_use_mm_for_euclid_dist").square()
        scale = float(distances.mean())
        best = (-float("inf"), 0.0, 0.0)
        for relative in SIGMA_SQUARED_GRID:
            table = (-distances / (2 * relative * scale)).softmax(0)
            hits = table[triples[2], sums]
            for floor in FLOOR_GRID:
                score = float(((1 - floor) * hits + floor / len(codebook)).log().mean())
                best = max(best, (score, relative * scale, floor))
        return cls(codebook, best[1], best[2])


def sum_table(codebook: Tensor) -> Tensor:
    """c(i,j): the code nearest to ½ e_i + ½ e_j, int32 [K, K]. Codebook [K, D]."""
    table = torch.stack([nearest_code(0.5 * vector + 0.5 * codebook, codebook) for vector in codebook])
    # A mean is as far from e_i as from e_j: where no third code is nearer, rounding would decide.
    index = torch.arange(len(codebook), device=codebook.device)
    tied = (table == index[:, None]) | (table == index)
    return torch.where(tied, torch.minimum(index[:, None], index), table).int()


def _number(value: float) -> Tensor:
    """In float64, so that the round trip through a file keeps every bit."""
    return torch.tensor(value, dtype=torch.float64)
