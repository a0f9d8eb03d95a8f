"""Hostile images mounted: their own reads fail, the server and all honest files beside them go on (8)."""

import errno
import os
import stat
import subprocess

import pytest
from attacks.sealing import BLOCK, ForgedSection, directory_block, plain_blob, seal
from attacks.surgery import KEY, put
from support.mounts import mounting, server_of, wait_for_end

from rafsfs.cli.mount import FRONTENDS
from rafsfs.format import erofs
from rafsfs.format.chunk import Suite
from rafsfs.format.erofs import NULL_BLOCK, DataLayout, FileType
from rafsfs.trust.keys import save_key

pytestmark = [pytest.mark.integration, pytest.mark.requires_root, pytest.mark.timeout(120)]

REGULAR, DIRECTORY, SYMLINK, BLOCK_DEVICE = (
    FileType.REGULAR,
    FileType.DIRECTORY,
    FileType.SYMLINK,
    FileType.BLOCK,
)
HONEST = b"honest" * 600
WALK_S = 60


def hostile_section():
    """All at once, each in a place of its own, beside one honest file."""
    section = ForgedSection(blocks=8, devices=[1], inode_blocks=2)
    entries = []

    def entry(name, nid, kind):
        entries.append((name, nid, kind))
        return nid

    entry(b"1-honest", section.file(len(HONEST), [(1, 0)]), REGULAR)
    entry(b"2-root-again", section.root, DIRECTORY)
    first, second = section.reserve(), section.reserve()
    section.directory([(b"second", second, DIRECTORY)], nid=first)
    section.directory([(b"first", first, DIRECTORY)], nid=second)
    entry(b"3-circle", first, DIRECTORY)
    entry(b"4-nowhere", 2**40, REGULAR)
    entry(b"5-superblock", 33, REGULAR)
    entry(b"6-vast", section.file(2**63 - 1, [(0, NULL_BLOCK)] * 2, bits=31), REGULAR)
    entry(b"7-other-device", section.file(BLOCK, [(9, 0)]), REGULAR)
    extremes = {"mtime": 2**63 - 1, "nlink": 2**32 - 1, "uid": 2**32 - 1, "gid": 2**32 - 1}
    entry(b"8-extremes", section.inode(stat.S_IFREG | 0o7777, **extremes), REGULAR)
    entry(b"9-long-ago", section.inode(stat.S_IFREG | 0o644, mtime=-(2**63)), REGULAR)
    block = section.block(directory_block([(b"a", section.root, DIRECTORY)]))
    entry(b"a-vast-folder", section.inode(stat.S_IFDIR | 0o755, size=8 << 30, union=block), DIRECTORY)
    entry(b"b-unsorted", section.directory([(b"z", first, DIRECTORY), (b"a", first, DIRECTORY)]), DIRECTORY)
    entry(b"c-empty-link", section.inode(stat.S_IFLNK | 0o777), SYMLINK)
    inline = erofs.inode_format(DataLayout.FLAT_INLINE)
    entry(b"d-nul-link", section.inode(stat.S_IFLNK, format=inline, size=3, behind=b"a\0b"), SYMLINK)
    area = erofs.XATTR_HEADER.pack(erofs.XattrHeader(0, 1)) + b"\xff" * 4
    entry(b"e-xattr", section.inode(stat.S_IFREG | 0o644, xattr_icount=2, behind=area), REGULAR)
    entry(b"f-other-type", section.inode(stat.S_IFREG | 0o644), DIRECTORY)
    entry(b"g-device", section.inode(stat.S_IFBLK | 0o666, union=2**32 - 1), BLOCK_DEVICE)
    crossing = section.inode(stat.S_IFREG | 0o644, format=inline, size=BLOCK - 1)
    entry(b"h-crossing", crossing, REGULAR)
    entry(b"i-inline-block", section.inode(stat.S_IFREG | 0o644, format=inline, size=BLOCK), REGULAR)
    folder = section.inode(stat.S_IFDIR | 0o755, format=inline, size=BLOCK, union=block)
    entry(b"j-inline-folder", folder, DIRECTORY)
    entry(
        b"k-tiny", section.inode(stat.S_IFREG | 0o644, format=inline, size=4, behind=b"tinySECRET"), REGULAR
    )
    section.directory(entries, nid=section.root)
    return section


@pytest.fixture(scope="module", params=FRONTENDS)
def frontend_name(request):
    return request.param


@pytest.fixture(scope="module")
def mount(frontend_name, tmp_path_factory):
    """Through the kernel's EROFS it is the kernel's parser that is attacked."""
    folder = tmp_path_factory.mktemp("hostile")
    save_key(KEY, folder / "key")
    blob = plain_blob(Suite.AES_256_GCM, HONEST)
    put(seal(hostile_section().pack(), [blob]), folder / "image")
    log = folder / "log"
    options = ("--key", folder / "key", "--log-file", log, "--allow-other", "--frontend", frontend_name)
    with mounting(folder / "image", folder / "mnt", *options) as directory:
        yield directory
        pid = server_of(log)
        assert (directory / "1-honest").read_bytes() == HONEST, "the server is still there"
    wait_for_end(pid)
    text = log.read_text()
    assert "Traceback" not in text and " failed with " not in text, text


