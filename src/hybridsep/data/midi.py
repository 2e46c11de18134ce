"""Songs from anybody's General MIDI files, played by any SoundFonts and written in Slakh2100's layout.

Bass is what programs 32 to 39 play, counted from 0; drums are MIDI channel 10. A song is heard in several variants, each an
excerpt in which both play: variant 0 with its own program, kit, key and tempo, the others with drawn ones. Effects and changed
timbres are for training only. Source: Manilow et al. 2019, "Cutting music source separation some Slakh" (WASPAA), section 2.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import symusic
from symusic.core import ScoreSecond, TrackSecond

from hybridsep.core.errors import HybridsepError
from hybridsep.data.effects import EFFECTS, apply_effect, draws
from hybridsep.data.slakh import SPLITS
from hybridsep.data.soundfont import BASSES, DRUM_BANK, Bends, Note, font_voice, play, presets
from hybridsep.data.voices import TIMBRES, colour, random_voice
from hybridsep.data.writing import PEAK, claim_folder, in_processes, write_table, write_track

#: Raised whenever the same settings would give other songs.
RECIPE_VERSION = 1

STEMS = {"bass": "Bass", "drums": "Drums"}  # and their classes in Slakh
SHARES = (60, 75)  # percent of songs up to which a song is for training, for validation; the rest is for testing
LARGEST_FILE, MOST_NOTES, LONGEST_SONG = 4_000_000, 100_000, 3600.0  # bytes, notes, seconds
SHORTEST = 6.0  # seconds of a song
TOGETHER = 0.5  # share of an excerpt's seconds in which both must be heard
LEAD_IN = 1.0  # seconds played before an excerpt and cut off, so that it begins with what already sounds
LEVEL_DBFS, LEVEL_SPREAD = -22.0, 4.0
EFFECT_SHARE = 0.5


@dataclass(frozen=True)
class Song:
    """The bass and drums of a MIDI file; programs counted from 0, notes in order of time."""

    name: str
    notes: dict[str, list[Note]]
    programs: dict[str, int]

    @property
    def seconds(self) -> float:
        """When the last note ends."""
        return max(note.start + note.duration for notes in self.notes.values() for note in notes)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of what is played when, to find equal songs."""
        heard = {stem: [(round(n.start, 2), n.key) for n in notes] for stem, notes in self.notes.items()}
        return hashlib.sha256(repr(heard).encode()).hexdigest()


@dataclass(frozen=True)
class Recipe:
    """What songs are made with; `seconds` of an excerpt, `variety` the share of training stems with a random timbre."""

    soundfonts: tuple[Path, ...]
    seconds: float = 30.0
    variants: int = 4
    seed: int = 0
    sample_rate: int = 22050
    variety: float = 0.0

    def settings(self) -> dict:
        """Return the recipe as plain values; SoundFonts by their content."""
        sums = {font.name: hashlib.sha256(font.read_bytes()).hexdigest() for font in self.soundfonts}
        return {**asdict(self), "soundfonts": sums, "version": RECIPE_VERSION}


@dataclass(frozen=True)
class Variant:
    """One way to hear a song; with the song and the SoundFonts it says every sample.

    `start` is in seconds of the song at its own tempo, `seconds` as heard; `tempo` a factor, `transposition` of the bass in semitones.
    For each stem: the SoundFont's file name, the program, the RMS level in dBFS, and a name from `EFFECTS` and from `TIMBRES` or "".
    """

    song: str
    number: int
    seed: int
    start: float
    seconds: float
    tempo: float
    transposition: int
    soundfonts: dict[str, str]
    programs: dict[str, int]
    levels: dict[str, float]
    effects: dict[str, str]
    timbres: dict[str, str]


