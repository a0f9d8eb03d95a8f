"""Which errno an exception of a handler becomes, and whether somebody should hear of it; sends nothing."""

from __future__ import annotations

import errno
from typing import Final

from rafsfs.errors import RafsError
from rafsfs.fuse.abi import ERRNO_MAX

ANSWERS: Final = frozenset(
    (
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ESTALE, errno.EINVAL, errno.ENODATA),
        *(errno.ENAMETOOLONG, errno.ELOOP, errno.ENXIO, errno.ERANGE, errno.EACCES, errno.EPERM),
    )
)
"""What a file system says about names and nodes. Any other ``OSError`` is the server's own trouble."""


def errno_of(error: Exception) -> tuple[int, bool]:
    """Return (errno, whether the error is worth a report)."""
    if isinstance(error, RafsError):
        return _sendable(error.errno), True
    if isinstance(error, OSError) and error.errno is not None:
        return _sendable(error.errno), error.errno not in ANSWERS
    return errno.EIO, True


def _sendable(code: int) -> int:
    # ENOSYS tells the kernel never to ask for such a thing again: the server may say so, an accident may not.
    return code if 0 < code <= ERRNO_MAX and code != errno.ENOSYS else errno.EIO
