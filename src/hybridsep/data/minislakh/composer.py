"""Composition of songs for bass, drums and piano, each from (seed, index) alone: steps of a bar (see `styles`) become notes in seconds."""

from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil
from typing import NamedTuple

import numpy as np
from numpy.random import Generator

from . import styles as gm
from .styles import CHORDS, KEYS, STYLES, Style

#: Raised whenever the same (seed, index) would give another song or another sound.
COMPOSER_VERSION = 4

QUIETEST_DBFS, LOUDEST_DBFS = -24.0, -16.0  # root mean square of a stem
# Mean gain of each group, dB. Chosen so that a small codec can follow the drums: with all at 0 noise above 2 kHz set its ceiling.
# No recording was measured for it, and it makes the drums easier than the font's own balance.
MIX_DB = {"kick": 2.0, "snare": -3.0, "hats": -11.0, "cymbals": -11.0, "percussion": -6.0}
LOWEST, HIGHEST = 28, 55  # E1 to G3, what a four-string bass plays comfortably
PIANO_LOWEST, PIANO_HIGHEST = 50, 74  # D3 to D5, between bass and cymbals

Chord = tuple[int, int, str]  # step where it begins, semitones of the root above the tonic, name


class Note(NamedTuple):
    """One note: seconds, MIDI key, velocity 1 to 127; begins `slide` semitones off, reaches its pitch in `slide_seconds`."""

    start: float
    duration: float
    pitch: int
    velocity: int
    slide: float = 0.0
    slide_seconds: float = 0.0


@dataclass(frozen=True)
class Sound:
    """How one stem is rendered: a player's instrument and a mixing desk's knobs."""

    level_dbfs: float  # root mean square aimed at
    brightness: float  # tilt, dB between the lowest and the highest octaves
    drive: float  # dB of gain into a soft saturation; 0 for none
    room_seconds: float  # decay time of a short room
    room_wet: float  # its share, 0 to 1
    damping: float  # seconds of an extra exponential decay on every note; 0 for none
    tuning: tuple[tuple[str, float], ...]  # semitones by voice group: kick, snare, toms, hats, ..., bass or piano
    balance_db: tuple[tuple[str, float], ...]  # gain by the same groups


class Part(NamedTuple):
    """What one player plays, on which General MIDI program or drum kit, and how it is rendered."""

    notes: tuple[Note, ...]
    program: int
    sound: Sound


@dataclass(frozen=True)
class Song:
    """A composed song: "bass", "drums" and "piano". Tempo in quarters per minute, `duration` in seconds, `key` like "Eb dorian"."""

    index: int
    seed: int
    duration: float
    style: str
    tempo_bpm: float
    meter: str
    key: str
    parts: dict[str, Part]


class Feel(NamedTuple):
    """The bar and the players' habits: lags and jitter in seconds, swing as in `Style`, `register` the lowest key for a chord's root."""

    step_seconds: float
    steps: int
    pulse: int
    grids: int | str  # key of this bar's grids in BASS_RHYTHMS and COMPING
    swing: float
    swing_unit: int
    lag: dict[str, float]
    jitter: float
    velocity_spread: float
    accent: float
    register: int


class Groove(NamedTuple):
    """One section's choices, grids as probabilities [steps]; `timekeeper` is the percussion key keeping time."""

    grids: dict[str, np.ndarray]  # kick, snare, ghost, time and open, as in Style
    extra: tuple[tuple[int, np.ndarray], ...]
    timekeeper: int
    kick_key: int
    snare_key: int
    rhythm: str
    pitches: str
    gate: float
    riff: dict[int, int]


class Bar(NamedTuple):
    """One bar of the plan: which groove and chords, who rests, how loud."""

    groove: Groove
    chords: tuple[Chord, ...]
    next_root: int
    intensity: float
    opens_section: bool
    fill_steps: int
    rests: str = ""


class Hit(NamedTuple):
    """A drum stroke, bass or piano note on the grid of one bar; `start` and `length` in steps, `level` 0 to 1."""

    start: float
    length: float
    pitch: int
    level: float
    voice: str
    slide: float = 0.0


