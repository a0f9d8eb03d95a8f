"""What the FUSE server asks of a file system: the protocol of its handler. Owns no behaviour.

The values are plain tuples, so that a file system which keeps named ones hands over its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol, TypeAlias

from rafsfs.format.record import Buffer

Attributes: TypeAlias = tuple[int, int, int, int, int, int, int, int]
"""(any number, mode with type bits, nlink, uid, gid, rdev as of makedev(3), size in bytes, mtime in ns).

Nobody looks at the first: the server shows node ids as inode numbers.
"""

Entry: TypeAlias = tuple[bytes, int, int, int]
"""(name, node id, S_IFMT bits, position behind this entry, more than 0)."""

StatFs: TypeAlias = tuple[int, int, int, int]
"""(bytes in a block, blocks, files, longest name in bytes)."""


class Handler(Protocol):
    """A read-only tree whose node ids say everything: nothing is counted, nothing is opened or forgotten.

    The root is node 1. The other side may ask for any number at all, with any offset and size below 2^64.

    An ``OSError`` is the answer to the request, a ``RafsError`` as well, and that one is reported. Any other
    exception is a mistake: it is reported, the request fails with EIO. Any thread may call everything.

    Any method may raise ``WouldWait`` on a thread that must not wait; it is called again on another one.
    """

    def lookup(self, parent: int, name: bytes) -> int:
        """Node id of a name; OSError ENOENT or ENOTDIR. Knows ``..``; the server answers for ``.`` itself."""

    def attributes(self, node: int) -> Attributes:
        """Attributes of a node."""

    def directory(self, node: int, position: int) -> Iterator[Entry]:
        """Entries from ``position`` on, with ``.`` and ``..``; OSError ENOTDIR.

        0 is the start. Positions mean the same to every server of this tree, also after a restart.
        """

    def readlink(self, node: int) -> bytes:
        """Target of a symlink; OSError EINVAL."""

    def xattr(self, node: int, name: bytes) -> bytes:
        """Value of an extended attribute; OSError ENODATA."""

    def xattr_names(self, node: int) -> Sequence[bytes]:
        """Names of all extended attributes."""

    def statfs(self) -> StatFs:
        """The tree as a whole; nothing of it is free."""

    def try_read(self, node: int, offset: int, size: int) -> Sequence[Buffer] | None:
        """Bytes of a file in parts, without waiting; None when they are not all at hand.

        Fewer than ``size`` only at the end of the file: the kernel takes a short answer for the end. The
        parts are passed on as they are and must not change. OSError EISDIR or EINVAL for what has no bytes.
        """

    def read(self, node: int, offset: int, size: int) -> Sequence[Buffer]:
        """As ``try_read``, but waits for what is not at hand."""

    def extents(self, node: int, offset: int) -> Iterator[tuple[int, bool]]:
        """(length in bytes, whether there is data) of the runs from ``offset`` to the end of a file.

        Nothing at or behind the end. Holes read as zeros. OSError as ``try_read``.
        """

    def report(self, error: Exception, node: int, offset: int | None, size: int | None) -> None:
        """Take note of a request that failed for no fault of whoever asked; must not raise.

        ``offset`` and ``size`` are those of a READ, else None. ``node`` is the node of the request, or of the
        entry of a directory that is listed without attributes because of ``error``.
        """
