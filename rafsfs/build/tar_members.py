"""The members of a tar, put together from their headers; owns what overrides what, never judges names."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rafsfs.build.source import shown
from rafsfs.build.tar_format import (
    Extents,
    Header,
    check_extents,
    decimal,
    nanoseconds,
    old_sparse,
    old_sparse_size,
    paired,
    parse_header,
    parse_pax,
)
from rafsfs.build.tar_stream import BLOCK_BYTES, TarStream, no_archive
from rafsfs.errors import BuildError
from rafsfs.limits import FILE_SIZE_MAX, SPARSE_EXTENTS_MAX, TAR_EXTENDED_BYTES_MAX

REGULAR = frozenset({b"0", b"\0", b"7", b"S"})  # 7: contiguous; S: old GNU sparse
HARD_LINK, SYMLINK, CHARACTER, BLOCK, DIRECTORY, FIFO = b"1", b"2", b"3", b"4", b"5", b"6"
GNU_DUMP_DIRECTORY, GNU_VOLUME_LABEL = b"D", b"V"
_SIZED = REGULAR | {GNU_DUMP_DIRECTORY, GNU_VOLUME_LABEL}  # only these have data behind their header
_KNOWN = _SIZED | {HARD_LINK, SYMLINK, CHARACTER, BLOCK, DIRECTORY, FIFO}
_PAX, _PAX_GLOBAL, _PAX_SOLARIS = b"x", b"g", b"X"
_GNU_LONG_NAME, _GNU_LONG_LINK = b"L", b"K"
_EXTENSIONS = {_PAX, _PAX_GLOBAL, _PAX_SOLARIS, _GNU_LONG_NAME, _GNU_LONG_LINK}
_NUMBER_BYTES_MAX = 24


@dataclass(slots=True)
class Member:
    """One file of an archive; its data are the next ``stored`` bytes of the stream."""

    kind: bytes
    path: bytes
    link: bytes
    permissions: int
    uid: int
    gid: int
    mtime_ns: int
    size: int
    """Bytes of the file, holes included."""
    stored: int
    """Bytes in the archive, padding not included."""
    extents: Extents | None
    """Where in the file they belong, when it has holes."""
    device: tuple[int, int]
    records: dict[bytes, bytes]
    """All pax records that hold for it."""
    offset: int
    """Of its header in the plain archive, for errors."""


class MemberReader:
    """Gives the members of ``stream`` in order; what is not read of one's data is skipped before the next.

    Iterating raises BuildError, with the offset in the plain archive, when it is none, is damaged, or is cut
    off. ``may_end_early``: the end mark, and the padding before it, may be missing, as Go's reader has it;
    for who knows by a digest that nothing is missing.
    """

    def __init__(self, stream: TarStream, *, may_end_early: bool = False) -> None:
        self._stream = stream
        self._may_end_early = may_end_early
        self._global: dict[bytes, bytes] = {}
        self._local: list[tuple[bytes, bytes]] = []
        self._long_name = b""
        self._long_link = b""
        self._extended_bytes = 0

    def __iter__(self) -> Iterator[Member]:
        stream = self._stream
        while True:
            offset = stream.offset
            try:
                header = self._next_header()
                if header is None:
                    break
                member = self._member(header, offset)
            except BuildError as error:
                error.at(offset=offset)
                raise
            end = stream.offset + member.stored
            yield member
            stream.skip(end - stream.offset)
            if self._may_end_early:
                stream.skip_padding(-member.stored % BLOCK_BYTES)
            else:
                stream.skip(-member.stored % BLOCK_BYTES)
        stream.drain()

    def _next_header(self) -> Header | None:
        """Read up to the next header that is not about another one; None at the end of the archive."""
        while True:
            offset = self._stream.offset
            block = self._stream.read_block()
            if not block and self._may_end_early and offset and not self._is_pending:
                return None
            if not block:
                raise BuildError(
                    "the tar archive ends without its end mark" if offset else "the tar archive is empty",
                    hint="fetch or make the archive again",
                )
            try:
                header = parse_header(block)
            except BuildError as error:
                if offset == 0:
                    raise no_archive(str(error)) from error
                raise
            if header is None:
                if self._is_pending:
                    raise BuildError("the tar archive ends where a file should follow")
                return None
            if header.kind not in _EXTENSIONS:
                return header
            self._extend(header)

    @property
    def _is_pending(self) -> bool:
        """Something was said about a file that did not come yet."""
        return bool(self._local or self._long_name or self._long_link)

    def _extend(self, header: Header) -> None:
        """Take in a header that says more about the next member, or about all that follow."""
        if not 0 <= header.size <= TAR_EXTENDED_BYTES_MAX - self._extended_bytes:
            raise BuildError(
                "a tar header is extended too far",
                expected=f"at most {TAR_EXTENDED_BYTES_MAX} bytes",
                found=self._extended_bytes + header.size,
            )
        self._extended_bytes += header.size
        data = self._stream.read(_padded(header.size))[: header.size]
        if header.kind == _GNU_LONG_NAME:
            self._long_name = data.partition(b"\0")[0]
        elif header.kind == _GNU_LONG_LINK:
            self._long_link = data.partition(b"\0")[0]
        elif header.kind == _PAX_GLOBAL:
            self._global.update(parse_pax(data))
        else:
            self._local += parse_pax(data)

    def _member(self, header: Header, offset: int) -> Member:
        if header.kind not in _KNOWN:
            raise BuildError(
                "the tar archive holds a kind of file that is not known",
                expected="regular files, directories, links, devices and fifos",
                found=repr(header.kind),
            ).at(path=shown(header.name))
        local, self._local = self._local, []
        long_name, self._long_name = self._long_name, b""
        long_link, self._long_link = self._long_link, b""
        self._extended_bytes = sum(map(len, self._global)) + sum(map(len, self._global.values()))
        records = {**self._global, **dict(local)} if local else dict(self._global)
        # A record without a value takes back what was said before, down to the header itself.
        said = {keyword: value for keyword, value in records.items() if value}
        path = said.get(b"GNU.sparse.name") or said.get(b"path") or long_name or header.name
        member = Member(
            kind=header.kind,
            path=path,
            link=said.get(b"linkpath") or long_link or header.link,
            permissions=header.mode & 0o7777,
            uid=_whole(said, b"uid", header.uid),
            gid=_whole(said, b"gid", header.gid),
            mtime_ns=nanoseconds(said[b"mtime"]) if b"mtime" in said else header.mtime * 1_000_000_000,
            size=0,
            stored=_whole(said, b"size", header.size) if header.kind in _SIZED else 0,
            extents=None,
            device=(
                _whole(said, b"SCHILY.devmajor", header.device[0]),
                _whole(said, b"SCHILY.devminor", header.device[1]),
            ),
            records=records,
            offset=offset,
        )
        try:
            self._measure(member, header, said, local)
        except BuildError as error:
            error.at(path=shown(path))
            raise
        return member

    def _measure(
        self, member: Member, header: Header, said: dict[bytes, bytes], local: list[tuple[bytes, bytes]]
    ) -> None:
        """Find out the size, and for a sparse file the map: in the header, in records, or before the data."""
        if not 0 <= member.stored <= FILE_SIZE_MAX:
            raise BuildError("a file's size is out of range", found=member.stored)
        member.size = member.stored
        if header.kind == b"S":
            member.extents = self._old_map(header)
            member.size = old_sparse_size(header.block)
        elif b"GNU.sparse.map" in said:  # 0.1
            numbers = [decimal(text, b"GNU.sparse.map") for text in said[b"GNU.sparse.map"].split(b",")]
            member.extents = paired(numbers)
            member.size = _whole(said, b"GNU.sparse.size", -1)
        elif b"GNU.sparse.size" in said:  # 0.0
            member.extents = paired(
                [decimal(value, keyword) for keyword, value in local if keyword in _SPARSE_00_KEYWORDS]
            )
            member.size = _whole(said, b"GNU.sparse.size", -1)
        elif b"GNU.sparse.major" in said:
            version = said[b"GNU.sparse.major"], said.get(b"GNU.sparse.minor")
            if version != (b"1", b"0"):
                raise BuildError(
                    "a sparse file is stored in an unknown way", expected="1.0", found=repr(version)
                )
            before = self._stream.offset
            member.extents = self._map_before_data(member.stored)
            member.stored -= self._stream.offset - before
            member.size = _whole(said, b"GNU.sparse.realsize", -1)
        if not 0 <= member.size <= FILE_SIZE_MAX:
            raise BuildError("a file's size is out of range", found=member.size)
        if member.extents is not None:
            check_extents(member.extents, member.size, member.stored)

    def _old_map(self, header: Header) -> Extents:
        extents, more = old_sparse(header.block, more=False)
        while more:
            found, more = old_sparse(self._stream.read(BLOCK_BYTES), more=True)
            extents += found
            if len(extents) > SPARSE_EXTENTS_MAX:
                break  # check_extents says so
        return extents

    def _map_before_data(self, stored: int) -> Extents:
        """Read the map of GNU format 1.0: a count and its numbers, one a line, padded to a whole block."""
        lines = _Lines(self._stream, stored)
        count = lines.number()
        if count > SPARSE_EXTENTS_MAX:
            raise BuildError(
                "a sparse file has too many pieces", expected=f"at most {SPARSE_EXTENTS_MAX}", found=count
            )
        return [(lines.number(), lines.number()) for _ in range(count)]


_SPARSE_00_KEYWORDS = {b"GNU.sparse.offset", b"GNU.sparse.numbytes"}


class _Lines:
    """Numbers, one a line, out of as many whole blocks as they need."""

    def __init__(self, stream: TarStream, stored: int) -> None:
        self._stream = stream
        self._left = stored
        self._text = b""
        self._position = 0

    def number(self) -> int:
        end = self._text.find(b"\n", self._position)
        while end < 0:
            rest = self._text[self._position :]
            if self._left < BLOCK_BYTES or len(rest) > _NUMBER_BYTES_MAX:
                raise BuildError("a sparse file's map is damaged", expected="one number a line")
            self._text = rest + self._stream.read(BLOCK_BYTES)
            self._left -= BLOCK_BYTES
            self._position = 0
            end = self._text.find(b"\n")
        text = self._text[self._position : end]
        self._position = end + 1
        return decimal(text, b"GNU.sparse.map")


def _whole(said: dict[bytes, bytes], keyword: bytes, otherwise: int) -> int:
    return decimal(said[keyword], keyword) if keyword in said else otherwise


def _padded(size: int) -> int:
    return size + -size % BLOCK_BYTES
