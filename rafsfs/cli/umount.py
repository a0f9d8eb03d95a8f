"""``rafsfs umount``: takes a mount away, dead or alive, and waits until it is gone."""

from __future__ import annotations

from pathlib import Path

import click

from rafsfs.cli.options import file_name
from rafsfs.frontends import mountpoint


@click.command()
@click.argument("directory", metavar="DIR", type=file_name)
@click.option("-l", "--lazy", is_flag=True, help="Take it out of sight at once; those who use it may finish.")
def command(directory: Path, lazy: bool) -> None:
    """Unmount the image that is mounted on DIR, and wait until its server has ended.

    Works also when the server has died ("Transport endpoint is not connected"). A mount in use is left alone:
    the error names who uses it.

    \b
    Examples:
      rafsfs umount /mnt
      rafsfs umount --lazy /mnt
    """
    for pid in mountpoint.unmount(directory, lazy=lazy):
        click.echo(
            f"rafsfs: {directory} is unmounted, but its server (process {pid}) goes on: "
            "another mount namespace, perhaps a container, still has the mount",
            err=True,
        )
