"""One table of requests and their replies, byte for byte, drives every opcode; then all of it is cut."""

import errno
import stat
import struct

import pytest
from support import fuse_wire as wire
from support.fuse_memory import MTIME_NS, MemoryHandler, os_error, small_tree
from support.fuse_wire import attr, entry, failed, ok, read, read_in, request

from rafsfs.errors import Denied, FormatError, StoreUnavailable
from rafsfs.fuse.abi import InitFlag
from rafsfs.fuse.negotiation import WANTED
from rafsfs.fuse.server import FuseServer, ServerOptions

ENTRY_S, ATTR_S, NEGATIVE_S = 1000, 2000, 3000
OPTIONS = ServerOptions(entry_timeout_s=ENTRY_S, attr_timeout_s=ATTR_S, negative_timeout_s=NEGATIVE_S)
HELLO, DIR, LINK, SPARSE, NULL, PIPE, LONG, DAMAGED, LOST, NOWHERE = 2, 3, 4, 5, 6, 7, 8, 10, 11, 999
NODES = small_tree().inodes

WITHOUT_REPLY = {wire.FORGET, wire.BATCH_FORGET, wire.INTERRUPT, wire.NOTIFY_REPLY}
UNPARSED = {  # refused whatever they say, so their bodies are not looked at
    errno.EROFS: [
        *(wire.SETATTR, wire.SYMLINK, wire.MKNOD, wire.MKDIR, wire.UNLINK, wire.RMDIR, wire.RENAME),
        *(wire.RENAME2, wire.LINK, wire.WRITE, wire.SETXATTR, wire.REMOVEXATTR, wire.CREATE),
        *(wire.FALLOCATE, wire.COPY_FILE_RANGE, wire.COPY_FILE_RANGE_64, wire.TMPFILE),
    ],
    errno.ENOSYS: [
        *(wire.FSYNC, wire.FLUSH, wire.FSYNCDIR, wire.GETLK, wire.SETLK, wire.SETLKW, wire.ACCESS, wire.BMAP),
        *(wire.IOCTL, wire.POLL, wire.SETUPMAPPING, wire.REMOVEMAPPING, wire.SYNCFS, wire.STATX),
        *(0, 7, 19, 54, 1000, wire.CUSE_INIT, 2**32 - 1),
    ],
}


def named(node):
    return entry(node, NODES[node], ENTRY_S, ATTR_S)


def getattr_out(node):
    return struct.pack("<QII", ATTR_S, 0, 0) + attr(node, NODES[node])


def getxattr(size, name=None, *, node=HELLO):
    body = struct.pack("<II", size, 0)
    return request(wire.LISTXATTR if name is None else wire.GETXATTR, body + (name or b""), node=node)


def size_only(size):
    return ok(struct.pack("<II", size, 0))


def lseek(offset, whence, *, node=SPARSE):
    return request(wire.LSEEK, struct.pack("<QQII", 0, offset, whence, 0), node=node)


def position(offset):
    return ok(struct.pack("<Q", offset))


def opening(opcode, flags, node=HELLO):
    return request(opcode, struct.pack("<II", flags, 0), node=node)


RELEASE_IN = bytes(24)
GETATTR_IN = bytes(16)
NO_ENTRY = struct.pack("<QQQQII", 0, 0, NEGATIVE_S, 0, 0, 0) + bytes(88)
SEEK_SET, SEEK_DATA, SEEK_HOLE = 0, 3, 4
SPARSE_BYTES = bytes(8192) + b"x" * 4096 + bytes(4000)
O_RDONLY, O_WRONLY, O_RDWR, O_DIRECTORY = 0, 1, 2, 0o200000

