"""Maps EROFS node ids to FUSE node ids and back, a pure function of the image; keeps no table, no counts."""

from __future__ import annotations

from typing import Final

from rafsfs.errors import FormatError, Where
from rafsfs.types import Nid

ROOT_NODE: Final = 1
"""FUSE_ROOT_ID of linux/fuse.h: the kernel never asks for the root's number, it knows it."""

_NID_MIN: Final = ROOT_NODE + 1
"""Node id 0 means 'no such name' in a FUSE reply and 1 is taken. No inode can lie that low in the metadata:
the EROFS superblock is at byte 1024, slot 32."""


class NodeMap:
    """The bijection root nid <-> 1, every other nid <-> itself.

    It needs no memory of what the kernel holds, so FORGET is a no-op, a server that starts again can answer
    for the node ids of its predecessor, and ``st_ino`` is the number that ``dump.erofs --nid`` takes.
    """

    __slots__ = ("_root",)

    def __init__(self, root: Nid) -> None:
        self._root = root

    def node(self, nid: Nid) -> int:
        """Return the FUSE node id of an inode. Raises ``FormatError`` for a nid that no image can have."""
        if nid == self._root:
            return ROOT_NODE
        if nid < _NID_MIN:
            raise FormatError(
                "a directory names an impossible inode", expected=f"nid >= {_NID_MIN}", where=Where(nid=nid)
            )
        return nid

    def nid(self, node: int) -> Nid:
        """Return the inode of a FUSE node id; whether there is one, only the file system can say."""
        return self._root if node == ROOT_NODE else Nid(node)
