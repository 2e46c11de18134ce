"""Plays SoundFont 2 files (Technical Specification 2.04, chapters 7 to 9); symusic's synthesiser ignores velocity, bends and decays."""

import mmap
import struct
from collections.abc import Callable, Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy.signal import resample_poly

from hybridsep.core.errors import HybridsepError
from hybridsep.data.effects import overlay, two_poles

DRUM_BANK = 128
BASSES = range(32, 40)  # General MIDI programs, counted from 0
LONGEST_NOTE = 4.0  # seconds
LENGTHS = (0.6, 1.2, 2.4, 4.8, 9.6)  # seconds

# SoundFont 2.04 generators (section 8.1.2) that the sampler obeys, with their defaults.
_DEFAULTS = {
    0: 0, 2: 0, 3: 0, 4: 0, 45: 0, 50: 0, 8: 13500, 11: 0, 27: -12000, 28: -12000, 29: 0, 34: -12000, 35: -12000, 36: -12000, 37: 0, 38: -12000,
    48: 0, 51: 0, 52: 0, 54: 0, 56: 100, 57: 0, 58: -1,
}  # fmt: skip
_KEY_RANGE, _VELOCITY_RANGE, _INSTRUMENT, _SAMPLE = 43, 44, 41, 53

Bends = tuple[tuple[float, float], ...]  # (second, semitones) of a pitch wheel
Change = tuple[tuple[int, int], ...]  # (number, amount) to be added to a font's generators


class Strike(NamedTuple):
    """What to play: a key of a preset, held for so many seconds at most; `tuning` and `slide` in semitones, `rate` in Hz.

    The pitch begins `slide` semitones off and reaches the key after `slide_seconds`, or follows `bends`. `soundfont`: MiniSlakh's if None.
    """

    bank: int
    program: int
    key: int
    velocity: int
    rate: int
    seconds: float = LONGEST_NOTE
    tuning: float = 0.0
    slide: float = 0.0
    slide_seconds: float = 0.0
    soundfont: Path | None = None
    bends: Bends = ()
    change: Change = ()


class Tone(NamedTuple):
    """A held note: mono float32 [samples], its release time (seconds for 100 dB) and exclusive class (0: none)."""

    samples: np.ndarray
    release: float
    exclusive: int


class SoundFont(NamedTuple):
    """The tables of an .sf2 file: waves int16, and for presets and instruments their zones of generators."""

    waves: np.ndarray
    headers: list[tuple]
    presets: dict[tuple[int, int], list[dict]]
    instruments: list[list[dict]]


