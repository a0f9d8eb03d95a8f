"""A second implementation of the file system interface, in memory and odd, mounted by this program.

``python memory_server.py FRONTEND DIRECTORY JOURNAL [uid=N] [gid=N] [allow_other]`` prints ``mounted``,
serves until it is unmounted and then writes to JOURNAL, as JSON, how often which call was made, and for
devfuse which requests came.
"""

import errno
import importlib
import json
import os
import stat
import sys
import threading
from collections import Counter
from pathlib import Path

from rafsfs.errors import Denied, DigestMismatch, MacMismatch, Where
from rafsfs.format.chunk import Suite
from rafsfs.frontends import devfuse_serving, logs
from rafsfs.frontends.mount_options import MountOptions, Owner
from rafsfs.fs.attributes import Attributes, DirectoryEntry, StatFs
from rafsfs.metadata.inode import Extent
from rafsfs.reading.engine import ReadEngine
from rafsfs.reading.page_cache import PageCache
from rafsfs.types import BlobIndex, DecodedOffset, Nid

MODULES = {"devfuse": "devfuse", "pyfuse3": "pyfuse3_mount"}
MIB = 1 << 20
ROOT = Nid(36)
BIG_BYTES = 5 * 1024 * MIB + 3
DAMAGE = range(MIB, 2 * MIB)  # of the file "damaged"
MANY = 3000
HUGE_NIDS = range(1_000_000, 1_100_000)
TOO_LONG_TARGET = b"t" * 5000
LINK_TARGET_MAX = b"t" * 4095
ODD_NAME = b"\xff\xfe name\n"
LONG_NAME = b"n" * 255
OWNER = (2**32 - 2, 2**31)
OLD_NS, FUTURE_NS = -1_500_000_001, (1 << 33) * 10**9 + 999_999_999
READABLE_BY_65534 = 65534
# linux/posix_acl_xattr.h, version 2: user::rw-, user:65534:r--, group::---, mask::r--, other::---
ACL = b"".join(
    [
        (2).to_bytes(4, "little"),
        *(
            tag.to_bytes(2, "little") + perm.to_bytes(2, "little") + who.to_bytes(4, "little")
            for tag, perm, who in [
                (0x01, 6, 2**32 - 1),
                (0x02, 4, READABLE_BY_65534),
                (0x04, 0, 2**32 - 1),
                (0x10, 4, 2**32 - 1),
                (0x20, 0, 2**32 - 1),
            ]
        ),
    ]
)


SPARSE = ((0, MIB, False), (MIB, MIB + 4096, True), (MIB + 4096, 4 * MIB, False))
"""(start, stop, has data) of the file "sparse"."""


def big_bytes(offset, size):
    """What "big" holds: each 8 bytes are their own offset."""
    first, last = offset // 8, (offset + size + 7) // 8
    text = b"".join((8 * word).to_bytes(8, "little") for word in range(first, last))
    return text[offset - 8 * first :][:size]


