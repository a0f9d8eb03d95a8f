"""Builds and opens images for tests with keys that are known to everybody; never used by the package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rafsfs.build.builder import build_image
from rafsfs.build.directory_source import DirectorySource
from rafsfs.build.options import BuildOptions
from rafsfs.build.source import Source
from rafsfs.errors import WrongKey
from rafsfs.format.chunk import Suite
from rafsfs.fs.checking import check_image
from rafsfs.fs.image import OpenImage, open_sealed
from rafsfs.limits import MIB
from rafsfs.metadata.space import MetadataSpace
from rafsfs.store.reference import Reference
from rafsfs.trust.keys import KeyRing
from rafsfs.trust.material import SymmetricKey
from rafsfs.trust.opening import TrustPolicy
from rafsfs.types import BlobIndex, ChunkIndex

KEY = SymmetricKey(bytes(range(32)))
DEDUP_SECRET = SymmetricKey(bytes(range(32, 64)))
CACHE_BYTES = 64 * MIB


def build(
    source: Source | Path,
    folder: Path,
    tag: str = "latest",
    *,
    dictionaries: Sequence[Reference] = (),
    **options: Any,
) -> Reference:
    """Build an image for ``KEY``, or for nobody when unencrypted; ``options`` as in ``BuildOptions``."""
    if options.get("suite", Suite.AES_256_GCM).encrypts:
        options.setdefault("recipients", (KEY,))
    if isinstance(source, Path):
        source = DirectorySource(source)
    target = Reference(folder, tag)
    images = [opened(dictionary) for dictionary in dictionaries]
    try:
        build_image(source, target, BuildOptions(**options), dictionaries=images)
    finally:
        source.close()
        for image in images:
            image.close()
    return target


def opened(reference: Reference, *, cache_bytes: int = CACHE_BYTES) -> OpenImage:
    """Open it with ``KEY``; without one in the integrity-only suite, where a key is refused."""
    try:
        return open_sealed(reference, KeyRing(symmetric=(KEY,)), TrustPolicy(), cache_bytes=cache_bytes)
    except WrongKey:
        return open_sealed(reference, KeyRing(), TrustPolicy(), cache_bytes=cache_bytes)


def export_erofs(image: OpenImage, folder: Path) -> tuple[Path, list[Path]]:
    """Write the metadata section and each blob's decoded space (sparse) into files; what a kernel mounts."""
    superblock = image.opened.superblock
    space = MetadataSpace(image.metadata.load, superblock.page_size, offset=0, length=superblock.erofs.length)
    metadata = folder / "metadata.erofs"
    metadata.write_bytes(space.read(0, superblock.erofs.length))
    devices = []
    for number, blob in enumerate(image.filesystem.engine.blobs):
        device = folder / f"device{number}"
        with device.open("wb") as file:
            for index in range(len(blob.chunks)):
                file.seek(blob.chunks.record(ChunkIndex(index)).decoded_start)
                file.write(image.filesystem.engine.decode(BlobIndex(number), ChunkIndex(index)))
            file.truncate(superblock.blobs[number].decoded_blocks * 4096)
        devices.append(device)
    return metadata, devices


def assert_sound(reference: Reference) -> None:
    """Fail with what the check of the whole image, files and digests included, finds wrong."""
    with opened(reference) as image:
        keys = KeyRing(symmetric=(KEY,)) if image.opened.superblock.suite.encrypts else KeyRing()
    result = check_image(reference, keys, TrustPolicy(), cache_bytes=CACHE_BYTES)
    assert not result.problems.count, [str(problem.error) for problem in result.problems.kept]
