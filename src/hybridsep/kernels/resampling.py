"""Resampling of particles: which go on, and in whose place. Nothing here is decided by the host, so that a CUDA graph can hold it."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def resample(log_weights: Tensor, poor: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Return ancestors int64 [B, N], of whom each is its own, and log-weights afterwards float32 [B, N]: only `poor` mixtures are resampled.

    Log-weights are normalised, nats; `poor` is bool [B]; `uniforms`, [B] in [0, 1), spread the picks of each mixture evenly.
    """
    particles = log_weights.shape[1]
    picked = stay_in_place(systematic_resampling(log_weights.exp(), uniforms))
    ancestors = torch.where(poor[:, None], picked, torch.arange(particles, device=picked.device))
    return ancestors, torch.where(poor[:, None], -math.log(particles), log_weights)


def systematic_resampling(weights: Tensor, uniforms: Tensor) -> Tensor:
    """Pick ancestors int64 [B, N], ascending: particle n has floor or ceil of N·weights[n] children; arguments as in `resample`.

    Source: Kitagawa 1996, "Monte Carlo filter and smoother for non-Gaussian nonlinear state space models", appendix.
    """
    particles = weights.shape[1]
    positions = (torch.arange(particles, device=weights.device) + uniforms[:, None]) / particles
    return torch.searchsorted(weights.cumsum(1), positions).clamp_max(particles - 1)


def stay_in_place(ancestors: Tensor) -> Tensor:
    """Put the same children, ancestors int64 [B, N] ascending, in an order in which whoever survives keeps its place.

    Only the places of the dead are filled anew.
    """
    return torch.empty_like(ancestors).scatter_(1, places(ancestors), ancestors)


def places(ancestors: Tensor) -> Tensor:
    """Return the places of children int64 [B, N] of ascending ancestors: the ancestor's for the first child of each, the dead's for the others."""
    extra = F.pad(ancestors[:, 1:] == ancestors[:, :-1], (1, 0))
    dead = torch.ones_like(extra).scatter_(1, ancestors, False)
    dead_first = dead.byte().sort(dim=1, descending=True, stable=True).indices
    rank = (extra.cumsum(1) - 1).clamp_min_(0)
    return torch.where(extra, dead_first.gather(1, rank), ancestors)
