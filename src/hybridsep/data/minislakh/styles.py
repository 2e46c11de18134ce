"""The musical vocabulary of MiniSlakh: drum styles, bass figures and chord progressions, as plain tables.

A grid is a string with one character per step of a bar (blanks are for the eye): "." is silence and a
digit d from 1 to 9 is a hit with probability d/9. Bars have 16 steps (four quarters of four), or 12 in
triplet feel (four quarters of three), in 3/4 (three quarters of four) and in 6/8 (two pulses of six).
"""

from dataclasses import dataclass

# General MIDI percussion keys.
KICK, KICK_2, RIM, SNARE, CLAP, SNARE_2 = 36, 35, 37, 38, 39, 40
HAT, PEDAL, OPEN, CRASH, RIDE, CHINA, BELL, TAMBOURINE = 42, 44, 46, 49, 51, 52, 53, 54
SPLASH, COWBELL, CRASH_2, RIDE_2, HIGH_BONGO, LOW_BONGO = 55, 56, 57, 59, 60, 61
MUTE_CONGA, OPEN_CONGA, LOW_CONGA, HIGH_TIMBALE, LOW_TIMBALE = 62, 63, 64, 65, 66
HIGH_AGOGO, LOW_AGOGO, CABASA, SHAKER, CLAVES = 67, 68, 69, 70, 75
HIGH_BLOCK, LOW_BLOCK, MUTE_TRIANGLE, TRIANGLE, MUTE_SURDO, SURDO = 76, 77, 80, 81, 86, 87
TOMS = (50, 48, 47, 45, 43, 41)

#: The drum kits (bank 128 programs) of TimGM6mb.sf2 by their preset names; its Jazz kit plays the Standard samples.
KITS = {0: "Standard", 8: "Room", 16: "Power", 24: "Electronic", 25: "TR 808", 32: "Jazz", 40: "Brush", 48: "Orchestra"}
# fmt: off
#: General MIDI bass programs, counted from 0.
BASSES = {
    32: "Acoustic Bass", 33: "Electric Bass (finger)", 34: "Electric Bass (pick)", 35: "Fretless Bass",
    36: "Slap Bass 1", 37: "Slap Bass 2", 38: "Synth Bass 1", 39: "Synth Bass 2",
}
#: General MIDI programs of Slakh's class Piano, counted from 0, as a pianist would choose them.
PIANOS = {
    0: "Acoustic Grand Piano", 1: "Bright Acoustic Piano", 2: "Electric Grand Piano", 3: "Honky-tonk Piano",
    4: "Electric Piano 1", 5: "Electric Piano 2",
}
KEYS = ("C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B")

SCALES = {
    "major": (0, 2, 4, 5, 7, 9, 11), "minor": (0, 2, 3, 5, 7, 8, 10), "dorian": (0, 2, 3, 5, 7, 9, 10),
    "mixolydian": (0, 2, 4, 5, 7, 9, 10), "phrygian": (0, 1, 3, 5, 7, 8, 10), "lydian": (0, 2, 4, 6, 7, 9, 11),
    "blues": (0, 3, 5, 6, 7, 10),
}
CHORDS = {
    "M": (0, 4, 7), "m": (0, 3, 7), "7": (0, 4, 7, 10), "M7": (0, 4, 7, 11), "m7": (0, 3, 7, 10),
    "m9": (0, 3, 7, 10, 14), "9": (0, 4, 7, 10, 14), "6": (0, 4, 7, 9), "sus": (0, 5, 7), "5": (0, 7, 12),
    "o": (0, 3, 6, 9), "h": (0, 3, 6, 10), "+": (0, 4, 8),
}

