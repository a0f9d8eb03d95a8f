"""A server's time with a FUSE connection: who may ask it what meanwhile, and how it ends; mounts nothing."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from rafsfs.frontends.devfuse_main import wait_for_end
from rafsfs.frontends.devfuse_transport import Transport
from rafsfs.frontends.devfuse_workers import DEADLINE_S
from rafsfs.frontends.handover import MountState, Taken
from rafsfs.frontends.mount_options import MountOptions
from rafsfs.frontends.statistics import collector
from rafsfs.frontends.statistics_socket import offered
from rafsfs.fuse.server import FuseServer, Handler, ServerOptions

if TYPE_CHECKING:
    from rafsfs.reading.engine import ReadEngine

log = logging.getLogger("rafsfs.mount")


def take(options: MountOptions) -> Taken | None:
    """Get the mount that shall be served on, None where a new one is to be made. Raises MountError."""
    handover = options.handover
    return None if handover is None or handover.take is None else handover.take()


def make_server(handler: Handler, taken: Taken | None, *, xattrs: bool = True) -> FuseServer:
    """A server for a new connection, or one that goes on with what another has negotiated."""
    if taken is None:
        return FuseServer(handler, ServerOptions(xattrs=xattrs))
    negotiated = taken.state.negotiated
    return FuseServer(
        handler, ServerOptions(xattrs=xattrs, max_write_bytes=negotiated.max_write_bytes), negotiated
    )


def hold(transport: Transport, names: tuple[str, str, str], options: MountOptions) -> None:
    """Give a mount that was made just now to the manager, if there is one; ``names`` as in ``MountState``.

    Before anybody is told that it serves, so that no server can die whose mount nobody goes on with.
    """
    image, handover, negotiated = options.image, options.handover, transport.server.negotiated
    if image is not None and handover is not None and handover.manager is not None and negotiated is not None:
        handover.manager.hold(transport.fd, MountState(*names, image, negotiated))


def serve_until_end(
    transport: Transport,
    awaited: set[signal.Signals],
    names: tuple[str, str, str],
    options: MountOptions,
    engine: Callable[[], ReadEngine],
    taken: Taken | None,
) -> bool:
    """Wait until the connection ends, a signal of ``awaited`` comes, or another server has the mount.

    ``names`` are front end, device number and source, as in ``MountState``. Returns whether the mount is
    still ours, to be taken away.
    """
    frontend, device, _ = names
    requests = transport.server.statistics
    before = None if taken is None else taken.before
    collect = collector(frontend, options.source, device, requests, engine, before)
    image, handover, negotiated = options.image, options.handover, transport.server.negotiated
    if image is None or handover is None or negotiated is None:  # it is None after the end
        with offered(device, collect):
            wait_for_end(transport, awaited)
        return True
    from rafsfs.frontends.handover_giver import giving  # late: the mount serves already

    state = MountState(*names, image, negotiated)
    manager = handover.manager
    if manager is not None and taken is not None and taken.is_orphaned:
        manager.is_now(os.getpid())  # which the predecessor would have said
    with offered(device, collect), giving(transport, state, handover, collect) as end_giving:
        wait_for_end(transport, awaited)
        giver = end_giving()
        if giver is not None and manager is not None:
            manager.is_now(giver.successor)
    if giver is None:
        if manager is not None and transport.failure is not None:
            return False  # the server that it starts next goes on
        if manager is not None:
            manager.ending()
        return True
    log.info("process %d has the mount now", giver.successor)
    giver.leave()
    if giver.open_requests_are_mine:
        transport.wait_until_answered(DEADLINE_S, lambda: bool(signal.sigpending() & awaited))
    return False
