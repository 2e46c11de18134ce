"""Separating a long recording from file to files, in a process of its own: wall time and peak memory."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
from separators import SONG_SEED, open_separator
from timing import Options, Row, Timing, main, start_settled, status_bytes

from hybridsep.core.errors import HybridsepError
from hybridsep.data.minislakh.composer import compose_song
from hybridsep.data.minislakh.render import render_song
from hybridsep.inference.recording import separate_file
from hybridsep.inference.separator import SearchOptions

# Minutes and particles, by name: a song with half of the profile's particles, and an hour with one.
LENGTHS = {"song": (4.0, 16), "hour": (60.0, 1)}
SAMPLE_RATE = 44_100
SONG_SECONDS = 30.0
LEFT = {"bass": 0.4, "drums": 0.6}  # share of each source in the left channel
SUFFIX = "flac"
NOTE = "peak_bytes: all that the process held at most, Python and torch included; start_bytes of it before it began"


def bench_recording(options: Options, name: str) -> Iterator[Row]:
    """Separate a stereo recording at 44.1 kHz of one of LENGTHS, one composed song again and again."""
    if not Path("/proc/self/status").exists():
        raise HybridsepError("peak memory is read from Linux's /proc, which is not here")
    usual_minutes, usual_particles = LENGTHS[name]
    minutes, particles = options.minutes or usual_minutes, options.particles or usual_particles
    separator = open_separator(options, "counts")
    with tempfile.TemporaryDirectory() as made:
        recording, model = Path(made, f"recording.{SUFFIX}"), Path(made, "model")
        write_recording(recording, minutes, 1.0 if options.quick else SONG_SECONDS)
        separator.save(model)
        del separator
        command = [sys.executable, __file__, "separate", recording, Path(made, "stems"), model, str(particles)]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise HybridsepError(f"separating the recording ended with status {done.returncode}")
        seconds, computed, start, peak = json.loads(done.stdout)
    details = {
        "minutes": minutes, "channels": len(LEFT), "sample_rate": SAMPLE_RATE, "particles": particles,
        "model": str(options.model or f"untrained, profile {options.profile}"), "start_bytes": start, "note": NOTE,
    }  # fmt: skip
    yield Row(f"recording/{name}", Timing((seconds,), (computed,), peak), None, details)


def write_recording(path: Path, minutes: float, song_seconds: float = SONG_SECONDS) -> None:
    """Write a composed song in stereo at 44.1 kHz, repeated until the time is over."""
    sources = render_song(compose_song(SONG_SEED, 0, song_seconds), SAMPLE_RATE)
    left = sum(LEFT[name] * samples for name, samples in sources.items())
    song = np.stack([left, sum(sources.values()) - left], axis=1)
    song *= 0.5 / np.abs(song).max()
    samples = round(60 * minutes * SAMPLE_RATE)
    with soundfile.SoundFile(path, "w", SAMPLE_RATE, len(LEFT)) as file:
        for begin in range(0, math.ceil(samples / len(song))):
            file.write(song[: samples - begin * len(song)])


def separate(recording: str, folder: str, model: str, particles: str) -> None:
    """Separate and print what it took: seconds by the wall and the processor, bytes before and at most."""
    start, wall, processor = status_bytes("VmHWM"), time.perf_counter(), time.process_time()
    separate_file(Path(recording), Path(folder), Path(model), SearchOptions(particles=int(particles)), suffix=SUFFIX)
    print(json.dumps([time.perf_counter() - wall, time.process_time() - processor, start, status_bytes("VmHWM")]))


BENCHMARKS = {name: partial(bench_recording, name=name) for name in LENGTHS}

if __name__ == "__main__":
    start_settled()
    if sys.argv[1:2] == ["separate"]:
        separate(*sys.argv[2:])
    else:
        main(BENCHMARKS, __doc__)
