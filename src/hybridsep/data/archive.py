"""The files of an archive on a web server or on the disk, one after the other; a tar.gz is never kept.

Slakh2100-redux is one gzip stream of 104 GB. `indexed_gzip` notes points to inflate from; the last is the mark from which a
later run goes on, with 3 MB at most to read again. A zip's directory is at its end: BabySlakh's (0.9 GB) is saved.
`fsspec`'s HTTP file cannot stand in for `Source`: it asks for each block by itself (Zenodo grants a guest 2 000 requests an hour),
gives up at the first broken connection and does not notice a file that changes. hashlib cannot store its state: of a tar.gz read in
several runs gzip's own CRC-32, which `indexed_gzip` leaves unchecked, is held.
"""

import base64
import hashlib
import io
import os
import re
import shutil
import stat
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath
from typing import IO, Any, NamedTuple

import numpy as np
import pooch
import requests
import urllib3
from fsspec.spec import AbstractBufferedFile
from indexed_gzip import IndexedGzipFile, ZranError
from requests.adapters import HTTPAdapter
from tqdm import tqdm

from hybridsep.core.errors import HybridsepError

CHUNK = 1 << 20
BLOCKS = 8  # of CHUNK bytes kept: indexed_gzip reads each stretch twice and steps back by 3 spacings at most
SPACING = 1 << 20  # bytes inflated between two points of the index, each of 32 KB
TIMEOUT, TRIES = 60.0, 6  # seconds without a byte; tries until a connection counts as lost
RETRY = urllib3.Retry(TRIES, backoff_factor=1.0, status_forcelist={408, 425, 429, 500, 502, 503, 504})
#: What the libraries raise on a broken archive, wherever its members are read; OSError without a number.
BROKEN = (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile, NotImplementedError)
_POINT = np.dtype([("consumed", "<u8"), ("produced", "<u8"), ("bits", "u1"), ("window", "u1")])
_HEADER, _WINDOW = 35, 1 << 15  # bytes before the points in an exported index, and of the window that each point has


class ConnectionLost(HybridsepError):
    """The archive cannot be reached any more; what was read until then is good."""


class Damaged(HybridsepError):
    """The archive is not what it should be; what waits of it is of no use."""


class Member(NamedTuple):
    """One regular file, to be read before the next is asked for; `size` in bytes, as the archive declares it."""

    name: str
    size: int
    file: IO[bytes]


