"""What every store offers; nothing that it returns is believed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from rafsfs.errors import StoreUnavailable
from rafsfs.format.oci import Descriptor, Manifest
from rafsfs.types import EncodedBytes


class UploadLost(StoreUnavailable):
    """What was written to a store until now is lost there; it may be written anew."""


class StoredFile(Protocol):
    """One file of an image (blob or bootstrap) in a store. Any thread may read it."""

    @property
    def name(self) -> str:
        """How errors and logs call it: its OCI digest."""
        ...

    @property
    def size(self) -> int:
        """Bytes it claims to have."""
        ...

    def read_range(self, offset: int, length: int) -> EncodedBytes:
        """A private copy of exactly these bytes.

        Raises LengthMismatch when the file ends before, StoreUnavailable when it cannot be read now.
        """
        ...

    def close(self) -> None:
        """Let go of what reading needs; readers still under way may fail."""
        ...


@runtime_checkable
class RemoteFile(StoredFile, Protocol):
    """A file that is read over a network: requests cost round trips, and answers come piece by piece."""

    def stream_range(
        self, offset: int, length: int, take: Callable[[bytes], None], *, afresh: bool = False
    ) -> None:
        """Call ``take`` with exactly these bytes, piece by piece in order, as they come in.

        ``afresh`` asks the origin itself, past mirrors and caches: what came before was not what it should
        be. Raises as ``read_range`` does, and Denied; what was taken until then is not taken back.
        """
        ...


@runtime_checkable
class Recoverable(Protocol):
    """A file that may have given what somebody put in the way, and can get the same from where it belongs."""

    def again(self, offset: int, length: int) -> EncodedBytes | None:
        """The bytes of this range anew, for whoever found that those of ``read_range`` are others.

        None where they come from nowhere else. Raises as ``read_range`` does.
        """
        ...


@runtime_checkable
class Distant(Protocol):
    """A file whose bytes have to be fetched before they can be read."""

    def at_hand(self, offset: int, length: int) -> EncodedBytes | None:
        """The bytes of this range if they are on this machine, as ``read_range`` gives them, else None."""
        ...


class Store(Protocol):
    """One place with images in it: a folder, an archive, a repository. Any thread may use it."""

    @property
    def name(self) -> str:
        """How errors call it."""
        ...

    def find(self, tag: str | None, digest: str | None) -> Descriptor:
        """What a tag, or a digest, leads to: a manifest or an index. Raises ImageNotFound, StoreError."""
        ...

    def manifest(self, descriptor: Descriptor) -> bytes:
        """A manifest or an index, whose digest was checked. Raises StoreError, DigestMismatch."""
        ...

    def document(self, descriptor: Descriptor, what: str) -> bytes:
        """A small blob, whose digest was checked; ``what`` names it in errors. Raises as ``manifest``."""
        ...

    def open(self, descriptor: Descriptor) -> StoredFile:
        """Open a blob; raises StoreError."""
        ...

    def close(self) -> None:
        """Let go of files and connections."""
        ...


class StoredImage(Protocol):
    """A sealed image in a store: its manifest, and files by descriptor."""

    @property
    def store(self) -> Store:
        """Where it is."""
        ...

    @property
    def manifest_digest(self) -> str:
        """OCI digest of the manifest; it was checked."""
        ...

    @property
    def manifest(self) -> Manifest:
        """The manifest."""
        ...

    def open(self, descriptor: Descriptor) -> StoredFile:
        """Open one of the image's files; raises StoreError."""
        ...
