"""Separation with models of every profile's size and random weights: time of a step beside that of reading the weights, and of whole songs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import lru_cache, partial

import torch

from hybridsep.bench.gpu.session import Part, Session, peak_gib
from hybridsep.bench.measure import Timing, machine_rates, time_calls
from hybridsep.bench.models import song_mixture, untrained_separator
from hybridsep.bench.profile import weight_products
from hybridsep.bench.report import Goal, Row
from hybridsep.budget import cache_bytes
from hybridsep.core.device import dtype_name, fast_dtype
from hybridsep.core.profiles import load_profile
from hybridsep.inference.separator import SearchOptions, Separator

PROFILES, QUICK_PROFILES = ("cpu", "t4", "paper"), ("smoke",)
WINDOWS, QUICK_WINDOWS = (1, 8, 80), (1, 3)
PARTICLES, QUICK_PARTICLES = 64, 3
SECONDS, QUICK_SECONDS = 3.0, 0.12
SONGS = 8
"""Different songs among the windows: they take longer to compose than to separate."""
REPEATS, BUDGET_SECONDS = 5, 10.0
SHORTER = 8
WARM_UP_CODES = 4
MINUTES = {"paper": 4.0}
ROW_BYTES, USABLE = 2**20, 0.75
"""Of a row beside its keys and values, at most, and the share of the free memory that is meant to be used."""
CHUNK_GOALS = {("paper", 1): Goal("ours_seconds", 3, at_most=True), ("t4", 80): Goal("times_real_time", 10)}
FLOOR_GOAL = Goal("share_of_floor", 0.5)


def parts(session: Session) -> Iterator[Part]:
    """One part for each profile and number of windows."""
    for name in QUICK_PROFILES if session.quick else PROFILES:
        for windows in QUICK_WINDOWS if session.quick else WINDOWS:
            yield Part(f"{name}/{windows}", partial(_timed, name, windows, session), MINUTES.get(name, 1.0))
    # What follows measures memory too.
    _untrained.cache_clear()


def _timed(name: str, windows: int, session: Session) -> list[dict]:
    """A row from audio to audio, and one of a step of the search.

    The step is the difference between a long and a short search over that of their lengths: what a search takes once is not in it.
    """
    quick = session.quick
    particles, seconds = (QUICK_PARTICLES, QUICK_SECONDS) if quick else (PARTICLES, SECONDS)
    separator = with_room(_untrained(name), windows * particles)
    songs = song_mixture(separator, seconds, min(windows, SONGS))
    mixture = songs[torch.arange(windows, device=songs.device) % len(songs)]
    with torch.no_grad():
        codes = torch.cat([separator.vqvae.encode(part) for part in mixture.split(SONGS)])
    length = codes.shape[1]
    shorter = max(1, length // SHORTER)

    def search(steps: int) -> object:
        return separator.search_codes(codes[:, :steps], SearchOptions("particle", particles))

    search(WARM_UP_CODES)
    calls = {
        "short": partial(search, shorter),
        "long": partial(search, length),
        "audio": lambda: separator.estimate(mixture, "particle", particles),
    }
    times = time_calls(calls, 1 if quick else REPEATS, BUDGET_SECONDS, session.device)
    step = Timing((max(1e-9, times["long"].median - times["short"].median) / (length - shorter),))
    audio_seconds, at_once = windows * seconds, min(windows, max(1, separator.profile.search.max_rows // particles))
    common = {
        "profile": name, "windows": windows, "particles": particles, "steps": length, "codes": separator.likelihood.codes,
        "dtype": dtype_name(separator.stack.dtype), "windows_at_once": at_once,
    } | peak_gib(session.device)  # fmt: skip
    speed = {
        "audio_seconds": audio_seconds,
        "times_real_time": audio_seconds / times["audio"].median,
        "search_seconds": times["long"].median,
    }
    whole = Row(
        f"audio/{name}/{windows}",
        times["audio"],
        None,
        common | speed,
        None if quick else CHUNK_GOALS.get((name, windows)),
    )
    floor = _floor(separator, windows * particles, -(-windows // at_once), step.median, quick)
    goal = FLOOR_GOAL if floor["weights_dominate"] and not quick else None
    return [
        whole.as_dict(),
        Row(
            f"step/{name}/{windows}", step, None, common | {"step_milliseconds": 1000 * step.median} | floor, goal
        ).as_dict(),
    ]


@lru_cache(maxsize=1)
def _untrained(name: str) -> Separator:
    return untrained_separator(load_profile(name), "counts")


def with_room(separator: Separator, rows: int) -> Separator:
    """The same models advancing so many rows (windows times particles) at once, or as many as the device has memory for."""
    profile, device = separator.profile, separator.device
    if device.type == "cuda":
        each = cache_bytes(profile.prior, 1, fast_dtype(device, profile.precision), len(profile.sources)) + ROW_BYTES
        rows = min(rows, 1 + int(USABLE * torch.cuda.mem_get_info(device)[0] / each))
    roomy = copy.copy(separator)
    roomy.profile = profile.model_copy(update={"search": profile.search.model_copy(update={"max_rows": rows})})
    return roomy


def _floor(separator: Separator, rows: int, slices: int, step_seconds: float, quick: bool) -> dict:
    """What a step of all rows, done in so many slices, must read and compute at least, and the share of its time that reading the weights takes.

    Weights dominate where reading them takes longer than reading keys and values, and than the products with them.
    """
    stack, profile = separator.stack, separator.profile
    products, rates = weight_products(stack, rows), machine_rates(stack.dtype, separator.device, quick)
    weight_bytes = slices * stack.dtype.itemsize * sum(p.count * p.batch * p.inner * p.columns for p in products)
    cached = cache_bytes(profile.prior, rows, stack.dtype, stack.sources)
    flop = sum(p.operations for p in products)
    floor, with_cache = weight_bytes / rates.bytes, rates.floor(flop, weight_bytes + cached)
    return {
        "weight_bytes": weight_bytes, "cache_bytes": cached, "flop": flop, "floor_seconds": floor, "share_of_floor": floor / step_seconds,
        "floor_with_cache_seconds": with_cache, "share_of_floor_with_cache": with_cache / step_seconds,
        "weights_dominate": weight_bytes > cached and floor > flop / rates.operations,
    } | rates.as_columns()  # fmt: skip
