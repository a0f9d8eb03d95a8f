"""Layers applied one over the other into a tree of inodes (image-spec, layer.md); holds no content of files.

Nothing is unpacked: paths are looked up in this tree alone, so that links lead nowhere else.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from rafsfs.build.layer_reader import LayerReader
from rafsfs.build.source import Entry, check_name, shown
from rafsfs.build.tar_source import entry_of, made_directory, path_names
from rafsfs.errors import BuildError
from rafsfs.format.erofs import FileType
from rafsfs.limits import (
    LAYER_MEMBERS_MAX,
    LAYER_NAMES_BYTES_MAX,
    LAYER_PATH_BYTES_MAX,
    PATH_DEPTH_MAX,
    PATH_SYMLINKS_MAX,
)

_WHITEOUT = b".wh."
_WHITEOUT_META = b".wh..wh."  # aufs kept files and folders of its own under such names
_OPAQUE = b".wh..wh..opq"

Member = tuple[int, int]
"""Numbers of a layer and of a member in it."""


@dataclass(slots=True, eq=False)
class LayerInode:
    """An inode and the member that it came from; ``children`` for directories alone."""

    entry: Entry
    member: Member
    children: dict[bytes, LayerInode] | None = None
    paths: list[bytes] = field(default_factory=list)
    """Where it is in the end; filled by ``LayerTree.finish``."""


class LayerTree:
    """The tree after some layers, from the lowest up.

    A directory over a directory takes its place but keeps what is in it; everything else replaces what was
    there. A whiteout removes what lower layers brought, wherever in its layer it stands.
    """

    def __init__(self) -> None:
        self.root = LayerInode(made_directory(b""), (-1, -1), {})
        self._layers = 0
        self._members = 0
        self._names_bytes = 0

    def apply(self, reader: LayerReader, *, xattrs: bool = True) -> None:
        """Put the next layer over the tree. Raises BuildError for what no tree can hold, and as reading does.

        Members have no ``content`` afterwards: it is read in another pass.
        """
        entries: list[tuple[int, Entry]] = []
        whiteouts: list[list[bytes]] = []
        for number, member in reader:
            try:
                names = path_names(member.path)
                if names and names[-1].startswith(_WHITEOUT):
                    whiteouts.append(names)
                    continue
                if any(name.startswith(_WHITEOUT_META) for name in names):
                    continue
                entry = entry_of(member, b"/".join(names), reader.stream, xattrs=xattrs)
            except BuildError as error:
                error.at(path=shown(member.path), offset=member.offset)
                raise
            entry.content = None
            self._count(entry)
            entries.append((number, entry))
        for names in whiteouts:
            self._remove(names)
        for number, entry in entries:
            try:
                self._add(entry, (self._layers, number))
            except BuildError as error:
                error.at(path=shown(entry.path))
                raise
        self._layers += 1

    def _count(self, entry: Entry) -> None:
        self._members += 1
        if self._members > LAYER_MEMBERS_MAX:
            raise BuildError("the layers have too many files", expected=f"at most {LAYER_MEMBERS_MAX}")
        self._names_bytes += len(entry.path) + len(entry.target)
        self._names_bytes += sum(len(name) + len(value) for name, value in entry.xattrs)
        if self._names_bytes > LAYER_NAMES_BYTES_MAX:
            raise BuildError(
                "the layers' names and attributes are too long",
                expected=f"at most {LAYER_NAMES_BYTES_MAX} bytes",
            )

    def _remove(self, names: list[bytes]) -> None:
        """Do what a whiteout says. One of something that is not there says nothing."""
        *parents, name = names
        directory = self._directory(parents, make=False)
        if name == _OPAQUE:
            if directory is not None:
                directory.children = {}
        elif name != _WHITEOUT and not name.startswith(_WHITEOUT_META):
            hidden = name[len(_WHITEOUT) :]
            check_name(b"/".join(names), hidden)
            if directory is not None and directory.children is not None:
                directory.children.pop(hidden, None)

    def _add(self, entry: Entry, member: Member) -> None:
        names = entry.path.split(b"/") if entry.path else []
        if not names:
            if entry.kind is not FileType.DIRECTORY:
                raise BuildError("the root of a layer is not a directory")
            self.root.entry, self.root.member = entry, member
            return
        parent = self._directory(names[:-1], make=True)
        assert parent is not None and parent.children is not None
        present = parent.children.get(names[-1])
        if entry.hard_link_to is not None:
            parent.children[names[-1]] = self._link_target(entry.hard_link_to)
        elif entry.kind is not FileType.DIRECTORY:
            parent.children[names[-1]] = LayerInode(entry, member)
        elif present is not None and present.children is not None:
            present.entry, present.member = entry, member
        else:
            parent.children[names[-1]] = LayerInode(entry, member, {})

    def _link_target(self, path: bytes) -> LayerInode:
        *parents, name = path.split(b"/")
        directory = self._directory(parents, make=False)
        target = (directory.children or {}).get(name) if directory is not None else None
        if target is None:
            raise BuildError("a hard link leads to what is not there", found=shown(path))
        if target.children is not None:
            raise BuildError("a hard link leads to a directory", found=shown(path))
        return target

    def _directory(self, names: list[bytes], *, make: bool) -> LayerInode | None:
        """Find a directory, through symbolic links as in a container; None where it is not there.

        With ``make`` the missing ones are made. Raises BuildError when something else is in the way.
        """
        trail = [self.root]
        pending = names[::-1]
        links = 0
        while pending:
            name = pending.pop()
            if name == b"..":
                trail = trail[:-1] or [self.root]
                continue
            children = trail[-1].children
            assert children is not None
            found = children.get(name)
            if found is None:
                if not make:
                    return None
                if len(trail) >= PATH_DEPTH_MAX:
                    raise BuildError("directories are nested too deeply")
                found = children[name] = LayerInode(made_directory(b""), (-1, -1), {})
            if found.children is not None:
                trail.append(found)
            elif found.entry.kind is FileType.SYMLINK:
                links += 1
                if links > PATH_SYMLINKS_MAX:
                    raise BuildError("too many symbolic links on the way", expected=f"{PATH_SYMLINKS_MAX}")
                target = found.entry.target
                if target.startswith(b"/"):
                    trail = [self.root]
                pending += [part for part in target.split(b"/") if part not in {b"", b"."}][::-1]
            elif make:
                raise BuildError("a parent is not a directory", found=shown(name))
            else:
                return None
        return trail[-1]

    def finish(self) -> Iterator[LayerInode]:
        """Give every inode once, a directory before what is in it, with all its ``paths``.

        Raises BuildError for a path that is too long.
        """
        pending = [(b"", self.root)]
        linked: list[LayerInode] = []
        while pending:
            path, inode = pending.pop()
            if len(path) > LAYER_PATH_BYTES_MAX:
                raise BuildError(
                    "a path is too long", expected=f"at most {LAYER_PATH_BYTES_MAX} bytes", found=len(path)
                ).at(path=shown(path[:80]))
            inode.paths.append(path)
            if inode.children is None:
                if len(inode.paths) == 1:
                    linked.append(inode)
                continue
            inode.entry.path = path
            yield inode
            below = sorted(inode.children.items(), reverse=True)
            pending += [(path + b"/" + name if path else name, child) for name, child in below]
        yield from linked
