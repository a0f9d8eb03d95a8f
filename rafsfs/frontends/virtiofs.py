"""The virtio-fs device of one guest: FUSE requests out of its queues, replies into them; opens no socket.

Virtio 1.2, 5.11. Queue 0 is the one of high priority, which carries FORGET and its like, the others carry
requests. All are served alike: nothing that arrives in the first takes time.
"""

from __future__ import annotations

import errno
import json
import math
import os
import struct
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from rafsfs.frontends.devfuse_workers import STALL_S, Workers
from rafsfs.fuse import abi, reply
from rafsfs.fuse.handler import Handler
from rafsfs.fuse.pending import Interrupted, Pending
from rafsfs.fuse.reply import Reply
from rafsfs.fuse.server import FuseServer, Negotiated, ServerOptions
from rafsfs.fuse.statistics import RequestStatistics
from vhost.errors import VhostError
from vhost.model import LATER, Answer, Chain, DeviceModel

if TYPE_CHECKING:
    from vhost.memory import Buffer
    from vhost.poller import Poller

TAG_BYTES_MAX: Final = 36
_CONFIG: Final = struct.Struct(f"<{TAG_BYTES_MAX}sII")
"""``struct virtio_fs_config``: the tag, padded with zeros, the number of request queues, and the size of
buffers for notifications, of which there are none (linux/virtio_fs.h; virtio 1.2, 5.11.4)."""

_UNIQUE: Final = struct.Struct("<" + abi.IN_HEADER.layout("unique"))


class _WaitingRead:
    """A request for the workers that answers its own chain, whoever ends it."""

    def __init__(self, pending: Pending, chain: Chain, device: VirtioFs) -> None:
        self.pending = pending
        self.chain = chain
        self._device = device

    def run(self) -> None:
        self.answer(self.pending.run())

    def error(self, code: int) -> Reply | None:
        return self.answer(self.pending.error(code))

    def answer(self, made: Reply | None) -> Reply | None:
        if made is not None:
            self._device.forget(self)
            self.chain.answer(made)
        return made


class VirtioFs(DeviceModel):
    """Serves one handler to one guest after the other, as they connect to one socket."""

    def __init__(
        self,
        handler: Handler,
        poller: Poller,
        *,
        image: str = "",
        request_queues: int = 1,
        tag: str | None = None,
        statistics: RequestStatistics | None = None,
    ) -> None:
        """``image``: its digest, by which a guest that migrates finds the same one again.

        ``tag``: the device's name for guests, where the front end asks for its configuration.

        ``statistics`` are those to count in, which several devices may share.
        """
        options = ServerOptions(begins_anew=True)
        self.queues = 1 + request_queues
        self.config = None if tag is None else _CONFIG.pack(tag.encode(), request_queues, 0)
        self.request_bytes_max = options.request_bytes_max
        self._handler = handler
        self._image = image
        self._options = options
        self._poller = poller
        self._statistics = statistics or RequestStatistics()
        self._workers = Workers(lambda _: None, os.cpu_count() or 1)
        self._reads: dict[Pending, _WaitingRead] = {}
        self._check_at = math.inf  # when the poller has us look after the workers
        self.reset()

    # --- As the poller's thread asks ------------------------------------------------------------------------

    def reset(self) -> None:
        """Wait for INIT."""
        self._server = FuseServer(self._handler, self._options, statistics=self._statistics)

    def handle(self, chain: Chain) -> Answer:
        """Answer a request, or have it read by a worker."""
        outcome = self._server.handle(chain.request)
        if type(outcome) is list:
            return outcome
        if isinstance(outcome, Pending):
            return self._hand_over(outcome, chain)
        if isinstance(outcome, Interrupted):
            read = self._reads.get(outcome.pending)
            if read is not None:
                read.answer(outcome.pending.interrupted())
        return ()  # FORGET and its like have no reply, but their chains have to come back

    def cut_short(self, chain: Chain) -> Sequence[Buffer]:
        """Say that there was no room for the reply, where there is room to say so."""
        if len(chain.request) < abi.IN_HEADER.size:
            return ()
        return reply.error(_UNIQUE.unpack_from(chain.request)[0], errno.EIO)

    def abandon(self, chain: Chain) -> Sequence[Buffer]:
        """Give up a read, whose queue has to stop."""
        for read in list(self._reads.values()):
            if read.chain is chain:
                self._reads.pop(read.pending, None)
                return read.pending.error(errno.EIO) or ()
        return ()

    def save(self) -> bytes:
        """What was negotiated, and which image it is: node ids say all else (``FileSystemHandler``)."""
        negotiated = self._server.negotiated
        state = {"image": self._image, "negotiated": negotiated and negotiated._asdict()}
        return json.dumps(state).encode()

    def load(self, state: bytes) -> None:
        """Go on where ``save`` was called. Raises VhostError: another image, or no such state."""
        image, negotiated = _parsed(state)
        if image != self._image:
            raise VhostError("the guest comes from another image", expected=self._image, found=image[:80])
        self._server = FuseServer(self._handler, self._options, negotiated, self._statistics)

    def stop(self) -> None:
        """Let the threads that read end, each with the read that it is at."""
        self._workers.stop()

    # --- Reads that have to wait ----------------------------------------------------------------------------

    def _hand_over(self, pending: Pending, chain: Chain) -> Answer:
        read = _WaitingRead(pending, chain, self)
        self._reads[pending] = read
        if not self._workers.submit(read):
            self._reads.pop(pending)
            return pending.run() or ()
        self._check_by(time.perf_counter() + STALL_S)
        return LATER

    def forget(self, read: _WaitingRead) -> None:
        """Take note, on any thread, that a read has its answer."""
        self._reads.pop(read.pending, None)

    def _check_by(self, when: float) -> None:
        if when < self._check_at:
            self._check_at = when
            self._poller.call_after(max(0.0, when - time.perf_counter()), self._look_after)

    def _look_after(self) -> None:
        self._check_at = math.inf
        self._check_by(self._workers.check(time.perf_counter()))


def _parsed(state: bytes) -> tuple[str, Negotiated | None]:
    """The state as ``VirtioFs.save`` wrote it; raises VhostError for anything else."""
    try:
        found = json.loads(state.decode())  # given bytes, it would look for codecs of UTF-16 in files
    except (ValueError, RecursionError) as error:
        raise VhostError("a device's state that is no JSON") from error
    match found:
        case {"image": str(image), "negotiated": None}:
            return image, None
        case {"image": str(image), "negotiated": dict(numbers)} if numbers.keys() == set(
            Negotiated._fields
        ) and all(type(number) is int and 0 <= number < 1 << 64 for number in numbers.values()):
            return image, Negotiated(**numbers)
    raise VhostError("a device's state of another kind")
