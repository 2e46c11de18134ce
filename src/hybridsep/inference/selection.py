"""Rules that make one estimate per source of what a search left, without the ground truth."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from hybridsep.inference.separator import Candidates


def posterior_mean(found: Candidates) -> Tensor:
    """Return the weighted mean of the decoded particles, the least-squares estimate of each source, [2, B, T]."""
    weights = found.search.log_weights.softmax(-1)
    return torch.einsum("bn,pbnt->pbt", weights, found.waveforms)


def lagged_mean(found: Candidates) -> Tensor:
    """Return the posterior mean of each stretch from the particles of its own moment (see `smoothing`), [2, B, T]; without a lag `posterior_mean`."""
    return posterior_mean(found) if found.lagged is None else found.lagged


def sample_mean(found: Candidates) -> Tensor:
    """Return the plain mean of the decoded samples, [2, B, T]: weights of samples that were never resampled leave one of them."""
    return found.waveforms.mean(2)


def highest_weight(found: Candidates) -> Tensor:
    """Return the particle of highest weight, [2, B, T]."""
    return take_particle(found.waveforms, found.search.log_weights.argmax(1))


def smallest_residual(found: Candidates) -> Tensor:
    """Return the particle whose sources add up best to the mixture, by ‖y − ½(x̂1 + x̂2)‖, [2, B, T]."""
    residual = (found.mixture[:, None] - found.waveforms.mean(0)).square().sum(-1)
    return take_particle(found.waveforms, residual.argmin(1))


def cross_pair(found: Candidates) -> Tensor:
    """Return, of all N × N pairs of the two sources' samples, the one that adds up best to the mixture, [2, B, T].

    Source: LQ-VAE's rejection, Mancusi et al. 2021 (arXiv 2110.05313), sec. 3.3.
    """
    first, second = found.waveforms
    target = 2 * found.mixture
    # ‖t − a − b‖² over all pairs from inner products, without the N × N residual waveforms.
    cross = torch.bmm(first, second.transpose(1, 2))
    to_first = (first.square().sum(-1) - 2 * torch.einsum("bt,bnt->bn", target, first))[:, :, None]
    to_second = (second.square().sum(-1) - 2 * torch.einsum("bt,bnt->bn", target, second))[:, None, :]
    best = (to_first + to_second + 2 * cross).flatten(1).argmin(1)
    count, rows = first.shape[1], torch.arange(len(first), device=first.device)
    return torch.stack([first[rows, best // count], second[rows, best % count]])


SELECTIONS = {
    "mean": posterior_mean,
    "lagged mean": lagged_mean,
    "mean of samples": sample_mean,
    "weight": highest_weight,
    "residual": smallest_residual,
    "cross-pair": cross_pair,
}


def take_particle(waveforms: Tensor, index: Tensor) -> Tensor:
    """Return particle index[b] of every source: [2, B, N, T], int64 [B] -> [2, B, T]."""
    return waveforms[:, torch.arange(len(index), device=index.device), index]