#: Progressions by mode: "semitones above the tonic:chord", one chord a unit of harmonic rhythm.
PROGRESSIONS = {
    "major": (
        "0:M 7:M 9:m 5:M", "0:M 9:m 5:M 7:M", "0:M 5:M 7:M 5:M", "9:m 5:M 0:M 7:M", "0:M7 9:m7 2:m7 7:7",
        "0:M 4:m 5:M 7:sus", "0:M 7:M 9:m 4:m 5:M 0:M 2:m7 7:7", "5:M7 4:m7 2:m7 0:M7", "0:6 0:+ 5:M7 5:m",
        "2:m7 7:9 0:M7 9:7", "0:M7 1:o 2:m7 7:7", "4:m7 9:7 2:m7 7:7",
    ),
    "minor": (
        "0:m 8:M 3:M 10:M", "0:m 10:M 8:M 7:7", "0:m 5:m 0:m 7:m", "0:m7 5:m7 10:7 3:M7", "0:m 0:m 8:M 10:M",
        "0:m 3:M 10:M 5:M", "2:h 7:7 0:m7 0:m7", "0:m9 8:M7 5:m9 7:7", "0:m 7:7 0:m 5:m 8:M 3:M 2:h 7:7",
    ),
    "dorian": ("0:m7 5:9", "0:m7 0:m7 5:7 5:7", "0:m7 2:m7 3:M7 2:m7", "0:m9 10:M7", "0:m7 5:7 10:M 5:7"),
    "mixolydian": ("0:7 10:M 5:M 0:7", "0:9", "0:7 5:9", "0:M 10:M", "0:7 3:7 5:7 0:7"),
    "phrygian": ("0:5 1:5", "0:m 1:M 0:m 10:m", "0:5 0:5 3:5 1:5", "0:m 1:M 3:M 1:M"),
    "lydian": ("0:M7 2:9", "0:M 2:M 7:M 0:M"),
    "blues": (
        "0:7 0:7 0:7 0:7 5:7 5:7 0:7 0:7 7:7 5:7 0:7 7:7", "0:7 5:7 0:7 0:7 5:7 6:o 0:7 9:7 2:m7 7:7 0:7 7:7",
        "0:m7 0:m7 5:m7 0:m7 8:7 7:7 0:m7 7:7", "0:7 0:7 5:7 5:7", "0:5 3:5 5:5 0:5",
    ),
}
# fmt: on


@dataclass(frozen=True)
class Style:
    """One way of playing: what each voice may do on every step of a bar.

    Attributes:
        meter: "4/4", "3/4" or "6/8".
        steps_per_quarter: 4, or 3 in triplet feel.
        tempo: lowest and highest tempo, quarters per minute.
        kits, basses: General MIDI programs to choose from; repeats weigh.
        modes: keys of PROGRESSIONS.
        kick, snare: alternative grids; a section draws one of each.
        time: alternative timekeepers, pairs (percussion key, grid).
        lines: alternative bass lines "rhythm/pitch", see BASS_RHYTHMS and composer.
        ghost: grid of soft snare notes.  open: grid of opened hats.
        extra: percussion to add, pairs (percussion key, grid).
        snares: percussion keys for the back beat.
        swing: range of the share of a pair of units that its first member takes; 0.5 is straight.
        swing_unit: 2 to swing eighths, 1 to swing sixteenths, in steps.
        tight: 0 for loose human timing to 1 for a machine.
    """

    meter: str
    steps_per_quarter: int
    tempo: tuple[int, int]
    kits: tuple[int, ...]
    basses: tuple[int, ...]
    modes: tuple[str, ...]
    kick: tuple[str, ...]
    snare: tuple[str, ...]
    time: tuple[tuple[int, str], ...]
    lines: tuple[str, ...]
    ghost: str = ""
    open: str = ""
    extra: tuple[tuple[int, str], ...] = ()
    snares: tuple[int, ...] = (SNARE, SNARE_2)
    swing: tuple[float, float] = (0.5, 0.52)
    swing_unit: int = 1
    tight: float = 0.3


_EIGHTHS = "9.9. 9.9. 9.9. 9.9."
_SIXTEENTHS = "9999 9999 9999 9999"
_QUARTERS = "9... 9... 9... 9..."
_BACKBEAT = ".... 9... .... 9..."
_OFFBEATS = "..9. ..9. ..9. ..9."
_OPEN_8 = "..1. ..1. ..1. ..3."

