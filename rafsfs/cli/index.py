"""``rafsfs index``: a sealed tree over a stock image's own layers; reads and seals nothing itself."""

from __future__ import annotations

from typing import Any

import click

from rafsfs.cli.convert import ConvertRequest, convert, platform_option
from rafsfs.cli.options import store_options
from rafsfs.cli.sealing_options import sealing_options


@click.command()
@click.argument("source")
@click.argument("target")
@sealing_options
@platform_option
@click.option("--no-xattrs", is_flag=True, help="Leave out extended attributes, capabilities and ACLs.")
@store_options
def command(**request: Any) -> None:
    """Seal a tree over the layers of the container image SOURCE, which stay as they are, into TARGET.

    TARGET is read like any image, lazily and with every byte checked, but its data are the layers of SOURCE,
    gzip, zstd or plain. They are not encrypted, and not stored twice where they are in one repository or
    folder; every container engine runs SOURCE as before. Sealed are names, attributes, digests of all pieces,
    the config, and places to start from in the middle of gzip layers. zstd layers can only be read from their
    start.

    \b
    Examples:
      rafsfs index docker://registry.example/app:v1 docker://registry.example/app:v1-index --key my.key
      rafsfs index oci:layout:v1 layout:v1-index --unencrypted --sign release.key
    """
    from rafsfs.build.indexer import index_image

    convert(ConvertRequest(public_config=False, **request), index_image, "Indexed")
