"""What a server decodes into memory before anybody asks, of an image at hand; fetches none from afar."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rafsfs.reading.prefetching import Prefetch

if TYPE_CHECKING:
    from rafsfs.format.prefetch import PrefetchRun
    from rafsfs.fs.image import OpenImage


@contextmanager
def warming(image: OpenImage, prefetch: Prefetch) -> Iterator[Callable[[], None]]:
    """Warm as ``prefetch`` says, until the ``with`` is left; gives what to call once the mount serves.

    ``WHOLE`` returns only when everything is in memory; raises as ``load_all`` does. Threads are started, so
    whoever wants to fork has done so. An image that is far away has its own way (``RemoteImage.start``).
    """
    if image.remote is not None:
        yield lambda: None
        return
    if prefetch is Prefetch.WHOLE:
        from rafsfs.fs.loading import load_all

        load_all(image, os.cpu_count() or 1)
    listed = prefetch is Prefetch.LIST and image.opened.superblock.prefetch.length
    if not listed and prefetch is not Prefetch.ALL:
        yield lambda: None
        return
    from rafsfs.frontends.priority import give_way
    from rafsfs.reading.warming import Warmer

    def runs() -> list[PrefetchRun]:
        found = image.prefetch_runs()
        return found + _all_runs(image) if prefetch is Prefetch.ALL else found

    warmer = Warmer(image.filesystem.engine, runs, give_way)
    try:
        yield warmer.start
    finally:
        warmer.stop()


def _all_runs(image: OpenImage) -> list[PrefetchRun]:
    """Every chunk; what the list names is there by then, and is passed over."""
    from rafsfs.format.prefetch import PrefetchRun

    counts = enumerate(blob.chunk_count for blob in image.opened.superblock.blobs)
    return [PrefetchRun(blob, 0, count) for blob, count in counts if count]
