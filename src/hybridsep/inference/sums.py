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


class TableLikelihood(Likelihood):
    """l(m|i,j) = table[m, c(i,j)]: every pair has a class, `sums` int32 [K, K], every class a distribution in a column of `table`, float32 [K, K]."""

    keeps_host_free = True

    def __init__(self, sums: Tensor, table: Tensor):
        self.codes, self.sums, self.table = len(sums), sums, table

    def matrix(self, mixture: int) -> Tensor:
        return self.gathered(self.table[mixture])

    def gathered(self, row: Tensor) -> Tensor:
        """Return row[c(i, j)] for all pairs: float32 [K] -> [K, K]."""
        return row.expand_as(self._sums_wide).gather(1, self._sums_wide)

    def fused(self, mixture: Tensor, log_p: Tensor) -> FusedPosterior:
        return FusedPosterior(mixture, log_p, (self.sums, self.table, None))

    def log_likelihood(self, mixture: Tensor, first: Tensor, second: Tensor) -> Tensor:
        return self.table[mixture, self.sums[first, second].long()].log()

    def with_power(self, power: float) -> TableLikelihood:
        return TableLikelihood(self.sums, self.table.pow(power)).with_precision(self.precision)

    def to_tensors(self) -> dict[str, Tensor]:
        raise NotImplementedError("a table by itself is in no file: only a fitted likelihood is kept")

    @cached_property
    def _sums_wide(self) -> Tensor:
        """Indices for gathering, which only matrices need."""
        return self.sums.long()


class SumLikelihood(TableLikelihood):
    """l(m|i,j) = exp(−‖e_m − B(½ e_i + ½ e_j)‖² / 2σ²), normalised over m and mixed with a uniform floor.

    Args:
        codebook: vectors e, float32 [K, D].
        sigma_squared: σ², in the squared units of the codebook.
        floor: share of the uniform distribution.
    """

    def __init__(self, codebook: Tensor, sigma_squared: float, floor: float):
        self.codebook, self.sigma_squared, self.floor = codebook, sigma_squared, floor
        near = (-squared_distances(codebook) / (2 * sigma_squared)).softmax(0)
        super().__init__(sum_table(codebook), (1 - floor) * near + floor / len(codebook))

    def to_tensors(self) -> dict[str, Tensor]:
        return {"codebook": self.codebook, "sigma_squared": number(self.sigma_squared), "floor": number(self.floor)}

    @classmethod
    def fit(cls, codebook: Tensor, triples: Tensor) -> SumLikelihood:
        """Choose σ² and the floor by maximum likelihood on triples (first, second, mixture), int64 [3, n]."""
        sums = sum_table(codebook)[triples[0], triples[1]].long()
        distances = squared_distances(codebook)
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
    """Return c(i,j), the code nearest to ½ e_i + ½ e_j, int32 [K, K], of a codebook [K, D]."""
    table = torch.stack([nearest_code(0.5 * vector + 0.5 * codebook, codebook) for vector in codebook])
    # A mean is as far from e_i as from e_j: where no third code is nearer, rounding would decide.
    index = torch.arange(len(codebook), device=codebook.device)
    tied = (table == index[:, None]) | (table == index)
    return torch.where(tied, torch.minimum(index[:, None], index), table).int()


def squared_distances(codebook: Tensor) -> Tensor:
    """Return ‖e_i − e_j‖², float32 [K, K], of a codebook [K, D]."""
    return torch.cdist(codebook, codebook, compute_mode="donot_use_mm_for_euclid_dist").square()


def number(value: float) -> Tensor:
    """Return a number in float64, so that the round trip through a file keeps every bit."""
    return torch.tensor(value, dtype=torch.float64)
