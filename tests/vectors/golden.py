"""What the golden images of format version 1 hold and how they were built; compares nothing."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

from support.trees import ACL, CAPABILITY, Found, Plan, Planned, PlannedSource, Segment, expected

from rafsfs.build.builder import build_image
from rafsfs.build.options import BuildOptions
from rafsfs.format.chunk import Suite
from rafsfs.format.erofs import FileType
from rafsfs.format.trace import TracedRange
from rafsfs.fs.image import open_sealed
from rafsfs.limits import KIB
from rafsfs.store.reference import Reference
from rafsfs.trust.keys import KeyRing
from rafsfs.trust.material import Ed25519SigningKey, SymmetricKey
from rafsfs.trust.opening import TrustPolicy

VERSION_1 = Path(__file__).parent / "v1"
KEY = SymmetricKey(hashlib.sha256(b"rafsfs golden images: key").digest())
DEDUP_SECRET = SymmetricKey(hashlib.sha256(b"rafsfs golden images: dedup secret").digest())
SIGNING_KEY = Ed25519SigningKey(hashlib.sha256(b"rafsfs golden images: signing key").digest())
KEY_FILE = "TEST-KEY-known-to-everybody"
SUITES = {
    "aes-256-gcm": Suite.AES_256_GCM,
    "chacha20-poly1305": Suite.CHACHA20_POLY1305,
    "integrity-only": Suite.INTEGRITY_ONLY,
}
CHUNK = 8 * KIB
BYTES_MAX = 200 * KIB


def file(path: bytes, *segments: tuple[int, int | None], **fields: Any) -> Planned:
    return Planned(
        path,
        FileType.REGULAR,
        permissions=0o644,
        segments=tuple(Segment(*part) for part in segments),
        **fields,
    )


FIRST: Plan = (
    Planned(b"", FileType.DIRECTORY, mtime_ns=1_700_000_000_000_000_001),
    file(b"compresses", (3 * CHUNK + 100, 2)),
    file(b"does not", (CHUNK, 1), mtime_ns=-1),
    file(b"small", (10, 4), uid=1000, gid=2**32 - 2, xattrs=((b"user.first", b"1"),)),
)
"""The image ``first``: also the chunk dictionary of ``second``, which uses only some of its chunks."""

SECOND: Plan = (
    Planned(b"", FileType.DIRECTORY, permissions=0o1777, uid=1, gid=2, mtime_ns=1_700_000_000_123_456_789),
    Planned(b"block", FileType.BLOCK, permissions=0o660, gid=6, rdev=(0xFFF, 0xFFFFF)),
    Planned(b"character", FileType.CHARACTER, permissions=0o666, rdev=(1, 3)),
    file(b"compresses", (3 * CHUNK + 100, 2), xattrs=((b"security.capability", CAPABILITY),)),
    Planned(
        b"directory", FileType.DIRECTORY, permissions=0o2750, xattrs=((b"system.posix_acl_default", ACL),)
    ),
    Planned(b"directory/empty", FileType.DIRECTORY),
    file(b"directory/" + b"\xff\x01 \n" + b"n" * 251, (4096, 6)),
    file(b"empty", mtime_ns=-(2**63) * 10**9),
    Planned(b"fifo", FileType.FIFO, permissions=0o600),
    Planned(b"hard link", FileType.REGULAR, hard_link_to=b"compresses"),
    file(b"holes", (CHUNK, None), (CHUNK + 5, 3), (5 * CHUNK, None), (9, 8)),
    Planned(b"long link", FileType.SYMLINK, permissions=0o777, target=b"../" * 1365),
    Planned(b"many", FileType.DIRECTORY),
    *(
        file(
            b"many/%03d" % number,
            uid=number,
            xattrs=((b"security.selinux", b"system_u:object_r:usr_t:s0\0"),),
        )
        for number in range(300)
    ),
    Planned(b"short link", FileType.SYMLINK, permissions=0o777, target=b"does/not/exist"),
    Planned(b"socket", FileType.SOCKET, permissions=0o755),
    file(
        b"xattrs",
        (100, 4),
        xattrs=(
            (b"system.posix_acl_access", ACL),
            (b"trusted.overlay.opaque", b"y"),
            (b"user.empty", b""),
            (b"user.large", b"large " * 1000),
        ),
    ),
)
PLANS = {"first": FIRST, "second": SECOND}
CONFIG = {
    "architecture": "amd64",
    "os": "linux",
    "config": {
        "Env": ["PATH=/bin", "SECRET=of the image"],
        "Entrypoint": ["/bin/sh", "-c"],
        "Labels": {"a": "\N{SNOWMAN}"},
    },
    "history": [{"created_by": "somebody"}],
}
"""What containers of ``second`` are started with; ``first`` was made of files alone."""
CONFIGS = {"first": {"architecture": "amd64", "os": "linux", "config": {}}, "second": CONFIG}
TRACED = (
    TracedRange(b"holes", 3 * CHUNK, CHUNK),
    TracedRange(b"holes", 7 * CHUNK, CHUNK),
    TracedRange(b"gone", 0, 1),
    TracedRange(b"many", 0, 1),
    TracedRange(b"many/007", 0, 1),
    TracedRange(b"compresses", CHUNK, 1),
    TracedRange(b"hard link", 0, 3 * CHUNK + 100),
    TracedRange(b"holes", CHUNK, CHUNK + 5),
)
"""What readers of ``second`` came for; the prefetch list is made of it."""
PREFETCH = {"first": [], "second": [[1, 2, 1], [0, 1, 1], [0, 0, 1], [0, 2, 2], [1, 0, 2]]}
"""The prefetch lists: blob, first chunk, number of chunks."""


def keys_for(suite: Suite) -> KeyRing:
    """What opens an image of this suite."""
    return KeyRing(symmetric=(KEY,), verification=(SIGNING_KEY.public(),)) if suite.encrypts else KeyRing()


def build_golden(folder: Path, suite: Suite) -> None:
    """Build both images of one suite into a layout folder."""
    options = BuildOptions(
        recipients=(KEY,) if suite.encrypts else (),
        signers=(SIGNING_KEY,),
        suite=suite,
        dedup_secret=DEDUP_SECRET if suite.encrypts else None,
        chunk_size=CHUNK,
        page_size=4 * KIB,
        name="golden",
        release=1,
        architecture="amd64",
    )
    first = Reference(folder, "first")
    build_image(PlannedSource(FIRST), first, options)
    with open_sealed(first, keys_for(suite), TrustPolicy()) as dictionary:
        options = replace(options, config=CONFIG)
        build_image(
            PlannedSource(SECOND),
            Reference(folder, "second"),
            options,
            dictionaries=[dictionary],
            traced=TRACED,
        )


def digest(found: Found) -> str:
    if stat.S_ISLNK(found.mode):
        return hashlib.sha256(os.fsencode(found.content)).hexdigest()
    return found.content


def described(plan: Plan) -> dict[str, dict[str, Any]]:
    """What a reader has to find, in the words of ``verifier.verify``."""
    return {
        path.decode("latin-1"): {
            "mode": found.mode,
            "uid": found.uid,
            "gid": found.gid,
            "mtime_ns": found.mtime_ns,
            "size": found.size,
            "device": [os.major(found.rdev), os.minor(found.rdev)],
            "nlink": found.nlink,
            "sha256": digest(found),
            "xattrs": {name.decode("latin-1"): value.hex() for name, value in sorted(found.xattrs.items())},
        }
        for path, found in sorted(expected(plan).items())
    }
