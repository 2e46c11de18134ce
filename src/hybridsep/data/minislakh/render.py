"""MiniSlakh: composed songs, played through pretty_midi's TimGM6mb.sf2 and written in Slakh2100's layout."""

import uuid
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import symusic
from scipy.signal import lfilter, oaconvolve
from symusic.core import ScoreTick

from hybridsep.core.errors import HybridsepError
from hybridsep.data import soundfont as sampler
from hybridsep.data.effects import saturate, tilt, two_poles
from hybridsep.data.slakh import split_by_index
from hybridsep.data.soundfont import DRUM_BANK, LONGEST_NOTE, Bends, Strike, Tone, hold
from hybridsep.data.voices import GROUPS
from hybridsep.data.writing import PEAK, claim_folder, in_processes, write_track

from . import styles as gm
from .composer import COMPOSER_VERSION, LOUDEST_DBFS, Part, Song, Sound, compose_song

TICKS_PER_QUARTER = 480
LENGTHS = (0.6, 1.2, 2.4, LONGEST_NOTE)  # seconds that tones come in
BEND_SEMITONES = 12  # the bend range declared in the MIDI files

#: What a collection holds if nothing else is asked for; a piano can come third.
PARTS = ("bass", "drums")
#: Slakh's classes of the parts, and the names of their programs.
CLASSES: dict[str, tuple[str, dict[int, str]]] = {
    "bass": ("Bass", gm.BASSES), "drums": ("Drums", {}), "piano": ("Piano", gm.PIANOS),
}  # fmt: skip
# What is tuned and balanced together, by percussion key.
_PLURALS = {"tom": "toms", "hat": "hats", "open": "hats", "cymbal": "cymbals"}
_GROUP_OF = {key: _PLURALS.get(group, group) for group, keys in GROUPS.items() for key in keys}


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
    """Compose and render a collection in `out`, which is returned; what an earlier run has finished is kept.

    Track i is the same, byte for byte, whatever `tracks` and `workers` are, and a stem whatever other `parts` ("bass", "drums",
    "piano") are beside it. Of every ten tracks seven are for training, one for validation, two for testing. HybridsepError:
    `out` holds a collection made with other settings, or other songs; or a senseless setting.
    """
    if tracks < 1 or seconds < 1 or seed < 0 or sample_rate < 8000:
        least = "tracks >= 1, seconds >= 1, seed >= 0 and sample_rate >= 8000"
        raise HybridsepError(f"MiniSlakh takes {least}, got {tracks}, {seconds}, {seed} and {sample_rate}")
    out = Path(out)
    settings = {"composer": COMPOSER_VERSION, "seed": seed, "seconds": float(seconds), "sample_rate": sample_rate}
    claim_folder(out, "minislakh.json", settings if parts == PARTS else {**settings, "parts": list(parts)})
    names = ["metadata.yaml", "mix.flac", "all_src.mid"]
    names += [name for i in range(len(parts)) for name in (f"stems/S{i:02d}.flac", f"MIDI/S{i:02d}.mid")]
    todo = [i for i in range(tracks) if not all((track_folder(out, i) / name).is_file() for name in names)]
    jobs = [partial(_write_track, out, seed, seconds, sample_rate, parts, index) for index in todo]
    for _ in in_processes(jobs, "MiniSlakh", workers, 8, progress):
        pass
    return out


def track_folder(out: Path, index: int) -> Path:
    """Return the folder of song `index` >= 0; its split depends on the index alone."""
    return Path(out) / split_by_index(index) / f"Track{index + 1:05d}"


def render_song(
    song: Song, sample_rate: int, parts: Iterable[str] = PARTS, soundfont: Path | None = None
) -> dict[str, np.ndarray]:
    """Play the named parts, each float32 mono [samples] at `sample_rate` Hz, at its level and within +-0.95."""
    # Bass and drums share one stream of noise, as they did before there was a piano.
    noises = [np.random.default_rng(np.random.SeedSequence(song.seed, spawn_key=(song.index, key))) for key in (1, 3)]
    stems = {}
    for name in parts:
        if name not in song.parts:
            raise HybridsepError(f"MiniSlakh has no part '{name}': choose from {', '.join(song.parts)}")
        samples = _play_part(name, song.parts[name], song.duration, sample_rate, soundfont)
        stems[name] = _finish(samples, song.parts[name].sound, sample_rate, noises[name not in PARTS])
    return stems


