"""Audio players for the book, whose sounds, style and script travel inside the page: it plays from a file and without a network."""

import base64
import io
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
import soundfile
from IPython.display import HTML

from hybridsep.report.templates import render

MP3_SAMPLE_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)  # Hz
MP3 = {"format": "MP3", "subtype": "MPEG_LAYER_III", "bitrate_mode": "CONSTANT", "compression_level": 0.7}
PEAK = 0.95  # MP3 overshoots its input a little, and full scale is where a loudspeaker clips
WAVEFORM_BINS = 240

_next_id = count(1)


def player_table(rows: Sequence[Mapping[str, Any]], sample_rate: int, caption: str) -> HTML:
    """Return a table of players at one common gain; ValueError: no rows, other headings in a row, or a waveform that `mono` refuses.

    A row is heading to cell. The first cell is text and names the row; of the others a string is shown as text, None as a dash, anything else
    is a waveform [T]. In the caption LaTeX between \\( and \\) is typeset.
    """
    if not rows:
        raise ValueError("player_table needs at least one row")
    headings, lines = list(rows[0]), []
    for number, row in enumerate(rows):
        if list(row) != headings:
            raise ValueError(f"row {number} of the player table has columns {list(row)}, the first has {headings}")
        name, *cells = ("–" if cell is None else cell for cell in row.values())
        if not isinstance(name, str):
            raise ValueError(f"the first column must be text, row {number} has {type(name).__name__}")
        lines.append([name, *(c if isinstance(c, str) else mono(c, f"row {number}, {name}") for c in cells)])
    gain = common_gain([cell for line in lines for cell in line if not isinstance(cell, str)])
    shown = [[cell if isinstance(cell, str) else _sound(cell, sample_rate, gain) for cell in line] for line in lines]
    return HTML(render("table.html", headings=headings, lines=shown, caption=caption))


def stem_player(
    stems: Mapping[str, Any], sample_rate: int, title: str, groups: Mapping[str, Sequence[str]] | None = None
) -> HTML:
    """Return a synchronised player: every stem keeps the same position while stems are soloed and muted.

    Args:
        stems: name to waveform [T], all of one length; all are played at one common gain.
        title: heading of the player and its accessible name.
        groups: heading to names of stems, for example {"mixture": [...], "truth": [...], "Hybrid": [...]}; every stem in exactly one group. The
            first group is heard at the start, the others are muted, and each gets a button that plays it alone. Without groups all stems are
            heard. A name that ends with its group in parentheses, as in "bass (Hybrid)", is shown without it.

    A script may read `element.gains` of the element `.hs-stems`: {stem: gain as the browser applies it}. ValueError: no stems, lengths that
    differ, stems missing from the groups, or a waveform that `mono` refuses.
    """
    if not stems:
        raise ValueError("stem_player needs at least one stem")
    sounds = {name: mono(waveform, name) for name, waveform in stems.items()}
    lengths = {name: len(sound) for name, sound in sounds.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"stems of one player must have one length in samples, got {lengths}")
    members = {"": list(sounds)} if groups is None else {name: list(names) for name, names in groups.items()}
    named = [name for names in members.values() for name in names]
    if sorted(named) != sorted(sounds):
        raise ValueError(f"groups must name every stem once: stems {sorted(sounds)}, groups {sorted(named)}")

    # A group sounds together, so its sum must not clip either.
    sums = [np.sum([sounds[name] for name in names], axis=0) for names in members.values() if names]
    gain, tallest = common_gain([*sounds.values(), *sums]), max(np.abs(s).max() for s in sounds.values())
    shown = {
        group: [
            {"name": name, "shown": name.removesuffix(f" ({group})"), "outline": _outline(sounds[name], tallest)}
            | _sound(sounds[name], sample_rate, gain)
            for name in names
        ]
        for group, names in members.items()
    }
    seconds = next(iter(lengths.values())) / sample_rate
    values = {"title": title, "groups": shown, "number": next(_next_id), "seconds": seconds, "bins": WAVEFORM_BINS}
    return HTML(render("stems.html", **values))


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


def _sound(samples: np.ndarray, sample_rate: int, gain: float) -> dict[str, Any]:
    mp3 = base64.b64encode(mp3_bytes(samples, sample_rate, gain)).decode("ascii")
    return {"seconds": len(samples) / sample_rate, "mp3": mp3}


def _outline(samples: np.ndarray, tallest: float) -> str:
    """Return an SVG path around a waveform, in a box of WAVEFORM_BINS x 2: lowest and highest sample of each bin."""
    bins = np.array_split(samples / (tallest or 1.0), min(WAVEFORM_BINS, samples.size))
    width = WAVEFORM_BINS / len(bins)
    # Silence still draws a line.
    top = [f"{i * width:.4g} {1 - max(b.max(), 0.01):.2f}" for i, b in enumerate(bins)]
    bottom = [f"{i * width:.4g} {1 - min(b.min(), -0.01):.2f}" for i, b in reversed(list(enumerate(bins)))]
    return f"M{'L'.join(top + bottom)}Z"
