"""The superblock: the signed bytes that name every other part of an image. Parsing believes nothing yet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from rafsfs.errors import FormatError, LimitExceeded, UnsupportedVersion
from rafsfs.format import canonical
from rafsfs.format.chunk import CHUNK_RECORD, Suite
from rafsfs.format.erofs import BLOCK_SIZE
from rafsfs.format.prefetch import PREFETCH_RUN
from rafsfs.limits import (
    BLOBS_MAX,
    DECODED_BLOCKS_MAX,
    METADATA_BYTES_MAX,
    NAME_CHARS_MAX,
    PAGE_SIZE_MAX,
    PAGE_SIZE_MIN,
    PAGES_MAX,
    PREFETCH_RUNS_MAX,
    REQUIRED_FEATURES_MAX,
    SUPERBLOCK_BYTES_MAX,
)
from rafsfs.types import BlobId

FORMAT_VERSION = 1
IMAGE_ID_BYTES = 16
DOMAIN_ID_BYTES = 16
PAGE_SALT_BYTES = 16
DIGEST_BYTES = 32
UNIX_TIME_MAX = 2**40  # the year 36812: enough for a not-after, small enough for every platform
U64_MAX = 2**64 - 1

STOCK_LAYERS = "stock-layers"
"""Feature of an image some of whose blobs are layers of a stock image, as they are."""

_KNOWN_FEATURES = frozenset({STOCK_LAYERS})


class Section(NamedTuple):
    """A range of the plain metadata space, in bytes."""

    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class BlobEntry:
    """A data blob that the image refers to.

    ``size`` is the whole file in bytes, ``chunk_count`` the records in this image's table for it (fewer than
    the blob holds when only some of a dictionary's chunks are used), ``decoded_blocks`` its decoded space.
    """

    blob_id: BlobId
    size: int
    chunk_count: int
    decoded_blocks: int
    toc_digest: bytes

    @property
    def is_layer(self) -> bool:
        """A layer of a stock image: ``size`` is that of its plain tar, and it has no table of contents."""
        return not self.toc_digest


@dataclass(frozen=True, slots=True)
class Superblock:
    """All that is needed to check every other part; doc/FORMAT.md lists the fields."""

    suite: Suite
    image_id: bytes
    name: str
    release: int
    not_after: int | None
    page_size: int
    page_count: int
    page_table_digest: bytes
    erofs: Section
    chunk_tables: Section
    prefetch: Section
    config: Section
    blobs: tuple[BlobEntry, ...]
    key_commitment: bytes
    page_salt: bytes
    dedup_domain: bytes
    checkpoints: Section | None = None
    """Of images that need STOCK_LAYERS: how to get into the middle of their compressed layers."""

    @property
    def metadata_bytes(self) -> int:
        """Size of the plain metadata space."""
        return self.page_size * self.page_count

    def pack(self) -> bytes:
        """Spell it canonically; these bytes are what is signed and sealed."""
        return canonical.pack(
            {
                "version": FORMAT_VERSION,
                "required": [] if self.checkpoints is None else [STOCK_LAYERS],
                "suite": int(self.suite),
                "image_id": self.image_id,
                "name": self.name,
                "release": self.release,
                "not_after": self.not_after,
                "page_size": self.page_size,
                "page_count": self.page_count,
                "page_table_digest": self.page_table_digest,
                "sections": {
                    "erofs": list(self.erofs),
                    "chunk_tables": list(self.chunk_tables),
                    "prefetch": list(self.prefetch),
                    "config": list(self.config),
                    **({} if self.checkpoints is None else {"checkpoints": list(self.checkpoints)}),
                },
                "blobs": [
                    [blob.blob_id, blob.size, blob.chunk_count, blob.decoded_blocks, blob.toc_digest]
                    for blob in self.blobs
                ],
                "key_commitment": self.key_commitment,
                "page_salt": self.page_salt,
                "dedup_domain": self.dedup_domain,
            }
        )


def parse_superblock(data: bytes) -> Superblock:
    """Read a superblock; raises FormatError, UnsupportedVersion or LimitExceeded, nothing else."""
    fields = canonical.Fields(
        canonical.unpack(data, what="superblock", max_bytes=SUPERBLOCK_BYTES_MAX), "superblock"
    )
    check_version(fields.take("version", int))
    has_layers = STOCK_LAYERS in _checked_features(fields.take("required", list))
    sections = canonical.Fields(fields.take("sections", dict), "superblock's sections")
    superblock = Superblock(
        suite=_suite(fields.take("suite", int)),
        image_id=fields.octets("image_id", IMAGE_ID_BYTES),
        name=_name(fields.take("name", str)),
        release=fields.integer("release", 0, U64_MAX),
        not_after=_not_after(fields),
        page_size=fields.integer("page_size", PAGE_SIZE_MIN, PAGE_SIZE_MAX),
        page_count=fields.integer("page_count", 1, PAGES_MAX),
        page_table_digest=fields.octets("page_table_digest", DIGEST_BYTES),
        erofs=_section(sections, "erofs"),
        chunk_tables=_section(sections, "chunk_tables"),
        prefetch=_section(sections, "prefetch"),
        config=_section(sections, "config"),
        blobs=_blobs(fields.take("blobs", list)),
        key_commitment=fields.octets("key_commitment", 0, DIGEST_BYTES),
        page_salt=fields.octets("page_salt", 0, PAGE_SALT_BYTES),
        dedup_domain=fields.octets("dedup_domain", 0, DOMAIN_ID_BYTES),
        checkpoints=_section(sections, "checkpoints") if has_layers else None,
    )
    sections.end()
    fields.end()
    _check_consistent(superblock)
    return superblock


def check_version(version: int) -> None:
    """Raise UnsupportedVersion unless this release reads format ``version``."""
    if version != FORMAT_VERSION:
        raise UnsupportedVersion(
            "image format version",
            expected=FORMAT_VERSION,
            found=version,
            hint="update rafsfs to read this image",
        )


def _checked_features(features: list[Any]) -> list[Any]:
    if len(features) > REQUIRED_FEATURES_MAX:
        raise LimitExceeded(
            "required features", expected=f"at most {REQUIRED_FEATURES_MAX}", found=len(features)
        )
    for feature in features:
        if not isinstance(feature, str) or len(feature) > NAME_CHARS_MAX or feature not in _KNOWN_FEATURES:
            raise UnsupportedVersion(
                f"image requires feature {str(feature)[:NAME_CHARS_MAX]!r}",
                hint="update rafsfs to read this image",
            )
    if len(set(features)) != len(features):
        raise FormatError("superblock requires a feature twice")
    return features


def _suite(number: int) -> Suite:
    try:
        return Suite(number)
    except ValueError:
        raise UnsupportedVersion("suite", expected="1, 2 or 3", found=number) from None


def _name(name: str) -> str:
    if len(name) > NAME_CHARS_MAX or not name.isprintable():
        raise LimitExceeded(
            "image name", expected=f"at most {NAME_CHARS_MAX} printable characters", found=len(name)
        )
    return name


def _not_after(fields: canonical.Fields) -> int | None:
    value: object = fields.take("not_after", object)
    if value is None:
        return None
    if not isinstance(value, int) or not 0 <= value <= UNIX_TIME_MAX:
        raise LimitExceeded("superblock: 'not_after'", expected=f"0 to {UNIX_TIME_MAX} or nil")
    return value


def _section(sections: canonical.Fields, name: str) -> Section:
    value = sections.take(name, list)
    if len(value) != 2 or not all(type(item) is int and 0 <= item <= U64_MAX for item in value):
        raise FormatError(f"superblock: section {name!r} is not an offset and a length")
    return Section(*value)


def _blobs(items: list[Any]) -> tuple[BlobEntry, ...]:
    if len(items) > BLOBS_MAX:
        raise LimitExceeded(
            "superblock names too many blobs", expected=f"at most {BLOBS_MAX}", found=len(items)
        )
    blobs = tuple(map(_blob, items))
    if len({blob.blob_id for blob in blobs}) != len(blobs):
        raise FormatError("superblock names a blob twice")
    return blobs


def _blob(item: object) -> BlobEntry:
    match item:
        case [bytes(blob_id), int(size), int(chunk_count), int(decoded_blocks), bytes(digest)] if (
            len(blob_id) == DIGEST_BYTES
            and len(digest) in {0, DIGEST_BYTES}
            and 0 <= size <= U64_MAX
            and 0 <= chunk_count <= decoded_blocks <= DECODED_BLOCKS_MAX
        ):
            return BlobEntry(BlobId(blob_id), size, chunk_count, decoded_blocks, digest)
        case _:
            raise FormatError("superblock: a blob entry is malformed")


def _check_consistent(superblock: Superblock) -> None:
    if superblock.page_size & (superblock.page_size - 1):
        raise FormatError("superblock: page size is not a power of two", found=superblock.page_size)
    if superblock.checkpoints is None and any(blob.is_layer for blob in superblock.blobs):
        raise FormatError("superblock: a blob without a digest of its table of contents")
    if superblock.metadata_bytes > METADATA_BYTES_MAX:
        raise LimitExceeded(
            "superblock: metadata",
            expected=f"at most {METADATA_BYTES_MAX} bytes",
            found=superblock.metadata_bytes,
        )
    for name in ("erofs", "chunk_tables", "prefetch", "config", "checkpoints"):
        section: Section = getattr(superblock, name) or Section(0, 0)
        if section.offset + section.length > superblock.metadata_bytes:
            raise FormatError(
                f"superblock: section {name!r} lies outside the metadata",
                expected=f"an end of at most {superblock.metadata_bytes}",
                found=section.offset + section.length,
            )
    if superblock.erofs.offset or not superblock.erofs.length or superblock.erofs.length % BLOCK_SIZE:
        raise FormatError(
            "superblock: the EROFS section is not a whole number of blocks at 0", found=superblock.erofs
        )
    behind = (superblock.chunk_tables, superblock.prefetch, superblock.config, superblock.checkpoints)
    occupied = sorted(section for section in behind if section is not None and section.length)
    end = superblock.erofs.length
    for section in occupied:
        if section.offset < end:  # a tree could show chunk keys as its names
            raise FormatError("superblock: sections overlap", expected=f"from {end} on", found=section)
        end = section.offset + section.length
    records = sum(blob.chunk_count for blob in superblock.blobs)
    if superblock.chunk_tables.length != records * CHUNK_RECORD.size:
        raise FormatError(
            "superblock: length of the chunk tables",
            expected=records * CHUNK_RECORD.size,
            found=superblock.chunk_tables.length,
        )
    _check_prefetch_length(superblock.prefetch.length)
    encrypts = superblock.suite.encrypts
    for what, length, found in (
        ("key commitment", DIGEST_BYTES, superblock.key_commitment),
        ("page salt", PAGE_SALT_BYTES, superblock.page_salt),
    ):
        if len(found) != (length if encrypts else 0):
            raise FormatError(
                f"superblock: length of the {what}", expected=length if encrypts else 0, found=len(found)
            )


def _check_prefetch_length(length: int) -> None:
    if length > PREFETCH_RUNS_MAX * PREFETCH_RUN.size:
        raise LimitExceeded(
            "superblock: prefetch list",
            expected=f"at most {PREFETCH_RUNS_MAX} runs of chunks",
            found=f"{length} bytes",
        )
    if length % PREFETCH_RUN.size:
        raise FormatError(
            "superblock: prefetch list is not a whole number of runs",
            expected=f"a multiple of {PREFETCH_RUN.size} bytes",
            found=length,
        )
