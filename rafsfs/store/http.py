"""HTTP requests to stores: which hosts may be asked how, redirects, and what an answer's failure means.

Knows nothing of registries. Believes no length: whoever reads a body says how much it may be.
"""

from __future__ import annotations

import ipaddress
import os
import ssl
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import SplitResult, urljoin, urlsplit

from rafsfs.errors import Denied, LengthMismatch, StoreError, StoreUnavailable, Where
from rafsfs.store.http_connections import Connections, until
from rafsfs.store.http_library import httpcore
from rafsfs.store.retry import Deadline, TryAgain
from rafsfs.store.settings import StoreSettings
from rafsfs.store.urls import check_server, shown

REDIRECTS_MAX: Final = 5
RETRY_AFTER_MAX_S: Final = 3600.0  # more is not told to anybody: nobody waits for so long

_REDIRECTS: Final = frozenset((301, 302, 303, 307, 308))
_TRY_AGAIN: Final = frozenset((408, 425, 429, 500, 502, 503, 504))
_TIMEOUTS: Final = (
    httpcore.ConnectTimeout,
    httpcore.ReadTimeout,
    httpcore.WriteTimeout,
    httpcore.PoolTimeout,
)
_BROKEN: Final = (httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError)

Body = bytes | Iterable[bytes]


@dataclass(slots=True)
class Answer:
    """One response. ``headers`` have lower-case names.

    ``secret_url`` is where it came from after redirects: it may be signed, and is for another request only.
    """

    status: int
    headers: Mapping[str, str]
    secret_url: str = field(repr=False)
    _response: httpcore.Response

    @property
    def where(self) -> Where:
        """Where it came from, for errors."""
        return Where(file=shown(self.secret_url))

    def is_from(self, base: str) -> bool:
        """Whether it came from below this URL."""
        return self.secret_url.startswith(f"{base}/")

    def chunks(self) -> Iterator[bytes]:
        """The body as it comes in. Raises TryAgain when it breaks off."""
        assert not isinstance(self._response.stream, bytes)
        with _told(self.secret_url):
            yield from self._response.iter_stream()

    def read(self, limit: int) -> bytes:
        """The whole body; raises LengthMismatch when it has more than ``limit`` bytes, or TryAgain."""
        body = bytearray()
        for chunk in self.chunks():
            body += chunk
            if len(body) > limit:
                raise LengthMismatch(
                    "answer is too long", expected=f"at most {limit} bytes", where=self.where
                )
        return bytes(body)


class Http:
    """Sends requests for all stores with the same settings. Any thread may use it."""

    def __init__(self, settings: StoreSettings) -> None:
        """Asks nobody yet. Raises StoreError for settings that cannot be used."""
        for mirror in settings.mirrors:
            _check(mirror, "the mirror", login=False)
        if settings.proxy is not None:
            _check(settings.proxy, "the proxy", login=False)
        self.settings = settings
        self._connections = Connections(settings.ca_file)
        self._environment = _proxies_of_environment()

    def close(self) -> None:
        """Close all connections; requests under way fail."""
        self._connections.close()

    @contextmanager
    def request(
        self,
        method: str,
        url: str,
        deadline: Deadline,
        *,
        headers: Mapping[str, str] | None = None,
        body: Body | None = None,
        direct: bool = False,
    ) -> Iterator[Answer]:
        """Send one request and follow redirects; gives the answer, whatever its status.

        Authorization goes to the host of ``url`` and to nobody else. ``direct`` leaves out the proxy.
        Raises TryAgain when the network fails, StoreError for what another attempt cannot change.
        """
        sent = dict(headers or {})
        for _ in range(REDIRECTS_MAX + 1):
            target = self._checked(url)
            with (
                until(deadline),
                closing(self._send(method, target, sent, body, deadline, direct)) as response,
            ):
                answer = Answer(response.status, _headers(response), url, response)
                location = answer.headers.get("location")
                if response.status not in _REDIRECTS or location is None or method not in ("GET", "HEAD"):
                    yield answer
                    return
            following = joined(url, location)
            there = self._checked(following)
            if _origin(there) != _origin(target):
                sent.pop("authorization", None)
            if target.scheme == "https" and there.scheme != "https":
                raise StoreError(
                    "the store redirects from https to plain http", where=Where(file=shown(following))
                )
            url = following
        raise StoreError(
            "the store redirects on and on",
            expected=f"at most {REDIRECTS_MAX} times",
            where=Where(file=shown(url)),
        )

    def _checked(self, url: str) -> SplitResult:
        """Take a URL apart; raises StoreError unless it may be asked."""
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname or "", parts.port
        except ValueError:
            host, parts = "", urlsplit("")
        if parts.scheme not in ("http", "https") or not host or not url.isascii() or not url.isprintable():
            raise StoreError("the store names a URL that is none", found=repr(shown(url)))
        if parts.scheme == "http" and not (self.settings.plain_http or is_loopback(host)):
            raise StoreError(
                f"{host} would be asked over plain http",
                hint="use https, or allow it with --plain-http: then anybody on the way sees logins",
            )
        return parts

    def proxy_for(self, url: str) -> str | None:
        """The proxy that a URL is asked through; the environment's says http_proxy, https_proxy, no_proxy."""
        parts = urlsplit(url)
        host = parts.hostname or ""
        if self.settings.proxy is not None:
            return self.settings.proxy
        proxy = self._environment.get(parts.scheme)
        if proxy is None or is_loopback(host):
            return None
        from urllib.request import proxy_bypass

        if proxy_bypass(parts.netloc):
            return None
        proxy = proxy if "://" in proxy else f"http://{proxy}"
        _check(proxy, f"{parts.scheme}_proxy in the environment", login=True)
        return proxy

    def _send(
        self,
        method: str,
        target: SplitResult,
        headers: Mapping[str, str],
        body: Body | None,
        deadline: Deadline,
        direct: bool,
    ) -> httpcore.Response:
        url = target.geturl()
        proxy = None if direct else self.proxy_for(url)
        stall_s = self.settings.stall_s
        timeouts = {
            "connect": stall_s,
            "read": stall_s,
            "write": stall_s,
            "pool": max(0.001, deadline.left_s()),
        }
        whole = {"host": target.netloc.rpartition("@")[2], "user-agent": "rafsfs", "accept": "*/*", **headers}
        if isinstance(body, bytes):
            whole["content-length"] = str(len(body))
        request = httpcore.Request(
            method,
            url,
            headers=[(name.encode(), value.encode("latin-1")) for name, value in whole.items()],
            content=body,
            extensions={"timeout": timeouts},
        )
        is_secure = "https" in (target.scheme, urlsplit(proxy or "").scheme)
        pool = self._connections.pool(proxy, is_secure=is_secure)
        with _told(url):
            return pool.handle_request(request)


