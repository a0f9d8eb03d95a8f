"""Whole builds: what is summed up, clamped, reported; failures that leave everything as it was."""

import os
import stat
from dataclasses import replace

import pytest
from support.images import DEDUP_SECRET, KEY, build, opened
from support.trees import Planned, PlannedSource, Segment, assert_same_tree, expected, read_image

from rafsfs.build.builder import build_image
from rafsfs.build.options import BuildOptions
from rafsfs.errors import BuildError, ImageNotFound
from rafsfs.format.blob import parse_footer, parse_toc
from rafsfs.format.chunk import Suite
from rafsfs.format.erofs import FileType
from rafsfs.store.oci_layout import blob_path
from rafsfs.store.reference import Reference

CHUNK = 4096
OPTIONS = BuildOptions(recipients=(KEY,), chunk_size=CHUNK)
ROOT = Planned(b"", FileType.DIRECTORY, mtime_ns=5)
FILE = Planned(
    b"file", FileType.REGULAR, segments=(Segment(3 * CHUNK, 1), Segment(2 * CHUNK, None), Segment(9, 3))
)
TWIN = replace(FILE, path=b"twin")
LINK = Planned(b"link", FileType.REGULAR, hard_link_to=b"file")
PLAN = (ROOT, FILE, LINK, TWIN)


def stored(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class FailingSource(PlannedSource):
    """Gives its first entries, then what a vanished disk gives."""

    def __init__(self, plan, failure):
        super().__init__(plan)
        self.failure = failure

    def entries(self):
        yield from super().entries()
        raise self.failure


def test_summary_adds_up(tmp_path):
    summary = build_image(PlannedSource(PLAN), Reference(tmp_path), OPTIONS)
    size = 5 * CHUNK + 9
    assert (summary.inodes, summary.files, summary.directories) == (3, 2, 1)
    assert summary.bytes_in == 2 * size
    assert summary.bytes_holes == 2 * 2 * CHUNK
    assert summary.bytes_deduplicated == 3 * CHUNK + 9
    assert summary.bytes_unique == 3 * CHUNK + 9
    assert summary.chunks == 4
    with opened(Reference(tmp_path)) as image:
        manifest = image.stored.manifest
        assert summary.manifest_digest == image.stored.manifest_digest
        assert summary.image_id == image.opened.superblock.image_id.hex()
        assert summary.metadata_bytes == manifest.bootstrap.size
        assert summary.bytes_stored == manifest.bootstrap.size + manifest.blobs[0].size
    assert summary.seconds > 0


def test_image_of_nothing_has_no_blob(tmp_path):
    summary = build_image(PlannedSource((ROOT,)), Reference(tmp_path), OPTIONS)
    assert (summary.chunks, summary.bytes_in, summary.inodes) == (0, 0, 1)
    with opened(Reference(tmp_path)) as image:
        assert image.stored.manifest.blobs == ()
        assert_same_tree(expected((ROOT,)), read_image(image.filesystem))


def test_progress_is_reported_in_order(tmp_path):
    told = []
    build_image(PlannedSource(PLAN), Reference(tmp_path), OPTIONS, report=told.append)
    assert [progress.entries for progress in told] == [1, 2, 3, 4]
    assert [progress.bytes_read for progress in told] == [0, *[5 * CHUNK + 9] * 2, 2 * (5 * CHUNK + 9)]
    written = [progress.bytes_written for progress in told]
    assert written == sorted(written)


def test_large_file_is_reported_on_while_it_is_read(tmp_path):
    large = Planned(b"large", FileType.REGULAR, segments=(Segment(20 << 20, 0),))
    told = []
    build_image(
        PlannedSource((ROOT, large)),
        Reference(tmp_path),
        replace(OPTIONS, chunk_size=1 << 20),
        report=told.append,
    )
    read = [progress.bytes_read for progress in told]
    assert read == sorted(read)
    assert len(set(read)) > 10


def test_new_image_takes_over_the_tag_and_the_others_stay(tmp_path):
    plans = {tag: (ROOT, replace(FILE, path=tag.encode())) for tag in ("one", "two")}
    for tag, plan in plans.items():
        build(PlannedSource(plan), tmp_path, tag)
    build(PlannedSource(PLAN), tmp_path, "one")
    for tag, plan in (("one", PLAN), ("two", plans["two"])):
        with opened(Reference(tmp_path, tag)) as image:
            assert_same_tree(expected(plan), read_image(image.filesystem))


FAILURES = [BuildError("unreadable"), OSError(28, os.strerror(28)), KeyboardInterrupt(), MemoryError()]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_failed_build_leaves_the_earlier_image_and_no_litter(tmp_path, failure):
    build(PlannedSource(PLAN), tmp_path / "image")
    before = stored(tmp_path)
    with pytest.raises(type(failure)):
        build_image(FailingSource(PLAN, failure), Reference(tmp_path / "image"), OPTIONS)
    assert stored(tmp_path) == before


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
def test_failed_first_build_leaves_nothing(tmp_path, failure):
    with pytest.raises(type(failure)):
        build_image(FailingSource(PLAN, failure), Reference(tmp_path / "new" / "image"), OPTIONS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ((), "the source is empty"),
        ((Planned(b"", FileType.REGULAR),), "the root is not a directory"),
        ((Planned(b"file", FileType.FIFO),), "its parent is not a directory"),
        ((ROOT, Planned(b"a/b", FileType.FIFO)), "its parent is not a directory"),
        ((ROOT, FILE, Planned(b"file/b", FileType.FIFO)), "its parent is not a directory"),
        ((ROOT, replace(LINK, hard_link_to=b"nothing")), "hard link to a file that is not there"),
        ((ROOT, replace(LINK, hard_link_to=b"")), "hard link to a file that is not there"),
    ],
)
def test_source_that_is_no_tree_is_refused(tmp_path, plan, message):
    with pytest.raises(BuildError, match=message):
        build(PlannedSource(plan), tmp_path / "image")
    assert not (tmp_path / "image").exists()


