"""Builds against earlier images: what is referred to, what is refused, what a new image needs of them."""

import shutil

import pytest
from support.images import DEDUP_SECRET, build, opened
from support.trees import Planned, PlannedSource, Segment, assert_same_tree, expected, read_image

from rafsfs.errors import AuthError, BuildError
from rafsfs.format.blob import FOOTER
from rafsfs.format.chunk import Suite
from rafsfs.format.erofs import FileType
from rafsfs.store.oci_layout import blob_path

CHUNK = 16_384
ROOT = Planned(b"", FileType.DIRECTORY)


def file(name, *segments):
    return Planned(name, FileType.REGULAR, segments=tuple(Segment(*segment) for segment in segments))


SMALL = [file(b"small%d" % number, (2000 + number, number)) for number in range(5)]
LARGE = file(b"large", (5 * CHUNK + 77, 9))
BASE = (ROOT, LARGE, *SMALL)


def blobs_of(reference):
    with opened(reference) as image:
        return [blob.digest for blob in image.stored.manifest.blobs]


def check(reference, plan):
    with opened(reference) as image:
        assert_same_tree(expected(plan), read_image(image.filesystem))


@pytest.fixture
def base(tmp_path):
    return build(PlannedSource(BASE), tmp_path / "base", chunk_size=CHUNK)


def test_only_new_data_is_stored(base, tmp_path):
    plan = (*BASE, file(b"new", (3 * CHUNK, 21)))
    second = build(PlannedSource(plan), tmp_path / "second", chunk_size=CHUNK, dictionaries=[base])
    first_blob, own = blobs_of(second)
    assert [first_blob] == blobs_of(base)
    assert blob_path(tmp_path / "second", own).stat().st_size < 4 * CHUNK
    check(second, plan)


def test_image_stands_alone_when_its_dictionary_is_gone(base, tmp_path):
    second = build(PlannedSource(BASE), tmp_path / "second", chunk_size=CHUNK, dictionaries=[base])
    shutil.rmtree(tmp_path / "base")
    check(second, BASE)


def test_dictionary_in_the_same_folder(base, tmp_path):
    second = build(PlannedSource(BASE), tmp_path / "base", "second", chunk_size=CHUNK, dictionaries=[base])
    assert blobs_of(second) == blobs_of(base)
    check(second, BASE)
    check(base, BASE)


def test_dictionary_that_is_not_used_is_not_listed(base, tmp_path):
    plan = (ROOT, file(b"other", (CHUNK, 33)))
    second = build(PlannedSource(plan), tmp_path / "second", chunk_size=CHUNK, dictionaries=[base])
    assert not set(blobs_of(second)) & set(blobs_of(base))
    check(second, plan)


@pytest.mark.parametrize("chunk_size", [4096, 8192, 65_536])
def test_dictionary_with_other_chunks(base, tmp_path, chunk_size):
    """Pieces of the new size are looked for in the old files, across their chunks."""
    second = build(PlannedSource(BASE), tmp_path / "second", chunk_size=chunk_size, dictionaries=[base])
    assert blobs_of(base)[0] in blobs_of(second)
    check(second, BASE)


def test_chain_lists_each_blob_once(base, tmp_path):
    plans = [(*BASE, file(b"n%d" % number, (CHUNK, 40 + number))) for number in range(3)]
    references = [base]
    for number, plan in enumerate(plans):
        folder = tmp_path / f"{number}"
        references.append(
            build(PlannedSource(plan), folder, chunk_size=CHUNK, dictionaries=list(reversed(references)))
        )
        listed = blobs_of(references[-1])
        assert len(listed) == len(set(listed)) == 2
        check(references[-1], plan)
    everything = (*plans[0], *(plan[-1] for plan in plans[1:]))
    last = build(PlannedSource(everything), tmp_path / "last", chunk_size=CHUNK, dictionaries=references)
    assert len(blobs_of(last)) == 4
    check(last, everything)


