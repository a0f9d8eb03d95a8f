"""Folders and archives that images can be copied to; each keeps a whole image or nothing."""

from __future__ import annotations

import hashlib
import os
import secrets
import tarfile
from contextlib import suppress
from pathlib import Path

from rafsfs.build import layout_writer
from rafsfs.build.copying import NewBlob
from rafsfs.errors import BuildError, Where
from rafsfs.format import oci
from rafsfs.format.oci import Descriptor
from rafsfs.store.base import Store
from rafsfs.store.oci_layout import blob_path
from rafsfs.store.reference import DEFAULT_TAG, ArchiveReference, Reference


class LayoutTarget:
    """A tag of a layout folder."""

    parallel = True

    def __init__(self, reference: Reference) -> None:
        self._tag = reference.tag or DEFAULT_TAG
        self._writer = layout_writer.LayoutWriter(reference.folder)

    def has(self, descriptor: Descriptor) -> bool:
        """See ``Target.has``. A file that is there is linked, so that nobody removes it meanwhile; a damaged
        one counts as missing.
        """
        path = blob_path(self._writer.folder, descriptor.digest)
        try:
            with path.open("rb") as file:
                if f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}" != descriptor.digest:
                    return False
        except FileNotFoundError:
            return False
        self._writer.take_blob(path, descriptor)
        return True

    def begin(self, descriptor: Descriptor, source: Store) -> NewBlob | None:  # noqa: ARG002  # Target's
        """See ``Target.begin``."""
        return _LayoutBlob(self._writer, descriptor)

    def put_manifest(self, descriptor: Descriptor, data: bytes) -> None:
        """See ``Target.put_manifest``."""
        self._writer.add_blob(data, descriptor.media_type)

    def commit(self, descriptor: Descriptor, data: bytes) -> None:
        """See ``Target.commit``."""
        self._writer.commit(self._writer.add_blob(data, descriptor.media_type), self._tag)

    def close(self) -> None:
        """See ``Target.close``."""
        self._writer.__exit__(None, None, None)


class _LayoutBlob:
    def __init__(self, writer: layout_writer.LayoutWriter, descriptor: Descriptor) -> None:
        self._writer = writer
        self._descriptor = descriptor
        self._blob = writer.new_blob()

    def write(self, data: bytes) -> None:
        self._blob.write(data)

    def finish(self) -> None:
        self._writer.name_blob(self._blob, self._descriptor.media_type)

    def cancel(self) -> None:
        """Nothing to do: it has no name, and the writer removes it."""


class ArchiveTarget:
    """A new tar file with one image's layout in it."""

    parallel = False

    def __init__(self, reference: ArchiveReference) -> None:
        """Raises BuildError when the file exists: an archive is not changed."""
        self._file = reference.file
        self._tag = reference.tag
        if self._file.exists():
            raise BuildError(
                "the archive exists", where=Where(path=str(self._file)), hint="remove it, or name a new one"
            )
        self._temporary = self._file.with_name(f".{self._file.name}.{secrets.token_hex(8)}")
        descriptor = os.open(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._stream = os.fdopen(descriptor, "wb")
        self._names: set[str] = set()
        self.add(oci.LAYOUT_FILE, oci.dump_json({"imageLayoutVersion": oci.LAYOUT_VERSION}))

    def add(self, name: str, data: bytes) -> None:
        """Append a file."""
        self.add_header(name, len(data))
        self._stream.write(data)
        self.add_padding(len(data))

    def add_header(self, name: str, size: int) -> None:
        """Begin a file of ``size`` bytes, which are to follow."""
        entry = tarfile.TarInfo(name)
        entry.size, entry.mode = size, 0o644
        self._stream.write(entry.tobuf(tarfile.GNU_FORMAT))
        self._names.add(name)

    def add_padding(self, size: int) -> None:
        """End a file of ``size`` bytes."""
        self._stream.write(bytes(-size % tarfile.BLOCKSIZE))

    def write(self, data: bytes) -> None:
        """Append to the file that was begun last."""
        self._stream.write(data)

    def has(self, descriptor: Descriptor) -> bool:
        """See ``Target.has``."""
        return _archived(descriptor) in self._names

    def begin(self, descriptor: Descriptor, source: Store) -> NewBlob | None:  # noqa: ARG002  # Target's
        """See ``Target.begin``."""
        self.add_header(_archived(descriptor), descriptor.size)
        return _ArchivedBlob(self, descriptor)

    def put_manifest(self, descriptor: Descriptor, data: bytes) -> None:
        """See ``Target.put_manifest``."""
        self.add(_archived(descriptor), data)

    def commit(self, descriptor: Descriptor, data: bytes) -> None:
        """See ``Target.commit``."""
        self.add(_archived(descriptor), data)
        named = {oci.ANNOTATION_TAG: self._tag} if self._tag else {}
        entry = Descriptor(descriptor.media_type, descriptor.digest, len(data), named)
        index = {"schemaVersion": 2, "mediaType": oci.MEDIA_TYPE_INDEX, "manifests": [entry.to_json()]}
        self.add("index.json", oci.dump_json(index))
        self._stream.write(bytes(2 * tarfile.BLOCKSIZE))
        self._stream.flush()
        os.fsync(self._stream.fileno())
        self._temporary.rename(self._file)

    def close(self) -> None:
        """See ``Target.close``."""
        self._stream.close()
        with suppress(FileNotFoundError):
            self._temporary.unlink()


class _ArchivedBlob:
    def __init__(self, archive: ArchiveTarget, descriptor: Descriptor) -> None:
        self._archive = archive
        self._descriptor = descriptor

    def write(self, data: bytes) -> None:
        self._archive.write(data)

    def finish(self) -> None:
        self._archive.add_padding(self._descriptor.size)

    def cancel(self) -> None:
        """Nothing to do: the whole archive is not kept."""


def _archived(descriptor: Descriptor) -> str:
    return "/".join(blob_path(Path(), descriptor.digest).parts)