def test_source_that_says_another_size_is_refused(tmp_path):
    class Liar(PlannedSource):
        def entries(self):
            for entry in super().entries():
                entry.size += entry.content is not None
                yield entry

    with pytest.raises(BuildError, match="changed while it was read"):
        build(Liar((ROOT, FILE)), tmp_path / "image")


def test_later_entry_of_a_path_replaces_the_earlier_one(tmp_path):
    """As tars have it: other names of the earlier inode keep it, and a directory keeps what is in it."""
    folder = Planned(b"folder", FileType.DIRECTORY)
    inner = Planned(b"folder/inner", FileType.FIFO)
    other = replace(FILE, segments=(Segment(7, 4),))
    build(
        PlannedSource((ROOT, FILE, LINK, folder, inner, other, replace(folder, permissions=0o700, uid=9))),
        tmp_path,
    )
    wanted = expected(
        (ROOT, other, replace(FILE, path=b"link"), replace(folder, permissions=0o700, uid=9), inner)
    )
    with opened(Reference(tmp_path)) as image:
        assert_same_tree(wanted, read_image(image.filesystem))


def test_file_in_the_place_of_a_directory_takes_away_what_was_below(tmp_path):
    plan = (
        ROOT,
        Planned(b"a", FileType.DIRECTORY),
        Planned(b"a/b", FileType.FIFO),
        Planned(b"a", FileType.SOCKET),
    )
    build(PlannedSource(plan), tmp_path)
    with opened(Reference(tmp_path)) as image:
        assert sorted(read_image(image.filesystem)) == [b"", b"a"]
        assert stat.S_ISSOCK(read_image(image.filesystem)[b"a"].mode)


def test_later_times_are_held_to_the_epoch(tmp_path):
    times = [-5, 0, 999_999_999, 1_000_000_000, 1_000_000_001, 5_000_000_000]
    plan = (ROOT, *(Planned(b"%d" % index, FileType.FIFO, mtime_ns=time) for index, time in enumerate(times)))
    build(PlannedSource(plan), tmp_path, source_date_epoch=1)
    with opened(Reference(tmp_path)) as image:
        found = read_image(image.filesystem)
    assert [found[b"%d" % index].mtime_ns for index in range(len(times))] == [
        min(time, 1_000_000_000) for time in times
    ]


