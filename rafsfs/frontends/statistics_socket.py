"""The unix socket on which a mount's server tells its statistics, and how to ask; knows no numbers.

Asked for nothing it answers with one JSON object; asked by HTTP, with that or with Prometheus text::

    curl --unix-socket /run/rafsfs/0-57.sock http://localhost/metrics
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from rafsfs.errors import MountError, Where
from rafsfs.frontends.server_sockets import bound, connect, socket_name
from rafsfs.frontends.statistics import VERSION, Collect, Snapshot, prometheus

if TYPE_CHECKING:
    from socket import socket

log = logging.getLogger("rafsfs.mount")

_REQUEST_BYTES_MAX: Final = 4096
_ANSWER_BYTES_MAX: Final = 4 << 20  # a thousand times what it is
_ASKER_WAIT_S: Final = 1.0  # for one who connects and says nothing; others wait meanwhile
_STOP_WAIT_S: Final = 0.2
_SHUT_WR: Final = 1  # of shutdown(2)
_PROMETHEUS_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

SUFFIX: Final = ".stats"
"""Of the socket beside the one for a guest."""

APPEARS_S: Final = 2.0
"""A server opens its socket when it serves already: for so long it is waited for."""


# --- The server's side --------------------------------------------------------------------------------------


@contextmanager
def offered(device: str, collect: Collect) -> Iterator[None]:
    """Answer whoever asks, on a thread of its own, about the mount with this device number (such as 0:57).

    A mount goes on without statistics where there is no place for the socket; a log line says so.
    """
    import socket  # late: a mount serves before it tells of it

    with ExitStack() as stack:
        try:
            listening, _ = stack.enter_context(bound(socket_name(device), socket.SOCK_STREAM))
        except OSError as error:
            log.warning("this mount tells no statistics: %s", error)
            yield
            return
        with answered(listening, collect, stack.close):
            yield


@contextmanager
def answered(listening: socket, collect: Collect, close: Callable[[], object]) -> Iterator[None]:
    """Answer whoever asks at this socket, on a thread of its own; ``close`` has to shut it down."""
    thread = threading.Thread(
        target=_answer_all, args=(listening, collect), name="rafsfs-statistics", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        close()
        thread.join(_STOP_WAIT_S)


def _answer_all(listening: socket, collect: Collect) -> None:
    while True:
        try:
            connection, _ = listening.accept()
        except OSError:  # the end
            return
        with connection:
            try:
                connection.settimeout(_ASKER_WAIT_S)
                connection.sendall(_answer(_request(connection), collect))
            except OSError as error:
                log.debug("somebody asked for statistics and went away: %s", error)
            except Exception as error:
                log.error("statistics could not be told: %s: %s", type(error).__name__, error)  # noqa: TRY400
                log.debug("its traceback", exc_info=error)


def _request(connection: socket) -> bytes:
    """The first line, which ends with the connection's other half or at a bound as well."""
    request = b""
    while b"\n" not in request and len(request) < _REQUEST_BYTES_MAX:
        received = connection.recv(_REQUEST_BYTES_MAX)
        if not received:
            break
        request += received
    return request.partition(b"\n")[0]


def _answer(request: bytes, collect: Collect) -> bytes:
    words = request.split()
    if words[:1] != [b"GET"]:
        return _json(collect())
    target = words[1].partition(b"?")[0] if len(words) > 1 else b""
    if target == b"/metrics":
        return _http("200 OK", _PROMETHEUS_TYPE, prometheus(collect()).encode())
    if target in (b"/", b"/statistics.json"):
        return _http("200 OK", "application/json", _json(collect()))
    return _http("404 Not Found", "text/plain", b"there are / and /metrics\n")


def _json(snapshot: Snapshot) -> bytes:
    return json.dumps(snapshot).encode() + b"\n"


def _http(status: str, kind: str, body: bytes) -> bytes:
    head = f"HTTP/1.0 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


# --- The asker's side ---------------------------------------------------------------------------------------


def ask(device: str, wait_s: float = APPEARS_S) -> Snapshot:
    """One snapshot of the mount with this device number. Raises MountError when nobody tells it.

    Waits for a socket that is not there yet, no longer than ``wait_s``.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return _asked(device)
        except (FileNotFoundError, ConnectionRefusedError) as error:
            if time.monotonic() >= deadline:
                raise _silent(socket_name(device), error) from None
        except OSError as error:
            raise _silent(socket_name(device), error) from None
        time.sleep(0.02)


def ask_at(path: Path) -> Snapshot:
    """One snapshot of the server that has this socket. Raises MountError when nobody tells it."""
    import socket

    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        try:
            asking.settimeout(_ASKER_WAIT_S * 2)
            asking.connect(os.fspath(path))
            return _told(asking)
        except OSError as error:
            raise _silent(os.fspath(path), error) from None


def _silent(file: str, error: OSError) -> MountError:
    return MountError(
        "the server tells no statistics",
        found=error.strerror or str(error),
        where=Where(file=file),
        hint="it is dead, does not answer, or is another user's: ask as who started it",
    )


def _asked(device: str) -> Snapshot:
    import socket

    with connect(socket_name(device), socket.SOCK_STREAM, _ASKER_WAIT_S * 2) as asking:
        return _told(asking)


def _told(asking: socket) -> Snapshot:
    asking.shutdown(_SHUT_WR)
    answer = b""
    while (received := asking.recv(1 << 16)) and len(answer) < _ANSWER_BYTES_MAX:
        answer += received
    return _parsed(answer)


def _parsed(answer: bytes) -> Snapshot:
    try:
        found: Any = json.loads(answer)
    except (ValueError, RecursionError) as error:
        raise OSError(f"its answer is no JSON: {error}") from error
    if not isinstance(found, dict) or found.get("version") != VERSION:
        raise OSError("it is of another release of rafsfs")
    return found
