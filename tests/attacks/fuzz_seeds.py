"""Makes the seeds of tests/corpus: small, honest input of every kind, for ``tools/fuzz --renew-corpus``."""

from __future__ import annotations

import base64
import gzip
import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zstandard
from attacks.conftest import make_tree
from attacks.sealing import (
    BLOCK,
    IMAGE_KEY,
    ForgedSection,
    compressed,
    directory_block,
    plain_blob,
    seal,
)
from attacks.surgery import NO_KEYS, opened
from support.images import build

from rafsfs.format import erofs
from rafsfs.format.chunk import CHUNK_RECORD, Suite
from rafsfs.format.erofs import FileType
from rafsfs.metadata.space import MetadataSpace
from rafsfs.store.oci_layout import blob_path, find_image
from rafsfs.store.reference import Reference
from rafsfs.trust.keys import (
    EcdsaP256SigningKey,
    Ed25519SigningKey,
    HybridIdentity,
    SymmetricKey,
    X25519Identity,
    encode_key,
)
from rafsfs.trust.signature import sign
from rafsfs.trust.wrapping import wrap

Seeds = Iterator[tuple[str, bytes]]

IDENTITY = X25519Identity(bytes(range(1, 33)))
SIGNER = Ed25519SigningKey(bytes(range(33, 65)))


def small_section() -> bytes:
    """A tree with files in a blob and behind an inode, a hole, a link, attributes, a device, a directory."""
    section = ForgedSection(blocks=4, devices=[2])
    attribute = erofs.XATTR_ENTRY.pack(erofs.XattrEntry(1, 1, 3)) + b"aval"
    shared = section.block(erofs.XATTR_ENTRY.pack(erofs.XattrEntry(2, 4, 2)) + b"shva")
    area = erofs.XATTR_HEADER.pack(erofs.XattrHeader(0, 1)) + bytes(4) + attribute
    icount = (len(area) - erofs.XATTR_HEADER.size) // 4 + 1
    inline = erofs.inode_format(erofs.DataLayout.FLAT_INLINE)
    file = section.file(2 * BLOCK - 7, [(1, 0), (1, 1)])
    hole = section.file(BLOCK + 1, [(0, erofs.NULL_BLOCK), (1, 1)])
    tiny = section.inode(stat.S_IFREG | 0o644, format=inline, size=4, behind=b"tiny")
    link = section.inode(stat.S_IFLNK | 0o777, format=inline, size=7, behind=b"../file")
    tagged = section.inode(stat.S_IFREG | 0o600, xattr_icount=icount, behind=area)
    device = section.inode(stat.S_IFCHR | 0o600, union=0x0103)
    below = section.directory([(b"link", link, FileType.SYMLINK), (b"null", device, FileType.CHARACTER)])
    entries = [(b"file", file, FileType.REGULAR), (b"hole", hole, FileType.REGULAR)]
    entries += [(b"sub", below, FileType.DIRECTORY), (b"tagged", tagged, FileType.REGULAR)]
    entries += [(b"tiny", tiny, FileType.REGULAR)]
    section.directory(entries, nid=section.root)
    return section.pack(xattr_blkaddr=shared)


def image_seeds() -> Seeds:
    """Whole bootstraps, for a key, an identity, signed, in each suite."""
    section = small_section()
    for suite in Suite:
        blob = plain_blob(suite, b"file" * 2048)
        stored = seal(section, [blob], suite=suite, page_size=BLOCK, name="seed", release=3)
        bootstrap = stored.bootstrap
        if suite.encrypts:
            envelope = bootstrap.unwrapped
            recipients = (wrap(IMAGE_KEY, bytes(16), IDENTITY.recipient()), *envelope.recipients)
            bootstrap = bootstrap.with_envelope(
                recipients=recipients, signatures=(sign(bootstrap.superblock, SIGNER),)
            )
        yield f"{suite.name.lower()}", bootstrap.pack()


def blob_seeds() -> Seeds:
    yield "one", plain_blob(Suite.INTEGRITY_ONLY, b"file" * 2048).data
    yield "three", plain_blob(Suite.INTEGRITY_ONLY, b"a" * 5000, b"b", bytes(4096)).data
    yield "none", plain_blob(Suite.INTEGRITY_ONLY).data


@contextmanager
def _built() -> Iterator[Reference]:
    options = {"suite": Suite.INTEGRITY_ONLY, "page_size": 4096, "chunk_size": 4096}
    with tempfile.TemporaryDirectory() as name:
        yield build(make_tree(Path(name) / "tree", 1), Path(name) / "layout", **options)


def index_seeds() -> Seeds:
    with _built() as reference:
        yield "built", (reference.folder / "index.json").read_bytes()
    yield "plain", b'{"manifests":[{"mediaType":"a","digest":"sha256:' + b"0" * 64 + b'","size":1}]}'


def manifest_seeds() -> Seeds:
    with _built() as reference:
        image = find_image(reference)
        yield "manifest", blob_path(reference.folder, image.manifest_digest).read_bytes()
        yield "config", blob_path(reference.folder, image.manifest.config.digest).read_bytes()


