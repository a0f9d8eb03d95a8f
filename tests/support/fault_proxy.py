"""A proxy in front of a registry that fails as it is told to, and counts; a server of its own, never a mock.

It relays between real clients and a real registry. For each request ``behave(request)`` may name a fault; the
first one in a list that applies is used up, so a test says exactly what happens when.
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

PIECE_BYTES = 1 << 14


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    method: str
    path: str
    headers: dict[str, str]

    @property
    def is_blob(self) -> bool:
        return "/blobs/sha256:" in self.path

    @property
    def is_range(self) -> bool:
        return "range" in self.headers


@dataclass
class Fault:
    """One way to fail. ``applies`` chooses requests, ``times`` bounds how often; the rest says how.

    ``status`` answers without asking the registry; ``body_bytes`` cuts an answer off after so many bytes of
    the body, and ``stall`` then keeps the connection open until the proxy ends; ``change`` gets status,
    headers and body and returns others; ``hang_up`` closes without a word; ``drip_s`` is waited before each
    byte of the answer, its head included.
    """

    applies: Callable[[Request], bool] = lambda request: request.is_range
    times: int | None = 1
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    body_bytes: int | None = None
    stall: bool = False
    hang_up: bool = False
    drip_s: float | None = None
    change: Callable[[int, dict[str, str], bytes], tuple[int, dict[str, str], bytes]] | None = None


class FaultProxy:
    """Runs on loopback; ``host`` is its address and port."""

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.moved_bytes = 0
        self.token: str | None = None  # wanted of everybody, when set
        self.tokens_given = 0
        self.delay_s = 0.0
        self.bytes_per_s: float | None = None
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._free_at = 0.0
        proxy = self

        class Handler(_Handler):
            owner = proxy

        self._server = _Server(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.ended.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def ranges(self) -> list[str]:
        """Range headers of the blob requests so far."""
        return [request.headers["range"] for request in self.requests if request.is_range]

    def next_fault(self, request: Request) -> Fault | None:
        with self._lock:
            self.requests.append(request)
            for fault in self.faults:
                if (fault.times is None or fault.times > 0) and fault.applies(request):
                    if fault.times is not None:
                        fault.times -= 1
                    return fault
        return None

    def pace(self, count: int) -> None:
        """Wait until a link of the wanted rate, shared by all, has carried so many bytes."""
        with self._lock:
            self.moved_bytes += count
            if self.bytes_per_s is None:
                return
            start = max(time.monotonic(), self._free_at)
            self._free_at = start + count / self.bytes_per_s
            wait_s = self._free_at - time.monotonic()
        if wait_s > 0:
            time.sleep(wait_s)


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # clients may hang up when they like
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    owner: FaultProxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits for the acknowledgement of its head, 40 ms on loopback

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _handle(self) -> None:
        owner = self.owner
        headers = {name.lower(): ", ".join(self.headers.get_all(name) or ()) for name in self.headers}
        request = Request(self.command, self.path, headers)
        fault = owner.next_fault(request)
        if owner.delay_s:
            time.sleep(owner.delay_s)
        if fault is not None and fault.hang_up:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        if fault is not None and fault.status is not None:
            self._answer(fault.status, dict(fault.headers), fault.body, fault)
            return
        if request.path.startswith("/token"):
            owner.tokens_given += 1
            self._answer(200, {}, json.dumps({"token": owner.token}).encode(), None)
            return
        if owner.token is not None and request.headers.get("authorization") != f"Bearer {owner.token}":
            challenge = f'Bearer realm="http://{owner.host}/token",service="test",scope="repository:a:pull"'
            self._answer(401, {"WWW-Authenticate": challenge}, b"", None)
            return
        status, headers, body = self._upstream(request)
        if fault is not None and fault.change is not None:
            status, headers, body = fault.change(status, headers, body)
        self._answer(status, headers, body, fault)

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = _handle

    def _upstream(self, request: Request) -> tuple[int, dict[str, str], bytes]:
        target = urlsplit(request.path)  # absolute, when we are used as a forward proxy
        length = int(request.headers.get("content-length", 0))
        body = self.rfile.read(length) if length else None
        if "chunked" in request.headers.get("transfer-encoding", ""):
            body = self._chunked()
        connection = http.client.HTTPConnection(target.netloc or self.owner.upstream, timeout=60)
        path = target.path + (f"?{target.query}" if target.query else "")
        kept = {
            name: value
            for name, value in request.headers.items()
            if name not in ("connection", "transfer-encoding", "content-length", "proxy-connection")
            and not (name == "authorization" and self.owner.token is not None)
        }
        try:
            connection.request(request.method, path, body, kept)
            answer = connection.getresponse()
            headers = {name: value for name, value in answer.getheaders() if name != "Transfer-Encoding"}
            return answer.status, headers, answer.read()
        finally:
            connection.close()

    def _chunked(self) -> bytes:
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, headers: dict[str, str], body: bytes, fault: Fault | None) -> None:
        if self.command == "HEAD":
            body = b""
        else:
            headers = {name: value for name, value in headers.items() if name.lower() != "content-length"}
            headers["Content-Length"] = str(len(body))
        head = f"HTTP/1.1 {status} {http.client.responses.get(status, 'Other')}\r\n"
        head += "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
        with suppress(OSError):  # the client has enough
            if fault is not None and fault.drip_s is not None:
                self._drip(head.encode() + body, fault.drip_s)
            self.wfile.write(head.encode())
            end = len(body) if fault is None or fault.body_bytes is None else fault.body_bytes
            for start in range(0, end, PIECE_BYTES):
                piece = body[start : min(end, start + PIECE_BYTES)]
                self.owner.pace(len(piece))
                self.wfile.write(piece)
            self.wfile.flush()
            if fault is not None and fault.stall:
                self.owner.ended.wait()
            if end < len(body):
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)

    def _drip(self, data: bytes, pause_s: float) -> None:
        for byte in data:
            self.wfile.write(bytes((byte,)))
            self.wfile.flush()
            if self.owner.ended.wait(pause_s):
                return


@contextmanager
def fault_proxy(upstream: str) -> Iterator[FaultProxy]:
    """Run a proxy in front of the server at ``upstream``."""
    proxy = FaultProxy(upstream)
    try:
        yield proxy
    finally:
        proxy.close()
