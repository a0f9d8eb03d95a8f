"""How many files this process may have open, and how many of them a guest's memory may take; opens none."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Final

from rafsfs.errors import MountError
from vhost.limits import DESCRIPTORS_MAX, REGIONS_MAX, TABLE_REGIONS_MAX

_RESERVE: Final = 64  # for whoever asks for statistics, and connections to stores
_OF_QUEUE: Final = 3  # kick, call, err
_OF_CONNECTION: Final = (
    2 * DESCRIPTORS_MAX + 8
)  # a message's files, a table beside the old; socket, log, state


def raise_to(wanted: int | None) -> None:
    """Allow this process ``wanted`` open files; None: as many as it may allow itself. Raises MountError."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if wanted is None:
        wanted = hard
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, max(wanted, hard)))
    except (OSError, ValueError) as error:  # ValueError: beyond the hard limit
        raise MountError(
            "the limit of open files cannot be set",
            expected=f"at most {hard}",
            found=wanted,
            hint="leave out --rlimit-nofile, or start rafsfs as root",
        ) from error


def regions_for_each(sockets: int, queues: int) -> int:
    """Regions of memory, each an open file, that every guest may have while there is room for all others.

    Everything is open but for what comes with guests. Raises MountError when there is not enough for any.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = limit - sum(1 for _ in Path("/proc/self/fd").iterdir()) - _RESERVE
    found = free // sockets - _OF_CONNECTION - _OF_QUEUE * queues
    if found < TABLE_REGIONS_MAX:
        raise MountError(
            "too few files may be open for so many guests and queues",
            expected=f"{TABLE_REGIONS_MAX} for the memory of each",
            found=f"{max(found, 0)} of {limit} in all",
            hint="raise the limit (ulimit -Hn, LimitNOFILE=), or serve fewer guests with one process",
        )
    return min(found, REGIONS_MAX)
