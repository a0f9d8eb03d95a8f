"""``rafsfs keys show``: what key files are, who can open an image and who signed it; believes nothing."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from rafsfs.cli import output
from rafsfs.cli.options import store_options
from rafsfs.errors import ImageNotFound
from rafsfs.frontends.logs import one_line
from rafsfs.store.reference import Reference, parse_reference
from rafsfs.store.settings import StoreSettings
from rafsfs.trust.keys import Key, load_key

if TYPE_CHECKING:
    from rafsfs.build.rewrap import PlainHead
    from rafsfs.store.base import StoredImage

TEXT_SHOWN_MAX: Final = 60  # of what a stranger wrote into an envelope


@click.command("show", short_help="Show keys, and who can open an image and who signed it.")
@click.argument("things", metavar="FILE|IMAGE...", nargs=-1, required=True)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with an object for each argument.")
@store_options
def show(things: tuple[str, ...], as_json: bool, stores: StoreSettings) -> None:
    """Show what key files are, and who can open an image and who signed it.

    No key is needed for an image. What is shown is what whoever stored the image says; `rafsfs keys verify`
    tells whether signatures hold. Key files that are given as well are named beside their ids.

    \b
    Examples:
      rafsfs keys show my.key
      rafsfs keys show /images/tree:v2 alice.key.pub
      rafsfs keys show /images/tree --json
    """
    keys: dict[str, Key] = {}
    images: dict[str, tuple[StoredImage, PlainHead]] = {}
    for thing in things:
        if _is_key_file(thing):
            keys[thing] = load_key(thing)
        else:
            images[thing] = _plain_head(thing, stores)
    if as_json:
        output.print_json(
            [
                _key_as_json(thing, keys[thing]) if thing in keys else _image_as_json(thing, *images[thing])
                for thing in things
            ]
        )
        return
    if keys:
        rows = [(name, key.kind, key.key_id.hex()) for name, key in keys.items()]
        output.print_table(("FILE", "KIND", "KEY ID"), rows)
    for name, (stored, head) in images.items():
        if keys or name != next(iter(images)):
            output.print_line()
        _show_image(name, stored, head, keys)


def _is_key_file(thing: str) -> bool:
    path = Path(thing)
    return thing == "-" or (path.exists() and not path.is_dir())


def _plain_head(thing: str, stores: StoreSettings) -> tuple[StoredImage, PlainHead]:
    from rafsfs.build.rewrap import read_plain_head
    from rafsfs.store.stores import find_stored

    reference = parse_reference(thing)
    if isinstance(reference, Reference) and not reference.folder.exists():
        raise ImageNotFound(
            f"there is neither a key file nor an image at {thing!r}", hint="give a file, or FOLDER[:TAG]"
        )
    stored = find_stored(reference, stores)
    with closing(stored.store):
        return stored, read_plain_head(stored)


def _show_image(name: str, stored: StoredImage, head: PlainHead, keys: dict[str, Key]) -> None:
    superblock = head.superblock
    output.print_line(f"{one_line(name)}, as it is stored (nothing here is authenticated):")
    output.print_line(f"  {stored.manifest_digest}")
    output.print_fields(
        [
            ("name", superblock.name or "-"),
            ("suite", superblock.suite.name.lower().replace("_", "-")),
            ("release", str(superblock.release)),
            *([("not after", output.utc(superblock.not_after))] if superblock.not_after is not None else []),
            ("image id", superblock.image_id.hex()),
        ]
    )
    files = {(key.family, key.key_id): file for file, key in keys.items()}
    who = [
        ("opened by", item.kind, item.key_id.hex(), files.get((item.kind, item.key_id), ""))
        for item in head.envelope.recipients
    ]
    who += [
        ("signed by", item.algorithm, item.key_id.hex(), files.get((item.algorithm, item.key_id), ""))
        for item in head.envelope.signatures
    ]
    if not superblock.suite.encrypts:
        output.print_line("  anybody can open it: it is not encrypted")
    if who:
        output.print_line()
        shown = [[cell[:TEXT_SHOWN_MAX] for cell in row[:3]] + [row[3]] for row in who]
        columns = ("", "KIND", "KEY ID", "FILE")[: 4 if any(row[3] for row in who) else 3]
        output.print_table(columns, [row[: len(columns)] for row in shown], indent=2)


def _key_as_json(name: str, key: Key) -> dict[str, Any]:
    return {
        "file": name,
        "kind": key.kind,
        "family": key.family,
        "key_id": key.key_id.hex(),
        "secret": key.secret,
    }


def _image_as_json(name: str, stored: StoredImage, head: PlainHead) -> dict[str, Any]:
    superblock = head.superblock
    return {
        "image": name,
        "digest": stored.manifest_digest,
        "image_id": superblock.image_id.hex(),
        "name": superblock.name,
        "suite": superblock.suite.name.lower().replace("_", "-"),
        "release": superblock.release,
        "not_after": superblock.not_after,
        "recipients": [
            {"kind": recipient.kind, "key_id": recipient.key_id.hex()}
            for recipient in head.envelope.recipients
        ],
        "signatures": [
            {"algorithm": signature.algorithm, "key_id": signature.key_id.hex()}
            for signature in head.envelope.signatures
        ],
    }
