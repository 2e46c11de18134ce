"""Figures and tables of the book: one palette, one style, a caption for each."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from pandas.api.types import is_numeric_dtype

from hybridsep.report.players import mono
from hybridsep.report.templates import render

# Okabe and Ito's colours, told apart with every common colour blindness; the yellow is too pale for lines on white.
PALETTE = {
    "blue": "#0072B2", "vermillion": "#D55E00", "green": "#009E73", "purple": "#CC79A7", "sky": "#56B4E9", "orange": "#E69F00",
    "black": "#000000",
}  # fmt: skip
MAX_PNG_BYTES = 600_000  # ten such figures, as base64 text, still fit a page of 6 MB beside its players
WIDTH = 8.6  # inches of a figure as wide as the page: shown at three quarters, its text of 10 points can still be read
WINDOW = 1024  # samples of a spectrogram's Hann window; the hop is a quarter of it
LOWEST_HZ, RANGE_DB = 40.0, 70.0  # of a spectrogram; what lies further below the loudest bin is drawn as silence
MIN_WIDTH = 560  # CSS pixels under which the labels of a figure are too small to read


def use_style() -> None:
    """Set matplotlib's defaults for the book; call once at the top of a chapter."""
    plt.style.use(Path(__file__).parent / "static" / "book.mplstyle")
    plt.rcParams["axes.prop_cycle"] = plt.cycler(color=list(PALETTE.values()))


def number(value: float | np.number, decimals: int = 2) -> str:
    """Return a number as a reader expects it: thin spaces between thousands, a true minus sign, no sign before zero."""
    if not np.isfinite(value):
        return "undefined"
    whole = isinstance(value, (int, np.integer))
    text = f"{int(value):,}" if whole else f"{round(float(value), decimals) + 0.0:,.{decimals}f}"
    return text.replace(",", "\N{NARROW NO-BREAK SPACE}").replace("-", "−")


def plot_spectrograms(signals: Mapping[str, Any], sample_rate: int, columns: int = 2) -> Figure:
    """Draw magnitude spectrograms of waveforms [T] or [1, T], by title, in one decibel scale; ValueError: one is not mono or not finite."""
    levels = {}
    for title, signal in signals.items():
        samples = torch.from_numpy(mono(signal, title))
        spectrum = torch.stft(samples, WINDOW, WINDOW // 4, window=torch.hann_window(WINDOW), return_complex=True)
        levels[title] = (20 * torch.log10(spectrum.abs() + 1e-7)).numpy()
    loudest = max(level.max() for level in levels.values())
    columns = min(columns, len(levels))
    lines = -(-len(levels) // columns)
    size = WIDTH, (1.7 if columns > 2 else 2.3) * lines + 0.5
    figure, axes = plt.subplots(lines, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    hz = np.fft.rfftfreq(WINDOW, 1 / sample_rate)
    audible = hz >= LOWEST_HZ
    look = {"vmin": -RANGE_DB, "vmax": 0, "cmap": "magma", "shading": "nearest"}
    for axis, (title, level) in zip(axes.flat, levels.items(), strict=False):
        seconds = np.arange(level.shape[1]) * (WINDOW // 4) / sample_rate
        mesh = axis.pcolormesh(seconds, hz[audible], level[audible] - loudest, **look)
        axis.set(title=title, yscale="log")
        axis.grid(False)
    for axis in axes.flat[len(levels) :]:
        axis.remove()
    figure.supxlabel("time (s)", fontsize="medium")
    figure.supylabel("frequency (Hz)", fontsize="medium")
    figure.colorbar(mesh, ax=list(axes.flat[: len(levels)]), label="level (dB, loudest bin 0)", aspect=30)
    return figure


def show(figure: Figure | Sequence[Figure], caption: str, alt: str, provenance: str = "") -> HTML:
    """Return a figure as HTML, and close it; ValueError: caption or alt is empty, or the picture is too heavy for a page.

    The caption says what to see, with LaTeX between \\( and \\); `alt` what someone who cannot see it needs to know, in one or two sentences;
    `provenance`, the line below the caption, where the numbers come from. Several figures are panels: in one row, or stacked on a telephone.
    """
    if not caption.strip() or not alt.strip():
        raise ValueError("a figure of the book needs a caption and an alt text")
    panels = [_panel(one) for one in ([figure] if isinstance(figure, Figure) else figure)]
    return HTML(render("figure.html", panels=panels, caption=caption, alt=alt, provenance=provenance))


def _panel(figure: Figure) -> dict[str, Any]:
    """Draw and close a figure: its PNG in base64, what kind of picture it is, its width, and the least it is readable at."""
    # Colours of a picture mean something; those of a drawing are turned over on dark pages.
    picture_like = any(axis.images or any(isinstance(c, QuadMesh) for c in axis.collections) for axis in figure.axes)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    plt.close(figure)
    picture = file.getvalue()
    if len(picture) > MAX_PNG_BYTES:
        raise ValueError(f"the figure weighs {len(picture)} bytes, more than {MAX_PNG_BYTES}: make it simpler")
    width = int.from_bytes(picture[16:20], "big")  # from the PNG's header
    kind, png = "hs-picture" if picture_like else "hs-drawing", base64.b64encode(picture).decode("ascii")
    return {"kind": kind, "png": png, "width": width, "least": min(width, MIN_WIDTH)}


def results_table(table: pd.DataFrame, caption: str, provenance_line: str, decimals: int = 2) -> HTML:
    """Return a table of results with a caption as in `show` above it and where it comes from beneath; ValueError: it has no rows.

    Its index is shown when it has a name, floats get `decimals` places, missing values a dash.
    """
    if table.empty:
        raise ValueError("results_table got a table without rows")
    shown = table.reset_index() if any(name is not None for name in table.index.names) else table
    headings = [" ".join(name).strip() if isinstance(name, tuple) else str(name) for name in shown.columns]
    rows = [[_format(value, decimals) for value in row] for row in shown.itertuples(index=False, name=None)]
    cells = {"headings": headings, "rows": rows, "numeric": [is_numeric_dtype(dtype) for dtype in shown.dtypes]}
    return HTML(render("results.html", **cells, caption=caption, provenance=provenance_line))


def _format(value: Any, decimals: int) -> str:
    numeric = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return "–" if pd.isna(value) else number(value, decimals) if numeric else str(value)
