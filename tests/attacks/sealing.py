"""Seals whatever it is given, correctly: what the author of a hostile image can do. Checks nothing."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace

import zstandard
from attacks.surgery import KEY, Bootstrap, Layer, Stored
from blake3 import blake3

from rafsfs.decode import aead
from rafsfs.format import erofs, oci
from rafsfs.format.blob import TocEntry, pack_tail
from rafsfs.format.bootstrap import pack_page_table, page_aad, page_nonce, page_table_digest
from rafsfs.format.chunk import CHUNK_RECORD, ChunkRecord, Codec, Suite, blocks_of, chunk_aad
from rafsfs.format.envelope import Envelope
from rafsfs.format.superblock import BlobEntry, Section, Superblock
from rafsfs.trust.derive import key_commitment, page_key, superblock_seal
from rafsfs.trust.wrapping import wrap

BLOCK = erofs.BLOCK_SIZE
IMAGE_KEY = bytes(range(100, 132))
PAGE_SALT = bytes(range(16))  # an author may choose it
CHUNK_KEY = bytes(range(132, 164))


# --- Chunks and blobs ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ForgedBlob:
    """A blob file and the sealed table that goes with it; the two need not agree."""

    data: bytes
    records: Sequence[ChunkRecord]
    decoded_blocks: int
    toc_digest: bytes = bytes(32)


def compressed(plain: bytes, **options: object) -> bytes:
    return zstandard.ZstdCompressor(**options).compress(plain)


def seal_chunk(
    suite: Suite, payload: bytes, decoded_length: int, codec: int = Codec.ZSTD
) -> tuple[bytes, ChunkRecord]:
    """Seal what a codec gave, whatever it is, as the chunk at block 0; its length is the author's word."""
    if suite.encrypts:
        aad = chunk_aad(suite, codec, decoded_length)
        payload = aead.seal(suite, CHUNK_KEY, aead.ZERO_NONCE, aad, payload)
    record = ChunkRecord(0, decoded_length, 0, len(payload), codec, 0, blake3(payload).digest(), CHUNK_KEY)
    return payload, record


def forge_blob(chunks: Sequence[tuple[bytes, ChunkRecord]], decoded_blocks: int | None = None) -> ForgedBlob:
    """Put chunks one behind the other, in the blob and in decoded space."""
    data, records, block = b"", [], 0
    for encoded, record in chunks:
        records.append(record._replace(decoded_block=block, encoded_offset=len(data)))
        data += encoded
        block += blocks_of(record.decoded_length)
    toc = [TocEntry(record.encoded_offset, record.encoded_length, record.chunk_id) for record in records]
    tail, digest = pack_tail(toc, len(data))
    return ForgedBlob(data + tail, records, block if decoded_blocks is None else decoded_blocks, digest)


def plain_blob(suite: Suite, *chunks: bytes) -> ForgedBlob:
    """An honest blob of these chunks."""
    return forge_blob([seal_chunk(suite, compressed(chunk), len(chunk)) for chunk in chunks])


# --- EROFS sections -----------------------------------------------------------------------------------------


def directory_block(entries: Sequence[tuple[bytes, int, int]], *, padded: bool = True) -> bytes:
    """Dirents and names in the order given: (name, nid, file type)."""
    position = len(entries) * erofs.DIRENT.size
    dirents, names = b"", b""
    for name, nid, file_type in entries:
        dirents += erofs.DIRENT.pack(erofs.Dirent(nid, position + len(names), file_type, 0))
        names += name
    block = dirents + names
    return block.ljust(BLOCK, b"\0") if padded else block


