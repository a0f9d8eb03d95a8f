"""Secrets stay where they belong: in no repr, exception, log, argument list, environment or core dump.

What is looked for is each secret as bytes, in hex, in base64 and as Python would print it.
"""

import base64
import gc
import json
import os
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from attacks.conftest import make_tree
from attacks.surgery import opened, put, read_everything, take
from support.mounts import flip, mounting, rafsfs, server_of, wait_for_end

from rafsfs.build.builder import build_image
from rafsfs.build.directory_source import DirectorySource
from rafsfs.build.encode import Encoder
from rafsfs.build.options import BuildOptions
from rafsfs.errors import RafsError
from rafsfs.format.chunk import Suite
from rafsfs.store.reference import Reference
from rafsfs.trust.derive import convergent_key, derive
from rafsfs.trust.keys import (
    EcdsaP256SigningKey,
    Ed25519SigningKey,
    HybridIdentity,
    KeyRing,
    Passphrase,
    SymmetricKey,
    X25519Identity,
    encode_key,
    parse_key,
    save_key,
)

ROOT = Path(__file__).parents[2]
SECRET_KINDS = [SymmetricKey, X25519Identity, HybridIdentity, Ed25519SigningKey, EcdsaP256SigningKey]


def spellings(secret):
    """How a secret could appear; the base64 ones without the last, padded group."""
    whole = len(secret) // 3 * 3
    standard = base64.b64encode(secret[:whole])
    return {
        secret,
        secret.hex().encode(),
        secret.hex().upper().encode(),
        standard,
        base64.urlsafe_b64encode(secret[:whole]),
        repr(secret)[2:-1].encode(),
        str(list(secret))[1:-1].encode(),
    }


def assert_absent(text, secrets, where):
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text
    for name, secret in secrets.items():
        for spelling in spellings(secret):
            assert spelling not in data, f"{name} in {where}"


def our_objects():
    """Every live object of a class of the package."""
    return [found for found in gc.get_objects() if str(type(found).__module__).startswith("rafsfs")]


def assert_no_repr_tells(secrets):
    looked_at = set()
    for found in our_objects():
        looked_at.add(type(found).__name__)
        assert_absent(repr(found), secrets, f"repr of {type(found).__qualname__}")
    return looked_at


@pytest.fixture
def key():
    return SymmetricKey.generate()


@pytest.fixture
def secrets_of(key):
    """All secrets of an open image."""

    def collect(image):
        chunks = image.filesystem.engine.blobs[0].chunks
        return {
            "key file": key.raw,
            "image key": image.opened.image_key,
            "page key": image.opened.page_key,
            "commitment key": derive(image.opened.image_key, "commit"),
            **{f"key of chunk {index}": chunks.record(index).key for index in range(len(chunks))},
        }

    return collect


# --- Objects and exceptions ---------------------------------------------------------------------------------


def test_no_object_of_an_open_image_tells(key, secrets_of, tmp_path):
    options = BuildOptions(recipients=(key,), chunk_size=4096)
    reference = Reference(tmp_path / "layout")
    build_image(DirectorySource(make_tree(tmp_path / "tree", 1)), reference, options)
    with opened(reference, KeyRing(symmetric=(key,))) as image:
        read_everything(image.filesystem)
        looked_at = assert_no_repr_tells(secrets_of(image))
        assert {"OpenImage", "Opened", "KeyRing", "SymmetricKey", "ChunkRecord", "Envelope"} <= looked_at
        record = image.filesystem.engine.blobs[0].chunks.record(0)
        for text in (str(record), f"{record}", f"{record!r}", f"{(record,)}"):
            assert_absent(text, secrets_of(image), "a chunk record as text")


def test_no_object_of_a_build_tells(key, secrets_of, tmp_path, monkeypatch):
    """Looked at in the middle of it, and while the image is written."""
    dedup = SymmetricKey.generate()
    options = BuildOptions(recipients=(key,), dedup_secret=dedup, chunk_size=4096)
    secrets = {"key file": key.raw, "dedup secret": dedup.raw, "K_conv": convergent_key(dedup.raw)}
    encode = Encoder.chunk

    def chunk(self, plain):
        made = encode(self, plain)
        secrets[f"key of chunk {len(secrets)}"] = made.key
        assert_absent(repr(made), secrets, "repr of EncodedChunk")
        return made

    monkeypatch.setattr(Encoder, "chunk", chunk)
    seal_page = Encoder.seal_page
    looked_at = set()

    def seal(self, compressed, page, page_key, page_size):
        secrets["page key"] = page_key
        looked_at.update(assert_no_repr_tells(secrets))
        return seal_page(self, compressed, page, page_key, page_size)

    monkeypatch.setattr(Encoder, "seal_page", seal)
    reference = Reference(tmp_path / "layout")
    build_image(
        DirectorySource(make_tree(tmp_path / "tree", 1)),
        reference,
        options,
        report=lambda _: looked_at.update(assert_no_repr_tells(secrets)),
    )
    assert {"BuildOptions", "Encoder", "_ImageKeys", "FinishedBlob"} <= looked_at
    assert len(secrets) > 6


