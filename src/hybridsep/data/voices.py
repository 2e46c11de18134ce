"""Timbres that no SoundFont has: changed and layered samples, other instruments as basses, and synthesisers for bass and drums.

A voice is drawn once for a part of a song and then plays every key alike, in whatever order it is asked.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.random import Generator
from scipy.signal import lfilter, sosfilt

from hybridsep.data.effects import as_loud_as, overlay, reverberate, tilt, two_poles
from hybridsep.data.soundfont import DRUM_BANK, Bends, Change, Tone, Voice, font_voice, presets

#: Ways to draw a timbre, by stem; see `random_voice`.
TIMBRES = {
    "bass": ("changed", "layered", "other", "oscillators", "plucked"),
    "drums": ("changed", "layered", "synthesised", "mixed"),
}
#: General MIDI pianos, organs, guitars, low strings, brass, reeds and leads that can play a bass's keys.
OTHERS = (0, 1, 2, 4, 5, 7, 16, 17, 19, 24, 25, 26, 27, 28, 29, 30, 42, 43, 57, 58, 66, 67, 70, 80, 81, 84, 87)
#: Percussion keys that belong together.
GROUPS = {
    "kick": (35, 36), "snare": (37, 38, 39, 40), "tom": (41, 43, 45, 47, 48, 50), "hat": (42, 44), "open": (46,),
    "cymbal": (49, 51, 52, 53, 55, 57, 59), "percussion": tuple(sorted({*range(128)} - {*range(35, 54), 55, 57, 59})),
}  # fmt: skip
#: What a synthesised drum is drawn from: Hz, how far the pitch falls, seconds of tone and noise (to 1/e), share of noise, lowest Hz.
DRUMS = {
    "kick": ((38, 70), (1, 6), (0.04, 0.13), (0.003, 0.01), (0.0, 0.2), (20, 30)),
    "snare": ((150, 280), (0, 0.5), (0.02, 0.06), (0.03, 0.09), (0.5, 0.95), (100, 600)),
    "tom": ((70, 110), (0.2, 1), (0.06, 0.2), (0.004, 0.02), (0.0, 0.3), (30, 60)),
    "hat": ((300, 900), (0, 0), (0.01, 0.03), (0.01, 0.03), (0.3, 1.0), (3000, 7000)),
    "open": ((300, 900), (0, 0), (0.05, 0.15), (0.05, 0.15), (0.3, 1.0), (3000, 7000)),
    "cymbal": ((300, 900), (0, 0), (0.15, 0.4), (0.15, 0.4), (0.4, 1.0), (1500, 5000)),
    "percussion": ((250, 700), (0, 0.3), (0.01, 0.08), (0.01, 0.06), (0.0, 1.0), (150, 800)),
}

Sound = Callable[[int, np.ndarray, np.ndarray], np.ndarray]  # (key, seconds [T], noise [T]) -> samples [T]


def random_voice(stem: str, kind: str, soundfonts: tuple[Path, ...], rate: int, draw: Generator) -> Voice:
    """Draw a voice of a kind in `TIMBRES`.

    "changed": envelopes, filter, tuning and start of a SoundFont's samples; "layered": two voices at once; "other": an instrument that
    is no bass; "mixed": each part of the kit from elsewhere.
    """
    if stem == "drums":
        parts = {group: _drum(group, kind, soundfonts, rate, draw) for group in GROUPS}
        keys = {key: parts[group] for group, members in GROUPS.items() for key in members}
        return lambda key, *rest: keys[key](key, *rest)
    if sound := {"oscillators": _oscillators, "plucked": _plucked}.get(kind):
        return _synthesised(sound(draw), rate, draw, draw.uniform(0.001, 0.015), 0)
    font = soundfonts[draw.integers(len(soundfonts))]
    programs = [p for p in OTHERS if kind == "other" and p in presets(font)["all"]] or presets(font)["bass"]
    voice = font_voice(font, 0, int(draw.choice(programs)), rate, _change(draw, 1500))
    if kind == "layered":
        second = random_voice(stem, str(draw.choice(("changed", "other", "oscillators"))), soundfonts, rate, draw)
        return _layered(voice, second, draw.uniform(0.3, 1.0))
    return voice


def colour(samples: np.ndarray, rate: int, draw: Generator) -> np.ndarray:
    """Return float32 [T] through a drawn equaliser and a short room, as loud as before."""
    x = tilt(samples, rate, draw.uniform(-6, 6))
    for hertz in np.exp(draw.uniform(np.log(60), np.log(0.4 * rate), 3)):
        x = sosfilt(_resonance(hertz, rate, draw.uniform(0.5, 2.5), draw.uniform(-7, 7)), x)
    if draw.random() < 0.5:
        x = reverberate(x, rate, draw.uniform(0.03, 0.25), draw.uniform(0.05, 0.3), draw)
    return as_loud_as(samples, x)


def _change(draw: Generator, latest: int) -> Change:
    """Draw what is added to a SoundFont's generators; the sample begins up to `latest` samples late."""
    ranges = {  # start; filter, its envelope and decay; attack, sustain, decay, release; cents
        0: (0, latest), 8: (-3000, 500), 11: (-1500, 2500), 28: (-1500, 1500), 34: (0, 4000), 37: (0, 600), 36: (-2400, 1200),
        38: (-2000, 2500), 52: (-60, 60),
    }  # fmt: skip
    drawn = {g: int(draw.integers(low, high + 1)) for g, (low, high) in ranges.items()}
    return tuple((g, amount) for g, amount in drawn.items() if draw.random() < 0.7)


