"""All ways in which a network fails that we know, for the fault proxy; never used by the package."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from support.fault_proxy import Fault

from rafsfs.errors import BlobNotFound, Denied, DigestMismatch, LengthMismatch, StoreError, StoreUnavailable

Answer = tuple[int, dict[str, str], bytes]


def other_bytes(status: int, headers: dict[str, str], body: bytes) -> Answer:
    return status, headers, bytes(len(body))


def other_range(status: int, headers: dict[str, str], body: bytes) -> Answer:
    return status, headers | {"Content-Range": "bytes 0-9/10"}, body


def no_range(status: int, headers: dict[str, str], body: bytes) -> Answer:
    return status, {name: value for name, value in headers.items() if name != "Content-Range"}, body


def longer(status: int, headers: dict[str, str], body: bytes) -> Answer:
    return status, headers, body + b"x"


def away(place: str) -> dict[str, str]:
    return {"Location": place}


PATIENT = {"deadline_s": 30.0, "stall_s": 1.0, "attempts": 5}
"""For reads that shall survive a fault: a busy machine must not look like one."""


SOON_TRIES = 20


def soon(read: Callable[[], bytes]) -> bytes:
    """What is read once the faults are over: again while a busy machine lets who is in haste wait."""
    for _ in range(SOON_TRIES):
        with suppress(StoreUnavailable):
            return read()
    return read()


RECOVERED = {
    "hangs up": Fault(hang_up=True),
    "stalls before the body": Fault(body_bytes=0, stall=True),
    "stalls in the body": Fault(body_bytes=30_000, stall=True),
    "breaks off": Fault(body_bytes=30_000),
    "breaks off again and again": Fault(body_bytes=20_000, times=2),
    "status 500": Fault(status=500),
    "status 502": Fault(status=502),
    "status 503, Retry-After": Fault(status=503, headers={"Retry-After": "0"}),
    "status 429, Retry-After": Fault(status=429, headers={"Retry-After": "0"}),
    "status 429, a date": Fault(status=429, headers={"Retry-After": "Fri, 01 Jan 2021 00:00:00 GMT"}),
    "status 408": Fault(status=408),
    "other bytes": Fault(change=other_bytes),
}
"""Faults that pass: the read succeeds."""

REFUSED = {
    "nobody answers": (Fault(hang_up=True, times=None), StoreError),
    "stalls": (Fault(body_bytes=100, stall=True, times=None), StoreError),
    "drips": (Fault(drip_s=0.1, times=None), StoreError),
    "status 500": (Fault(status=500, times=None), StoreError),
    "Retry-After beyond the deadline": (
        Fault(status=429, headers={"Retry-After": "900"}, times=None),
        StoreError,
    ),
    "status 403": (Fault(status=403, times=None), Denied),
    "status 401 without a challenge": (Fault(status=401, times=None), Denied),
    "status 404": (Fault(status=404, times=None), BlobNotFound),
    "status 416": (Fault(status=416, times=None), LengthMismatch),
    "status 418": (Fault(status=418, times=None), StoreError),
    "other range": (Fault(change=other_range, times=None), LengthMismatch),
    "no range": (Fault(change=no_range, times=None), LengthMismatch),
    "longer": (Fault(change=longer, times=None), LengthMismatch),
    "other bytes": (Fault(change=other_bytes, times=None), DigestMismatch),
    "redirects to itself": (
        Fault(status=307, headers=away("/v2/t/a/x"), times=None, applies=lambda _: True),
        StoreError,
    ),
    "redirects to a host that is none": (
        Fault(status=307, headers=away("https://a.invalid/"), times=None),
        StoreError,
    ),
    "redirects to no URL": (Fault(status=307, headers=away("http://[/"), times=None), StoreError),
}
"""Faults that stay: the read fails by its deadline, with the reason."""
