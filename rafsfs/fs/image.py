"""Opens a stored image in the order of trust and wires the rooms together; the only place that knows them
all.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from rafsfs.errors import FormatError, LimitExceeded, RafsError
from rafsfs.format import oci
from rafsfs.format.bootstrap import LENGTH, PREFIX, page_table_bytes, parse_envelope_length, parse_prefix
from rafsfs.format.checkpoints import CHECKPOINTS, parse_checkpoints
from rafsfs.format.chunk import CHUNK_RECORD, Suite
from rafsfs.format.erofs import BLOCK_SIZE
from rafsfs.format.image_config import ImageConfig, parse_image_config
from rafsfs.format.oci import Descriptor
from rafsfs.format.prefetch import PrefetchRun, parse_prefetch_list
from rafsfs.format.superblock import Superblock
from rafsfs.fs.filesystem import FileSystem
from rafsfs.fs.remote import RemoteImage
from rafsfs.limits import CACHE_BYTES_DEFAULT, OCI_JSON_BYTES_MAX
from rafsfs.metadata.space import MetadataSpace
from rafsfs.metadata.tree import Tree
from rafsfs.reading.chunkmap import ChunkTable
from rafsfs.reading.engine import Blob, MetadataPages, ReadEngine
from rafsfs.reading.page_cache import PageCache
from rafsfs.store.base import StoredFile, StoredImage
from rafsfs.store.reference import ImageReference
from rafsfs.store.settings import StoreSettings
from rafsfs.store.stores import find_stored
from rafsfs.trust.keys import KeyRing
from rafsfs.trust.opening import Opened, Opening, TrustPolicy
from rafsfs.types import blob_digest


@dataclass(frozen=True)
class OpenImage:
    """An image that may be believed, ready to be read. Close it (or leave its ``with``) to let go of its
    files.
    """

    stored: StoredImage
    opened: Opened
    metadata: MetadataPages
    filesystem: FileSystem
    resources: ExitStack
    remote: RemoteImage | None = None
    """How it is fetched, when it is far away."""

    def config(self) -> ImageConfig:
        """What containers of the image are started with, out of its sealed metadata.

        Raises FormatError or LimitExceeded when it is none, or what reading metadata raises.
        """
        superblock = self.opened.superblock
        offset, length = superblock.config
        if length > OCI_JSON_BYTES_MAX:
            raise LimitExceeded("image config", expected=f"at most {OCI_JSON_BYTES_MAX} bytes", found=length)
        space = MetadataSpace(self.metadata.load, superblock.page_size, offset=offset, length=length)
        return parse_image_config(space.read(0, length))

    def prefetch_runs(self) -> list[PrefetchRun]:
        """The chunks that readers will want, in their order; raises FormatError, AuthError or StoreError."""
        superblock = self.opened.superblock
        section = superblock.prefetch
        space = MetadataSpace(
            self.metadata.load, superblock.page_size, offset=section.offset, length=section.length
        )
        if not section.length:
            return []
        return parse_prefetch_list(
            space.read(0, section.length), [blob.chunk_count for blob in superblock.blobs]
        )

    def close(self) -> None:
        """Close the image's files; reads still under way may fail."""
        self.resources.close()

    def __enter__(self) -> OpenImage:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Head:
    """The plain parts of a bootstrap before its page table, as they are stored; not believed yet.

    ``end`` is where the page table starts, in bytes from the start of the file.
    """

    superblock: bytes
    envelope: bytes
    end: int


def read_head(file: StoredFile, superblock_digest: str | None) -> Head:
    """Read superblock and envelope of the bootstrap ``file``, of which nothing is known for None.

    Raises DigestMismatch when the superblock is not the one that was named, else FormatError or StoreError.
    """
    position = PREFIX.size
    superblock = file.read_range(position, parse_prefix(file.read_range(0, min(PREFIX.size, file.size))))
    if superblock_digest is not None:
        # a superblock of another length would have us read something else as an envelope
        oci.check_digest(superblock, superblock_digest, "superblock")
    position += len(superblock)
    envelope_length = parse_envelope_length(file.read_range(position, LENGTH.size))
    position += LENGTH.size
    return Head(superblock, file.read_range(position, envelope_length), position + envelope_length)


OpenBlob = Callable[[StoredImage, Descriptor], StoredFile]


def open_stored(stored: StoredImage, descriptor: Descriptor) -> StoredFile:
    """Open a data blob; raises StoreError."""
    return stored.open(descriptor)


