"""The part of an extraction that worker threads do: whole small files by the batch, pieces of large ones."""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from rafsfs.errors import FormatError, RafsError
from rafsfs.frontends.extraction_cursor import DirectoryCursor
from rafsfs.frontends.extraction_nodes import NodeWriter, Xattrs
from rafsfs.fs.attributes import Attributes
from rafsfs.fs.filesystem import FileSystem
from rafsfs.fs.places import Place
from rafsfs.limits import MIB
from rafsfs.types import Nid

PIECE_BYTES = 4 * MIB  # what is read, and written, at a time
LARGE_BYTES = 4 * PIECE_BYTES  # files from here on are spread over threads


class TargetError(Exception):
    """The target did not take something; ``path`` is relative to it."""

    def __init__(self, cause: OSError, path: bytes) -> None:
        super().__init__(cause)
        self.cause = cause
        self.path = path


class Name(NamedTuple):
    """A name to be made."""

    place: Place
    name: bytes
    nid: Nid

    @property
    def path(self) -> bytes:
        """Relative to the target."""
        return self.place.path(self.name)


class Batch(NamedTuple):
    """Names of one directory, none of them directories."""

    place: Place
    names: list[tuple[bytes, Nid]]


@dataclass(slots=True, eq=False)
class LargeFile:
    """A file that several threads write.

    ``parts_left`` counts its unfinished pieces and, as one, their planning; ``written`` is in bytes;
    ``error`` is what a piece met: the file is removed then.
    """

    name: Name
    fd: int
    attributes: Attributes
    parts_left: int = 1
    written: int = 0
    error: RafsError | None = None


class Piece(NamedTuple):
    """A part of a large file, in bytes; of length 0 when all its pieces are planned."""

    file: LargeFile
    offset: int
    length: int


@dataclass(slots=True)
class Done:
    """What one task made.

    ``large`` are files that it left for others, ``links`` further names of inodes that have one.
    """

    files: int = 0
    symlinks: int = 0
    special: int = 0
    bytes: int = 0
    data_bytes: int = 0
    large: list[Name] = field(default_factory=list)
    links: list[Name] = field(default_factory=list)
    failures: list[tuple[Name, RafsError]] = field(default_factory=list)


