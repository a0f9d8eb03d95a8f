"""Images in an OCI image layout folder (OCI image-spec, image-layout.md); opens and reads, never writes."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

from rafsfs.errors import (
    COPY_AGAIN,
    BlobNotFound,
    Denied,
    ImageNotFound,
    LengthMismatch,
    RafsError,
    StoreError,
    StoreUnavailable,
    Where,
)
from rafsfs.format import oci
from rafsfs.format.oci import Descriptor, Manifest
from rafsfs.limits import OCI_JSON_BYTES_MAX
from rafsfs.store.base import Store
from rafsfs.store.reference import Reference
from rafsfs.types import EncodedBytes

_BLOB_NAME = re.compile(r"[0-9a-f]{64}")


class LocalFile:
    """A file of the layout, open. ``os.pread`` copies, so a later change by others cannot reach checked
    bytes.
    """

    def __init__(self, path: Path, name: str, size: int | None) -> None:
        """Open ``path``; raises BlobNotFound, Denied or another StoreError, LengthMismatch unless it has
        ``size``.
        """
        self.name = name
        try:
            # NONBLOCK: opening a fifo that nobody writes to would wait for ever
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise _store_error(error, path, name) from None
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise StoreError(f"{name} is not a regular file", where=Where(file=str(path)))
        self.size = status.st_size
        if size is not None and size != self.size:
            self.close()
            raise LengthMismatch(
                "stored file's length",
                expected=size,
                found=self.size,
                where=Where(file=str(path)),
                hint=COPY_AGAIN,
            )

    def read_range(self, offset: int, length: int) -> EncodedBytes:
        """See ``StoredFile.read_range``."""
        if offset + length > self.size:  # also keeps offsets that no file can have away from pread
            raise LengthMismatch(
                "blob ends too early",
                expected=f"{offset + length} bytes",
                found=self.size,
                hint=COPY_AGAIN,
            ).at(blob=self.name, offset=offset)
        try:
            data = os.pread(self._fd, length, offset)
            while len(data) < length:
                more = os.pread(self._fd, length - len(data), offset + len(data))
                if not more:
                    break
                data += more
        except OSError as error:
            raise StoreUnavailable(f"reading the blob failed: {error.strerror}").at(
                blob=self.name, offset=offset
            ) from None
        if len(data) != length:
            raise LengthMismatch(
                "blob ends too early",
                expected=f"{length} bytes",
                found=len(data),
                hint=f"the file was truncated; {COPY_AGAIN}",
            ).at(blob=self.name, offset=offset)
        return EncodedBytes(data)

    def read_cached(self, offset: int, length: int) -> bytes | None:
        """What the kernel has in memory of these bytes; None when that is not all of them.

        Raises OSError EOPNOTSUPP where its file system cannot tell. For who passes on what is stored.
        """
        buffer = bytearray(length)
        try:
            read = os.preadv(self._fd, [buffer], offset, os.RWF_NOWAIT)
        except BlockingIOError:
            return None
        return bytes(buffer) if read == length else None

    def close(self) -> None:
        """See ``StoredFile.close``."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _store_error(error: OSError, path: Path, name: str) -> StoreError:
    where = Where(file=str(path))
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return BlobNotFound(
            f"{name} is not in the store", where=where, hint="copy the image again, it is incomplete"
        )
    if isinstance(error, PermissionError):
        return Denied(f"{name} may not be read", where=where)
    return StoreUnavailable(f"{name} cannot be opened: {error.strerror}", where=where)


