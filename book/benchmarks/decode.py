"""A whole separation: search over all codes of a chunk, this library's beside the originals', and how it grows.

Unless a row says otherwise the time is that of the search alone, from mixture codes to source codes. The column `differs` says what
the reference does otherwise beside its algorithm; where it is empty both have the same heads, precision and window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from originals import DensePosterior, GrowingPrior, SparsePosterior, beam, sample
from separators import dtypes, open_separator, separator_in, song_codes, song_mixture
from timing import Options, Row, main, start_settled, time_calls
from torch import Tensor

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
EVERY_HEAD, UNCUT = "keeps keys and values of every head", "never cuts its cache"


def bench_lass(options: Options) -> Iterator[Row]:
    """Time the particle filter with `counts` beside LASS's sampling."""
    yield from _against_lass(options, "lass", ("particle",), with_beams=False)


def bench_lass_beam(options: Options) -> Iterator[Row]:
    """Time particle filter and beam search with `counts` beside LASS's beam search."""
    yield from _against_lass(options, "lass-beam", ("particle", "beam"), with_beams=True)


def bench_lqvae(options: Options) -> Iterator[Row]:
    """Time the particle filter with `sum` and untrained models beside LQ-VAE's dense posterior, timed on its first steps."""
    sized = replace(options, model=None, codes=options.codes or (QUICK_CODES if options.quick else LQVAE_CODES))
    separator = open_separator(sized, "sum")
    codes, particles = song_codes(separator, options.seconds), _particles(options)
    steps = min(DENSE_STEPS, codes.shape[1])

    def reference() -> Tensor:
        priors = [GrowingPrior(prior, every_head=False) for prior in separator.priors]
        return sample(priors, DensePosterior(separator.likelihood), codes[0, :steps], particles, _generator(codes))

    calls: dict[object, Callable] = {"reference": reference}
    searchers = {dtype: separator_in(separator, dtype) for dtype in dtypes(separator.device)}
    calls |= {dtype: _search(searcher, codes, "particle", particles) for dtype, searcher in searchers.items()}
    times = time_calls(calls, options.repeats, options.budget, separator.device)
    note = f"reference: {steps} of {codes.shape[1]} steps timed and scaled up, though later steps have longer caches; untrained models"
    for dtype, searcher in searchers.items():
        details = _sizes(searcher, codes, particles) | {
            "search": "particle", "reference_search": "LQ-VAE sampling", "reference_dtype": "float32",
            "differs": "" if dtype == torch.float32 else "computes in float32", "note": note,
        }  # fmt: skip
        scaled = times["reference"].scaled(codes.shape[1] / steps)
        yield Row(f"lqvae/{dtype_name(dtype)}", times[dtype], scaled, details)


def bench_particles(options: Options) -> Iterator[Row]:
    """Time one chunk with more and more particles, encoding and decoding of the audio included."""
    separator = _separator(options)
    mixture = song_mixture(separator, options.seconds)
    for particles in QUICK_PARTICLE_COUNTS if options.quick else PARTICLE_COUNTS:
        yield _whole(f"particles/{particles}", separator, mixture, particles, options)


def bench_length(options: Options) -> Iterator[Row]:
    """Time longer and longer audio as one sequence, encoding and decoding included; a second of it must not cost more for that."""
    separator, first = _separator(options), None
    for times in LENGTHS[:2] if options.quick else LENGTHS:
        mixture = song_mixture(separator, times * options.seconds)
        row = _whole(f"length/{times * options.seconds:g}", separator, mixture, _particles(options), options)
        cost = row.details["seconds_per_audio_second"]
        first = first or cost
        yield replace(row, details=row.details | {"relative_cost": cost / first})


def bench_batch(options: Options) -> Iterator[Row]:
    """Time several chunks in one batch beside one by one."""
    separator, particles = _separator(options), _particles(options)
    codes = song_codes(separator, options.seconds, QUICK_CHUNKS if options.quick else CHUNKS)
    one_by_one = [_search(separator, chunk[None], "particle", particles) for chunk in codes]
    calls = {
        "ours": _search(separator, codes, "particle", particles),
        "reference": lambda: [search() for search in one_by_one],
    }
    times = time_calls(calls, options.repeats, options.budget, separator.device)
    searches = {"search": "particle", "reference_search": "the same, one chunk after the other"}
    yield Row(f"batch/{len(codes)}", times["ours"], times["reference"], _sizes(separator, codes, particles) | searches)


