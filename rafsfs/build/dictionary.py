"""What earlier images hold already, by digest of the plain piece; reads them verified, writes nothing.

A dictionary's pieces are read and digested here, once for each build: the format keeps no digests of plain
data, and reading them through the verified engine proves that the new image will be able to read them, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from blake3 import blake3

from rafsfs.build.chunker import Place
from rafsfs.build.tree import PlannedBlob, PlannedChunk
from rafsfs.errors import BuildError, RafsError
from rafsfs.format.chunk import ChunkRecord, Suite
from rafsfs.format.erofs import BLOCK_BITS, BLOCK_SIZE
from rafsfs.format.oci import Descriptor
from rafsfs.format.superblock import BlobEntry
from rafsfs.fs.checking_blobs import read_toc
from rafsfs.fs.filesystem import FileSystem
from rafsfs.fs.image import OpenImage
from rafsfs.metadata.inode import Extent, InlineExtent
from rafsfs.store.base import StoredFile
from rafsfs.store.oci_layout import LayoutImage
from rafsfs.types import BlobId, BlobIndex, ChunkIndex, DecodedOffset, Nid

_BATCH = 64  # pieces digested side by side; neighbours share packed chunks


@dataclass(slots=True, eq=False)
class DictionaryBlob:
    """A blob of an earlier image. Only the records of chunks that the new image uses become part of it."""

    planned: PlannedBlob
    entry: BlobEntry
    descriptor: Descriptor
    stored: LayoutImage
    pieces: list[tuple[PlannedChunk, tuple[ChunkRecord, ...]]] = field(default_factory=list)

    def used_records(self) -> list[ChunkRecord]:
        """Records of the chunks that hold used pieces, sorted by their place in decoded space."""
        used = {
            record.decoded_block: record for piece, records in self.pieces if piece.used for record in records
        }
        return [record for _, record in sorted(used.items())]


class Dictionary:
    """All pieces of some images."""

    def __init__(
        self, images: Sequence[OpenImage], suite: Suite, chunk_size: int, pool: ThreadPoolExecutor
    ) -> None:
        """Read ``images`` whole; BuildError when one has another suite, AuthError when damaged."""
        self.known: dict[bytes, Place] = {}
        self._blobs: dict[BlobId, DictionaryBlob] = {}
        for image in images:
            superblock = image.opened.superblock
            if superblock.checkpoints is not None:
                raise BuildError(
                    "an index of stock layers cannot be a dictionary",
                    hint="convert that image, and take this",
                )
            if superblock.suite is not suite:
                raise BuildError(
                    "dictionary is sealed in another way",
                    expected=suite.name,
                    found=superblock.suite.name,
                    hint="build with the dictionary's suite, or without it",
                )
            blobs = [self._blob(image, index) for index in range(len(superblock.blobs))]
            pieces = _pieces(image, chunk_size)
            while batch := [piece for piece, _ in zip(pieces, range(_BATCH), strict=False)]:
                for piece, digest in zip(batch, pool.map(partial(_digest, image), batch), strict=True):
                    if digest not in self.known:
                        self.known[digest] = self._place(image, blobs[piece.blob], piece)

    @property
    def blobs(self) -> list[DictionaryBlob]:
        """The blobs in the order in which they were met."""
        return list(self._blobs.values())

    def _blob(self, image: OpenImage, index: int) -> DictionaryBlob:
        entry = image.opened.superblock.blobs[index]
        if entry.blob_id not in self._blobs:
            assert isinstance(image.stored, LayoutImage)  # blobs are linked or copied from its folder
            descriptor = image.stored.manifest.blobs[index]
            _check_tail(image.filesystem.engine.blobs[index].file, entry)
            self._blobs[entry.blob_id] = DictionaryBlob(PlannedBlob(), entry, descriptor, image.stored)
        return self._blobs[entry.blob_id]

    def _place(self, image: OpenImage, blob: DictionaryBlob, piece: _Piece) -> Place:
        chunk = PlannedChunk(blob.planned, piece.start >> BLOCK_BITS)
        blob.pieces.append((chunk, tuple(_records(image, piece))))
        return chunk, 0


def _check_tail(file: StoredFile, entry: BlobEntry) -> None:
    """Look at what no reader needs, but a check of the new image would find damaged."""
    try:
        read_toc(file, entry)
    except RafsError as error:
        error.hint = error.hint or "build without this dictionary, or copy it again from a good source"
        raise error.at(blob=file.name) from None


@dataclass(frozen=True, slots=True)
class _Piece:
    blob: BlobIndex
    start: DecodedOffset
    length: int


def _pieces(image: OpenImage, chunk_size: int) -> Iterator[_Piece]:
    """Chunk-aligned pieces of all files that lie unbroken at the start of a block, each place once."""
    filesystem = image.filesystem
    seen_nids: set[Nid] = set()
    seen: set[_Piece] = set()
    for _, nid in filesystem.walk():
        if not filesystem.tree.inode(nid).is_regular or nid in seen_nids:
            continue
        seen_nids.add(nid)
        for offset in _offsets(filesystem, nid, chunk_size):
            piece = _piece_at(filesystem, nid, offset, chunk_size)
            if piece is not None and piece not in seen:
                seen.add(piece)
                yield piece


def _offsets(filesystem: FileSystem, nid: Nid, chunk_size: int) -> Iterator[int]:
    """Where a file's pieces start that are in chunks; a file of 2^63 bytes may be one hole."""
    inode = filesystem.tree.inode(nid)
    file_map = filesystem.tree.file_map(inode)
    offset = 0
    while offset < inode.size:
        extent = file_map.extent(offset)
        if isinstance(extent, InlineExtent):
            return
        if extent.blob is None:
            offset += max(1, extent.length // chunk_size) * chunk_size
        else:
            yield offset
            offset += chunk_size


def _piece_at(filesystem: FileSystem, nid: Nid, offset: int, chunk_size: int) -> _Piece | None:
    """The piece that starts at ``offset`` of a file; None when it is broken or does not start a block."""
    first, *others = filesystem.extents(nid, offset, chunk_size)
    if not isinstance(first, Extent) or first.blob is None or first.start % BLOCK_SIZE:
        return None
    length = first.length
    for extent in others:
        if (
            not isinstance(extent, Extent)
            or extent.blob != first.blob
            or extent.start != first.start + length
        ):
            return None
        length += extent.length
    return _Piece(first.blob, first.start, length)


def _digest(image: OpenImage, piece: _Piece) -> bytes:
    hasher = blake3()
    for part in image.filesystem.engine.read(piece.blob, piece.start, piece.length):
        hasher.update(part)
    return hasher.digest()


def _records(image: OpenImage, piece: _Piece) -> Iterator[ChunkRecord]:
    chunks = image.filesystem.engine.blobs[piece.blob].chunks
    position = int(piece.start)
    while position < piece.start + piece.length:
        index: ChunkIndex = chunks.find(DecodedOffset(position))
        record = chunks.record(index)
        yield record
        position = record.decoded_end
