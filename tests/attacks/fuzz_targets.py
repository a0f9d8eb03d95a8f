"""What tools/fuzz runs: each parser, its seeds, and damage that knows its format; makes no verdict."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import msgpack
from attacks import fuzz_seeds as seeds
from attacks.fuzz_mutation import mutate, mutate_value, number
from attacks.sealing import IMAGE_KEY
from attacks.surgery import KEY, Bootstrap
from blake3 import blake3

from rafsfs.build.source import Hole
from rafsfs.build.tar_source import TarSource
from rafsfs.decode.codec import decompress
from rafsfs.errors import LengthMismatch, RafsError
from rafsfs.format import erofs, oci
from rafsfs.format.blob import FOOTER, parse_footer, parse_toc, toc_digest
from rafsfs.format.bootstrap import PREFIX, page_table_digest
from rafsfs.format.chunk import CHUNK_RECORD, Suite
from rafsfs.format.image_config import parse_image_config
from rafsfs.format.oci import Descriptor, Manifest
from rafsfs.format.record import RecordCodec
from rafsfs.fs.filesystem import FileSystem
from rafsfs.fs.image import _open_bootstrap
from rafsfs.metadata.inode import Extent
from rafsfs.metadata.space import MetadataSpace
from rafsfs.metadata.tree import Tree
from rafsfs.reading.chunkmap import ChunkTable
from rafsfs.reading.engine import Blob, MetadataPages, ReadEngine
from rafsfs.reading.page_cache import PageCache
from rafsfs.store.oci_layout import LayoutImage
from rafsfs.store.reference import parse_reference
from rafsfs.trust.derive import superblock_seal
from rafsfs.trust.keys import KeyRing, parse_key
from rafsfs.trust.opening import TrustPolicy
from rafsfs.trust.signature import SignaturePolicy

PAGE = 4096
NAMES_MAX = 500  # of one tree: enough for every seed, and a bound on what one run costs
POSIX = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL, errno.ENODATA}

Damage = Callable[[random.Random, bytes], bytes]


@dataclass(frozen=True)
class Target:
    """``run`` gives an input to a parser; ``mutate`` damages it in the parser's own terms."""

    name: str
    description: str
    seeds: Callable[[], Iterator[tuple[str, bytes]]]
    mutate: Damage
    run: Callable[[bytes], object]


class MemoryFile:
    """A stored file that is bytes."""

    name = "input"

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.size = len(data)

    def read_range(self, offset: int, length: int) -> bytes:
        if offset + length > self.size:
            raise LengthMismatch("input ends too early", expected=offset + length, found=self.size)
        return self._data[offset : offset + length]

    def close(self) -> None:
        """Nothing to let go of."""


def space_of(data: bytes) -> MetadataSpace:
    """Verified pages that hold ``data``."""
    padded = data + bytes(-len(data) % PAGE)
    return MetadataSpace(
        lambda page: padded[page * PAGE : (page + 1) * PAGE], PAGE, offset=0, length=len(data)
    )


# --- Before anything is authentic ---------------------------------------------------------------------------

KEYS = KeyRing(symmetric=(KEY,), identities=(seeds.IDENTITY,))
POLICIES = (TrustPolicy(), TrustPolicy(SignaturePolicy.all_of((seeds.SIGNER.public(),)), min_release=2))


def run_bootstrap(data: bytes) -> None:
    """Open it as ``open_sealed`` does, under a manifest that names its superblock, and read its pages."""
    length = int.from_bytes(data[12 : PREFIX.size], "little")
    digest = oci.digest_of(data[PREFIX.size : PREFIX.size + length])
    descriptor = Descriptor("", "", 0)
    stored = LayoutImage(Path(), "", Manifest(descriptor, (), descriptor, digest))
    file = MemoryFile(data)
    encrypts = b"key_commitment\xc4\x20" in data
    policy = POLICIES[len(data) % 2]
    opened, start = _open_bootstrap(stored, file, KEYS if encrypts else KeyRing(), policy)
    superblock = opened.superblock
    pages = MetadataPages(
        file, start, opened.page_table, superblock.suite, opened.page_key, PageCache(1 << 20)
    )
    for page in range(min(superblock.page_count, 8)):
        pages.load(page)


