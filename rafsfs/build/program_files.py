"""Which files a container's program begins with: itself, its interpreter, its libraries; runs nothing.

A start is a chain: the loader opens a library, looks what that one needs, opens the next. Out of a registry
every link is a round trip, unless somebody has gone along it before. What is found is a guess at what will be
read: a trace of a real start knows better (``rafsfs optimize``).
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from rafsfs.build.elf import elf_needs, is_elf
from rafsfs.format.image_config import PATH_DEFAULT, ImageConfig
from rafsfs.format.trace import TracedRange
from rafsfs.fs.filesystem import FileSystem
from rafsfs.fs.paths import trail
from rafsfs.limits import MIB
from rafsfs.types import Nid

HEAD_BYTES: Final = MIB // 4  # of a program, before its libraries: what the kernel reads to run it
WHOLE_BYTES_MAX: Final = 16 * MIB  # of a file; nobody reads all of a longer one to start
FILES_MAX: Final = 256  # more libraries than that have few programs
_SCRIPTS_MAX: Final = 4  # that are run by each other, as in Linux (BINPRM_MAX_RECURSION)
_CONFIGS_MAX: Final = 64  # files that say where libraries lie
_CONFIG_BYTES_MAX: Final = MIB // 16

LOADER_CACHE: Final = "/etc/ld.so.cache"
LOADER_CONFIG: Final = "/etc/ld.so.conf"
C_LIBRARY: Final = "libc.so.6"  # glibc's; others read none of these
C_LIBRARY_READS: Final = ("/usr/lib/locale/C.utf8/LC_CTYPE", "/etc/localtime")
"""What glibc reads for setlocale(3) and tzset(3) as programs begin; C.UTF-8 is what images choose."""
CONVERSIONS: Final = "gconv/gconv-modules.cache"
"""For iconv(3), and all who ask for the names of characters; beside the C library."""
LIBRARY_DIRECTORIES: Final = ("/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib")
"""Where the loaders of glibc and musl look when nothing else is said."""


@dataclass(frozen=True, slots=True)
class _File:
    """A regular file, by its path without symlinks."""

    path: bytes
    nid: Nid
    size: int

    def range(self, start: int, end: int) -> TracedRange:
        return TracedRange(self.path, start, min(end, self.size) - start)


def start_ranges(filesystem: FileSystem, config: ImageConfig) -> list[TracedRange]:
    """What running the command of ``config`` reads first, in the order in which that is likely.

    Nothing for a command that is not in the image. Raises what reading the image does.
    """
    words = [*config.entrypoint, *config.cmd]
    if not words:
        return []
    search = _Search(filesystem, config)
    search.add_program(words[0])
    search.add_libraries()
    search.add_arguments(words[1:])
    return list(search.ranges())


class _Search:
    """The files that were found so far, each once."""

    def __init__(self, filesystem: FileSystem, config: ImageConfig) -> None:
        self._filesystem = filesystem
        self._directory = config.working_dir or "/"
        variables = dict(text.partition("=")[::2] for text in config.env)
        self._program_directories = variables.get("PATH", PATH_DEFAULT).split(":")
        self._library_directories = variables.get("LD_LIBRARY_PATH", "").split(":")
        self._programs: dict[bytes, _File] = {}
        self._others: dict[bytes, _File] = {}
        self._wanted: list[tuple[str, tuple[str, ...]]] = []  # libraries, and where to look first

    def ranges(self) -> Iterator[TracedRange]:
        """The heads of the programs, everything else, the rest of the programs."""
        for program in self._programs.values():
            yield program.range(0, HEAD_BYTES)
        for file in self._others.values():
            yield file.range(0, _read_of(file))
        for program in self._programs.values():
            if _read_of(program) > HEAD_BYTES:
                yield program.range(HEAD_BYTES, _read_of(program))

    def add_program(self, word: str) -> None:
        """Add what a command is run from, and note which libraries it needs."""
        words = [word]
        for _ in range(_SCRIPTS_MAX + 1):
            file = self._program(words[0])
            if file is None or file.path in self._programs:
                return
            self._programs[file.path] = file
            data = self._read(file)
            if not data.startswith(b"#!"):
                self._note_needs(file, data)
                if posixpath.basename(file.path) != b"env" or len(words) < 2:
                    return
                words = words[1:]  # env(1) runs what follows it
            else:
                line = data[2:].partition(b"\n")[0][:256]  # BINPRM_BUF_SIZE
                words = [os.fsdecode(part) for part in line.split()] or [""]

    def add_libraries(self) -> None:
        """Add what is needed, and what that needs, in the order in which the loader opens them."""
        if not self._wanted:
            return
        self._add(self._file(LOADER_CACHE))
        usual = [*self._library_directories, *self._configured(LOADER_CONFIG)]
        if (loader := self._file(self._wanted[0][0])) is not None:
            usual.append(_directory_of(loader))  # which Debian's looks in without being told
        usual += LIBRARY_DIRECTORIES
        known: set[str] = set()  # a library is found once, whoever else wants it, and from wherever
        for name, first in self._wanted:  # which grows meanwhile
            if name in known:
                continue
            if len(self._others) >= FILES_MAX:
                return
            known.add(name)
            file = self._file(name) if "/" in name else self._first_in([*first, *usual], name)
            if file is not None and file.path not in self._others:
                self._add(file)
                self._note_needs(file, self._read(file))
                if name == C_LIBRARY:
                    self._add_reads_of_c_library(file)

    def _add_reads_of_c_library(self, library: _File) -> None:
        for path in (*C_LIBRARY_READS, posixpath.join(_directory_of(library), CONVERSIONS)):
            self._add(self._file(path))

    def add_arguments(self, words: list[str]) -> None:
        """Add the arguments that are files, as a script's name is for its interpreter."""
        for word in words[:FILES_MAX]:
            self._add(self._file(posixpath.join(self._directory, word)))

    def _note_needs(self, file: _File, data: bytes) -> None:
        needs = elf_needs(data) if is_elf(data) else None
        if needs is None:
            return
        origin = _directory_of(file)
        first = tuple(
            part.replace("$ORIGIN", origin).replace("${ORIGIN}", origin) for part in needs.directories
        )
        self._wanted += [(name, first) for name in (needs.interpreter, *needs.libraries) if name]

    def _add(self, file: _File | None) -> None:
        if file is not None:
            self._others.setdefault(file.path, file)

    def _configured(self, path: str) -> list[str]:
        """The directories that ldconfig(8) is told of."""
        found: list[str] = []
        pending = [path]
        for _ in range(_CONFIGS_MAX):
            if not pending:
                break
            file = self._file(pending.pop(0))
            text = b"" if file is None else self._read(file)[:_CONFIG_BYTES_MAX]
            for line in os.fsdecode(text).splitlines():
                word, _, pattern = line.partition("#")[0].strip().partition(" ")
                if word == "include":
                    pending += self._matching(posixpath.join(posixpath.dirname(path), pattern.strip()))
                elif word.startswith("/"):
                    found.append(word)
        return found

    def _matching(self, pattern: str) -> list[str]:
        """Files of one directory whose names fit."""
        directory, name = posixpath.split(pattern)
        try:
            steps = trail(self._filesystem, os.fsencode(directory))
            nid = steps[-1][1] if steps else self._filesystem.root
            names = [os.fsdecode(entry.name) for entry in self._filesystem.directory(nid)]
        except OSError:  # there is none
            return []
        return [posixpath.join(directory, found) for found in names if fnmatchcase(found, name)]

    def _program(self, word: str) -> _File | None:
        if "/" in word:
            return self._file(posixpath.join(self._directory, word))
        return self._first_in(self._program_directories, word)

    def _first_in(self, directories: list[str], name: str) -> _File | None:
        places = (posixpath.join(directory, name) for directory in directories if directory.startswith("/"))
        return next((file for file in map(self._file, places) if file is not None), None)

    def _file(self, path: str) -> _File | None:
        """The regular file that a path leads to; None when there is none."""
        try:
            steps = trail(self._filesystem, os.fsencode(path))
        except OSError:
            return None
        inode = self._filesystem.tree.inode(steps[-1][1] if steps else self._filesystem.root)
        if not inode.is_regular:
            return None
        return _File(b"/".join(name for name, _ in steps), steps[-1][1], inode.size)

    def _read(self, file: _File) -> bytes:
        return b"".join(self._filesystem.read(file.nid, 0, min(file.size, WHOLE_BYTES_MAX)))


def _directory_of(file: _File) -> str:
    return "/" + os.fsdecode(posixpath.dirname(file.path))


def _read_of(file: _File) -> int:
    return file.size if file.size <= WHOLE_BYTES_MAX else HEAD_BYTES
