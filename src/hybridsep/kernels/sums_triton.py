"""Triton bodies of `sums`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from hybridsep.kernels.sums import Tables
from hybridsep.kernels.tiles import invert, rows_at_once, with_dense_rows

BLOCK_I, BLOCK_J = 64, 32
MOST_PARTICLES = 64


def log_marginal(log_p: Tensor, mixture: Tensor, tables: Tables) -> Tensor:
    """See sums.log_marginal."""
    _, batch, particles, size = log_p.shape
    result = torch.empty(batch, particles, size, device=log_p.device)
    # A product of matrices takes sixteen rows at least.
    on_gpu = min(MOST_PARTICLES, triton.next_power_of_2(particles))
    rows = max(16, rows_at_once(particles, BLOCK_I, log_p, on_gpu))
    log_p = with_dense_rows(log_p)
    _log_marginal[(triton.cdiv(size, BLOCK_I), triton.cdiv(particles, rows), batch)](
        log_p, mixture.contiguous(), *_contiguous(tables), result, particles, size, *log_p.stride()[:3], rows, BLOCK_I, BLOCK_J, num_stages=1,
    )  # fmt: skip
    return result


def draw_pairs(
    marginal: Tensor, log_p: Tensor, mixture: Tensor, tables: Tables, uniforms: Tensor, ancestors: Tensor | None
) -> Tensor:
    """See sums.draw_pairs."""
    batch, particles, size = marginal.shape
    codes = torch.empty(2, batch, particles, dtype=torch.long, device=log_p.device)
    columns = triton.next_power_of_2(size)
    rows = rows_at_once(particles, columns, log_p)
    marginal, log_p = with_dense_rows(marginal), with_dense_rows(log_p)
    _draw_pairs[(triton.cdiv(particles, rows), batch)](
        marginal, log_p, mixture.contiguous(), *_contiguous(tables), *_contiguous((uniforms, ancestors)), codes, particles, size,
        *marginal.stride()[:2], *log_p.stride()[:3], rows, columns,
    )  # fmt: skip
    return codes


def _contiguous(tensors: tuple[Tensor | None, ...]) -> list[Tensor | None]:
    return [None if tensor is None else tensor.contiguous() for tensor in tensors]


@triton.jit
def _log_marginal(
    log_p, mixture, sums, table, share, result, particles, size, source_stride, mixture_stride, particle_stride,
    BLOCK_N: tl.constexpr, BLOCK_I: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Sum over the second code for BLOCK_I first codes of BLOCK_N particles: every tile of the likelihood is made once and used for all of them."""
    b = tl.program_id(2).to(tl.int64)
    n = tl.program_id(1).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    i = tl.program_id(0).to(tl.int64) * BLOCK_I + tl.arange(0, BLOCK_I)
    real = (n < particles)[:, None]
    inside = i < size
    table += tl.load(mixture + b) * size
    log_p1 = log_p + b * mixture_stride + n[:, None] * particle_stride
    log_p2 = log_p1 + source_stride
    summed = tl.zeros([BLOCK_N, BLOCK_I], tl.float32)
    for start in range(0, size, BLOCK_J):
        j = start + tl.arange(0, BLOCK_J)
        within = inside[:, None] & (j < size)[None, :]
        pair = i[:, None] * size + j[None, :]
        likelihood = tl.load(table + tl.load(sums + pair, mask=within, other=0), mask=within, other=0.0)
        if share is not None:
            likelihood *= tl.load(share + pair, mask=within, other=0.0)
        second = tl.exp(tl.load(log_p2 + j[None, :], mask=real & (j < size)[None, :], other=float("-inf")))
        summed = tl.dot(second, tl.trans(likelihood), summed, input_precision="ieee")
    within = real & inside[None, :]
    first = tl.load(log_p1 + i[None, :], mask=within, other=float("-inf"))
    tl.store(result + (b * particles + n[:, None]) * size + i[None, :], first + tl.log(summed), mask=within)


@triton.jit
def _draw_pairs(
    marginal, log_p, mixture, sums, table, share, uniforms, ancestors, codes, particles, size,
    marginal_mixture_stride, marginal_particle_stride, source_stride, mixture_stride, particle_stride,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    """Draw for BLOCK_N particles of one mixture, whole rows of K codes at once."""
    b = tl.program_id(1).to(tl.int64)
    n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    real = n < particles
    own = b * particles + n
    all_particles = tl.num_programs(1) * particles
    if ancestors is not None:
        parent = tl.load(ancestors + own, mask=real, other=0)
    else:
        parent = tl.where(real, n, 0).to(tl.int64)
    column = tl.arange(0, BLOCK_K)[None, :]
    within = real[:, None] & (column < size)
    marginal += b * marginal_mixture_stride + parent[:, None] * marginal_particle_stride
    weights = tl.load(marginal + column, mask=within, other=0.0)
    first = invert(weights, tl.load(uniforms + own, mask=real, other=0.0), BLOCK_K)
    possible = tl.max(weights, 1) > 0

    pair = first.to(tl.int64)[:, None] * size + column
    code = tl.load(sums + pair, mask=within, other=0)
    scores = tl.log(tl.load(table + tl.load(mixture + b) * size + code, mask=within, other=0.0))
    log_p2 = log_p + source_stride + b * mixture_stride + parent[:, None] * particle_stride
    scores += tl.load(log_p2 + column, mask=within, other=float("-inf"))
    if share is not None:
        scores += tl.log(tl.load(share + pair, mask=within, other=0.0))
    # Scaled so that the highest weight is 1: both factors may be small numbers.
    peak = tl.max(scores, 1)
    weights = tl.exp(scores - tl.where(peak == float("-inf"), 0.0, peak)[:, None])
    second = invert(weights, tl.load(uniforms + all_particles + own, mask=real, other=0.0), BLOCK_K)
    tl.store(codes + own, first.to(tl.int64), mask=real)
    tl.store(codes + all_particles + own, tl.where(possible, second, 0).to(tl.int64), mask=real)
