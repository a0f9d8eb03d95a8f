"""Listings as bytes: what READDIR and READDIRPLUS get, out of a handler's entries; keeps no state."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from struct import Struct
from typing import Final

from rafsfs.fuse import abi
from rafsfs.fuse.handler import Entry
from rafsfs.fuse.reply import NO_ATTRIBUTES
from rafsfs.limits import FILE_NAME_BYTES_MAX, FUSE_LISTING_BYTES_MAX

_DIRENT_LAYOUT: Final = "<" + abi.DIRENT.layout("ino", "off", "namelen", "type")
_DIRENTS: Final = [
    Struct(f"{_DIRENT_LAYOUT}{units * abi.NAME_ALIGN}s")
    for units in range(-(-FILE_NAME_BYTES_MAX // abi.NAME_ALIGN) + 1)
]
"""By the 8-byte units that the name fills: one call packs the record, its name and the padding."""

_TYPE_SHIFT: Final = 12  # S_IFMT bits become DT_*: dirent.h, IFTODT


def pack_listing(
    entries: Iterable[Entry], size: int, plus: Callable[[bytes, int, int], bytes] | None = None
) -> bytes:
    """Return as many whole entries as fit into ``size`` bytes; none at the end of the directory.

    ``plus`` makes what READDIRPLUS wants in front of a name, from name, node and type. Raises what
    ``entries`` raises, and OSError EINVAL when not even the first entry fits: nothing would mean the end.
    """
    room = min(size, FUSE_LISTING_BYTES_MAX)
    front_bytes = 0 if plus is None else len(NO_ATTRIBUTES)
    pieces: list[bytes] = []
    try:
        for name, node, mode_type, next_position in entries:
            record = _DIRENTS[(len(name) + abi.NAME_ALIGN - 1) // abi.NAME_ALIGN]
            room -= front_bytes + record.size
            if room < 0:
                break
            dirent = record.pack(node, next_position, len(name), mode_type >> _TYPE_SHIFT, name)
            pieces.append(dirent if plus is None else plus(name, node, mode_type) + dirent)
    except Exception:
        # Names in front of a damaged part are good; the kernel asks again from behind them, for the error.
        if not pieces:
            raise
    if room < 0 and not pieces:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return b"".join(pieces)
