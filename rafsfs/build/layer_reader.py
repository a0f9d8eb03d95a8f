"""One layer of a stock image, read front to back; owns its digests and bounds, never applies it."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO, cast

from rafsfs.build.tar_members import GNU_VOLUME_LABEL, Member, MemberReader
from rafsfs.build.tar_stream import TarStream
from rafsfs.errors import BuildError, DigestMismatch, RafsError
from rafsfs.limits import GIB, LAYER_EXPANSION_MAX, LAYER_PLAIN_BYTES_MAX
from rafsfs.store.base import StoredFile

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class StockLayer:
    """A layer as its image names it. ``digest`` is None where only ``diff_id``, of the plain tar, is known.

    ``open`` gives its stored bytes, whose ``close`` is the caller's to call; it is called for each pass.
    """

    name: str
    digest: str | None
    diff_id: str
    size: int
    open: Callable[[], StoredFile]
    media_type: str = ""


class LayerReader:
    """The members of one layer, each with its number; when all were read, the layer is the one it should be.

    ``stream`` has the data of the member that was given last. Iterating raises BuildError when it is no tar
    or expands beyond bounds, StoreError, and in the end DigestMismatch. ``told`` is called with how many
    stored bytes were read.
    """

    def __init__(self, layer: StockLayer, file: StoredFile, told: Callable[[int], None]) -> None:
        self._layer = layer
        self._stored = _StoredStream(file, told)
        self._plain_digest = hashlib.sha256()
        self._plain_bytes = 0
        self.stream = TarStream(cast(BinaryIO, self._stored), self._observe)

    @property
    def plain_bytes(self) -> int:
        """How long the plain tar is, as far as it was read."""
        return self._plain_bytes

    def _observe(self, data: bytes) -> None:
        self._plain_digest.update(data)
        self._plain_bytes += len(data)
        most = min(LAYER_PLAIN_BYTES_MAX, max(GIB, LAYER_EXPANSION_MAX * self._stored.position))
        if self._plain_bytes > most:
            raise BuildError("a layer expands too far", expected=f"at most {most} bytes")

    def __iter__(self) -> Iterator[tuple[int, Member]]:
        try:
            for number, member in enumerate(MemberReader(self.stream, may_end_early=True)):
                if member.kind != GNU_VOLUME_LABEL:
                    yield number, member
            self._check()
        except RafsError as error:
            raise error.at(file=self._layer.name) from error

    def _check(self) -> None:
        checks = [("layer's plain tar", self._layer.diff_id, self._plain_digest)]
        if self._layer.digest is not None:
            checks.append(("layer", self._layer.digest, self._stored.digest))
        for what, expected, digest in checks:
            if (found := f"sha256:{digest.hexdigest()}") != expected:
                raise DigestMismatch(
                    f"the {what} is not the one that the image names",
                    expected=expected,
                    found=found,
                    hint="fetch the image again, it is damaged or was changed",
                )


class _StoredStream(io.RawIOBase):
    """Stored bytes as a file, hashed on the way."""

    def __init__(self, file: StoredFile, told: Callable[[int], None]) -> None:
        super().__init__()
        self._file = file
        self._told = told
        self.position = 0
        self.digest = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        target = memoryview(buffer).cast("B")
        length = min(len(target), self._file.size - self.position, _READ_BYTES)
        data = self._file.read_range(self.position, length) if length else b""
        target[: len(data)] = data
        self.digest.update(data)
        self.position += len(data)
        self._told(len(data))
        return len(data)
