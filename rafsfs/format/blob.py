"""A blob's tail: the plain table of contents and its footer. They tell sizes to anybody and are believed by
nobody.

``encoded chunk * n | table of contents | footer``; the SHA-256 of the whole file is the blob's id.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from blake3 import blake3

from rafsfs.errors import DigestMismatch, FormatError, UnsupportedVersion
from rafsfs.format.record import Buffer, RecordCodec, bytes8, bytes32, u32, u64

FOOTER_MAGIC = b"RAFSBLOB"
BLOB_VERSION = 1


class TocEntry(NamedTuple):
    """One chunk, for caches and hosts that hold no key; 44 bytes, in the order of the chunks in the file."""

    encoded_offset: u64
    encoded_length: u32
    chunk_id: bytes32


TOC_ENTRY = RecordCodec(TocEntry, size=44)


class Footer(NamedTuple):
    """The last 64 bytes of a blob."""

    magic: bytes8
    version: u32
    entry_count: u32
    toc_offset: u64
    toc_length: u64
    toc_digest: bytes32


FOOTER = RecordCodec(Footer, size=64)


def toc_digest(toc: Buffer) -> bytes:
    """BLAKE3-256 of the table of contents; also sealed into the superblock."""
    return blake3(toc).digest()


def pack_tail(entries: Iterable[TocEntry], toc_offset: int) -> tuple[bytes, bytes]:
    """Make (table of contents + footer, digest of the table) for chunks that end at ``toc_offset``."""
    toc = b"".join(map(TOC_ENTRY.pack, entries))
    digest = toc_digest(toc)
    footer = Footer(FOOTER_MAGIC, BLOB_VERSION, len(toc) // TOC_ENTRY.size, toc_offset, len(toc), digest)
    return toc + FOOTER.pack(footer), digest


def parse_footer(tail: Buffer, blob_size: int) -> Footer:
    """Read the footer out of a blob's last bytes; raises FormatError when it cannot belong to such a blob."""
    footer = FOOTER.unpack_from(tail, max(0, len(tail) - FOOTER.size))
    if footer.magic != FOOTER_MAGIC:
        raise FormatError("not a rafsfs blob: wrong footer magic", expected=FOOTER_MAGIC, found=footer.magic)
    if footer.version != BLOB_VERSION:
        raise UnsupportedVersion("blob version", expected=BLOB_VERSION, found=footer.version)
    end = blob_size - FOOTER.size
    if (
        footer.toc_offset + footer.toc_length != end
        or footer.toc_length != footer.entry_count * TOC_ENTRY.size
    ):
        raise FormatError(
            "blob's table of contents is out of place",
            expected=f"{footer.entry_count} entries that end at {end}",
            found=f"{footer.toc_length} bytes at {footer.toc_offset}",
        )
    return footer


def parse_toc(toc: Buffer, footer: Footer) -> list[TocEntry]:
    """Read the table of contents; raises DigestMismatch when it is not the one the footer names."""
    if (digest := toc_digest(toc)) != footer.toc_digest:
        raise DigestMismatch("blob's table of contents", expected=footer.toc_digest.hex(), found=digest.hex())
    return list(TOC_ENTRY.iter_unpack(toc))
