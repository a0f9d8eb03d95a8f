"""Serves virtio-fs devices of one image on unix sockets, until a signal ends it; knows no request.

One thread serves all guests (doc/VHOST.md), whose cache of verified data is one as well. Reads that are not
cached are done by workers, of which each guest has its own. Once everything is open the process gives up what
it needs no longer (``sandbox``), so it cannot take its sockets away at its end: the next one does.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from rafsfs.errors import MountError, Where
from rafsfs.frontends import file_limit, sandbox
from rafsfs.frontends.mount_options import STOP_SIGNALS
from rafsfs.frontends.sandbox import Filter, Walls
from rafsfs.frontends.statistics import collector
from rafsfs.frontends.statistics_socket import SUFFIX, answered
from rafsfs.frontends.virtiofs import VirtioFs
from rafsfs.fuse.handler import Handler
from rafsfs.fuse.statistics import RequestStatistics
from rafsfs.reading.engine import ReadEngine
from vhost import transport
from vhost.poller import Poller
from vhost.transport import Listener

log = logging.getLogger("rafsfs.serve")

SOCKET_PATH_BYTES_MAX: Final = 107  # of sockaddr_un.sun_path, less its NUL


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A socket that is listened on, and its name for logs."""

    name: str
    listening: socket.socket


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """How all guests are served. ``tag``: what they call it, for front ends that ask us.

    ``one_shot``: end when the guest of every socket has gone.
    ``sealed_memory``: refuse guest memory that its owner can truncate, which would end this process.
    ``open_files``: how many this process may have; None for as many as it may allow itself.
    ``walls``, ``calls``, ``network``: see ``sandbox.enter``.
    """

    request_queues: int
    tag: str | None = None
    one_shot: bool = False
    sealed_memory: bool = False
    open_files: int | None = None
    walls: Walls = Walls.AUTO
    calls: Filter = Filter.AUTO
    network: bool = False


@dataclass(frozen=True, slots=True)
class Share:
    """What is served: a handler, its name for people and its digest, and what its statistics are about."""

    handler: Handler
    source: str
    digest: str
    engine: ReadEngine


def listen(path: Path, group: int | None = None) -> Endpoint:
    """Make a socket to listen on, for this user, and for ``group`` where one is given. Raises MountError."""
    where = Where(path=os.fspath(path))
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES_MAX:
        expected = f"at most {SOCKET_PATH_BYTES_MAX} bytes"
        raise MountError("the socket's path is too long", expected=expected, where=where)
    try:
        listening = transport.listen(path, mode=0o600 if group is None else 0o660, group=group)
    except OSError as error:
        raise MountError(
            "the socket cannot be made",
            found=error.strerror,
            where=where,
            hint="choose a path that nobody else listens on, in a folder that you can write to",
        ) from error
    return Endpoint(os.fspath(path), listening)


def adopt(descriptor: int) -> Endpoint:
    """Take a socket that is listened on already, which this process has inherited. Raises MountError."""
    hint = "--fd wants the number of a listening unix stream socket, inherited from who starts rafsfs"
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise MountError("the descriptor is no socket", found=descriptor, hint=hint)
        listening = socket.socket(fileno=descriptor)
    except OSError as error:
        raise MountError(
            "the descriptor cannot be used", found=f"{descriptor}: {error.strerror}", hint=hint
        ) from error
    os.set_inheritable(descriptor, False)
    kind = (listening.family, listening.type)
    if kind != (socket.AF_UNIX, socket.SOCK_STREAM) or not listening.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    ):
        listening.detach()
        raise MountError("the descriptor is no socket that is listened on", found=descriptor, hint=hint)
    return Endpoint(f"descriptor {descriptor}", listening)


def serve(
    endpoints: Sequence[Endpoint], share: Share, options: ServeOptions, ready: Callable[[], None]
) -> None:
    """Serve guests, call ``ready`` when they can connect; return after one of ``STOP_SIGNALS``.

    Owns the endpoints. For the main thread of a process that has no other. Raises MountError.
    """
    file_limit.raise_to(options.open_files)
    statistics = RequestStatistics()
    poller = Poller()
    with ExitStack() as stack:
        stack.callback(poller.close)
        tellers = [_listen_for_statistics(endpoint) for endpoint in endpoints]
        regions_max = file_limit.regions_for_each(len(endpoints), options.request_queues + 1)
        left = len(endpoints)

        def ended() -> None:
            nonlocal left
            left -= 1
            if not left:
                poller.stop()

        for endpoint in endpoints:
            device = VirtioFs(
                share.handler,
                poller,
                image=share.digest,
                request_queues=options.request_queues,
                tag=options.tag,
                statistics=statistics,
            )
            listener = Listener(
                poller,
                endpoint.listening,
                device,
                name=endpoint.name,
                sealed_only=options.sealed_memory,
                regions_max=regions_max,
                ended=ended if options.one_shot else None,
            )
            stack.callback(device.stop)
            stack.callback(listener.close)
        sandbox.enter(options.walls, options.calls, network=options.network)
        for endpoint, telling in zip(endpoints, tellers, strict=True):
            if telling is not None:
                collect = collector("virtiofs", share.source, endpoint.name, statistics, lambda: share.engine)
                stack.enter_context(answered(telling, collect, partial(_close, telling)))
        with _stopped_by_signals(poller):
            ready()
            poller.run()


def _listen_for_statistics(endpoint: Endpoint) -> socket.socket | None:
    """The socket beside a guest's; guests are served without it where it cannot be had."""
    path = endpoint.listening.getsockname()
    if not isinstance(path, str) or not path:
        return None  # it has no name in the file system
    try:
        return transport.listen(Path(path + SUFFIX))
    except OSError as error:
        log.warning("%s: no statistics are told: %s", endpoint.name, error)
        return None


def _close(listening: socket.socket) -> None:
    with suppress(OSError):
        listening.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
    listening.close()


@contextmanager
def _stopped_by_signals(poller: Poller) -> Iterator[None]:
    """What the caller ignores stays ignored: nohup(1) wants it so."""

    def stop(number: int, _frame: object) -> None:
        log.info("ending, as signal %s asks", signal.Signals(number).name)
        poller.stop()

    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