@lru_cache(maxsize=8)
def load_soundfont(file: Path | None = None) -> SoundFont:
    """Read an .sf2 file, TimGM6mb.sf2 if None; HybridsepError if it is none. Waves stay on disk until they are played."""
    file = file or own_soundfont()
    with file.open("rb") as opened:
        head = opened.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"sfbk":
            raise HybridsepError(f"{file} is no SoundFont: expected an .sf2 file, which begins with RIFF and sfbk")
        data = memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
    try:
        chunks = dict(_riff_chunks(data, 12, len(data)))
        names = list(struct.iter_unpack("<20sHHHIII", chunks["phdr"]))
        zones = _read_zones(chunks["pbag"], chunks["pgen"], [row[3] for row in names])
        presets = {(row[2], row[1]): zone for row, zone in zip(names, zones, strict=False)}
        starts = [row[1] for row in struct.iter_unpack("<20sH", chunks["inst"])]
        instruments = _read_zones(chunks["ibag"], chunks["igen"], starts)
        headers = list(struct.iter_unpack("<20sIIIIIBbHH", chunks["shdr"]))
        waves = np.frombuffer(chunks["smpl"], dtype="<i2", count=len(chunks["smpl"]) // 2)
    except KeyError as missing:
        raise HybridsepError(f"{file} is no whole SoundFont: it lacks {missing}") from None
    except (struct.error, IndexError, ValueError) as error:
        raise HybridsepError(f"{file} is no SoundFont that can be played: {error}") from None
    return SoundFont(waves, headers, presets, instruments)


def presets(soundfont: Path) -> dict[str, list[int]]:
    """Return the programs of a SoundFont's basses and drum kits, and "all" of bank 0; HybridsepError if it lacks either."""
    known = load_soundfont(soundfont).presets
    basses, kits = [p for p in BASSES if known.get((0, p))], sorted(p for bank, p in known if bank == DRUM_BANK)
    if not basses or not kits:
        raise HybridsepError(
            f"{soundfont} has no General MIDI basses (bank 0, programs 32 to 39) or no drum kit (bank 128)"
        )
    return {"bass": basses, "drums": kits, "all": sorted(p for bank, p in known if bank == 0)}


def own_soundfont() -> Path:
    """Return TimGM6mb.sf2 of pretty_midi, which MiniSlakh is played with; FileNotFoundError without pretty_midi."""
    package = find_spec("pretty_midi")  # importing it takes a second in every worker
    if package is None or package.origin is None:
        raise FileNotFoundError("MiniSlakh plays the SoundFont that comes with pretty_midi: pip install pretty_midi")
    return Path(package.origin).parent / "TimGM6mb.sf2"


def _riff_chunks(data: memoryview, start: int, end: int) -> Iterable[tuple[str, memoryview]]:
    """Yield the named leaf chunks of a RIFF file."""
    while start + 8 <= end:
        name, size = struct.unpack_from("<4sI", data, start)
        if name == b"LIST":
            yield from _riff_chunks(data, start + 12, start + 8 + size)
        else:
            yield name.decode("latin-1"), data[start + 8 : start + 8 + size]
        start += 8 + size + size % 2


def _read_zones(bags: memoryview, generators: memoryview, starts: list[int]) -> list[list[dict]]:
    """Return the zones of every preset or instrument as {generator: amount}; a global zone is spread over its kin."""
    bag = [row[0] for row in struct.iter_unpack("<HH", bags)]
    pairs = list(struct.iter_unpack("<Hh", generators))
    everything = []
    for first, last in zip(starts, starts[1:], strict=False):
        zones = [dict(pairs[bag[i] : bag[i + 1]]) for i in range(first, last)]
        shared = zones.pop(0) if zones and not zones[0].keys() & {_INSTRUMENT, _SAMPLE} else {}
        everything.append([{**shared, **zone} for zone in zones])
    return everything


def _covers(zone: dict, strike: Strike) -> bool:
    pairs = ((zone.get(_KEY_RANGE, 0x7F00), strike.key), (zone.get(_VELOCITY_RANGE, 0x7F00), strike.velocity))
    return all(bounds & 0xFF <= value <= (bounds >> 8) & 0xFF for bounds, value in pairs)


@lru_cache(maxsize=384)
def hold(strike: Strike) -> Tone:
    """Play one key and hold it; HybridsepError if the SoundFont has no such preset or key."""
    font = load_soundfont(strike.soundfont)
    change = dict(strike.change)
    layers = [
        (zone, {g: zone.get(g, default) + preset.get(g, 0) + change.get(g, 0) for g, default in _DEFAULTS.items()})
        for preset in font.presets.get((strike.bank, strike.program), [])
        if _INSTRUMENT in preset and _covers(preset, strike)
        for zone in font.instruments[preset[_INSTRUMENT]]
        if _SAMPLE in zone and _covers(zone, strike)
    ]
    if not layers:
        raise HybridsepError(f"the SoundFont has no key {strike.key} in bank {strike.bank}, program {strike.program}")
    samples = overlay([_play_layer(font, zone[_SAMPLE], total, strike) for zone, total in layers])
    if len(samples) >= round(strike.seconds * strike.rate):  # it would sound longer
        end = len(samples) // 10
        samples[-end:] *= np.linspace(1, 0, end, dtype=np.float32)
    return Tone(samples, _seconds(layers[0][1][38]), layers[0][1][57])


def _seconds(timecents: int) -> float:
    return 2.0 ** (timecents / 1200)


def _play_layer(font: SoundFont, sample: int, zone: dict, strike: Strike) -> np.ndarray:
    """Play one sample of the font through pitch, filter and envelope; mono float32 [samples] at the strike's rate."""
    _, begin, end, loop_begin, loop_end, sample_rate, original, correction, _, _ = font.headers[sample]
    rate, slide = strike.rate, strike.slide
    end = min(end, len(font.waves) - 2)
    if strike.soundfont is not None:  # MiniSlakh's songs were first made without these, and stay as they are
        loop_begin += zone[2] + 32768 * zone[45]
        loop_end = min(loop_end + zone[3] + 32768 * zone[50], end)
    root = zone[58] if zone[58] >= 0 else original
    semitones = (strike.key - root) * zone[56] / 100 + zone[51] + (zone[52] + correction) / 100 + strike.tuning
    # Twice the rate, then halved by a proper low-pass: samples of 44.1 kHz would alias otherwise.
    speed = sample_rate / (2 * rate) * 2.0 ** (semitones / 12)
    looped = zone[54] in (1, 3) and loop_end - loop_begin > 8 and begin <= loop_begin and loop_end <= end
    begin += max(0, min(zone[0] + 32768 * zone[4], loop_begin - begin if looped else (end - begin) // 2))
    attack, steady, decay = (_seconds(zone[g]) for g in (34, 35, 36))
    life = attack + steady + 0.7 * decay if zone[37] >= 700 else np.inf  # seconds until it has fallen by 70 dB
    count = round(2 * rate * min(strike.seconds, life))
    if not (looped or slide or strike.bends):
        count = min(count, int((end - begin - 1) / speed))
    if count < 2 or end - begin < 2:
        return np.zeros(1, dtype=np.float32)
    times = np.arange(count) / (2 * rate)
    place = speed * np.arange(count)
    if slide or strike.bends:
        wheel = np.interp(times, *np.transpose(strike.bends or [(0, 0)]))
        bend = slide * np.clip(1 - times / strike.slide_seconds, 0, 1) if slide else wheel
        place = np.concatenate([[0.0], np.cumsum(speed * 2.0 ** (bend[:-1] / 12))])
    if looped:
        first = loop_begin - begin
        place = np.where(place < loop_end - begin, place, first + (place - first) % (loop_end - loop_begin))
    else:
        place = place[place < end - begin - 1]
    whole = place.astype(np.int64)
    part = (place - whole).astype(np.float32)
    wave = font.waves[begin : end + 2].astype(np.float32) / 32768
    x = wave[whole] * (1 - part) + wave[whole + 1] * part
    times = times[: len(x)]
    # Linear attack, then held, then a decay linear in dB to the sustain level.
    fallen = np.clip((times - attack - steady) * (100 / decay), 0, min(100.0, max(0.0, zone[37] / 10)))
    envelope = np.clip(times / attack, 0, 1) * 10 ** (-fallen / 20)
    x = _filter(x, zone, times, strike.velocity, 2 * rate) * envelope
    return (resample_poly(x, 1, 2) * 10 ** (-0.4 * zone[48] / 200)).astype(np.float32)


def _filter(x: np.ndarray, zone: dict, times: np.ndarray, velocity: int, rate: int) -> np.ndarray:
    """Low-pass a note as its modulation envelope says, between the filter fully open and settled."""
    # Softer notes are duller by up to an octave, half of what the standard's default modulator asks for.
    dull = 1200 * (1 - velocity / 127)
    sustain = min(1.0, max(0.0, 1 - zone[29] / 1000))

    def closed(cents: float) -> np.ndarray:
        hertz = 8.176 * 2.0 ** (cents / 1200)
        return x if hertz > 0.45 * rate else two_poles(x, rate, round(max(hertz, 40.0), 2))

    opened = closed(zone[8] + zone[11] - dull)
    if sustain == 1.0 or zone[11] == 0:
        return opened
    falling = max(_seconds(zone[28]) * (1 - sustain), 1e-3)
    share = np.clip(1 - (times - _seconds(zone[27])) / falling, 0, 1)
    return opened * share + closed(zone[8] + zone[11] * sustain - dull) * (1 - share)


class Note(NamedTuple):
    """One note: seconds, General MIDI key, velocity 1 to 127, gain of the volume controls, (second, semitones) of the pitch wheel."""

    start: float
    duration: float
    key: int
    velocity: int
    gain: float = 1.0
    bends: Bends = ()


#: Plays (key, velocity, seconds held at most, bends); None where there is no such key.
Voice = Callable[[int, int, float, Bends], Tone | None]


def font_voice(soundfont: Path, bank: int, program: int, rate: int, change: Change = (), tuning: float = 0.0) -> Voice:
    """Return the voice of a preset at `rate` Hz; `change` and `tuning` as in Strike."""

    def voice(key: int, velocity: int, seconds: float, bends: Bends) -> Tone | None:
        strike = Strike(bank, program, key, velocity, rate, seconds, tuning, 0.0, 0.0, soundfont, bends, change)
        try:
            return hold.__wrapped__(strike)
        except HybridsepError:
            return None

    return voice


def play(
    notes: Iterable[Note],
    voice: Voice,
    seconds: float,
    rate: int,
    drums: bool,
    lengths: tuple[float, ...] = LENGTHS,
    stretch: float = 1.0,
    damping: float = 0.0,
) -> np.ndarray:
    """Add up the notes of one part, mono float32 [seconds * rate]; drums ring on, and a closing hat damps the open one.

    Tones come in so many `lengths` in seconds, so that notes can share them, and are at least `stretch` times as long as their notes;
    `damping` is the seconds of an extra exponential decay on every note, 0 for none.
    """
    out = np.zeros(round(seconds * rate), dtype=np.float32)
    ringing: dict[int, tuple[int, np.ndarray]] = {}
    voice = lru_cache(maxsize=None)(voice)
    for note in notes:
        start, layer = round(note.start * rate), min(120, 16 + 32 * (note.velocity // 32))
        longer = (s for s in lengths if s > stretch * note.duration + 0.3)
        tone = voice(note.key, layer, LONGEST_NOTE if drums else next(longer, lengths[-1]), note.bends)
        if tone is None or start >= len(out):
            continue
        samples = tone.samples * np.float32(note.gain * (note.velocity / 127) ** 2)
        if not drums:  # it falls by 100 dB in the release time, as in the SoundFont standard
            held, fading = round(note.duration * rate), max(0.02, tone.release) * rate
            samples = samples[: held + round(fading)]
            after = np.arange(max(0, len(samples) - held), dtype=np.float32)
            samples[held:] *= np.float32(10.0) ** (after * np.float32(-5.0 / fading))
        if damping:
            samples = samples * np.exp(np.arange(len(samples), dtype=np.float32) / np.float32(-damping * rate))
        if tone.exclusive in ringing:  # what would still sound of the earlier is taken back, with a fade of 15 ms
            began, sounding = ringing[tone.exclusive]
            rest = sounding[start - began :]
            fade = np.clip(np.arange(len(rest), dtype=np.float32) / np.float32(0.015 * rate), 0, 1)
            out[start : start + len(rest)] -= rest * fade
        samples = samples[: len(out) - start]
        out[start : start + len(samples)] += samples
        if tone.exclusive:
            ringing[tone.exclusive] = (start, samples)
    return out
