"""``rafsfs push``: sends an image to a registry; needs no key."""

from __future__ import annotations

import click

from rafsfs.cli.options import store_options
from rafsfs.cli.transfer import transfer
from rafsfs.store.reference import RegistryReference, parse_reference
from rafsfs.store.settings import StoreSettings


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@store_options
def command(source: str, target: str, as_json: bool, stores: StoreSettings) -> None:
    """Send the image SOURCE to the registry's repository and tag TARGET.

    Blobs that the registry has are not sent again, and those of another repository of it are taken from
    there. Every blob is hashed on its way, so a damaged image is not sent. No key is needed.

    Logins are those of docker, podman and skopeo (`docker login HOST`), credential helpers included.

    \b
    Examples:
      rafsfs push /images/tree:v2 docker://registry.example/team/tree:v2
      rafsfs push /images/tree docker://127.0.0.1:5000/tree
    """
    reference = parse_reference(target)
    if not isinstance(reference, RegistryReference):
        raise click.UsageError("TARGET is not in a registry, docker://HOST/REPOSITORY[:TAG]; see rafsfs copy")
    transfer("pushing", parse_reference(source), reference, stores, as_json)
