"""``rafsfs cat``: bytes of files to standard output, each of them verified before it is written."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple

import click

from rafsfs.build.pipeline import worker_count
from rafsfs.cli.looking import about
from rafsfs.cli.names import TYPES, absolute, shown
from rafsfs.cli.options import ImageAccess, image_options
from rafsfs.errors import RafsError
from rafsfs.frontends.library import Image
from rafsfs.fs.filesystem import FileSystem
from rafsfs.fs.parallel import in_order
from rafsfs.limits import MIB
from rafsfs.types import Nid

_PIECE_BYTES: Final = MIB  # of one task: a few chunks
_BLOCK_BYTES: Final = 4096


class _Piece(NamedTuple):
    path: str
    nid: Nid
    offset: int
    length: int


class _Read(NamedTuple):
    """What came of a piece: verified bytes from its start on, all of them unless there is an error."""

    parts: list[memoryview]
    error: RafsError | None


@click.command()
@click.argument("image")
@click.argument("paths", metavar="PATH...", nargs=-1, required=True)
@image_options
def command(image: str, paths: tuple[str, ...], access: ImageAccess) -> None:
    """Write the bytes of the files PATH... in IMAGE to standard output, one after the other.

    Only verified bytes come out. At a damaged chunk the output ends, after all bytes before it, with exit
    code 5.

    \b
    Examples:
      rafsfs cat /images/tree /etc/os-release --key my.key
      rafsfs cat /images/tree /var/lib/disk.img --key my.key | sha256sum
    """
    with access.open(image) as opened:
        files = [(path, _file(opened, path)) for path in paths]
        with ThreadPoolExecutor(worker_count()) as pool:

            def read(piece: _Piece) -> _Read:
                return _read(opened.filesystem, piece)

            reads = in_order(pool, read, _pieces(opened.filesystem, files), waiting=2 * worker_count())
            for parts, error in reads:
                for part in parts:
                    sys.stdout.buffer.write(part)
                if error is not None:
                    sys.stdout.buffer.flush()
                    raise error


def _file(image: Image, path: str) -> Nid:
    with about(path):
        nid = image.resolve(path)
        mode = image.filesystem.attributes(nid).mode
    if not stat.S_ISREG(mode):
        name = shown(absolute(os.fsencode(path)))
        raise click.UsageError(f"{name} is a {TYPES[stat.S_IFMT(mode)]} in the image, not a file")
    return nid


def _pieces(filesystem: FileSystem, files: list[tuple[str, Nid]]) -> Iterator[_Piece]:
    for path, nid in files:
        size = filesystem.attributes(nid).size
        for offset in range(0, size, _PIECE_BYTES):
            yield _Piece(path, nid, offset, min(_PIECE_BYTES, size - offset))


def _read(filesystem: FileSystem, piece: _Piece) -> _Read:
    try:
        return _Read(filesystem.read(piece.nid, piece.offset, piece.length), None)
    except RafsError:
        pass  # it comes again below, behind the bytes that can be had
    parts: list[memoryview] = []
    end = piece.offset + piece.length
    try:
        for offset in range(piece.offset, end, _BLOCK_BYTES):
            parts += filesystem.read(piece.nid, offset, min(_BLOCK_BYTES, end - offset))
    except RafsError as error:
        return _Read(parts, error.at(path=shown(absolute(os.fsencode(piece.path)))))
    return _Read(parts, None)
