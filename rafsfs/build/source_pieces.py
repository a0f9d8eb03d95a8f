"""Cuts a file with holes into the pieces that a source promises; owns the arithmetic, never does I/O."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from rafsfs.build.source import Hole


def cut_pieces(
    size: int, extents: Iterable[tuple[int, int]], piece_size: int, read: Callable[[int, int], bytes]
) -> Iterator[bytes | Hole]:
    """Give ``size`` bytes as ``source.Content`` describes, reading each byte of data once and in order.

    ``extents`` are the (offset, length) of data, ascending, apart from each other and within ``size``; all
    else is hole. ``read(offset, length)`` gives exactly ``length`` bytes or raises.
    """
    ahead = (extent for extent in extents if extent[1])
    start, end = _next_extent(ahead, size)
    position = 0
    while position < size:
        first = size if start == size else start - start % piece_size
        if first > position:
            yield Hole(first - position)
            position = first
            continue
        stop = min(position + piece_size, size)
        if start == position and end >= stop:
            yield read(position, stop - position)
            start = stop
        else:
            piece = bytearray(stop - position)
            while start < stop:
                length = min(end, stop) - start
                piece[start - position : start - position + length] = read(start, length)
                start += length
                if start == end:
                    start, end = _next_extent(ahead, size)
            yield bytes(piece)
        if start == end:
            start, end = _next_extent(ahead, size)
        position = stop


def _next_extent(ahead: Iterator[tuple[int, int]], size: int) -> tuple[int, int]:
    """Give the next extent as (start, end); after the last one, an empty one at the end of the file."""
    start, length = next(ahead, (size, 0))
    return start, start + length
