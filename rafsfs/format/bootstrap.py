"""Where the parts of a bootstrap file lie, and the records between them; no keys, no file access.

magic "RAFSBOOT" | version u32 | superblock length u32 | superblock
envelope length u32 | envelope
page table: PageEntry * page count
encoded metadata pages
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from blake3 import blake3

from rafsfs.errors import DigestMismatch, FormatError, LimitExceeded
from rafsfs.format.chunk import Codec, Suite
from rafsfs.format.record import Buffer, RecordCodec, bytes8, bytes32, u32, u64
from rafsfs.format.superblock import FORMAT_VERSION, Superblock, check_version
from rafsfs.limits import ENVELOPE_BYTES_MAX, PAGE_TABLE_BYTES_MAX, SUPERBLOCK_BYTES_MAX
from rafsfs.types import PageNumber

BOOTSTRAP_MAGIC = b"RAFSBOOT"
PAGE_MAGIC = b"RAFSPAGE"
PAGE_VERSION = 1


class Length(NamedTuple):
    """What stands before the envelope."""

    length: u32


LENGTH = RecordCodec(Length, size=4)


class Prefix(NamedTuple):
    """The first 16 bytes of a bootstrap."""

    magic: bytes8
    version: u32
    superblock_length: u32


PREFIX = RecordCodec(Prefix, size=16)


class PageEntry(NamedTuple):
    """One metadata page; ``encoded_offset`` counts from the end of the page table; 44 bytes."""

    encoded_offset: u64
    encoded_length: u32
    digest: bytes32


PAGE_ENTRY = RecordCodec(PageEntry, size=44)


def parse_prefix(data: Buffer) -> int:
    """Read the first 16 bytes; returns the superblock's length. Raises FormatError or UnsupportedVersion."""
    prefix = PREFIX.unpack_from(data)
    if prefix.magic != BOOTSTRAP_MAGIC:
        raise FormatError("not a rafsfs bootstrap: wrong magic", expected=BOOTSTRAP_MAGIC, found=prefix.magic)
    check_version(prefix.version)
    return _bounded(prefix.superblock_length, SUPERBLOCK_BYTES_MAX, "superblock")


def parse_envelope_length(data: Buffer) -> int:
    """Read the 4 bytes before the envelope; raises FormatError or LimitExceeded."""
    return _bounded(LENGTH.unpack_from(data).length, ENVELOPE_BYTES_MAX, "envelope")


def _bounded(length: int, most: int, what: str) -> int:
    if not 0 < length <= most:
        raise LimitExceeded(f"{what}'s length", expected=f"1 to {most} bytes", found=length)
    return length


def pack_head(superblock: bytes, envelope: bytes, page_table: bytes) -> bytes:
    """All of a bootstrap before its pages."""
    prefix = PREFIX.pack(Prefix(BOOTSTRAP_MAGIC, FORMAT_VERSION, len(superblock)))
    return prefix + superblock + LENGTH.pack(Length(len(envelope))) + envelope + page_table


def pack_page_table(encoded_pages: Iterable[Buffer]) -> bytes:
    """The table for pages that lie back to back."""
    entries = []
    offset = 0
    for page in encoded_pages:
        entries.append(PAGE_ENTRY.pack(PageEntry(offset, len(page), blake3(page).digest())))
        offset += len(page)
    return b"".join(entries)


def page_table_bytes(superblock: Superblock) -> int:
    """Length of the page table; raises LimitExceeded when it is more than a mount may hold in memory."""
    length = superblock.page_count * PAGE_ENTRY.size
    if length > PAGE_TABLE_BYTES_MAX:
        raise LimitExceeded("page table", expected=f"at most {PAGE_TABLE_BYTES_MAX} bytes", found=length)
    return length


def page_table_digest(table: Buffer) -> bytes:
    """BLAKE3-256 of the page table, which the superblock holds."""
    return blake3(table).digest()


def check_page_table(table: bytes, superblock: Superblock) -> PageTable:
    """Compare the table with the sealed digest; raises DigestMismatch."""
    if (digest := page_table_digest(table)) != superblock.page_table_digest:
        raise DigestMismatch("page table", expected=superblock.page_table_digest.hex(), found=digest.hex())
    return PageTable(table, superblock.page_size)


class PageTable:
    """The checked page table; entries are read in place, there is no object for each page."""

    def __init__(self, table: bytes, page_size: int) -> None:
        self._table = table
        self.page_size = page_size
        self.page_count = len(table) // PAGE_ENTRY.size

    def entry(self, page: PageNumber) -> PageEntry:
        """Where page ``page`` lies; raises FormatError for a page that is not there or could not be one."""
        if not 0 <= page < self.page_count:
            raise FormatError(
                "metadata page is out of range", expected=f"below {self.page_count}", found=page
            )
        entry = PAGE_ENTRY.unpack_from(self._table, page * PAGE_ENTRY.size)
        if not 0 < entry.encoded_length <= 2 * self.page_size:
            raise LimitExceeded(
                "metadata page's encoded length",
                expected=f"1 to {2 * self.page_size}",
                found=entry.encoded_length,
            ).at(page=page)
        return entry


def page_aad(suite: Suite, page_size: int) -> bytes:
    """What the AEAD binds beside a page's bytes; the page number is its nonce."""
    return PAGE_MAGIC + bytes((PAGE_VERSION, suite, Codec.ZSTD, 0)) + page_size.to_bytes(4, "little")


def page_nonce(page: PageNumber) -> bytes:
    """12 bytes: the page number, little-endian. Each is used once under a page key."""
    return page.to_bytes(12, "little")
