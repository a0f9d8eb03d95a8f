"""Seals a finished tree into a bootstrap and writes the image's documents; never touches file data."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from rafsfs.build.encode import Encoder
from rafsfs.build.erofs_writer import DeviceInfo, ErofsWriter
from rafsfs.build.layout_writer import LayoutWriter
from rafsfs.build.metadata_pages import compress_pages, pages_digest, seal_pages
from rafsfs.build.options import PAGE_SIZE_DEFAULT, BuildOptions
from rafsfs.build.prefetch import PrefetchPlan, plan_prefetch
from rafsfs.build.program_files import start_ranges
from rafsfs.format import oci
from rafsfs.format.bootstrap import pack_head, pack_page_table, page_table_digest
from rafsfs.format.chunk import Suite
from rafsfs.format.envelope import Envelope
from rafsfs.format.image_config import (
    ImageConfig,
    parse_image_config,
    platform_config,
    sealed_part,
    visible_part,
)
from rafsfs.format.oci import Descriptor, Manifest
from rafsfs.format.prefetch import pack_prefetch_list
from rafsfs.format.superblock import DOMAIN_ID_BYTES, IMAGE_ID_BYTES, BlobEntry, Section, Superblock
from rafsfs.format.trace import TracedRange
from rafsfs.fs.filesystem import FileSystem
from rafsfs.metadata.space import MetadataSpace
from rafsfs.metadata.tree import Tree
from rafsfs.reading.chunkmap import ChunkTable
from rafsfs.reading.engine import Blob, ReadEngine
from rafsfs.reading.page_cache import PageCache
from rafsfs.store.oci_layout import LocalFile
from rafsfs.trust.derive import (
    KEY_BYTES,
    convergent_image_key,
    convergent_key,
    dedup_domain_id,
    derive,
    key_commitment,
    superblock_seal,
)
from rafsfs.trust.signature import sign
from rafsfs.trust.wrapping import wrap
from rafsfs.types import PageNumber

_CACHE_BYTES = 64 << 20  # while the files of a start are looked for: a few of the largest chunks


@dataclass(frozen=True, slots=True)
class FinishedBlob:
    """A blob that the image refers to: its superblock entry, its layer, its sealed chunk table."""

    entry: BlobEntry
    descriptor: Descriptor
    table: bytes = field(repr=False)  # chunk keys are in it


@dataclass(frozen=True, slots=True)
class WrittenImage:
    """What ``write_image`` made."""

    manifest_digest: str
    image_id: bytes
    bootstrap_bytes: int
    prefetch: PrefetchPlan = field(default_factory=PrefetchPlan)


def write_image(
    metadata: ErofsWriter,
    blobs: Sequence[FinishedBlob],
    options: BuildOptions,
    encoder: Encoder,
    layout: LayoutWriter,
    tag: str,
    pool: ThreadPoolExecutor,
    traced: Sequence[TracedRange] = (),
    checkpoints: bytes | None = None,
) -> WrittenImage:
    """Write bootstrap, config and manifest, and move ``tag`` to them.

    Of ``traced`` the image gets its prefetch list, or else of what its config's command begins with;
    ``checkpoints`` are for blobs that are layers, in which nothing is looked for. Raises BuildError,
    LimitExceeded for a trace that asks too much, or OSError.
    """
    erofs_section = metadata.finish(
        [DeviceInfo(blob.entry.blob_id, blob.entry.decoded_blocks) for blob in blobs]
    )
    plan = PrefetchPlan()
    if traced or (options.config is not None and checkpoints is None):
        with ExitStack() as files:
            filesystem = _filesystem(erofs_section, blobs, options.suite, layout, files)
            tables = [blob.chunks for blob in filesystem.engine.blobs]
            plan = plan_prefetch(
                traced or start_ranges(filesystem, _parsed(options.config)), filesystem.tree, tables
            )
    prefetch = pack_prefetch_list(plan.runs)
    written = seal_section(erofs_section, blobs, options, encoder, layout, tag, pool, prefetch, checkpoints)
    return replace(written, prefetch=plan)


def _filesystem(
    erofs_section: bytes,
    blobs: Sequence[FinishedBlob],
    suite: Suite,
    layout: LayoutWriter,
    files: ExitStack,
) -> FileSystem:
    """What the image will be, before its metadata are sealed."""

    def page(number: PageNumber) -> bytes:
        return erofs_section[number * PAGE_SIZE_DEFAULT :][:PAGE_SIZE_DEFAULT]

    space = MetadataSpace(page, PAGE_SIZE_DEFAULT, offset=0, length=len(erofs_section))
    opened = []
    for blob in blobs:
        file = LocalFile(layout.path_of(blob.descriptor), blob.descriptor.digest, blob.descriptor.size)
        files.callback(file.close)
        table = ChunkTable(
            partial(_slice, blob.table),
            0,
            blob.entry.chunk_count,
            suite,
            blob.entry.size,
            blob.entry.decoded_blocks,
            blob_count=len(blobs),
        )
        opened.append(Blob(file, table))
    blocks = tuple(blob.entry.decoded_blocks for blob in blobs)
    return FileSystem(Tree(space, blocks), ReadEngine(opened, suite, PageCache(_CACHE_BYTES)), sum(blocks))


def _parsed(config: Mapping[str, Any] | None) -> ImageConfig:
    return parse_image_config(oci.dump_json(dict(config or {})))


def _slice(data: bytes, offset: int, length: int) -> bytes:
    return data[offset : offset + length]


def seal_section(
    erofs_section: bytes,
    blobs: Sequence[FinishedBlob],
    options: BuildOptions,
    encoder: Encoder,
    layout: LayoutWriter,
    tag: str,
    pool: ThreadPoolExecutor,
    prefetch: bytes = b"",
    checkpoints: bytes | None = None,
) -> WrittenImage:
    """As ``write_image``, for sections that are written already; they are sealed as they are."""
    tables = b"".join(blob.table for blob in blobs)
    config = sealed_part(options.config or platform_config(options.architecture))
    sealed_config = oci.dump_json(config)
    sections = erofs_section, tables, prefetch, sealed_config, checkpoints or b""
    compressed = compress_pages(sections, options.page_size, encoder, pool)
    keys = _ImageKeys.make(options, compressed)
    pages, salt = seal_pages(compressed, encoder, keys.image_key, options.page_size)
    page_table = pack_page_table(pages)
    tables_end = len(erofs_section) + len(tables)
    config_end = tables_end + len(prefetch) + len(sealed_config)
    superblock = Superblock(
        suite=options.suite,
        image_id=keys.image_id,
        name=options.name,
        release=options.release,
        not_after=options.not_after,
        page_size=options.page_size,
        page_count=len(pages),
        page_table_digest=page_table_digest(page_table),
        erofs=Section(0, len(erofs_section)),
        chunk_tables=Section(len(erofs_section), len(tables)),
        prefetch=Section(tables_end, len(prefetch)),
        config=Section(tables_end + len(prefetch), len(sealed_config)),
        blobs=tuple(blob.entry for blob in blobs),
        key_commitment=key_commitment(keys.image_key, keys.image_id) if keys.image_key else b"",
        page_salt=salt,
        dedup_domain=keys.dedup_domain,
        checkpoints=None if checkpoints is None else Section(config_end, len(checkpoints)),
    ).pack()
    head = pack_head(superblock, _envelope(superblock, keys, options).pack(), page_table)
    blob = layout.new_blob()
    for part in (head, *pages):
        blob.write(part)
    bootstrap = layout.name_blob(blob, oci.MEDIA_TYPE_BOOTSTRAP)
    public = options.public_config or not options.suite.encrypts
    visible = visible_part(config, public=public)
    described = Manifest(
        _write_config(layout, visible, [*(blob.descriptor for blob in blobs), bootstrap]),
        tuple(blob.descriptor for blob in blobs),
        bootstrap,
        oci.digest_of(superblock),
        options.subject if public or checkpoints is not None else None,  # its layers are there to see
    )
    manifest = layout.add_blob(oci.dump_json(described.to_json()), oci.MEDIA_TYPE_MANIFEST)
    layout.commit(manifest, tag)
    return WrittenImage(manifest.digest, keys.image_id, bootstrap.size)


@dataclass(frozen=True, slots=True)
class _ImageKeys:
    image_key: bytes = field(repr=False)
    image_id: bytes
    dedup_domain: bytes

    @classmethod
    def make(cls, options: BuildOptions, compressed_pages: Sequence[bytes]) -> _ImageKeys:
        """Random ones, or in the reproducible modes such as follow from the metadata.

        They follow from the *compressed* pages, as chunk keys do from compressed chunks: with another
        compressor the same metadata would otherwise give one page key and nonce to two messages.
        """
        digest = pages_digest(compressed_pages)
        if not options.suite.encrypts:
            return cls(b"", digest[:IMAGE_ID_BYTES], b"")
        if options.dedup_secret is None:
            return cls(os.urandom(KEY_BYTES), os.urandom(IMAGE_ID_BYTES), b"")
        k_conv = convergent_key(options.dedup_secret.raw)
        image_key = convergent_image_key(k_conv, options.suite, digest)
        domain = dedup_domain_id(k_conv)
        assert len(domain) == DOMAIN_ID_BYTES
        return cls(image_key, derive(image_key, "image id", IMAGE_ID_BYTES), domain)


def _envelope(superblock: bytes, keys: _ImageKeys, options: BuildOptions) -> Envelope:
    recipients = tuple(wrap(keys.image_key, keys.image_id, recipient) for recipient in options.recipients)
    signatures = tuple(sign(superblock, signer) for signer in options.signers)
    seal = superblock_seal(keys.image_key, superblock) if keys.image_key else b""
    return Envelope(recipients, signatures, seal)


def _write_config(layout: LayoutWriter, visible: dict[str, Any], layers: list[Descriptor]) -> Descriptor:
    """Write the config that everybody sees."""
    rootfs = {"type": "layers", "diff_ids": [layer.digest for layer in layers]}
    return layout.add_blob(oci.dump_json(visible | {"rootfs": rootfs}), oci.MEDIA_TYPE_CONFIG)
