"""Logins for registries out of the files and helpers of docker, podman and skopeo; keeps none, logs none.

Sources: docker/cli, config file (``auths``, ``credHelpers``, ``credsStore``) and docker-credential-helpers'
protocol; containers-auth.json(5) for where podman and skopeo keep theirs.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rafsfs.errors import Denied, StoreError, Where
from rafsfs.limits import LOGIN_JSON_BYTES_MAX
from rafsfs.store.reference import DOCKER_HUB

_HUB_KEYS: Final = ("https://index.docker.io/v1/", "index.docker.io", DOCKER_HUB, "registry-1.docker.io")
_HELPER: Final = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HELPER_WAIT_S: Final = 10.0
_NOTHING_THERE: Final = "credentials not found in native keychain"  # what helpers say, and exit with 1
_TOKEN_USER: Final = "<token>"  # noqa: S105  # a helper's name for: the secret is an identity token


@dataclass(frozen=True, slots=True)
class Login:
    """A user's name and password, or an identity token in place of both."""

    user: str = ""
    password: str = field(default="", repr=False)
    identity_token: str | None = field(default=None, repr=False)

    def basic(self) -> str:
        """The value of an Authorization header (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def find_login(host: str, config: Path | None = None, repository: str = "") -> Login | None:
    """The login that the user has for a registry's ``host`` (with its port), or None.

    One for the ``repository``, or for a part of its path from the start, goes before one for the host.

    ``config`` is the only file looked at when it is given. Raises StoreError for a file that cannot be used,
    Denied when a credential helper fails.
    """
    for path in [config] if config is not None else _files():
        document = _read(path)
        if document is not None and (login := _from_document(document, host, repository, path)) is not None:
            return login
    return None


def _files() -> list[Path]:
    """In the order in which skopeo looks at them."""
    found = []
    if named := os.environ.get("REGISTRY_AUTH_FILE"):
        found.append(Path(named))
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        found.append(Path(runtime) / "containers" / "auth.json")
    docker = os.environ.get("DOCKER_CONFIG")
    found.append((Path(docker) if docker else Path("~/.docker").expanduser()) / "config.json")
    return found


def _read(path: Path) -> dict[str, Any] | None:
    try:
        with path.open("rb") as file:
            data = file.read(LOGIN_JSON_BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise StoreError(
            "the file with logins cannot be read", found=error.strerror, where=Where(file=str(path))
        ) from None
    return _object(data, "the file with logins", str(path))


def _object(data: bytes, what: str, place: str) -> dict[str, Any]:
    """Read one JSON object; its text never gets into an error."""
    value: Any = None
    if len(data) <= LOGIN_JSON_BYTES_MAX:
        try:
            value = json.loads(data)
        except (ValueError, RecursionError):
            value = None
    if not isinstance(value, dict):
        raise StoreError(f"{what} is no JSON object", where=Where(file=place)) from None
    return value


def _from_document(document: dict[str, Any], host: str, repository: str, path: Path) -> Login | None:
    helper = _entry_for(document.get("credHelpers"), host, repository) or document.get("credsStore")
    if isinstance(helper, str) and helper:
        login = _ask_helper(helper, _HUB_KEYS[0] if host == DOCKER_HUB else host)
        if login is not None:
            return login
    entry = _entry_for(document.get("auths"), host, repository)
    return _from_entry(entry, path) if isinstance(entry, dict) else None


def _entry_for(table: Any, host: str, repository: str) -> Any:
    """What a table says for a repository, or else for its host; None for nothing."""
    if not isinstance(table, dict):
        return None
    parts = repository.split("/") if repository else []
    paths = ["/".join((host, *parts[:count])) for count in range(len(parts), 0, -1)]
    hosts = _HUB_KEYS if host == DOCKER_HUB else (host,)
    for key in (*paths, *hosts):
        if key in table:
            return table[key]
    return next((value for key, value in table.items() if _host_of(key) in hosts), None)


def _host_of(key: str) -> str | None:
    """The host of a key that is a URL; what follows is of no account, as in docker and skopeo."""
    _, slashes, rest = key.partition("://")
    return rest.partition("/")[0] if slashes else None


def _from_entry(entry: dict[str, Any], path: Path) -> Login | None:
    token = entry.get("identitytoken")
    if isinstance(token, str) and token:
        return Login(identity_token=token)
    auth = entry.get("auth")
    if isinstance(auth, str) and auth:
        try:
            user, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            colon = ""
        if not colon:
            raise StoreError(
                "a login is malformed", where=Where(file=str(path)), hint="log in again"
            ) from None
        return Login(user, password)
    match entry:
        case {"username": str(user), "password": str(password)} if user:
            return Login(user, password)
    return None


def _ask_helper(name: str, host: str) -> Login | None:
    if not _HELPER.fullmatch(name):
        raise StoreError("the name of a credential helper is none", found=repr(name[:80]))
    program = f"docker-credential-{name}"
    try:
        done = subprocess.run(
            [program, "get"], input=host.encode(), capture_output=True, timeout=_HELPER_WAIT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise Denied(
            f"{program} does not answer", expected=f"an answer within {_HELPER_WAIT_S:g} s"
        ) from None
    except OSError as error:
        raise Denied(f"{program} cannot be started", found=error.strerror) from None
    if done.returncode != 0:
        said = done.stdout[:200].decode(errors="replace").strip()
        if _NOTHING_THERE in said:
            return None
        raise Denied(f"{program} has no login for {host}", found=said or f"exit code {done.returncode}")
    answer = _object(done.stdout, "what it says", program)
    user, secret = answer.get("Username"), answer.get("Secret")
    if not isinstance(user, str) or not isinstance(secret, str):
        raise Denied(f"{program} gives no login for {host}")
    return Login(identity_token=secret) if user == _TOKEN_USER else Login(user, secret)
