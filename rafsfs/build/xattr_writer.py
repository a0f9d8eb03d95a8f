"""Writes extended attributes: those that many inodes carry into one shared area, the others behind their
inode.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from rafsfs.errors import BuildError
from rafsfs.format import erofs
from rafsfs.limits import XATTR_BYTES_MAX, XATTR_SHARED_MAX

Xattrs = tuple[tuple[bytes, bytes], ...]


class XattrWriter:
    """Decides once, over all inodes, which attributes are shared; then gives each inode's inline area."""

    def __init__(self, sets: Iterable[Xattrs]) -> None:
        """``sets``: the attributes of every inode, full names, each one storable (``check_xattr``)."""
        counts = Counter(pair for pairs in sets for pair in pairs)
        area = bytearray()
        self._shared_ids: dict[tuple[bytes, bytes], int] = {}
        for pair, count in counts.items():
            entry = _entry(pair)
            # an id costs 4 bytes in each inode, and the reader another look at the metadata
            if count > 1 and count * len(entry) > len(entry) + count * erofs.XATTR_SHARED_ID_BYTES:
                self._shared_ids[pair] = len(area) // erofs.XATTR_SHARED_ID_BYTES
                area += entry
        self.shared_area = bytes(area)

    def inline(self, pairs: Xattrs) -> bytes:
        """The area behind an inode with these attributes; empty without any."""
        if not pairs:
            return b""
        shared = [self._shared_ids[pair] for pair in pairs if pair in self._shared_ids][:XATTR_SHARED_MAX]
        kept = set(shared)
        own = [pair for pair in pairs if self._shared_ids.get(pair) not in kept]
        header = erofs.XATTR_HEADER.pack(erofs.XattrHeader(0, len(shared)))
        ids = b"".join(number.to_bytes(erofs.XATTR_SHARED_ID_BYTES, "little") for number in shared)
        area = header + ids + b"".join(map(_entry, own))
        if len(area) > XATTR_BYTES_MAX:
            raise BuildError(
                "extended attributes of one file",
                expected=f"at most {XATTR_BYTES_MAX} bytes",
                found=len(area),
            )
        return area


def area_bytes_max(pairs: Xattrs) -> int:
    """At most so many bytes lie behind an inode with these attributes, whichever of them are shared."""
    shared_ids = erofs.XATTR_SHARED_ID_BYTES * len(pairs)
    return erofs.XATTR_HEADER.size + shared_ids + sum(map(len, map(_entry, pairs))) if pairs else 0


def _entry(pair: tuple[bytes, bytes]) -> bytes:
    name, value = pair
    split = erofs.split_xattr_name(name)
    assert split is not None  # the source checked it
    index, suffix = split
    head = erofs.XATTR_ENTRY.pack(erofs.XattrEntry(len(suffix), index, len(value)))
    entry = head + suffix + value
    return entry + bytes(-len(entry) % erofs.XATTR_ALIGNMENT)
