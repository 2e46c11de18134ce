"""Draws under the sum likelihood, whose [K, K] matrix of a mixture code is made tile by tile where it is used and never kept.

l(m|i,j) = share(i,j) · table(m, c(i,j)), and r(i) = p1(i) Σ_j l(m|i,j) p2(j) as in `inference.likelihood`.
"""

import torch
from torch import Tensor

from hybridsep.kernels.bodies import two_bodies
from hybridsep.kernels.inversion import invert

ROWS_AT_ONCE = 256
Tables = tuple[Tensor, Tensor, Tensor | None]


@two_bodies
def log_marginal(log_p: Tensor, mixture: Tensor, tables: Tables) -> Tensor:
    """Return log r(i) of every particle, nats, float32 [B, N, K], −inf where no pair is possible; its logsumexp over i is the log-evidence.

    Args:
        log_p: log-probabilities of the next code under both priors, nats, float32 [2, B, N, K].
        mixture: int64 [B].
        tables: c(i, j), the code of the sum of two codes, int16 or int32 [K, K]; l(m|c), row m, float32 [K, K]; and a factor of every pair,
            float32 [K, K], or None for 1.
    """
    sums, table, share = tables
    second = log_p[1].exp()
    summed = torch.empty_like(second)
    for rows in torch.arange(len(sums), device=sums.device).split(ROWS_AT_ONCE):
        first, last = int(rows[0]), int(rows[-1]) + 1
        code = sums[first:last].int().flatten()
        for b, m in enumerate(mixture.tolist()):
            likelihood = table[m].index_select(0, code).view(last - first, -1)
            if share is not None:
                likelihood *= share[first:last]
            torch.mm(second[b], likelihood.T, out=summed[b, :, first:last])
    return summed.log_().add_(log_p[0])


@two_bodies
def draw_pairs(
    marginal: Tensor, log_p: Tensor, mixture: Tensor, tables: Tables, uniforms: Tensor, ancestors: Tensor | None
) -> Tensor:
    """Draw pairs int64 [2, B, N] by inversion of given uniform numbers; 0 where no pair is possible.

    Args:
        marginal: r(i) or any multiple of it by a positive number per particle, float32 [B, N, K].
        uniforms: float32 [2, B, N] in [0, 1), for the first and the second code.
        ancestors: int64 [B, N] or None; particle n draws from the posterior of particle ancestors[b, n].
    """
    (sums, table, share), (batch, particles, _) = tables, marginal.shape
    second = log_p[1]
    if ancestors is not None:
        index = ancestors[..., None].expand_as(marginal)
        marginal, second = marginal.gather(1, index), second.gather(1, index)
    first = invert(marginal.flatten(0, 1), uniforms[0].flatten())
    row = mixture.repeat_interleave(particles)[:, None]
    scores = table[row, sums[first].long()].log_().add_(second.flatten(0, 1))
    if share is not None:
        scores += share[first].log()
    # Scaled so that the highest weight is 1: both factors may be small numbers.
    weights = (scores - scores.amax(1, keepdim=True)).exp_().nan_to_num_(0.0)
    possible = (marginal > 0).any(-1).flatten()
    drawn = torch.stack([first, possible * invert(weights, uniforms[1].flatten())])
    return drawn.view(2, batch, particles)
