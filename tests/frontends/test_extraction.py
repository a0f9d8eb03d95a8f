"""Extraction: all that an image says comes out, damage stays out, and nothing lands outside the target."""

import errno
import os
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from support.images import build, opened
from support.resealing import Parts
from support.trees import (
    ACL,
    CAPABILITY,
    ROOT,
    Planned,
    PlannedSource,
    Segment,
    assert_same_tree,
    expected,
    plans,
    read_folder,
    write_plan,
)

from rafsfs.errors import BlobNotFound, DigestMismatch, FormatError
from rafsfs.format.erofs import FileType
from rafsfs.frontends.extraction import ExtractResult, extract
from rafsfs.frontends.extraction_cursor import DirectoryCursor
from rafsfs.frontends.extraction_files import LARGE_BYTES, PIECE_BYTES
from rafsfs.frontends.extraction_nodes import Fidelity
from rafsfs.frontends.library import Image
from rafsfs.fs.places import ROOT as TOP
from rafsfs.store.oci_layout import blob_path
from rafsfs.store.reference import Reference

D, F, L = FileType.DIRECTORY, FileType.REGULAR, FileType.SYMLINK
OWNER = {} if ROOT else {"uid": os.geteuid(), "gid": os.getegid()}
SECOND = 1_000_000_000
LARGE = LARGE_BYTES + PIECE_BYTES + 4097
CHUNK = 256 * 1024
ACLS = ((b"system.posix_acl_access", ACL), (b"system.posix_acl_default", ACL))


def planned(path: bytes, kind: FileType = F, permissions: int | None = None, **fields) -> Planned:
    """A name with an odd time, owned by somebody who can be given files."""
    default = {D: 0o755, F: 0o640, L: 0o777}.get(kind, 0o600)
    return Planned(
        path,
        kind,
        default if permissions is None else permissions,
        mtime_ns=1_600_000_000_123_456_789,
        **OWNER | fields,
    )


