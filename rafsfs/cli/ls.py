"""``rafsfs ls``: names in an image, short, long or as JSON; reads metadata only."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator

import click

from rafsfs.cli.looking import about, write_line
from rafsfs.cli.names import absolute, entry_json, shown, time_utc
from rafsfs.cli.options import ImageAccess, image_options
from rafsfs.frontends.library import Image
from rafsfs.fs.attributes import Attributes
from rafsfs.fs.filesystem import FileSystem, walk_tree
from rafsfs.types import Nid

Name = tuple[bytes, Nid]
"""A path, as it is shown, and its inode."""


@click.command()
@click.argument("image")
@click.argument("path", default="/")
@click.option(
    "-l", "--long", "is_long", is_flag=True, help="Show type, mode, links, owner, size and time too."
)
@click.option("-R", "--recursive", is_flag=True, help="Show everything below PATH, with full paths.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print a JSON list with an object for each name, full paths."
)
@image_options
def command(
    image: str, path: str, is_long: bool, recursive: bool, as_json: bool, access: ImageAccess
) -> None:
    """List the directory PATH in IMAGE, or its root; or the one file that PATH is.

    Names come in byte order, one on each line, whatever is in them: bytes that are no UTF-8 are shown as
    \\xHH, control characters as \\n, \\x1b and so on, a backslash as two. In JSON, "path" and "target"
    are text, and where the bytes are no UTF-8, "path_b64" and "target_b64" hold them in base64. Times are
    UTC.

    \b
    Examples:
      rafsfs ls /images/tree --key my.key
      rafsfs ls -l /images/tree /etc --key my.key
      rafsfs ls -R /images/tree:v2 /usr/lib --key my.key
      rafsfs ls -R --json /images/tree --key my.key | jq -r '.[] | select(.size > 1000000) | .path'
    """
    with access.open(image) as opened:
        names = _names(opened, path, recursive, full=recursive or as_json)
        if as_json:
            _print_json(opened.filesystem, names)
            return
        for name, nid in names:
            write_line(_long_line(opened.filesystem, name, nid) if is_long else shown(name))


def _names(image: Image, path: str, recursive: bool, *, full: bool) -> Iterator[Name]:
    with about(path):
        filesystem = image.filesystem
        top = absolute(os.fsencode(path))
        nid = image.resolve(path)
        if not stat.S_ISDIR(filesystem.attributes(nid).mode):
            # the file itself, and of a symlink the symlink, as ls(1) has it in its long form
            yield (top if full else os.fsencode(path)), image.resolve(path, follow_symlinks=False)
        elif recursive:
            for name, found in walk_tree(filesystem, nid):
                yield (absolute(top + b"/" + name) if name else top), found
        else:
            for entry in filesystem.directory(nid):
                if entry.name not in (b".", b".."):
                    yield (absolute(top + b"/" + entry.name) if full else entry.name), entry.nid


def _print_json(filesystem: FileSystem, names: Iterator[Name]) -> None:
    """One list, written as it is found: an image can have millions of names."""
    before = "["
    for name, nid in names:
        entry = entry_json(filesystem, name, filesystem.attributes(nid))
        write_line(before + json.dumps(entry))
        before = ","
    write_line("]" if before == "," else "[]")


def _long_line(filesystem: FileSystem, name: bytes, nid: Nid) -> str:
    found = filesystem.attributes(nid)
    text = shown(name)
    if stat.S_ISLNK(found.mode):
        text += " -> " + shown(filesystem.readlink(nid))
    owner = f"{found.nlink:>3} {found.uid:>5} {found.gid:>5}"
    time = time_utc(found.mtime_ns)[:16].replace("T", " ")
    return f"{stat.filemode(found.mode)} {owner} {_size(found):>11} {time} {text}"


def _size(found: Attributes) -> str:
    if stat.S_ISCHR(found.mode) or stat.S_ISBLK(found.mode):
        return f"{os.major(found.rdev)}, {os.minor(found.rdev)}"
    return str(found.size)
