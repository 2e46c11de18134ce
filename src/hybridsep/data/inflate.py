"""A gzip stream that can be left and taken up again in the middle, days later and in another process.

A gzip stream has no places to begin at: to inflate a byte one needs the 32 KB before it and the position to the bit. zlib can tell both at the
end of a deflate block and start from them, but Python's module does not pass these calls on; ctypes does, on the zlib that Python itself is
linked with. Source: zlib's examples/zran.c describes the calls; RFC 1952 the format.
"""

from __future__ import annotations

import base64
import ctypes
import ctypes.util
import gzip
import io
import zlib
from collections import deque
from dataclasses import asdict, dataclass
from functools import cache
from typing import BinaryIO

CHUNK = 1 << 18
WINDOW = 1 << 15
POINT_SPACING, POINTS = (
    1 << 20,
    64,
)  # bytes between two remembered points, and how many of the last are remembered: 2 MB
_RAW, _OK, _STREAM_END, _BUFFER_ERROR, _TO_BLOCK_END = -15, 0, 1, -5, 5


@dataclass(frozen=True)
class Point:
    """A place to inflate from.

    Attributes:
        consumed: whole bytes of the compressed stream before it.
        bits: how many of the last of these are still unread, 0 to 7; `last` is that byte.
        produced: bytes inflated before it, by all members of the stream.
        crc, size: CRC-32 of what its member inflated before it, and how many bytes that is.
        window: the last 32 KB inflated.
    """

    consumed: int
    bits: int
    last: int
    produced: int
    crc: int
    size: int
    window: bytes

    def to_json(self) -> dict:
        """Plain values."""
        return {**asdict(self), "window": base64.b64encode(self.window).decode()}

    @classmethod
    def from_json(cls, values: dict) -> Point:
        """The inverse of `to_json`."""
        return cls(**{**values, "window": base64.b64decode(values["window"])})


