"""What the file system object tells of an inode, in the terms of stat(2); owns no behaviour."""

from __future__ import annotations

from typing import NamedTuple

from rafsfs.types import Nid


class Attributes(NamedTuple):
    """One inode. ``mode`` has the type bits, ``rdev`` is as ``os.makedev`` gives it, ``size`` is in bytes."""

    nid: Nid
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    mtime_ns: int


class DirectoryEntry(NamedTuple):
    """One name. ``mode_type`` holds S_IFMT bits; ``next_position`` resumes behind it, in every mount of the
    image.
    """

    name: bytes
    nid: Nid
    mode_type: int
    next_position: int


class StatFs(NamedTuple):
    """The image as a file system: blocks of ``block_size`` bytes, decoded, inodes, longest name in
    bytes.
    """

    block_size: int
    blocks: int
    files: int
    name_max: int
