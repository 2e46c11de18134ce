"""Real songs: the wanted stems of Slakh2100-redux or BabySlakh, taken out of the archive while it streams by.

The redux archive is one gzip stream of 104 GB: nothing in it can be reached but by reading all that comes before it, and what other
people's programs tell of the order of its files speaks for the files of a song lying scattered all over it. So no order is relied on. A
track is opened when its first file comes by, its stems wait in OUT/.partial until its metadata.yaml says which are wanted, and it is written
when the last wanted one is there. Only so many tracks are open at a time. 300 tracks fit in 10 GB, those that wait and those that are written
together, in the worst order there is (all files shuffled; a test holds it); one track's stems wait where each track's files follow each other.

Source of the data: Manilow et al. 2019, "Cutting music source separation some Slakh" (WASPAA); Zenodo records 4599666 and 4603844.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import io
import json
import math
import os
import re
import shutil
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import yaml
from scipy.signal import welch
from tqdm import tqdm

from hybridsep.core.errors import HybridsepError
from hybridsep.data.download import Archive, ConnectionLost
from hybridsep.data.members import Member, Members, naming_damage
from hybridsep.data.slakh import SPLITS, parse_metadata, read_mono, rendered_stems


@dataclass(frozen=True)
class Variant:
    """A published archive: its address, and the MD5 on record for it."""

    url: str
    md5: str


VARIANTS = {
    "redux": Variant(
        "https://zenodo.org/records/4599666/files/slakh2100_flac_redux.tar.gz?download=1",
        "f4b71b6c45ac9b506f59788456b3f0c4",
    ),
    "baby": Variant(
        "https://zenodo.org/records/4603844/files/babyslakh_16k.zip?download=1", "ea1797fc57689a0e33c759c17a2292f5"
    ),
}

# A stem whose loudest second stays under this comes from an instrument that made no sound. 16-bit rounding alone lies at -101 dBFS, the
# quietest of 100 MiniSlakh stems at -22.
SILENT_DBFS = -60.0
# Spectral flatness of the mean power spectrum: 1 for white noise (0.998 measured). The brightest drum stem of 50 MiniSlakh songs has 0.27,
# one pedalled hat alone, on every eighth note, 0.56 (the most noise-like of 96 sounds of the SoundFont's kits), pink noise 0.49.
NOISE_FLATNESS = 0.85
LOWEST_HZ = 50.0
LONGEST_STEM = 3600.0  # seconds
LARGEST_STEM = 1 << 30  # bytes
LARGEST_METADATA = 4 << 20  # bytes
SPARE, SPARE_AT_LEAST = (
    1.25,
    8,
)  # tracks open for each one wanted: some turn out to lack a stem when it is too late to open others
NOTE_SECONDS = 60.0  # of reading that a killed run may cost
VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2  # of the tracks asked for, as in MiniSlakh

_PLACE = re.compile(
    r"(?:^|/)(?:(?P<split>train|validation|test|omitted)/)?(?P<track>Track\d{5})/"
    r"(?:metadata\.yaml|stems/(?P<stem>S\d{2,3})\.(?P<form>flac|wav))$"
)
_COLUMNS = ("split", "track", "stem", "inst_class", "reason", "level_dbfs", "flatness")


@dataclass(frozen=True)
class Report:
    """What a fetch left behind.

    Attributes:
        tracks: complete tracks of each split, those of earlier runs included.
        rejected: stems and tracks that this run refused.
        bytes_read: of the archive, in this run.
        largest_wait: most bytes that waited in OUT/.partial at once, a downloaded zip not counted.
        checked: what is known of the archive's integrity, in words.
    """

    tracks: dict[str, int]
    rejected: int
    bytes_read: int
    largest_wait: int
    checked: str

    @property
    def total(self) -> int:
        """Complete tracks."""
        return sum(self.tracks.values())


@dataclass
class Pending:
    """A track of which not everything has come by: `waiting` lies in `folder`, `wanted` (stem -> class) is known from the metadata on."""

    split: str
    name: str
    folder: Path
    metadata: dict | None = None
    wanted: dict[str, str] = field(default_factory=dict)
    waiting: dict[str, Path] = field(default_factory=dict)
    bytes_waiting: int = 0

    @property
    def complete(self) -> bool:
        """Whether nothing more can come; unknown before the archive's end where the metadata calls no stem rendered."""
        told = self.metadata is not None and any(
            entry.get("audio_rendered", True) for entry in self.metadata["stems"].values()
        )
        return told and self.wanted.keys() <= self.waiting.keys()

    def learn(self, metadata: dict, classes: tuple[str, ...]) -> None:
        """Take the metadata and drop the stems that it shows to be of no use."""
        self.metadata = metadata
        candidates = {name: metadata["stems"][name]["inst_class"] for name in rendered_stems(metadata)}
        self.wanted = {name: inst_class for name, inst_class in candidates.items() if inst_class in classes}
        for name in self.waiting.keys() - self.wanted.keys():
            path = self.waiting.pop(name)
            self.bytes_waiting -= path.stat().st_size
            path.unlink()

    def recall(self, classes: tuple[str, ...]) -> None:
        """Take up what an earlier run left in the folder."""
        for path in self.folder.iterdir():
            if path.suffix in (".flac", ".wav"):
                self.waiting[path.stem] = path
                self.bytes_waiting += path.stat().st_size
            elif path.name != "metadata.yaml":
                path.unlink()
        file = self.folder / "metadata.yaml"
        if file.is_file():
            self.learn(parse_metadata(file.read_bytes(), file), classes)


