"""A whole separation: search over all codes of a chunk, this library's beside the originals', and how it grows.

Unless a row says otherwise the time is that of the search alone, from mixture codes to source codes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product

import torch
from torch import Tensor

from hybridsep.bench.measure import time_calls
from hybridsep.bench.models import dtypes, open_separator, separator_in, song_codes, song_mixture
from hybridsep.bench.originals import DensePosterior, GrowingPrior, SparsePosterior, beam, sample
from hybridsep.bench.profile import bench_profile
from hybridsep.bench.report import Goal, Options, Row
from hybridsep.core.device import dtype_name, seeded_generator
from hybridsep.core.errors import HybridsepError
from hybridsep.inference.counts import CountLikelihood
from hybridsep.inference.separator import SearchOptions, Separator

PARTICLES, LQVAE_CODES, QUICK_CODES = 32, 2048, 16
DENSE_STEPS = 30
WARM_UP_SECONDS = 0.1
PARTICLE_COUNTS, QUICK_PARTICLE_COUNTS = (8, 32, 128, 512, 1024), (1, 2)
LENGTHS = (1, 2, 4, 8)
CHUNKS, QUICK_CHUNKS = 8, 2
LINEAR = Goal("relative_cost", 1.15, at_most=True)
RATIO_LASS, RATIO_LQVAE = Goal("ratio", 6), Goal("ratio", 50)
SECONDS_GOALS = {32: Goal("ours_seconds", 5, at_most=True), 512: Goal("ours_seconds", 25, at_most=True)}


def bench_lass(options: Options) -> Iterator[Row]:
    """Particle filter with `counts` against LASS's sampling."""
    yield from _against_lass(options, "lass", ("particle",), False)


def bench_lass_beam(options: Options) -> Iterator[Row]:
    """Particle filter and beam search with `counts` against LASS's beam search."""
    yield from _against_lass(options, "lass-beam", ("particle", "beam"), True)


def bench_lqvae(options: Options) -> Iterator[Row]:
    """Particle filter with `sum` and untrained models against LQ-VAE's dense posterior, timed on its first steps."""
    separator = open_separator(None, "sum", options.codes or (QUICK_CODES if options.quick else LQVAE_CODES))
    codes, particles = song_codes(separator, options.seconds), _particles(options)
    steps = min(DENSE_STEPS, codes.shape[1])

    def reference() -> Tensor:
        priors, posterior = [GrowingPrior(prior) for prior in separator.priors], DensePosterior(separator.likelihood)
        return sample(priors, posterior, codes[0, :steps], particles, _generator(codes))

    searchers = {dtype: separator_in(separator, dtype) for dtype in dtypes(separator.device)}
    calls: dict[object, Callable] = {
        d: _search(searcher, codes, "particle", particles) for d, searcher in searchers.items()
    }
    times = time_calls(calls | {"reference": reference}, options.repeats, options.budget_seconds, separator.device)
    note = f"reference: {steps} of {codes.shape[1]} steps timed and scaled up, though later steps have longer caches; untrained models"
    for dtype, searcher in searchers.items():
        details = _sizes(searcher, codes, particles) | {
            "search": "particle",
            "reference_search": "LQ-VAE sampling",
            "note": note,
        }
        scaled = times["reference"].scaled(codes.shape[1] / steps)
        yield Row(
            f"lqvae/{dtype_name(dtype)}", times[dtype], scaled, details, RATIO_LQVAE if options.standard else None
        )


def bench_particles(options: Options) -> Iterator[Row]:
    """One chunk with more and more particles, encoding and decoding of the audio included."""
    separator = _separator(options)
    mixture = song_mixture(separator, options.seconds)
    for particles in QUICK_PARTICLE_COUNTS if options.quick else PARTICLE_COUNTS:
        yield _whole(
            f"particles/{particles}",
            separator,
            mixture,
            particles,
            options,
            SECONDS_GOALS.get(particles) if options.standard else None,
        )


def bench_length(options: Options) -> Iterator[Row]:
    """Longer and longer audio as one sequence, encoding and decoding included; a second of it must not cost more for that."""
    separator, first = _separator(options), None
    for times in LENGTHS[:2] if options.quick else LENGTHS:
        mixture = song_mixture(separator, times * options.seconds)
        row = _whole(f"length/{times * options.seconds:g}", separator, mixture, _particles(options), options)
        first = first or row.details["seconds_per_audio_second"]
        goal = LINEAR if options.standard and times > 1 else None
        yield replace(
            row, details=row.details | {"relative_cost": row.details["seconds_per_audio_second"] / first}, goal=goal
        )


def bench_batch(options: Options) -> Iterator[Row]:
    """Several chunks in one batch against one by one."""
    separator, particles = _separator(options), _particles(options)
    codes = song_codes(separator, options.seconds, QUICK_CHUNKS if options.quick else CHUNKS)
    one_by_one = [_search(separator, chunk[None], "particle", particles) for chunk in codes]
    calls = {
        "ours": _search(separator, codes, "particle", particles),
        "reference": lambda: [search() for search in one_by_one],
    }
    times = time_calls(calls, options.repeats, options.budget_seconds, separator.device)
    details = _sizes(separator, codes, particles) | {
        "search": "particle",
        "reference_search": "the same, one chunk after the other",
    }
    yield Row(f"batch/{len(codes)}", times["ours"], times["reference"], details)


