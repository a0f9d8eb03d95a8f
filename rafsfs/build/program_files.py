"""Which files a container's program begins with: itself, its interpreter, its libraries; runs nothing.

A start is a chain: the loader opens a library, looks what that one needs, opens the next. Out of a registry
every link is a round trip, unless somebody has gone along it before. What is found is a guess at what will be
read: a trace of a real start knows better (``rafsfs optimize``).
"""

from __future__ import annotations

import posixpath
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from itertools import islice
from typing import Final

from rafsfs.build.elf import elf_needs, machine_of
from rafsfs.format.image_config import PATH_DEFAULT, ImageConfig
from rafsfs.format.trace import TracedRange
from rafsfs.fs.filesystem import FileSystem
from rafsfs.fs.paths import trail
from rafsfs.limits import MIB
from rafsfs.types import Nid

HEAD_BYTES: Final = MIB // 4  # of a program, before its libraries: what the kernel reads to run it
WHOLE_BYTES_MAX: Final = 16 * MIB  # of a file; nobody reads all of a longer one to start
LIST_BYTES_MAX: Final = 64 * MIB  # of all; mounts fetch and decode the list unasked

# Bounds on what a hostile image has us look for; real programs come near none of them.
FILES_MAX: Final = 256
WORK_MAX: Final = 200_000  # names looked up or listed, and some 10 us of decoding each; two seconds
DIRECTORIES_MAX: Final = 64  # of one list of them
_PATH_BYTES_MAX: Final = 4095  # PATH_MAX, less its NUL
_DECODED_BYTES: Final = 8192  # are as much work as a name
_WANTED_MAX: Final = 4 * FILES_MAX
_SCRIPTS_MAX: Final = 4  # that are run by each other, as in Linux (BINPRM_MAX_RECURSION)
_SCRIPT_LINE_BYTES: Final = 256  # BINPRM_BUF_SIZE
_CONFIGS_MAX: Final = 64  # files that say where libraries lie
_CONFIG_BYTES_MAX: Final = MIB // 16

LOADER_CACHE: Final = "/etc/ld.so.cache"
LOADER_CONFIG: Final = "/etc/ld.so.conf"
C_LIBRARY: Final = "libc.so.6"  # glibc's; others read none of these
C_LIBRARY_READS: Final = ("/usr/lib/locale/C.utf8/LC_CTYPE", "/etc/localtime")
"""What glibc reads for setlocale(3) and tzset(3) as programs begin; C.UTF-8 is what images choose."""
CONVERSIONS: Final = "gconv/gconv-modules.cache"
"""For iconv(3), and all who ask for the names of characters; beside the C library."""
LIBRARY_DIRECTORIES: Final = ("/lib64", "/usr/lib64", "/lib", "/usr/local/lib", "/usr/lib")
"""Where the loaders of glibc and musl look when nothing else is said."""


@dataclass(frozen=True, slots=True)
class _File:
    """A regular file, by its path without symlinks."""

    path: bytes
    nid: Nid
    size: int
    may_run: bool

    @property
    def directory(self) -> str:
        return "/" + _text(posixpath.dirname(self.path))

    @property
    def wanted_bytes(self) -> int:
        return self.size if self.size <= WHOLE_BYTES_MAX else HEAD_BYTES

    def range(self, start: int, end: int) -> TracedRange:
        return TracedRange(self.path, start, min(end, self.size) - start)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """A library for programs of ``machine``, and where to look for it before and after ``LD_LIBRARY_PATH``
    (ld.so(8)); what it needs itself is looked for in ``inherited``, too.
    """

    name: str
    machine: bytes
    before: tuple[str, ...]
    after: tuple[str, ...]
    inherited: tuple[str, ...]


class _EnoughError(Exception):
    """The search has done as much as it may."""


def start_ranges(filesystem: FileSystem, config: ImageConfig) -> list[TracedRange]:
    """What running the command of ``config`` reads first, in the order in which that is likely.

    Nothing for a command that is not in the image. Raises what reading the image does.
    """
    words = [*config.entrypoint, *config.cmd]
    if not words:
        return []
    search = _Search(filesystem, config)
    with suppress(_EnoughError):  # what was found until then is as good a guess
        search.add_program(words)
        search.add_libraries()
        search.add_arguments(words[1:])
    left = LIST_BYTES_MAX
    found = []
    for item in search.ranges():
        left -= item.length
        if left < 0:
            break
        found.append(item)
    return found