def test_what_the_options_say_is_sealed(tmp_path):
    build(PlannedSource((ROOT,)), tmp_path, name="a name", release=7, not_after=2**40, page_size=8192)
    with opened(Reference(tmp_path)) as image:
        superblock = image.opened.superblock
        assert (superblock.name, superblock.release, superblock.not_after) == ("a name", 7, 2**40)
        assert superblock.page_size == 8192


def test_untagged_target_is_refused(tmp_path):
    digest = "sha256:" + "0" * 64
    with pytest.raises(BuildError, match="built under a tag"):
        build_image(PlannedSource(PLAN), Reference(tmp_path).pinned(digest), OPTIONS)


@pytest.mark.parametrize("occupied", ["file", "folder"])
def test_target_that_is_something_else_is_refused_and_untouched(tmp_path, occupied):
    target = tmp_path / "target"
    if occupied == "file":
        target.write_text("mine")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    before = stored(tmp_path)
    with pytest.raises((BuildError, OSError)):
        build_image(PlannedSource(PLAN), Reference(target), OPTIONS)
    assert stored(tmp_path) == before
    with pytest.raises(ImageNotFound):
        opened(Reference(target))


@pytest.mark.parametrize("level", [None, 1, 22])
@pytest.mark.parametrize("suite", Suite)
def test_all_suites_and_levels_read_back(tmp_path, suite, level):
    build(PlannedSource(PLAN), tmp_path, suite=suite, zstd_level=level, chunk_size=CHUNK)
    with opened(Reference(tmp_path)) as image:
        assert_same_tree(expected(PLAN), read_image(image.filesystem))


def test_blob_has_a_table_of_contents_for_those_without_keys(tmp_path):
    build(PlannedSource(PLAN), tmp_path, chunk_size=CHUNK)
    with opened(Reference(tmp_path)) as image:
        (descriptor,) = image.stored.manifest.blobs
        chunks = image.filesystem.engine.blobs[0].chunks
        records = [chunks.record(index) for index in range(len(chunks))]
        sealed = image.opened.superblock.blobs[0].toc_digest
    data = blob_path(tmp_path, descriptor.digest).read_bytes()
    footer = parse_footer(data, len(data))
    assert footer.toc_digest == sealed
    entries = parse_toc(data[footer.toc_offset :][: footer.toc_length], footer)
    assert [tuple(entry) for entry in entries] == [
        (record.encoded_offset, record.encoded_length, record.chunk_id) for record in records
    ]


def test_convergent_images_of_a_domain_share_chunks_and_say_the_domain(tmp_path):
    for name in ("one", "two"):
        build(
            PlannedSource((ROOT, replace(FILE, path=name.encode()))),
            tmp_path,
            name,
            dedup_secret=DEDUP_SECRET,
            chunk_size=CHUNK,
        )
    with opened(Reference(tmp_path, "one")) as one, opened(Reference(tmp_path, "two")) as two:
        assert one.stored.manifest.blobs == two.stored.manifest.blobs
        domains = {image.opened.superblock.dedup_domain for image in (one, two)}
        assert len(domains) == 1
        assert domains != {b""}
        assert one.opened.superblock.image_id != two.opened.superblock.image_id


def test_content_is_read_before_the_next_entry_and_not_for_links(tmp_path):
    """A tar on a pipe cannot be rewound."""
    events = []

    class Stream(PlannedSource):
        def entries(self):
            for entry in super().entries():
                events.append(entry.path)
                if entry.content is not None:
                    entry.content = self.told(entry.path, entry.content)
                yield entry

        @staticmethod
        def told(path, content):
            def read(piece_size):
                events.append((path, piece_size))
                return content(piece_size)

            return read

    build(Stream(PLAN), tmp_path, chunk_size=CHUNK)
    assert events == [b"", b"file", (b"file", CHUNK), b"link", b"twin", (b"twin", CHUNK)]
