"""Tars as build sources: GNU tar and tarfile as writers, the directory that was packed as the oracle."""

import contextlib
import gzip
import io
import os
import random
import shutil
import stat
import subprocess
import tarfile
import zlib
from pathlib import Path

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from rafsfs.build.acl import acl_from_text
from rafsfs.build.directory_source import DirectorySource
from rafsfs.build.source import Hole
from rafsfs.build.tar_source import TarSource
from rafsfs.errors import BuildError
from rafsfs.format.erofs import FileType

KIB = 1024
GIB = 2**30
TIB = 2**40
POSIX = ["--format=posix", "--xattrs", "--xattrs-include=*", "--acls", "--sparse"]


def read_all(source, piece_size=64 * KIB):
    """Everything a source tells: path -> the entry's fields, with the pieces of content."""
    told = {}
    for entry in source.entries():
        pieces = None if entry.content is None or entry.hard_link_to else list(entry.content(piece_size))
        if entry.hard_link_to:
            told[entry.path] = ("link", entry.hard_link_to)
            continue
        told[entry.path] = (
            entry.kind, entry.permissions, entry.uid, entry.gid, entry.mtime_ns, entry.size, entry.rdev,
            entry.target, entry.xattrs, pieces,
        )  # fmt: skip
    source.close()
    return told


def read_tar(data, **options):
    return read_all(TarSource(io.BytesIO(data), **options))


def contents(data):
    """path -> bytes of all regular files of an archive."""
    found = {}
    for entry in TarSource(io.BytesIO(data)).entries():
        if entry.content:
            pieces = entry.content(4 * KIB)
            found[entry.path] = b"".join(bytes(p.length) if isinstance(p, Hole) else p for p in pieces)
    return found


def gnu_tar(folder, *options):
    command = ["tar", "-C", folder, "-c", "-f", "-", *options, "--sort=name", "."]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout


def refusal_of(data):
    """The one line that reading an archive ends in."""
    with pytest.raises(BuildError) as caught:
        read_tar(data)
    text = str(caught.value)
    assert text.isprintable()
    return text


# --- Archives made by hand ----------------------------------------------------------------------------------

END = bytes(1024)


def padded(data):
    return data + bytes(-len(data) % 512)


def header(name="file", kind=b"0", size=0, **fields):
    """One ustar header; names as str, bytes as surrogates."""
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    for field, value in fields.items():
        setattr(member, field, value)
    return member.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def with_checksum(block):
    block = bytearray(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def record(keyword, value):
    length = len(keyword) + len(value) + 3
    digits = len(str(length + len(str(length))))
    return b"%d %b=%b\n" % (length + digits, keyword, value)


def pax(*records, kind=b"x"):
    data = b"".join(record(*pair) for pair in records)
    return header("././@PaxHeader", kind, len(data)) + padded(data)


def member(name="file", data=b"", **fields):
    return header(name, size=len(data), **fields) + padded(data)


def test_records_made_here_are_what_tarfile_reads():
    data = pax((b"path", b"n" * 300), (b"k", b"v" * 93), (b"k2", b"v" * 90)) + member(data=b"x") + END
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        assert [(m.name, m.pax_headers["k"]) for m in archive] == [("n" * 300, "v" * 93)]


# --- Whole trees, there and back ----------------------------------------------------------------------------

NAMES = (
    st.binary(min_size=1, max_size=12) | st.sampled_from([b"a", b"b", b"\xff", b"new\nline", b"l" * 255])
).filter(lambda name: b"/" not in name and b"\0" not in name and name not in {b".", b".."})
XATTR_NAMES = st.sampled_from([b"trusted.", b"security.", b"user."]).flatmap(
    lambda namespace: (
        st.binary(min_size=1, max_size=20).filter(lambda n: b"\0" not in n).map(namespace.__add__)
    )
)
ATTRIBUTES = st.fixed_dictionaries(
    {
        "mode": st.integers(0, 0o7777),
        "owner": st.tuples(*[st.integers(0, 2**32 - 2) | st.integers(0, 5)] * 2),
        "mtime_ns": st.integers(-(2**31) * 10**9, 2**33 * 10**9) | st.integers(-(10**10), 10**10),
        "xattrs": st.dictionaries(XATTR_NAMES, st.binary(max_size=60), max_size=2),
        "acl": st.booleans(),
    }
)
FILES = st.lists(st.tuples(st.integers(0, 300 * KIB), st.binary(min_size=1, max_size=5 * KIB)), max_size=3)
LEAVES = st.one_of(
    st.tuples(st.just("file"), FILES),
    st.tuples(st.just("symlink"), st.binary(min_size=1, max_size=300).filter(lambda t: b"\0" not in t)),
    st.tuples(st.just("fifo"), st.none()),
    st.tuples(
        st.sampled_from(["character", "block"]), st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1))
    ),
    st.tuples(st.just("hard link"), st.integers(0, 20)),
)
TREES = st.dictionaries(
    NAMES,
    st.recursive(
        st.tuples(LEAVES, ATTRIBUTES),
        lambda below: st.tuples(
            st.tuples(st.just("directory"), st.dictionaries(NAMES, below, max_size=4)), ATTRIBUTES
        ),
        max_leaves=8,
    ),
    max_size=5,
)