PLAN = (
    planned(b"", D, 0o750),
    planned(b"dir", D, 0o500),
    planned(b"dir/file", segments=(Segment(10, 0),)),
    planned(b"dir/sub", D, 0o711),
    planned(b"dir/sub/\xff\n", segments=(Segment(5000, 1),)),
    planned(b"empty"),
    planned(b"hard1", segments=(Segment(4096, 2),)),
    planned(b"hard2", hard_link_to=b"hard1"),
    planned(
        b"large", segments=(Segment(LARGE, 1), Segment(1 << 20, None), Segment(77, 3), Segment(1 << 20, None))
    ),
    planned(b"link", L, target=b"dir/file"),
    planned(b"out", L, target=b"../../../../etc"),
    planned(b"pipe", FileType.FIFO, 0o666),
    planned(b"sock", FileType.SOCKET, 0o601),
    planned(b"z", D),
    planned(b"z/hard3", hard_link_to=b"hard1"),
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Reference:
    return build(PlannedSource(PLAN), tmp_path_factory.mktemp("image") / "image", chunk_size=CHUNK)


@pytest.fixture
def image(reference):
    with Image(opened(reference)) as image:
        yield image


def open_files() -> set[str]:
    return names_in("/proc/self/fd")


def names_in(folder) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def run(reference: Reference, target, *paths, **fidelity) -> ExtractResult:
    with Image(opened(reference)) as image:
        return extract(image, target, paths, fidelity=Fidelity(**fidelity), workers=2)


def image_of(tmp_path, *plan: Planned, **options) -> Reference:
    return build(PlannedSource((planned(b"", D), *plan)), tmp_path / "image", **options)


def below(plan, *paths: bytes) -> dict:
    """What of a plan lies at and below paths, with the directories on the way."""
    wanted = expected(plan)
    return {
        path: found
        for path, found in wanted.items()
        if any(
            path == top or path.startswith(top + b"/") or (path and top.startswith(path + b"/"))
            for top in paths
        )
    }


# --- Fidelity -----------------------------------------------------------------------------------------------


def test_everything_comes_out(image, tmp_path):
    told = []
    result = extract(
        image, tmp_path / "out", workers=2, report=lambda names, size: told.append((names, size))
    )
    assert_same_tree(expected(PLAN), read_folder(tmp_path / "out"))
    assert result.problems.count == result.losses.refused_count == 0
    assert not result.losses.skipped
    assert (result.directories, result.files, result.symlinks) == (3, 5, 2)
    assert (result.special, result.hard_links) == (2, 2)
    sizes = [item.size for item in PLAN if item.hard_link_to is None]
    assert result.bytes == sum(sizes)
    assert result.data_bytes <= sum(sizes) - (1 << 20)  # holes are cut to whole chunks
    assert told == sorted(told)
    assert told[-1] == (result.names, result.bytes)
    assert result.names == len(PLAN) - 1


def test_holes_stay_holes(image, tmp_path):
    extract(image, tmp_path / "out", ["large"])
    status = (tmp_path / "out" / "large").stat()
    assert status.st_blocks * 512 < LARGE + (1 << 20)
    assert status.st_size == LARGE + (2 << 20) + 77


def test_file_of_nothing_but_a_hole(tmp_path):
    reference = image_of(
        tmp_path, planned(b"huge", segments=()), planned(b"hole", segments=(Segment(1 << 33, None),))
    )
    run(reference, tmp_path / "out")
    status = (tmp_path / "out" / "hole").stat()
    assert (status.st_size, status.st_blocks) == (1 << 33, 0)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(plan=plans(on_disk=True))
def test_whatever_can_be_on_disk_comes_out(plan, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    (folder / "tree").mkdir()
    write_plan(plan, folder / "tree")
    result = run(build(folder / "tree", folder / "image", chunk_size=4096), folder / "out")
    assert result.problems.count == 0
    assert [(refusal.what, refusal.error) for refusal in result.losses.refused] == []
    assert_same_tree(read_folder(folder / "tree"), read_folder(folder / "out"))


@pytest.mark.requires_root
def test_what_only_root_can_set(tmp_path):
    plan = (
        planned(b"", D, 0o1777, uid=5, gid=6, xattrs=((b"trusted.overlay.opaque", b"y"),)),
        planned(b"ping", permissions=0o755, uid=7, gid=8, xattrs=((b"security.capability", CAPABILITY),)),
        planned(b"suid", permissions=0o6755, uid=7, gid=8, segments=(Segment(9, 1),)),
        planned(b"null", FileType.CHARACTER, 0o666, uid=9, rdev=(1, 3), xattrs=((b"trusted.a", b"node"),)),
        planned(b"disk", FileType.BLOCK, 0o660, gid=9, rdev=(254, 70000)),
        planned(b"owned", L, uid=2**32 - 2, gid=3, target=b"x", xattrs=((b"trusted.a", b"link"),)),
        planned(b"acl", permissions=0o660, uid=4, xattrs=((b"system.posix_acl_access", ACL),)),
        planned(b"acls", D, 0o660, xattrs=ACLS),
        planned(b"acls/file", permissions=0o600),
        planned(b"acls/sub", D, 0o700),
    )  # fmt: skip
    run(build(PlannedSource(plan), tmp_path / "image"), tmp_path / "out")
    found = read_folder(tmp_path / "out")
    assert_same_tree(expected(plan), found)
    assert found[b"ping"].xattrs[b"security.capability"] == CAPABILITY


@pytest.mark.requires_root
def test_acls_of_the_target_are_not_inherited(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    os.setxattr(target, "system.posix_acl_default", ACL)
    plan = (planned(b"", D), planned(b"dir", D), planned(b"dir/file"), planned(b"pipe", FileType.FIFO))
    reference = build(PlannedSource(plan), tmp_path / "image")
    run(reference, target, b"dir")
    found = read_folder(target)
    assert not found[b"dir"].xattrs and not found[b"dir/file"].xattrs
    run(reference, target, replace=True)
    assert_same_tree(expected(plan), read_folder(target))


def test_times_beyond_the_target_do_not_stop_it(tmp_path):
    ages = (-(2**62), 2**62, 2**63 - 1)
    plan = [
        Planned(b"%d" % number, F, 0o600, mtime_ns=age * SECOND, **OWNER) for number, age in enumerate(ages)
    ]
    result = run(image_of(tmp_path, *plan), tmp_path / "out")
    assert result.files == len(ages) and result.problems.count == 0


def test_tree_deeper_than_open_files_and_paths_go(tmp_path):
    """Deeper than PATH_MAX can name and than a process may keep directories open."""
    name = b"d" * 50
    depth = 1200
    deep = [planned(b"/".join([name] * level), D) for level in range(1, depth + 1)]
    reference = image_of(
        tmp_path, *deep, planned(b"/".join([name] * depth) + b"/leaf", segments=(Segment(3, 1),))
    )
    before = open_files()
    result = run(reference, tmp_path / "out")
    assert open_files() <= before
    assert (result.directories, result.files) == (depth, 1)
    fd = os.open(tmp_path / "out", os.O_PATH)
    for _ in range(depth):
        above, fd = fd, os.open(name, os.O_PATH, dir_fd=fd)
        os.close(above)
    assert os.stat(b"leaf", dir_fd=fd).st_size == 3
    os.close(fd)
    subprocess.run(["rm", "-r", tmp_path / "out"], check=True)  # shutil.rmtree cannot


# --- Selections ---------------------------------------------------------------------------------------------


def test_paths_come_to_their_places(image, tmp_path):
    target = tmp_path / "out"
    target.mkdir(mode=0o705)
    before = target.stat()
    result = extract(image, target, ["/dir/sub", "hard2"], workers=2)
    found = read_folder(target)
    del found[b""]
    wanted = below(PLAN, b"dir/sub", b"hard2")
    wanted[b"hard2"] = found[b"hard2"]
    assert_same_tree(wanted, found)
    assert found[b"hard2"].content == expected(PLAN)[b"hard2"].content
    assert result.hard_links == 0  # its other names were not asked for
    status = target.stat()
    assert (status.st_mode, status.st_uid) == (before.st_mode, before.st_uid)  # what is there already stays


@pytest.mark.parametrize("paths", [["/"], ["", "dir"], ["dir/../."]])
def test_root_as_a_path_is_everything(image, tmp_path, paths):
    extract(image, tmp_path / "out", paths)
    assert_same_tree(expected(PLAN), read_folder(tmp_path / "out"))


def test_paths_may_overlap_and_repeat(image, tmp_path):
    result = extract(image, tmp_path / "out", ["dir/sub", b"dir", "dir/file", "dir", "empty", "empty"])
    found = read_folder(tmp_path / "out")
    assert_same_tree(below(PLAN, b"dir", b"empty"), {path: what for path, what in found.items() if path})
    assert (result.directories, result.files) == (2, 3)


def test_names_that_begin_alike_are_not_below_each_other(tmp_path):
    plan = (planned(b"a", D), planned(b"a-b", D), planned(b"a-b/x"), planned(b"a/x"), planned(b"a.b"))
    run(image_of(tmp_path, *plan), tmp_path / "out", "a", "a-b", "a.b")
    assert set(read_folder(tmp_path / "out")) == {b"", b"a", b"a-b", b"a-b/x", b"a/x", b"a.b"}


def test_symlinks_on_the_way_lead_to_the_real_place(tmp_path):
    plan = (
        planned(b"bin", L, target=b"/usr/bin"),
        planned(b"usr", D),
        planned(b"usr/bin", D),
        planned(b"usr/bin/env"),
    )
    reference = image_of(tmp_path, *plan)
    run(reference, tmp_path / "out", "/bin/env")
    assert set(read_folder(tmp_path / "out")) == {b"", b"usr", b"usr/bin", b"usr/bin/env"}
    run(reference, tmp_path / "link", "bin")
    assert set(read_folder(tmp_path / "link")) == {b"", b"bin"}


def test_missing_path_is_told_before_anything_is_written(image, tmp_path):
    with pytest.raises(FileNotFoundError) as raised:
        extract(image, tmp_path / "out", ["dir", "nowhere/file"])
    assert raised.value.filename == "nowhere/file"
    assert not (tmp_path / "out").exists()


# --- The target ---------------------------------------------------------------------------------------------


def test_target_that_is_not_empty_is_refused(image, tmp_path):
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(OSError, match="not empty") as raised:
        extract(image, tmp_path)
    assert raised.value.errno == errno.ENOTEMPTY
    assert names_in(tmp_path) == {"mine"}


def test_target_that_is_a_file_is_refused(image, tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(NotADirectoryError):
        extract(image, tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        extract(image, tmp_path / "no" / "such" / "folder")


def test_replacing_what_is_in_the_way(image, tmp_path):
    target = tmp_path / "out"
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("precious")
    (outside / "sub").mkdir()
    target.mkdir()
    (target / "kept").write_text("kept")
    (target / "dir").symlink_to(outside)  # where a directory comes
    (target / "empty").symlink_to(outside / "file")  # where a file comes
    (target / "large").symlink_to(outside / "new")
    (target / "hard2").symlink_to(outside / "file")
    (target / "link").write_text("old")
    (target / "z").mkdir(mode=0o777)
    (target / "z" / "more").write_text("kept")
    extract(image, target, fidelity=Fidelity(replace=True), workers=2)
    assert (outside / "file").read_text() == "precious"
    assert names_in(outside) == {"file", "sub"} and not names_in(outside / "sub")
    found = read_folder(target)
    assert found.pop(b"kept").size == 4 and found.pop(b"z/more").size == 4
    assert_same_tree(expected(PLAN), found)


def test_directory_in_the_way_of_a_file_is_not_removed(image, tmp_path):
    (tmp_path / "out" / "empty").mkdir(parents=True)
    (tmp_path / "out" / "empty" / "mine").write_text("precious")
    with pytest.raises(OSError) as raised:
        extract(image, tmp_path / "out", fidelity=Fidelity(replace=True))
    assert raised.value.errno in (errno.EISDIR, errno.EPERM)
    assert raised.value.filename == str(tmp_path / "out" / "empty")
    assert (tmp_path / "out" / "empty" / "mine").read_text() == "precious"


def test_extracting_over_an_extraction(image, tmp_path):
    extract(image, tmp_path / "out", workers=2)
    extract(image, tmp_path / "out", fidelity=Fidelity(replace=True), workers=2)
    assert_same_tree(expected(PLAN), read_folder(tmp_path / "out"))


@pytest.mark.requires_root
def test_without_owners_and_attributes(tmp_path):
    reference = image_of(tmp_path, planned(b"f", permissions=0o4755, uid=7, xattrs=((b"user.a", b"1"),)))
    result = run(reference, tmp_path / "out", owners=False, xattrs=False)
    found = read_folder(tmp_path / "out")[b"f"]
    assert (found.uid, found.mode, dict(found.xattrs)) == (0, stat.S_IFREG | 0o755, {})
    assert dict(result.losses.skipped) == {"set-id bits": 1}


def test_attribute_that_the_target_refuses_is_told(tmp_path):
    # user attributes are for files and directories only: xattr(7)
    reference = image_of(
        tmp_path, planned(b"link", L, target=b"x", xattrs=((b"user.a", b"1"),)), planned(b"next")
    )
    result = run(reference, tmp_path / "out")
    assert result.losses.refused_count == 1
    refusal = result.losses.refused[0]
    assert (refusal.path, refusal.what, refusal.error.errno) == (b"link", "attribute user.a", errno.EPERM)
    assert set(read_folder(tmp_path / "out")) == {b"", b"link", b"next"}


# --- Damage and lies ----------------------------------------------------------------------------------------


def damage(reference: Reference, *chunks: int) -> None:
    parts = Parts.of(reference)
    file = blob_path(reference.folder, parts.descriptors[0].digest)
    data = bytearray(file.read_bytes())
    for chunk in chunks:
        data[parts.records[0][chunk].encoded_offset] ^= 1
    file.write_bytes(data)


def test_damaged_files_are_left_out_and_told(tmp_path):
    reference = image_of(
        tmp_path,
        planned(b"bad", segments=(Segment(4 * 4096, 1),)),
        planned(b"dir", D),
        planned(b"dir/link", hard_link_to=b"bad"),
        planned(b"good", segments=(Segment(4 * 4096, 3),)),
        chunk_size=4096,
    )
    damage(reference, 2)
    result = run(reference, tmp_path / "out")
    assert set(read_folder(tmp_path / "out")) == {b"", b"dir", b"good"}
    assert result.problems.kinds == {DigestMismatch: 1}
    problem = result.problems.kept[0]
    assert sorted(problem.paths) == [b"bad", b"dir/link"]
    assert problem.error.where.chunk == 2
    assert (result.files, result.hard_links, result.bytes) == (1, 0, 4 * 4096)


def test_damaged_large_file_is_left_out(reference, tmp_path):
    parts = Parts.of(reference)
    # another image, whose table has a wrong id for a chunk in the middle of the large file
    parts.set_record(0, 20, chunk_id=bytes(32))
    result = run(parts.seal(), tmp_path / "out")
    found = read_folder(tmp_path / "out")
    wanted = expected(PLAN)
    del wanted[b"large"]
    assert_same_tree(wanted, found)
    assert [problem.paths for problem in result.problems.kept] == [[b"large"]]
    assert result.bytes == sum(
        item.size for item in PLAN if item.hard_link_to is None and item.path != b"large"
    )


def test_missing_blob_leaves_what_has_nothing_in_it(tmp_path, reference):
    with Image(opened(reference)) as image:
        file = image.sealed.filesystem.engine.blobs[0].file
        file.close()  # as if it were gone: every read of it fails
        result = extract(image, tmp_path / "out")
    assert result.problems.count == 3
    assert result.files == 2 and (tmp_path / "out" / "empty").exists()
    assert result.data_bytes == 10  # of a file that lies in the metadata
    assert BlobNotFound not in result.problems.kinds


LIES = {
    "cycle": lambda parts: parts.set_dirent(b"dir", b"sub", nid=parts.nids[b""]),
    "directory with two names": lambda parts: parts.set_dirent(
        b"", b"empty", nid=parts.nids[b"dir"], file_type=FileType.DIRECTORY
    ),
    "directory named as a file": lambda parts: parts.set_dirent(b"dir", b"sub", file_type=FileType.REGULAR),
    "file named as a directory": lambda parts: parts.set_dirent(b"", b"empty", file_type=FileType.DIRECTORY),
    "symlink named as a directory": lambda parts: parts.set_dirent(b"", b"out", file_type=FileType.DIRECTORY),
    "inode that is none": lambda parts: parts.set_dirent(b"", b"empty", nid=2**60),
    "symlink with a NUL": lambda parts: parts.write(parts.body(b"out") + 3, b"\0"),
    "file outside its blob": lambda parts: parts.set_index(b"hard1", 0, start_block=2**31),
    "directory of names out of order": lambda parts: parts.rename(b"", b"link", b"zzzz"),
    "directory that is not there": lambda parts: parts.set_inode(b"dir/sub", union=2**31, size=8192),
}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_lies_are_told_and_end(reference, tmp_path, lie):
    parts = Parts.of(reference)
    lie(parts)
    (tmp_path / "etc").mkdir()
    result = run(parts.seal(), tmp_path / "out")
    assert result.problems.count >= 1
    assert all(issubclass(kind, FormatError) for kind in result.problems.kinds)
    assert names_in(tmp_path) == {"etc", "out"}
    assert not names_in(tmp_path / "etc")


def test_links_outwards_are_not_followed(tmp_path):
    """A symlink and a directory of the same name: whoever took both would write through the symlink."""
    outside = tmp_path / "outside"
    outside.mkdir()
    parts = Parts.of(
        image_of(
            tmp_path,
            planned(b"aa", L, target=os.fsencode(outside)),
            planned(b"bb", D),
            planned(b"bb/file", segments=(Segment(3, 1),)),
        )
    )
    # two entries of one name, the second of them the directory: out of order, hence refused as a whole
    parts.rename(b"", b"bb", b"aa")
    result = run(parts.seal(), tmp_path / "out")
    assert result.problems.count == 1
    assert not names_in(outside) and not names_in(tmp_path / "out")


# --- Failure of the target ----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [b"large", b"dir/file"])
def test_failing_write_ends_it_without_parts_of_files(reference, tmp_path, monkeypatch, path):
    """A full disk, as the kernel tells it: the file is removed, the error names it, no thread stays."""
    failing = tmp_path / "out" / os.fsdecode(path)
    real = os.pwrite

    def pwrite(fd, data, offset):
        if Path(f"/proc/self/fd/{fd}").readlink() == failing and offset == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    before = open_files()
    with pytest.raises(OSError) as raised:
        run(reference, tmp_path / "out")
    assert (raised.value.errno, raised.value.filename) == (errno.ENOSPC, str(failing))
    assert not failing.exists()
    assert not (tmp_path / "out" / "large").exists()
    assert open_files() <= before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rafsfs-extract")]


def test_interruption_leaves_no_part_of_a_large_file(reference, tmp_path):
    def interrupt(names, size):
        if size > PIECE_BYTES:
            raise KeyboardInterrupt

    with Image(opened(reference)) as image, pytest.raises(KeyboardInterrupt):
        extract(image, tmp_path / "out", report=interrupt, workers=2)
    assert not (tmp_path / "out" / "large").exists()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rafsfs-extract")]


# --- The cursor ---------------------------------------------------------------------------------------------


def test_cursor_refuses_symlinks(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    fd = os.open(tmp_path, os.O_RDONLY)
    cursor = DirectoryCursor(fd)
    assert os.fstat(cursor.open(TOP.below(b"real"))).st_ino == (tmp_path / "real").stat().st_ino
    with pytest.raises(NotADirectoryError):
        cursor.open(TOP.below(b"link"))
    assert cursor.open(TOP) == fd
    cursor.close()
    os.close(fd)


def test_cursor_goes_anywhere_and_leaves_nothing_open(tmp_path):
    levels = 100
    deep = tmp_path.joinpath(*["d"] * levels)
    deep.mkdir(parents=True)
    (tmp_path / "d" / "e").mkdir()
    places = [TOP]
    for _ in range(levels):
        places.append(places[-1].below(b"d"))
    beside = places[1].below(b"e")
    fd = os.open(tmp_path, os.O_RDONLY)
    before = open_files()
    cursor = DirectoryCursor(fd)
    inodes = {place: tmp_path.joinpath(*["d"] * level).stat().st_ino for level, place in enumerate(places)}
    for level in (100, 99, 3, 50, 100, 0, 1, 40, 40, 100):
        assert os.fstat(cursor.open(places[level])).st_ino == inodes[places[level]]
        assert os.fstat(cursor.open(beside)).st_ino == (tmp_path / "d" / "e").stat().st_ino
    assert len(open_files()) < len(before) + 40
    cursor.close()
    assert open_files() <= before
    os.close(fd)
