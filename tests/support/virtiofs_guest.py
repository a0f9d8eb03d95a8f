"""A guest's virtio-fs driver over ``vhost_frontend``: FUSE requests into queues, as Linux lays them out.

Linux fs/fuse/virtio_fs.c: header and arguments readable, then the reply's header, then its pages.
"""

from __future__ import annotations

import struct
from contextlib import ExitStack
from pathlib import Path

from support import fuse_wire as wire
from support.vhost_frontend import D_WRITE, MIB, FrontEnd, Memory, Queue

HIPRIO, REQUESTS = 0, 1
PAGE = 4096


class Guest:
    """Connects to ``path`` and starts the device with one queue of high priority and others for requests.

    ``handle`` is what ``FuseClient`` wants of a server.
    """

    def __init__(self, path: Path, *, queues: int = 1, memory: Memory | None = None, size: int = 128) -> None:
        self.memory = memory or Memory(64 * MIB)
        with ExitStack() as stack:
            stack.callback(self.memory.close)
            self.front_end = stack.enter_context(FrontEnd(path))
            self.front_end.negotiate()
            self.queues = self.front_end.start(self.memory, 1 + queues, size=size)
            stack.pop_all()
        self._request = self.memory.allocate(PAGE)
        self._reply = self.memory.allocate(2 * MIB, PAGE)

    def close(self) -> None:
        self.front_end.close()
        self.memory.close()

    def __enter__(self) -> Guest:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def handle(self, request: bytes, *, queue: int = REQUESTS, room: int | None = None) -> list[bytes] | None:
        """Ask and wait; None when the chain came back empty. Room is what Linux would give."""
        if room is None:
            room = reply_room(request)
        asking = self.queues[queue]
        head = asking.add_spans(self.spans(request, room))
        ((found, length),) = asking.wait()
        assert found == head
        answer = asking.take(head, length)
        return [answer] if answer else None

    def spans(self, request: bytes, room: int) -> list[tuple[int, int, int]]:
        """Header and arguments in two parts, room for the reply in a header and pages."""
        self.memory.write(self._request, request)
        spans = [(self._request, min(len(request), 40), 0)]
        if len(request) > 40:
            spans.append((self._request + 40, len(request) - 40, 0))
        if room:
            spans.append((self._reply, min(room, 16), D_WRITE))
        pages = self._reply + PAGE  # none of them lies behind the other in memory
        for number, start in enumerate(range(16, room, PAGE)):
            spans.append((pages + 2 * PAGE * (number % 200), min(PAGE, room - start), D_WRITE))
        return spans


def reply_room(request: bytes) -> int:
    """Bytes that a driver has for the reply."""
    opcode = struct.unpack_from("<I", request, 4)[0]
    if opcode in (wire.FORGET, wire.BATCH_FORGET, wire.INTERRUPT):
        return 0
    if opcode in (wire.READ, wire.READDIR, wire.READDIRPLUS):
        return 16 + struct.unpack_from("<I", request, 56)[0]
    if opcode in (wire.GETXATTR, wire.LISTXATTR):
        return 16 + max(8, struct.unpack_from("<I", request, 40)[0])
    return 16 + PAGE


def answer(queue: Queue) -> bytes:
    """The next reply of a queue."""
    ((head, length),) = queue.wait()
    return queue.take(head, length)