class MemoryFileSystem:
    """The interface of ``rafsfs.fs.filesystem.FileSystem``."""

    def __init__(self, gate=None):
        self.gate = gate
        self.root = ROOT
        self.engine = ReadEngine((), Suite.INTEGRITY_ONLY, PageCache(MIB))  # for whoever asks for statistics
        self.calls = Counter()
        self._inodes = {}
        self._children = {}
        self._content = {}
        self._targets = {}
        self._xattrs = {}
        self._names = {}
        self._parents = {ROOT: ROOT}
        self._add(None, b"", stat.S_IFDIR | 0o755, nid=ROOT)
        self._fill()

    def _add(self, parent, name, mode, *, nid=None, content=None, **attributes):
        nid = Nid(36 + 7 * len(self._inodes)) if nid is None else nid
        values = {"nlink": 1, "uid": 0, "gid": 0, "rdev": 0, "size": len(content or b""), "mtime_ns": 0}
        self._inodes[nid] = Attributes(nid, mode, **(values | attributes))
        if parent is not None:
            self._children[parent].append((name, nid))
            self._names[nid] = name
        if stat.S_ISDIR(mode):
            self._children[nid] = []
            self._parents[nid] = ROOT if parent is None else parent
        if content is not None:
            self._content[nid] = content
        return nid

    def _file(self, name, content=b"", mode=0o644, parent=ROOT, **attributes):
        return self._add(parent, name, stat.S_IFREG | mode, content=content, **attributes)

    def _fill(self):
        self._file(b"hello", b"hello, world\n")
        self._file(b"empty")
        self._big = self._file(b"big", size=BIG_BYTES)
        for name, target in ((b"link", b"hello"), (b"long_link", LINK_TARGET_MAX)):
            nid = self._add(ROOT, name, stat.S_IFLNK | 0o777, size=len(target))
            self._targets[nid] = target
        self._targets[self._add(ROOT, b"too_long_link", stat.S_IFLNK | 0o777)] = TOO_LONG_TARGET
        twice = self._file(b"twice", b"one file", nlink=2)
        self._children[ROOT].append((b"twice_again", twice))
        self._huge = self._add(ROOT, b"huge", stat.S_IFDIR | 0o755)
        self._file(ODD_NAME, b"odd")
        self._file(LONG_NAME, b"long")
        self._add(ROOT, b"fifo", stat.S_IFIFO | 0o600)
        self._add(ROOT, b"socket", stat.S_IFSOCK | 0o600)
        self._add(ROOT, b"char", stat.S_IFCHR | 0o600, rdev=os.makedev(4095, 1_048_575))
        self._add(ROOT, b"block", stat.S_IFBLK | 0o600, rdev=os.makedev(8, 1))
        self._sparse = self._file(b"sparse", size=4 * MIB)
        self._file(b"old", mtime_ns=OLD_NS)
        self._file(b"future", mtime_ns=FUTURE_NS)
        self._file(b"owned", b"mine", uid=OWNER[0], gid=OWNER[1])
        self._file(b"suid", b"", mode=0o7755, nlink=3)
        self._file(b"private", b"secret", mode=0o600)
        self._xattrs[self._file(b"acl", b"for one more", mode=0o640)] = {b"system.posix_acl_access": ACL}
        self._xattrs[self._file(b"xattrs")] = {
            b"user.a": b"1",
            b"user.empty": b"",
            b"user.big": bytes(range(256)) * 255,
        }
        self._damaged = self._file(b"damaged", size=3 * MIB)
        self._broken_inode = self._file(b"broken_inode")
        self._denied = self._file(b"denied", b"x")
        many = self._add(ROOT, b"many", stat.S_IFDIR | 0o755)
        for number in range(MANY):
            self._file(b"%05d" % number, b"%d" % number, parent=many)
        self._bugs = {}
        bugs = self._add(ROOT, b"bugs", stat.S_IFDIR | 0o755)
        for name, error in (
            (b"division", ZeroDivisionError("by\nzero")),
            (b"descriptors", OSError(errno.EMFILE, "too many open files")),
            (b"not_found", FileNotFoundError(errno.ENOENT, "a file of the server, not of the image")),
            (b"group", ExceptionGroup("several", [MacMismatch("inside"), ValueError("b")])),
            (b"memory", MemoryError()),
            (b"assertion", AssertionError()),
        ):
            self._bugs[self._file(name, b"x", parent=bugs)] = error
        self._slow_bug = self._file(b"slow", b"x", parent=bugs)
        self._stuck = self._file(b"stuck", b"x")
        self._gated = self._file(b"gated", b"open")
        self._bug_of_attributes = self._file(
            b"attributes", parent=self._add(bugs, b"deep", stat.S_IFDIR | 0o755)
        )
        self._bug_of_link = self._add(bugs, b"link", stat.S_IFLNK | 0o777, size=1)
        self._bug_of_xattrs = self._file(b"xattrs", parent=bugs)
        self._bug_of_directory = self._add(bugs, b"directory", stat.S_IFDIR | 0o755)

    def lookup(self, parent, name):
        self.calls[f"lookup {os.fsdecode(name)}"] += 1
        if len(name) > 255:
            raise OSError(errno.ENAMETOOLONG, "name too long")
        if name == b"hanging":
            self._wait_for_gate()
        if parent not in self._children:
            raise NotADirectoryError(errno.ENOTDIR, "not a directory")
        if name == b"..":
            return self._parents[parent]
        if name == b".":
            return parent
        for known, nid in self._children[parent]:
            if known == name:
                return nid
        raise FileNotFoundError(errno.ENOENT, "no such name")

    def attributes(self, nid):
        self.calls["attributes"] += 1
        if nid == self._broken_inode:
            raise DigestMismatch("the page was changed", where=Where(file="bootstrap", page=17))
        if nid == self._bug_of_attributes:
            raise KeyError("attributes")
        if nid in HUGE_NIDS:
            return Attributes(nid, stat.S_IFREG | 0o644, 1, 0, 0, 0, nid - HUGE_NIDS.start, 0)
        if nid not in self._inodes:
            raise OSError(errno.ESTALE, "no such inode")
        return self._inodes[nid]

    def directory(self, nid, position=0):
        self.calls["directory"] += 1
        if nid == self._bug_of_directory:
            raise IndexError("directory")
        if nid == self._huge:
            for at in range(position, len(HUGE_NIDS)):
                yield DirectoryEntry(b"%06d" % at, HUGE_NIDS[at], stat.S_IFREG, at + 1)
            return
        entries = [(b".", nid), (b"..", self._parents[nid]), *self._children[nid]]
        for at, (name, child) in enumerate(entries[position:], position + 1):
            yield DirectoryEntry(name, child, stat.S_IFMT(self._inodes[child].mode), at)

    def readlink(self, nid):
        if nid == self._bug_of_link:
            raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "link")
        if nid not in self._targets:
            raise OSError(errno.EINVAL, "no link")
        return self._targets[nid]

    def xattr(self, nid, name):
        self.calls["xattr"] += 1
        if nid == self._bug_of_xattrs:
            raise TypeError("xattr")
        try:
            return self._xattrs.get(nid, {})[name]
        except KeyError:
            raise OSError(errno.ENODATA, "no such attribute") from None

    def xattr_names(self, nid):
        if nid == self._bug_of_xattrs:
            raise TypeError("xattr_names")
        return list(self._xattrs.get(nid, {}))

    def statfs(self):
        return StatFs(4096, 12345, 678, 255)

    def try_read(self, nid, offset, size):
        self.calls["try_read"] += 1
        if nid in self._bugs:
            raise self._bugs[nid]
        if nid == self._denied:
            raise Denied("the store refused us", where=Where(blob="sha256:cd"))
        if nid in (self._slow_bug, self._stuck, self._gated):
            return None
        if nid in (self._big, self._damaged) and offset >= MIB:
            return None
        return self._read(nid, offset, size)

    async def read_async(self, nid, offset, size):
        import trio

        return await trio.to_thread.run_sync(self.read, nid, offset, size, abandon_on_cancel=True)

    def read(self, nid, offset, size):
        self.calls["read"] += 1
        if nid == self._slow_bug:
            raise RuntimeError("slow")
        if nid == self._stuck:
            print("waiting", flush=True)
            threading.Event().wait()
        if nid == self._gated:
            self._wait_for_gate()
        return self._read(nid, offset, size)

    def _wait_for_gate(self):
        """Wait until somebody has the FIFO open for writing, as a store waits that does not answer."""
        print("waiting", flush=True)
        self.gate.open().close()

    def extents(self, nid, offset, size):
        for start, stop, has_data in SPARSE if nid == self._sparse else []:
            if offset < stop:
                start = max(start, offset)
                yield Extent(BlobIndex(0) if has_data else None, DecodedOffset(start), stop - start)

    def _read(self, nid, offset, size):
        if nid == self._big:
            content = big_bytes(offset, min(size, BIG_BYTES - offset))
        elif nid == self._sparse:
            content = (bytes(MIB) + b"d" * 4096 + bytes(3 * MIB - 4096))[offset : offset + size]
        elif nid == self._damaged:
            if offset < DAMAGE.stop and offset + size > DAMAGE.start:
                where = Where(blob="sha256:ab", chunk=1, offset=4711)
                raise MacMismatch("the chunk was changed", where=where)
            content = bytes(min(size, 3 * MIB - offset))
        else:
            content = self._content[nid][offset : offset + size]
        half = len(content) // 2  # in two parts, as where chunks meet
        return [memoryview(part) for part in (content[:half], content[half:]) if part]

    def find_path(self, nid):
        return self._names.get(nid)


def counting(server, calls):
    """Count the requests that a FUSE server gets, by opcode."""

    class CountingServer(server):
        def handle(self, request):
            calls[f"request {int.from_bytes(request[4:8], 'little')}"] += 1
            return super().handle(request)

    return CountingServer


def main():
    frontend, directory, journal, *words = sys.argv[1:]
    options = dict(word.partition("=")[::2] for word in words)
    filesystem = MemoryFileSystem(Path(journal).with_name("gate"))
    os.mkfifo(filesystem.gate)
    logs.use(logs.to_standard_error(), "INFO")
    owner = Owner(*(int(options[name]) if name in options else None for name in ("uid", "gid")))
    mount_options = MountOptions("memory, of a\\test", "allow_other" in options, owner)
    module = importlib.import_module(f"rafsfs.frontends.{MODULES[frontend]}")
    if frontend == "devfuse":
        devfuse_serving.FuseServer = counting(devfuse_serving.FuseServer, filesystem.calls)
    module.serve(filesystem, Path(directory), mount_options, lambda: print("mounted", flush=True))
    Path(journal).write_text(json.dumps(filesystem.calls))


if __name__ == "__main__":
    main()
