"""MiniSlakh: composed songs, played through a General MIDI SoundFont and written in Slakh2100's layout.

The SoundFont is pretty_midi's TimGM6mb.sf2. It is played by the small sampler below, and not by symusic
0.5.9, whose synthesiser ignores velocity, pitch bends and the font's decays (a snare lasts 10 ms in it, a tom
never ends). symusic writes the MIDI files.
"""

import json
import os
import shutil
import struct
import tempfile
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path

import joblib
import numpy as np
import soundfile
import symusic
import yaml
from scipy.signal import butter, lfilter, oaconvolve, resample_poly, sosfilt
from tqdm import tqdm

from hybridsep.core.errors import HybridsepError
from hybridsep.data.slakh import SPLITS

from . import styles as gm
from .composer import COMPOSER_VERSION, LOUDEST_DBFS, Note, Song, Sound, compose_song

TICKS_PER_QUARTER = 480
PEAK = 0.95
LONGEST_NOTE = 4.0  # seconds; no note of a bar at 70 quarters per minute is longer
DRUM_BANK = 128
_LENGTHS = (0.6, 1.2, 2.4, LONGEST_NOTE)  # seconds; tones come in few lengths so that notes can share them
BEND_SEMITONES = 12  # the bend range declared in the MIDI files

#: What a collection holds if nothing else is asked for; a piano can come third.
PARTS = ("bass", "drums")


def make_minislakh(
    out: Path,
    tracks: int = 300,
    seconds: float = 30.0,
    seed: int = 0,
    sample_rate: int = 22050,
    workers: int | None = None,
    progress: bool = True,
    parts: tuple[str, ...] = PARTS,
) -> Path:
    """Compose and render a collection; what an earlier run has finished is kept.

    Track i is the same, byte for byte, whatever `tracks` and `workers` are. Of every ten tracks seven are for
    training, one for validation, two for testing.

    Args:
        out: folder to write to.
        tracks: how many songs.
        seconds: length of each, at least 1.
        seed: collection, >= 0.
        sample_rate: Hz.
        workers: processes; as many as the machine has cores if None.
        progress: show a progress bar.
        parts: which of "bass", "drums" and "piano" are heard, one stem each; a stem is the same whatever is beside it.

    Returns:
        `out`.

    Raises:
        HybridsepError: `out` holds a collection made with other settings, or other songs; or a senseless setting.
    """
    if tracks < 1 or seconds < 1 or seed < 0 or sample_rate < 8000:
        raise HybridsepError(
            "MiniSlakh takes tracks >= 1, seconds >= 1, seed >= 0 and sample_rate >= 8000, "
            f"got {tracks}, {seconds}, {seed} and {sample_rate}"
        )
    out = Path(out)
    settings = {"composer": COMPOSER_VERSION, "seed": seed, "seconds": float(seconds), "sample_rate": sample_rate}
    _claim_folder(out, settings if parts == PARTS else {**settings, "parts": list(parts)})
    names = [
        "metadata.yaml",
        "mix.flac",
        "all_src.mid",
        *(f for i in range(len(parts)) for f in (f"stems/S{i:02d}.flac", f"MIDI/S{i:02d}.mid")),
    ]
    todo = [i for i in range(tracks) if not all((track_folder(out, i) / name).is_file() for name in names)]
    write = partial(_write_track, out, seed, seconds, sample_rate, parts)
    workers = min(workers or os.cpu_count() or 1, len(todo))
    bar = partial(tqdm, total=len(todo), desc="MiniSlakh", unit="song", disable=not progress or not todo)
    if workers <= 1 or len(todo) < 8:  # a process takes longer to start than a few songs to render
        for _ in bar(map(write, todo)):
            pass
        return out
    # joblib starts fresh processes: a fork would freeze on the caller's threads (torch), and spawn would run its script again.
    pool = joblib.Parallel(workers, return_as="generator", batch_size=2)
    for _ in bar(pool(joblib.delayed(write)(index) for index in todo)):
        pass
    return out


def track_folder(out: Path, index: int) -> Path:
    """Return the folder of song `index` >= 0; its split depends on the index alone."""
    split = SPLITS[0] if index % 10 < 7 else SPLITS[1] if index % 10 == 7 else SPLITS[2]
    return Path(out) / split / f"Track{index + 1:05d}"


