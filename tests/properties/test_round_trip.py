"""Trees that hypothesis makes go into an image and come out equal: content, attributes, names, any slice."""

from __future__ import annotations

import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.images import DEDUP_SECRET, assert_sound, build, opened
from support.trees import (
    Plan,
    Planned,
    PlannedSource,
    Segment,
    assert_same_tree,
    expected,
    plans,
    read_folder,
    read_image,
    write_plan,
)

from rafsfs.format.chunk import Suite
from rafsfs.format.erofs import FileType
from rafsfs.limits import KIB

SUITES = st.sampled_from(Suite)


@st.composite
def build_options(draw: st.DrawFn) -> dict[str, object]:
    """Small chunks and pages, so that a small tree meets all their boundaries."""
    suite = draw(SUITES)
    return {
        "suite": suite,
        "chunk_size": draw(st.sampled_from([4 * KIB, 8 * KIB, 16 * KIB, 256 * KIB])),
        "inline_size": draw(st.sampled_from([0, 1024, 4032])),
        "page_size": draw(st.sampled_from([4 * KIB, 64 * KIB])),
        "zstd_level": draw(st.sampled_from([None, 1, 3])),
        "dedup_secret": draw(st.sampled_from([None, DEDUP_SECRET])) if suite.encrypts else None,
    }


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for one example; fixtures live for all of a test's examples."""
    folder = Path(tempfile.mkdtemp())
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@given(plans(on_disk=True), build_options())
def test_folder_comes_out_of_its_image_as_it_went_in(plan, options):
    with scratch() as folder:
        source = folder / "source"
        source.mkdir()
        write_plan(plan, source)
        before = read_folder(source)
        reference = build(source, folder / "image", **options)
        with opened(reference) as image:
            assert_same_tree(before, read_image(image.filesystem))
        assert_sound(reference)


@given(plans(on_disk=False, max_names=25), build_options())
def test_any_source_comes_out_of_its_image_as_it_went_in(plan, options):
    with scratch() as folder:
        reference = build(PlannedSource(plan), folder, **options)
        with opened(reference) as image:
            assert_same_tree(expected(plan), read_image(image.filesystem))
        assert_sound(reference)


BLOCK = 4 * KIB
ONE_FILE = st.lists(
    st.builds(
        Segment,
        length=st.one_of(
            st.sampled_from([1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK]), st.integers(1, 20_000)
        ),
        seed=st.one_of(st.none(), st.integers(0, 3)),
    ),
    min_size=1,
    max_size=6,
).map(tuple)


