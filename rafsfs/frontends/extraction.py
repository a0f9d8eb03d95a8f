"""Writes a tree of an image, or parts of it, into a directory, over all cores; verified bytes only.

A file whose data is damaged is not left behind in part: it is removed and told, and the rest goes on. Only a
target that takes nothing more (no space, no permission) ends an extraction.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rafsfs.errors import FormatError, LimitExceeded, RafsError
from rafsfs.frontends.extraction_files import Batch, Done, FileWriter, Name, Piece, TargetError
from rafsfs.frontends.extraction_nodes import Fidelity, Losses, NodeWriter
from rafsfs.frontends.library import Image
from rafsfs.fs.filesystem import FileSystem
from rafsfs.fs.parallel import WAITING, in_order
from rafsfs.fs.places import ROOT, Place
from rafsfs.fs.problems import Problem, Problems
from rafsfs.limits import PATH_DEPTH_MAX
from rafsfs.types import Nid

_NAMES_AT_ONCE = 32  # of one directory, for one thread: most files are small, and a task has its price
_FIDELITY = Fidelity()


@dataclass(slots=True)
class ExtractResult:
    """What was written and what was not.

    ``bytes`` are the sizes of the files written, ``data_bytes`` what of them was no hole. ``problems`` are
    damaged or impossible parts of the image, with the paths that are missing in the target for it.
    """

    directories: int = 0
    files: int = 0
    symlinks: int = 0
    special: int = 0
    hard_links: int = 0
    bytes: int = 0
    data_bytes: int = 0
    problems: Problems = field(default_factory=Problems)
    losses: Losses = field(default_factory=Losses)
    seconds: float = 0.0

    @property
    def names(self) -> int:
        """All names that were made."""
        return self.directories + self.files + self.symlinks + self.special + self.hard_links


Report = Callable[[int, int], None]


def no_report(_names: int, _bytes: int) -> None:
    """Tell nobody."""


def extract(
    image: Image,
    target: str | os.PathLike[str],
    paths: Sequence[str | bytes] = (),
    *,
    fidelity: Fidelity = _FIDELITY,
    workers: int = 1,
    report: Report = no_report,
) -> ExtractResult:
    """Write everything, or what is at and below ``paths``, into directory ``target``; make it if need be.

    Without ``paths`` the target becomes the image's root, with its attributes. With them they come to lie at
    their places below it, in directories with the attributes of the image's; symlinks on the way to them are
    followed inside the image. ``fidelity.replace`` allows a target that is not empty. ``report`` is told, on
    the caller's thread, the names made and the bytes written.

    Raises FileNotFoundError for a path that is not in the image, before anything is written, and OSError when
    the target is not empty or does not take something; what was written by then stays.
    """
    started = time.monotonic()
    real_paths = {image.real_path(path, follow_symlinks=False) for path in paths}
    top = os.fspath(target)
    root_fd = _open_target(top, fidelity)
    result = ExtractResult()
    try:
        with ThreadPoolExecutor(workers, thread_name_prefix="rafsfs-extract") as pool:
            extraction = _Extraction(image.filesystem, root_fd, fidelity, result, report)
            try:
                extraction.run(pool, None if not paths or b"" in real_paths else sorted(real_paths))
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
            finally:
                extraction.close()
    except TargetError as error:
        where = Path(top, os.fsdecode(error.path))
        raise OSError(error.cause.errno, error.cause.strerror, str(where)) from None
    finally:
        os.close(root_fd)
    result.seconds = time.monotonic() - started
    return result


def _open_target(top: str, fidelity: Fidelity) -> int:
    if not Path(top).exists():
        Path(top).mkdir()
    if not fidelity.replace and any(Path(top).iterdir()):
        raise OSError(errno.ENOTEMPTY, "directory is not empty", top)
    return os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


@dataclass(frozen=True, slots=True)
class _Directory:
    nid: Nid
    place: Place


class _Extraction:
    """One extraction. This thread walks, makes and dresses directories; the pool's do all that is in them."""

    def __init__(
        self,
        filesystem: FileSystem,
        root_fd: int,
        fidelity: Fidelity,
        result: ExtractResult,
        report: Report,
    ) -> None:
        self._filesystem = filesystem
        self._root_fd = root_fd
        self._result = result
        self._report = report
        self._nodes = NodeWriter(fidelity, result.losses, root_fd)
        self._files = FileWriter(filesystem, self._nodes, root_fd)
        self._made: list[_Directory] = []
        self._large: deque[Name] = deque()
        self._links: list[Name] = []
        self._failed: dict[Nid, Problem] = {}

    def close(self) -> None:
        """Let go of everything and remove what is unfinished, when the pool is idle."""
        self._files.close()

    def run(self, pool: ThreadPoolExecutor, paths: Sequence[bytes] | None) -> None:
        """Extract all of the tree, or these paths of it. Raises TargetError."""
        tasks = self._all_tasks() if paths is None else self._tasks_of(paths)
        self._work(pool, tasks)
        while self._large:
            self._work(pool, self._pieces())
        for link in self._links:
            self._link(link)
        for directory in reversed(
            self._made
        ):  # what is made in one changes its time, and its mode may forbid it
            self._dress(directory)
        self._tell()

    def _work(self, pool: ThreadPoolExecutor, tasks: Iterator[Batch | Piece]) -> None:
        for done in in_order(pool, self._files.run, tasks, waiting=WAITING):
            self._note(done)
            self._tell()

    def _note(self, done: Done) -> None:
        result = self._result
        result.files += done.files
        result.symlinks += done.symlinks
        result.special += done.special
        result.bytes += done.bytes
        result.data_bytes += done.data_bytes
        self._large.extend(done.large)
        self._links.extend(done.links)
        for name, error in done.failures:
            self._fail(name, error)

    def _tell(self) -> None:
        self._report(self._result.names, self._result.bytes)

    def _fail(self, name: Name, error: RafsError) -> None:
        self._failed[name.nid] = self._result.problems.add(error.at(nid=name.nid), name.path)

    # --- What is to be done ---------------------------------------------------------------------------------

    def _all_tasks(self) -> Iterator[Batch | Piece]:
        root = _Directory(self._filesystem.root, ROOT)
        try:
            self._nodes.clear_acls(self._root_fd)
        except OSError as error:
            raise TargetError(error, b"") from None
        self._made.append(root)
        yield from self._tree_tasks(root)

    def _tasks_of(self, paths: Sequence[bytes]) -> Iterator[Batch | Piece]:
        """Tasks for some paths, each with the directories on the way to it."""
        entered: dict[bytes, _Directory] = {b"": _Directory(self._filesystem.root, ROOT)}
        whole: list[bytes] = []
        for path in sorted(paths, key=lambda path: path.split(b"/")):
            if whole and path.startswith(whole[-1] + b"/"):
                continue  # it comes with that one
            whole.append(path)
            parent = self._enter(path.rpartition(b"/")[0], entered)
            name = path.rpartition(b"/")[2]
            nid = self._filesystem.lookup(parent.nid, name)
            if stat.S_ISDIR(self._filesystem.attributes(nid).mode):
                yield from self._tree_tasks(self._enter(path, entered))
            else:
                yield Batch(parent.place, [(name, nid)])

    def _enter(self, path: bytes, entered: dict[bytes, _Directory]) -> _Directory:
        """A directory on the way to what was asked for, made when it is needed first."""
        if path not in entered:
            above, _, name = path.rpartition(b"/")
            parent = self._enter(above, entered)
            nid = self._filesystem.lookup(parent.nid, name)
            entered[path] = self._make(_Directory(nid, parent.place.below(name)))
        return entered[path]

    def _tree_tasks(self, top: _Directory) -> Iterator[Batch | Piece]:
        """Tasks for everything below a directory that is made already."""
        pending = [top]
        seen = {top.nid}
        while pending:
            directory = pending.pop()
            below: list[_Directory] = []
            yield from self._batches(directory, seen, below)
            pending.extend(reversed(below))

    def _batches(
        self, directory: _Directory, seen: set[Nid], below: list[_Directory]
    ) -> Iterator[Batch | Piece]:
        """Tasks for the names in one directory; makes those that are directories, into ``below``."""
        place = directory.place
        names: list[tuple[bytes, Nid]] = []
        try:
            for entry in self._filesystem.directory(directory.nid):
                if entry.name in (b".", b".."):
                    continue
                if stat.S_ISDIR(entry.mode_type):
                    if self._may_enter(Name(place, entry.name, entry.nid), seen):
                        below.append(self._make(_Directory(entry.nid, place.below(entry.name))))
                    continue
                names.append((entry.name, entry.nid))
                if len(names) == _NAMES_AT_ONCE:
                    yield Batch(place, names)
                    names = []
                    yield from self._pieces()
        except RafsError as error:
            self._result.problems.add(error.at(nid=directory.nid), place.path())
        if names:
            yield Batch(place, names)
        yield from self._pieces()

    def _may_enter(self, name: Name, seen: set[Nid]) -> bool:
        """Whether a name can be a directory of the target; what is wrong otherwise is noted."""
        try:
            if not stat.S_ISDIR(self._filesystem.attributes(name.nid).mode):
                raise FormatError("something else is named as a directory")
            if name.nid in seen:
                raise FormatError("a directory has two names: a cycle, or a hard link")
            if name.place.depth + 1 >= PATH_DEPTH_MAX:
                raise LimitExceeded("tree is too deep", expected=f"at most {PATH_DEPTH_MAX} levels")
        except RafsError as error:
            self._fail(name, error)
            return False
        seen.add(name.nid)
        return True

    def _pieces(self) -> Iterator[Piece]:
        """Tasks for the large files that were met so far."""
        while self._large:
            name = self._large.popleft()
            try:
                yield from self._files.plan_large(name)
            except RafsError as error:
                self._fail(name, error)

    # --- What this thread does itself -----------------------------------------------------------------------

    def _make(self, directory: _Directory) -> _Directory:
        place = directory.place
        assert place.parent is not None
        try:
            self._nodes.make_directory(self._files.cursor().open(place.parent), place.name)
        except OSError as error:
            raise TargetError(error, place.path()) from None
        self._made.append(directory)
        self._result.directories += 1
        return directory

    def _link(self, link: Name) -> None:
        first = self._files.first_names[link.nid]
        if link.nid in self._failed:
            self._failed[link.nid].touches(link.path)
            return
        try:
            from_fd = os.dup(self._files.cursor().open(first.place))  # the cursor is about to go elsewhere
            try:
                directory_fd = self._files.cursor().open(link.place)
                self._nodes.make_link(from_fd, first.name, directory_fd, link.name)
            finally:
                os.close(from_fd)
        except OSError as error:
            raise TargetError(error, link.path) from None
        self._result.hard_links += 1

    def _dress(self, directory: _Directory) -> None:
        tree = self._filesystem.tree
        place = directory.place
        try:
            attributes = self._filesystem.attributes(directory.nid)
            xattrs = list(tree.xattrs(tree.inode(directory.nid)))
            self._nodes.dress_open(self._files.cursor().open(place), attributes, xattrs, place.path())
        except RafsError as error:
            self._result.problems.add(error.at(nid=directory.nid), place.path())
        except OSError as error:
            raise TargetError(error, place.path()) from None