class Fault(Exception):
    """A stem that is not kept: the reason, and its figures where it could be measured."""

    def __init__(self, reason: str, **figures: float):
        super().__init__(reason)
        self.figures = {name: f"{value:.3g}" for name, value in figures.items()}


def fetch_slakh(
    out: Path,
    variant: str = "redux",
    tracks: int = 300,
    classes: tuple[str, ...] = ("Bass", "Drums"),
    sample_rate: int = 22050,
    source: str | None = None,
    md5: str | None = None,
    progress: bool = True,
) -> Report:
    """Fetch tracks that have all `classes`, and of these only the stems of `classes`, mono; go on where an earlier run stopped.

    Of the tracks asked for a tenth is for validation, a fifth for testing, the rest for training, each from its own folder of the archive,
    so that no song is in two splits. What validation and test cannot give, training does. Redux's `omitted` tracks double others and are
    left out. BabySlakh has no such folders: its tracks with numbers ending in 1 to 7 train, 8 validates, 9 and 0 test.

    Args:
        out: folder to write to, in Slakh2100's own layout.
        variant: "redux" or "baby".
        tracks: how many, at least 1; fewer than 3 are all for training.
        classes: Slakh instrument classes.
        sample_rate: of the stems written, Hz.
        source: another address, or a file, instead of the published one.
        md5: to hold the whole archive against; the one on record where `source` is None.

    Returns:
        Report; also in `out`/slakh.json, with what was refused in `out`/rejected.csv.

    Raises:
        HybridsepError: the archive cannot be had, is damaged or holds what no song collection does; the disk is full; `out` holds other
            songs; no track is of use. Tracks that are complete stay.
    """
    if variant not in VARIANTS:
        raise HybridsepError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    if tracks < 1:
        raise HybridsepError(f"{tracks} tracks are none: ask for one or more")
    address, expected = source or VARIANTS[variant].url, md5 or (None if source else VARIANTS[variant].md5)
    try:
        collection = Collection(
            Path(out), {"variant": variant, "classes": list(classes), "sample_rate": sample_rate}, tracks
        )
        report = _read(collection, address, expected, progress)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        kept = sum(1 for _ in Path(out).glob("*/Track*/metadata.yaml"))
        raise HybridsepError(
            f"no space left for {out}: its {kept} complete tracks are kept; make room and run again"
        ) from None
    if not report.total:
        raise HybridsepError(
            f"no track of {address} has usable stems of {' and '.join(classes)}: see {out}/rejected.csv"
        )
    return report


