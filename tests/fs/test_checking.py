"""The check of a whole image: what is sound passes whole, and every kind of damage or lie is told."""

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from support.images import DEDUP_SECRET, KEY, build, opened
from support.resealing import Parts
from support.trees import Planned, PlannedSource, Segment, plans

from rafsfs.errors import (
    BlobNotFound,
    DigestMismatch,
    FormatError,
    ImageNotFound,
    LengthMismatch,
    LimitExceeded,
    Rollback,
    UnsupportedVersion,
    WrongKey,
)
from rafsfs.format.chunk import Suite
from rafsfs.format.erofs import FileType
from rafsfs.fs.checking import CheckProgress, CheckResult, check_image
from rafsfs.fs.checking_tree import Coverage
from rafsfs.fs.problems import Problems
from rafsfs.limits import PROBLEM_PATHS_MAX, PROBLEMS_MAX
from rafsfs.store.oci_layout import blob_path, find_image
from rafsfs.store.reference import Reference
from rafsfs.trust.keys import KeyRing
from rafsfs.trust.material import SymmetricKey
from rafsfs.trust.opening import TrustPolicy

RING = KeyRing(symmetric=(KEY,))
CHUNK = 16 * 1024
DATA = 5 * CHUNK + 100
CHUNKS = 7  # of PLAN: five of `big`, the rest shared by the tails and what is smaller

D, F, L = FileType.DIRECTORY, FileType.REGULAR, FileType.SYMLINK
PLAN = (
    Planned(b"", D),
    Planned(b"a", D, xattrs=((b"user.a", b"1"), (b"user.b", b"2"))),
    Planned(b"a/b", D),
    Planned(b"a/b/deep", F, 0o644, segments=(Segment(10, 0),)),
    Planned(b"big", F, 0o644, segments=(Segment(DATA, 1),)),
    Planned(b"big.copy", F, 0o600, segments=(Segment(DATA, 1),)),
    Planned(b"holes", F, 0o644, segments=(Segment(4096, 1), Segment(1 << 20, None), Segment(5, 3))),
    Planned(b"link", L, 0o777, target=b"a/b/deep"),
    Planned(b"name1", F, 0o644, segments=(Segment(7000, 5),)),
    Planned(b"name2", F, hard_link_to=b"name1"),
    Planned(b"name3", F, 0o644),
)


def check(reference: Reference, **options) -> CheckResult:
    return check_image(reference, RING, TrustPolicy(), workers=2, **options)


def kinds(result: CheckResult) -> set[type]:
    return set(result.problems.kinds)


def texts(result: CheckResult) -> list[str]:
    return [str(problem.error) for problem in result.problems.kept]


def paths(result: CheckResult) -> set[bytes]:
    return {path for problem in result.problems.kept for path in problem.paths}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Reference:
    """An image that no test changes."""
    return build(PlannedSource(PLAN), tmp_path_factory.mktemp("pristine") / "image", chunk_size=CHUNK)


@pytest.fixture
def image(tmp_path) -> Reference:
    return build(PlannedSource(PLAN), tmp_path / "image", chunk_size=CHUNK)


@pytest.fixture
def parts(image) -> Parts:
    return Parts.of(image)


def blob_file(image: Reference) -> Path:
    stored = find_image(image)
    return blob_path(image.folder, stored.manifest.blobs[0].digest)


def bootstrap_file(image: Reference) -> Path:
    stored = find_image(image)
    return blob_path(image.folder, stored.manifest.bootstrap.digest)


def flip(file: Path, offset: int) -> None:
    with file.open("r+b") as opened:
        opened.seek(offset)
        byte = opened.read(1)[0]
        opened.seek(offset)
        opened.write(bytes((byte ^ 1,)))


# --- Sound images -------------------------------------------------------------------------------------------


def test_sound_image_is_checked_whole(pristine):
    result = check(pristine)
    assert result.problems.count == 0
    tree = result.tree
    assert (tree.names, tree.inodes, tree.directories, tree.files, tree.symlinks) == (10, 10, 3, 6, 1)
    assert tree.xattrs == 2
    assert tree.bytes == sum(item.size for item in PLAN)
    stored = find_image(pristine).manifest
    assert result.stored_bytes == stored.bootstrap.size + stored.blobs[0].size
    assert result.chunks == CHUNKS
    assert result.pages >= 1 and result.blobs == 1


