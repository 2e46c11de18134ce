"""A person's own recording: a file of any format, rate and number of channels in, one file per stem out. Neither is ever whole in memory."""

import contextlib
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import Tensor

from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import write_atomically
from hybridsep.inference.audio import BLOCK_VALUES, Audio
from hybridsep.inference.separator import BANDS, DEFAULT, SearchOptions, Separator

SUFFIXES = ("wav", "flac", "ogg", "mp3")
LARGEST_WAV = 2**32 - 2**16  # bytes that its header can count
HEADER = 4096  # bytes in which a wav's chunks before its samples begin


@dataclass(frozen=True)
class WrittenStems:
    """What was made of a recording."""

    paths: list[Path]  # one file per source
    seconds: float  # length of the recording
    log_evidence: float  # nats per code, mean over windows
    uncertainty: Path | None = None  # the table of it, where it was asked for


def separate_file(
    path: Path,
    folder: Path,
    model: Path | str | None = None,
    options: SearchOptions = DEFAULT,
    refine: bool = True,
    suffix: str = "wav",
    overwrite: bool = False,
    uncertainty: bool = False,
) -> WrittenStems:
    """Separate a recording into one file per stem in `folder`, of its rate, length and number of channels.

    `model` is the folder of a trained method, without it the one that comes with the project; `refine` as in `Separator.separate`; `suffix` one
    of SUFFIXES; `uncertainty` writes uncertainty.csv too, see `uncertainty_table`. HybridsepError: the recording, the model or the folder is not
    what it should be. No stem is written then, and none replaced.
    """
    audio = read_audio(path)
    separator = Separator.load(model)
    names = separator.profile.source_names
    paths = stem_paths(names, folder, suffix, overwrite)
    table = folder / "uncertainty.csv" if uncertainty else None
    if table:
        refuse_taken([table], overwrite)
    with stem_writer(paths, audio) as write:
        options = replace(options, spread=uncertainty)
        log_evidence, blocks, spread = separator.separate_blocks(audio, options, refine)
        for block in blocks:
            write(block)
        if table:
            lines = uncertainty_table(spread, names, separator.sample_rate / separator.hop)
            write_atomically(table, ("\n".join(lines) + "\n").encode())
    return WrittenStems(paths, audio.samples / audio.sample_rate, log_evidence, table)


def uncertainty_table(spread: Tensor | None, names: tuple[str, ...], codes_per_second: float) -> Iterator[str]:
    """Yield the lines of a CSV file: how loud each source is in each second and band, and how much the particles differ there.

    The more `spread_db` comes near `level_db`, the less sure the search was; -100 dB stands for silence and for particles that agree.
    `spread` is that of `Separator.separate_blocks`, None of a silent recording.
    """
    yield "start_s,source,from_hz,level_db,spread_db"
    if spread is None:
        return
    for second, part in enumerate(spread.split(round(codes_per_second), 2)):
        decibels = 10 * part.mean(2).clamp_min(1e-10).log10()
        start = second * round(codes_per_second) / codes_per_second
        for source, (level, around) in zip(names, decibels.tolist(), strict=True):
            for hertz, power, variance in zip(BANDS, level, around, strict=True):
                yield f"{start:.2f},{source},{hertz},{power:.1f},{variance:.1f}"


def read_audio(path: Path) -> Audio:
    """Open a recording on disk, and read it once to see that it can be; HybridsepError: it is not there, no audio, or see `Audio.scan`."""
    if not path.exists():
        raise HybridsepError(f"no file {path}")
    if path.is_dir():
        raise HybridsepError(f"{path} is a folder, not a recording")
    if not os.access(path, os.R_OK):
        raise HybridsepError(f"{path} may not be read: permission denied")
    if not path.is_file():
        raise HybridsepError(f"{path} is a device or a pipe, not a recording")
    with _saying_why(f"{path} is no audio that can be read"), soundfile.SoundFile(path) as file:
        rate, channels = file.samplerate, file.channels
        if file.format == "RAW":
            # By some names libsndfile takes whatever has no header for samples.
            raise ValueError("it has no header of an audio file")
    return Audio.scan(str(path), rate, channels, lambda: _blocks(path))


