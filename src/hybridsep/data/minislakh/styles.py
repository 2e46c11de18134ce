"""The musical vocabulary of MiniSlakh: names of General MIDI, and the tables of styles.yml, which says what a grid is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

# General MIDI percussion keys.
KICK, KICK_2, RIM, SNARE, CLAP, SNARE_2 = 36, 35, 37, 38, 39, 40
HAT, PEDAL, OPEN, CRASH, RIDE, CHINA, BELL, TAMBOURINE = 42, 44, 46, 49, 51, 52, 53, 54
SPLASH, COWBELL, CRASH_2, RIDE_2, HIGH_BONGO, LOW_BONGO = 55, 56, 57, 59, 60, 61
MUTE_CONGA, OPEN_CONGA, LOW_CONGA, HIGH_TIMBALE, LOW_TIMBALE = 62, 63, 64, 65, 66
HIGH_AGOGO, LOW_AGOGO, CABASA, SHAKER, CLAVES = 67, 68, 69, 70, 75
HIGH_BLOCK, LOW_BLOCK, MUTE_TRIANGLE, TRIANGLE, MUTE_SURDO, SURDO = 76, 77, 80, 81, 86, 87
TOMS = (50, 48, 47, 45, 43, 41)

KEYS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")


@dataclass(frozen=True)
class Style:
    """One way of playing: what each voice may do on every step of a bar.

    Attributes:
        meter: "4/4", "3/4" or "6/8"; steps_per_quarter is 4, or 3 in triplet feel.
        tempo: lowest and highest tempo, quarters per minute.
        kits, basses: General MIDI programs to choose from; repeats weigh.
        modes: keys of PROGRESSIONS.
        kick, snare: alternative grids; a section draws one of each.
        time: alternative timekeepers, pairs (percussion key, grid).
        lines: alternative bass lines "rhythm/pitch", see BASS_RHYTHMS and composer.
        ghost, open: grids of soft snare notes and of opened hats.
        extra: percussion to add, pairs (percussion key, grid).
        snares: percussion keys for the back beat.
        swing: range of the share of a pair of units that its first member takes; 0.5 is straight.
        swing_unit: 2 to swing eighths, 1 to swing sixteenths, in steps.
        tight: 0 for loose human timing to 1 for a machine.
    """

    meter: str
    tempo: tuple[int, int]
    kits: tuple[int, ...]
    basses: tuple[int, ...]
    modes: tuple[str, ...]
    kick: tuple[str, ...]
    snare: tuple[str, ...]
    time: tuple[tuple[int, str], ...]
    lines: tuple[str, ...]
    steps_per_quarter: int = 4
    ghost: str = ""
    open: str = ""
    extra: tuple[tuple[int, str], ...] = ()
    snares: tuple[int, ...] = (SNARE, SNARE_2)
    swing: tuple[float, float] = (0.5, 0.52)
    swing_unit: int = 1
    tight: float = 0.3


def _named(table: Any, names: dict) -> Any:
    """Replace the names of grids and percussion keys by what they stand for, and lists by tuples."""
    if isinstance(table, dict):
        return {key: _named(value, names) for key, value in table.items()}
    return tuple(_named(value, names) for value in table) if isinstance(table, list) else names.get(table, table)


_READ = yaml.safe_load(Path(__file__).with_name("styles.yml").read_text(encoding="utf-8"))
_PERCUSSION = {name: key for name, key in globals().items() if isinstance(key, int)}
_TABLES = _named(_READ, {**_PERCUSSION, **_READ["grids"]})
STYLES = {name: Style(**entry.pop("setting"), **entry) for name, entry in _TABLES["styles"].items()}
KITS, BASSES, PIANOS = _TABLES["kits"], _TABLES["basses"], _TABLES["pianos"]
BASS_RHYTHMS, COMPING = _TABLES["rhythms"], _TABLES["comping"]
PROGRESSIONS, SCALES, CHORDS = _TABLES["progressions"], _TABLES["scales"], _TABLES["chords"]
