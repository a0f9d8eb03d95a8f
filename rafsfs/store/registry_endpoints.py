"""Which of several hosts to ask for a registry's contents: mirrors, a proxy, the registry; sends only probes.

A host that failed is left alone for a while, then asked for something that costs nothing before it is given
a reader's request again. The registry itself comes last and is never left out; through the environment's
proxy, if there is one, for that may be the only way there.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from rafsfs.errors import RafsError
from rafsfs.store.http import Http, is_loopback
from rafsfs.store.reference import DOCKER_HUB
from rafsfs.store.registry_auth import Authenticator
from rafsfs.store.registry_logins import find_login
from rafsfs.store.retry import Deadline, Share, TryAgain
from rafsfs.store.settings import StoreSettings

log = logging.getLogger("rafsfs.store")

_DOWN_FIRST_S: Final = 1.0
_DOWN_MAX_S: Final = 60.0
_PROBE_S: Final = 2.0
_HUB_API: Final = "registry-1.docker.io"


@dataclass(slots=True)
class Endpoint:
    """One way to a registry's contents. ``base`` is a URL without /v2/.

    ``is_origin`` is the registry itself; ``direct`` means past a proxy that failed.
    """

    base: str
    auth: Authenticator
    is_origin: bool
    direct: bool = False
    parameters: str = ""
    _failures: int = 0
    _down_until: float = 0.0
    _probing: threading.Lock = field(default_factory=threading.Lock)

    def failed(self) -> None:
        """Leave it alone for a while: twice as long as the last time."""
        self._leave_alone(min(_DOWN_MAX_S, _DOWN_FIRST_S * 2 ** min(self._failures, 10)))

    def lied(self) -> None:
        """Leave it alone for long: what it gave was no failure to it, and not what was asked for."""
        self._leave_alone(_DOWN_MAX_S)

    def _leave_alone(self, wait_s: float) -> None:
        if time.monotonic() < self._down_until:
            return  # several requests were under way when it failed
        self._failures += 1
        self._down_until = time.monotonic() + wait_s
        if not self.is_origin or not self.direct:
            log.warning("%s is not asked for %g s", self.base, wait_s)

    def worked(self) -> None:
        """Forget that it failed: it did what it was asked for. Answering a probe is less than that."""
        self._failures = 0

    def is_ready(self, http: Http, deadline: Deadline) -> bool:
        """Whether it may be asked now; one that was down is probed first, by one thread at a time."""
        if not self._failures:
            return True
        if time.monotonic() < self._down_until or not self._probing.acquire(blocking=False):
            return False
        try:
            if self._answers(http, deadline):
                return True
            self.failed()
            return False
        finally:
            self._probing.release()

    def _answers(self, http: Http, deadline: Deadline) -> bool:
        within = Share(deadline, _PROBE_S)
        try:
            with http.request("GET", f"{self.base}/v2/", within, direct=self.direct) as answer:
                return answer.status in (200, 401, 403)
        except (TryAgain, RafsError) as error:
            log.debug("%s does not answer: %s", self.base, error)
            return False


class Endpoints:
    """All ways to one repository of a registry."""

    def __init__(self, http: Http, host: str, repository: str, actions: str) -> None:
        """``actions`` are what tokens are asked for: ``pull``, or ``pull,push``, which no mirror is for."""
        settings = http.settings
        self._http = http
        scope = f"repository:{repository}:{actions}"

        def auth(login_host: str) -> Authenticator:
            return Authenticator(
                http, lambda: find_login(login_host, settings.docker_config, repository), scope
            )

        origin = api_base(host, settings)
        ways = []
        if "push" not in actions:
            for mirror in settings.mirrors:
                base = mirror.rstrip("/")
                # containerd's way to tell a mirror of several registries which one is meant
                ways.append(
                    Endpoint(base, auth(base.partition("://")[2]), is_origin=False, parameters=f"?ns={host}")
                )
        origin_auth = auth(host)
        direct = Endpoint(origin, origin_auth, is_origin=True, direct=True)
        behind_proxy = Endpoint(origin, origin_auth, is_origin=True)
        if settings.proxy is not None:
            ways.append(behind_proxy)
        is_last_resort = settings.proxy is None and http.proxy_for(origin) is not None
        self._past = (direct, behind_proxy) if is_last_resort else (direct,)
        self._ways = (*ways, self._past[-1])

    @property
    def all(self) -> tuple[Endpoint, ...]:
        """Every way, the best one first."""
        return self._ways

    @property
    def origin(self) -> Endpoint:
        """The registry itself, which is asked last; directly, or through the environment's proxy."""
        return self._ways[-1]

    @property
    def token_renewals(self) -> int:
        """How many logins and tokens were made."""
        return sum({id(way.auth): way.auth.renewals for way in self._ways}.values())

    def usable(self, deadline: Deadline, *, origin_only: bool = False) -> Iterator[Endpoint]:
        """The ways to try now, the best one first; ``origin_only`` past mirrors and, if possible, proxies."""
        *others, origin = self._past if origin_only else self._ways
        for way in others:
            if way.is_ready(self._http, deadline):
                yield way
        yield origin


def api_base(host: str, settings: StoreSettings) -> str:
    """The URL of a registry's API without /v2/: https, or http where that may be.

    A registry on this machine is asked over plain http unless there is a CA file for it, or its port is 443.
    """
    if host == DOCKER_HUB:
        return f"https://{_HUB_API}"
    name, colon, port = host.rpartition(":")
    bare = (name if colon and not host.endswith("]") else host).strip("[]")
    local = is_loopback(bare) and settings.ca_file is None and port != "443"
    return f"{'http' if settings.plain_http or local else 'https'}://{host}"
