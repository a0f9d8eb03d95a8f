"""Mounts a file system through pyfuse3 and serves it until it is unmounted; never two in one process."""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyfuse3
import trio

from rafsfs.errors import MountError, Where
from rafsfs.frontends.mount_options import STOP_SIGNALS, MountOptions, hint_on
from rafsfs.frontends.pyfuse3_operations import ReadOnlyOperations
from rafsfs.frontends.statistics import collector
from rafsfs.frontends.statistics_socket import offered
from rafsfs.fs.filesystem import FileSystem

log = logging.getLogger("rafsfs.mount")


def serve(
    filesystem: FileSystem,
    directory: Path,
    options: MountOptions,
    mounted: Callable[[], None],
    *,
    impatient: set[int] | None = None,
) -> None:
    """Mount on ``directory``, call ``mounted``, answer requests; return when it is unmounted.

    Any of ``STOP_SIGNALS`` unmounts it, and waiting requests end with an error. ``mounted`` is called when
    the kernel has the mount and requests wait for answers. ``impatient`` is ``MetadataPages.impatient``, so
    that the one thread that answers waits for no metadata. Raises ``MountError`` when it cannot be mounted.
    """
    operations = ReadOnlyOperations(filesystem, options.owner)
    with _signals_kept():
        fuse_fd = _mount(operations, directory, options)
        try:
            log.info("serving %s on %s", options.source, directory)
            mounted()
        except BaseException:
            pyfuse3.close(unmount=True)
            raise
        with _statistics_offered(operations, directory, options.source), _waiting_for_nothing(impatient):
            trio.run(_answer_and_unmount, operations, fuse_fd)
    log.info("unmounted %s", directory)


@contextmanager
def _statistics_offered(operations: ReadOnlyOperations, directory: Path, source: str) -> Iterator[None]:
    """Tell them where mounts have a place in a table, which names the socket."""
    mount = None
    if sys.platform == "linux":
        from rafsfs.frontends.mountpoint_linux import mount_on

        mount = mount_on(directory)
    if mount is None:
        yield
        return
    filesystem = operations.filesystem
    collect = collector("pyfuse3", source, mount.device, operations.statistics, lambda: filesystem.engine)
    with offered(mount.device, collect):
        yield


@contextmanager
def _waiting_for_nothing(impatient: set[int] | None) -> Iterator[None]:
    """Have what this thread asks for raised as WouldWait where it is not at hand."""
    if impatient is None:
        yield
        return
    impatient.add(threading.get_ident())
    try:
        yield
    finally:
        impatient.discard(threading.get_ident())


@contextmanager
def _signals_kept() -> Iterator[None]:
    """See that no signal ends us between mounting and unmounting, which would leave a dead mount behind.

    One that comes before trio looks at signals waits until then; while we unmount, it has had its way.
    """
    before = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        for number, handler in before.items():
            signal.signal(number, handler)


def kernel_options(options: MountOptions) -> set[str]:
    """Return the options for libfuse: fuse_mount_opts of its lib/mount.c."""
    wanted = {
        *pyfuse3.default_options,  # default_permissions, and on macOS noappledouble
        "ro",
        "subtype=rafsfs",
        f"fsname={_escaped(options.source)}",
        *options.flags,
    }
    if options.allow_other:
        wanted.add("allow_other")
    return wanted


def _escaped(source: str) -> str:
    # libfuse splits at commas and knows the backslash (fuse_opt.c); pyfuse3 takes only ASCII.
    return source.encode("ascii", "replace").decode().replace("\\", "\\\\").replace(",", "\\,")


def _mount(operations: ReadOnlyOperations, directory: Path, options: MountOptions) -> int | None:
    """Mount, and return libfuse's descriptor of /dev/fuse, which it tells nobody; None on other systems."""
    complaints: list[str] = []
    before = _fuse_descriptors()
    try:
        with _standard_error_read(complaints):
            pyfuse3.init(operations, str(directory), kernel_options(options))
    except RuntimeError as error:
        said = "; ".join(complaints) or str(error)
        raise MountError(
            "the mount was refused", found=said, where=Where(path=str(directory)), hint=hint_on(said)
        ) from error
    return next(iter(_fuse_descriptors() - before), None)


def _fuse_descriptors() -> set[int]:
    if sys.platform != "linux":
        return set()
    from rafsfs.frontends.mountpoint_linux import DEVICE

    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the one that lists the folder is in its own listing, but closed by now
            if entry.readlink() == DEVICE:
                found.add(int(entry.name))
    return found


@contextmanager
def _standard_error_read(lines: list[str]) -> Iterator[None]:
    """Collect what libfuse and fusermount3 write to standard error: the only place where they say why.

    The pipe takes 64 KiB, they write a line or two.
    """
    reading, writing = os.pipe()
    saved = os.dup(2)
    os.dup2(writing, 2)
    os.close(writing)
    try:
        yield
    finally:
        os.dup2(saved, 2)  # closes the last writing end, so that reading comes to an end
        os.close(saved)
        with os.fdopen(reading, errors="replace") as stream:
            lines += [line.strip() for line in stream]


async def _answer_and_unmount(operations: ReadOnlyOperations, fuse_fd: int | None) -> None:
    with trio.open_signal_receiver(*STOP_SIGNALS) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        try:
            async with trio.open_nursery() as serving:
                serving.start_soon(_stop_on_signal, signals, serving.cancel_scope)
                if fuse_fd is not None:
                    serving.start_soon(_stop_at_end, fuse_fd, serving.cancel_scope)
                await pyfuse3.main()
                serving.cancel_scope.cancel()
        finally:
            pyfuse3.close(unmount=True)
            operations.faults.close()


async def _stop_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    async for number in signals:
        log.info("unmounting, as signal %s asks", signal.Signals(number).name)
        scope.cancel()
        return


async def _stop_at_end(fuse_fd: int, scope: trio.CancelScope) -> None:
    """Cancel what still reads when the connection is over; pyfuse3 would wait for it."""
    with select.epoll() as ends:
        ends.register(fuse_fd, 0)  # errors alone, which come unasked, and no requests
        await trio.lowlevel.wait_readable(ends.fileno())
    scope.cancel()
