"""``rafsfs supervise``: mounts as ``rafsfs mount`` does, and starts another server when one dies."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

import click

from rafsfs.cli import mount
from rafsfs.cli.mount import MountRequest
from rafsfs.cli.options import image_options
from rafsfs.errors import MountError

_WORDS: Final = "rafsfs.cli.supervise"


class _KeepingWords(click.Command):
    """A command that keeps what stands behind its name, for another process."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Parse, and keep the words."""
        ctx.meta[_WORDS] = list(args)
        return super().parse_args(ctx, args)


@image_options
def _supervise(**request: Any) -> int:
    """Mount IMAGE on DIR, and keep the mount served when its server dies.

    Takes the options of `rafsfs mount`, and stays in the foreground. A server in a process of its own serves;
    when it dies, by a mistake of ours or for want of memory, another one goes on with the same mount: who
    reads waits for it, files stay open. Reads that were under way are asked for again (Linux 6.9 and newer;
    on older ones they wait until the mount is aborted). Servers that die again and again at once are given
    up, and the mount is taken away.

    SIGTERM, SIGINT and SIGHUP unmount, as does `rafsfs umount DIR`. `rafsfs upgrade DIR` works as ever.

    The supervisor reads no key: each server reads the key files again. Under systemd its file descriptor
    store does the same (doc/OPERATIONS.md).

    \b
    Example:
      rafsfs supervise /images/tree /mnt --key my.key --log-file /var/log/tree.log
    """
    from rafsfs.cli.handover import check_readable_again

    words = click.get_current_context().meta[_WORDS]
    wanted = MountRequest(**request, foreground=True)
    if sys.platform != "linux" or wanted.frontend == "pyfuse3":
        raise MountError(
            "mounts of the front end pyfuse3 cannot be supervised", hint="use --frontend devfuse"
        )
    check_readable_again(wanted.access, "name key files, and a passphrase with --passphrase-file FILE")
    from rafsfs.frontends.supervisor import supervise

    mount.start_logging(wanted)
    program = [sys.executable, "-m", "rafsfs", "mount", "--foreground", *words]
    directory = Path(os.path.abspath(wanted.directory))  # noqa: PTH100  # resolved by who mounts
    return supervise(program, directory)


command = _KeepingWords(
    "supervise",
    params=[parameter for parameter in mount.command.params if parameter.name != "foreground"],
    callback=_supervise,
    help=_supervise.__doc__,
)
