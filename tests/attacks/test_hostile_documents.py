"""Superblocks, envelopes, OCI documents and names that are made to hurt their parsers (8)."""

import base64
import json
import tracemalloc
from dataclasses import replace

import msgpack
import pytest
from attacks.sealing import ForgedSection, reseal, seal
from attacks.surgery import NO_KEYS, check_fails, fails, put, read_image
from support.images import build

from rafsfs.errors import (
    FormatError,
    ImageNotFound,
    KeyFileError,
    LimitExceeded,
    RafsError,
    UnsupportedVersion,
    WrongKey,
)
from rafsfs.format import oci
from rafsfs.format.chunk import Suite
from rafsfs.format.envelope import Signature
from rafsfs.format.superblock import Section
from rafsfs.limits import BLOBS_MAX, MIB, OCI_JSON_BYTES_MAX, PAGES_MAX, RECIPIENTS_MAX, SIGNATURES_MAX
from rafsfs.store.oci_layout import blob_path, find_image
from rafsfs.store.reference import Reference, parse_reference
from rafsfs.trust.keys import KeyRing, Passphrase, X25519Identity, parse_key
from rafsfs.trust.wrapping import wrap

pytestmark = pytest.mark.timeout(60)

MEMORY_MAX = 96 * MIB
"""A megabyte of msgpack is at most a million empty lists of 56 bytes and their places."""


@pytest.fixture
def honest():
    section = ForgedSection()
    section.directory([], nid=section.root)
    return seal(section.pack())


@pytest.fixture
def bounded():
    tracemalloc.start()
    yield
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < MEMORY_MAX


def fields_of(stored):
    return msgpack.unpackb(stored.bootstrap.superblock)


def packed(fields):
    return msgpack.packb(dict(sorted(fields.items())))


# --- msgpack ------------------------------------------------------------------------------------------------


def length_32(code, length, body=b""):
    return bytes((code,)) + length.to_bytes(4, "big") + body


MONSTERS = {
    "nothing": b"",
    "nil": b"\xc0",
    "a number": b"\x01",
    "a list": b"\x90",
    "never used": b"\xc1",
    "list of 4 billion": length_32(0xDD, 2**32 - 1),
    "map of 4 billion": length_32(0xDF, 2**32 - 1),
    "text of 4 billion": length_32(0xDB, 2**32 - 1),
    "bytes of 4 billion": length_32(0xC6, 2**32 - 1),
    "extension of 4 billion": length_32(0xC9, 2**32 - 1, b"\x01"),
    "lists in lists": b"\x91" * 1000 + b"\xc0",
    "a megabyte of lists in lists": b"\x91" * (MIB - 1) + b"\xc0",
    "maps in maps": b"\x81\xa1a" * 1000 + b"\xc0",
    "lists that promise 4,095": length_32(0xDD, 4095) * 400,
    "a megabyte of empty lists": length_32(0xDD, 4095, (length_32(0xDD, 255, b"\x90" * 255)) * 4000),
    "a timestamp": b"\x81\xa4name\xd6\xff\0\0\0\0",
    "an extension": b"\x81\xa4name\xd4\x01\0",
    "not UTF-8": b"\x81\xa4name\xa1\xff",
    "a surrogate": b"\x81\xa4name\xa3\xed\xa0\x80",
    "a key twice": b"\x82\xa4name\xa0\xa4name\xa0",
    "a key of bytes": b"\x81\xc4\x01a\xc0",
    "a number as key": b"\x81\x01\xc0",
    "nil as key": b"\x81\xc0\xc0",
    "a list as key": b"\x81\x90\xc0",
    "mixed keys": b"\x82\xa1a\xc0\xc4\x01b\xc0",
    "a float": b"\x81\xa7version\xcb\x3f\xf0\0\0\0\0\0\0",
    "not a number": b"\x81\xa7version\xcb\x7f\xf8\0\0\0\0\0\0",
    "true": b"\x81\xa7version\xc3",
    "a long spelling": b"\x81\xa7version\xcc\x01",
    "a long length": b"\xde\x00\x01\xa7version\x01",
}