def test_quick_check_decodes_no_chunk(pristine):
    result = check(pristine, quick=True)
    assert result.problems.count == 0
    assert (result.chunks, result.chunk_bytes) == (0, 0)
    assert result.stored_bytes == find_image(pristine).manifest.bootstrap.size
    assert result.tree.inodes == 10


@pytest.mark.parametrize("suite", Suite)
def test_every_suite(tmp_path, suite):
    image = build(PlannedSource(PLAN), tmp_path / "image", suite=suite)
    result = check_image(image, RING if suite.encrypts else KeyRing(), TrustPolicy())
    assert result.problems.count == 0 and result.chunks > 0


def test_image_with_some_chunks_of_a_dictionary(tmp_path):
    base = build(PlannedSource(PLAN), tmp_path / "base", chunk_size=CHUNK, dedup_secret=DEDUP_SECRET)
    plan = (Planned(b"", D), Planned(b"same", F, 0o644, segments=(Segment(2 * CHUNK, 1),)))
    plan += (Planned(b"big", F, 0o644, segments=(Segment(DATA, 1),)),)
    image = build(
        PlannedSource(plan),
        tmp_path / "image",
        chunk_size=CHUNK,
        dedup_secret=DEDUP_SECRET,
        dictionaries=[base],
    )
    result = check(image)
    assert texts(result) == []
    assert result.blobs >= 1


def test_image_of_a_bare_root(tmp_path):
    result = check(build(PlannedSource(PLAN[:1]), tmp_path / "image"))
    assert result.problems.count == 0
    assert (result.tree.inodes, result.blobs, result.chunks) == (1, 0, 0)


@settings(max_examples=25)
@given(plan=plans(on_disk=False))
def test_whatever_the_builder_makes_is_sound(plan, tmp_path_factory):
    image = build(PlannedSource(plan), tmp_path_factory.mktemp("any") / "image", chunk_size=4096)
    result = check(image)
    assert texts(result) == []
    inodes = [item for item in plan if item.hard_link_to is None]
    assert result.tree.inodes == len(inodes)
    assert result.tree.names == len(plan) - 1


def test_progress_reaches_its_ends(pristine):
    told: list[CheckProgress] = []
    check(pristine, report=told.append)
    last = {state.what: state for state in told}
    assert list(last) == ["metadata pages", "tree", "chunks"]
    assert all(state.done == state.total for state in last.values())
    assert threading.active_count() == 1 or all(
        not thread.name.startswith("rafsfs-check") for thread in threading.enumerate()
    )


# --- Opening ------------------------------------------------------------------------------------------------


def test_wrong_key_is_no_finding(pristine):
    with pytest.raises(WrongKey):
        check_image(pristine, KeyRing(symmetric=(SymmetricKey(bytes(32)),)), TrustPolicy())


def test_no_image_is_no_finding(tmp_path, pristine):
    with pytest.raises(ImageNotFound):
        check(Reference(tmp_path / "nowhere"))
    with pytest.raises(ImageNotFound):
        check(Reference(pristine.folder, "other"))


def test_policy_is_held(pristine):
    result = check_image(pristine, RING, TrustPolicy(min_release=5))
    assert kinds(result) == {Rollback}
    assert result.tree is None
    assert result.stored_bytes > 0  # what does not depend on the opening is checked all the same


def test_changed_superblock_stops_all_but_the_digests(image):
    flip(bootstrap_file(image), 40)
    result = check(image)
    assert kinds(result) == {DigestMismatch}
    assert result.problems.count == 2  # the superblock's own digest, and the file's
    assert result.tree is None
    assert result.stored_bytes == blob_file(image).stat().st_size


def test_newer_format_is_told(image):
    file = bootstrap_file(image)
    data = bytearray(file.read_bytes())
    data[8] = 99
    file.write_bytes(data)
    assert UnsupportedVersion in kinds(check(image, quick=True))


def test_missing_bootstrap(image):
    bootstrap_file(image).unlink()
    result = check(image)
    assert BlobNotFound in kinds(result) and result.tree is None


# --- Documents ----------------------------------------------------------------------------------------------


def test_missing_layout_file(image):
    (image.folder / "oci-layout").unlink()
    result = check(image, quick=True)
    assert kinds(result) == {BlobNotFound}
    assert "oci-layout" in texts(result)[0]


def test_layout_of_another_version(image):
    (image.folder / "oci-layout").write_text('{"imageLayoutVersion":"2.0.0"}')
    result = check(image, quick=True)
    assert kinds(result) == {UnsupportedVersion} and result.tree.inodes == 10


