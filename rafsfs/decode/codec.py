"""Decompression within a promised length, and its counterpart for the builder; sees authentic bytes only."""

from __future__ import annotations

import threading

import zstandard

from rafsfs.errors import FormatError, LimitExceeded
from rafsfs.format.record import Buffer
from rafsfs.limits import ZSTD_WINDOW_BYTES_MAX

_local = threading.local()


def decompress(data: bytes | memoryview, decoded_length: int) -> bytes:
    """Expand one zstd frame to exactly ``decoded_length`` bytes.

    The bound comes from the sealed record, so a frame that promises another size, asks for a larger window,
    names a dictionary or has bytes behind it is refused before or after the work, never delivered. Raises
    FormatError or LimitExceeded: the bytes are authentic, so their author is to blame.
    """
    try:
        frame = zstandard.get_frame_parameters(data)
    except zstandard.ZstdError as error:
        raise FormatError("chunk is not a zstd frame", found=error) from None
    if frame.content_size != decoded_length or frame.dict_id:
        raise FormatError(
            "zstd frame does not hold what its record says",
            expected=f"{decoded_length} bytes",
            found=frame.content_size,
        )
    if frame.window_size > ZSTD_WINDOW_BYTES_MAX:
        raise LimitExceeded(
            "zstd window", expected=f"at most {ZSTD_WINDOW_BYTES_MAX}", found=frame.window_size
        )
    try:
        plain = _decompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise FormatError("zstd frame is damaged", found=error) from None
    if len(plain) != decoded_length:
        raise FormatError("zstd frame's length", expected=decoded_length, found=len(plain))
    return plain


def _decompressor() -> zstandard.ZstdDecompressor:
    # a context may serve one thread at a time, and costs more to make than a small page to decode
    try:
        decompressor: zstandard.ZstdDecompressor = _local.decompressor
    except AttributeError:
        decompressor = _local.decompressor = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW_BYTES_MAX)
    return decompressor


class Compressor:
    """zstd at one level. Not for use from two threads at once."""

    def __init__(self, level: int) -> None:
        self._compressor = zstandard.ZstdCompressor(
            level=level, write_content_size=True, write_checksum=False
        )

    def compress(self, plain: Buffer) -> bytes:
        """One frame that states its content size."""
        return self._compressor.compress(plain)