@pytest.mark.parametrize("monster", MONSTERS)
def test_superblock_that_is_no_superblock(honest, tmp_path, monster, bounded):
    stored = reseal(replace(honest, bootstrap=replace(honest.bootstrap, superblock=MONSTERS[monster])))
    stored = replace(stored, bootstrap_bytes=None)
    with pytest.raises(FormatError):
        read_image(put(stored, tmp_path))


@pytest.mark.parametrize("monster", MONSTERS)
def test_envelope_that_is_no_envelope(honest, tmp_path, monster, bounded):
    stored = replace(honest, bootstrap=replace(honest.bootstrap, envelope=MONSTERS[monster]))
    with pytest.raises(FormatError):
        read_image(put(stored, tmp_path))


@pytest.mark.parametrize("tail", [b"\0", b"\xc0", b"more"])
def test_bytes_behind_the_superblock_or_envelope(honest, tmp_path, tail):
    for part in ("superblock", "envelope"):
        longer = replace(honest.bootstrap, **{part: getattr(honest.bootstrap, part) + tail})
        with pytest.raises(FormatError):
            read_image(put(replace(honest, bootstrap=longer), tmp_path))


BLOB = [bytes(32), 1, 0, 1, bytes(32)]

SUPERBLOCK_LIES = {
    "version": ({"version": 2}, UnsupportedVersion),
    "version 0": ({"version": 0}, UnsupportedVersion),
    "version true": ({"version": True}, FormatError),
    "feature": ({"required": ["warp"]}, UnsupportedVersion),
    "feature that is no text": ({"required": [7]}, UnsupportedVersion),
    "feature that speaks to terminals": ({"required": ["\x1b[2J"]}, UnsupportedVersion),
    "a thousand features": ({"required": ["warp"] * 1000}, LimitExceeded),
    "features in a map": ({"required": {}}, FormatError),
    "suite": ({"suite": 4}, UnsupportedVersion),
    "suite 0": ({"suite": 0}, UnsupportedVersion),
    "name of a megabyte": ({"name": "a" * 100_000}, LimitExceeded),
    "name that speaks to terminals": ({"name": "\x1b[2J"}, LimitExceeded),
    "name with a line break": ({"name": "a\nb"}, LimitExceeded),
    "name that turns the line around": ({"name": "\u202eabc"}, LimitExceeded),
    "release": ({"release": -1}, LimitExceeded),
    "release true": ({"release": True}, FormatError),
    "not after": ({"not_after": 2**60}, LimitExceeded),
    "not after true": ({"not_after": True}, FormatError),
    "page size 0": ({"page_size": 0}, LimitExceeded),
    "page size 1": ({"page_size": 1}, LimitExceeded),
    "page size 4097": ({"page_size": 4097}, FormatError),
    "page size 2 MiB": ({"page_size": 2 * MIB}, LimitExceeded),
    "page count 0": ({"page_count": 0}, LimitExceeded),
    "metadata of 4 TiB": ({"page_size": MIB, "page_count": PAGES_MAX}, LimitExceeded),
    "page count 2^63": ({"page_count": 2**63}, LimitExceeded),
    "no blob entry": ({"blobs": [7]}, FormatError),
    "short blob entry": ({"blobs": [BLOB[:4]]}, FormatError),
    "blob with a short id": ({"blobs": [[bytes(31), *BLOB[1:]]]}, FormatError),
    "blob with a size of true": ({"blobs": [[bytes(32), True, *BLOB[2:]]]}, FormatError),
    "blob with more chunks than blocks": ({"blobs": [[bytes(32), 1, 2, 1, bytes(32)]]}, FormatError),
    "blob with all blocks": ({"blobs": [[bytes(32), 1, 0, 2**32 - 1, bytes(32)]]}, FormatError),
    "a blob twice": ({"blobs": [BLOB, BLOB]}, FormatError),
    "too many blobs": ({"blobs": [BLOB] * (BLOBS_MAX + 1)}, FormatError),
    "image id": ({"image_id": bytes(15)}, FormatError),
    "digest": ({"page_table_digest": b""}, FormatError),
    "no commitment": ({"key_commitment": b""}, FormatError),
    "no sections": ({"sections": {}}, FormatError),
    "unknown field": ({"zz": 1}, FormatError),
}


