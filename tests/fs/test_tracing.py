"""From what was noted to paths: files, decoded spaces, links, damage; and that a read notes what it gave."""

import os
import random

import pytest
from support.images import build, opened
from support.mounts import chunk_place, flip

from rafsfs.errors import AuthError
from rafsfs.format.trace import TracedRange
from rafsfs.fs import tracing
from rafsfs.fs.tracing import traced_ranges
from rafsfs.reading.trace import AccessTrace

CHUNK = 16 * 1024
PIECE = 256 * 1024


@pytest.fixture
def tree(tmp_path):
    noise = random.Random(3)
    folder = tmp_path / "tree"
    (folder / "d").mkdir(parents=True)
    (folder / "big").write_bytes(noise.randbytes(2 * PIECE + 100))
    for number in range(8):
        (folder / "d" / f"{number}").write_bytes(noise.randbytes(50 + number))
    (folder / b"\xff odd\n".decode("utf-8", "surrogateescape")).write_bytes(noise.randbytes(10))
    os.link(folder / "d" / "0", folder / "hard")
    (folder / "z copy").write_bytes((folder / "d" / "1").read_bytes())
    with (folder / "holes").open("wb") as file:
        file.truncate(PIECE)
        file.seek(PIECE)
        file.write(noise.randbytes(CHUNK))
    return folder


@pytest.fixture
def image(tree, tmp_path):
    with opened(build(tree, tmp_path / "image", chunk_size=CHUNK, inline_size=0)) as found:
        found.filesystem.trace = AccessTrace()
        yield found


def nid_of(image, path):
    nid = image.filesystem.root
    for name in path.split(b"/"):
        nid = image.filesystem.lookup(nid, name)
    return nid


def read(image, path, offset=0, size=1 << 62):
    return sum(map(len, image.filesystem.read(nid_of(image, path), offset, size)))


def ranges(image):
    return [tuple(found) for found in traced_ranges(image.filesystem, image.filesystem.trace)]


def test_files_in_order_of_first_access(image):
    read(image, b"\xff odd\n")
    read(image, b"big", PIECE + 5, 4096)
    read(image, b"d/3", 1, 1)
    read(image, b"big", PIECE, 1)
    read(image, b"\xff odd\n")
    assert ranges(image) == [(b"\xff odd\n", 0, 10), (b"big", PIECE, 8192), (b"d/3", 0, 53)]


def test_whole_file_is_one_range(image):
    assert read(image, b"big") == 2 * PIECE + 100
    assert ranges(image) == [(b"big", 0, 2 * PIECE + 100)]


def test_what_was_not_read_is_not_noted(image):
    nid = nid_of(image, b"big")
    assert image.filesystem.try_read(nid, 0, 10) is None
    for offset in (2 * PIECE + 100, 1 << 62):
        assert read(image, b"big", offset) == 0
    with pytest.raises(IsADirectoryError):
        image.filesystem.read(nid_of(image, b"d"), 0, 1)
    assert ranges(image) == []
    read(image, b"big", 0, 10)
    assert image.filesystem.try_read(nid, 8192, 10) is not None
    assert ranges(image) == [(b"big", 0, 4096), (b"big", 8192, 4096)]


def test_links_are_named_once(image):
    read(image, b"hard")
    read(image, b"d/0")
    assert ranges(image) == [(b"d/0", 0, 50)]


def test_damage_is_not_noted(tree, tmp_path):
    reference = build(tree, tmp_path / "image", chunk_size=CHUNK)
    file, _, offset, _ = chunk_place(reference, b"big", 0)
    flip(file, offset)
    with opened(reference) as image:
        image.filesystem.trace = AccessTrace()
        with pytest.raises(AuthError):
            read(image, b"big", 0, 1)
        read(image, b"big", CHUNK, 1)
        assert ranges(image) == [(b"big", CHUNK, 4096)]


def extent_of(image, path, offset=0):
    (extent,) = image.filesystem.extents(nid_of(image, path), offset, 1)
    return extent


def test_decoded_space_is_named_by_its_files(image):
    trace = image.filesystem.trace
    for path in (b"d/5", b"d/2"):
        trace.blob_read(0, extent_of(image, path).start, 4096)
    start = extent_of(image, b"big", PIECE).start
    trace.blob_read(0, start, 3 * 4096)
    found = ranges(image)
    small = [path for path, _, _ in found if path.startswith(b"d/")]
    assert small == [b"d/2", b"d/5"]  # of one piece, in its order
    assert (b"big", PIECE, 3 * 4096) in found
    assert len(found) == 3


def test_decoded_space_that_files_share_is_named_once(image):
    assert extent_of(image, b"z copy") == extent_of(image, b"d/1")
    image.filesystem.trace.blob_read(0, extent_of(image, b"z copy").start, 4096)
    assert ranges(image) == [(b"d/1", 0, 51)]


def test_whole_decoded_space_names_all_files_and_no_hole(image):
    blocks = image.opened.superblock.blobs[0].decoded_blocks
    image.filesystem.trace.blob_read(0, 0, blocks * 4096)
    named = {}
    for path, offset, length in ranges(image):
        named.setdefault(path, []).append((offset, length))
    assert named.keys() == {b"big", b"\xff odd\n", b"holes", *(b"d/%d" % number for number in range(8))}
    assert sum(length for _, length in named[b"big"]) == 2 * PIECE + 100
    assert named[b"holes"] == [(PIECE, CHUNK)]


def test_search_of_decoded_space_is_bounded(image, monkeypatch):
    monkeypatch.setattr(tracing, "TRACE_EXTENTS_MAX", 2)
    image.filesystem.trace.blob_read(0, 0, 4096)
    image.filesystem.trace.blob_read(0, extent_of(image, b"d/7").start, 4096)
    assert len(ranges(image)) <= 1


def test_ranges_fit_what_a_build_takes(image):
    read(image, b"big", 5, 5)
    assert traced_ranges(image.filesystem, image.filesystem.trace) == [TracedRange(b"big", 0, 4096)]


def test_what_lies_in_the_metadata_is_named_where_it_was_asked_for(tree, tmp_path):
    """And no decoded space is: there is none."""
    with opened(build(tree, tmp_path / "image", chunk_size=CHUNK)) as image:
        trace = image.filesystem.trace = AccessTrace()
        assert read(image, b"d/3", 1, 7) == 7
        blocks = image.opened.superblock.blobs[0].decoded_blocks
        trace.blob_read(0, 0, blocks * 4096)
        assert {path for path, _, _ in ranges(image)} == {b"d/3", b"big", b"holes"}
