"""Getting a FUSE connection mounted, and letting go of it: nobody else's mount is ever touched."""

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

from rafsfs.errors import MountError
from rafsfs.frontends import devfuse_mount
from rafsfs.frontends.devfuse_transport import Transport
from rafsfs.frontends.mount_options import MountOptions
from rafsfs.frontends.mountpoint_linux import mount_on, mounts
from rafsfs.fuse.server import FuseServer, ServerOptions

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

OPTIONS = MountOptions("a source, with\\a backslash")


def umount(directory):
    """As somebody else does; umount(8) would ask the mount's root first, and nobody answers here."""
    assert ctypes.CDLL(None).umount2(os.fsencode(directory), 0) == 0


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "m").mkdir()
    yield tmp_path / "m"
    while mount_on(tmp_path / "m") is not None:
        subprocess.run(["umount", "--lazy", tmp_path / "m"], check=True)


@pytest.fixture
def connect(directory):
    """Make mounts; close their connections."""
    made = []

    def make(on=directory, options=OPTIONS):
        made.append(devfuse_mount.mount(on, options))
        return made[-1]

    yield make
    for connection in made:
        os.close(connection.fd)


def test_a_mount_is_in_the_table_and_detaching_takes_it_out(connect, directory):
    connection = connect()
    found = mount_on(directory)
    assert (found.type, found.source, found.device) == ("fuse.rafsfs", OPTIONS.source, connection.device)
    connection.detach()
    assert mount_on(directory) is None
    connection.detach()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), {"ro", "nosuid", "nodev"}),
        (("suid", "dev"), {"ro"}),
        (("noexec", "nosuid", "dev"), {"ro", "nosuid", "noexec"}),
        (("exec", "nodev", "suid"), {"ro", "nodev"}),
    ],
)
def test_flags_are_what_libfuse_makes_of_them(connect, directory, flags, expected):
    connect(options=MountOptions("x", flags=frozenset(flags)))
    command = ["findmnt", "--noheadings", "--output", "VFS-OPTIONS", directory]
    shown = subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip().split(",")
    assert set(shown) & {"ro", "nosuid", "nodev", "noexec"} == expected


def test_a_mount_that_was_moved_is_found(connect, directory, tmp_path):
    connection = connect()
    (tmp_path / "other").mkdir()
    subprocess.run(["mount", "--bind", "--make-private", tmp_path, tmp_path], check=True)
    try:
        (tmp_path / "m2").mkdir()
        inner = connect(tmp_path / "m2", MountOptions("inner"))
        subprocess.run(["mount", "--move", tmp_path / "m2", tmp_path / "other"], check=True)
        assert mount_on(tmp_path / "other").device == inner.device
        inner.detach()
        assert mount_on(tmp_path / "other") is None
    finally:
        subprocess.run(["umount", "--lazy", tmp_path], check=True)
    assert mount_on(directory).device == connection.device


def test_a_mount_on_top_is_left_alone(connect, directory):
    below, above = connect(), connect()
    below.detach()
    assert mount_on(directory).device == above.device
    above.detach()
    assert mount_on(directory).device == below.device
    below.detach()
    assert mount_on(directory) is None


def test_a_mount_that_got_our_device_number_later_is_left_alone(connect, directory):
    """Numbers of devices are used again at once."""
    first = connect()
    umount(directory)
    second = connect()
    assert second.device == first.device
    first.detach()
    assert mount_on(directory).device == second.device


def test_read_ahead_is_raised_for_this_mount_alone(connect, directory):
    def read_ahead(device):
        return int(Path(f"/sys/class/bdi/{device}/read_ahead_kb").read_text())

    others = {mount.device: read_ahead(mount.device) for mount in mounts() if mount.type == "fuse.rafsfs"}
    connection = connect()
    connection.raise_read_ahead()
    assert read_ahead(connection.device) == devfuse_mount.READ_AHEAD_KIB
    for device, before in others.items():
        if device in {mount.device for mount in mounts()}:
            assert read_ahead(device) == before


def test_who_serves_a_mount_that_has_gone_again_is_told(connect, directory):
    connection = connect()
    umount(directory)
    transport = Transport(
        connection.fd,
        FuseServer(None, ServerOptions()),
        alarm=lambda seconds: None,
        ended=lambda: None,
        cores=2,
    )
    with pytest.raises(MountError, match="gone again: No such device"):
        transport.negotiate()
    assert transport.stop(0)


@pytest.mark.parametrize("missing", ["mount point", "device"])
def test_refusals_say_what_to_do(tmp_path, monkeypatch, missing):
    if missing == "device":
        monkeypatch.setattr(devfuse_mount, "DEVICE", tmp_path / "dev/fuse")
    before, descriptors = mounts(), len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(MountError, match=r"the mount was refused: .*; see that ") as caught:
        devfuse_mount.mount(tmp_path / "none", OPTIONS)
    assert caught.value.where.path == str(tmp_path / "none")
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors
    assert mounts() == before