class Made(NamedTuple):
    """What `make_songs` found and made; `tracks` by split, `skipped` rows of (file, reason)."""

    songs: int
    tracks: dict[str, int]
    skipped: list[tuple[str, str]]

    def summary(self, out: Path) -> str:
        """Say in one line what was made."""
        counts = ", ".join(f"{self.tracks.get(split, 0)} {split}" for split in SPLITS)
        skipped = f"; {len(self.skipped)} files skipped: see {out / 'skipped.csv'}" if self.skipped else ""
        return f"{self.songs} songs, {sum(self.tracks.values())} tracks in {out} ({counts}){skipped}"


def make_songs(
    out: Path, midi: Path, recipe: Recipe, workers: int | None = None, skipped: Iterable = (), split: str | None = None
) -> Made:
    """Render every MIDI file (.mid, .midi, .kar) below a folder; what an earlier run has finished is kept.

    A track is the same, byte for byte, whatever else is in the folder and however many processes work. Files that are broken,
    empty or absurd, that another equals, or in which bass and drums do not play together, are listed in OUT/skipped.csv, with
    those given as `skipped`: (file, reason). HybridsepError: no MIDI files or none of use, a file that is no SoundFont or lacks
    basses or kits, senseless settings, or `out` holds songs made with other settings.
    """
    _check(recipe)
    if split not in (None, *SPLITS):
        raise HybridsepError(f"unknown split '{split}': use one of {', '.join(SPLITS)}")
    files = {name: file for name, file in _midi_files(midi).items() if split in (None, split_of(name))}
    claim_folder(out, "midi.json", recipe.settings())
    skipped = list(skipped)
    songs: dict[str, str] = {}  # by their notes
    jobs: list[partial] = [partial(_look, file, recipe.seconds) for file in files.values()]
    for name, (fingerprint, reason) in zip(files, in_processes(jobs, "MIDI files", workers, 200), strict=True):
        if not reason and songs.setdefault(fingerprint, name) != name:
            reason = f"the same notes as {songs[fingerprint]}"
        if reason:
            skipped.append((name, reason))
    tracks: Counter[str] = Counter()
    jobs = [partial(_make_tracks, out, name, files[name], recipe) for name in songs.values()]
    for name, refused in zip(songs.values(), in_processes(jobs, "songs", workers, 4), strict=True):
        tracks[split_of(name)] += recipe.variants - len(refused)
        skipped += refused
    write_table(out / "skipped.csv", [("file", "reason"), *sorted(skipped)])
    if not songs:
        raise HybridsepError(f"no MIDI file in {midi} can be used: see {out / 'skipped.csv'}")
    return Made(len(songs), dict(+tracks), skipped)


def split_of(name: str) -> str:
    """Return the split of a song; it depends on its name alone."""
    place = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 100
    return SPLITS[sum(place >= share for share in SHARES)]


def read_song(name: str, content: bytes) -> Song:
    """Read the bass and drums of a MIDI file; HybridsepError, the reason alone, if it is broken, absurd or lacks either."""
    if not content.startswith(b"MThd"):
        raise HybridsepError("not a MIDI file: it does not begin with MThd")
    if len(content) > LARGEST_FILE:
        raise HybridsepError(f"{len(content)} bytes: no song has more than {LARGEST_FILE}")
    try:
        # The parser reads beyond the end of a file that was cut off: let it find zeros there.
        score: Any = symusic.Score.from_midi(content + bytes(1024), sanitize_data=True)
        timed: ScoreSecond = score.to("second")
    except Exception as error:  # whatever the parser makes of rubbish
        raise HybridsepError(f"broken MIDI: {str(error).split('!')[0] or type(error).__name__}") from None
    tracks = {
        "bass": [t for t in timed.tracks if t.notes and not t.is_drum and t.program in BASSES],
        "drums": [t for t in timed.tracks if t.notes and t.is_drum],
    }
    notes = {}
    for stem, found in tracks.items():
        if (count := sum(len(t.notes) for t in found)) > MOST_NOTES:
            raise HybridsepError(f"{count} notes of {stem}: no song has more than {MOST_NOTES}")
        heard = sorted([n for t in found for n in _notes(t)][::-1], key=lambda n: n.gain * n.velocity**2)
        # What two tracks play as one is kept once, the louder.
        notes[stem] = sorted({(round(n.start, 3), n.key): n for n in heard}.values())
    if silent := [stem for stem, found in notes.items() if not found]:
        raise HybridsepError(f"no {' and no '.join(silent)}")
    return Song(name, notes, {s: max(found, key=lambda t: len(t.notes)).program for s, found in tracks.items()})


