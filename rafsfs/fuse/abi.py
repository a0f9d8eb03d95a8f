"""Numbers and records of the FUSE wire protocol, as ``linux/fuse.h`` (7.45) defines them; decides nothing.

Only what a read-only server looks at or sends is declared as a record. All integers are little-endian: the
kernel writes them in its own order, virtio-fs always in this one (virtio 1.2, 5.11.6.1).
"""

from __future__ import annotations

import enum
from typing import Final, NamedTuple

from rafsfs.format.record import RecordCodec, i32, i64, u16, u32, u64

MAJOR: Final = 7  # FUSE_KERNEL_VERSION
MINOR: Final = 41
"""The newest minor we speak. What came later (io_uring, request timeouts) is nothing to this server."""
MINOR_MIN: Final = 23
"""Linux 3.15 (2014): since then ``fuse_init_out`` has its present size, and all else that we use."""

ROOT_NODE: Final = 1  # FUSE_ROOT_ID
NO_NODE: Final = 0
"""As the node of a LOOKUP's reply: no such name. Of a READDIRPLUS entry: no attributes come with the name."""

ACCESS_MODE_MASK: Final = 3
"""O_ACCMODE of every Linux (asm-generic/fcntl.h): 0 means reading only."""

READ_BUFFER_MIN: Final = 8192  # FUSE_MIN_READ_BUFFER
ERRNO_MAX: Final = 511
"""The kernel takes no reply with a larger errno (fs/fuse/dev.c, fuse_dev_do_write)."""
NAME_ALIGN: Final = 8  # FUSE_DIRENT_ALIGN


