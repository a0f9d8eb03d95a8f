"""Takes stored images apart and puts them together again, as whoever holds the bytes can; seals nothing."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from rafsfs.errors import RafsError, WrongKey
from rafsfs.format import oci
from rafsfs.format.bootstrap import (
    LENGTH,
    PREFIX,
    pack_head,
    page_table_bytes,
    parse_envelope_length,
    parse_prefix,
)
from rafsfs.format.envelope import Envelope, parse_envelope
from rafsfs.format.oci import Descriptor, Manifest
from rafsfs.format.superblock import Superblock, parse_superblock
from rafsfs.fs.checking import check_image
from rafsfs.fs.filesystem import FileSystem
from rafsfs.fs.image import OpenImage, open_sealed
from rafsfs.limits import MIB
from rafsfs.store.oci_layout import blob_path, find_image
from rafsfs.store.reference import Reference
from rafsfs.trust.keys import KeyRing, SymmetricKey
from rafsfs.trust.opening import TrustPolicy

KEY = SymmetricKey(bytes(range(32)))
RING = KeyRing(symmetric=(KEY,))
NO_KEYS = KeyRing()
NO_POLICY = TrustPolicy()
CACHE_BYTES = 8 * MIB
READ_BYTES = 1 << 20


@dataclass(frozen=True)
class Bootstrap:
    """A bootstrap's parts as they are stored."""

    superblock: bytes
    envelope: bytes
    page_table: bytes
    pages: bytes

    @classmethod
    def parse(cls, data: bytes) -> Bootstrap:
        start = PREFIX.size
        superblock = data[start : start + parse_prefix(data[:start])]
        start += len(superblock)
        length = parse_envelope_length(data[start : start + LENGTH.size])
        start += LENGTH.size
        envelope = data[start : start + length]
        start += length
        table_end = start + page_table_bytes(parse_superblock(superblock))
        return cls(superblock, envelope, data[start:table_end], data[table_end:])

    def pack(self) -> bytes:
        return pack_head(self.superblock, self.envelope, self.page_table) + self.pages

    @property
    def head(self) -> Superblock:
        return parse_superblock(self.superblock)

    @property
    def unwrapped(self) -> Envelope:
        return parse_envelope(self.envelope)

    def with_envelope(self, **changes: object) -> Bootstrap:
        return replace(self, envelope=replace(self.unwrapped, **changes).pack())

    def with_superblock(self, **changes: object) -> Bootstrap:
        return replace(self, superblock=replace(self.head, **changes).pack())


@dataclass(frozen=True)
class Layer:
    """A blob's bytes and the digest and size under which they are served, true or not."""

    digest: str
    size: int
    data: bytes

    @classmethod
    def of(cls, data: bytes) -> Layer:
        return cls(oci.digest_of(data), len(data), data)

    def changed(self, data: bytes) -> Layer:
        """Other bytes in the same place: what a host can do between two reads."""
        return replace(self, data=data)


@dataclass(frozen=True)
class Stored:
    """An image as its store has it. ``superblock_digest`` None: that of the superblock there."""

    bootstrap: Bootstrap
    blobs: tuple[Layer, ...]
    config: bytes
    superblock_digest: str | None = None
    bootstrap_bytes: bytes | None = None
    """Set where they are not what the bootstrap's parts give."""


def take(reference: Reference) -> Stored:
    """Read an image's bytes."""
    image = find_image(reference)
    folder = reference.folder

    def stored(descriptor: Descriptor) -> bytes:
        return blob_path(folder, descriptor.digest).read_bytes()

    blobs = tuple(Layer.of(stored(descriptor)) for descriptor in image.manifest.blobs)
    return Stored(Bootstrap.parse(stored(image.manifest.bootstrap)), blobs, stored(image.manifest.config))


