"""Writes into an OCI layout folder so that an image appears at once and whole, or not at all.

New blobs are temporary files. They get their names, and the tag moves, in one go at the end, under a lock on
the folder. Whoever writes holds a shared lock on the blobs' directory, by which the next one can tell what a
killed build left, and removes it, from what somebody is writing.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

from rafsfs.build.references import needed_digests
from rafsfs.errors import BuildError, RafsError, StoreError, Where
from rafsfs.format import oci
from rafsfs.format.oci import Descriptor
from rafsfs.format.record import Buffer
from rafsfs.store.oci_layout import blob_path, read_index

_LAYOUT_FILE = "oci-layout"
_LAYOUT = oci.dump_json({"imageLayoutVersion": "1.0.0"})
_INDEX = "index.json"
_BLOBS = "blobs"
_TEMPORARY_PREFIX = ".rafsfs-"
_COPY_BYTES = 1 << 20
_WRITEBACK_BYTES = 16 << 20
_HAS_FADVISE = hasattr(os, "posix_fadvise")  # not on macOS


class NewBlob:
    """A blob while it is written: appended to, hashed on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._hash = hashlib.sha256()
        self._written_back = 0
        self.size = 0

    def write(self, data: Buffer) -> None:
        """Append; raises OSError (a full disk, say) that names the directory."""
        self._hash.update(data)
        self.size += len(data)
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            error.filename = str(self.path.parent)
            raise
        if _HAS_FADVISE and (dirty := self.size - self._written_back) >= _WRITEBACK_BYTES:
            # Linux starts to write dirty pages out, and keeps them (mm/fadvise.c): the end waits for little.
            os.posix_fadvise(self._fd, self._written_back, dirty, os.POSIX_FADV_DONTNEED)
            self._written_back = self.size

    @property
    def sha256(self) -> bytes:
        """Digest of what was written so far."""
        return self._hash.digest()

    def finish(self) -> None:
        """Put it on disk and close it; raises OSError, for a full disk may be noticed only now."""
        try:
            os.fsync(self._fd)
        except OSError as error:
            error.filename = str(self.path.parent)
            raise
        self.close()

    def close(self) -> None:
        """Close it as it is; the file stays."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


class LayoutWriter:
    """One change of a layout folder. Leave its ``with`` without ``commit`` and the folder is as it was."""

    def __init__(self, folder: Path) -> None:
        """Create the folder when it is missing; raises BuildError when it is something else, or OSError."""
        self.folder = folder
        self._blobs = folder / _BLOBS / "sha256"
        self._prefix = f"{_TEMPORARY_PREFIX}{secrets.token_hex(8)}-"
        self._numbers = count()
        self._made: list[Path] = []
        self._open: list[NewBlob] = []
        self._ready: dict[str, Path] = {}
        self._writing = -1
        try:
            self._prepare()
        except BaseException:
            self._undo()
            raise

    def _prepare(self) -> None:
        if self.folder.exists() and not (self.folder / _LAYOUT_FILE).exists():
            # A build that was killed before its first image leaves a folder with nothing but blobs.
            others = [
                path
                for path in self.folder.iterdir()
                if path.name != _BLOBS and not path.name.startswith(_TEMPORARY_PREFIX)
            ]
            if others:
                raise BuildError(
                    "target folder holds something else than images",
                    found=others[0].name,
                    where=Where(path=str(self.folder)),
                    hint="name a new folder, or one that an earlier build made",
                )
        for directory in (*reversed(self.folder.parents), self.folder, self._blobs.parent, self._blobs):
            if not directory.is_dir():
                self._made.append(directory)
                _make_directory(directory)
        self._writing = os.open(self._blobs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        with suppress(BlockingIOError):
            fcntl.flock(self._writing, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while somebody else writes
            _remove(temporary_files(self.folder))
        fcntl.flock(self._writing, fcntl.LOCK_SH)

    def _temporary(self, directory: Path) -> Path:
        return directory / f"{self._prefix}{next(self._numbers)}"

    def new_blob(self) -> NewBlob:
        """Start a blob."""
        blob = NewBlob(self._temporary(self._blobs))
        self._open.append(blob)
        return blob

    def name_blob(self, blob: NewBlob, media_type: str) -> Descriptor:
        """Sync a finished blob, which gets its name when all is committed."""
        blob.finish()
        self._open.remove(blob)
        digest = f"sha256:{blob.sha256.hex()}"
        self._ready[digest] = blob.path
        return Descriptor(media_type, digest, blob.size)

    def path_of(self, descriptor: Descriptor) -> Path:
        """Where a blob lies as long as nothing is committed."""
        return self._ready.get(descriptor.digest) or blob_path(self.folder, descriptor.digest)

    def add_blob(self, data: bytes, media_type: str) -> Descriptor:
        """Write a whole blob."""
        blob = self.new_blob()
        blob.write(data)
        return self.name_blob(blob, media_type)

    def take_blob(self, source: Path, descriptor: Descriptor) -> None:
        """Have another layout's blob here too: linked where that is possible, else copied (and checked)."""
        target = blob_path(self.folder, descriptor.digest)
        temporary = self._temporary(self._blobs)
        for present in (target, source):
            with suppress(OSError):  # missing, on another file system, or on one without links
                os.link(present, temporary)
                self._ready[descriptor.digest] = temporary
                return
        if not target.exists():
            self._copy_blob(source, descriptor)

    def _copy_blob(self, source: Path, descriptor: Descriptor) -> None:
        blob = self.new_blob()
        with source.open("rb") as file:
            while data := file.read(_COPY_BYTES):
                blob.write(data)
        if f"sha256:{blob.sha256.hex()}" != descriptor.digest:
            raise BuildError(
                "dictionary's blob is damaged", expected=descriptor.digest, where=Where(file=str(source))
            )
        self.name_blob(blob, descriptor.media_type)

    def commit(self, manifest: Descriptor, tag: str, *, replaces: str | None = None) -> None:
        """Name all blobs and move ``tag`` to the manifest, which is one of them: now the image is there.

        ``replaces`` is the digest of the manifest that the tag has to lead to until now. Raises StoreError
        when it leads elsewhere, or OSError; the folder is then as it was.
        """
        with locked(self.folder) as lock:
            if replaces is not None and _tagged_digest(self.folder, tag) != replaces:
                raise StoreError(
                    "the image was replaced by somebody else meanwhile",
                    where=Where(file=f"{self.folder}:{tag}"),
                    hint="nothing was changed; look at the new image, and try again",
                )
            named: list[Path] = []
            try:
                self._name_all(named)
                if not (self.folder / _LAYOUT_FILE).exists():
                    named.append(self.folder / _LAYOUT_FILE)
                    self._replace(self.folder / _LAYOUT_FILE, _LAYOUT)
                self._replace(self.folder / _INDEX, _index_with(self.folder, manifest, tag))
                os.fsync(lock)
            except BaseException:
                # An interrupt can come when the tag has moved already; then the image is there, and stays.
                if _tagged_digest(self.folder, tag) != manifest.digest:
                    for path in named:
                        path.unlink(missing_ok=True)
                raise
            self._made.clear()

    def _name_all(self, named: list[Path]) -> None:
        """Give all blobs their names, also over older, perhaps damaged ones; ``named`` gets the new names."""
        for digest, temporary in self._ready.items():
            target = blob_path(self.folder, digest)
            if not target.exists():
                named.append(target)
            temporary.rename(target)
        os.fsync(self._writing)

    def _replace(self, path: Path, data: bytes) -> None:
        blob = NewBlob(self._temporary(self.folder))
        try:
            blob.write(data)
            blob.finish()
        finally:
            blob.close()
        blob.path.rename(path)

    def drop_blobs(self, digests: Collection[str]) -> list[str]:
        """Remove blobs that are superseded; returns those that stay because an image needs them, or might."""
        with locked(self.folder):
            try:
                needed = needed_digests(self.folder)
            except RafsError:
                return list(digests)
            kept = [digest for digest in digests if digest in needed]
            for digest in digests:
                if digest not in kept:
                    blob_path(self.folder, digest).unlink(missing_ok=True)
        return kept

    def __enter__(self) -> LayoutWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._undo()

    def _undo(self) -> None:
        """Remove what was not committed; after a commit there is nothing."""
        for blob in self._open:
            blob.close()
        _remove(temporary_files(self.folder, self._prefix))
        for directory in reversed(self._made):
            with suppress(OSError):  # somebody else has put something there meanwhile
                directory.rmdir()
        if self._writing >= 0:
            os.close(self._writing)
            self._writing = -1


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Keep others from changing names and tags in a layout folder; gives its descriptor."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)


