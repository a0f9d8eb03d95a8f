"""What a build is told and what it tells; owns no behaviour but checking that the choices fit together."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rafsfs.build.prefetch import PrefetchPlan
from rafsfs.errors import OptionError
from rafsfs.format.chunk import Suite
from rafsfs.format.erofs import BLOCK_SIZE, EXTENDED_INODE
from rafsfs.format.oci import Descriptor
from rafsfs.format.superblock import U64_MAX, UNIX_TIME_MAX
from rafsfs.limits import (
    CHUNK_DECODED_BYTES_MAX,
    KIB,
    NAME_CHARS_MAX,
    PASSPHRASE_RECIPIENTS_MAX,
    RECIPIENTS_MAX,
    SIGNATURES_MAX,
)
from rafsfs.trust.material import Passphrase, RecipientKey, SigningKey, SymmetricKey

CHUNK_SIZE_DEFAULT = 256 * KIB
INLINE_SIZE_DEFAULT = 1 * KIB
INLINE_SIZE_MAX = BLOCK_SIZE - EXTENDED_INODE.size  # both lie in one block
PAGE_SIZE_DEFAULT = 64 * KIB
ZSTD_LEVEL_DEFAULT = 3
ZSTD_LEVELS = range(1, 23)
_ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "arm64": "arm64",
}  # uname -m -> GOARCH, as OCI wants it


@dataclass(frozen=True, slots=True)
class BuildOptions:
    """Everything but the source and the target.

    ``recipients`` can open the image; ``dedup_secret`` makes chunk keys convergent; ``zstd_level`` None
    stores data uncompressed; files of at most ``inline_size`` bytes become part of the metadata;
    ``not_after`` and ``source_date_epoch`` are Unix seconds. ``config`` is an OCI
    image config to seal (None: one that says nothing but the ``architecture``); ``public_config`` lets
    whoever stores the image read it, and see that it was made of ``subject``. Raises OptionError when they do
    not fit.
    """

    recipients: tuple[SymmetricKey | RecipientKey | Passphrase, ...] = ()
    signers: tuple[SigningKey, ...] = ()
    suite: Suite = Suite.AES_256_GCM
    dedup_secret: SymmetricKey | None = None
    zstd_level: int | None = ZSTD_LEVEL_DEFAULT
    chunk_size: int = CHUNK_SIZE_DEFAULT
    inline_size: int = INLINE_SIZE_DEFAULT
    page_size: int = PAGE_SIZE_DEFAULT
    name: str = ""
    release: int = 0
    not_after: int | None = None
    source_date_epoch: int | None = None
    config: Mapping[str, Any] | None = field(default=None, repr=False)
    public_config: bool = False
    subject: Descriptor | None = None
    architecture: str = field(
        default_factory=lambda: _ARCHITECTURES.get(platform.machine(), platform.machine())
    )

    def __post_init__(self) -> None:
        if self.suite.encrypts and not self.recipients:
            raise OptionError(
                "nobody could open the image",
                hint="give --key FILE (see `rafsfs keys new`), or --unencrypted",
            )
        if not self.suite.encrypts and (self.recipients or self.dedup_secret):
            raise OptionError(
                "an unencrypted image has no keys",
                hint="leave out --key and --dedup-secret, or --unencrypted",
            )
        power_of_two = self.chunk_size > 0 and not self.chunk_size & (self.chunk_size - 1)
        if not power_of_two or not BLOCK_SIZE <= self.chunk_size <= CHUNK_DECODED_BYTES_MAX:
            raise OptionError(
                "chunk size",
                expected=f"a power of two from {BLOCK_SIZE} to {CHUNK_DECODED_BYTES_MAX}",
                found=self.chunk_size,
            )
        if not 0 <= self.inline_size <= INLINE_SIZE_MAX:
            raise OptionError(
                "size of inline files", expected=f"0 to {INLINE_SIZE_MAX}", found=self.inline_size
            )
        if self.zstd_level is not None and self.zstd_level not in ZSTD_LEVELS:
            raise OptionError("zstd level", expected="1 to 22", found=self.zstd_level)
        self._check_bounds_of_readers()

    def _check_bounds_of_readers(self) -> None:
        """Refuse what would become an image that nobody reads; later, hours of work would be lost."""
        if len(self.name) > NAME_CHARS_MAX or not self.name.isprintable():
            raise OptionError(
                "image name", expected=f"at most {NAME_CHARS_MAX} printable characters", found=repr(self.name)
            )
        passphrases = sum(isinstance(recipient, Passphrase) for recipient in self.recipients)
        for what, most, found in (
            ("release", U64_MAX, self.release),
            ("not-after in Unix seconds", UNIX_TIME_MAX, self.not_after or 0),
            ("number of recipients", RECIPIENTS_MAX, len(self.recipients)),
            ("number of passphrases", PASSPHRASE_RECIPIENTS_MAX, passphrases),
            ("number of signatures", SIGNATURES_MAX, len(self.signers)),
        ):
            if not 0 <= found <= most:
                raise OptionError(what, expected=f"0 to {most}", found=found)


@dataclass(frozen=True, slots=True)
class BuildSummary:
    """What a build did; all sizes in bytes.

    ``bytes_in`` are the sizes of all regular files, of which ``bytes_holes`` were zeros and
    ``bytes_deduplicated`` were stored already; ``bytes_stored`` is what the image's own files occupy.
    """

    manifest_digest: str
    image_id: str
    inodes: int
    files: int
    directories: int
    bytes_in: int
    bytes_holes: int
    bytes_deduplicated: int
    bytes_stored: int
    metadata_bytes: int
    chunks: int
    prefetch: PrefetchPlan
    seconds: float

    @property
    def bytes_data(self) -> int:
        """Plain bytes that are no holes: what took time."""
        return self.bytes_in - self.bytes_holes

    @property
    def bytes_unique(self) -> int:
        """Plain bytes that had to be stored."""
        return self.bytes_in - self.bytes_holes - self.bytes_deduplicated
