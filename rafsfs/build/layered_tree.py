"""The tree that is left of all layers of a stock image, filled layer by layer; reads no file's bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rafsfs.build.builder import clamped
from rafsfs.build.layer_reader import StockLayer
from rafsfs.build.layer_tree import LayerInode
from rafsfs.build.layered_source import merged, other_names
from rafsfs.build.source import Entry
from rafsfs.build.tree import NO_BYTES, Body, Tree
from rafsfs.format.erofs import FileType


class LayeredTree:
    """``tree`` has at first all that holds no bytes. ``wanted`` are the files of each layer that are left, by
    the number of their member; whoever reads one calls ``add``.
    """

    def __init__(
        self, layers: Sequence[StockLayer], *, xattrs: bool, told: Callable[[int], None], epoch: int | None
    ) -> None:
        """Read all layers for the first time; raises as ``merged``. Times are held to ``epoch``."""
        self.tree = Tree()
        self.names = 0
        self.wanted: list[dict[int, LayerInode]] = [{} for _ in layers]
        self._epoch = epoch
        for inode in merged(layers, xattrs=xattrs, told=told):
            layer, number = inode.member
            if inode.entry.kind is FileType.REGULAR and inode.entry.size:
                self.wanted[layer][number] = inode
            else:
                inode.entry.path = inode.paths[0]
                self.add(inode, inode.entry, NO_BYTES)

    def add(self, inode: LayerInode, entry: Entry, body: Body) -> None:
        """Put an inode in under all its names."""
        self.tree.add(clamped(entry, self._epoch), body)
        for other in other_names(inode):
            self.tree.add(other)
        self.names += len(inode.paths)
