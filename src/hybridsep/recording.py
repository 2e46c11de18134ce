"""Separating a person's own recording: read any format, separate in overlapping windows, write stems at the input's rate."""

from __future__ import annotations

import math
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from scipy.signal import resample_poly
from torch import Tensor

from hybridsep.errors import HybridsepError
from hybridsep.separation import Separator, wiener

WINDOW_SECONDS = 3.0
OVERLAP_SECONDS = 0.5
SHORTEST_SECONDS = 0.2
MASK_SECONDS = 0.1


@dataclass(frozen=True)
class Separation:
    """Stems of one recording.

    Attributes:
        stems: float32 [P, channels, samples], each on the scale on which they sum to the recording.
        sample_rate: Hz, the recording's.
        log_evidence: nats per code, mean over windows.
    """

    stems: Tensor
    sample_rate: int
    log_evidence: float


def read_audio(path: Path) -> tuple[Tensor, int]:
    """Waveform float32 [channels, samples] and its rate in Hz.

    Raises:
        HybridsepError: not there, not audio, empty, shorter than 0.2 s, or with samples that are no finite numbers.
    """
    if not path.exists():
        raise HybridsepError(f"no file {path}")
    if path.is_dir():
        raise HybridsepError(f"{path} is a folder, not a recording")
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except PermissionError:
        raise HybridsepError(f"{path} may not be read: permission denied") from None
    except (soundfile.LibsndfileError, RuntimeError, OSError) as error:
        raise HybridsepError(f"{path} is no audio that can be read: {str(error).rstrip('.').split(': ')[-1]}") from None
    waveform = torch.from_numpy(np.ascontiguousarray(samples.T))
    check_waveform(waveform, rate, str(path))
    return waveform, rate


def check_waveform(waveform: Tensor, rate: int, name: str) -> None:
    """Refuse what cannot be separated.

    Raises:
        HybridsepError: as in `read_audio`.
    """
    if not waveform.shape[0]:
        raise HybridsepError(f"{name} has no channels")
    if waveform.shape[-1] < SHORTEST_SECONDS * rate:
        raise HybridsepError(f"{name} lasts {waveform.shape[-1] / rate:.3f} s; at least {SHORTEST_SECONDS} s is needed")
    if not torch.isfinite(waveform).all():
        raise HybridsepError(f"{name} holds samples that are no finite numbers")