@dataclass(frozen=True, slots=True)
class LayoutStore:
    """All images of a layout folder."""

    folder: Path

    @property
    def name(self) -> str:
        """How errors call it."""
        return str(self.folder)

    def find(self, tag: str | None, digest: str | None) -> Descriptor:
        """See ``Store.find``."""
        entries = read_index(self.folder)
        if digest is not None:
            return oci.described(digest, entries)
        return oci.tagged(tag, entries, self.name)

    def manifest(self, descriptor: Descriptor) -> bytes:
        """See ``Store.manifest``."""
        return read_small_blob(self.folder, descriptor.digest, "manifest")

    def document(self, descriptor: Descriptor, what: str) -> bytes:
        """See ``Store.document``."""
        return read_small_blob(self.folder, descriptor.digest, what)

    def open(self, descriptor: Descriptor) -> LocalFile:
        """See ``Store.open``."""
        return LocalFile(blob_path(self.folder, descriptor.digest), descriptor.digest, descriptor.size)

    def close(self) -> None:
        """See ``Store.close``; nothing stays open."""


@dataclass(frozen=True, slots=True)
class LayoutImage:
    """One image of a layout: its manifest, and files by descriptor."""

    folder: Path
    manifest_digest: str
    manifest: Manifest

    @property
    def store(self) -> LayoutStore:
        """The folder as a store."""
        return LayoutStore(self.folder)

    def open(self, descriptor: Descriptor) -> LocalFile:
        """Open one of the image's files; raises StoreError."""
        return LocalFile(blob_path(self.folder, descriptor.digest), descriptor.digest, descriptor.size)


def blob_path(folder: Path, digest: str) -> Path:
    """Where a layout keeps the blob with this digest."""
    algorithm, _, encoded = digest.partition(":")
    return folder / "blobs" / algorithm / encoded


def blob_digests(folder: Path) -> list[str]:
    """Digests of all blobs that a layout has, in their order, whether an image needs them or not."""
    names = os.listdir(blob_path(folder, "sha256:"))  # noqa: PTH208  # names are all that is asked for
    return [f"sha256:{name}" for name in sorted(names) if _BLOB_NAME.fullmatch(name)]


def read_index(folder: Path) -> list[Descriptor]:
    """All manifests in a layout; raises ImageNotFound when the folder is none."""
    try:
        data = read_small_file(folder / "index.json", "index.json")
    except BlobNotFound:
        raise ImageNotFound(f"no image at {str(folder)!r}", hint="expected an OCI layout folder") from None
    try:
        return oci.parse_index(data)
    except RafsError as error:
        raise error.at(file=str(folder / "index.json")) from None


def find_image(reference: Reference) -> LayoutImage:
    """Find an image by tag or digest and read its manifest, whose digest is always checked.

    Raises ImageNotFound, StoreError, FormatError, or DigestMismatch.
    """
    store = LayoutStore(reference.folder)
    found = store.find(reference.tag, reference.digest)
    data = found_manifest(store, found)
    try:
        return LayoutImage(reference.folder, found.digest, oci.parse_manifest(data))
    except RafsError as error:
        raise error.at(file=str(reference.folder)) from None


def found_manifest(store: Store, found: Descriptor) -> bytes:
    """The manifest or index that was found by its tag or digest; raises as ``Store.manifest``.

    Raises TagNotFound for a digest that nothing in the store has said anything about.
    """
    try:
        return store.manifest(found)
    except BlobNotFound:
        if found.size:
            raise
        raise oci.no_image_with(found.digest, store.name) from None


def read_small_blob(folder: Path, digest: str, what: str) -> bytes:
    """Read a JSON blob and check its digest; raises StoreError or DigestMismatch."""
    data = read_small_file(blob_path(folder, digest), what)
    try:
        oci.check_digest(data, digest, what)
    except RafsError as error:
        raise error.at(file=str(blob_path(folder, digest))) from None
    return data


def read_small_file(path: Path, name: str) -> bytes:
    """Read a file of at most ``OCI_JSON_BYTES_MAX`` bytes, or one byte more; raises StoreError."""
    file = LocalFile(path, name, None)
    try:
        return file.read_range(0, min(file.size, OCI_JSON_BYTES_MAX + 1))
    finally:
        file.close()
