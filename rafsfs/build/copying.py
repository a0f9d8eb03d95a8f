"""Copies images between layout folders, archives and registries, byte for byte; needs no key, opens nothing.

Manifests are never rewritten, so annotations, digests and signatures stay what they are. Every blob is hashed
on its way; one with another digest than its manifest says ends the copy, and the target is as it was.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Final, Protocol

from rafsfs.errors import BuildError, DigestMismatch, LengthMismatch, LimitExceeded
from rafsfs.format import oci
from rafsfs.format.oci import Descriptor
from rafsfs.limits import OCI_INDEX_DEPTH_MAX, OCI_LAYERS_MAX
from rafsfs.store.base import RemoteFile, Store, UploadLost
from rafsfs.store.reference import ArchiveReference, ImageReference, Reference, RegistryReference
from rafsfs.store.settings import StoreSettings
from rafsfs.store.stores import open_store

PIECE_BYTES: Final = 8 << 20  # of one request: 0.7 s at 100 Mbit/s, so that round trips hardly count
LOCAL_PIECE_BYTES: Final = 1 << 20
WORKERS: Final = 3  # blobs on their way at once: enough to hide the questions between them
UPLOADS_MAX: Final = 3  # of one blob: some registries cannot go on with one whose answer got lost
_DEADLINE_S: Final = 300.0  # of one piece, unless more is asked for: nobody waits for a single read here

Report = Callable[[int, int], None]
"""``report(done, total)`` in bytes, called often, from any thread."""


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy did. ``present`` blobs were there already, ``mounted`` ones in another repository there."""

    digest: str
    blobs: int = 0
    sent: int = 0
    sent_bytes: int = 0
    present: int = 0
    mounted: int = 0


class NewBlob(Protocol):
    """A blob on its way into a target; for one thread."""

    def write(self, data: bytes) -> None:
        """Append."""
        ...

    def finish(self) -> None:
        """It is whole, and its digest was checked."""
        ...

    def cancel(self) -> None:
        """It is not to be kept."""
        ...


class Target(Protocol):
    """Where an image is copied to. Blobs may be put by several threads if ``parallel``."""

    parallel: bool

    def has(self, descriptor: Descriptor) -> bool:
        """Whether it has a blob already."""
        ...

    def begin(self, descriptor: Descriptor, source: Store) -> NewBlob | None:
        """Start a blob; None when the target got it from ``source`` in a way of its own."""
        ...

    def put_manifest(self, descriptor: Descriptor, data: bytes) -> None:
        """Keep a manifest all of whose blobs are there; one that belongs to an index, not the tagged one."""
        ...

    def commit(self, descriptor: Descriptor, data: bytes) -> None:
        """Keep the manifest that the reference is to lead to; now the image is there."""
        ...

    def close(self) -> None:
        """Let go of everything; without a commit nothing is left behind."""
        ...


def copy_image(
    source: ImageReference, target: ImageReference, settings: StoreSettings, report: Report | None = None
) -> Copied:
    """Copy an image, and with an index all images in it.

    Raises ImageNotFound, StoreError, DigestMismatch, FormatError, BuildError, OSError; then what the target
    reference led to before is unchanged.
    """
    if target.digest is not None:
        raise BuildError("a copy is named by a tag, not by a digest", found=str(target))
    patient = replace(settings, deadline_s=max(settings.deadline_s, _DEADLINE_S))
    with closing(open_store(source, patient)) as store, closing(_open_target(target, patient)) as sink:
        found = store.find(source.tag, source.digest)
        found, data = _with_size(found, store.manifest(found))
        manifests = list(_manifests(store, found, data, OCI_INDEX_DEPTH_MAX))
        copy = _Copy(store, sink, _blobs(manifests), report)
        copy.run()
        for descriptor, document in manifests[1:]:
            sink.put_manifest(descriptor, document)
        sink.commit(found, data)
        return copy.done(found.digest)


def _open_target(reference: ImageReference, settings: StoreSettings) -> Target:
    if isinstance(reference, RegistryReference):
        from rafsfs.build.copy_registry import RegistryTarget

        return RegistryTarget(reference, settings)
    from rafsfs.build import copy_targets

    if isinstance(reference, Reference):
        return copy_targets.LayoutTarget(reference)
    if isinstance(reference, ArchiveReference):
        return copy_targets.ArchiveTarget(reference)
    raise BuildError(
        "images cannot be copied there",
        found=str(reference),
        hint="copy it into a folder, and that to the bucket with its own tools",
    )


