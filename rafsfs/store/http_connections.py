"""Pools of HTTP connections whose every wait ends at the deadline of the request it is for; knows no URL's
meaning.

httpcore takes time limits for single operations only: a server that sends a byte now and then could hold a
reader for hours. So the deadline lies where bytes come in, beneath the protocol.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

from rafsfs.errors import StoreError, Where
from rafsfs.store.http_library import httpcore
from rafsfs.store.retry import Deadline

CONNECTIONS_MAX: Final = 16
_KEEP_ALIVE_S: Final = 60.0

# What it tells of headers at the level of debug has signed URLs in it.
logging.getLogger("httpcore").setLevel(logging.INFO)

_current = threading.local()  # .deadline: of the request that this thread makes


@contextmanager
def until(deadline: Deadline) -> Iterator[None]:
    """Bound everything that this thread does over connections meanwhile."""
    before = getattr(_current, "deadline", None)
    _current.deadline = deadline
    try:
        yield
    finally:
        _current.deadline = before


def _bounded(timeout: float | None) -> float:
    left_s: float = _current.deadline.left_s()
    if left_s <= 0:
        raise httpcore.ReadTimeout("deadline")
    return left_s if timeout is None else min(timeout, left_s)


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream, backend: _Backend) -> None:
        self._inner = inner
        self._backend = backend
        backend.opened(self)

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._inner.read(max_bytes, _bounded(timeout))
        _current.deadline.came(len(data))
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _bounded(timeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, _bounded(timeout)), self._backend)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Backend(httpcore.NetworkBackend):
    """Knows all open streams: those of a request under way would outlive their pool."""

    def __init__(self) -> None:
        self._inner = httpcore.SyncBackend()
        self._lock = threading.Lock()
        self._streams: WeakSet[_Stream] = WeakSet()
        self._closed = False

    def opened(self, stream: _Stream) -> None:
        """Note a stream, which is closed with all others; at once when they are."""
        with self._lock:
            self._streams.add(stream)
            closed = self._closed
        if closed:
            stream.close()

    def close(self) -> None:
        """Close all streams, and those that come."""
        with self._lock:
            self._closed = True
            streams = list(self._streams)
        for stream in streams:
            stream.close()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        stream = self._inner.connect_tcp(host, port, _bounded(timeout), local_address, socket_options)
        return _Stream(stream, self)


class Connections:
    """Pools of connections, for each proxy one, and one more for TLS. Any thread may use them; a forked child
    gets new ones.
    """

    def __init__(self, ca_file: Path | None) -> None:
        """Connects to nobody yet. Raises StoreError when ``ca_file`` cannot be used."""
        # That of the system's authorities takes 20 ms to make, which plain http can do without.
        self._context = None if ca_file is None else _tls_context(ca_file)
        self._lock = threading.Lock()
        self._pools: dict[tuple[str | None, bool], httpcore.ConnectionPool] = {}
        self._backend = _Backend()
        self._closed = False
        self._process = os.getpid()

    def pool(self, proxy: str | None, *, is_secure: bool) -> httpcore.ConnectionPool:
        """The pool of connections through ``proxy``, a URL; directly for None. With TLS if ``is_secure``."""
        with self._lock:
            if self._closed:
                raise StoreError("the image was closed")
            if self._process != os.getpid():
                # A connection that two processes share would mix up their answers.
                self._pools = {}
                self._backend = _Backend()
                self._process = os.getpid()
            pool = self._pools.get((proxy, is_secure))
            if pool is None:
                if is_secure and self._context is None:
                    self._context = _tls_context(None)
                pool = self._pools[proxy, is_secure] = httpcore.ConnectionPool(
                    ssl_context=self._context if is_secure else None,
                    proxy=None if proxy is None else _proxy(proxy),
                    max_connections=CONNECTIONS_MAX,
                    keepalive_expiry=_KEEP_ALIVE_S,
                    network_backend=self._backend,
                )
            return pool

    def close(self) -> None:
        """Close all connections; requests under way fail."""
        with self._lock:
            self._closed = True
            pools, self._pools = self._pools, {}
            if self._process != os.getpid():
                return
        self._backend.close()
        for pool in pools.values():
            pool.close()


def _proxy(url: str) -> httpcore.Proxy:
    from urllib.parse import unquote, urlsplit

    parts = urlsplit(url)
    auth = None
    if parts.username is not None:
        auth = unquote(parts.username), unquote(parts.password or "")
    return httpcore.Proxy(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", auth=auth)


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context()
    except OSError as error:  # of the file that SSLKEYLOGFILE names
        raise StoreError("TLS cannot be set up", found=error.strerror or type(error).__name__) from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file is not None:
        try:
            context.load_verify_locations(ca_file)
        except (OSError, ssl.SSLError) as error:
            raise StoreError(
                "certificates of authorities cannot be read",
                found=error.strerror or type(error).__name__,
                where=Where(file=str(ca_file)),
                hint="--ca-file takes a PEM file",
            ) from None
    return context