@pytest.mark.parametrize("lie", SUPERBLOCK_LIES)
def test_superblock_that_lies(honest, tmp_path, lie):
    changes, expected = SUPERBLOCK_LIES[lie]
    lying = packed(fields_of(honest) | changes)
    stored = reseal(replace(honest, bootstrap=replace(honest.bootstrap, superblock=lying)))
    reference = put(stored, tmp_path)
    error = fails(read_image, reference)
    assert isinstance(error, expected), repr(error)
    assert str(error).isprintable()
    assert check_fails(reference)


SECTIONS = {
    "erofs not at 0": {"erofs": Section(4096, 4096)},
    "erofs of 0 bytes": {"erofs": Section(0, 0)},
    "erofs of half a block": {"erofs": Section(0, 2048)},
    "erofs longer than the metadata": {"erofs": Section(0, 1 << 30)},
    "tables at 2^64": {"chunk_tables": Section(2**64 - 1, 0)},
    "tables of another length": {"chunk_tables": Section(0, 96)},
    "prefetch behind the end": {"prefetch": Section(0, 1 << 30)},
    "prefetch in the tree": {"prefetch": Section(0, 1)},
    "config behind the end": {"config": Section(0, 1 << 30)},
    "config in the tree": {"config": Section(0, 1)},
}


@pytest.mark.parametrize("lie", SECTIONS)
def test_sections_that_lie(tmp_path, lie):
    section = ForgedSection()
    section.directory([], nid=section.root)
    with pytest.raises(FormatError, match="section"):
        read_image(put(seal(section.pack(), **SECTIONS[lie]), tmp_path))


# --- Envelopes ----------------------------------------------------------------------------------------------


def test_envelope_with_too_many_of_everything(honest, tmp_path):
    envelope = honest.bootstrap.unwrapped
    (recipient,) = envelope.recipients
    for changes in (
        {"recipients": (recipient,) * (RECIPIENTS_MAX + 1)},
        {"signatures": (Signature("ed25519", bytes(16), bytes(64)),) * (SIGNATURES_MAX + 1)},
        {"recipients": (replace(recipient, wrapped=bytes(5000)),)},
        {"recipients": (replace(recipient, wrapped=b""),)},
        {"recipients": (replace(recipient, salt=bytes(16)),)},
        {"signatures": (Signature("ed25519", bytes(16), bytes(257)),)},
    ):
        bootstrap = honest.bootstrap.with_envelope(**changes)
        with pytest.raises(FormatError):
            read_image(put(replace(honest, bootstrap=bootstrap), tmp_path))


@pytest.mark.parametrize(("count", "log2_n"), [(9, 14), (1, 13), (1, 19), (1, 63)])
def test_envelope_that_asks_for_too_much_scrypt(honest, tmp_path, count, log2_n):
    """The cost is the envelope's to choose, before anything is authentic: refused before it is spent."""
    ring = KeyRing(passphrases=(Passphrase(b"open sesame"),))
    asked = replace(wrap(bytes(32), bytes(16), Passphrase(b"another"), log2_n=14), log2_n=log2_n)
    bootstrap = honest.bootstrap.with_envelope(recipients=(asked,) * count)
    with pytest.raises(LimitExceeded):
        read_image(put(replace(honest, bootstrap=bootstrap), tmp_path), ring)


@pytest.mark.parametrize("point", [bytes(32), b"\1" + bytes(31), b"\xff" * 32], ids=["0", "1", "all ones"])
def test_recipient_with_a_point_of_low_order(honest, tmp_path, point):
    identity = X25519Identity.generate()
    made = wrap(bytes(32), bytes(16), identity.recipient())
    hostile = replace(made, wrapped=point + made.wrapped[32:])
    bootstrap = honest.bootstrap.with_envelope(recipients=(hostile,) * RECIPIENTS_MAX)
    with pytest.raises(WrongKey):
        read_image(put(replace(honest, bootstrap=bootstrap), tmp_path), KeyRing(identities=(identity,)))


