"""Has the C library's allocator keep a server's memory in one place; limits nothing and frees nothing itself.

glibc gives every thread an arena of its own. In a server, one thread decodes a chunk and another drops it
from the cache much later, so each arena grows to what it once held: with a cache of 256 MiB the server came
to 590 MB. In one arena what is dropped serves the next chunk, whoever decodes it: 315 MB. And buffers that
are not given back to the kernel one by one need not be mapped and zeroed again.
"""

from __future__ import annotations

from typing import Final

from rafsfs.limits import MIB

# malloc.h of glibc; mallopt(3)
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8

LARGEST_KEPT_BYTES: Final = 32 * MIB
"""What is larger goes back to the kernel when it is freed. DEFAULT_MMAP_THRESHOLD_MAX of glibc on 64 bits."""

FREE_TOP_BYTES: Final = 16 * MIB
"""How much may lie free at the end of the heap before it is given back: some dozens of chunks."""


def keep_in_one_place() -> None:
    """Settle this for the process, which has one thread yet. Does nothing where there is no ``mallopt``."""
    import ctypes

    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # macOS, musl
        return
    mallopt(_M_ARENA_MAX, 1)
    mallopt(_M_MMAP_THRESHOLD, LARGEST_KEPT_BYTES)
    mallopt(_M_TRIM_THRESHOLD, FREE_TOP_BYTES)
