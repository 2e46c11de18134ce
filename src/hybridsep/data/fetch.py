"""Real songs: the wanted stems of Slakh2100-redux or BabySlakh, taken out of the archive while it streams by, in any order.

A track is open from its first file to the last stem that its metadata.yaml calls for. Only so many are open at a time: 300 tracks,
with all that waits, fit in 10 GB even if the archive were shuffled. Source of the data: Zenodo records 4599666 and 4603844.
"""

import csv
import errno
import io
import json
import math
import re
import shutil
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import yaml
from scipy.signal import welch
from tqdm import tqdm

from hybridsep.core.errors import HybridsepError
from hybridsep.core.files import write_atomically
from hybridsep.data.archive import BROKEN, CHUNK, Archive, ConnectionLost, Damaged, Inflated, Member, Source
from hybridsep.data.slakh import SPLITS, parse_metadata, read_mono, rendered_stems, split_by_index
from hybridsep.data.writing import claim_folder, write_table

ZENODO = "https://zenodo.org/records/"
VARIANTS = {  # address and the MD5 on record
    "redux": (ZENODO + "4599666/files/slakh2100_flac_redux.tar.gz?download=1", "f4b71b6c45ac9b506f59788456b3f0c4"),
    "baby": (ZENODO + "4603844/files/babyslakh_16k.zip?download=1", "ea1797fc57689a0e33c759c17a2292f5"),
}
# A stem whose loudest second stays under this comes from an instrument that made no sound. 16-bit rounding alone lies
# at -101 dBFS, the quietest of 100 MiniSlakh stems at -22.
SILENT_DBFS = -60.0
# Spectral flatness of the mean power spectrum: 1 for white noise (0.998 measured). The brightest drum stem of 50 MiniSlakh
# songs has 0.27, one pedalled hat alone 0.56 (the most noise-like of 96 sounds of the SoundFont's kits), pink noise 0.49.
NOISE_FLATNESS = 0.85
LONGEST_STEM = 3600.0  # seconds
LARGEST_STEM, LARGEST_METADATA = 1 << 30, 4 << 20  # bytes
SPARE, SPARE_AT_LEAST = 1.25, 8  # tracks open for each one wanted: some turn out to lack a stem too late to open others
NOTE_SECONDS = 60.0  # of reading that a killed run may cost

_PLACE = re.compile(
    r"(?:^|/)(?:(?P<split>train|validation|test|omitted)/)?(?P<track>Track\d{5})/"
    r"(?:metadata\.yaml|stems/(?P<stem>S\d{2,3})\.(?P<form>flac|wav))$"
)


class Report(NamedTuple):
    """Complete tracks of each split, rows of rejected.csv, bytes read in this run, and what is known of the archive, in words."""

    tracks: dict[str, int]
    rejected: int
    bytes_read: int = 0
    checked: str = "not read: every track is there already"

    @property
    def total(self) -> int:
        """Number of complete tracks."""
        return sum(self.tracks.values())

    def summary(self, out: Path) -> str:
        """Say in one line what lies in `out`."""
        counts = ", ".join(f"{count} {split}" for split, count in self.tracks.items())
        refused = f", {self.rejected} stems or tracks refused: see {out / 'rejected.csv'}" if self.rejected else ""
        read = f"{self.bytes_read / 1e9:.2f} GB read; archive {self.checked}"
        return f"{self.total} songs in {out} ({counts}){refused}; {read}"


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
    """Fetch tracks that have all `classes` of Slakh, and of these only the stems of `classes`; go on where an earlier run stopped.

    Of the tracks asked for a tenth is for validation, a fifth for testing, the rest (all of fewer than 3) for training, each from its own
    folder of the archive, so that no song is in two splits. Redux's `omitted` tracks double others and are left out. BabySlakh has
    no such folders: its tracks with numbers ending in 1 to 7 train, 8 validates, 9 and 0 test.

    `variant` is "redux" or "baby", `source` another address or a file instead of the published one, `md5` to hold it against.

    Returns what is also in `out`/fetched.json; what was refused is in `out`/rejected.csv. HybridsepError: the archive cannot be had, is
    damaged or holds what no song collection does; the disk is full; `out` holds other songs; no track is of use. Complete tracks stay.
    """
    if variant not in VARIANTS:
        raise HybridsepError(f"unknown variant {variant!r}: use one of {', '.join(VARIANTS)}")
    if tracks < 1:
        raise HybridsepError(f"{tracks} tracks are none: ask for one or more")
    url, known = VARIANTS[variant] if source is None else (source, None)
    settings = {"variant": variant, "classes": list(classes), "sample_rate": sample_rate}
    try:
        sorter = Sorter(Path(out), settings, tracks)
        enough = Report(sorter.counts, len(sorter.rejected)) if sorter.enough else None
        report = enough or _read(sorter, url, md5 or known, progress)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        kept = sum(sorter.counts.values())
        raise HybridsepError(f"no space left for {out}: {kept} complete tracks are kept; make room first") from None
    if not report.total:
        raise HybridsepError(f"no track of {url} has usable stems of {' and '.join(classes)}: see {out}/rejected.csv")
    return report


