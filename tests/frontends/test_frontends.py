"""Both FUSE front ends against the kernel: what programs see of files in memory, and what none may do."""

# ruff: noqa: PTH101, PTH102, PTH104, PTH106, PTH108, PTH115, PTH116, PTH123, PTH208, PTH211
# System calls are meant, by their names.

import ctypes
import errno
import mmap
import os
import signal
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

MIB = 1 << 20


def errno_of(function, *arguments):
    """Call; return the number of the OSError, 0 when there is none."""
    try:
        function(*arguments)
    except OSError as error:
        return error.errno
    return 0


def read_at(path, offset, size):
    with open(path, "rb", buffering=0) as file:
        return os.pread(file.fileno(), size, offset)


# --- What programs see --------------------------------------------------------------------------------------


def test_contents(shared_mount):
    assert (shared_mount.path / "hello").read_bytes() == b"hello, world\n"
    assert (shared_mount.path / "empty").read_bytes() == b""


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (0, 8),
        (3, 20),
        (4090, 12),
        (MIB - 5, 10),
        (MIB, MIB),
        (2**32 - 3, 8),
        (5 * 2**30 - 1, 100),
        (5 * 2**30 + 3, 9),
    ],
)
def test_any_part_of_a_file_by_the_fast_and_the_slow_way(shared_mount, memory, offset, size):
    expected = memory.big_bytes(offset, min(size, memory.BIG_BYTES - offset))
    assert read_at(shared_mount.path / "big", offset, size) == expected


def test_many_readers_at_once(shared_mount, memory):
    def check(number):
        offset = number * 777_777
        assert read_at(shared_mount.path / "big", offset, 100_000) == memory.big_bytes(offset, 100_000)

    with ThreadPoolExecutor(16) as pool:
        assert len(list(pool.map(check, range(200)))) == 200


@pytest.mark.parametrize(("offset", "size"), [(0, 4096), (MIB - 512, 1 << 20), (5 * 2**30 - 512, 8192)])
def test_direct_reads_also_across_the_end(shared_mount, memory, offset, size):
    buffer = mmap.mmap(-1, size)
    file = os.open(shared_mount.path / "big", os.O_RDONLY | os.O_DIRECT)
    try:
        length = os.preadv(file, [buffer], offset)
    finally:
        os.close(file)
    assert buffer[:length] == memory.big_bytes(offset, min(size, memory.BIG_BYTES - offset))