class ForgedSection:
    """An EROFS section in which every field is the author's to choose. Inodes start at nid 36, in block 0."""

    def __init__(self, blocks: int = 8, devices: Sequence[int] = (), inode_blocks: int = 1) -> None:
        """``devices``: decoded blocks of each device slot; the first ``inode_blocks`` hold inodes."""
        self.data = bytearray(max(blocks, inode_blocks) * BLOCK)
        self._devices = devices
        slots = b"".join(erofs.DEVICE_SLOT.pack(erofs.DeviceSlot(b"", size, 0)) for size in devices)
        start = erofs.DEVICE_TABLE_SLOT * erofs.DEVICE_SLOT.size
        self.data[start : start + len(slots)] = slots
        self._cursor = erofs.align(start + len(slots), 64)
        self._next_block = self._inode_blocks = inode_blocks
        self._inodes = 0
        self.root = self.reserve()

    def reserve(self, behind: int = 0) -> int:
        """Room for an inode and so many bytes behind it; returns its nid."""
        nid = self._cursor // erofs.NID_SLOT_BYTES
        self._cursor = erofs.align(self._cursor + erofs.EXTENDED_INODE.size + behind, 64)
        assert self._cursor <= self._inode_blocks * BLOCK
        return nid

    def place(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data

    def block(self, data: bytes) -> int:
        """Put bytes into blocks of their own; returns the number of the first."""
        number = self._next_block
        self._next_block += -(-len(data) // BLOCK)
        missing = self._next_block * BLOCK - len(self.data)
        self.data += bytes(max(0, missing))
        self.place(number * BLOCK, data)
        return number

    def inode(self, mode: int, *, nid: int | None = None, behind: bytes = b"", **fields: int) -> int:
        """Write an inode and what lies directly behind it; fields as ``ExtendedInode`` has them."""
        nid = self.reserve(len(behind)) if nid is None else nid
        self._inodes += 1
        chosen = {
            "format": erofs.inode_format(erofs.DataLayout.FLAT_PLAIN),
            **dict.fromkeys(erofs.ExtendedInode._fields[1:], 0),
            "mode": mode,
            "nlink": 1,
            **fields,
        }
        packed = erofs.EXTENDED_INODE.pack(erofs.ExtendedInode(**chosen))
        self.place(nid * erofs.NID_SLOT_BYTES, packed + behind)
        return nid

    def directory(self, entries: Sequence[tuple[bytes, int, int]], *, nid: int | None = None) -> int:
        """A directory of one block, with ``.`` and, as for those in the root, ``..``."""
        nid = self.reserve() if nid is None else nid
        dots = [(b".", nid, erofs.FileType.DIRECTORY), (b"..", self.root, erofs.FileType.DIRECTORY)]
        block = self.block(directory_block([*dots, *entries]))
        links = 2 + sum(kind == erofs.FileType.DIRECTORY for _, _, kind in entries)
        return self.inode(stat.S_IFDIR | 0o755, nid=nid, size=BLOCK, union=block, nlink=links)

    def file(
        self, size: int, indexes: Sequence[tuple[int, int]] = (), *, bits: int = 0, **fields: int
    ) -> int:
        """A chunk-based file; ``indexes`` are (device, block), ``bits`` its chunk size above a block's."""
        behind = b"".join(
            erofs.CHUNK_INDEX.pack(erofs.ChunkIndex(0, device, block)) for device, block in indexes
        )
        chosen = {
            "format": erofs.inode_format(erofs.DataLayout.CHUNK_BASED),
            "size": size,
            "union": erofs.CHUNK_FORMAT_INDEXES | bits,
            **fields,
        }
        return self.inode(stat.S_IFREG | 0o644, behind=behind, **chosen)

    def pack(self, **fields: int) -> bytes:
        """The section with its superblock, whose fields may be overridden."""
        superblock = erofs.Superblock(
            magic=erofs.SUPERBLOCK_MAGIC,
            checksum=0,
            feature_compat=0,
            block_bits=erofs.BLOCK_BITS,
            extension_slots=0,
            root_nid=self.root,
            inode_count=self._inodes,
            epoch=0,
            fixed_nsec=0,
            blocks=len(self.data) // BLOCK,
            meta_blkaddr=0,
            xattr_blkaddr=0,
            uuid=bytes(16),
            volume_name=bytes(16),
            feature_incompat=erofs.FEATURE_INCOMPAT_OURS,
            compression_algorithms=0,
            extra_devices=len(self._devices),
            device_table_slot=erofs.DEVICE_TABLE_SLOT,
        )._replace(**fields)
        self.place(erofs.SUPERBLOCK_OFFSET, erofs.SUPERBLOCK.pack(superblock))
        return bytes(self.data)


CONFIG = b'{"config":{}}'

# --- Images -------------------------------------------------------------------------------------------------


def seal_pages(suite: Suite, plain: bytes, page_size: int, image_key: bytes) -> tuple[list[bytes], int]:
    """Pages as the builder makes them, and how many there are."""
    pages = []
    key = page_key(image_key, PAGE_SALT) if suite.encrypts else b""
    for number, start in enumerate(range(0, len(plain), page_size)):
        page = compressed(plain[start : start + page_size].ljust(page_size, b"\0"))
        if suite.encrypts:
            page = aead.seal(suite, key, page_nonce(number), page_aad(suite, page_size), page)
        pages.append(page)
    return pages, len(pages)


def seal(
    section: bytes,
    blobs: Sequence[ForgedBlob] = (),
    *,
    suite: Suite = Suite.AES_256_GCM,
    image_key: bytes = IMAGE_KEY,
    page_size: int = 64 * 1024,
    page_table: bytes | None = None,
    pages: Sequence[bytes] | None = None,
    **fields: object,
) -> Stored:
    """Seal a section and blobs for ``KEY``; ``fields`` override those of the superblock.

    The section's device slots get the names of the blobs.
    """
    layers = tuple(Layer.of(blob.data) for blob in blobs)
    for number, layer in enumerate(layers, erofs.DEVICE_TABLE_SLOT):
        tag = layer.digest.removeprefix("sha256:").encode()
        section = section[: number * 128] + tag + section[number * 128 + len(tag) :]
    tables = b"".join(CHUNK_RECORD.pack(record) for blob in blobs for record in blob.records)
    made, count = seal_pages(suite, section + tables + CONFIG, page_size, image_key)
    pages = made if pages is None else pages
    page_table = pack_page_table(pages) if page_table is None else page_table
    superblock = Superblock(
        suite=suite,
        image_id=bytes(16),
        name="",
        release=0,
        not_after=None,
        page_size=page_size,
        page_count=count,
        page_table_digest=page_table_digest(page_table),
        erofs=Section(0, len(section)),
        chunk_tables=Section(len(section), len(tables)),
        prefetch=Section(len(section) + len(tables), 0),
        config=Section(len(section) + len(tables), len(CONFIG)),
        blobs=tuple(
            BlobEntry(
                bytes.fromhex(layer.digest.removeprefix("sha256:")),
                layer.size,
                len(blob.records),
                blob.decoded_blocks,
                blob.toc_digest,
            )
            for layer, blob in zip(layers, blobs, strict=True)
        ),
        key_commitment=key_commitment(image_key, bytes(16)) if suite.encrypts else b"",
        page_salt=PAGE_SALT if suite.encrypts else b"",
        dedup_domain=b"",
    )
    return reseal(
        Stored(
            Bootstrap(replace(superblock, **fields).pack(), b"", page_table, b"".join(pages)),
            layers,
            oci.dump_json({"config": {}}),
        ),
        image_key if suite.encrypts else b"",
    )


def reseal(stored: Stored, image_key: bytes = IMAGE_KEY) -> Stored:
    """Make the envelope anew for the superblock's bytes, which need not be a superblock."""
    if stored.bootstrap.superblock and image_key:
        recipients = (wrap(image_key, bytes(16), KEY),)
        envelope = Envelope(recipients, (), superblock_seal(image_key, stored.bootstrap.superblock))
    else:
        envelope = Envelope()
    return replace(stored, bootstrap=replace(stored.bootstrap, envelope=envelope.pack()))