def _read(sorter: "Sorter", address: str, md5: str | None, progress: bool) -> Report:
    """Read the archive until there is enough, or no more."""
    bar = tqdm(desc="Slakh", unit="B", unit_scale=True, disable=not progress)
    with bar, Source(address, bar) as source:
        archive = Archive(source, md5, sorter.partial, sorter.recall(address, source.version))
        try:
            for member in archive:
                sorter.take(member)
                bar.set_postfix_str(f"{sum(sorter.counts.values())}/{sorter.tracks} tracks", refresh=False)
                if sorter.enough:
                    break
                sorter.note(archive.inflated, NOTE_SECONDS)
            else:
                sorter.finish_all()
        except (ConnectionLost, KeyboardInterrupt):
            sorter.note(archive.inflated)
            raise
        except Damaged:
            sorter.clear()
            raise
        except BROKEN as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise
            sorter.clear()
            what = f"(byte {source.tell()}): {' '.join(str(error).split()) or type(error).__name__}"
            raise HybridsepError(f"{address} is damaged, cut off or no archive {what}") from None
        sorter.clear()
        report = Report(sorter.counts, len(sorter.rejected), source.received, archive.checked)
        record = {"source": address, "bytes_total": source.size, **report._asdict()}
        write_atomically(sorter.out / "fetched.json", json.dumps(record, indent=1).encode())
    return report