def test_memory_maps(shared_mount, memory):
    size = memory.BIG_BYTES
    with (
        open(shared_mount.path / "big", "rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data,
    ):
        for offset in (0, MIB - 3, 2**32 - 3, size - 5):
            assert data[offset : offset + 7] == memory.big_bytes(offset, min(7, size - offset))


def test_data_and_holes(shared_mount, memory, frontend):
    file = os.open(shared_mount.path / "sparse", os.O_RDONLY)
    try:
        found = [os.lseek(file, 0, os.SEEK_DATA), os.lseek(file, 0, os.SEEK_HOLE)]
        if frontend == "devfuse":
            assert found == [MIB, 0]
            assert os.lseek(file, MIB + 5, os.SEEK_DATA) == MIB + 5
            assert os.lseek(file, MIB + 5, os.SEEK_HOLE) == MIB + 4096
            assert errno_of(os.lseek, file, MIB + 4096, os.SEEK_DATA) == errno.ENXIO
        else:  # libfuse's Python side cannot ask for them, so all counts as data
            assert found == [0, 4 * MIB]
        assert errno_of(os.lseek, file, 4 * MIB, os.SEEK_DATA) == errno.ENXIO
    finally:
        os.close(file)


def test_names_of_one_file_have_one_inode(shared_mount):
    one, again = os.stat(shared_mount.path / "twice"), os.stat(shared_mount.path / "twice_again")
    assert one.st_ino == again.st_ino
    assert one.st_nlink == 2


def test_links(shared_mount, memory):
    assert os.readlink(shared_mount.path / "link") == "hello"
    assert (shared_mount.path / "link").read_bytes() == b"hello, world\n"
    assert os.readlink(os.fsencode(shared_mount.path / "long_link")) == memory.LINK_TARGET_MAX


def test_names_of_any_bytes(shared_mount, memory):
    folder = os.fsencode(shared_mount.path)
    assert read_at(folder + b"/" + memory.ODD_NAME, 0, 9) == b"odd"
    assert read_at(folder + b"/" + memory.LONG_NAME, 0, 9) == b"long"
    assert {memory.ODD_NAME, memory.LONG_NAME} <= set(os.listdir(folder))
    assert errno_of(os.stat, folder + b"/" + b"n" * 256) == errno.ENAMETOOLONG


def test_types_modes_and_devices(shared_mount):
    modes = {
        "fifo": stat.S_IFIFO | 0o600,
        "socket": stat.S_IFSOCK | 0o600,
        "char": stat.S_IFCHR | 0o600,
        "block": stat.S_IFBLK | 0o600,
        "suid": stat.S_IFREG | 0o7755,
        "link": stat.S_IFLNK | 0o777,
        "many": stat.S_IFDIR | 0o755,
    }
    assert {name: os.lstat(shared_mount.path / name).st_mode for name in modes} == modes
    assert os.stat(shared_mount.path / "char").st_rdev == os.makedev(4095, 1_048_575)
    assert os.stat(shared_mount.path / "suid").st_nlink == 3


def test_sizes_times_and_owners(shared_mount, memory):
    big = os.stat(shared_mount.path / "big")
    assert big.st_size == memory.BIG_BYTES
    assert big.st_blocks == -(-memory.BIG_BYTES // 512)
    old = os.stat(shared_mount.path / "old")
    assert (old.st_mtime_ns, old.st_ctime_ns, old.st_atime_ns) == (memory.OLD_NS,) * 3
    assert os.stat(shared_mount.path / "future").st_mtime_ns == memory.FUTURE_NS
    owned = os.stat(shared_mount.path / "owned")
    assert (owned.st_uid, owned.st_gid) == memory.OWNER


def test_the_root_is_inode_1_and_others_are_their_nids(shared_mount):
    inodes = {entry.name: entry.inode() for entry in os.scandir(os.fsencode(shared_mount.path))}
    assert os.stat(shared_mount.path).st_ino == 1
    assert os.stat(shared_mount.path / "hello").st_ino == inodes[b"hello"] == 36 + 7


def test_statfs(shared_mount):
    found = os.statvfs(shared_mount.path)
    assert (found.f_frsize, found.f_blocks, found.f_bfree, found.f_bavail) == (4096, 12345, 0, 0)
    assert (found.f_files, found.f_ffree, found.f_namemax) == (678, 0, 255)
    assert found.f_flag & os.ST_RDONLY


def test_mount_table(shared_mount):
    fields = ("SOURCE", "FSTYPE", "OPTIONS")
    command = ["findmnt", "--noheadings", "--raw", "--output", ",".join(fields), shared_mount.path]
    source, kind, options = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
    assert source == r"memory,\x20of\x20a\x5ctest"
    assert kind == "fuse.rafsfs"
    assert {"ro", "nosuid", "nodev", "default_permissions"} <= set(options.split(","))


def test_large_directories_are_listed_whole_with_types(shared_mount, memory):
    entries = list(os.scandir(shared_mount.path / "many"))
    assert sorted(entry.name for entry in entries) == [f"{number:05d}" for number in range(memory.MANY)]
    assert all(entry.is_file(follow_symlinks=False) for entry in entries)
    assert {entry.stat(follow_symlinks=False).st_size for entry in entries} == {1, 2, 3, 4}


def test_a_directory_of_100_000_names(shared_mount, memory):
    found = {entry.name: entry.inode() for entry in os.scandir(shared_mount.path / "huge")}
    assert len(found) == 100_000
    assert found == {f"{number:06d}": nid for number, nid in enumerate(memory.HUGE_NIDS)}


class Dirent(ctypes.Structure):
    # struct dirent64 of <dirent.h>
    _fields_ = (
        ("ino", ctypes.c_uint64),
        ("off", ctypes.c_int64),
        ("reclen", ctypes.c_uint16),
        ("type", ctypes.c_uint8),
        ("name", ctypes.c_char * 256),
    )


def test_a_listing_resumes_at_any_position(shared_mount):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fdopendir.restype = ctypes.c_void_p
    libc.readdir64.restype = ctypes.POINTER(Dirent)
    libc.readdir64.argtypes = libc.closedir.argtypes = libc.telldir.argtypes = [ctypes.c_void_p]
    libc.telldir.restype = ctypes.c_long
    libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
    stream = libc.fdopendir(os.open(shared_mount.path / "many", os.O_RDONLY | os.O_DIRECTORY))
    try:
        names, positions = [], []
        while entry := libc.readdir64(stream):
            names.append(entry.contents.name)
            positions.append(libc.telldir(stream))
        assert names[:2] == [b".", b".."]
        for at in (2999, 0, 1500, 1, 2, 700):
            libc.seekdir(stream, positions[at])
            assert libc.readdir64(stream).contents.name == names[at + 1]
    finally:
        libc.closedir(stream)


# --- Extended attributes and ACLs ---------------------------------------------------------------------------


def test_xattrs(shared_mount):
    path = shared_mount.path / "xattrs"
    assert sorted(os.listxattr(path)) == ["user.a", "user.big", "user.empty"]
    assert os.getxattr(path, "user.a") == b"1"
    assert os.getxattr(path, "user.empty") == b""
    assert os.getxattr(path, "user.big") == bytes(range(256)) * 255
    assert errno_of(os.getxattr, path, "user.none") == errno.ENODATA
    assert os.listxattr(shared_mount.path / "hello") == []


def test_getfacl_shows_the_acl(shared_mount):
    command = ["getfacl", "--numeric", "--omit-header", "--absolute-names", shared_mount.path / "acl"]
    shown = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
    assert shown == ["user::rw-", "user:65534:r--", "group::---", "mask::r--", "other::---"]


def read_as(uid, path):
    command = ["setpriv", f"--reuid={uid}", "--regid=65533", "--clear-groups", "cat", path]
    return subprocess.run(command, capture_output=True, check=False, text=True, env={"LC_ALL": "C"})


@pytest.fixture
def open_folder(tmp_path):
    """Let others through to the mount: pytest's folders are private."""
    changed = []
    for folder in [tmp_path, *tmp_path.parents]:
        mode = folder.stat().st_mode
        if not mode & 0o001:
            folder.chmod(mode | 0o011)
            changed.append((folder, mode))
    yield
    for folder, mode in changed:
        folder.chmod(mode)


def test_the_kernel_decides_by_modes_and_acls(mount_memory, open_folder):
    with mount_memory("allow_other") as mount:
        assert read_as(65534, mount.path / "acl").stdout == "for one more"
        assert "Permission denied" in read_as(65532, mount.path / "acl").stderr
        assert "Permission denied" in read_as(65534, mount.path / "private").stderr
        assert read_as(65532, mount.path / "hello").stdout == "hello, world\n"


def test_without_allow_other_nobody_else_gets_in(mount_memory, open_folder):
    with mount_memory() as mount:
        assert "Permission denied" in read_as(65534, mount.path / "hello").stderr


def test_all_files_may_be_shown_as_somebody_s(mount_memory):
    with mount_memory("uid=1000", "gid=0") as mount:
        owners = {(entry.stat().st_uid, entry.stat().st_gid) for entry in os.scandir(mount.path / "many")}
        assert owners == {(1000, 0)}
        assert (os.stat(mount.path / "owned").st_uid, os.stat(mount.path / "owned").st_gid) == (1000, 0)
        assert os.stat(mount.path).st_uid == 1000


# --- What the kernel may remember ---------------------------------------------------------------------------


def test_names_missing_names_attributes_and_contents_are_asked_for_once(mount_memory):
    with mount_memory() as mount:
        for _ in range(5):
            assert not (mount.path / "missing").exists()
            assert (mount.path / "hello").stat().st_size == 13
            assert (mount.path / "hello").read_bytes() == b"hello, world\n"
        calls = mount.calls()
    assert calls["lookup missing"] == 1
    assert calls["lookup hello"] == 1
    assert calls["try_read"] == 1


def test_a_listing_brings_the_attributes_with_it(mount_memory, memory):
    with mount_memory() as mount:
        names = os.listdir(mount.path / "many")
        for name in names:
            os.stat(mount.path / "many" / name)
        calls = mount.calls()
    assert len(names) == memory.MANY
    assert not [call for call in calls if call.startswith("lookup 0")]


def test_opening_files_and_folders_asks_the_server_nothing(mount_memory, frontend):
    if frontend != "devfuse":
        return  # libfuse's Python side cannot do without
    open_, release, opendir, releasedir = 14, 18, 27, 29  # linux/fuse.h
    with mount_memory() as mount:
        for _ in range(5):
            for name in ("hello", "empty", "twice", "owned"):
                (mount.path / name).read_bytes()
            assert os.listdir(mount.path / "many")
            assert os.listdir(mount.path)
        calls = mount.calls()
    assert calls[f"request {open_}"] == 1  # it is told so with the first
    assert calls[f"request {opendir}"] == 1
    assert f"request {release}" not in calls
    assert f"request {releasedir}" not in calls


def test_a_listing_is_asked_for_once(mount_memory, frontend):
    with mount_memory() as mount:
        once = os.listdir(mount.path / "many")
        assert os.listdir(mount.path / "many") == once
        calls = mount.calls()
    if frontend == "devfuse":
        assert calls["directory"] == calls["request 44"]  # READDIRPLUS
        assert calls["directory"] < 20


# --- Nobody writes ------------------------------------------------------------------------------------------


def writes(path):
    """Everything that would change the file system, by name."""
    file, new, folder = path / "hello", path / "new", path / "many"
    return {
        "open to write": lambda: os.open(file, os.O_WRONLY),
        "open to read and write": lambda: os.open(file, os.O_RDWR),
        "open to truncate": lambda: os.open(file, os.O_RDONLY | os.O_TRUNC),
        "create": lambda: os.open(new, os.O_WRONLY | os.O_CREAT),
        "truncate": lambda: os.truncate(file, 0),
        "chmod": lambda: os.chmod(file, 0o777),
        "chown": lambda: os.chown(file, 1, 1),
        "utime": lambda: os.utime(file, (1, 1)),
        "mkdir": lambda: os.mkdir(new),
        "mknod": lambda: os.mknod(new),
        "symlink": lambda: os.symlink("x", new),
        "link": lambda: os.link(file, new),
        "rename": lambda: os.rename(file, new),
        "unlink": lambda: os.unlink(file),
        "rmdir": lambda: os.rmdir(folder),
        "setxattr": lambda: os.setxattr(file, "user.x", b""),
        "removexattr": lambda: os.removexattr(path / "xattrs", "user.a"),
    }


@pytest.mark.parametrize("mode", ["ro", "rw"])
def test_nobody_writes_even_after_a_remount(mount_memory, mode):
    with mount_memory() as mount:
        subprocess.run(["mount", "-i", "-o", f"remount,{mode}", mount.path], check=True)
        outcomes = {name: errno_of(write) for name, write in writes(mount.path).items()}
        assert outcomes == dict.fromkeys(outcomes, errno.EROFS)
        assert (mount.path / "hello").read_bytes() == b"hello, world\n"
        assert mount.process.poll() is None


# --- What goes wrong ----------------------------------------------------------------------------------------


def test_damage_is_for_those_who_read_it(mount_memory, memory):
    with mount_memory() as mount:
        damaged = mount.path / "damaged"
        with open(damaged, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            pages = range(0, 3 * MIB, 65536)
            bad = [at for at in pages if errno_of(os.pread, file.fileno(), 4096, at) == errno.EIO]
            assert bad == [at for at in pages if at in memory.DAMAGE]
            assert os.pread(file.fileno(), 4096, 0) == bytes(4096)
        assert (mount.path / "hello").read_bytes() == b"hello, world\n"
        mount.damage_logged()
        assert mount.stop() == 0
        (line,) = mount.damage_logged()
    for part in ("blob sha256:ab", "chunk 1", "offset 4711", "/damaged", "at offset 1048576"):
        assert part in line


def test_the_errno_is_the_error_s_own(mount_memory):
    with mount_memory() as mount:
        assert errno_of(read_at, mount.path / "denied", 0, 1) == errno.EACCES


def test_a_damaged_inode_hides_no_other_name(mount_memory):
    with mount_memory() as mount:
        names = os.listdir(mount.path)
        assert "broken_inode" in names
        assert "many" in names
        assert errno_of(os.stat, mount.path / "broken_inode") == errno.EIO
        assert (mount.path / "hello").stat().st_size == 13
        mount.damage_logged()
        mount.stop()
        assert mount.log().count("page 17") == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("division", r"ZeroDivisionError: by\nzero"),
        ("descriptors", "OSError: [Errno 24]"),
        ("not_found", "FileNotFoundError: [Errno 2] a file of the server"),
        ("group", "ExceptionGroup"),
        ("memory", "MemoryError"),
        ("assertion", "AssertionError"),
        ("slow", "RuntimeError: slow"),
    ],
)
def test_a_mistake_while_reading_is_one_reader_s_error_and_one_line(mount_memory, name, kind):
    with mount_memory() as mount:
        assert errno_of(read_at, mount.path / "bugs" / name, 0, 1) == errno.EIO
        assert (mount.path / "hello").read_bytes() == b"hello, world\n"
        assert mount.stop() == 0
        lines = [line for line in mount.log().splitlines() if "ERROR" in line]
    assert len(lines) == 1, lines
    assert kind in lines[0]
    assert "read of node" in lines[0]


def test_mistakes_elsewhere(mount_memory):
    with mount_memory() as mount:
        bugs = mount.path / "bugs"
        assert errno_of(os.stat, bugs / "deep" / "attributes") == errno.EIO
        assert errno_of(os.readlink, bugs / "link") == errno.EIO
        assert errno_of(os.listxattr, bugs / "xattrs") == errno.EIO
        assert errno_of(os.getxattr, bugs / "xattrs", "user.a") == errno.EIO
        assert errno_of(os.listdir, bugs / "directory") == errno.EIO
        assert (mount.path / "hello").read_bytes() == b"hello, world\n"
        assert mount.stop() == 0
        kinds = [
            line.split(" failed with ")[1].split(":")[0]
            for line in mount.log().splitlines()
            if "ERROR" in line
        ]
    assert set(kinds) == {"KeyError", "UnicodeDecodeError", "TypeError", "IndexError"}


def test_damage_under_a_memory_map_is_a_bus_error(mount_memory):
    program = (
        "import mmap, sys; file = open(sys.argv[1], 'rb')\n"
        "data = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)\n"
        "assert data[0] == 0; print('read', flush=True); data[1 << 20]"
    )
    with mount_memory() as mount:
        done = subprocess.run([sys.executable, "-c", program, mount.path / "damaged"], stdout=subprocess.PIPE)
        assert (done.stdout, done.returncode) == (b"read\n", -signal.SIGBUS)
        assert (mount.path / "hello").read_bytes() == b"hello, world\n"


def test_a_reply_that_the_kernel_refuses_is_an_error_for_who_asked(mount_memory, frontend):
    with mount_memory() as mount:
        assert errno_of(os.readlink, mount.path / "too_long_link") in (errno.EIO, errno.ENAMETOOLONG)
        assert (mount.path / "hello").read_bytes() == b"hello, world\n"
        assert mount.stop() == 0
        if frontend == "devfuse":
            assert "the kernel refused a reply of 5016 bytes: Invalid argument" in mount.log()


# --- What hangs ---------------------------------------------------------------------------------------------

DIRECT_READ = """
import mmap, os, sys
os.preadv(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), [mmap.mmap(-1, 4096)], 0)
"""


def asker(kind, path):
    """A process that asks for something that hangs."""
    commands = {
        "look-up": ["stat", path / "hanging"],
        "read": [sys.executable, "-c", DIRECT_READ, path / "gated"],
    }
    return subprocess.Popen(commands[kind], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


@pytest.mark.parametrize("kind", ["look-up", "read"])
@pytest.mark.parametrize("frontend", ["devfuse"], indirect=True)
def test_what_hangs_holds_up_nobody_else(mount_memory, kind):
    with mount_memory() as mount:
        process = asker(kind, mount.path)
        assert mount.process.stdout.readline() == b"waiting\n"
        assert (mount.path / "hello").read_bytes() == b"hello, world\n"
        assert len(os.listdir(mount.path / "many")) == 3000
        assert process.poll() is None
        with open(mount.gate, "w"):
            assert process.wait(30) == (1 if kind == "look-up" else 0)  # there is no such name


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("frontend", ["devfuse"], indirect=True)
def test_who_hangs_can_be_interrupted(mount_memory, number):
    """Not so in a direct read: the kernel itself waits for those without an end (fuse_direct_IO)."""
    with mount_memory() as mount:
        process = asker("look-up", mount.path)
        assert mount.process.stdout.readline() == b"waiting\n"
        process.send_signal(number)
        assert process.wait(30) != 0
        assert (mount.path / "hello").read_bytes() == b"hello, world\n"
        assert mount.stop() == 0
        assert "ERROR" not in mount.log()


@pytest.mark.parametrize("kind", ["look-up", "read"])
@pytest.mark.parametrize("frontend", ["devfuse"], indirect=True)
def test_what_hangs_does_not_hold_up_the_end(mount_memory, kind):
    with mount_memory() as mount:
        process = asker(kind, mount.path)
        assert mount.process.stdout.readline() == b"waiting\n"
        assert mount.stop() == 0
        assert process.wait(30) != 0
        assert not os.path.ismount(mount.path)


# --- The end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signals_unmount_although_files_are_open(mount_memory, number):
    gone = (errno.ENOTCONN, errno.ECONNABORTED)
    with mount_memory() as mount:
        file = os.open(mount.path / "big", os.O_RDONLY)
        os.pread(file, 10, 0)
        assert mount.stop(number) == 0
        assert not os.path.ismount(mount.path)
        assert errno_of(os.pread, file, 10, 2**31) in gone
        assert errno_of(os.close, file) in (0, *gone)


@pytest.mark.parametrize("name", ["stuck", "gated"])
def test_reads_that_wait_for_ever_do_not_hold_up_the_end(mount_memory, name):
    with mount_memory() as mount:
        reader = subprocess.Popen(["cat", mount.path / name], stderr=subprocess.PIPE, env={"LC_ALL": "C"})
        assert (mount.path / "hello").read_bytes() == b"hello, world\n"
        assert mount.process.stdout.readline() == b"waiting\n"
        assert mount.stop() == 0
        complaint = reader.communicate(timeout=30)[1].decode()
        assert "not connected" in complaint or "abort" in complaint
        assert not os.path.ismount(mount.path)


def test_a_reader_that_is_killed_leaves_nothing_and_says_nothing(mount_memory):
    with mount_memory() as mount:
        reader = subprocess.Popen(["cat", mount.path / "gated"])
        assert mount.process.stdout.readline() == b"waiting\n"
        reader.kill()
        reader.wait(30)
        with open(mount.gate, "w"):
            assert (mount.path / "hello").read_bytes() == b"hello, world\n"
        assert (mount.path / "many" / "00001").read_bytes() == b"1"
        assert mount.stop() == 0
        assert "ERROR" not in mount.log()


def test_an_unmount_from_outside_ends_the_server(mount_memory):
    with mount_memory() as mount:
        subprocess.run(["umount", mount.path], check=True)
        assert mount.process.wait(30) == 0


def test_a_lazy_unmount_lets_readers_finish(mount_memory, memory):
    with mount_memory() as mount:
        with open(mount.path / "big", "rb", buffering=0) as file:
            subprocess.run(["umount", "--lazy", mount.path], check=True)
            assert os.pread(file.fileno(), 100, 2**31) == memory.big_bytes(2**31, 100)
            assert mount.process.poll() is None
        assert mount.process.wait(30) == 0
