"""``rafsfs stat``: all that an image says of a file, and where its bytes lie; reads metadata only."""

from __future__ import annotations

import base64
import os
import stat
from typing import Any

import click

from rafsfs.cli import output
from rafsfs.cli.looking import about
from rafsfs.cli.names import absolute, entry_json, shown, text_fields
from rafsfs.cli.options import ImageAccess, image_options
from rafsfs.frontends.library import Image
from rafsfs.metadata.inode import InlineExtent
from rafsfs.types import Nid


@click.command()
@click.argument("image")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@click.option("-L", "--follow", is_flag=True, help="Follow a symlink to what it leads to.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list with an object for each PATH.")
@image_options
def command(image: str, paths: tuple[str, ...], follow: bool, as_json: bool, access: ImageAccess) -> None:
    """Show the attributes of files in IMAGE: type, mode, owner, size, time, extended attributes.

    "stored" says where a file's bytes lie: in how many pieces of which blobs, or in the metadata, and
    how much of it is holes. A symlink is not followed, unless in the middle of a path. For names with odd
    bytes see `rafsfs ls --help`; values of extended attributes are escaped as names are, and in JSON they
    are base64.

    \b
    Examples:
      rafsfs stat /images/tree /etc/passwd --key my.key
      rafsfs stat /images/tree /usr/bin/ping /bin --key my.key --json
    """
    with access.open(image) as opened:
        found = []
        for path in paths:
            with about(path):
                found.append(_described(opened, path, opened.resolve(path, follow_symlinks=follow)))
    if as_json:
        output.print_json(found)
        return
    for number, (path, entry) in enumerate(zip(paths, found, strict=True)):
        if number:
            click.echo()
        click.echo(shown(absolute(os.fsencode(path))))
        output.print_fields(_fields(entry))


def _described(image: Image, path: str, nid: Nid) -> dict[str, Any]:
    filesystem = image.filesystem
    attributes = filesystem.attributes(nid)
    entry = entry_json(filesystem, absolute(os.fsencode(path)), attributes)
    xattrs = [(name, filesystem.xattr(nid, name)) for name in filesystem.xattr_names(nid)]
    entry["xattrs"] = [
        {**text_fields("name", name), "value_b64": base64.b64encode(value).decode()} for name, value in xattrs
    ]
    if stat.S_ISREG(attributes.mode):
        entry["stored"] = _stored(image, nid, attributes.size)
    return entry


def _stored(image: Image, nid: Nid, size: int) -> dict[str, Any]:
    """How much of a file is data, and where: in the metadata, or blob -> pieces and bytes."""
    blobs: dict[str, dict[str, int]] = {}
    holes = inline = 0
    for extent in image.filesystem.extents(nid, 0, size):
        if isinstance(extent, InlineExtent):
            inline += extent.length
            continue
        if extent.blob is None:
            holes += extent.length
            continue
        name = image.filesystem.engine.blobs[extent.blob].file.name
        held = blobs.setdefault(name, {"pieces": 0, "bytes": 0})
        held["pieces"] += 1
        held["bytes"] += extent.length
    return {"hole_bytes": holes, "inline_bytes": inline, "blobs": blobs}


def _fields(entry: dict[str, Any]) -> list[tuple[str, str]]:
    fields = [
        ("type", str(entry["type"])),
        ("mode", entry["mode"]),
        ("owner", f"uid {entry['uid']}, gid {entry['gid']}"),
        ("links", str(entry["nlink"])),
        ("size", f"{entry['size']:,}"),
        ("modified", entry["mtime"]),
        ("inode", f"nid {entry['nid']}"),
    ]
    if "device" in entry:
        fields.append(("device", "{}, {}".format(*entry["device"])))
    if "target" in entry:
        fields.append(("target", shown(_bytes(entry, "target"))))
    for attribute in entry["xattrs"]:
        value = shown(base64.b64decode(attribute["value_b64"]))
        fields.append((shown(_bytes(attribute, "name")), value or "(empty)"))
    if stored := entry.get("stored"):
        fields += [
            ("stored", f"{held['bytes']:,} bytes in {held['pieces']:,} pieces of {blob}")
            for blob, held in stored["blobs"].items()
        ]
        if stored["inline_bytes"]:
            fields.append(("stored", f"{stored['inline_bytes']:,} bytes in the metadata"))
        if stored["hole_bytes"]:
            fields.append(("holes", f"{stored['hole_bytes']:,} bytes"))
    return fields


def _bytes(entry: dict[str, Any], key: str) -> bytes:
    """The inverse of ``text_fields``."""
    encoded = entry.get(f"{key}_b64")
    return base64.b64decode(encoded) if encoded else str(entry[key]).encode()