def test_kind_that_speaks_to_terminals(honest, tmp_path):
    (recipient,) = honest.bootstrap.unwrapped.recipients
    bootstrap = honest.bootstrap.with_envelope(recipients=(replace(recipient, kind="\x1b[2J\n"),))
    with pytest.raises(WrongKey) as raised:
        read_image(put(replace(honest, bootstrap=bootstrap), tmp_path))
    assert str(raised.value).isprintable()


# --- OCI documents ------------------------------------------------------------------------------------------

DIGEST = "sha256:" + "0" * 64
DESCRIPTOR = {"mediaType": oci.MEDIA_TYPE_MANIFEST, "digest": DIGEST, "size": 1}


def index(*manifests, **fields):
    return json.dumps({"schemaVersion": 2, "manifests": list(manifests)} | fields).encode()


def tagged(**changes):
    return DESCRIPTOR | {"annotations": {oci.ANNOTATION_TAG: "latest"}} | changes


INDEXES = {
    "nothing": b"",
    "not JSON": b"\xff\xfe\x00",
    "a list": b"[]",
    "text": b'"text"',
    "deep": b"[" * 100_000,
    "deep maps": b'{"a":' * 50_000,
    "too long": b" " * (OCI_JSON_BYTES_MAX + 1),
    "a long number": b'{"manifests": ' + b"9" * 10_000 + b"}",
    "infinity": b'{"manifests": Infinity}',
    "UTF-16": index(tagged()).decode().encode("utf-16"),
    "no manifests": b"{}",
    "manifests in a map": index(manifests={}),
    "manifest that is a number": index(7),
    "manifest without digest": index({"mediaType": "a", "size": 1}),
    "path for a digest": index(tagged(digest="sha256:../../../../etc/passwd")),
    "digest that goes on": index(tagged(digest=DIGEST + "/../x")),
    "digest with a line break": index(tagged(digest=DIGEST + "\n")),
    "upper case": index(tagged(digest="sha256:" + "A" * 64)),
    "another algorithm": index(tagged(digest="sha512:" + "0" * 128)),
    "negative size": index(tagged(size=-1)),
    "size of 1.5": index(tagged(size=1.5)),
    "size of true": index(tagged(size=True)),
    "huge size": index(tagged(size=10**4000)),
    "annotation of a number": index(DESCRIPTOR | {"annotations": {oci.ANNOTATION_TAG: 7}}),
    "annotations in a list": index(DESCRIPTOR | {"annotations": [7]}),
    "tag with a surrogate": index(DESCRIPTOR | {"annotations": {oci.ANNOTATION_TAG: "\ud800\x1b[2J"}}),
    "blob that is not there": index(tagged()),
}


@pytest.mark.parametrize("lie", INDEXES)
def test_index_that_lies(honest, tmp_path, lie, bounded):
    reference = put(honest, tmp_path)
    (tmp_path / "index.json").write_bytes(INDEXES[lie])
    error = fails(read_image, reference)
    assert error is not None
    assert str(error).encode("utf-8", "backslashreplace")


def manifest_with(reference, change):
    """Change the manifest's JSON and let the index name it."""
    image = find_image(reference)
    document = json.loads(blob_path(reference.folder, image.manifest_digest).read_bytes())
    change(document)
    data = json.dumps(document).encode()
    blob_path(reference.folder, oci.digest_of(data)).write_bytes(data)
    (reference.folder / "index.json").write_bytes(index(tagged(digest=oci.digest_of(data), size=len(data))))
    return reference