# fmt: off
STYLES: dict[str, Style] = {
    "rock": Style(
        "4/4", 4, (88, 156), (0, 8, 16, 16), (33, 34, 34, 33), ("major", "minor", "mixolydian", "blues"),
        ("9... ..3. 9.4. ....", "9... ..9. ..9. ..2.", "9.4. ...2 9.9. ...3", "9... .... 9... ..5.",
        "9..9 ..4. ..9. .4.."),
        (_BACKBEAT, ".... 9... .... 9..2", ".... 9..1 .... 9.3."),
        ((HAT, _EIGHTHS), (RIDE, _EIGHTHS), (OPEN, _QUARTERS), (HAT, _QUARTERS), (CRASH_2, _QUARTERS), (41, _EIGHTHS)),
        ("eighths/root", "kick/root", "kick/fifth", "riff/scale", "eighths/approach", "half/slide"),
        ghost="...1 ..1. .1.. ..1.", open=_OPEN_8,
        extra=((TAMBOURINE, _BACKBEAT), (COWBELL, _QUARTERS), (TAMBOURINE, _EIGHTHS)),
    ),
    "punk": Style(
        "4/4", 4, (150, 182), (16, 0, 8), (34, 34, 33), ("major", "minor", "mixolydian", "phrygian"),
        ("9... 9... 9... 9...", "9..4 ..9. 9..4 ..9.", "9... ..9. 9.9. ..3."),
        ("..9. ..9. ..9. ..9.", _BACKBEAT, ".... 9... .... 9.4."),
        ((HAT, _EIGHTHS), (OPEN, _QUARTERS), (RIDE, _QUARTERS), (CRASH, _QUARTERS)),
        ("eighths/root", "eighths/approach", "eighths/fifth", "kick/root"), open="..2. ..2. ..2. ..2.", tight=0.2,
    ),
    "metal": Style(
        "4/4", 4, (104, 180), (16, 16, 8), (34, 34, 33, 37), ("phrygian", "minor", "blues"),
        ("9999 9999 9999 9999", "9.99 9.99 9.99 9.99", "9.9. 9999 9.9. 99.9", "9... .99. .99. 9.99",
        "9.4. 4.99 .99. 9.4."),
        (".... .... 9... ....", _BACKBEAT, ".... 9... .... 9.4."),
        ((RIDE, _QUARTERS), (CHINA, _QUARTERS), (HAT, _QUARTERS), (OPEN, _EIGHTHS), (BELL, _QUARTERS)),
        ("gallop/root", "kick/root", "riff/scale", "sixteenths/root", "kick/fifth"), tight=0.6,
    ),
    "funk": Style(
        "4/4", 4, (84, 122), (0, 8, 0, 25), (36, 37, 33, 33, 39), ("dorian", "mixolydian", "minor", "blues"),
        ("9.3. ..9. ..94 ...3", "9..9 ...3 .49. ..3.", "9.9. .... ..9. .9..", "9... ..4. .994 ...."),
        (".... 9..2 .2.. 9...", ".... 9... .... 9..3", ".... 9..9 .9.. 9..."),
        ((HAT, _SIXTEENTHS), (HAT, _EIGHTHS), (RIDE, _EIGHTHS), (HAT, "9.99 9.99 9.99 9.99"), (COWBELL, _EIGHTHS)),
        ("funk/funk", "funk/octave", "kick/funk", "riff/funk", "sixteenths/funk"), ghost=".3.3 ..34 .4.3 .3.4",
        open="...1 ..2. .... ..42",
        extra=((SHAKER, _SIXTEENTHS), (OPEN_CONGA, "..5. ...5 ..55 ..5."), (CLAP, _BACKBEAT)), swing=(0.5, 0.6),
        tight=0.35,
    ),
    "disco": Style(
        "4/4", 4, (108, 134), (0, 8, 24, 16), (33, 34, 36, 38), ("minor", "major", "dorian"),
        (_QUARTERS, "9... 9... 9... 9..3"), (_BACKBEAT, ".... 9... .... 9.2."),
        ((HAT, _SIXTEENTHS), (HAT, _EIGHTHS), (OPEN, _OFFBEATS), (HAT, "9.99 9.99 9.99 9.99")),
        ("eighths/octave", "offbeats/octave", "funk/octave", "kick/approach", "eighths/chord"),
        open="..8. ..8. ..8. ..8.",
        extra=((TAMBOURINE, _SIXTEENTHS), (CLAP, _BACKBEAT), (OPEN_CONGA, "..55 ..5. ..55 .55."), (COWBELL, _QUARTERS)),
        tight=0.5,
    ),
    "house": Style(
        "4/4", 4, (116, 132), (24, 25, 25, 16), (38, 39, 38, 33), ("minor", "dorian", "lydian"),
        (_QUARTERS, "9... 9... 9... 9.3.", "9... 9..2 9... 9..."),
        (_BACKBEAT, ".... 9..2 ..2. 9...", ".... .... .... ...."),
        ((OPEN, _OFFBEATS), (HAT, _SIXTEENTHS), (HAT, "..9. 3.93 ..9. 3.94"), (SHAKER, _SIXTEENTHS)),
        ("offbeats/root", "offbeats/octave", "synco/chord", "riff/scale", "long/root", "eighths/root"),
        open="..6. ..6. ..6. ..6.",
        extra=((CLAP, _BACKBEAT), (RIM, "...5 ..5. ..5. .5.."), (SHAKER, _SIXTEENTHS),
        (HIGH_BONGO, "5..5 ..5. ..55 ..5.")),
        snares=(CLAP, SNARE, SNARE_2), swing=(0.5, 0.58), tight=0.95,
    ),
    "techno": Style(
        "4/4", 4, (124, 146), (24, 25, 16), (38, 39), ("minor", "phrygian"), (_QUARTERS, "9... 9... 9..3 9.3."),
        (".... .... .... ....", _BACKBEAT, "...5 ..5. ...5 ..5."),
        ((OPEN, _OFFBEATS), (HAT, _SIXTEENTHS), (RIDE, _OFFBEATS), (HAT, ".9.9 .9.9 .9.9 .9.9")),
        ("antikick/pedal", "sixteenths/pedal", "riff/scale", "synco/pedal", "offbeats/root"),
        extra=((CLAP, _BACKBEAT), (45, "...5 ..5. .5.. 5..5"), (LOW_BLOCK, "..5. .5.. ..5. ...5")),
        snares=(CLAP, RIM, SNARE), tight=1.0,
    ),
    "hiphop": Style(
        "4/4", 4, (76, 102), (25, 0, 8, 24), (33, 39, 32, 38, 35), ("minor", "dorian", "phrygian", "blues"),
        ("9..3 ..4. .9.. ..3.", "9.9. .... .99. ....", "9... ..9. ..9. .3..", "9..9 ...3 ..9. .4.."),
        (_BACKBEAT, ".... 9..1 .1.. 9..2"),
        ((HAT, _EIGHTHS), (HAT, _SIXTEENTHS), (HAT, "9.9. 9.99 9.9. 9.93"), (RIDE, _EIGHTHS), (SHAKER, _EIGHTHS)),
        ("kick/root", "long/slide", "riff/scale", "synco/chord", "half/approach"), ghost="...2 ..1. .2.. ..2.",
        open="..1. .... ..2. ..2.",
        extra=((TAMBOURINE, _BACKBEAT), (SHAKER, _EIGHTHS), (COWBELL, "5... ..5. ..5. 5...")),
        snares=(SNARE, CLAP, SNARE_2, RIM), swing=(0.52, 0.64), tight=0.55,
    ),
    "trap": Style(
        "4/4", 4, (118, 156), (25, 25, 24), (38, 39, 33), ("minor", "phrygian"),
        ("9... ...4 ..9. ....", "9..4 .... ..9. .4..", "9... .... .... 4.9.", "9.4. ..9. .... ...."),
        (".... .... 9... ....", ".... .... 9... ..2."),
        ((HAT, _EIGHTHS), (HAT, "9.99 9.9. 9999 9.9."), (HAT, "9.9. 9.9. 99.9 9999"), (HAT, _SIXTEENTHS)),
        ("kick/glide", "long/glide", "half/root", "synco/root"), open="...1 .... ..3. ....",
        extra=((CLAP, ".... .... 9... ...."), (RIM, "...5 ..5. .... .5.5"), (OPEN, ".... ..5. .... ....")),
        snares=(SNARE, CLAP, SNARE_2), tight=1.0,
    ),
    "drum_and_bass": Style(
        "4/4", 4, (158, 182), (24, 0, 16, 25), (39, 38, 33, 35), ("minor", "dorian", "phrygian"),
        ("9... .... ..9. ....", "9.9. .... ..9. ...3", "9... ...4 .49. ....", "9... ..9. ..9. ...."),
        (_BACKBEAT, ".... 9..3 .3.. 9...", ".... 9... ...3 9.3.", ".... 9..9 .9.. ..9."),
        ((HAT, _EIGHTHS), (RIDE, _EIGHTHS), (HAT, _SIXTEENTHS), (HAT, _QUARTERS)),
        ("long/slide", "synco/scale", "half/glide", "kick/root", "riff/scale"), ghost="...3 .3.4 .3.3 ..3.",
        open="..1. .... ..3. ....",
        extra=((SHAKER, _SIXTEENTHS), (RIDE_2, _QUARTERS), (LOW_BONGO, ".5.. ..5. 5..5 ..5.")), tight=0.85,
    ),
    "reggae": Style(
        "4/4", 4, (70, 96), (0, 8, 32), (33, 35, 33, 32), ("major", "minor", "dorian"),
        (".... .... 9... ....", "9... .... 9... ....", "9... 9... 9... 9...", ".... 9... .... 9..."),
        (".... .... 9... ....", ".... .... 9... ..2.", ".... 2... 9... ...."),
        ((HAT, _EIGHTHS), (HAT, _OFFBEATS), (HAT, "9.99 9.9. 9.99 9.9."), (RIM, "9..4 ..9. ..4. 9...")),
        ("reggae/chord", "reggae/root", "riff/chord", "synco/chord"), ghost=".... ...1 .... ..1.",
        open="..1. ..1. ..1. ..2.",
        extra=((MUTE_TRIANGLE, _OFFBEATS), (SHAKER, _EIGHTHS), (HIGH_TIMBALE, ".... .... .... ..55")),
        snares=(RIM, SNARE, RIM), swing=(0.52, 0.64), tight=0.25,
    ),
    "bossa": Style(
        "4/4", 4, (104, 150), (32, 0, 40), (32, 32, 35, 33), ("major", "minor", "dorian"),
        ("9..9 9..9 9..9 9..9", "9..5 9..5 9..5 9..5", "9... 9... 9... 9..."),
        ("9..9 ..9. ..9. .9..", "..9. 9..9 ..9. .9..", "9... ..9. .9.. 9..."),
        ((HAT, _EIGHTHS), (HAT, _SIXTEENTHS), (SHAKER, _SIXTEENTHS), (RIDE, _EIGHTHS)),
        ("bossa/fifth", "bossa/chord", "half/fifth", "tumbao/fifth"),
        extra=((SHAKER, _EIGHTHS), (PEDAL, _BACKBEAT), (TRIANGLE, "5... ..5. 5... ..5."), (CABASA, _SIXTEENTHS)),
        snares=(RIM, RIM, CLAVES), tight=0.3,
    ),
    "samba": Style(
        "4/4", 4, (88, 130), (0, 32, 8), (32, 33, 35, 34), ("major", "minor", "mixolydian"),
        ("9..9 9..9 9..9 9..9", "3..9 9..9 3..9 9..9", "9... 9..9 9... 9..9"),
        ("9.9. 9.99 .9.9 .9.9", ".9.9 9.9. 9.99 .9.9", "9..9 .9.9 .9.9 ..9."),
        ((HAT, _SIXTEENTHS), (SHAKER, _SIXTEENTHS), (RIDE, "9.99 9.99 9.99 9.99"), (TAMBOURINE, "9.39 .99. 9.39 .99.")),
        ("bossa/fifth", "kick/fifth", "bossa/chord", "tumbao/chord"), ghost="3.3. .3.. 3.3. 3.3.",
        extra=((SURDO, ".... 9... .... 9.33"), (HIGH_AGOGO, "9.9. .9.. 9... ...."),
        (LOW_AGOGO, ".... 9..9 ...9 .9.."), (TAMBOURINE, _SIXTEENTHS)),
        tight=0.25,
    ),
    "salsa": Style(
        "4/4", 4, (84, 116), (0, 32, 8), (32, 33, 35), ("minor", "major", "dorian", "mixolydian"),
        ("..9. .... ..9. ....", ".... ..9. .... ..9.", "9... ..9. .... ..3."),
        ("9..9 ..9. ..9. 9...", "..9. 9... 9..9 ..9.", "..9. .... 9..9 ...."),
        ((COWBELL, _QUARTERS), (COWBELL, "9.9. 9.99 9.9. 9.99"), (HIGH_TIMBALE, "9.99 .99. 9.99 .99."),
        (RIDE, "9.9. 99.9 .9.9 9.9.")),
        ("tumbao/fifth", "tumbao/chord", "bossa/fifth"), ghost=".1.. ..1. .1.. ..1.",
        extra=((MUTE_CONGA, "..9. .... ..9. ...."), (OPEN_CONGA, ".... ..99 .... ..99"),
        (HIGH_BONGO, "9.9. 9.9. 9.9. 9.9."), (74, "9... 9.9. 9... 9.9.")),
        snares=(CLAVES, RIM, HIGH_BLOCK, LOW_TIMBALE), tight=0.3,
    ),
    "ballad": Style(
        "4/4", 4, (66, 86), (0, 8, 40, 32), (33, 35, 32, 35), ("major", "minor", "lydian"),
        ("9... .... ..9. ....", "9... ...3 9... ..3.", "9... ..4. ..9. ...3", "9..4 .... 9... ...4"),
        (_BACKBEAT, ".... 9... .... 9..1"),
        ((HAT, _EIGHTHS), (RIDE, _EIGHTHS), (HAT, _SIXTEENTHS), (HAT, _QUARTERS), (SHAKER, _SIXTEENTHS)),
        ("half/slide", "kick/root", "long/approach", "half/fifth", "synco/chord", "eighths/chord"),
        ghost="...1 ..1. .... ..1.", open="..1. .... .... ..2.",
        extra=((TAMBOURINE, _BACKBEAT), (SHAKER, _EIGHTHS), (TRIANGLE, "9... .... .... ....")),
        snares=(SNARE, RIM, SNARE_2),
    ),
    "soul": Style(
        "4/4", 4, (80, 126), (0, 8, 32), (33, 33, 32, 34), ("major", "dorian", "mixolydian", "minor"),
        ("9... ..4. ..9. ..3.", "9.5. ..5. .39. ....", "9... 3... 9.4. ...."),
        (_BACKBEAT, "9... 9... 9... 9...", ".... 9.9. .... 9..."),
        ((HAT, _EIGHTHS), (RIDE, _EIGHTHS), (TAMBOURINE, _EIGHTHS), (HAT, _SIXTEENTHS)),
        ("synco/chord", "funk/chord", "kick/approach", "walk/walk", "synco/scale"), ghost=".2.2 ...2 .2.2 ..2.",
        open=_OPEN_8, extra=((TAMBOURINE, _BACKBEAT), (OPEN_CONGA, "..5. ..55 ..5. .55."), (CLAP, _BACKBEAT)),
        swing=(0.5, 0.6),
    ),
    "march": Style(
        "4/4", 4, (88, 126), (48, 48, 0), (32, 32, 33), ("major", "minor", "mixolydian"),
        ("9... .... 9... ....", "9... 9... 9... 9..."),
        ("9.99 9.9. 9.99 9.99", "..9. ..99 ..9. 9999", "9.9. 9.99 9999 9.9."),
        ((CRASH, "9... .... 9... ...."), (RIDE, _QUARTERS), (PEDAL, _BACKBEAT)),
        ("quarters/fifth", "half/fifth", "quarters/chord", "walk/walk"), ghost=".4.4 .4.4 .4.4 .4.4",
        extra=((TRIANGLE, _BACKBEAT), (HIGH_BLOCK, _EIGHTHS)), tight=0.4,
    ),
    "swing": Style(
        "4/4", 3, (100, 182), (32, 40, 0, 40), (32, 32, 32, 35), ("major", "minor", "blues", "dorian"),
        ("2.. ..1 2.. ..2", "3.. 3.. 3.. 3..", "9.. ... ... ..3"),
        ("... ..2 ..1 ..2", "..1 1.2 ..2 1..", "... 5.. ... 5.."),
        ((RIDE, "9.. 9.9 9.. 9.9"), (RIDE, "9.. 9.. 9.9 9.9"), (HAT, "9.. 9.9 9.. 9.9"), (RIDE_2, "9.. 9.9 9.. 9.9")),
        ("walk/walk", "walk/walk", "walk/chord", "half/fifth"), ghost=".1. ..2 .1. 1.2",
        extra=((PEDAL, "... 9.. ... 9.."), (PEDAL, "... 9.. ... 9..")), tight=0.2,
    ),
    "shuffle": Style(
        "4/4", 3, (84, 144), (0, 8, 16), (33, 34, 32), ("blues", "blues", "mixolydian", "minor"),
        ("9.. ..3 9.. ..3", "9.. ... 9.5 ...", "9.3 ..9 9.. ..9"), ("... 9.. ... 9..", "... 9.. ... 9.2"),
        ((HAT, "9.9 9.9 9.9 9.9"), (RIDE, "9.9 9.9 9.9 9.9"), (HAT, "9.. 9.. 9.. 9.."), (RIDE, "9.. 9.9 9.. 9.9")),
        ("shuffle/boogie", "quarters/boogie", "walk/walk", "shuffle/root", "riff/scale"), ghost="..2 ..3 ..2 ..3",
        open="..1 ... ... ..3", extra=((TAMBOURINE, "... 9.. ... 9.."), (COWBELL, "9.. 9.. 9.. 9..")),
    ),
    "slow_blues": Style(
        "4/4", 3, (66, 92), (0, 8, 40, 32), (33, 32, 35, 34), ("blues", "blues", "minor"),
        ("9.. ... 9.. ..3", "9.. ..9 9.. ...", "9.. ... 9.9 ..2"), ("... 9.. ... 9..", "... 9.. ... 9.3"),
        ((HAT, "999 999 999 999"), (RIDE, "999 999 999 999"), (RIDE, "9.9 9.9 9.9 9.9")),
        ("triplets/chord", "quarters/boogie", "walk/walk", "shuffle/root", "half/slide"), ghost="..1 .1. ..1 .1.",
        open="... ... ... ..3",
    ),
    "waltz": Style(
        "3/4", 4, (84, 172), (32, 40, 0, 48), (32, 33, 35), ("major", "minor", "lydian"),
        ("9... .... ....", "9... .... ..3.", "9... ..4. ...."), (".... 9... 9...", ".... 9... ..9.", ".... .... 9..."),
        ((RIDE, "9... 9.9. 9..."), (HAT, "9.9. 9.9. 9.9."), (HAT, "9... 9... 9..."), (RIDE, "9... 9... 9.9.")),
        ("one/fifth", "quarters/chord", "quarters/walk", "half/slide"), ghost="..1. ..1. ..2.",
        extra=((PEDAL, ".... 9... 9..."), (TAMBOURINE, ".... 9... 9...")), snares=(SNARE, RIM, SNARE_2),
        swing=(0.5, 0.66), swing_unit=2,
    ),
    "six_eight": Style(
        "6/8", 4, (70, 130), (0, 8, 16, 48), (33, 34, 32, 35), ("minor", "major", "mixolydian", "dorian"),
        ("9..... ......", "9..... ..4.3.", "9...5. ....4."), ("...... 9.....", "...... 9...3."),
        ((HAT, "9.9.9. 9.9.9."), (RIDE, "9.9.9. 9.9.9."), (HAT, "9..... 9....."), (SHAKER, "999999 999999")),
        ("eighths/chord", "half/fifth", "six/root", "eighths/root", "half/slide"), ghost="...1.. ..1.1.",
        open="....1. ....2.", extra=((TAMBOURINE, "...... 9....."), (SHAKER, "9.9.9. 9.9.9.")),
    ),
    "afro": Style(
        "6/8", 4, (96, 148), (0, 32, 8), (33, 32, 35, 36), ("dorian", "minor", "mixolydian"),
        ("9..... 9.....", "9...9. ..9...", "9..... 9...9."), ("....9. ....9.", "..9... ..9.9.", "...... 9....."),
        ((COWBELL, "9.9.99 .9.9.9"), (BELL, "9.9.99 .9.9.9"), (HAT, "9.9.9. 9.9.9."), (HIGH_AGOGO, "9.9..9 .9.9..")),
        ("six/chord", "riff/scale", "six/fifth", "kick/funk"), ghost=".2.2.. 2..2.2",
        extra=((OPEN_CONGA, "..9.9. ..9.9."), (LOW_CONGA, "9..... ..9..."), (SHAKER, "9.9.9. 9.9.9."),
        (CABASA, "999999 999999")),
        snares=(SNARE, RIM, LOW_TIMBALE),
    ),
}

