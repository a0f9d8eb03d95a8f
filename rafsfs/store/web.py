"""Files of a web server: whole small ones, and ranges of large ones; knows nothing of layouts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeVar

from rafsfs.errors import BlobNotFound, LengthMismatch
from rafsfs.format.oci import Descriptor
from rafsfs.limits import OCI_JSON_BYTES_MAX
from rafsfs.store.http import Answer, Http, raise_for_status
from rafsfs.store.ranges import Progress, Take, check_range
from rafsfs.store.retry import Deadline, retried
from rafsfs.types import EncodedBytes

T = TypeVar("T")


class WebFolder:
    """What lies below one URL."""

    def __init__(self, http: Http, url: str) -> None:
        """Asks nobody yet."""
        self._http = http
        self._url = url

    def small(self, path: str) -> bytes:
        """A whole document. Raises BlobNotFound, another StoreError, LengthMismatch when it is long."""
        return self.ask(path, lambda answer: answer.read(OCI_JSON_BYTES_MAX), dict)

    def open(self, path: str, descriptor: Descriptor) -> WebFile:
        """A file to read ranges of; asks nobody yet."""
        return WebFile(self, path, descriptor)

    def ask(self, path: str, use: Callable[[Answer], T], headers: Callable[[], Mapping[str, str]]) -> T:
        """What ``use`` makes of the answer, tried until the deadline. Raises StoreError."""
        settings = self._http.settings
        deadline = Deadline(settings.deadline_s)

        def attempt() -> T:
            url = f"{self._url}/{path}"
            with self._http.request("GET", url, deadline, headers=headers()) as answer:
                if answer.status == 404:
                    raise BlobNotFound(f"{path} is not there", where=answer.where)
                if answer.status == 416:
                    raise LengthMismatch("file ends too early", where=answer.where)
                raise_for_status(answer, path)
                return use(answer)

        return retried(attempt, deadline, settings.attempts)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()


class WebFile:
    """A file of a web server, read by ranges; see ``RemoteFile``."""

    def __init__(self, folder: WebFolder, path: str, descriptor: Descriptor) -> None:
        self.name = descriptor.digest
        self.size = descriptor.size
        self._folder = folder
        self._path = path

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
        fresh = {"cache-control": "no-cache"} if afresh else {}
        self._folder.ask(
            self._path,
            lambda answer: progress.pour(answer, self.size, "a part of a blob"),
            lambda: {"range": progress.header, "accept-encoding": "identity"} | fresh,
        )

    def close(self) -> None:
        """See ``StoredFile.close``; connections belong to the folder."""