def test_changed_config(image):
    config = blob_path(image.folder, find_image(image).manifest.config.digest)
    config.write_bytes(config.read_bytes() + b" ")
    result = check(image, quick=True)
    assert kinds(result) == {DigestMismatch} and result.tree.inodes == 10


def test_index_that_lies_about_the_manifests_size(image):
    index = image.folder / "index.json"
    size = len(blob_path(image.folder, find_image(image).manifest_digest).read_bytes())
    index.write_text(index.read_text().replace(f'"size":{size}', f'"size":{size + 1}'))
    assert kinds(check(image, quick=True)) == {LengthMismatch}


# --- Damaged bytes ------------------------------------------------------------------------------------------


def test_damaged_chunk_is_told_with_its_files(image):
    record = Parts.of(image).records[0][0]
    flip(blob_file(image), record.encoded_offset + 5)
    result = check(image)
    assert kinds(result) == {DigestMismatch}
    chunk = next(problem for problem in result.problems.kept if problem.error.where.chunk is not None)
    assert chunk.error.where.chunk == 0
    assert chunk.error.where.offset == record.encoded_offset
    assert chunk.error.where.blob == find_image(image).manifest.blobs[0].digest
    assert (chunk.paths, chunk.path_count) == ([b"big", b"big.copy"], 2)
    # the file's digest is wrong too, and nothing else is
    assert result.problems.count == 2
    assert result.chunks == CHUNKS - 1
    assert check(image, quick=True).problems.count == 0


def test_all_damaged_chunks_are_told(image):
    for record in Parts.of(image).records[0]:
        flip(blob_file(image), record.encoded_offset)
    result = check(image)
    told = {problem.error.where.chunk for problem in result.problems.kept}
    assert told == {None, *range(CHUNKS)}
    assert result.chunks == 0


def test_damaged_chunk_that_no_first_bytes_touch(image):
    """Files are named by where their bytes lie, not by where they start."""
    record = Parts.of(image).records[0][3]
    flip(blob_file(image), record.encoded_offset)
    assert paths(check(image)) == {b"big", b"big.copy"}


def test_missing_blob(image):
    blob_file(image).unlink()
    result = check(image)
    assert kinds(result) == {BlobNotFound}
    assert result.problems.count == 1
    assert paths(result) == {b"big", b"big.copy", b"holes", b"name1"}  # a/b/deep lies in the metadata
    assert result.tree.inodes == 10  # the metadata was checked all the same
    assert check(image, quick=True).problems.count == 1


def test_truncated_blob(image):
    record = Parts.of(image).records[0][2]
    os.truncate(blob_file(image), record.encoded_offset + record.encoded_length)
    result = check(image)
    assert kinds(result) == {LengthMismatch}
    assert result.problems.count == 1
    assert result.chunks == 3
    assert {b"big", b"name1"} <= paths(result)


def test_lengthened_blob(image):
    with blob_file(image).open("ab") as file:
        file.write(b"more")
    result = check(image)
    assert kinds(result) == {LengthMismatch}
    assert result.chunks == CHUNKS and paths(result) == set()


def test_damaged_table_of_contents(image):
    end = max(record.encoded_offset + record.encoded_length for record in Parts.of(image).records[0])
    flip(blob_file(image), end + 3)
    result = check(image, quick=True)
    assert kinds(result) == {DigestMismatch} and "table of contents" in texts(result)[0]
    assert check(image).problems.count == 2  # and the file's own digest


def test_damaged_footer(image):
    file = blob_file(image)
    flip(file, file.stat().st_size - 60)
    assert check(image, quick=True).problems.count == 1


def test_footer_that_asks_for_a_giant_table(image):
    """Before it is authenticated, a table of contents may not cost more than the blob's can."""
    file = blob_file(image)
    size = 60 * 44 + 64
    with file.open("r+b") as opened:
        opened.seek(-64, os.SEEK_END)
        footer = bytearray(opened.read(64))
        footer[12:16] = (60).to_bytes(4, "little")
        footer[16:24] = (file.stat().st_size - size).to_bytes(8, "little")
        footer[24:32] = (60 * 44).to_bytes(8, "little")
        opened.seek(-64, os.SEEK_END)
        opened.write(footer)
    result = check(image, quick=True)
    assert kinds(result) == {FormatError} and "too long" in texts(result)[0]


