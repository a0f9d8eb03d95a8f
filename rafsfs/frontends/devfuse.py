"""The front end for Linux: mounts through /dev/fuse and serves until it is unmounted; knows no opcode.

All requests are answered by other threads than the main one (``devfuse_main``), and nobody waits for those at
the end.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from rafsfs.frontends import devfuse_mount
from rafsfs.frontends.devfuse_main import STOP_WAIT_S, let_go, signals_blocked, transport_of
from rafsfs.frontends.devfuse_serving import hold, make_server, serve_until_end, take
from rafsfs.frontends.fault_log import FaultLog, reporter
from rafsfs.frontends.fuse_handler import FileSystemHandler
from rafsfs.frontends.mount_options import MountOptions
from rafsfs.fs.filesystem import FileSystem

log = logging.getLogger("rafsfs.mount")


def serve(
    filesystem: FileSystem, directory: Path, options: MountOptions, mounted: Callable[[], None]
) -> None:
    """Mount on ``directory``, call ``mounted``, answer requests; return when it is unmounted.

    ``options.handover`` may have a mount that is there already, and may give it to another server at the end.
    Any of ``STOP_SIGNALS`` unmounts it within a second, and waiting requests end with an error. ``mounted``
    is called when the kernel has the mount and was answered its first request. Raises ``MountError`` when it
    cannot be mounted. For the main thread; uses SIGALRM and the timer of alarm(2).
    """
    faults = FaultLog(filesystem.find_path)
    handler = FileSystemHandler(filesystem, options.owner, reporter(faults))
    with signals_blocked() as awaited:
        taken = take(options)
        if taken is None:
            connection = devfuse_mount.mount(directory, options)
        else:
            connection = devfuse_mount.Connection(taken.fd, taken.state.device, taken.state.source)
        transport = transport_of(connection.fd, make_server(handler, taken), filesystem.engine)
        is_ours = taken is None
        try:
            names = ("devfuse", connection.device, connection.source)
            if taken is None:
                transport.negotiate()
                hold(transport, names, options)
                connection.raise_read_ahead()
            else:
                taken.settle(transport)
                is_ours = True
            log.info("serving %s on %s", options.source, directory)
            mounted()
            if taken is None:
                transport.start()
            is_ours = serve_until_end(transport, awaited, names, options, lambda: filesystem.engine, taken)
        finally:
            if is_ours:
                connection.detach()
            let_go(connection.fd, transport.stop(STOP_WAIT_S))
            faults.close()
    if transport.failure is not None:
        raise transport.failure
    if is_ours:
        log.info("unmounted %s", directory)