def tree_seeds() -> Seeds:
    yield "forged", small_section()
    with _built() as reference, opened(reference, NO_KEYS) as image:
        superblock = image.opened.superblock
        space = MetadataSpace(
            image.metadata.load, superblock.page_size, offset=0, length=superblock.erofs.length
        )
        yield "built", space.read(0, space.length)
    section = ForgedSection(blocks=4)
    file = section.inode(stat.S_IFREG)
    blocks = b"".join(
        directory_block([(b"%d-%03d" % (block, name), file, FileType.REGULAR) for name in range(20)])
        for block in range(3)
    )
    union = section.block(blocks)
    section.inode(stat.S_IFDIR, nid=section.root, size=len(blocks), union=union)
    yield "blocks", section.pack()


def chunk_seeds() -> Seeds:
    """Suite u8, records u8, decoded blocks u32; the table; the blob."""
    for suite in Suite:
        blob = plain_blob(suite, b"a" * 9000, bytes(range(256)) * 16, b"c")
        head = bytes((suite, len(blob.records))) + blob.decoded_blocks.to_bytes(4, "little")
        yield suite.name.lower(), head + b"".join(map(CHUNK_RECORD.pack, blob.records)) + blob.data


def frame_seeds() -> Seeds:
    """Decoded length u32; the frame."""
    for name, plain in (("zeros", bytes(5000)), ("text", b"some text, " * 90), ("noise", os.urandom(300))):
        for level in (1, 19):
            yield f"{name}-{level}", len(plain).to_bytes(4, "little") + compressed(plain, level=level)


def reference_seeds() -> Seeds:
    digest = "sha256:" + "0123456789abcdef" * 4
    texts = ("image", "/images/tree:v2", "oci:dir/image:1.0_a-b", f"image@{digest}", "a:b/c", "./x:latest")
    for number, text in enumerate(texts):
        yield str(number), text.encode()


def key_seeds() -> Seeds:
    """Of throw-away keys that open nothing."""
    ecdsa = EcdsaP256SigningKey.generate()
    hybrid = HybridIdentity.generate()
    keys = {
        "symmetric": SymmetricKey.generate(),
        "identity": IDENTITY,
        "recipient": IDENTITY.recipient(),
        "hybrid": hybrid,
        "hybrid-recipient": hybrid.recipient(),
        "ed25519": SIGNER,
        "ed25519-public": SIGNER.public(),
        "ecdsa": ecdsa,
        "ecdsa-public": ecdsa.public(),
    }
    for name, key in keys.items():
        yield name, encode_key(key)
    body = encode_key(SIGNER).splitlines()[1]
    x448 = base64.b64encode(base64.b64decode(body).replace(b"\x2b\x65\x70", b"\x2b\x65\x6f"))
    yield "x448-too-short", encode_key(SIGNER).replace(body, x448)


def _tar(form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, kind, extra in (
            ("dir", tarfile.DIRTYPE, {"mode": 0o755}),
            ("dir/file", tarfile.REGTYPE, {"size": 700}),
            ("dir/link", tarfile.SYMTYPE, {"linkname": "file"}),
            ("dir/hard", tarfile.LNKTYPE, {"linkname": "dir/file"}),
            ("null", tarfile.CHRTYPE, {"devmajor": 1, "devminor": 3}),
            ("long" * 40, tarfile.REGTYPE, {"size": 3}),
        ):
            member = tarfile.TarInfo(name)
            member.type = kind
            for field, value in extra.items():
                setattr(member, field, value)
            if form == tarfile.PAX_FORMAT and kind == tarfile.REGTYPE:
                member.pax_headers = {"SCHILY.xattr.user.a": "b", "mtime": "12.5"}
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return buffer.getvalue()


def _sparse_tar() -> bytes:
    """GNU's sparse format 1.0, as ``tar --sparse --format=posix`` writes it: the map leads the data."""
    buffer = io.BytesIO()
    content = b"1\n4096\n5\n".ljust(512, b"\0") + b"data!"
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        member = tarfile.TarInfo("GNUSparseFile.0/sparse")
        member.size = len(content)
        member.pax_headers = {
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "sparse",
            "GNU.sparse.realsize": "8192",
        }
        archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def tar_seeds() -> Seeds:
    for name, form in (
        ("pax", tarfile.PAX_FORMAT),
        ("gnu", tarfile.GNU_FORMAT),
        ("ustar", tarfile.USTAR_FORMAT),
    ):
        try:
            plain = _tar(form).rstrip(b"\0") + bytes(1024 + 512)
        except ValueError:  # a name that is too long for ustar
            continue
        yield name, plain[: len(plain) // 512 * 512]
    yield "sparse", _sparse_tar()[:4096]
    yield "gzip", gzip.compress(_tar(tarfile.GNU_FORMAT), mtime=0)
    yield "zstd", zstandard.ZstdCompressor().compress(_tar(tarfile.GNU_FORMAT))