def _with_size(descriptor: Descriptor, data: bytes) -> tuple[Descriptor, bytes]:
    """A descriptor as its document says: references by digest know neither size nor kind."""
    stated = oci.load_json(data, "manifest").get("mediaType")
    media_type = stated if isinstance(stated, str) else descriptor.media_type
    return Descriptor(media_type, descriptor.digest, len(data), descriptor.annotations), data


def _manifests(
    store: Store, descriptor: Descriptor, data: bytes, depth: int
) -> Iterator[tuple[Descriptor, bytes]]:
    """A manifest, or an index and before its end all that it leads to; the outermost one first."""
    yield descriptor, data
    if descriptor.media_type not in oci.INDEXES:
        return
    if not depth:
        raise LimitExceeded(
            "image indexes lead to each other", expected=f"at most {OCI_INDEX_DEPTH_MAX} deep"
        )
    for entry in oci.index_entries(data):
        yield from _manifests(store, *_with_size(entry, store.manifest(entry)), depth - 1)


def _blobs(manifests: list[tuple[Descriptor, bytes]]) -> list[Descriptor]:
    """All blobs that manifests name, each once, in their order."""
    found: dict[str, Descriptor] = {}
    for descriptor, data in manifests:
        if descriptor.media_type in oci.INDEXES:
            continue
        for blob in oci.manifest_parts(data):
            found.setdefault(blob.digest, blob)
    if len(found) > OCI_LAYERS_MAX * 16:
        raise LimitExceeded("blobs of an image", expected=f"at most {OCI_LAYERS_MAX * 16}", found=len(found))
    return list(found.values())


class _Copy:
    """The blobs of one copy."""

    def __init__(self, store: Store, target: Target, blobs: list[Descriptor], report: Report | None) -> None:
        self._store = store
        self._target = target
        self._blobs = blobs
        self._report = report
        self._total = sum(blob.size for blob in blobs)
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._passed = 0
        self._counts = {"sent": 0, "sent_bytes": 0, "present": 0, "mounted": 0}

    def run(self) -> None:
        """Copy them all; the first failure ends it."""
        workers = WORKERS if self._target.parallel else 1
        with ThreadPoolExecutor(workers, thread_name_prefix="rafsfs-copy") as pool:
            try:
                for _ in pool.map(self._copy, self._blobs):
                    pass
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
                raise

    def done(self, digest: str) -> Copied:
        """What was done."""
        return Copied(digest, len(self._blobs), **self._counts)

    def _note(self, passed: int, **counts: int) -> None:
        with self._lock:
            self._passed += passed
            for name, count in counts.items():
                self._counts[name] += count
            if self._report is not None:
                self._report(self._passed, self._total)

    def _copy(self, blob: Descriptor) -> None:
        if self._stop.is_set():
            return
        if self._target.has(blob):
            self._note(blob.size, present=1)
            return
        for attempt in range(UPLOADS_MAX):
            try:
                self._send(blob)
            except UploadLost:
                if attempt + 1 == UPLOADS_MAX:
                    raise
            else:
                return

    def _send(self, blob: Descriptor) -> None:
        new = self._target.begin(blob, self._store)
        if new is None:
            self._note(blob.size, mounted=1)
            return
        try:
            self._pour(blob, new)
        except BaseException:
            new.cancel()
            raise
        new.finish()
        self._note(0, sent=1)

    def _pour(self, blob: Descriptor, new: NewBlob) -> None:
        digest = hashlib.sha256()

        taken = 0

        def take(data: bytes) -> None:
            nonlocal taken
            digest.update(data)
            new.write(data)
            taken += len(data)
            self._note(len(data), sent_bytes=len(data))

        try:
            self._read(blob, take)
        except UploadLost:
            self._note(-taken)
            raise
        if (found := f"sha256:{digest.hexdigest()}") != blob.digest:
            raise DigestMismatch(
                "a blob is not the one that was named",
                expected=blob.digest,
                found=found,
                hint="the source is damaged: check it with `rafsfs check`",
            )

    def _read(self, blob: Descriptor, take: Callable[[bytes], None]) -> None:
        with closing(self._store.open(blob)) as file:
            if file.size != blob.size:
                raise LengthMismatch("stored file's length", expected=blob.size, found=file.size)
            piece = PIECE_BYTES if isinstance(file, RemoteFile) else LOCAL_PIECE_BYTES
            for start in range(0, blob.size, piece):
                if self._stop.is_set():
                    raise BuildError("another blob could not be copied")
                length = min(piece, blob.size - start)
                if isinstance(file, RemoteFile):
                    file.stream_range(start, length, take)
                else:
                    take(file.read_range(start, length))
