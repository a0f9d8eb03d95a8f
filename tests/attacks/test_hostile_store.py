"""A layout folder in the hands of somebody else: what lies in the places of its files (2, 8)."""

import os
import stat
import threading

import pytest
from attacks.surgery import check_fails, fails, opened, put, read_everything, read_image, stored_files

from rafsfs.errors import AuthError, RafsError, StoreError
from rafsfs.format.chunk import Suite
from rafsfs.store.oci_layout import blob_path

pytestmark = pytest.mark.timeout(60)  # a reader that waits for somebody to write into a pipe hangs for ever


@pytest.fixture(params=[Suite.AES_256_GCM, Suite.INTEGRITY_ONLY], ids=lambda suite: suite.name)
def image(request, target):
    return target(request.param)


def names(image):
    return [path.relative_to(image.reference.folder) for path in stored_files(image.reference.folder)]


IN_THE_PLACE = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a link to nowhere": lambda path: path.symlink_to("nowhere"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "a link to /dev/zero": lambda path: path.symlink_to("/dev/zero"),
    "a link to a terminal": lambda path: path.symlink_to("/dev/tty"),
    "a socket": lambda path: os.mknod(path, stat.S_IFSOCK | 0o600),
    "an empty file": lambda path: path.write_bytes(b""),
}


@pytest.mark.parametrize("what", IN_THE_PLACE)
def test_something_else_in_the_place_of_a_file(image, tmp_path, what):
    for number, name in enumerate(names(image)):
        reference = put(image.stored, tmp_path / str(number))
        path = reference.folder / name
        was_read = path.read_bytes() != image.stored.config and path.name != "oci-layout"
        path.unlink()
        IN_THE_PLACE[what](path)
        error = fails(read_image, reference, image.keyring)
        assert isinstance(error, RafsError) or not was_read
        assert check_fails(reference, image.keyring)


def test_link_to_a_file_of_the_right_bytes(image, tmp_path):
    """Where the bytes come from does not matter: they are checked."""
    reference = put(image.stored, tmp_path / "layout")
    for number, path in enumerate(stored_files(reference.folder)):
        path.rename(tmp_path / str(number))
        path.symlink_to(tmp_path / str(number))
    assert read_image(reference, image.keyring) == image.contents


def test_file_that_changes_between_two_reads(image, tmp_path):
    """Online and adaptive: what was checked is a copy, and what is read again is checked again."""
    reference = put(image.stored, tmp_path)
    with opened(reference, image.keyring) as open_image:
        assert read_everything(open_image.filesystem) == image.contents
        for path in stored_files(tmp_path):
            data = path.read_bytes()
            with path.open("r+b") as file:  # the same inode, as a host would
                file.write(bytes(byte ^ 0xFF for byte in data))
        assert read_everything(open_image.filesystem) == image.contents, "out of the cache, unchanged"
    with opened(put(image.stored, tmp_path / "again"), image.keyring) as open_image:
        for path in stored_files(tmp_path / "again" / "blobs"):
            with path.open("r+b") as file:
                file.write(bytes(byte ^ 0xFF for byte in path.read_bytes()))
        with pytest.raises(AuthError):
            read_everything(open_image.filesystem)


def test_file_that_flickers(image, tmp_path, tally):
    """Bytes that change all the time, read without a cache: each read gives what was sealed, or an error."""
    reference = put(image.stored, tmp_path)
    (blob,) = image.stored.blobs
    path = blob_path(tmp_path, blob.digest)
    done = threading.Event()

    def flicker():
        with path.open("r+b", buffering=0) as file:
            while not done.is_set():
                for offset in range(0, len(blob.data), 97):
                    os.pwrite(file.fileno(), bytes((blob.data[offset] ^ 1,)), offset)
                    os.pwrite(file.fileno(), blob.data[offset : offset + 1], offset)

    thread = threading.Thread(target=flicker)
    thread.start()
    refused = served = 0
    try:
        for _ in range(300):
            try:
                assert read_image(reference, image.keyring) == image.contents
                served += 1
            except (AuthError, StoreError):
                refused += 1
    finally:
        done.set()
        thread.join()
    tally("reads of flickering bytes refused", refused)
    tally("reads of flickering bytes served right", served)
    assert read_image(reference, image.keyring) == image.contents, "an error is not remembered"