def separate_recording(
    separator: Separator, waveform: Tensor, sample_rate: int, search: str = "particle", particles: int | None = None, seed: int = 0, refine: bool = True
) -> Separation:
    """Separate float32 [channels, samples] of any rate and length; all windows go through the search as one batch.

    The model hears the mono mean at its own rate. Without `refine` the stems are the model's own waveforms, in mono on every
    channel; with it they are masks of the recording itself, channel by channel, and sum to it.
    """
    check_waveform(waveform, sample_rate, "the recording")
    names = separator.profile.source_names
    if not waveform.abs().max() > 0:
        warnings.warn("the recording is silent throughout; so are its stems", stacklevel=2)
        return Separation(waveform.expand(len(names), *waveform.shape).clone(), sample_rate, 0.0)
    mono = resample(waveform.mean(0), sample_rate, separator.sample_rate)
    windows, step = cut_windows(mono, separator.sample_rate, separator.hop)
    particles = particles or separator.profile.search.particles
    # Slice by slice, so that memory does not grow with the recording times N.
    slices = windows.split(max(1, separator.profile.search.max_rows // particles))
    means, nats = [], 0.0
    for index, part in enumerate(slices):
        label = f"separating, part {index + 1} of {len(slices)}" if len(slices) > 1 else "separating"
        found = separator.estimate(part, search, particles, seed + 7919 * index, label)
        means.append(found.stems.cpu())
        nats += float(found.search.log_evidence.sum()) / found.search.codes.shape[-1]
    stems = join_windows(torch.cat(means, 1), step, len(mono))
    upsampled = resample(stems, separator.sample_rate, sample_rate)[..., : waveform.shape[-1]]
    upsampled = torch.nn.functional.pad(upsampled, (0, waveform.shape[-1] - upsampled.shape[-1]))
    evidence = nats / len(windows)
    if refine:
        size = 2 ** round(np.log2(MASK_SECONDS * sample_rate))
        per_channel = upsampled[:, None].expand(-1, len(waveform), -1)
        return Separation(wiener(per_channel, waveform, size) / len(names), sample_rate, evidence)
    return Separation((upsampled / len(names))[:, None].expand(-1, len(waveform), -1).contiguous(), sample_rate, evidence)


def resample(waveform: Tensor, old_rate: int, new_rate: int) -> Tensor:
    """float32 [..., samples] from one rate in Hz to another."""
    if old_rate == new_rate:
        return waveform
    common = math.gcd(old_rate, new_rate)
    return torch.from_numpy(resample_poly(waveform.numpy(), new_rate // common, old_rate // common, axis=-1).astype(np.float32))


def cut_windows(mono: Tensor, rate: int, hop: int = 1) -> tuple[Tensor, int]:
    """Overlapping windows [B, T] of a waveform [samples], the last one padded with zeros, and the step between them in samples.

    A window is a whole number of codes of `hop` samples, or the search would cut its end off.
    """
    length = -(-int(WINDOW_SECONDS * rate) // hop) * hop
    step = length - int(OVERLAP_SECONDS * rate)
    count = max(1, -(-(len(mono) - length) // step) + 1)
    padded = torch.nn.functional.pad(mono, (0, (count - 1) * step + length - len(mono)))
    return padded.unfold(0, length, step), step


def join_windows(stems: Tensor, step: int, length: int) -> Tensor:
    """Cross-fade windows [P, B, T] laid `step` samples apart into [P, length]."""
    sources, count, size = stems.shape
    fade = max(1, size - step)
    window = torch.ones(count, size)
    ramp = (torch.arange(fade) + 0.5) / fade
    window[1:, :fade] *= ramp
    window[:-1, size - fade :] *= ramp.flip(0)
    total = torch.zeros(sources, max(length, (count - 1) * step + size))
    weight = torch.zeros(total.shape[1])
    for b in range(count):
        total[:, b * step : b * step + size] += stems[:, b] * window[b]
        weight[b * step : b * step + size] += window[b]
    return (total / weight.clamp_min(1e-6))[:, :length]


def write_stems(separation: Separation, names: tuple[str, ...], folder: Path, suffix: str = "wav", overwrite: bool = False) -> list[Path]:
    """Write one file per stem, each first under a temporary name.

    Raises:
        HybridsepError: a file is there already, the folder cannot be written, or the format does not know the rate.
    """
    paths = stem_paths(names, folder, suffix, overwrite)
    temporary = [p.with_name(f".{p.stem}.part.{suffix}") for p in paths]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, stem in zip(temporary, separation.stems, strict=True):
            subtype = "PCM_24" if suffix in ("wav", "flac") else None
            soundfile.write(path, stem.T.numpy(), separation.sample_rate, subtype=subtype)
        for path, final in zip(temporary, paths, strict=True):
            os.replace(path, final)
    except (soundfile.LibsndfileError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error).rstrip(".")
        raise HybridsepError(f"cannot write {suffix} stems to {folder}: {reason}") from None
    finally:
        for path in temporary:
            if path.exists():
                path.unlink()
    return paths


def stem_paths(names: tuple[str, ...], folder: Path, suffix: str, overwrite: bool) -> list[Path]:
    """Where the stems will be written.

    Raises:
        HybridsepError: unknown format, or a file is there already.
    """
    if suffix.upper() not in soundfile.available_formats():
        raise HybridsepError(f"unknown format '{suffix}': choose wav, flac, ogg or mp3")
    paths = [folder / f"{name}.{suffix}" for name in names]
    taken = [str(p) for p in paths if p.exists()]
    if taken and not overwrite:
        raise HybridsepError(f"{', '.join(taken)} exists already; give --overwrite to replace it")
    return paths
