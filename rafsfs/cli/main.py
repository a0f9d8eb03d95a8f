"""The ``rafsfs`` command: a table of subcommands, each imported when it is called; does nothing itself."""

from __future__ import annotations

import importlib
from typing import Any, Final

import click

from rafsfs.cli.exit_codes import MEANINGS, ReaderGone, run

SUMMARIES: Final = {
    "keys": "Make, rewrap, sign with and show keys.",
    "build": "Seal a directory or a tar file into an image.",
    "convert": "Seal a container image, from a registry, folder or archive.",
    "index": "Seal a tree over the layers of a container image, as they are.",
    "run": "Run a container of an image.",
    "bundle": "Make a bundle of an image for runc or crun.",
    "mount": "Mount an image on a directory.",
    "optimize": "Have mounts of an image read ahead what was read before.",
    "umount": "Unmount an image, also when its server is dead.",
    "upgrade": "Have a new server take a mount over.",
    "supervise": "Mount an image, and replace its server when it dies.",
    "serve": "Serve an image to virtual machines, over virtio-fs.",
    "stats": "Show what a mount did so far.",
    "top": "Watch what a mount does.",
    "ls": "List the files of an image.",
    "stat": "Show the attributes of files in an image.",
    "cat": "Write files of an image to standard output.",
    "extract": "Copy files out of an image.",
    "inspect": "Show what an image is made of.",
    "check": "Read and verify everything in an image.",
    "push": "Send an image to a registry.",
    "pull": "Bring a whole image into a folder or an archive.",
    "copy": "Copy an image from any place to any other.",
    "prune": "Remove from a folder what no image in it needs.",
    "cache": "Look after the node cache of remote images.",
    "helper": "Teach mount(8) and /etc/fstab the type fuse.rafsfs.",
}
"""Written down here so that ``rafsfs --help`` imports none of the commands."""


class LazyGroup(click.Group):
    """A group whose commands are ``rafsfs.cli.<name>.command``, imported when one is asked for by name.

    Keeps the import of what one command needs (progress bars, the builder) out of the start of all others.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Name the commands in the order in which a newcomer needs them."""
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import one command; None for a name that is no command."""
        if cmd_name not in SUMMARIES:
            return None
        command: click.Command = importlib.import_module(f"rafsfs.cli.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; tell ``run``, and not click, of a reader that went away."""
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            raise ReaderGone from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Show the table, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Show the exit codes, which are those of all commands."""
        with formatter.section("Exit codes"):
            formatter.write_dl([(str(int(code)), meaning) for code, meaning in MEANINGS.items()])


def _show_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import PackageNotFoundError, version

    try:
        click.echo(f"rafsfs {version('rafsfs')}")
    except PackageNotFoundError:
        click.echo("rafsfs, run from a source tree that is not installed")
    ctx.exit()


@click.group(
    cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110}
)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)
def command() -> None:
    """Build, mount and read sealed container images: encrypted, authenticated, compressed, deduplicated.

    IMAGE is FOLDER[:TAG], an OCI image layout folder, and the tag in it where it holds several; or a place
    that is read over the network as it is needed: docker://HOST/REPOSITORY[:TAG], s3://BUCKET/PREFIX[:TAG]
    (gs://, az://, https://); or oci-archive:FILE. Each takes @sha256:DIGEST in place of a tag.

    \b
    Examples:
      rafsfs keys new my.key
      rafsfs build /srv/tree /images/tree --key my.key
      rafsfs mount /images/tree /mnt --key my.key
      rafsfs umount /mnt
    """


def main() -> int:
    """Entry point of the ``rafsfs`` script; returns the exit code."""
    return run(lambda: command.main(prog_name="rafsfs", standalone_mode=False))
