"""Turns what was noted while an image was read into paths and ranges of its files; writes nothing."""

from __future__ import annotations

import stat
from bisect import bisect_right
from collections.abc import Iterator, Sequence

from rafsfs.errors import RafsError
from rafsfs.format.trace import TracedRange
from rafsfs.fs.filesystem import FileSystem
from rafsfs.limits import TRACE_EXTENTS_MAX
from rafsfs.metadata.inode import Extent
from rafsfs.reading.trace import AccessTrace, DecodedRange, FileRange
from rafsfs.types import BlobIndex, Nid


def traced_ranges(filesystem: FileSystem, trace: AccessTrace) -> list[TracedRange]:
    """Name what was read, in order of first access; a walk over the tree.

    A file that has several names gets the first; what was read of decoded space is named after the first file
    that has it. What the metadata cannot tell, as a part of them is damaged, is left out.
    """
    noted = list(trace.ranges())
    files = [(order, found) for order, found in enumerate(noted) if isinstance(found, FileRange)]
    decoded = [(order, found) for order, found in enumerate(noted) if isinstance(found, DecodedRange)]
    named = list(_name_files(filesystem, files))
    if decoded:
        named += _Holders(decoded).search(filesystem)
    return _joined(sorted(named, key=lambda item: item[0]))


def _name_files(
    filesystem: FileSystem, files: Sequence[tuple[int, FileRange]]
) -> Iterator[tuple[int, TracedRange]]:
    wanted = {found.nid for _, found in files}
    paths: dict[Nid, bytes] = {}
    for path, nid in _names(filesystem):
        if len(paths) == len(wanted):
            break
        if nid in wanted:
            paths.setdefault(nid, path)
    sizes = {nid: filesystem.attributes(nid).size for nid in paths}
    for order, found in files:
        end = min(found.end, sizes.get(found.nid, 0))
        if found.start < end:
            yield order, TracedRange(paths[found.nid], found.start, end - found.start)


def _names(filesystem: FileSystem) -> Iterator[tuple[bytes, Nid]]:
    """All names, as far as the tree can be read."""
    try:
        yield from filesystem.walk()
    except RafsError:
        return


class _Holders:
    """Finds the files in ranges of decoded space."""

    def __init__(self, decoded: Sequence[tuple[int, DecodedRange]]) -> None:
        """Ranges with their place in the order of all; none overlaps another."""
        self._ranges = sorted(decoded, key=lambda item: item[1])
        self._starts = [(found.blob, found.start) for _, found in self._ranges]
        self._taken: set[tuple[BlobIndex, int]] = set()

    def search(self, filesystem: FileSystem) -> list[tuple[int, TracedRange]]:
        """Look at all extents of all files, or at as many as is bearable."""
        named: list[tuple[int, int, TracedRange]] = []
        seen: set[Nid] = set()
        left = TRACE_EXTENTS_MAX
        for path, nid in _names(filesystem):
            try:
                attributes = filesystem.attributes(nid)
                if not stat.S_ISREG(attributes.mode) or nid in seen:
                    continue
                if attributes.nlink > 1:
                    seen.add(nid)
                offset = 0
                for extent in filesystem.extents(nid, 0, attributes.size):
                    left -= 1
                    if not left:
                        break
                    if isinstance(extent, Extent) and extent.blob is not None:
                        for order, start, end in self._met(extent.blob, extent.start, extent.length):
                            place = offset + start - extent.start
                            named.append((order, start, TracedRange(path, place, end - start)))
                    offset += extent.length
            except RafsError:
                continue  # this one's map is broken, which its own reader is told
            if not left:
                break
        return [(order, found) for order, _, found in sorted(named)]

    def _met(self, blob: BlobIndex, start: int, length: int) -> Iterator[tuple[int, int, int]]:
        """(place in the order of all, start, end) of what was read of an extent, unless another had it."""
        index = max(0, bisect_right(self._starts, (blob, start)) - 1)
        while index < len(self._ranges) and self._starts[index] < (blob, start + length):
            order, found = self._ranges[index]
            first, end = max(found.start, start), min(found.end, start + length)
            if found.blob == blob and first < end and (blob, first) not in self._taken:
                self._taken.add((blob, first))
                yield order, first, end
            index += 1


def _joined(named: Sequence[tuple[int, TracedRange]]) -> list[TracedRange]:
    """One range for those that follow each other in a file."""
    joined: list[TracedRange] = []
    for _, found in named:
        last = joined[-1] if joined else None
        if last is not None and last.path == found.path and last.offset + last.length == found.offset:
            joined[-1] = last._replace(length=last.length + found.length)
        else:
            joined.append(found)
    return joined
