"""All layers of a stock image as one build source: a pass to find what is left of each, another to read that.

Layers are decompressed twice and unpacked never; in both passes they have to have their digests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

from rafsfs.build.layer_reader import LayerReader, StockLayer
from rafsfs.build.layer_tree import LayerInode, LayerTree
from rafsfs.build.source import Entry
from rafsfs.build.tar_source import entry_of
from rafsfs.format.erofs import FileType


def tell_nobody(_: int) -> None:
    """Do nothing with how many stored bytes were read."""


class LayeredSource:
    """See ``Source``. ``told`` is called with how many stored bytes of layers were read, in either pass."""

    def __init__(
        self, layers: Sequence[StockLayer], *, xattrs: bool = True, told: Callable[[int], None] = tell_nobody
    ) -> None:
        self._layers = layers
        self._xattrs = xattrs
        self._told = told

    def close(self) -> None:
        """Hold nothing open."""

    def entries(self) -> Iterator[Entry]:
        """See ``Source.entries``. Raises DigestMismatch when a layer is not the one that the image names."""
        contents: list[dict[int, LayerInode]] = [{} for _ in self._layers]
        for inode in merged(self._layers, xattrs=self._xattrs, told=self._told):
            layer_number, number = inode.member
            if inode.entry.kind is FileType.REGULAR and inode.entry.size:
                contents[layer_number][number] = inode
            else:
                inode.entry.path = inode.paths[0]
                yield inode.entry
                yield from other_names(inode)
        for layer, wanted in zip(self._layers, contents, strict=True):
            if wanted:
                yield from self._contents(layer, wanted)

    def _contents(self, layer: StockLayer, wanted: dict[int, LayerInode]) -> Iterator[Entry]:
        with closing(layer.open()) as file:
            reader = LayerReader(layer, file, self._told)
            for number, member in reader:
                inode = wanted.get(number)
                if inode is not None:
                    yield entry_of(member, inode.paths[0], reader.stream, xattrs=self._xattrs)
                    yield from other_names(inode)


def merged(
    layers: Sequence[StockLayer], *, xattrs: bool = True, told: Callable[[int], None] = tell_nobody
) -> Iterator[LayerInode]:
    """Read all layers; give what is left of them: directories first, each before what is in it.

    Raises BuildError, StoreError, and DigestMismatch before anything is given.
    """
    tree = LayerTree()
    for layer in layers:
        with closing(layer.open()) as file:
            tree.apply(LayerReader(layer, file, told), xattrs=xattrs)
    return tree.finish()


def other_names(inode: LayerInode) -> Iterator[Entry]:
    """Give the entries of an inode's second and later names."""
    first, *others = inode.paths
    for path in others:
        yield Entry(path, inode.entry.kind, 0, 0, 0, 0, hard_link_to=first)
