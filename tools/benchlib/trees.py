"""The trees to measure with: a root file system with its own tar, and many small files; mounts nothing."""

import hashlib
import json
import os
import random
import shutil
import stat
from pathlib import Path

from benchlib.machine import BenchError, run

SUITE = "bookworm"
EXTRA_PACKAGES = "python3,git,gcc,libpython3-dev"  # to come to 12,000 files and more
BIG = "big"
FILES_A_DIRECTORY = 100
WORDS = (
    *("alpha", "beta", "gamma", "delta", "kernel", "module", "import", "return", "static", "const", "struct"),
    *(
        "buffer",
        "length",
        "offset",
        "page",
        "cache",
        "read",
        "write",
        "image",
        "chunk",
        "blob",
        "key",
        "seal",
    ),
    *("verify", "mount", "path", "file", "inode", "directory", "entry", "table", "index"),
)


class Tree:
    """A directory, what is in it, and which of its files is the big one."""

    def __init__(self, path):
        self.path = os.path.abspath(path)
        self.entries = 0
        self.total = 0
        sizes = {}
        digest = hashlib.sha256()
        for folder, directories, files in os.walk(self.path):
            directories.sort()
            for name in sorted(directories + files):
                full = os.path.join(folder, name)
                status = os.lstat(full)
                self.entries += 1
                digest.update(os.fsencode(full))
                digest.update(f" {status.st_mode} {status.st_size} {status.st_mtime_ns}\n".encode())
                if stat.S_ISREG(status.st_mode):
                    sizes[os.path.relpath(full, self.path)] = status.st_size
                    self.total += status.st_size
        if not sizes:
            raise BenchError(f"{path} holds no files")
        self.fingerprint = digest.hexdigest()
        self.big = BIG if BIG in sizes else max(sizes, key=sizes.__getitem__)
        self.files = [name for name in sizes if name != self.big]
        self.first = next(iter(self.files), self.big)
        self.big_size = sizes[self.big]

    def __str__(self):
        return (
            f"{self.path}: {self.entries:,} names, {self.total / 1e6:,.0f} MB, "
            f"of which {self.big} {self.big_size / 1e6:,.0f} MB"
        )

    def write_names(self, path):
        """Write the file that ``load.py`` takes: all regular files but the big one."""
        Path(path).write_bytes(b"\0".join(os.fsencode(name) for name in self.files))


def kept(folder, what, make):
    """Call ``make(folder)`` unless it made it before for the same ``what``; half made does not count."""
    stamp = Path(f"{folder}.stamp")
    wanted = json.dumps(what)
    if stamp.exists() and stamp.read_text() == wanted and os.path.lexists(folder):
        return
    stamp.unlink(missing_ok=True)
    if os.path.isdir(folder):
        shutil.rmtree(folder)
    make(folder)
    stamp.write_text(wanted)


def root_file_system(folder):
    """A Debian system and its tar, about 0.9 GB: what a container image is."""

    def make(path):
        include = f"--include={EXTRA_PACKAGES}"
        run("debootstrap", "--variant=minbase", include, SUITE, path)
        shutil.rmtree(Path(path, "var/cache/apt/archives"))
        _add_tar(path)

    kept(folder, ["debootstrap", SUITE, EXTRA_PACKAGES], make)


def copy_of_programs(folder):
    """This machine's /usr/bin and its tar: a small real tree for a quick look."""

    def make(path):
        run("cp", "--archive", "/usr/bin", path)
        _add_tar(path)

    kept(folder, ["/usr/bin", os.stat("/usr/bin").st_mtime_ns], make)


def _add_tar(tree):
    archive = f"{tree}.tar"
    run("tar", "--create", "--xattrs", "--acls", "--file", archive, "--directory", tree, ".")
    os.rename(archive, Path(tree, BIG))


def many_files(folder, count):
    """So many small text files, a hundred in each directory."""

    def make(path):
        chance = random.Random(count)
        for number in range(count):
            if number % FILES_A_DIRECTORY == 0:
                directory = Path(path, f"d{number // 10_000:03d}", f"s{number // FILES_A_DIRECTORY:05d}")
                directory.mkdir(parents=True)
            words = chance.choices(WORDS, k=chance.randrange(20, 300))
            (directory / f"file{number:06d}.txt").write_text(f"{number} {' '.join(words)}\n")

    kept(folder, ["small files", count], make)
