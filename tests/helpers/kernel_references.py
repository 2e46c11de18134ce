"""What kernels are checked against: random inputs, definitions in float64, and outputs that hold rubbish until they are written."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib import import_module
from unittest.mock import patch

import torch
from torch import Tensor

from hybridsep.core.device import default_device
from hybridsep.inference import likelihood
from hybridsep.kernels import bodies, counts, sums

DEVICE = default_device()
RARE = 5
"""Draws expected of a pair under which chi-square counts it with other rare ones."""


# --- inputs ----------------------------------------------------------------------------------------------------------------


def generator(seed: int = 0) -> torch.Generator:
    """On the CPU, so that inputs are the same on every device."""
    return torch.Generator().manual_seed(seed)


def rand(*shape: int, seed: int = 0) -> Tensor:
    """Uniform in [0, 1)."""
    return torch.rand(*shape, generator=generator(seed)).to(DEVICE)


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal."""
    return torch.randn(*shape, generator=generator(seed)).to(DEVICE)


def randint(high: int, *shape: int, seed: int = 0) -> Tensor:
    """Integers in [0, high)."""
    return torch.randint(high, shape, generator=generator(seed)).to(DEVICE)


def log_priors(
    batch: int, particles: int, codes: int, seed: int = 0, sharpness: float = 2.0, impossible: float = 0.0
) -> Tensor:
    """Log-probabilities [2, B, N, K], a share of them −inf."""
    scores = sharpness * randn(2, batch, particles, codes, seed=seed)
    scores[rand(2, batch, particles, codes, seed=seed + 1) < impossible] = -torch.inf
    return scores.log_softmax(-1)


def certain_priors(first: Tensor, second: Tensor, codes: int) -> Tensor:
    """Log-probabilities [2, B, N, K] of particles that can only draw the given codes [B, N]."""
    log_p = torch.full((2, *first.shape, codes), -torch.inf, device=DEVICE)
    return log_p.scatter_(3, torch.stack([first, second])[..., None], 0.0)


