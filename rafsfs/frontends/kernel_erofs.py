"""The front end whose metadata never reaches us: the kernel's EROFS mounts what we decode; walks no tree.

The image's metadata is an EROFS image already. A private FUSE mount shows it as a file, and each blob's
decoded space as another (``kernel_erofs_devices``); the kernel's EROFS on top (``kernel_erofs_mount``) asks
only for bytes that are not in its caches. Beneath verified bytes all is as in the other front ends. What is
above is the kernel's: it parses the author's metadata, and it decides who may read what.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from rafsfs.errors import MountError
from rafsfs.frontends.devfuse_main import STOP_WAIT_S, let_go, signals_blocked, transport_of
from rafsfs.frontends.devfuse_serving import hold, make_server, serve_until_end, take
from rafsfs.frontends.fault_log import FaultLog
from rafsfs.frontends.kernel_erofs_devices import Devices
from rafsfs.frontends.kernel_erofs_faults import FaultReporter
from rafsfs.frontends.kernel_erofs_mount import ErofsMount, PrivateMount, mount_erofs, mount_private
from rafsfs.frontends.mount_options import MountOptions
from rafsfs.frontends.mountpoint_linux import EROFS_SOURCE, server_label
from rafsfs.fs.image import OpenImage

log = logging.getLogger("rafsfs.mount")

SOURCE_BYTES_MAX: Final = 240
"""fsconfig(2) takes strings of 255 bytes, and something may be appended to this one."""


def serve(
    image: OpenImage,
    directory: Path,
    options: MountOptions,
    mounted: Callable[[], None],
    *,
    use_loops: bool = False,
) -> None:
    """Mount on ``directory``, call ``mounted``, answer the kernel's EROFS; return when it is unmounted.

    ``options.handover`` may have a mount that is there already, and may give it to another server at the end.
    Any of ``STOP_SIGNALS`` unmounts it within a second, and waiting reads end with an error. ``use_loops``
    takes loop devices even where the kernel can do without. Raises ``MountError`` when it cannot be mounted,
    or not with these options. For the main thread; uses SIGALRM and the timer of alarm(2).
    """
    _check(options)
    faults = FaultLog(image.filesystem.find_path)
    erofs: ErofsMount | None = None
    with signals_blocked() as awaited, ExitStack() as stack:
        taken = take(options)
        source = options.source if taken is None else taken.state.source  # the nodes' numbers depend on it
        meta_path = meta_path_of(source)
        devices = Devices(image, meta_path, FaultReporter(image.filesystem, faults))
        private = mount_private() if taken is None else PrivateMount(taken.fd, root=-1)
        engine = image.filesystem.engine
        transport = transport_of(private.fd, make_server(devices, taken, xattrs=False), engine)
        is_ours = taken is None
        try:
            if taken is None:
                try:
                    transport.negotiate()
                    transport.start()
                    blobs = len(image.opened.superblock.blobs)
                    erofs = mount_erofs(private, directory, options, meta_path, blobs, use_loops=use_loops)
                finally:
                    os.close(private.root)
                erofs.raise_read_ahead()
            else:
                taken.settle(transport)
                is_ours = True
                erofs = ErofsMount(private.fd, taken.state.device, None)
            stack.callback(os.close, os.memfd_create(server_label(erofs.device)))
            names = ("erofs", erofs.device, source)
            if taken is None:
                hold(transport, names, options)
            log.info("serving %s on %s", options.source, directory)
            mounted()
            is_ours = serve_until_end(transport, awaited, names, options, lambda: engine, taken)
        finally:
            if erofs is not None and is_ours:
                erofs.detach()
            let_go(private.fd, transport.stop(STOP_WAIT_S))
            faults.close()
    if transport.failure is not None:
        raise transport.failure
    if is_ours:
        log.info("unmounted %s", directory)


def _check(options: MountOptions) -> None:
    if os.geteuid() != 0:
        raise MountError("only root can mount with the kernel's EROFS", hint="use --frontend devfuse")
    if options.owner.uid is not None or options.owner.gid is not None:
        raise MountError(
            "the kernel's EROFS shows the owners that the image says",
            expected="no --uid and --gid",
            hint="leave them out, or use --frontend devfuse",
        )
    if not options.allow_other:
        raise MountError(
            "the kernel's EROFS lets all users in, as the modes and ACLs of the files say",
            hint="say so with --allow-other, or use --frontend devfuse",
        )


def meta_path_of(source: str) -> bytes:
    """The path of the metadata in the private mount, which is what the mount table shows as the source.

    The end of a longer one, behind dots.
    """
    names = [name for name in os.fsencode(source).split(b"/") if name not in (b"", b".", b"..")]
    path = b"/".join([EROFS_SOURCE.encode(), *names])
    if len(path) <= SOURCE_BYTES_MAX:
        return path
    tail = path[-SOURCE_BYTES_MAX + len(EROFS_SOURCE) + 5 :].lstrip(b"/")
    return b"/".join([EROFS_SOURCE.encode(), b"...", tail])
