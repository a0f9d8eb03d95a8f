"""``rafsfs serve``: opens an image and serves it to guests over vhost-user; speaks no protocol itself."""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from rafsfs.cli.mount import LOG_LEVEL_DEFAULT, LOG_LEVELS
from rafsfs.cli.options import ImageAccess, file_name, image_options, owner_options
from rafsfs.errors import MountError
from rafsfs.frontends import allocator, logs, priority
from rafsfs.store.reference import ArchiveReference, Reference, absolute, parse_reference
from rafsfs.trust.keys import forbid_core_dumps

if TYPE_CHECKING:
    from rafsfs.frontends.virtiofs_server import Endpoint, Share

log = logging.getLogger("rafsfs.serve")

QUEUES_DEFAULT: Final = 4
QUEUES_MAX: Final = 64  # each is looked at whenever others are; guests have one for each processor
WALLS: Final = ("auto", "namespace", "chroot", "none")
FILTERS: Final = ("auto", "on", "off")
TAG_BYTES_MAX: Final = 36  # as in frontends.virtiofs, which is imported late

WAITING: Final = "Waiting for vhost-user socket connection..."
"""What Kata's Rust runtime looks for on standard error (share_virtio_fs_standalone.rs, run_virtiofsd)."""


@dataclass(frozen=True, slots=True)
class ServeRequest:
    """What to serve, and where: the command line's, or that of virtiofsd."""

    image: str
    access: ImageAccess
    socket_paths: tuple[Path, ...] = ()
    fd: int | None = None
    socket_group: str | None = None
    tag: str | None = None
    num_request_queues: int = QUEUES_DEFAULT
    one_shot: bool = False
    sealed: bool = False
    sealed_memory: bool = False
    rlimit_nofile: int | None = None
    uid: int | None = None
    gid: int | None = None
    sandbox: str = WALLS[0]
    seccomp: str = FILTERS[0]
    log_file: Path | None = None
    log_level: str = LOG_LEVEL_DEFAULT
    log_json: bool = False
    syslog: bool = False
    ignored: tuple[str, ...] = ()
    """Options that were given and say nothing here, to be named in the log."""


def serve_image(request: ServeRequest) -> None:
    """Serve until a signal ends it, or with ``one_shot`` the guests.

    Raises what opening the image raises, and ``MountError``.
    """
    if sys.platform != "linux":
        raise MountError("guests are served on Linux only")
    from rafsfs.frontends import sandbox, virtiofs_server

    forbid_core_dumps()  # keys and plaintext are held for as long as it lives
    allocator.keep_in_one_place()
    _check(request)
    options = virtiofs_server.ServeOptions(
        request_queues=request.num_request_queues,
        tag=request.tag,
        one_shot=request.one_shot,
        sealed_memory=request.sealed_memory,
        open_files=request.rlimit_nofile,
        walls=sandbox.Walls(request.sandbox),
        calls=sandbox.Filter(request.seccomp),
        network=not isinstance(parse_reference(request.image), (Reference, ArchiveReference)),
    )
    sandbox.check(options.walls, options.calls, network=options.network)  # before anything is fetched
    with ExitStack() as stack:
        share = stack.enter_context(_sealed(request) if request.sealed else _opened(request))
        endpoints = _endpoints(request)
        _start_logging(request)
        if request.ignored:
            log.info("these options say nothing to an image: %s", ", ".join(request.ignored))
        virtiofs_server.serve(endpoints, share, options, _say_waiting)


def _check(request: ServeRequest) -> None:
    if not request.socket_paths and request.fd is None:
        raise click.UsageError("give a --socket-path, or --fd")
    if request.tag is not None and not 0 < len(request.tag.encode()) <= TAG_BYTES_MAX:
        raise click.UsageError(f"--tag wants 1 to {TAG_BYTES_MAX} bytes")
    access = request.access
    if request.sealed:
        opens = (*access.keys, access.passphrase_file, access.ask_passphrase, *access.verify_keys)
        if any(opens) or access.min_release is not None:
            raise click.UsageError(
                "--sealed serves what is stored: keys and signatures are the guest's business"
            )
        if request.uid is not None or request.gid is not None:
            raise click.UsageError("--sealed serves what is stored, which belongs to root")


@contextmanager
def _opened(request: ServeRequest) -> Iterator[Share]:
    """The image's files."""
    from rafsfs.frontends.fault_log import FaultLog, reporter
    from rafsfs.frontends.fuse_handler import FileSystemHandler
    from rafsfs.frontends.mount_options import Owner
    from rafsfs.frontends.virtiofs_server import Share

    # Threads would keep it from being locked up, and the node cache is behind the walls then.
    access = replace(request.access, stores=replace(request.access.stores, cache_folder=None))
    with access.opened(access.request(request.image)) as image:
        filesystem = image.filesystem
        filesystem.attributes(filesystem.root)  # a damaged root is for the caller to hear of, not for the log
        filesystem.engine.read_ahead(os.cpu_count() or 1, priority.give_way)
        faults = FaultLog(filesystem.find_path)
        handler = FileSystemHandler(filesystem, Owner(request.uid, request.gid), reporter(faults))
        # The thread that serves waits for no metadata: others would wait with it.
        impatient = image.sealed.metadata.impatient
        impatient.add(threading.get_ident())
        try:
            yield Share(handler, _source(request), image.sealed.stored.manifest_digest, filesystem.engine)
        finally:
            impatient.clear()
            faults.close()