def counted_rows(codes: int, lengths: list[int], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of distinct pairs: row m has lengths[m mod len(lengths)] of them. (row_starts, pairs, log_values)."""
    wanted = [min(lengths[m % len(lengths)], codes * codes) for m in range(codes)]
    draw = generator(seed)
    pairs = [
        torch.randperm(codes * codes, generator=draw)[:length].sort().values
        if length
        else torch.empty(0, dtype=torch.long)
        for length in wanted
    ]
    row_starts = torch.tensor([0, *wanted]).cumsum(0)
    return row_starts.to(DEVICE), torch.cat(pairs).int().to(DEVICE), randn(sum(wanted), seed=seed + 1)


def sum_tables(codes: int, seed: int = 0, small: torch.dtype = torch.int16) -> tuple[Tensor, Tensor, Tensor]:
    """Random sums [K, K], table [K, K] and share [K, K]."""
    table = randn(codes, codes, seed=seed + 1).mul_(3).softmax(0)
    return randint(codes, codes, codes, seed=seed).to(small), table, rand(codes, codes, seed=seed + 2)


# --- definitions -----------------------------------------------------------------------------------------------------------


def dense_row(m: int, row_starts: Tensor, pairs: Tensor, log_values: Tensor, codes: int) -> Tensor:
    """Log-values of all pairs of a mixture code, float64 [K, K]."""
    first, last = int(row_starts[m]), int(row_starts[m + 1])
    full = torch.full((codes * codes,), -torch.inf, dtype=torch.float64, device=DEVICE)
    full[pairs[first:last].long()] = log_values[first:last].double()
    return full.view(codes, codes)


def dense_scores(log_p: Tensor, mixture: Tensor, rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Log of the weights of all pairs under counts, float64 [B, N, K, K]."""
    values = torch.stack([dense_row(int(m), *rows, log_p.shape[-1]) for m in mixture])
    return log_p[0].double()[..., None] + log_p[1].double()[..., None, :] + values[:, None]


def dense_sum_scores(log_p: Tensor, mixture: Tensor, codes: Tensor, table: Tensor, share: Tensor | None) -> Tensor:
    """Log of the weights of all pairs under the sum, float64 [B, N, K, K]."""
    values = table.double()[mixture][:, codes.long()]
    values = values if share is None else values * share.double()
    return log_p[0].double()[..., None] + log_p[1].double()[..., None, :] + values.log()[:, None]


def log_marginal(log_p: Tensor, mixture: Tensor, codes: Tensor, table: Tensor, share: Tensor | None) -> Tensor:
    """log r(i) under the sum, float64 [B, N, K]."""
    first, second = log_p.double()
    values = table.double()[mixture][:, codes.long()] * (1 if share is None else share.double())
    return first + (second.exp() @ values.transpose(1, 2)).log()


def outside_interval(weights: Tensor, uniforms: Tensor, codes: Tensor) -> float:
    """By how much, at most, uniform numbers miss the interval of the cumulative weights that belongs to the code drawn by them; infinite
    where a code of weight zero was drawn.

    Args:
        weights: not normalised, float64 [..., K].
        uniforms, codes: [...].
    """
    mass = weights / weights.sum(-1, keepdim=True)
    own = mass.gather(-1, codes[..., None])[..., 0]
    upper = mass.cumsum(-1).gather(-1, codes[..., None])[..., 0]
    missed = torch.maximum(upper - own - uniforms, uniforms - upper).clamp_min(0.0)
    return float(torch.where(own > 0, missed, torch.inf).max())


def chi_square(codes: Tensor, weights: Tensor) -> tuple[float, int]:
    """Chi-square of drawn pairs int64 [2, draws] against weights [K, K], not normalised, and its degrees of freedom; infinite where a pair
    of weight zero was drawn."""
    expected = (weights / weights.sum()).flatten().cpu() * codes.shape[1]
    observed = torch.bincount((codes[0] * weights.shape[1] + codes[1]).cpu(), minlength=weights.numel()).double()
    if (observed[expected == 0] > 0).any():
        return torch.inf, 0
    frequent = expected >= RARE
    observed = torch.cat([observed[frequent], observed[~frequent].sum()[None]])
    expected = torch.cat([expected[frequent], expected[~frequent].sum()[None]])
    return float(((observed - expected).square() / expected.clamp_min(1.0)).sum()), len(expected) - 1


# --- draws -----------------------------------------------------------------------------------------------------------------


def draw_counted(
    log_p: Tensor, mixture: Tensor, rows: tuple[Tensor, ...], seed: int, ancestors: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw from counted pairs: codes [2, B, N] and log-evidence [B, N]."""
    return counts.draw_entries(log_p, mixture, rows, torch.tensor([seed], device=DEVICE), ancestors)


def draw_summed(
    log_p: Tensor, mixture: Tensor, tables: tuple[Tensor, ...], seed: int, ancestors: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw under the sum likelihood, first its marginal, then pairs: codes [2, B, N] and log-evidence [B, N]."""
    log_marginal = sums.log_marginal(log_p, mixture, tables)
    log_evidence = log_marginal.logsumexp(-1)
    marginal = (log_marginal - log_evidence[..., None]).exp().nan_to_num(0.0)
    uniforms = rand(2, *log_evidence.shape, seed=seed)
    codes = sums.draw_pairs(marginal, log_p, mixture, tables, uniforms, ancestors)
    return codes, log_evidence if ancestors is None else log_evidence.gather(1, ancestors)


# --- bodies ----------------------------------------------------------------------------------------------------------------


@contextmanager
def chosen_body(name: str) -> Iterator[None]:
    """Every kernel runs its body `name`, "torch" or "triton", and its outputs hold rubbish until they are written."""
    empty, empty_like = torch.empty, torch.empty_like
    with ExitStack() as stack:
        if name == "triton" and DEVICE.type == "cpu":
            stack.enter_context(_repaired_interpreter())
        for module in (bodies, likelihood):
            stack.enter_context(patch.object(module, "runs_triton", lambda tensor: name == "triton"))
        stack.enter_context(patch.object(torch, "empty", lambda *shape, **options: _rubbish(empty(*shape, **options))))
        stack.enter_context(
            patch.object(torch, "empty_like", lambda like, **options: _rubbish(empty_like(like, **options)))
        )
        yield


def _rubbish(tensor: Tensor) -> Tensor:
    return tensor.fill_(torch.nan if tensor.is_floating_point() else -7)


@contextmanager
def _repaired_interpreter() -> Iterator[None]:
    interpreter = import_module("triton.runtime.interpreter")
    language = import_module("triton.language.standard")
    assert isinstance(language.max, interpreter.InterpretedFunction), (
        "Triton was imported before TRITON_INTERPRET=1 was set"
    )
    make_interpretable = interpreter._patch_lang_tensor

    def patch_and_repair(tensor: type, scope: object) -> None:
        make_interpretable(tensor, scope)
        # Triton 3.6 makes loop bounds of arrays of one number in a way that NumPy 2.4 refuses (triton-lang/triton issue 9171).
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    with patch.object(interpreter, "_patch_lang_tensor", patch_and_repair):
        yield
