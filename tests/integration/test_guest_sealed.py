"""A guest opens an image itself: the host serves ciphertext without a key, and is caught when it tampers."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from support.guest import Guest, Said
from support.guest_boot import initramfs
from support.guest_tools import tools_disk
from support.images import build
from support.mounts import flip
from support.serving import Server, serving

from rafsfs.cli.exit_codes import ExitCode
from rafsfs.fs.image import open_sealed
from rafsfs.store.reference import Reference
from rafsfs.trust.keys import KeyRing, save_key
from rafsfs.trust.material import SymmetricKey
from rafsfs.trust.opening import TrustPolicy
from rafsfs.types import ChunkIndex

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]

CHUNK_BYTES = 1 << 16
SECRET = b"what the host must not see"
FILES = {
    "one": os.urandom(CHUNK_BYTES),
    "two": os.urandom(CHUNK_BYTES),
    "secret": SECRET * 1000,
    "whole": os.urandom(3 * CHUNK_BYTES),
}
RELEASE = 2
CACHE_BYTES = 1 << 20


class Host:
    """The images on the host, and one server for each, none of which gets the key."""

    def __init__(self, folder: Path, servers: ExitStack) -> None:
        self.folder = folder
        self.key = SymmetricKey(os.urandom(32))
        self.servers: dict[str, Server] = {}
        self.sockets: dict[str, Path] = {}
        self._stack = servers
        tree = folder / "tree"
        tree.mkdir()
        for name, content in FILES.items():
            (tree / name).write_bytes(content)
        self.image = self._build("image", RELEASE)
        self.older = self._build("older", RELEASE - 1)

    def _build(self, name: str, release: int) -> Reference:
        options = {"chunk_size": CHUNK_BYTES, "recipients": (self.key,), "release": release}
        return build(self.folder / "tree", self.folder / name, **options)

    def serve(self, tag: str, image: Reference, change: Callable[[Reference], None] | None = None) -> None:
        """Serve an image, or a copy that the host has changed."""
        if change is not None:
            copy = Reference(self.folder / f"image-{tag}", image.tag)
            shutil.copytree(image.folder, copy.folder)
            change(copy)
            image = copy
        self.sockets[tag] = self.folder / f"{tag}.socket"
        self.servers[tag] = self._stack.enter_context(serving(image, [self.sockets[tag]], "--sealed"))

    def place(self, image: Reference, name: str) -> tuple[Path, int, int]:
        """Blob file, offset and length of a file's first chunk as it is stored."""
        keys = KeyRing(symmetric=(self.key,))
        with open_sealed(image, keys, TrustPolicy(), cache_bytes=CACHE_BYTES) as opened:
            nid = opened.filesystem.lookup(opened.filesystem.root, name.encode())
            extent = next(opened.filesystem.extents(nid, 0, 1))
            assert extent.blob is not None
            blob = opened.filesystem.engine.blobs[extent.blob]
            record = blob.chunks.record(ChunkIndex(blob.chunks.find(extent.start)))
            file = image.folder / "blobs" / blob.file.name.replace(":", "/")
            return file, record.encoded_offset, record.encoded_length

    def flip_a_byte(self, image: Reference) -> None:
        file, offset, length = self.place(image, "one")
        flip(file, offset + length // 2)

    def swap_chunks(self, image: Reference) -> None:
        (file, first, length), (_, second, other) = (self.place(image, name) for name in ("one", "two"))
        assert length == other
        data = bytearray(file.read_bytes())
        data[first : first + length], data[second : second + length] = (
            data[second : second + length],
            data[first : first + length],
        )
        file.write_bytes(data)

    def flip_in_the_bootstrap(self, image: Reference) -> None:
        blob = self.place(image, "one")[0]
        manifest = re.findall(
            rb'"digest":"sha256:([0-9a-f]{64})"', (image.folder / "index.json").read_bytes()
        )
        small = {
            path
            for path in blob.parent.iterdir()
            if path != blob and path.name not in map(bytes.decode, manifest)
        }
        bootstrap = max(small, key=lambda path: path.stat().st_size)
        flip(bootstrap, bootstrap.stat().st_size // 2)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Host]:
    with ExitStack() as servers:
        host = Host(tmp_path_factory.mktemp("host"), servers)
        host.serve("honest", host.image)
        host.serve("flipped", host.image, host.flip_a_byte)
        host.serve("swapped", host.image, host.swap_chunks)
        host.serve("bootstrap", host.image, host.flip_in_the_bootstrap)
        host.serve("older", host.older)
        yield host


@pytest.fixture(scope="module")
def guest(host: Host, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A guest with rafsfs, and the only one with the key."""
    folder = tmp_path_factory.mktemp("guest")
    save_key(host.key, folder / "key")
    files = initramfs(folder / "initramfs", {"extra/key": (folder / "key").read_bytes()})
    with Guest(files, host.sockets, root=("/dev/vda", "erofs"), disk=tools_disk()) as guest:
        guest.run("chmod 0600 /run/extra/key")
        for tag in host.sockets:
            guest.run(f"mkdir -p /run/sealed/{tag} /run/open/{tag}")
            guest.run(f"mount -t virtiofs -o ro {tag} /run/sealed/{tag}")
        yield guest


def mount(guest: Guest, tag: str, *options: object) -> Said:
    """Mount what one host process serves, in the guest."""
    words = map(
        str, ("--key", "/run/extra/key", "--min-release", RELEASE, "--log-file", "/run/log", *options)
    )
    return guest.ask(f"rafsfs mount /run/sealed/{tag} /run/open/{tag} {' '.join(words)}")


def assert_refused(said: Said, code: ExitCode, *words: str) -> None:
    """One line that says why."""
    assert (said.status, said.output) == (code, "")
    assert len(said.errors.splitlines()) == 1, said.errors
    for word in words:
        assert word in said.errors


def test_a_guest_reads_what_its_host_cannot(guest: Guest, host: Host) -> None:
    assert mount(guest, "honest") == Said(0, "", "")
    for name, content in FILES.items():
        assert guest.run(f"md5sum </run/open/honest/{name}").split()[0] == hashlib.md5(content).hexdigest()
    assert guest.ask(f"grep -r -l '{SECRET.decode()}' /run/open/honest").output == "/run/open/honest/secret\n"
    assert guest.ask(f"grep -r -l '{SECRET.decode()}' /run/sealed/honest").output == ""


def test_no_process_of_the_host_ever_had_the_key(guest: Guest, host: Host) -> None:
    raw = host.key.raw
    for server in host.servers.values():
        assert not in_memory(server.process.pid, raw)
        assert not in_memory(server.process.pid, SECRET)
    assert in_memory(os.getpid(), raw)  # the search finds keys where there are some


def in_memory(pid: int, wanted: bytes) -> bool:
    """Whether these bytes are anywhere in a process."""
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            start, end = (int(word, 16) for word in line.split()[0].split("-"))
            if line.split()[1].startswith("rw") and "memfd" not in line:  # the guest's memory is the guest's
                memory.seek(start)
                if wanted in memory.read(end - start):
                    return True
    return False


@pytest.mark.parametrize("tag", ["flipped", "swapped"])
def test_a_chunk_that_the_host_changed_is_never_read(guest: Guest, host: Host, tag: str) -> None:
    assert mount(guest, tag, "--log-file", f"/run/{tag}.log") == Said(0, "", "")
    said = guest.ask(f"cat /run/open/{tag}/one")
    assert (said.status != 0, said.output) == (True, "")
    assert "Input/output error" in said.errors
    assert guest.run(f"md5sum </run/open/{tag}/whole").split()[0] == hashlib.md5(FILES["whole"]).hexdigest()
    assert "/one" in guest.run(f"cat /run/{tag}.log")
    guest.run(f"rafsfs umount /run/open/{tag}")


def test_a_changed_bootstrap_is_not_mounted(guest: Guest) -> None:
    assert_refused(mount(guest, "bootstrap"), ExitCode.AUTHENTICATION, "sha256")


def test_an_older_image_is_not_mounted(guest: Guest) -> None:
    assert_refused(mount(guest, "older"), ExitCode.AUTHENTICATION, "release 2 or later", "1")


def test_another_key_does_not_open_it(guest: Guest) -> None:
    guest.run("rafsfs keys new /run/other")
    said = guest.ask("rafsfs mount /run/sealed/honest /run/open/older --key /run/other")
    assert_refused(said, ExitCode.KEY)
