"""Files in a bucket of S3, Google Cloud Storage or Azure, through obstore; knows nothing of layouts.

obstore finds logins where the clouds' own tools do, and signs requests; each is one attempt, and attempts go
on here until the deadline. Its threads do not survive a fork: who is to fork opens no bucket before.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Final, TypeVar
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import from_url

from rafsfs.errors import BlobNotFound, Denied, LengthMismatch, StoreError, StoreUnavailable, Where
from rafsfs.format.oci import Descriptor
from rafsfs.limits import OCI_JSON_BYTES_MAX
from rafsfs.store.http import is_loopback
from rafsfs.store.ranges import Take, check_range
from rafsfs.store.retry import Deadline, TryAgain, retried
from rafsfs.store.settings import StoreSettings
from rafsfs.types import EncodedBytes

if TYPE_CHECKING:
    from obstore import GetResult
    from obstore.store import ClientConfig

T = TypeVar("T")

_TRY_AGAIN: Final = frozenset((408, 425, 429, 500, 502, 503, 504))  # as of registries
_STATUS: Final = re.compile(r"status code: ([0-9]{3})")
_ENDPOINTS = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT")


class Bucket:
    """What lies below one prefix of a bucket."""

    def __init__(self, url: str, settings: StoreSettings) -> None:
        """Asks nobody yet; raises StoreError when the settings or the environment are no good."""
        self._url = url
        self._settings = settings
        client: ClientConfig = {
            "timeout": timedelta(seconds=settings.deadline_s),
            "read_timeout": timedelta(seconds=settings.stall_s),
            "connect_timeout": timedelta(seconds=settings.stall_s),
            "allow_http": settings.plain_http or _is_local_endpoint(),
            "user_agent": "rafsfs",
        }
        if settings.proxy is not None:
            client["proxy_url"] = settings.proxy
        if settings.ca_file is not None:
            client["root_certificate"] = settings.ca_file.read_bytes()
        try:
            self._store = from_url(
                url,
                client_options=client,
                retry_config={"max_retries": 0},  # it would begin anew where a body breaks off
            )
        except (BaseError, ValueError) as error:
            raise StoreError("the bucket cannot be used", found=_line(error), where=Where(file=url)) from None

    def small(self, path: str) -> bytes:
        """A whole document. Raises BlobNotFound, another StoreError, LengthMismatch when it is long."""

        def attempt(deadline: Deadline) -> bytes:
            data = bytearray()
            for piece in _pieces(obstore.get(self._store, path), deadline):
                data += piece
                if len(data) > OCI_JSON_BYTES_MAX:
                    raise LengthMismatch(
                        f"{path} is too long",
                        expected=f"at most {OCI_JSON_BYTES_MAX} bytes",
                        where=Where(file=self._url),
                    )
            return bytes(data)

        return self._tried(path, attempt)

    def stream_range(self, path: str, offset: int, length: int, take: Take) -> None:
        """Pass on a range piece by piece. Raises BlobNotFound, Denied, LengthMismatch, StoreError."""
        position, end = offset, offset + length

        def attempt(deadline: Deadline) -> None:
            nonlocal position
            for piece in _pieces(
                obstore.get(self._store, path, options={"range": (position, end)}), deadline
            ):
                if position + len(piece) > end:
                    raise LengthMismatch(
                        "a part of a blob comes as another range",
                        expected=f"{end - position} more bytes",
                        found="more",
                        where=Where(file=f"{self._url}/{path}"),
                    )
                position += len(piece)
                take(piece)
            if position < end:
                raise StoreUnavailable("a part of a blob breaks off", expected=f"{end - position} more bytes")

        self._tried(path, attempt)

    def _tried(self, path: str, attempt: Callable[[Deadline], T]) -> T:
        """What an attempt returns, until the deadline."""
        deadline = Deadline(self._settings.deadline_s)

        def told() -> T:
            try:
                with self._told(path):
                    return attempt(deadline)
            except StoreUnavailable as error:
                raise TryAgain(error) from None

        return retried(told, deadline, self._settings.attempts)

    def open(self, path: str, descriptor: Descriptor) -> BucketFile:
        """A file to read ranges of; asks nobody yet."""
        return BucketFile(self, path, descriptor)

    def close(self) -> None:
        """Nothing to let go of."""

    @contextmanager
    def _told(self, path: str) -> Iterator[None]:
        where = Where(file=f"{self._url}/{path}")
        try:
            yield
        except FileNotFoundError:
            raise BlobNotFound(f"{path} is not in the bucket", where=where) from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise Denied("the bucket refuses us", found=_line(error), where=where) from None
        except (BaseError, ValueError, OSError) as error:
            raise _meaning(_line(error), where) from None


class BucketFile:
    """A file of a bucket, read by ranges; see ``RemoteFile``."""

    def __init__(self, bucket: Bucket, path: str, descriptor: Descriptor) -> None:
        self.name = descriptor.digest
        self.size = descriptor.size
        self._bucket = bucket
        self._path = path

    def read_range(self, offset: int, length: int) -> EncodedBytes:
        """See ``StoredFile.read_range``."""
        body = bytearray()
        self.stream_range(offset, length, body.extend)
        return EncodedBytes(bytes(body))

    def stream_range(
        self,
        offset: int,
        length: int,
        take: Take,
        *,
        afresh: bool = False,  # noqa: ARG002  # there is nothing between us and the bucket
    ) -> None:
        """See ``RemoteFile.stream_range``."""
        check_range(self.name, self.size, offset, length)
        if length:
            self._bucket.stream_range(self._path, offset, length, take)

    def close(self) -> None:
        """See ``StoredFile.close``."""


def _pieces(found: GetResult, deadline: Deadline) -> Iterator[bytes]:
    """A body as it comes in; raises StoreUnavailable when it takes too long."""
    for piece in found.stream(min_chunk_size=1):
        if deadline.left_s() <= 0:
            raise StoreUnavailable("the bucket cannot be read", found="it is too slow")
        yield bytes(piece)


def _meaning(line: str, where: Where) -> StoreError:
    """What an error of obstore means, which has its text alone to tell."""
    if "non-partial response" in line:
        return StoreError(
            "the store gives no ranges of files, which reading lazily needs",
            where=where,
            hint="copy the image to a local folder first",
        )
    status = _STATUS.search(line)
    if status is None or int(status[1]) in _TRY_AGAIN:
        return StoreUnavailable("the bucket cannot be read", found=line, where=where)
    if status[1] == "416":
        return LengthMismatch("blob ends too early", where=where)
    return StoreError("the bucket does not give it", found=line, where=where)


def _is_local_endpoint() -> bool:
    named = next((os.environ[name] for name in _ENDPOINTS if name in os.environ), "")
    return is_loopback(urlsplit(named).hostname or "")


def _line(error: Exception) -> str:
    """The first line: what follows are insides of a library."""
    return str(error).partition("\n")[0][:300]
