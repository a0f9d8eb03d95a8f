"""The FUSE server: one request's bytes in, its reply's parts out. Does no input or output, never raises."""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
import struct
from collections.abc import Callable, Sequence
from struct import Struct
from time import perf_counter_ns
from typing import Any, Final, TypeAlias

from rafsfs.errors import MountError, WouldWait
from rafsfs.format.record import Buffer, RecordCodec
from rafsfs.fuse import abi, reply
from rafsfs.fuse.abi import Opcode, OpenFlag, SeekFrom
from rafsfs.fuse.directory import pack_listing
from rafsfs.fuse.failure import errno_of
from rafsfs.fuse.handler import Handler
from rafsfs.fuse.negotiation import Negotiated, ServerOptions, negotiate
from rafsfs.fuse.pending import Interrupted, Pending
from rafsfs.fuse.reply import Reply, Timeouts
from rafsfs.fuse.statistics import SUM, WAITED, RequestStatistics, Row
from rafsfs.limits import FILE_NAME_BYTES_MAX, FUSE_EXTENTS_MAX, FUSE_READ_BYTES_MAX, XATTR_NAME_BYTES_MAX

__all__ = ["FuseServer", "Handler", "Interrupted", "Negotiated", "Pending", "Reply", "ServerOptions"]

log = logging.getLogger("rafsfs.fuse")

Request: TypeAlias = bytes | bytearray | memoryview
Outcome: TypeAlias = Reply | Pending | Interrupted | None
Operation: TypeAlias = Callable[[Request, int, int], Outcome]
"""(whole request, unique, node) -> outcome. May raise: ``handle`` makes an error reply of it."""

_HEADER_BYTES: Final = abi.IN_HEADER.size
_HEADER: Final = Struct("<" + abi.IN_HEADER.layout("len", "opcode", "unique", "nodeid"))
_READ: Final = Struct("<" + abi.READ_IN.layout("offset", "size"))

_WITHOUT_REPLY: Final = frozenset(
    (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT, Opcode.NOTIFY_REPLY)
)  # fmt: skip
"""Nobody waits for a reply to these, whatever is wrong with them."""

_WRITES: Final = (
    *(Opcode.SETATTR, Opcode.SYMLINK, Opcode.MKNOD, Opcode.MKDIR, Opcode.UNLINK, Opcode.RMDIR, Opcode.RENAME),
    *(Opcode.RENAME2, Opcode.LINK, Opcode.WRITE, Opcode.SETXATTR, Opcode.REMOVEXATTR, Opcode.CREATE),
    *(Opcode.FALLOCATE, Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64, Opcode.TMPFILE),
)
_REFUSED: Final[dict[int, int]] = dict.fromkeys(_WRITES, errno.EROFS)
"""Opcode -> errno. What is neither here nor an operation gets ENOSYS. Most of that the kernel then does by
itself for the rest of the mount: FLUSH, FSYNC, ACCESS, POLL. STATX too: it is asked for birth times, which
images do not have, and to answer would cost a message for each file that stat(1) shows, though its attributes
are cached (Linux fs/fuse/dir.c, fuse_update_get_attr).
"""


_VARIABLE: Final = 0
"""In the place of a request's size: the operation looks at it."""

_Operations: TypeAlias = "dict[int, tuple[Operation | None, int, Row]]"
_UNKNOWN: Final[tuple[None, int, Row]] = (None, 0, [])

_MODE: Final = 1  # places in Attributes
_SIZE: Final = 6


def _with(body: RecordCodec[Any]) -> int:
    """Size of a request that is a header and this record."""
    return _HEADER_BYTES + body.size


def _invalid() -> OSError:
    return OSError(errno.EINVAL, os.strerror(errno.EINVAL))