def _notes(track: TrackSecond) -> Iterator[Note]:
    """Yield a track's notes with the volume and pitch wheel that they sound with."""
    columns = track.notes.numpy()
    starts, lengths = columns["time"].astype(float), columns["duration"].astype(float)
    ends = starts + lengths
    if not np.isfinite(ends).all() or starts.min() < 0 or lengths.min() < 0 or ends.max() > LONGEST_SONG:
        raise HybridsepError(f"times that are negative, not numbers, or above {LONGEST_SONG:.0f} s")
    controls = {n: [(c.time, c.value) for c in track.controls if c.number == n] for n in (6, 7, 11, 101)}
    loud = _held(controls[7], starts, 100) / 100 * _held(controls[11], starts, 127) / 127
    semitones = controls[6][-1][1] if controls[6] and (0 in [value for _, value in controls[101]]) else 2
    wheel = sorted((b.time, b.value * semitones / 8192) for b in track.pitch_bends)
    rows = (starts, ends, columns["pitch"], columns["velocity"], loud)
    for start, end, key, velocity, gain in zip(*(row.tolist() for row in rows), strict=True):
        if gain > 0.1:
            bends = _bends(wheel, start, end) if wheel and not track.is_drum else ()
            yield Note(start, end - start, key, max(1, velocity), gain**2, bends)


def _held(changes: list[tuple[float, int]], times: np.ndarray, at_first: float) -> np.ndarray:
    """Return the value of a control at each of `times`."""
    when, values = np.array(sorted(changes), dtype=float).reshape(-1, 2).T
    return np.concatenate([[at_first], values])[np.searchsorted(when, times, side="right")]