def test_no_exception_of_a_damaged_image_tells(key, secrets_of, tmp_path):
    """Every kind of refusal, with its causes and its traceback as a log would have them."""
    reference = Reference(tmp_path / "layout")
    options = BuildOptions(recipients=(key,), chunk_size=4096, page_size=4096)
    build_image(DirectorySource(make_tree(tmp_path / "tree", 1)), reference, options)
    ring = KeyRing(symmetric=(key,))
    with opened(reference, ring) as image:
        secrets = secrets_of(image)
    stored = take(reference)
    kinds = set()
    for path in sorted((tmp_path / "layout").rglob("*")):
        if not path.is_file():
            continue
        data = path.read_bytes()
        for offset in range(0, len(data), 7):
            path.write_bytes(data[:offset] + bytes((data[offset] ^ 0x55,)) + data[offset + 1 :])
            try:
                with opened(reference, ring) as image:
                    read_everything(image.filesystem)
            except RafsError as error:
                kinds.add(type(error).__name__)
                text = "".join(traceback.format_exception(error)) + str(error) + repr(vars(error))
                assert_absent(text, secrets, f"a {type(error).__name__}")
        path.write_bytes(data)
    assert {"DigestMismatch", "WrongKey", "MacMismatch", "FormatError"} <= kinds
    assert put(stored, tmp_path / "again")


@pytest.mark.parametrize("kind", SECRET_KINDS, ids=lambda kind: kind.kind)
def test_no_exception_of_a_damaged_key_file_tells(kind):
    """Not even a quarter of it: a line that is broken somewhere else still holds the key."""
    key = kind.generate()
    text = encode_key(key)
    body = max(text.split(), key=len)
    pieces = {f"{start}": body[start : start + 12] for start in range(0, len(body) - 12, 4)}
    for offset in range(len(text)):
        for damaged in (
            text[:offset] + b"\xff" + text[offset + 1 :],
            text[:offset] + b" " + text[offset:],
            text[:offset] + text[offset + 1 :],
            text[:offset],
        ):
            try:
                parse_key(damaged)
            except RafsError as error:
                shown = ("".join(traceback.format_exception(error)) + repr(vars(error))).encode()
                assert not [piece for piece in pieces.values() if piece in shown]


def test_no_key_object_tells():
    for kind in SECRET_KINDS:
        key = kind.generate()
        assert_absent(repr(key) + str(key) + repr((key,)), {kind.kind: key.raw}, "its repr")
    assert b"sesame" not in repr(Passphrase(b"open sesame")).encode()


# --- Processes ----------------------------------------------------------------------------------------------

WATCHED = """
import ctypes, json, os, resource, sys
log, watched = sys.argv[1], sys.argv[2]
prctl = ctypes.CDLL(None).prctl
def hook(event, arguments):
    if event == "open" and str(arguments[0]) == watched:
        note("key", [prctl(3, 0, 0, 0, 0), *resource.getrlimit(resource.RLIMIT_CORE)])
    elif event in ("subprocess.Popen", "os.exec", "os.posix_spawn", "os.putenv", "os.system", "os.spawn"):
        note(event, repr(arguments))
def note(event, what):
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, (json.dumps([event, what]) + "\\n").encode())
    os.close(descriptor)
from rafsfs.cli.main import main
sys.addaudithook(hook)
sys.argv[:3] = ["rafsfs"]
sys.exit(main())
"""


def watched(folder, key_file, *arguments):
    """Run a command; returns what it said, and the starts of programs and openings of the key file."""
    log = folder / f"events-{len(list(folder.iterdir()))}"
    log.write_bytes(b"")
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, log, key_file, *map(str, arguments)],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr, [json.loads(line) for line in log.read_text().splitlines()]


