"""Images in a registry (OCI distribution-spec v1.1): finds and reads them, never writes.

Requests are made on the caller's thread (doc/adr/0010): each is one attempt at one of several hosts, and
attempts go on until the deadline.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from rafsfs.errors import (
    AuthError,
    BlobNotFound,
    DigestMismatch,
    FormatError,
    ImageNotFound,
    LengthMismatch,
    RafsError,
    StoreError,
)
from rafsfs.format import oci
from rafsfs.format.oci import Descriptor
from rafsfs.limits import OCI_JSON_BYTES_MAX
from rafsfs.store.http import Answer, Http, raise_for_status
from rafsfs.store.ranges import Progress, Take, check_range
from rafsfs.store.reference import RegistryReference
from rafsfs.store.registry_endpoints import Endpoint, Endpoints
from rafsfs.store.retry import Deadline, Share, TryAgain, retried
from rafsfs.types import EncodedBytes

T = TypeVar("T")

_LOCATION_S: Final = 60.0  # how long a redirect to object storage is used again: they are signed for minutes


class RegistryStore:
    """One repository of a registry."""

    def __init__(self, http: Http, reference: RegistryReference, actions: str = "pull") -> None:
        """Asks nobody yet."""
        self.http = http
        self.reference = reference
        self.name = f"docker://{reference.host}/{reference.repository}"
        self.endpoints = Endpoints(http, reference.host, reference.repository, actions)
        self.path = f"/v2/{reference.repository}"
        self._manifests: dict[str, bytes] = {}

    def close(self) -> None:
        """See ``Store.close``."""
        self.http.close()

    # --- Documents ----------------------------------------------------------------------------------------

    def find(self, tag: str | None, digest: str | None) -> Descriptor:
        """See ``Store.find``. The media type is the one that the document states, or else the registry."""
        found = self.ask(
            "the image",
            "GET",
            f"{self.path}/manifests/{digest or tag}",
            lambda answer: _read_manifest(answer, digest),
            accept=oci.MANIFESTS,
        )
        self._manifests = {found.digest: found.data}  # whoever finds an image reads its manifest next
        return Descriptor(found.media_type, found.digest, len(found.data))

    def manifest(self, descriptor: Descriptor) -> bytes:
        """See ``Store.manifest``."""
        if (known := self._manifests.get(descriptor.digest)) is not None:
            return known
        path = f"{self.path}/manifests/{descriptor.digest}"
        return self.ask(
            "the manifest",
            "GET",
            path,
            lambda answer: _read_manifest(answer, descriptor.digest),
            accept=oci.MANIFESTS,
        ).data

    def document(self, descriptor: Descriptor, what: str) -> bytes:
        """See ``Store.document``."""

        def read(answer: Answer) -> bytes:
            if answer.status == 404:
                raise BlobNotFound("not in the registry", where=answer.where)
            raise_for_status(answer, what)
            data = answer.read(OCI_JSON_BYTES_MAX)
            oci.check_digest(data, descriptor.digest, what)
            return data

        return self.ask(what, "GET", f"{self.path}/blobs/{descriptor.digest}", read)

    def open(self, descriptor: Descriptor) -> RegistryFile:
        """See ``Store.open``; asks nobody yet."""
        return RegistryFile(self, descriptor)

    # --- Requests -----------------------------------------------------------------------------------------

    def ask(
        self,
        what: str,
        method: str,
        path: str,
        use: Callable[[Answer], T],
        *,
        accept: str = "*/*",
        headers: Callable[[], Mapping[str, str]] = dict,
        origin_only: bool = False,
        deadline: Deadline | None = None,
        came_from: Callable[[Endpoint], None] = Endpoint.worked,
    ) -> T:
        """What ``use`` makes of the answer, asked of one host after the other until the deadline.

        ``headers`` is called for each attempt, ``came_from`` with who answered. ``use`` raises AuthError or
        FormatError for an answer that cannot be right: then the next host is asked.
        Raises what ``use`` raises, in the end StoreUnavailable.
        """
        settings = self.http.settings
        whole = deadline or Deadline(settings.deadline_s)

        def attempt() -> T:
            last: TryAgain | RafsError | None = None
            for way in self.endpoints.usable(whole, origin_only=origin_only):
                is_last = way is self.endpoints.origin
                within = whole if is_last else Share(whole, settings.stall_s)
                try:
                    done = self.ask_one(way, method, path, use, within, what, {"accept": accept, **headers()})
                except (TryAgain, StoreError, AuthError, FormatError) as error:
                    last = error
                    if not is_last:
                        _note_failure(way, error)
                else:
                    came_from(way)
                    return done
            assert last is not None
            raise last

        return retried(attempt, whole, settings.attempts)

    def ask_one(
        self,
        way: Endpoint,
        method: str,
        path: str,
        use: Callable[[Answer], T],
        deadline: Deadline,
        what: str,
        headers: Mapping[str, str],
        body: bytes | None = None,
    ) -> T:
        """One attempt at one host; a refusal for want of a login or token is mended once.

        ``path`` may be a whole URL, as places to upload to are; on another host it gets no login.
        """
        url = path if path.startswith("http") else f"{way.base}{path}{way.parameters}"
        is_ours = url.startswith(f"{way.base}/")
        for is_second in (False, True):
            proof = way.auth.header if is_ours else None
            sent = dict(headers) | ({"authorization": proof} if proof is not None else {})
            with self.http.request(
                method, url, deadline, headers=sent, body=body, direct=way.direct
            ) as answer:
                challenge = answer.headers.get("www-authenticate")
                # a login is for the registry, not for whom it redirects to
                is_asked = challenge is not None and answer.is_from(way.base)
                if answer.status != 401 or is_second or not is_asked:
                    if answer.status == 401:
                        raise_for_status(answer, what)
                    return use(answer)
            assert challenge is not None
            way.auth.renew(challenge, proof, deadline)
        raise AssertionError("the second attempt returns or raises")


def _note_failure(way: Endpoint, error: TryAgain | RafsError) -> None:
    match error:
        case BlobNotFound() | ImageNotFound():
            way.worked()  # a mirror need not have everything
        case AuthError() | FormatError():
            way.lied()
        case _:
            way.failed()


@dataclass(frozen=True, slots=True)
class _Location:
    """Where a way to the registry redirects to, and until when that is used."""

    url: str = field(repr=False)
    until: float
    way: Endpoint


class RegistryFile:
    """A blob of a repository, read by ranges. Any thread may read it."""

    def __init__(self, store: RegistryStore, descriptor: Descriptor) -> None:
        self.name = descriptor.digest
        self.size = descriptor.size
        self._store = store
        self._path = f"{store.path}/blobs/{descriptor.digest}"
        self._lock = threading.Lock()
        self._location: _Location | None = None
        self._asked = threading.local()  # .way: who answered this thread's last request

    def read_range(self, offset: int, length: int) -> EncodedBytes:
        """See ``StoredFile.read_range``."""
        body = bytearray()
        self.stream_range(offset, length, body.extend)
        return EncodedBytes(bytes(body))

    def stream_range(self, offset: int, length: int, take: Take, *, afresh: bool = False) -> None:
        """See ``RemoteFile.stream_range``."""
        check_range(self.name, self.size, offset, length)
        if not length:
            return
        progress = Progress(offset, length, take)
        deadline = Deadline(self._store.http.settings.deadline_s)

        def use(answer: Answer) -> None:
            if answer.status == 404:
                raise BlobNotFound(
                    f"{self.name} is not in the registry",
                    where=answer.where,
                    hint="push the image again, it is incomplete",
                )
            if answer.status == 416:
                raise LengthMismatch(
                    "blob ends too early", expected=f"{offset + length} bytes", where=answer.where
                )
            raise_for_status(answer, "a part of a blob")
            progress.pour(answer, self.size, "a part of a blob")
            came_whole.append(answer)

        came_whole: list[Answer] = []

        def came_from(way: Endpoint) -> None:
            way.worked()
            self._asked.way = way
            self._note_location(came_whole[-1], way)

        if afresh:
            self._distrust()
        else:
            self._from_location(progress, use, deadline)
        fresh = {"cache-control": "no-cache"} if afresh else {}
        if progress.left:
            self._store.ask(
                "a part of a blob",
                "GET",
                self._path,
                use,
                headers=lambda: {"range": progress.header, "accept-encoding": "identity"} | fresh,
                origin_only=afresh,
                deadline=deadline,
                came_from=came_from,
            )

    def _from_location(self, progress: Progress, use: Callable[[Answer], None], deadline: Deadline) -> None:
        """Ask where the last answer came from; whatever fails there is asked of the registry again."""
        location = self._location
        if location is None or time.monotonic() > location.until:
            return
        http = self._store.http
        headers = {"range": progress.header, "accept-encoding": "identity"}
        within = Share(deadline, http.settings.stall_s)
        try:
            with http.request("GET", location.url, within, headers=headers) as answer:
                use(answer)
                self._asked.way = location.way
        except (TryAgain, StoreError):
            with self._lock:
                if self._location == location:
                    self._location = None

    def _note_location(self, answer: Answer, way: Endpoint) -> None:
        """Remember a redirect to another host, where no login is needed."""
        if any(answer.is_from(way.base) for way in self._store.endpoints.all):
            return
        with self._lock:
            if self._location is None or self._location.url != answer.secret_url:
                self._location = _Location(answer.secret_url, time.monotonic() + _LOCATION_S, way)

    def _distrust(self) -> None:
        """What this thread got last was not what it should be: whoever gave it is left alone."""
        with self._lock:
            self._location = None
        way = getattr(self._asked, "way", None)
        if way is not None and way is not self._store.endpoints.origin:
            way.lied()

    def close(self) -> None:
        """See ``StoredFile.close``; connections belong to the store."""


@dataclass(frozen=True, slots=True)
class _Manifest:
    data: bytes
    digest: str
    media_type: str


def _read_manifest(answer: Answer, digest: str | None) -> _Manifest:
    """A manifest or an index, and what it is. ``digest`` is None when only its tag is known."""
    if answer.status == 404:
        raise ImageNotFound("no such image in the registry", where=answer.where)
    raise_for_status(answer, "the image")
    data = answer.read(OCI_JSON_BYTES_MAX)
    found = oci.digest_of(data)
    told = answer.headers.get("docker-content-digest", "")
    if (expected := digest or (told if told.startswith("sha256:") else found)) != found:
        raise DigestMismatch("manifest is not the one that was named", expected=expected, found=found)
    stated = oci.load_json(data, "manifest").get("mediaType")
    content_type = answer.headers.get("content-type", "").partition(";")[0].strip()
    return _Manifest(data, found, stated if isinstance(stated, str) else content_type)