def _bends(wheel: list[tuple[float, float]], start: float, end: float) -> Bends:
    """Return what the pitch wheel does during a note, at most 64 points; nothing if it rests in the middle."""
    before = [bend for time, bend in wheel if time <= start][-1:] or [0.0]
    during = [(float(time - start), float(bend)) for time, bend in wheel if start < time < end]
    points = [(0.0, float(before[0])), *during[:: max(1, len(during) // 63)]]
    return tuple(points) if any(abs(bend) > 0.05 for _, bend in points) else ()


def places(song: Song, seconds: float) -> np.ndarray:
    """Return the seconds at which an excerpt may begin: those from which both are heard for most of the time, or HybridsepError."""
    length = int(song.seconds) + 1
    heard = np.zeros((2, length), dtype=bool)
    for row, stem in enumerate(STEMS):
        for note in song.notes[stem]:
            rest = 1.0 if stem == "drums" else note.duration  # a drum is heard for a second
            heard[row, int(note.start) : int(note.start + rest) + 1] = True
    window = min(length, max(1, round(seconds)))
    shares = np.convolve(heard.all(0), np.ones(window), "valid") / window
    if song.seconds < SHORTEST or shares.max() < TOGETHER:
        raise HybridsepError(f"bass and drums play together for only {shares.max() * window:.0f} of {window} s")
    return np.flatnonzero(shares >= min(0.8, shares.max()))


def _midi_files(folder: Path) -> dict[str, Path]:
    """Return the MIDI files below a folder by their paths from it, without .mid."""
    if not folder.is_dir():
        raise HybridsepError(f"no folder of MIDI files at {folder}")
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".mid", ".midi", ".kar") and p.is_file())
    if not files:
        raise HybridsepError(f"no MIDI files in {folder}: expected names that end in .mid, .midi or .kar")
    return {file.relative_to(folder).as_posix().removesuffix(".mid"): file for file in files}


def _look(file: Path, seconds: float) -> tuple[str, str]:
    """Return the fingerprint of a song, or "" and the reason why it cannot be used."""
    try:
        places(song := read_song("", file.read_bytes()), seconds)
        return song.fingerprint, ""
    except (HybridsepError, OSError) as error:
        return "", str(error)


def draw_variant(song: Song, number: int, recipe: Recipe) -> Variant:
    """Decide how a song is heard; the draws depend on seed, song and number only."""
    draw = draws(recipe.seed, song.name, number)
    training, written = split_of(song.name) == SPLITS[0], number == 0
    tempo = 1.0 if written else round(float(draw.uniform(0.85, 1.15)), 4)
    starts, heard = places(song, recipe.seconds), recipe.seconds * tempo
    # Steps of the golden section spread the excerpts of few variants and of many alike.
    start = float(starts[int((draws(recipe.seed, song.name).random() + number * 0.618034) % 1 * len(starts))])
    start = round(max(0.0, min(start, song.seconds - heard)), 3)
    # Fonts take turns, so that few variants hear them all; bass and drums each from their own.
    turns = {stem: int(draws(recipe.seed, song.name, stem).integers(len(recipe.soundfonts))) for stem in STEMS}
    fonts = {stem: recipe.soundfonts[(turn + number) % len(recipe.soundfonts)] for stem, turn in turns.items()}
    choices = {stem: presets(font)[stem] for stem, font in fonts.items()}
    drawn = {stem: int(draw.choice(programs)) for stem, programs in choices.items()}
    own = {stem: p if p in choices[stem] else choices[stem][0] for stem, p in song.programs.items()}
    transposition = 0 if written else int(draw.integers(-4, 5))
    lowest = np.percentile([n.key for n in song.notes["bass"]], 10)

    def sometimes(names: Collection[str], share: float) -> str:
        chance, name = draw.random(), list(names)[draw.integers(len(names))]
        return name if training and not written and chance < share else ""

    return Variant(
        song.name, number, recipe.seed, start, round(min(recipe.seconds, (song.seconds - start) / tempo), 3), tempo,
        abs(transposition) if lowest + transposition < 24 else transposition,
        {stem: font.name for stem, font in fonts.items()}, own if written else drawn,
        {stem: round(float(LEVEL_DBFS + draw.uniform(-LEVEL_SPREAD, LEVEL_SPREAD)), 2) for stem in STEMS},
        {stem: sometimes(EFFECTS, EFFECT_SHARE) for stem in STEMS},
        {stem: sometimes(TIMBRES[stem], recipe.variety) for stem in STEMS},
    )  # fmt: skip


def render_variant(song: Song, variant: Variant, fonts: tuple[Path, ...], sample_rate: int) -> dict[str, np.ndarray]:
    """Return stems, float32 [samples] at their levels and within +-0.95; HybridsepError if a stem is silent."""
    files = {font.name: font for font in fonts}
    stems = {}
    for stem in STEMS:
        draw = draws(variant.seed, variant.song, variant.number, stem)
        bank = DRUM_BANK if stem == "drums" else 0
        voice = font_voice(files[variant.soundfonts[stem]], bank, variant.programs[stem], sample_rate)
        if variant.timbres[stem]:
            voice = random_voice(stem, variant.timbres[stem], fonts, sample_rate, draw)
        notes, seconds = _heard_notes(song, variant, stem), variant.seconds + LEAD_IN
        samples = play(notes, voice, seconds, sample_rate, stem == "drums")[round(LEAD_IN * sample_rate) :]
        if variant.timbres[stem]:
            samples = colour(samples, sample_rate, draw)
        if variant.effects[stem]:
            samples = apply_effect(variant.effects[stem], samples, sample_rate, draw)
        loudness = float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) if len(samples) else 0.0
        if not 1e-5 < loudness < np.inf:
            raise HybridsepError(f"the {stem} are silent: the SoundFont has none of their keys")
        fade = min(len(samples), 256)
        samples[-fade:] *= np.linspace(1, 0, fade, dtype=np.float32)
        gain = min(10 ** (variant.levels[stem] / 20) / loudness, PEAK / float(np.abs(samples).max()))
        stems[stem] = samples * np.float32(gain)
    return stems


