"""The handler of the kernel EROFS mode's private mount: a few names and nodes; knows none of the image's."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Final, NoReturn, TypeAlias

from rafsfs.format.erofs import BLOCK_BITS, BLOCK_SIZE
from rafsfs.format.record import Buffer
from rafsfs.frontends.kernel_erofs_spaces import DecodedSpace, FlatSpace, Metadata, Part, Space
from rafsfs.fs.checking_tree import check_section
from rafsfs.fs.image import OpenImage
from rafsfs.fuse.handler import Attributes, Entry, StatFs
from rafsfs.limits import FILE_NAME_BYTES_MAX
from rafsfs.metadata.space import MetadataSpace
from rafsfs.types import BlobIndex

ROOT: Final = 1
FLAT_SUFFIX: Final = b".flat"
_DIRECTORY_MODE: Final = stat.S_IFDIR | 0o500
_FILE_MODE: Final = stat.S_IFREG | 0o400

Report: TypeAlias = Callable[[Exception, Sequence[Part]], None]
"""(error, what was to be read; nothing for anything but a read)."""


class Devices:
    """The handler (``rafsfs.fuse.handler.Handler``) of the private mount.

    The root holds a file for each blob, named by its index. At the end of the path ``meta_path`` is the
    metadata; each name in it is a directory, so that the mount table shows a path. Beside it, with
    ``FLAT_SUFFIX``, is all in one.
    """

    def __init__(self, image: OpenImage, meta_path: bytes, report: Report) -> None:
        """Raises FormatError when the kernel would be told of anything that images do not have."""
        superblock = image.opened.superblock
        metadata = MetadataSpace(
            image.metadata.load, superblock.page_size, offset=0, length=superblock.erofs.length
        )
        check_section(metadata, superblock.blobs)
        blobs = [
            DecodedSpace(
                image.filesystem.engine, BlobIndex(index), blob.decoded_blocks, image.filesystem.trace
            )
            for index, blob in enumerate(superblock.blobs)
        ]
        self._report = report
        self._spaces: list[Space] = [*blobs, Metadata(metadata), FlatSpace(metadata, blobs)]
        *directories, meta_name = meta_path.split(b"/")
        self._first_file = ROOT + 1 + len(directories)
        self._nodes: dict[tuple[int, bytes], int] = {}
        for parent, name in enumerate(directories, ROOT):
            self._nodes[parent, name] = parent + 1
        for index in range(len(blobs)):
            self._nodes[ROOT, device_name(index)] = self._first_file + index
        for index, name in enumerate((meta_name, meta_name + FLAT_SUFFIX), len(blobs)):
            self._nodes[ROOT + len(directories), name] = self._first_file + index

    # --- Names and attributes ---------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> int:
        """Node id of a name."""
        node = self._nodes.get((parent, name))
        if node is None:
            raise _error(errno.ENOENT)
        return node

    def attributes(self, node: int) -> Attributes:
        """Attributes of a node: everything is root's, as the private mount is."""
        if ROOT <= node < self._first_file:
            return (node, _DIRECTORY_MODE, 2, 0, 0, 0, 0, 0)
        return (node, _FILE_MODE, 1, 0, 0, 0, self._space(node).size, 0)

    def directory(self, node: int, position: int) -> Iterator[Entry]:
        """Names for whoever looks at the mount to understand it."""
        names = [(b".", node, stat.S_IFDIR), (b"..", ROOT, stat.S_IFDIR)]
        for (parent, name), child in self._nodes.items():
            if parent == node:
                names.append((name, child, stat.S_IFMT(self.attributes(child)[1])))
        for number, (name, child, kind) in enumerate(names[position:], position + 1):
            yield name, child, kind, number

    def readlink(self, _node: int) -> NoReturn:
        """There is no symlink."""
        raise _error(errno.EINVAL)

    def xattr(self, _node: int, _name: bytes) -> NoReturn:
        """There are no extended attributes."""
        raise _error(errno.ENODATA)

    def xattr_names(self, _node: int) -> Sequence[bytes]:
        """There are no extended attributes."""
        return ()

    def statfs(self) -> StatFs:
        """All decoded spaces and the metadata: as much as the last file has."""
        return (BLOCK_SIZE, self._spaces[-1].size >> BLOCK_BITS, len(self._spaces), FILE_NAME_BYTES_MAX)

    # --- Contents ---------------------------------------------------------------------------------------

    def try_read(self, node: int, offset: int, size: int) -> Sequence[Buffer] | None:
        """Bytes out of verified pages and the cache of chunks, or None."""
        return self._space(node).try_read(offset, size)

    def read(self, node: int, offset: int, size: int) -> Sequence[Buffer]:
        """Bytes, fetched and decoded on the caller's thread where they have to be."""
        return self._space(node).read(offset, size)

    def extents(self, node: int, offset: int) -> Iterator[tuple[int, bool]]:
        """One run of data: nobody asks a device for its holes."""
        size = self._space(node).size
        if offset < size:
            yield size - offset, True

    def report(self, error: Exception, node: int, offset: int | None, size: int | None) -> None:
        """Pass it on in the image's terms."""
        if offset is None or size is None or node < self._first_file:
            self._report(error, ())
        else:
            self._report(error, self._space(node).parts(offset, size))

    def _space(self, node: int) -> Space:
        if self._first_file <= node < self._first_file + len(self._spaces):
            return self._spaces[node - self._first_file]
        raise _error(errno.EISDIR if ROOT <= node < self._first_file else errno.ESTALE)


def device_name(blob: int) -> bytes:
    """The name of a blob's file in the root of the private mount."""
    return b"%d" % blob


def _error(code: int) -> OSError:
    return OSError(code, os.strerror(code))