def bench_precision(options: Options) -> Iterator[Row]:
    """Time the precision that this machine is fast in beside float32, and compare their evidence."""
    separator, particles = _separator(options), _particles(options)
    codes, evidence, calls = song_codes(separator, options.seconds), {}, {}
    compared = [torch.float32, torch.bfloat16] if options.quick else dtypes(separator.device)
    for dtype in compared:
        name, searcher = dtype_name(dtype), separator_in(separator, dtype)
        calls[name] = _search(searcher, codes, "particle", particles)
        evidence[name] = float(calls[name]().log_evidence.mean()) / codes.shape[1]
    times = time_calls(calls, options.repeats, options.budget, separator.device)
    slow, fast = dtype_name(compared[0]), dtype_name(compared[-1])
    details = _sizes(separator, codes, particles) | {
        "search": "particle", "reference_search": f"the same in {slow}", "dtype": fast, "reference_dtype": slow,
        "ours_nats_per_code": evidence[fast], "reference_nats_per_code": evidence[slow],
    }  # fmt: skip
    yield Row(f"precision/{fast}", times[fast], times[slow], details)


def _against_lass(options: Options, name: str, searches: tuple[str, ...], with_beams: bool) -> Iterator[Row]:
    """Time our searches beside LASS's with heads, window and precision as ours have them, and with others."""
    separator, particles = _separator(options), _particles(options)
    if not isinstance(separator.likelihood, CountLikelihood):
        raise HybridsepError(f"LASS needs a method of counts, which {options.model} is not: give runs/cpu/lass")
    codes, posterior = song_codes(separator, options.seconds), SparsePosterior(separator.likelihood)

    def reference(dtype: torch.dtype, every_head: bool, cut: bool) -> object:
        priors = [GrowingPrior(prior, every_head, cut, dtype) for prior in separator.priors]
        if with_beams:
            return beam(priors, posterior, codes[0], particles)
        return sample(priors, posterior, codes[0], particles, _generator(codes))

    slow, *faster = dtypes(separator.device)
    variants = {slow: [(slow, False, True), (slow, True, True), (slow, True, False)]}
    variants |= {fast: [(fast, False, True), (slow, False, True)] for fast in faster}
    searchers = {dtype: separator_in(separator, dtype) for dtype in variants}
    ours = {(s, dtype): _search(searchers[dtype], codes, s, particles) for s in searches for dtype in variants}
    theirs = {variant: partial(reference, *variant) for several in variants.values() for variant in several}
    times = time_calls(ours | theirs, options.repeats, options.budget, separator.device)
    common = {
        "reference_search": "LASS beam" if with_beams else "LASS sampling",
        "uncounted_steps": sum(not posterior.counted(code) for code in codes[0].tolist()),
    }
    for search, dtype in ours:
        for variant in variants[dtype]:
            label, differences = _differences(dtype, *variant)
            details = _sizes(searchers[dtype], codes, particles) | {"search": search} | common | differences
            yield Row(f"{name}/{search}-{dtype_name(dtype)}-{label}", times[search, dtype], times[variant], details)


def _differences(dtype: torch.dtype, reference_dtype: torch.dtype, every_head: bool, cut: bool) -> tuple[str, dict]:
    """Return the end of a row's name, and columns that say what the reference computes with and in what that differs from ours."""
    label = [
        "every-head" if every_head else "shared-heads",
        "" if cut else "uncut",
        "" if dtype == reference_dtype else dtype_name(reference_dtype),
    ]
    differs = [EVERY_HEAD if every_head else "", "" if cut else UNCUT, label[2] and f"computes in {label[2]}"]
    return "-".join(filter(None, label)), {
        "reference_cache": "every head" if every_head else "shared heads once", "reference_window": "cut" if cut else "never cut",
        "reference_dtype": dtype_name(reference_dtype), "differs": "; ".join(filter(None, differs)),
    }  # fmt: skip


def _whole(name: str, separator: Separator, mixture: Tensor, particles: int, options: Options) -> Row:
    """Time `Separator.estimate`: audio to audio."""
    found = []

    def call() -> None:
        found[:] = [separator.estimate(mixture, SearchOptions("particle", particles))]

    times = time_calls({"ours": call}, options.repeats, options.budget, separator.device)
    seconds = mixture.shape[1] / separator.sample_rate
    result = found.pop().search
    details = _sizes(separator, result.codes[0, :, 0], particles) | {
        "search": "particle", "audio_seconds": seconds, "seconds_per_audio_second": times["ours"].median / seconds,
        "nats_per_code": float(result.log_evidence.mean()) / result.codes.shape[-1],
        "resamplings": int(result.resampled.sum()),
    }  # fmt: skip
    return Row(name, times["ours"], None, details)


def _separator(options: Options) -> Separator:
    """Open the separator to measure and warm it up: the first search of a process takes seconds more."""
    separator = open_separator(options, "counts")
    separator.candidates(song_mixture(separator, WARM_UP_SECONDS), SearchOptions("particle", 2))
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


BENCHMARKS = {
    "lass": bench_lass, "lass-beam": bench_lass_beam, "lqvae": bench_lqvae, "particles": bench_particles, "length": bench_length,
    "batch": bench_batch, "precision": bench_precision,
}  # fmt: skip

if __name__ == "__main__":
    start_settled()
    main(BENCHMARKS, __doc__)
