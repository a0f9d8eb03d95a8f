"""Writes an image's EROFS section and its blobs' decoded spaces into files that Linux can mount.

Verified bytes only. The files appear whole or not at all, and only their owner can read them: they are
plaintext.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from rafsfs.format.erofs import BLOCK_SIZE
from rafsfs.fs.image import OpenImage
from rafsfs.fs.parallel import WAITING, in_order
from rafsfs.limits import MIB
from rafsfs.metadata.space import MetadataSpace
from rafsfs.types import BlobIndex, ChunkIndex, VerifiedBytes

Report = Callable[[int], None]
"""Is told how many bytes were written so far."""


def export_section(image: OpenImage, target: Path) -> int:
    """Write the EROFS metadata section; returns its length in bytes. Raises RafsError or OSError."""
    superblock = image.opened.superblock
    length = superblock.erofs.length
    space = MetadataSpace(image.metadata.load, superblock.page_size, offset=0, length=length)
    with _new_file(target) as fd:
        for start in range(0, length, MIB):
            _write_at(fd, space.read(start, min(MIB, length - start)), start)
    return length


def export_devices(image: OpenImage, folder: Path, *, workers: int, report: Report) -> list[Path]:
    """Write each blob's decoded space into ``folder``, as a file named by its EROFS device slot (1, 2 ...).

    The folder is made if need be; the files are sparse where this image uses no chunk. Raises RafsError or
    OSError.
    """
    folder.mkdir(exist_ok=True)
    written = 0
    devices = []
    with ThreadPoolExecutor(workers, thread_name_prefix="rafsfs-export") as pool:
        for number, entry in enumerate(image.opened.superblock.blobs):
            device = folder / str(number + 1)
            with _new_file(device) as fd:
                os.ftruncate(fd, entry.decoded_blocks * BLOCK_SIZE)
                for start, data in _chunks(image, BlobIndex(number), pool):
                    _write_at(fd, data, start)
                    written += len(data)
                    report(written)
            devices.append(device)
    return devices


def _chunks(
    image: OpenImage, number: BlobIndex, pool: ThreadPoolExecutor
) -> Iterator[tuple[int, VerifiedBytes]]:
    engine = image.filesystem.engine
    chunks = engine.blobs[number].chunks

    def decode(index: int) -> tuple[int, VerifiedBytes]:
        chunk = ChunkIndex(index)
        return chunks.record(chunk).decoded_start, engine.decode(number, chunk)

    return in_order(pool, decode, range(len(chunks)), waiting=WAITING)


@contextmanager
def _new_file(target: Path) -> Iterator[int]:
    """Write beside ``target`` and move there what is complete."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(6)}")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            yield fd
        finally:
            os.close(fd)
        temporary.rename(target)
    except BaseException:
        temporary.unlink()
        raise


def _write_at(fd: int, data: bytes, offset: int) -> None:
    left = memoryview(data)
    while left:
        count = os.pwrite(fd, left, offset)
        offset += count
        left = left[count:]
