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
    """One way of playing: what each voice may do on every step of a bar. Of alternatives a song or section draws one; repeats weigh."""

    meter: str  # "4/4", "3/4" or "6/8"
    tempo: tuple[int, int]  # lowest and highest, quarters per minute
    kits: tuple[int, ...]  # General MIDI programs, as `basses`
    basses: tuple[int, ...]
    modes: tuple[str, ...]  # keys of PROGRESSIONS
    kick: tuple[str, ...]  # alternative grids, as `snare`
    snare: tuple[str, ...]
    time: tuple[tuple[int, str], ...]  # alternative timekeepers: percussion key and grid
    lines: tuple[str, ...]  # alternative bass lines "rhythm/pitch", see BASS_RHYTHMS and composer
    steps_per_quarter: int = 4  # 3 in triplet feel
    ghost: str = ""  # grid of soft snare notes
    open: str = ""  # grid of opened hats
    extra: tuple[tuple[int, str], ...] = ()  # percussion to add: key and grid
    snares: tuple[int, ...] = (SNARE, SNARE_2)  # percussion keys for the back beat
    swing: tuple[float, float] = (0.5, 0.52)  # share of a pair of units that its first one takes; 0.5 is straight
    swing_unit: int = 1  # steps: 2 to swing eighths, 1 to swing sixteenths
    tight: float = 0.3  # from 0 for loose human timing to 1 for a machine


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