def plant(folder, tree, links):
    """Make ``tree`` in ``folder``; attributes of directories last, as making what is in them changes them."""
    for name, ((kind, what), attributes) in tree.items():
        path = folder + b"/" + name
        if kind == "file":
            with open(path, "wb") as file:  # noqa: PTH123 - bytes
                for offset, data in what:
                    file.seek(offset)
                    file.write(data)
        elif kind == "symlink":
            Path(os.fsdecode(path)).symlink_to(os.fsdecode(what))
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "directory":
            Path(os.fsdecode(path)).mkdir()
            plant(path, what, links)
        elif kind == "hard link":
            if links:
                os.link(links[what % len(links)], path, follow_symlinks=False)
            continue
        else:
            os.mknod(path, {"character": stat.S_IFCHR, "block": stat.S_IFBLK}[kind], os.makedev(*what))
        if kind in {"file", "symlink"}:  # of others, GNU tar does not look for links
            links.append(path)
        dress(path, kind, **attributes)


def dress(path, kind, mode, owner, mtime_ns, xattrs, acl):
    os.chown(path, *owner, follow_symlinks=False)
    if kind != "symlink":
        Path(os.fsdecode(path)).chmod(mode)
    for name, value in xattrs.items():
        if kind in {"file", "directory"} or not name.startswith(b"user."):
            os.setxattr(path, name, value, follow_symlinks=False)
    if acl and kind in {"file", "directory"}:
        subprocess.run(["setfacl", "-m", f"u:{owner[0]}:rwx,g:12:x", path], check=True)
    if acl and kind == "directory":
        subprocess.run(["setfacl", "-d", "-m", "u:0:rx", path], check=True)
    os.utime(path, ns=(0, mtime_ns), follow_symlinks=False)


@pytest.mark.requires_root
@settings(max_examples=30)
@given(TREES)
def test_a_tree_packed_by_gnu_tar_tells_the_same_as_the_tree(tmp_path_factory, tree):
    folder = tmp_path_factory.mktemp("tree")
    plant(os.fsencode(folder), tree, [])
    assert read_tar(gnu_tar(folder, *POSIX)) == read_all(DirectorySource(folder))
    shutil.rmtree(folder)


@pytest.fixture
def small_tree(tmp_path):
    """One of everything that every format of tar can say."""
    root = tmp_path / "tree"
    (root / "folder/below").mkdir(parents=True)
    (root / "folder/file").write_bytes(b"content\n" * 1000)
    (root / "folder/below/empty").touch()
    (root / "folder/link").symlink_to("../folder/file")
    os.link(root / "folder/file", root / "second name")
    os.mkfifo(root / "fifo")
    for path in [*root.rglob("*"), root]:
        os.utime(path, ns=(0, 1_500_000_000 * 10**9), follow_symlinks=False)
    return root


@pytest.mark.parametrize("form", ["v7", "ustar", "oldgnu", "gnu", "posix"])
def test_formats(small_tree, form):
    if form in {"v7", "ustar"}:
        (small_tree / "fifo").unlink()  # v7 has none
        os.utime(small_tree, ns=(0, 1_500_000_000 * 10**9))
    else:
        (small_tree / ("n" * 255)).symlink_to("t" * 4095)  # only with extensions
        os.utime(small_tree / ("n" * 255), ns=(0, 1_500_000_000 * 10**9), follow_symlinks=False)
        os.utime(small_tree, ns=(0, 1_500_000_000 * 10**9))
    assert read_tar(gnu_tar(small_tree, f"--format={form}")) == read_all(DirectorySource(small_tree))


def test_prefix_field_of_ustar(tmp_path):
    deep = tmp_path / ("a" * 90) / ("b" * 60)
    deep.mkdir(parents=True)
    (deep / ("c" * 90)).write_bytes(b"x")
    data = gnu_tar(tmp_path, "--format=ustar")
    assert contents(data) == {b"/".join([b"a" * 90, b"b" * 60, b"c" * 90]): b"x"}


def test_prefix_field_of_star_is_shorter():
    block = bytearray(header("name"))
    block[257:265] = b"ustar\x0000"
    block[345:512] = (b"p" * 131 + b"15300771642 15300771642 ").ljust(163, b"\0") + b"tar\0"
    assert list(contents(with_checksum(block) + END)) == [b"p" * 131 + b"/name"]


def test_times_in_old_gnu_headers_are_no_prefix(small_tree):
    data = gnu_tar(small_tree, "--format=gnu", "--incremental", "--atime-preserve=system")
    assert set(read_tar(data)) == set(read_all(DirectorySource(small_tree)))


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_tarfile(small_tree, form):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        archive.add(small_tree, arcname=".")
    told, tree = read_tar(file.getvalue()), read_all(DirectorySource(small_tree))
    for path in (b"folder/file", b"second name"):  # tarfile may meet the other name first
        told.pop(path), tree.pop(path)
    assert told == tree


@pytest.mark.requires_root
def test_beyond_what_octal_fields_hold():
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        big = tarfile.TarInfo("file")
        big.uid, big.gid, big.mtime = 2**32 - 2, 3_000_000_000, -5
        archive.addfile(big)
        big.name, big.mtime = "later", 2**40
        archive.addfile(big)
    told = read_tar(file.getvalue())
    assert told[b"file"][2:5] == (2**32 - 2, 3_000_000_000, -5 * 10**9)
    assert told[b"later"][4] == 2**40 * 10**9


# --- Compression, pipes -------------------------------------------------------------------------------------


def gzip_tool(data):
    return subprocess.run(["gzip", "-c"], input=data, check=True, stdout=subprocess.PIPE).stdout