class _Search:
    """The files that were found so far, each once."""

    def __init__(self, filesystem: FileSystem, config: ImageConfig) -> None:
        self._filesystem = filesystem
        self._directory = config.working_dir or "/"
        variables = dict(text.partition("=")[::2] for text in config.env)
        self._program_directories = _directories(variables.get("PATH", PATH_DEFAULT))
        self._library_directories = _directories(variables.get("LD_LIBRARY_PATH", ""))
        self._programs: dict[bytes, _File] = {}
        self._others: dict[bytes, _File] = {}
        self._wanted: list[_Wanted] = []
        self._work_left = WORK_MAX

    def ranges(self) -> Iterator[TracedRange]:
        """The heads of the programs, everything else, the rest of the programs."""
        for program in self._programs.values():
            yield program.range(0, HEAD_BYTES)
        for file in self._others.values():
            yield file.range(0, file.wanted_bytes)
        for program in self._programs.values():
            if program.wanted_bytes > HEAD_BYTES:
                yield program.range(HEAD_BYTES, program.wanted_bytes)

    def add_program(self, words: list[str]) -> None:
        """Add what a command is run from, and note which libraries it needs."""
        for _ in range(_SCRIPTS_MAX + 1):
            file = self._program(words[0])
            is_env = posixpath.basename(words[0]) == "env"
            if file is None or (file.path in self._programs and not is_env):
                return
            self._programs[file.path] = file
            line = self._read(file, 0, _SCRIPT_LINE_BYTES)
            if line.startswith(b"#!"):
                words = [_text(part) for part in line[2:].partition(b"\n")[0].split()] or [""]
                continue
            self._note_needs(file, ())
            if not is_env:
                return
            rest = (word for word in words[1:] if not word.startswith("-") and "=" not in word)
            words = list(islice(rest, 1))  # which is what env(1) runs
            if not words:
                return

    def add_libraries(self) -> None:
        """Add what is needed, and what that needs, in the order in which the loader opens them."""
        if not self._wanted:
            return
        self._add(self._file(LOADER_CACHE))
        usual = self._configured()
        if (loader := self._file(self._wanted[0].name)) is not None:
            usual.append(loader.directory)  # which Debian's looks in without being told
        usual += LIBRARY_DIRECTORIES
        known: set[str] = set()  # a library is found once, whoever else wants it, and from wherever
        for wanted in self._wanted:  # which grows meanwhile
            if wanted.name in known:
                continue
            if len(self._others) >= FILES_MAX:
                return
            known.add(wanted.name)
            file = self._library(wanted, usual)
            if file is not None and file.path not in self._others:
                self._add(file)
                self._note_needs(file, wanted.inherited)
                if wanted.name == C_LIBRARY:
                    for path in (*C_LIBRARY_READS, posixpath.join(file.directory, CONVERSIONS)):
                        self._add(self._file(path))

    def add_arguments(self, words: list[str]) -> None:
        """Add the arguments that are files, as a script's name is for its interpreter."""
        for word in words[:FILES_MAX]:
            self._add(self._file(posixpath.join(self._directory, word)))

    def _note_needs(self, file: _File, inherited: tuple[str, ...]) -> None:
        needs = elf_needs(lambda offset, length: self._read(file, offset, length))
        rpath, runpath = (
            _directories(_text(path), origin=file.directory) for path in (needs.rpath, needs.runpath)
        )
        own = () if runpath else rpath  # whoever has both means the second
        below = (*own, *inherited)[:DIRECTORIES_MAX]
        before = () if runpath else below
        names = [_text(name) for name in (needs.interpreter, *needs.libraries) if name]
        del names[max(0, _WANTED_MAX - len(self._wanted)) :]
        self._wanted += [_Wanted(name, needs.machine, before, runpath, below) for name in names]

    def _library(self, wanted: _Wanted, usual: list[str]) -> _File | None:
        """The first of its name that is for the same processor; the loader passes over others, too."""
        if "/" in wanted.name:
            return self._file(wanted.name)
        for file in self._each_in(
            (*wanted.before, *self._library_directories, *wanted.after, *usual), wanted.name
        ):
            machine = machine_of(partial(self._read, file))
            if not machine or machine == wanted.machine:
                return file
        return None

    def _add(self, file: _File | None) -> None:
        if file is not None:
            self._others.setdefault(file.path, file)

    def _configured(self) -> list[str]:
        """The directories that ldconfig(8) is told of, in their order."""
        found: dict[str, None] = {}
        pending = deque([LOADER_CONFIG])
        for _ in range(_CONFIGS_MAX):
            if not pending or len(found) >= DIRECTORIES_MAX:
                break
            path = pending.popleft()
            file = self._file(path)
            text = b"" if file is None else self._read(file, 0, _CONFIG_BYTES_MAX)
            for line in _text(text).splitlines():
                word, *rest = line.partition("#")[0].split() or [""]
                if word == "include":
                    for pattern in rest[: max(0, _CONFIGS_MAX - len(pending))]:
                        pending += self._matching(posixpath.join(posixpath.dirname(path), pattern))
                elif word.startswith("/"):
                    found[word] = None
        return list(islice(found, DIRECTORIES_MAX))

    def _matching(self, pattern: str) -> list[str]:
        """Files of one directory whose names fit, in the order of their names."""
        directory, name = posixpath.split(pattern)
        found: list[str] = []
        try:
            steps = trail(self._filesystem, _bytes(directory), spend=self._spend)
            for entry in self._filesystem.directory(steps[-1][1] if steps else self._filesystem.root):
                self._spend(1)
                if fnmatchcase(_text(entry.name), name):
                    found.append(posixpath.join(directory, _text(entry.name)))
        except OSError:  # there is none
            return []
        return found[:_CONFIGS_MAX]

    def _program(self, word: str) -> _File | None:
        if "/" in word:
            return self._file(posixpath.join(self._directory, word))
        return next((file for file in self._each_in(self._program_directories, word) if file.may_run), None)

    def _each_in(self, directories: Iterable[str], name: str) -> Iterator[_File]:
        for directory in dict.fromkeys(directories):
            file = self._file(posixpath.join(directory, name))
            if file is not None:
                yield file

    def _file(self, path: str) -> _File | None:
        """The regular file that a path leads to; None when there is none."""
        encoded = _bytes(path)
        self._spend(1)
        if len(encoded) > _PATH_BYTES_MAX:
            return None
        try:
            steps = trail(self._filesystem, encoded, spend=self._spend)
        except OSError:
            return None
        inode = self._filesystem.tree.inode(steps[-1][1] if steps else self._filesystem.root)
        if not inode.is_regular:
            return None
        may_run = bool(inode.mode & 0o111)
        return _File(b"/".join(name for name, _ in steps), steps[-1][1], inode.size, may_run)

    def _read(self, file: _File, offset: int, length: int) -> bytes:
        statistics = self._filesystem.engine.cache.statistics
        before = statistics.counts().chunk_bytes
        data = b"".join(self._filesystem.read(file.nid, offset, max(0, min(length, file.size - offset))))
        self._spend(1 + (statistics.counts().chunk_bytes - before) // _DECODED_BYTES)
        return data

    def _spend(self, work: int) -> None:
        self._work_left -= work
        if self._work_left < 0:
            raise _EnoughError


def _directories(text: str, *, origin: str | None = None) -> tuple[str, ...]:
    """Of a list with colons the absolute ones; what depends on where somebody stands is nobody's guess."""
    parts = text.split(":", DIRECTORIES_MAX)[:DIRECTORIES_MAX]
    if origin is not None and len(origin) <= _PATH_BYTES_MAX:
        parts = [_with_origin(part, origin) for part in parts]
    return tuple(part for part in parts if part.startswith("/"))


def _with_origin(part: str, origin: str) -> str:
    for word in ("$ORIGIN", "${ORIGIN}"):
        part = part.replace(word, origin, 1)
    return part


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
