"""What commands that hand a mount over share: how it was mounted, as JSON, and the same image once more."""

from __future__ import annotations

import logging
import os
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rafsfs.cli.mount import MountRequest, serve_image, start_logging
from rafsfs.cli.options import ImageAccess
from rafsfs.errors import KeyFileError, MountError, RafsError
from rafsfs.frontends.handover import Handover, ImageIdentity, MountState, Taken
from rafsfs.frontends.service_manager import ServiceManager, held_mount, manager_of_environment
from rafsfs.store.reference import absolute
from rafsfs.store.settings import StoreSettings
from rafsfs.trust.keys import names_descriptor

if TYPE_CHECKING:
    from rafsfs.frontends.library import Image, OpenRequest


log = logging.getLogger("rafsfs.mount")


def manager_of(request: MountRequest) -> ServiceManager | None:
    """The service manager to be told of a mount; that of a caller that goes on without us is not ours."""
    return manager_of_environment() if request.foreground else None


def serve_held(request: MountRequest) -> bool:
    """Go on with the mount that the service manager has held since another server died; False without one.

    Where it was unmounted meanwhile it stays so, and there is nothing to be done. Raises as ``mount_image``
    does; the manager still holds it then.
    """
    held = held_mount()
    if held is None:
        return False
    if held.fuse_fd is None:
        return _stays_unmounted(request, held.state)
    if held.state.frontend != request.frontend:
        raise MountError(
            "the mount to go on with has another front end",
            expected=held.state.frontend,
            found=request.frontend,
            hint="unmount it first",
        )
    opening = request.access.request(request.image)
    with open_same(request.access, opening, held.state.image) as image:
        start_logging(request)
        request = replace(request, image=str(absolute(opening.reference)))
        taken = Taken(held.fuse_fd, held.state, predecessor=None)
        handover = Handover(packed(request), manager_of(request), lambda: taken)
        # nobody serves it now, so it must not be asked for the real path
        directory = Path(os.path.abspath(request.directory))  # noqa: PTH100
        serve_image(lambda: image, directory, request, handover, handover.say_ready)
    return True


def _stays_unmounted(request: MountRequest, state: MountState) -> bool:
    """Tell the manager of the end of a mount that nobody served; False when it is dead and in sight."""
    from rafsfs.frontends.mountpoint_linux import mount_on

    mount = mount_on(request.directory)
    if mount is not None and mount.device == state.device:
        return False
    start_logging(request)
    log.info("%s was unmounted while nobody served it", request.directory)
    manager = manager_of(request)
    if manager is not None:
        manager.ready()  # systemd takes an end before it for a failure, and would start another server
        manager.ending()
    return True


def packed(request: MountRequest) -> dict[str, Any]:
    """What ``unpacked`` reads, with file names that hold in every working directory; no keys."""
    found: dict[str, Any] = _packed(request)
    return found


def _packed(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _packed(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Path):
        return {"path": os.fspath(value) if names_descriptor(value) else os.path.abspath(value)}  # noqa: PTH100
    if isinstance(value, frozenset):
        return {"set": sorted(value)}
    if isinstance(value, tuple):
        return [_packed(one) for one in value]
    return value


def unpacked(found: dict[str, Any]) -> MountRequest:
    """Read it again. Raises MountError for what this release does not know."""
    try:
        values = _unpacked(found)
        access = values.pop("access")
        stores = StoreSettings(**access.pop("stores"))
        return MountRequest(**values, access=ImageAccess(**access, stores=stores))
    except (AttributeError, KeyError, TypeError) as error:
        raise MountError(
            "the mount has options that this release of rafsfs does not know",
            found=str(error),
            hint="unmount it, and mount it again",
        ) from error


def _unpacked(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_unpacked, value))
    if not isinstance(value, dict):
        return value
    if value.keys() == {"path"}:
        return Path(value["path"])
    if value.keys() == {"set"}:
        return frozenset(value["set"])
    return {name: _unpacked(one) for name, one in value.items()}


def check_readable_again(access: ImageAccess, hint: str) -> None:
    """Raise KeyFileError where keys came from what gives them once: a prompt, a pipe, a descriptor."""
    names = [*access.keys, *access.verify_keys, *([access.passphrase_file] if access.passphrase_file else [])]
    once = [str(name) for name in names if names_descriptor(name)]
    if access.ask_passphrase:
        once.append("--passphrase")
    if once:
        raise KeyFileError("keys that cannot be read a second time", found=", ".join(once), hint=hint)


def open_same(access: ImageAccess, opening: OpenRequest, identity: ImageIdentity) -> Image:
    """Open the image that is mounted, also when its tag is another image's by now.

    Raises what opening raises, and MountError when the mounted image is not to be had.
    """
    reference = absolute(opening.reference)
    problem: RafsError | None = None
    for candidate in (reference, reference.pinned(identity.manifest)):
        try:
            image = access.opened(replace(opening, reference=candidate))
        except RafsError as error:
            problem = problem or error
            continue
        found = image.sealed.stored.manifest.superblock_digest
        if found == identity.superblock:
            image.filesystem.attributes(image.filesystem.root)  # a damaged root is better met now
            return image
        image.close()
        problem = problem or MountError(
            "this is not the image that is mounted",
            expected=identity.superblock,
            found=found,
            hint="unmount, and mount it, to show another image",
        )
    assert problem is not None
    raise problem
