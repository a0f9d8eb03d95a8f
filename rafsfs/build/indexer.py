"""Indexes a stock image: a sealed tree over its layers as they are; owns where in a layer each file lies.

Nothing of a file is stored again. Its pieces become chunks at the places where they stand in the layer's
plain tar, each with the digest of its plain bytes.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

from blake3 import blake3

from rafsfs.build.builder import BuildProgress, Report
from rafsfs.build.converter import with_config_of
from rafsfs.build.encode import Encoder
from rafsfs.build.erofs_writer import ErofsWriter, count_kinds
from rafsfs.build.image_writer import FinishedBlob, write_image
from rafsfs.build.layer_reader import LayerReader, StockLayer
from rafsfs.build.layer_tree import LayerInode
from rafsfs.build.layered_tree import LayeredTree
from rafsfs.build.layout_writer import LayoutWriter
from rafsfs.build.options import BuildOptions, BuildSummary
from rafsfs.build.pipeline import worker_count
from rafsfs.build.source import refusal
from rafsfs.build.stock_image import StockImage
from rafsfs.build.tar_members import Member
from rafsfs.build.tar_source import entry_of
from rafsfs.build.tree import Body, PlannedBlob, PlannedChunk, Run
from rafsfs.errors import BuildError, DigestMismatch
from rafsfs.format.checkpoints import pack_checkpoints
from rafsfs.format.chunk import CHUNK_RECORD, ChunkRecord, Codec, blocks_of
from rafsfs.format.erofs import FileType
from rafsfs.format.oci import Descriptor
from rafsfs.format.superblock import BlobEntry
from rafsfs.limits import DECODED_BLOCKS_MAX
from rafsfs.store.gzip_layer import gzip_checkpoints
from rafsfs.store.oci_layout import blob_path
from rafsfs.store.reference import Reference
from rafsfs.trust.derive import convergent_key
from rafsfs.types import BlobId, BlobIndex, ChunkId

_NO_KEY = bytes(32)
_COPY_BYTES = 1 << 20
_CONVERT_HINT = "convert the image instead: rafsfs convert"


def index_image(
    image: StockImage,
    target: Reference,
    options: BuildOptions,
    *,
    xattrs: bool,
    report: Report | None,
    told: Callable[[int], None],
) -> BuildSummary:
    """Seal a tree over ``image``'s layers, which are copied to ``target`` unless they are there.

    Raises as ``convert_image``, and BuildError for what can only be converted: sparse files, layers that are
    twice in an image, archives that name no digests.
    """
    if target.tag is None:
        raise BuildError("an image is built under a tag", found=str(target))
    started = time.monotonic()
    options = with_config_of(image, options)
    secret = options.dedup_secret
    encoder = Encoder(options.suite, options.zstd_level, convergent_key(secret.raw) if secret else None)
    with LayoutWriter(target.folder) as layout, ThreadPoolExecutor(worker_count()) as pool:
        index = _Index(image, options, xattrs, report, told)
        for number, layer in enumerate(image.layers):
            index.read_layer(number)
            if index.is_needed(layer):
                _bring(layout, layer)
        metadata = ErofsWriter(index.layered.tree, len(index.blobs))
        checkpoints = pack_checkpoints(index.checkpoints)
        written = write_image(
            metadata, index.blobs, options, encoder, layout, target.tag, pool, checkpoints=checkpoints
        )
    kinds = count_kinds(index.layered.tree)
    return BuildSummary(
        manifest_digest=written.manifest_digest,
        image_id=written.image_id.hex(),
        inodes=kinds.total(),
        files=kinds[FileType.REGULAR],
        directories=kinds[FileType.DIRECTORY],
        bytes_in=index.bytes_read,
        bytes_holes=0,
        bytes_deduplicated=0,
        bytes_stored=written.bootstrap_bytes,
        metadata_bytes=written.bootstrap_bytes,
        chunks=sum(blob.entry.chunk_count for blob in index.blobs),
        prefetch=written.prefetch,
        seconds=time.monotonic() - started,
    )


def _bring(layout: LayoutWriter, layer: StockLayer) -> None:
    """Have a layer in the target; its digest was checked while it was read, and is checked again."""
    assert layer.digest is not None
    if blob_path(layout.folder, layer.digest).exists():
        return
    blob = layout.new_blob()
    with closing(layer.open()) as file:
        for start in range(0, file.size, _COPY_BYTES):
            blob.write(file.read_range(start, min(_COPY_BYTES, file.size - start)))
    if (found := f"sha256:{blob.sha256.hex()}") != layer.digest:
        raise DigestMismatch("a layer changed while it was indexed", expected=layer.digest, found=found)
    layout.name_blob(blob, layer.media_type)


class _Index:
    """The tree, and the layers that it needs so far."""

    def __init__(
        self,
        image: StockImage,
        options: BuildOptions,
        xattrs: bool,
        report: Report | None,
        told: Callable[[int], None],
    ) -> None:
        """Read all layers for the first time."""
        self.layered = LayeredTree(image.layers, xattrs=xattrs, told=told, epoch=options.source_date_epoch)
        self.blobs: list[FinishedBlob] = []
        self.checkpoints: list[bytes] = []
        self.bytes_read = 0
        self._layers = image.layers
        self._options = options
        self._xattrs = xattrs
        self._report = report
        self._told = told

    def is_needed(self, layer: StockLayer) -> bool:
        """Whether the image reads anything out of a layer."""
        return any(blob.descriptor.digest == layer.digest for blob in self.blobs)

    def read_layer(self, number: int) -> None:
        """Take down where the files that are left of a layer lie in it."""
        layer, wanted = self._layers[number], self.layered.wanted[number]
        if not wanted:
            return
        if layer.digest is None:
            raise BuildError("the image does not name its layers by digests", hint=_CONVERT_HINT)
        if self.is_needed(layer):
            raise BuildError("a layer is twice in the image", found=layer.digest, hint=_CONVERT_HINT)
        records = _Records(PlannedBlob(BlobIndex(len(self.blobs))))
        with closing(layer.open()) as file:
            reader = LayerReader(layer, file, self._told)
            for member_number, member in reader:
                inode = wanted.get(member_number)
                if inode is not None:
                    self._read_file(inode, member, reader, records)
            self.checkpoints.append(gzip_checkpoints(file))
        blob_id = BlobId(bytes.fromhex(layer.digest.removeprefix("sha256:")))
        entry = BlobEntry(blob_id, reader.plain_bytes, len(records.packed), records.end, b"")
        descriptor = Descriptor(layer.media_type, layer.digest, layer.size)
        self.blobs.append(FinishedBlob(entry, descriptor, b"".join(records.packed)))

    def _read_file(self, inode: LayerInode, member: Member, reader: LayerReader, records: _Records) -> None:
        if member.extents is not None:
            raise refusal(inode.paths[0], "a sparse file cannot be indexed", hint=_CONVERT_HINT)
        entry = entry_of(member, inode.paths[0], reader.stream, xattrs=self._xattrs)
        assert entry.content is not None
        position = reader.stream.offset
        runs = []
        for piece in entry.content(self._options.chunk_size):
            assert isinstance(piece, bytes)  # holes are in sparse files alone
            runs.append(records.add(piece, position))
            position += len(piece)
            self.bytes_read += len(piece)
        entry.content = None
        self.layered.add(inode, entry, Body(tuple(runs)))
        if self._report is not None:
            self._report(BuildProgress(len(records.packed), self.bytes_read, 0))


class _Records:
    """The chunk table of one layer: in the order of the layer, each piece at a block of its own."""

    def __init__(self, planned: PlannedBlob) -> None:
        self.packed: list[bytes] = []
        self.end = 0
        self._planned = planned

    def add(self, piece: bytes, position: int) -> Run:
        """Note a piece of a file that starts at this byte of the plain tar."""
        length = len(piece)
        chunk = PlannedChunk(self._planned, self.end, used=True)
        chunk_id = ChunkId(blake3(piece).digest())
        record = ChunkRecord(self.end, length, position, length, Codec.STORED, 0, chunk_id, _NO_KEY)
        self.packed.append(CHUNK_RECORD.pack(record))
        self.end += blocks_of(length)
        if self.end > DECODED_BLOCKS_MAX:
            raise BuildError("a layer holds too much to be indexed", hint=_CONVERT_HINT)
        return Run(length, chunk)