def test_damaged_metadata_page_is_one_problem_with_the_names_behind_it(tmp_path):
    many = [Planned(b"f%04d" % number, F, 0o644) for number in range(600)]
    image = build(PlannedSource((Planned(b"", D), *many)), tmp_path / "image", page_size=4096)
    with opened(image) as sealed:
        table = sealed.opened.page_table
        entries = [table.entry(page) for page in range(table.page_count)]
        nid = sealed.filesystem.lookup(sealed.filesystem.root, b"f0300")
    page = nid * 32 // 4096
    file = bootstrap_file(image)
    pages_start = file.stat().st_size - sum(entry.encoded_length for entry in entries)
    flip(file, pages_start + entries[page].encoded_offset + 7)
    result = check(image, quick=True)
    assert result.problems.count == 2  # the page, and the file's digest
    problem = next(problem for problem in result.problems.kept if problem.error.where.page is not None)
    assert problem.error.where.page == page
    assert 4096 // 64 - 2 <= problem.path_count <= 4096 // 64 + 2  # as many inodes as lie in a page
    assert result.pages == len(entries) - 1


# --- Trees that lie, sealed correctly -----------------------------------------------------------------------


def lie_directory_cycle(parts: Parts) -> None:
    parts.set_dirent(b"a", b"b", nid=parts.nids[b""])


def lie_directory_with_two_names(parts: Parts) -> None:
    parts.set_dirent(b"", b"name3", nid=parts.nids[b"a"], file_type=FileType.DIRECTORY)


def lie_name_of_another_type(parts: Parts) -> None:
    parts.set_dirent(b"", b"name3", file_type=FileType.SYMLINK)


def lie_file_named_as_directory(parts: Parts) -> None:
    parts.set_dirent(b"", b"name3", file_type=FileType.DIRECTORY)


def lie_unknown_type(parts: Parts) -> None:
    parts.set_dirent(b"", b"name3", file_type=9)


def lie_order_of_names(parts: Parts) -> None:
    parts.rename(b"", b"name1", b"name9")


def lie_same_name_twice(parts: Parts) -> None:
    parts.rename(b"", b"name2", b"name1")


def lie_name_with_a_slash(parts: Parts) -> None:
    parts.rename(b"", b"name2", b"na/e2")


def lie_dot(parts: Parts) -> None:
    parts.set_dirent(b"a", b".", nid=parts.nids[b"a/b"])


def lie_dot_dot(parts: Parts) -> None:
    parts.set_dirent(b"a/b", b"..", nid=parts.nids[b""])


def lie_dot_dot_of_root(parts: Parts) -> None:
    parts.set_dirent(b"", b"..", nid=parts.nids[b"a"])


def lie_no_dot(parts: Parts) -> None:
    parts.rename(b"a/b", b".", b"-")


def lie_link_count_of_file(parts: Parts) -> None:
    parts.set_inode(b"big", nlink=2)


def lie_link_count_of_linked_file(parts: Parts) -> None:
    parts.set_inode(b"name1", nlink=3)


def lie_one_link_for_two_names(parts: Parts) -> None:
    parts.set_inode(b"name1", nlink=1)


def lie_link_count_of_directory(parts: Parts) -> None:
    parts.set_inode(b"a", nlink=2)


def lie_inode_count(parts: Parts) -> None:
    parts.set_superblock(inode_count=11)


