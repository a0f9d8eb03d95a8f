"""How stores that are not local folders are reached: what a user may set, with its defaults; reaches none."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from rafsfs.limits import NODE_CACHE_BYTES_DEFAULT, STORE_ATTEMPTS_MAX, STORE_DEADLINE_S, STORE_STALL_S


@dataclass(frozen=True, slots=True)
class StoreSettings:
    """Everything that is not in a reference.

    ``ca_file`` is a PEM file of authorities that are trusted beside the system's. ``plain_http`` allows
    http:// for other hosts than this machine. ``mirrors`` are base URLs of registries that are asked first.
    ``proxy`` is the URL of an HTTP proxy, instead of what the environment says; while it does not work,
    registries are asked directly.

    ``deadline_s`` bounds one read with all its attempts, ``stall_s`` one attempt's wait for the next byte.
    ``cache_folder`` is where encoded chunks are kept on this machine, at most ``cache_bytes`` of them; None
    keeps none. ``docker_config`` overrides where logins are read from.
    """

    ca_file: Path | None = None
    plain_http: bool = False
    mirrors: tuple[str, ...] = ()
    proxy: str | None = None
    deadline_s: float = STORE_DEADLINE_S
    stall_s: float = STORE_STALL_S
    attempts: int = STORE_ATTEMPTS_MAX
    cache_folder: Path | None = None
    cache_bytes: int = NODE_CACHE_BYTES_DEFAULT
    docker_config: Path | None = field(default=None, repr=False)
