"""``rafsfs helper``: puts the helper of mount(8), and what VMMs look for, into place, and takes it away."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

import click

from rafsfs.cli.options import file_name
from rafsfs.errors import MountError, Where

VHOST_USER: Final = Path("/usr/share/qemu/vhost-user")
VHOST_USER_NAME: Final = "50-rafsfs-virtiofsd.json"
DAEMON: Final = "rafsfs-virtiofsd"

NAME: Final = "mount.fuse.rafsfs"
SBIN_DEFAULT: Final = Path("/sbin")

_sbin_option = click.option(
    "--sbin",
    type=file_name,
    default=SBIN_DEFAULT,
    show_default=True,
    metavar="DIR",
    help="Where mount(8) looks for helpers.",
)


@click.group()
def command() -> None:
    """Teach mount(8), and so /etc/fstab and systemd, the type fuse.rafsfs; tell libvirt of rafsfs-virtiofsd.

    mount(8) looks for helpers in /sbin only, wherever rafsfs is installed, so a link has to be there.

    \b
    Examples:
      sudo rafsfs helper install
      sudo mount -t fuse.rafsfs /images/tree /mnt -o key=/etc/rafsfs/my.key
      sudo rafsfs helper remove

    \b
    A line for /etc/fstab:
      /images/tree  /mnt  fuse.rafsfs  ro,key=/etc/rafsfs/my.key,allow_other,nofail  0 0
    """


@command.command("install")
@_sbin_option
def install(sbin: Path) -> None:
    """Link /sbin/mount.fuse.rafsfs to this installation.

    \b
    Example:
      sudo rafsfs helper install
    """
    link = sbin / NAME
    script = _script(NAME)
    if link.is_symlink() and link.readlink() == script:
        click.echo(f"{link} is installed already")
        return
    if link.is_symlink() and link.readlink().name == NAME:
        link.unlink()  # of another installation of rafsfs, perhaps one that is gone
    elif link.exists() or link.is_symlink():
        raise MountError(
            "the helper's place is taken",
            where=Where(file=str(link)),
            hint="see what it is, and move it away",
        )
    link.symlink_to(script)
    click.echo(f"installed {link} -> {script}")


@command.command("remove")
@_sbin_option
def remove(sbin: Path) -> None:
    """Remove /sbin/mount.fuse.rafsfs.

    \b
    Example:
      sudo rafsfs helper remove
    """
    link = sbin / NAME
    if link.is_symlink() and link.readlink().name == NAME:
        link.unlink()
        click.echo(f"removed {link}")
    elif link.exists() or link.is_symlink():
        raise MountError(
            "this is not rafsfs' helper", where=Where(file=str(link)), hint="nothing was removed"
        )
    else:
        click.echo(f"{link} is not installed")


@command.command("vhost-user")
@click.option(
    "--folder",
    type=file_name,
    default=VHOST_USER,
    show_default=True,
    metavar="DIR",
    help="Where libvirt looks for back ends of vhost-user.",
)
@click.option("--remove", is_flag=True, help="Take the file away again.")
def vhost_user(folder: Path, remove: bool) -> None:
    """Tell libvirt and others of rafsfs-virtiofsd, by a file in /usr/share/qemu/vhost-user.

    They take the first file in the order of names that fits, so a virtiofsd that is installed as well may
    come before; a domain can name its binary itself.

    \b
    Example:
      sudo rafsfs helper vhost-user
    """
    from rafsfs.cli.virtiofsd import CAPABILITIES

    file = folder / VHOST_USER_NAME
    if remove:
        if not file.exists():
            click.echo(f"{file} is not installed")
            return
        file.unlink()
        click.echo(f"removed {file}")
        return
    binary = _script(DAEMON)
    content = {"description": "rafsfs: sealed images over virtio-fs", **CAPABILITIES, "binary": str(binary)}
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=2) + "\n")
    click.echo(f"installed {file} for {binary}")


def _script(name: str) -> Path:
    """A script of this installation. Raises MountError."""
    script = Path(sys.executable).parent / name
    if not script.exists():
        raise MountError(
            "this rafsfs is not installed, so it has no such command",
            where=Where(file=str(script)),
            hint="install it with tools/setup or pip, and use the rafsfs command of that installation",
        )
    return script
