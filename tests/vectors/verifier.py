#!/usr/bin/env python3
"""A second reader of images, written after doc/FORMAT.md alone; imports nothing of rafsfs and never will.

    verifier.py FOLDER TAG [KEY-FILE]

It reads a whole image into memory, checks every digest, tag and seal on the way, and prints what the tree
holds as JSON. It knows recipients of kind ``symmetric`` and signatures by Ed25519. What is not as the format
says ends in ``Refused``, or in whatever exception a bad byte causes: this reader is for good images.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import hmac
import json
import stat
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgpack
import zstandard
from blake3 import blake3
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.keywrap import aes_key_unwrap

BLOCK = 4096
BLOB_TYPE = "application/vnd.rafsfs.blob.v1"
STOCK_LAYER_TYPES = (
    *(f"application/vnd.oci.image.layer.v1.tar{packing}" for packing in ("", "+gzip", "+zstd")),
    *(f"application/vnd.docker.image.rootfs.diff.tar{packing}" for packing in ("", ".gzip", ".zstd")),
)
BOOTSTRAP_TYPE = "application/vnd.rafsfs.bootstrap.v1"
SUPERBLOCK_ANNOTATION = "vnd.rafsfs.superblock.digest"
TAG_ANNOTATION = "org.opencontainers.image.ref.name"
CIPHERS: dict[int, Callable[[bytes], AESGCM | ChaCha20Poly1305]] = {1: AESGCM, 2: ChaCha20Poly1305}
INTEGRITY_ONLY = 3


class Refused(Exception):
    """The image is not what the format says, or not what was sealed."""


def expect(holds: bool, what: str) -> None:
    if not holds:
        raise Refused(what)


# --- Primitives ---------------------------------------------------------------------------------------------


def digest(data: bytes) -> bytes:
    return blake3(data).digest()


def sha256_name(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def derive(key: bytes, label: str) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt=None, info=b"rafsfs 1 " + label.encode()).derive(key)


def unseal(suite: int, key: bytes, nonce: bytes, aad: bytes, sealed: bytes) -> bytes:
    return sealed if suite == INTEGRITY_ONLY else CIPHERS[suite](key).decrypt(nonce, sealed, aad)


def unzstd(data: bytes, length: int) -> bytes:
    expect(zstandard.get_frame_parameters(data).content_size == length, "zstd content size")
    plain = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    expect(len(plain) == length, "zstd length")
    return plain


def canonical(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: canonical(value[key]) for key in sorted(value)}
    return [canonical(item) for item in value] if isinstance(value, list) else value


def document(data: bytes, *names: str) -> dict[str, Any]:
    value: dict[str, Any] = msgpack.unpackb(data, strict_map_key=True)
    expect(msgpack.packb(canonical(value)) == data, "msgpack is not canonical")
    expect(sorted(value) == sorted(names), "fields of a document")
    return value


# --- The OCI layout -----------------------------------------------------------------------------------------


def blob_file(folder: Path, name: str) -> bytes:
    data = (folder / "blobs" / "sha256" / name.removeprefix("sha256:")).read_bytes()
    expect(sha256_name(data) == name, f"{name} holds other bytes")
    return data


def open_manifest(folder: Path, tag: str) -> tuple[list[bytes], bytes, str, dict[str, Any]]:
    """The data blobs, the bootstrap, the digest that the superblock must have, the visible config."""
    expect(
        json.loads((folder / "oci-layout").read_bytes())["imageLayoutVersion"] == "1.0.0", "layout version"
    )
    index = json.loads((folder / "index.json").read_bytes())
    (name,) = [
        entry["digest"]
        for entry in index["manifests"]
        if entry.get("annotations", {}).get(TAG_ANNOTATION) == tag
    ]
    manifest = json.loads(blob_file(folder, name))
    config = json.loads(blob_file(folder, manifest["config"]["digest"]))
    *layers, last = manifest["layers"]
    expect(last["mediaType"] == BOOTSTRAP_TYPE, "last layer")
    expect(all(layer["mediaType"] in (BLOB_TYPE, *STOCK_LAYER_TYPES) for layer in layers), "layers")
    files = [blob_file(folder, layer["digest"]) for layer in manifest["layers"]]
    expect([len(data) for data in files] == [layer["size"] for layer in manifest["layers"]], "layer sizes")
    return files[:-1], files[-1], manifest["annotations"][SUPERBLOCK_ANNOTATION], config


# --- The bootstrap ------------------------------------------------------------------------------------------


def read_key(path: Path) -> bytes:
    (line,) = [line for line in path.read_text().splitlines() if line and not line.startswith("#")]
    magic, kind, text = line.split()
    expect((magic, kind) == ("rafsfs-key-1", "symmetric"), "key file")
    return base64.b64decode(text, validate=True)


class Bootstrap:
    """The superblock, checked, and the plain metadata space."""

    def __init__(
        self, data: bytes, superblock_name: str, key: bytes | None, verify_key: bytes | None
    ) -> None:
        magic, version, length = struct.unpack_from("<8sII", data)
        expect((magic, version) == (b"RAFSBOOT", 1), "bootstrap's head")
        signed = data[16 : 16 + length]
        expect(sha256_name(signed) == superblock_name, "superblock's digest")
        position = 16 + length
        (length,) = struct.unpack_from("<I", data, position)
        envelope = document(data[position + 4 :][:length], "recipients", "signatures", "seal")
        position += 4 + length
        self.superblock = self._superblock(signed)
        image_key = self._image_key(signed, envelope, key)
        if verify_key is not None:
            (signature,) = [item for item in envelope["signatures"] if item["algorithm"] == "ed25519"]
            message = b"rafsfs superblock signature 1\0" + signed
            Ed25519PublicKey.from_public_bytes(verify_key).verify(signature["signature"], message)
        salt = self.superblock["page_salt"]
        expect(len(salt) == (16 if image_key else 0), "page salt")
        page_key = hmac.digest(derive(image_key, "meta"), salt, "sha256") if image_key else b""
        self.metadata = self._pages(data[position:], page_key)

    @staticmethod
    def _superblock(signed: bytes) -> dict[str, Any]:
        found = document(
            signed,
            *(
                "version",
                "required",
                "suite",
                "image_id",
                "name",
                "release",
                "not_after",
                "page_size",
                "page_count",
            ),
            *("page_table_digest", "sections", "blobs", "key_commitment", "page_salt", "dedup_domain"),
        )
        expect(found["version"] == 1, "superblock's version")
        expect(found["required"] in ([], ["stock-layers"]), "features")
        expect(("checkpoints" in found["sections"]) is bool(found["required"]), "checkpoints")
        expect(found["suite"] in (1, 2, 3), "suite")
        return found

    def _image_key(self, signed: bytes, envelope: dict[str, Any], key: bytes | None) -> bytes:
        if self.superblock["suite"] == INTEGRITY_ONLY:
            expect(envelope["recipients"] == [] and envelope["seal"] == b"", "keys of an image without any")
            expect(self.superblock["key_commitment"] == b"", "commitment of an image without keys")
            return b""
        expect(key is not None, "a key is needed")
        (wrapped,) = [item["wrapped"] for item in envelope["recipients"] if item["kind"] == "symmetric"]
        image_key = aes_key_unwrap(key or b"", wrapped)
        commitment = hmac.digest(derive(image_key, "commit"), self.superblock["image_id"], "sha256")
        expect(hmac.compare_digest(commitment, self.superblock["key_commitment"]), "key commitment")
        seal = hmac.digest(derive(image_key, "superblock"), signed, "sha256")
        expect(hmac.compare_digest(seal, envelope["seal"]), "seal")
        return image_key

    def _pages(self, data: bytes, page_key: bytes) -> bytes:
        size, count, suite = (self.superblock[name] for name in ("page_size", "page_count", "suite"))
        table, encoded = data[: 44 * count], data[44 * count :]
        expect(digest(table) == self.superblock["page_table_digest"], "page table")
        aad = b"RAFSPAGE" + bytes((1, suite, 1, 0)) + struct.pack("<I", size)
        pages = []
        for number, (offset, length, name) in enumerate(struct.iter_unpack("<QI32s", table)):
            page = encoded[offset : offset + length]
            expect(len(page) == length and digest(page) == name, f"page {number}")
            pages.append(unzstd(unseal(suite, page_key, number.to_bytes(12, "little"), aad, page), size))
        return b"".join(pages)

    def section(self, name: str) -> bytes:
        offset, length = self.superblock["sections"][name]
        expect(offset + length <= len(self.metadata), f"section {name}")
        return self.metadata[offset : offset + length]


# --- Blobs --------------------------------------------------------------------------------------------------


def decoded_spaces(bootstrap: Bootstrap, files: list[bytes]) -> list[bytearray]:
    """The decoded space of each blob; what no chunk of the image fills is zeros."""
    tables = bootstrap.section("chunk_tables")
    listed = bootstrap.superblock["blobs"]
    expect(len(listed) == len(files), "number of blobs")
    spaces = []
    for (blob_id, size, count, blocks, toc_digest), data in zip(listed, files, strict=True):
        expect(hashlib.sha256(data).digest() == blob_id, "blob")
        suite, toc, content = bootstrap.superblock["suite"], None, data
        if toc_digest:
            toc = table_of_contents(data, toc_digest)
        else:
            suite, content = INTEGRITY_ONLY, plain_layer(data)
        expect(len(content) == size, "size of a blob")
        records, tables = tables[: 96 * count], tables[96 * count :]
        space = bytearray(blocks * BLOCK)
        end = 0
        for record in struct.iter_unpack("<IIQIBB32s32s10x", records):
            block, plain = decode_chunk(record, content, toc, suite)
            expect(block >= end, "chunks are not in order")
            end = block + -(-len(plain) // BLOCK)
            expect(end <= blocks, "chunk beyond decoded space")
            space[block * BLOCK : block * BLOCK + len(plain)] = plain
        spaces.append(space)
    expect(tables == b"", "chunk tables are longer than their blobs say")
    return spaces


def prefetch_list(bootstrap: Bootstrap) -> list[tuple[int, int, int]]:
    """(blob, first chunk, number of chunks) of each run, in order."""
    runs = list(struct.iter_unpack("<III", bootstrap.section("prefetch")))
    listed = set()
    for blob, first, count in runs:
        expect(blob < len(bootstrap.superblock["blobs"]), "prefetch list names a blob that is not there")
        expect(0 < count <= bootstrap.superblock["blobs"][blob][2] - first, "run of the prefetch list")
        for chunk in range(first, first + count):
            expect((blob, chunk) not in listed, "chunk is listed twice")
            listed.add((blob, chunk))
    return runs


def plain_layer(data: bytes) -> bytes:
    """The tar in a layer of a stock image."""
    if data.startswith(b"\x1f\x8b"):
        return gzip.decompress(data)
    if data.startswith(b"\x28\xb5\x2f\xfd"):
        return zstandard.ZstdDecompressor().stream_reader(data, read_across_frames=True).read()
    return data


def table_of_contents(data: bytes, toc_digest: bytes) -> dict[int, tuple[int, bytes]]:
    """Encoded offset -> (encoded length, chunk id)."""
    magic, version, count, offset, length, name = struct.unpack("<8sIIQQ32s", data[-64:])
    expect((magic, version) == (b"RAFSBLOB", 1), "footer")
    expect(length == 44 * count and offset + length + 64 == len(data), "place of the table of contents")
    toc = data[offset : offset + length]
    expect(digest(toc) == name == toc_digest, "table of contents")
    return {start: (size, chunk_id) for start, size, chunk_id in struct.iter_unpack("<QI32s", toc)}


def decode_chunk(
    record: tuple[Any, ...], data: bytes, toc: dict[int, tuple[int, bytes]] | None, suite: int
) -> tuple[int, bytes]:
    block, length, offset, encoded_length, codec, flags, chunk_id, key = record
    encoded = data[offset : offset + encoded_length]
    expect(len(encoded) == encoded_length and digest(encoded) == chunk_id, "chunk id")
    expect(toc is None or toc[offset] == (encoded_length, chunk_id), "chunk in the table of contents")
    expect(flags == 0 and codec in (0, 1), "flags and codec")
    expect(suite != INTEGRITY_ONLY or key == bytes(32), "key of an unencrypted chunk")
    aad = b"RAFSCHNK" + bytes((1, suite, codec, flags)) + struct.pack("<I", length)
    plain = unseal(suite, key, bytes(12), aad, encoded)
    if codec == 1:
        plain = unzstd(plain, length)
    expect(len(plain) == length, "chunk's length")
    return block, plain


# --- EROFS --------------------------------------------------------------------------------------------------

XATTR_PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}
DIRENT_TYPES = {
    1: stat.S_IFREG,
    2: stat.S_IFDIR,
    3: stat.S_IFCHR,
    4: stat.S_IFBLK,
    5: stat.S_IFIFO,
    6: stat.S_IFSOCK,
    7: stat.S_IFLNK,
}


class Erofs:
    """The tree in the EROFS section (Linux fs/erofs/erofs_fs.h)."""

    def __init__(self, section: bytes, blobs: list[tuple[bytes, bytearray]]) -> None:
        self.section = section
        self.spaces = [space for _, space in blobs]
        magic, _, compat, block_bits = struct.unpack_from("<IIIB", section, 1024)
        expect((magic, compat, block_bits) == (0xE0F5E1E2, 0, 12), "EROFS superblock")
        (self.root,) = struct.unpack_from("<H", section, 1024 + 14)
        (self.inode_count,) = struct.unpack_from("<Q", section, 1024 + 16)
        blocks, meta, self.xattr_block = struct.unpack_from("<III", section, 1024 + 36)
        expect(blocks * BLOCK == len(section) and meta == 0, "EROFS blocks")
        incompat, _, devices, slot = struct.unpack_from("<IHHH", section, 1024 + 80)
        expect(incompat == (4 | 8 if blobs else 4) and devices == len(blobs), "EROFS features and devices")
        for number, (blob_id, space) in enumerate(blobs):
            tag, size = struct.unpack_from("<64sI", section, (slot + number) * 128)
            expect(tag == blob_id.hex().encode() and size * BLOCK == len(space), "device slot")

    def walk(self) -> dict[str, dict[str, Any]]:
        """Path (each byte a character) -> what is there."""
        found: dict[str, dict[str, Any]] = {}
        nids: dict[int, int] = {}
        pending = [(b"", self.root, self.root)]
        while pending:
            path, nid, parent = pending.pop()
            inode = self.inode(nid)
            nids[nid] = nids.get(nid, 0) + 1
            found[path.decode("latin-1")] = {**inode, "nid": nid}
            if stat.S_ISDIR(inode["mode"]):
                expect(nids[nid] == 1, "directory met twice")
                for name, child, kind in self.directory(inode["content"]):
                    if name in (b".", b".."):
                        expect(child == (nid if name == b"." else parent), "dots")
                        continue
                    expect(
                        stat.S_IFMT(self.inode(child)["mode"]) == DIRENT_TYPES[kind], "type in a directory"
                    )
                    pending.append((path + b"/" + name if path else name, child, nid))
        expect(len(nids) == self.inode_count, "number of inodes")
        return {path: self.described(item, nids[item["nid"]]) for path, item in sorted(found.items())}

    def described(self, inode: dict[str, Any], names: int) -> dict[str, Any]:
        is_directory = stat.S_ISDIR(inode["mode"])
        expect(is_directory or inode["nlink"] == names, "link count")
        has_content = stat.S_ISREG(inode["mode"]) or stat.S_ISLNK(inode["mode"])
        content = inode["content"]
        return {
            "mode": inode["mode"],
            "uid": inode["uid"],
            "gid": inode["gid"],
            "mtime_ns": inode["mtime_ns"],
            "size": 0 if is_directory else len(content),
            "device": inode["device"],
            "nlink": 0 if is_directory else names,
            "sha256": hashlib.sha256(content).hexdigest() if has_content else "",
            "xattrs": {
                name.decode("latin-1"): value.hex() for name, value in sorted(inode["xattrs"].items())
            },
        }

    def inode(self, nid: int) -> dict[str, Any]:
        start = nid * 32
        layout, icount, mode, _, size, union, _, uid, gid, seconds, nanoseconds, nlink = struct.unpack_from(
            "<HHHHQIIIIqII", self.section, start
        )
        expect(layout & 1 == 1 and layout >> 1 in (0, 2, 4), "inode's format")
        xattr_bytes = 12 + 4 * (icount - 1) if icount else 0
        body = start + 64 + xattr_bytes
        kind = stat.S_IFMT(mode)
        content, device = b"", [0, 0]
        if kind in (stat.S_IFDIR, stat.S_IFLNK):
            content = self.flat(layout >> 1, size, union, body)
        elif kind == stat.S_IFREG and size:
            expect(layout >> 1 == 4 or (layout >> 1 == 2 and size < BLOCK), "regular file's layout")
            is_inline = layout >> 1 == 2
            content = self.flat(2, size, 0, body) if is_inline else self.file(size, union, body)
        elif kind in (stat.S_IFCHR, stat.S_IFBLK):
            device = [(union & 0xFFF00) >> 8, (union & 0xFF) | ((union >> 12) & 0xFFF00)]
        return {
            "mode": mode,
            "uid": uid,
            "gid": gid,
            "mtime_ns": seconds * 10**9 + nanoseconds,
            "nlink": nlink,
            "device": device,
            "content": content,
            "xattrs": dict(self.xattrs(start + 64, xattr_bytes)),
        }

    def flat(self, layout: int, size: int, block: int, body: int) -> bytes:
        tail = size % BLOCK if layout == 2 else 0
        whole = self.section[block * BLOCK :][: size - tail]
        expect(body // BLOCK == (body + max(tail, 1) - 1) // BLOCK, "inline data crosses a block")
        return whole + self.section[body : body + tail]

    def file(self, size: int, chunk_format: int, body: int) -> bytes:
        expect(chunk_format & ~0x1F == 0x20, "chunk format")
        chunk_bytes = BLOCK << (chunk_format & 0x1F)
        position = -(-body // 8) * 8
        parts = []
        for start in range(0, size, chunk_bytes):
            length = min(chunk_bytes, size - start)
            high, device, block = struct.unpack_from("<HHI", self.section, position)
            position += 8
            if block == 0xFFFF_FFFF:
                parts.append(bytes(length))
                continue
            expect(high == 0 and 1 <= device <= len(self.spaces), "chunk index")
            part = bytes(self.spaces[device - 1][block * BLOCK :][:length])
            expect(len(part) == length, "chunk index beyond its blob")
            parts.append(part)
        return b"".join(parts)

    def directory(self, content: bytes) -> list[tuple[bytes, int, int]]:
        entries = []
        for start in range(0, len(content), BLOCK):
            block = content[start : start + BLOCK]
            (names_start,) = struct.unpack_from("<8xH", block)
            dirents = list(struct.iter_unpack("<QHBx", block[:names_start]))
            ends = [name_offset for _, name_offset, _ in dirents[1:]] + [len(block)]
            for (nid, name_offset, kind), end in zip(dirents, ends, strict=True):
                entries.append((block[name_offset:end].rstrip(b"\0"), nid, kind))
        names = [name for name, _, _ in entries]
        expect(names == sorted(set(names)) and b"." in names and b".." in names, "order of names")
        return entries

    def xattrs(self, start: int, length: int) -> list[tuple[bytes, bytes]]:
        if not length:
            return []
        count = self.section[start + 4]
        shared = struct.unpack_from(f"<{count}I", self.section, start + 12)
        found = [self.xattr(self.xattr_block * BLOCK + 4 * number)[0] for number in shared]
        position, end = start + 12 + 4 * count, start + length
        while position < end:
            pair, used = self.xattr(position)
            found.append(pair)
            position += -(-used // 4) * 4
        expect(position == end and len(dict(found)) == len(found), "attributes")
        return found

    def xattr(self, start: int) -> tuple[tuple[bytes, bytes], int]:
        name_length, index, value_length = struct.unpack_from("<BBH", self.section, start)
        body = self.section[start + 4 : start + 4 + name_length + value_length]
        return (XATTR_PREFIXES[index] + body[:name_length], body[name_length:]), 4 + len(body)


# --- The config ---------------------------------------------------------------------------------------------


def sealed_config(bootstrap: Bootstrap, visible: dict[str, Any]) -> dict[str, Any]:
    """The config; the visible one is all of it but the history, or nothing but the platform."""
    config: dict[str, Any] = json.loads(bootstrap.section("config"))
    expect("rootfs" not in config, "layers in the sealed config")
    shown = {name: value for name, value in visible.items() if name != "rootfs"}
    whole = {name: value for name, value in config.items() if name != "history"}
    least = {name: config[name] for name in ("architecture", "os", "variant") if name in config}
    expect(shown in (whole, {**least, "config": {}}), "visible config")
    return config


# --- All of it ----------------------------------------------------------------------------------------------


def verify(
    folder: Path, tag: str, key_file: Path | None = None, verify_key: bytes | None = None
) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Check a whole image; returns its tree and its config.

    The tree is path -> mode, uid, gid, mtime_ns, size, device, nlink, sha256, xattrs.

    ``verify_key`` is a raw Ed25519 public key that must have signed it.
    """
    files, data, superblock_name, visible = open_manifest(folder, tag)
    bootstrap = Bootstrap(data, superblock_name, read_key(key_file) if key_file else None, verify_key)
    ids = [entry[0] for entry in bootstrap.superblock["blobs"]]
    spaces = decoded_spaces(bootstrap, files)
    tree = Erofs(bootstrap.section("erofs"), list(zip(ids, spaces, strict=True))).walk()
    return tree, sealed_config(bootstrap, visible)


if __name__ == "__main__":
    if not 3 <= len(sys.argv) <= 4:
        sys.exit("usage: verifier.py FOLDER TAG [KEY-FILE]")
    found = verify(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]) if sys.argv[3:] else None)
    json.dump({"tree": found[0], "config": found[1]}, sys.stdout, indent=1)
