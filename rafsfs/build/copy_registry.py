"""A registry's tag as a place that images can be copied to; adapts what uploads, decides nothing."""

from __future__ import annotations

from rafsfs.build.copying import NewBlob
from rafsfs.format.oci import Descriptor
from rafsfs.store.base import Store
from rafsfs.store.http import Http
from rafsfs.store.reference import DEFAULT_TAG, RegistryReference
from rafsfs.store.registry import RegistryStore
from rafsfs.store.registry_upload import RegistryUpload
from rafsfs.store.settings import StoreSettings


class RegistryTarget:
    """A tag of a registry's repository."""

    parallel = True

    def __init__(self, reference: RegistryReference, settings: StoreSettings) -> None:
        self._reference = reference
        self._upload = RegistryUpload(Http(settings), reference)

    def has(self, descriptor: Descriptor) -> bool:
        """See ``Target.has``."""
        return self._upload.has(descriptor)

    def begin(self, descriptor: Descriptor, source: Store) -> NewBlob | None:
        """See ``Target.begin``."""
        reference = source.reference if isinstance(source, RegistryStore) else None
        is_near = reference is not None and reference.host == self._reference.host
        return self._upload.begin(descriptor, reference.repository if reference and is_near else None)

    def put_manifest(self, descriptor: Descriptor, data: bytes) -> None:
        """See ``Target.put_manifest``."""
        self._upload.put_manifest(data, descriptor.media_type, descriptor.digest)

    def commit(self, descriptor: Descriptor, data: bytes) -> None:
        """See ``Target.commit``."""
        self._upload.put_manifest(data, descriptor.media_type, self._reference.tag or DEFAULT_TAG)

    def close(self) -> None:
        """See ``Target.close``; blobs without a manifest are the registry's to collect."""
        self._upload.close()