class Sorter:
    """Puts each member of an archive to its track, and writes the tracks that are complete; HybridsepError if `out` holds others.

    All it knows lies on the disk: complete tracks in OUT/<split>, what waits in OUT/.partial/<split>, what was refused in
    OUT/rejected.csv, and in OUT/.partial/note.json how far the archive was read and which of its tracks are closed.
    """

    def __init__(self, out: Path, settings: dict, tracks: int):
        self.out, self.partial, self.settings, self.tracks = out, out / ".partial", settings, tracks
        claim_folder(out, "slakh.json", settings)
        validation, test = (max(1, round(tracks * share)) if tracks >= len(SPLITS) else 0 for share in (0.1, 0.2))
        self.quota = {"train": tracks - validation - test, "validation": validation, "test": test}
        self.counts = {split: sum(1 for _ in (out / split).glob("Track*")) for split in SPLITS}
        self._open: dict[Path, dict | None] = {}  # folder of what waits -> metadata.yaml, None before it came by
        self._closed: set[Path] = set()
        self._noted = time.monotonic()
        self.rejected: dict[tuple[str, ...], str] = {}  # split, track, stem -> reason
        if (file := out / "rejected.csv").is_file():
            _, *rows = csv.reader(io.StringIO(file.read_text(encoding="utf-8")))
            self.rejected = {tuple(place): reason for *place, reason in rows}

    @property
    def enough(self) -> bool:
        """Tell whether every split has its tracks."""
        return all(count >= self.quota[split] for split, count in self.counts.items())

    def recall(self, address: str, version: tuple) -> dict | None:
        """Take up what an earlier run left of the same task, and return its mark in the archive."""
        # Another number of tracks would have passed over others.
        self._task = {"source": address, "version": list(version), "tracks": self.tracks}
        self.partial.mkdir(exist_ok=True)
        try:
            note = json.loads((self.partial / "note.json").read_text())
        except (OSError, ValueError):
            note = {}
        if not self._task.items() <= note.items():
            for split in SPLITS:
                shutil.rmtree(self.partial / split, ignore_errors=True)
            return None
        self._closed = {self.partial / name for name in note["closed"]}
        for track in self.partial.glob("*/Track*"):
            file = track / "metadata.yaml"
            if self._target(track).is_dir():  # the run ended between the two
                shutil.rmtree(track)
            else:
                self._open[track] = parse_metadata(file.read_bytes(), file) if file.is_file() else None
        return note["mark"]

    def note(self, inflated: Inflated | None, after: float = 0.0) -> None:
        """Write down, `after` so many seconds, where in the archive the next run can go on with what waits now."""
        if inflated and time.monotonic() - self._noted >= after:
            closed = [str(track.relative_to(self.partial)) for track in self._closed]
            note = json.dumps({**self._task, "mark": inflated.mark(), "closed": closed})
            write_atomically(self.partial / "note.json", note.encode())
            self._list_rejected()
            self._noted = time.monotonic()

    def clear(self) -> None:
        """Remove what waits."""
        shutil.rmtree(self.partial)
        self._list_rejected()

    def take(self, member: Member) -> None:
        """Keep what a member brings for a track that is wanted."""
        place = _PLACE.search(member.name)
        if not place or place["split"] == "omitted":
            return
        track = self.partial / (place["split"] or split_by_index(int(place["track"][5:]) - 1)) / place["track"]
        if not self._opened(track):
            return
        if place["stem"]:
            self._spool(track, f"{place['stem']}.{place['form']}", member)
        elif self._open[track] is None:
            self._learn(track, member)
        # A stem that is not called rendered may come all the same where none is: only the archive's end tells.
        metadata = self._open.get(track) or {"stems": {}}
        told = any(entry.get("audio_rendered", True) for entry in metadata["stems"].values())
        if told and self._wanted(metadata) <= _waiting(track).keys():
            self._finish(track)

    def finish_all(self) -> None:
        """Finish what is open when the archive is at its end: what has not come by will not."""
        for track in list(self._open):
            self._finish(track)

    def _target(self, track: Path) -> Path:
        return self.out / track.relative_to(self.partial)

    def _wanted(self, metadata: dict) -> set[str]:
        classes = self.settings["classes"]
        return {name for name in rendered_stems(metadata) if metadata["stems"][name]["inst_class"] in classes}

    def _lacking(self, metadata: dict, stems: Iterable[str]) -> str:
        """Name the classes that have none of these stems."""
        there = {metadata["stems"][name]["inst_class"] for name in stems}
        return ", ".join(name for name in self.settings["classes"] if name not in there)

    def _opened(self, track: Path) -> bool:
        """Tell whether a track is open; open it if it is new, wanted, and there is room."""
        split = track.parent.name
        if track not in self._open and track not in self._closed and not self._target(track).is_dir():
            missing = self.quota[split] - self.counts[split]
            others = sum(other.parent == track.parent for other in self._open)
            if missing > 0 and others < SPARE * missing + SPARE_AT_LEAST:
                track.mkdir(parents=True)
                self._open[track] = None
            else:
                self._closed.add(track)  # its first file goes by: it can no longer be had whole
        return track in self._open

    def _learn(self, track: Path, member: Member) -> None:
        """Take the metadata and drop the stems that it shows to be of no use."""
        if member.size > LARGEST_METADATA:
            return self._close(track, f"metadata.yaml of {member.size} bytes")
        content = member.file.read()
        try:
            self._open[track] = metadata = parse_metadata(content, "metadata.yaml")
        except HybridsepError as error:
            return self._close(track, error)
        wanted = self._wanted(metadata)
        if lacking := self._lacking(metadata, wanted):
            return self._close(track, f"no stem of class {lacking}")
        (track / "metadata.yaml").write_bytes(content)
        for name, path in _waiting(track).items():
            if name not in wanted:
                path.unlink()

    def _spool(self, track: Path, name: str, member: Member) -> None:
        metadata, stem = self._open[track], name.partition(".")[0]
        if stem in _waiting(track) or (metadata is not None and stem not in self._wanted(metadata)):
            return
        if member.size > LARGEST_STEM:
            return self._reject(track, f"{member.size} bytes are too many", stem)
        with (track / "stem.tmp").open("wb") as target:
            shutil.copyfileobj(member.file, target, CHUNK)
        (track / "stem.tmp").rename(track / name)

    def _finish(self, track: Path) -> None:
        """Write a track, if it is of use and still wanted."""
        split, metadata, waiting = track.parent.name, self._open[track], _waiting(track)
        if metadata is None:
            return self._close(track, "no metadata.yaml in the archive")
        if self.counts[split] < self.quota[split]:
            shutil.rmtree(work := self.partial / "finished", ignore_errors=True)
            (work / "stems").mkdir(parents=True)
            kept = {}
            for stem in sorted(self._wanted(metadata)):
                try:
                    content = _converted(waiting.get(stem), self.settings["sample_rate"])
                    (work / "stems" / f"{stem}.flac").write_bytes(content)
                    kept[stem] = {**metadata["stems"][stem], "audio_rendered": True}
                except HybridsepError as error:
                    self._reject(track, str(error).removeprefix(f"{waiting.get(stem)} "), stem)
            if lacking := self._lacking(metadata, kept):
                return self._close(track, f"no usable stem of class {lacking}")
            (work / "metadata.yaml").write_bytes(yaml.safe_dump({**metadata, "stems": kept}).encode())
            self._target(track).parent.mkdir(exist_ok=True)
            work.rename(self._target(track))
            self.counts[split] += 1
        self._close(track)

    def _close(self, track: Path, reason: object = None) -> None:
        if reason:
            self._reject(track, reason)
        del self._open[track]
        self._closed.add(track)
        self._noted = -math.inf  # or a killed run would be followed by one that opens it anew, without what came before
        shutil.rmtree(track)

    def _reject(self, track: Path, reason: object, stem: str = "") -> None:
        self.rejected.setdefault((track.parent.name, track.name, stem), str(reason))

    def _list_rejected(self) -> None:
        rows = [(*place, reason) for place, reason in sorted(self.rejected.items())]
        write_table(self.out / "rejected.csv", [("split", "track", "stem", "reason"), *rows])


