"""A person's own recording: a file of any format, rate and number of channels in, one file per stem out. Neither is ever whole in memory."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import soundfile
import torch
from torch import Tensor

from hybridsep.core.errors import HybridsepError
from hybridsep.inference.audio import BLOCK_VALUES, Audio
from hybridsep.inference.separator import DEFAULT, SearchOptions, Separator

SUFFIXES = ("wav", "flac", "ogg", "mp3")
LARGEST_WAV = 2**32 - 2**16  # bytes that its header can count
HEADER = 4096  # bytes in which a wav's chunks before its samples begin


@dataclass(frozen=True)
class WrittenStems:
    """What was made of a recording.

    Attributes:
        paths: one file per source.
        seconds: length of the recording.
        log_evidence: nats per code, mean over windows.
    """

    paths: list[Path]
    seconds: float
    log_evidence: float


def separate_file(
    path: Path,
    folder: Path,
    model: Path | str | None = None,
    options: SearchOptions = DEFAULT,
    refine: bool = True,
    suffix: str = "wav",
    overwrite: bool = False,
) -> WrittenStems:
    """Separate a recording into one file per stem, of its rate, length and number of channels.

    Args:
        path: of a wav, flac, ogg or mp3.
        folder: for the stems; made if it is not there.
        model: folder of a trained method; the one that comes with the project without it.
        options: of the search.
        refine: as in `Separator.separate`.
        suffix: "wav", "flac", "ogg" or "mp3".
        overwrite: whether stems that are there already may be replaced.

    Raises:
        HybridsepError: the recording, the model or the folder is not what it should be. No stem is written then, and none replaced.
    """
    audio = read_audio(path)
    separator = Separator.load(model)
    with StemWriter(separator.profile.source_names, folder, audio, suffix, overwrite) as writer:
        log_evidence, blocks = separator.separate_blocks(audio, options, refine)
        for block in blocks:
            writer.write(block)
    return WrittenStems(writer.paths, audio.samples / audio.sample_rate, log_evidence)


def read_audio(path: Path) -> Audio:
    """Open a recording on disk, and read it once to see that it can be.

    Raises:
        HybridsepError: not there, not audio, empty, shorter than 0.2 s, or with samples that are no finite numbers.
    """
    if not path.exists():
        raise HybridsepError(f"no file {path}")
    if path.is_dir():
        raise HybridsepError(f"{path} is a folder, not a recording")
    if not os.access(path, os.R_OK):
        raise HybridsepError(f"{path} may not be read: permission denied")
    if not path.is_file():
        raise HybridsepError(f"{path} is a device or a pipe, not a recording")
    with _naming(path), soundfile.SoundFile(path) as file:
        rate, channels = file.samplerate, file.channels
        if file.format == "RAW":
            # By some names libsndfile takes whatever has no header for samples.
            raise ValueError("it has no header of an audio file")
    return Audio.scan(str(path), rate, channels, lambda: _blocks(path))


def _blocks(path: Path) -> Iterator[Tensor]:
    with _naming(path), soundfile.SoundFile(path) as file:
        frames = max(1, BLOCK_VALUES // file.channels)
        while len(samples := file.read(frames, dtype="float32", always_2d=True)):
            yield torch.from_numpy(np.ascontiguousarray(samples.T))


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Turn what libsndfile raises in reading into one line with the file's name."""
    try:
        yield
    except (soundfile.LibsndfileError, RuntimeError, OSError, TypeError, ValueError) as error:
        reason = str(error).rstrip(".").split(": ")[-1]
        raise HybridsepError(f"{path} is no audio that can be read: {reason}") from None


