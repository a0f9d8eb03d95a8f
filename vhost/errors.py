"""What a front end or a guest can do wrong, split by what follows from it; never logs, closes or answers."""

from __future__ import annotations


class VhostError(Exception):
    """Base of all errors that somebody outside can cause. Mistakes of ours stay assertions.

    ``what`` says what went wrong, ``expected`` and ``found`` the difference; never bytes of a guest.
    """

    def __init__(self, what: str, *, expected: object = None, found: object = None) -> None:
        super().__init__(what)
        self.what = what
        self.expected = expected
        self.found = found

    def __str__(self) -> str:
        if self.expected is None:
            return self.what if self.found is None else f"{self.what}: {self.found}"
        found = "" if self.found is None else f", found {self.found}"
        return f"{self.what}: expected {self.expected}{found}"


class ProtocolError(VhostError):
    """The front end does not speak the protocol, or can no longer be understood: its connection is closed."""


class RefusedError(VhostError):
    """A message that was understood and is not obeyed.

    The front end is told so where the protocol has a way; where it has none, the connection is closed.
    """


class GuestError(VhostError):
    """The guest's driver does not keep to virtio."""


class BadAddressError(GuestError):
    """An address range that is not wholly in the memory which the front end has shared."""


class BadChainError(GuestError):
    """A descriptor chain that cannot be served: it is returned with nothing written."""


class BadRingError(GuestError):
    """A ring that contradicts itself: its queue rests until the driver sets it up anew."""
