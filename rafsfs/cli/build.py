"""``rafsfs build``: the options of a build and how they are spelled; builds nothing itself."""

from __future__ import annotations

import re
from typing import Any, Final

import click

from rafsfs.cli.build_request import BuildRequest, build
from rafsfs.cli.options import file_name
from rafsfs.cli.sealing_options import sealing_options

_PLATFORM: Final = re.compile(r"linux/([a-z0-9]{1,32})")


def _platform(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> str | None:
    """``linux/ARCH`` -> the architecture."""
    if text is None:
        return None
    match = _PLATFORM.fullmatch(text)
    if not match:
        raise click.BadParameter(f"{text!r} is not linux/ARCHITECTURE, such as linux/arm64")
    return match[1]


@click.command()
@click.argument("source")
@click.argument("image")
@sealing_options
@click.option(
    "--chunk-dict",
    multiple=True,
    metavar="IMAGE",
    help="Do not store again what this earlier image holds. May be repeated.",
)
@click.option(
    "--dict-key",
    multiple=True,
    type=file_name,
    metavar="FILE",
    help="Key that opens a --chunk-dict, where none of the image's own does. May be repeated.",
)
@click.option(
    "--exclude",
    multiple=True,
    metavar="PATTERN",
    help="Leave out what matches: *, ?, [a-z]; on the whole path when there is a / in it, else on names "
    "everywhere; only directories with a / at the end. May be repeated.",
)
@click.option("--one-file-system", is_flag=True, help="Do not go down into other file systems.")
@click.option("--no-xattrs", is_flag=True, help="Leave out extended attributes, capabilities and ACLs.")
@click.option(
    "--prefetch",
    multiple=True,
    type=file_name,
    metavar="TRACE",
    help="Have mounts read ahead what was read before: a trace of `rafsfs mount --trace`, perhaps of an "
    "earlier image. May be repeated.",
)
@click.option(
    "--platform",
    callback=_platform,
    metavar="linux/ARCH",
    help="Platform in the OCI image config.  [default: this machine's]",
)
def command(**request: Any) -> None:
    """Seal SOURCE into IMAGE: deduplicated, compressed, encrypted, authenticated.

    SOURCE is a directory, a tar archive (plain, gzip or zstd), or - for one on standard input. All that a
    file system knows of a file is kept: every type, hard links, extended attributes, ACLs, owners, nanosecond
    times, holes.

    IMAGE is FOLDER[:TAG], an OCI image layout that is made if it is not there. The image appears at once and
    whole; when a build fails or is interrupted, what was there before is as it was. What the tag led to
    stays in the folder, for mounts of it, until `rafsfs prune FOLDER` removes it.

    With --dedup-secret or --unencrypted, equal input gives equal images. SOURCE_DATE_EPOCH in the environment
    (seconds since 1970) holds all later modification times to that.

    \b
    Examples:
      rafsfs build /srv/tree /images/tree --key my.key
      rafsfs build /srv/tree /images/tree:v2 --key my.key --chunk-dict /images/tree:v1
      rafsfs build /srv/tree /images/tree:v3 --key my.key --prefetch start.trace
      rafsfs build root.tar.zst /images/root --key alice.key.pub --sign release.key --release 7
      docker export box | rafsfs build - /images/box --key my.key --exclude /proc/ --exclude '*.pyc'
      skopeo copy oci:/images/tree docker://registry.example/tree
    """
    build(BuildRequest(**request))
