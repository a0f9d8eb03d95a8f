"""A vhost-user front end and its guest's driver: what QEMU and Linux do, in their order, or any lie.

It shares a memfd as guest memory, keeps virtqueues in it and speaks the protocol over a socket. It is written
from the specifications (QEMU docs/interop/vhost-user.rst, virtio 1.2) and shares nothing with ``vhost``.
"""

from __future__ import annotations

import array
import mmap
import os
import select
import socket
import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

GET_FEATURES, SET_FEATURES, SET_OWNER, RESET_OWNER, SET_MEM_TABLE, SET_LOG_BASE, SET_LOG_FD = range(1, 8)
SET_VRING_NUM, SET_VRING_ADDR, SET_VRING_BASE, GET_VRING_BASE = range(8, 12)
SET_VRING_KICK, SET_VRING_CALL, SET_VRING_ERR, GET_PROTOCOL_FEATURES, SET_PROTOCOL_FEATURES = range(12, 17)
GET_QUEUE_NUM, SET_VRING_ENABLE = 17, 18
SET_BACKEND_REQ_FD, GET_CONFIG, SET_CONFIG, GET_INFLIGHT_FD, SET_INFLIGHT_FD = 21, 24, 25, 31, 32
RESET_DEVICE = 34
GET_MAX_MEM_SLOTS, ADD_MEM_REG, REM_MEM_REG, SET_STATUS, GET_STATUS = range(36, 41)
SET_DEVICE_STATE_FD, CHECK_DEVICE_STATE = 42, 43

LOG_ALL = 1 << 26
INDIRECT = 1 << 28
EVENT_IDX = 1 << 29
PROTOCOL_FEATURES = 1 << 30
VERSION_1 = 1 << 32
FEATURES = INDIRECT | EVENT_IDX | PROTOCOL_FEATURES | VERSION_1

MQ, LOG_SHMFD, REPLY_ACK, BACKEND_REQ = 1 << 0, 1 << 1, 1 << 3, 1 << 5
INFLIGHT_SHMFD, RESET, MEM_SLOTS, STATUS, DEVICE_STATE = 1 << 12, 1 << 13, 1 << 15, 1 << 16, 1 << 19
ALL_PROTOCOL = (
    MQ | LOG_SHMFD | REPLY_ACK | BACKEND_REQ | INFLIGHT_SHMFD | RESET | MEM_SLOTS | STATUS | DEVICE_STATE
)

CONFIG = 1 << 9  # which back ends offer when they are told to

NEED_REPLY = 0x8
NO_FD = 0x100
D_NEXT, D_WRITE, D_INDIRECT = 1, 2, 4

TIMEOUT_S = 30.0
MIB = 1 << 20
GUEST_BASE = 0x1_0000_0000  # not zero, so that a mix-up of addresses does not work by chance
USER_BASE = 0x7F00_0000_0000


def message(request: int, payload: bytes = b"", flags: int = 1, size: int | None = None) -> bytes:
    return struct.pack("=III", request, flags, len(payload) if size is None else size) + payload


def u64(value: int) -> bytes:
    return struct.pack("=Q", value)


def state(index: int, number: int) -> bytes:
    return struct.pack("=II", index, number)


