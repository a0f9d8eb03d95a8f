"""Takes built images apart, lets their metadata be edited, and seals them as an author could."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from support.images import KEY, opened

from rafsfs.build.encode import Encoder
from rafsfs.build.image_writer import FinishedBlob, seal_section
from rafsfs.build.layout_writer import LayoutWriter
from rafsfs.build.options import BuildOptions
from rafsfs.format import erofs
from rafsfs.format.chunk import CHUNK_RECORD, ChunkRecord, Suite
from rafsfs.format.erofs import BLOCK_SIZE, CHUNK_INDEX, DIRENT, EXTENDED_INODE, DataLayout
from rafsfs.format.oci import Descriptor
from rafsfs.format.superblock import BlobEntry
from rafsfs.frontends.library import Image
from rafsfs.metadata.space import MetadataSpace
from rafsfs.store.reference import Reference
from rafsfs.types import ChunkIndex


@dataclass
class Parts:
    """An image's metadata, to be edited in place and sealed again; ``records`` has a list for each blob."""

    folder: Reference
    suite: Suite
    page_size: int
    section: bytearray
    records: list[list[ChunkRecord]]
    entries: list[BlobEntry]
    descriptors: list[Descriptor]
    nids: dict[bytes, int]
    """Path -> nid; the root is ``b""``."""
    prefetch: bytes = b""

    @classmethod
    def of(cls, reference: Reference) -> Parts:
        """Take apart an image that ``KEY`` opens."""
        with opened(reference) as image:
            superblock = image.opened.superblock
            length = superblock.erofs.length
            space = MetadataSpace(image.metadata.load, superblock.page_size, offset=0, length=length)
            filesystem = Image(image).filesystem
            return cls(
                folder=reference,
                suite=superblock.suite,
                page_size=superblock.page_size,
                section=bytearray(space.read(0, length)),
                records=[
                    [blob.chunks.record(ChunkIndex(index)) for index in range(len(blob.chunks))]
                    for blob in filesystem.engine.blobs
                ],
                entries=list(superblock.blobs),
                descriptors=list(image.stored.manifest.blobs),
                nids=dict(filesystem.walk()),
            )

    def seal(self, tag: str = "hostile") -> Reference:
        """Seal it for ``KEY`` under another tag of the same folder, which has the blobs."""
        options = BuildOptions(
            recipients=(KEY,) if self.suite.encrypts else (), suite=self.suite, page_size=self.page_size
        )
        blobs = []
        for entry, descriptor, records in zip(self.entries, self.descriptors, self.records, strict=True):
            table = b"".join(map(CHUNK_RECORD.pack, records))
            blobs.append(FinishedBlob(_recounted(entry, len(records)), descriptor, table))
        encoder = Encoder(self.suite, 3, None)
        with LayoutWriter(self.folder.folder) as layout, ThreadPoolExecutor(1) as pool:
            seal_section(bytes(self.section), blobs, options, encoder, layout, tag, pool, self.prefetch)
        return Reference(self.folder.folder, tag)

    # --- Edits ----------------------------------------------------------------------------------------------

    def inode(self, path: bytes) -> erofs.ExtendedInode:
        """The raw inode of a path."""
        return EXTENDED_INODE.unpack_from(self.section, self.nids[path] * erofs.NID_SLOT_BYTES)

    def set_inode(self, path: bytes, **changes: int) -> None:
        """Change fields of the inode of a path."""
        packed = EXTENDED_INODE.pack(self.inode(path)._replace(**changes))
        self.write(self.nids[path] * erofs.NID_SLOT_BYTES, packed)

    def body(self, path: bytes) -> int:
        """Offset behind an inode and its attributes: of inline data, or (aligned to 8) of chunk indexes."""
        area = erofs.xattr_area_bytes(self.inode(path).xattr_icount)
        return self.nids[path] * erofs.NID_SLOT_BYTES + EXTENDED_INODE.size + area

    def set_index(self, path: bytes, number: int, **changes: int) -> None:
        """Change fields of a file's chunk index."""
        offset = erofs.align(self.body(path), CHUNK_INDEX.size) + number * CHUNK_INDEX.size
        index = CHUNK_INDEX.unpack_from(self.section, offset)
        self.write(offset, CHUNK_INDEX.pack(index._replace(**changes)))

    def set_dirent(self, directory: bytes, name: bytes, **changes: int) -> None:
        """Change fields of the entry of ``name``: ``nid``, ``file_type``, ``name_offset``."""
        offset, dirent, _ = self._entry(directory, name)
        self.write(offset, DIRENT.pack(dirent._replace(**changes)))

    def rename(self, directory: bytes, name: bytes, new_name: bytes) -> None:
        """Write another name of the same length, wherever that belongs in the order of names."""
        assert len(name) == len(new_name)
        self.write(self._entry(directory, name)[2], new_name)

    def set_superblock(self, **changes: Any) -> None:
        """Change fields of the EROFS superblock."""
        superblock = erofs.SUPERBLOCK.unpack_from(self.section, erofs.SUPERBLOCK_OFFSET)
        self.write(erofs.SUPERBLOCK_OFFSET, erofs.SUPERBLOCK.pack(superblock._replace(**changes)))

    def set_record(self, blob: int, index: int, **changes: Any) -> None:
        """Change fields of a chunk record."""
        self.records[blob][index] = self.records[blob][index]._replace(**changes)

    def write(self, offset: int, data: bytes) -> None:
        """Overwrite a part of the EROFS section."""
        assert offset + len(data) <= len(self.section)
        self.section[offset : offset + len(data)] = data

    def _entry(self, directory: bytes, name: bytes) -> tuple[int, erofs.Dirent, int]:
        """(offset of the dirent, the dirent, offset of its name) of a name in a directory."""
        inode = self.inode(directory)
        for start in range(0, inode.size, BLOCK_SIZE):
            length = min(BLOCK_SIZE, inode.size - start)
            is_tail = inode.format >> 1 == DataLayout.FLAT_INLINE and length < BLOCK_SIZE
            offset = self.body(directory) if is_tail else inode.union * BLOCK_SIZE + start
            count = DIRENT.unpack_from(self.section, offset).name_offset // DIRENT.size
            dirents = [DIRENT.unpack_from(self.section, offset + i * DIRENT.size) for i in range(count)]
            ends = [dirent.name_offset for dirent in dirents[1:]] + [length]
            for number, (dirent, end) in enumerate(zip(dirents, ends, strict=True)):
                found = bytes(self.section[offset + dirent.name_offset : offset + end]).rstrip(b"\0")
                if found == name:
                    return offset + number * DIRENT.size, dirent, offset + dirent.name_offset
        raise AssertionError(f"no {name!r} in {directory!r}")


def _recounted(entry: BlobEntry, chunk_count: int) -> BlobEntry:
    return BlobEntry(entry.blob_id, entry.size, chunk_count, entry.decoded_blocks, entry.toc_digest)
