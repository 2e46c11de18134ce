"""The audio player of the book, whose sounds, style and script travel inside the page: it plays from a file and without a network."""

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import soundfile
from IPython.display import HTML
from markupsafe import Markup

from hybridsep.report.templates import render

MP3_SAMPLE_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz
MP3 = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": 0.7}
PEAK = 0.95  # MP3 overshoots its input a little, and full scale is where a loudspeaker clips
WAVEFORM_BINS = 240

_next_id = count(1)


def player_table(rows: Sequence[Mapping[str, Any]], sample_rate: int, caption: str) -> HTML:
    """Return a player of one sound at a time, to compare many at the same place.

    Each row maps column headings to cells. The first cell is text and names the row; of the others a string is shown beside it, None as nothing,
    anything else is a waveform [T] at `sample_rate` Hz. In the caption LaTeX between \\( and \\) is typeset. ValueError: no rows, two of one
    name, headings that differ, or a waveform that `mono` refuses.
    """
    if not rows:
        raise ValueError("player_table needs at least one row")
    headings = list(rows[0])
    groups: dict[str, list[str]] = {}
    sounds: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for number, row in enumerate(rows):
        if list(row) != headings:
            raise ValueError(f"row {number} of the player table has columns {list(row)}, the first has {headings}")
        name, *cells = row.values()
        if not isinstance(name, str) or name in groups:
            raise ValueError(f"the first column must name each row by itself, row {number} has {name!r}")
        named = list(zip(headings[1:], cells, strict=True))
        texts[name] = ", ".join(f"{heading}: {cell}" for heading, cell in named if isinstance(cell, str))
        heard = {f"{h} ({name})": cell for h, cell in named if cell is not None and not isinstance(cell, str)}
        sounds |= heard
        groups[name] = list(heard)
    return _player(sounds, sample_rate, caption, groups, {}, {}, texts, one=True)


def stem_player(
    stems: Mapping[str, Any],
    sample_rate: int,
    title: str,
    groups: Mapping[str, Sequence[str]] | None = None,
    notes: Mapping[str, str] | None = None,
    doubts: Mapping[str, Sequence[float]] | None = None,
) -> HTML:
    """Return a player in which every stem keeps the same position while stems are soloed and muted.

    Args:
        stems: name to waveform [T], all of one length; all are played at one common gain.
        title: heading of the player and its accessible name.
        groups: heading to names of stems, for example {"mixture": [...], "truth": [...], "Hybrid": [...]}; every stem in exactly one group. The
            first group is heard at the start, the others are muted, and each gets a button that plays it alone. Without groups all stems are
            heard. A name that ends with its group in parentheses, as in "bass (Hybrid)", is shown without it.
        notes: name to what stands beside it, such as its score.
        doubts: name to values from 0 to 1, evenly over time, which shade its waveform.

    A script may read `element.gains` of the element `.hs-stems`: {stem: gain as the browser applies it}. ValueError: no stems, lengths that
    differ, stems missing from the groups, or a waveform that `mono` refuses.
    """
    if not stems:
        raise ValueError("stem_player needs at least one stem")
    lengths = {name: len(mono(waveform, name)) for name, waveform in stems.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"stems of one player must have one length in samples, got {lengths}")
    members = {"": list(stems)} if groups is None else {name: list(names) for name, names in groups.items()}
    named = [name for names in members.values() for name in names]
    if sorted(named) != sorted(stems):
        raise ValueError(f"groups must name every stem once: stems {sorted(stems)}, groups {sorted(named)}")
    return _player(stems, sample_rate, title, members, notes or {}, doubts or {}, {}, one=False)


def _player(
    stems: Mapping[str, Any],
    sample_rate: int,
    title: str,
    groups: Mapping[str, Sequence[str]],
    notes: Mapping[str, str],
    doubts: Mapping[str, Sequence[float]],
    texts: Mapping[str, str],
    one: bool,
) -> HTML:
    sounds = {name: mono(waveform, name) for name, waveform in stems.items()}
    # A group that sounds together must not clip either.
    together = [np.sum([sounds[name] for name in names], axis=0) for names in groups.values() if names and not one]
    gain, tallest = common_gain([*sounds.values(), *together]), max(np.abs(s).max() for s in sounds.values())
    shown = {
        group: [
            {
                "name": name,
                "shown": name.removesuffix(f" ({group})"),
                "note": notes.get(name, ""),
                "shade": _shade(doubts.get(name, ())),
                "outline": _outline(sounds[name], tallest),
                "mp3": _mp3_text(sounds[name], sample_rate, gain),
            }
            for name in names
        ]
        for group, names in groups.items()
    }
    seconds = max(map(len, sounds.values())) / sample_rate
    values = {"title": title, "groups": shown, "number": next(_next_id), "seconds": seconds, "bins": WAVEFORM_BINS}
    texts = {group: texts.get(group, "") for group in groups}
    return HTML(render("stems.html", **values, sample_rate=sample_rate, texts=texts, one=one))


