"""Names the files whose bytes lie in a damaged part of a blob's decoded space; reads none of them."""

from __future__ import annotations

import stat
from collections.abc import Sequence

from rafsfs.errors import FormatError, RafsError
from rafsfs.frontends.fault_log import FaultLog, inode_met
from rafsfs.frontends.kernel_erofs_spaces import Part
from rafsfs.fs.filesystem import FileSystem
from rafsfs.metadata.inode import Extent
from rafsfs.types import BlobIndex, ChunkIndex, Nid


class FaultReporter:
    """Takes the errors of the private mount's handler to the log, in the words of the image."""

    def __init__(self, filesystem: FileSystem, faults: FaultLog) -> None:
        self._filesystem = filesystem
        self._faults = faults

    def __call__(self, error: Exception, parts: Sequence[Part]) -> None:
        """Log it unless its place was named a while ago; never waits. ``parts`` is what was to be read."""
        if not isinstance(error, RafsError):
            self._faults.report_mistake("read" if parts else "request", 0, error)
            return
        blobs = self._filesystem.engine.blobs
        if error.where.page is None:  # a page may as well be one of chunk tables, which all files need
            for part in parts:
                if part.blob is not None and error.where.blob in (None, blobs[part.blob].file.name):
                    self._report(error, part.blob, part)
                    return
        met_in = "the metadata"

        def search() -> str:
            found = find_name(self._filesystem, error.where.page)
            return f"{met_in}, {inode_met(*found, None)}" if found else met_in

        self._faults.report_search(error, ("metadata", error.where.page), met_in, search)

    def _report(self, error: RafsError, blob: BlobIndex, part: Part) -> None:
        start, end = part.offset, part.offset + part.size
        chunk = error.where.chunk
        otherwise = f"blob {blob}, bytes {start} to {end} of its decoded space"

        def search() -> str:
            first, last = start, end
            if chunk is not None:  # of all that was to be read, the damaged part
                record = self._filesystem.engine.blobs[blob].chunks.record(ChunkIndex(chunk))
                first, last = max(first, record.decoded_start), min(last, record.decoded_end)
            found = find_holder(self._filesystem, blob, first, last)
            return inode_met(*found) if found else otherwise

        self._faults.report_search(error, (blob, chunk), otherwise, search)


def find_name(filesystem: FileSystem, page: int | None) -> tuple[bytes, Nid] | None:
    """Return (path, inode) of the first name in a walk whose inode cannot be read for this page's damage.

    None when the walk ends before there is one, as names are damaged, too.
    """
    try:
        for path, nid in filesystem.walk():
            try:
                filesystem.attributes(nid)
            except RafsError as error:
                if error.where.page == page:
                    return path, nid
    except RafsError:
        return None
    return None


def find_holder(
    filesystem: FileSystem, blob: BlobIndex, start: int, end: int
) -> tuple[bytes, Nid, int] | None:
    """Return (path, inode, offset in it) of a file of which a byte lies in ``start..end`` of decoded space.

    The first in the order of a walk; None when no file has any. Raises FormatError where the tree does not
    parse, as ``FileSystem.walk`` does.
    """
    seen: set[Nid] = set()
    for path, nid in filesystem.walk():
        attributes = filesystem.attributes(nid)
        if not stat.S_ISREG(attributes.mode) or nid in seen:
            continue
        if attributes.nlink > 1:
            seen.add(nid)
        offset = 0
        try:
            for extent in filesystem.extents(nid, 0, attributes.size):
                is_met = isinstance(extent, Extent) and extent.blob == blob
                if is_met and extent.start < end and start < extent.start + extent.length:
                    return path, nid, offset + max(0, start - extent.start)
                offset += extent.length
        except FormatError:
            continue  # this one's map is broken, which its own reader is told
    return None