def _read(collection: Collection, source: str, md5: str | None, progress: bool) -> Report:
    if collection.enough:
        return Report(collection.counts, 0, 0, 0, "not read: every track is there already")
    sorter = Sorter(collection, source)
    with (
        tqdm(desc="Slakh", unit="B", unit_scale=True, disable=not progress) as bar,
        _opened(sorter, source, bar) as archive,
    ):
        begin = archive.position
        try:
            with naming_damage(archive, sorter.download):
                _sort(Members(archive, md5, sorter.download, sorter.mark), sorter, archive, bar)
            collection.trim()
            sorter.clear()
        except (ConnectionLost, OSError, KeyboardInterrupt):
            raise  # what waits is good, and the next run goes on from it
        except BaseException:
            sorter.clear()
            raise
        finally:
            report = Report(
                collection.counts,
                len(collection.rejected),
                archive.position - begin,
                sorter.largest_wait,
                archive.checked,
            )
            collection.write(source=source, bytes_total=archive.total, **asdict(report))
    return report


def _opened(sorter: Sorter, source: str, bar: tqdm) -> Archive:
    """The archive, where an earlier run left it; from its beginning if it is not the same any more."""
    archive = Archive(source, sorter.download, sorter.mark["point"]["consumed"] if sorter.mark else 0, bar)
    if sorter.mark and archive.version != sorter.version:
        archive.close()
        sorter.clear()
        archive = Archive(source, sorter.download, bar=bar)
    sorter.version = archive.version
    return archive


def _sort(members: Members, sorter: Sorter, archive: Archive, bar: tqdm) -> None:
    """Hand on members until there is enough, or no more."""
    collection, noted = sorter.collection, time.monotonic()
    try:
        for member in members:
            closed = sorter.take(member)
            bar.set_postfix_str(f"{min(collection.total, collection.tracks)}/{collection.tracks} tracks", refresh=False)
            if collection.enough:
                return
            if closed or time.monotonic() - noted > NOTE_SECONDS:
                sorter.note(members.mark())
                noted = time.monotonic()
    except (ConnectionLost, KeyboardInterrupt):
        sorter.note(members.mark())
        raise
    sorter.finish_all()


# ---- what is kept --------------------------------------------------------------------------------------------------------


