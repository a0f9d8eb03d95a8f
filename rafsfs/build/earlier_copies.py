"""Finds what a layout folder still holds of an image from before its envelope changed; removes nothing.

Each change writes bootstrap, config and manifest anew. Who pinned the earlier ones by their digest goes on
with them, so they stay; after somebody was removed they are what he can still open.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from rafsfs.errors import RafsError
from rafsfs.format import oci
from rafsfs.format.bootstrap import BOOTSTRAP_MAGIC
from rafsfs.format.envelope import parse_envelope
from rafsfs.format.oci import Manifest
from rafsfs.format.superblock import parse_superblock
from rafsfs.fs.image import read_head
from rafsfs.store.oci_layout import LocalFile, blob_digests, blob_path, read_small_blob

_JSON_START = b"{"


def copies_opened_by(key_ids: Collection[bytes], image_id: bytes, folder: Path) -> list[str]:
    """Digests of all bootstraps of an image that name one of the recipients, and of all that leads to them.

    What is too damaged to tell is left out: nobody opens it. Raises OSError.
    """
    bootstraps: set[str] = set()
    manifests: dict[str, Manifest] = {}
    for digest in blob_digests(folder):
        start = _start(folder, digest)
        if start == BOOTSTRAP_MAGIC:
            if _names(folder, digest, image_id, key_ids):
                bootstraps.add(digest)
        elif start.startswith(_JSON_START):
            manifests |= _manifest(folder, digest)
    found = sorted(bootstraps)
    for digest, manifest in manifests.items():
        if manifest.bootstrap.digest in bootstraps:
            found += [digest, manifest.config.digest]
    return found


def _start(folder: Path, digest: str) -> bytes:
    try:
        with closing(LocalFile(blob_path(folder, digest), digest, None)) as file:
            return file.read_range(0, min(len(BOOTSTRAP_MAGIC), file.size))
    except RafsError:
        return b""  # gone meanwhile, or no file


def _names(folder: Path, digest: str, image_id: bytes, key_ids: Collection[bytes]) -> bool:
    try:
        with closing(LocalFile(blob_path(folder, digest), digest, None)) as file:
            head = read_head(file, None)
        if parse_superblock(head.superblock).image_id != image_id:
            return False
        return any(recipient.key_id in key_ids for recipient in parse_envelope(head.envelope).recipients)
    except RafsError:
        return False


def _manifest(folder: Path, digest: str) -> dict[str, Manifest]:
    try:
        return {digest: oci.parse_manifest(read_small_blob(folder, digest, "manifest"))}
    except RafsError:
        return {}  # a config, or a document of something else
