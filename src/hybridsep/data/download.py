"""The bytes of an archive, in order, from a file or a web server: counted, hashed, and taken up again where a connection broke."""

from __future__ import annotations

import hashlib
import http.client
import io
import socket
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from hybridsep.core.errors import HybridsepError

TIMEOUT = 60.0  # seconds without a byte
PAUSES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)  # seconds before each new try; the count starts again with every byte gained
LONGEST_PAUSE = 300.0  # seconds; Zenodo asks for a minute when it is called too often
CHUNK = 1 << 20
TRY_AGAIN = {408, 425, 429, 500, 502, 503, 504}
_BROKEN = (http.client.HTTPException, urllib.error.URLError, ConnectionError, socket.timeout, TimeoutError)


class ConnectionLost(HybridsepError):
    """The server cannot be reached any more; what was read until then is good."""


class Archive(io.RawIOBase):
    """A readable, unseekable stream.

    Args:
        source: an http(s) address or the path of a file.
        saved: file with the archive's first bytes, from an earlier run; they are hashed and not fetched again.
        start: first byte to read, where there is no `saved`; the MD5 is then of no use.
        bar: progress bar that shows bytes.

    Attributes:
        position: bytes consumed, those of `saved` and before `start` included.
        total: size in bytes; None where a server does not tell.
        checked: what is known of the archive's integrity, in words.

    Raises:
        HybridsepError: no such file or address, or a connection that cannot be had back.
    """

    def __init__(self, source: str, saved: Path | None = None, start: int = 0, bar: tqdm | None = None):
        super().__init__()
        self.source, self._bar = source, bar
        self.position = self._start = start
        self.total: int | None = None
        self.checked = "not read to its end, so its MD5 cannot be checked; every stem kept was decoded whole"
        self._md5 = hashlib.md5(usedforsecurity=False)
        if saved and saved.is_file():
            with saved.open("rb") as file:
                while content := file.read(CHUNK):
                    self._md5.update(content)
                    self.position += len(content)
        self._failures = 0
        self._validator: str | None = None
        self._body = None
        self.remote = source.lower().startswith(("http://", "https://"))
        self._call(self._connect)
        if bar is not None:
            bar.total = self.total
            bar.update(self.position)

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer) -> int:
        """Fill `buffer` as far as one read goes; 0 at the end of the archive."""
        view = memoryview(buffer)
        count = self._call(lambda: self._read(view))
        self._md5.update(view[:count])
        self.position += count
        if count:
            self._failures = 0
            if self._bar is not None:
                self._bar.update(count)
        return count

    def check(self, expected: str | None) -> None:
        """Read the rest and hold the MD5 of the whole archive against `expected`, hexadecimal, if there is one.

        Raises:
            HybridsepError: they differ.
        """
        while self.read(CHUNK):
            pass
        if self._start:
            self.checked = "read to its end in several runs: its MD5 cannot be checked, gzip's own checksum is right"
            return
        if expected and self.digest != expected.lower():
            raise HybridsepError(
                f"{self.source} is not the archive it should be: its MD5 is {self.digest}, not {expected.lower()}"
            )
        self.checked = f"read to its end, MD5 {self.digest} " + (
            "as it should be" if expected else "(none was given to hold it against)"
        )

    @property
    def version(self) -> list:
        """What would change if the archive did: size, and time or tag."""
        return [self.total, self._validator]

    @property
    def digest(self) -> str:
        """MD5 of what was read so far, hexadecimal."""
        return self._md5.hexdigest()

    def close(self) -> None:
        """Hang up."""
        if self._body is not None:
            self._body.close()
            self._body = None
        super().close()

    # --- one try -----------------------------------------------------------------------------------------------------------

    def _read(self, view: memoryview) -> int:
        if self._body is None:
            self._connect()
        content = self._body.read1(
            len(view)
        )  # one call to the system, so that what came before a break is not lost with it
        count = len(content)
        view[:count] = content
        if count == 0 and self.total is not None and self.position < self.total:
            raise ConnectionError(f"closed after {self.position} of {self.total} bytes")
        return count

    def _connect(self) -> None:
        if not self.remote:
            path = Path(self.source)
            if not path.is_file():
                raise HybridsepError(f"no archive {path}: give a file or an http(s) address")
            self._body, self.total, self._validator = path.open("rb"), path.stat().st_size, str(path.stat().st_mtime_ns)
            self._body.seek(self.position)
            return
        headers = {"User-Agent": "hybridsep", "Accept-Encoding": "identity"}
        if self.position:
            headers["Range"] = f"bytes={self.position}-"
            if self._validator:
                headers["If-Range"] = self._validator
        try:
            response = urllib.request.urlopen(urllib.request.Request(self.source, headers=headers), timeout=TIMEOUT)
        except urllib.error.HTTPError as error:
            if error.code != 416 or error.headers.get("Content-Range") != f"bytes */{self.position}":
                raise
            self._body, self.total = io.BytesIO(), self.position  # there is nothing after the last byte
            return
        try:
            self._take(response)
        except BaseException:
            response.close()
            raise

    def _take(self, response: http.client.HTTPResponse) -> None:
        """Accept an answer, at the present position."""
        begin, total = _extent(response)
        if None not in (total, self.total) and total != self.total:
            raise HybridsepError(f"{self.source} changed while it was read: {total} bytes instead of {self.total}")
        if begin not in (0, self.position):
            raise HybridsepError(f"{self.source} answers with byte {begin} when asked for {self.position}")
        self.total = total if total is not None else self.total
        self._validator = self._validator or _validator(response)
        if begin < self.position:
            self._skip(response)
        self._body = response

    def _skip(self, response: http.client.HTTPResponse) -> None:
        """Read again, from a server without ranges, what was read already, and hold it against it."""
        again = hashlib.md5(usedforsecurity=False)
        left = self.position
        while left:
            content = response.read(min(CHUNK, left))
            if not content:
                raise ConnectionError(f"closed after {self.position - left} bytes")
            again.update(content)
            left -= len(content)
        if not self._start and again.digest() != self._md5.digest():
            raise HybridsepError(
                f"{self.source} changed while it was read: its first {self.position} bytes are others now"
            )

    # --- trying again ------------------------------------------------------------------------------------------------------

    def _call(self, attempt):
        while True:
            try:
                return attempt()
            except urllib.error.HTTPError as error:
                error.close()
                if error.code not in TRY_AGAIN:
                    raise HybridsepError(f"{self.source} answers {error.code} {error.reason}") from None
                self._pause(f"{error.code} {error.reason}", error.headers.get("Retry-After"))
            except http.client.InvalidURL as error:
                raise HybridsepError(f"{self.source!r} is no address: {error}") from None
            except _BROKEN as error:
                self._pause(getattr(error, "reason", None) or error or type(error).__name__)

    def _pause(self, reason: object, asked: str | None = None) -> None:
        """Wait before the next try, or give up."""
        if self._body is not None:
            self._body.close()
            self._body = None
        if self._failures == len(PAUSES):
            place = f" at byte {self.position}" if self.position else ""
            raise ConnectionLost(
                f"lost the connection to {self.source}{place} and could not get it back in {len(PAUSES)} tries: {reason}"
            )
        seconds = PAUSES[self._failures]
        if asked and asked.isdecimal():
            seconds = min(max(seconds, float(asked)), LONGEST_PAUSE)
        self._failures += 1
        tqdm.write(
            f"connection to {self.source} broken ({reason}); trying again in {seconds:g} s from byte {self.position}",
            file=sys.stderr,
        )
        time.sleep(seconds)


def _extent(response: http.client.HTTPResponse) -> tuple[int, int | None]:
    """First byte of an answer, and the size of the whole file where it is told."""
    length = response.headers.get("Content-Length")
    if response.status != 206:
        return 0, int(length) if length else None
    unit, _, rest = response.headers.get("Content-Range", "").partition(" ")
    span, _, total = rest.partition("/")
    first = span.partition("-")[0]
    if unit != "bytes" or not first.isdecimal():
        raise HybridsepError(f"{response.url} answers with a Content-Range that says nothing: {rest!r}")
    return int(first), int(total) if total.isdecimal() else None


def _validator(response: http.client.HTTPResponse) -> str | None:
    """What tells the server which version of the file was begun; a weak ETag does not hold for ranges."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")