class GzipStream(io.RawIOBase):
    """What a gzip file inflates to, from its beginning or from a point; checksums are verified in both cases.

    Raises:
        gzip.BadGzipFile, zlib.error: the stream is damaged.
        EOFError: it is cut off.
    """

    def __init__(self, source: BinaryIO, point: Point | None = None):
        super().__init__()
        self._source, self._input, self._ended = source, b"", False
        self._consumed = point.consumed if point else 0
        self._produced = point.produced if point else 0
        self._points: deque[Point] = deque([point] if point else [], maxlen=POINTS)
        self._output = ctypes.create_string_buffer(CHUNK)
        self._tail = point.window if point else b""
        self._ready = b""
        self._crc, self._size = (point.crc, point.size) if point else (0, 0)
        self._stream = _Stream()
        if point is None:
            self._read_header()
        _call("inflateInit2_", self._stream, _RAW, zlib.ZLIB_RUNTIME_VERSION.encode(), ctypes.sizeof(_Stream))
        if point:
            if point.bits:
                _call("inflatePrime", self._stream, point.bits, point.last >> (8 - point.bits))
            _call("inflateSetDictionary", self._stream, point.window, len(point.window))

    def readable(self) -> bool:
        """Always."""
        return True

    def readinto(self, buffer) -> int:
        """Fill `buffer` as far as one block goes; 0 at the end."""
        while not self._ready and not self._ended:
            self._ready = self._inflate()
        count = min(len(buffer), len(self._ready))
        buffer[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def point_before(self, place: int) -> Point | None:
        """The last remembered point at or before byte `place` of what is inflated."""
        return next((p for p in reversed(self._points) if p.produced <= place), None)

    def close(self) -> None:
        """Give zlib's memory back."""
        if self._stream is not None:
            _zlib().inflateEnd(ctypes.byref(self._stream))
            self._stream = None
        super().close()

    # --- inside ------------------------------------------------------------------------------------------------------------

    def _inflate(self) -> bytes:
        """One call of zlib: up to the end of a block, of the input at hand or of the output's room."""
        if not self._input:
            self._input = self._source.read1(CHUNK)
            if not self._input:
                raise EOFError("the compressed stream ends before its end")
        given = ctypes.c_char_p(self._input)
        stream = self._stream
        stream.next_in, stream.avail_in = ctypes.cast(given, ctypes.c_void_p), len(self._input)
        stream.next_out, stream.avail_out = ctypes.cast(self._output, ctypes.c_void_p), CHUNK
        state = _call("inflate", stream, _TO_BLOCK_END)
        made = ctypes.string_at(self._output, CHUNK - stream.avail_out)
        used = len(self._input) - stream.avail_in
        last = self._input[used - 1] if used else 0
        self._take(used)
        self._crc, self._size, self._produced = (
            zlib.crc32(made, self._crc),
            self._size + len(made),
            self._produced + len(made),
        )
        self._tail = (self._tail + made)[-WINDOW:]
        if state == _STREAM_END:
            self._finish_member()
        elif stream.data_type & 128 and not stream.data_type & 64:
            self._remember(stream.data_type & 7, last)
        return made

    def _remember(self, bits: int, last: int) -> None:
        if not self._points or self._produced - self._points[-1].produced >= POINT_SPACING:
            self._points.append(Point(self._consumed, bits, last, self._produced, self._crc, self._size, self._tail))

    def _finish_member(self) -> None:
        """Verify a member's checksum; another may follow, or zeros."""
        crc, size = (int.from_bytes(self._exactly(4), "little") for _ in range(2))
        if crc != self._crc or size != self._size & 0xFFFFFFFF:
            raise gzip.BadGzipFile(f"its checksum is {self._crc:08x}, not {crc:08x}")
        while not self._input.strip(b"\0"):
            self._take(len(self._input))
            self._input = self._source.read1(CHUNK)
            if not self._input:
                self._ended = True
                return
        self._take(len(self._input) - len(self._input.lstrip(b"\0")))
        self._read_header()
        self._crc, self._size, self._tail = 0, 0, b""
        _call("inflateReset", self._stream)

    def _read_header(self) -> None:
        magic, _, flags = self._exactly(2), self._exactly(1), self._exactly(1)[0]
        if magic != b"\x1f\x8b":
            raise gzip.BadGzipFile("it does not begin as gzip does")
        self._exactly(6)
        if flags & 4:
            self._exactly(int.from_bytes(self._exactly(2), "little"))
        for text in (8, 16):  # name, comment
            while flags & text and self._exactly(1) != b"\0":
                pass
        if flags & 2:
            self._exactly(2)

    def _exactly(self, count: int) -> bytes:
        while len(self._input) < count:
            more = self._source.read1(CHUNK)
            if not more:
                raise EOFError("the compressed stream ends before its end")
            self._input += more
        found = self._input[:count]
        self._take(count)
        return found

    def _take(self, count: int) -> None:
        self._input = self._input[count:]
        self._consumed += count


class _Stream(ctypes.Structure):
    """zlib's z_stream."""

    _fields_ = [
        ("next_in", ctypes.c_void_p), ("avail_in", ctypes.c_uint), ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p), ("avail_out", ctypes.c_uint), ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p), ("state", ctypes.c_void_p), ("zalloc", ctypes.c_void_p), ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p), ("data_type", ctypes.c_int), ("adler", ctypes.c_ulong), ("reserved", ctypes.c_ulong),
    ]  # fmt: skip


@cache
def _zlib() -> ctypes.CDLL | None:
    for name in ("libz.so.1", "libz.dylib", ctypes.util.find_library("z")):
        try:
            return ctypes.CDLL(name) if name else None
        except OSError:
            continue
    return None


def can_resume() -> bool:
    """Whether zlib can be called; where not (Windows), gzip.GzipFile does the same from the beginning only."""
    return _zlib() is not None


def _call(function: str, stream: _Stream, *arguments) -> int:
    state = getattr(_zlib(), function)(ctypes.byref(stream), *arguments)
    if state not in (_OK, _STREAM_END, _BUFFER_ERROR):
        raise zlib.error(stream.msg.decode() if stream.msg else f"{function} says {state}")
    return state
