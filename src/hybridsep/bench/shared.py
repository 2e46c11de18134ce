"""What particles have in common: how long their own part of the past is, what keeping the rest once saves, and how many histories differ."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hybridsep.bench.measure import Timing
from hybridsep.bench.models import open_separator, song_codes
from hybridsep.bench.report import Goal, Options, Row
from hybridsep.core.device import dtype_name, seeded_generator
from hybridsep.inference.caches import PrivateCache, SharedPast
from hybridsep.inference.decoder import PriorStack, PriorState
from hybridsep.inference.search import SearchResult, particle_filter, suffix_lengths
from hybridsep.inference.separator import Separator
from hybridsep.models.prior import Prior

WINDOW, QUICK_WINDOW = 1024, 64
PARTICLE_COUNTS, QUICK_PARTICLE_COUNTS = (8, 32, 128), (2, 4)
TIMES = (128, 256, 512, 1024)
STEPS_TIMED = 32
# 128 particles against 32 with a shared past.
GROWTH = Goal("relative_to_32", 2.0, at_most=True)


def bench_shared(options: Options) -> Iterator[Row]:
    """Steps of a prior with a long window, after the resamplings of a real search: past shared ("ours") and private ("reference").

    The model's own window is too short for sharing to pay, so the steps timed are those of an untrained prior of its shape with a window
    that takes in the whole chunk.
    """
    separator = open_separator(options.model, "counts", options.codes)
    codes = song_codes(separator, options.seconds)
    window, base = (QUICK_WINDOW if options.quick else WINDOW), {}
    wide = wide_stack(separator, window)
    for particles in QUICK_PARTICLE_COUNTS if options.quick else PARTICLE_COUNTS:
        states = Histories(separator.stack)
        found = particle_filter(states, separator.likelihood, codes, particles, seeded_generator(0))
        suffix = suffix_lengths(found.ancestors).float()
        timed = {cache: step_seconds(wide, cache, found) for cache in (SharedPast, PrivateCache)}
        for length in sorted({min(t, codes.shape[1]) for t in TIMES}):
            last = slice(max(0, length - STEPS_TIMED), length)
            ours, reference = (Timing(tuple(timed[cache][0][last])) for cache in (SharedPast, PrivateCache))
            base.setdefault(length, {})[particles] = ours.median
            details = {
                "particles": particles, "window": window, "position": length, "dtype": dtype_name(wide.dtype), "codes": wide.codes,
                "suffix_mean": float(suffix.mean()), "suffix_95": float(suffix.quantile(0.95)), "suffix_here": float(suffix[0, length - 1]),
                "resamplings": int(found.resampled.sum()), "distinct_histories": states.share,
                "ours_cache_bytes": timed[SharedPast][1], "reference_cache_bytes": timed[PrivateCache][1],
                "relative_to_32": ours.median / base[length].get(32, ours.median),
            }  # fmt: skip
            yield Row(
                f"shared/{particles}/{length}",
                ours,
                reference,
                details,
                GROWTH if options.standard and particles == 128 else None,
            )


def wide_stack(separator: Separator, window: int) -> PriorStack:
    """Untrained priors like the separator's but with another window."""
    settings = separator.profile.prior.model_copy(update={"window": window, "crop_codes": window})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        priors = [Prior(settings, separator.likelihood.codes).to(separator.device) for _ in separator.priors]
    for prior in priors:
        nn.init.normal_(prior.head.weight, std=0.1)
    return PriorStack(priors, separator.stack.dtype, separator.stack.temperature)


@torch.no_grad()
def step_seconds(stack: PriorStack, cache: type, found: SearchResult) -> tuple[list[float], int]:
    """Wall time of each step with the ancestors that a search had, and the bytes that the cache has at the end."""
    sources, mixtures, particles, length = found.codes.shape
    state = PriorState(stack, cache(stack, mixtures, particles), mixtures, particles)
    identity = torch.arange(particles, device=stack.device).expand(mixtures, particles)
    seconds = []
    for t in range(length):
        ancestors = found.ancestors[:, t]
        started = time.perf_counter()
        state.append(found.codes[..., t].contiguous(), None if torch.equal(ancestors, identity) else ancestors)
        if stack.device.type == "cuda":
            torch.cuda.synchronize(stack.device)
        seconds.append(time.perf_counter() - started)
    return seconds, state.cache.nbytes


class Histories:
    """Priors that count how many of the particles' histories of a source differ: only so many rows would have to be computed.

    Attributes:
        share: of particles whose history differs from that of all before them, mean over steps, mixtures and sources.
    """

    def __init__(self, stack: PriorStack):
        self._stack = stack
        self._shares: list[float] = []

    @property
    def share(self) -> float:
        """Distinct histories over particles."""
        return sum(self._shares) / max(1, len(self._shares))

    def start(self, mixtures: int, particles: int, resampled: bool = False) -> Histories:
        """See search.Priors."""
        self._state = self._stack.start(mixtures, particles, resampled)
        self._names = torch.zeros(self._stack.sources, mixtures, particles, dtype=torch.long, device=self._stack.device)
        return self

    @property
    def log_probs(self) -> Tensor:
        """See search.State."""
        return self._state.log_probs

    def append(self, codes: Tensor, ancestors: Tensor | None = None) -> None:
        """See search.State."""
        names = self._names if ancestors is None else self._names.gather(2, ancestors.expand_as(self._names))
        longer = names * self._stack.codes + codes
        rows = [row.unique(return_inverse=True) for row in longer.flatten(0, 1)]
        self._names = torch.stack([inverse for _, inverse in rows]).view_as(longer)
        self._shares.append(sum(len(distinct) for distinct, _ in rows) / longer.numel())
        self._state.append(codes, ancestors)
