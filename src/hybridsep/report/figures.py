"""Figures and tables of the book: one palette, one style, captions and alt texts that cannot be forgotten."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from IPython.display import HTML
from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart with every common colour blindness; the yellow is too pale for lines on white.
PALETTE = {
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "sky": "#56B4E9",
    "orange": "#E69F00",
    "black": "#000000",
}
MAX_PNG_BYTES = 600_000  # ten such figures, as base64 text, still fit a page of 6 MB beside its players
DPI = 110
WIDTH = (
    8.6  # inches of a figure as wide as the page: on the screen three quarters of it, text of 10 points still readable
)
WINDOW = 1024  # samples of a spectrogram's Hann window; the hop is a quarter of it
LOWEST_HZ, RANGE_DB = 40.0, 70.0  # of a spectrogram; what lies further below the loudest bin is drawn as silence
MIN_WIDTH = 560  # CSS pixels under which the labels of a figure are too small to read


def use_style() -> None:
    """Set matplotlib's defaults for the book; call once at the top of a chapter."""
    plt.rcParams.update(
        {
            "axes.prop_cycle": plt.cycler(color=list(PALETTE.values())),
            "axes.grid": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "figure.constrained_layout.use": True,
            "figure.dpi": DPI,
            "figure.facecolor": "white",
            "figure.figsize": (7.2, 3.6),
            "font.size": 10,
            "grid.alpha": 0.3,
            "image.cmap": "cividis",
            "legend.frameon": False,
            "savefig.dpi": DPI,
            "savefig.facecolor": "white",
        }
    )


def number(value: float, decimals: int = 2) -> str:
    """A number as a reader expects it: thin spaces between thousands, a true minus sign, no sign before zero."""
    if not np.isfinite(value):
        return "undefined"
    whole = isinstance(value, (int, np.integer))
    text = f"{int(value):,}" if whole else f"{round(float(value), decimals) + 0.0:,.{decimals}f}"
    return text.replace(",", "\N{NARROW NO-BREAK SPACE}").replace("-", "−")


def plot_spectrograms(signals: Mapping[str, Any], sample_rate: int, columns: int = 2) -> Figure:
    """Magnitude spectrograms side by side, in one decibel scale, on a logarithmic frequency axis.

    Args:
        signals: title to waveform [T] or [1, T].
        sample_rate: Hz.
        columns: panels in a row.

    Raises:
        ValueError: no signals, or one that is not mono, not finite or shorter than the window.
    """
    if not signals:
        raise ValueError("plot_spectrograms needs at least one signal")
    levels = {title: _level_db(signal, title) for title, signal in signals.items()}
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


def show(figure: Figure, caption: str, alt: str) -> HTML:
    """Figure as HTML with its caption, and close it.

    Args:
        figure: drawn figure.
        caption: what to see in it; LaTeX between \\( and \\) is typeset.
        alt: what someone who cannot see it needs to know, in one or two sentences.

    Raises:
        ValueError: caption or alt is empty, or the picture is too heavy for a page.
    """
    if not caption.strip() or not alt.strip():
        raise ValueError("a figure of the book needs a caption and an alt text")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI)
    plt.close(figure)
    picture = file.getvalue()
    if len(picture) > MAX_PNG_BYTES:
        raise ValueError(
            f"the figure weighs {len(picture)} bytes, more than {MAX_PNG_BYTES}; make it smaller or simpler"
        )
    data = base64.b64encode(picture).decode("ascii")
    width = int.from_bytes(picture[16:20], "big")  # from the PNG's header
    # On a telephone it scrolls rather than shrink until its labels cannot be read.
    return HTML(
        '<figure style="margin:1.2rem 0"><div style="overflow-x:auto" tabindex="0">'
        f'<img style="width:100%;min-width:{min(width, MIN_WIDTH)}px;max-width:{width}px;height:auto;background:#fff" '
        f'alt="{escape(alt)}" src="data:image/png;base64,{data}"></div>'
        '<figcaption class="mathjax_process" style="margin-top:.4rem;text-align:left;color:inherit;font-weight:inherit">'
        f"{escape(caption)}</figcaption></figure>"
    )


def results_table(table: pd.DataFrame, caption: str, provenance_line: str, decimals: int = 2) -> HTML:
    """Table of results with what it shows above it and where it comes from beneath.

    Args:
        table: rows in reading order; its index is shown when it has a name, floats get `decimals` places, missing
            values a dash.
        caption: what to see; LaTeX between \\( and \\) is typeset.
        provenance_line: profile, hardware, date, commit: what a reader needs to judge the numbers.
        decimals: places after the point.

    Raises:
        ValueError: the table has no rows.
    """
    if table.empty:
        raise ValueError("results_table got a table without rows")
    shown = table.reset_index() if any(name is not None for name in table.index.names) else table
    headings = [" ".join(map(str, name)).strip() if isinstance(name, tuple) else str(name) for name in shown.columns]
    numeric = [pd.api.types.is_numeric_dtype(dtype) for dtype in shown.dtypes]
    cell = '<{tag} style="padding:.25rem .5rem;border-bottom:1px solid var(--pst-color-border,#c9c9c9);{align}">{text}</{end}>'
    aligned = [
        "text-align:right;font-variant-numeric:tabular-nums" if right else "text-align:left" for right in numeric
    ]

    def line(tag: str, values: Iterable[Any]) -> str:
        texts = [escape(_format(value, decimals)) for value in values]
        cells = (cell.format(tag=tag, align=a, text=t, end=tag[:2]) for t, a in zip(texts, aligned, strict=True))
        return f"<tr>{''.join(cells)}</tr>"

    head = line('th scope="col"', headings)
    body = "".join(line("td", row) for row in shown.itertuples(index=False, name=None))
    return HTML(
        # The caption stands outside of what scrolls: as wide as the page, not as the table.
        f'<div class="hs-results" style="margin:1.2rem 0"><p class="mathjax_process" style="margin:0 0 .3rem">{escape(caption)}</p>'
        f'<div class="hs-scroll" style="overflow-x:auto" tabindex="0" role="region" aria-label="{escape(caption)}">'
        f'<table aria-label="{escape(caption)}" style="border-collapse:collapse;margin:0;font-size:.9rem">'
        f"<thead>{head}</thead><tbody>{body}</tbody></table></div>"
        f'<p style="font-size:.8rem;opacity:.85;margin:.3rem 0 0">{escape(provenance_line)}</p></div>'
    )


def _format(value: Any, decimals: int) -> str:
    if value is None or value is pd.NA or value != value:
        return "–"
    is_number = isinstance(value, (int, float, np.number)) and not isinstance(value, bool)
    return number(value, decimals) if is_number else str(value)


def _level_db(signal: Any, title: str) -> np.ndarray:
    """Level in dB of each bin, [WINDOW / 2 + 1, frames]."""
    samples = torch.as_tensor(signal, dtype=torch.float32).detach().cpu().squeeze()
    if samples.ndim != 1 or samples.numel() < WINDOW:
        raise ValueError(f"{title}: expected at least {WINDOW} mono samples, got shape {tuple(samples.shape)}")
    if not bool(torch.isfinite(samples).all()):
        raise ValueError(f"{title}: the waveform has samples that are NaN or infinite")
    spectrum = torch.stft(samples, WINDOW, WINDOW // 4, window=torch.hann_window(WINDOW), return_complex=True)
    return (20 * torch.log10(spectrum.abs() + 1e-7)).numpy()