# Name, request, reply.
CASES = [
    ("lookup", request(wire.LOOKUP, b"hello\0"), ok(named(HELLO))),
    ("lookup of a long name", request(wire.LOOKUP, b"n" * 255 + b"\0", node=DIR), ok(named(LONG))),
    ("lookup of nothing", request(wire.LOOKUP, b"nothing\0"), ok(NO_ENTRY)),
    ("lookup, name too long", request(wire.LOOKUP, b"n" * 256 + b"\0"), failed(errno.ENAMETOOLONG)),
    ("lookup in a file", request(wire.LOOKUP, b"x\0", node=HELLO), failed(errno.ENOTDIR)),
    ("lookup of .", request(wire.LOOKUP, b".\0", node=DIR), ok(named(DIR))),
    ("lookup of . of a file", request(wire.LOOKUP, b".\0", node=HELLO), ok(named(HELLO))),
    ("lookup of ..", request(wire.LOOKUP, b"..\0", node=DIR), ok(named(1))),
    ("lookup of a damaged inode", request(wire.LOOKUP, b"lost\0"), failed(errno.EIO)),
    ("lookup, name empty", request(wire.LOOKUP, b"\0"), failed(errno.EINVAL)),
    ("lookup, no name", request(wire.LOOKUP), failed(errno.EINVAL)),
    ("lookup, name open-ended", request(wire.LOOKUP, b"hello"), failed(errno.EINVAL)),
    ("lookup, NUL in the name", request(wire.LOOKUP, b"\0hello\0"), failed(errno.EINVAL)),
    ("forget", request(wire.FORGET, struct.pack("<Q", 1), node=HELLO), None),
    ("forget, cut", request(wire.FORGET, b"", node=HELLO), None),
    ("batch forget", request(wire.BATCH_FORGET, struct.pack("<IIQQ", 1, 0, HELLO, 5), node=0), None),
    ("batch forget, lying", request(wire.BATCH_FORGET, struct.pack("<II", 2**32 - 1, 0), node=0), None),
    ("getattr", request(wire.GETATTR, GETATTR_IN, node=HELLO), ok(getattr_out(HELLO))),
    ("getattr of the root", request(wire.GETATTR, GETATTR_IN), ok(getattr_out(1))),
    ("getattr of a device", request(wire.GETATTR, GETATTR_IN, node=NULL), ok(getattr_out(NULL))),
    ("getattr before 1970", request(wire.GETATTR, GETATTR_IN, node=PIPE), ok(getattr_out(PIPE))),
    ("getattr of large ids", request(wire.GETATTR, GETATTR_IN, node=LONG), ok(getattr_out(LONG))),
    ("getattr of nobody", request(wire.GETATTR, GETATTR_IN, node=NOWHERE), failed(errno.ESTALE)),
    ("getattr, damaged", request(wire.GETATTR, GETATTR_IN, node=LOST), failed(errno.EIO)),
    ("readlink", request(wire.READLINK, node=LINK), ok(b"../hello")),
    ("readlink of a file", request(wire.READLINK, node=HELLO), failed(errno.EINVAL)),
    ("open", opening(wire.OPEN, O_RDONLY), failed(errno.ENOSYS)),
    ("open to write", opening(wire.OPEN, O_WRONLY), failed(errno.EROFS)),
    ("open to read and write", opening(wire.OPEN, O_RDWR), failed(errno.EROFS)),
    ("read", read(HELLO, 0, 4096), ok(b"hello world\n")),
    ("read of a part", read(HELLO, 6, 5), ok(b"world")),
    ("read over parts", read(SPARSE, 8190, 4100), ok(SPARSE_BYTES[8190:12290])),
    ("read of the whole", read(SPARSE, 0, 1 << 20), ok(SPARSE_BYTES)),
    ("read at the end", read(HELLO, 12, 4096), ok()),
    ("read behind the end", read(HELLO, 2**64 - 1, 2**24), ok()),
    ("read of nothing", read(HELLO, 0, 0), ok()),
    ("read of too much", read(HELLO, 0, 2**24 + 1), failed(errno.EINVAL)),
    ("read of a directory", read(DIR, 0, 4096), failed(errno.EISDIR)),
    ("read of a pipe", read(PIPE, 0, 4096), failed(errno.EINVAL)),
    ("read, damaged", read(DAMAGED, 0, 4096), failed(errno.EIO)),
    ("read of nobody", read(NOWHERE, 0, 4096), failed(errno.ESTALE)),
    ("release", request(wire.RELEASE, RELEASE_IN, node=HELLO), ok()),
    (
        "statfs",
        request(wire.STATFS),
        ok(struct.pack("<QQQQQIIII", 1000, 0, 0, 11, 0, 4096, 255, 4096, 0) + bytes(24)),
    ),
    ("getxattr", getxattr(100, b"user.color\0"), ok(b"green")),
    ("getxattr, just enough", getxattr(5, b"user.color\0"), ok(b"green")),
    ("getxattr, too little", getxattr(4, b"user.color\0"), failed(errno.ERANGE)),
    ("getxattr, how large", getxattr(0, b"user.color\0"), size_only(5)),
    ("getxattr, empty", getxattr(9, b"user.empty\0"), ok()),
    ("getxattr, empty, how large", getxattr(0, b"user.empty\0"), size_only(0)),
    ("getxattr of none", getxattr(0, b"system.posix_acl_access\0"), failed(errno.ENODATA)),
    ("getxattr, name too long", getxattr(0, b"n" * 256 + b"\0"), failed(errno.ERANGE)),
    ("getxattr, no name", getxattr(0, b"\0"), failed(errno.EINVAL)),
    ("getxattr, name open-ended", getxattr(0, b"user.color"), failed(errno.EINVAL)),
    ("listxattr", getxattr(100), ok(b"user.color\0user.empty\0")),
    ("listxattr, too little", getxattr(21), failed(errno.ERANGE)),
    ("listxattr, how large", getxattr(0), size_only(22)),
    ("listxattr of none", getxattr(100, node=DIR), ok()),
    ("opendir", opening(wire.OPENDIR, O_DIRECTORY, 1), failed(errno.ENOSYS)),
    ("readdir behind the end", request(wire.READDIR, read_in(10**6, 4096)), ok()),
    ("readdir of a file", request(wire.READDIR, read_in(0, 4096), node=HELLO), failed(errno.ENOTDIR)),
    ("readdirplus behind the end", request(wire.READDIRPLUS, read_in(2**64 - 1, 4096)), ok()),
    ("releasedir", request(wire.RELEASEDIR, RELEASE_IN), ok()),
    ("seek data in data", lseek(9000, SEEK_DATA), position(9000)),
    ("seek data in a hole", lseek(5, SEEK_DATA), position(8192)),
    ("seek data in the last hole", lseek(8192 + 4096, SEEK_DATA), failed(errno.ENXIO)),
    ("seek a hole in a hole", lseek(5, SEEK_HOLE), position(5)),
    ("seek a hole in data", lseek(8200, SEEK_HOLE), position(12288)),
    ("seek a hole where none is", lseek(3, SEEK_HOLE, node=HELLO), position(12)),
    ("seek at the end", lseek(12, SEEK_HOLE, node=HELLO), failed(errno.ENXIO)),
    ("seek behind the end", lseek(2**64 - 1, SEEK_DATA), failed(errno.ENXIO)),
    ("seek as kernels do by themselves", lseek(0, SEEK_SET), failed(errno.EINVAL)),
    ("seek in a directory", lseek(0, SEEK_DATA, node=DIR), failed(errno.EISDIR)),
    ("interrupt of nothing", wire.interrupt(77), None),
    ("notify reply", request(wire.NOTIFY_REPLY, bytes(40)), None),
    ("second init", wire.init(unique=wire.UNIQUE), failed(errno.EIO)),
    ("destroy", request(wire.DESTROY, node=0), ok()),
    *(
        (f"refused {opcode}", request(opcode, b"some\0thing"), failed(code))
        for code, opcodes in UNPARSED.items()
        for opcode in opcodes
    ),
]
IDS = [case[0] for case in CASES]


