"""A FUSE connection whose kernel is a test, on threads that can be made to hang; not for the package.

The kernel's end of the connection is a socket that keeps messages apart, as /dev/fuse does.
"""

from __future__ import annotations

import socket
import struct
import threading
import time

from support import fuse_wire as wire
from support.fuse_memory import small_tree

from rafsfs.frontends.devfuse_transport import IOV_MAX, Transport
from rafsfs.fuse.server import FuseServer, ServerOptions

LONG_S = 30  # longer than anything takes that comes to an end
HELLO, COLD, PARTS = 2, 9, 12
MESSAGE_BYTES_MAX = 1 << 18


class Handler:
    """The small tree; hangs, as long as ``gate`` is closed, in look-ups of "hang" and in cold reads."""

    def __init__(self):
        self.tree = small_tree()
        self.tree.add(PARTS, 1, b"parts", 0o100644, parts=[b"p"] * (IOV_MAX + 500))
        self.gate = threading.Event()
        self.gate.set()
        self.hanging = threading.Semaphore(0)
        self.readers = []

    def __getattr__(self, name):
        return getattr(self.tree, name)

    def _wait(self):
        self.hanging.release()
        assert self.gate.wait(LONG_S)

    def lookup(self, parent, name):
        if name.startswith(b"hang"):
            self._wait()
            return HELLO
        return self.tree.lookup(parent, name)

    def read(self, node, offset, size):
        self.readers.append(threading.current_thread().name)
        self._wait()
        return self.tree.read(node, offset, size)


class Kernel:
    """One connection: its far end, and the main thread that looks after it."""

    def __init__(self, cores=2):
        self.handler = Handler()
        self.server = FuseServer(self.handler, ServerOptions())
        self.socket, self.device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.socket.settimeout(LONG_S)
        self.alarms = []
        self.ended = threading.Event()
        self.transport = Transport(
            self.device.fileno(),
            self.server,
            alarm=self.alarms.append,
            ended=self.ended.set,
            cores=cores,
        )

    def negotiate(self):
        self.socket.send(wire.init())
        self.transport.negotiate()
        _, error, unique = struct.unpack_from("<IiQ", self.reply())
        assert (error, unique) == (0, 2)

    def start(self):
        self.negotiate()
        self.transport.start()

    def send(self, *requests):
        for request in requests:
            self.socket.send(request)

    def reply(self):
        return self.socket.recv(MESSAGE_BYTES_MAX)

    def answer(self):
        """(unique, errno) of the next reply."""
        length, error, unique = struct.unpack_from("<IiQ", message := self.reply())
        assert length == len(message)
        return unique, -error

    def hang(self, *requests):
        """Close the gate, send requests of which the first hangs; comes back when it does."""
        self.handler.gate.clear()
        self.send(*requests)
        assert self.handler.hanging.acquire(timeout=LONG_S)

    def relieve(self):
        """What two alarms do while somebody hangs."""
        self.transport.look_after()
        self.transport.look_after()

    def stop(self, wait_s):
        if not self.transport.is_stopped:
            return self.transport.stop(wait_s)
        return None

    def wait_until_asleep(self):
        wait_until(lambda: self.transport._leader.is_asleep)


def wait_until(condition):
    deadline = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def threads(name="rafsfs-"):
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


def lookup(name, unique):
    return wire.request(wire.LOOKUP, name + b"\0", unique=unique)
