"""The whole error taxonomy, split by who must act; owns the errno each one becomes, never prints or logs."""

from __future__ import annotations

import errno
from dataclasses import dataclass, fields, replace

COPY_AGAIN = "copy the image again from a good source"
"""What to do about stored bytes that are not what they were."""


@dataclass(frozen=True, slots=True)
class Where:
    """Where an error was met; only what is known is set."""

    file: str | None = None
    blob: str | None = None
    chunk: int | None = None
    page: int | None = None
    nid: int | None = None
    offset: int | None = None
    path: str | None = None

    def __str__(self) -> str:
        known = ((field.name, getattr(self, field.name)) for field in fields(self))
        return ", ".join(f"{name} {value}" for name, value in known if value is not None)


class RafsError(Exception):
    """Base of all errors that are somebody's to act on. Mistakes of ours stay assertions.

    ``what`` says what went wrong, ``expected`` and ``found`` the difference, ``where`` the place, ``hint``
    what the reader can do about it. None of them may ever hold key bytes or plaintext of files.
    """

    errno = errno.EIO

    def __init__(
        self,
        what: str,
        *,
        expected: object = None,
        found: object = None,
        where: Where | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.expected = expected
        self.found = found
        self.where = where or Where()
        self.hint = hint

    def at(self, **place: str | int) -> RafsError:
        """Add what a caller knows of the place, without overwriting what is known already; returns self."""
        unknown = {name: value for name, value in place.items() if getattr(self.where, name) is None}
        self.where = replace(self.where, **unknown)  # type: ignore[arg-type]  # names and types are Where's own
        return self

    def copy(self) -> RafsError:
        """Another error that says the same: one raised in several threads would mix up their tracebacks."""
        return type(self)(
            self.what, expected=self.expected, found=self.found, where=self.where, hint=self.hint
        )

    def __str__(self) -> str:
        text = self.what
        if self.expected is not None:
            text += f": expected {self.expected}"
            if self.found is not None:
                text += f", found {self.found}"
        elif self.found is not None:
            text += f": {self.found}"
        if place := str(self.where):
            text += f" ({place})"
        if self.hint:
            text += f"; {self.hint}"
        return text


class FormatError(RafsError):
    """It does not parse, authentic or not: the wrong file, or its builder's fault."""


class UnsupportedVersion(FormatError):
    """A format version, suite, codec or required feature that this release does not know; update rafsfs."""


class LimitExceeded(FormatError):
    """It parses, but asks for more than ``rafsfs.limits`` allows."""


class AuthError(RafsError):
    """Somebody tampered, or the key is wrong. Never retried, never cached."""


class MacMismatch(AuthError):
    """An AEAD tag or HMAC is not the one that the key gives."""


class DigestMismatch(AuthError):
    """Stored bytes are not the ones that were sealed."""


class WrongKey(AuthError):
    """None of the given keys opens the image, or a key opened another image's envelope."""

    errno = errno.EACCES


class NotEncrypted(WrongKey):
    """A key was given, but the image is one that everybody opens: perhaps put in a sealed one's place."""


class BadSignature(AuthError):
    """A signature that the policy requires is missing or does not verify."""


class Rollback(AuthError):
    """A validly sealed image that is older than the caller accepts, expired, or not the pinned one."""


class KeyFileError(RafsError):
    """A key file that cannot be used: unreadable, malformed, or readable by others."""

    errno = errno.EACCES


class KeyFileMissing(KeyFileError):
    """No such key file."""

    errno = errno.ENOENT


class PathNotFound(RafsError):
    """No such path in the image."""

    errno = errno.ENOENT


class StoreError(RafsError):
    """Stored bytes could not be had."""


class ImageNotFound(StoreError):
    """No image folder, or a name that can be none."""

    errno = errno.ENOENT


class TagNotFound(ImageNotFound):
    """Images, but none with such a tag or digest."""


class BlobNotFound(StoreError):
    """A blob that the manifest names is not in the store."""


class StoreUnavailable(StoreError):
    """The store did not answer in time; alone among errors, worth another try."""


class Denied(StoreError):
    """The store refused us."""

    errno = errno.EACCES


class LengthMismatch(StoreError):
    """The store holds fewer or more bytes than the image says."""


class BuildError(RafsError):
    """The source cannot become an image: unreadable, changing, or beyond what the format can say."""


class OptionError(BuildError):
    """What a build was told does not fit together, or is out of bounds; its source does not matter."""


class SourceChanged(BuildError):
    """The source was not what it had been a moment before, or had gone."""


class SourceUnreadable(BuildError):
    """The kernel does not let us read the source, or cannot."""


class MountError(RafsError):
    """The mount point or the kernel will not have us."""


class MountPointBusy(MountError):
    """Something is mounted there already."""


class MountPointNotDirectory(MountError):
    """What is there cannot be mounted on."""


class WouldWait(BaseException):
    """What was asked for is not at hand, and this thread must not wait: ask again on one that may.

    No error, and none to catch on the way: it goes through to whoever hands the work over.
    """