def _heard_notes(song: Song, variant: Variant, stem: str) -> list[Note]:
    """Return the notes of a stem that a variant's excerpt plays, in seconds from LEAD_IN before it."""
    shift = variant.transposition if stem == "bass" else 0
    heard = []
    for start, duration, key, velocity, gain, bends in song.notes[stem]:
        start = (start - variant.start) / variant.tempo + LEAD_IN
        if 0 <= start < variant.seconds + LEAD_IN:
            bends = tuple((time / variant.tempo, bend) for time, bend in bends)
            heard.append(Note(start, duration / variant.tempo, min(127, max(0, key + shift)), velocity, gain, bends))
    return heard


def _make_tracks(out: Path, name: str, file: Path, recipe: Recipe) -> list[tuple[str, str]]:
    """Make the variants of a song that are not there yet; return (file, reason) of those that could not be made."""
    song, refused = read_song(name, file.read_bytes()), []
    slug, digest = re.sub(r"[^A-Za-z0-9]+", "-", name)[-40:].strip("-"), hashlib.sha256(name.encode()).hexdigest()[:6]
    for number in range(recipe.variants):
        target = out / split_of(name) / f"Track_{slug}_{digest}_{number:02d}"
        if (target / "metadata.yaml").is_file():
            continue
        variant = draw_variant(song, number, recipe)
        try:
            stems = render_variant(song, variant, recipe.soundfonts, recipe.sample_rate)
            write_track(target, list(stems.values()), recipe.sample_rate, {}, partial(_describe, song, variant))
        except HybridsepError as error:
            refused.append((f"{name} variant {number}", str(error)))
    return refused


def _describe(song: Song, variant: Variant, _: float) -> dict:
    """Return a track's stems with Slakh2100's keys and the variant, from which it can be played again."""
    stems = {
        f"S{i:02d}": {
            "audio_rendered": True, "midi_saved": False, "inst_class": inst_class, "is_drum": stem == "drums",
            "program_num": variant.programs[stem], "plugin_name": variant.timbres[stem] or variant.soundfonts[stem],
            "integrated_loudness": variant.levels[stem],
        }
        for i, (stem, inst_class) in enumerate(STEMS.items())
    }  # fmt: skip
    return {"stems": stems, "variant": {**asdict(variant), "notes": song.fingerprint, "recipe": RECIPE_VERSION}}


def _check(recipe: Recipe) -> None:
    if recipe.seconds < SHORTEST or recipe.variants < 1 or recipe.seed < 0 or recipe.sample_rate < 8000:
        least = f"seconds >= {SHORTEST:g}, variants >= 1, seed >= 0 and sample_rate >= 8000"
        got = f"{recipe.seconds:g}, {recipe.variants}, {recipe.seed} and {recipe.sample_rate}"
        raise HybridsepError(f"songs take {least}, got {got}")
    if not 0 <= recipe.variety <= 1:
        raise HybridsepError(f"variety is a share from 0 to 1, got {recipe.variety:g}")
    if not recipe.soundfonts or len({font.name for font in recipe.soundfonts}) < len(recipe.soundfonts):
        raise HybridsepError("give one SoundFont or more, each with a file name of its own")
    for font in recipe.soundfonts:
        if not font.is_file():
            raise HybridsepError(f"no SoundFont at {font}")
        presets(font)
