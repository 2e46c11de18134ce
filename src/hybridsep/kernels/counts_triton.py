"""Triton body of `counts`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridsep.kernels.counts import Rows
from hybridsep.kernels.tiles import invert, rows_at_once, with_dense_rows

BLOCK_E = 1024
INTERPRETED_E = 128
WITHIN_CHUNK = tl.constexpr(2**32 - 1)
"""Place of the number for the draw within a chunk in a particle's stream of random numbers; before it, one for each chunk."""


def draw_entries(
    log_p: Tensor, mixture: Tensor, rows: Rows, seed: Tensor, ancestors: Tensor | None
) -> tuple[Tensor, Tensor]:
    """See counts.draw_entries."""
    _, batch, particles, size = log_p.shape
    codes = torch.empty(2, batch, particles, dtype=torch.long, device=log_p.device)
    log_evidence = torch.empty(batch, particles, device=log_p.device)
    entries = BLOCK_E if log_p.is_cuda else INTERPRETED_E
    at_once = rows_at_once(particles, entries, log_p)
    log_p = with_dense_rows(log_p)
    _draw_entries[(triton.cdiv(particles, at_once), batch)](
        log_p, mixture.contiguous(), *rows, None if ancestors is None else ancestors.contiguous(),
        codes, log_evidence, seed, particles, size, *log_p.stride()[:3], at_once, entries,
    )  # fmt: skip
    return codes, log_evidence


@triton.jit
def _scores(log_p1, log_p2, pairs, log_values, entry, length, size):
    """Return the scores of entries in nats, −inf behind the last. log_p1 and log_p2 point to a particle's log-probabilities; all have one shape."""
    inside = entry < length
    pair = tl.load(pairs + entry, mask=inside, other=0)
    score = tl.load(log_values + entry, mask=inside, other=float("-inf"))
    score += tl.load(log_p1 + pair // size, mask=inside, other=float("-inf"))
    return score + tl.load(log_p2 + pair % size, mask=inside, other=float("-inf"))


@triton.jit
def _draw_entries(
    log_p, mixture, row_starts, pairs, log_values, ancestors, codes, log_evidence, seed, particles, size,
    source_stride, mixture_stride, particle_stride, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr,
):  # fmt: skip
    """Draw for BLOCK_N particles of one mixture: once over all its entries for the evidence and a chunk, then within that chunk for an entry."""
    b = tl.program_id(1).to(tl.int64)
    seed = tl.load(seed)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    inside = n < particles
    own = b * particles + n
    if ancestors is not None:
        parent = tl.load(ancestors + own, mask=inside, other=0)
    else:
        parent = tl.where(inside, n, 0).to(tl.int64)
    log_p1 = log_p + b * mixture_stride + parent[:, None] * particle_stride
    log_p2 = log_p1 + source_stride
    m = tl.load(mixture + b)
    start = tl.load(row_starts + m)
    length = (tl.load(row_starts + m + 1) - start).to(tl.int32)
    pairs += start
    log_values += start

    peak = tl.full([BLOCK_N], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_N], tl.float32)
    winning = tl.full([BLOCK_N], float("-inf"), tl.float32)
    chunk = tl.zeros([BLOCK_N], tl.int32)
    for at in range(0, length, BLOCK_E):
        scores = _scores(log_p1, log_p2, pairs, log_values, at + tl.arange(0, BLOCK_E)[None, :], length, size)
        higher = tl.maximum(peak, tl.max(scores, 1))
        # Where nothing was possible so far the peak is −inf, and −inf − (−inf) is not a number.
        base = tl.where(higher == float("-inf"), 0.0, higher)
        here = tl.sum(tl.exp(scores - base[:, None]), 1)
        total = total * tl.exp(peak - base) + here
        peak = higher
        # A uniform number of zero would make the noise −inf, which nothing possible may have.
        noise = -tl.log(-tl.log(tl.maximum(tl.rand(seed, (own << 32) | (at // BLOCK_E)), 1e-10)))
        noisy = tl.where(here > 0, base + tl.log(here) + noise, float("-inf"))
        chunk = tl.where(noisy > winning, at, chunk)
        winning = tl.maximum(noisy, winning)
    evidence = tl.where(total > 0, peak + tl.log(total), float("-inf"))
    tl.store(log_evidence + own, evidence, mask=inside)

    scores = _scores(log_p1, log_p2, pairs, log_values, chunk[:, None] + tl.arange(0, BLOCK_E)[None, :], length, size)
    highest = tl.max(scores, 1)
    weights = tl.exp(scores - tl.where(highest == float("-inf"), 0.0, highest)[:, None])
    drawn = chunk + invert(weights, tl.rand(seed, (own << 32) | WITHIN_CHUNK), BLOCK_E)
    pair = tl.load(pairs + drawn, mask=inside & (total > 0), other=0).to(tl.int64)
    tl.store(codes + own, pair // size, mask=inside)
    tl.store(codes + tl.num_programs(1) * particles + own, pair % size, mask=inside)