def test_holes_and_empty_files_of_a_dictionary(tmp_path):
    plan = (
        ROOT,
        file(b"empty"),
        file(b"hole", (10 * CHUNK, None)),
        file(b"mixed", (CHUNK, 1), (CHUNK, None), (9, 3)),
    )
    first = build(PlannedSource(plan), tmp_path / "first", chunk_size=CHUNK)
    second = build(PlannedSource(plan), tmp_path / "second", chunk_size=CHUNK, dictionaries=[first])
    assert blobs_of(second) == blobs_of(first)
    check(second, plan)


def test_dictionary_without_data(tmp_path):
    first = build(PlannedSource((ROOT,)), tmp_path / "first", chunk_size=CHUNK)
    second = build(PlannedSource(BASE), tmp_path / "second", chunk_size=CHUNK, dictionaries=[first])
    assert len(blobs_of(second)) == 1
    check(second, BASE)


@pytest.mark.parametrize("suite", [Suite.CHACHA20_POLY1305, Suite.INTEGRITY_ONLY])
def test_dictionary_of_another_suite_is_refused(base, tmp_path, suite):
    with pytest.raises(BuildError, match=f"sealed in another way: expected {suite.name}, found AES_256_GCM"):
        build(PlannedSource(BASE), tmp_path / "second", suite=suite, dictionaries=[base])
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("part", ["first chunk", "last chunk"])
def test_damaged_dictionary_is_refused(base, tmp_path, part):
    """Whoever builds on it would publish an image that nobody can read."""
    with opened(base) as image:
        chunks = image.filesystem.engine.blobs[0].chunks
        place = chunks.record(0 if part == "first chunk" else len(chunks) - 1).encoded_offset
    path = blob_path(tmp_path / "base", blobs_of(base)[0])
    data = bytearray(path.read_bytes())
    data[place + 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(AuthError, match="chunk id does not match"):
        build(PlannedSource(BASE), tmp_path / "second", chunk_size=CHUNK, dictionaries=[base])
    assert not (tmp_path / "second").exists()


@pytest.mark.parametrize("part", ["table of contents", "footer"])
def test_dictionary_with_a_damaged_tail_is_refused(base, tmp_path, part):
    """No reader needs it, but the new image would take it over, and `rafsfs check` of that finds it."""
    path = blob_path(tmp_path / "base", blobs_of(base)[0])
    data = bytearray(path.read_bytes())
    data[-1 if part == "footer" else -FOOTER.size - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        AuthError, match=f"table of contents.*blob sha256:{path.name}.*without this dictionary"
    ):
        build(PlannedSource(BASE), tmp_path / "second", chunk_size=CHUNK, dictionaries=[base])
    assert not (tmp_path / "second").exists()


def test_private_dictionary_serves_a_convergent_image_and_the_other_way_round(base, tmp_path):
    convergent = build(
        PlannedSource(BASE),
        tmp_path / "second",
        chunk_size=CHUNK,
        dictionaries=[base],
        dedup_secret=DEDUP_SECRET,
    )
    check(convergent, BASE)
    private = build(PlannedSource(BASE), tmp_path / "third", chunk_size=CHUNK, dictionaries=[convergent])
    assert blobs_of(private) == blobs_of(base)
    check(private, BASE)


def test_only_records_of_used_chunks_are_sealed_into_the_new_image(base, tmp_path):
    plan = (ROOT, SMALL[0])
    second = build(PlannedSource(plan), tmp_path / "second", chunk_size=CHUNK, dictionaries=[base])
    with opened(base) as old, opened(second) as new:
        (entry,) = new.opened.superblock.blobs
        assert len(new.filesystem.engine.blobs[0].chunks) == entry.chunk_count == 1
        assert len(old.filesystem.engine.blobs[0].chunks) == 6
        record = new.filesystem.engine.blobs[0].chunks.record(0)
        known = [old.filesystem.engine.blobs[0].chunks.record(index) for index in range(6)]
        assert record in known
    check(second, plan)