#: Bass rhythms as grids, by the number of steps in a bar; "kick", "antikick" and "riff" are made from the song.
BASS_RHYTHMS = {
    16: {
        "eighths": _EIGHTHS, "sixteenths": _SIXTEENTHS, "quarters": _QUARTERS, "walk": "9..1 9.1. 9..1 9.1.",
        "offbeats": _OFFBEATS, "half": "9... .... 9... ..2.", "long": "9... .... ..3. ..2.",
        "gallop": "9.99 9.99 9.99 9.99", "funk": "9.35 ..53 .553 3.44", "synco": "9..6 ..7. .3.4 5.4.",
        "tumbao": "1... ..9. .... 9...", "bossa": "9..7 9... 9..7 9...", "reggae": "4.6. 6..3 7.5. 54..",
        "one": "9... .... ..3. ....",
    },
    "triplet": {
        "quarters": "9.. 9.. 9.. 9..", "walk": "9.1 9.2 9.1 9.3", "half": "9.. ... 9.. ..2",
        "shuffle": "9.9 9.9 9.9 9.9", "triplets": "9.9 9.9 999 9.9", "one": "9.. ... ... ..3",
        "synco": "9.4 ..7 4.5 .36",
    },
    "three": {
        "eighths": "9.9. 9.9. 9.9.", "quarters": "9... 9... 9...", "walk": "9... 9.1. 9.2.", "half": "9... .... 4...",
        "one": "9... .... 3.3.", "six": "9...5. 7.3.4.", "synco": "9..6 ..7. 3.4.", "funk": "9.45 ..53 .55.",
    },
}
#: Rhythms of chords on the piano as grids, by the same families of bars.
COMPING = {
    16: (
        "9... .... 9... ....", _QUARTERS, _OFFBEATS, _EIGHTHS, "9..9 ..9. ..9. ....", "9... ..9. ..7. 5...",
        "..9. 9..9 ..9. .9..", "9... .... .... ....",
    ),
    "triplet": ("9.. ... 9.. ...", "9.. 9.. 9.. 9..", "999 999 999 999", "..9 ... 9.. ..9", "9.. ..9 ... 9.9"),
    "three": ("9... .... ....", ".... 9... 9...", "9... 9... 9...", "9.9. 9.9. 9.9.", "9..... 9..9.."),
}
# fmt: on
