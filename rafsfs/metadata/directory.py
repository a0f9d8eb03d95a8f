"""EROFS directory blocks: dirents and names, checked whole before one name is used; never reads an inode."""

from __future__ import annotations

from bisect import bisect_right
from itertools import pairwise
from typing import NamedTuple

from rafsfs.errors import FormatError
from rafsfs.format import erofs
from rafsfs.format.erofs import DIRENT, FileType
from rafsfs.limits import FILE_NAME_BYTES_MAX
from rafsfs.types import Nid

ENTRIES_PER_BLOCK_MAX = erofs.BLOCK_SIZE // (DIRENT.size + 1)


class DirectoryBlock(NamedTuple):
    """One checked block: parallel lists, names in strictly rising byte order."""

    names: list[bytes]
    nids: list[Nid]
    types: list[int]

    def find(self, name: bytes) -> int | None:
        """Index of ``name``, or None."""
        index = bisect_right(self.names, name) - 1
        return index if index >= 0 and self.names[index] == name else None


_FILE_TYPES = frozenset(FileType)


def parse_directory_block(block: bytes) -> DirectoryBlock:
    """Read one directory block (at most 4 KiB; the last may be shorter); raises FormatError.

    The first dirent's name offset says how many dirents there are; the last name ends at the block's end or
    at its NUL padding (Linux fs/erofs/dir.c, erofs_fill_dentries).
    """
    first_name = DIRENT.unpack_from(block).name_offset
    count, rest = divmod(first_name, DIRENT.size)
    if rest or not count or first_name >= len(block):
        raise FormatError("directory block's first name offset", found=first_name)
    dirents = list(DIRENT.iter_unpack(block[:first_name]))
    starts = [dirent.name_offset for dirent in dirents]
    ends = [*starts[1:], len(block)]
    if any(start >= end for start, end in zip(starts, ends, strict=True)):
        raise FormatError("directory block's name offsets do not rise")
    names = [block[start:end] for start, end in zip(starts, ends, strict=True)]
    names[-1] = names[-1].rstrip(b"\0")
    for name in names:
        if not 0 < len(name) <= FILE_NAME_BYTES_MAX or b"/" in name or b"\0" in name:
            raise FormatError("directory holds a name that cannot be one", found=name[:FILE_NAME_BYTES_MAX])
    if any(left >= right for left, right in pairwise(names)):
        raise FormatError("directory's names are not in order")
    types = [dirent.file_type for dirent in dirents]
    if not _FILE_TYPES.issuperset(types):
        raise FormatError("directory holds a file type that is not known", found=max(types))
    return DirectoryBlock(names, [Nid(dirent.nid) for dirent in dirents], types)
