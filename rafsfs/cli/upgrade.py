"""``rafsfs upgrade``: has a new server take a mount over from the one that serves it; never mounts."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import ExitStack
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
from click.core import ParameterSource

from rafsfs.cli.options import ImageAccess, file_name, image_options
from rafsfs.errors import MountError, Where
from rafsfs.frontends import daemon
from rafsfs.frontends.mount_options import STOP_SIGNALS
from rafsfs.store.reference import absolute, starts_threads
from rafsfs.trust.keys import forbid_core_dumps

if TYPE_CHECKING:
    from rafsfs.frontends.library import Image

_KEY_OPTIONS: Final = ("keys", "passphrase_file", "ask_passphrase")
_STORE_FIELDS: Final = {
    **{name: name for name in ("ca_file", "plain_http", "mirrors", "proxy", "deadline_s")},
    "node_cache": "cache_folder",
    "node_cache_bytes": "cache_bytes",
}
"""Option -> field of ``StoreSettings``; those of ``ImageAccess`` are called as their options are."""


@click.command()
@click.argument("directory", metavar="DIR", type=file_name)
@image_options
@click.option("--image", help="Where the image is by now, if not where it was mounted from.")
def command(directory: Path, access: ImageAccess, image: str | None) -> None:
    """Have a new server take over the mount on DIR, while files on it are open and read.

    The new server is of the release that runs this command. It opens the same image, with the options and the
    key files of the mount unless others are given here, and then takes the mount over: no read fails. When it
    cannot, because a key is wrong for example, the old server goes on as if nothing had been.

    Counts go on, a trace of accesses (--trace) ends. Keys are read from their files again. A passphrase that
    was typed or came through a pipe has to be given again. Only who mounted can do this; mounts of --frontend
    pyfuse3 cannot be handed over.

    \b
    Examples:
      rafsfs upgrade /mnt
      rafsfs upgrade /mnt --passphrase
      rafsfs upgrade /mnt --cache-size 1G
    """
    if sys.platform != "linux":
        raise MountError("mounts can be handed over on Linux only")
    take_over(directory, access, _given(), image)


def _given() -> frozenset[str]:
    """Names of the options that are on the command line."""
    context = click.get_current_context()
    return frozenset(
        name for name in context.params if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
    )


def take_over(directory: Path, access: ImageAccess, given: frozenset[str], image: str | None) -> None:
    """Return when a new server has the mount.

    ``given`` are the options that stand in ``access`` and replace those of the mount. Raises what opening the
    image raises, and MountError; the old server goes on then.
    """
    from rafsfs.cli.handover import check_readable_again, open_same, packed, unpacked
    from rafsfs.cli.mount import serve_image, start_logging
    from rafsfs.frontends.handover import Handover
    from rafsfs.frontends.handover_taker import describe, take
    from rafsfs.frontends.server_sockets import device_of
    from rafsfs.frontends.service_manager import ServiceManager

    inherited = daemon.inherited_descriptors()
    forbid_core_dumps()  # the server holds keys and plaintext for as long as it lives
    device = device_of(directory)
    _refuse_other_frontends(device, directory)
    description = describe(device)
    request = unpacked(description.mounted_as)
    if given.isdisjoint(_KEY_OPTIONS):
        check_readable_again(request.access, f"give them again: rafsfs upgrade {directory} --key ...")
    else:
        given |= set(_KEY_OPTIONS)
    access = _replaced(request.access, access, given)
    opening = access.request(image or request.image)
    request = replace(
        request, foreground=False, trace=None, access=access, image=str(absolute(opening.reference))
    )
    identity = description.state.image
    with ExitStack() as stack:

        def open_here() -> Image:
            return stack.enter_context(open_same(access, opening, identity))

        # What starts threads is of no use behind a fork; for all else the caller gets the error itself.
        is_late = starts_threads(opening.reference)
        open_image = open_here if is_late else partial(_same, open_here())
        output = start_logging(request)
        manager = ServiceManager(description.manager) if description.manager else None
        handover = Handover(packed(request), manager, partial(take, device, identity))
        serve = partial(serve_image, open_image, request.directory, request, handover)
        # An interrupt would reach the new server when it serves already, and have it unmount.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            check = partial(_check_serving, directory)
            daemon.run_in_background(serve, check, output=output, unwanted=inherited)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _same(image: Image) -> Image:
    return image


def _replaced(before: ImageAccess, now: ImageAccess, given: frozenset[str]) -> ImageAccess:
    """``before`` with what the options that are ``given`` say, as in ``now``."""
    own = {field.name: getattr(now, field.name) for field in fields(now) if field.name in given}
    stores = {field: getattr(now.stores, field) for option, field in _STORE_FIELDS.items() if option in given}
    return replace(before, **own, stores=replace(before.stores, **stores))


def _refuse_other_frontends(device: str, directory: Path) -> None:
    from rafsfs.frontends.statistics_socket import ask

    try:
        frontend = ask(device, wait_s=0)["mount"]["frontend"]
    except MountError:  # the hand-over says what is wrong
        return
    if frontend not in ("devfuse", "erofs"):
        raise MountError(
            f"mounts of the front end {frontend} cannot be handed over",
            where=Where(path=os.fspath(directory)),
            hint="unmount it, and mount it with --frontend devfuse",
        )


def _check_serving(directory: Path) -> None:
    """Ask what the kernel has to ask the server of a FUSE mount each time. For EROFS it answers itself.

    There that the new server has taken /dev/fuse and the old one has left is all that is known.
    """
    try:
        os.statvfs(directory)
    except OSError as error:
        raise MountError(
            "the mount does not answer", found=error.strerror, where=Where(path=os.fspath(directory))
        ) from error
