"""Small images to attack: two trees of the same shape, in every suite, sealed once for each test file."""

import os
import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from attacks.surgery import KEY, Contents, Stored, read_image, take
from support.images import build

from rafsfs.format.chunk import Suite
from rafsfs.store.reference import Reference
from rafsfs.trust.keys import Ed25519SigningKey, KeyRing

ENCRYPTING = [Suite.AES_256_GCM, Suite.CHACHA20_POLY1305]
MTIME_NS = 1_700_000_000_123_456_789
SIGNER = Ed25519SigningKey(bytes(range(64, 96)))


@dataclass(frozen=True)
class Target:
    """An image, all of its bytes, and all that an honest reader sees in it."""

    reference: Reference
    stored: Stored
    contents: Contents
    keyring: KeyRing


def keyring_for(suite: Suite) -> KeyRing:
    """An unencrypted image is read without keys; with one it is refused."""
    return KeyRing(symmetric=(KEY,)) if suite.encrypts else KeyRing()


def make_tree(folder: Path, seed: int) -> Path:
    """Several chunks and pages, all of one length; every kind of structure that an attacker could change."""
    noise = random.Random(seed)
    (folder / "sub").mkdir(parents=True)
    (folder / "large").write_bytes(b"".join(noise.randbytes(32) * 128 for _ in range(3)))
    (folder / "sub/small").write_bytes(noise.randbytes(64))
    (folder / "sub/text").write_bytes(b"text %d " % seed * 20)
    (folder / "sub/link").symlink_to(f"../large{seed}")
    os.link(folder / "sub/text", folder / "text")
    os.setxattr(folder / "sub/text", "user.seed", b"%d" % seed)
    for path in [*sorted(folder.rglob("*")), folder]:
        os.utime(path, ns=(MTIME_NS, MTIME_NS), follow_symlinks=False)
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """``tree(seed)``: a folder; another seed gives other bytes of the same sizes."""
    made = {}

    def make(seed: int) -> Path:
        if seed not in made:
            made[seed] = make_tree(tmp_path_factory.mktemp("tree") / "root", seed)
        return made[seed]

    return make


@pytest.fixture(scope="module")
def target(tree, tmp_path_factory):
    """``target(suite, seed=1, **options)``: an image of the tree, with pages and chunks of 4 KiB."""
    made = {}

    def make(suite: Suite, seed: int = 1, **options) -> Target:
        key = (suite, seed, repr(sorted(options.items())))
        if key not in made:
            folder = tmp_path_factory.mktemp("image") / "layout"
            chosen = {"page_size": 4096, "chunk_size": 4096, "suite": suite} | options
            reference = build(tree(seed), folder, **chosen)
            ring = keyring_for(suite)
            made[key] = Target(reference, take(reference), read_image(reference, ring), ring)
        return made[key]

    return make