class Source(AbstractBufferedFile):
    """A file on a web server or on the disk, seekable, whose broken connections are had back.

    `version` (size, and tag or time) changes if the file does; `magic` is its first four bytes; `received` came in this run.
    ConnectionLost if it cannot be reached (again), HybridsepError if it is not there, knows no byte ranges or changes while it is read.
    """

    def __init__(self, address: str, bar: tqdm):
        self.address, self._bar, self.version = address, bar, (0, "")
        self._body: Any = None  # what is read from, `_at` the next byte of it
        self._at = self._hashed = self.received = 0
        self._md5 = hashlib.md5(usedforsecurity=False)
        self._session = requests.Session()
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=RETRY))
        self.remote = re.match("https?://", address, re.IGNORECASE) is not None
        if self.remote:
            with self._ask(0, "3") as answer:
                self.magic, size = answer.content, int(answer.headers["Content-Range"].rpartition("/")[2])
                tag = answer.headers.get("ETag", "W/")  # a weak one does not hold for ranges
                self.version = size, answer.headers.get("Last-Modified", "") if tag.startswith("W/") else tag
        elif (path := Path(address)).is_file():
            with path.open("rb") as file:
                self.magic = file.read(4)
            self.version = path.stat().st_size, str(path.stat().st_mtime_ns)
        else:
            raise HybridsepError(f"no archive {address}: give a file or an http(s) address")
        bar.total, cache = self.version[0], {"maxblocks": BLOCKS}
        super().__init__(None, address, "rb", CHUNK, cache_type="blockcache", cache_options=cache, size=bar.total)

    @property
    def digest(self) -> str:
        """MD5 of the whole file, hexadecimal; empty if this run has not read all of it."""
        return self._md5.hexdigest() if self._hashed == self.size else ""

    def _fetch_range(self, start: int, end: int) -> bytes:
        if start != self._at:
            self._hang_up()
            self._at = start
        pieces = []
        while (missing := min(end, self.size) - self._at) > 0:
            pieces.append(piece := self._receive(missing))
            if self._at <= self._hashed:
                self._md5.update(piece[self._hashed - self._at :])
                self._hashed = max(self._hashed, self._at + len(piece))
            self._at += len(piece)
            self.received += len(piece)
            self._bar.update(max(0, self._at - self._bar.n))
        return b"".join(pieces)

    def _receive(self, count: int) -> bytes:
        """Return up to `count` bytes that come next; have a broken connection back."""
        for failures in range(TRIES + 1):
            try:
                if self._body is None:
                    self._body = self._ask(self._at).raw if self.remote else Path(self.address).open("rb")
                    if not self.remote:
                        self._body.seek(self._at)
                if content := self._body.read1(count):
                    return content
                reason: object = "closed before its end"
            except (urllib3.exceptions.HTTPError, OSError) as error:
                reason = error.args[0] if error.args else error
            self._hang_up()
            tqdm.write(f"connection to {self.address} broken at byte {self._at} ({reason}): trying again", sys.stderr)
            time.sleep(2.0**failures - 1)
        raise ConnectionLost(f"lost the connection to {self.address} at byte {self._at}: {reason}; run again to go on")

    def _ask(self, first: int, last: str = "") -> requests.Response:
        """Ask for bytes from `first` on; refuse an answer that brings others."""
        size, tag = self.version
        headers = {"Range": f"bytes={first}-{last}", "Accept-Encoding": "identity"} | ({"If-Range": tag} if tag else {})
        try:
            answer = self._session.get(self.address, headers=headers, stream=True, timeout=TIMEOUT)
        except requests.RequestException as error:
            raise ConnectionLost(f"lost the connection to {self.address} at byte {first}: {error}") from None
        extent = re.fullmatch(rf"bytes {first}-\d+/{size or '[0-9]+'}", answer.headers.get("Content-Range", ""))
        if answer.status_code == 206 and extent:
            return answer
        answer.close()
        if answer.status_code not in (200, 206):
            raise HybridsepError(f"{self.address} answers {answer.status_code} {answer.reason}")
        if size:
            raise HybridsepError(f"{self.address} changed while it was read: run again to begin anew")
        raise HybridsepError(f"{self.address}: its server knows no byte ranges; download the file and give its path")

    def close(self) -> None:
        self._hang_up()
        super().close()

    def _hang_up(self) -> None:
        if self._body is not None:
            self._body.close()
            self._body = None


class Inflated:
    """What a tar.gz inflates to, and its CRC-32, from a mark on; readers set `place`, where the next member begins; `position`: next byte."""

    def __init__(self, source: Source, mark: dict | None):
        self._source, self._crc, self.place = source, 0, 0
        self._file = IndexedGzipFile(fileobj=source, spacing=SPACING, buffer_size=SPACING)
        self.position = self._summed = 0
        if mark:
            self._file.import_index(fileobj=io.BytesIO(base64.b64decode(mark["index"])))
            self.place, self._summed, self._crc = mark["place"], mark["summed"], mark["crc"]
            self.position = self._file.seek(min(self.place, self._summed))
            while (left := self.place - self.position) > 0 and self.read(min(CHUNK, left)):
                pass  # of a member that was to be skipped when the earlier run ended

    def read(self, count: int) -> bytes:
        """Inflate `count` bytes and sum those that no earlier run has summed."""
        try:
            content = self._file.read(count)
        except ZranError as error:
            raise error.__cause__ or EOFError("it cannot be inflated") from None
        self._crc = zlib.crc32(content[max(0, self._summed - self.position) :], self._crc)
        self.position += len(content)
        self._summed = max(self._summed, self.position)
        return content

    def mark(self) -> dict:
        """Return where to go on with the member at `place`, as plain values."""
        self._file.export_index(fileobj=(file := io.BytesIO()))
        index = _from_place(file.getvalue(), min(self.place, self._summed))
        self._file.import_index(fileobj=io.BytesIO(index))  # all points of 104 GB would take 3 GB of memory
        text = base64.b64encode(index).decode()
        return {"place": self.place, "summed": self._summed, "crc": self._crc, "index": text}

    def check(self) -> str:
        """Hold all that was inflated against gzip's trailer; return in words what that tells."""
        self._source.seek(-8, os.SEEK_END)
        crc, size = np.frombuffer(self._source.read(), "<u4")
        if size != self._summed % 2**32:
            return "it has several streams, so gzip's own checksum was not used"
        if crc != self._crc:
            raise zlib.error(f"its checksum is {self._crc:08x}, not {crc:08x}")
        return "gzip's own checksum is right"