class Collection:
    """The tracks in `out`: how many each split has and is to have, and what was refused.

    Attributes:
        done: names of the complete tracks of each split.
        surplus: training tracks beyond their quota, which stand in until the other splits have theirs.

    Raises:
        HybridsepError: `out` holds other songs, or songs fetched with other settings.
    """

    def __init__(self, out: Path, settings: dict, tracks: int):
        self.out, self.settings, self.tracks = out, settings, tracks
        self.classes: tuple[str, ...] = tuple(settings["classes"])
        self.sample_rate: int = settings["sample_rate"]
        self._claim()
        validation, test = (
            max(1, round(tracks * share)) if tracks >= len(SPLITS) else 0 for share in (VALIDATION_SHARE, TEST_SHARE)
        )
        self.quota = {"train": tracks - validation - test, "validation": validation, "test": test}
        self.done = {split: {p.parent.name for p in (out / split).glob("Track*/metadata.yaml")} for split in SPLITS}
        self.rejected: list[dict] = []
        self.surplus: list[str] = []

    @property
    def counts(self) -> dict[str, int]:
        """Complete tracks of each split."""
        return {split: len(names) for split, names in self.done.items()}

    @property
    def total(self) -> int:
        """Complete tracks."""
        return sum(self.counts.values())

    @property
    def enough(self) -> bool:
        """Whether every split has its tracks."""
        return all(len(self.done[split]) >= quota for split, quota in self.quota.items())

    def missing(self, split: str) -> int:
        """Tracks that a split may still take. Those for training may stand in for the others': these may never come."""
        return (self.tracks if split == "train" else self.quota[split]) - len(self.done[split])

    def reject(self, track: Pending, reason: str, stem: str = "", figures: Mapping[str, str] | None = None) -> None:
        """Note what is not kept, and why."""
        place = {"split": track.split, "track": track.name, "stem": stem, "inst_class": track.wanted.get(stem, "")}
        self.rejected.append({**place, "reason": reason, **(figures or {})})

    def add(self, track: Pending, work: Path) -> None:
        """Move a complete track into place."""
        target = self.out / track.split / track.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)  # without metadata.yaml, or the track would not have been opened
        work.rename(target)
        self.done[track.split].add(track.name)
        if len(self.done[track.split]) > self.quota[track.split]:
            self.surplus.append(track.name)

    def trim(self) -> None:
        """Give up training tracks of this run that turned out to stand in for none."""
        while self.total > self.tracks and self.surplus:
            name = self.surplus.pop()
            shutil.rmtree(self.out / "train" / name)
            self.done["train"].discard(name)

    def write(self, **figures: object) -> None:
        """Bring slakh.json and rejected.csv up to date."""
        _write_over(self.out / "slakh.json", json.dumps({"settings": self.settings, **figures}, indent=1) + "\n")
        self.write_rejected()

    def write_rejected(self) -> None:
        """Bring rejected.csv up to date; rows of earlier runs stay where this one says nothing else."""
        file = self.out / "rejected.csv"
        before = csv.DictReader(io.StringIO(file.read_text(encoding="utf-8"))) if file.is_file() else ()
        rows = {(row["split"], row["track"], row["stem"]): row for row in (*before, *self.rejected)}
        text = io.StringIO()
        table = csv.DictWriter(text, _COLUMNS, restval="", lineterminator="\n")
        table.writeheader()
        table.writerows(rows[place] for place in sorted(rows))
        _write_over(file, text.getvalue())

    def _claim(self) -> None:
        file = self.out / "slakh.json"
        if not file.is_file():
            if any((self.out / split).exists() for split in SPLITS):
                raise HybridsepError(f"{self.out} holds other songs: choose another folder")
            self.out.mkdir(parents=True, exist_ok=True)
            _write_over(file, json.dumps({"settings": self.settings}, indent=1) + "\n")
            return
        try:
            there = json.loads(file.read_text())["settings"]
        except (ValueError, KeyError, TypeError):
            raise HybridsepError(f"{file} is damaged: remove it or choose another folder") from None
        if there != self.settings:
            raise HybridsepError(
                f"{self.out} holds songs fetched with {there}, not {self.settings}: choose another folder or remove it"
            )