def _layered(first: Voice, second: Voice, share: float) -> Voice:
    """Return both at once, the second at a share of the first's level."""

    def layered(*strike) -> Tone | None:
        one, two = first(*strike), second(*strike)
        if one is None or two is None or not one.samples.any():
            return one or two
        return one._replace(samples=overlay([one.samples, share * as_loud_as(one.samples, two.samples)]))

    return layered


def _drum(group: str, kind: str, soundfonts: tuple[Path, ...], rate: int, draw: Generator) -> Voice:
    """Draw the voice of a group of keys, up to 4 dB softer or louder than it was."""
    fonts = [soundfonts[i] for i in draw.integers(len(soundfonts), size=2)]
    kits = ((font, DRUM_BANK, int(draw.choice(presets(font)["drums"])), rate) for font in fonts)
    one, two = (font_voice(*kit, _change(draw, 200), draw.uniform(-4, 4)) for kit in kits)
    ways: dict[str, Voice] = {"changed": one, "layered": _layered(one, two, draw.uniform(0.3, 1))}
    ways["synthesised"] = _synthesised(_struck(group, draw), rate, draw, 0.0, int(group in ("hat", "open")))
    voice, gain = ways[str(draw.choice(list(ways))) if kind == "mixed" else kind], 10 ** (draw.uniform(-4, 4) / 20)

    def balanced(*strike) -> Tone | None:
        tone = voice(*strike)
        return tone and tone._replace(samples=tone.samples * np.float32(gain))

    return balanced


def _synthesised(sound: Sound, rate: int, draw: Generator, attack: float, exclusive: int) -> Voice:
    """Make a voice of a sound; every key has noise of its own. `attack` in seconds."""
    seed, release = int(draw.integers(2**31)), draw.uniform(0.05, 0.5)

    def voice(key: int, velocity: int, seconds: float, bends: Bends) -> Tone:
        times = np.arange(round(seconds * rate)) / rate
        samples = sound(key, times, np.random.default_rng((seed, key)).standard_normal(len(times)))
        if bends:  # played as a tape that runs faster and slower
            speed = 2 ** (np.interp(times, *np.transpose(bends)) / 12)
            samples = np.interp(np.cumsum(speed) - speed[0], np.arange(len(times)), samples, right=0.0)
        samples = samples * np.minimum(1, (times + 1e-4) / (attack + 1e-4)) * np.clip((seconds - times) / 0.05, 0, 1)
        return Tone(samples.astype(np.float32), release, exclusive)

    return voice