def _blocks(path: Path) -> Iterator[Tensor]:
    with _saying_why(f"{path} is no audio that can be read"), soundfile.SoundFile(path) as file:
        frames = max(1, BLOCK_VALUES // file.channels)
        while len(samples := file.read(frames, dtype="float32", always_2d=True)):
            yield torch.from_numpy(np.ascontiguousarray(samples.T))


def stem_paths(names: tuple[str, ...], folder: Path, suffix: str, overwrite: bool) -> list[Path]:
    """Return where the stems will be written; HybridsepError: unknown format, or something is there already."""
    if suffix not in SUFFIXES:
        raise HybridsepError(f"unknown format '{suffix}': choose {', '.join(SUFFIXES)}")
    paths = [folder / f"{name}.{suffix}" for name in names]
    refuse_taken(paths, overwrite)
    return paths


def refuse_taken(paths: list[Path], overwrite: bool) -> None:
    """Raise HybridsepError where files are there already and may not be replaced."""
    taken = [str(p) for p in paths if p.exists() and (not overwrite or p.is_dir())]
    if taken:
        remedy = "" if overwrite else "; give --overwrite to replace it"
        raise HybridsepError(f"{', '.join(taken)} exists already{remedy}")


@contextlib.contextmanager
def stem_writer(paths: list[Path], audio: Audio) -> Iterator[Callable[[Tensor], None]]:
    """Write files of stems, whose suffix is their format; yields a function that appends a block of every stem, float32 [P, channels, n].

    They get their names when all are complete. Whatever goes wrong inside the `with`, nothing of them is left, and what was there before is as
    it was. HybridsepError: a format that does not know the rate or so many channels, a folder that cannot be written to, a full disk.
    """
    folder, suffix = paths[0].parent, paths[0].suffix[1:]
    missing = [p for p in (folder, *folder.parents) if not p.exists()]
    named = partial(_saying_why, f"cannot write {suffix} stems to {folder}")
    with contextlib.ExitStack() as cleanup:
        with named():
            folder.mkdir(parents=True, exist_ok=True)
            cleanup.callback(_remove_empty, missing)
            drafts = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix=".stems-", dir=folder)))
        with contextlib.ExitStack() as opened:
            with named():
                files = [opened.enter_context(_new_file(drafts / path.name, audio)) for path in paths]
            loudest = [0.0]

            def write(block: Tensor) -> None:
                """Append a block of every stem."""
                with named():
                    for file, stem in zip(files, block, strict=True):
                        file.write(stem.T.contiguous().numpy())
                loudest.append(float(block.abs().max()) if suffix != "wav" else 0.0)

            yield write
            with named():
                opened.close()
        with named():
            for path in paths:
                _finish(drafts / path.name, audio.samples)
            for path in paths:
                os.replace(drafts / path.name, path)
        if max(loudest) > 1:
            what = f"some samples are louder than {suffix} can hold and were cut off; wav holds them"
            warnings.warn(what, stacklevel=3)


def _new_file(path: Path, audio: Audio) -> soundfile.SoundFile:
    """Open a file for a stem; a wav holds float32, in which stems can be louder than full scale and still sum to the recording."""
    form = {"subtype": "PCM_24"} if path.suffix == ".flac" else {}
    if path.suffix == ".wav":
        too_large = audio.samples * audio.channels * 4 > LARGEST_WAV
        form = {"format": "RF64" if too_large else "WAV", "subtype": "FLOAT"}
    return soundfile.SoundFile(path, "w", audio.sample_rate, audio.channels, **form)


def _finish(path: Path, samples: int) -> None:
    """Look whether a file holds all its samples, and set the time of day in a wav's PEAK chunk to zero: same stems, same bytes."""
    # libsndfile says nothing when the last of a file does not fit on the disk.
    with soundfile.SoundFile(path) as file:
        file.seek(file.frames - 1)
        if len(file.read(1)) != 1 or file.frames < samples:
            raise OSError("the end is missing; is the disk full?")
    with path.open("r+b") as file:
        chunk = file.read(HEADER).find(b"PEAK") if path.suffix == ".wav" else -1
        if chunk >= 0:
            file.seek(chunk + 12)  # after its name, its size and its version, four bytes each
            file.write(bytes(4))


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


@contextlib.contextmanager
def _saying_why(what: str) -> Iterator[None]:
    """Turn what the system or libsndfile raises into one line."""
    try:
        yield
    except (soundfile.LibsndfileError, RuntimeError, OSError, TypeError, ValueError, AssertionError) as error:
        # soundfile asserts that everything was written.
        said = getattr(error, "strerror", None) or str(error).rstrip(".").split(": ")[-1]
        raise HybridsepError(f"{what}: {said or 'not all was written; is the disk full?'}") from None
