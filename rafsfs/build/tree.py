"""The tree of an image while it is built: inodes, names, and where each file's bytes went; writes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from rafsfs.build.source import Entry, refusal
from rafsfs.format.erofs import FileType
from rafsfs.types import BlobIndex


@dataclass(slots=True, eq=False)
class PlannedBlob:
    """A blob that the image may refer to; ``index`` is settled when it is known which ones it does."""

    index: BlobIndex | None = None


@dataclass(slots=True, eq=False)
class PlannedChunk:
    """A chunk of decoded space. One of ours gets its start when it is handed to the encoders."""

    blob: PlannedBlob
    start_block: int = -1
    used: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """``length`` bytes of a file: at ``block`` inside a chunk, or a hole when ``chunk`` is None."""

    length: int
    chunk: PlannedChunk | None = None
    block: int = 0


class Body(NamedTuple):
    """All bytes of a regular file: ``runs``, or ``inline`` ones that go into the metadata."""

    runs: tuple[Run, ...] = ()
    inline: bytes = b""


NO_BYTES: Final = Body()


@dataclass(slots=True, eq=False)
class Node:
    """One inode. ``children`` is set for directories, ``body`` for regular files; ``nid`` by the EROFS
    writer.
    """

    entry: Entry
    body: Body = NO_BYTES
    children: dict[bytes, Node] | None = None
    links: int = 0
    nid: int = 0

    @property
    def is_directory(self) -> bool:
        """True for directories."""
        return self.children is not None

    def sorted_children(self) -> list[tuple[bytes, Node]]:
        """Names in byte order."""
        return sorted((self.children or {}).items())


@dataclass(slots=True)
class Tree:
    """All names. Entries come parents first; a later one replaces an earlier one of the same path."""

    root: Node | None = None
    _hard_linked: dict[bytes, Node] = field(default_factory=dict)

    def add(self, entry: Entry, body: Body = NO_BYTES) -> Node:
        """Put one entry in; raises BuildError when its parent is no directory or its link leads nowhere."""
        if entry.path == b"":
            if entry.kind is not FileType.DIRECTORY:
                raise refusal(entry.path, "the root is not a directory")
            self.root = _renewed(self.root, entry)
            return self.root
        parent_path, _, name = entry.path.rpartition(b"/")
        siblings = self._directory(parent_path, entry.path)
        if entry.hard_link_to is not None:
            node = self._find(entry.hard_link_to)
            if node is None or node.is_directory:
                raise refusal(
                    entry.path, "hard link to a file that is not there", found=repr(entry.hard_link_to)
                )
        elif entry.kind is FileType.DIRECTORY:
            node = _renewed(siblings.get(name), entry)
        else:
            node = Node(entry, body)
        siblings[name] = node
        return node

    def _find(self, path: bytes) -> Node | None:
        node = self.root
        for name in path.split(b"/") if path else ():
            if node is None or node.children is None:
                return None
            node = node.children.get(name)
        return node

    def _directory(self, path: bytes, child: bytes) -> dict[bytes, Node]:
        node = self._find(path)
        if node is None or node.children is None:
            raise refusal(child, "its parent is not a directory", found=repr(path))
        return node.children

    def directories(self) -> Iterator[tuple[Node, Node]]:
        """Every (directory, its parent), depth first, children in byte order; the root is its own parent."""
        assert self.root is not None
        pending = [(self.root, self.root)]
        while pending:
            directory, parent = pending.pop()
            yield directory, parent
            subdirectories = [
                (child, directory) for _, child in directory.sorted_children() if child.is_directory
            ]
            pending.extend(reversed(subdirectories))


def _renewed(existing: Node | None, entry: Entry) -> Node:
    """A directory over a directory keeps its names and takes the new attributes."""
    if existing is not None and existing.is_directory:
        existing.entry = entry
        return existing
    return Node(entry, children={})
