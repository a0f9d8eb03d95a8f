"""Guesses which chunks will be wanted next; pure decisions, decodes nothing itself.

It looks at chunks, not at files: a large file's chunks lie one after the other in decoded space, and so do
the shared chunks of small files, in tree order. So one rule serves a sequential reader, an archiver that
walks the tree, and a program that loads its libraries. Random readers do not form a stream, and nothing is
read ahead for them.
"""

from __future__ import annotations

import threading

from rafsfs.types import BlobIndex, ChunkIndex

STREAMS_MAX = 8  # readers told apart; more at once rarely read in step with us anyway
DEPTH_MIN = 2
STEADY_STEPS = 32  # without being late once: half as far will do
SKIP_MAX = 2  # chunks that a stream may leave out, as a walk over files that are partly cached does
"""A stream that goes on may skip, or go back, as far as it is read ahead: the kernel asks for several parts
of a file at once, which several threads read, and they come here in any order."""


class _Stream:
    __slots__ = ("ahead", "blob", "depth", "position", "steady")

    def __init__(self, blob: BlobIndex, position: int) -> None:
        self.blob = blob
        self.position = position  # the last chunk that was asked for
        self.ahead = position + 1  # the first chunk that was not read ahead yet
        self.depth = 0
        self.steady = 0  # steps since we were late

    def pace(self, depth_max: int, *, was_late: bool) -> None:
        """Go farther ahead of a reader who had to wait, and less far of one who never has to."""
        self.steady = 0 if was_late else self.steady + 1
        if was_late or not self.depth:
            self.depth = min(depth_max, max(DEPTH_MIN, 2 * self.depth))
        elif self.steady == STEADY_STEPS:
            self.steady = 0
            self.depth = max(DEPTH_MIN, self.depth // 2)


class ReadAhead:
    """Follows several streams of chunks. Any thread may use it."""

    def __init__(self, depth_max: int) -> None:
        """``depth_max`` is how many chunks ahead of a reader it may go."""
        self._depth_max = max(DEPTH_MIN, depth_max)
        self.used = 0  # chunks that a reader came for after they were read ahead
        self._lock = threading.Lock()
        self._streams: list[_Stream] = []  # the one used last is the last

    def asked(self, blob: BlobIndex, index: ChunkIndex, *, is_there: bool) -> range:
        """Note that a reader wants chunk ``index``; returns the chunks to read ahead now, mostly none.

        The same chunk asked for again is not news. A stream's depth doubles whenever a chunk that was to be
        read ahead ``is_there`` not yet: work in large portions takes cores from readers who do not need it.
        """
        with self._lock:
            for stream in reversed(self._streams):
                step = index - stream.position
                if stream.blob == blob and -stream.depth <= step <= max(SKIP_MAX, stream.depth):
                    return self._follow(stream, index, is_there) if step > 0 else range(0)
            self._streams.append(_Stream(blob, index))
            del self._streams[:-STREAMS_MAX]
            return range(0)

    def _follow(self, stream: _Stream, index: ChunkIndex, is_there: bool) -> range:
        if stream is not self._streams[-1]:
            self._streams.remove(stream)
            self._streams.append(stream)
        stream.position = index
        was_ahead = index < stream.ahead
        self.used += was_ahead
        stream.pace(self._depth_max, was_late=was_ahead and not is_there)
        start = max(stream.ahead, index + 1)
        stop = index + 1 + stream.depth
        # a hand-over costs as much as decoding 100 KiB: give several chunks at a time, not one for each step
        if stop - start < max(1, stream.depth // 2):
            return range(0)
        stream.ahead = stop
        return range(start, stop)
