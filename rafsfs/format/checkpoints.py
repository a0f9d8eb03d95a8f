"""The section that says where to start in the middle of compressed layers; reads no layer.

A directory with an entry for each blob of the superblock, then what the entries lead to: for a gzip layer an
index as indexed_gzip exports it, for all else nothing. Of such an index a reader needs one point at a time.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

from rafsfs.errors import FormatError, LimitExceeded
from rafsfs.format.record import RecordCodec, u8, u32, u64
from rafsfs.limits import CHECKPOINTS_BYTES_MAX


class Checkpoints(NamedTuple):
    """Where the checkpoints of one blob are, in bytes from the start of the section; 16 bytes."""

    offset: u64
    length: u64


CHECKPOINTS = RecordCodec(Checkpoints, size=16)


def pack_checkpoints(indexes: Sequence[bytes]) -> bytes:
    """The whole section."""
    position = len(indexes) * CHECKPOINTS.size
    directory = []
    for index in indexes:
        directory.append(CHECKPOINTS.pack(Checkpoints(position, len(index))))
        position += len(index)
    return b"".join(directory) + b"".join(indexes)


def parse_checkpoints(directory: bytes) -> list[Checkpoints]:
    """Read the directory; raises LimitExceeded for more than may be held in memory."""
    places = list(CHECKPOINTS.iter_unpack(directory))
    for place in places:
        if place.length > CHECKPOINTS_BYTES_MAX:
            most = f"at most {CHECKPOINTS_BYTES_MAX} bytes"
            raise LimitExceeded("checkpoints of a layer", expected=most, found=place.length)
    return places


# --- The index of a gzip layer: indexed_gzip's zran.h, zran_export_index, version 1 -------------------------


class GzipIndex(NamedTuple):
    """How it begins; 35 bytes. Behind it are the points, then the windows of those points that have one."""

    magic: Annotated[bytes, "5s"]
    version: u8
    flags: u8
    stored_bytes: u64
    plain_bytes: u64
    spacing: u32
    window_bytes: u32
    point_count: u32


class GzipPoint(NamedTuple):
    """A place to start from, in bytes of the layer and of its plain tar; 18 bytes.

    ``bits`` more of the byte before belong to it. A point at the start of a gzip member has no window.
    """

    stored: u64
    plain: u64
    bits: u8
    has_window: u8


GZIP_INDEX = RecordCodec(GzipIndex, size=35)
GZIP_POINT = RecordCodec(GzipPoint, size=18)
GZIP_INDEX_MAGIC = b"GZIDX"
GZIP_WINDOW_BYTES = 32 << 10


class GzipPoints:
    """The points of one layer's index, of which only their table is held."""

    def __init__(self, read: Callable[[int, int], bytes]) -> None:
        """``read(offset, length)`` gives sealed bytes of the index. Raises FormatError, or what it raises."""
        self._read = read
        self._head = head = GZIP_INDEX.unpack_from(read(0, GZIP_INDEX.size))
        if (head.magic, head.version, head.window_bytes) != (GZIP_INDEX_MAGIC, 1, GZIP_WINDOW_BYTES):
            raise FormatError("checkpoints of a layer are none of indexed_gzip's", found=repr(head)[:200])
        self._table = read(GZIP_INDEX.size, head.point_count * GZIP_POINT.size)
        if len(self._table) != head.point_count * GZIP_POINT.size:
            raise FormatError("checkpoints of a layer end too early", found=f"{len(self._table)} bytes")

    def before(self, offset: int) -> tuple[int, range]:
        """The number of the point to start from for a plain offset, and the plain bytes up to the next one.

        Raises FormatError when there is none.
        """
        count = self._head.point_count
        number = bisect_right(range(count), offset, key=self._plain) - 1
        if number < 0:
            raise FormatError("no checkpoint of a layer is before what is read").at(offset=offset)
        after = self._point(number + 1) if number + 1 < count else self._last()
        return number, range(self._plain(number), after.plain)

    def index_of(self, number: int) -> bytes:
        """An index with what is needed to read from one point on; raises FormatError."""
        point = self._point(number)
        points = [point]
        if point.plain < self._head.plain_bytes:  # or else indexed_gzip takes the rest for not indexed
            points.append(self._last())
        head = self._head._replace(point_count=len(points))
        return GZIP_INDEX.pack(head) + b"".join(map(GZIP_POINT.pack, points)) + self._window(number, point)

    def stored_end(self, end: int) -> int:
        """About where in the layer the bytes before a plain offset end."""
        count = self._head.point_count
        number = bisect_left(range(count), end, key=self._plain)
        after = self._point(number) if number < count else self._last()
        before = self._point(number - 1) if number else GzipPoint(0, 0, 0, 0)
        plain, stored = after.plain - before.plain, after.stored - before.stored
        return before.stored + (end - before.plain) * stored // plain if plain > 0 else after.stored

    def _last(self) -> GzipPoint:
        return GzipPoint(self._head.stored_bytes, self._head.plain_bytes, 0, 0)

    def _point(self, number: int) -> GzipPoint:
        return GZIP_POINT.unpack_from(self._table, number * GZIP_POINT.size)

    def _plain(self, number: int) -> int:
        return self._point(number).plain

    def _window(self, number: int, point: GzipPoint) -> bytes:
        if not point.has_window:
            return b""
        flags = self._table[GZIP_POINT.size - 1 :: GZIP_POINT.size]
        position = number - flags.count(0, 0, number)  # of windows before this one
        start = GZIP_INDEX.size + len(self._table) + position * GZIP_WINDOW_BYTES
        return self._read(start, GZIP_WINDOW_BYTES)