def render_song(
    song: Song, sample_rate: int, parts: Iterable[str] = PARTS, soundfont: Path | None = None
) -> dict[str, np.ndarray]:
    """Play a song.

    Args:
        sample_rate: Hz.
        parts: which of "bass", "drums" and "piano".
        soundfont: an .sf2 file; see `load_soundfont`.

    Returns:
        {"bass": ..., "drums": ...}, float32 mono [samples], each at its level and within +-0.95.
    """
    # Bass and drums share one stream of noise, as they did before there was a piano.
    noises = [np.random.default_rng(np.random.SeedSequence(song.seed, spawn_key=(song.index, key))) for key in (1, 3)]
    stems = {}
    for name in parts:
        part = _part(song, name)
        samples = _play_notes(part.notes, part.program, part.is_drum, part.sound, song.duration, sample_rate, soundfont)
        stems[name] = _finish(samples, part.sound, sample_rate, noises[name not in PARTS])
    return stems


@dataclass(frozen=True)
class _Part:
    """One player's part of a song, and how metadata.yaml names it."""

    notes: tuple[Note, ...]
    program: int
    sound: Sound
    inst_class: str
    program_name: str

    @property
    def is_drum(self) -> bool:
        return self.inst_class == "Drums"


def _part(song: Song, name: str) -> _Part:
    parts = {
        "bass": _Part(song.bass_notes, song.bass_program, song.bass_sound, "Bass", gm.BASSES[song.bass_program]),
        "drums": _Part(song.drum_notes, song.drum_kit, song.drum_sound, "Drums", "Drums"),
        "piano": _Part(song.piano_notes, song.piano_program, song.piano_sound, "Piano", gm.PIANOS[song.piano_program]),
    }
    if name not in parts:
        raise HybridsepError(f"MiniSlakh has no part '{name}': choose from {', '.join(parts)}")
    return parts[name]


# ---- files ---------------------------------------------------------------------------------------------------------