def put(stored: Stored, folder: Path, tag: str = "latest") -> Reference:
    """Write a layout in which every digest that somebody without keys can make fits."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)

    def write(layer: Layer) -> None:
        blob_path(folder, layer.digest).write_bytes(layer.data)

    bootstrap = Layer.of(
        stored.bootstrap.pack() if stored.bootstrap_bytes is None else stored.bootstrap_bytes
    )
    config = Layer.of(stored.config)
    manifest = Manifest(
        Descriptor(oci.MEDIA_TYPE_CONFIG, config.digest, config.size),
        tuple(Descriptor(oci.MEDIA_TYPE_BLOB, layer.digest, layer.size) for layer in stored.blobs),
        Descriptor(oci.MEDIA_TYPE_BOOTSTRAP, bootstrap.digest, bootstrap.size),
        stored.superblock_digest or oci.digest_of(stored.bootstrap.superblock),
    )
    document = Layer.of(oci.dump_json(manifest.to_json()))
    for layer in (*stored.blobs, bootstrap, config, document):
        write(layer)
    entry = Descriptor(oci.MEDIA_TYPE_MANIFEST, document.digest, document.size, {oci.ANNOTATION_TAG: tag})
    (folder / "oci-layout").write_bytes(b'{"imageLayoutVersion":"1.0.0"}')
    (folder / "index.json").write_bytes(oci.dump_json({"schemaVersion": 2, "manifests": [entry.to_json()]}))
    return Reference(folder, tag)


def opened(reference: Reference, keyring: KeyRing = RING, policy: TrustPolicy = NO_POLICY) -> OpenImage:
    """Open as a reader does."""
    return open_sealed(reference, keyring, policy, cache_bytes=CACHE_BYTES)


Contents = list[tuple[bytes, tuple[object, ...]]]


def read_everything(filesystem: FileSystem) -> Contents:
    """All that a reader of the mount could see: names, attributes, xattrs, bytes, targets; bounded reads."""
    return list(_everything(filesystem))


def _everything(filesystem: FileSystem) -> Iterator[tuple[bytes, tuple[object, ...]]]:
    yield b"", (filesystem.statfs(),)
    nids = {}
    for path, nid in filesystem.walk():
        nids[path] = nid
        found = filesystem.attributes(nid)
        folder, _, name = path.rpartition(b"/")
        assert not name or filesystem.lookup(nids[folder], name) == nid
        xattrs = tuple((name, filesystem.xattr(nid, name)) for name in filesystem.xattr_names(nid))
        body: object = None
        if stat.S_ISLNK(found.mode):
            body = filesystem.readlink(nid)
        elif stat.S_ISREG(found.mode):
            body = hashlib.sha256(read_file(filesystem, nid, found.size)).hexdigest()
        elif stat.S_ISDIR(found.mode):
            body = tuple(filesystem.directory(nid))
        yield path, (found, xattrs, body)


def read_file(filesystem: FileSystem, nid: int, size: int) -> bytes:
    """A file, in reads of at most 1 MiB, as the kernel makes them."""
    return b"".join(
        bytes(part)
        for offset in range(0, size, READ_BYTES)
        for part in filesystem.read(nid, offset, READ_BYTES)
    )


def read_image(reference: Reference, keyring: KeyRing = RING, policy: TrustPolicy = NO_POLICY) -> Contents:
    """Open and read everything."""
    with opened(reference, keyring, policy) as image:
        return read_everything(image.filesystem)


def check_fails(reference: Reference, keyring: KeyRing = RING) -> bool:
    """Whether the full check, as ``rafsfs check`` does it, finds anything wrong."""
    try:
        find_image(reference)
    except RafsError:
        return True
    try:
        result = check_image(reference, keyring, NO_POLICY, cache_bytes=CACHE_BYTES)
    except WrongKey:  # all else has to be in the result
        return True
    return result.problems.count > 0


def stored_files(folder: Path) -> list[Path]:
    """All files in a layout."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def fails(action, *arguments) -> RafsError | None:
    """The RafsError that the call ends in, if it does; every other exception is a bug and goes on."""
    try:
        action(*arguments)
    except RafsError as error:
        assert str(error)
        return error
    return None