@pytest.fixture
def sealed(key, tmp_path):
    """A key file, a passphrase file, a tree, and an image of it that each of the first two opens."""
    key_file = tmp_path / "a.key"
    save_key(key, key_file)
    tree = make_tree(tmp_path / "tree", 1)
    image = tmp_path / "image"
    return key_file, tree, image


@pytest.mark.integration
def test_no_program_gets_a_key(key, sealed, secrets_of, tmp_path):
    """Arguments, environment and output of all that ``build``, ``check``, ``cat`` and ``mount`` start."""
    key_file, tree, image = sealed
    events, output = [], b""
    folder = tmp_path / "events"
    folder.mkdir()
    (tmp_path / "mnt").mkdir()
    log = tmp_path / "log"
    for arguments in (
        ("build", tree, image, "--key", key_file),
        ("check", image, "--key", key_file),
        ("cat", image, "sub/text", "--key", key_file),
        ("mount", image, tmp_path / "mnt", "--key", key_file, "--log-file", log, "--log-level", "debug"),
        ("umount", tmp_path / "mnt"),
    ):
        said, seen = watched(folder, key_file, *arguments)
        output += said
        events += seen
    wait_for_end(server_of(log))
    with opened(Reference(image), KeyRing(symmetric=(key,))) as open_image:
        secrets = secrets_of(open_image)
    assert any(event == "key" for event, _ in events)
    assert_absent(json.dumps(events), secrets, "the start of a program")
    assert_absent(output + log.read_bytes(), secrets, "output or log")


@pytest.mark.integration
def test_running_mount_shows_no_key_and_leaves_no_core(key, sealed, secrets_of, tmp_path):
    key_file, tree, image = sealed
    assert rafsfs("build", tree, image, "--key", key_file).returncode == 0
    log = tmp_path / "log"
    arguments = (image, tmp_path / "mnt", "--key", key_file, "--log-file", log, "--log-level", "debug")
    with opened(Reference(image), KeyRing(symmetric=(key,))) as open_image:
        secrets = secrets_of(open_image)
    with mounting(*arguments) as directory:
        pid = server_of(log)
        for blob in sorted((image / "blobs/sha256").iterdir()):
            flip(blob, 40)
        with pytest.raises(OSError, match="Input/output"):
            (directory / "large").read_bytes()
        process = Path(f"/proc/{pid}")
        shown = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        assert_absent(shown, secrets, "/proc")
        assert os.fsencode(key_file) in shown, "the name of the key file is no secret"
        limits = (process / "limits").read_text()
        (core,) = [line.split()[4:6] for line in limits.splitlines() if line.startswith("Max core")]
        assert core == ["0", "0"]
        assert key_file not in [descriptor.readlink() for descriptor in (process / "fd").iterdir()]
    wait_for_end(pid)
    assert_absent(log.read_bytes(), secrets, "the log")
    assert b"does not match" in log.read_bytes()


@pytest.mark.integration
@pytest.mark.skipif(sys.platform != "linux", reason="PR_GET_DUMPABLE is Linux' own")
def test_mount_forbids_dumps_before_it_reads_the_key(sealed, tmp_path):
    key_file, tree, image = sealed
    assert rafsfs("build", tree, image, "--key", key_file).returncode == 0
    folder, log = tmp_path / "events", tmp_path / "log"
    folder.mkdir()
    (tmp_path / "mnt").mkdir()
    said, events = watched(
        folder, key_file, "mount", image, tmp_path / "mnt", "--key", key_file, "--log-file", log
    )
    assert said == b""
    watched(folder, key_file, "umount", tmp_path / "mnt")
    wait_for_end(server_of(log))
    assert [what for event, what in events if event == "key"] == [[0, 0, 0]], "not dumpable, no core size"


@pytest.mark.parametrize("suite", [Suite.AES_256_GCM, Suite.CHACHA20_POLY1305])
def test_no_secret_is_stored_plainly(key, secrets_of, suite, tmp_path):
    reference = Reference(tmp_path / "layout")
    options = BuildOptions(recipients=(key,), suite=suite, dedup_secret=SymmetricKey.generate())
    build_image(DirectorySource(make_tree(tmp_path / "tree", 1)), reference, options)
    with opened(reference, KeyRing(symmetric=(key,))) as image:
        secrets = secrets_of(image) | {"K_conv": convergent_key(options.dedup_secret.raw)}
    for path in (tmp_path / "layout").rglob("*"):
        if path.is_file():
            assert_absent(path.read_bytes(), secrets, path.name)
