"""URLs of servers: which ones may be used, and what of one may be shown to anybody; asks no server."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

_SHOWN_MAX: Final = 300
_LABEL_MAX: Final = 63  # RFC 1035, 2.3.4


def shown(url: str) -> str:
    """A URL for errors and logs: what a signed one, or one with a login, has of secrets is left out.

    >>> shown("https://carol:secret@host/a?X-Amz-Signature=secret")
    'https://host/a'
    """
    plain = url.partition("?")[0].partition("#")[0]
    scheme, slashes, rest = plain.partition("//") if "//" in plain else ("", "", plain)
    # Also behind a slash: a password may hold one, where there should be none.
    return f"{scheme}{slashes}{rest.rpartition('@')[2]}"[:_SHOWN_MAX]


def check_server(url: str, *, login: bool = False) -> None:
    """Raise ValueError unless this is the URL of a mirror or a proxy. ``login`` says whether it may have one.

    The error does not hold the URL.
    """
    try:
        parts = urlsplit(url)
        host, has_login, _ = parts.hostname or "", "@" in parts.netloc, parts.port
    except ValueError:
        raise ValueError("it is no URL; write https://HOST or https://HOST:PORT") from None
    if has_login and not login:
        raise ValueError("a login in it would be seen by others; leave it out")
    is_host = ":" in host or all(0 < len(label) <= _LABEL_MAX for label in host.split("."))
    is_text = url.isascii() and url.isprintable() and " " not in url
    if parts.scheme not in ("http", "https") or not is_host or not is_text:
        raise ValueError("it is no URL of a server; write https://HOST or https://HOST:PORT")
    if parts.query or parts.fragment:
        raise ValueError("it goes on behind the host; write https://HOST or https://HOST:PORT")