class FileWriter:
    """Does batches and pieces, on any number of threads."""

    def __init__(self, filesystem: FileSystem, nodes: NodeWriter, root_fd: int) -> None:
        self._filesystem = filesystem
        self._nodes = nodes
        self._root_fd = root_fd
        self._local = threading.local()
        self._lock = threading.Lock()
        self._cursors: list[DirectoryCursor] = []
        self._unfinished: set[LargeFile] = set()
        self.first_names: dict[Nid, Name] = {}
        """Of inodes with several names: the one that is not made as a link."""

    def close(self) -> None:
        """Let go of directories and remove large files that are unfinished, when no thread works any more."""
        for file in self._unfinished:
            os.close(file.fd)
            os.unlink(file.name.name, dir_fd=self.cursor().open(file.name.place))
        self._unfinished.clear()
        for cursor in self._cursors:
            cursor.close()

    def cursor(self) -> DirectoryCursor:
        """This thread's own."""
        try:
            cursor: DirectoryCursor = self._local.cursor
        except AttributeError:
            cursor = self._local.cursor = DirectoryCursor(self._root_fd)
            with self._lock:
                self._cursors.append(cursor)
        return cursor

    def run(self, task: Batch | Piece) -> Done:
        """Do one task. Raises TargetError; damage is in what it returns."""
        return self._batch(task) if isinstance(task, Batch) else self._piece(task)

    # --- Batches --------------------------------------------------------------------------------------------

    def _batch(self, batch: Batch) -> Done:
        done = Done()
        try:
            directory_fd = self.cursor().open(batch.place)
        except OSError as error:
            raise TargetError(error, batch.place.path()) from None
        for text, nid in batch.names:
            name = Name(batch.place, text, nid)
            try:
                self._name(directory_fd, name, done)
            except RafsError as error:
                done.failures.append((name, error))
            except OSError as error:
                raise TargetError(error, name.path) from None
        return done

    def _name(self, directory_fd: int, name: Name, done: Done) -> None:
        attributes = self._filesystem.attributes(name.nid)
        if attributes.nlink > 1 and not self._claim(name):
            done.links.append(name)
            return
        kind = stat.S_IFMT(attributes.mode)
        if kind == stat.S_IFREG:
            if attributes.size >= LARGE_BYTES:
                done.large.append(name)
            else:
                done.data_bytes += self._small_file(directory_fd, name, attributes)
                done.files += 1
                done.bytes += attributes.size
        elif kind == stat.S_IFLNK:
            target = self._filesystem.readlink(name.nid)
            xattrs = self._xattrs(name.nid)
            self._nodes.make_symlink(directory_fd, name.name, target)
            self._nodes.dress_name(directory_fd, name.name, attributes, xattrs, name.path)
            done.symlinks += 1
        elif kind == stat.S_IFDIR:
            raise FormatError("a directory is named as something else").at(nid=name.nid)
        else:
            xattrs = self._xattrs(name.nid)
            if self._nodes.make_special(directory_fd, name.name, attributes, name.path):
                self._nodes.dress_name(directory_fd, name.name, attributes, xattrs, name.path)
                done.special += 1

    def _claim(self, name: Name) -> bool:
        """Whether this is the name by which an inode is made; the others become links."""
        with self._lock:
            return self.first_names.setdefault(name.nid, name) is name

    def _xattrs(self, nid: Nid) -> Xattrs:
        tree = self._filesystem.tree
        return list(tree.xattrs(tree.inode(nid)))

    def _small_file(self, directory_fd: int, name: Name, attributes: Attributes) -> int:
        xattrs = self._xattrs(name.nid)
        fd = self._nodes.create_file(directory_fd, name.name)
        try:
            written = self._copy(fd, name.nid, 0, attributes.size)
            self._finish(fd, name, attributes, xattrs, written)
        except BaseException:
            os.unlink(name.name, dir_fd=directory_fd)
            raise
        finally:
            os.close(fd)
        return written

    def _copy(self, fd: int, nid: Nid, offset: int, length: int) -> int:
        """Write what of a range of a file is no hole; returns how many bytes that was."""
        written = 0
        for extent in self._filesystem.extents(nid, offset, length):
            if not extent.is_hole:
                position = offset
                for part in self._filesystem.read_extent(extent):
                    position = _write_at(fd, part, position)
                written += extent.length
            offset += extent.length
        return written

    def _finish(self, fd: int, name: Name, attributes: Attributes, xattrs: Xattrs, written: int) -> None:
        if written < attributes.size:
            os.ftruncate(fd, attributes.size)  # it may end in a hole
        self._nodes.dress_open(fd, attributes, xattrs, name.path)

    # --- Large files ----------------------------------------------------------------------------------------

    def plan_large(self, name: Name) -> Iterator[Piece]:
        """Create a large file and give the pieces to be written, the last one to be given last.

        For the thread that hands out tasks. Raises RafsError before anything is created, TargetError.
        """
        attributes = self._filesystem.attributes(name.nid)
        self._xattrs(name.nid)
        try:
            fd = self._nodes.create_file(self.cursor().open(name.place), name.name)
        except OSError as error:
            raise TargetError(error, name.path) from None
        file = LargeFile(name, fd, attributes)
        self._unfinished.add(file)
        try:
            for offset, length in data_pieces(self._filesystem, name.nid, attributes.size):
                with self._lock:
                    file.parts_left += 1
                yield Piece(file, offset, length)
        except RafsError as error:
            file.error = error
        yield Piece(file, 0, 0)

    def _piece(self, piece: Piece) -> Done:
        file = piece.file
        done = Done()
        try:
            if file.error is None:
                self._copy(file.fd, file.name.nid, piece.offset, piece.length)
                done.bytes += piece.length
                done.data_bytes += piece.length
        except RafsError as error:
            file.error = error
        except OSError as error:
            raise TargetError(error, file.name.path) from None
        with self._lock:
            file.written += done.data_bytes
            file.parts_left -= 1
            last = file.parts_left == 0
        if last:
            self._close_large(file, done)
        return done

    def _close_large(self, file: LargeFile, done: Done) -> None:
        name = file.name
        try:
            if file.error is None:
                self._finish(file.fd, name, file.attributes, self._xattrs(name.nid), 0)
                done.files += 1
                done.bytes += file.attributes.size - file.written
            else:
                done.bytes -= file.written
                done.data_bytes -= file.written
                done.failures.append((name, file.error))
                os.unlink(name.name, dir_fd=self.cursor().open(name.place))
        except OSError as error:
            raise TargetError(error, name.path) from None
        with self._lock:
            self._unfinished.discard(file)
        os.close(file.fd)


def _write_at(fd: int, data: memoryview, offset: int) -> int:
    """Write all of it; returns where it ends."""
    while data:
        count = os.pwrite(fd, data, offset)
        offset += count
        data = data[count:]
    return offset


def data_pieces(filesystem: FileSystem, nid: Nid, size: int) -> Iterator[tuple[int, int]]:
    """(offset, length) of the parts of a file that are no holes, at most ``PIECE_BYTES`` long."""
    start = offset = 0
    for extent in filesystem.extents(nid, 0, size):
        if extent.is_hole:
            if offset > start:
                yield start, offset - start
            offset += extent.length
            start = offset
            continue
        offset += extent.length
        while offset - start >= PIECE_BYTES:
            yield start, PIECE_BYTES
            start += PIECE_BYTES
    if offset > start:
        yield start, offset - start