def _oscillators(draw: Generator) -> Sound:
    """Two detuned oscillators of one random spectrum, through a resonant low-pass that closes."""
    order, odd = np.arange(1, 200), draw.uniform(0, 1)  # 1: a square, 0: a saw, before the spectrum is roughened
    rough = draw.uniform(draw.uniform(0.05, 1.0), 1.0, len(order))
    spectrum = np.where(order % 2, 1.0, 1 - odd) * rough / order ** draw.uniform(0.8, 2.0)
    ratio, share = draw.uniform(0.998, 1.002) * draw.choice((0.5, 1.0, 1.0, 2.0)), draw.uniform(0, 0.8)
    settled, opened, falling = np.exp(draw.uniform(np.log(2), np.log(15))), draw.uniform(1, 8), draw.uniform(0.04, 0.6)
    quality, lasting = draw.uniform(0.6, 3.0), draw.uniform(0.6, 8.0)

    def wave(hertz: float, times: np.ndarray) -> np.ndarray:
        kept = spectrum[: max(1, int(10000 / hertz))]
        cycle = np.fft.irfft(np.concatenate([[0], kept * np.exp(2j * np.arange(len(kept)) ** 2)]), 1024) * 512
        return np.interp(hertz * times % 1, np.arange(1025) / 1024, np.append(cycle, cycle[0]))

    def sound(key: int, t: np.ndarray, _: np.ndarray) -> np.ndarray:
        hertz, rate, closing = 440 * 2 ** ((key - 69) / 12), 1 / t[1], np.exp(-t / falling)
        x = wave(hertz, t) + share * wave(hertz * ratio, t)
        low, high = (sosfilt(_resonance(hertz * settled * by, rate, quality), x) for by in (1.0, opened))
        return 0.2 * (low + (high - low) * closing) * np.exp(-t / lasting)

    return sound


def _plucked(draw: Generator) -> Sound:
    """A string plucked somewhere by finger or plectrum. Source: Karplus & Strong 1983, "Digital synthesis of plucked-string ..." (CMJ 7:2)."""
    place, dull = draw.uniform(0.05, 0.45), np.exp(draw.uniform(np.log(2), np.log(12)))
    half_life = draw.uniform(0.2, 2.0)

    def sound(key: int, t: np.ndarray, noise: np.ndarray) -> np.ndarray:
        hertz, rate = 440 * 2 ** ((key - 69) / 12), 1 / t[1]
        length, part = divmod(rate / hertz - 1, 1)  # the loop's own low-pass delays by a sample
        burst = np.where(np.arange(len(t)) < length, noise, 0.0)
        cutoff = min(dull * hertz, 0.4 * rate)
        pluck = two_poles(two_poles(burst - np.roll(burst, max(1, int(place * length))), rate, cutoff), rate, cutoff)
        loop = 0.5 ** (1 / (half_life * hertz)) * np.convolve([1 - part, part], [0.25, 0.5, 0.25])
        x = lfilter([1.0], np.concatenate([[1.0], np.zeros(int(length) - 1), -loop]), pluck)
        return 0.3 * x / max(float(np.abs(x).max()), 1e-9)

    return sound


def _struck(group: str, draw: Generator) -> Sound:
    """A tone or a cluster of tones whose pitch falls, and noise: any drum or cymbal; see `DRUMS`."""
    hertz, above, tone, hiss, share, lowest = (draw.uniform(*bounds) for bounds in DRUMS[group])
    metal = group in ("hat", "open", "cymbal")
    ratios = draw.uniform(1, 3, 6) if metal else np.array([1.0, draw.uniform(1.4, 1.9)])
    falling = draw.uniform(0.008, 0.06)
    weights, drive = np.array([1.0] * 6 if metal else [1.0, group == "snare"]), 8.0 if metal else draw.uniform(0.5, 4)

    def sound(key: int, t: np.ndarray, noise: np.ndarray) -> np.ndarray:
        higher = 2 ** ((key - 42) / {"tom": 12, "percussion": 18}.get(group, 60))
        phase = np.outer(ratios, hertz * higher * (t + above * falling * (1 - np.exp(-t / falling))))
        body = weights @ np.tanh(drive * np.sin(2 * np.pi * phase)) / weights.sum() * np.exp(-t / tone)
        mixed = (1 - share) * 0.7 * body + share * 0.4 * noise * np.exp(-t / hiss)
        return two_poles(mixed, 1 / t[1], min(lowest, 0.3 / t[1]), "highpass")

    return sound


def _resonance(hertz: float, rate: float, quality: float, decibels: float | None = None) -> np.ndarray:
    """Return a second-order section: a bell of so many dB, or a resonant low-pass. Source: Bristow-Johnson's audio EQ cookbook."""
    w = 2 * np.pi * min(hertz, 0.45 * rate) / rate
    alpha, cos, gain = np.sin(w) / (2 * quality), np.cos(w), 10 ** ((decibels or 0.0) / 40)
    b = [(1 - cos) / 2, 1 - cos, (1 - cos) / 2] if decibels is None else [1 + alpha * gain, -2 * cos, 1 - alpha * gain]
    a = [1 + alpha / gain, -2 * cos, 1 - alpha / gain]
    return np.array([[*b, *a]]) / a[0]