def _proxies_of_environment() -> dict[str, str]:
    """URL scheme -> proxy. What reads them brings a mail parser along, which takes a round trip to import."""
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return {}
    from urllib.request import getproxies_environment

    return getproxies_environment()


def joined(url: str, location: str) -> str:
    """The URL that a Location header means; raises StoreError for what is none."""
    try:
        return urljoin(url, location)
    except ValueError:
        raise StoreError("the store names a URL that is none", found=repr(shown(location))) from None


def is_loopback(host: str) -> bool:
    """Whether a host name means this machine, whatever a name server says."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def raise_for_status(answer: Answer, what: str) -> None:
    """Raise what a status that is no success means: TryAgain, Denied or StoreError. ``what`` was asked for.

    404 and 416 mean something else for each thing that is asked for: see who asks.
    """
    status = answer.status
    if 200 <= status < 300:
        return
    where = answer.where
    found = f"HTTP status {status}"
    if status in _TRY_AGAIN:
        raise TryAgain(
            StoreUnavailable(f"{what} cannot be had now", found=found, where=where), retry_after(answer)
        )
    if status in (401, 403, 407):
        hint = "log in with `docker login` or `skopeo login`" if status == 401 else None
        raise Denied(f"{what} is refused to us", found=found, where=where, hint=hint)
    raise StoreError(f"{what} cannot be had", found=found, where=where)


def retry_after(answer: Answer) -> float | None:
    """Seconds of a Retry-After header (RFC 9110, 10.2.3): a number, or a date."""
    text = answer.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text), RETRY_AFTER_MAX_S)
    if text:
        from email.utils import parsedate_to_datetime

        try:
            at = parsedate_to_datetime(text).timestamp()
        except (ValueError, OverflowError):
            return None
        return min(max(0.0, at - time.time()), RETRY_AFTER_MAX_S)
    return None


def _headers(response: httpcore.Response) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}


def _origin(parts: SplitResult) -> tuple[str, str | None, int]:
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def _check(url: str, what: str, *, login: bool) -> None:
    try:
        check_server(url, login=login)
    except ValueError as error:
        raise StoreError(f"{what} cannot be used", found=error) from None


@contextmanager
def _told(url: str) -> Iterator[None]:
    """Turn the network's exceptions into ours."""
    where = Where(file=shown(url))
    try:
        yield
    except _TIMEOUTS as error:
        raise TryAgain(
            StoreUnavailable("the store does not answer in time", found=type(error).__name__, where=where)
        ) from None
    except UnicodeError:  # out of the codec for names of hosts
        raise StoreError("the name of a host is none", where=where) from None
    except _BROKEN as error:
        cause = error.__context__ or error.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise StoreError(
                "the store's certificate is not trusted",
                found=cause.verify_message,
                where=where,
                hint="name its authority with --ca-file FILE",
            ) from None
        raise TryAgain(
            StoreUnavailable(
                "the store cannot be reached", found=str(error) or type(error).__name__, where=where
            )
        ) from None
    except OSError as error:  # a closed pool
        raise TryAgain(StoreUnavailable("the connection broke", found=str(error), where=where)) from None
