"""The pyfuse3 front end's request handlers: FUSE requests become calls of the file system; keeps no state."""

# ruff: noqa: ARG002  # the unused context says who asks, which the kernel has judged already

from __future__ import annotations

import errno
import functools
import os
import stat
from collections.abc import Callable, Coroutine, Iterator, Sequence
from time import perf_counter_ns
from typing import Any, Final, NoReturn, TypeVar, TypeVarTuple, Unpack, cast

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext, StatvfsData

from rafsfs.errors import FormatError, RafsError, WouldWait
from rafsfs.frontends.fault_log import FaultLog
from rafsfs.frontends.mount_options import Owner
from rafsfs.fs.attributes import Attributes, DirectoryEntry
from rafsfs.fs.filesystem import FileSystem
from rafsfs.fs.mapping import ROOT_NODE, NodeMap
from rafsfs.fuse.statistics import WAITED, RequestStatistics
from rafsfs.types import Nid

Arguments = TypeVarTuple("Arguments")
Answer = TypeVar("Answer")
Handler = TypeVar("Handler", bound=Callable[..., Coroutine[Any, Any, Any]])

CACHE_S: Final = 30 * 24 * 3600
"""How long the kernel may believe names, missing ones too, and attributes: an image never changes."""

ANSWERS: Final = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ESTALE, errno.EINVAL, errno.ENODATA, errno.ENAMETOOLONG)
)
"""What the file system says about names and inodes. Any other ``OSError`` is the server's own trouble."""

_BLOCK_BYTES: Final = 512  # st_blocks counts these, whatever the block size: stat(2)


_COUNTED: Final = {
    **{
        name: name
        for name in ("lookup", "getattr", "readlink", "access", "getxattr", "listxattr", "open", "opendir")
    },
    "_statfs": "statfs",
    "readdir": "readdirplus",
}
"""Handler -> the name of what it answers, as the other front ends have it; ``read`` counts for itself."""


def _guarded(handler: Handler) -> Handler:
    """Make every exception the answer of its one request, and count the request.

    pyfuse3 takes any exception but ``FUSEError`` for the end of the server, so a reader that meets a mistake
    of ours would take the mount away from all. It gets EIO, and the log the type of the exception.
    """

    name = _COUNTED.get(handler.__name__)

    @functools.wraps(handler)
    async def guarded(self: ReadOnlyOperations, node: int, *arguments: object) -> Any:
        begun = perf_counter_ns()
        try:
            return await handler(self, node, *arguments)
        except FUSEError:
            raise
        except RafsError as error:
            self.faults.report(error, self.nodes.nid(node))
            raise FUSEError(error.errno) from None
        except OSError as error:
            if error.errno in ANSWERS:
                raise FUSEError(error.errno) from None
            raise self.unexpected(handler.__name__, node, error) from None
        except Exception as error:
            raise self.unexpected(handler.__name__, node, error) from None
        finally:
            if name is not None:
                self.statistics.add(name, perf_counter_ns() - begun)

    return cast(Handler, guarded)