class Memory:
    """Guest memory in a memfd: ``size`` bytes from ``guest_base``. Addresses are the guest's."""

    def __init__(
        self, size: int = 8 * MIB, *, guest_base: int = GUEST_BASE, user_base: int = USER_BASE
    ) -> None:
        self.size, self.guest_base, self.user_base = size, guest_base, user_base
        self.fd = os.memfd_create("guest", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, size)
        self.map = mmap.mmap(self.fd, size)
        self._next = 0

    def close(self) -> None:
        os.close(self.fd)
        self.map.close()

    def __enter__(self) -> Memory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def allocate(self, size: int, align: int = 16) -> int:
        start = -(-self._next // align) * align
        assert start + size <= self.size
        self._next = start + size
        return self.guest_base + start

    def write(self, address: int, data: bytes) -> None:
        place = address - self.guest_base
        self.map[place : place + len(data)] = data

    def read(self, address: int, size: int) -> bytes:
        place = address - self.guest_base
        return self.map[place : place + size]

    def user(self, address: int) -> int:
        return address - self.guest_base + self.user_base

    def region(self) -> bytes:
        """The record of SET_MEM_TABLE."""
        return struct.pack("=QQQQ", self.guest_base, self.size, self.user_base, 0)


class Queue:
    """The driver's side of one split virtqueue."""

    def __init__(self, memory: Memory, index: int, size: int = 128, *, features: int = FEATURES) -> None:
        self.memory, self.index, self.size = memory, index, size
        self.event_idx, self.indirect = bool(features & EVENT_IDX), bool(features & INDIRECT)
        self.descriptors = memory.allocate(16 * size)
        self.available = memory.allocate(6 + 2 * size, 2)
        self.used = memory.allocate(6 + 8 * size, 4)
        self.kick = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.err = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        place = self.available - memory.guest_base
        self._available = memoryview(memory.map)[place : place + 6 + 2 * size].cast("H")
        place = self.used - memory.guest_base
        self._used = memoryview(memory.map)[place : place + 6 + 8 * size].cast("H")
        self._used_bytes = memoryview(memory.map)[place : place + 6 + 8 * size]
        self.next_available = self.next_used = 0
        self._free = list(range(size))
        self._chains: dict[
            int, tuple[list[int], list[tuple[int, int]]]
        ] = {}  # head -> descriptors, writable spans
        self.calls = 0

    def close(self) -> None:
        for fd in (self.kick, self.call, self.err):
            os.close(fd)
        for view in (self._available, self._used, self._used_bytes):
            view.release()

    # --- Chains

    def put_descriptor(
        self, index: int, address: int, length: int, flags: int = 0, following: int = 0
    ) -> None:
        self.memory.write(
            self.descriptors + 16 * index, struct.pack("<QIHH", address, length, flags, following)
        )

    def offer(self, *heads: int) -> None:
        """Put heads on the available ring, without a kick."""
        for head in heads:
            self._available[2 + self.next_available % self.size] = head
            self.next_available = (self.next_available + 1) & 0xFFFF
        self._available[1] = self.next_available

    def add(self, readable: Sequence[bytes], writable: Sequence[int] = (), *, kick: bool = True) -> int:
        """Offer a chain of these readable parts and writable lengths; returns its head."""
        spans = []
        for part in readable:
            address = self.memory.allocate(len(part), 1)
            self.memory.write(address, part)
            spans.append((address, len(part), 0))
        spans += [(self.memory.allocate(length, 1), length, D_WRITE) for length in writable]
        return self.add_spans(spans, kick=kick)

    def add_spans(self, spans: Sequence[tuple[int, int, int]], *, kick: bool = True) -> int:
        """Offer a chain of (address, length, flags); returns its head."""
        writable = [(address, length) for address, length, flags in spans if flags & D_WRITE]
        if self.indirect and len(spans) > 1:
            table = self.memory.allocate(16 * len(spans))
            self.memory.write(table, pack_table(spans))
            used = [self._free.pop(0)]
            self.put_descriptor(used[0], table, 16 * len(spans), D_INDIRECT)
        else:
            used = [self._free.pop(0) for _ in spans]
            for number, (address, length, flags) in enumerate(spans):
                is_last = number + 1 == len(spans)
                following = 0 if is_last else used[number + 1]
                self.put_descriptor(
                    used[number], address, length, flags | (0 if is_last else D_NEXT), following
                )
        self._chains[used[0]] = (used, writable)
        old = self.next_available
        self.offer(used[0])
        if kick:
            self.notify(old)
        return used[0]

    def notify(self, old: int) -> bool:
        """Kick, if the device wants it."""
        if self.event_idx:
            wanted = self._used[2 + 4 * self.size]
            is_wanted = (self.next_available - wanted - 1) & 0xFFFF < (self.next_available - old) & 0xFFFF
        else:
            is_wanted = not self._used[0] & 1
        if is_wanted:
            os.eventfd_write(self.kick, 1)
        return is_wanted

    def collect(self) -> list[tuple[int, int]]:
        """Chains that came back: (head, bytes written)."""
        found = []
        while self._used[1] != self.next_used:
            head, length = struct.unpack_from("=II", self._used_bytes, 4 + 8 * (self.next_used % self.size))
            self.next_used = (self.next_used + 1) & 0xFFFF
            found.append((head, length))
        return found

    def wait(self, count: int = 1) -> list[tuple[int, int]]:
        """Sleep until so many chains came back, as a guest does: with interrupts."""
        found: list[tuple[int, int]] = []
        while True:
            found += self.collect()
            if len(found) >= count:
                return found
            if self.event_idx:
                self._available[2 + self.size] = self.next_used
            else:
                self._available[0] = 0
            if self._used[1] != self.next_used:
                continue
            if not select.select([self.call], [], [], TIMEOUT_S)[0]:
                raise TimeoutError(f"queue {self.index}: {len(found)} of {count} chains came back")
            self.calls += os.eventfd_read(self.call)

    def take(self, head: int, length: int) -> bytes:
        """What was written into a chain that came back; its descriptors are free again."""
        used, spans = self._chains.pop(head)
        self._free += used
        written = b"".join(self.memory.read(address, size) for address, size in spans)
        return written[:length]

    def ask(self, *readable: bytes, room: Sequence[int] = (4096,)) -> bytes:
        """One request and its answer."""
        head = self.add(readable, room)
        ((found, length),) = self.wait()
        assert found == head
        return self.take(head, length)


def pack_table(spans: Iterable[tuple[int, int, int]]) -> bytes:
    """An indirect table of (address, length, flags), one after the other."""
    spans = list(spans)
    return b"".join(
        struct.pack("<QIHH", address, length, flags | (D_NEXT if number + 1 < len(spans) else 0), number + 1)
        for number, (address, length, flags) in enumerate(spans)
    )


class FrontEnd:
    """A connection. What expects a reply waits for it; ConnectionError when the back end closes."""

    def __init__(self, path: Path | str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self.socket.connect(os.fspath(path))  # waits for a place in the backlog
        except OSError:
            self.socket.close()
            raise
        self.socket.settimeout(TIMEOUT_S)
        self.queues: list[Queue] = []
        self.features = self.protocol_features = 0

    def close(self) -> None:
        self.socket.close()
        for queue in self.queues:
            queue.close()

    def __enter__(self) -> FrontEnd:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- Messages

    def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), *, flags: int = 1) -> None:
        self.send_raw(message(request, payload, flags), fds)

    def send_raw(self, data: bytes, fds: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        if (sent := self.socket.sendmsg([data], rights)) < len(data):
            self.socket.sendall(data[sent:])

    def receive(self) -> tuple[int, int, bytes, list[int]]:
        """Request, flags, payload and descriptors of the next reply."""
        header, fds = self._exactly(12)
        request, flags, size = struct.unpack("=III", header)
        payload, more = self._exactly(size)
        return request, flags, payload, fds + more

    def _exactly(self, size: int) -> tuple[bytes, list[int]]:
        data, fds = b"", array.array("i")
        while len(data) < size:
            piece, ancillary, _, _ = self.socket.recvmsg(size - len(data), socket.CMSG_SPACE(32))
            for _level, _kind, content in ancillary:
                fds.frombytes(content)
            if not piece:
                raise ConnectionError("the back end has closed the connection")
            data += piece
        return data, list(fds)

    def ask(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> bytes:
        """Send a request that has a reply, and return the reply's payload."""
        self.send(request, payload, fds)
        answered, flags, reply, received = self.receive()
        assert (answered, flags) == (request, 0x5)
        for fd in received:
            os.close(fd)
        return reply

    def number(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        return struct.unpack("=Q", self.ask(request, payload, fds))[0]

    def do(self, request: int, payload: bytes = b"", fds: Sequence[int] = ()) -> int:
        """Send a request and ask for its acknowledgement: 0 when it was obeyed."""
        self.send(request, payload, fds, flags=1 | NEED_REPLY)
        answered, flags, reply, _ = self.receive()
        assert (answered, flags, len(reply)) == (request, 0x5, 8)
        return struct.unpack("=Q", reply)[0]

    def is_closed(self) -> bool:
        """Wait until the back end has closed the connection."""
        try:
            return not self.socket.recv(1)
        except ConnectionError:
            return True

    # --- In QEMU's order

    def negotiate(self, protocol: int = ALL_PROTOCOL) -> None:
        """What QEMU does when the device is realised (vhost_dev_init)."""
        offered = self.number(GET_FEATURES)
        assert offered & PROTOCOL_FEATURES
        self.protocol_features = self.number(GET_PROTOCOL_FEATURES) & protocol
        self.send(SET_PROTOCOL_FEATURES, u64(self.protocol_features))
        if self.protocol_features & MQ:
            self.number(GET_QUEUE_NUM)
        if self.protocol_features & MEM_SLOTS:
            self.number(GET_MAX_MEM_SLOTS)
        if self.protocol_features & BACKEND_REQ:
            ours, theirs = socket.socketpair()
            with ours, theirs:
                assert self.do(SET_BACKEND_REQ_FD, fds=[theirs.fileno()]) == 0
        self.send(SET_OWNER)
        self.features = self.number(GET_FEATURES)

    def share(self, *memories: Memory) -> None:
        """SET_MEM_TABLE."""
        table = struct.pack("=II", len(memories), 0) + b"".join(memory.region() for memory in memories)
        self.send(SET_MEM_TABLE, table, [memory.fd for memory in memories])

    def start_queue(
        self, queue: Queue, *, base: int = 0, flags: int = 0, log: int = 0, err: bool = True
    ) -> None:
        """What QEMU does for one queue (vhost_virtqueue_start), and then lets the guest be called."""
        index = queue.index
        self.send(SET_VRING_NUM, state(index, queue.size))
        self.send(SET_VRING_BASE, state(index, base))
        self.send(SET_VRING_ADDR, self.addresses(queue, flags=flags, log=log))
        self.send(SET_VRING_KICK, u64(index), [queue.kick])
        self.send(SET_VRING_CALL, u64(index), [queue.call])
        if err:
            self.send(SET_VRING_ERR, u64(index), [queue.err])

    def addresses(self, queue: Queue, *, flags: int = 0, log: int = 0) -> bytes:
        user = queue.memory.user
        rings = user(queue.descriptors), user(queue.used), user(queue.available)
        return struct.pack("=IIQQQQ", queue.index, flags, *rings, log)

    def start(
        self, memory: Memory, queues: int = 1, *, size: int = 128, features: int = FEATURES, base: int = 0
    ) -> list[Queue]:
        """What QEMU does at DRIVER_OK (vhost_dev_start); returns the queues."""
        self.queues = [Queue(memory, index, size, features=features) for index in range(queues)]
        self.restart(memory, features=features, base=base)
        return self.queues

    def restart(self, *memories: Memory, features: int = FEATURES, base: int = 0) -> None:
        self.send(SET_FEATURES, u64(features))
        self.share(*memories)
        for queue in self.queues:
            self.start_queue(queue, base=base)
        for queue in self.queues:
            self.send(SET_VRING_ENABLE, state(queue.index, 1))
        if self.protocol_features & STATUS:
            self.send(SET_STATUS, u64(0xF))
        self.number(GET_FEATURES)  # all of it was obeyed

    def stop(self) -> list[int]:
        """What QEMU does when the guest stops (vhost_dev_stop); returns the queues' bases."""
        bases = []
        for queue in self.queues:
            self.send(SET_VRING_ENABLE, state(queue.index, 0))
        for queue in self.queues:
            index, base = struct.unpack("=II", self.ask(GET_VRING_BASE, state(queue.index, 0)))
            assert index == queue.index
            bases.append(base)
        return bases