def temporary_files(folder: Path, prefix: str = _TEMPORARY_PREFIX) -> list[Path]:
    """What writers have not finished yet, or were killed over."""
    return [path for place in (folder / _BLOBS / "sha256", folder) for path in place.glob(f"{prefix}*")]


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


def _make_directory(path: Path) -> None:
    try:
        path.mkdir(exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path)) from error


def _tagged_digest(folder: Path, tag: str) -> str | None:
    if not (folder / _INDEX).exists():
        return None
    tagged = [entry for entry in read_index(folder) if entry.annotations.get(oci.ANNOTATION_TAG) == tag]
    return tagged[-1].digest if tagged else None


def _index_with(folder: Path, manifest: Descriptor, tag: str) -> bytes:
    """The index with ``tag`` moved, and all else in it as it was: other tools put more there than we know."""
    index: dict[str, Any] = {"schemaVersion": 2, "mediaType": oci.MEDIA_TYPE_INDEX}
    kept = []
    if (folder / _INDEX).exists():
        present = read_index(folder)
        index = oci.load_json((folder / _INDEX).read_bytes(), "index.json")
        kept = [
            entry
            for entry, descriptor in zip(index["manifests"], present, strict=True)
            if descriptor.annotations.get(oci.ANNOTATION_TAG) != tag
        ]
    tagged = Descriptor(manifest.media_type, manifest.digest, manifest.size, {oci.ANNOTATION_TAG: tag})
    return oci.dump_json(index | {"manifests": [*kept, tagged.to_json()]})
