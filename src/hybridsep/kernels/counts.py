"""Draws and best pairs over the counted pairs of a mixture code alone: a sparse row in the place of a [K, K] matrix.

The entries of mixture code m are the pairs (i, j) with a value, entries row_starts[m] ... row_starts[m + 1] − 1. The score of an entry
is log p1(i) + log p2(j) + its log-value. Entries are visited in chunks; nothing holds a number per particle and entry.

A draw is first one of a chunk, by the summed weights of chunks, then one of an entry within it. On CUDA the chunk is drawn while the
evidence is summed, by Gumbel-max (Maddison, Tarlow & Minka 2014, arXiv 1411.0030).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hybridsep.kernels.arguments import check_entries, check_seed, check_step
from hybridsep.kernels.bodies import run_body
from hybridsep.kernels.inversion import invert

SCRATCH = 2**22
"""Numbers in the largest temporary tensor of the torch bodies."""


def draw_pairs_counts(
    log_p: Tensor,
    mixture: Tensor,
    row_starts: Tensor,
    pairs: Tensor,
    log_values: Tensor,
    seed: int,
    ancestors: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw one counted pair per particle from its exact posterior over the entries of its mixture code.

    Args:
        log_p: log-probabilities of the next code under both priors, nats, float32 [2, B, N, K].
        mixture: int64 [B].
        row_starts: int64 [K + 1].
        pairs: i·K + j, int32 [nnz].
        log_values: nats, float32 [nnz].
        seed: of the random numbers; one seed, one result on one device.
        ancestors: int64 [B, N]; particle n draws from the posterior of particle ancestors[b, n].

    Returns:
        Codes int64 [2, B, N], and the log-evidence of the posterior drawn from, the log of the summed weights of all entries, nats,
        float32 [B, N]. Where no entry is possible it is −inf and the codes are 0.

    Raises:
        ValueError: wrong shapes, another codebook size, NaN, or a mixture code or ancestor that does not exist.
    """
    check_step(log_p, mixture, log_p.shape[-1], ancestors)
    check_entries(log_p, row_starts, pairs, log_values)
    check_seed(seed)
    return run_body(
        draw_entries,
        log_p,
        mixture,
        row_starts,
        pairs,
        log_values,
        torch.tensor([seed], device=log_p.device),
        ancestors,
    )


