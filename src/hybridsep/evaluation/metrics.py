"""Scores of an estimated source against a reference: energy ratios in dB, and a distance of spectra."""

import functools
import importlib.util
import types
import warnings
from pathlib import Path

import joblib
import numpy as np
from scipy.fft import rfft
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from hybridsep.core.errors import HybridsepError

BSS_EVAL = ("sdr", "isr", "sir", "sar")
STFT_SIZES = (2048, 512, 128)
# Mixtures under which BSS Eval runs here: other processes take some seconds to start.
FEWEST_IN_PARALLEL = 24


def sdr(estimate: np.ndarray, reference: np.ndarray, window: int) -> np.ndarray:
    """Return the SDR of BSS Eval v4, dB: median over windows of 10 log10(‖s‖² / ‖s − ŝ‖²).

    With one channel, museval's four components add up to the estimate, so its SDR needs none of its 512-tap filters: this is the same
    figure thousands of times faster (a test compares them). museval also leaves out windows in which another source or an estimate is
    silent (`nan_windows`); here a window counts wherever its own reference sounds. NaN where it is silent in all of them.
    float [..., T], of shapes that broadcast -> float [...]. `window` is in samples, the hop as well; a last, shorter window is left out.
    """
    target, estimated = _windows(reference, window), _windows(estimate, window)
    with np.errstate(divide="ignore", invalid="ignore"):
        values = 10 * np.log10(_energy(target) / _energy(target - estimated))
    values = np.where(_energy(target) > 0, values, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmedian(values, axis=-1)


def _windows(x: np.ndarray, window: int) -> np.ndarray:
    """Return the whole windows of signals: [..., T] -> [..., windows, window]."""
    count = x.shape[-1] // window
    return x[..., : count * window].reshape(*x.shape[:-1], count, window)


def _energy(x: np.ndarray) -> np.ndarray:
    """Return Σ x² over the last axis, summed in float64."""
    return np.einsum("...t,...t->...", x, x, dtype=np.float64, casting="same_kind")


def si_sdr(estimate: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Return the scale-invariant SDR, dB: float [..., T] -> float [...]. Source: Le Roux et al. 2019 (arXiv 1811.02508), eq. 5."""
    target = reference.astype(np.float64)
    scale = (estimate * target).sum(-1, keepdims=True) / np.maximum((target**2).sum(-1, keepdims=True), 1e-12)
    projected = scale * target
    error = projected - estimate
    with np.errstate(divide="ignore"):
        values = 10 * np.log10((projected**2).sum(-1) / np.maximum((error**2).sum(-1), 1e-12))
    return np.where((target**2).sum(-1) > 0, values, np.nan)[()]


def stft_distance(estimate: np.ndarray, reference: np.ndarray, sizes: tuple[int, ...] = STFT_SIZES) -> np.ndarray:
    """Return the multi-resolution STFT distance ‖|S| − |Ŝ|‖ / ‖|S|‖, mean over window lengths: blind to phase, 0 at best, 1 for silence.

    float [..., T] that broadcast -> float [...]; NaN where the reference is silent. `sizes` are lengths of the Hann windows in samples, whose
    hop is a quarter. Source: Yamamoto et al. 2020 (arXiv 1910.11480), eq. 6.
    """
    distances = []
    for size in sizes:
        target = _magnitudes(reference, size)
        both = target - _magnitudes(estimate, size), target
        error, norm = (np.sqrt((x**2).sum((-2, -1), dtype=np.float64)) for x in both)
        with np.errstate(divide="ignore", invalid="ignore"):
            distances.append(np.where(norm > 0, error / norm, np.nan))
    return np.mean(distances, axis=0)[()]


def _magnitudes(waveform: np.ndarray, size: int) -> np.ndarray:
    """Return the STFT's magnitudes, [..., T] -> [..., frames, size / 2 + 1], in the precision of the waveform."""
    padding = [(0, 0)] * (waveform.ndim - 1) + [(size // 2, size // 2)]
    padded = np.pad(waveform, padding, mode="reflect")
    frames = np.lib.stride_tricks.sliding_window_view(padded, size, axis=-1)[..., :: size // 4, :]
    return np.abs(rfft(frames * np.hanning(size + 1)[:-1].astype(waveform.dtype)))


def nan_windows(estimates: np.ndarray, references: np.ndarray, window: int) -> np.ndarray:
    """Count the windows in which any reference or any estimate is silent, which BSS Eval leaves out: float [P, ..., T] -> int [...]."""
    sounds = _windows(estimates, window).any(-1) & _windows(references, window).any(-1)
    return np.logical_not(sounds.all(0)).sum(-1)


def bss_eval(
    estimates: np.ndarray, references: np.ndarray, window: int, label: str | None = None
) -> dict[str, np.ndarray]:
    """Return SDR, ISR, SIR and SAR of BSS Eval v4 by museval, dB, with win = hop = `window` samples: float [P, ..., T] -> float [P, ...].

    Median over windows; those where any reference or estimate is silent are left out. HybridsepError: one is silent throughout, for which BSS
    Eval is not defined. Many mixtures are scored in as many processes as there are cores. Each computes on one thread, here too, so that the
    figures are the same bit for bit however many processes there are. A progress bar is shown where it has a label.
    """
    for what, signals in (("reference", references), ("estimate", estimates)):
        if not np.abs(signals).sum(-1).all():
            raise HybridsepError(f"BSS Eval is not defined for a silent {what}")
    shape = references.shape[:-1]
    pairs = [np.moveaxis(x.reshape(len(x), -1, x.shape[-1]), 1, 0) for x in np.broadcast_arrays(estimates, references)]
    count = len(pairs[0])
    processes = -1 if count >= FEWEST_IN_PARALLEL else 1
    jobs = (joblib.delayed(_score_mixture)(*pair, window) for pair in zip(*pairs, strict=True))
    scores = joblib.Parallel(processes, return_as="generator")(jobs)
    values = np.stack(list(tqdm(scores, desc=label, total=count, unit="mixture", disable=label is None)), -1)
    return {name: value.reshape(shape) for name, value in zip(BSS_EVAL, values, strict=True)}


def _score_mixture(estimates: np.ndarray, references: np.ndarray, window: int) -> np.ndarray:
    """Return BSS_EVAL's figures of one mixture: float [P, T] -> [4, P]."""
    # Its small products wait for each other on more threads, and their sums would depend on how many there are.
    with threadpool_limits(1):
        values = museval_metrics().bss_eval(references[..., None], estimates[..., None], window=window, hop=window)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.stack([np.nanmedian(v, axis=1) for v in values[: len(BSS_EVAL)]])


@functools.lru_cache
def museval_metrics() -> types.ModuleType:
    """Return museval's module of metrics by itself: the package wants musdb, and that ffmpeg on the PATH, to read files."""
    package = importlib.util.find_spec("museval")
    assert package and package.origin
    spec = importlib.util.spec_from_file_location("museval_metrics", Path(package.origin).with_name("metrics.py"))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
