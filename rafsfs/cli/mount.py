"""``rafsfs mount``: opens an image, checks the mount point, starts the server and waits until it serves."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from rafsfs.cli.options import ImageAccess, file_name, image_options, optional_size_callback, owner_options
from rafsfs.cli.signals import interrupts_kill
from rafsfs.errors import MountError
from rafsfs.frontends import allocator, daemon, logs, mountpoint, priority
from rafsfs.frontends.handover import Handover, ImageIdentity
from rafsfs.frontends.mount_options import MountOptions, Owner, Serve
from rafsfs.frontends.warming import warming
from rafsfs.reading.prefetching import Prefetch
from rafsfs.store.reference import absolute, starts_threads
from rafsfs.trust.keys import forbid_core_dumps

if TYPE_CHECKING:
    from rafsfs.frontends.library import Image

LOG_LEVELS: Final = ("debug", "info", "warning", "error")
LOG_LEVEL_DEFAULT: Final = "info"
FRONTENDS: Final = ("devfuse", "pyfuse3", "erofs")
FRONTEND_DEFAULT: Final = "devfuse" if sys.platform == "linux" else "pyfuse3"
PREFETCHES: Final = tuple(item.value for item in Prefetch)
PREFETCH_DEFAULT: Final = Prefetch.LIST.value
NO_LOG: Final = (
    "rafsfs: warning: there is no syslog here, so nobody will hear of damage; give --log-file FILE"
)


@dataclass(frozen=True, slots=True)
class MountRequest:
    """One mount, whoever asks for it: the command line or mount(8).

    ``flags`` are mount(8)'s, for the kernel; ``frontend`` is one of ``FRONTENDS``, ``prefetch`` one of
    ``PREFETCHES``. ``trace`` is the file that the access trace is written to.
    """

    image: str
    directory: Path
    access: ImageAccess
    allow_other: bool = False
    uid: int | None = None
    gid: int | None = None
    flags: frozenset[str] = frozenset()
    prefetch: str = PREFETCH_DEFAULT
    prefetch_rate: int | None = None
    frontend: str = FRONTEND_DEFAULT
    foreground: bool = False
    log_file: Path | None = None
    log_level: str = LOG_LEVEL_DEFAULT
    log_json: bool = False
    trace: Path | None = None


def mount_image(request: MountRequest, look: Callable[[Image], None] | None = None) -> None:
    """Mount; return when the mount serves or, in the foreground, when it is unmounted.

    ``look`` is called once with the image, opened in this process, for who wants to know more of it.
    Raises what opening the image raises, and ``MountError``; nothing is mounted then.
    """
    from rafsfs.cli.handover import manager_of, packed, serve_held

    inherited = daemon.inherited_descriptors()
    forbid_core_dumps()  # the server holds keys and plaintext for as long as it lives
    if request.foreground and serve_held(request):
        return
    directory = mountpoint.check(request.directory)
    if request.trace is not None:
        from rafsfs.frontends.trace_file import check_trace_file

        request = replace(request, trace=check_trace_file(request.trace))
    with ExitStack() as stack:
        opening = request.access.request(request.image)
        source = absolute(opening.reference)

        def open_here() -> Image:
            with interrupts_kill() if look is None else nullcontext():  # who looks has a folder to clear away
                image = stack.enter_context(request.access.opened(replace(opening, reference=source)))
                # A damaged root is for the caller to hear of, not for the log.
                image.filesystem.attributes(image.filesystem.root)
                return image

        # What starts threads is of no use behind a fork; for all else the caller gets the error itself.
        late = not request.foreground and starts_threads(source)
        open_image = open_here
        if not late:
            image = open_here()
            if look is not None:
                look(image)
            open_image = partial(_same, image)
        output = start_logging(request)
        request = replace(request, image=str(source))
        handover = Handover(packed(request), manager_of(request))
        serve = partial(serve_image, open_image, directory, request, handover)
        if request.foreground:
            serve(handover.say_ready)
            return
        check_serving = partial(mountpoint.check_serving, directory, directory.stat().st_dev)
        daemon.run_in_background(serve, check_serving, output=output, unwanted=inherited)
        if late and look is not None:
            look(open_here())


def _same(image: Image) -> Image:
    return image


def check_only(request: MountRequest) -> None:
    """Do what ``mount_image`` does up to the mount itself."""
    mountpoint.check(request.directory)
    with request.access.open(request.image) as image:
        image.filesystem.attributes(image.filesystem.root)


def start_logging(request: MountRequest) -> int | None:
    """Send log lines where the request says; return the descriptor that takes all other output, if any."""
    output = None
    if request.log_file is not None:
        handler, output = logs.to_file(request.log_file, as_json=request.log_json)
    elif request.foreground:
        handler = logs.to_standard_error(as_json=request.log_json)
    else:
        handler = logs.to_system(as_json=request.log_json)
    logs.use(handler, request.log_level.upper())
    return output


def warn_of_no_log(request: MountRequest) -> None:
    """Say on standard error when nobody will get the log lines of a server in the background."""
    if not request.foreground and request.log_file is None and not logs.has_system_log():
        click.echo(NO_LOG, err=True)


def serve_image(
    open_image: Callable[[], Image],
    directory: Path,
    request: MountRequest,
    handover: Handover,
    mounted: Callable[[], None],
) -> None:
    """Serve an image on ``directory``, a real path, until it is unmounted; ``request`` has its full name."""
    allocator.keep_in_one_place()
    image = open_image()
    if (remote := image.sealed.remote) is not None:
        remote.start(image.sealed.prefetch_runs(), Prefetch(request.prefetch), request.prefetch_rate)
    image.filesystem.engine.read_ahead(os.cpu_count() or 1, priority.give_way)
    serve = _load(request.frontend, image)
    stored = image.sealed.stored
    options = MountOptions(
        source=request.image,
        allow_other=request.allow_other,
        owner=Owner(request.uid, request.gid),
        flags=request.flags,
        image=ImageIdentity(stored.manifest.superblock_digest, stored.manifest_digest),
        handover=handover,
    )
    with ExitStack() as stack:
        if request.trace is not None:
            from rafsfs.frontends.trace_file import tracing

            stack.enter_context(tracing(image.filesystem, request.trace))
        start_warming = stack.enter_context(warming(image.sealed, Prefetch(request.prefetch)))

        def serving() -> None:
            mounted()
            start_warming()

        serve(image.filesystem, directory, options, serving)


def _load(frontend: str, image: Image) -> Serve:
    """Import a front end, which only the server needs: trio and pyfuse3 alone take longer than a mount."""
    if frontend != "pyfuse3" and sys.platform != "linux":
        raise MountError(f"the front end {frontend} is for Linux", hint="use --frontend pyfuse3")
    if frontend == "devfuse":
        from rafsfs.frontends import devfuse

        return devfuse.serve
    if frontend == "erofs":
        from rafsfs.frontends import kernel_erofs

        return lambda _, *rest: kernel_erofs.serve(image.sealed, *rest)
    try:
        from rafsfs.frontends import pyfuse3_mount
    except ImportError as error:
        raise MountError(
            "the FUSE library cannot be loaded",
            found=str(error),
            hint="install libfuse 3 (Debian: libfuse3-3 and fuse3; macOS: macFUSE) and pyfuse3",
        ) from error
    return partial(pyfuse3_mount.serve, impatient=image.sealed.metadata.impatient)


@click.command()
@click.argument("image")
@click.argument("directory", metavar="DIR", type=file_name)
@image_options
@click.option(
    "--allow-other", is_flag=True, help="Let other users in, as the modes and ACLs of the files say."
)
@owner_options
@click.option(
    "--frontend",
    type=click.Choice(FRONTENDS),
    default=FRONTEND_DEFAULT,
    show_default=True,
    help="How to speak to the kernel: devfuse is rafsfs' own way on Linux, pyfuse3 the one of libfuse; erofs "
    "has the kernel's EROFS do all but the decoding (as root, with --allow-other).",
)
@click.option(
    "--prefetch",
    type=click.Choice(PREFETCHES),
    default=PREFETCH_DEFAULT,
    show_default=True,
    help="What to read before it is asked for: the image's prefetch list; all, list first; the whole image "
    "before the mount serves, so that no request tells what is read; or none. An image that is here is read "
    "into memory, as far as there is room; one that is not is fetched into the node cache.",
)
@click.option(
    "--prefetch-rate",
    callback=optional_size_callback,
    metavar="SIZE",
    help="Prefetch no more than so many bytes a second.",
)
@click.option("--no-prefetch", "prefetch", flag_value="none", help="The same as --prefetch none.")
@click.option(
    "--trace",
    type=file_name,
    metavar="FILE",
    help="When it is unmounted, write to FILE what was read, for --prefetch of `rafsfs build` and `rafsfs "
    "optimize`. It names files.",
)
@click.option("--foreground", is_flag=True, help="Serve in this process; return when unmounted.")
@click.option(
    "--log-file",
    type=file_name,
    metavar="FILE",
    help="Append log lines to FILE. Without it they go to standard error in the foreground, else to syslog; "
    "on a machine without syslog they are lost, which the mount warns of.",
)
@click.option(
    "--log-level",
    type=click.Choice(LOG_LEVELS),
    default=LOG_LEVEL_DEFAULT,
    show_default=True,
    help="What to log.",
)
@click.option("--log-json", is_flag=True, help="Write each log line as one JSON object.")
def command(**request: Any) -> None:
    """Mount IMAGE on the directory DIR, read-only. What is in DIR is out of sight until it is unmounted.

    Returns when the mount serves; the server goes on in the background until it is unmounted or gets SIGTERM.
    Every byte that is read was authenticated. A read that meets damage fails with EIO, the log says where,
    and all other reads go on.

    Files with holes are shown as if they had none: `du` and st_blocks count their whole size. Holes are told
    by SEEK_DATA and SEEK_HOLE (front ends devfuse and erofs), and `rafsfs extract` keeps them; with other
    tools use `cp --sparse=always`.

    Users other than root mount through fusermount3, on directories that they can write to.

    \b
    Examples:
      rafsfs mount /images/tree /mnt --key my.key
      rafsfs mount /images/tree:v2 /mnt --key my.key --verify-key release.pub --min-release 7
      rafsfs mount /images/tree /mnt --key my.key --allow-other --uid 1000 --gid 1000
      rafsfs mount docker://registry.example/team/tree:v2 /mnt --key my.key --prefetch all
      rafsfs mount /images/tree /mnt --key my.key --trace start.trace
      rafsfs mount /images/tree /mnt --passphrase-file <(pass show tree) --foreground

    \b
    In /etc/fstab, once `rafsfs helper install` has run:
      /images/tree  /mnt  fuse.rafsfs  ro,key=/etc/rafsfs/my.key,allow_other  0 0
    """
    wanted = MountRequest(**request)
    mount_image(wanted)
    warn_of_no_log(wanted)
