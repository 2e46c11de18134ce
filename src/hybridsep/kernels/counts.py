"""Draws over the counted pairs of a mixture code alone: a sparse row in the place of a [K, K] matrix.

The entries of mixture code m are the pairs (i, j) with a value, entries row_starts[m] ... row_starts[m + 1] − 1. The score of an entry
is log p1(i) + log p2(j) + its log-value. Entries are visited in chunks; nothing holds a number per particle and entry.

A draw is first one of a chunk, by the summed weights of chunks, then one of an entry within it. On CUDA the chunk is drawn while the
evidence is summed, by Gumbel-max (Maddison, Tarlow & Minka 2014, arXiv 1411.0030).
"""

import torch
from torch import Tensor

from hybridsep.kernels.bodies import two_bodies
from hybridsep.kernels.inversion import invert

SCRATCH = 2**22  # numbers in the largest temporary tensor of the torch body
Rows = tuple[Tensor, Tensor, Tensor]


@two_bodies
def draw_entries(
    log_p: Tensor, mixture: Tensor, rows: Rows, seed: Tensor, ancestors: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Draw one counted pair per particle from its exact posterior over the entries of its mixture code.

    Args:
        log_p: log-probabilities of the next code under both priors, nats, float32 [2, B, N, K].
        mixture: int64 [B].
        rows: where each starts, int64 [K + 1]; pairs i·K + j, int32 [nnz]; log-values, nats, float32 [nnz].
        seed: of the random numbers, int64 [1], which a recorded step can change; one seed, one result on one device.
        ancestors: int64 [B, N] or None; particle n draws from the posterior of particle ancestors[b, n].

    Returns:
        Codes int64 [2, B, N], and the log-evidence of the posterior drawn from, nats, float32 [B, N]: −inf, and codes 0, where none is possible.
    """
    (row_starts, pairs, log_values), (batch, particles, size) = rows, log_p.shape[1:]
    generator = torch.Generator(log_p.device).manual_seed(int(seed))
    uniforms = torch.rand(2, batch, particles, generator=generator, device=log_p.device)
    codes = torch.empty(2, batch, particles, dtype=torch.long, device=log_p.device)
    log_evidence = torch.empty(batch, particles, device=log_p.device)
    bounds = torch.stack([row_starts[mixture], row_starts[mixture + 1]], 1).tolist()
    for b, (first, last) in enumerate(bounds):
        own = log_p[:, b] if ancestors is None else log_p[:, b].index_select(1, ancestors[b])
        chosen, log_evidence[b] = _draw_entry(own, pairs[first:last].long(), log_values[first:last], uniforms[:, b])
        codes[0, b], codes[1, b] = chosen // size, chosen % size
    return codes, log_evidence


def _draw_entry(log_p: Tensor, pair: Tensor, log_value: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draw for one mixture: log_p [2, N, K], uniforms [2, N] -> pairs int64 [N] and log-evidence [N]."""
    particles = log_p.shape[1]
    drawn = torch.zeros(particles, dtype=torch.long, device=log_p.device)
    # Entries in parts whose scores fill the scratch; one empty part where there are none.
    at_once = max(1, SCRATCH // particles)
    chunks = list(zip(pair.split(at_once), log_value.split(at_once), strict=True))
    totals = torch.stack([_scores(log_p, *chunk).logsumexp(1) for chunk in chunks], 1)
    log_evidence = totals.logsumexp(1)
    chosen = invert(_weights(totals, log_evidence), uniforms[0])
    for c, chunk in enumerate(chunks):
        here = ((chosen == c) & (log_evidence > -torch.inf)).nonzero()[:, 0]
        if len(here):
            weights = _weights(_scores(log_p.index_select(1, here), *chunk), totals[here, c])
            drawn[here] = chunk[0][invert(weights, uniforms[1, here])]
    return drawn, log_evidence


def _scores(log_p: Tensor, pair: Tensor, log_value: Tensor) -> Tensor:
    """Return the scores of entries in nats, [N, entries]."""
    size = log_p.shape[-1]
    return log_p[0].index_select(1, pair // size).add_(log_p[1].index_select(1, pair % size)).add_(log_value)


def _weights(scores: Tensor, total: Tensor) -> Tensor:
    """Return exp(score − total), [N, E]; zeros where the total is −inf."""
    return (scores - total[:, None]).exp_().nan_to_num_(0.0)
