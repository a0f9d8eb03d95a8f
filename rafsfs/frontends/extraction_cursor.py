"""Opens directories below a root by walking down to them, whatever their depth; never follows a symlink."""

from __future__ import annotations

import os

from rafsfs.frontends.extraction_nodes import OPEN_DIRECTORY
from rafsfs.fs.places import Place

_LEVELS_KEPT = 32  # open on the way down, for each of a few threads: programs start with 256 or 1024 files


class DirectoryCursor:
    """Gives descriptors of directories; keeps the way open for the next, which is mostly near.

    For one thread.
    """

    def __init__(self, root_fd: int) -> None:
        """``root_fd`` stays the caller's."""
        self._root_fd = root_fd
        self._way: list[tuple[Place, int]] = []
        self._deep_fd = -1

    def open(self, place: Place) -> int:
        """Open a directory; its descriptor is good until the next call.

        Raises OSError, also where a symlink has taken the place of a directory on the way.
        """
        down = []
        step = place
        while step.parent is not None:
            down.append(step)
            step = step.parent
        down.reverse()
        shared = 0
        for (known, _), wanted in zip(self._way, down, strict=False):
            if known is not wanted:
                break
            shared += 1
        self._close(shared)
        fd = self._way[-1][1] if self._way else self._root_fd
        for step in down[shared:]:
            fd = os.open(step.name, OPEN_DIRECTORY, dir_fd=fd)
            if len(self._way) < _LEVELS_KEPT:
                self._way.append((step, fd))
            else:
                self._close_deep()
                self._deep_fd = fd
        return fd

    def close(self) -> None:
        """Close all but the root."""
        self._close(0)

    def _close(self, levels: int) -> None:
        self._close_deep()
        for _, fd in self._way[levels:]:
            os.close(fd)
        del self._way[levels:]

    def _close_deep(self) -> None:
        if self._deep_fd >= 0:
            os.close(self._deep_fd)
            self._deep_fd = -1
