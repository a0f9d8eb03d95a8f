"""A tar archive as plain bytes; owns decompression and noticing a cut-off end, never seeks or parses."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, BinaryIO, Protocol

import zstandard

from rafsfs.errors import BuildError, SourceUnreadable, Where
from rafsfs.limits import TAR_TRAILER_BYTES_MAX

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK_BYTES = 512  # of a tar, POSIX.1-2017 pax, "ustar Interchange Format"
_READ_BYTES = 1 << 20
_BUFFER_BYTES = 1 << 18
_GZIP_MAGIC = b"\x1f\x8b"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_OTHER_MAGICS = {b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x04\x22\x4d\x18": "lz4", b"PK\x03\x04": "unzip"}
# Decompressors have no bound on what a call gives, so the bound is on what they are given: deflate grows at
# most 1,032-fold (16 MiB), zstd makes a block of 128 KiB out of 4 bytes (64 MiB).
_GZIP_FEED_BYTES = 16 << 10
_ZSTD_FEED_BYTES = 2 << 10


class TarStream:
    """Reads a plain, gzip or zstd compressed archive front to back; ``file`` stays the caller's to close.

    ``file`` may be a pipe. ``observe`` is shown all bytes of the plain archive, in order. Every method raises
    BuildError when the file cannot be read or decompressed.
    """

    def __init__(self, file: BinaryIO, observe: Callable[[bytes], None] | None = None) -> None:
        chunks = _read_chunks(file)
        first = next(chunks, b"")
        while len(first) < BLOCK_BYTES and (more := next(chunks, b"")):
            first += more
        plain = _decoded(first, chunks)
        if observe is not None:
            plain = _observed(plain, observe)
        self._plain = io.BufferedReader(_Chunks(plain), _BUFFER_BYTES)
        self.offset = 0
        """Of the next byte, in the plain archive."""

    def read(self, size: int) -> bytes:
        """Give exactly ``size`` bytes."""
        data = self._plain.read(size)
        self.offset += len(data)
        if len(data) != size:
            raise _cut_off(self.offset)
        return data

    def read_block(self) -> bytes:
        """Give the next 512 bytes, or ``b""`` at the end of the file."""
        data = self._plain.read(BLOCK_BYTES)
        if data and len(data) != BLOCK_BYTES:
            if not self.offset:
                raise no_archive(f"{len(data)} bytes")
            raise _cut_off(self.offset + len(data))
        self.offset += len(data)
        return data

    def skip_padding(self, size: int) -> None:
        """Read ``size`` bytes for nothing, or fewer where the file ends."""
        self.offset += len(self._plain.read(size))

    def skip(self, size: int) -> None:
        """Read ``size`` bytes for nothing."""
        while size > 0:
            size -= len(self.read(min(size, _READ_BYTES)))

    def drain(self) -> None:
        """Read what is behind the archive's end, so that checksums at the end of compressed data are checked.

        It also spares whoever writes to our pipe a broken one.
        """
        left = TAR_TRAILER_BYTES_MAX
        while size := len(self._plain.read(_READ_BYTES)):
            left -= size
            if left < 0:
                raise BuildError(
                    "there is too much behind the end of the tar archive",
                    expected=f"at most {TAR_TRAILER_BYTES_MAX} bytes",
                    where=Where(offset=self.offset),
                )


def is_packed(first: bytes) -> bool:
    """Whether a file that begins so (4 bytes) is in gzip or zstd."""
    skippable = first[1:4] == b"\x2a\x4d\x18" and first[0] >> 4 == 5  # RFC 8878, 3.1.2: pzstd begins with one
    return skippable or first.startswith((_GZIP_MAGIC, _ZSTD_MAGIC))


class _Decompressor(Protocol):
    """What zlib's and zstandard's decompression objects have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, /) -> bytes: ...


class _Chunks(io.RawIOBase):
    """Lets io.BufferedReader read from an iterator of non-empty byte strings."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._chunk = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        if not self._chunk:
            self._chunk = memoryview(next(self._chunks, b""))
        target = memoryview(buffer).cast("B")
        size = min(len(target), len(self._chunk))
        target[:size] = self._chunk[:size]
        self._chunk = self._chunk[size:]
        return size


def _read_chunks(file: BinaryIO) -> Iterator[bytes]:
    try:
        while chunk := file.read(_READ_BYTES):
            yield chunk
    except OSError as error:
        raise SourceUnreadable(
            "the tar archive cannot be read", found=error.strerror or str(error)
        ) from error


def _observed(chunks: Iterator[bytes], observe: Callable[[bytes], None]) -> Iterator[bytes]:
    for chunk in chunks:
        observe(chunk)
        yield chunk


def _decoded(first: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Tell by its first bytes what the archive is compressed with, and undo that."""
    for magic, program in _OTHER_MAGICS.items():
        if first.startswith(magic):
            raise BuildError(
                "the tar archive is packed in a way that is not read here",
                expected="plain, gzip or zstd",
                found=program,
                hint="unpack it into a pipe, and build from -",
            )
    if first.startswith(_GZIP_MAGIC):
        return _decompressed("gzip", first, chunks, _GZIP_FEED_BYTES, lambda: zlib.decompressobj(wbits=31))
    if is_packed(first):
        engine = zstandard.ZstdDecompressor()
        return _decompressed("zstd", first, chunks, _ZSTD_FEED_BYTES, engine.decompressobj)
    return _chained(first, chunks)


def _chained(first: bytes, chunks: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
        yield from chunks


def _decompressed(
    name: str, first: bytes, chunks: Iterator[bytes], feed_bytes: int, new: Callable[[], _Decompressor]
) -> Iterator[bytes]:
    """Decompress members or frames, one behind the other, with nothing but zeros behind them."""
    engine: _Decompressor | None = None
    position = 0
    for chunk in _chained(first, chunks):
        for start in range(0, len(chunk), feed_bytes):
            data = chunk[start : start + feed_bytes]
            while data:
                if engine is None:
                    data = data.lstrip(b"\0")
                    if not data:
                        break
                    engine = new()
                try:
                    plain = engine.decompress(data)
                except (zlib.error, zstandard.ZstdError) as error:
                    raise BuildError(
                        f"the {name} data around the tar archive is damaged",
                        found=str(error),
                        where=Where(offset=position + start),
                    ) from error
                if plain:
                    yield plain
                data = b""
                if engine.eof:
                    data = engine.unused_data
                    engine = None
        position += len(chunk)
    if engine is not None:
        raise BuildError(
            f"the {name} data around the tar archive ends too early",
            where=Where(offset=position),
            hint="fetch or make the archive again",
        )


def no_archive(found: str) -> BuildError:
    """Make the error for a source that never was a tar archive."""
    return BuildError(
        "not a tar archive",
        found=found,
        hint="give a directory, or a tar archive: plain, gzip or zstd",
    )


def _cut_off(offset: int) -> BuildError:
    return BuildError(
        "the tar archive ends too early", where=Where(offset=offset), hint="fetch or make the archive again"
    )
