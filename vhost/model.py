"""What a device is to this package: the interface that it implements, and the chains that it is given."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

from vhost import limits
from vhost.memory import Buffer, Span
from vhost.messages import Feature


class Later(enum.Enum):
    """What a device returns for a chain that it will answer by ``Chain.answer``."""

    LATER = enum.auto()


LATER: Final = Later.LATER

Answer: TypeAlias = Sequence[Buffer] | Later
"""Buffers of bytes that are written into a chain one after the other; none where nothing is to be written."""


class Chain:
    """One request of the guest."""

    __slots__ = ("_answer", "head", "is_open", "queue", "request", "room", "spans")

    def __init__(
        self,
        queue: int,
        head: int,
        chain: tuple[bytes, list[Span], int],
        answer: Callable[[Chain, Sequence[Buffer]], bool],
    ) -> None:
        self.queue = queue
        """Index of its queue."""
        self.head = head
        self.request, self.spans, self.room = chain
        """The readable part, copied; the writable part as guest addresses, and its size in bytes."""
        self.is_open = True
        """Whether it waits for its answer."""
        self._answer = answer

    def answer(self, parts: Sequence[Buffer]) -> bool:
        """Answer a chain for which ``LATER`` was returned; any thread may call this, in any order of chains.

        False when nobody waits any more: it was answered, or its queue, guest or memory is gone. Parts that
        do not fit into ``room`` are not written at all; see ``DeviceModel.cut_short``.
        """
        return self._answer(self, parts)


class DeviceModel:
    """What a kind of device does: derive from it. One object serves one socket, through reconnections.

    All methods are called on the thread that serves and must not wait: other guests may be served there too.
    """

    queues = 1
    features = Feature(0)
    """Feature bits of the device type, beside those of the rings."""
    config: bytes | None = None
    """The device's configuration space, for front ends that ask for it; it never changes.

    Where it is None that is not offered: most front ends know it themselves, and some versions of QEMU
    misbehave when it is offered.
    """
    request_bytes_max = limits.REQUEST_BYTES_MAX
    """A chain with a longer readable part is not served."""

    def handle(self, chain: Chain) -> Answer:
        """Serve one chain. An exception is logged, and the guest gets the chain back with nothing written."""
        raise NotImplementedError

    def cut_short(self, chain: Chain) -> Sequence[Buffer]:
        """What to say in place of an answer that is longer than ``chain.room``; nothing if that is, too."""
        del chain
        return ()

    def abandon(self, chain: Chain) -> Sequence[Buffer]:
        """Answer a chain, for which ``LATER`` was returned, at once: its queue has to stop."""
        del chain
        return ()

    def reset(self) -> None:
        """Forget what a driver has negotiated: another one begins. Chains that wait are answered no more."""

    def save(self) -> bytes:
        """State for the back end that goes on after a migration; nothing is under way meanwhile."""
        return b""

    def load(self, state: bytes) -> None:
        """Take over ``save``'s result. VhostError refuses it; it may come from anybody."""
        del state