def damage_bootstrap(source: random.Random, data: bytes) -> bytes:
    try:
        bootstrap = Bootstrap.parse(data)
        fields = msgpack.unpackb(bootstrap.superblock)
        envelope = msgpack.unpackb(bootstrap.envelope)
    except (RafsError, ValueError, msgpack.UnpackException):
        return data  # the damage that knows no format goes on with it
    part = source.choice(("superblock", "superblock", "envelope", "page_table", "pages"))
    if part == "superblock":
        fields = mutate_value(source, fields)
    elif part == "envelope":
        envelope = mutate_value(source, envelope)
    else:
        changed = mutate(source, getattr(bootstrap, part), [data])
        bootstrap = replace(bootstrap, **{part: changed})
        if part == "page_table" and isinstance(fields, dict):
            fields["page_table_digest"] = page_table_digest(changed)
    superblock = packed(fields)
    if isinstance(envelope, dict) and envelope.get("seal") and source.random() < 0.9:
        envelope["seal"] = superblock_seal(IMAGE_KEY, superblock)
    return replace(bootstrap, superblock=superblock, envelope=packed(envelope)).pack()


def packed(value: object) -> bytes:
    """In canonical form, where there is one."""
    if isinstance(value, dict):
        value = dict(sorted(value.items(), key=lambda item: (not isinstance(item[0], str), str(item[0]))))
    return msgpack.packb(value, unicode_errors="surrogatepass")


def run_blob(data: bytes) -> None:
    footer = parse_footer(data[-FOOTER.size :], len(data))
    parse_toc(data[footer.toc_offset : footer.toc_offset + footer.toc_length], footer)