def zstd_tool(*options):
    return lambda data: (
        subprocess.run(["zstd", "-q", "-c", *options], input=data, check=True, stdout=subprocess.PIPE).stdout
    )


def in_parts(compress):
    return lambda data: b"".join(compress(data[at : at + 5000]) for at in range(0, len(data), 5000))


SKIPPABLE = b"\x50\x2a\x4d\x18\x04\0\0\0skip"
PACKERS = {
    "plain": bytes,
    "gzip": gzip_tool,
    "gzip, padded": lambda data: gzip_tool(data) + bytes(512),
    "gzip, members": in_parts(gzip.compress),
    "gzip with a name": lambda data: b"\x1f\x8b\x08\x08\0\0\0\0\0\x03name\0" + gzip.compress(data)[10:],
    "zstd": zstd_tool("-3"),
    "zstd, checksum": zstd_tool("--check", "-19"),
    "zstd, threads": zstd_tool("-T2", "--long=27"),
    "zstd, frames": in_parts(zstandard.compress),
    "zstd, skippable frames": lambda data: (
        SKIPPABLE + SKIPPABLE.join(map(zstandard.compress, (data[:700], data[700:])))
    ),
}


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS.keys())
def test_compression(small_tree, pack):
    data = gnu_tar(small_tree, "--format=posix")
    assert read_tar(pack(data)) == read_all(DirectorySource(small_tree))


@pytest.mark.parametrize("pack", ["--no-auto-compress", "--gzip", "--zstd"])
def test_a_pipe_is_read_to_its_end(small_tree, pack):
    (small_tree / "large").write_bytes(random.Random(1).randbytes(3_000_000))
    command = ["tar", "-C", small_tree, "-c", pack, "--format=posix", "--sort=name", "-b", "8192", "."]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as tar:
        told = read_all(TarSource(tar.stdout))
    assert (
        tar.returncode == 0
    )  # 4 MiB records: the last one is mostly padding, and a closed pipe would kill tar
    assert told == read_all(DirectorySource(small_tree))


class Trickle(io.RawIOBase):
    """A file that gives a few bytes at a time and can do nothing else."""

    def __init__(self, data):
        self._data = io.BytesIO(data)

    def read(self, size=-1):
        return self._data.read(min(size, 7))


@pytest.mark.parametrize("pack", ["plain", "gzip", "zstd"])
def test_short_reads(pack):
    data = PACKERS[pack](member(data=b"x" * 700) + END)
    assert read_all(TarSource(Trickle(data)))[b"file"][-1] == [b"x" * 700]


@pytest.mark.parametrize(
    ("start", "program"),
    [(b"BZh91AY&SY", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"\x04\x22\x4d\x18", "lz4"), (b"PK\x03\x04", "unzip")],
)
def test_other_compressions_are_named(start, program):
    assert f"expected plain, gzip or zstd, found {program}" in refusal_of(start + bytes(1000))


def test_a_file_that_cannot_be_read():
    with (
        Path("/proc/self/mem").open("rb") as file,
        pytest.raises(BuildError, match="cannot be read: Input/output error"),
    ):
        TarSource(file)


# --- Sparse files -------------------------------------------------------------------------------------------

SPARSE_FORMATS = [
    ["--format=gnu"],
    ["--format=posix", "--sparse-version=0.0"],
    ["--format=posix", "--sparse-version=0.1"],
    ["--format=posix", "--sparse-version=1.0"],
]


@pytest.mark.parametrize("options", SPARSE_FORMATS, ids=" ".join)
@pytest.mark.parametrize("pieces", [0, 1, 4, 5, 25, 60])
def test_sparse_files(tmp_path, options, pieces):
    path = tmp_path / ("long name " * 20)
    with path.open("wb") as file:
        for number in range(pieces):
            os.pwrite(file.fileno(), b"%04d" % number * 1000, number * 32 * KIB + 4 * KIB)
        file.truncate((pieces + 1) * 32 * KIB)
    (tmp_path / "then").write_bytes(b"what follows")
    for entry in (path, tmp_path / "then", tmp_path):
        os.utime(entry, ns=(0, 0))
    data = gnu_tar(tmp_path, "--sparse", *options)
    assert len(data) < path.stat().st_size
    assert contents(data) == {os.fsencode(path.name): path.read_bytes(), b"then": b"what follows"}
    told = read_all(TarSource(io.BytesIO(data)), 4 * KIB)
    assert told == read_all(DirectorySource(tmp_path), 4 * KIB)


