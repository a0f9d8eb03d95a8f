"""Checks a whole image: documents, opening, metadata, tree, chunk tables, blob files, every chunk.

Goes on after a problem wherever something is left to check, and tells all; prints nothing, repairs nothing.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rafsfs.errors import (
    AuthError,
    DigestMismatch,
    FormatError,
    LengthMismatch,
    RafsError,
    StoreError,
    UnsupportedVersion,
    Where,
    WrongKey,
)
from rafsfs.format import oci
from rafsfs.format.chunk import CHUNK_RECORD
from rafsfs.format.image_config import check_visible
from rafsfs.format.oci import Descriptor
from rafsfs.fs.checking_blobs import BlobCheck, TableFindings
from rafsfs.fs.checking_chunks import ChunkCheck
from rafsfs.fs.checking_tree import TreeCheck, TreeTotals, check_section
from rafsfs.fs.image import OpenImage, open_sealed
from rafsfs.fs.parallel import WAITING, in_order
from rafsfs.fs.problems import Problem, Problems
from rafsfs.limits import CACHE_BYTES_DEFAULT, OCI_JSON_BYTES_MAX
from rafsfs.metadata.space import MetadataSpace
from rafsfs.store.base import StoredFile, StoredImage
from rafsfs.store.oci_layout import LayoutImage, LocalFile, blob_path, read_index
from rafsfs.store.reference import ImageReference
from rafsfs.store.settings import StoreSettings
from rafsfs.store.stores import find_stored
from rafsfs.trust.keys import KeyRing
from rafsfs.trust.opening import TrustPolicy
from rafsfs.types import EncodedBytes, PageNumber

_HASH_BYTES = 1 << 20
_PAGES_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class CheckProgress:
    """How far a check is: ``done`` of ``total`` ``unit``s (``pages``, ``inodes``, ``bytes``)."""

    what: str
    unit: str
    done: int
    total: int


Report = Callable[[CheckProgress], None]


def no_report(_: CheckProgress) -> None:
    """Tell nobody."""


@dataclass(slots=True)
class CheckResult:
    """What was checked, and what is wrong. ``tree`` is None when the image could not be opened.

    ``chunk_bytes`` are the decoded bytes of the ``chunks`` that were decoded, ``stored_bytes`` those of the
    files whose SHA-256 was compared.
    """

    reference: str
    quick: bool
    problems: Problems = field(default_factory=Problems)
    tree: TreeTotals | None = None
    pages: int = 0
    blobs: int = 0
    chunks: int = 0
    chunk_bytes: int = 0
    prefetch_chunks: int = 0
    stored_bytes: int = 0
    seconds: float = 0.0


def check_image(
    reference: ImageReference,
    keyring: KeyRing,
    policy: TrustPolicy,
    *,
    stores: StoreSettings | None = None,
    quick: bool = False,
    workers: int = 1,
    cache_bytes: int = CACHE_BYTES_DEFAULT,
    report: Report = no_report,
) -> CheckResult:
    """Check everything, or with ``quick`` all but the blobs' chunks and digests.

    ``report`` is called often, on the caller's thread. Raises WrongKey when no key opens the image, and what
    ``find_stored`` raises when there is no image to speak of; everything else is in the result.
    """
    started = time.monotonic()
    stored = find_stored(reference, stores)
    result = CheckResult(str(reference), quick)
    with (
        closing(stored.store),
        ThreadPoolExecutor(workers, thread_name_prefix="rafsfs-check") as pool,
    ):
        check = _Check(stored, result, pool, report)
        try:
            check.run(reference, keyring, policy, cache_bytes, stores)
        except BaseException:
            check.stop()
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    result.seconds = time.monotonic() - started
    return result


class _AbsentFile:
    """Stands for a blob that cannot be opened, so that the rest of the image can be checked."""

    def __init__(self, descriptor: Descriptor, error: StoreError) -> None:
        self.name = descriptor.digest
        self.size = 0
        self._error = error

    def read_range(self, offset: int, length: int) -> EncodedBytes:  # noqa: ARG002  # StoredFile's signature
        raise self._error.copy()

    def close(self) -> None:
        pass


class _Check:
    def __init__(
        self, stored: StoredImage, result: CheckResult, pool: ThreadPoolExecutor, report: Report
    ) -> None:
        self._stored = stored
        self._result = result
        self._problems = result.problems
        self._pool = pool
        self._report = report
        self._stop = threading.Event()
        self._broken_files: dict[str, Problem] = {}
        self._visible_config: dict[str, Any] | None = None

    def stop(self) -> None:
        """Have tasks end that would run long."""
        self._stop.set()

    def run(
        self,
        reference: ImageReference,
        keyring: KeyRing,
        policy: TrustPolicy,
        cache_bytes: int,
        stores: StoreSettings | None,
    ) -> None:
        self._check_documents()
        manifest = self._stored.manifest
        files = [manifest.bootstrap, *(() if self._result.quick else manifest.blobs)]
        pinned = reference.pinned(self._stored.manifest_digest)  # a tag may move meanwhile
        try:
            image = open_sealed(
                pinned, keyring, policy, cache_bytes=cache_bytes, open_blob=self._open_blob, stores=stores
            )
        except WrongKey:
            raise
        except (AuthError, FormatError, StoreError) as error:
            self._problems.add(error)
            self._note_digests(self._hash(files))
            return
        with image:
            digests = self._hash(files)
            self._check_pages(image)
            self._check_sealed_config(image)
            tables = self._check_tables(image)
            self._check_prefetch_list(image)
            self._check_tree(image, tables)
            if self._result.quick:
                self._note_digests(digests)
                return
            chunks = ChunkCheck(image.filesystem, tables, self._broken_files, self._problems)
            for progress in chunks.run(self._pool):
                self._report(CheckProgress("chunks", "bytes", progress, chunks.total_bytes))
            self._result.chunks = chunks.chunks
            self._result.chunk_bytes = chunks.decoded_bytes
            self._note_digests(digests)
            chunks.name_damaged_files()

    # --- What is stored -----------------------------------------------------------------------------------

    def _check_documents(self) -> None:
        """Check the documents that readers need not read, and other tools do."""
        layout = self._stored if isinstance(self._stored, LayoutImage) else None
        of_layout = () if layout is None else (partial(_check_layout, layout), partial(_check_index, layout))
        for check in (*of_layout, self._check_config):
            try:
                check()
            except RafsError as error:
                self._problems.add(error)

    def _check_config(self) -> None:
        config = self._stored.manifest.config
        data = self._stored.store.document(config, "config")
        if len(data) != config.size:
            raise LengthMismatch(
                "config's length", expected=config.size, found=len(data), where=Where(file=config.digest)
            )
        self._visible_config = oci.load_json(data, "config")

    def _open_blob(self, stored: StoredImage, descriptor: Descriptor) -> StoredFile:
        """Open a blob, or something in its place; what is wrong with it is noted once, not for each chunk."""
        try:
            return stored.open(descriptor)
        except LengthMismatch as error:
            self._broken_files[descriptor.digest] = self._problems.add(error.at(blob=descriptor.digest))
            if not isinstance(stored, LayoutImage):
                return _AbsentFile(descriptor, error)
            return LocalFile(blob_path(stored.folder, descriptor.digest), descriptor.digest, None)
        except StoreError as error:
            self._broken_files[descriptor.digest] = self._problems.add(error.at(blob=descriptor.digest))
            return _AbsentFile(descriptor, error)

    def _hash(self, files: Sequence[Descriptor]) -> list[Future[RafsError | int]]:
        """Start to compare the digests of files that are not known to be broken."""
        return [
            self._pool.submit(self._check_digest, descriptor)
            for descriptor in files
            if descriptor.digest not in self._broken_files
        ]

    def _check_digest(self, descriptor: Descriptor) -> RafsError | int:
        """Hash a whole file; returns what is wrong, or how many bytes it was."""
        digest = hashlib.sha256()
        try:
            file = self._stored.open(descriptor)
            try:
                for start in range(0, file.size, _HASH_BYTES):
                    digest.update(file.read_range(start, min(_HASH_BYTES, file.size - start)))
                    if self._stop.is_set():
                        break
            finally:
                file.close()
        except RafsError as error:
            return error
        found = f"sha256:{digest.hexdigest()}"
        if found != descriptor.digest:
            return DigestMismatch(
                "stored file is not the one that was named",
                expected=descriptor.digest,
                found=found,
                hint="copy the image again, the file was changed",
            ).at(file=_place(self._stored, descriptor))
        return file.size

    def _note_digests(self, digests: Sequence[Future[RafsError | int]]) -> None:
        for outcome in (future.result() for future in digests):
            if isinstance(outcome, int):
                self._result.stored_bytes += outcome
            elif str(outcome.where.file) not in {
                str(known.error.where.file) for known in self._problems.kept
            }:
                self._problems.add(outcome)

    # --- Metadata -----------------------------------------------------------------------------------------

    def _check_pages(self, image: OpenImage) -> None:
        """Check every metadata page, also those that no inode lies in; good ones are in the cache then."""
        count = image.opened.superblock.page_count

        def load(first: int) -> list[RafsError]:
            errors = []
            for page in range(first, min(first + _PAGES_AT_ONCE, count)):
                try:
                    image.metadata.load(PageNumber(page))
                except RafsError as error:
                    errors.append(error)
            return errors

        starts = range(0, count, _PAGES_AT_ONCE)
        for first, errors in zip(starts, in_order(self._pool, load, starts, waiting=WAITING), strict=True):
            for error in errors:
                self._problems.add(error)
            done = min(first + _PAGES_AT_ONCE, count)
            self._result.pages += done - first - len(errors)
            self._report(CheckProgress("metadata pages", "pages", done, count))

    def _check_sealed_config(self, image: OpenImage) -> None:
        """Check the sealed config, and that the visible one, unless it is broken, says nothing else."""
        try:
            sealed = image.config()
            if self._visible_config is not None:
                check_visible(self._visible_config, sealed.document)
        except RafsError as error:
            self._problems.add(error)

    def _check_tables(self, image: OpenImage) -> list[TableFindings]:
        superblock = image.opened.superblock
        section = superblock.chunk_tables
        space = MetadataSpace(
            image.metadata.load, superblock.page_size, offset=section.offset, length=section.length
        )
        found = []
        position = 0
        for entry, blob in zip(superblock.blobs, image.filesystem.engine.blobs, strict=True):
            start = position

            def read(offset: int, length: int, start: int = start) -> bytes:
                return space.read(start + offset, length)

            check = BlobCheck(blob.file.name, entry, blob.chunks.suite, read, self._problems)
            findings = check.check_table()
            if blob.file.name not in self._broken_files:
                check.check_tail(blob.file, findings)
            found.append(findings)
            position += entry.chunk_count * CHUNK_RECORD.size
            self._result.blobs += 1
        return found

    def _check_prefetch_list(self, image: OpenImage) -> None:
        try:
            self._result.prefetch_chunks = sum(run.chunk_count for run in image.prefetch_runs())
        except RafsError as error:
            self._problems.add(error)

    def _check_tree(self, image: OpenImage, tables: Sequence[TableFindings]) -> None:
        superblock = image.opened.superblock
        tree = image.filesystem.tree
        space = MetadataSpace(
            image.metadata.load, superblock.page_size, offset=0, length=superblock.erofs.length
        )
        try:
            check_section(space, superblock.blobs)
        except RafsError as error:
            self._problems.add(error)

        def report(inodes: int) -> None:
            self._report(CheckProgress("tree", "inodes", inodes, tree.inode_count))

        coverage = [findings.coverage for findings in tables]
        check = TreeCheck(tree, superblock.erofs.length, coverage, self._problems, report)
        self._result.tree = check.run()


def _check_layout(stored: LayoutImage) -> None:
    file = LocalFile(stored.folder / oci.LAYOUT_FILE, oci.LAYOUT_FILE, None)
    try:
        data = file.read_range(0, min(file.size, OCI_JSON_BYTES_MAX + 1))
    finally:
        file.close()
    version = oci.load_json(data, oci.LAYOUT_FILE).get("imageLayoutVersion")
    if version != oci.LAYOUT_VERSION:
        raise UnsupportedVersion(
            "OCI layout version",
            expected=oci.LAYOUT_VERSION,
            found=repr(version),
            where=Where(file=file.name),
        )


def _check_index(stored: LayoutImage) -> None:
    entries = read_index(stored.folder)
    size = len(stored.store.manifest(oci.described(stored.manifest_digest, entries)))
    for entry in entries:
        if entry.digest == stored.manifest_digest and entry.size != size:
            raise LengthMismatch(
                "manifest's length", expected=entry.size, found=size, where=Where(file=entry.digest)
            )


def _place(stored: StoredImage, descriptor: Descriptor) -> str:
    if isinstance(stored, LayoutImage):
        return str(blob_path(stored.folder, descriptor.digest))
    return f"{stored.store.name}, {descriptor.digest}"
