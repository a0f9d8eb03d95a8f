"""Images for Python programs: paths in, bytes and attributes out. Plain synchronous code, from any thread."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING

from rafsfs.errors import KeyFileError, RafsError
from rafsfs.fs.attributes import Attributes
from rafsfs.fs.filesystem import FileSystem, walk_tree
from rafsfs.fs.image import OpenImage, open_sealed
from rafsfs.fs.paths import components, trail
from rafsfs.limits import CACHE_BYTES_DEFAULT
from rafsfs.store.reference import ImageReference, parse_reference
from rafsfs.store.settings import StoreSettings
from rafsfs.trust.keys import KeyRing
from rafsfs.trust.opening import TrustPolicy
from rafsfs.trust.signature import SignaturePolicy
from rafsfs.types import Nid

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

_READ_BYTES = 1 << 20  # of one read while a whole file is read: several chunks, few slices


def open_image(
    reference: str,
    *,
    keys: Sequence[str | os.PathLike[str]] = (),
    passphrase: bytes | None = None,
    verify_keys: Sequence[str | os.PathLike[str]] = (),
    min_release: int | None = None,
    digest: str | None = None,
    cache_bytes: int = CACHE_BYTES_DEFAULT,
    stores: StoreSettings | None = None,
) -> Image:
    """Open an image for reading; use it in a ``with``, or ``close()`` it.

    ``reference`` is ``FOLDER[:TAG]``, ``docker://HOST/REPOSITORY[:TAG]``, ``oci-archive:FILE`` or a URL of an
    object store, each also with ``@sha256:...`` in place of the tag (doc/STORES.md); ``keys`` are key or
    identity files, of which one must open it; all
    of ``verify_keys`` (public keys) must have signed it; its release must be at least
    ``min_release``; ``digest`` pins its manifest. ``cache_bytes`` bounds the verified bytes kept in memory,
    ``stores`` says how to reach an image that is not here.

    Raises RafsError: ``AuthError`` when it must not be believed, ``KeyFileError`` for an unusable key file,
    ``StoreError`` when it is not there, ``FormatError`` when it is not an image this release reads.
    """
    request = read_request(
        reference,
        keys=keys,
        passphrase=passphrase,
        verify_keys=verify_keys,
        min_release=min_release,
        digest=digest,
    )
    sealed = open_sealed(
        request.reference, request.keyring, request.policy, cache_bytes=cache_bytes, stores=stores
    )
    if sealed.remote is not None:
        sealed.remote.start([])
    return Image(sealed)


@dataclass(frozen=True, slots=True)
class OpenRequest:
    """Which image is to be opened, with which keys, and what is asked of it."""

    reference: ImageReference
    keyring: KeyRing
    policy: TrustPolicy


def read_request(
    reference: str,
    *,
    keys: Sequence[str | os.PathLike[str]] = (),
    passphrase: bytes | None = None,
    verify_keys: Sequence[str | os.PathLike[str]] = (),
    min_release: int | None = None,
    digest: str | None = None,
) -> OpenRequest:
    """Read the key files that ``open_image`` is given; touches no image. Raises as it does."""
    parsed = parse_reference(reference)
    if digest is not None:
        parsed = parsed.pinned(digest)
    policy = TrustPolicy(signatures=_signature_policy(verify_keys), min_release=min_release)
    return OpenRequest(parsed, KeyRing.load(keys, passphrase), policy)


def _signature_policy(paths: Sequence[str | os.PathLike[str]]) -> SignaturePolicy | None:
    if not paths:
        return None
    keys = KeyRing.load(paths).verification
    if len(keys) != len(paths):
        raise KeyFileError(
            "a key to verify with is not a public signing key", found=", ".join(map(str, paths))
        )
    return SignaturePolicy.all_of(tuple(dict.fromkeys(keys)))


class Image:
    """An open image. Paths are absolute inside it; ``str`` names are decoded as ``os.fsdecode`` does."""

    def __init__(self, sealed: OpenImage) -> None:
        self.sealed = sealed
        self.filesystem: FileSystem = sealed.filesystem

    @property
    def name(self) -> str:
        """The name it was built with."""
        return self.sealed.opened.superblock.name

    def __enter__(self) -> Image:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start_trace(self) -> None:
        """Note from now on what is read, for ``write_trace``; what was noted before is forgotten."""
        from rafsfs.reading.trace import AccessTrace

        self.filesystem.trace = AccessTrace()

    def write_trace(self, path: str | os.PathLike[str]) -> int:
        """Write what was read since ``start_trace`` for ``--prefetch`` of ``rafsfs build`` and ``optimize``.

        Returns the number of ranges. Raises OSError; ValueError when nothing was started.
        """
        from pathlib import Path

        from rafsfs.frontends.trace_file import write_trace

        if self.filesystem.trace is None:
            raise ValueError("start_trace() was not called")
        return write_trace(self.filesystem, Path(path))

    def close(self) -> None:
        """Let go of the image's files."""
        self.sealed.close()

    def resolve(self, path: Path, *, follow_symlinks: bool = True) -> Nid:
        """The inode at ``path``. Symlinks stay inside the image; the last one is followed unless told
        otherwise.

        Raises FileNotFoundError, NotADirectoryError, or OSError ELOOP.
        """
        trail = self._trail(path, follow_symlinks)
        return trail[-1][1] if trail else self.filesystem.root

    def real_path(self, path: Path, *, follow_symlinks: bool = True) -> bytes:
        """The same place without symlinks on the way, relative to the root, which is ``b""``; raises as
        ``resolve`` does.
        """
        return b"/".join(name for name, _ in self._trail(path, follow_symlinks))

    def _trail(self, path: Path, follow_symlinks: bool) -> list[tuple[bytes, Nid]]:
        return trail(self.filesystem, os.fsencode(path), follow_symlinks=follow_symlinks)

    def stat(self, path: Path, *, follow_symlinks: bool = True) -> Attributes:
        """Attributes of the inode at ``path``."""
        return self.filesystem.attributes(self.resolve(path, follow_symlinks=follow_symlinks))

    def exists(self, path: Path) -> bool:
        """True when ``path`` leads to an inode."""
        try:
            self.resolve(path)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def listdir(self, path: Path = "/") -> list[str]:
        """Names in a directory, in byte order, without ``.`` and ``..``."""
        entries = self.filesystem.directory(self.resolve(path))
        return [os.fsdecode(entry.name) for entry in entries if entry.name not in (b".", b"..")]

    def walk(self, path: Path = "/") -> Iterator[tuple[str, Attributes]]:
        """Every (absolute path, attributes) at and under ``path``, depth first in byte order, symlinks not
        followed.
        """
        top = b"/" + b"/".join(components(os.fsencode(path)))
        for found, nid in walk_tree(self.filesystem, self.resolve(path)):
            yield (
                os.fsdecode(top.rstrip(b"/") + b"/" + found if found else top),
                self.filesystem.attributes(nid),
            )

    def readlink(self, path: Path) -> str:
        """Target of the symlink at ``path``."""
        return os.fsdecode(self.filesystem.readlink(self.resolve(path, follow_symlinks=False)))

    def xattrs(self, path: Path) -> dict[str, bytes]:
        """All extended attributes of the inode at ``path``, which is not followed."""
        nid = self.resolve(path, follow_symlinks=False)
        return {
            os.fsdecode(name): value
            for name, value in self.filesystem.tree.xattrs(self.filesystem.tree.inode(nid))
        }

    def read_bytes(self, path: Path) -> bytes:
        """The whole content of a regular file, verified."""
        with self.open(path) as file:
            return file.read()

    def open(self, path: Path) -> io.BufferedReader:
        """A seekable binary file, verified as it is read. Raises IsADirectoryError, or OSError for other
        inodes.
        """
        nid = self.resolve(path)
        self.filesystem.try_read(nid, 0, 0)
        raw = SealedFile(self.filesystem, nid, os.fsdecode(path))
        return io.BufferedReader(raw, _READ_BYTES)


class SealedFile(io.RawIOBase):
    """One regular file of an image as a raw stream. Damage raises the AuthError, with the path in it."""

    def __init__(self, filesystem: FileSystem, nid: Nid, path: str) -> None:
        super().__init__()
        self._filesystem = filesystem
        self._nid = nid
        self._path = path
        self._size = filesystem.attributes(nid).size
        self._position = 0

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def tell(self) -> int:
        """Where the next read starts."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move; ValueError for a position before the start."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError(f"negative seek position {base + offset}")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        """Fill ``buffer`` from the current position; 0 at the end."""
        target = memoryview(buffer).cast("B")
        try:
            parts = self._filesystem.read(self._nid, self._position, len(target))
        except RafsError as error:
            raise error.at(path=self._path) from None
        filled = 0
        for part in parts:
            target[filled : filled + len(part)] = part
            filled += len(part)
        self._position += filled
        return filled
