"""Images through the kernel's EROFS: the whole tree, on files and on loop devices, and what is put on top."""

import ctypes
import hashlib
import mmap
import os
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import mounts
from support.erofs_mounts import erofs_server
from support.images import KEY, build
from support.mounts import mounting, rafsfs, server_of, umount, wait_for_end, wait_until_gone
from support.trees import (
    ACL,
    CAPABILITY,
    Planned,
    PlannedSource,
    Segment,
    assert_same_tree,
    expected,
    read_folder,
    write_plan,
)

from rafsfs.format.erofs import FileType
from rafsfs.trust.keys import save_key

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

KIB = 1 << 10
MIB = 1 << 20
NOW = 1_700_000_000_123_456_789
CHUNK = 16 * KIB
NOBODY = 65534
BACKINGS = {"files": (), "loops": ("loops",)}


def file(path, *segments, **fields):
    return Planned(
        path,
        FileType.REGULAR,
        segments=tuple(Segment(*segment) for segment in segments),
        mtime_ns=NOW,
        **fields,
    )


TREE = (
    Planned(b"", FileType.DIRECTORY, permissions=0o755, uid=3, mtime_ns=NOW, xattrs=((b"user.root", b"r"),)),
    file(b"empty", permissions=0o400),
    file(b"one byte", (1, 1)),
    file(b"setuid", (5000, 2), permissions=0o6755, uid=1000, gid=2**32 - 2),
    file(
        b"attributes",
        (100, 3),
        xattrs=(
            (b"security.capability", CAPABILITY),
            (b"system.posix_acl_access", ACL),
            (b"trusted.overlay.opaque", b"y"),
            (b"user." + b"n" * 250, b"long name"),
            (b"user.empty", b""),
        ),
    ),
    file(b"block", (4096, 1)),
    file(b"chunk and a byte", (CHUNK, 1), (1, 2)),
    file(b"many chunks", (200 * CHUNK + 77, 5)),
    file(b"compresses", (10 * CHUNK, 4)),
    file(b"hole first", (3 * CHUNK, None), (5, 1)),
    file(b"hole last", (5, 1), (3 * CHUNK, None)),
    file(b"holes between", (CHUNK, 1), (CHUNK, None), (CHUNK, 3), (2 * CHUNK, None), (9, 5)),
    file(b"nothing but a hole", (5 * CHUNK + 9, None)),
    Planned(b"hard link", FileType.REGULAR, hard_link_to=b"setuid"),
    Planned(b"short link", FileType.SYMLINK, permissions=0o777, target=b"setuid", uid=7, mtime_ns=NOW),
    Planned(b"long link", FileType.SYMLINK, permissions=0o777, target=b"../" * 1365, mtime_ns=-NOW // 2),
    Planned(b"fifo", FileType.FIFO, permissions=0o600, xattrs=((b"security.x", b"y"),)),
    Planned(b"socket", FileType.SOCKET, permissions=0o755),
    Planned(b"char", FileType.CHARACTER, rdev=(0xFFF, 0xFFFFF), permissions=0o640, gid=6),
    Planned(b"null", FileType.CHARACTER, rdev=(1, 3), permissions=0o666),
    Planned(b"block device", FileType.BLOCK, rdev=(8, 1), permissions=0o640, gid=6),
    Planned(b"d", FileType.DIRECTORY, permissions=0o2755, xattrs=((b"system.posix_acl_default", ACL),)),
    file(b"d/" + b"n" * 255, (10, 1)),
    file(b"d/\xff\x01 \n\\", (10, 3)),
    *(file(b"d/small%04d" % number, (number * 37 % 6000, number)) for number in range(600)),
    *(Planned(b"deep" + b"/x" * depth, FileType.DIRECTORY) for depth in range(40)),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tree, its image and the key."""
    folder = tmp_path_factory.mktemp("place")
    (folder / "tree").mkdir()
    write_plan(TREE, folder / "tree")
    build(folder / "tree", folder / "img", chunk_size=CHUNK)
    save_key(KEY, folder / "key")
    return folder


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "m").mkdir()
    return tmp_path / "m"


def arguments(place, directory):
    return place / "img", directory, "--key", place / "key", "--frontend", "erofs", "--allow-other"


# --- The tree -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backing", BACKINGS)
def test_the_mount_is_the_tree(place, tmp_path, backing):
    with erofs_server(place / "img", tmp_path / "served", *BACKINGS[backing]) as server:
        assert_same_tree(read_folder(place / "tree"), read_folder(server.path))
        assert mounts.mounted(server.path).type == "erofs"
        assert server.stop() == 0
        assert mounts.mounted(server.path) is None
    assert " ERROR " not in server.log()


@pytest.mark.parametrize("backing", BACKINGS)
def test_an_image_of_several_blobs(tmp_path, backing):
    """Each image refers to chunks of those before it, so parts of their blobs are nobody's.

    "from 1" has blocks 16 to 23 of one blob and then block 24 of another: what many kernels mix up where
    these are block devices.
    """
    plans, references = [], []
    for number in range(4):
        names = [Planned(b"", FileType.DIRECTORY)]
        for older in range(number + 1):
            segments = [(3 * CHUNK * (1 + older) + older, 100 + older)] if older else [(77 * CHUNK, 101)]
            names.append(file(b"from %d" % older, *segments))
        plans.append((*names, file(b"own", (5 * CHUNK + number, 200 + number))))
        source = PlannedSource(plans[-1])
        folder = tmp_path / f"img{number}"
        references.append(build(source, folder, chunk_size=CHUNK, dictionaries=references[-1:]))
    with erofs_server(references[-1], tmp_path / "served", *BACKINGS[backing]) as server:
        assert_same_tree(expected(plans[-1]), read_folder(server.path))


def test_an_image_without_data(tmp_path):
    plan = (Planned(b"", FileType.DIRECTORY), file(b"empty"), file(b"hole", (MIB, None)))
    reference = build(PlannedSource(plan), tmp_path / "img")
    with erofs_server(reference, tmp_path / "served") as server:
        assert_same_tree(expected(plan), read_folder(server.path))


def test_sparse_files_cost_nothing_and_read_as_zeros(tmp_path):
    size = 1 << 36
    plan = (Planned(b"", FileType.DIRECTORY), file(b"huge", (5, 1), (size, None)))
    reference = build(PlannedSource(plan), tmp_path / "img")
    with erofs_server(reference, tmp_path / "served") as server:
        path = server.path / "huge"
        assert path.stat().st_size == size + 5
        with path.open("rb", buffering=0) as huge:
            for offset in (4096, MIB, size // 2, size - MIB):
                assert os.pread(huge.fileno(), MIB, offset) == bytes(MIB)
            assert os.pread(huge.fileno(), MIB, size) == bytes(5)


@pytest.mark.parametrize("backing", BACKINGS)
def test_a_hundred_thousand_names(tmp_path, backing):
    count = 100_000
    plan = (
        Planned(b"", FileType.DIRECTORY),
        Planned(b"many", FileType.DIRECTORY),
        *(file(b"many/%06d" % number, (number % 3, number % 3 + 1)) for number in range(count)),
    )
    reference = build(PlannedSource(plan), tmp_path / "img")
    with erofs_server(reference, tmp_path / "served", *BACKINGS[backing]) as server:
        many = server.path / "many"
        assert sorted(os.listdir(many)) == [f"{number:06}" for number in range(count)]  # noqa: PTH208
        for number in (0, 1, 2, 50_000, count - 1):
            path = many / f"{number:06}"
            assert path.stat().st_mtime_ns == NOW
            assert path.read_bytes() == Segment(number % 3, number % 3 + 1).plain()
        assert not (many / "100000").exists()
        subprocess.run(["find", many, "-size", "+5c"], check=True, stdout=subprocess.DEVNULL)


def test_many_readers_at_once_get_what_each_asked_for(place, directory):
    with mounting(*arguments(place, directory)):
        content = (place / "tree" / "many chunks").read_bytes()

        def read(seed):
            with (directory / "many chunks").open("rb", buffering=0) as reader:
                for step in range(200):
                    offset = (seed * 7919 + step * 104_729) % len(content)
                    assert os.pread(reader.fileno(), 5000, offset) == content[offset : offset + 5000]
                assert reader.read() == content

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(read, range(8)))


def test_mapped_and_executed(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    program = shutil.which("true")
    shutil.copy(os.path.realpath(program), tree / "program")
    reference = build(tree, tmp_path / "img", chunk_size=CHUNK)
    with erofs_server(reference, tmp_path / "served") as server:
        with (
            (server.path / "program").open("rb") as opened,
            mmap.mmap(opened.fileno(), 0, prot=mmap.PROT_READ) as mapped,
        ):
            assert mapped[:] == (tree / "program").read_bytes()
        subprocess.run([server.path / "program"], check=True)


# --- How it is mounted --------------------------------------------------------------------------------------


def test_the_mount_table_says_what_is_mounted_and_shows_no_other_mount(place, directory, tmp_path):
    before = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    with mounting(*arguments(place, directory)):
        found = mounts.mounted(directory)
        assert (found.type, found.source) == ("erofs", f"rafsfs:{place}/img:latest")
        new = [
            line
            for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
            if line not in before
        ]
        (line,) = [line for line in new if str(tmp_path) in line]
        options = line.split(" ")[5].split(",")
        assert {"ro", "nosuid", "nodev"} <= set(options)
        assert not [line for line in new if " - fuse rafsfs " in line]


def test_on_loop_devices_the_file_behind_them_says_what_is_mounted(place, tmp_path):
    with erofs_server(place / "img", tmp_path / "served", "loops") as server:
        source = mounts.mounted(server.path).source
        assert re.fullmatch(r"/dev/loop\d+", source)
        loop = Path("/sys/block") / Path(source).name / "loop"
        assert (loop / "backing_file").read_text().strip() == f"/rafsfs:{place}/img"
        assert (loop / "autoclear").read_text().strip() == "1"
        umount(server.path)
        assert server.wait() == 0
        wait_until_gone(loop / "backing_file")


def test_flags_of_mount_8_are_those_of_the_mount(place, directory):
    options = f"key={place}/key,frontend=erofs,allow_other,noexec,nosuid"
    program = "import sys; from rafsfs.cli.mount_helper import main; sys.exit(main())"
    environment = os.environ | {"PYTHONPATH": str(mounts.ROOT)}
    command = [sys.executable, "-c", program, place / "img", directory, "-o", options]
    subprocess.run(command, check=True, env=environment)
    try:
        flags = os.statvfs(directory).f_flag
        assert flags & os.ST_NOEXEC
        assert flags & os.ST_NOSUID
        assert flags & os.ST_RDONLY
        assert not flags & os.ST_NODEV
        with (directory / "null").open("rb") as null:
            assert null.read() == b""
    finally:
        umount(directory)


@pytest.fixture
def public_directory():
    """A directory that everybody can reach; those of pytest are for root alone."""
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="rafsfs-public-"))
    folder.chmod(0o755)
    (folder / "m").mkdir()
    try:
        yield folder / "m"
    finally:
        (folder / "m").rmdir()
        folder.rmdir()


def test_other_users_read_what_the_modes_allow(place, public_directory):
    directory = public_directory
    with mounting(*arguments(place, directory)):

        def cat(name):
            command = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "cat"]
            return subprocess.run([*command, directory / name], capture_output=True, check=False)

        # First bytes that no cache holds yet, so that the kernel asks us in the user's name.
        done = cat("many chunks")
        assert (
            hashlib.sha256(done.stdout).digest()
            == hashlib.sha256((place / "tree" / "many chunks").read_bytes()).digest()
        )
        assert cat("empty").returncode == 1
        assert b"Permission denied" in cat("empty").stderr


def test_the_read_ahead_is_raised(place, directory):
    before = set(Path("/sys/class/bdi").glob("erofs-*"))
    with mounting(*arguments(place, directory)):
        settings = [
            (path / "read_ahead_kb").read_text().strip()
            for path in set(Path("/sys/class/bdi").glob("erofs-*")) - before
        ]
        assert "1024" in settings


ODD_NAMES = ["with space", "comma,=colon:", "ünïcode", "back\\slash", "n" * 255, "double//slash/.././dots"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_images_with_odd_names(place, tmp_path, directory, name):
    (tmp_path / "double" / "slash").mkdir(parents=True)
    shutil.copytree(place / "img", tmp_path / name)
    image = f"{tmp_path}/{name}@{digest_of(place / 'img')}"
    with mounting(image, *arguments(place, directory)[1:]):
        source = mounts.mounted(directory).source
        assert source.startswith("rafsfs:/")
        assert source.endswith(Path(image).name[-200:])
        assert (directory / "one byte").read_bytes() == Segment(1, 1).plain()
        umount(directory)


def digest_of(folder):
    return re.search(r"sha256:[0-9a-f]{64}", (folder / "index.json").read_text())[0]


# --- On top of it -------------------------------------------------------------------------------------------


def test_overlays_on_top(place, directory, tmp_path):
    """Two deep, as a container's in a container's is."""
    with mounting(*arguments(place, directory)):
        lower = directory
        made = []
        try:
            for number in range(2):
                parts = {name: tmp_path / f"{name}{number}" for name in ("upper", "work", "merged")}
                for part in parts.values():
                    part.mkdir()
                options = f"lowerdir={lower},upperdir={parts['upper']},workdir={parts['work']}"
                done = subprocess.run(
                    ["mount", "-t", "overlay", "overlay", "-o", options, parts["merged"]],
                    check=False,
                    capture_output=True,
                    text=True,
                )
                assert done.returncode == 0, done.stderr
                made.append(parts["merged"])
                assert (parts["merged"] / "many chunks").read_bytes() == (
                    place / "tree" / "many chunks"
                ).read_bytes()
                (parts["merged"] / "one byte").write_bytes(b"changed %d" % number)
                assert (lower / "one byte").read_bytes() != b"changed %d" % number
                lower = parts["merged"]
        finally:
            for merged in reversed(made):
                subprocess.run(["umount", merged], check=True)


def test_bind_mounts_keep_it_alive(place, directory, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    log = tmp_path / "log"
    with mounting(*arguments(place, directory), "--log-file", log):
        server = server_of(log)
        subprocess.run(["mount", "--bind", directory, other], check=True)
        try:
            umount(directory)
            assert (other / "many chunks").read_bytes() == (place / "tree" / "many chunks").read_bytes()
        finally:
            umount(other)
        wait_for_end(server)


# --- What is refused ----------------------------------------------------------------------------------------

REFUSED = {
    "owner": (("--uid", 5), "leave them out, or use --frontend devfuse"),
    "group": (("--gid", 5), "leave them out, or use --frontend devfuse"),
    "to be for root alone": ((), "say so with --allow-other, or use --frontend devfuse"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_this_way_cannot_do(place, directory, name):
    options, hint = REFUSED[name]
    words = arguments(place, directory)
    done = rafsfs("mount", *(words[:-1] if not options else words), *options)
    assert (done.returncode, done.stdout) == (9, "")
    assert done.stderr.startswith("rafsfs: the kernel's EROFS ")
    assert done.stderr.endswith(f"; {hint}\n")
    assert done.stderr.count("\n") == 1
    assert mounts.mounted(directory) is None


def run_in(namespaces, place, directory, program="exec"):
    """Mount in new namespaces."""
    command = mounts.command_line("mount", *arguments(place, directory))
    return subprocess.run(
        ["unshare", *namespaces, "sh", "-c", f"{program} {command}"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(mounts.ROOT)},
        check=False,
        timeout=mounts.END_S,
    )


def test_root_of_a_user_namespace_is_told_that_it_may_not(place, directory):
    with mounts.fuse_for_everybody():
        done = run_in(["--user", "--map-root-user", "--mount"], place, directory)
    assert done.returncode == 9
    assert done.stderr.startswith("rafsfs: the mount was refused: erofs: Operation not permitted")
    assert done.stderr.count("\n") == 1


def test_without_the_device_of_fuse(place, directory):
    done = run_in(
        ["--mount", "--propagation", "private"], place, directory, "mount --bind /dev/null /dev/fuse && exec"
    )
    assert done.returncode == 9
    assert done.stderr.startswith("rafsfs: the mount was refused: fuse: Invalid argument")
    assert done.stderr.count("\n") == 1


def test_without_loop_devices_where_they_are_needed(place, tmp_path):
    program = (
        "mount -t tmpfs none /dev && mknod /dev/fuse c 10 229 && mknod /dev/null c 1 3 && "
        "mknod /dev/urandom c 1 9 && ln -s /proc/self/fd /dev/fd && exec"
    )
    (tmp_path / "m").mkdir()
    command = [
        sys.executable,
        mounts.ROOT / "tests/integration/erofs_server.py",
        place / "img",
        tmp_path / "m",
    ]
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "sh",
            "-c",
            f'{program} "$@"',
            "sh",
            *command,
            "loops",
        ],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": f"{mounts.ROOT}:{mounts.ROOT}/tests"},
        check=False,
        timeout=mounts.END_S,
    )
    (line,) = [line for line in done.stderr.splitlines() if "MountError: " in line]
    assert "takes no files (Linux 6.12 does), and there are no loop devices: No such file" in line
    assert "modprobe loop" in line and "--frontend devfuse" in line


def test_a_mount_point_that_vanishes(place, tmp_path):
    """Between the check and the mount somebody removes the directory."""
    with (
        pytest.raises(
            AssertionError,
            match=r"the mount was refused: erofs: No such file or directory .* mount point is still there",
        ),
        erofs_server(place / "img", tmp_path / "served", "vanish"),
    ):
        pass


# --- Whose it is --------------------------------------------------------------------------------------------


def test_another_s_erofs_is_not_unmounted(tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "m").mkdir()
    subprocess.run(["mkfs.erofs", tmp_path / "img", tmp_path / "tree"], check=True, capture_output=True)
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mount(bytes(tmp_path / "img"), bytes(tmp_path / "m"), b"erofs", 1, None) == 0
    try:
        done = rafsfs("umount", tmp_path / "m")
        assert done.returncode == 9
        assert "this is not a rafsfs mount" in done.stderr
        assert mounts.mounted(tmp_path / "m") is not None
    finally:
        assert libc.umount2(bytes(tmp_path / "m"), 0) == 0