def top_pairs_counts(
    log_p: Tensor,
    mixture: Tensor,
    row_starts: Tensor,
    pairs: Tensor,
    log_values: Tensor,
    k: int,
    log_weights: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The k best counted pairs: of every particle by itself (G = N), or with `log_weights` of all particles of a mixture (G = 1).

    Args:
        k: up to 128; more works and is slow.
        log_weights: nats, float32 [B, N], added to the scores of a particle.
        others: as in `draw_pairs_counts`.

    Returns:
        Codes int64 [2, B, G, k], parents int64 [B, G, k] and scores float32 [B, G, k] in nats, best first. Where there are fewer than
        k possible pairs the rest has score −inf, parent 0 and codes 0.

    Raises:
        ValueError: as `draw_pairs_counts`; k < 1.
    """
    check_step(log_p, mixture, log_p.shape[-1])
    check_entries(log_p, row_starts, pairs, log_values)
    if k < 1:
        raise ValueError(f"k = {k}: at least one pair must be asked for")
    pair, scores = run_body(top_entries, log_p, mixture, row_starts, pairs, log_values, k)
    parents = torch.zeros_like(pair)
    if log_weights is not None:
        pair, parents, scores = _best_together(pair, scores, log_weights, k)
    possible = scores > -torch.inf
    pair, parents = pair * possible, parents * possible
    size = log_p.shape[-1]
    return torch.stack([pair // size, pair % size]), parents, scores


def _best_together(pair: Tensor, scores: Tensor, log_weights: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best of all particles are among the best of each: [B, N, k] -> pairs, parents and scores [B, 1, k]."""
    if log_weights.shape != scores.shape[:2] or log_weights.isnan().any():
        raise ValueError(
            f"log-weights must be numbers [B, N] = {list(scores.shape[:2])}, not {list(log_weights.shape)} or NaN"
        )
    scores = (scores + log_weights[..., None]).flatten(1)
    top = scores.sort(dim=1, descending=True, stable=True)
    order = top.indices[:, None, :k]
    return pair.flatten(1)[:, None].gather(2, order), order // k, top.values[:, None, :k]


def draw_entries(
    log_p: Tensor,
    mixture: Tensor,
    row_starts: Tensor,
    pairs: Tensor,
    log_values: Tensor,
    seed: Tensor,
    ancestors: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """See draw_pairs_counts; the seed is int64 [1], which a recorded step can change."""
    batch, particles = log_p.shape[1:3]
    uniforms = torch.rand(
        2, batch, particles, generator=torch.Generator(log_p.device).manual_seed(int(seed)), device=log_p.device
    )
    codes = torch.empty(2, batch, particles, dtype=torch.long, device=log_p.device)
    log_evidence = torch.empty(batch, particles, device=log_p.device)
    for b, (pair, log_value) in enumerate(_entries(mixture, row_starts, pairs, log_values)):
        own = log_p[:, b] if ancestors is None else log_p[:, b].index_select(1, ancestors[b])
        chosen, log_evidence[b] = _draw_entry(own, pair, log_value, uniforms[:, b])
        codes[0, b], codes[1, b] = chosen // log_p.shape[-1], chosen % log_p.shape[-1]
    return codes, log_evidence


def top_entries(
    log_p: Tensor, mixture: Tensor, row_starts: Tensor, pairs: Tensor, log_values: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k best entries of every particle: pairs int64 [B, N, k], any where the score is −inf, and scores [B, N, k], best first."""
    found = [
        _top_of(log_p[:, b], *entries, k) for b, entries in enumerate(_entries(mixture, row_starts, pairs, log_values))
    ]
    pair, scores = zip(*found, strict=True)
    return torch.stack(pair), torch.stack(scores)


def _entries(mixture: Tensor, row_starts: Tensor, pairs: Tensor, log_values: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Pairs int64 and log-values of each mixture's code."""
    bounds = torch.stack([row_starts[mixture], row_starts[mixture + 1]], 1).tolist()
    return ((pairs[first:last].long(), log_values[first:last]) for first, last in bounds)


def _draw_entry(log_p: Tensor, pair: Tensor, log_value: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """One mixture: log_p [2, N, K], uniforms [2, N] -> pairs int64 [N] and log-evidence [N]."""
    drawn = torch.zeros(log_p.shape[1], dtype=torch.long, device=log_p.device)
    chunks = _chunks(pair, log_value, log_p.shape[1])
    totals = torch.stack([_scores(log_p, *chunk).logsumexp(1) for chunk in chunks], 1)
    log_evidence = totals.logsumexp(1)
    chosen = invert(_weights(totals, log_evidence), uniforms[0])
    for c, chunk in enumerate(chunks):
        here = ((chosen == c) & (log_evidence > -torch.inf)).nonzero()[:, 0]
        if len(here):
            weights = _weights(_scores(log_p.index_select(1, here), *chunk), totals[here, c])
            drawn[here] = chunk[0][invert(weights, uniforms[1, here])]
    return drawn, log_evidence


def _top_of(log_p: Tensor, pair: Tensor, log_value: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """One mixture: log_p [2, N, K] -> pairs int64 [N, k] and scores [N, k]."""
    particles = log_p.shape[1]
    best = torch.full((particles, k), -torch.inf, device=log_p.device)
    best_pair = torch.zeros(particles, k, dtype=torch.long, device=log_p.device)
    for chunk in _chunks(pair, log_value, particles):
        top = torch.cat([best, _scores(log_p, *chunk)], 1).topk(k)
        best_pair = torch.cat([best_pair, chunk[0].expand(particles, -1)], 1).gather(1, top.indices)
        best = top.values
    return best_pair, best


def _chunks(pair: Tensor, log_value: Tensor, particles: int) -> list[tuple[Tensor, Tensor]]:
    """Entries in parts whose scores fill the scratch; one empty part where there are none."""
    size = max(1, SCRATCH // particles)
    return list(zip(pair.split(size), log_value.split(size), strict=True))


def _scores(log_p: Tensor, pair: Tensor, log_value: Tensor) -> Tensor:
    """[N, entries], nats."""
    size = log_p.shape[-1]
    return log_p[0].index_select(1, pair // size).add_(log_p[1].index_select(1, pair % size)).add_(log_value)


def _weights(scores: Tensor, total: Tensor) -> Tensor:
    """exp(score − total) [N, E]; zeros where the total is −inf."""
    return (scores - total[:, None]).exp_().nan_to_num_(0.0)