@pytest.mark.parametrize("options", SPARSE_FORMATS, ids=" ".join)
def test_a_sparse_tebibyte(tmp_path, options):
    with (tmp_path / "file").open("wb") as file:
        os.pwrite(file.fileno(), b"start", 0)
        os.pwrite(file.fileno(), b"middle", TIB // 2)
        file.truncate(TIB)
    told = read_tar(gnu_tar(tmp_path, "--sparse", *options))
    assert told[b"file"][-1] == [
        b"start".ljust(64 * KIB, b"\0"), Hole(TIB // 2 - 64 * KIB),
        b"middle".ljust(64 * KIB, b"\0"), Hole(TIB // 2 - 64 * KIB),
    ]  # fmt: skip


class Zeros(io.RawIOBase):
    """A head, then so many zeros, then a tail, without holding the zeros."""

    def __init__(self, head, zeros, tail):
        self._parts, self._zeros, self._tail = io.BytesIO(head), zeros, tail

    def read(self, size=-1):
        if found := self._parts.read(size):
            return found
        if self._zeros:
            length = min(size, self._zeros)
            self._zeros -= length
            return bytes(length)
        self._parts, self._tail = io.BytesIO(self._tail), b""
        return self._parts.read(size)


def test_what_follows_a_sparse_file_with_more_data_than_octal_fields_say():
    size = 9 * GIB
    sparse = [
        (b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.name", b"big"),
        (b"GNU.sparse.realsize", b"%d" % (3 * size)), (b"size", b"%d" % (size + 512)),
    ]  # fmt: skip
    head = pax(*sparse) + header("dummy", size=1) + padded(b"1\n%d\n%d\n" % (size, size))
    file = Zeros(head, size, member("then", b"what follows") + END)
    sizes, data = {}, []
    for entry in TarSource(file).entries():  # the 9 GiB are skipped, not kept
        sizes[entry.path] = entry.size
        if entry.path == b"then":
            data += entry.content(4 * KIB)
    assert sizes == {b"": 0, b"big": 3 * size, b"then": 12}
    assert data == [b"what follows"]


def sparse_1_0(lines, data=b"", **records):
    fields = {b"GNU.sparse.major": b"1", b"GNU.sparse.minor": b"0", b"GNU.sparse.realsize": b"9999"}
    fields |= {key.replace("_", ".").encode(): value for key, value in records.items()}
    return pax(*fields.items()) + member(data=padded(lines) + data) + END


def sparse_0_1(numbers, size=b"9999", data=b""):
    return pax((b"GNU.sparse.map", numbers), (b"GNU.sparse.size", size)) + member(data=data) + END


MAPS = [
    sparse_1_0(b"1\n0\n"),
    sparse_1_0(b"1\n0\nfive\n", b"12345"),
    sparse_1_0(b"1\n0\n-5\n", b"12345"),
    sparse_1_0(b"1\n0\n6\n", b"12345"),
    sparse_1_0(b"1\n9995\n5\n", b"12345"),
    sparse_1_0(b"2\n5\n2\n4\n3\n", b"12345"),
    sparse_1_0(b"99999999\n"),
    sparse_1_0(b"9" * 600),
    sparse_1_0(b"\n"),
    sparse_1_0(b"0\n", GNU_sparse_minor=b"1"),
    sparse_1_0(b"0\n", GNU_sparse_realsize=b"-1"),
    sparse_1_0(b"0\n", GNU_sparse_realsize=b"9" * 20),
    sparse_1_0(b"0\n", GNU_sparse_realsize=b"9" * 5000),
    sparse_0_1(b"0,5,7", data=b"12345"),
    sparse_0_1(b"0,5,,7", data=b"12345"),
    sparse_0_1(b"0,5", b"4", data=b"12345"),
    sparse_0_1(b"0,5", b"", data=b"12345"),
    pax((b"GNU.sparse.size", b"9"), (b"GNU.sparse.offset", b"1")) + member(data=b"1") + END,
    sparse_1_0(b"1\n0\n5\n")[:-2048] + END,
]


@pytest.mark.parametrize("data", MAPS)
def test_damaged_maps(data):
    assert "(" in refusal_of(data)


# --- Times, owners, names -----------------------------------------------------------------------------------

TIMES = [
    (b"0", 0),
    (b"1.5", 1_500_000_000),
    (b"1795421090.386060075", 1_795_421_090_386_060_075),
    (b"9007199254740993.000000001", 9_007_199_254_740_993_000_000_001),  # no float holds it
    (b"-1", -1_000_000_000),
    (b"-0.5", -500_000_000),
    (b"-1.000000001", -1_000_000_001),
    (b"1.0000000019", 1_000_000_001),
    (b"-1.0000000011", -1_000_000_002),
    (b"7.", 7_000_000_000),
    (b"", 42_000_000_000),  # back to the header's
]


@pytest.mark.parametrize(("text", "mtime_ns"), TIMES)
def test_times_are_exact(text, mtime_ns):
    data = pax((b"mtime", text)) + member(mtime=42) + END
    assert read_tar(data)[b"file"][4] == mtime_ns


@given(st.integers(-(10**27), 10**27), st.integers(0, 3))
def test_any_time(mtime_ns, more_digits):
    sign, whole, fraction = "-" * (mtime_ns < 0), *divmod(abs(mtime_ns), 10**9)
    text = f"{sign}{whole}.{fraction:09}{'0' * more_digits}".encode()
    assert read_tar(pax((b"mtime", text)) + member() + END)[b"file"][4] == mtime_ns


RECORDS_REFUSED = [
    (b"mtime", b"yesterday"), (b"mtime", b"1e9"), (b"mtime", b"--1"), (b"mtime", b"."), (b"mtime", b"1.5.5"),
    (b"mtime", b"9" * 20), (b"mtime", b"9" * 5000), (b"mtime", b"nan"),
    (b"uid", b"-1"), (b"uid", b"4294967296"), (b"gid", b"1.0"), (b"gid", b"9" * 5000), (b"uid", b"0x1"),
    (b"size", b"-1"), (b"size", b"9" * 24), (b"path", b"a\0b"), (b"path", b"a/../b"), (b"path", b".."),
    (b"path", b"n" * 256), (b"path", b"d/" * 4097 + b"d"),
]  # fmt: skip


@pytest.mark.parametrize("pair", RECORDS_REFUSED)
def test_records_that_no_file_can_have(pair):
    assert len(refusal_of(pax(pair) + member(data=b"x") + END)) < 600


DAMAGED_PAX = [
    b"no length\n", b"0 a=b\n", b"5 a=b\n", b"7 a=b\n", b"6 a=bc", b"6 a b\n", b"6 =ab\n", b" 6 a=b\n",
    b"-6 a=b\n", b"6  a=b", b"9" * 30 + b" a=b\n", b"6 a=b\n\n", b"6 a=b\n1", b"\0", b"6 a=b\n\0",
]  # fmt: skip


@pytest.mark.parametrize("records", DAMAGED_PAX)
def test_damaged_pax_headers(records):
    data = header("x", b"x", len(records)) + padded(records) + member() + END
    assert "a pax header is damaged" in refusal_of(data)


def test_pax_overrides():
    data = b"".join([
        pax((b"uid", b"7"), (b"mtime", b"5"), (b"comment", b"x"), kind=b"g"),
        member("first", uid=1),
        pax((b"uid", b"8"), (b"path", b"second")),
        member("not this", uid=1),
        pax((b"uid", b"")),
        member("third", uid=1),
        pax((b"uid", b""), (b"mtime", b"6"), kind=b"g"),
        member("fourth", uid=2),
        END,
    ])  # fmt: skip
    told = read_tar(data)
    assert {path: fields[2] for path, fields in told.items()} == {
        b"": 0, b"first": 7, b"second": 8, b"third": 1, b"fourth": 2,
    }  # fmt: skip
    assert [fields[4] // 10**9 for fields in told.values()] == [0, 5, 5, 5, 6]


def test_devices_beyond_octal_fields():
    numbers = pax((b"SCHILY.devmajor", b"4095"), (b"SCHILY.devminor", b"1048575"))
    assert read_tar(numbers + header(kind=b"3") + END)[b"file"][6] == (4095, 1048575)
    too_large = pax((b"SCHILY.devminor", b"1048576"))
    assert "minor device number" in refusal_of(too_large + header(kind=b"4") + END)


def test_names_of_any_bytes():
    names = [b"\xff\xfe", b"new\nline", b" = ", "ä".encode(), b"\x80" * 255]
    data = (
        b"".join(pax((b"hdrcharset", b"BINARY"), (b"path", name)) + member(data=name) for name in names) + END
    )
    assert contents(data) == {name: name for name in names}
    raw = member(b"\xff/\xfe".decode("utf-8", "surrogateescape"), b"x") + END
    assert contents(raw) == {b"\xff/\xfe": b"x"}


# --- Extended attributes ------------------------------------------------------------------------------------

XATTRS = [
    ([(b"SCHILY.xattr.user.a", b"\0\n=\xff")], [(b"user.a", b"\0\n=\xff")]),
    ([(b"SCHILY.xattr.user.a%3Db%25c%20", b"")], [(b"user.a=b%c%20", b"")]),
    ([(b"SCHILY.xattr.user.z", b"1"), (b"SCHILY.xattr.security.x", b"2")],
     [(b"security.x", b"2"), (b"user.z", b"1")]),
    ([(b"LIBARCHIVE.xattr.user.%C3%A4%20%3D", b"AP8K")], [("user.ä =".encode(), b"\0\xff\n")]),
    ([(b"LIBARCHIVE.xattr.user.a", b"eA")], [(b"user.a", b"x")]),
    ([(b"LIBARCHIVE.xattr.user.a", b"eA==")], [(b"user.a", b"x")]),
    ([(b"LIBARCHIVE.xattr.user.a%20", b"eA"), (b"SCHILY.xattr.user.a%20", b"x")], [(b"user.a ", b"x")]),
    ([(b"RHT.security.selinux", b"system_u:object_r:bin_t:s0")],
     [(b"security.selinux", b"system_u:object_r:bin_t:s0\0")]),
    ([(b"SCHILY.acl.access", b"user::rwx,group::r-x,other::r--")], []),
    ([(b"SCHILY.fflags", b"nodump"), (b"LIBARCHIVE.creationtime", b"1"), (b"comment", b"x")], []),
]  # fmt: skip


@pytest.mark.parametrize(("records", "xattrs"), XATTRS)
def test_spellings_of_xattrs(records, xattrs):
    data = pax(*records) + member() + END
    assert read_tar(data)[b"file"][8] == tuple(xattrs)
    assert read_tar(data, xattrs=False)[b"file"][8] == ()


def test_acls_in_words_and_as_attributes():
    words = (b"SCHILY.acl.access", b"user::rwx,user:1:r--,group::r-x,mask::r-x,other::r--")
    default = (b"SCHILY.acl.default", words[1])
    binary = acl_from_text(b"user::r--,user:1:rwx,group::rw-,mask::-w-,other::--x")
    told = read_tar(pax(words, default) + header("folder", b"5") + END)[b"folder"][8]
    assert [name for name, _ in told] == [b"system.posix_acl_access", b"system.posix_acl_default"]
    assert [len(value) for _, value in told] == [4 + 5 * 8] * 2
    both = pax(words, (b"SCHILY.xattr.system.posix_acl_access", binary)) + member() + END
    assert read_tar(both)[b"file"][8] == ((b"system.posix_acl_access", binary),)
    assert read_tar(both)[b"file"][1] == 0o421  # as kernels have it: the mask is the mode's group
    assert read_tar(both, xattrs=False)[b"file"][1] == 0o644


XATTRS_REFUSED = [
    (b"SCHILY.xattr.system.nfs4_acl", b"x"),
    (b"SCHILY.xattr.com.apple.quarantine", b"x"),
    (b"SCHILY.xattr.user.", b"x"),
    (b"SCHILY.xattr.user", b"x"),
    (b"SCHILY.xattr.", b"x"),
    (b"SCHILY.xattr.user." + b"n" * 256, b"x"),
    (b"SCHILY.xattr.user.a\0b", b"x"),
    (b"SCHILY.xattr.user.a", bytes(65536)),
    (b"LIBARCHIVE.xattr.user.a", b"eA==eA=="),
    (b"LIBARCHIVE.xattr.user.a", b"not base64"),
    (b"LIBARCHIVE.xattr.user.a%00", b"eA"),
    (b"SCHILY.acl.ace", b"owner@:rwxpdDaARWcCos:fd-----:allow"),
    (b"SCHILY.xattr.system.posix_acl_access", b"not an ACL"),
    (b"SCHILY.acl.access", b"user::rwx,user:no such account:r--,group::r-x,mask::r-x,other::r--"),
]


@pytest.mark.parametrize("pair", XATTRS_REFUSED)
def test_xattrs_that_cannot_be_stored_are_named_with_a_way_out(pair):
    data = pax(pair) + member("folder/file") + END
    said = refusal_of(data)
    assert "path folder/file" in said
    assert "--no-xattrs" in said
    assert len(said) < 500
    assert set(read_tar(data, xattrs=False)) == {b"", b"folder", b"folder/file"}


@pytest.mark.requires_root
def test_capabilities_come_through(tmp_path):
    (tmp_path / "ping").touch()
    subprocess.run(["setcap", "cap_net_raw+ep", tmp_path / "ping"], check=True)
    told = read_tar(gnu_tar(tmp_path, *POSIX))[b"ping"][8]
    assert told == ((b"security.capability", os.getxattr(tmp_path / "ping", "security.capability")),)


# --- The tree that members make -----------------------------------------------------------------------------


def told_paths(*parts):
    return [entry.path for entry in TarSource(io.BytesIO(b"".join(parts) + END)).entries()]


def link(name, target, kind=b"1"):
    return header(name, kind, linkname=target)


def folder(name="folder", **fields):
    return header(name, b"5", **fields)


@pytest.mark.parametrize("name", ["a/b", "./a/b", "/a/b", "//a///b", "a/./b", "././/a/b"])
def test_spellings_of_a_path(name):
    assert told_paths(folder("./"), folder("a"), member(name)) == [b"", b"a", b"a/b"]


def test_missing_parents_are_made():
    source = TarSource(io.BytesIO(member("a/b/c") + member("a/b/d") + folder("a/b", mode=0o700) + END))
    told = [(entry.path, entry.kind, entry.permissions, entry.mtime_ns) for entry in source.entries()]
    made = (FileType.DIRECTORY, 0o755, 0)
    assert told[:3] == [(b"", *made), (b"a", *made), (b"a/b", *made)]
    assert [path for path, *_ in told[3:]] == [b"a/b/c", b"a/b/d", b"a/b"]
    assert told[-1][2] == 0o700


def test_an_archive_of_nothing_has_a_root():
    assert told_paths() == [b""]
    assert told_paths(header("label", b"V")) == [b""]


def test_later_members_replace_earlier_ones():
    assert told_paths(member("a"), member("a"), folder("a"), member("a/b"), folder("a"), member("a/b")) == [
        b"", b"a", b"a", b"a", b"a/b", b"a", b"a/b",
    ]  # fmt: skip
    replaced = b"".join([folder("a"), member("a/b"), member("a"), link("c", "a/b"), END])
    assert "what is not in the archive before it: a/b" in refusal_of(replaced)


def test_hard_links():
    source = TarSource(io.BytesIO(
        member("a", b"x") + link("./b", "./a") + link("c", "/b") + link("d", "s", b"2") + link("e", "d") + END
    ))  # fmt: skip
    links = {entry.path: entry.hard_link_to for entry in source.entries()}
    assert links == {b"": None, b"a": None, b"b": b"a", b"c": b"b", b"d": None, b"e": b"d"}


def test_a_hard_link_to_itself_changes_nothing():
    assert told_paths(member("a"), link("a", "./a"), link("b", "a")) == [b"", b"a", b"b"]


TREES_REFUSED = [
    ([member("a"), member("a/b")], "a parent is not a directory: a (offset 512, path a/b)"),
    ([link("a", "b", b"2"), member("a/b/c")], "a parent is not a directory: a (offset 512, path a/b/c)"),
    ([link("a", "b")], "what is not in the archive before it: b"),
    ([link("a", "b"), member("b")], "what is not in the archive before it: b"),
    ([member("b"), link("a", "b/c")], "what is not in the archive before it: b/c"),
    ([folder("b"), link("a", "b")], "a hard link leads to a directory: b"),
    ([folder("b"), link("a", ".")], "a hard link leads to"),
    ([folder("b"), link("a", "")], "a hard link leads to"),
    ([member("b"), link("a", "../b")], "not a file name: '..'"),
    ([folder("a"), member("a/b"), link("a", "a/b")], "above its target"),
    ([member("../a")], "not a file name: '..'"),
    ([member("a/../../b")], "not a file name: '..'"),
    ([member(".")], "the root of a tar archive is not a directory"),
    ([link("a", "", b"2")], "a symbolic link's target cannot be stored"),
    ([pax((b"linkpath", b"t" * 4096)), link("a", "", b"2")], "1 to 4095 bytes, found 4096"),
    ([pax((b"linkpath", b"t\0t")), link("a", "", b"2")], "a symbolic link's target cannot be stored"),
    (
        [header("a", b"M")],
        "not known: expected regular files, directories, links, devices and fifos, found b'M'",
    ),
    ([header("a", b"\xff")], "a kind of file that is not known"),
    ([header("a", b"A")], "a kind of file that is not known"),
]


@pytest.mark.parametrize(("parts", "words"), TREES_REFUSED)
def test_members_that_make_no_tree(parts, words):
    assert words in refusal_of(b"".join(parts) + END)


def test_directories_of_old_tars_are_files_with_a_slash():
    assert read_tar(header("a/", b"\0") + header("b/", b"0") + END)[b"a"][0] == FileType.DIRECTORY
    assert read_tar(header("a", b"\0") + END)[b"a"][0] == FileType.REGULAR
    assert read_tar(header("a", b"7") + END)[b"a"][0] == FileType.REGULAR


# --- Reading in order ---------------------------------------------------------------------------------------


def test_content_may_be_left_unread_or_half_read():
    data = member("a", b"a" * 10_000) + member("b", b"b" * 10_000) + member("c", b"c" * 10_000) + END
    got = []
    for entry in TarSource(io.BytesIO(data)).entries():
        if entry.path == b"a":
            got.append(next(entry.content(4096)))
        elif entry.path == b"c":
            got += entry.content(16 * KIB)
    assert got == [b"a" * 4096, b"c" * 10_000]


def test_content_out_of_turn_is_a_mistake_not_wrong_bytes():
    entries = list(TarSource(io.BytesIO(member("a", b"a" * 600) + member("b", b"b") + END)).entries())
    with pytest.raises(AssertionError, match="before the next entry"):
        list(entries[1].content(4096))
    source = TarSource(io.BytesIO(member("a", b"a" * 10_000) + member("b", b"b" * 10_000) + END))
    coming = source.entries()
    first = [next(coming), next(coming)][1]
    pieces = first.content(4096)
    next(pieces)
    next(coming)
    with pytest.raises(AssertionError, match="before the next entry"):
        next(pieces)


def test_an_archive_is_read_once():
    source = TarSource(io.BytesIO(END))
    assert len(list(source.entries())) == 1
    with pytest.raises(AssertionError, match="once"):
        next(source.entries())


# --- Damage -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sample():
    """A small archive with something of everything, and no padding beyond its end mark."""
    return b"".join([
        folder("./"),
        pax((b"mtime", b"1.5"), (b"SCHILY.xattr.user.a", b"value"), (b"path", b"file")),
        member("not this", b"content" * 50),
        header("L", b"L", 200) + padded(b"l" * 199 + b"\0") + member("short"),
        link("second", "file"),
        sparse_1_0(b"1\n600\n9\n", b"123456789")[: -len(END)],
        END,
    ])  # fmt: skip


@pytest.mark.parametrize("pack", ["plain", "gzip", "zstd", "zstd, frames"])
def test_cut_off_anywhere(sample, pack, tally):
    data = PACKERS[pack](sample)
    # A plain archive is whole with the first block of its end mark, a compressed one only with its checksums.
    whole = len(data) - 512 if pack == "plain" else len(data)
    expected = read_tar(data)
    for length in range(len(data)):
        if pack == "zstd, frames" and length == zstd_frame_ends(data, length):
            continue
        if length < whole:
            refusal_of(data[:length])
        elif length in (whole, len(data)):
            assert read_tar(data[:length]) == expected
    tally("cut-off tars refused", whole)


def zstd_frame_ends(data, length):
    """``length`` if a frame ends there behind the end mark's first block, else -1."""
    engine = zstandard.ZstdDecompressor().decompressobj(read_across_frames=True)
    with contextlib.suppress(zstandard.ZstdError):
        plain = engine.decompress(data[:length])
        if plain.endswith(bytes(512)) and len(plain) % 5000 == 0:
            return length
    return -1


@pytest.mark.parametrize("pack", ["plain", "gzip", "zstd, checksum"])
def test_every_byte_changed(sample, pack, tally):
    data = PACKERS[pack](sample)
    expected = read_tar(data)
    refused = 0
    for position in range(len(data)):
        changed = bytearray(data)
        changed[position] ^= 0x41
        try:
            told = read_tar(bytes(changed))
        except BuildError as error:
            assert str(error).isprintable()
            refused += 1
        else:  # times, names and the like in a compressed file's own header say nothing of the archive
            assert pack == "plain" or told == expected
    assert refused > len(data) // 4
    tally("changed tars refused", refused)


def test_a_damaged_header_is_not_the_end(sample):
    position = sample.index(b"second")
    damaged = sample[:position] + b"S" + sample[position + 1 :]
    said = refusal_of(damaged)
    assert "a tar header is damaged: expected checksum" in said
    assert f"offset {position}" in said


ODDITIES = {
    "nothing at all": (b"", "the tar archive is empty"),
    "text": (b"#!/bin/sh\n" * 200, "not a tar archive"),
    "one line": (b"#!/bin/sh\n", "not a tar archive: 10 bytes"),
    "an ELF file": (b"\x7fELF" + bytes(2000), "not a tar archive"),
    "no end mark": (member("a", b"x"), "ends without its end mark (offset 1024)"),
    "nothing behind an extension": (pax((b"a", b"b")) + END, "ends where a file should follow"),
    "a short gzip": (b"\x1f\x8b", "gzip data around the tar archive ends too early"),
    "gzip of nothing": (gzip.compress(b""), "the tar archive is empty"),
    "gzip of text": (gzip.compress(b"text" * 500), "not a tar archive"),
    "gzip, then garbage": (gzip.compress(member() + END) + b"garbage", "gzip data around the tar"),
    "zstd of nothing": (zstandard.compress(b""), "the tar archive is empty"),
    "zstd and then garbage": (zstandard.compress(member() + END) + b"garbage", "zstd data around the tar"),
    "a raw deflate": (zlib.compress(member() + END), "not a tar archive|ends too early"),
    "an extension of a gigabyte": (header("x", b"x", GIB) + member() + END, "extended too far"),
    "an extension of less than nothing": (header("x", b"x", -1) + member() + END, "extended too far"),
    "a file of less than nothing": (header("a", size=-1) + END, "size is out of range"),
    "a uid of less than nothing": (header("a", uid=-1) + END, "user id is out of range"),
    "no number": (with_checksum(header("a")[:100] + b"9999999\0" + header("a")[108:]) + END, "octal"),
}  # fmt: skip


@pytest.mark.parametrize(("data", "words"), ODDITIES.values(), ids=ODDITIES.keys())
def test_oddities(data, words):
    said = refusal_of(data)
    assert any(word in said for word in words.split("|")), said


def test_extensions_that_pile_up_are_bounded():
    one = pax((b"comment", b"x" * (3 << 20)))
    assert "extended too far" in refusal_of(one * 6 + member() + END)
    assert len(read_tar((one + member()) * 6 + END)) == 2
    several = b"".join(
        pax((b"comment%d" % number, b"x" * (3 << 20)), kind=b"g") + member() for number in range(6)
    )
    assert "extended too far" in refusal_of(several + END)


def test_a_bomb_is_stopped_behind_the_end(monkeypatch):
    monkeypatch.setattr("rafsfs.build.tar_stream.TAR_TRAILER_BYTES_MAX", 1 << 20)
    for pack in PACKERS.values():
        assert len(read_tar(pack(member() + END + bytes((1 << 20) - 512)))) == 2
        said = refusal_of(pack(member() + END + bytes(3 << 20)))
        assert "too much behind the end of the tar archive: expected at most 1048576 bytes" in said


def test_signed_checksums_of_old_tars():
    block = bytearray(header(b"\xe4\xf6".decode("utf-8", "surrogateescape")))
    signed = sum(byte - 256 * (byte > 127) for byte in block[:148] + block[156:]) + 8 * 32
    block[148:156] = b"%06o\0 " % signed
    assert list(contents(bytes(block) + END)) == [b"\xe4\xf6"]


@given(
    st.binary(max_size=600)
    | st.lists(st.binary(max_size=40), max_size=6).map(lambda parts: b"".join(map(padded, parts)))
)
def test_garbage_makes_build_errors_and_nothing_else(garbage):
    for data in (garbage, gzip.compress(garbage), b"\x1f\x8b\x08" + garbage, zstandard.compress(garbage)):
        with contextlib.suppress(BuildError):
            read_tar(data)


@settings(max_examples=300)
@given(
    st.lists(
        st.tuples(st.integers(0, 20), st.integers(0, 511), st.binary(min_size=1, max_size=12)), max_size=3
    ),
    st.data(),
)
def test_damage_with_good_checksums(sample, damage, data):
    """Blocks are changed and, when they look like headers, made to add up again, as an attacker would."""
    blocks = [sample[at : at + 512] for at in range(0, len(sample), 512)]
    for number, position, new in damage:
        block = blocks[number % len(blocks)]
        changed = (block[:position] + new + block[position + len(new) :])[:512]
        if block[257:262] == b"ustar":
            changed = with_checksum(changed)
        blocks[number % len(blocks)] = changed
    if data.draw(st.booleans()):
        blocks.pop(data.draw(st.integers(0, len(blocks) - 1)))
    with contextlib.suppress(BuildError):
        read_tar(b"".join(blocks))


def writers():
    """Other programs that pack tars, where they are."""
    return [program for program in ("tar", "bsdtar") if shutil.which(program)]


@pytest.mark.requires_root
@pytest.mark.parametrize("program", writers())
def test_every_writer_says_the_same_of_a_tree(tmp_path, program):
    root = tmp_path / "tree"
    (root / "folder").mkdir(parents=True)
    (root / "folder/file").write_bytes(b"x" * 100_000)
    os.setxattr(root / "folder/file", b"user.\xc3\xa4 =%", b"\0\xff")
    subprocess.run(["setfacl", "-m", "u:33:r,u:4242:rw,g:34:x", root / "folder/file"], check=True)
    subprocess.run(["setfacl", "-d", "-m", "u:33:r", root / "folder"], check=True)
    os.utime(root / "folder/file", ns=(0, -5_000_000_000))
    with (root / "sparse").open("wb") as file:
        os.pwrite(file.fileno(), b"x", 10 * GIB)
    options = POSIX if program == "tar" else ["--format=pax"]
    command = [program, "-C", root, "-c", "-f", "-", *options, "."]
    data = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    assert read_tar(data) == read_all(DirectorySource(root))


def test_a_tar_of_the_machines_own_files(tally):
    """The files of the standard library: many, of all sizes, and nobody made them for a test."""
    folder = Path(os.__file__).parent / "asyncio"
    data = gnu_tar(folder, *POSIX)
    told = read_tar(data)
    assert told == read_all(DirectorySource(folder))
    tally("tar members compared", len(told))
