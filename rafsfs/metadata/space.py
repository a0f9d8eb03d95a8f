"""The plain metadata space, read by byte range out of verified pages; never decodes or caches one itself."""

from __future__ import annotations

from collections.abc import Callable

from rafsfs.errors import FormatError
from rafsfs.types import PageNumber


class MetadataSpace:
    """A byte-addressed view of ``length`` bytes starting at ``offset`` of the paged metadata.

    ``load_page`` returns one page of ``page_size`` bytes: verified, out of a cache or freshly decoded, or the
    builder's own.
    """

    def __init__(
        self, load_page: Callable[[PageNumber], bytes], page_size: int, *, offset: int, length: int
    ) -> None:
        self._load_page = load_page
        self._page_shift = page_size.bit_length() - 1
        self._page_mask = page_size - 1
        self._base = offset
        self.length = length

    def read(self, offset: int, length: int) -> bytes:
        """Return exactly ``length`` bytes; raises FormatError when they would lie outside the space."""
        if offset < 0 or length < 0 or offset + length > self.length:
            raise FormatError(
                "metadata points outside its section",
                expected=f"an end of at most {self.length}",
                found=offset + length,
            ).at(offset=offset)
        if not length:
            return b""  # at the end of the space there may be no page to cut it out of
        start = self._base + offset
        first = start >> self._page_shift
        within = start & self._page_mask
        page = self._load_page(PageNumber(first))
        if within + length <= len(page):
            return page[within : within + length]
        parts = [page[within:]]
        left = length - len(parts[0])
        while left > 0:
            first += 1
            parts.append(self._load_page(PageNumber(first))[:left])
            left -= len(parts[-1])
        return b"".join(parts)