@given(ONE_FILE, build_options(), st.data())
def test_read_of_any_range_is_the_slice(segments, options, data):
    file = Planned(b"file", FileType.REGULAR, segments=segments)
    plan: Plan = (
        Planned(b"", FileType.DIRECTORY),
        Planned(b"before", FileType.REGULAR, segments=segments[:1]),
        file,
    )
    plain = file.plain()
    positions = st.one_of(
        st.integers(0, len(plain) + 10),
        st.integers(0, len(plain) // BLOCK + 1).map(lambda block: block * BLOCK),
    )
    with (
        scratch() as folder,
        opened(build(PlannedSource(plan), folder, **options), cache_bytes=BLOCK * 5) as image,
    ):
        nid = image.filesystem.lookup(image.filesystem.root, b"file")
        for offset, size in data.draw(st.lists(st.tuples(positions, positions), min_size=1, max_size=12)):
            parts = image.filesystem.read(nid, offset, size)
            assert b"".join(parts) == plain[offset : offset + size]
            cached = image.filesystem.try_read(nid, offset, size)
            assert cached is None or b"".join(cached) == plain[offset : offset + size]


REPRODUCIBLE = [
    {"suite": Suite.AES_256_GCM, "dedup_secret": DEDUP_SECRET},
    {"suite": Suite.CHACHA20_POLY1305, "dedup_secret": DEDUP_SECRET},
    {"suite": Suite.INTEGRITY_ONLY},
]


def stored_bytes(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@given(plans(on_disk=False), st.sampled_from(REPRODUCIBLE), st.sampled_from([None, 1, 3]))
@settings(max_examples=40)
def test_same_tree_gives_the_same_image_byte_for_byte(plan, mode, zstd_level):
    """Wrapping for a symmetric key is deterministic (RFC 3394), so here even the envelope is the same."""
    with scratch() as folder:
        for name in ("first", "second"):
            build(PlannedSource(plan), folder / name, chunk_size=BLOCK, zstd_level=zstd_level, **mode)
        assert stored_bytes(folder / "first") == stored_bytes(folder / "second")


@pytest.mark.parametrize("suite", [Suite.AES_256_GCM, Suite.CHACHA20_POLY1305])
def test_private_images_of_one_tree_have_nothing_in_common(suite, tmp_path):
    file = Planned(b"file", FileType.REGULAR, segments=(Segment(5 * BLOCK, 1),))
    plan = (Planned(b"", FileType.DIRECTORY), file)
    records = []
    for name in ("first", "second"):
        with opened(build(PlannedSource(plan), tmp_path / name, suite=suite, chunk_size=BLOCK)) as image:
            chunks = image.filesystem.engine.blobs[0].chunks
            records += [chunks.record(index) for index in range(5)]
    assert len({record.chunk_id for record in records}) == len({record.key for record in records}) == 10


@given(plans(on_disk=False), plans(on_disk=False), plans(on_disk=False), build_options())
@settings(max_examples=30)
def test_chain_of_dictionaries_reads_right(first, second, third, options):
    """The second image refers to the first one's blob, the third to both, with another chunk size."""
    with scratch() as folder:
        one = build(PlannedSource(first), folder / "1", **options)
        two = build(PlannedSource(second), folder / "2", dictionaries=[one], **options)
        other = {**options, "chunk_size": 2 * options["chunk_size"]}
        three = build(PlannedSource(third), folder / "3", dictionaries=[two, one], **other)
        shutil.rmtree(folder / "1")  # an image is whole in its own folder
        with opened(two) as image:
            assert_same_tree(expected(second), read_image(image.filesystem))
        shutil.rmtree(folder / "2")
        with opened(three) as image:
            assert_same_tree(expected(third), read_image(image.filesystem))
        assert_sound(three)


@pytest.mark.parametrize("mode", [*REPRODUCIBLE, {}])
def test_tree_that_its_dictionary_holds_stores_no_data(mode, tmp_path):
    whole = tuple(
        Planned(b"file%d" % number, FileType.REGULAR, segments=(Segment(length, number),))
        for number, length in enumerate([1, BLOCK, 3 * BLOCK, 7 * BLOCK + 5, 100_000])
    )
    plan = (Planned(b"", FileType.DIRECTORY), *whole)
    first = build(PlannedSource(plan), tmp_path / "1", chunk_size=BLOCK, **mode)
    second = build(PlannedSource(plan), tmp_path / "2", chunk_size=BLOCK, dictionaries=[first], **mode)
    with opened(first) as one, opened(second) as two:
        assert [blob.digest for blob in two.stored.manifest.blobs] == [
            blob.digest for blob in one.stored.manifest.blobs
        ]
        assert_same_tree(expected(plan), read_image(two.filesystem))


def test_records_of_chunks_that_are_not_used_stay_away(tmp_path):
    """The sealed table of a second image must not hand out keys of what it does not refer to."""
    kept = Planned(b"kept", FileType.REGULAR, segments=(Segment(2 * BLOCK, 1),))
    gone = Planned(b"gone", FileType.REGULAR, segments=(Segment(3 * BLOCK, 3),))
    root = Planned(b"", FileType.DIRECTORY)
    first = build(PlannedSource((root, gone, kept)), tmp_path / "1", chunk_size=BLOCK)
    second = build(PlannedSource((root, kept)), tmp_path / "2", chunk_size=BLOCK, dictionaries=[first])
    with opened(first) as one, opened(second) as two:
        assert len(one.filesystem.engine.blobs[0].chunks) == 5
        assert len(two.filesystem.engine.blobs[0].chunks) == 2
        (nid,) = [
            entry.nid for entry in two.filesystem.directory(two.filesystem.root) if entry.name == b"kept"
        ]
        assert stat.S_ISREG(two.filesystem.attributes(nid).mode)
        assert b"".join(two.filesystem.read(nid, 0, 1 << 20)) == kept.plain()
