"""The files in a tar.gz, tar or zip archive, one after the other, none of them trusted to say where it is written."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from hybridsep.core.errors import HybridsepError
from hybridsep.data.download import CHUNK, Archive
from hybridsep.data.inflate import GzipStream, Point, can_resume

_DAMAGE = (EOFError, zlib.error, gzip.BadGzipFile, tarfile.TarError, zipfile.BadZipFile, NotImplementedError)


@dataclass(frozen=True)
class Member:
    """One regular file, to be read before the next is asked for; `size` in bytes, as the archive declares it."""

    name: str
    size: int
    open: Callable[[], BinaryIO]

    def chunks(self) -> Iterator[bytes]:
        """The content, piece by piece."""
        with self.open() as file:
            while content := file.read(CHUNK):
                yield content


class Members:
    """The files of an archive, in its order.

    A tar (gzipped or not) is read as it comes and checked against `md5` at its end. A zip's directory is at its end: one on a server is
    first saved to `download`, checked, and removed when all is read. Taking what comes by instead would need the sizes, which a zip may tell
    only after the data.

    Args:
        archive: positioned where `mark` says, if there is one.
        mark: what `mark` gave in an earlier run, to begin there.

    Raises, when iterated:
        HybridsepError: the archive has another MD5, or holds a link, a device or a path that leads out of it.
        Exception: any of the standard library's when the archive is damaged; see `naming_damage`.
    """

    def __init__(self, archive: Archive, md5: str | None, download: Path, mark: dict | None = None):
        self._archive, self._md5, self._download, self._begin = archive, md5, download, mark
        self._inflated: GzipStream | None = None
        self._next = mark["next"] if mark else 0

    def __iter__(self) -> Iterator[Member]:
        stream = io.BufferedReader(self._archive, CHUNK)
        magic = b"\x1f\x8b" if self._begin else _first_bytes(self._download) or stream.peek(4)[:4]
        if magic == b"PK\x03\x04":
            yield from _zip_members(_saved(self._archive, stream, self._md5, self._download))
            self._download.unlink(missing_ok=True)
        else:
            yield from self._tar_members(self._unzipped(stream) if magic[:2] == b"\x1f\x8b" else stream)
            self._archive.check(self._md5)

    def mark(self) -> dict | None:
        """Where to go on with the file yielded last, as plain values; None where there is no such place."""
        point = self._inflated.point_before(self._next) if self._inflated else None
        return {"next": self._next, "point": point.to_json()} if point else None

    def _unzipped(self, stream: BinaryIO) -> BinaryIO:
        if not can_resume():
            return gzip.GzipFile(fileobj=stream)
        point = Point.from_json(self._begin["point"]) if self._begin else None
        self._inflated = GzipStream(stream, point)
        left = self._next - point.produced if point else 0
        while left:
            skipped = self._inflated.read(min(CHUNK, left))
            if not skipped:
                raise EOFError("it ends before the place where an earlier run stopped")
            left -= len(skipped)
        return self._inflated

    def _tar_members(self, stream: BinaryIO) -> Iterator[Member]:
        begin = self._next
        with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 16) as tar:
            while (info := tar.next()) is not None:
                tar.members.clear()  # or it remembers every file of the archive
                _refuse_dangers(
                    info.name,
                    "" if info.isreg() or info.isdir() else "link" if info.issym() or info.islnk() else "device",
                )
                if info.isreg():
                    yield Member(info.name, info.size, lambda info=info: tar.extractfile(info))
                self._next = begin + tar.offset  # not before whoever asked for the file is through with it
            # tarfile takes a header that makes no sense for the end of the archive; but only padding follows the true end.
            while content := tar.fileobj.read(CHUNK):
                if content.strip(b"\0"):
                    raise tarfile.ReadError("a file's header makes no sense")


@contextmanager
def naming_damage(archive: Archive, download: Path) -> Iterator[None]:
    """Around all reading of members: what the standard library raises on a broken archive becomes one line, and a broken download goes."""
    try:
        yield
    except _DAMAGE as error:
        download.unlink(missing_ok=True)
        what = " ".join(str(error).split()) or type(error).__name__
        raise HybridsepError(
            f"{archive.source} is damaged, cut off or no archive (byte {archive.position}): {what}"
        ) from None


def _saved(archive: Archive, stream: BinaryIO, md5: str | None, download: Path) -> Path:
    """The checked zip as a file."""
    if not archive.remote:
        archive.check(md5)
        return Path(archive.source)
    download.parent.mkdir(parents=True, exist_ok=True)
    with download.open("ab") as file:
        while content := stream.read1(CHUNK):
            file.write(content)
    try:
        archive.check(md5)
    except HybridsepError:
        download.unlink()
        raise
    return download


def _zip_members(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
            dangerous = "" if kind in (0, stat.S_IFREG, stat.S_IFDIR) else "link" if kind == stat.S_IFLNK else "device"
            _refuse_dangers(info.filename, dangerous)
            if info.flag_bits & 1:
                raise zipfile.BadZipFile("its files are encrypted")
            if not info.is_dir():
                yield Member(info.filename, info.file_size, lambda info=info: archive.open(info))


def _first_bytes(path: Path) -> bytes:
    if not path.is_file():
        return b""
    with path.open("rb") as file:
        return file.read(4)


def _refuse_dangers(name: str, kind: str) -> None:
    """Nothing is ever written under a member's own name; but an archive that tries is not the one that was asked for."""
    path = PurePosixPath(name.replace("\\", "/"))
    if kind:
        raise HybridsepError(f"refused: the archive holds a {kind}, {name!r}, where a song collection has files only")
    if path.is_absolute() or ".." in path.parts or path.parts[:1] and path.parts[0].endswith(":"):
        raise HybridsepError(
            f"refused: the archive holds the path {name!r}, which leads out of the folder it belongs in"
        )