def serving(handler=None, options=OPTIONS, init=None):
    server = FuseServer(handler or small_tree(), options)
    wire.joined(server.handle(init or wire.init()))
    assert server.negotiated is not None
    return server


@pytest.mark.parametrize(("question", "reply"), [case[1:] for case in CASES], ids=IDS)
@pytest.mark.parametrize("kind", [bytes, bytearray, lambda data: memoryview(bytearray(data))])
def test_request_gets_its_reply(question, reply, kind):
    outcome = serving().handle(kind(question))
    if reply is None:
        assert outcome is None
    else:
        assert wire.joined(outcome) == reply


def test_table_has_every_opcode():
    asked = {struct.unpack_from("<I", question, 4)[0] for _, question, _ in CASES}
    assert asked >= {*range(1, 7), *range(8, 19), *range(20, 54)}


@pytest.mark.parametrize("question", [case[1] for case in CASES], ids=IDS)
def test_request_cut_anywhere_is_refused(question):
    """Twice: the header still tells the old length, and the header knows."""
    (opcode,) = struct.unpack_from("<I", question, 4)
    server = serving()
    for length in range(len(question)):
        cut = question[:length]
        silent = length < 40 or opcode in WITHOUT_REPLY
        outcome = server.handle(cut)
        assert outcome is None if silent else wire.joined(outcome) == failed(errno.EINVAL)
        if length < 4:
            continue
        outcome = server.handle(struct.pack("<I", length) + cut[4:])
        if silent:
            assert outcome is None
        elif opcode == wire.INIT:
            assert wire.joined(outcome) == failed(errno.EIO)
        elif opcode in UNPARSED[errno.EROFS] + UNPARSED[errno.ENOSYS]:
            assert wire.joined(outcome) == wire.joined(server.handle(question))
        else:
            assert wire.joined(outcome) == failed(errno.EINVAL)


