"""What the operations on a step of a search refuse: a wrong value there would be a read outside a tensor on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor


def check_step(log_p: Tensor, mixture: Tensor, codes: int, ancestors: Tensor | None = None) -> None:
    """Refuse a step that does not fit a likelihood over `codes` codes.

    Args:
        log_p: log-probabilities of the next code under both priors, nats, float32 [2, B, N, K].
        mixture: int64 [B].
        ancestors: int64 [B, N].

    Raises:
        ValueError: wrong shapes or types, another codebook size, NaN, or a mixture code or ancestor that does not exist.
    """
    if (
        log_p.ndim != 4
        or log_p.dtype != torch.float32
        or mixture.shape != log_p.shape[1:2]
        or log_p.shape[0] != 2
        or not log_p.numel()
    ):
        raise ValueError(
            f"log-probabilities must be float32 [2, B, N, K] with mixture codes [B], not {log_p.dtype} {list(log_p.shape)} with {list(mixture.shape)}"
        )
    if log_p.shape[3] != codes:
        raise ValueError(f"priors over {log_p.shape[3]} codes, likelihood over {codes}")
    if ancestors is not None and ancestors.shape != log_p.shape[1:3]:
        raise ValueError(f"ancestors must be [B, N] = {list(log_p.shape[1:3])}, not {list(ancestors.shape)}")
    others = mixture[:1] * 0 if ancestors is None else ancestors
    # One transfer for all that is checked: each makes the host wait for the GPU. A sum is NaN where any of its terms is.
    facts = [mixture.min(), mixture.max(), others.min(), others.max(), log_p.sum().isnan()]
    lowest, highest, first, last, broken = torch.stack([fact.long() for fact in facts]).tolist()
    _check_range("mixture code", lowest, highest, codes)
    _check_range("ancestor", first, last, log_p.shape[2])
    if broken:
        raise ValueError("log-probabilities of the priors hold NaN")


def check_entries(log_p: Tensor, row_starts: Tensor, pairs: Tensor, log_values: Tensor) -> None:
    """Refuse counted pairs that do not fit each other or the priors; arguments as in `counts.draw_pairs_counts`."""
    if row_starts.shape != (log_p.shape[-1] + 1,):
        raise ValueError(f"priors over {log_p.shape[-1]} codes, counted pairs over {len(row_starts) - 1}")
    if pairs.ndim != 1 or pairs.shape != log_values.shape:
        raise ValueError(f"{list(pairs.shape)} counted pairs with {list(log_values.shape)} values")


def check_codes(name: str, codes: Tensor, size: int) -> None:
    """Refuse codes outside [0, size)."""
    if codes.numel():
        _check_range(name, *torch.stack(codes.aminmax()).tolist(), size)


def check_seed(seed: int) -> None:
    """Refuse seeds that do not fit both bodies' random number generators."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"seed {seed} lies outside [0, 2^63)")


def _check_range(name: str, lowest: int, highest: int, size: int) -> None:
    if lowest < 0 or highest >= size:
        raise ValueError(f"{name} {lowest if lowest < 0 else highest} lies outside [0, {size})")