class FuseServer:
    """Serves one FUSE connection. Any number of threads may call ``handle`` once INIT was answered."""

    def __init__(
        self,
        handler: Handler,
        options: ServerOptions,
        negotiated: Negotiated | None = None,
        statistics: RequestStatistics | None = None,
    ) -> None:
        """``negotiated`` takes over a connection that another server of the same tree has negotiated.

        ``statistics`` are those to count in, where several servers are to be counted together.
        """
        self.options = options
        self.statistics = statistics or RequestStatistics()
        self.negotiated: Negotiated | None = None
        self._handler = handler
        self._timeouts = Timeouts.of(options.entry_timeout_s, options.attr_timeout_s)
        self._no_entry: bytes | None = None
        if options.negative_timeout_s:
            self._no_entry = reply.pack_no_entry(Timeouts.of(options.negative_timeout_s, 0))
        self._pending: dict[int, Pending] = {}
        self._waited = self.statistics.row(WAITED)
        self._set_negotiated(negotiated)

    def handle(self, request: Request) -> Outcome:
        """Answer one request.

        Returns the reply; None where there is none to send; ``Pending`` for one that has to wait;
        ``Interrupted`` for one that shall be given up. Never raises, whatever the bytes are: a request that
        cannot be understood fails with EINVAL, without a header it is dropped. Keeps nothing of ``request``.
        """
        begun = perf_counter_ns()
        try:
            length, opcode, unique, node = _HEADER.unpack_from(request)
        except struct.error:
            return None
        operation, expected, row = self._operations.get(opcode, _UNKNOWN)
        if operation is None or length != len(request) or (expected and length != expected) or not unique:
            return self._refuse(opcode, unique, malformed=operation is not None or length != len(request))
        try:
            outcome = operation(request, unique, node)
        except WouldWait:
            outcome = self._postpone(operation, bytes(request), node, row)
        except Exception as error:
            outcome = self._fail(error, unique, node)
        if type(outcome) is not Pending:
            took = perf_counter_ns() - begun
            row[(took // 1000).bit_length()] += 1
            row[SUM] += took
        return outcome

    # --- Failing ----------------------------------------------------------------------------------------

    def _refuse(self, opcode: int, unique: int, *, malformed: bool) -> Reply | None:
        # A reply with unique 0 would be taken for a notification.
        if opcode in _WITHOUT_REPLY or not unique:
            return None
        if malformed:
            return reply.error(unique, errno.EINVAL)
        if self.negotiated is None or opcode == Opcode.INIT:
            return reply.error(unique, errno.EIO)
        return reply.error(unique, _REFUSED.get(opcode, errno.ENOSYS))

    def _fail(
        self, error: Exception, unique: int, node: int, offset: int | None = None, size: int | None = None
    ) -> Reply:
        code, reportable = errno_of(error)
        if reportable:
            self._report(error, node, offset, size)
        return reply.error(unique, code)

    def _report(self, error: Exception, node: int, offset: int | None, size: int | None) -> None:
        try:
            self._handler.report(error, node, offset, size)
        except Exception:
            log.exception("an error of node %d could not be reported: %s", node, error)

    # --- The connection ---------------------------------------------------------------------------------

    def _set_negotiated(self, negotiated: Negotiated | None) -> None:
        self.negotiated = negotiated
        # One assignment changes what is answered, so that other threads see either all of it or nothing.
        self._operations = self._counted(
            self._before_init() if negotiated is None else self._while_mounted(negotiated)
        )

    def _counted(self, operations: dict[Opcode, tuple[Operation, int]]) -> _Operations:
        """Opcode -> (operation, exact size of its requests in bytes, where they are counted)."""
        row = self.statistics.row
        return {opcode: (*operation, row(opcode.name.lower())) for opcode, operation in operations.items()}

    def _before_init(self) -> dict[Opcode, tuple[Operation, int]]:
        return {Opcode.INIT: (self._init, _VARIABLE)}

    def _while_mounted(self, negotiated: Negotiated) -> dict[Opcode, tuple[Operation, int]]:
        """Opcode -> (operation, exact size of its requests in bytes)."""
        opened = _open_reply_body(negotiated.opens_without_message, OpenFlag.KEEP_CACHE)
        opened_directory = _open_reply_body(
            negotiated.opens_directories_without_message, OpenFlag.KEEP_CACHE | OpenFlag.CACHE_DIR
        )
        operations: dict[Opcode, tuple[Operation, int]] = {
            Opcode.LOOKUP: (self._lookup, _VARIABLE),
            Opcode.GETATTR: (self._getattr, _with(abi.GETATTR_IN)),
            Opcode.READLINK: (self._readlink, _HEADER_BYTES),
            Opcode.OPEN: (functools.partial(self._open, opened), _with(abi.OPEN_IN)),
            Opcode.READ: (self._read, _with(abi.READ_IN)),
            Opcode.STATFS: (self._statfs, _HEADER_BYTES),
            Opcode.RELEASE: (self._release, _with(abi.RELEASE_IN)),
            Opcode.OPENDIR: (functools.partial(self._open, opened_directory), _with(abi.OPEN_IN)),
            Opcode.READDIR: (self._readdir, _with(abi.READ_IN)),
            Opcode.READDIRPLUS: (self._readdirplus, _with(abi.READ_IN)),
            Opcode.RELEASEDIR: (self._release, _with(abi.RELEASE_IN)),
            Opcode.LSEEK: (self._lseek, _with(abi.LSEEK_IN)),
            Opcode.INTERRUPT: (self._interrupt, _with(abi.INTERRUPT_IN)),
            Opcode.DESTROY: (self._destroy, _HEADER_BYTES),
        }
        if self.options.begins_anew:
            operations[Opcode.INIT] = (self._init, _VARIABLE)
        if self.options.xattrs:
            operations[Opcode.GETXATTR] = (self._getxattr, _VARIABLE)
            operations[Opcode.LISTXATTR] = (self._listxattr, _with(abi.GETXATTR_IN))
        return operations

    def _init(self, request: Request, unique: int, _node: int) -> Reply:
        try:
            negotiated, body = negotiate(request[_HEADER_BYTES:], self.options)
        except MountError as error:
            self._report(error, abi.ROOT_NODE, None, None)
            return reply.error(unique, errno.EPROTO)
        self._set_negotiated(negotiated)
        return reply.answer(unique, body)

    def _destroy(self, _request: Request, unique: int, _node: int) -> Reply:
        # A guest may mount its device again: INIT starts anew.
        self._set_negotiated(None)
        return reply.done(unique)

    def _interrupt(self, request: Request, _unique: int, _node: int) -> Interrupted | None:
        target = abi.INTERRUPT_IN.unpack_from(request, _HEADER_BYTES).unique
        pending = self._pending.get(target)
        return None if pending is None else Interrupted(pending)

    # --- Names and attributes ---------------------------------------------------------------------------

    def _lookup(self, request: Request, unique: int, parent: int) -> Reply:
        name = _name(request, _HEADER_BYTES)
        if len(name) > FILE_NAME_BYTES_MAX:
            return reply.error(unique, errno.ENAMETOOLONG)
        if name == b".":
            node = parent  # any node, not just directories: NFS asks whether it is there (fuse_get_dentry)
        else:
            try:
                node = self._handler.lookup(parent, name)
            except FileNotFoundError:
                if self._no_entry is None:
                    raise
                return reply.answer(unique, self._no_entry)
        try:
            return reply.answer(
                unique, reply.pack_entry(node, self._timeouts, self._handler.attributes(node))
            )
        except Exception as error:
            return self._fail(error, unique, node)  # not the parent's trouble

    def _getattr(self, _request: Request, unique: int, node: int) -> Reply:
        attributes = self._handler.attributes(node)
        return reply.answer(unique, reply.pack_attr_out(node, self._timeouts, attributes))

    def _readlink(self, _request: Request, unique: int, node: int) -> Reply:
        return reply.answer(unique, self._handler.readlink(node))

    def _getxattr(self, request: Request, unique: int, node: int) -> Reply:
        name = _name(request, _HEADER_BYTES + abi.GETXATTR_IN.size)
        if len(name) > XATTR_NAME_BYTES_MAX:
            return reply.error(unique, errno.ERANGE)  # xattr(7)
        return _xattr_answer(request, unique, self._handler.xattr(node, name))

    def _listxattr(self, request: Request, unique: int, node: int) -> Reply:
        names = self._handler.xattr_names(node)
        return _xattr_answer(request, unique, b"".join(name + b"\0" for name in names))

    def _statfs(self, _request: Request, unique: int, _node: int) -> Reply:
        block_size, blocks, files, name_max = self._handler.statfs()
        statfs = abi.Kstatfs(
            blocks=blocks,
            bfree=0,
            bavail=0,
            files=files,
            ffree=0,
            bsize=block_size,
            namelen=name_max,
            frsize=block_size,
        )
        return reply.answer(unique, abi.KSTATFS.pack(statfs))

    # --- Directories ------------------------------------------------------------------------------------

    def _readdir(self, request: Request, unique: int, node: int) -> Reply:
        position, size = _READ.unpack_from(request, _HEADER_BYTES)
        return reply.answer(unique, pack_listing(self._handler.directory(node, position), size))

    def _readdirplus(self, request: Request, unique: int, node: int) -> Reply:
        position, size = _READ.unpack_from(request, _HEADER_BYTES)
        entries = self._handler.directory(node, position)
        return reply.answer(unique, pack_listing(entries, size, self._listed))

    def _listed(self, name: bytes, node: int, mode_type: int) -> bytes:
        """What goes in front of a name in READDIRPLUS.

        The kernel knows ``.`` and ``..`` already. Where an inode is damaged, or of another type than the
        entry says, the other names have to stay readable: only who looks this one up gets its error.
        """
        if name in {b".", b".."}:
            return reply.NO_ATTRIBUTES
        try:
            attributes = self._handler.attributes(node)
            if stat.S_IFMT(attributes[_MODE]) != mode_type:
                return reply.NO_ATTRIBUTES
            return reply.pack_entry(node, self._timeouts, attributes)
        except Exception as error:
            self._report(error, node, None, None)
            return reply.NO_ATTRIBUTES

    # --- Contents ---------------------------------------------------------------------------------------

    def _open(self, opened: bytes | None, request: Request, unique: int, _node: int) -> Reply:
        if abi.OPEN_IN.unpack_from(request, _HEADER_BYTES).flags & abi.ACCESS_MODE_MASK:
            return reply.error(unique, errno.EROFS)
        return reply.error(unique, errno.ENOSYS) if opened is None else reply.answer(unique, opened)

    def _release(self, _request: Request, unique: int, _node: int) -> Reply:
        return reply.done(unique)

    def _read(self, request: Request, unique: int, node: int) -> Reply | Pending:
        offset, size = _READ.unpack_from(request, _HEADER_BYTES)
        if size > FUSE_READ_BYTES_MAX:
            return reply.error(unique, errno.EINVAL)  # a short answer would say that the file ends there
        try:
            parts = self._handler.try_read(node, offset, size)
            if parts is not None:
                return _contents(unique, parts, size)
        except WouldWait:
            pass
        except Exception as error:
            return self._fail(error, unique, node, offset, size)
        read = functools.partial(self._read_waiting, unique, node, offset, size)
        return self._wait(unique, read, self._waited)

    def _read_waiting(self, unique: int, node: int, offset: int, size: int) -> Reply:
        try:
            return _contents(unique, self._handler.read(node, offset, size), size)
        except Exception as error:
            return self._fail(error, unique, node, offset, size)

    # --- What has to wait -------------------------------------------------------------------------------

    def _postpone(self, operation: Operation, request: bytes, node: int, row: Row) -> Pending:
        """Have a request answered where it may wait for what is not at hand."""
        unique = _HEADER.unpack_from(request)[2]
        return self._wait(unique, functools.partial(self._again, operation, request, unique, node), row)

    def _again(self, operation: Operation, request: bytes, unique: int, node: int) -> Reply:
        try:
            outcome = operation(request, unique, node)
        except Exception as error:
            return self._fail(error, unique, node)
        assert isinstance(outcome, list)  # reads wait in a way of their own
        return outcome

    def _wait(self, unique: int, work: Callable[[], Reply], row: Row) -> Pending:
        pending = self._pending[unique] = Pending(unique, work, functools.partial(self._settle, row))
        return pending

    def _settle(self, row: Row, pending: Pending) -> None:
        took = perf_counter_ns() - pending.begun_ns
        row[(took // 1000).bit_length()] += 1
        row[SUM] += took
        if self._pending.get(pending.unique) is pending:
            del self._pending[pending.unique]

    def _lseek(self, request: Request, unique: int, node: int) -> Reply:
        seek = abi.LSEEK_IN.unpack_from(request, _HEADER_BYTES)
        if seek.whence not in (SeekFrom.DATA, SeekFrom.HOLE):
            raise _invalid()
        position = seek.offset
        for number, (length, has_data) in enumerate(self._handler.extents(node, seek.offset)):
            if has_data == (seek.whence == SeekFrom.DATA):
                break
            if number == FUSE_EXTENTS_MAX:
                # It may be said that a hole has data, never the reverse: lseek(2).
                if seek.whence == SeekFrom.HOLE:
                    position = self._handler.attributes(node)[_SIZE]
                break
            position += length
        else:
            if position == seek.offset or seek.whence == SeekFrom.DATA:
                return reply.error(unique, errno.ENXIO)
        return reply.answer(unique, abi.LSEEK_OUT.pack(abi.LseekOut(position)))


def _name(request: Request, start: int) -> bytes:
    """The name that ends a request, with its NUL; raises OSError EINVAL for what is none."""
    if len(request) < start + 2 or request[-1] != 0:
        raise _invalid()
    name = bytes(request[start:-1])
    if 0 in name:
        raise _invalid()
    return name


def _xattr_answer(request: Request, unique: int, value: bytes) -> Reply:
    size = abi.GETXATTR_IN.unpack_from(request, _HEADER_BYTES).size
    if size == 0:
        return reply.answer(unique, abi.GETXATTR_OUT.pack(abi.GetxattrOut(len(value), 0)))
    if len(value) > size:
        return reply.error(unique, errno.ERANGE)
    return reply.answer(unique, value)


def _open_reply_body(without_message: bool, flags: OpenFlag) -> bytes | None:
    """What OPEN or OPENDIR is answered; None for ENOSYS, which opens everything from then on."""
    return None if without_message else abi.OPEN_OUT.pack(abi.OpenOut(fh=0, open_flags=flags, backing_id=0))


def _contents(unique: int, parts: Sequence[Buffer], size: int) -> Reply:
    length = len(parts[0]) if len(parts) == 1 else sum(map(len, parts))
    if length > size:
        raise RuntimeError(f"{length} bytes were read where {size} were asked for")
    return [reply.header(unique, length), *parts]
