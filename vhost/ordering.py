"""A full memory barrier for code that shares memory with a guest; knows nothing of rings.

Why and where it is needed: doc/VHOST.md, "Memory ordering".
"""

from __future__ import annotations

import platform
import sys
import threading
from typing import Final

IS_STRONGLY_ORDERED: Final = platform.machine() in {"x86_64", "AMD64", "i686", "i386"}
"""Whether the processor keeps stores in order, and loads in order (x86-TSO). A load may still overtake an
earlier store to another address: against that there is ``fence`` alone.
"""

if sys.byteorder != "little":
    raise ImportError("virtio rings are little-endian and are read in place: this machine cannot")

_gate = threading.Lock()
_acquire = _gate.acquire
_release = _gate.release


def fence() -> None:
    """Make every store before this visible before any load or store after it is done; about 0.15 us.

    Taking a lock is an atomic read-modify-write, and so is giving it back. On x86 either is a full barrier.
    On aarch64 giving back is a store-release and taking a load-acquire of the same word, which the processor
    keeps in this order (RCsc), so whatever is before the first release stays before whatever is after the
    second acquire.
    """
    _acquire()
    _release()
    _acquire()
    _release()
