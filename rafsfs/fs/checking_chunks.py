"""Checks every chunk by decoding it, over all cores, and finds the files that a damaged one touches."""

from __future__ import annotations

import stat
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

from rafsfs.errors import RafsError
from rafsfs.fs.checking_blobs import TableFindings
from rafsfs.fs.filesystem import FileSystem
from rafsfs.fs.parallel import WAITING, in_order
from rafsfs.fs.problems import Problem, Problems
from rafsfs.limits import PROBLEMS_MAX
from rafsfs.metadata.inode import InlineExtent
from rafsfs.types import BlobIndex, ChunkIndex, Nid

_CHUNKS_AT_ONCE = 8  # 2 MiB of the default size: what one task decodes, so that tasks cost little


class _Damage(NamedTuple):
    """A part of a blob's decoded space that cannot be read, ``end`` not included."""

    blob: int
    start: int
    end: int
    problem: Problem


class _Task(NamedTuple):
    blob: BlobIndex
    indexes: Sequence[ChunkIndex]


class _Done(NamedTuple):
    blob: BlobIndex
    chunks: int
    decoded_bytes: int
    errors: list[tuple[ChunkIndex, RafsError]]


class ChunkCheck:
    """One pass over all chunks; ``run`` it once. ``chunks`` and ``decoded_bytes`` count what was right."""

    def __init__(
        self,
        filesystem: FileSystem,
        tables: Sequence[TableFindings],
        broken_files: Mapping[str, Problem],
        problems: Problems,
    ) -> None:
        """``broken_files``: digests of blobs that are missing or cut off, with the problem noted for that."""
        self._filesystem = filesystem
        self._engine = filesystem.engine
        self._tables = tables
        self._broken_files = broken_files
        self._problems = problems
        self._damage: list[_Damage] = []
        self.total_bytes = sum(findings.decoded_bytes for findings in tables)
        self.chunks = 0
        self.decoded_bytes = 0

    def run(self, pool: ThreadPoolExecutor) -> Iterator[int]:
        """Decode everything; gives the number of bytes done, now and then."""
        for done in in_order(pool, self._decode, self._tasks(), waiting=WAITING):
            self.chunks += done.chunks
            self.decoded_bytes += done.decoded_bytes
            for index, error in done.errors:
                self._damaged(done.blob, index, self._problems.add(error))
            yield self.decoded_bytes

    def _decode(self, task: _Task) -> _Done:
        decoded_bytes = 0
        errors = []
        for index in task.indexes:
            try:
                decoded_bytes += len(self._engine.decode(task.blob, index))
            except RafsError as error:
                errors.append((index, error))
        return _Done(task.blob, len(task.indexes) - len(errors), decoded_bytes, errors)

    def _tasks(self) -> Iterator[_Task]:
        """All chunks that can be decoded, in the order of the blob files; notes those that are cut off."""
        for number, findings in enumerate(self._tables):
            blob = BlobIndex(number)
            batch: list[ChunkIndex] = []
            for index in self._readable_chunks(blob, findings):
                batch.append(index)
                if len(batch) == _CHUNKS_AT_ONCE:
                    yield _Task(blob, batch)
                    batch = []
            if batch:
                yield _Task(blob, batch)

    def _readable_chunks(self, number: BlobIndex, findings: TableFindings) -> Iterator[ChunkIndex]:
        blob = self._engine.blobs[number]
        broken = self._broken_files.get(blob.file.name)
        for index in map(ChunkIndex, range(len(blob.chunks))):
            if index in findings.unusable:
                continue
            try:
                record = blob.chunks.record(index)
            except RafsError as error:  # the neighbour of an unusable one, which readers do not get either
                self._problems.add(error.at(blob=blob.file.name, chunk=index))
                continue
            if broken is not None and record.encoded_offset + record.encoded_length > blob.file.size:
                self._damaged(number, index, broken)
                continue
            yield index

    def _damaged(self, blob: BlobIndex, index: ChunkIndex, problem: Problem) -> None:
        """Remember what cannot be read, so that the files in it can be named."""
        record = self._engine.blobs[blob].chunks.record(index)
        last = self._damage[-1] if self._damage else None
        if last is not None and last.problem is problem and last.blob == blob:
            self._damage[-1] = last._replace(end=record.decoded_end)
        elif self._problems.count <= PROBLEMS_MAX:
            self._damage.append(_Damage(blob, record.decoded_start, record.decoded_end, problem))

    def name_damaged_files(self) -> None:
        """Tell each problem which files it touches: a walk over all extents, only where something is damaged.

        Files behind metadata that cannot be read go unnamed; the metadata is a problem of its own.
        """
        if not self._damage:
            return
        self._damage.sort(key=lambda part: (part.blob, part.start))
        ends = [(part.blob, part.end) for part in self._damage]
        seen: set[Nid] = set()
        names = self._filesystem.walk()
        while True:
            try:
                path, nid = next(names)
                attributes = self._filesystem.attributes(nid)
                if not stat.S_ISREG(attributes.mode) or nid in seen:
                    continue
                if attributes.nlink > 1:
                    seen.add(nid)
                for problem in self._touched(nid, attributes.size, ends):
                    problem.touches(path)
            except RafsError:
                continue
            except StopIteration:
                return

    def _touched(self, nid: Nid, size: int, ends: list[tuple[int, int]]) -> list[Problem]:
        """The problems in a file's extents; ``ends`` are the ends of all damaged parts, in order."""
        touched: dict[int, Problem] = {}
        for extent in self._filesystem.extents(nid, 0, size):
            if isinstance(extent, InlineExtent) or extent.blob is None:
                continue
            first = bisect_left(ends, (extent.blob, extent.start + 1))
            for part in islice(self._damage, first, None):
                if (part.blob, part.start) >= (extent.blob, extent.start + extent.length):
                    break
                touched[id(part.problem)] = part.problem
        return list(touched.values())
