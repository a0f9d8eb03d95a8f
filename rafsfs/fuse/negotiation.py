"""INIT: what this server would like, and what one kernel and it agree on; keeps no state."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Final, NamedTuple

from rafsfs.errors import MountError
from rafsfs.format.record import Buffer
from rafsfs.fuse import abi
from rafsfs.fuse.abi import InitFlag
from rafsfs.limits import KIB, MIB

WANTED: Final = (
    InitFlag.ASYNC_READ  # several reads of one file at once
    | InitFlag.EXPORT_SUPPORT  # "." and ".." are looked up, so that NFS can find a node again
    | InitFlag.DO_READDIRPLUS  # attributes with every listing, for READDIRPLUS_AUTO is not wanted
    | InitFlag.ASYNC_DIO
    | InitFlag.NO_OPEN_SUPPORT
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.POSIX_ACL  # the kernel decides by ACLs and modes; implies the mount option default_permissions
    | InitFlag.ABORT_ERROR  # tells a connection that was aborted from one that was unmounted
    | InitFlag.MAX_PAGES
    | InitFlag.CACHE_SYMLINKS
    | InitFlag.NO_OPENDIR_SUPPORT
    | InitFlag.INIT_EXT
    | InitFlag.ALLOW_IDMAP  # idmapped mounts, for containers in user namespaces
)
"""Not AUTO_INVAL_DATA and its like: nothing ever changes."""

MAX_PAGES: Final = 256  # 1 MiB of 4 KiB pages; what Linux allows unless fs.fuse.max_pages_limit is raised
MAX_PAGES_UNASKED: Final = 32  # FUSE_DEFAULT_MAX_PAGES_PER_REQ, of kernels without MAX_PAGES
TIME_GRANULARITY_NS: Final = 1

_DAY_S: Final = 24 * 3600


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """What a front end may choose. Timeouts say how long the kernel may believe us; an image never changes.

    ``max_write_bytes`` is only there because each buffer for read(2) on /dev/fuse must have room for it.
    ``xattrs`` off: the kernel is told once that there are none, and asks no more.
    ``wanted``: flags of INIT to agree to when offered.
    ``begins_anew``: INIT may come at any time, from a guest that was rebooted and told nobody.
    """

    entry_timeout_s: float = 30 * _DAY_S
    attr_timeout_s: float = 30 * _DAY_S
    negative_timeout_s: float = 30 * _DAY_S  # of names that do not exist; 0 has them looked up every time
    max_readahead_bytes: int = 1 * MIB
    max_write_bytes: int = 60 * KIB
    max_pages: int = MAX_PAGES
    max_background: int = 64
    congestion_threshold: int = 48
    xattrs: bool = True
    wanted: InitFlag = WANTED
    begins_anew: bool = False

    def __post_init__(self) -> None:
        timeouts = (self.entry_timeout_s, self.attr_timeout_s, self.negative_timeout_s)
        assert all(0 <= timeout < 2**32 for timeout in timeouts)
        assert 0 <= self.max_readahead_bytes < 2**32
        assert 4 * KIB <= self.max_write_bytes < 2**32  # less, and the kernel takes 4096 all the same
        assert 1 <= self.max_pages < 2**16
        assert 1 <= self.congestion_threshold <= self.max_background < 2**16

    @property
    def request_bytes_max(self) -> int:
        """Size of a buffer for read(2) on /dev/fuse, in bytes; a smaller one gets EINVAL."""
        return max(abi.READ_BUFFER_MIN, self.max_write_bytes + 4 * KIB)


class Negotiated(NamedTuple):
    """What holds on one connection. Plain numbers, so that they can be handed to the next server of it.

    ``offered`` and ``flags``: the kernel's flags and those agreed on, with ``flags2`` in the upper 32 bits.
    """

    minor: int
    offered: int
    flags: int
    max_readahead_bytes: int
    max_write_bytes: int
    max_pages: int
    max_background: int
    congestion_threshold: int

    @property
    def opens_without_message(self) -> bool:
        """OPEN may be answered ENOSYS: every file is then open at once, with FOPEN_KEEP_CACHE."""
        return bool(self.flags & InitFlag.NO_OPEN_SUPPORT)

    @property
    def opens_directories_without_message(self) -> bool:
        """The same for OPENDIR, with FOPEN_CACHE_DIR as well (Linux fs/fuse/file.c, fuse_file_open)."""
        return bool(self.flags & InitFlag.NO_OPENDIR_SUPPORT)

    @property
    def can_resend(self) -> bool:
        """The kernel asks again on ``NotifyCode.RESEND``: Linux 6.9 and newer, whatever was agreed on."""
        return bool(self.offered & InitFlag.HAS_RESEND)


def negotiate(body: Buffer, options: ServerOptions) -> tuple[Negotiated | None, bytes]:
    """Return what is agreed on and ``fuse_init_out`` for a ``fuse_init_in``.

    A kernel with a newer major version is told ours, and nothing is agreed on: it asks again. Raises OSError
    EINVAL when ``body`` is too short, MountError when the kernel is older than all that we can speak.
    """
    if len(body) < abi.INIT_VERSION.size:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    version = abi.INIT_VERSION.unpack_from(body)
    if version.major > abi.MAJOR:
        return None, abi.INIT_OUT.pack(_init_out(abi.MINOR, 0))
    if (version.major, version.minor) < (abi.MAJOR, abi.MINOR_MIN):
        raise MountError(
            "the kernel's FUSE protocol is too old",
            expected=f"{abi.MAJOR}.{abi.MINOR_MIN} or newer",
            found=f"{version.major}.{version.minor}",
            hint="use Linux 3.15 or newer",
        )
    agreed = _agree(body, options)
    return agreed, abi.INIT_OUT.pack(
        _init_out(agreed.minor, agreed.flags)._replace(
            max_readahead=agreed.max_readahead_bytes,
            max_background=agreed.max_background,
            congestion_threshold=agreed.congestion_threshold,
            max_write=agreed.max_write_bytes,
            time_gran=TIME_GRANULARITY_NS,
            max_pages=agreed.max_pages if agreed.flags & InitFlag.MAX_PAGES else 0,
        )
    )


def _agree(body: Buffer, options: ServerOptions) -> Negotiated:
    extended = len(body) >= abi.INIT_IN_EXTENDED.size
    if len(body) < abi.INIT_IN.size:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    asked = abi.INIT_IN.unpack_from(body)
    offered = asked.flags
    if offered & InitFlag.INIT_EXT:
        if not extended:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        offered |= abi.INIT_IN_EXTENDED.unpack_from(body).flags2 << 32
    flags = offered & options.wanted
    if not flags & InitFlag.POSIX_ACL:
        flags &= ~InitFlag.ALLOW_IDMAP  # without default_permissions it would fail the mount
    if not flags & InitFlag.INIT_EXT:
        flags &= 0xFFFF_FFFF
    return Negotiated(
        minor=min(asked.minor, abi.MINOR),
        offered=offered,
        flags=int(flags),
        max_readahead_bytes=min(asked.max_readahead, options.max_readahead_bytes),
        max_write_bytes=options.max_write_bytes,
        max_pages=options.max_pages if flags & InitFlag.MAX_PAGES else MAX_PAGES_UNASKED,
        max_background=options.max_background,
        congestion_threshold=options.congestion_threshold,
    )


def _init_out(minor: int, flags: int) -> abi.InitOut:
    return abi.InitOut(
        major=abi.MAJOR,
        minor=minor,
        max_readahead=0,
        flags=flags & 0xFFFF_FFFF,
        max_background=0,
        congestion_threshold=0,
        max_write=0,
        time_gran=0,
        max_pages=0,
        map_alignment=0,
        flags2=flags >> 32,
    )
