"""Every stored file cut off at every length, and lengthened: refused by the reader or the check (2, 3)."""

import os
from collections import Counter
from dataclasses import replace

import pytest
from attacks.surgery import (
    check_fails,
    fails,
    opened,
    put,
    read_everything,
    read_image,
    stored_files,
)

from rafsfs.errors import LengthMismatch, RafsError
from rafsfs.format.bootstrap import LENGTH, PREFIX
from rafsfs.format.chunk import Suite
from rafsfs.format.oci import digest_of


@pytest.fixture(scope="module", params=list(Suite), ids=lambda suite: suite.name)
def image(request, target):
    return target(request.param)


def test_every_file_cut_off_at_every_length(image, tally):
    outcomes = Counter()
    config = image.stored.config
    for path in stored_files(image.reference.folder):
        data = path.read_bytes()
        for length in range(len(data)):
            path.write_bytes(data[:length])
            error = fails(read_image, image.reference, image.keyring)
            if error is None:
                assert data == config or path.name == "oci-layout", f"{path.name} cut to {length}: served"
                assert path.name == "oci-layout" or check_fails(image.reference, image.keyring)
            outcomes["refused by the reader" if error else "of files that it does not read"] += 1
        path.write_bytes(data)
    for outcome, count in outcomes.items():
        tally(f"truncations {outcome}", count)


def test_bootstrap_cut_off_under_digests_made_to_fit(image, tmp_path, tally):
    """What is cut off may be what nobody reads, but never so that something else comes out."""
    whole = image.stored.bootstrap.pack()
    for length in range(len(whole)):
        reference = put(replace(image.stored, bootstrap_bytes=whole[:length]), tmp_path)
        assert fails(read_image, reference, image.keyring) is not None, f"cut to {length}"
        for path in stored_files(tmp_path):
            path.unlink()
    tally("truncations refused under fitting digests", len(whole))


def test_part_lengthened_by_what_follows_it(image, tmp_path):
    """Lengths that move the border between superblock, envelope and page table, bytes unchanged."""
    whole = image.stored.bootstrap.pack()
    envelope_at = PREFIX.size + len(image.stored.bootstrap.superblock)
    for position in (12, envelope_at):
        for change in (-1, 1, 4, 44, -44, 2**31):
            length = int.from_bytes(whole[position : position + LENGTH.size], "little") + change
            length %= 2**32
            moved = whole[:position] + length.to_bytes(4, "little") + whole[position + 4 :]
            superblock = moved[PREFIX.size :][: int.from_bytes(moved[12:16], "little")]
            forged = replace(image.stored, bootstrap_bytes=moved, superblock_digest=digest_of(superblock))
            reference = put(forged, tmp_path)
            assert fails(read_image, reference, image.keyring) is not None


def test_bytes_behind_the_end_change_nothing(image, tmp_path):
    """A blob's size is sealed. Behind a bootstrap's pages nobody looks; there the digest tells."""
    (blob,) = image.stored.blobs
    longer = replace(image.stored, blobs=(replace(blob, data=blob.data + b"more"),))
    with pytest.raises(LengthMismatch):
        read_image(put(longer, tmp_path / "blob"), image.keyring)
    bootstrap = replace(image.stored.bootstrap, pages=image.stored.bootstrap.pages + b"more")
    reference = put(replace(image.stored, bootstrap=bootstrap), tmp_path / "bootstrap")
    assert read_image(reference, image.keyring) == image.contents


def test_file_that_shrinks_while_the_image_is_open(image, tmp_path):
    reference = put(image.stored, tmp_path)
    with opened(reference, image.keyring) as open_image:
        for path in stored_files(tmp_path / "blobs"):
            os.truncate(path, 20)
        with pytest.raises(LengthMismatch):
            read_everything(open_image.filesystem)


def test_files_that_go_away(image, tmp_path):
    for number in range(len(stored_files(image.reference.folder))):
        reference = put(image.stored, tmp_path / str(number))
        path = stored_files(reference.folder)[number]
        config = path.read_bytes() == image.stored.config
        path.unlink()
        error = fails(read_image, reference, image.keyring)
        assert isinstance(error, RafsError) or config or path.name == "oci-layout"