def errno_of(action, *arguments, **named):
    try:
        action(*arguments, **named)
    except OSError as error:
        return error.errno
    return 0


@pytest.fixture
def refused(frontend_name):
    """Assert that a call fails. The kernel's EROFS may also show what it makes of the image's own bytes."""

    def assert_refused(action, *arguments, kernel_shows=None):
        try:
            found = action(*arguments)
        except OSError as error:
            expected = (errno.EIO, errno.EUCLEAN) if frontend_name == "erofs" else (errno.EIO,)
            assert error.errno in expected
        else:
            assert frontend_name == "erofs" and kernel_shows is not None
            assert kernel_shows(found)

    return assert_refused


def test_names_are_all_listed(mount):
    names = sorted(path.name for path in mount.iterdir())
    assert names[0] == "1-honest" and len(names) == 20


def test_directory_that_names_itself_is_refused_by_the_kernel_or_ends(mount):
    """Linux takes a directory with two names for damage (ELOOP, ESTALE or EIO), and walks end."""
    assert errno_of(os.listdir, mount / "2-root-again") in (errno.ELOOP, errno.ESTALE, errno.EIO)
    path = mount / "3-circle"
    for _ in range(10):
        path = path / "second" / "first"
    assert errno_of(os.listdir, path) in (errno.ELOOP, errno.ESTALE, errno.EIO)


@pytest.mark.parametrize(
    "command", [["find", ".", "-ls"], ["ls", "-lRZ"], ["du", "-a"], ["getfattr", "-R", "-d", "-m-", "."]]
)
def test_programs_that_walk_come_to_an_end(mount, command):
    done = subprocess.run(command, cwd=mount, capture_output=True, timeout=WALK_S, check=False)
    assert b"1-honest" in done.stdout or command[0] == "getfattr"
    assert b"No such process" not in done.stderr and b"not connected" not in done.stderr


@pytest.mark.parametrize("name", ["4-nowhere", "5-superblock", "f-other-type"])
def test_entry_of_no_inode_is_an_error(mount, refused, name):
    is_regular = name == "f-other-type" and (lambda status: stat.S_ISREG(status.st_mode))
    refused(os.lstat, mount / name, kernel_shows=is_regular or None)


def test_vast_file_reads_zeros_and_ends(mount, refused):
    with (mount / "6-vast").open("rb", buffering=0) as file:
        assert os.fstat(file.fileno()).st_size == 2**63 - 1
        assert os.pread(file.fileno(), 4096, 2**42) == bytes(4096)
        # Behind the metadata the kernel finds zeros, and takes them for the metadata's first block.
        magic = erofs.SUPERBLOCK_MAGIC.to_bytes(4, "little")
        refused(os.pread, file.fileno(), 4096, 2**60, kernel_shows=lambda found: found[1024:1028] == magic)
        assert errno_of(os.pread, file.fileno(), 4096, 2**63 - 4096) in (0, errno.EIO, errno.EINVAL)


def test_bytes_on_a_device_that_is_not_there_are_an_error(mount, refused):
    """The kernel takes the lowest bits of a device's number: what it shows is the only device there is."""
    only_device = HONEST.ljust(BLOCK, b"\0")
    refused((mount / "7-other-device").read_bytes, kernel_shows=lambda found: found == only_device)


@pytest.mark.parametrize("name", ["8-extremes", "9-long-ago", "g-device"])
def test_extreme_attributes_reach_the_kernel_or_fail(mount, name):
    assert errno_of(os.lstat, mount / name) in (0, errno.EIO, errno.EOVERFLOW)


@pytest.mark.parametrize("name", ["a-vast-folder", "b-unsorted"])
def test_folder_that_lies_is_an_error(mount, refused, name):
    refused(os.listdir, mount / name, kernel_shows=lambda names: names == ["z", "a"])
    assert errno_of(os.lstat, mount / name / "q") in (errno.ENOENT, errno.EIO, errno.EUCLEAN)


def test_files_in_the_metadata_show_their_own_bytes_or_none(mount, refused):
    assert (mount / "k-tiny").read_bytes() == b"tiny"
    refused((mount / "h-crossing").read_bytes)
    refused((mount / "i-inline-block").read_bytes)
    refused(os.listdir, mount / "j-inline-folder")


@pytest.mark.parametrize("name", ["c-empty-link", "d-nul-link"])
def test_link_that_leads_nowhere_is_an_error(mount, refused, name):
    refused(os.readlink, mount / name, kernel_shows=lambda target: target in ("", "a"))
    assert errno_of((mount / name).read_bytes) in (
        errno.EIO,
        errno.EUCLEAN,
        errno.ENOENT,
        errno.EISDIR,
    )


def test_attributes_that_lie_are_an_error(mount, refused):
    refused(os.listxattr, mount / "e-xattr", kernel_shows=lambda names: names == [])
    assert errno_of(os.getxattr, mount / "e-xattr", "user.a") in (errno.EIO, errno.EUCLEAN, errno.ENODATA)
    assert (mount / "e-xattr").read_bytes() == b""


def test_names_beyond_reason(mount):
    assert errno_of(os.lstat, mount / ("x" * 256)) == errno.ENAMETOOLONG
    assert errno_of(os.lstat, os.fsencode(mount) + b"/\xff\xfe\n\x1b[2J") == errno.ENOENT