class StemWriter:
    """Files of stems in the making, under temporary names until all of them are complete; to be used in a `with`.

    Whatever goes wrong inside the `with`, nothing of them is left, and stems that were there before are as they were.

    Args:
        names: one per stem.
        folder: made if it is not there.
        audio: the recording, of whose rate, length and channels the stems are.
        suffix, overwrite: as in `separate_file`.

    Attributes:
        paths: of the stems.

    Raises:
        HybridsepError: unknown format or one that does not know the rate or so many channels, a stem that is there already, a folder that
            cannot be written to, a full disk.
    """

    def __init__(
        self, names: tuple[str, ...], folder: Path, audio: Audio, suffix: str = "wav", overwrite: bool = False
    ):
        self.paths = stem_paths(names, folder, suffix, overwrite)
        self._folder, self._audio, self._suffix = folder, audio, suffix
        self._temporary = [p.with_name(f".{p.stem}.part.{suffix}") for p in self.paths]
        self._files: list[soundfile.SoundFile] = []
        self._made: list[Path] = []
        self._cut_off = False

    def __enter__(self) -> StemWriter:
        try:
            with self._saying_why():
                self._made = [p for p in (self._folder, *self._folder.parents) if not p.exists()]
                self._folder.mkdir(parents=True, exist_ok=True)
                for path in self._temporary:
                    path.touch()  # Python says why it cannot; libsndfile does not
                    file = soundfile.SoundFile(path, "w", self._audio.sample_rate, self._audio.channels, **self._form())
                    self._files.append(file)
        except HybridsepError:
            self._clear()
            raise
        return self

    def write(self, block: Tensor) -> None:
        """Append a block of every stem, float32 [P, channels, n]."""
        with self._saying_why():
            for file, stem in zip(self._files, block, strict=True):
                file.write(stem.T.contiguous().numpy())
        self._cut_off |= self._suffix != "wav" and float(block.abs().max()) > 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            with self._saying_why():
                for file in self._files:
                    file.close()
                if kind is None:
                    self._finish()
        finally:
            self._clear()

    def _finish(self) -> None:
        for path in self._temporary:
            # libsndfile says nothing when the last of a file does not fit on the disk.
            with soundfile.SoundFile(path) as file:
                file.seek(file.frames - 1)
                if len(file.read(1)) != 1 or file.frames < self._audio.samples:
                    raise OSError("the end is missing; is the disk full?")
            if self._suffix == "wav":
                _clear_time(path)
        for path, final in zip(self._temporary, self.paths, strict=True):
            os.replace(path, final)
        if self._cut_off:
            warnings.warn(
                f"some samples are louder than {self._suffix} can hold and were cut off; wav holds them", stacklevel=3
            )

    def _clear(self) -> None:
        for file in self._files:
            with contextlib.suppress(soundfile.LibsndfileError):
                file.close()
        for path in self._temporary:
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                path.unlink()
        for folder in self._made:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def _form(self) -> dict[str, str]:
        """Format of the files: a wav holds float32, in which stems can be louder than full scale and still sum to the recording."""
        if self._suffix == "wav":
            too_large = self._audio.samples * self._audio.channels * 4 > LARGEST_WAV
            return {"format": "RF64" if too_large else "WAV", "subtype": "FLOAT"}
        return {"subtype": "PCM_24"} if self._suffix == "flac" else {}

    @contextlib.contextmanager
    def _saying_why(self) -> Iterator[None]:
        try:
            yield
        except (soundfile.LibsndfileError, OSError, ValueError, AssertionError) as error:
            # soundfile asserts that everything was written.
            reason = (
                getattr(error, "strerror", None)
                or str(error).rstrip(".").split(": ")[-1]
                or "not all was written; is the disk full?"
            )
            raise HybridsepError(f"cannot write {self._suffix} stems to {self._folder}: {reason}") from None


def _clear_time(path: Path) -> None:
    """Set the time of day in a wav's PEAK chunk to zero: the same stems are the same bytes."""
    with path.open("r+b") as file:
        chunk = file.read(HEADER).find(b"PEAK")
        if chunk >= 0:
            file.seek(chunk + 12)  # after its name, its size and its version, four bytes each
            file.write(bytes(4))


def stem_paths(names: tuple[str, ...], folder: Path, suffix: str, overwrite: bool) -> list[Path]:
    """Return where the stems will be written.

    Raises:
        HybridsepError: unknown format, or something is there already.
    """
    if suffix not in SUFFIXES:
        raise HybridsepError(f"unknown format '{suffix}': choose {', '.join(SUFFIXES)}")
    paths = [folder / f"{name}.{suffix}" for name in names]
    taken = [str(p) for p in paths if p.exists() and (not overwrite or p.is_dir())]
    if taken:
        raise HybridsepError(
            f"{', '.join(taken)} exists already{'' if overwrite else '; give --overwrite to replace it'}"
        )
    return paths