class Archive:
    """The files of a tar.gz or a zip, in its order, from what `mark` gave in an earlier run; `checked` tells of its integrity.

    Iterated, it raises Damaged if the archive has another MD5, or holds a link, a device or a path that leads out of it, and any of
    the libraries' exceptions if it is damaged (see `BROKEN`). A zip on a server is saved in `folder`.
    """

    def __init__(self, source: Source, md5: str | None, folder: Path, mark: dict | None = None):
        self._source, self._md5, self._folder = source, md5, folder
        self.checked = "not read to its end, so its MD5 cannot be checked; every stem kept was decoded whole"
        self.inflated = Inflated(source, mark) if source.magic[:2] == b"\x1f\x8b" else None

    def __iter__(self) -> Iterator[Member]:
        if self.inflated:
            return self._tar_members(self.inflated)
        if self._source.magic == b"PK\x03\x04":
            return self._zip_members()
        raise zipfile.BadZipFile("it begins neither as a tar.gz nor as a zip")

    def _tar_members(self, stream: Inflated) -> Iterator[Member]:
        begin = stream.place
        with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 16) as tar:  # type: ignore[call-overload]
            while (info := tar.next()) is not None:
                tar.members.clear()  # or it remembers every file of the archive
                _refuse_dangers(info.name, info.isreg() or info.isdir(), info.issym() or info.islnk())
                if info.isreg():
                    yield Member(info.name, info.size, tar.extractfile(info))
                stream.place = begin + tar.offset  # not before whoever asked for the file is through with it
            # tarfile takes a header that makes no sense, or none, for the end; but zeros mark it, and only they follow.
            while content := tar.fileobj.read(CHUNK):
                if content.strip(b"\0"):
                    raise tarfile.ReadError("a file's header makes no sense")
            if stream.position < begin + tar.offset + tarfile.BLOCKSIZE:
                raise EOFError("it ends before its end")
        self._compare(stream.check(), self._source.digest)

    def _compare(self, known: str, digest: str) -> None:
        """Hold the whole archive's MD5, if it could be had, against the one on record."""
        if not digest:
            self.checked = f"read to its end in several runs, so its MD5 cannot be checked; {known}"
        elif self._md5 and digest != self._md5.lower():
            raise Damaged(f"{self._source.address} is another archive: its MD5 is {digest}, not {self._md5}")
        else:
            self.checked = f"read to its end, MD5 {digest} {'as it should be' if self._md5 else '(none was given)'}"

    def _zip_members(self) -> Iterator[Member]:
        path = self._saved() if self._source.remote else self._source.address
        self._compare("", pooch.file_hash(path, "md5"))
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
                _refuse_dangers(info.filename, kind in (0, stat.S_IFREG, stat.S_IFDIR), kind == stat.S_IFLNK)
                if info.flag_bits & 1:
                    raise zipfile.BadZipFile("its files are encrypted")
                if not info.is_dir():
                    yield Member(info.filename, info.file_size, archive.open(info))

    def _saved(self) -> Path:
        """Save a zip, going on with what an earlier run has saved of this version of it."""
        name = hashlib.sha256(repr((self._source.address, self._source.version)).encode()).hexdigest()[:12]
        part, whole = (self._folder / f"{name}.{end}" for end in ("part", "zip"))
        if not whole.is_file():
            with part.open("ab") as file:
                self._source.seek(file.tell())
                shutil.copyfileobj(self._source, file, CHUNK)
            part.replace(whole)
        return whole


def _from_place(index: bytes, place: int) -> bytes:
    """Leave of an exported index the first point, the last one up to byte `place` of what is inflated, and those after it."""
    points = np.frombuffer(index, _POINT, int.from_bytes(index[_HEADER - 4 : _HEADER], "little"), _HEADER)
    kept = np.arange(len(points)) >= np.searchsorted(points["produced"], place, side="right") - 1
    kept[:1] = True
    windows = np.frombuffer(index, np.uint8, offset=_HEADER + points.nbytes).reshape(-1, _WINDOW)
    windows = windows[kept[points["window"] == 1]]
    return index[: _HEADER - 4] + np.uint32(kept.sum()).tobytes() + points[kept].tobytes() + windows.tobytes()


def _refuse_dangers(name: str, harmless: bool, link: bool) -> None:
    """Refuse an archive that tries to write where it should not; nothing is ever written under a member's own name."""
    if not harmless:
        raise Damaged(f"refused: the archive holds a {'link' if link else 'device'}, {name!r}, among its songs")
    if (path := PureWindowsPath(name)).anchor or ".." in path.parts:  # it knows both separators
        raise Damaged(f"refused: the archive holds the path {name!r}, which leads out of the folder it belongs in")
