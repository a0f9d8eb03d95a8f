"""Images in an OCI layout folder that is reached over a network; leaves to others how files are fetched."""

from __future__ import annotations

from collections.abc import Callable

from rafsfs.errors import BlobNotFound, ImageNotFound
from rafsfs.format import oci
from rafsfs.format.oci import Descriptor
from rafsfs.store.base import RemoteFile


class RemoteLayoutStore:
    """A layout below a URL."""

    def __init__(
        self,
        name: str,
        small: Callable[[str], bytes],
        remote: Callable[[str, Descriptor], RemoteFile],
        close: Callable[[], None],
    ) -> None:
        """``small(path)`` gives a whole file of bounded length, ``remote(path, descriptor)`` opens a large
        one; paths are relative to the layout.
        """
        self.name = name
        self._small = small
        self._remote = remote
        self._close = close

    def find(self, tag: str | None, digest: str | None) -> Descriptor:
        """See ``Store.find``."""
        try:
            data = self._small("index.json")
        except BlobNotFound:
            raise ImageNotFound(
                f"no image at {self.name!r}", hint="expected an OCI layout: index.json and blobs below it"
            ) from None
        entries = oci.parse_index(data)
        return oci.described(digest, entries) if digest is not None else oci.tagged(tag, entries, self.name)

    def manifest(self, descriptor: Descriptor) -> bytes:
        """See ``Store.manifest``."""
        return self.document(descriptor, "manifest")

    def document(self, descriptor: Descriptor, what: str) -> bytes:
        """See ``Store.document``."""
        data = self._small(_path(descriptor))
        oci.check_digest(data, descriptor.digest, what)
        return data

    def open(self, descriptor: Descriptor) -> RemoteFile:
        """See ``Store.open``; asks nobody yet."""
        return self._remote(_path(descriptor), descriptor)

    def close(self) -> None:
        """See ``Store.close``."""
        self._close()


def _path(descriptor: Descriptor) -> str:
    algorithm, _, encoded = descriptor.digest.partition(":")
    return f"blobs/{algorithm}/{encoded}"