def lie_section_length(parts: Parts) -> None:
    parts.set_superblock(blocks=len(parts.section) // 4096 + 1)


def lie_device_tag(parts: Parts) -> None:
    parts.write(1152, b"0" * 64)


def lie_nid_outside(parts: Parts) -> None:
    parts.set_dirent(b"", b"name3", nid=len(parts.section) // 32)


def lie_nid_far_outside(parts: Parts) -> None:
    parts.set_dirent(b"", b"name3", nid=2**63)


def lie_nid_of_nothing(parts: Parts) -> None:
    parts.set_dirent(b"", b"name3", nid=parts.nids[b"big"] + 1)


def lie_mode(parts: Parts) -> None:
    parts.set_inode(b"name3", mode=0)


def lie_nanoseconds(parts: Parts) -> None:
    parts.set_inode(b"name3", mtime_nsec=10**9)


def lie_symlink_with_a_nul(parts: Parts) -> None:
    parts.write(parts.body(b"link") + 2, b"\0")


def lie_empty_symlink(parts: Parts) -> None:
    parts.set_inode(b"link", size=0)


def lie_attribute_twice(parts: Parts) -> None:
    body = parts.body(b"a")
    area = bytes(parts.section[body - 64 : body]).replace(b"b", b"a")
    parts.write(body - 64, area)


def lie_attributes_that_overrun(parts: Parts) -> None:
    body = parts.body(b"a")
    start = parts.section.index(b"a1", body - 64) - 4
    parts.write(start, b"\xff")


def lie_device_of_chunk(parts: Parts) -> None:
    parts.set_index(b"big", 0, device=2)


def lie_no_device(parts: Parts) -> None:
    parts.set_index(b"big", 0, device=0)


def lie_extent_outside(parts: Parts) -> None:
    parts.set_index(b"big", 0, start_block=parts.entries[0].decoded_blocks - 1)


def lie_size_beyond_the_indexes(parts: Parts) -> None:
    parts.set_inode(b"big", size=2**60)


def lie_chunk_format(parts: Parts) -> None:
    parts.set_inode(b"big", union=0)


LIES = {name.removeprefix("lie_"): lie for name, lie in list(globals().items()) if name.startswith("lie_")}


@pytest.mark.parametrize("lie", LIES.values(), ids=LIES)
def test_lie_in_the_tree_is_told(parts, lie):
    lie(parts)
    result = check(parts.seal(), quick=True)
    assert result.problems.count >= 1
    assert all(issubclass(kind, FormatError) for kind in kinds(result))
    # one lie may show in a few places, but it does not drown in what follows from it
    assert result.problems.count <= 4, texts(result)


@pytest.mark.parametrize(
    ("lie", "text", "path"),
    [
        (lie_directory_cycle, "two names", b"a/b"),
        (lie_name_of_another_type, "type is not its inode's: expected REGULAR, found SYMLINK", b"name3"),
        (lie_order_of_names, "not in order", b""),
        (lie_dot_dot, "'..' leads elsewhere", b"a/b"),
        (lie_no_dot, "'.' or '..'", b"a/b"),
        (lie_link_count_of_file, "link count: expected 1 names, found 2", b"big"),
        (lie_one_link_for_two_names, "link count: expected 2 names, found 1", b"name2"),
        (lie_link_count_of_directory, "link count: expected 3, found 2", b"a"),
        (lie_extent_outside, "outside its blob", b"big"),
        (lie_attribute_twice, "attribute twice", b"a"),
        (lie_nid_far_outside, "outside its section", b"name3"),
    ],
)
def test_lie_is_told_precisely(parts, lie, text, path):
    lie(parts)
    result = check(parts.seal(), quick=True)
    assert any(text in str(problem.error) and path in problem.paths for problem in result.problems.kept), (
        texts(result)
    )


def test_many_lies_are_all_told(parts):
    for lie in (
        lie_dot_dot,
        lie_link_count_of_file,
        lie_nanoseconds,
        lie_symlink_with_a_nul,
        lie_device_of_chunk,
    ):
        lie(parts)
    result = check(parts.seal(), quick=True)
    assert paths(result) >= {b"a/b", b"big", b"name3", b"link"}


def test_directory_blocks_out_of_order(tmp_path):
    many = [Planned(b"n%05d" % number, F, 0o644) for number in range(800)]
    parts = Parts.of(build(PlannedSource((Planned(b"", D), *many)), tmp_path / "image"))
    start = parts.inode(b"").union * 4096
    first, second = (bytes(parts.section[start + 4096 * n : start + 4096 * (n + 1)]) for n in (1, 2))
    parts.write(start + 4096, second + first)
    assert any("not in order" in text for text in texts(check(parts.seal())))


def test_overlapping_indexes_cost_no_more_than_the_metadata_has(tmp_path):
    """A few inodes that share one long array of holes must not multiply its length."""
    pieces = [Segment(4096, None if number % 2 else 1) for number in range(2048)]
    small = [Planned(b"f%03d" % number, F, 0o644) for number in range(60)]
    plan = (Planned(b"", D), *small, Planned(b"zz", F, 0o644, segments=tuple(pieces)))
    parts = Parts.of(build(PlannedSource(plan), tmp_path / "image", chunk_size=4096))
    target = -(-parts.body(b"zz") // 8) * 8
    for item in small:
        behind = parts.body(item.path)
        parts.set_inode(
            item.path,
            format=parts.inode(b"zz").format,
            size=parts.inode(b"zz").size,
            union=parts.inode(b"zz").union,
            xattr_icount=(target - behind - 12) // 4 + 1,
        )
    result = check(parts.seal(), quick=True)
    assert any("indexes overlap" in text for text in texts(result))


# --- Chunk tables that lie ----------------------------------------------------------------------------------


def table_swapped(parts: Parts) -> None:
    records = parts.records[0]
    records[0], records[1] = records[1], records[0]


def table_overlap_in_decoded_space(parts: Parts) -> None:
    parts.set_record(0, 1, decoded_block=parts.records[0][0].decoded_block + 1)


def table_overlap_in_the_blob(parts: Parts) -> None:
    parts.set_record(0, 1, encoded_offset=parts.records[0][0].encoded_offset)


def table_beyond_decoded_space(parts: Parts) -> None:
    parts.set_record(0, 5, decoded_length=1 << 20)


def table_beyond_the_blob(parts: Parts) -> None:
    parts.set_record(0, 5, encoded_offset=2**63)


def table_unknown_codec(parts: Parts) -> None:
    parts.set_record(0, 3, codec=7)


def table_with_a_gap(parts: Parts) -> None:
    del parts.records[0][2]


def table_of_another_id(parts: Parts) -> None:
    parts.set_record(0, 2, chunk_id=bytes(32))


def table_of_another_length(parts: Parts) -> None:
    record = parts.records[0][5]
    parts.set_record(0, 5, encoded_length=record.encoded_length - 1)


TABLE_LIES = {
    name.removeprefix("table_"): lie for name, lie in list(globals().items()) if name.startswith("table_")
}


@pytest.mark.parametrize("lie", TABLE_LIES.values(), ids=TABLE_LIES)
def test_lie_in_a_chunk_table_is_told(parts, lie):
    lie(parts)
    result = check(parts.seal(), quick=True)
    assert result.problems.count >= 1
    assert all(issubclass(kind, FormatError) for kind in kinds(result)), texts(result)
    assert check(Reference(parts.folder.folder, "hostile")).problems.count >= result.problems.count


def test_gap_is_told_with_the_files_in_it(parts):
    table_with_a_gap(parts)
    result = check(parts.seal(), quick=True)
    assert {b"big", b"big.copy"} <= paths(result)
    assert any("no chunk holds" in text for text in texts(result))


def test_length_that_is_not_the_chunks(parts):
    """Only decoding finds this: record and frame disagree."""
    record = parts.records[0][5]
    parts.set_record(0, 5, decoded_length=record.decoded_length - 1)
    reference = parts.seal()
    assert any(problem.error.where.chunk == 5 for problem in check(reference).problems.kept)


# --- Bounds -------------------------------------------------------------------------------------------------


def test_problems_are_counted_without_bound_and_kept_with_one():
    problems = Problems()
    for number in range(PROBLEMS_MAX + 10):
        problems.add(FormatError("wrong").at(nid=number))
    assert problems.count == PROBLEMS_MAX + 10
    assert len(problems.kept) == PROBLEMS_MAX
    assert problems.kinds == {FormatError: PROBLEMS_MAX + 10}


def test_paths_of_a_problem_are_counted_without_bound_and_kept_with_one():
    problem = Problems().add(LimitExceeded("much"))
    for number in range(PROBLEM_PATHS_MAX + 3):
        problem.touches(b"%d" % number)
    assert problem.path_count == PROBLEM_PATHS_MAX + 3
    assert problem.paths == [b"%d" % number for number in range(PROBLEM_PATHS_MAX)]


def test_a_page_is_one_problem_whoever_meets_it():
    problems = Problems()
    for path in (b"a", b"b"):
        problems.add(DigestMismatch("metadata page does not match").at(page=3), path)
    problems.add(DigestMismatch("metadata page does not match").at(page=4))
    assert problems.count == 2
    assert problems.kept[0].paths == [b"a", b"b"]


@pytest.mark.parametrize(
    ("start", "length", "held"),
    [
        (0, 4096, True),
        (0, 12288, True),
        (4095, 2, True),
        (0, 12289, False),
        (16384, 100, True),
        (16384, 101, False),
        (12288, 1, False),
        (16383, 2, False),
        (2**40, 1, False),
    ],
)
def test_coverage(start, length, held):
    coverage = Coverage()
    for chunk in ((0, 4096), (4096, 12288), (16384, 16484)):
        coverage.add(*chunk)
    assert coverage.holds(start, length) is held


def test_nothing_is_covered_without_chunks():
    assert not Coverage().holds(0, 1)
