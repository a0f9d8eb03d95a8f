"""``rafsfs copy``: copies an image from any place to any other; needs no key."""

from __future__ import annotations

import click

from rafsfs.cli.options import store_options
from rafsfs.cli.transfer import transfer
from rafsfs.store.reference import parse_reference
from rafsfs.store.settings import StoreSettings


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@store_options
def command(source: str, target: str, as_json: bool, stores: StoreSettings) -> None:
    """Copy the image SOURCE, sealed or not, to TARGET: a folder, an archive or a registry.

    The copy is the same to the byte: its digest, its annotations and its signatures stay what they are. An
    index for several platforms is copied with all of its images. Blobs that are there are not sent again.

    \b
    Examples:
      rafsfs copy docker://registry.example/team/tree:v2 docker://other.example/tree:v2
      rafsfs copy oci-archive:tree.tar /images/tree:v2
      rafsfs copy /images/tree:v2 oci-archive:tree.tar
    """
    transfer("copying", parse_reference(source), parse_reference(target), stores, as_json)