def song_to_score(song: Song, parts: Iterable[str]) -> ScoreTick:
    """Write the named parts of a song as MIDI."""
    score: Any = symusic.Score(TICKS_PER_QUARTER)  # typed by symusic as of any unit of time; so are its parts
    score.tempos.append(symusic.Tempo(0, song.tempo_bpm))
    beats, unit = map(int, song.meter.split("/"))
    score.time_signatures.append(symusic.TimeSignature(0, beats, unit))
    per_second = TICKS_PER_QUARTER * song.tempo_bpm / 60
    for name in parts:
        track: Any = symusic.Track(name, song.parts[name].program, name == "drums")
        for note in song.parts[name].notes:
            start, length = round(note.start * per_second), max(1, round(note.duration * per_second))
            track.notes.append(symusic.Note(start, length, note.pitch, note.velocity))
            for place in range(6 if note.slide else 0):
                bend = round(8191 * note.slide * (1 - place / 5) / BEND_SEMITONES)
                at = start + round(place / 5 * note.slide_seconds * per_second)
                track.pitch_bends.append(symusic.PitchBend(at, bend))
        if name != "drums":  # registered parameter 0: the range of the bends
            for number, value in ((101, 0), (100, 0), (6, BEND_SEMITONES)):
                track.controls.append(symusic.ControlChange(0, number, value))
        score.tracks.append(track)
    return score


def _write_track(out: Path, seed: int, seconds: float, sample_rate: int, parts: tuple[str, ...], index: int) -> None:
    song = compose_song(seed, index, seconds)
    stems = render_song(song, sample_rate, parts)
    scores = {f"MIDI/S{i:02d}": song_to_score(song, (part,)) for i, part in enumerate(parts)}
    scores["all_src"] = song_to_score(song, parts)
    write_track(track_folder(out, index), list(stems.values()), sample_rate, scores, partial(_describe, song, stems))


def _describe(song: Song, stems: dict[str, np.ndarray], mix_gain: float) -> dict:
    """Return metadata with Slakh2100's keys and a `minislakh` block of our own."""
    played = {name: song.parts[name] for name in stems}
    entries = {}
    for i, (name, part) in enumerate(played.items()):
        inst_class, names = CLASSES[name]
        power = float(np.mean(stems[name] ** 2, dtype=np.float64))
        entries[f"S{i:02d}"] = {
            "audio_rendered": True, "midi_saved": True, "plugin_name": "TimGM6mb.sf2", "inst_class": inst_class,
            "is_drum": name == "drums", "program_num": part.program, "midi_program_name": names.get(part.program, "Drums"),
            # RMS level in dBFS, which stands in for Slakh's LUFS
            "integrated_loudness": round(10 * float(np.log10(power + 1e-18)), 3),
        }  # fmt: skip
    return {
        "UUID": uuid.uuid5(uuid.NAMESPACE_URL, f"minislakh/{COMPOSER_VERSION}/{song.seed}/{song.index}").hex,
        "normalization_factor": None, "target_peak": round(20 * float(np.log10(PEAK)), 3), "stems": entries,
        "minislakh": {
            "style": song.style, "tempo_bpm": song.tempo_bpm, "key": song.key, "meter": song.meter,
            "kit": gm.KITS[song.parts["drums"].program], "mix_gain": mix_gain, "seed": song.seed, "index": song.index,
            # what the mixing desk was set to, relative to the loudest setting there is
            "gain_db": {name: round(part.sound.level_dbfs - LOUDEST_DBFS, 2) for name, part in played.items()},
        },
    }  # fmt: skip


def _play_part(name: str, part: Part, seconds: float, rate: int, soundfont: Path | None) -> np.ndarray:
    """Add up the notes of one instrument, mono float32 [seconds * rate]."""
    tuning, balance = dict(part.sound.tuning), dict(part.sound.balance_db)
    drums = name == "drums"

    def group(key: int) -> str:
        return _GROUP_OF[key] if drums else name

    def voice(key: int, velocity: int, held: float, slides: Bends) -> Tone:
        bank, tuned, slide = DRUM_BANK if drums else 0, tuning[group(key)], slides[0] if slides else (0.0, 0.0)
        return hold(Strike(bank, part.program, key, velocity, rate, held, tuned, *slide, soundfont))

    notes = (
        sampler.Note(*note[:4], 10 ** (balance[group(note.pitch)] / 20), (note[4:],) if note.slide else ())
        for note in part.notes
    )
    return sampler.play(notes, voice, seconds, rate, drums, LENGTHS, 1.2, part.sound.damping)


def _finish(samples: np.ndarray, sound: Sound, rate: int, noise: np.random.Generator) -> np.ndarray:
    """Apply room, tone, saturation and level; float32 [samples]."""
    x = two_poles(samples.astype(np.float64), rate, 28, "highpass")
    if sound.room_wet:
        length = round(1.5 * sound.room_seconds * rate)
        tail = noise.standard_normal(length) * np.exp(-6.9 * np.arange(length) / (sound.room_seconds * rate))
        tail = lfilter([0.4], [1, -0.6], tail)  # walls swallow the high end first
        x = x + sound.room_wet * oaconvolve(x, tail / np.sqrt(np.sum(tail**2)))[: len(x)]
    x = tilt(x, rate, sound.brightness)
    if sound.drive:
        x = saturate(x, sound.drive)
    fade = min(len(x), round(0.01 * rate))
    x[-fade:] *= np.linspace(1, 0, fade)
    gain = 10 ** (sound.level_dbfs / 20) / max(float(np.sqrt(np.mean(x**2))), 1e-9)
    return (x * min(gain, PEAK / max(float(np.abs(x).max()), 1e-9))).astype(np.float32)
