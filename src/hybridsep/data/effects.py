"""Sound effects: another tuning, tone, room or amplifier than a solo recording was made with."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import soxr
from numpy.random import Generator
from scipy.signal import butter, lfilter, oaconvolve, sosfilt

from hybridsep.core.errors import HybridsepError

#: Raised whenever the same draw would give another sound.
EFFECTS_VERSION = 1

TILT_POLE_HZ = 800.0  # where a tilt turns, as in MiniSlakh's own tone control
DECAY_60_DB = np.log(1000.0)


def detune(waveform: np.ndarray, sample_rate: int, cents: float) -> np.ndarray:
    """Play float32 [T] faster or slower, as a tape does, by so many cents; its middle and T stay, missing ends are mirrored."""
    speed = 2 ** (cents / 1200)
    edge = min(len(waveform) - 1, int(len(waveform) * max(0.0, speed - 1)) + 2)
    played = soxr.resample(np.pad(waveform, edge, mode="reflect"), sample_rate * speed, sample_rate)
    first = (len(played) - len(waveform)) // 2
    return played[first : first + len(waveform)]


def two_poles(waveform: np.ndarray, sample_rate: int, hertz: float, kind: str = "lowpass") -> np.ndarray:
    """Take from [T] what lies above `hertz`, or below it with "highpass": 12 dB an octave."""
    return sosfilt(butter(2, hertz, kind, fs=sample_rate, output="sos"), waveform)


def tilt(waveform: np.ndarray, sample_rate: int, decibels: float) -> np.ndarray:
    """Put so many dB between the lowest and the highest octaves of [T]; positive: brighter."""
    pole = np.exp(-2 * np.pi * TILT_POLE_HZ / sample_rate)
    low = lfilter([1 - pole], [1, -pole], waveform)
    gain = 10 ** (decibels / 40)
    return low / gain + (waveform - low) * gain


def reverberate(waveform: np.ndarray, sample_rate: int, seconds: float, wet: float, noise: Generator) -> np.ndarray:
    """Put [T] in a room of decaying noise, which falls by 60 dB in so many seconds; `wet` is its share, 0 to 1."""
    times = np.arange(round(1.5 * seconds * sample_rate)) / sample_rate
    room = noise.standard_normal(len(times)) * np.exp(-DECAY_60_DB * times / seconds)
    echoes = oaconvolve(waveform, room / np.linalg.norm(room))[: len(waveform)]
    return (1 - wet) * waveform + wet * echoes


def saturate(waveform: np.ndarray, decibels: float) -> np.ndarray:
    """Clip [T] softly, the peak so many dB above where clipping begins."""
    return np.tanh(waveform / max(float(np.abs(waveform).max()), 1e-9) * 10 ** (decibels / 20))


def _filtered(waveform: np.ndarray, sample_rate: int, draw: Generator) -> np.ndarray:
    kind = draw.integers(3)
    if kind == 2:
        return tilt(waveform, sample_rate, draw.choice((-1, 1)) * draw.uniform(6, 15))
    passing, lowest, highest = (("lowpass", 1000, 4000), ("highpass", 80, 300))[kind]
    hertz = float(np.exp(draw.uniform(np.log(lowest), np.log(highest))))  # every octave as likely as any other
    return two_poles(waveform, sample_rate, min(hertz, 0.4 * sample_rate), passing)


#: What changes a waveform [T] at a rate in Hz, with a strength that is drawn.
EFFECTS: dict[str, Callable[[np.ndarray, int, Generator], np.ndarray]] = {
    "detuned": lambda x, rate, draw: detune(x, rate, draw.choice((-1, 1)) * draw.uniform(20, 50)),
    "filtered": _filtered,
    "reverberant": lambda x, rate, draw: reverberate(x, rate, draw.uniform(0.3, 0.8), draw.uniform(0.2, 0.5), draw),
    "saturated": lambda x, rate, draw: saturate(x, draw.uniform(10, 20)),
}


def draws(*what: object) -> Generator:
    """Return random numbers that belong to a seed and names, whatever else is drawn."""
    digest = hashlib.sha256("/".join(map(str, what)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "little"))


def apply_effect(name: str, waveform: np.ndarray, sample_rate: int, draw: Generator) -> np.ndarray:
    """Lay one of the effects, at a strength that is drawn, on float32 [T], as loud as before; HybridsepError if it is unknown."""
    if name not in EFFECTS:
        raise HybridsepError(f"unknown effect '{name}': choose one of {', '.join(EFFECTS)}")
    if len(waveform) < 2 or not waveform.any():
        return waveform
    return as_loud_as(waveform, EFFECTS[name](waveform, sample_rate, draw))


def as_loud_as(reference: np.ndarray, waveform: np.ndarray) -> np.ndarray:
    """Bring `waveform` to the RMS level of `reference`, float32; silence stays silent."""
    wanted, level = (float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) for x in (reference, waveform))
    return (waveform * (wanted / max(level, 1e-12))).astype(np.float32)


def overlay(waveforms: Sequence[np.ndarray]) -> np.ndarray:
    """Sum float32 waveforms, each [T] of its own; the sum is as long as the longest."""
    total = np.zeros(max(map(len, waveforms)), dtype=np.float32)
    for waveform in waveforms:
        total[: len(waveform)] += waveform
    return total


def vary(waveform: np.ndarray, sample_rate: int, share: float, draw: Generator) -> np.ndarray:
    """Lay a random effect on float32 [T] with probability `share`; return the very same samples otherwise."""
    if draw.random() >= share:
        return waveform
    return apply_effect(list(EFFECTS)[draw.integers(len(EFFECTS))], waveform, sample_rate, draw)
