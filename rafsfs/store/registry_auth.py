"""Proves to one registry who we are: basic logins and bearer tokens, fetched once for all who wait.

Source: distribution's token authentication specification, and RFC 9110 for challenges. A token is only ever
sent to the registry that asked for it; a login only to that registry and to the token service it names.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from typing import Final
from urllib.parse import quote, urlencode

from rafsfs.errors import Denied, StoreError, StoreUnavailable
from rafsfs.format.oci import load_json
from rafsfs.limits import TOKEN_JSON_BYTES_MAX
from rafsfs.store.http import Http, raise_for_status
from rafsfs.store.registry_logins import Login
from rafsfs.store.retry import Deadline, TryAgain

_CHALLENGE: Final = re.compile(r"\s*(?:,\s*)?([A-Za-z-]+)\s+(?=[A-Za-z_]+\s*=)")
_PARAMETER: Final = re.compile(r'\s*,?\s*([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s",]+))')
_CLIENT: Final = "rafsfs"


class Authenticator:
    """The Authorization header for one registry and scope. Any thread may use it."""

    def __init__(self, http: Http, login: Callable[[], Login | None], scope: str) -> None:
        """``login`` is asked when the registry asks us; ``scope`` is what tokens are for."""
        self._http = http
        self._login = login
        self._scope = scope
        self._lock = threading.Lock()
        self.header: str | None = None
        self.renewals = 0

    def renew(self, challenge: str, refused: str | None, deadline: Deadline) -> str:
        """A header in place of the one that was ``refused`` with this WWW-Authenticate ``challenge``.

        Whoever comes while another thread fetches one waits for it and gets that. Raises Denied when there is
        nothing to be had, TryAgain, StoreError.
        """
        if not self._lock.acquire(timeout=max(0.0, deadline.left_s())):
            raise TryAgain(StoreUnavailable("the registry's token service takes too long"))
        try:
            if self.header is None or self.header == refused:
                self.header = None
                self.header = self._made(challenge, deadline)
                self.renewals += 1
            return self.header
        finally:
            self._lock.release()

    def _made(self, challenge: str, deadline: Deadline) -> str:
        schemes = parse_challenges(challenge)
        login = self._login()
        if "bearer" in schemes:
            return "Bearer " + self._token(schemes["bearer"], login, deadline)
        if "basic" in schemes:
            if login is None:
                raise Denied(
                    "the registry wants a login", hint="log in with `docker login` or `skopeo login`"
                )
            return login.basic()
        raise Denied("the registry wants a proof that we cannot give", found=repr(challenge[:100]))

    def _token(self, parameters: dict[str, str], login: Login | None, deadline: Deadline) -> str:
        realm = parameters.get("realm", "")
        asked = {"scope": parameters.get("scope") or self._scope}
        if service := parameters.get("service"):
            asked["service"] = service
        headers: dict[str, str] = {}
        if login is not None and login.identity_token is not None:
            form = {
                "grant_type": "refresh_token",
                "refresh_token": login.identity_token,
                "client_id": _CLIENT,
            }
            headers["content-type"] = "application/x-www-form-urlencoded"
            request = self._http.request(
                "POST", realm, deadline, headers=headers, body=urlencode(asked | form).encode()
            )
        else:
            if login is not None:
                headers["authorization"] = login.basic()
            query = "&" if "?" in realm else "?"
            url = realm + query + urlencode(asked, quote_via=quote)
            request = self._http.request("GET", url, deadline, headers=headers)
        with request as answer:
            raise_for_status(answer, "a token")
            document = load_json(answer.read(TOKEN_JSON_BYTES_MAX), "the token service's answer")
        token = document.get("token") or document.get("access_token")
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise StoreError("the token service gives no token")
        return token


def parse_challenges(header: str) -> dict[str, dict[str, str]]:
    """Scheme -> parameters, both in lower case, of a WWW-Authenticate header; leaves out what it cannot read.

    >>> parse_challenges('Bearer realm="https://a/token",service="s", Basic realm="r"')
    {'bearer': {'realm': 'https://a/token', 'service': 's'}, 'basic': {'realm': 'r'}}
    """
    found: dict[str, dict[str, str]] = {}
    position = 0
    while match := _CHALLENGE.match(header, position):
        parameters: dict[str, str] = {}
        position = match.end()
        while parameter := _PARAMETER.match(header, position):
            quoted, plain = parameter[2], parameter[3]
            value = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            parameters.setdefault(parameter[1].lower(), value)
            position = parameter.end()
        found.setdefault(match[1].lower(), parameters)
    return found