def listening_test(
    clips: Mapping[str, Mapping[str, Any]], sample_rate: int, title: str, reference: str = "reference"
) -> HTML:
    """Return a blind listening test in the page: rating after MUSHRA (ITU-R BS.1534) and ABX, with a tally and its download.

    `clips` maps the name of a clip to its sounds, name -> waveform [T] at `sample_rate` Hz, which are played at one gain; `reference` is the sound
    that the others are compared with. ValueError: no clips, one without the reference or with nothing beside it, or a waveform that `mono` refuses.
    """
    if not clips or any(reference not in sounds or len(sounds) < 2 for sounds in clips.values()):
        raise ValueError(f"every clip needs the sound '{reference}' and another one")
    shown = [
        {
            "name": name,
            "reference": reference,
            "sounds": {
                label: _mp3_text(mono(sound, label), sample_rate, common_gain(list(sounds.values())))
                for label, sound in sounds.items()
            },
        }
        for name, sounds in clips.items()
    ]
    return HTML(render("listening.html", clips=shown, sample_rate=sample_rate, title=title, number=next(_next_id)))


def chooser(pages: Mapping[tuple[str, ...], HTML], names: Sequence[str]) -> HTML:
    """Return menus of these names that show one of many pages, what to choose in each menu -> page, without a kernel or a network."""
    shown = {key: Markup(page.data) for key, page in pages.items()}
    return HTML(render("chooser.html", pages=shown, names=names, number=next(_next_id)))


def common_gain(waveforms: Sequence[Any]) -> float:
    """Return the largest factor, at most 1, that keeps every one of these waveforms under full scale."""
    peak = max((float(np.abs(mono(waveform, "waveform")).max()) for waveform in waveforms), default=0.0)
    return min(1.0, PEAK / peak) if peak else 1.0


def mp3_bytes(waveform: Any, sample_rate: int, gain: float = 1.0) -> bytes:
    """Encode a mono waveform [T] as MP3 at about 7 kB a second (22 050 Hz)."""
    if sample_rate not in MP3_SAMPLE_RATES:
        raise ValueError(f"MP3 has no sample rate of {sample_rate} Hz; resample to one of {MP3_SAMPLE_RATES}")
    file = io.BytesIO()
    soundfile.write(file, np.clip(mono(waveform, "waveform") * gain, -1.0, 1.0), sample_rate, **MP3)
    return file.getvalue()


def mono(waveform: Any, label: str) -> np.ndarray:
    """Return a waveform as float32 [T]; refuse what cannot be heard."""
    waveform = waveform.detach().cpu().float() if hasattr(waveform, "detach") else waveform
    samples = np.asarray(waveform, dtype=np.float32)
    if samples.ndim == 2 and samples.shape[0] == 1:
        samples = samples[0]
    if samples.ndim != 1 or not samples.size:
        raise ValueError(f"{label}: expected mono samples [T] with T > 0, got shape {samples.shape}")
    if not np.isfinite(samples).all():
        raise ValueError(f"{label}: {int((~np.isfinite(samples)).sum())} of {samples.size} samples are NaN or infinite")
    return samples


def _shade(doubts: Sequence[float]) -> str:
    """Return CSS that shades a lane, the more the greater the doubt at that place; "" without any."""
    if not len(doubts):
        return ""
    shades = (f"rgba(213,94,0,{0.7 * min(1.0, max(0.0, float(doubt))):.2f})" for doubt in doubts)
    return f"background:linear-gradient(to right,{','.join(shades)})"


def _mp3_text(samples: np.ndarray, sample_rate: int, gain: float) -> str:
    return base64.b64encode(mp3_bytes(samples, sample_rate, gain)).decode("ascii")


def _outline(samples: np.ndarray, tallest: float) -> str:
    """Return an SVG path around a waveform, in a box of WAVEFORM_BINS x 2: lowest and highest sample of each bin."""
    bins = np.array_split(samples / (tallest or 1.0), min(WAVEFORM_BINS, samples.size))
    width = WAVEFORM_BINS / len(bins)
    # Silence still draws a line.
    top = [f"{i * width:.4g} {1 - max(b.max(), 0.01):.2f}" for i, b in enumerate(bins)]
    bottom = [f"{i * width:.4g} {1 - min(b.min(), -0.01):.2f}" for i, b in reversed(list(enumerate(bins)))]
    return f"M{'L'.join(top + bottom)}Z"
