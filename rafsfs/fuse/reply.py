"""Replies as bytes: headers, errors, names with attributes. Knows no operation and asks no handler."""

from __future__ import annotations

from struct import Struct
from typing import Final, NamedTuple, TypeAlias

from rafsfs.format.record import Buffer
from rafsfs.fuse import abi
from rafsfs.fuse.handler import Attributes

Reply: TypeAlias = list[Buffer]
"""Buffers that make one message, for one ``writev``. The first begins with the ``fuse_out_header``."""

HEADER_BYTES: Final = abi.OUT_HEADER.size
BLOCK_BYTES: Final = 4096
"""What ``st_blksize`` says, as that of the kernel's EROFS. The kernel takes its ``i_blkbits`` from it."""

_HEADER: Final = Struct("<" + abi.OUT_HEADER.layout("len", "error", "unique"))
_ATTR_FIELDS: Final = tuple(name for name in abi.Attr._fields if name != "flags")
_ATTR_LAYOUT: Final = abi.ATTR.layout(*_ATTR_FIELDS)
_ENTRY_FIELDS: Final = ("nodeid", "entry_valid", "attr_valid", "entry_valid_nsec", "attr_valid_nsec")
_ENTRY: Final = Struct("<" + abi.ENTRY_OUT.layout(*_ENTRY_FIELDS) + _ATTR_LAYOUT)
_ATTR_OUT: Final = Struct("<" + abi.ATTR_OUT.layout("attr_valid", "attr_valid_nsec") + _ATTR_LAYOUT)


class Timeouts(NamedTuple):
    """How long the kernel may believe names and attributes: whole seconds and nanoseconds of each."""

    entry_s: int
    attr_s: int
    entry_ns: int
    attr_ns: int

    @classmethod
    def of(cls, entry_timeout_s: float, attr_timeout_s: float) -> Timeouts:
        """Split seconds as the records want them."""
        entry_s, entry_ns = divmod(int(entry_timeout_s * 1_000_000_000), 1_000_000_000)
        attr_s, attr_ns = divmod(int(attr_timeout_s * 1_000_000_000), 1_000_000_000)
        return cls(entry_s, attr_s, entry_ns, attr_ns)


def header(unique: int, size: int) -> bytes:
    """Header of a reply that succeeds, with ``size`` bytes behind it."""
    return _HEADER.pack(HEADER_BYTES + size, 0, unique)


def error(unique: int, code: int) -> Reply:
    """Reply that fails with errno ``code``."""
    return [_HEADER.pack(HEADER_BYTES, -code, unique)]


def done(unique: int) -> Reply:
    """Reply that says no more than that it was done."""
    return [_HEADER.pack(HEADER_BYTES, 0, unique)]


def answer(unique: int, body: bytes) -> Reply:
    """Reply with a short body."""
    return [_HEADER.pack(HEADER_BYTES + len(body), 0, unique) + body]


def notification(code: abi.NotifyCode) -> Reply:
    """What is said unasked: unique 0, and the code in the place of the error."""
    return [_HEADER.pack(HEADER_BYTES, code, 0)]


def _attr(node: int, attributes: Attributes) -> tuple[int, ...]:
    """The fields of ``fuse_attr``. All three times are the image's one."""
    _, mode, nlink, uid, gid, rdev, size, mtime_ns = attributes
    time_s, time_ns = divmod(mtime_ns, 1_000_000_000)
    blocks = (size + 511) >> 9  # stat(2): st_blocks counts 512 bytes, whatever the block size
    times = (time_s, time_s, time_s, time_ns, time_ns, time_ns)
    return (node, size, blocks, *times, mode, nlink, uid, gid, rdev, BLOCK_BYTES)


def pack_entry(node: int, timeouts: Timeouts, attributes: Attributes) -> bytes:
    """``fuse_entry_out`` with its ``fuse_attr``: a name's node. Generation 0: no node id is used again.

    struct.error for numbers that do not fit.
    """
    return _ENTRY.pack(node, *timeouts, *_attr(node, attributes))


def pack_attr_out(node: int, timeouts: Timeouts, attributes: Attributes) -> bytes:
    """``fuse_attr_out`` with its ``fuse_attr``: what GETATTR is answered; struct.error as ``pack_entry``."""
    return _ATTR_OUT.pack(timeouts.attr_s, timeouts.attr_ns, *_attr(node, attributes))


def pack_no_entry(timeouts: Timeouts) -> bytes:
    """``fuse_entry_out`` that says for how long there is no such name."""
    nothing = (0,) * len(_ATTR_FIELDS)
    return _ENTRY.pack(abi.NO_NODE, timeouts.entry_s, 0, timeouts.entry_ns, 0, *nothing)


NO_ATTRIBUTES: Final = bytes(abi.ENTRY_OUT.size + abi.ATTR.size)
"""In READDIRPLUS: a name that comes without attributes, the kernel looks it up when it is wanted."""
