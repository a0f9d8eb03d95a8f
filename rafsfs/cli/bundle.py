"""``rafsfs bundle``: an OCI runtime bundle of an image for runc or crun, and its removal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from rafsfs.cli.container_options import ContainerCommand, ContainerRequest, bundle_of, container_options
from rafsfs.cli.options import file_name, image_options
from rafsfs.cli.signals import ended_cleanly


@click.command(cls=ContainerCommand, own_words=2)
@click.argument("words", metavar="IMAGE DIR [COMMAND]...", nargs=-1, type=click.UNPROCESSED, required=True)
@image_options
@container_options
@click.option(
    "--upper",
    type=file_name,
    metavar="DIR",
    help="Keep what the container writes in this folder; without it that is in memory, and lost in the end.",
)
@click.option("--remove", is_flag=True, help="Unmount and remove the bundle DIR, whatever state it is in.")
def command(words: tuple[str, ...], upper: Path | None, remove: bool, **request: Any) -> None:
    """Make an OCI runtime bundle of IMAGE in the folder DIR, which runc and crun run.

    The image is mounted on DIR/image; DIR/rootfs is that with what the container writes over it. What is
    started, by whom and where comes out of the image's sealed config; COMMAND takes the place of its own. For
    root.

    `rafsfs bundle --remove DIR` takes everything away again: finished, half made, its server dead.

    \b
    Examples:
      rafsfs bundle /images/app /srv/app --key my.key
      runc run --bundle /srv/app app
      rafsfs bundle --remove /srv/app
      rafsfs bundle /images/app /srv/app --key my.key --upper /var/lib/app -- sh -c 'echo hello'
    """
    if remove:
        if len(words) != 1:
            raise click.UsageError("--remove takes the bundle's folder alone")
        from rafsfs.frontends.bundle import remove_bundle  # for Linux

        for pid in remove_bundle(file_name(words[0])):
            click.echo(f"rafsfs: the image's server (process {pid}) goes on: a container runs", err=True)
        return
    if len(words) < 2:
        raise click.UsageError("name the image and the folder")
    image, folder, *arguments = words
    with ended_cleanly():
        bundle_of(ContainerRequest(image, tuple(arguments), **request), file_name(folder), upper=upper)