MANIFESTS = {
    "no layers": lambda document: document.pop("layers"),
    "layers empty": lambda document: document.update(layers=[]),
    "layers of numbers": lambda document: document.update(layers=[1, 2]),
    "5,000 layers": lambda document: document.update(layers=document["layers"] * 5000),
    "layer of another type": lambda document: document["layers"][0].update(mediaType="text/plain"),
    "bootstrap twice": lambda document: document["layers"].append(document["layers"][-1]),
    "bootstrap of another size": lambda document: document["layers"][-1].update(size=1),
    "bootstrap of size true": lambda document: document["layers"][-1].update(size=True),
    "path for a digest": lambda document: document["layers"][-1].update(digest="sha256:../index.json"),
    "no annotation": lambda document: document.pop("annotations"),
    "annotation of another": lambda document: document["annotations"].update(
        {oci.ANNOTATION_SUPERBLOCK: DIGEST}
    ),
    "config missing": lambda document: document.pop("config"),
}


@pytest.mark.parametrize(
    "text", [b'{"a": "\\ud800"}', b'{"\\udfff": 1}', b'{"a": ["\xed\xa0\x80"]}', b'{"a": "\xff"}']
)
def test_text_that_cannot_be_written_again_is_not_read(text):
    """Builders and rewrapping write what others wrote, in config, manifest and index."""
    with pytest.raises(FormatError):
        oci.load_json(text, "config")
    assert oci.load_json(b'{"a": "\\ud83d\\ude00"}', "config") == {"a": "\U0001f600"}


@pytest.mark.parametrize("lie", MANIFESTS)
def test_manifest_that_lies(honest, tmp_path, lie, bounded):
    reference = manifest_with(put(honest, tmp_path), MANIFESTS[lie])
    with pytest.raises(RafsError):
        read_image(reference)


# --- Names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "a\0b",
        "a\0b:tag",
        "\ud800",
        "a/\udfff\ud800:tag",
        "x" * 5000,
        "/" * 5000,
        ":",
        "@",
        "",
        "a:" + "b" * 200,
        "a@sha256:" + "0" * 63,
        "a@sha256:" + "G" * 64,
        f"\0@{DIGEST}",
        "oci:",
        "a:b\nc",
        "a:b\x1b[2J",
    ],
)
def test_reference_that_is_none(text, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    error = fails(lambda: read_image(parse_reference(text), NO_KEYS))
    assert error is not None
    assert str(error).isprintable() or len(text) > 1000


# --- Key files ----------------------------------------------------------------------------------------------


def pem(kind, der):
    return b"-----BEGIN %s-----\n%s\n-----END %s-----\n" % (kind, base64.b64encode(der), kind)


def ecx_keys(last, length):
    """PKCS#8 and SubjectPublicKeyInfo of RFC 8410, with a key of any length."""
    algorithm = bytes((0x30, 5, 6, 3, 0x2B, 0x65, last))
    secret = b"\x02\x01\x00" + algorithm + bytes((4, length + 2, 4, length)) + bytes(length)
    public = algorithm + bytes((3, length + 1, 0)) + bytes(length)
    yield pem(b"PRIVATE KEY", bytes((0x30, len(secret))) + secret)
    yield pem(b"PUBLIC KEY", bytes((0x30, len(public))) + public)


@pytest.mark.parametrize("length", [0, 1, 31, 33, 56, 57, 64])
@pytest.mark.parametrize("curve", [0x6E, 0x6F, 0x70, 0x71], ids=["X25519", "X448", "Ed25519", "Ed448"])
def test_pem_key_of_another_curve_or_length(curve, length):
    """The library has an InternalError for some of these, which is no ValueError."""
    for text in ecx_keys(curve, length):
        with pytest.raises(KeyFileError):
            parse_key(text)


def test_pin_that_is_none(tmp_path):
    for digest in ("", "latest", "sha256:0", DIGEST.upper(), DIGEST + "\n", f"{DIGEST}/../x"):
        with pytest.raises(ImageNotFound):
            Reference(tmp_path).pinned(digest)


def test_honest_image_is_honest(honest, tree, tmp_path):
    assert not check_fails(put(honest, tmp_path / "forged"))
    built = build(tree(1), tmp_path / "built", suite=Suite.AES_256_GCM)
    assert not check_fails(built)