def compose_song(seed: int, index: int, seconds: float) -> Song:
    """Compose song `index` >= 0 of the collection `seed` >= 0, at least 1 second long; it depends on no other song."""
    if seed < 0 or index < 0 or not seconds >= 1:
        raise ValueError(f"a song takes seed and index >= 0 and seconds >= 1, got {seed}, {index} and {seconds}")
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index,)))
    style = _cross_over(STYLES[name := str(rng.choice(list(STYLES)))], rng)
    slowest, fastest = style.tempo
    tempo = round(float(np.clip(rng.triangular(slowest - 4, (slowest + fastest) / 2, fastest + 4), 70, 180)), 2)
    feel = _draw_feel(style, tempo, rng)
    tonic, mode = int(rng.integers(12)), str(rng.choice(style.modes))
    # Now and then a bass and a kit that the style would not choose.
    bass_program = int(rng.choice(style.basses if rng.random() < 0.75 else list(gm.BASSES)))
    drum_kit = int(rng.choice(style.kits if rng.random() < 0.8 else list(gm.KITS)))
    bars = _plan_bars(style, feel, mode, ceil(seconds / (feel.steps * feel.step_seconds)), rng)
    drums, bass = [], []
    for number, bar in enumerate(bars):
        kicks, hits = _play_drums(bar, feel, rng)
        drums += [] if bar.rests == "drums" else _perform(hits, number, feel, bar.intensity, rng)
        line = _play_bass(bar, feel, kicks, tonic, gm.SCALES[mode], rng)
        bass += [] if bar.rests == "bass" else _perform(line, number, feel, bar.intensity, rng)
    parts = {
        "bass": Part(_one_at_a_time(bass, seconds), bass_program, _draw_sound("bass", rng)),
        "drums": Part(_within(drums, seconds), drum_kit, _draw_sound("drums", rng)),
    }
    # The piano came later: dice of its own leave the other parts as they were.
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(index, 2)))
    program = int(rng.choice(list(gm.PIANOS)))
    parts["piano"] = Part(_within(_play_piano(bars, feel, tonic, rng), seconds), program, _draw_sound("piano", rng))
    return Song(index, seed, float(seconds), name, tempo, style.meter, f"{KEYS[tonic]} {mode}", parts)


def _cross_over(style: Style, rng: Generator) -> Style:
    """Sometimes borrow another style's bass lines, time-keeping or percussion, where the bar has the same grid."""
    kin = [s for s in STYLES.values() if (s.meter, s.steps_per_quarter) == (style.meter, style.steps_per_quarter)]
    for fields, chance in ((("lines",), 0.15), (("time", "open"), 0.12), (("extra",), 0.2), (("kick",), 0.1)):
        if rng.random() < chance:
            other = kin[rng.integers(len(kin))]
            style = replace(style, **{field: getattr(other, field) for field in fields})
    return style


def _draw_feel(style: Style, tempo: float, rng: Generator) -> Feel:
    loose, quarter = 1 - style.tight, style.steps_per_quarter
    lag = {voice: float(rng.normal(0, 0.007 * loose)) for voice in ("kick", "time", "extra")}
    lag["snare"] = float(rng.uniform(-0.006, 0.018)) * loose
    lag["bass"] = float(rng.normal(0.002, 0.009)) * loose
    steps, pulse = quarter * (4 if style.meter == "4/4" else 3), 6 if style.meter == "6/8" else quarter
    return Feel(
        step_seconds=60 / tempo / quarter,
        steps=steps,
        pulse=pulse,
        grids="triplet" if pulse == 3 else "three" if steps == 12 else 16,
        swing=float(rng.uniform(*style.swing)) if quarter == 4 else 0.5,
        swing_unit=style.swing_unit,
        lag=lag,
        jitter=float(rng.uniform(0.001, 0.009)) * loose,
        velocity_spread=float(rng.uniform(2, 9)) * (0.3 + loose),
        accent=float(rng.uniform(0.1, 0.4)),
        register=int(rng.integers(LOWEST, 38)),
    )


