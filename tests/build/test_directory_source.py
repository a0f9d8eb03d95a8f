"""Directories as build sources: what is told of every inode, holes, races, refusals, against the kernel."""

import contextlib
import os
import resource
import shutil
import socket
import stat
import subprocess
import traceback
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rafsfs.build.directory_source import DirectorySource
from rafsfs.build.source import Hole
from rafsfs.errors import BuildError
from rafsfs.format.erofs import FileType

KIB = 1024
TIB = 2**40
NOBODY = 65534
OFTEN = 40  # files: more than the walk looks ahead


def entries_of(root, **options):
    source = DirectorySource(root, **options)
    try:
        yield from source.entries()
    finally:
        source.close()


def paths_of(root, **options):
    return [entry.path for entry in entries_of(root, **options)]


def content_of(entry, piece_size=256 * KIB):
    """All bytes of an entry; the promises of ``Content`` are asserted on the way."""
    data = bytearray()
    for piece in entry.content(piece_size):
        assert len(data) % piece_size == 0
        if isinstance(piece, Hole):
            data += bytes(piece.length)
        else:
            assert len(piece) == min(piece_size, entry.size - len(data))
            data += piece
    assert len(data) == entry.size
    return bytes(data)


@contextlib.contextmanager
def file_system(folder, kind, *options):
    """A fresh file system mounted on ``folder``."""
    subprocess.run(["mount", "-t", kind, *options, "none", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def open_descriptors():
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.fixture(autouse=True)
def no_descriptor_is_left_open():
    before = open_descriptors()
    yield
    assert open_descriptors() == before


# --- What is told -------------------------------------------------------------------------------------------


def test_every_kind_of_file(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir(mode=0o2751)
    (tmp_path / "folder").chmod(0o2751)
    (tmp_path / "link").symlink_to("../anywhere")
    os.mkfifo(tmp_path / "fifo", 0o600)
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind(os.fspath(tmp_path / "socket"))
    found = {entry.path: (entry, entry.content and content_of(entry)) for entry in entries_of(tmp_path)}
    kinds = {path: entry.kind for path, (entry, _) in found.items()}
    assert kinds == {
        b"": FileType.DIRECTORY,
        b"empty": FileType.REGULAR,
        b"fifo": FileType.FIFO,
        b"file": FileType.REGULAR,
        b"folder": FileType.DIRECTORY,
        b"link": FileType.SYMLINK,
        b"socket": FileType.SOCKET,
    }
    for path, (entry, _) in found.items():
        status = (tmp_path / os.fsdecode(path)).lstat()
        assert entry.permissions == stat.S_IMODE(status.st_mode)
        assert (entry.uid, entry.gid, entry.mtime_ns) == (status.st_uid, status.st_gid, status.st_mtime_ns)
        assert (entry.rdev, entry.hard_link_to) == ((0, 0), None)
    assert found[b"file"][1] == b"content"
    assert found[b"empty"][1] == b""
    assert found[b"link"][0].target == b"../anywhere"
    assert found[b"folder"][0].permissions == 0o2751


@pytest.mark.requires_root
def test_devices_owners_and_old_times(tmp_path):
    os.mknod(tmp_path / "block", stat.S_IFBLK | 0o640, os.makedev(259, 1_000_000))
    os.mknod(tmp_path / "character", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(tmp_path / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    os.chown(tmp_path / "block", 2**32 - 2, 3_000_000_000)
    os.utime(tmp_path / "block", ns=(0, -1))
    os.utime(tmp_path / "character", ns=(0, -1_500_000_001))
    found = {entry.path: entry for entry in entries_of(tmp_path)}
    block, character, whiteout = found[b"block"], found[b"character"], found[b"whiteout"]
    assert (block.kind, block.rdev, block.permissions) == (FileType.BLOCK, (259, 1_000_000), 0o640)
    assert (block.uid, block.gid, block.mtime_ns) == (2**32 - 2, 3_000_000_000, -1)
    assert (character.kind, character.rdev, character.mtime_ns) == (
        FileType.CHARACTER,
        (1, 3),
        -1_500_000_001,
    )
    assert (whiteout.kind, whiteout.rdev) == (FileType.CHARACTER, (0, 0))


def test_names_and_targets_of_any_bytes(tmp_path):
    root = os.fsencode(tmp_path)
    names = [b"\xff\xfe", b"\x01\n\t", b"-rf", "ä/".encode()[:-1], b"x" * 255, b"\x80" * 255, b" ", b"..."]
    for name in names:
        Path(os.fsdecode(root + b"/" + name)).write_bytes(name)
    (tmp_path / "link").symlink_to(os.fsdecode(b"\xff" + b"t" * 4094))
    found = {entry.path: entry.target or (entry.content and content_of(entry)) for entry in entries_of(root)}
    assert found == {b"": None, b"link": b"\xff" + b"t" * 4094, **{name: name for name in names}}


def test_order_is_by_bytes_and_depth_first(tmp_path):
    for path in ("b/c/d", "b-x", "a/z", "B"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "b/c.txt").touch()
    (tmp_path / "ä").touch()
    expected = ["", "B", "a", "a/z", "b", "b/c", "b/c/d", "b/c.txt", "b-x", "ä"]
    assert paths_of(tmp_path) == [path.encode() for path in expected]
    assert paths_of(os.fsencode(tmp_path)) == paths_of(str(tmp_path))


def test_a_source_can_be_walked_twice_and_through_a_link(tmp_path):
    (tmp_path / "tree/below").mkdir(parents=True)
    (tmp_path / "link").symlink_to("tree")
    source = DirectorySource(tmp_path / "link")
    assert [entry.path for entry in source.entries()] == [b"", b"below"]
    assert [entry.path for entry in source.entries()] == [b"", b"below"]
    source.close()
    source.close()


def test_hard_links_lead_to_the_first_name(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b/first").write_bytes(b"shared")
    os.link(tmp_path / "b/first", tmp_path / "b/second")
    os.link(tmp_path / "b/first", tmp_path / "c")
    (tmp_path / "link").symlink_to("nowhere")
    os.link(tmp_path / "link", tmp_path / "link2", follow_symlinks=False)
    links = {entry.path: entry.hard_link_to for entry in entries_of(tmp_path)}
    assert links == {
        b"": None, b"b": None, b"b/first": None, b"b/second": b"b/first", b"c": b"b/first",
        b"link": None, b"link2": b"link",
    }  # fmt: skip
    assert {e.path: e.hard_link_to for e in entries_of(tmp_path, exclude=["first"])}[b"c"] == b"b/second"


@pytest.mark.requires_root
def test_xattrs_of_every_kind_of_inode(tmp_path):
    file, folder, link, fifo = tmp_path / "file", tmp_path / "folder", tmp_path / "link", tmp_path / "fifo"
    file.write_bytes(b"x")
    folder.mkdir()
    link.symlink_to("file")
    os.mkfifo(fifo)
    os.setxattr(file, b"user.\xff=%25", b"\0\n\xff=")
    os.setxattr(file, "user.empty", b"")
    os.setxattr(file, b"user." + b"n" * 250, b"long name")
    subprocess.run(["setcap", "cap_net_raw+ep", file], check=True)
    subprocess.run(["setfacl", "-m", "u:33:r", file], check=True)
    subprocess.run(["setfacl", "-d", "-m", "g:34:rx", folder], check=True)
    for inode in (folder, link, fifo):
        os.setxattr(inode, "trusted.t", inode.name.encode(), follow_symlinks=False)
    found = {entry.path: entry.xattrs for entry in entries_of(tmp_path)}
    assert [name for name, _ in found[b"file"]] == [
        b"security.capability",
        b"system.posix_acl_access",
        b"user.empty",
        b"user." + b"n" * 250,
        b"user.\xff=%25",
    ]
    assert dict(found[b"file"]) == {name: os.getxattr(file, name) for name, _ in found[b"file"]}
    assert found[b"folder"] == (
        (b"system.posix_acl_default", os.getxattr(folder, "system.posix_acl_default")),
        (b"trusted.t", b"folder"),
    )
    assert found[b"link"] == ((b"trusted.t", b"link"),)
    assert found[b"fifo"] == ((b"trusted.t", b"fifo"),)
    assert found[b""] == ()
    assert all(entry.xattrs == () for entry in entries_of(tmp_path, xattrs=False))


# --- Content ------------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    size=st.integers(0, 200 * KIB),
    writes=st.lists(
        st.tuples(st.integers(0, 200 * KIB), st.binary(min_size=1, max_size=9 * KIB)), max_size=5
    ),
    piece_size=st.sampled_from([4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, 5000, 199]),
)
def test_content_with_holes(tmp_path_factory, size, writes, piece_size):
    path = tmp_path_factory.mktemp("content") / "file"
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in writes:
            file.seek(offset)
            file.write(data)
    contents = [content_of(entry, piece_size) for entry in entries_of(path.parent) if entry.content]
    assert contents == [path.read_bytes()]


def test_a_tebibyte_that_is_mostly_hole_is_read_at_once(tmp_path):
    with (tmp_path / "file").open("wb") as file:
        file.truncate(TIB)
        os.pwrite(file.fileno(), b"middle", TIB // 2 + 5)
    for entry in entries_of(tmp_path):
        if entry.kind == FileType.REGULAR:
            pieces = list(entry.content(64 * KIB))
    assert pieces == [
        Hole(TIB // 2),
        (bytes(5) + b"middle").ljust(64 * KIB, b"\0"),
        Hole(TIB // 2 - 64 * KIB),
    ]


def test_content_may_be_left_unread_or_half_read(tmp_path):
    for name in "abc":
        (tmp_path / name).write_bytes(name.encode() * 10_000)
    seen = []
    for entry in entries_of(tmp_path):
        if entry.path == b"a":
            seen.append(next(entry.content(4 * KIB)))
        elif entry.path == b"c":
            seen.append(content_of(entry))
    assert seen == [b"a" * 4096, b"c" * 10_000]


def test_content_is_refused_after_the_next_entry(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    entries = list(entries_of(tmp_path))
    with pytest.raises(AssertionError, match="after the next entry"):
        next(entries[1].content(4 * KIB))


def test_reading_leaves_no_trace(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_bytes(b"x")
    old = (10**18, 10**18)  # an atime before the mtime would be updated by any read, relatime or not
    for path in (tmp_path / "folder/file", tmp_path / "folder"):
        os.utime(path, ns=(0, old[1]))
    assert [content_of(entry) for entry in entries_of(tmp_path) if entry.content] == [b"x"]
    assert [path.lstat().st_atime_ns for path in (tmp_path / "folder/file", tmp_path / "folder")] == [0, 0]


# --- Deep and wide ------------------------------------------------------------------------------------------


def make_deep(root, levels, name):
    """A chain of directories that no single path can reach, with a file in the deepest; gives its path."""
    fd = os.open(root, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    return b"/".join([name.encode()] * levels + [b"file"])


def test_paths_beyond_path_max_and_deeper_than_descriptors_reach(tmp_path):
    (tmp_path / "after").touch()
    deepest = make_deep(tmp_path, 300, "aa-a-name-of-20-byte")
    assert len(deepest) > 6000
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_descriptors() + 100, limits[1]))
    try:
        paths = paths_of(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert len(paths) == 1 + 300 + 1 + 1
    assert paths[-2:] == [deepest, b"after"]


def test_nesting_has_a_limit(tmp_path):
    make_deep(tmp_path, 4097, "d")
    with pytest.raises(BuildError, match="nested too deeply: expected at most 4096") as caught:
        paths_of(tmp_path)
    assert len(str(caught.value)) < 300
    subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # deeper than shutil.rmtree recurses


# --- Leaving out --------------------------------------------------------------------------------------------


def test_exclude(tmp_path):
    for path in ("keep/cache/x", "cache/y", "keep/tmp", "logs/a.log"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    (tmp_path / os.fsdecode(b"\xff.log")).touch()
    assert paths_of(tmp_path, exclude=["/cache", "*.log", "tmp/"]) == [
        b"", b"keep", b"keep/cache", b"keep/cache/x", b"keep/tmp", b"logs",
    ]  # fmt: skip


@pytest.mark.requires_root
def test_mount_points_are_crossed_unless_told_otherwise(tmp_path):
    for name in ("before", "mount", "next"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").touch()
    with file_system(tmp_path / "mount", "tmpfs"):
        (tmp_path / "mount/inside").touch()
        assert paths_of(tmp_path) == [
            b"", b"before", b"before/file", b"mount", b"mount/inside", b"next", b"next/file",
        ]  # fmt: skip
        assert paths_of(tmp_path, one_file_system=True) == [
            b"", b"before", b"before/file", b"mount", b"next", b"next/file",
        ]  # fmt: skip


# --- Refusals -----------------------------------------------------------------------------------------------


def refused_root(root, words):
    with pytest.raises(BuildError, match=words) as caught:
        DirectorySource(root)
    assert Path(os.fsdecode(root)).name in str(caught.value)


def test_root_must_be_a_directory(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    refused_root(tmp_path / "file", "Not a directory")
    refused_root(tmp_path / "missing", "No such file or directory")
    refused_root(os.fsencode(tmp_path / "loop"), "Too many levels of symbolic links")


@pytest.mark.requires_root
def test_an_attribute_too_long_to_store_is_named(tmp_path):
    (tmp_path / "mount").mkdir()
    with file_system(tmp_path / "mount", "tmpfs"):
        file = tmp_path / "mount/a\nb"
        file.touch()
        os.setxattr(file, "trusted.fits", bytes(65535))
        assert len(list(entries_of(tmp_path))) == 3
        os.setxattr(file, "trusted.big", bytes(65536))
        with pytest.raises(
            BuildError, match=r"trusted\.big is too long: expected at most 65535 bytes"
        ) as caught:
            paths_of(tmp_path)
        assert "path mount/a\\nb)" in str(caught.value)
        assert "--no-xattrs" in str(caught.value)
        assert len(paths_of(tmp_path, xattrs=False)) == 3


def append(path, data):
    with path.open("ab") as file:
        file.write(data)


def overwrite(path, data):
    with path.open("r+b") as file:
        file.write(data)


CHANGES = {
    "grows": lambda path: append(path, b"more"),
    "shrinks": lambda path: os.truncate(path, 10_000),
    "is emptied": lambda path: os.truncate(path, 0),
    "is written to": lambda path: overwrite(path, b"x"),
    "is touched": lambda path: os.utime(path, ns=(0, path.stat().st_mtime_ns + 1)),
    "changes its mode": lambda path: path.chmod(0o600),
    "is replaced": lambda path: path.with_name("other").replace(path),
    "vanishes": lambda path: path.unlink(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
@pytest.mark.parametrize("sparse", [False, True])
def test_a_file_that_changes_while_it_is_read(tmp_path, change, sparse):
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.write(b"x" * 20_000)
        file.truncate(40_000 if sparse else 20_000)
    (tmp_path / "other").write_bytes(b"y" * 20_000)
    os.utime(path, ns=(0, 0))
    entries = entries_of(tmp_path)
    entry = next(entry for entry in entries if entry.path == b"file")
    pieces = entry.content(4096)
    assert next(pieces) == b"x" * 4096
    change(path)
    with pytest.raises(BuildError, match="changed while it was read") as caught:
        list(pieces)
    entries.close()
    assert caught.value.where.path == "file"
    assert "--exclude" in str(caught.value)


def test_the_last_piece_is_held_back_until_the_file_is_known_to_be_unchanged(tmp_path):
    (tmp_path / "file").write_bytes(b"x" * 5000)
    entries = entries_of(tmp_path)
    entry = [next(entries), next(entries)][1]
    (tmp_path / "file").write_bytes(b"y" * 5000)
    with pytest.raises(BuildError, match="changed"):
        next(entry.content(8192))
    entries.close()


@pytest.fixture
def wide(tmp_path):
    """A directory with more names than the walk looks ahead."""
    root = tmp_path / "root"
    root.mkdir()
    for number in range(OFTEN):
        (root / f"{number:03}").touch()
    return root


REPLACEMENTS = {
    "gone": lambda path: None,
    "fifo": os.mkfifo,
    "directory": os.mkdir,
    "link out of the root": lambda path: path.symlink_to(path.parent.parent / "outside"),
    "link to a file": lambda path: path.symlink_to(path.parent.parent / "outside/secret"),
    "file": lambda path: path.write_bytes(b"x"),
}


@pytest.mark.parametrize("new", REPLACEMENTS)
@pytest.mark.parametrize("old", ["file", "directory", "fifo"])
def test_what_is_not_what_was_listed_is_refused_and_never_followed(wide, old, new):
    outside = wide.parent / "outside"
    outside.mkdir()
    (outside / "secret").write_bytes(b"secret")
    last = wide / "last"
    REPLACEMENTS[old](last)
    entries = entries_of(wide)
    seen = [next(entries)]
    shutil.rmtree(last) if old == "directory" else last.unlink()
    REPLACEMENTS[new](last)
    allowed = new == old or (old == "fifo" and "link" in new)  # told as what it is now
    with contextlib.nullcontext() if allowed else pytest.raises(BuildError, match="changed") as caught:
        seen += entries
    assert b"secret" not in b" ".join(entry.path for entry in seen)
    if not allowed:
        assert caught.value.where.path == "last"


def test_a_directory_moved_away_during_the_walk_does_not_lead_out_of_the_root(wide):
    deep = wide
    for level in range(100):
        deep /= f"level{level}"
        deep.mkdir()
    for number in range(OFTEN):
        (deep / f"{number:03}").touch()
    outside = wide.parent / "outside"
    outside.mkdir()
    (outside / "secret").touch()
    (wide / "level0/level1/level2/after").touch()
    entries = entries_of(wide)
    for entry in entries:
        if entry.path.endswith(b"level99/000"):
            break
    (wide / "level0/level1/level2").rename(outside / "level2")
    seen = []
    with pytest.raises(BuildError, match="changed"):
        seen += (entry.path for entry in entries)
    assert not [path for path in seen if b"secret" in path]


def as_nobody(action):
    """Run ``action`` in a child that may not do what root may; gives what it returned, as text."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(NOBODY, NOBODY, NOBODY)
                os.setresuid(NOBODY, NOBODY, NOBODY)
            os.write(writer, str(action()).encode())
        except BaseException:
            os.write(writer, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as answer:
        return answer.read().decode()


def refusal_of(source):
    try:
        return "not refused: " + str([entry.path for entry in source.entries()])
    except BuildError as error:
        return error


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_may_not_be_read_is_named(tmp_path, kind):
    REPLACEMENTS[kind](tmp_path / "closed")
    (tmp_path / "closed").chmod(0)
    tmp_path.chmod(0o755)
    source = DirectorySource(tmp_path)  # opened while it could be: the folders above are closed to nobody
    said = as_nobody(lambda: refusal_of(source))
    source.close()
    assert said == (
        "the source cannot be read: Permission denied (path closed); "
        "leave it out with --exclude, or build as a user who may read it"
    )
    (tmp_path / "closed").chmod(0o700)


def test_files_of_others_are_read_without_the_right_to_hide_it(tmp_path):
    (tmp_path / "file").write_bytes(b"of root")
    (tmp_path / "file").chmod(0o644)
    tmp_path.chmod(0o755)
    source = DirectorySource(tmp_path)
    said = as_nobody(lambda: [entry.content and content_of(entry) for entry in source.entries()])
    source.close()
    assert said == "[None, b'of root']"


def test_a_walk_given_up_closes_what_it_opened(wide):
    (wide / "0").mkdir()
    (wide / "0/0").mkdir()
    source = DirectorySource(wide)
    entries = source.entries()
    for _ in range(10):
        next(entries)
    assert open_descriptors() > 10
    entries.close()
    source.close()  # the fixture looks for what is left
