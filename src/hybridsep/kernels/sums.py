"""Draws under the sum likelihood, whose [K, K] matrix of a mixture code is made tile by tile where it is used and never kept.

With l(m|i,j) = share(i,j) · table(m, c(i,j)), r(i) = p1(i) Σ_j l(m|i,j) p2(j) is the marginal of the first code: its sum is the
evidence, i is drawn from r, and j from p2(j) l(m|i,j). The pair so drawn has exactly the distribution of the dense posterior.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hybridsep.kernels.arguments import check_seed, check_step
from hybridsep.kernels.bodies import run_body
from hybridsep.kernels.inversion import invert

ROWS_AT_ONCE = 256


def draw_pairs_sum(
    log_p: Tensor,
    mixture: Tensor,
    sums: Tensor,
    table: Tensor,
    share: Tensor | None,
    seed: int,
    ancestors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw one pair per particle from its exact posterior.

    Args:
        seed: of the random numbers; one seed, one result on one device.
        ancestors: int64 [B, N]; particle n draws from the posterior of particle ancestors[b, n].
        others: as in `log_marginal_sum`.

    Returns:
        Codes int64 [2, B, N], and the log-evidence of the posterior drawn from, nats, float32 [B, N]. Where no pair is possible it is
        −inf and the codes are 0.

    Raises:
        ValueError: as `log_marginal_sum`; an ancestor that does not exist.
    """
    check_seed(seed)
    log_marginal = log_marginal_sum(log_p, mixture, sums, table, share)
    log_evidence = log_marginal.logsumexp(-1)
    marginal = (log_marginal - log_evidence[..., None]).exp_().nan_to_num_(0.0)
    generator = torch.Generator(log_p.device).manual_seed(seed)
    uniforms = torch.rand(2, *log_evidence.shape, generator=generator, device=log_p.device)
    codes = draw_from_marginal(marginal, log_p, mixture, sums, table, share, uniforms, ancestors)
    return codes, log_evidence if ancestors is None else log_evidence.gather(1, ancestors)


def marginal_sum(log_p: Tensor, mixture: Tensor, sums: Tensor, table: Tensor, share: Tensor | None) -> Tensor:
    """r(i), float32 [B, N, K]; zero where it is under 1e-45. Arguments as in `log_marginal_sum`, which has no such limit."""
    return log_marginal_sum(log_p, mixture, sums, table, share).exp_()


def log_marginal_sum(log_p: Tensor, mixture: Tensor, sums: Tensor, table: Tensor, share: Tensor | None) -> Tensor:
    """log r(i) of every particle; its logsumexp over i is the log-evidence.

    Args:
        log_p: log-probabilities of the next code under both priors, nats, float32 [2, B, N, K].
        mixture: int64 [B].
        sums: c(i, j), the code of the sum of two codes, int16 or int32 [K, K].
        table: l(m|c), row m, float32 [K, K].
        share: factor of every pair, float32 [K, K], or None for 1.

    Returns:
        Nats, float32 [B, N, K]; −inf where no pair is possible.

    Raises:
        ValueError: wrong shapes, another codebook size, NaN, or a mixture code that does not exist.
    """
    _check(log_p, mixture, sums, table, share, None)
    return run_body(log_marginal, log_p, mixture, sums, table, share)


def draw_from_marginal(
    marginal: Tensor,
    log_p: Tensor,
    mixture: Tensor,
    sums: Tensor,
    table: Tensor,
    share: Tensor | None,
    uniforms: Tensor,
    ancestors: Tensor | None = None,
) -> Tensor:
    """Pairs by inversion of given uniform numbers.

    Args:
        marginal: r(i) or any multiple of it by a positive number per particle, float32 [B, N, K].
        uniforms: float32 [2, B, N] in [0, 1), for the first and the second code.
        ancestors: int64 [B, N]; particle n draws from the posterior of particle ancestors[b, n].
        others: as in `log_marginal_sum`.

    Returns:
        Codes int64 [2, B, N]; 0 where no pair is possible.
    """
    _check(log_p, mixture, sums, table, share, ancestors)
    if marginal.shape != log_p.shape[1:] or uniforms.shape != log_p.shape[:3]:
        raise ValueError(
            f"marginal {list(marginal.shape)} and uniform numbers {list(uniforms.shape)} do not fit priors {list(log_p.shape)}"
        )
    return run_body(draw_pairs, marginal, log_p, mixture, sums, table, share, uniforms, ancestors)


def log_marginal(log_p: Tensor, mixture: Tensor, sums: Tensor, table: Tensor, share: Tensor | None) -> Tensor:
    """See log_marginal_sum."""
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


def draw_pairs(
    marginal: Tensor,
    log_p: Tensor,
    mixture: Tensor,
    sums: Tensor,
    table: Tensor,
    share: Tensor | None,
    uniforms: Tensor,
    ancestors: Tensor | None,
) -> Tensor:
    """See draw_from_marginal."""
    batch, particles, size = marginal.shape
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


def _check(
    log_p: Tensor, mixture: Tensor, sums: Tensor, table: Tensor, share: Tensor | None, ancestors: Tensor | None
) -> None:
    size = len(sums)
    if any(x is not None and x.shape != (size, size) for x in (sums, table, share)):
        raise ValueError(f"sums {list(sums.shape)}, table {list(table.shape)} and share must be [K, K]")
    check_step(log_p, mixture, size, ancestors)
