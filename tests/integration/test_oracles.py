"""What others make of our metadata: the kernel's EROFS, ``fsck.erofs``, ``dump.erofs``; all must agree."""

# Names are bytes here, which pathlib does not take.
# ruff: noqa: PTH123, PTH208

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.images import DEDUP_SECRET, build, export_erofs, opened
from support.trees import (
    ACL,
    CAPABILITY,
    Plan,
    Planned,
    PlannedSource,
    Segment,
    assert_same_tree,
    expected,
    plans,
    read_folder,
    read_image,
    write_plan,
)

from rafsfs.format.chunk import Suite
from rafsfs.format.erofs import FileType
from rafsfs.fs.image import OpenImage
from rafsfs.limits import GIB, KIB, MIB
from rafsfs.store.reference import Reference

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

LIBC = ctypes.CDLL(None, use_errno=True)
MS_RDONLY = 1
CHUNK = 16 * KIB
CONTENT_MAX = 64 * MIB
TIB = 1024 * GIB
FIRST_LETTERS = b"abc"
NOW = 1_700_000_000_123_456_789

SOME_XATTRS = (
    (b"security.capability", CAPABILITY),
    (b"security.other", b"\0\xff"),
    (b"system.posix_acl_access", ACL),
    (b"trusted.overlay.opaque", b"y"),
    (b"user.empty", b""),
    (b"user." + b"n" * 250, b"long name"),
)


def file(path: bytes, *segments: tuple[int, int | None], **fields: object) -> Planned:
    return Planned(
        path,
        FileType.REGULAR,
        segments=tuple(Segment(*segment) for segment in segments),
        mtime_ns=NOW,
        **fields,
    )


def device(path: bytes, major: int, minor: int) -> list[Planned]:
    return [
        Planned(path + b" char", FileType.CHARACTER, rdev=(major, minor), permissions=0o640, gid=6),
        Planned(path + b" block", FileType.BLOCK, rdev=(major, minor), permissions=0o640, gid=6),
    ]


