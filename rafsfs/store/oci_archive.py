"""Images in a tar file that holds an OCI layout (skopeo's oci-archive); reads files where they lie in it."""

from __future__ import annotations

import posixpath
import tarfile
from pathlib import Path

from rafsfs.errors import BlobNotFound, FormatError, ImageNotFound, LengthMismatch, Where
from rafsfs.format import oci
from rafsfs.format.oci import Descriptor
from rafsfs.limits import ARCHIVE_MEMBERS_MAX, OCI_JSON_BYTES_MAX
from rafsfs.store.oci_layout import LocalFile
from rafsfs.types import EncodedBytes


class ArchiveStore:
    """All images of one archive, which stays open. Any thread may read it."""

    def __init__(self, file: Path) -> None:
        """List what is in the archive; raises ImageNotFound, FormatError, StoreError."""
        self.name = f"oci-archive:{file}"
        try:
            self._file = LocalFile(file, self.name, None)
        except BlobNotFound:
            raise ImageNotFound(f"no archive at {str(file)!r}") from None
        try:
            self._members = archive_members(file, file)
            index = self._small("index.json")
        except BaseException:
            self.close()
            raise
        self._entries = oci.parse_index(index)

    def find(self, tag: str | None, digest: str | None) -> Descriptor:
        """See ``Store.find``; without a tag it is the only image in the archive."""
        if digest is not None:
            return oci.described(digest, self._entries)
        return oci.tagged(tag, self._entries, self.name)

    def manifest(self, descriptor: Descriptor) -> bytes:
        """See ``Store.manifest``."""
        return self.document(descriptor, "manifest")

    def document(self, descriptor: Descriptor, what: str) -> bytes:
        """See ``Store.document``."""
        data = self._small(_blob_name(descriptor.digest))
        oci.check_digest(data, descriptor.digest, what)
        return data

    def open(self, descriptor: Descriptor) -> ArchivedFile:
        """See ``Store.open``."""
        offset, size = self._place(_blob_name(descriptor.digest))
        if size != descriptor.size:
            raise LengthMismatch(
                "stored file's length", expected=descriptor.size, found=size, where=Where(file=self.name)
            )
        return ArchivedFile(self._file, descriptor.digest, offset, size)

    def close(self) -> None:
        """See ``Store.close``."""
        self._file.close()

    def _place(self, name: str) -> tuple[int, int]:
        if name not in self._members:
            raise BlobNotFound(f"{name} is not in the archive", where=Where(file=self.name))
        return self._members[name]

    def _small(self, name: str) -> bytes:
        offset, size = self._place(name)
        return self._file.read_range(offset, min(size, OCI_JSON_BYTES_MAX + 1))


class ArchivedFile:
    """A blob inside an archive."""

    def __init__(self, archive: LocalFile, name: str, start: int, size: int) -> None:
        self.name = name
        self.size = size
        self._archive = archive
        self._start = start

    def read_range(self, offset: int, length: int) -> EncodedBytes:
        """See ``StoredFile.read_range``."""
        if offset + length > self.size:
            raise LengthMismatch(
                "blob ends too early", expected=f"{offset + length} bytes", found=self.size
            ).at(blob=self.name, offset=offset)
        return self._archive.read_range(self._start + offset, length)

    def close(self) -> None:
        """See ``StoredFile.close``; the archive belongs to the store."""


def _blob_name(digest: str) -> str:
    algorithm, _, encoded = digest.partition(":")
    return f"blobs/{algorithm}/{encoded}"


def archive_members(file: Path, named: Path) -> dict[str, tuple[int, int]]:
    """Name -> (offset, length) of the regular files of a tar file and links to them.

    Raises FormatError, which calls the file ``named``.
    """
    found: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    try:
        with tarfile.open(file, "r:") as archive:
            for count, member in enumerate(archive):
                if count >= ARCHIVE_MEMBERS_MAX:
                    raise FormatError(
                        "the archive has too many files",
                        expected=f"at most {ARCHIVE_MEMBERS_MAX}",
                        where=Where(file=str(named)),
                    )
                name = member.name.removeprefix("./")
                if member.isreg() and not member.issparse():
                    found[name] = member.offset_data, member.size
                elif member.issym():  # `docker save` of old stores a layer once
                    links[name] = posixpath.normpath(f"{posixpath.dirname(name)}/{member.linkname}")
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise FormatError(
            "not a tar file",
            found=type(error).__name__,
            where=Where(file=str(named)),
            hint="if it is compressed, unpack it first",
        ) from None
    found |= {name: found[target] for name, target in links.items() if target in found}
    return found
