"""Sees to it that standard input, output and error are there; never decides what goes through them."""

from __future__ import annotations

import os
import sys


def complete() -> None:
    """Put the null device where a standard stream was closed by whoever started us (``>&-``).

    Otherwise the next file that is opened becomes standard output, and whatever is printed goes into it.
    ``sys.stdin`` stays None: who reads a source or a key from it has to hear that there is none.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            assert null == number  # the lowest free one, as those below are taken by now
            os.set_inheritable(number, True)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115  # for as long as we live
    if sys.stderr is None:
        sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115


def let_go(number: int) -> None:
    """Send what a stream still holds to nowhere, or the interpreter would complain while it ends."""
    null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
    os.dup2(null, number)
    os.close(null)