# All that fits on a disk; a tree in memory below has what ext4 cannot keep.
FEATURES = (
    Planned(
        b"",
        FileType.DIRECTORY,
        permissions=0o1777,
        uid=3,
        gid=4,
        mtime_ns=NOW,
        xattrs=((b"user.root", b"r"),),
    ),
    file(b"empty"),
    file(b"one byte", (1, 1)),
    file(b"setuid", (5000, 2), permissions=0o6755, uid=1000, gid=2**32 - 2),
    file(b"attributes", (100, 3), xattrs=SOME_XATTRS),
    file(b"same attributes", (100, 3), xattrs=SOME_XATTRS),
    file(b"block", (4096, 1)),
    file(b"chunk", (CHUNK, 1)),
    file(b"chunk and a byte", (CHUNK, 1), (1, 2)),
    file(b"many chunks", (20 * CHUNK + 77, 5)),
    file(b"compresses", (10 * CHUNK, 4)),
    file(b"hole first", (3 * CHUNK, None), (5, 1)),
    file(b"hole last", (5, 1), (3 * CHUNK, None)),
    file(b"holes between", (CHUNK, 1), (CHUNK, None), (CHUNK, 3), (2 * CHUNK, None), (9, 5)),
    file(b"nothing but a hole", (5 * CHUNK + 9, None)),
    file(b"1 TiB of nothing", (TIB, None)),
    Planned(b"hard link", FileType.REGULAR, hard_link_to=b"setuid"),
    Planned(b"short link", FileType.SYMLINK, permissions=0o777, target=b"setuid", uid=7, mtime_ns=NOW),
    Planned(b"long link", FileType.SYMLINK, permissions=0o777, target=b"../" * 1365, mtime_ns=-NOW // 2),
    Planned(
        b"block link", FileType.SYMLINK, permissions=0o777, target=b"x" * 4032, xattrs=((b"trusted.a", b"b"),)
    ),
    Planned(b"fifo", FileType.FIFO, permissions=0o600, xattrs=((b"security.x", b"y"),)),
    Planned(b"hard linked fifo", FileType.FIFO, hard_link_to=b"fifo"),
    Planned(b"socket", FileType.SOCKET, permissions=0o755),
    *device(b"null", 1, 3),
    *device(b"largest", 0xFFF, 0xFFFFF),
    *device(b"zero", 0, 0),
    Planned(b"d", FileType.DIRECTORY, permissions=0o2755, xattrs=((b"system.posix_acl_default", ACL),)),
    Planned(b"d/empty", FileType.DIRECTORY, permissions=0o500),
    file(b"d/" + b"n" * 255, (10, 1)),
    file(b"d/" + b"\xff" * 255, (10, 1)),
    *(file(b"d/\x01\x7f \n\t\\\"'*?" + bytes((letter,)), (10, letter)) for letter in FIRST_LETTERS),
    *(Planned(b"deep" + b"/x" * depth, FileType.DIRECTORY) for depth in range(60)),
)
SMALL_FEATURES = tuple(item for item in FEATURES if item.size <= CONTENT_MAX)


@contextmanager
def kernel_erofs(image: OpenImage, folder: Path) -> Iterator[Path]:
    """Mount the exported image. mount(2) itself: mount(8) makes loop devices of the files without a word."""
    metadata, devices = export_erofs(image, folder)
    target = folder / "kernel"
    target.mkdir()
    options = ",".join(f"device={device}" for device in devices)
    arguments = (bytes(metadata), bytes(target), b"erofs", MS_RDONLY, options.encode())
    assert LIBC.mount(*arguments) == 0, os.strerror(ctypes.get_errno())
    try:
        yield target
    finally:
        assert LIBC.umount2(bytes(target), 0) == 0, os.strerror(ctypes.get_errno())
        for path in (metadata, *devices):
            path.unlink()
        target.rmdir()


def run(tool: str, metadata: Path, devices: list[Path], *arguments: str) -> str:
    done = subprocess.run(
        [tool, *(f"--device={device}" for device in devices), *arguments, metadata],
        capture_output=True,
        check=False,
        timeout=120,
    )
    output = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert done.returncode == 0, output
    assert "<E>" not in output
    assert "<W>" not in output
    return output


def links_of_directories(root: Path, image: OpenImage) -> dict[bytes, tuple[int, int]]:
    """(kernel's count, ours) of each directory; snapshots leave these to each file system."""
    counts = {}
    for path, nid in image.filesystem.walk():
        attributes = image.filesystem.attributes(nid)
        if stat.S_ISDIR(attributes.mode):
            counts[path] = (os.lstat(bytes(root) + b"/" + path).st_nlink, attributes.nlink)
    return counts


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source")
    write_plan(FEATURES, folder)
    return folder


@pytest.fixture(scope="module")
def features(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Reference:
    """The features, with half of the data in a blob of an earlier image: two device slots."""
    folder = tmp_path_factory.mktemp("features")
    some = (
        FEATURES[0],
        file(b"some", (9 * CHUNK, 5)),
        file(b"small", (100, 3)),
        file(b"compresses", (10 * CHUNK, 4)),
    )
    first = build(PlannedSource(some), folder / "first", chunk_size=CHUNK)
    reference = build(source, folder / "image", chunk_size=CHUNK, dictionaries=[first])
    with opened(reference) as image:
        assert len(image.filesystem.engine.blobs) == 2
    return reference


@pytest.fixture(scope="module")
def exported(features: Reference, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    with opened(features) as image:
        return export_erofs(image, tmp_path_factory.mktemp("exported"))


def test_kernel_source_and_reader_agree_about_every_file(
    source: Path, features: Reference, tmp_path: Path
) -> None:
    with opened(features) as image, kernel_erofs(image, tmp_path) as mounted:
        by_kernel = read_folder(mounted, content_max=CONTENT_MAX)
        assert_same_tree(read_folder(source, content_max=CONTENT_MAX), by_kernel)
        assert_same_tree(by_kernel, read_image(image.filesystem, content_max=CONTENT_MAX))
        assert len(by_kernel) == len(FEATURES)
        for path, (kernel, ours) in links_of_directories(mounted, image).items():
            assert kernel == ours, path


def test_kernel_source_and_reader_agree_about_ranges_of_large_files(tmp_path: Path) -> None:
    data_at = {b"more than 4 GiB": 5 * GIB, b"1 TiB": TIB // 2, b"end of 1 TiB": TIB - MIB}
    plan = (
        Planned(b"", FileType.DIRECTORY),
        file(b"more than 4 GiB", (5 * GIB, None), (3 * MIB + 5, 7)),
        file(b"1 TiB", (TIB // 2, None), (2 * MIB, 9), (TIB // 2 - 2 * MIB, None)),
        file(b"end of 1 TiB", (TIB - MIB, None), (MIB, 8)),
    )
    source = tmp_path / "source"
    source.mkdir()
    write_plan(plan, source)
    reference = build(source, tmp_path / "image", chunk_size=1 * MIB)
    with opened(reference) as image, kernel_erofs(image, tmp_path) as mounted:
        for path, data in data_at.items():
            nid = image.filesystem.lookup(image.filesystem.root, path)
            size = image.filesystem.attributes(nid).size
            places = (
                0,
                4095,
                GIB - 1,
                4 * GIB - 5,
                data - 10,
                data,
                data + MIB - 10,
                size - 100,
                size - 1,
                size,
            )
            with (
                open(bytes(source) + b"/" + path, "rb") as left,
                open(bytes(mounted) + b"/" + path, "rb") as right,
            ):
                assert os.fstat(left.fileno()).st_size == os.fstat(right.fileno()).st_size == size
                for offset in places:
                    wanted = os.pread(left.fileno(), 48 * KIB, offset)
                    assert os.pread(right.fileno(), 48 * KIB, offset) == wanted
                    assert b"".join(image.filesystem.read(nid, offset, 48 * KIB)) == wanted
                assert any(os.pread(left.fileno(), CHUNK, data))


def test_kernel_reads_what_no_disk_holds(tmp_path: Path) -> None:
    """Attributes of 64 KiB and many of them, all times of 64 bits."""
    many = tuple((b"user.%03d" % number, b"v" * number) for number in range(300))
    large = tuple(
        (b"trusted." + bytes((letter,)) * 200, bytes((letter,)) * 60_000) for letter in FIRST_LETTERS
    )
    plan = (
        Planned(b"", FileType.DIRECTORY, xattrs=many),
        file(b"many", xattrs=many),
        file(b"large", (10, 1), xattrs=large),
        file(b"largest", (10, 1), xattrs=((b"user.x", b"x" * 65_535),)),
        replace(file(b"past"), mtime_ns=-(2**63) * 10**9),
        replace(file(b"future"), mtime_ns=(2**63 - 1) * 10**9 + 999_999_999),
    )
    with (
        opened(build(PlannedSource(plan), tmp_path / "image")) as image,
        kernel_erofs(image, tmp_path) as mounted,
    ):
        read = read_image(image.filesystem)
        assert_same_tree(expected(plan), read)
        assert_same_tree(read, read_folder(mounted))


def test_kernel_lists_a_hundred_thousand_names(tmp_path: Path) -> None:
    count = 100_000
    names = [b"%06d" % number + b"-" * (number % 97) for number in range(count)]
    plan = (Planned(b"", FileType.DIRECTORY), *(Planned(name, FileType.REGULAR, uid=1) for name in names))
    with (
        opened(build(PlannedSource(plan), tmp_path / "image")) as image,
        kernel_erofs(image, tmp_path) as mounted,
    ):
        filesystem = image.filesystem
        ours = [entry.name for entry in filesystem.directory(filesystem.root)]
        assert ours == sorted([b".", b"..", *names])
        assert sorted(os.listdir(bytes(mounted))) == names
        for name in (*names[:: count // 500], names[-1]):
            status = os.lstat(bytes(mounted) + b"/" + name)
            attributes = filesystem.attributes(filesystem.lookup(filesystem.root, name))
            assert (status.st_mode, status.st_uid, status.st_size) == (attributes.mode, 1, 0)
        for name in (b"", b"000000-", names[1][:-1], names[-1] + b"-"):
            if name:
                assert not os.path.lexists(bytes(mounted) + b"/" + name)


@pytest.mark.parametrize(
    "options",
    [
        {"suite": Suite.CHACHA20_POLY1305, "dedup_secret": DEDUP_SECRET},
        {"suite": Suite.INTEGRITY_ONLY, "zstd_level": None},
        {"chunk_size": 4096, "page_size": 4096},
        {"chunk_size": 1 * MIB},
    ],
)
def test_kernel_agrees_however_it_was_built(source: Path, tmp_path: Path, options: dict[str, object]) -> None:
    with (
        opened(build(PlannedSource(SMALL_FEATURES), tmp_path / "image", **options)) as image,
        kernel_erofs(image, tmp_path) as mounted,
    ):
        assert_same_tree(expected(SMALL_FEATURES), read_folder(mounted))


@given(plans(on_disk=False, max_names=25), st.sampled_from([4 * KIB, CHUNK]))
@settings(max_examples=30)
def test_kernel_and_fsck_agree_about_any_tree(plan: Plan, chunk_size: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with opened(build(PlannedSource(plan), folder / "image", chunk_size=chunk_size)) as image:
            with kernel_erofs(image, folder) as mounted:
                assert_same_tree(expected(plan), read_folder(mounted))
            run("fsck.erofs", *export_erofs(image, folder))


def test_image_without_data_mounts_without_devices(tmp_path: Path) -> None:
    plan = (Planned(b"", FileType.DIRECTORY), file(b"empty"), file(b"hole", (10 * MIB, None)))
    with (
        opened(build(PlannedSource(plan), tmp_path / "image")) as image,
        kernel_erofs(image, tmp_path) as mounted,
    ):
        assert image.filesystem.engine.blobs == ()
        assert_same_tree(expected(plan), read_folder(mounted))


# --- erofs-utils --------------------------------------------------------------------------------------------


def test_fsck_accepts_the_metadata(exported: tuple[Path, list[Path]]) -> None:
    assert "No errors found" in run("fsck.erofs", *exported, "-d9")


def test_fsck_would_have_noticed(
    exported: tuple[Path, list[Path]], features: Reference, tmp_path: Path
) -> None:
    """Else its word were worth nothing: a directory that leads nowhere."""
    metadata, devices = exported
    with opened(features) as image:
        tree = image.filesystem.tree
        nid = image.filesystem.lookup(tree.root, b"d")
    damaged = bytearray(metadata.read_bytes())
    damaged[nid * 32 : nid * 32 + 64] = bytes(64)
    path = tmp_path / "damaged"
    path.write_bytes(damaged)
    with pytest.raises(AssertionError, match="erofs"):
        run("fsck.erofs", path, devices)


def test_fsck_extracts_the_same(tmp_path: Path) -> None:
    """A third reader. That of erofs-utils 1.5 leaves holes out, so files with holes are left out here."""
    plain = tuple(item for item in FEATURES if all(part.seed is not None for part in item.segments))
    with opened(build(PlannedSource(plain), tmp_path / "image", chunk_size=CHUNK)) as image:
        metadata, devices = export_erofs(image, tmp_path)
    target = tmp_path / "extracted"
    run("fsck.erofs", metadata, devices, f"--extract={target}")
    found = read_folder(target)
    wanted = expected(plain)
    # it makes copies of hard links and leaves out attributes and the high bits of modes
    for path, item in wanted.items():
        assert found[path].content == item.content, path
        assert (found[path].uid, found[path].gid, found[path].rdev) == (item.uid, item.gid, item.rdev), path
        assert stat.S_IFMT(found[path].mode) == stat.S_IFMT(item.mode), path
        assert found[path].mtime_ns == item.mtime_ns, path


def test_dump_counts_what_we_count(
    exported: tuple[Path, list[Path]], features: Reference, source: Path
) -> None:
    with opened(features) as image:
        (count,) = re.findall(r"Filesystem inode count: +(\d+)", run("dump.erofs", *exported, "-s"))
        assert int(count) == image.filesystem.statfs().files
    output = run("dump.erofs", *exported, "-S")
    wanted = read_folder(source, content_max=0)
    for words, kind in (
        ("regular file", stat.S_IFREG),
        ("directory", stat.S_IFDIR),
        ("char dev", stat.S_IFCHR),
        ("block dev", stat.S_IFBLK),
        ("FIFO file", stat.S_IFIFO),
        ("SOCK file", stat.S_IFSOCK),
        ("symlink file", stat.S_IFLNK),
    ):
        (count,) = re.findall(rf"Filesystem {words} count:\s+(\d+)", output)
        assert int(count) == sum(stat.S_IFMT(found.mode) == kind for found in wanted.values()), words


def test_dump_tells_of_each_inode_what_we_tell(
    features: Reference, exported: tuple[Path, list[Path]]
) -> None:
    with opened(features) as image:
        for path, nid in image.filesystem.walk():
            attributes = image.filesystem.attributes(nid)
            inode = image.filesystem.tree.inode(nid)
            output = run("dump.erofs", *exported, f"--nid={nid}")
            found = dict(re.findall(r"(Size|NID|Links|Layout|Inode size|Xattr size|Uid|Gid): +(\d+)", output))
            seconds, nanoseconds = divmod(attributes.mtime_ns, 10**9)
            assert found == {
                "Size": str(attributes.size),
                "NID": str(nid),
                "Links": str(attributes.nlink),
                "Layout": str(int(inode.layout)),
                "Inode size": "64",
                "Xattr size": str(inode.xattr_bytes),
                "Uid": str(attributes.uid),
                "Gid": str(attributes.gid),
            }, path
            assert f"Access: 0{attributes.mode & 0o777:03o}/" in output, path
            if seconds >= 0:
                when = datetime.fromtimestamp(seconds, UTC)
                assert f"Timestamp: {when:%Y-%m-%d %H:%M:%S}.{nanoseconds:09d}" in output, path


def test_dump_finds_the_extents_that_we_read(features: Reference, exported: tuple[Path, list[Path]]) -> None:
    """Decoded bytes at the places that ``dump.erofs`` names are the file's bytes."""
    _, devices = exported
    with opened(features) as image:
        for path in (b"many chunks", b"chunk and a byte", b"compresses", b"setuid"):
            nid = image.filesystem.lookup(image.filesystem.root, path)
            size = image.filesystem.attributes(nid).size
            output = run("dump.erofs", *exported, f"--nid={nid}", "-e")
            lines = re.findall(
                r"\d+: +(\d+)\.\. +(\d+) \| +\d+ : +(\d+)\.\. +\d+ \| +\d+ +# device (\d+)", output
            )
            digest = hashlib.sha256()
            for start, end, physical, number in lines:
                with devices[int(number) - 1].open("rb") as stored:
                    stored.seek(int(physical))
                    digest.update(stored.read(min(int(end), size) - int(start)))  # it counts whole blocks
            ours = hashlib.sha256(b"".join(image.filesystem.read(nid, 0, size)))
            assert digest.digest() == ours.digest(), path