def _write_over(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ---- what comes by -------------------------------------------------------------------------------------------------------


class Sorter:
    """Puts each member of an archive to its track, and finishes the tracks that are complete.

    Attributes:
        largest_wait: most bytes of stems that waited at once.
        mark, version: where an earlier run got to in the archive, and in which version of it; None: nowhere.
        download: where a zip on a server is saved.
    """

    def __init__(self, collection: Collection, source: str):
        self.collection = collection
        self._task = {
            "source": source,
            "tracks": collection.tracks,
        }  # with other quotas other tracks would have been passed over
        self._partial = collection.out / ".partial"
        self._note = self._partial / "note.json"
        self.download = self._partial / f"{hashlib.sha256(source.encode()).hexdigest()[:8]}.zip"
        self.largest_wait = 0
        self.mark: dict | None = None
        self.version: list | None = None
        self._open: dict[tuple[str, str], Pending] = {}
        self._closed: set[tuple[str, str]] = set()
        self._narrow = False
        self._recall()

    @property
    def waits(self) -> int:
        """Bytes of stems that wait now."""
        return sum(track.bytes_waiting for track in self._open.values())

    def take(self, member: Member) -> bool:
        """Keep what a member brings for a track that is wanted; whether this closed a track."""
        place = _PLACE.search(member.name)
        if not place or place["split"] == "omitted":
            return False
        track = self._pending(place["split"] or _split_by_number(place["track"]), place["track"])
        if track is None:
            return False
        if place["stem"]:
            self._spool(track, place["stem"], place["form"], member)
        elif track.metadata is None:
            self._read_metadata(track, member)
        if track.complete and (track.split, track.name) in self._open:
            self._finish(track)
        return (track.split, track.name) not in self._open

    def finish_all(self) -> None:
        """The archive is at its end: what has not come by will not."""
        for track in list(self._open.values()):
            if track.metadata is None:
                self._drop(track, "no metadata.yaml in the archive")
            else:
                self._finish(track)

    def note(self, mark: dict | None) -> None:
        """Write down where in the archive the next run can go on with what waits now."""
        if mark:
            note = {
                **self._task,
                "version": self.version,
                "mark": mark,
                "closed": sorted(self._closed),
                "surplus": self.collection.surplus,
            }
            self.collection.write_rejected()
            self._partial.mkdir(exist_ok=True)
            _write_over(self._note, json.dumps(note))

    def clear(self) -> None:
        """Forget and remove what waits."""
        shutil.rmtree(self._partial, ignore_errors=True)
        self.mark = None
        self._open.clear()
        self._closed.clear()

    def _recall(self) -> None:
        """Go on from an earlier run's note; without one only a download that broke off is of use."""
        try:
            note = json.loads(self._note.read_text())
        except (OSError, ValueError):
            note = {}
        if not self._task.items() <= note.items():
            for path in self._partial.glob("*"):
                if path.is_dir():
                    shutil.rmtree(path)
                elif path != self.download:
                    path.unlink()
            return
        self.mark, self.version = note["mark"], note["version"]
        self._closed = {(split, name) for split, name in note["closed"]}
        self.collection.surplus = note["surplus"]
        for folder in self._partial.glob("*/Track*"):
            track = Pending(folder.parent.name, folder.name, folder)
            if folder.name in self.collection.done[track.split]:
                shutil.rmtree(folder)
                continue
            self._open[track.split, track.name] = track
            track.recall(self.collection.classes)

    def _pending(self, split: str, name: str) -> Pending | None:
        """The open track of that name; opened if it is new, wanted, and there is room."""
        key = (split, name)
        if key in self._open:
            return self._open[key]
        if key in self._closed or name in self.collection.done[split]:
            return None
        missing = self.collection.missing(split)
        if missing <= 0 or sum(t.split == split for t in self._open.values()) >= SPARE * missing + SPARE_AT_LEAST:
            self._closed.add(key)  # its first file goes by: it can no longer be had whole
            return None
        folder = self._partial / split / name
        folder.mkdir(parents=True, exist_ok=True)
        self._open[key] = Pending(split, name, folder)
        return self._open[key]

    def _read_metadata(self, track: Pending, member: Member) -> None:
        try:
            if member.size > LARGEST_METADATA:
                raise HybridsepError(f"metadata.yaml of {member.size} bytes")
            content = b"".join(member.chunks())
            track.learn(parse_metadata(content, "metadata.yaml"), self.collection.classes)
            (track.folder / "metadata.yaml").write_bytes(content)
        except HybridsepError as error:
            self._drop(track, str(error))
        else:
            lacking = [c for c in self.collection.classes if c not in track.wanted.values()]
            if lacking:
                self._drop(track, f"no stem of class {', '.join(lacking)}")

    def _spool(self, track: Pending, stem: str, form: str, member: Member) -> None:
        if stem in track.waiting or (track.metadata is not None and stem not in track.wanted):
            return
        if member.size > LARGEST_STEM:
            self.collection.reject(track, f"{member.size} bytes are too many", stem)
            return
        path = track.folder / f"{stem}.{form}"
        temporary = path.with_suffix(".tmp")
        with temporary.open("wb") as file:
            for content in member.chunks():
                file.write(content)
        temporary.rename(path)
        track.waiting[stem] = path
        track.bytes_waiting += member.size
        self.largest_wait = max(self.largest_wait, self.waits)

    def _drop(self, track: Pending, reason: str) -> None:
        self.collection.reject(track, reason)
        self._close(track)

    def _close(self, track: Pending) -> None:
        del self._open[track.split, track.name]
        self._closed.add((track.split, track.name))
        shutil.rmtree(track.folder, ignore_errors=True)

    def _finish(self, track: Pending) -> None:
        """Write a track, or list why it cannot be used."""
        if self.collection.missing(track.split) <= 0:
            self._close(track)
            return
        kept, work = {}, self._partial / "finished"
        shutil.rmtree(work, ignore_errors=True)
        (work / "stems").mkdir(parents=True)
        for name in sorted(track.wanted):
            if name not in track.waiting:
                self.collection.reject(track, "not in the archive", name)
                continue
            try:
                samples = self._examined(track.waiting[name])
            except Fault as fault:
                self.collection.reject(track, str(fault), name, fault.figures)
                continue
            (work / "stems" / f"{name}.flac").write_bytes(_as_flac(samples, self.collection.sample_rate))
            kept[name] = {**track.metadata["stems"][name], "audio_rendered": True}
        lacking = [c for c in self.collection.classes if c not in {entry["inst_class"] for entry in kept.values()}]
        if lacking:
            self._drop(track, f"no usable stem of class {', '.join(lacking)}")
            return
        text = yaml.safe_dump({**track.metadata, "stems": kept}, sort_keys=True, default_flow_style=False)
        (work / "metadata.yaml").write_text(text, encoding="utf-8")
        self.collection.add(track, work)
        self._close(track)

    def _examined(self, path: Path) -> np.ndarray:
        """Mono float32 [samples] of a stem that sounds."""
        samples, native_rate = _decoded(path, self.collection.sample_rate)
        level, flatness = measure(samples, self.collection.sample_rate, native_rate)
        if level < SILENT_DBFS:
            raise Fault("silent", level_dbfs=level)
        if flatness > NOISE_FLATNESS:
            raise Fault("white noise", level_dbfs=level, flatness=flatness)
        if native_rate < self.collection.sample_rate and not self._narrow:
            self._narrow = True
            warnings.warn(
                f"stems of {native_rate} Hz are resampled: their band ends at {native_rate / 2000:g} kHz", stacklevel=2
            )
        return samples


def _split_by_number(track: str) -> str:
    """The split of a track that lies in no split's folder, by the last digit of its number."""
    index = (int(track.removeprefix("Track")) - 1) % 10
    return "train" if index < 7 else "validation" if index == 7 else "test"


# ---- one stem ------------------------------------------------------------------------------------------------------------


def measure(samples: np.ndarray, sample_rate: int, native_rate: int) -> tuple[float, float]:
    """What tells a stem from silence and from noise.

    Args:
        samples: mono, [samples] at `sample_rate` Hz.
        native_rate: Hz; nothing can be above half of it.

    Returns:
        RMS level of the loudest second in dBFS, and the spectral flatness: geometric by arithmetic mean of the mean power spectrum
        from 50 Hz to 0.8 of the highest frequency, in [0, 1].
    """
    whole = len(samples) // sample_rate * sample_rate
    seconds = samples[:whole].reshape(-1, sample_rate) if whole else samples[None]
    level = 10 * math.log10(float(np.square(seconds, dtype=np.float64).mean(1).max()) + 1e-20)
    hertz, power = welch(samples, sample_rate, nperseg=min(2048, len(samples)))
    power = power[(hertz >= LOWEST_HZ) & (hertz <= 0.4 * min(sample_rate, native_rate))] + 1e-30
    return level, float(np.exp(np.log(power).mean()) / power.mean()) if len(power) else 0.0


def _decoded(path: Path, sample_rate: int) -> tuple[np.ndarray, int]:
    """Mono float32 [samples] at `sample_rate` Hz, and the file's own rate in Hz."""
    try:
        info = soundfile.info(path)
    except (soundfile.SoundFileError, OSError):
        raise Fault("not audio") from None
    if not 0 < info.frames <= LONGEST_STEM * info.samplerate:
        raise Fault(f"{info.frames} samples long")
    try:
        samples = read_mono(path, sample_rate)
    except HybridsepError as error:
        raise Fault(str(error).removeprefix(f"{path} ")) from None
    if abs(len(samples) - info.frames * sample_rate / info.samplerate) > 1:
        raise Fault("cut off")
    return samples, info.samplerate


def _as_flac(samples: np.ndarray, sample_rate: int) -> bytes:
    """A 16-bit FLAC file. Encoded in memory: libsndfile does not tell a full disk from other failures, Python's own files do."""
    file = io.BytesIO()
    soundfile.write(file, np.clip(samples, -1, 1), sample_rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()
