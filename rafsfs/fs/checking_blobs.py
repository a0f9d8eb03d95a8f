"""Checks what an image says of its blobs: sealed chunk tables, contents lists, footers; decodes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from rafsfs.errors import DigestMismatch, FormatError, RafsError
from rafsfs.format.blob import FOOTER, TOC_ENTRY, TocEntry, parse_footer, toc_digest
from rafsfs.format.chunk import CHUNK_RECORD, ChunkRecord, Suite, blocks_of, check_chunk_record
from rafsfs.format.superblock import BlobEntry
from rafsfs.fs.checking_tree import Coverage
from rafsfs.fs.problems import Problems
from rafsfs.store.base import StoredFile

_RECORDS_AT_ONCE = 4096  # 384 KiB of sealed table


@dataclass(slots=True)
class TableFindings:
    """What a check of one chunk table leaves for the checks of files and chunks.

    ``unusable`` chunks are reported already; ``decoded_bytes`` is the sum over the usable ones.
    """

    coverage: Coverage = field(default_factory=Coverage)
    unusable: set[int] = field(default_factory=set)
    decoded_bytes: int = 0
    in_order: bool = True


class BlobCheck:
    """One blob: its entry in the superblock and its part of the sealed chunk tables."""

    def __init__(
        self,
        name: str,
        entry: BlobEntry,
        suite: Suite,
        read_table: Callable[[int, int], bytes],
        problems: Problems,
    ) -> None:
        """``read_table(offset, length)`` gives verified bytes of this blob's table; ``name``: its digest."""
        self._name = name
        self._entry = entry
        self._suite = suite
        self._read_table = read_table
        self._problems = problems

    def _records(self) -> Iterator[tuple[int, ChunkRecord]]:
        count = self._entry.chunk_count
        for first in range(0, count, _RECORDS_AT_ONCE):
            here = min(_RECORDS_AT_ONCE, count - first)
            table = self._read_table(first * CHUNK_RECORD.size, here * CHUNK_RECORD.size)
            yield from enumerate(CHUNK_RECORD.iter_unpack(table), first)

    def check_table(self) -> TableFindings:
        """Check every record by itself, and that they neither overlap nor leave the order or the blob."""
        findings = TableFindings()
        decoded_end = encoded_end = 0  # a block, a byte
        try:
            for index, record in self._records():
                try:
                    self._check_record(record, decoded_end, encoded_end)
                except RafsError as error:
                    findings.unusable.add(index)
                    findings.in_order = False
                    self._problems.add(error.at(blob=self._name, chunk=index))
                    continue
                findings.coverage.add(record.decoded_start, record.decoded_end)
                findings.decoded_bytes += record.decoded_length
                decoded_end = record.decoded_block + blocks_of(record.decoded_length)
                encoded_end = record.encoded_offset + record.encoded_length
        except RafsError as error:  # a metadata page under the table: what follows cannot be read
            findings.unusable.update(range(self._entry.chunk_count))
            findings.in_order = False
            self._problems.add(error.at(blob=self._name))
        return findings

    def _check_record(self, record: ChunkRecord, decoded_end: int, encoded_end: int) -> None:
        check_chunk_record(record, self._suite, self._entry.size)
        if record.decoded_block < decoded_end:
            raise FormatError(
                "chunk table is not in order: chunks overlap in decoded space",
                expected=f"block {decoded_end} or later",
                found=record.decoded_block,
            )
        if record.encoded_offset < encoded_end:
            raise FormatError(
                "chunk table is not in order: encoded chunks overlap",
                expected=f"offset {encoded_end} or later",
                found=record.encoded_offset,
            )
        end = record.decoded_block + blocks_of(record.decoded_length)
        if end > self._entry.decoded_blocks:
            raise FormatError(
                "chunk lies outside its blob's decoded space",
                expected=f"an end of at most block {self._entry.decoded_blocks}",
                found=end,
            )

    def check_tail(self, file: StoredFile, findings: TableFindings) -> None:
        """Check the blob's footer and table of contents, and that the sealed records agree with them.

        Layers of stock images have neither.
        """
        if self._entry.is_layer:
            return
        try:
            toc, chunks_end = read_toc(file, self._entry)
            self._check_toc(toc, chunks_end)
            if findings.in_order:
                self._compare(toc)
        except RafsError as error:
            self._problems.add(error.at(blob=self._name))

    def _check_toc(self, toc: bytes, chunks_end: int) -> None:
        position = 0
        for index, entry in enumerate(TOC_ENTRY.iter_unpack(toc)):
            if entry.encoded_offset != position:
                raise FormatError(
                    "blob's table of contents leaves a gap or overlaps",
                    expected=f"an offset of {position}",
                    found=entry.encoded_offset,
                ).at(chunk=index)
            position += entry.encoded_length
        if position != chunks_end:
            raise FormatError("blob's chunks end", expected=f"at {chunks_end}", found=position)

    def _compare(self, toc: bytes) -> None:
        """Find every sealed record in the table of contents; an image may use a few of a blob's chunks."""
        entries = TOC_ENTRY.iter_unpack(toc)
        for index, record in self._records():
            sealed = TocEntry(record.encoded_offset, record.encoded_length, record.chunk_id)
            listed = next((entry for entry in entries if entry.encoded_offset >= sealed.encoded_offset), None)
            if listed != sealed:
                raise FormatError(
                    "blob's table of contents does not agree with the sealed chunk table",
                    expected=_spelled(sealed),
                    found=_spelled(listed) if listed else "nothing",
                ).at(chunk=index, offset=sealed.encoded_offset)


def read_toc(file: StoredFile, entry: BlobEntry) -> tuple[bytes, int]:
    """A blob's table of contents, which is the sealed one, and where it starts: the end of the chunks.

    Raises FormatError or DigestMismatch when footer or table are not what was sealed, StoreError.
    """
    tail_start = max(0, file.size - FOOTER.size)
    footer = parse_footer(file.read_range(tail_start, file.size - tail_start), file.size)
    if footer.entry_count > entry.decoded_blocks:  # before as much is read
        raise FormatError(
            "blob's table of contents is too long",
            expected=f"at most {entry.decoded_blocks} chunks",
            found=footer.entry_count,
        )
    toc = file.read_range(footer.toc_offset, footer.toc_length)
    for digest in (footer.toc_digest, toc_digest(toc)):
        if digest != entry.toc_digest:
            raise DigestMismatch(
                "blob's table of contents", expected=entry.toc_digest.hex(), found=digest.hex()
            ).at(offset=footer.toc_offset)
    return toc, footer.toc_offset


def _spelled(entry: TocEntry) -> str:
    return f"{entry.encoded_length} bytes at {entry.encoded_offset}, id {entry.chunk_id.hex()[:16]}"
