"""Whether a validly sealed image is recent enough; knows no clock and no state but what it is given."""

from __future__ import annotations

from rafsfs.errors import Rollback
from rafsfs.format.superblock import Superblock


def check_freshness(superblock: Superblock, *, min_release: int | None, now_s: float) -> None:
    """Raise Rollback when the image's release is below the floor or its not-after lies in the past.

    ``min_release`` is the caller's floor of the release counter, ``now_s`` the Unix time in seconds.
    """
    if min_release is not None and superblock.release < min_release:
        raise Rollback(
            "image is older than you accept",
            expected=f"release {min_release} or later",
            found=f"release {superblock.release}",
            hint="fetch the current image",
        )
    if superblock.not_after is not None and now_s > superblock.not_after:
        raise Rollback(
            "image has expired",
            expected=f"use until Unix time {superblock.not_after}",
            found=f"now {int(now_s)}",
            hint="fetch the current image",
        )
