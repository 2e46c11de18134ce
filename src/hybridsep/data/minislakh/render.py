"""MiniSlakh: composed songs, played through a General MIDI SoundFont and written in Slakh2100's layout.

The SoundFont is pretty_midi's TimGM6mb.sf2; symusic writes the MIDI files.
"""

import os
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import symusic
from scipy.signal import butter, lfilter, oaconvolve, sosfilt
from symusic.core import ScoreTick
from tqdm import tqdm

from hybridsep.core.errors import HybridsepError
from hybridsep.data.slakh import SPLITS, claim_folder, write_track
from hybridsep.data.soundfont import DRUM_BANK, LONGEST_NOTE, Strike, choke, hold, release

from . import styles as gm
from .composer import COMPOSER_VERSION, LOUDEST_DBFS, Note, Song, Sound, compose_song

TICKS_PER_QUARTER = 480
PEAK = 0.95
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
    claim_folder(out, "minislakh.json", settings if parts == PARTS else {**settings, "parts": list(parts)})
    names = ["metadata.yaml", "mix.flac", "all_src.mid"]
    names += [name for i in range(len(parts)) for name in (f"stems/S{i:02d}.flac", f"MIDI/S{i:02d}.mid")]
    todo = [i for i in range(tracks) if not all((track_folder(out, i) / name).is_file() for name in names)]
    write = partial(_write_track, out, seed, seconds, sample_rate, parts)
    workers = min(workers or os.cpu_count() or 1, len(todo))
    bar = partial(tqdm, total=len(todo), desc="MiniSlakh", unit="song", disable=not progress or not todo)
    if workers <= 1 or len(todo) < 8:  # a process takes longer to start than a few songs to render
        written = map(write, todo)
    else:  # joblib's are fresh processes: a fork would freeze on the caller's threads, spawn would run its script again
        pool = joblib.Parallel(workers, return_as="generator", batch_size=2)
        written = pool(joblib.delayed(write)(index) for index in todo)
    for _ in bar(written):
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


def _write_track(out: Path, seed: int, seconds: float, sample_rate: int, parts: tuple[str, ...], index: int) -> None:
    song = compose_song(seed, index, seconds)
    stems = render_song(song, sample_rate, parts)
    mix = np.add.reduce(list(stems.values()))
    mix_gain = min(1.0, PEAK / max(float(np.abs(mix).max()), 1e-9))
    numbers = [f"S{i:02d}" for i in range(len(parts))]
    audio = {**{f"stems/{n}": x for n, x in zip(numbers, stems.values(), strict=True)}, "mix": mix * mix_gain}
    scores = {f"MIDI/{n}": song_to_score(song, (part,)) for n, part in zip(numbers, parts, strict=True)}
    scores["all_src"] = song_to_score(song, parts)
    write_track(track_folder(out, index), audio, sample_rate, scores, _describe(song, stems, mix_gain))


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


def song_to_score(song: Song, parts: Iterable[str]) -> ScoreTick:
    """Write a song as MIDI.

    Args:
        parts: which of "bass", "drums" and "piano".
    """
    score: Any = symusic.Score(TICKS_PER_QUARTER)  # typed by symusic as of any unit of time; so are its parts
    score.tempos.append(symusic.Tempo(0, song.tempo_bpm))
    beats, unit = map(int, song.meter.split("/"))
    score.time_signatures.append(symusic.TimeSignature(0, beats, unit))
    per_second = TICKS_PER_QUARTER * song.tempo_bpm / 60
    for name in parts:
        part = _part(song, name)
        track: Any = symusic.Track(name, part.program, part.is_drum)
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


# Groups of percussion keys that are tuned and balanced together; the rest is "percussion".
_GROUPS = {"kick": (35, 36), "snare": (37, 38, 39, 40), "toms": gm.TOMS, "hats": (42, 44, 46)}
_GROUPS["cymbals"] = (49, 51, 52, 53, 55, 57, 59)
_GROUP_OF = {pitch: name for name, pitches in _GROUPS.items() for pitch in pitches}


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
        group = _GROUP_OF.get(note.pitch, "percussion") if drums else sound.tuning[0][0]
        start = round(note.start * rate)
        layer = min(120, 16 + 32 * (note.velocity // 32))
        needed = LONGEST_NOTE if drums else next((s for s in _LENGTHS if s > 1.2 * note.duration + 0.3), LONGEST_NOTE)
        voice = (DRUM_BANK if drums else 0, program, note.pitch, layer, tuning[group])
        tone = hold(Strike(*voice, note.slide, note.slide_seconds, needed, rate, soundfont))
        gain = (note.velocity / 127) ** 2 * 10 ** (balance[group] / 20)
        samples = tone.samples * np.float32(gain)
        if not drums:  # a drum rings on, whatever its note-off says
            samples = release(samples, round(note.duration * rate), tone.release, rate)
        if sound.damping:
            samples = samples * np.exp(np.arange(len(samples), dtype=np.float32) / np.float32(-sound.damping * rate))
        if tone.exclusive in ringing:  # a closing hat damps the open one
            began, sounding = ringing[tone.exclusive]
            choke(out, began, sounding, start, rate)
        samples = samples[: max(0, len(out) - start)]
        out[start : start + len(samples)] += samples
        if tone.exclusive:
            ringing[tone.exclusive] = (start, samples)
    return out


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