@pytest.mark.parametrize("question", [case[1] for case in CASES], ids=IDS)
def test_request_that_is_longer_than_it_says_is_refused(question):
    (opcode,) = struct.unpack_from("<I", question, 4)
    outcome = serving().handle(question + b"\0")
    assert outcome is None if opcode in WITHOUT_REPLY else wire.joined(outcome) == failed(errno.EINVAL)


@pytest.mark.parametrize("question", [case[1] for case in CASES], ids=IDS)
def test_nothing_is_served_before_init_or_after_destroy(question):
    (opcode,) = struct.unpack_from("<I", question, 4)
    ended = serving()
    assert wire.joined(ended.handle(request(wire.DESTROY, node=0))) == ok()
    assert ended.negotiated is None
    for server in (FuseServer(small_tree(), OPTIONS), ended):
        outcome = server.handle(question)
        if opcode in WITHOUT_REPLY:
            assert outcome is None
        elif opcode == wire.INIT:
            assert server.negotiated is not None
        else:
            assert wire.joined(outcome) == failed(errno.EIO)


def test_unique_of_notifications_gets_no_reply():
    server = serving()
    for _, question, _ in CASES:
        assert server.handle(question[:8] + bytes(8) + question[16:]) is None


def test_server_takes_over_what_another_negotiated():
    first = serving()
    second = FuseServer(small_tree(), OPTIONS, negotiated=first.negotiated)
    for _, question, reply in CASES:
        if reply is not None and question[4] != wire.DESTROY:
            assert wire.joined(second.handle(question)) == reply


