"""Builds an image: a source goes through chunker, encoders and writers into a layout folder. Owns the order
of it all.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

from rafsfs.build.chunker import Chunker, ChunkerTotals
from rafsfs.build.dictionary import Dictionary, DictionaryBlob
from rafsfs.build.encode import Encoder
from rafsfs.build.erofs_writer import ErofsWriter, count_kinds
from rafsfs.build.image_writer import FinishedBlob, WrittenImage, write_image
from rafsfs.build.layout_writer import LayoutWriter
from rafsfs.build.options import BuildOptions, BuildSummary
from rafsfs.build.pipeline import BlobPipeline, worker_count
from rafsfs.build.source import Content, Entry, Hole, Source
from rafsfs.build.tree import NO_BYTES, PlannedBlob, Tree
from rafsfs.errors import BuildError
from rafsfs.format import oci
from rafsfs.format.chunk import CHUNK_RECORD
from rafsfs.format.erofs import FileType
from rafsfs.format.superblock import BlobEntry
from rafsfs.format.trace import TracedRange
from rafsfs.fs.image import OpenImage
from rafsfs.store.oci_layout import blob_path
from rafsfs.store.reference import Reference
from rafsfs.trust.derive import convergent_key
from rafsfs.types import BlobId, BlobIndex

NANOSECONDS = 1_000_000_000
_REPORT_BYTES = 8 << 20  # files larger than this are reported on while they are read


@dataclass(frozen=True, slots=True)
class BuildProgress:
    """How far a build is: entries and plain bytes read, encoded bytes written."""

    entries: int
    bytes_read: int
    bytes_written: int


Report = Callable[[BuildProgress], None]


def build_image(
    source: Source,
    target: Reference,
    options: BuildOptions,
    *,
    dictionaries: Sequence[OpenImage] = (),
    traced: Sequence[TracedRange] = (),
    report: Report | None = None,
) -> BuildSummary:
    """Build ``source`` into ``target``'s folder under its tag, which appears only when all is written.

    ``traced`` is what readers of an earlier image of this tree came for, and becomes the prefetch list.
    ``report`` is called after every entry, and while a large file is read. Raises BuildError for what is
    wrong with the source, AuthError for a damaged dictionary, OSError for a target that cannot be written;
    the folder is then as it was.
    """
    if target.tag is None:
        raise BuildError(
            "an image is built under a tag", found=str(target), hint="name the target FOLDER[:TAG]"
        )
    started = time.monotonic()
    secret = options.dedup_secret
    encoder = Encoder(options.suite, options.zstd_level, convergent_key(secret.raw) if secret else None)
    with (
        no_search_for_cycles(),
        LayoutWriter(target.folder) as layout,
        ThreadPoolExecutor(worker_count(), thread_name_prefix="rafsfs-build") as pool,
        ThreadPoolExecutor(1, thread_name_prefix="rafsfs-write") as writer,
    ):
        try:
            dictionary = Dictionary(dictionaries, options.suite, options.chunk_size, pool)
            blob = layout.new_blob()
            pipeline = BlobPipeline(blob, encoder, pool, writer)
            chunker = Chunker(pipeline, options.chunk_size, options.inline_size, dictionary.known)
            tree = _read_tree(source, chunker, pipeline, options, report)
            pipeline.flush()
            used = [known for known in dictionary.blobs if known.used_records()]
            # the last chunks are encoded while the metadata is written
            metadata = _write_metadata(tree, [known.planned for known in used], pipeline)
            table, toc_digest = pipeline.finish()
            finished = [_dictionary_blob(layout, known) for known in used]
            if table:
                descriptor = layout.name_blob(blob, oci.MEDIA_TYPE_BLOB)
                entry = BlobEntry(
                    BlobId(blob.sha256),
                    blob.size,
                    len(table) // CHUNK_RECORD.size,
                    pipeline.decoded_blocks,
                    toc_digest,
                )
                finished.append(FinishedBlob(entry, descriptor, table))
            written = write_image(metadata, finished, options, encoder, layout, target.tag, pool, traced)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return _summary(tree, chunker.totals, pipeline, written, time.monotonic() - started)


@contextmanager
def no_search_for_cycles() -> Iterator[None]:
    """Hold the garbage collector still: all of a tree is live, and to look through it again and again takes a
    third of the time for 200,000 files.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _read_tree(
    source: Source, chunker: Chunker, pipeline: BlobPipeline, options: BuildOptions, report: Report | None
) -> Tree:
    tree = Tree()
    for count, entry in enumerate(source.entries(), 1):
        if report is not None and entry.content is not None and entry.size > _REPORT_BYTES:
            tell = partial(_tell, report, count, chunker, pipeline)
            entry.content = partial(_told_content, entry.content, tell)
        has_bytes = entry.content is not None and entry.hard_link_to is None
        body = chunker.add_file(entry) if has_bytes else NO_BYTES
        entry.content = None  # the tree keeps the entry, and with it would keep what the source reads with
        tree.add(clamped(entry, options.source_date_epoch), body)
        if report is not None:
            _tell(report, count, chunker, pipeline)
    chunker.flush()
    if tree.root is None:
        raise BuildError("the source is empty", hint="it has no root directory")
    return tree


def _write_metadata(tree: Tree, known: Sequence[PlannedBlob], pipeline: BlobPipeline) -> ErofsWriter:
    blobs = [*known, pipeline.planned] if pipeline.chunk_count else known
    for index, blob in enumerate(blobs):
        blob.index = BlobIndex(index)
    return ErofsWriter(tree, len(blobs))


def _tell(report: Report, entries: int, chunker: Chunker, pipeline: BlobPipeline) -> None:
    report(BuildProgress(entries, chunker.totals.read, pipeline.encoded_bytes))


def _told_content(content: Content, tell: Callable[[], None], piece_size: int) -> Iterator[bytes | Hole]:
    for piece in content(piece_size):
        yield piece
        tell()


def clamped(entry: Entry, epoch: int | None) -> Entry:
    """Hold mtimes to SOURCE_DATE_EPOCH (reproducible-builds.org): later ones are the build's own doing."""
    if epoch is None or entry.mtime_ns <= epoch * NANOSECONDS:
        return entry
    return replace(entry, mtime_ns=epoch * NANOSECONDS)


def _dictionary_blob(layout: LayoutWriter, blob: DictionaryBlob) -> FinishedBlob:
    records = blob.used_records()
    layout.take_blob(blob_path(blob.stored.folder, blob.descriptor.digest), blob.descriptor)
    entry = replace(blob.entry, chunk_count=len(records))
    return FinishedBlob(entry, blob.descriptor, b"".join(map(CHUNK_RECORD.pack, records)))


def _summary(
    tree: Tree, totals: ChunkerTotals, pipeline: BlobPipeline, written: WrittenImage, seconds: float
) -> BuildSummary:
    kinds = count_kinds(tree)
    return BuildSummary(
        manifest_digest=written.manifest_digest,
        image_id=written.image_id.hex(),
        inodes=kinds.total(),
        files=kinds[FileType.REGULAR],
        directories=kinds[FileType.DIRECTORY],
        bytes_in=totals.read,
        bytes_holes=totals.holes,
        bytes_deduplicated=totals.deduplicated,
        bytes_stored=pipeline.stored_bytes + written.bootstrap_bytes,
        metadata_bytes=written.bootstrap_bytes,
        chunks=pipeline.chunk_count,
        prefetch=written.prefetch,
        seconds=seconds,
    )
