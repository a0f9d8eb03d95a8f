"""Builds an image of layers with a blob for each; owns what of a layer's blob belongs to the image.

A layer's blob follows from the layer, the options and, in a dedup domain, the secret alone: what upper layers
hide of it is in there, too. So images with a layer in common have its blob in common. The image itself names
only those chunks that its files need.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import replace

from rafsfs.build.builder import BuildProgress, Report, no_search_for_cycles
from rafsfs.build.chunker import Chunker
from rafsfs.build.encode import Encoder
from rafsfs.build.erofs_writer import ErofsWriter, count_kinds
from rafsfs.build.image_writer import FinishedBlob, write_image
from rafsfs.build.layer_reader import LayerReader, StockLayer
from rafsfs.build.layered_tree import LayeredTree
from rafsfs.build.layout_writer import LayoutWriter
from rafsfs.build.options import BuildOptions, BuildSummary
from rafsfs.build.pipeline import BlobPipeline, worker_count
from rafsfs.build.tar_source import entry_of
from rafsfs.build.tree import PlannedBlob, PlannedChunk, Run
from rafsfs.errors import BuildError
from rafsfs.format import oci
from rafsfs.format.chunk import CHUNK_RECORD
from rafsfs.format.erofs import FileType
from rafsfs.format.superblock import BlobEntry
from rafsfs.store.reference import Reference
from rafsfs.trust.derive import convergent_key
from rafsfs.types import BlobId, BlobIndex


def build_layered(
    layers: Sequence[StockLayer],
    target: Reference,
    options: BuildOptions,
    *,
    xattrs: bool,
    report: Report | None,
    told: Callable[[int], None],
) -> BuildSummary:
    """Build an image with one blob for each layer of which anything is left; see ``build_image``.

    Raises as it does, and StoreError and DigestMismatch for a layer that is not the one that was named.
    """
    if target.tag is None:
        raise BuildError("an image is built under a tag", found=str(target))
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
            build = _LayeredBuild(layers, options, xattrs, report, told)
            for number in range(len(layers)):
                blob = layout.new_blob()
                pipeline = BlobPipeline(blob, encoder, pool, writer)
                chunks = build.read_layer(number, pipeline)
                table, toc_digest = pipeline.finish()
                needed = _records_of(chunks, table)
                if not needed:
                    continue
                descriptor = layout.name_blob(blob, oci.MEDIA_TYPE_BLOB)
                entry = BlobEntry(
                    BlobId(blob.sha256),
                    blob.size,
                    len(needed) // CHUNK_RECORD.size,
                    pipeline.decoded_blocks,
                    toc_digest,
                )
                build.add_blob(pipeline.planned, FinishedBlob(entry, descriptor, needed), chunks)
            metadata = ErofsWriter(build.layered.tree, len(build.blobs))
            written = write_image(metadata, build.blobs, options, encoder, layout, target.tag, pool)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    kinds = count_kinds(build.layered.tree)
    return BuildSummary(
        manifest_digest=written.manifest_digest,
        image_id=written.image_id.hex(),
        inodes=kinds.total(),
        files=kinds[FileType.REGULAR],
        directories=kinds[FileType.DIRECTORY],
        bytes_in=build.bytes_read,
        bytes_holes=build.bytes_holes,
        bytes_deduplicated=build.bytes_deduplicated,
        bytes_stored=sum(blob.entry.size for blob in build.blobs) + written.bootstrap_bytes,
        metadata_bytes=written.bootstrap_bytes,
        chunks=sum(blob.entry.chunk_count for blob in build.blobs),
        prefetch=written.prefetch,
        seconds=time.monotonic() - started,
    )


class _LayeredBuild:
    """The tree that is left of all layers, and the blobs so far."""

    def __init__(
        self,
        layers: Sequence[StockLayer],
        options: BuildOptions,
        xattrs: bool,
        report: Report | None,
        told: Callable[[int], None],
    ) -> None:
        """Read all layers for the first time."""
        self.layered = LayeredTree(layers, xattrs=xattrs, told=told, epoch=options.source_date_epoch)
        self.blobs: list[FinishedBlob] = []
        self._planned: list[PlannedBlob] = []
        self.bytes_read = self.bytes_holes = self.bytes_deduplicated = 0
        self._layers = layers
        self._options = options
        self._xattrs = xattrs
        self._report = report
        self._told = told

    def read_layer(self, number: int, pipeline: BlobPipeline) -> list[PlannedChunk]:
        """Store what a layer's files hold, and put those that are left into the tree; gives their chunks."""
        layer, wanted = self._layers[number], self.layered.wanted[number]
        chunker = Chunker(pipeline, self._options.chunk_size, self._options.inline_size, {})
        kept: list[Run] = []
        with closing(layer.open()) as file:
            reader = LayerReader(layer, file, self._told)
            for member_number, member in reader:
                if not member.size:
                    continue
                inode = wanted.get(member_number)
                path = inode.paths[0] if inode is not None else b"hidden by an upper layer"
                entry = entry_of(member, path, reader.stream, xattrs=self._xattrs)
                if entry.content is None:
                    continue
                body = chunker.add_file(entry)
                entry.content = None
                if inode is not None:
                    self.layered.add(inode, entry, body)
                    kept += body.runs
                if self._report is not None:
                    done = self.bytes_read + chunker.totals.read
                    self._report(BuildProgress(self.layered.names, done, pipeline.encoded_bytes))
        chunker.flush()
        self.bytes_read += chunker.totals.read
        self.bytes_holes += chunker.totals.holes
        self.bytes_deduplicated += chunker.totals.deduplicated
        return [run.chunk for run in kept if run.chunk is not None]

    def add_blob(self, planned: PlannedBlob, blob: FinishedBlob, chunks: Sequence[PlannedChunk]) -> None:
        """Take a layer's blob into the image. One that another layer has already is there once."""
        for number, present in enumerate(self.blobs):
            if present.entry.blob_id == blob.entry.blob_id:
                for chunk in chunks:
                    chunk.blob = self._planned[number]
                table = _merged_tables(present.table, blob.table)
                entry = replace(present.entry, chunk_count=len(table) // CHUNK_RECORD.size)
                self.blobs[number] = replace(present, entry=entry, table=table)
                return
        planned.index = BlobIndex(len(self.blobs))
        self.blobs.append(blob)
        self._planned.append(planned)


def _records_of(chunks: Sequence[PlannedChunk], table: bytes) -> bytes:
    """The part of a blob's chunk table that is about these chunks."""
    needed = {chunk.start_block for chunk in chunks}
    records = CHUNK_RECORD.iter_unpack(table)
    return b"".join(CHUNK_RECORD.pack(record) for record in records if record.decoded_block in needed)


def _merged_tables(*tables: bytes) -> bytes:
    records = {record.decoded_block: record for table in tables for record in CHUNK_RECORD.iter_unpack(table)}
    return b"".join(CHUNK_RECORD.pack(records[block]) for block in sorted(records))