# --- Options and kernels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("without", "opcode", "open_flags"),
    [
        (InitFlag.NO_OPEN_SUPPORT, wire.OPEN, 1 << 1),
        (InitFlag.NO_OPENDIR_SUPPORT, wire.OPENDIR, 1 << 1 | 1 << 3),
    ],
)
def test_kernel_that_wants_opens_is_told_to_keep_its_cache(without, opcode, open_flags):
    opened = ok(struct.pack("<QIi", 0, open_flags, 0))
    old_kernel = serving(init=wire.init(flags=wire.ALL_FLAGS & ~without))
    option = serving(options=ServerOptions(wanted=WANTED & ~without))
    for server in (old_kernel, option):
        assert wire.joined(server.handle(opening(opcode, O_RDONLY))) == opened
        assert wire.joined(server.handle(opening(opcode, O_RDWR))) == failed(errno.EROFS)
        other = wire.OPENDIR if opcode == wire.OPEN else wire.OPEN
        assert wire.joined(server.handle(opening(other, O_RDONLY))) == failed(errno.ENOSYS)


def test_without_negative_timeout_a_missing_name_is_an_error():
    server = serving(options=ServerOptions(negative_timeout_s=0))
    assert wire.joined(server.handle(request(wire.LOOKUP, b"nothing\0"))) == failed(errno.ENOENT)


def test_without_xattrs_the_kernel_is_told_not_to_ask():
    server = serving(options=ServerOptions(xattrs=False))
    for question in (getxattr(0), getxattr(0, b"user.color\0")):
        assert wire.joined(server.handle(question)) == failed(errno.ENOSYS)


def test_timeouts_have_fractions():
    server = serving(options=ServerOptions(entry_timeout_s=1.5, attr_timeout_s=0.25, negative_timeout_s=2.75))
    found = wire.joined(server.handle(request(wire.LOOKUP, b"hello\0")))
    assert struct.unpack_from("<QQQQII", found, 16) == (HELLO, 0, 1, 0, 500_000_000, 250_000_000)
    missing = wire.joined(server.handle(request(wire.LOOKUP, b"nothing\0")))
    assert struct.unpack_from("<QQQQII", missing, 16) == (0, 0, 2, 0, 750_000_000, 0)
    attributes = wire.joined(server.handle(request(wire.GETATTR, GETATTR_IN)))
    assert struct.unpack_from("<QI", attributes, 16) == (0, 250_000_000)


def test_data_is_passed_on_uncopied():
    handler = MemoryHandler()
    content = bytes(10_000)
    handler.add(2, 1, b"file", stat.S_IFREG | 0o644, content=content)
    _, part = serving(handler).handle(read(2, 0, 4096))
    assert isinstance(part, memoryview)
    assert part.obj is content


def test_seek_in_a_file_of_many_runs_ends_and_hides_no_data():
    handler = MemoryHandler()
    handler.add(2, 1, b"data", stat.S_IFREG | 0o644, size=10**9)
    handler.add(3, 1, b"holes", stat.S_IFREG | 0o644, size=10**9)
    handler.runs[2] = [(1, True)] * 5000 + [(10**9 - 5000, False)]
    handler.runs[3] = [(1, False)] * 5000 + [(10**9 - 5000, True)]
    server = serving(handler)
    assert wire.joined(server.handle(lseek(0, SEEK_HOLE, node=2))) == position(10**9)
    (found,) = struct.unpack("<Q", wire.joined(server.handle(lseek(0, SEEK_DATA, node=3)))[16:])
    assert 1000 < found <= 5000


# --- Failures of the handler --------------------------------------------------------------------------------

QUESTIONS = {
    "lookup": request(wire.LOOKUP, b"hello\0"),
    "attributes": request(wire.GETATTR, GETATTR_IN),
    "directory": request(wire.READDIRPLUS, read_in(0, 4096)),
    "readlink": request(wire.READLINK),
    "xattr": getxattr(0, b"user.color\0", node=1),
    "xattr_names": getxattr(0, node=1),
    "statfs": request(wire.STATFS),
    "try_read": read(1, 512, 1024),
    "extents": lseek(0, SEEK_DATA, node=1),
}
FAILURES = [
    (os_error(errno.EACCES), errno.EACCES, False),
    (os_error(errno.EMFILE), errno.EMFILE, True),
    (os_error(errno.ENOSYS), errno.EIO, True),  # or the kernel would never ask again
    (OSError(), errno.EIO, True),
    (OSError(512, "ERESTARTSYS"), errno.EIO, True),  # the kernel takes no reply like this
    (OSError(-5, "?"), errno.EIO, True),
    (Denied("the store refused us"), errno.EACCES, True),
    (StoreUnavailable("no answer"), errno.EIO, True),
    (FormatError("not an inode"), errno.EIO, True),
    (ZeroDivisionError(), errno.EIO, True),
    (RecursionError(), errno.EIO, True),
]


