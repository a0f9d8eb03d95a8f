"""Ranges of a remote file out of HTTP answers, however often the connection breaks; checks what was promised.

The status, Content-Range (RFC 9110, 14.4) and the length must be those of the range that was asked for; what
the bytes are worth is for digests to say.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from rafsfs.errors import LengthMismatch, StoreError, StoreUnavailable
from rafsfs.limits import RANGE_SKIPPED_BYTES_MAX
from rafsfs.store.http import Answer
from rafsfs.store.retry import TryAgain

_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,19})-([0-9]{1,19})/([0-9]{1,19}|\*)")

Take = Callable[[bytes], None]


def check_range(name: str, size: int, offset: int, length: int) -> None:
    """Raise LengthMismatch for a range that is not wholly in a file of ``size`` bytes."""
    if offset + length > size:
        raise LengthMismatch("blob ends too early", expected=f"{offset + length} bytes", found=size).at(
            blob=name, offset=offset
        )


class Progress:
    """One range on its way to ``take``: how much of it has come, over all attempts."""

    def __init__(self, offset: int, length: int, take: Take) -> None:
        self.offset = offset
        self.left = length
        self._take = take

    @property
    def header(self) -> str:
        """The Range header for what is missing yet."""
        return f"bytes={self.offset}-{self.offset + self.left - 1}"

    def pour(self, answer: Answer, size: int, what: str) -> None:
        """Pass on an answer with a status of success. ``size`` is the whole file's, in bytes.

        Raises TryAgain when it ends too early, StoreError or LengthMismatch when it is another range.
        """
        skipped = 0 if answer.status == 206 else self._start_of_whole(answer, size, what)
        if answer.status == 206:
            self._check_range(answer, size, what)
        for chunk in answer.chunks():
            fresh = chunk[skipped:]
            skipped -= len(chunk) - len(fresh)
            if len(fresh) > self.left:
                if answer.status == 206:
                    raise self._other(answer, what, f"{self.left} more bytes", "more")
                fresh = fresh[: self.left]
            if fresh:
                self.offset += len(fresh)
                self.left -= len(fresh)
                self._take(fresh)
            if not self.left and answer.status != 206:
                return
        if self.left:
            raise TryAgain(
                StoreUnavailable(f"{what} breaks off", expected=f"{self.left} more bytes", where=answer.where)
            )

    def _start_of_whole(self, answer: Answer, size: int, what: str) -> int:
        """How much of a whole body comes before the range; raises StoreError when it is too much."""
        length = answer.headers.get("content-length")
        if answer.status != 200:
            raise self._other(answer, what, "status 206", f"status {answer.status}")
        if length is not None and length != str(size):
            raise self._other(answer, what, f"{size} bytes", f"{length} bytes")
        if self.offset > RANGE_SKIPPED_BYTES_MAX:
            raise StoreError(
                "the store gives no ranges of files, which reading lazily needs",
                where=answer.where,
                hint="`rafsfs pull` the image first",
            )
        return self.offset

    def _check_range(self, answer: Answer, size: int, what: str) -> None:
        text = answer.headers.get("content-range", "")
        found = _CONTENT_RANGE.fullmatch(text)
        wanted = f"bytes {self.offset}-{self.offset + self.left - 1}/{size}"
        if (
            found is None
            or (int(found[1]), int(found[2])) != (self.offset, self.offset + self.left - 1)
            or found[3] not in ("*", str(size))
        ):
            raise self._other(answer, what, wanted, repr(text[:80]))

    def _other(self, answer: Answer, what: str, expected: str, found: str) -> LengthMismatch:
        return LengthMismatch(
            f"{what} comes as another range", expected=expected, found=found, where=answer.where
        )
