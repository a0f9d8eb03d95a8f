"""``rafsfs run``: a container of an image in one command; leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import Any, Final

import click

from rafsfs.cli.container_options import ContainerCommand, ContainerRequest, bundle_of, container_options
from rafsfs.cli.options import image_options
from rafsfs.cli.signals import ended_cleanly
from rafsfs.errors import MountError
from rafsfs.frontends import daemon
from rafsfs.frontends.container_run import RUNTIMES, check_runtime, kill_container, run_container
from rafsfs.frontends.janitor import Janitor

FOLDER_VARIABLE: Final = "TMPDIR"
FOLDER_DEFAULT: Final = "/run"
"""Where bundles are while they run: in memory, for config.json shows what of the image was sealed."""


def run(request: ContainerRequest, runtime: str) -> int:
    """Run a container until it ends; gives its exit code."""
    from rafsfs.frontends.bundle import remove_bundle  # for Linux

    check_runtime(runtime)
    if os.geteuid() != 0:
        raise MountError("containers are made of mounts that only root can make", hint="be root")
    inherited = daemon.inherited_descriptors()
    name = f"rafsfs-{secrets.token_hex(6)}"
    folder = Path(os.environ.get(FOLDER_VARIABLE) or FOLDER_DEFAULT) / name

    def clean() -> None:
        kill_container(runtime, name)
        if folder.exists():
            remove_bundle(folder)

    terminal = all(stream.isatty() for stream in (sys.stdin, sys.stdout))
    janitor = Janitor(clean, unwanted=inherited)
    try:
        with ended_cleanly():
            bundle_of(request, folder, terminal=terminal)
            try:
                return run_container(runtime, folder, name)
            except BaseException:
                kill_container(runtime, name)
                raise
            finally:
                remove_bundle(folder)
    finally:
        janitor.dismiss()


@click.command(cls=ContainerCommand, own_words=1)
@click.argument("image")
@click.argument("words", metavar="[COMMAND]...", nargs=-1, type=click.UNPROCESSED)
@image_options
@container_options
@click.option(
    "--runtime", type=click.Choice(RUNTIMES), default=RUNTIMES[0], show_default=True, help="What runs it."
)
def command(words: tuple[str, ...], runtime: str, **request: Any) -> int:
    """Run a container of IMAGE, and leave nothing behind.

    What is started, by whom, where and with which environment comes out of the image's sealed config; COMMAND
    takes the place of its own. What it writes is in memory, and lost in the end. For root.

    Standard input and output, or the terminal, are the container's; signals are passed on to it; its exit
    code is this command's, 128 and more where a signal ended it. Errors before it starts have the usual ones.

    \b
    Examples:
      rafsfs run /images/python --key my.key python3 -c 'print(1)'
      rafsfs run docker://registry.example/team/app:sealed --key my.key --env MODE=test
      rafsfs run --net host --user 1000 /images/app --key my.key sh
    """
    return run(ContainerRequest(command=words, **request), runtime)