@pytest.mark.parametrize("method", QUESTIONS)
@pytest.mark.parametrize(("failure", "code", "reported"), FAILURES, ids=lambda value: repr(value)[:30])
def test_failure_becomes_the_reply_and_is_reported(method, failure, code, reported):
    handler = small_tree()
    handler.faults[method, 1] = failure
    assert wire.joined(serving(handler).handle(QUESTIONS[method])) == failed(code)
    place = (512, 1024) if method == "try_read" else (None, None)
    assert handler.reports == ([(failure, 1, *place)] if reported else [])


def test_missing_parent_and_missing_attributes_are_told_apart():
    handler = small_tree()
    handler.faults["attributes", HELLO] = os_error(errno.ENOENT)
    assert wire.joined(serving(handler).handle(request(wire.LOOKUP, b"hello\0"))) == failed(errno.ENOENT)


def test_damage_is_reported_of_the_node_that_has_it():
    handler = small_tree()
    assert wire.joined(serving(handler).handle(request(wire.LOOKUP, b"lost\0"))) == failed(errno.EIO)
    assert [node for _, node, *_ in handler.reports] == [LOST]


@pytest.mark.parametrize(
    "inode",
    [
        (0, stat.S_IFREG, -1, 0, 0, 0, 0, 0),
        (0, 2**32, 1, 0, 0, 0, 0, 0),
        (0, stat.S_IFREG, 1, 2**32, 0, 0, 0, 0),
        (0, stat.S_IFREG, 1, 0, 0, 2**32, 0, 0),
        (0, stat.S_IFREG, 1, 0, 0, 0, -1, 0),
        (0, stat.S_IFREG, 1, 0, 0, 0, 0, 2**63 * 10**9),
        (0, stat.S_IFREG),
        None,
    ],
)
def test_attributes_that_no_record_can_hold_fail_their_request_only(inode):
    handler = small_tree()
    handler.inodes[HELLO] = inode
    server = serving(handler)
    assert wire.joined(server.handle(request(wire.GETATTR, GETATTR_IN, node=HELLO))) == failed(errno.EIO)
    assert wire.joined(server.handle(request(wire.LOOKUP, b"hello\0"))) == failed(errno.EIO)
    assert len(handler.reports) == 2


def test_more_data_than_was_asked_for_is_never_sent():
    handler = small_tree()
    handler.try_read = lambda node, offset, size: [memoryview(b"x" * (size + 1))]
    assert wire.joined(serving(handler).handle(read(HELLO, 0, 10))) == failed(errno.EIO)
    assert [str(error) for error, *_ in handler.reports] == ["11 bytes were read where 10 were asked for"]


def test_report_that_fails_is_logged_and_fails_nothing_else(caplog):
    handler = small_tree()
    handler.faults["attributes", 1] = FormatError("not an inode")

    def report(error, node, offset, size):
        raise ZeroDivisionError("the log is full")

    handler.report = report
    outcome = serving(handler).handle(request(wire.GETATTR, GETATTR_IN))
    assert wire.joined(outcome) == failed(errno.EIO)
    assert "not an inode" in caplog.text
    assert "the log is full" in caplog.text


def test_times_are_the_images_one():
    message = wire.joined(serving().handle(request(wire.GETATTR, GETATTR_IN, node=HELLO)))
    times = struct.unpack_from("<qqqIII", message, 16 + 16 + 24)
    assert times == (*[MTIME_NS // 10**9] * 3, *[MTIME_NS % 10**9] * 3)
