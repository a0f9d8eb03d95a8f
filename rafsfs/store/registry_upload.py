"""Puts blobs and manifests into a registry (OCI distribution-spec v1.1, 'Push'); reads no images.

What is there already is left there; what another repository of the registry has is mounted from it. Small
blobs go up in one request, large ones in chunks, and after a failure goes on what the registry has got.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeVar
from urllib.parse import quote

from rafsfs.errors import DigestMismatch, RafsError, StoreError, Where
from rafsfs.format import oci
from rafsfs.format.oci import Descriptor
from rafsfs.store.base import UploadLost
from rafsfs.store.http import Answer, Http, joined, raise_for_status
from rafsfs.store.reference import RegistryReference
from rafsfs.store.registry import RegistryStore
from rafsfs.store.retry import Deadline, TryAgain, retried

T = TypeVar("T")

CHUNK_BYTES: Final = 16 << 20
"""Of one request of an upload; held in memory."""


class RegistryUpload:
    """One repository, to be written to. Any thread may use it."""

    def __init__(self, http: Http, reference: RegistryReference) -> None:
        """Asks nobody yet."""
        self._store = RegistryStore(http, reference, "pull,push")
        self._settings = http.settings
        self.host = reference.host
        self.name = self._store.name

    def close(self) -> None:
        """Close all connections."""
        self._store.close()

    def has(self, descriptor: Descriptor) -> bool:
        """Whether the repository has a blob. Raises StoreError."""

        def use(answer: Answer) -> bool:
            if answer.status == 404:
                return False
            raise_for_status(answer, "a blob")
            return answer.headers.get("content-length", str(descriptor.size)) == str(descriptor.size)

        return self._ask("a blob", "HEAD", f"{self._store.path}/blobs/{descriptor.digest}", use)

    def begin(self, descriptor: Descriptor, mount_from: str | None) -> BlobUpload | None:
        """Start to send a blob; None when the registry took it from its repository ``mount_from``."""
        query = f"?mount={descriptor.digest}&from={quote(mount_from, safe='/')}" if mount_from else ""

        def use(answer: Answer) -> str | None:
            raise_for_status(answer, "an upload")
            if answer.status == 201:
                return None
            return _location(answer)

        location = self._ask("an upload", "POST", f"{self._store.path}/blobs/uploads/{query}", use, body=b"")
        return None if location is None else BlobUpload(self, descriptor, location)

    def put_manifest(self, data: bytes, media_type: str, name: str) -> None:
        """Store a manifest under a tag or its digest; all that it names must be there. Raises StoreError."""

        def use(answer: Answer) -> None:
            raise_for_status(answer, "the manifest")
            found = answer.headers.get("docker-content-digest")
            if found is not None and found != oci.digest_of(data):
                raise DigestMismatch(
                    "the registry stored another manifest", expected=oci.digest_of(data), found=found
                )

        path = f"{self._store.path}/manifests/{name}"
        self._ask("the manifest", "PUT", path, use, body=data, headers={"content-type": media_type})

    def _ask(
        self,
        what: str,
        method: str,
        path: str,
        use: Callable[[Answer], T],
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        deadline = Deadline(self._settings.deadline_s)
        return retried(
            lambda: self.attempt(what, method, path, use, deadline, body=body, headers=headers),
            deadline,
            self._settings.attempts,
        )

    def attempt(
        self,
        what: str,
        method: str,
        path: str,
        use: Callable[[Answer], T],
        deadline: Deadline,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> T:
        """One request to the registry itself; ``path`` may be a whole URL. Raises TryAgain, StoreError."""
        return self._store.ask_one(
            self._store.endpoints.origin, method, path, use, deadline, what, headers or {}, body
        )


class BlobUpload:
    """One blob on its way into a registry. For one thread."""

    def __init__(self, upload: RegistryUpload, descriptor: Descriptor, location: str) -> None:
        self._upload = upload
        self._descriptor = descriptor
        self._location = location
        self._waiting = bytearray()
        self._sent = 0

    def write(self, data: bytes) -> None:
        """Append; raises StoreError."""
        self._waiting += data
        while len(self._waiting) > CHUNK_BYTES:
            self._send(bytes(self._waiting[:CHUNK_BYTES]))
            del self._waiting[:CHUNK_BYTES]

    def finish(self) -> None:
        """Have the registry check and keep it. Raises StoreError."""
        rest = bytes(self._waiting)
        if self._sent and rest:
            self._send(rest)
            rest = b""
        query = "&" if "?" in self._location else "?"
        path = f"{self._location}{query}digest={quote(self._descriptor.digest)}"
        headers = {"content-type": "application/octet-stream"}
        deadline, attempts = self._bounds()

        def attempt() -> None:
            try:
                self._upload.attempt("a blob", "PUT", path, _stored, deadline, body=rest, headers=headers)
            except TryAgain:
                if self._upload.has(self._descriptor):  # only the answer was lost
                    return
                raise

        retried(attempt, deadline, attempts)

    def cancel(self) -> None:
        """Let the registry forget it, if it will."""
        deadline = Deadline(self._upload._settings.stall_s)  # one class in two
        try:
            self._upload.attempt("an upload", "DELETE", self._location, lambda _: None, deadline)
        except (TryAgain, RafsError):
            return  # registries tidy up by themselves, too; what went wrong before is what counts

    def _bounds(self) -> tuple[Deadline, int]:
        settings = self._upload._settings
        return Deadline(settings.deadline_s), settings.attempts

    def _send(self, data: bytes) -> None:
        """Send the next chunk; after a failure, what of it the registry does not have."""
        start = self._sent
        deadline, attempts = self._bounds()

        def attempt() -> None:
            rest = data[self._sent - start :]
            if not rest:
                return
            headers = {
                "content-type": "application/octet-stream",
                "content-range": f"{self._sent}-{self._sent + len(rest) - 1}",
            }
            try:
                self._location = self._upload.attempt(
                    "a blob", "PATCH", self._location, _next_location, deadline, body=rest, headers=headers
                )
            except TryAgain as error:
                self._sent = self._received(deadline, error, start, start + len(data))
                raise
            self._sent += len(rest)

        retried(attempt, deadline, attempts)

    def _received(self, deadline: Deadline, failure: TryAgain, least: int, most: int) -> int:
        """How many bytes the registry has got; raises ``failure`` when it does not say now."""

        def use(answer: Answer) -> int:
            if answer.status in (400, 404, 416):
                raise UploadLost("the registry forgot an upload", where=Where(file=self._descriptor.digest))
            raise_for_status(answer, "an upload")
            self._location = _location(answer, self._location)
            first, _, last = answer.headers.get("range", "").removeprefix("bytes=").partition("-")
            if first != "0" or not last.isdigit():
                return 0
            return int(last) + 1

        try:
            received = self._upload.attempt("an upload", "GET", self._location, use, deadline)
        except TryAgain:
            raise failure from None
        if received == 1 and least == 0:
            received = 0  # some registries have no other way to say nothing: 0-0
        if not least <= received <= most:
            raise UploadLost(
                "the registry lost a part of an upload", expected=f"{least} bytes", found=received
            )
        return received


def _stored(answer: Answer) -> None:
    if answer.status == 400:
        raise StoreError(
            "the registry does not take a blob",
            found=answer.read(4096).decode(errors="replace")[:300],
            where=answer.where,
        )
    raise_for_status(answer, "a blob")


def _next_location(answer: Answer) -> str:
    raise_for_status(answer, "a blob")
    return _location(answer)


def _location(answer: Answer, default: str | None = None) -> str:
    location = answer.headers.get("location")
    if location is None:
        if default is not None:
            return default
        raise StoreError("the registry does not say where to send a blob", where=answer.where)
    return joined(answer.secret_url, location)