class ReadOnlyOperations(pyfuse3.Operations):
    """Serves one ``FileSystem``. File handles are node ids, so nothing has to be remembered or released."""

    supports_dot_lookup = True
    enable_acl = True  # the kernel asks for the ACLs and decides by them, as it does by the modes

    def __init__(self, filesystem: FileSystem, owner: Owner) -> None:
        super().__init__()
        self.filesystem = filesystem
        self.nodes = NodeMap(filesystem.root)
        self.faults = FaultLog(filesystem.find_path)
        self.statistics = RequestStatistics()
        self._owner = owner

    # --- Names and attributes ---------------------------------------------------------------------------

    @_guarded
    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        """Find a name; a missing one is answered in the way that lets the kernel remember it."""
        try:
            nid = await self._ask(self.filesystem.lookup, self.nodes.nid(parent_inode), name)
        except FileNotFoundError:
            missing = EntryAttributes()
            missing.st_ino = 0
            missing.entry_timeout = CACHE_S
            return missing
        return await self._ask(self._entry, nid)

    @_guarded
    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        """Return the attributes of an inode."""
        return await self._ask(self._entry, self.nodes.nid(inode))

    @_guarded
    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        """Return the target of a symbolic link."""
        return await self._ask(self.filesystem.readlink, self.nodes.nid(inode))

    @_guarded
    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        """Allow: ``default_permissions`` made the kernel decide before; some kernels ask all the same."""
        return True

    @_guarded
    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        """Return the value of an extended attribute."""
        try:
            return await self._ask(self.filesystem.xattr, self.nodes.nid(inode), name)
        except OSError as error:
            if error.errno == errno.ENODATA:  # which is not what macOS calls it
                raise FUSEError(pyfuse3.ENOATTR) from None
            raise

    @_guarded
    async def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        """Return the names of all extended attributes."""
        return await self._ask(self.filesystem.xattr_names, self.nodes.nid(inode))

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        """Return the size of the image; nothing is free."""
        return await self._statfs(ROOT_NODE)

    @_guarded
    async def _statfs(self, _node: int) -> StatvfsData:
        found = self.filesystem.statfs()
        reply = StatvfsData()
        reply.f_bsize = reply.f_frsize = found.block_size
        reply.f_blocks = found.blocks
        reply.f_files = found.files
        reply.f_namemax = found.name_max
        return reply

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        """Do nothing: node ids are a function of the image, there is nothing to count."""

    # --- Directories ------------------------------------------------------------------------------------

    @_guarded
    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        """Use the node id as the handle."""
        return inode

    @_guarded
    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        """List names and attributes, from a position on that means the same to every server of the image."""
        nid, position = self.nodes.nid(fh), start_id
        entries = self.filesystem.directory(nid, position)
        while True:
            try:
                found = self._next(entries)
            except WouldWait:
                entries = self.filesystem.directory(nid, position)
                found = await trio.to_thread.run_sync(self._next, entries, abandon_on_cancel=True)
            if found is None:
                return
            entry, attributes = found
            if not pyfuse3.readdir_reply(token, entry.name, attributes, entry.next_position):
                return
            position = entry.next_position

    def _next(self, entries: Iterator[DirectoryEntry]) -> tuple[DirectoryEntry, EntryAttributes] | None:
        entry = next(entries, None)
        return None if entry is None else (entry, self._listed(entry))

    def _listed(self, listed: DirectoryEntry) -> EntryAttributes:
        """Return attributes for a listing, or none where the inode is damaged.

        The other names of the directory have to stay readable. A mode without a file type makes the kernel
        show the name and throw the attributes away, so that only who asks for this file gets its error.
        """
        try:
            entry = self._entry(listed.nid)
            if stat.S_IFMT(entry.st_mode) != listed.mode_type:
                raise FormatError("name says another type of file than its inode").at(nid=listed.nid)
        except RafsError as error:
            self.faults.report(error, listed.nid)
            entry = EntryAttributes()
            entry.st_ino = self.nodes.node(listed.nid)
            entry.st_mode = 0
        return entry

    # --- Contents ---------------------------------------------------------------------------------------

    @_guarded
    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        """Open for reading; the kernel keeps what it has of the file from earlier readers."""
        if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
            raise FUSEError(errno.EROFS)
        return FileInfo(fh=inode, keep_cache=True)

    @_guarded
    async def read(self, fh: int, off: int, size: int) -> bytes:
        """Return the bytes of a file, fewer than ``size`` only at its end."""
        nid = self.nodes.nid(fh)
        begun, name = perf_counter_ns(), "read"
        try:
            try:
                parts = self.filesystem.try_read(nid, off, size)
            except WouldWait:
                parts = None
            if parts is None:
                name = WAITED
                parts = await self.filesystem.read_async(nid, off, size)
        except RafsError as error:
            self.faults.report(error, nid, off)
            raise FUSEError(error.errno) from None
        except FileNotFoundError as error:  # of the server's: what is open here has been found long ago
            raise self.unexpected("read", fh, error) from None
        finally:
            self.statistics.add(name, perf_counter_ns() - begun)
        # One piece of the cache goes to the kernel as it is: pyfuse3 takes any buffer, but only one.
        return parts[0] if len(parts) == 1 else b"".join(parts)  # type: ignore[return-value]  # as said above

    # --- Whatever writes --------------------------------------------------------------------------------

    async def _refuse(self, *_arguments: object, **_named: object) -> NoReturn:
        """Say that the file system is read-only, should somebody remount it for writing."""
        raise FUSEError(errno.EROFS)

    setattr = mknod = mkdir = unlink = rmdir = symlink = rename = link = _refuse
    create = write = setxattr = removexattr = _refuse

    async def _ask(self, question: Callable[[Unpack[Arguments]], Answer], *arguments: *Arguments) -> Answer:
        """Ask the file system, on a thread that may wait when metadata are not at hand."""
        try:
            return question(*arguments)
        except WouldWait:
            return await trio.to_thread.run_sync(question, *arguments, abandon_on_cancel=True)

    def unexpected(self, request: str, node: int, error: Exception) -> FUSEError:
        """Log what no request should meet; return the error for the one that did."""
        self.faults.report_mistake(request, node, error)
        return FUSEError(errno.EIO)

    def _entry(self, nid: Nid) -> EntryAttributes:
        return _entry(self.nodes.node(nid), self.filesystem.attributes(nid), self._owner)


def _entry(node: int, found: Attributes, owner: Owner) -> EntryAttributes:
    entry = EntryAttributes()
    entry.st_ino = node
    entry.entry_timeout = CACHE_S
    entry.attr_timeout = CACHE_S
    entry.st_mode = found.mode
    entry.st_nlink = found.nlink
    entry.st_uid = found.uid if owner.uid is None else owner.uid
    entry.st_gid = found.gid if owner.gid is None else owner.gid
    entry.st_rdev = found.rdev
    entry.st_size = found.size
    entry.st_blocks = -(-found.size // _BLOCK_BYTES)
    entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = found.mtime_ns
    return entry
