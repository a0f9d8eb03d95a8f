"""Names for the integers and bytes that must not be mixed up; owns no behaviour."""

from typing import NewType

Nid = NewType("Nid", int)
"""EROFS node id: inode position in the metadata section, in 32-byte slots."""

BlobIndex = NewType("BlobIndex", int)
"""Position of a blob in the superblock's list; EROFS device slot = BlobIndex + 1."""

ChunkIndex = NewType("ChunkIndex", int)
"""Position of a chunk in its blob's sealed chunk table."""

PageNumber = NewType("PageNumber", int)
"""Position of a page in the plain metadata space."""

DecodedOffset = NewType("DecodedOffset", int)
"""Byte offset in a blob's decoded space."""

MetaOffset = NewType("MetaOffset", int)
"""Byte offset in the plain metadata space."""

BlobId = NewType("BlobId", bytes)
"""SHA-256 of a whole blob file, 32 bytes: its OCI digest."""

ChunkId = NewType("ChunkId", bytes)
"""BLAKE3-256 of an encoded chunk, 32 bytes."""

EncodedBytes = NewType("EncodedBytes", bytes)
"""What a store gave us. Private copies, but believed by nobody."""

VerifiedBytes = NewType("VerifiedBytes", bytes)
"""Plain bytes whose digest and MAC were checked. Only ``rafsfs.decode`` makes these."""


def blob_digest(blob: BlobId) -> str:
    """Spell a blob id the way OCI does: ``sha256:<64 hex digits>``."""
    return f"sha256:{blob.hex()}"
