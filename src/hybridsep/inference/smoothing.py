"""Fixed-lag smoothing: what a particle filter says of each stretch of codes while its particles still differ there.

Resampling leaves the particles at the end one common past: of most codes their whole paths say one and the same. A few codes after a stretch the
particles have heard most of what the mixture says about it, and have many pasts yet. No prior is evaluated once more.

Source: Kitagawa 1996, "Monte Carlo filter and smoother for non-Gaussian nonlinear state space models"; Olsson et al. 2008, "Sequential Monte
Carlo smoothing with application to parameter estimation in nonlinear state space models", on the choice of the lag.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hybridsep.inference.search import SearchResult, trace_back
from hybridsep.inference.windows import Windows

FADE_CODES = 4
OWN_CODES, AMID_CODES = 2, 12
Decode = Callable[[Tensor, Tensor], Tensor]


def lagged_mean(found: SearchResult, decode: Decode, lag: int, stretch: int, reach: int, hop: int) -> Tensor:
    """Return the posterior mean float32 [2, B, S * hop], each stretch as the particles have it when `lag` codes beyond it are heard.

    A stretch is decoded amid AMID_CODES codes on either side. The OWN_CODES nearest are each particle's own, if they are drawn by then; the others are
    hardly heard in it, and are for all particles those of one path, the heaviest at the end, so that more of them are equal and decoded once. In the
    cpu profile's decoder that moves the mean by -58 dB, and what is farther off than 12 codes changes a stretch by less than -60 dB.

    Args:
        decode: codes int64 [2, B, N, L] and weights float32 [B, N] -> the mean of what they sound like, [2, B, L * hop].
        stretch: codes from one stretch to the next; they overlap by FADE_CODES, or as many as there are, and are cross-faded.
        reach: codes before and after its own on which a sample depends.
    """
    sources, batch, particles, length = found.codes.shape
    amid = min(reach, AMID_CODES)
    windows = Windows.every(stretch * hop, min(stretch, FADE_CODES) * hop, length * hop)
    mean = torch.zeros(sources, batch, length * hop, device=found.codes.device)
    rows = torch.arange(batch, device=found.codes.device)
    heaviest = found.codes[:, rows, found.log_weights.argmax(1), None].expand_as(found.codes)
    for index, start in enumerate(windows.starts):
        first, last = start // hop, min(length, (start + windows.size) // hop)
        near, far = max(0, first - OWN_CODES), min(length, last + min(OWN_CODES, lag - 1))
        paths, log_weights = paths_when(found, last + lag, near, far)
        before = heaviest[..., max(0, first - amid) : near]
        paths = torch.cat([before, paths, heaviest[..., far : last + amid]], -1)
        offset = first - near + before.shape[-1]
        decoded = decode(paths, log_weights.softmax(-1))
        windows.add(mean, index, decoded[..., offset * hop : (offset + last - first) * hop])
    return mean


def paths_when(found: SearchResult, heard: int, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Return the particles' paths and log-weights when `heard` codes of the mixture are known and nobody is resampled yet.

    A step weighs the particles of the step before it: when `heard` codes are known, one less is drawn. With more codes heard than the mixture has,
    paths and weights are those at the end. The codes are [first, last) of the path, int64 [2, B, N, last - first] with `last` less than `heard`;
    the log-weights float32 [B, N], nats.
    """
    if heard > found.codes.shape[-1]:
        return found.codes[..., first:last], found.log_weights
    assert found.drawn is not None and found.heard_weights is not None, "a search that keeps no steps"
    steps = slice(first, heard - 1)
    paths = trace_back(found.drawn[:, :, steps], found.ancestors[:, steps])
    return paths[..., : last - first], found.heard_weights[:, heard - 1]