@contextmanager
def _sealed(request: ServeRequest) -> Iterator[Share]:
    """The image's stored files, which nobody opens here."""
    from rafsfs.format.chunk import Suite
    from rafsfs.frontends.sealed_export import SealedExport
    from rafsfs.frontends.virtiofs_server import Share
    from rafsfs.reading.engine import ReadEngine
    from rafsfs.reading.page_cache import PageCache

    reference = parse_reference(request.image)
    if not isinstance(reference, Reference):
        raise MountError(
            "only an image in a folder can be served sealed",
            found=reference,
            hint="copy it into one, with skopeo copy or rafsfs pull",
        )
    if request.access.digest is not None:
        reference = reference.pinned(request.access.digest)
    export = SealedExport(reference)
    try:
        idle = ReadEngine([], Suite.INTEGRITY_ONLY, PageCache(0))  # has its numbers told, which are 0
        yield Share(export, _source(request), export.manifest_digest, idle)
    finally:
        export.close()


def _source(request: ServeRequest) -> str:
    return str(absolute(parse_reference(request.image)))


def _say_waiting() -> None:
    print(WAITING, file=sys.stderr, flush=True)


def _endpoints(request: ServeRequest) -> list[Endpoint]:
    from rafsfs.frontends import virtiofs_server

    group = _group_id(request.socket_group) if request.socket_group else None
    found = [virtiofs_server.listen(path, group) for path in request.socket_paths]
    if request.fd is not None:
        found.append(virtiofs_server.adopt(request.fd))
    return found


def _group_id(name: str) -> int:
    import grp

    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise MountError("there is no such group", found=name, hint="see getent group") from None


def _start_logging(request: ServeRequest) -> None:
    if request.log_file is not None:
        handler, _ = logs.to_file(request.log_file, as_json=request.log_json)
    elif request.syslog:
        handler = logs.to_system(as_json=request.log_json)
    else:
        handler = logs.to_standard_error(as_json=request.log_json)
    logs.use(handler, request.log_level.upper())


@click.command()
@click.argument("image")
@image_options
@click.option(
    "--socket-path",
    "socket_paths",
    multiple=True,
    type=file_name,
    metavar="FILE",
    help="Unix socket to listen on for a guest. May be repeated: one for each guest.",
)
@click.option("--fd", type=click.IntRange(3), metavar="N", help="Inherited socket to listen on for a guest.")
@click.option("--socket-group", metavar="NAME", help="Let this group connect as well.")
@click.option("--tag", help="The name that guests mount it by, for VMMs that ask; QEMU is told it itself.")
@click.option(
    "--num-request-queues",
    type=click.IntRange(1, QUEUES_MAX),
    default=QUEUES_DEFAULT,
    show_default=True,
    metavar="N",
    help="Request queues that a guest may use.",
)
@click.option("--one-shot", is_flag=True, help="End when the guests have gone, as virtiofsd does.")
@click.option(
    "--sealed",
    is_flag=True,
    help="Serve the image as it is stored, for a guest that opens it itself (rafsfs mount): needs no key.",
)
@click.option(
    "--sealed-memory",
    is_flag=True,
    help="Refuse guest memory that its VMM could truncate, which would end this process and so all its "
    "guests. QEMU's memory-backend-memfd cannot be truncated.",
)
@click.option(
    "--rlimit-nofile",
    type=click.IntRange(1),
    metavar="N",
    help="Files that the server may have open; each region of a guest's memory is one. "
    "Default: the hard limit.",
)
@owner_options
@click.option(
    "--sandbox",
    type=click.Choice(WALLS),
    default=WALLS[0],
    show_default=True,
    help="What to be locked up in: namespaces with an empty folder, an empty folder alone, or nothing; auto "
    "takes the best that this user may have, and nothing for an image that is read over a network.",
)
@click.option(
    "--seccomp",
    type=click.Choice(FILTERS),
    default=FILTERS[0],
    show_default=True,
    help="Allow the server only the system calls that serving takes; auto does, unless the image is read "
    "over a network.",
)
@click.option(
    "--log-file", type=file_name, metavar="FILE", help="Append log lines to FILE, not to standard error."
)
@click.option("--syslog", is_flag=True, help="Send log lines to syslog, not to standard error.")
@click.option(
    "--log-level",
    type=click.Choice(LOG_LEVELS),
    default=LOG_LEVEL_DEFAULT,
    show_default=True,
    help="What to log.",
)
@click.option("--log-json", is_flag=True, help="Write each log line as one JSON object.")
def command(**request: Any) -> None:  # fmt: skip
    """Serve IMAGE to virtual machines, which mount it by virtio-fs: a back end of vhost-user.

    Runs until SIGTERM. A guest may reboot, and its VMM may end and connect again. Statistics are told to
    `rafsfs stats SOCKET`.

    \b
    Examples:
      rafsfs serve /images/tree --socket-path /run/vm1.sock --key my.key
      rafsfs serve /images/tree --socket-path /run/vm1.sock --socket-path /run/vm2.sock --key my.key
      rafsfs serve /images/tree --socket-path /run/vm1.sock --sealed

    \b
    QEMU, and then in the guest: mount -t virtiofs tree /mnt
      qemu-system-x86_64 ... -object memory-backend-memfd,id=mem,size=1G,share=on -numa node,memdev=mem
        -chardev socket,id=fs,path=/run/vm1.sock -device vhost-user-fs-pci,chardev=fs,tag=tree
    """
    serve_image(ServeRequest(**request))