class Opcode(enum.IntEnum):
    """``enum fuse_opcode``: what is asked for."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    SETATTR = 4
    READLINK = 5
    SYMLINK = 6
    MKNOD = 8
    MKDIR = 9
    UNLINK = 10
    RMDIR = 11
    RENAME = 12
    LINK = 13
    OPEN = 14
    READ = 15
    WRITE = 16
    STATFS = 17
    RELEASE = 18
    FSYNC = 20
    SETXATTR = 21
    GETXATTR = 22
    LISTXATTR = 23
    REMOVEXATTR = 24
    FLUSH = 25
    INIT = 26
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    FSYNCDIR = 30
    GETLK = 31
    SETLK = 32
    SETLKW = 33
    ACCESS = 34
    CREATE = 35
    INTERRUPT = 36
    BMAP = 37
    DESTROY = 38
    IOCTL = 39
    POLL = 40
    NOTIFY_REPLY = 41
    BATCH_FORGET = 42
    FALLOCATE = 43
    READDIRPLUS = 44
    RENAME2 = 45
    LSEEK = 46
    COPY_FILE_RANGE = 47
    SETUPMAPPING = 48
    REMOVEMAPPING = 49
    SYNCFS = 50
    TMPFILE = 51
    STATX = 52
    COPY_FILE_RANGE_64 = 53


class InitFlag(enum.IntFlag):
    """Flags of INIT; bits from 32 on travel in ``flags2``. Those that a read-only server may care for."""

    ASYNC_READ = 1 << 0
    EXPORT_SUPPORT = 1 << 4
    DO_READDIRPLUS = 1 << 13
    READDIRPLUS_AUTO = 1 << 14
    ASYNC_DIO = 1 << 15
    NO_OPEN_SUPPORT = 1 << 17
    PARALLEL_DIROPS = 1 << 18
    POSIX_ACL = 1 << 20
    ABORT_ERROR = 1 << 21
    MAX_PAGES = 1 << 22
    CACHE_SYMLINKS = 1 << 23
    NO_OPENDIR_SUPPORT = 1 << 24
    INIT_EXT = 1 << 30
    PASSTHROUGH = 1 << 37
    HAS_RESEND = 1 << 39
    ALLOW_IDMAP = 1 << 40


class NotifyCode(enum.IntEnum):
    """``enum fuse_notify_code``: what a server may say unasked."""

    RESEND = 7


class OpenFlag(enum.IntFlag):
    """FOPEN_*: what the kernel may do with what it has of a file or directory."""

    KEEP_CACHE = 1 << 1
    CACHE_DIR = 1 << 3


class SeekFrom(enum.IntEnum):
    """``whence`` of LSEEK; the kernel works the others out by itself (fs/fuse/file.c, fuse_file_llseek)."""

    DATA = 3
    HOLE = 4


# --- Headers ------------------------------------------------------------------------------------------------


class InHeader(NamedTuple):
    """``fuse_in_header``: in front of every request. ``len`` is that of the whole request in bytes."""

    len: u32
    opcode: u32
    unique: u64
    nodeid: u64
    uid: u32
    gid: u32
    pid: u32
    total_extlen: u16
    padding: u16


class OutHeader(NamedTuple):
    """``fuse_out_header``: in front of every reply. ``error`` is 0, or -errno and nothing follows."""

    len: u32
    error: i32
    unique: u64


IN_HEADER: Final = RecordCodec(InHeader, size=40)
OUT_HEADER: Final = RecordCodec(OutHeader, size=16)


# --- INIT ---------------------------------------------------------------------------------------------------


class InitVersion(NamedTuple):
    """The head of ``fuse_init_in``, all that may be believed before the version is known."""

    major: u32
    minor: u32


class InitIn(NamedTuple):
    """``fuse_init_in`` up to 7.35, and the head of what came after."""

    major: u32
    minor: u32
    max_readahead: u32
    flags: u32


class InitInExtended(NamedTuple):
    """``fuse_init_in`` since 7.36, sent with the flag INIT_EXT; 44 bytes are reserved."""

    major: u32
    minor: u32
    max_readahead: u32
    flags: u32
    flags2: u32


class InitOut(NamedTuple):
    """``fuse_init_out``. Sizes are in bytes but for ``max_pages``, ``time_gran`` is in nanoseconds."""

    major: u32
    minor: u32
    max_readahead: u32
    flags: u32
    max_background: u16
    congestion_threshold: u16
    max_write: u32
    time_gran: u32
    max_pages: u16
    map_alignment: u16
    flags2: u32


INIT_VERSION: Final = RecordCodec(InitVersion, size=8)
INIT_IN: Final = RecordCodec(InitIn, size=16)
INIT_IN_EXTENDED: Final = RecordCodec(InitInExtended, size=64)
INIT_OUT: Final = RecordCodec(InitOut, size=64)


# --- Names and attributes -----------------------------------------------------------------------------------


class EntryOut(NamedTuple):
    """``fuse_entry_out`` without its ``fuse_attr``, which follows."""

    nodeid: u64
    generation: u64
    entry_valid: u64
    attr_valid: u64
    entry_valid_nsec: u32
    attr_valid_nsec: u32


class AttrOut(NamedTuple):
    """``fuse_attr_out`` without its ``fuse_attr``, which follows."""

    attr_valid: u64
    attr_valid_nsec: u32
    dummy: u32


class Attr(NamedTuple):
    """``fuse_attr``. Times are signed: the kernel keeps them as ``time64_t``, and files are older than 1970.

    ``rdev`` has the bits of the kernel's ``new_encode_dev``, which are those of makedev(3) below 2^32.
    """

    ino: u64
    size: u64
    blocks: u64
    atime: i64
    mtime: i64
    ctime: i64
    atimensec: u32
    mtimensec: u32
    ctimensec: u32
    mode: u32
    nlink: u32
    uid: u32
    gid: u32
    rdev: u32
    blksize: u32
    flags: u32


class GetattrIn(NamedTuple):
    """``fuse_getattr_in``."""

    getattr_flags: u32
    dummy: u32
    fh: u64


class GetxattrIn(NamedTuple):
    """``fuse_getxattr_in``, of LISTXATTR as well. Size 0 asks how large the answer would be."""

    size: u32
    padding: u32


class GetxattrOut(NamedTuple):
    """``fuse_getxattr_out``: how large the answer would be."""

    size: u32
    padding: u32


class Kstatfs(NamedTuple):
    """``fuse_kstatfs``; 24 bytes are spare."""

    blocks: u64
    bfree: u64
    bavail: u64
    files: u64
    ffree: u64
    bsize: u32
    namelen: u32
    frsize: u32


ENTRY_OUT: Final = RecordCodec(EntryOut, size=40)
ATTR_OUT: Final = RecordCodec(AttrOut, size=16)
ATTR: Final = RecordCodec(Attr, size=88)
GETATTR_IN: Final = RecordCodec(GetattrIn, size=16)
GETXATTR_IN: Final = RecordCodec(GetxattrIn, size=8)
GETXATTR_OUT: Final = RecordCodec(GetxattrOut, size=8)
KSTATFS: Final = RecordCodec(Kstatfs, size=80)


# --- Contents -----------------------------------------------------------------------------------------------


class OpenIn(NamedTuple):
    """``fuse_open_in``, of OPENDIR as well."""

    flags: u32
    open_flags: u32


class OpenOut(NamedTuple):
    """``fuse_open_out``."""

    fh: u64
    open_flags: u32
    backing_id: i32


class ReadIn(NamedTuple):
    """``fuse_read_in``, of READDIR and READDIRPLUS as well, where ``offset`` is a position."""

    fh: u64
    offset: u64
    size: u32
    read_flags: u32
    lock_owner: u64
    flags: u32
    padding: u32


class ReleaseIn(NamedTuple):
    """``fuse_release_in``, of RELEASEDIR as well."""

    fh: u64
    flags: u32
    release_flags: u32
    lock_owner: u64


class Dirent(NamedTuple):
    """``fuse_dirent`` without the name, which follows and is padded with zeros to 8 bytes.

    ``off`` is the position behind this entry, ``type`` one of DT_* (dirent.h).
    """

    ino: u64
    off: u64
    namelen: u32
    type: u32


class LseekIn(NamedTuple):
    """``fuse_lseek_in``."""

    fh: u64
    offset: u64
    whence: u32
    padding: u32


class LseekOut(NamedTuple):
    """``fuse_lseek_out``."""

    offset: u64


class InterruptIn(NamedTuple):
    """``fuse_interrupt_in``: nobody waits for the request ``unique`` any more, but it has to be answered."""

    unique: u64


OPEN_IN: Final = RecordCodec(OpenIn, size=8)
OPEN_OUT: Final = RecordCodec(OpenOut, size=16)
READ_IN: Final = RecordCodec(ReadIn, size=40)
RELEASE_IN: Final = RecordCodec(ReleaseIn, size=24)
DIRENT: Final = RecordCodec(Dirent, size=24)
LSEEK_IN: Final = RecordCodec(LseekIn, size=24)
LSEEK_OUT: Final = RecordCodec(LseekOut, size=8)
INTERRUPT_IN: Final = RecordCodec(InterruptIn, size=8)