def open_sealed(
    reference: ImageReference,
    keyring: KeyRing,
    policy: TrustPolicy,
    *,
    cache_bytes: int = CACHE_BYTES_DEFAULT,
    open_blob: OpenBlob = open_stored,
    stores: StoreSettings | None = None,
) -> OpenImage:
    """Open an image; costs the same for a thousand files and for a million.

    ``open_blob`` opens the data blobs; one that puts up with missing ones lets the rest be read. ``stores``
    says how to reach an image that is not here.
    Raises ImageNotFound or another StoreError, FormatError, or the AuthError of the first rule that fails.
    """
    stored = find_stored(reference, stores)
    with ExitStack() as stack:
        stack.callback(stored.store.close)
        far = RemoteImage(stores or StoreSettings())
        bootstrap = far.bootstrap(stored.open(stored.manifest.bootstrap))
        stack.callback(bootstrap.close)
        try:
            opened, pages_start = far.opened(partial(_open_bootstrap, stored, bootstrap, keyring, policy))
        except RafsError as error:
            raise error.at(file=str(reference)) from None
        superblock = opened.superblock
        cache = PageCache(cache_bytes)
        pages = MetadataPages(
            bootstrap, pages_start, opened.page_table, superblock.suite, opened.page_key, cache
        )
        far.use_pages(opened.page_table, pages_start)
        blobs = _open_blobs(stored, opened, pages, stack, open_blob, far)
        engine = ReadEngine(blobs, superblock.suite, cache)
        space = MetadataSpace(pages.load, superblock.page_size, offset=0, length=superblock.erofs.length)
        blob_blocks = tuple(blob.decoded_blocks for blob in superblock.blobs)
        blocks = space.length // BLOCK_SIZE + sum(blob_blocks)
        filesystem = FileSystem(Tree(space, blob_blocks), engine, blocks)
        remote = far if far.files else None
        if remote is not None:
            stack.callback(remote.stop)
        engine.fetch_state = None if remote is None else remote.state
        return OpenImage(stored, opened, pages, filesystem, stack.pop_all(), remote)


def _open_bootstrap(
    stored: StoredImage, file: StoredFile, keyring: KeyRing, policy: TrustPolicy
) -> tuple[Opened, int]:
    """Drive the opening; returns it and where the encoded pages start."""
    opening = Opening(policy, keyring, superblock_digest=stored.manifest.superblock_digest, now_s=time.time())
    head = read_head(file, stored.manifest.superblock_digest)
    superblock = opening.superblock(head.superblock)
    opening.envelope(head.envelope)
    table_length = page_table_bytes(superblock)
    opened = opening.page_table(file.read_range(head.end, table_length))
    return opened, head.end + table_length


def _open_blobs(
    stored: StoredImage,
    opened: Opened,
    pages: MetadataPages,
    stack: ExitStack,
    open_blob: OpenBlob,
    far: RemoteImage,
) -> list[Blob]:
    superblock = opened.superblock
    descriptors = stored.manifest.blobs
    # The size of a layer as it is stored is not sealed: what is not in it cannot be read.
    sealed = [(blob_digest(blob.blob_id), None if blob.is_layer else blob.size) for blob in superblock.blobs]
    listed = [
        (descriptor.digest, descriptor.size if descriptor.media_type == oci.MEDIA_TYPE_BLOB else None)
        for descriptor in descriptors
    ]
    if sealed != listed:
        raise FormatError(
            "manifest's layers are not the blobs that the image names",
            expected=f"{len(sealed)} sealed blobs",
            found=f"{len(listed)} layers, or others",
        ).at(file=stored.manifest_digest)
    section = superblock.chunk_tables
    tables = MetadataSpace(pages.load, superblock.page_size, offset=section.offset, length=section.length)
    blobs = []
    position = 0
    for number, (blob, descriptor) in enumerate(zip(superblock.blobs, descriptors, strict=True)):
        file = open_blob(stored, descriptor)
        stack.callback(file.close)
        table = ChunkTable(
            tables.read,
            position,
            blob.chunk_count,
            Suite.INTEGRITY_ONLY if blob.is_layer else superblock.suite,
            blob.size,
            blob.decoded_blocks,
            blob_count=len(descriptors),
        )
        if blob.is_layer:
            checkpoints = partial(_checkpoints, superblock, pages, number)
            blobs.append(Blob(far.layer(file, blob.size, checkpoints, table), table))
        else:
            blobs.append(Blob(far.blob(file, table), table))
        position += blob.chunk_count * CHUNK_RECORD.size
    return blobs


def _checkpoints(
    superblock: Superblock, pages: MetadataPages, number: int, offset: int, length: int
) -> bytes:
    """A part of what the sealed metadata hold for getting into the middle of one layer, as far as it goes."""
    section = superblock.checkpoints
    assert section is not None
    space = MetadataSpace(pages.load, superblock.page_size, offset=section.offset, length=section.length)
    place = parse_checkpoints(space.read(0, len(superblock.blobs) * CHECKPOINTS.size))[number]
    return space.read(place.offset + offset, max(0, min(length, place.length - offset)))