def bench_precision(options: Options) -> Iterator[Row]:
    """The precision that this machine is fast in against float32, in time and in evidence."""
    separator, particles = _separator(options), _particles(options)
    codes, evidence, calls = song_codes(separator, options.seconds), {}, {}
    compared = [torch.float32, torch.bfloat16] if options.quick else dtypes(separator.device)
    for dtype in compared:
        searcher = separator_in(separator, dtype)
        calls[dtype_name(dtype)] = _search(searcher, codes, "particle", particles)
        evidence[dtype_name(dtype)] = float(calls[dtype_name(dtype)]().log_evidence.mean()) / codes.shape[1]
    times = time_calls(calls, options.repeats, options.budget_seconds, separator.device)
    slow, fast = dtype_name(compared[0]), dtype_name(compared[-1])
    details = _sizes(separator, codes, particles) | {
        "search": "particle", "reference_search": f"the same in {slow}",
        "ours_nats_per_code": evidence[fast], "reference_nats_per_code": evidence[slow],
    }  # fmt: skip
    yield Row(f"precision/{fast}", times[fast], times[slow], details | {"dtype": fast})


BENCHMARKS = {
    "lass": bench_lass, "lass-beam": bench_lass_beam, "lqvae": bench_lqvae, "particles": bench_particles, "length": bench_length,
    "batch": bench_batch, "precision": bench_precision, "profile": bench_profile,
}  # fmt: skip


def _against_lass(options: Options, name: str, searches: tuple[str, ...], with_beams: bool) -> Iterator[Row]:
    """Our searches in every precision against LASS's, whose caches keep every head, as published, or shared heads once."""
    separator, particles = _separator(options), _particles(options)
    if not isinstance(separator.likelihood, CountLikelihood):
        raise HybridsepError(
            "benchmarks against LASS need a method of counts: give --model a folder such as runs/cpu/lass"
        )
    codes, posterior = song_codes(separator, options.seconds), SparsePosterior(separator.likelihood)
    searchers = {dtype: separator_in(separator, dtype) for dtype in dtypes(separator.device)}
    calls: dict[object, Callable] = {
        (s, d): _search(searchers[d], codes, s, particles) for s in searches for d in searchers
    }
    for every_head in (True, False):
        calls[every_head] = partial(_published_lass, separator, posterior, codes, particles, every_head, with_beams)
    times = time_calls(calls, options.repeats, options.budget_seconds, separator.device)
    goal = RATIO_LASS if options.standard and not with_beams else None
    uncounted = sum(not posterior.counted(code) for code in codes[0].tolist())
    for (search, dtype), every_head in product(product(searches, searchers), (True, False)):
        details = _sizes(searchers[dtype], codes, particles) | {
            "search": search, "reference_search": "LASS beam" if with_beams else "LASS sampling",
            "reference_cache": "every head" if every_head else "shared heads once", "uncounted_steps": uncounted,
        }  # fmt: skip
        label = f"{name}/{search}-{dtype_name(dtype)}-{'every-head' if every_head else 'shared-heads'}"
        yield Row(label, times[search, dtype], times[every_head], details, goal)


def _published_lass(
    separator: Separator, posterior: SparsePosterior, codes: Tensor, particles: int, every_head: bool, with_beams: bool
) -> object:
    priors = [GrowingPrior(prior, every_head) for prior in separator.priors]
    if with_beams:
        return beam(priors, posterior, codes[0], particles)
    return sample(priors, posterior, codes[0], particles, _generator(codes))


def _whole(
    name: str, separator: Separator, mixture: Tensor, particles: int, options: Options, goal: Goal | None = None
) -> Row:
    """Row of `Separator.estimate`: audio to audio."""
    found = []

    def call() -> None:
        found[:] = [separator.estimate(mixture, "particle", particles)]

    times = time_calls({"ours": call}, options.repeats, options.budget_seconds, separator.device)
    seconds = mixture.shape[1] / separator.sample_rate
    result = found.pop().search
    details = _sizes(separator, result.codes[0, :, 0], particles) | {
        "search": "particle", "audio_seconds": seconds, "seconds_per_audio_second": times["ours"].median / seconds,
        "nats_per_code": float(result.log_evidence.mean()) / result.codes.shape[-1],
        "resamplings": int(result.resampled.sum()),
    }  # fmt: skip
    return Row(name, times["ours"], None, details, goal)


def _separator(options: Options) -> Separator:
    """The separator to measure, warmed up: the first search of a process takes seconds more."""
    separator = open_separator(options.model, "counts", options.codes)
    separator.candidates(song_mixture(separator, WARM_UP_SECONDS), "particle", 2)
    return separator


def _search(separator: Separator, codes: Tensor, search: str, particles: int) -> Callable:
    return lambda: separator.search_codes(codes, SearchOptions(search, particles))


def _generator(codes: Tensor) -> torch.Generator:
    return seeded_generator(0, device=codes.device)


def _particles(options: Options) -> int:
    return options.particles or (2 if options.quick else PARTICLES)


def _sizes(separator: Separator, codes: Tensor, particles: int) -> dict:
    return {
        "codes": separator.likelihood.codes, "particles": particles, "mixtures": codes.shape[0], "length": codes.shape[-1],
        "dtype": dtype_name(separator.stack.dtype),
    }  # fmt: skip
