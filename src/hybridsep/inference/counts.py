"""LASS's likelihood: relative frequencies of counted triples.

Source: Postolache et al. 2023 (arXiv 2301.08562), sec. 3.2.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor

from hybridsep.core.profiles import Tuning
from hybridsep.inference.likelihood import FusedPosterior, Likelihood
from hybridsep.inference.sums import SumLikelihood, TableLikelihood, number
from hybridsep.kernels.counting import count_triples

NUMBERS = ("codes", "sigma_squared", "floor", "smoothing", "power")
SMOOTHING_GRID = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)


class UnigramLikelihood(TableLikelihood):
    """l(m|i,j) = u(m), whatever the pair: the share of each mixture code in counted triples, where each counts once more."""

    def __init__(self, keys: Tensor, counts: Tensor, codes: int):
        seen = torch.ones(codes, dtype=torch.float64, device=keys.device)
        seen.index_add_(0, keys // codes**2, counts.double())
        column = (seen / seen.sum()).float()[:, None]
        super().__init__(torch.zeros(codes, codes, dtype=torch.int32, device=keys.device), column.repeat(1, codes))

    def to_tensors(self) -> dict[str, Tensor]:
        """See Likelihood; the frequencies are those of the counts, which are kept beside."""
        return {"codes": number(self.codes)}


class CountLikelihood(Likelihood):
    """l(m|i,j) = ((n(i,j,m) + α S(m|i,j)) / (n(i,j) + α))^λ, with S the base of smoothing.

    The mean of a Dirichlet posterior with α pseudo-counts: a pair never counted falls back to S, a pair counted often is left alone.

    Args:
        keys: sorted distinct triples as (m·K + i)·K + j, int64 [nnz].
        counts: how often each was counted, int64 [nnz].
        base: S, the `SumLikelihood` or the mixture codes' own frequencies.
        smoothing: α, in counts.
        power: λ.
    """

    keeps_host_free = True

    def __init__(self, keys: Tensor, counts: Tensor, base: TableLikelihood, smoothing: float, power: float = 1.0):
        self.codes = size = base.codes
        self.keys, self.counts, self.base, self.smoothing, self.power = keys, counts, base, smoothing, power
        self.pairs = keys % (size * size)
        totals = torch.zeros(size * size, device=keys.device).index_add_(0, self.pairs, counts.float())
        share = smoothing / (totals + smoothing)
        # Kept as what the base says of every pair and what counting adds at the counted triples, each already raised to λ.
        self.share, self.table = share.pow(power).view(size, size), base.table.pow(power)
        self.values = counts.float() / (totals[self.pairs] + smoothing)
        if power != 1.0:
            smooth = share[self.pairs] * base.table[keys // (size * size), base.sums.flatten()[self.pairs].long()]
            self.values = (smooth + self.values).pow(power) - smooth.pow(power)
        self.row_starts = torch.searchsorted(keys, torch.arange(size + 1, device=keys.device) * size**2)

    def matrix(self, mixture: int) -> Tensor:
        result = self.base.gathered(self.table[mixture]).mul_(self.share)
        first, last = self.row_starts[mixture : mixture + 2].tolist()
        result.view(-1).index_add_(0, self.pairs[first:last], self.values[first:last])
        return result

    def fused(self, mixture: Tensor, log_p: Tensor) -> FusedPosterior:
        return FusedPosterior(mixture, log_p, (self.base.sums, self.table, self.share), self._entries)

    def log_likelihood(self, mixture: Tensor, first: Tensor, second: Tensor) -> Tensor:
        counted, value = self._look_up((mixture * self.codes + first) * self.codes + second)
        smooth = self.share[first, second] * self.table[mixture, self.base.sums[first, second].long()]
        return (smooth + torch.where(counted, value, 0.0)).log()

    def with_power(self, power: float) -> CountLikelihood:
        other = CountLikelihood(self.keys, self.counts, self.base, self.smoothing, power)
        return other.with_precision(self.precision)

    def seen(self, mixture: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """Return whether a triple was counted at all, bool of the arguments' shape."""
        return self._look_up((mixture * self.codes + first) * self.codes + second)[0]

    def to_tensors(self) -> dict[str, Tensor]:
        counted = {"keys": self.keys, "counts": self.counts.int()}
        return self.base.to_tensors() | counted | {"smoothing": number(self.smoothing), "power": number(self.power)}

    @classmethod
    def fit(cls, keys: Tensor, counts: Tensor, base: TableLikelihood, triples: Tensor) -> CountLikelihood:
        """Choose the smoothing by maximum likelihood (at λ = 1) on triples (first, second, mixture), int64 [3, n], that were not counted."""
        candidates = [cls(keys, counts, base, smoothing) for smoothing in SMOOTHING_GRID]
        first, second, mixture = triples
        return max(candidates, key=lambda c: (float(c.log_likelihood(mixture, first, second).mean()), c.smoothing))

    @cached_property
    def _entries(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.row_starts, self.pairs.int(), self.values.log()

    def _look_up(self, key: Tensor) -> tuple[Tensor, Tensor]:
        """Whether each key was counted, and its value where it was."""
        if not len(self.keys):
            return torch.zeros_like(key, dtype=torch.bool), torch.zeros(key.shape, device=key.device)
        position = torch.searchsorted(self.keys, key.contiguous()).clamp_max(len(self.keys) - 1)
        return self.keys[position] == key, self.values[position]


def likelihood_from_tensors(tensors: dict[str, Tensor]) -> Likelihood:
    """Rebuild what `to_tensors` described: counts, smoothed by the sum where there is a codebook, or the sum; ValueError: no such tensors."""
    numbers = {name: value for name, value in tensors.items() if name in NUMBERS}
    damaged = [name for name, value in numbers.items() if value.ndim or not torch.isfinite(value)]
    base: TableLikelihood | None = None
    if "codebook" in tensors:
        codebook = tensors["codebook"]
        if damaged or codebook.ndim != 2 or not torch.isfinite(codebook).all():
            raise ValueError(f"likelihood: {' and '.join(damaged) or 'codebook'} damaged")
        base = SumLikelihood(codebook, float(numbers["sigma_squared"]), float(numbers["floor"]))
        if not {"keys", "counts"} & set(tensors):
            return base
    keys, counts, codes = tensors["keys"], tensors["counts"].long(), base.codes if base else int(numbers["codes"])
    rising = not len(keys) or 0 <= int(keys[0]) <= int(keys[-1]) < codes**3 and bool((keys.diff() > 0).all())
    if damaged or keys.shape != counts.shape or not rising:
        raise ValueError(f"likelihood: {' and '.join(damaged) or 'counted triples are'} damaged")
    base = base or UnigramLikelihood(keys, counts, codes)
    return CountLikelihood(keys, counts, base, float(numbers["smoothing"]), float(numbers["power"]))


def tuned(tensors: dict[str, Tensor], tuning: Tuning) -> dict[str, Tensor]:
    """Return the tensors of a fitted likelihood with the numbers that a profile sets."""
    given = {"floor": tuning.floor, "smoothing": tuning.smoothing, "power": tuning.power}
    if tuning.sigma_scale is not None and "sigma_squared" in tensors:
        given["sigma_squared"] = float(tensors["sigma_squared"]) * tuning.sigma_scale**2
    changed = {name: value for name, value in given.items() if value is not None and name in tensors}
    return tensors | {name: number(value) for name, value in changed.items()}


def count_batches(batches: Iterable[Tensor], codes: int) -> tuple[Tensor, Tensor]:
    """Count triples that come in batches of codes (first, second, mixture), int64 [3, n] each: as `count_triples` of all, on the CPU."""
    counted = [torch.stack(count_triples(first, second, mixture, codes)).cpu() for first, second, mixture in batches]
    return merge_counts(*torch.cat([torch.empty(2, 0, dtype=torch.long), *counted], 1).unbind())


def merge_counts(keys: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Add up counts of keys that may come several times: sorted distinct keys and their sums, int64 [nnz] each."""
    merged, inverse = torch.unique(keys, return_inverse=True)
    return merged, torch.zeros_like(merged).index_add_(0, inverse, counts)


def symmetrised(keys: Tensor, counts: Tensor, codes: int) -> tuple[Tensor, Tensor]:
    """Return n(i,j,m) + n(j,i,m) of counted triples: ½ x1 + ½ x2 is the same mixture in either order, whoever plays which."""
    mixture, first, second = keys // codes**2, keys // codes % codes, keys % codes
    return merge_counts(torch.cat([keys, (mixture * codes + second) * codes + first]), counts.repeat(2))