def _claim_folder(out: Path, settings: dict) -> None:
    """Write the settings beside the songs, or hold them against those that are there."""
    file = out / "minislakh.json"
    if file.is_file():
        try:
            there = json.loads(file.read_text())
        except ValueError:
            raise HybridsepError(f"{file} is damaged: remove it or choose another folder") from None
        if there != settings:
            raise HybridsepError(
                f"{out} holds songs made with {there}, not {settings}: choose another folder or remove it"
            )
        return
    if any((out / split).exists() for split in SPLITS):
        raise HybridsepError(f"{out} holds songs that are not MiniSlakh: choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(settings, indent=2) + "\n")


def _write_track(out: Path, seed: int, seconds: float, sample_rate: int, parts: tuple[str, ...], index: int) -> None:
    """Make one track in a temporary folder and move it into place whole."""
    song = compose_song(seed, index, seconds)
    stems = render_song(song, sample_rate, parts)
    mix = np.add.reduce(list(stems.values()))
    mix_gain = min(1.0, PEAK / max(float(np.abs(mix).max()), 1e-9))
    target = track_folder(out, index)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        (work / "stems").mkdir()
        (work / "MIDI").mkdir()
        for name, samples in (
            *((f"stems/S{i:02d}", samples) for i, samples in enumerate(stems.values())),
            ("mix", mix * mix_gain),
        ):
            soundfile.write(work / f"{name}.flac", samples, sample_rate, subtype="PCM_16", format="FLAC")
        for name, heard in (*((f"MIDI/S{i:02d}", (part,)) for i, part in enumerate(parts)), ("all_src", parts)):
            song_to_score(song, heard).dump_midi(str(work / f"{name}.mid"))
        text = yaml.safe_dump(_describe(song, stems, mix_gain), sort_keys=True, default_flow_style=False)
        (work / "metadata.yaml").write_text(text, encoding="utf-8")
        work.chmod(0o755)  # mkdtemp's folders are closed to other users
        shutil.rmtree(target, ignore_errors=True)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _describe(song: Song, stems: dict[str, np.ndarray], mix_gain: float) -> dict:
    """Return metadata with Slakh2100's keys and a `minislakh` block of our own."""
    powers = {name: float(np.mean(x**2, dtype=np.float64)) for name, x in stems.items()}
    loudness = {name: round(10 * float(np.log10(power + 1e-18)), 3) for name, power in powers.items()}
    common = {"audio_rendered": True, "midi_saved": True, "plugin_name": "TimGM6mb.sf2"}
    players = {name: _part(song, name) for name in stems}
    return {
        "UUID": uuid.uuid5(uuid.NAMESPACE_URL, f"minislakh/{COMPOSER_VERSION}/{song.seed}/{song.index}").hex,
        "audio_dir": "stems",
        "midi_dir": "MIDI",
        "lmd_midi_dir": None,
        "normalized": True,
        "normalization_factor": None,
        "overall_gain": mix_gain,
        "target_peak": round(20 * float(np.log10(PEAK)), 3),
        # integrated_loudness is the root mean square in dBFS, which stands in for Slakh's LUFS
        "stems": {
            f"S{i:02d}": {
                **common, "inst_class": part.inst_class, "is_drum": part.is_drum, "program_num": part.program,
                "midi_program_name": part.program_name, "integrated_loudness": loudness[name],
            }
            for i, (name, part) in enumerate(players.items())
        },
        "minislakh": {
            "style": song.style, "tempo_bpm": song.tempo_bpm, "key": song.key, "meter": song.meter, "kit": gm.KITS[song.drum_kit],
            # what the mixing desk was set to, relative to the loudest setting there is
            "gain_db": {name: round(part.sound.level_dbfs - LOUDEST_DBFS, 2) for name, part in players.items()},
            "mix_gain": mix_gain, "seed": song.seed, "index": song.index,
        },
    }  # fmt: skip


def song_to_score(song: Song, parts: Iterable[str]) -> symusic.Score:
    """Write a song as MIDI.

    Args:
        parts: which of "bass", "drums" and "piano".
    """
    score = symusic.Score(TICKS_PER_QUARTER)
    score.tempos.append(symusic.Tempo(0, song.tempo_bpm))
    score.time_signatures.append(symusic.TimeSignature(0, *map(int, song.meter.split("/"))))
    per_second = TICKS_PER_QUARTER * song.tempo_bpm / 60
    for name in parts:
        part = _part(song, name)
        track = symusic.Track(name, part.program, part.is_drum)
        for note in part.notes:
            start, length = round(note.start * per_second), max(1, round(note.duration * per_second))
            track.notes.append(symusic.Note(start, length, note.pitch, note.velocity))
            if note.slide:
                for place in range(6):
                    bend = round(8191 * note.slide * (1 - place / 5) / BEND_SEMITONES)
                    at = start + round(place / 5 * note.slide_seconds * per_second)
                    track.pitch_bends.append(symusic.PitchBend(at, bend))
        if not part.is_drum:  # registered parameter 0: the range of the bends
            for number, value in ((101, 0), (100, 0), (6, BEND_SEMITONES)):
                track.controls.append(symusic.ControlChange(0, number, value))
        score.tracks.append(track)
    return score


# ---- mixing --------------------------------------------------------------------------------------------------------


def _voice_group(pitch: int) -> str:
    """Return the group of a percussion key that is tuned and balanced together."""
    groups = {"kick": (35, 36), "snare": (37, 38, 39, 40), "toms": gm.TOMS, "hats": (42, 44, 46)}
    cymbals = {"cymbals": (49, 51, 52, 53, 55, 57, 59)}
    return next((name for name, keys in {**groups, **cymbals}.items() if pitch in keys), "percussion")


def _play_notes(
    notes: tuple[Note, ...],
    program: int,
    drums: bool,
    sound: Sound,
    duration: float,
    rate: int,
    soundfont: Path | None = None,
) -> np.ndarray:
    """Add up the notes of one instrument, mono float32 [duration * rate]."""
    out = np.zeros(round(duration * rate), dtype=np.float32)
    tuning, balance = dict(sound.tuning), dict(sound.balance_db)
    ringing: dict[int, tuple[int, np.ndarray]] = {}
    for note in notes:
        group = _voice_group(note.pitch) if drums else sound.tuning[0][0]
        start = round(note.start * rate)
        layer = min(120, 16 + 32 * (note.velocity // 32))
        bank = DRUM_BANK if drums else 0
        needed = LONGEST_NOTE if drums else next((s for s in _LENGTHS if s > 1.2 * note.duration + 0.3), LONGEST_NOTE)
        tone = hold(
            Strike(
                bank, program, note.pitch, layer, tuning[group], note.slide, note.slide_seconds, needed, rate, soundfont
            )
        )
        gain = (note.velocity / 127) ** 2 * 10 ** (balance[group] / 20)
        samples = tone.samples * np.float32(gain)
        if not drums:  # a drum rings on, whatever its note-off says
            samples = _release(samples, round(note.duration * rate), tone.release, rate)
        if sound.damping:
            samples = samples * np.exp(np.arange(len(samples), dtype=np.float32) / np.float32(-sound.damping * rate))
        if tone.exclusive in ringing:  # a closing hat damps the open one
            began, sounding = ringing[tone.exclusive]
            _choke(out, began, sounding, start, rate)
        samples = samples[: max(0, len(out) - start)]
        out[start : start + len(samples)] += samples
        if tone.exclusive:
            ringing[tone.exclusive] = (start, samples)
    return out


def _release(samples: np.ndarray, held: int, seconds: float, rate: int) -> np.ndarray:
    """Fade a note after `held` samples; `seconds` is the time for 100 dB, as in the SoundFont standard."""
    tail = min(len(samples), held + round(max(0.02, seconds) * rate))
    samples = samples[:tail].copy()
    after = np.arange(max(0, tail - held), dtype=np.float32)
    samples[held:] *= np.float32(10.0) ** (after * np.float32(-5.0 / (max(0.02, seconds) * rate)))
    return samples


def _choke(out: np.ndarray, began: int, sounding: np.ndarray, now: int, rate: int) -> None:
    """Take back what would still ring after `now`, with a fade of 15 ms."""
    rest = sounding[now - began :]
    if len(rest):
        fade = np.clip(np.arange(len(rest), dtype=np.float32) / np.float32(0.015 * rate), 0, 1)
        out[now : now + len(rest)] -= rest * fade


def _finish(samples: np.ndarray, sound: Sound, rate: int, noise: np.random.Generator) -> np.ndarray:
    """Apply room, tone, saturation and level; float32 [samples]."""
    x = sosfilt(butter(2, 28, "highpass", fs=rate, output="sos"), samples.astype(np.float64))
    if sound.room_wet:
        length = round(1.5 * sound.room_seconds * rate)
        tail = noise.standard_normal(length) * np.exp(-6.9 * np.arange(length) / (sound.room_seconds * rate))
        tail = lfilter([0.4], [1, -0.6], tail)  # walls swallow the high end first
        x = x + sound.room_wet * oaconvolve(x, tail / np.sqrt(np.sum(tail**2)))[: len(x)]
    pole = np.exp(-2 * np.pi * 800 / rate)
    low = lfilter([1 - pole], [1, -pole], x)
    tilt = 10 ** (sound.brightness / 40)
    x = low / tilt + (x - low) * tilt
    if sound.drive:
        x = np.tanh(x / max(np.abs(x).max(), 1e-9) * 10 ** (sound.drive / 20))
    fade = min(len(x), round(0.01 * rate))
    x[-fade:] *= np.linspace(1, 0, fade)
    gain = 10 ** (sound.level_dbfs / 20) / max(float(np.sqrt(np.mean(x**2))), 1e-9)
    return (x * min(gain, PEAK / max(float(np.abs(x).max()), 1e-9))).astype(np.float32)


# ---- the sampler ---------------------------------------------------------------------------------------------------

# SoundFont 2.04 generators (section 8.1.2) that the sampler obeys, with their defaults.
_DEFAULTS = {
    8: 13500, 11: 0, 27: -12000, 28: -12000, 29: 0, 34: -12000, 35: -12000, 36: -12000, 37: 0, 38: -12000,
    48: 0, 51: 0, 52: 0, 54: 0, 56: 100, 57: 0, 58: -1,
}  # fmt: skip
_KEY_RANGE, _VELOCITY_RANGE, _INSTRUMENT, _SAMPLE = 43, 44, 41, 53


@dataclass(frozen=True)
class Strike:
    """What to play: a key of a preset; `tuning` and `slide` in semitones, `rate` in Hz.

    `seconds` is how long the key is held at most; see `Note` for the slide, `load_soundfont` for `soundfont`.
    """

    bank: int
    program: int
    key: int
    velocity: int
    tuning: float
    slide: float
    slide_seconds: float
    seconds: float
    rate: int
    soundfont: Path | None = None


@dataclass(frozen=True)
class Tone:
    """A held note: mono float32 [samples], its release time (seconds for 100 dB) and exclusive class (0: none)."""

    samples: np.ndarray
    release: float
    exclusive: int


@dataclass(frozen=True)
class SoundFont:
    """The tables of an .sf2 file: waves int16, and for presets and instruments their zones of generators."""

    waves: np.ndarray
    headers: list[tuple]
    presets: dict[tuple[int, int], list[dict]]
    instruments: list[list[dict]]


@lru_cache(maxsize=1)
def load_soundfont(file: Path | None = None) -> SoundFont:
    """Read an .sf2 file; pretty_midi's TimGM6mb.sf2 if None.

    Raises:
        FileNotFoundError: pretty_midi is not installed.
        HybridsepError: no SoundFont.
    """
    chunks = dict(_riff_chunks((file or own_soundfont()).read_bytes()))
    if missing := {"phdr", "pbag", "pgen", "inst", "ibag", "igen", "shdr", "smpl"} - chunks.keys():
        raise HybridsepError(f"{file} is no SoundFont: it lacks {', '.join(sorted(missing))}")
    names = list(struct.iter_unpack("<20sHHHIII", chunks["phdr"]))
    zones = _read_zones(chunks["pbag"], chunks["pgen"], [row[3] for row in names])
    presets = {(row[2], row[1]): zone for row, zone in zip(names, zones, strict=False)}
    starts = [row[1] for row in struct.iter_unpack("<20sH", chunks["inst"])]
    instruments = _read_zones(chunks["ibag"], chunks["igen"], starts)
    headers = list(struct.iter_unpack("<20sIIIIIBbHH", chunks["shdr"]))
    return SoundFont(np.frombuffer(chunks["smpl"], dtype="<i2"), headers, presets, instruments)


def own_soundfont() -> Path:
    """The file that MiniSlakh is played with.

    Raises:
        FileNotFoundError: pretty_midi is not installed.
    """
    # find_spec, as importing pretty_midi takes a second in every worker
    package = find_spec("pretty_midi")
    if package is None or package.origin is None:
        raise FileNotFoundError("MiniSlakh plays the SoundFont that comes with pretty_midi: pip install pretty_midi")
    return Path(package.origin).parent / "TimGM6mb.sf2"


def _riff_chunks(data: bytes, start: int = 12, end: int | None = None) -> Iterable[tuple[str, bytes]]:
    """Yield the named leaf chunks of a RIFF file."""
    end = len(data) if end is None else end
    while start + 8 <= end:
        name, size = struct.unpack_from("<4sI", data, start)
        if name == b"LIST":
            yield from _riff_chunks(data, start + 12, start + 8 + size)
        else:
            yield name.decode("ascii"), data[start + 8 : start + 8 + size]
        start += 8 + size + size % 2


def _read_zones(bags: bytes, generators: bytes, starts: list[int]) -> list[list[dict]]:
    """Return the zones of every preset or instrument as {generator: amount}; a global zone is spread over its kin."""
    bag = [row[0] for row in struct.iter_unpack("<HH", bags)]
    pairs = list(struct.iter_unpack("<Hh", generators))
    everything = []
    for first, last in zip(starts, starts[1:], strict=False):
        zones = [dict(pairs[bag[i] : bag[i + 1]]) for i in range(first, last)]
        shared = zones.pop(0) if zones and not zones[0].keys() & {_INSTRUMENT, _SAMPLE} else {}
        everything.append([{**shared, **zone} for zone in zones])
    return everything


def _covers(zone: dict, key: int, velocity: int) -> bool:
    pairs = ((zone.get(_KEY_RANGE, 0x7F00), key), (zone.get(_VELOCITY_RANGE, 0x7F00), velocity))
    return all(bounds & 0xFF <= value <= (bounds >> 8) & 0xFF for bounds, value in pairs)


@lru_cache(maxsize=384)
def hold(strike: Strike) -> Tone:
    """Play one key and hold it.

    Raises:
        HybridsepError: the SoundFont has no such preset or key.
    """
    font = load_soundfont(strike.soundfont)
    layers = [
        (zone, {g: zone.get(g, default) + preset.get(g, 0) for g, default in _DEFAULTS.items()})
        for preset in font.presets.get((strike.bank, strike.program), [])
        if _covers(preset, strike.key, strike.velocity)
        for zone in font.instruments[preset[_INSTRUMENT]]
        if _covers(zone, strike.key, strike.velocity)
    ]
    if not layers:
        raise HybridsepError(f"the SoundFont has no key {strike.key} in bank {strike.bank}, program {strike.program}")
    waves = [_play_layer(font, zone[_SAMPLE], total, strike) for zone, total in layers]
    samples = np.zeros(max(map(len, waves)), dtype=np.float32)
    for wave in waves:
        samples[: len(wave)] += wave
    if len(samples) >= round(strike.seconds * strike.rate):  # it would sound longer: fade what is left
        end = len(samples) // 10
        samples[-end:] *= np.linspace(1, 0, end, dtype=np.float32)
    return Tone(samples, _seconds(layers[0][1][38]), layers[0][1][57])


def _seconds(timecents: int) -> float:
    return 2.0 ** (timecents / 1200)


def _play_layer(font: SoundFont, sample: int, zone: dict, strike: Strike) -> np.ndarray:
    """Play one sample of the font through pitch, filter and envelope; mono float32 [samples] at the strike's rate."""
    _, begin, end, loop_begin, loop_end, sample_rate, original, correction, _, _ = font.headers[sample]
    rate, slide = strike.rate, strike.slide
    root = zone[58] if zone[58] >= 0 else original
    semitones = (strike.key - root) * zone[56] / 100 + zone[51] + (zone[52] + correction) / 100 + strike.tuning
    # Twice the rate, then halved by a proper low-pass: samples of 44.1 kHz would alias otherwise.
    speed = sample_rate / (2 * rate) * 2.0 ** (semitones / 12)
    loop = loop_end - loop_begin if zone[54] in (1, 3) and loop_end - loop_begin > 8 else 0
    count = min(
        round(2 * rate * min(strike.seconds, _life(zone))), 2**31 if loop or slide else int((end - begin - 1) / speed)
    )
    times = np.arange(count) / (2 * rate)
    if slide:
        bend = slide * np.clip(1 - times / strike.slide_seconds, 0, 1)
        place = np.concatenate([[0.0], np.cumsum(speed * 2.0 ** (bend[:-1] / 12))])
    else:
        place = speed * np.arange(count)
    if loop:
        place = np.where(place < loop_end - begin, place, loop_begin - begin + (place - (loop_begin - begin)) % loop)
    else:
        place = place[place < end - begin - 1]
    whole = place.astype(np.int64)
    part = (place - whole).astype(np.float32)
    wave = font.waves[begin : end + 2].astype(np.float32) / 32768
    x = wave[whole] * (1 - part) + wave[whole + 1] * part
    times = times[: len(x)]
    x = _filter(x, zone, times, strike.velocity, 2 * rate) * _envelope(zone, times)
    return (resample_poly(x, 1, 2) * 10 ** (-0.4 * zone[48] / 200)).astype(np.float32)


def _life(zone: dict) -> float:
    """Return after how many seconds a held note has fallen by 70 dB; infinity if it never does."""
    attack, hold, decay = (_seconds(zone[g]) for g in (34, 35, 36))
    return attack + hold + 0.7 * decay if zone[37] >= 700 else float("inf")


def _envelope(zone: dict, times: np.ndarray) -> np.ndarray:
    """Return the volume envelope up to the sustain level: linear attack, hold, decay linear in dB."""
    attack, hold, decay = (_seconds(zone[g]) for g in (34, 35, 36))
    sustain_db = min(100.0, max(0.0, zone[37] / 10))
    fallen = np.clip((times - attack - hold) * (100 / decay), 0, sustain_db)
    return np.clip(times / attack, 0, 1) * 10 ** (-fallen / 20)


def _filter(x: np.ndarray, zone: dict, times: np.ndarray, velocity: int, rate: int) -> np.ndarray:
    """Low-pass a note as its modulation envelope says, between the filter fully open and settled.

    Softer notes are duller by up to an octave, half of what the standard's default modulator asks for.
    """
    dull = 1200 * (1 - velocity / 127)
    sustain = min(1.0, max(0.0, 1 - zone[29] / 1000))
    opened = _low_pass(x, zone[8] + zone[11] - dull, rate)
    if sustain == 1.0 or zone[11] == 0:
        return opened
    settled = _low_pass(x, zone[8] + zone[11] * sustain - dull, rate)
    falling = max(_seconds(zone[28]) * (1 - sustain), 1e-3)
    share = np.clip(1 - (times - _seconds(zone[27])) / falling, 0, 1)
    return opened * share + settled * (1 - share)


def _low_pass(x: np.ndarray, cents: float, rate: int) -> np.ndarray:
    hertz = 8.176 * 2.0 ** (cents / 1200)
    return x if hertz > 0.45 * rate else sosfilt(_design(round(max(hertz, 40.0), 2), rate), x)


@lru_cache(maxsize=1024)
def _design(hertz: float, rate: int) -> np.ndarray:
    return butter(2, hertz, fs=rate, output="sos")