def _waiting(track: Path) -> dict[str, Path]:
    return {path.stem: path for path in track.iterdir() if path.suffix in (".flac", ".wav")}


def _converted(path: Path | None, sample_rate: int) -> bytes:
    """Return a 16-bit FLAC file, mono at `sample_rate` Hz, of a stem that sounds; HybridsepError says why it is of no use."""
    if path is None:
        raise HybridsepError("not in the archive")
    try:
        info = soundfile.info(path)
    except soundfile.SoundFileError:
        raise HybridsepError("not audio") from None
    if not 0 < info.frames <= LONGEST_STEM * info.samplerate:
        raise HybridsepError(f"{info.frames} samples long")
    samples = read_mono(path, sample_rate)
    if abs(len(samples) - info.frames * sample_rate / info.samplerate) > 1:
        raise HybridsepError("cut off")
    level, flatness = measure(samples, sample_rate, info.samplerate)
    if level < SILENT_DBFS:
        raise HybridsepError(f"silent: {level:.1f} dBFS")
    if flatness > NOISE_FLATNESS:
        raise HybridsepError(f"white noise: flatness {flatness:.3f}")
    if info.samplerate < sample_rate:
        warnings.warn(f"stems of {info.samplerate} Hz: their band ends at {info.samplerate / 2000:g} kHz", stacklevel=2)
    file = io.BytesIO()  # libsndfile does not tell a full disk from other failures, Python's own files do
    soundfile.write(file, np.clip(samples, -1, 1), sample_rate, format="FLAC", subtype="PCM_16")
    return file.getvalue()


def measure(samples: np.ndarray, sample_rate: int, native_rate: int) -> tuple[float, float]:
    """Return RMS level of a stem's loudest second in dBFS, and its spectral flatness in [0, 1].

    That is geometric by arithmetic mean of the power spectrum from 50 Hz to 0.8 of half the lower rate; `samples` are mono [samples].
    """
    whole = len(samples) // sample_rate * sample_rate
    seconds = samples[:whole].reshape(-1, sample_rate) if whole else samples[None]
    level = 10 * math.log10(float(np.square(seconds, dtype=np.float64).mean(1).max()) + 1e-20)
    hertz, power = welch(samples, sample_rate, nperseg=min(2048, len(samples)))
    power = power[(hertz >= 50) & (hertz <= 0.4 * min(sample_rate, native_rate))] + 1e-30
    return level, float(np.exp(np.log(power).mean()) / power.mean()) if len(power) else 0.0