def _draw_sound(stem: str, rng: Generator) -> Sound:
    pitched = stem != "drums"
    widest, chance = (0.1, 0.2) if pitched else (0.3, 0.6)
    groups = (stem,) if pitched else ("kick", "snare", "toms", "hats", "cymbals", "percussion")
    return Sound(
        level_dbfs=round(float(rng.uniform(QUIETEST_DBFS, LOUDEST_DBFS)), 2),
        brightness=round(float(rng.normal(0, 3.0)), 2),
        drive=round(float(rng.uniform(2, 12)), 2) if rng.random() < 0.35 else 0.0,
        room_seconds=round(float(rng.uniform(0.08, 0.5)), 3),
        room_wet=round(float(rng.uniform(0.02, widest)), 3) if rng.random() < chance else 0.0,
        damping=round(float(rng.uniform(0.15, 1.2)), 3) if rng.random() < 0.35 else 0.0,
        tuning=tuple((g, 0.0 if pitched else float(rng.choice([-2, -1, 0, 0, 0, 1, 2])) * 0.75) for g in groups),
        balance_db=tuple((g, round(float(rng.normal(MIX_DB.get(g, 0.0), 2.5)), 2)) for g in groups),
    )


def _plan_bars(style: Style, feel: Feel, mode: str, count: int, rng: Generator) -> list[Bar]:
    """Lay out sections of a song form, from which one player at a time falls silent now and then."""
    # A verse and a chorus are remembered by letter, so that A comes back as A.
    letters = str(rng.choice(["AABA", "ABAB", "AABB", "ABAC", "AAAB", "ABCB"]))
    bar_seconds = feel.steps * feel.step_seconds
    length = int(rng.choice([2, 4, 4, 4, 8] if bar_seconds > 1.6 else [4, 4, 8, 8]))
    known: dict[str, tuple[Groove, list, float]] = {}
    bars: list[Bar] = []
    if rng.random() < 0.25:
        intro = _draw_groove(style, feel, rng, sparse=True)
        bars += _plan_section(intro, _draw_chords(mode, feel, rng), 0.75, 2, feel, rng)
    while len(bars) < count:
        letter = letters[(len(bars) // length) % 4]
        if letter not in known:
            known[letter] = _draw_groove(style, feel, rng), _draw_chords(mode, feel, rng), rng.uniform(0.75, 1.05)
        bars += _plan_section(*known[letter], length, feel, rng)
    bars = bars[:count]
    longest = max(1, min(2, int(3.2 / bar_seconds)))  # bars of a rest
    left = dict.fromkeys(("bass", "drums"), int(0.1 * count))
    number = int(rng.integers(0, 4))
    while number < count:
        who = str(rng.choice(["bass", "drums"]))
        length = min(int(rng.integers(1, longest + 1)), left[who], count - number)
        if length and rng.random() < 0.5:
            bars[number : number + length] = [bar._replace(rests=who) for bar in bars[number : number + length]]
            left[who] -= length
        number += length + int(rng.integers(2, 7))
    return bars


def _plan_section(groove: Groove, chords: list, intensity: float, length: int, feel: Feel, rng: Generator) -> list[Bar]:
    bars = []
    lively = rng.uniform(0.2, 0.9)
    for number in range(length):
        here, following = chords[number % len(chords)], chords[(number + 1) % len(chords)]
        chance = lively if number == length - 1 else 0.12
        fill = min(int(feel.pulse * rng.choice([0.5, 1, 1, 2, 2, 4])), feel.steps) if rng.random() < chance else 0
        crash = number == 0 and rng.random() < 0.8
        bars.append(Bar(groove, tuple(here), following[0][1], intensity * rng.uniform(0.97, 1.03), crash, fill))
    return bars


def _draw_chords(mode: str, feel: Feel, rng: Generator) -> list[list[Chord]]:
    """Return the chords of each bar, at a drawn harmonic rhythm."""
    chords = [(int(r), c) for r, c in (item.split(":") for item in str(rng.choice(gm.PROGRESSIONS[mode])).split())]
    pace = rng.choice([0.5, 1, 2], p=[0.22, 0.6, 0.18])
    if pace == 0.5 and len(chords) % 2 == 0:
        half = feel.steps // 2 if feel.steps % (2 * feel.pulse) == 0 else 2 * feel.pulse
        return [[(0, *a), (half, *b)] for a, b in zip(chords[::2], chords[1::2], strict=True)]
    return [[(0, *chord)] for chord in chords for _ in range(2 if pace == 2 else 1)]


def _grid(text: str, steps: int) -> np.ndarray:
    """Turn a grid into probabilities [steps]; the empty grid is silence."""
    digits = [0 if c == "." else int(c) for c in text.replace(" ", "")]
    return np.array(digits or [0] * steps) / 9


def _settled(text: str, feel: Feel, rng: Generator) -> np.ndarray:
    """Decide each uncertain step of a grid for a whole section, keeping a remnant of doubt for the single bar."""
    chances = _grid(text, feel.steps)
    sure = (rng.random(len(chances)) < chances).astype(float)
    return np.where((chances > 0) & (chances < 1), 0.12 + 0.76 * sure, sure)


def _draw_groove(style: Style, feel: Feel, rng: Generator, sparse: bool = False) -> Groove:
    """Choose a section's variants and settle most of their chances, so that its bars resemble each other."""
    timekeeper, time_grid = style.time[rng.integers(len(style.time))]
    kick = _settled(rng.choice(style.kick), feel, rng)
    if rng.random() < 0.25:  # a pattern of this drummer's own: one kick is pushed by a step
        place = int(rng.integers(1, feel.steps))
        kick[place], kick[place - 1] = kick[place - 1], kick[place]
    count = 0 if sparse else int(rng.choice([0, 0, 1, 1, 2]))
    chosen = rng.permutation(len(style.extra))[:count]
    rhythm, pitches = str(rng.choice(style.lines)).split("/")
    return Groove(
        grids={
            "kick": kick * (rng.random() < 0.4) if sparse else kick,
            "snare": _settled(rng.choice(style.snare), feel, rng) * (not sparse),
            "ghost": _grid(style.ghost, feel.steps) * rng.choice([0, 0.5, 1, 1.5]),
            "time": _settled(time_grid, feel, rng) * (1 if rng.random() < 0.9 else 0.7),
            "open": _grid(style.open, feel.steps) * rng.choice([0, 0.6, 1, 1.4]),
        },
        extra=tuple((key, _settled(grid, feel, rng)) for key, grid in (style.extra[i] for i in chosen)),
        timekeeper=timekeeper,
        kick_key=int(rng.choice([gm.KICK, gm.KICK, gm.KICK_2])),
        snare_key=int(rng.choice(style.snares)),
        rhythm=rhythm,
        pitches=pitches,
        gate=float(rng.choice([0.4, 0.6, 0.8, 0.92, 1.0], p=[0.12, 0.2, 0.28, 0.25, 0.15])),
        riff=_draw_riff(feel, rng),
    )


def _draw_riff(feel: Feel, rng: Generator) -> dict[int, int]:
    """Return a figure, step -> scale degrees above the root, always beginning on the root."""
    weights = np.array([1.0 if s % feel.pulse == 0 else 0.6 if s % 2 == 0 else 0.3 for s in range(1, feel.steps)])
    count = int(rng.integers(3, max(5, feel.steps // 2)))
    places = np.sort(rng.choice(np.arange(1, feel.steps), size=count, replace=False, p=weights / weights.sum()))
    degree, figure = 0, {0: 0}
    for place in places:
        degree = int(np.clip(degree + rng.choice([-2, -1, 0, 0, 1, 1, 2, 4]), -3, 8))
        figure[int(place)] = degree
    return figure


def _play_drums(bar: Bar, feel: Feel, rng: Generator) -> tuple[list[int], list[Hit]]:
    """Return the steps of the bass drum (the bassist listens to them) and all strokes of one bar."""
    groove, steps = bar.groove, feel.steps
    fill_from = steps - bar.fill_steps
    struck = {name: np.flatnonzero(rng.random(steps) < grid).tolist() for name, grid in groove.grids.items()}
    hits = [Hit(s, 2, groove.kick_key, _weight(s, feel, 0.8), "kick") for s in struck["kick"] if s < fill_from]
    hits += [Hit(s, 2, groove.snare_key, 0.85, "snare") for s in struck["snare"] if s < fill_from]
    if groove.snare_key in (gm.SNARE, gm.SNARE_2):
        free = [s for s in struck["ghost"] if s not in struck["snare"] + struck["kick"] and s < fill_from]
        hits += [Hit(s, 1, gm.SNARE, float(rng.uniform(0.25, 0.45)), "snare") for s in free]
    # An opened hat rings until the next stroke on either hat closes it; of a ride the bell is struck instead.
    timekeeper, accented = groove.timekeeper, {*struck["open"]}
    other = {gm.HAT: gm.OPEN, gm.RIDE: gm.BELL}.get(timekeeper, timekeeper)
    for step in sorted({*struck["time"], *(accented if timekeeper == gm.HAT else ())}):
        if step < fill_from and not (step == 0 and bar.opens_section):
            key = other if step in accented else timekeeper
            hits.append(Hit(step, 1 if key == gm.HAT else steps, key, _weight(step, feel, 0.72), "time"))
    for key, chances in groove.extra:
        places = np.flatnonzero(rng.random(steps) < chances).tolist()
        hits += [Hit(s, 2, key, _weight(s, feel, 0.6), "extra") for s in places if s < fill_from]
    if bar.opens_section:
        crash = int(rng.choice([gm.CRASH, gm.CRASH, gm.CRASH_2, gm.CHINA, gm.SPLASH]))
        hits.append(Hit(0, steps, crash, 0.9, "time"))
    if bar.fill_steps:
        hits += _play_fill(fill_from, bar.fill_steps, feel, rng)
    return struck["kick"], hits


def _weight(step: int, feel: Feel, level: float) -> float:
    """Accent a step by its place in the bar: the first of a pulse most, odd steps least."""
    place = 1.0 if step % feel.pulse == 0 else 0.4 if step % 2 == 0 else 0.0
    return level * (1 - feel.accent + feel.accent * place)


def _play_fill(start: int, length: int, feel: Feel, rng: Generator) -> list[Hit]:
    """Play a fill over the last `length` steps: a roll, a run down the toms, a broken figure or a near silence."""
    kind = str(rng.choice(["roll", "toms", "toms", "mixed", "mixed", "sparse", "flams"]))
    density = {"roll": 1.0, "toms": 0.85, "mixed": 0.75, "sparse": 0.3, "flams": 0.5}[kind]
    places = [s for s in range(start, start + length) if s == start or rng.random() < density]
    toms = sorted(rng.choice(gm.TOMS, size=int(rng.integers(2, 5)), replace=False), reverse=True)
    hits = []
    for step in places:
        progress = (step - start) / length
        level = 0.6 + 0.35 * progress if kind == "roll" else float(rng.uniform(0.6, 0.95))
        key = int(toms[int(progress * len(toms))]) if kind == "toms" else gm.SNARE
        if kind == "mixed":
            key = int(rng.choice([gm.SNARE, gm.SNARE, gm.KICK, *toms]))
        if kind == "flams":
            hits.append(Hit(step - 0.12 if step else 0, 1, key, level * 0.5, "snare"))
        hits.append(Hit(step, 3, key, level, "kick" if key == gm.KICK else "snare"))
        if kind == "roll" and rng.random() < 0.2:
            hits.append(Hit(step + 0.5, 1, key, level * 0.8, "snare"))
    if kind != "mixed" and rng.random() < 0.6:
        hits += [Hit(s, 2, gm.KICK, 0.75, "kick") for s in range(start, start + length) if s % feel.pulse == 0]
    return hits


def _play_bass(bar: Bar, feel: Feel, kicks: list[int], tonic: int, scale: tuple[int, ...], rng: Generator) -> list[Hit]:
    """Play one bar: choose where to play, then what, then how long."""
    groove, hits = bar.groove, []
    for step, until in pairwise([*_bass_steps(groove, feel, kicks, rng), feel.steps]):
        chord = next(c for c in reversed(bar.chords) if c[0] <= step)
        # The chord that the note must lead to, if it is the last one before a change.
        change = next(((start, root) for start, root, _ in bar.chords if start > step), (feel.steps, bar.next_root))
        target = change[1] if until >= change[0] else None
        pitch = _choose_pitch(groove, step, chord, target, scale, feel.pulse, rng)
        # Measured from the root, which lies in the octave above the register, and moved into the range by octaves.
        key = feel.register + (chord[1] + tonic - feel.register) % 12 + pitch - chord[1]
        key -= 12 * max(0, ceil((key - HIGHEST) / 12))
        key += 12 * max(0, ceil((LOWEST - key) / 12))
        hits.append(_articulate(groove, step, until - step, key, feel, rng))
    return hits


def _bass_steps(groove: Groove, feel: Feel, kicks: list[int], rng: Generator) -> list[int]:
    """Return the steps on which the bass plays, at least one."""
    grids = gm.BASS_RHYTHMS[feel.grids]
    # A line borrowed from another style may name a rhythm that this meter has not.
    chances = dict(enumerate(_grid(grids.get(groove.rhythm, grids["quarters"]), feel.steps)))
    if groove.rhythm == "riff":
        chances = dict.fromkeys(groove.riff, 0.95)
    elif groove.rhythm == "kick":
        chances = {s: 0.95 if s in kicks else 0.05 for s in range(feel.steps)}
    elif groove.rhythm == "antikick":
        chances = {s: 0.7 for s in range(feel.steps) if s not in kicks}
    return [step for step, chance in chances.items() if rng.random() < chance] or [0]


def _choose_pitch(
    groove: Groove, step: int, now: Chord, target: int | None, scale: tuple[int, ...], pulse: int, rng: Generator
) -> int:
    """Return semitones above the tonic; `target` is the root to lead to, if this is the last note before a change."""
    kind, (begin, root, chord) = groove.pitches, now
    degree = groove.riff.get(step, 0) if groove.rhythm == "riff" else int(rng.integers(-1, 5))  # where a whim would go
    tones, beat = CHORDS[chord], (step - begin) // pulse
    fifth, third = next((t for t in tones if t in (6, 7, 8)), 7), 4 if 4 in tones else 3
    if kind in ("root", "pedal", "slide", "glide"):
        octave = 12 * (rng.random() < {"root": 0.06, "pedal": 0.2, "slide": 0.04, "glide": 0.12}[kind])
        return (0 if kind == "pedal" else root) + octave
    if kind == "octave":
        return root + 12 * ((step // max(1, pulse // 2)) % 2 if rng.random() < 0.92 else 0)
    if kind == "boogie":
        figure = (0, third, 7, 9, 10, 9, 7, third)
        return root + figure[((step * 2) // pulse) % 8 if rng.random() < 0.9 else 0]
    if step == begin and kind != "scale":
        return root
    if target is not None and kind in ("walk", "approach", "funk", "chord", "scale") and rng.random() < 0.75:
        return target + int(rng.choice([-1, 1, -2, 2, 7, -5]))  # a step above, below, or the dominant of what comes
    if kind == "fifth":
        return root + (fifth if beat % 2 and rng.random() < 0.85 else int(rng.choice([0, 0, 12, fifth - 12])))
    if kind == "chord":
        return root + int(tones[beat % len(tones) if rng.random() < 0.6 else rng.integers(len(tones))])
    if kind == "funk":
        return root + int(rng.choice([0, 0, 0, 12, 12, 10, fifth, 5, -2, 3 if 3 in tones else 4]))
    if kind in ("walk", "scale"):
        passing = scale if kind == "scale" or rng.random() < 0.5 else ()
        ladder = sorted({(root + t) % 12 for t in tones} | {root % 12, *passing})
        at = ladder.index(root % 12) + (degree if kind == "scale" else int(rng.choice([beat, beat, -beat, 1, 2])))
        return ladder[at % len(ladder)] + 12 * (at // len(ladder))
    return root


def _articulate(groove: Groove, step: int, room: int, pitch: int, feel: Feel, rng: Generator) -> Hit:
    """Decide how a note is held: legato or short, dead, or slid into."""
    busy = groove.rhythm in ("funk", "sixteenths", "gallop", "synco", "riff", "walk", "shuffle")
    if busy and step % feel.pulse and rng.random() < 0.12:
        return Hit(step, 0.35, pitch, 0.4, "bass")  # a dead note: a thud on a damped string
    gate = min(1.0, groove.gate * rng.uniform(0.85, 1.15)) if room < 2 * feel.pulse else rng.uniform(0.7, 1.0)
    slide = 0.0
    if rng.random() < {"glide": 0.3, "slide": 0.25}.get(groove.pitches, 0.03):
        slide = float(rng.choice([-2, -2, -1, 2, -5, 7] if groove.pitches == "glide" else [-2, -2, -1, 1]))
    return Hit(step, max(0.3, room * gate), pitch, _weight(step, feel, 0.82), "bass", slide)


def _play_piano(bars: list[Bar], feel: Feel, tonic: int, rng: Generator) -> list[Note]:
    """Play the chords of all bars, each section in its own way; now and then the pianist rests for a bar."""
    feel = feel._replace(lag={**feel.lag, "piano": float(rng.normal(0.002, 0.006))})
    ways: dict[int, tuple] = {}
    notes = []
    for number, bar in enumerate(bars):
        drawn = (
            _settled(rng.choice(gm.COMPING[feel.grids]), feel, rng),  # chances of each step
            bool(rng.random() < 0.25),  # one key after the other
            int(rng.integers(PIANO_LOWEST, PIANO_HIGHEST - 12)),
            int(rng.choice([3, 3, 4])),  # keys of a chord at most
            float(rng.choice([0.4, 0.8, 0.95, 1.0])),  # share of the time to the next chord that one is held
        )
        chances, broken, lowest, most, gate = ways.setdefault(id(bar.groove), drawn)
        places = np.flatnonzero(rng.random(feel.steps) < chances).tolist() or [0]
        hits = []
        for count, (step, until) in enumerate(pairwise([*places, feel.steps])):
            _, root, chord = next(c for c in reversed(bar.chords) if c[0] <= step)
            # Every tone lies in the octave above the lowest key, so that chords move by the shortest ways.
            keys = sorted({lowest + (tonic + root + tone - lowest) % 12 for tone in CHORDS[chord][:most]})
            struck = [keys[count % len(keys)]] if broken else keys
            length = max(0.5, (until - step) * gate)
            hits += [Hit(step, length, key, _weight(step, feel, 0.75), "piano") for key in struck]
        notes += [] if rng.random() < 0.05 else _perform(hits, number, feel, bar.intensity, rng)
    return notes


def _perform(hits: list[Hit], bar: int, feel: Feel, intensity: float, rng: Generator) -> list[Note]:
    """Turn grid positions into seconds and levels into velocities, as these players' habits have it."""
    notes = []
    for hit in hits:
        seconds = (bar * feel.steps + _swung(hit.start, feel)) * feel.step_seconds
        seconds += feel.lag[hit.voice] + rng.normal(0, feel.jitter)
        velocity = int(np.clip(hit.level * 127 * intensity + rng.normal(0, feel.velocity_spread), 8, 127))
        start, length = round(max(0.0, float(seconds)), 4), hit.length * feel.step_seconds
        glide = round(min(0.12, 0.4 * length), 4) if hit.slide else 0.0
        notes.append(Note(start, round(length, 4), int(hit.pitch), velocity, hit.slide, glide))
    return notes


def _swung(step: float, feel: Feel) -> float:
    """Delay the second of each pair of swing units."""
    pair = 2 * feel.swing_unit
    place, first = step % pair / pair, step - step % pair
    if place < 0.5:
        return first + place * 2 * feel.swing * pair
    return first + (feel.swing + (place - 0.5) * 2 * (1 - feel.swing)) * pair


def _within(notes: list[Note], seconds: float) -> tuple[Note, ...]:
    """Keep what begins before the end, in order of time."""
    kept = sorted((n for n in notes if n.start < seconds - 0.02), key=lambda n: (n.start, n.pitch, n.velocity))
    return tuple(n._replace(duration=round(min(n.duration, seconds - n.start), 4)) for n in kept)


def _one_at_a_time(notes: list[Note], seconds: float) -> tuple[Note, ...]:
    """Make a line monophonic: a note ends where the next begins; notes on top of another are dropped."""
    line: list[Note] = []
    for note in _within(notes, seconds):
        after = note.start - line[-1].start if line else np.inf
        if after >= 0.03:
            if line and line[-1].start + line[-1].duration > note.start:
                line[-1] = line[-1]._replace(duration=round(after, 4))
            line.append(note)
    return tuple(line)
