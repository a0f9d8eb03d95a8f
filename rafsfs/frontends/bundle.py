"""OCI runtime bundles over mounted images: made at once or not at all, removed in whatever state they are.

A bundle's folder has ``config.json``, ``rootfs`` (an overlay), ``image`` (the mount, read-only), ``writable``
(a tmpfs, unless a folder was given for what is written), and a marker that says it is ours.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from rafsfs.errors import MountError, Where
from rafsfs.frontends import mountpoint
from rafsfs.frontends.bundle_mounts import mount_overlay, mount_tmpfs, overlay_on, unmount_all
from rafsfs.frontends.container_spec import ROOTFS, ContainerOptions, runtime_spec
from rafsfs.frontends.container_user import find_user
from rafsfs.frontends.library import Image
from rafsfs.frontends.mountpoint_linux import mount_on
from rafsfs.fs.attributes import Attributes

MountImage = Callable[[Path, Callable[[Image], None]], None]
"""``mount(directory, look)`` mounts an image there, and calls ``look`` with it, opened in this process."""

_MARKER: Final = "rafsfs-bundle.json"
_CONFIG: Final = "config.json"
_IMAGE: Final = "image"
_WRITABLE: Final = "writable"


_WORK_PREFIX: Final = ".rafsfs-work-"
"""Of the overlay's own folder in the caller's; with a random end, so that it is nobody's who was there."""


@dataclass(frozen=True, slots=True)
class _Marker:
    """What removing has to know: the overlay's folder in one of the caller's; whether ours is to go."""

    work: Path | None
    is_made: bool

    def write(self, path: Path) -> None:
        value = {"version": 1, "work": str(self.work) if self.work else None, "made": self.is_made}
        path.write_text(json.dumps(value))

    @classmethod
    def read(cls, path: Path) -> _Marker:
        try:
            value = json.loads(path.read_text())
        except (OSError, ValueError):
            value = None
        match value:
            case {"version": 1, "work": str(work), "made": bool(is_made)} if Path(work).name.startswith(
                _WORK_PREFIX
            ):
                return cls(Path(work), is_made)
            case {"version": 1, "work": None, "made": bool(is_made)}:
                return cls(None, is_made)
            case _:
                raise MountError(
                    "this is not a bundle of rafsfs",
                    where=Where(path=str(path.parent)),
                    hint="nothing was removed",
                )


def make_bundle(
    folder: Path,
    mount: MountImage,
    options: ContainerOptions,
    *,
    upper: Path | None = None,
    annotations: Mapping[str, str] | None = None,
) -> None:
    """Make a bundle in ``folder``, which is made, or empty. What the container writes goes to ``upper``.

    Raises MountError and what mounting and reading the image raises; the folder is then as it was.
    """
    if os.geteuid() != 0:
        raise MountError("bundles are made of mounts that only root can make", hint="be root")
    is_made = not folder.exists()
    folder.mkdir(exist_ok=True)
    if any(folder.iterdir()):
        raise MountError(
            "the bundle's folder is not empty",
            where=Where(path=str(folder)),
            hint="name a new folder, or remove the bundle: rafsfs bundle --remove DIR",
        )
    upper = upper and upper.absolute()
    work = (upper or folder / _WRITABLE) / f"{_WORK_PREFIX}{secrets.token_hex(8)}"
    # Before the folder is there: a command that is killed in between leaves nothing unknown.
    _Marker(work if upper else None, is_made).write(folder / _MARKER)
    try:
        _fill(folder, mount, options, upper, work.absolute(), annotations or {})
    except BaseException:
        remove_bundle(folder)
        raise


def _fill(
    folder: Path,
    mount: MountImage,
    options: ContainerOptions,
    upper: Path | None,
    work: Path,
    annotations: Mapping[str, str],
) -> None:
    found: list[tuple[dict[str, Any], Attributes]] = []

    def look(image: Image) -> None:
        config = image.sealed.config()
        user = find_user(image, config.user if options.user is None else options.user)
        spec = runtime_spec(config, user, options, annotations=annotations)
        found.append((spec, image.filesystem.attributes(image.filesystem.root)))

    for name in (_IMAGE, ROOTFS):
        (folder / name).mkdir()
    mount(folder / _IMAGE, look)
    ((spec, root),) = found
    if upper is None:
        upper = folder / _WRITABLE
        upper.mkdir()
        mount_tmpfs(upper)
    else:
        upper.mkdir(parents=True, exist_ok=True)
    with _alone(upper):
        written = work.with_name("upper")
        work.mkdir()
        if not written.exists():
            written.mkdir()
            os.chown(written, root.uid, root.gid)
            written.chmod(root.mode & 0o7777)
        mount_overlay(folder / ROOTFS, folder / _IMAGE, written, work)
    # Last, so that a bundle that has one is whole. It may hold secrets of the image's environment.
    descriptor = os.open(folder / _CONFIG, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(spec, file, indent=1)


@contextmanager
def _alone(upper: Path) -> Iterator[None]:
    """Keep other bundles from the same folder. Raises MountError when one has it."""
    directory = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        if (other := overlay_on(upper / "upper")) is not None:
            raise MountError(
                "another bundle writes into this folder",
                found=other,
                where=Where(path=str(upper)),
                hint="remove that bundle first, or choose another folder",
            )
        yield
    finally:
        os.close(directory)


def remove_bundle(folder: Path) -> list[int]:
    """Unmount and remove a bundle, finished or not; what the container wrote into a folder of yours stays.

    Returns the processes that still serve the image, for a container that goes on. Raises MountError when it
    is no bundle, or in use.
    """
    marker = _Marker.read(folder / _MARKER)
    servers: list[int] = []
    unmount_all(folder / ROOTFS)
    if mount_on(folder / _IMAGE) is not None:
        servers = mountpoint.unmount(folder / _IMAGE)
    unmount_all(folder / _WRITABLE)
    if marker.work is not None:
        shutil.rmtree(marker.work, ignore_errors=True)  # the overlay's own, of no use to anybody
    (folder / _CONFIG).unlink(missing_ok=True)
    for name in (ROOTFS, _IMAGE, _WRITABLE):
        with suppress(FileNotFoundError):
            (folder / name).rmdir()
    (folder / _MARKER).unlink()
    if marker.is_made:
        with suppress(OSError):  # somebody else has put something there
            folder.rmdir()
    return servers