def damage_blob(source: random.Random, data: bytes) -> bytes:
    if len(data) < FOOTER.size:
        return data
    footer = FOOTER.unpack_from(data, len(data) - FOOTER.size)
    start = min(footer.toc_offset, len(data) - FOOTER.size)
    toc = mutate(source, data[start : len(data) - FOOTER.size], [data])
    if source.random() < 0.7:
        footer = footer._replace(toc_digest=toc_digest(toc))
    if source.random() < 0.5:
        footer = footer._replace(toc_length=len(toc), entry_count=len(toc) // 44)
    return data[:start] + toc + FOOTER.pack(footer)


def damage_json(source: random.Random, data: bytes) -> bytes:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return data
    return json.dumps(mutate_value(source, value), ensure_ascii=source.random() < 0.5).encode(
        "utf-8", "surrogatepass"
    )


def run_index(data: bytes) -> None:
    """A builder writes what it read, so what is accepted must have a spelling."""
    for descriptor in oci.parse_index(data):
        assert oci.dump_json(descriptor.to_json())


def run_manifest(data: bytes) -> None:
    assert oci.dump_json(oci.load_json(data, "config"))
    with suppress(RafsError):
        parse_image_config(data)
    manifest = oci.parse_manifest(data)
    assert oci.parse_manifest(oci.dump_json(manifest.to_json())) == manifest


def run_reference(data: bytes) -> None:
    try:
        text = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        text = os.fsdecode(data)
    reference = parse_reference(text)
    assert b"\0" not in os.fsencode(reference.folder)


def damage_text(source: random.Random, data: bytes) -> bytes:
    text = mutate_value(source, data.decode("utf-8", "replace"))
    return text.encode("utf-8", "surrogatepass") if isinstance(text, str) else data


def run_key(data: bytes) -> None:
    key = parse_key(data)
    assert key.raw.hex() not in repr(key)


def damage_lines(source: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    at = source.randrange(len(lines))
    words = lines[at].split(b" ")
    words[source.randrange(len(words))] = source.choice(words)
    lines[at] = b" ".join(words)
    return b"\n".join(lines)


def run_tar(data: bytes) -> None:
    tar = TarSource(io.BytesIO(data))
    try:
        for entry in islice(tar.entries(), NAMES_MAX):
            if entry.content is None:
                continue
            read = 0
            for piece in islice(entry.content(4096), NAMES_MAX):
                read += piece.length if isinstance(piece, Hole) else len(piece)
            assert read <= entry.size
    finally:
        tar.close()


def damage_tar(source: random.Random, data: bytes) -> bytes:
    """Change a field of a header and let its checksum fit; or move blocks."""
    blocks = [data[start : start + 512] for start in range(0, len(data), 512)]
    at = source.randrange(len(blocks)) if blocks else 0
    if not blocks or len(blocks[at]) < 512:
        return data
    block = bytearray(blocks[at])
    start, length = source.choice(
        (
            (0, 100),
            (100, 8),
            (108, 8),
            (124, 12),
            (124, 12),
            (136, 12),
            (156, 1),
            (157, 100),
            (329, 8),
            (345, 155),
        )
    )
    values = (b"%o" % max(0, number(source)), b"\x80" + source.randbytes(11), b"\xff" * 12, b"../../etc", b"")
    block[start : start + length] = source.choice(values)[:length].ljust(length, b"\0")
    if length == 1:
        block[start] = source.choice(b"01234567gxLKSVD\0")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    blocks[at] = bytes(block)
    if source.random() < 0.2:
        blocks.insert(source.randrange(len(blocks)), source.choice(blocks))
    return b"".join(blocks)


# --- Authentic, but perhaps of a hostile author -------------------------------------------------------------


def run_tree(data: bytes) -> None:
    """Walk it and ask everything of every inode, also where none should be.

    Goes on after an error, and raises the first about what the tree leads to at the end.
    """
    devices = int.from_bytes(data[1024 + 86 :][:2], "little") % 4
    tree = Tree(space_of(data), (2,) * devices)
    filesystem = FileSystem(tree, ReadEngine([], Suite.INTEGRITY_ONLY, PageCache(0)), 0)
    errors: list[RafsError] = []

    def ask(question: Callable[[], object]) -> None:
        try:
            question()
        except RafsError as error:
            errors.append(error)
        except OSError as error:
            if error.errno not in POSIX:
                raise

    nids: list[int] = []
    ask(lambda: nids.extend(nid for _, nid in islice(filesystem.walk(), NAMES_MAX)))
    for nid in nids:
        ask(lambda nid=nid: question_inode(filesystem, nid, ask))
    first = errors[0] if errors else None
    for nid in range(len(data) % 8, len(data) // erofs.NID_SLOT_BYTES + 2, 7):
        ask(lambda nid=nid: question_inode(filesystem, nid, ask))
    if first is not None:
        raise first


def inline_bytes(filesystem: FileSystem, nid: int, offset: int) -> list[memoryview]:
    """What lies behind the inode of a file; of chunks there are none here to read."""
    found = islice(filesystem.extents(nid, offset, 1 << 20), 1)
    return [
        part for extent in found if not isinstance(extent, Extent) for part in filesystem.read_extent(extent)
    ]


def question_inode(filesystem: FileSystem, nid: int, ask: Callable[[Callable[[], object]], None]) -> None:
    found = filesystem.attributes(nid)
    ask(lambda: filesystem.xattr_names(nid))
    ask(lambda: filesystem.xattr(nid, b"user.a"))
    if stat.S_ISDIR(found.mode):
        ask(lambda: list(islice(filesystem.directory(nid), NAMES_MAX)))
        for name in (b"file", b"sub", b"\xff"):
            ask(lambda name=name: filesystem.lookup(nid, name))
    elif stat.S_ISLNK(found.mode):
        ask(lambda: filesystem.readlink(nid))
    elif stat.S_ISREG(found.mode):
        for offset in (0, found.size // 2, max(0, found.size - 1)):
            ask(lambda offset=offset: list(islice(filesystem.extents(nid, offset, 1 << 20), NAMES_MAX)))
            ask(lambda offset=offset: inline_bytes(filesystem, nid, offset))


_TREE_RECORDS: list[tuple[RecordCodec, int, int]] = [
    (erofs.SUPERBLOCK, erofs.SUPERBLOCK_OFFSET, 0),  # at one place
    (erofs.EXTENDED_INODE, 1280, 32),
    (erofs.EXTENDED_INODE, 1280, 32),
    (erofs.DIRENT, 4096, 12),
    (erofs.CHUNK_INDEX, 1280, 8),
    (erofs.XATTR_HEADER, 1280, 4),
    (erofs.XATTR_ENTRY, 1280, 4),
]


def damage_tree(source: random.Random, data: bytes) -> bytes:
    """Change one field of what may be a record of a kind."""
    codec, start, step = source.choice(_TREE_RECORDS)
    places = (len(data) - codec.size - start) // step if step else 1
    if places < 1 or len(data) < start + codec.size:
        return data
    at = start + source.randrange(min(places, source.choice((64, 512, places)))) * step
    record = codec.unpack_from(data, at)
    field = source.choice([name for name in record._fields if isinstance(getattr(record, name), int)])
    for value in (number(source), getattr(record, field) + source.choice((-1, 1))):
        for bits in (64, 32, 16, 8):
            try:
                changed = codec.pack(record._replace(**{field: value % (1 << bits)}))
            except Exception:  # struct.error: the field is narrower
                continue
            return data[:at] + changed + data[at + len(changed) :]
    return data


HEAD_BYTES = 6


def run_chunks(data: bytes) -> None:
    """Read all of a decoded space by its table."""
    head = data.ljust(HEAD_BYTES, b"\0")
    suite = Suite((head[0] - 1) % 3 + 1)
    count, blocks = head[1], int.from_bytes(head[2:HEAD_BYTES], "little")
    table_end = HEAD_BYTES + count * CHUNK_RECORD.size
    blob = data[table_end:]
    table = ChunkTable(space_of(data[HEAD_BYTES:table_end]).read, 0, count, suite, len(blob), blocks)
    engine = ReadEngine([Blob(MemoryFile(blob), table)], suite, PageCache(1 << 20))
    errors: list[RafsError] = []
    for block in {*range(min(blocks, 8)), max(0, blocks - 1), blocks // 2}:
        try:
            assert sum(map(len, engine.read(0, block * 4096, 1))) == 1
        except RafsError as error:
            errors.append(error)
    if errors:
        raise errors[0]


_CHUNK_FIELDS = [
    ("decoded_block", 32),
    ("decoded_length", 32),
    ("encoded_offset", 64),
    ("encoded_length", 32),
]
_CHUNK_FIELDS += [("codec", 1), ("codec", 8), ("flags", 8)]


def damage_chunks(source: random.Random, data: bytes) -> bytes:
    """Change a field of a record, or the blob, and let the chunk ids fit."""
    if len(data) < HEAD_BYTES or not data[1]:
        return data
    table_end = HEAD_BYTES + data[1] * CHUNK_RECORD.size
    if len(data) < table_end:
        return data
    records = list(CHUNK_RECORD.iter_unpack(data[HEAD_BYTES:table_end]))
    blob = data[table_end:]
    if source.random() < 0.5:
        blob = mutate(source, blob, [data])
    else:
        at = source.randrange(len(records))
        field, bits = source.choice(_CHUNK_FIELDS)
        value = source.choice((number(source), getattr(records[at], field) + source.choice((-1, 1))))
        records[at] = records[at]._replace(**{field: value % (1 << bits)})
    for at, record in enumerate(records):
        stored = blob[record.encoded_offset : record.encoded_offset + record.encoded_length]
        records[at] = record._replace(chunk_id=blake3(stored).digest())
    return data[:HEAD_BYTES] + b"".join(map(CHUNK_RECORD.pack, records)) + blob


def run_frame(data: bytes) -> None:
    length = int.from_bytes(data[:4], "little") % (1 << 25)
    assert len(decompress(data[4:], length)) == length


def damage_frame(source: random.Random, data: bytes) -> bytes:
    """Change the frame's header, most of all; it is what the bounds are read from."""
    frame = bytearray(data[4:])
    if len(frame) > 8:
        frame[source.randrange(4, 12) % len(frame)] = source.getrandbits(8)
    return data[:4] + bytes(frame)


TARGETS = {
    target.name: target
    for target in (
        Target(
            "bootstrap",
            "prefix, superblock, envelope, page table and pages",
            seeds.image_seeds,
            damage_bootstrap,
            run_bootstrap,
        ),
        Target("blob", "footer and table of contents", seeds.blob_seeds, damage_blob, run_blob),
        Target("index", "index.json", seeds.index_seeds, damage_json, run_index),
        Target("manifest", "OCI manifest and config", seeds.manifest_seeds, damage_json, run_manifest),
        Target("reference", "names of images", seeds.reference_seeds, damage_text, run_reference),
        Target("key", "key files", seeds.key_seeds, damage_lines, run_key),
        Target("tar", "tar archives to build from", seeds.tar_seeds, damage_tar, run_tar),
        Target("tree", "EROFS: walk, look up, read", seeds.tree_seeds, damage_tree, run_tree),
        Target("chunks", "chunk records and the chunks", seeds.chunk_seeds, damage_chunks, run_chunks),
        Target("zstd", "frames within their promised length", seeds.frame_seeds, damage_frame, run_frame),
    )
}
