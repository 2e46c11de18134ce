"""Reader of song collections in the layout of Slakh2100 (Manilow et al. 2019, "Cutting music source separation some Slakh", WASPAA).

    ROOT/{train,validation,test}/TrackNNNNN/{metadata.yaml, stems/SNN.flac, mix.flac}

BabySlakh keeps its tracks directly under ROOT and its stems as .wav; all of them count as split "train".
"""

from collections.abc import Mapping
from math import gcd
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import yaml
from scipy.signal import resample_poly

from hybridsep.core.errors import HybridsepError
from hybridsep.data.effects import overlay

SPLITS = ("train", "validation", "test")


def split_by_index(index: int) -> str:
    """Return the split of song `index` of a collection that says nothing of splits: of ten, 7 train, 1 validates, 2 test."""
    return SPLITS[(index % 10 >= 7) + (index % 10 >= 8)]


class Stem(NamedTuple):
    """One rendered part of a track, of one of Slakh's instrument classes."""

    name: str
    path: Path
    inst_class: str


class Track(NamedTuple):
    """One song: its folder, the stems that can be heard, and its metadata.yaml as read."""

    name: str
    split: str
    path: Path
    stems: tuple[Stem, ...]
    metadata: dict


def read_tracks(root: Path, split: str | None = None) -> list[Track]:
    """List the tracks of a split, or all, sorted by name; without stems that were never rendered or whose file is missing.

    FileNotFoundError: `root` is no folder. HybridsepError: an unknown split, no tracks at all, or a malformed metadata.yaml.
    """
    root = Path(root)
    if split is not None and split not in SPLITS:
        raise HybridsepError(f"unknown split {split!r}: use one of {', '.join(SPLITS)}")
    if not root.is_dir():
        raise FileNotFoundError(f"no data folder at {root}")
    found = [(path, name) for name in SPLITS for path in (root / name).glob("Track*/")]
    found += [(path, "train") for path in root.glob("Track*/")]
    if not found:
        raise HybridsepError(f"no tracks in {root}: expected {root}/train/Track00001/metadata.yaml and the like")
    found.sort(key=lambda item: item[0].name)
    return [_read_track(*place) for place in found if split in (None, place[1])]


def track_sources(track: Track, source_classes: dict[str, str]) -> dict[str, list[Stem]]:
    """Return the stems of each source, by Slakh's classes such as {"bass": "Bass", "drums": "Drums"}; lists may be empty."""
    return {name: [stem for stem in track.stems if stem.inst_class == kind] for name, kind in source_classes.items()}


def load_source(track: Track, inst_class: str, sample_rate: int) -> np.ndarray:
    """Sum all stems of one of Slakh's instrument classes, float32 [samples] as long as the longest; HybridsepError without any."""
    stems = [stem for stem in track.stems if stem.inst_class == inst_class]
    if not stems:
        raise HybridsepError(f"{track.path} has no stem of class {inst_class!r}")
    return overlay([read_mono(stem.path, sample_rate) for stem in stems])


def parse_metadata(content: bytes, file: Path | str) -> dict:
    """Read a metadata.yaml, called `file` in messages, whose `stems` map names to entries with an inst_class; or HybridsepError."""
    try:
        metadata = yaml.safe_load(content.decode("utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise HybridsepError(f"{file} is not plain YAML: {' '.join(str(error).split())}") from error
    stems = metadata.get("stems") if isinstance(metadata, Mapping) else None
    if not isinstance(stems, Mapping) or not all(isinstance(entry, Mapping) for entry in stems.values()):
        raise HybridsepError(f"{file} lists no stems: expected a mapping 'stems: S00: ...'")
    for name, entry in stems.items():
        if not isinstance(entry.get("inst_class"), str):
            raise HybridsepError(f"{file}: stem {name} has no inst_class")
        if Path(str(name)).name != str(name):
            raise HybridsepError(f"{file}: stem name {name!r} is no file name")
    return {**metadata, "stems": {str(name): entry for name, entry in stems.items()}}


def rendered_stems(metadata: dict) -> set[str]:
    """Name the stems that are called rendered; all where none is: BabySlakh calls none so, though most are there."""
    named = {name for name, entry in metadata["stems"].items() if entry.get("audio_rendered", True)}
    return named or set(metadata["stems"])


def _read_track(path: Path, split: str) -> Track:
    file = path / "metadata.yaml"
    try:
        metadata = parse_metadata(file.read_bytes(), file)
    except FileNotFoundError:
        raise HybridsepError(f"{path} is no track: it has no metadata.yaml") from None
    # `audio_dir` is not followed: redux writes the track's name before it, but the files lie in TrackNNNNN/stems everywhere.
    stems = []
    for name in sorted(rendered_stems(metadata)):
        found = [file for form in ("flac", "wav") if (file := path / "stems" / f"{name}.{form}").is_file()]
        stems += [Stem(name, file, metadata["stems"][name]["inst_class"]) for file in found[:1]]
    return Track(path.name, split, path, tuple(stems), metadata)


def read_mono(path: Path, sample_rate: int) -> np.ndarray:
    """Read a sound file as mono float32 [samples] at `sample_rate` Hz; HybridsepError if it is not audio or not finite."""
    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise HybridsepError(f"{path} is not audio that can be read: {error}") from error
    if not np.isfinite(samples).all():
        raise HybridsepError(f"{path} holds samples that are not finite numbers")
    shared = gcd(rate, sample_rate)
    return resample_poly(samples.mean(axis=1), sample_rate // shared, rate // shared).astype(np.float32)
