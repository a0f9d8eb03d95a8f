"""From a reference to the store that it names and the image in it; imports what only some references need
when there is one.
"""

from __future__ import annotations

import platform
from dataclasses import dataclass

from rafsfs.errors import RafsError
from rafsfs.format import oci
from rafsfs.format.oci import Descriptor, Manifest
from rafsfs.store.base import Store, StoredFile, StoredImage
from rafsfs.store.oci_layout import LayoutImage, LayoutStore, found_manifest
from rafsfs.store.reference import (
    ArchiveReference,
    BucketReference,
    ImageReference,
    Reference,
)
from rafsfs.store.settings import StoreSettings

_GO_NAMES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image in a store that is no folder; see ``StoredImage``."""

    store: Store
    manifest_digest: str
    manifest: Manifest

    def open(self, descriptor: Descriptor) -> StoredFile:
        """See ``StoredImage.open``."""
        return self.store.open(descriptor)


def open_store(reference: ImageReference, settings: StoreSettings) -> Store:
    """The store that holds, or is to hold, an image. Close it. Raises StoreError."""
    if isinstance(reference, Reference):
        return LayoutStore(reference.folder)
    if isinstance(reference, ArchiveReference):
        from rafsfs.store.oci_archive import ArchiveStore

        return ArchiveStore(reference.file)
    if isinstance(reference, BucketReference):
        return _open_url(reference.url, settings)
    from rafsfs.store.http import Http
    from rafsfs.store.registry import RegistryStore

    return RegistryStore(Http(settings), reference)


def _open_url(url: str, settings: StoreSettings) -> Store:
    from rafsfs.store.remote_layout import RemoteLayoutStore

    if url.startswith("http"):
        from rafsfs.store.http import Http
        from rafsfs.store.web import WebFolder

        folder = WebFolder(Http(settings), url)
        return RemoteLayoutStore(url, folder.small, folder.open, folder.close)
    from rafsfs.store.bucket import Bucket

    bucket = Bucket(url, settings)
    return RemoteLayoutStore(url, bucket.small, bucket.open, bucket.close)


def find_stored(reference: ImageReference, settings: StoreSettings | None = None) -> StoredImage:
    """Find a sealed image and read its manifest, whose digest is always checked. Close its ``store``.

    Raises ImageNotFound, StoreError, FormatError, or DigestMismatch.
    """
    store = open_store(reference, settings or StoreSettings())
    try:
        found = store.find(reference.tag, reference.digest)
        data = found_manifest(store, found)
        if found.media_type in oci.INDEXES:
            found = oci.choose_platform(data, architecture())
            data = store.manifest(found)
        try:
            manifest = oci.parse_manifest(data)
        except RafsError as error:
            raise error.at(file=store.name) from None
    except BaseException:
        store.close()
        raise
    if isinstance(store, LayoutStore):
        return LayoutImage(store.folder, found.digest, manifest)
    return FoundImage(store, found.digest, manifest)


def architecture() -> str:
    """This machine's, as OCI documents call it."""
    machine = platform.machine()
    return _GO_NAMES.get(machine, machine)
