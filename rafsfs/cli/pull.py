"""``rafsfs pull``: brings a whole image into a folder or an archive; needs no key."""

from __future__ import annotations

import click

from rafsfs.cli.options import store_options
from rafsfs.cli.transfer import transfer
from rafsfs.store.reference import ArchiveReference, Reference, parse_reference
from rafsfs.store.settings import StoreSettings


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@store_options
def command(source: str, target: str, as_json: bool, stores: StoreSettings) -> None:
    """Bring the whole image SOURCE into the folder TARGET, FOLDER[:TAG], or into oci-archive:FILE[:TAG].

    Images can be mounted right out of a registry; bring one here to have it without a network, or to change
    who can open it. Blobs that the folder has are not fetched again. Every blob's digest is checked.

    \b
    Examples:
      rafsfs pull docker://registry.example/team/tree:v2 /images/tree:v2
      rafsfs pull s3://bucket/images/tree:v2 oci-archive:tree.tar
    """
    reference = parse_reference(target)
    if not isinstance(reference, Reference | ArchiveReference):
        raise click.UsageError("TARGET is neither a folder nor oci-archive:FILE; see rafsfs push and copy")
    transfer("pulling", parse_reference(source), reference, stores, as_json)
