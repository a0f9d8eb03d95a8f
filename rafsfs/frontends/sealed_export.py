"""An image's stored files as a read-only tree, for a guest that opens the image itself; needs no key.

What is in it: ``oci-layout``, an ``index.json`` that lists this image alone, and the files that its manifest
names. They are found when the tree is made, and stay those: nobody can put another in their place later, and
a link in the folder leads nowhere. Whether they are what was sealed is for the guest to find out.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple, NoReturn

from rafsfs.errors import RafsError
from rafsfs.format import oci
from rafsfs.format.record import Buffer
from rafsfs.frontends.fault_log import FaultLog, reporter
from rafsfs.fuse.handler import Attributes, Entry, StatFs
from rafsfs.limits import FILE_NAME_BYTES_MAX
from rafsfs.store.oci_layout import LocalFile, blob_path, find_image, read_small_blob, read_small_file
from rafsfs.store.reference import Reference
from rafsfs.types import Nid

ROOT: Final = 1
_BLOCK_BYTES: Final = 4096
_FOLDER_MODE: Final = stat.S_IFDIR | 0o555
_FILE_MODE: Final = stat.S_IFREG | 0o444
_PIECE_BYTES: Final = 1 << 20  # the largest that is read into one buffer


class _Folder(NamedTuple):
    parent: int
    children: dict[bytes, int]


class _File(NamedTuple):
    """One of its parts has the bytes: ``stored``, or ``content`` where a file was read when it was opened."""

    size: int
    stored: LocalFile | None
    content: bytes


class SealedExport:
    """The handler (``rafsfs.fuse.handler.Handler``) of one image's stored files; any thread may use it."""

    def __init__(self, reference: Reference) -> None:
        """Raises StoreError, FormatError or DigestMismatch: no such image, or not all of it."""
        self._nodes: dict[int, _Folder | _File] = {}
        self._faults = FaultLog(self.find_path)
        self._report = reporter(self._faults)
        self._files: list[LocalFile] = []
        self._has_nowait = True  # until a file system says that it cannot tell
        image = find_image(reference)
        self.manifest_digest = image.manifest_digest
        self._add(ROOT, b"", _Folder(ROOT, {}))
        blobs = self._add(ROOT, b"blobs", _Folder(ROOT, {}))
        hashes = self._add(blobs, b"sha256", _Folder(blobs, {}))
        layout = read_small_file(reference.folder / oci.LAYOUT_FILE, oci.LAYOUT_FILE)
        self._add_content(ROOT, oci.LAYOUT_FILE.encode(), layout)
        index = read_small_file(reference.folder / "index.json", "index.json")
        self._add_content(ROOT, b"index.json", _index_of(index, image.manifest_digest))
        manifest = read_small_blob(reference.folder, image.manifest_digest, "manifest")
        self._add_content(hashes, _name(image.manifest_digest), manifest)
        wanted = {blob.digest: blob for blob in (image.manifest.config, *image.manifest.blobs)}
        wanted[image.manifest.bootstrap.digest] = image.manifest.bootstrap
        try:
            for digest, descriptor in wanted.items():
                file = LocalFile(blob_path(reference.folder, digest), digest, descriptor.size)
                self._files.append(file)
                self._add(hashes, _name(digest), _File(file.size, file, b""))
        except RafsError:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the files."""
        self._faults.close()
        for file in self._files:
            file.close()

    def find_path(self, node: Nid) -> bytes | None:
        """A path of a node."""
        for parent, found in self._nodes.items():
            for name, child in found.children.items() if isinstance(found, _Folder) else ():
                if child == node:
                    above = b"" if parent == ROOT else self.find_path(Nid(parent)) or b""
                    return above + b"/" + name
        return b"/" if node == ROOT else None

    def _add(self, parent: int, name: bytes, what: _Folder | _File) -> int:
        node = len(self._nodes) + ROOT
        self._nodes[node] = what
        if name:
            self._folder(parent).children[name] = node
        return node

    def _add_content(self, parent: int, name: bytes, content: bytes) -> None:
        self._add(parent, name, _File(len(content), None, content))

    # --- What the FUSE server asks --------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> int:
        """Node id of a name."""
        folder = self._folder(parent)
        if name == b"..":
            return folder.parent
        try:
            return folder.children[name]
        except KeyError:
            _fail(errno.ENOENT)

    def attributes(self, node: int) -> Attributes:
        """Attributes of a node: everybody may read, all is root's and of no time."""
        found = self._node(node)
        if isinstance(found, _File):
            return node, _FILE_MODE, 1, 0, 0, 0, found.size, 0
        folders = sum(isinstance(self._nodes[child], _Folder) for child in found.children.values())
        return node, _FOLDER_MODE, 2 + folders, 0, 0, 0, 0, 0

    def directory(self, node: int, position: int) -> Iterator[Entry]:
        """Entries from ``position`` on, which counts names."""
        folder = self._folder(node)
        names = {b".": node, b"..": folder.parent, **folder.children}
        for number, (name, child) in enumerate(names.items()):
            if number >= position:
                is_file = isinstance(self._nodes[child], _File)
                yield name, child, stat.S_IFREG if is_file else stat.S_IFDIR, number + 1

    def readlink(self, node: int) -> bytes:
        """There are no links."""
        self._node(node)
        _fail(errno.EINVAL)

    def xattr(self, node: int, name: bytes) -> bytes:  # noqa: ARG002  # the protocol's signature
        """There are no extended attributes."""
        self._node(node)
        _fail(errno.ENODATA)

    def xattr_names(self, node: int) -> list[bytes]:
        """There are none."""
        self._node(node)
        return []

    def statfs(self) -> StatFs:
        """The tree as a whole."""
        sizes = [found.size for found in self._nodes.values() if isinstance(found, _File)]
        blocks = sum(-(-size // _BLOCK_BYTES) for size in sizes)
        return _BLOCK_BYTES, blocks, len(self._nodes), FILE_NAME_BYTES_MAX

    def try_read(self, node: int, offset: int, size: int) -> Sequence[Buffer] | None:
        """What the kernel has in its page cache."""
        file = self._file(node)
        length = _length(file, offset, size)
        if file.stored is None:
            return [file.content[offset : offset + length]]
        if not length:
            return []
        if not self._has_nowait:
            return None
        try:
            data = file.stored.read_cached(offset, length)
        except OSError as error:
            self._has_nowait = error.errno != errno.EOPNOTSUPP
            return None
        return None if data is None else [data]

    def read(self, node: int, offset: int, size: int) -> Sequence[Buffer]:
        """What is stored, read now. Raises StoreError."""
        file = self._file(node)
        length = _length(file, offset, size)
        if file.stored is None:
            return [file.content[offset : offset + length]]
        pieces = range(offset, offset + length, _PIECE_BYTES)
        return [file.stored.read_range(at, min(_PIECE_BYTES, offset + length - at)) for at in pieces]

    def extents(self, node: int, offset: int) -> Iterator[tuple[int, bool]]:
        """All is data."""
        file = self._file(node)
        if offset < file.size:
            yield file.size - offset, True

    def report(self, error: Exception, node: int, offset: int | None, size: int | None) -> None:
        """Write a line of log, once in a while for each place."""
        self._report(error, Nid(node), offset, size)

    def _node(self, node: int) -> _Folder | _File:
        found = self._nodes.get(node)
        if found is None:
            _fail(errno.ESTALE)
        return found

    def _folder(self, node: int) -> _Folder:
        found = self._node(node)
        if isinstance(found, _File):
            _fail(errno.ENOTDIR)
        return found

    def _file(self, node: int) -> _File:
        found = self._node(node)
        if isinstance(found, _Folder):
            _fail(errno.EISDIR)
        return found


def _length(file: _File, offset: int, size: int) -> int:
    return max(0, min(size, file.size - offset))


def _name(digest: str) -> bytes:
    return digest.partition(":")[2].encode()


def _index_of(data: bytes, digest: str) -> bytes:
    """The index without other images: their names are none of this guest's business."""
    index = oci.load_json(data, "index.json")
    index["manifests"] = [entry.to_json() for entry in oci.parse_index(data) if entry.digest == digest]
    return oci.dump_json(index)


def _fail(code: int) -> NoReturn:
    raise OSError(code, os.strerror(code))
