"""Every byte of a small image changed in turn, in every suite: refused, or of no concern to a reader (2).

With RAFSFS_TEST_LONG=1 all is done with three changes of each byte; without it, what has to write a whole
image for each change takes one of them.
"""

import os
from collections import Counter
from dataclasses import replace

import pytest
from attacks.conftest import ENCRYPTING
from attacks.surgery import check_fails, fails, put, read_image, stored_files

from rafsfs.errors import FormatError, RafsError
from rafsfs.format.blob import parse_footer
from rafsfs.format.bootstrap import LENGTH, PREFIX
from rafsfs.format.chunk import Suite
from rafsfs.store.oci_layout import find_image

LONG = bool(os.environ.get("RAFSFS_TEST_LONG"))
MASKS = (0x01, 0x80, 0xFF)


def masks_at(offset):
    return MASKS if LONG else (MASKS[offset % len(MASKS)],)


@pytest.fixture(scope="module", params=list(Suite), ids=lambda suite: suite.name)
def image(request, target):
    return target(request.param)


class ChangedFile:
    """A stored file, one byte of which is other than it should be for as long as a ``with`` lasts."""

    def __init__(self, path):
        self._path = path
        self.data = path.read_bytes()
        self._file = path.open("r+b")

    def change(self, offset, mask):
        self._write(offset, self.data[offset] ^ mask)

    def restore(self, offset):
        self._write(offset, self.data[offset])

    def _write(self, offset, value):
        os.pwrite(self._file.fileno(), bytes((value,)), offset)

    def close(self):
        self._file.close()


def unread_regions(image):
    """File name -> ranges that no reader looks at, or whose change it may not notice, by design."""
    stored = image.stored
    bootstrap = stored.bootstrap
    envelope = PREFIX.size + len(bootstrap.superblock) + LENGTH.size
    regions = {}
    for path in stored_files(image.reference.folder):
        data = path.read_bytes()
        if data == stored.config:
            regions[path.name] = range(len(data))
        elif data == bootstrap.pack():  # rewrapping changes the envelope, so nothing but its seal is bound
            regions[path.name] = range(envelope, envelope + len(bootstrap.envelope))
        elif data in [layer.data for layer in stored.blobs]:
            regions[path.name] = range(parse_footer(data, len(data)).toc_offset, len(data))
        elif path.name in (
            "index.json",
            "oci-layout",
        ):  # they say which image; a pinned digest says it better
            regions[path.name] = range(len(data))
    return regions


def test_every_byte(image, tally):
    """Changed where it lies: the files keep their names, as after tampering on disk or a broken disk."""
    regions = unread_regions(image)
    outcomes = Counter()
    for path in stored_files(image.reference.folder):
        file = ChangedFile(path)
        for offset in range(len(file.data)):
            for mask in MASKS:
                file.change(offset, mask)
                what = f"{path.name} byte {offset} ^ {mask:#x}"
                outcomes[outcome_of(image, path.name, offset, regions, what)] += 1
            file.restore(offset)
        file.close()
        assert path.read_bytes() == file.data
    assert outcomes["refused by the reader"] > 2000
    for outcome, count in outcomes.items():
        tally(f"byte changes {outcome}", count)


def outcome_of(image, name, offset, regions, what):
    try:
        contents = read_image(image.reference, image.keyring)
    except RafsError:
        return "refused by the reader"
    assert contents == image.contents, f"{what}: served, though changed"
    assert offset in regions.get(name, ()), f"{what}: not noticed"
    if name in ("index.json", "oci-layout"):
        return "without meaning in index.json, oci-layout"
    assert check_fails(image.reference, image.keyring), f"{what}: not found by the full check either"
    return "read over, found by the full check"


def test_every_byte_of_an_unencrypted_bootstrap_under_digests_made_to_fit(target, tmp_path, tally):
    """Here the superblock is anybody's; what it names is checked, and only RafsError comes of it."""
    image = target(Suite.INTEGRITY_ONLY)
    bootstrap = image.stored.bootstrap
    outcomes = Counter()
    for part in ("superblock", "envelope", "page_table", "pages"):
        data = getattr(bootstrap, part)
        for offset in range(len(data)):
            for mask in masks_at(offset):
                changed = bytearray(data)
                changed[offset] ^= mask
                forged = replace(bootstrap, **{part: bytes(changed)})
                reference = put(replace(image.stored, bootstrap=forged), tmp_path)
                error = fails(read_image, reference, image.keyring)
                assert error is not None or part in ("superblock", "envelope")
                outcomes["refused" if error else "believed"] += 1
        for path in stored_files(tmp_path):
            path.unlink()
    for outcome, count in outcomes.items():
        tally(f"byte changes {outcome} under fitting digests, unencrypted and not pinned", count)


@pytest.mark.parametrize("suite", ENCRYPTING, ids=lambda suite: suite.name)
def test_every_byte_of_the_bootstrap_under_digests_made_to_fit(target, suite, tmp_path, tally):
    """Changed by a registry that adapts the manifest. Nothing is pinned or signed: the key decides."""
    image = target(suite)
    bootstrap = image.stored.bootstrap
    outcomes = Counter()
    for part in ("superblock", "envelope", "page_table", "pages"):
        data = getattr(bootstrap, part)
        for offset in range(len(data)):
            for mask in MASKS if part == "envelope" else masks_at(offset):
                changed = bytearray(data)
                changed[offset] ^= mask
                forged = replace(bootstrap, **{part: bytes(changed)})
                reference = put(replace(image.stored, bootstrap=forged), tmp_path)
                error = fails(read_image, reference, image.keyring)
                assert error is not None, f"{part} byte {offset} ^ {mask:#x}: served"
                outcomes["refused under fitting digests"] += 1
        for path in stored_files(tmp_path):
            path.unlink()
    for outcome, count in outcomes.items():
        tally(f"byte changes {outcome}", count)


def test_every_byte_of_the_index_under_a_pinned_digest(image, tally):
    """The index chooses the image for those who name a tag; who names a digest gets that image or none."""
    pinned = image.reference.pinned(find_image(image.reference).manifest_digest)
    outcomes = Counter()
    file = ChangedFile(image.reference.folder / "index.json")
    for offset in range(len(file.data)):
        for mask in MASKS:
            file.change(offset, mask)
            try:
                assert read_image(pinned, image.keyring) == image.contents
                outcomes["of the index without effect on a pinned image"] += 1
            except FormatError:
                outcomes["refused by the reader"] += 1
        file.restore(offset)
    file.close()
    for outcome, count in outcomes.items():
        tally(f"byte changes {outcome}", count)
