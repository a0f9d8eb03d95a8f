"""From traces to prefetch lists: the right chunks in the right order, also of trees that have changed."""

import os
import random

import pytest
from support.images import build, opened

from rafsfs.build import prefetch
from rafsfs.build.builder import build_image
from rafsfs.build.directory_source import DirectorySource
from rafsfs.build.options import BuildOptions
from rafsfs.build.prefetch import load_traces, plan_prefetch
from rafsfs.errors import BuildError, FormatError, LimitExceeded
from rafsfs.format.chunk import Suite
from rafsfs.format.prefetch import PrefetchRun
from rafsfs.format.trace import TracedRange, pack_trace
from rafsfs.fs.image import open_sealed
from rafsfs.limits import FILE_SIZE_MAX
from rafsfs.store.reference import Reference
from rafsfs.trust.keys import KeyRing
from rafsfs.trust.opening import TrustPolicy

CHUNK = 16 * 1024
WHOLE = FILE_SIZE_MAX


@pytest.fixture
def tree(tmp_path):
    noise = random.Random(1)
    folder = tmp_path / "tree"
    (folder / "d").mkdir(parents=True)
    (folder / "a").write_bytes(noise.randbytes(4 * CHUNK))
    (folder / "b").write_bytes(noise.randbytes(3 * CHUNK + 10))
    for name in ("s1", "s2"):
        (folder / "d" / name).write_bytes(noise.randbytes(2000))
    (folder / "d" / "tiny").write_bytes(noise.randbytes(100))
    (folder / "empty").touch()
    (folder / "link").symlink_to("a")
    os.link(folder / "a", folder / "hard")
    with (folder / "holes").open("wb") as file:
        file.seek(1 << 40)
        file.write(noise.randbytes(CHUNK))
    return folder


def plan(reference, *ranges):
    with opened(reference) as image:
        tables = [blob.chunks for blob in image.filesystem.engine.blobs]
        return plan_prefetch([TracedRange(*found) for found in ranges], image.filesystem.tree, tables)


def chunks_of(reference, path):
    """The chunks of a file, by reading it with an empty cache."""
    with opened(reference) as image:
        filesystem, nid = image.filesystem, image.filesystem.root
        for name in path.split(b"/"):
            nid = filesystem.lookup(nid, name)
        found = []
        for offset in range(0, filesystem.attributes(nid).size, CHUNK):
            (extent,) = filesystem.extents(nid, offset, 1)
            found.append((extent.blob, filesystem.engine.blobs[extent.blob].chunks.find(extent.start)))
        return found


def listed(runs):
    return [(run.blob, run.first_chunk + number) for run in runs for number in range(run.chunk_count)]


@pytest.fixture
def image(tree, tmp_path):
    return build(tree, tmp_path / "image", chunk_size=CHUNK)


def test_chunks_in_order_of_first_access(image):
    a, b, small = (chunks_of(image, path) for path in (b"a", b"b", b"d/s1"))
    found = plan(
        image,
        (b"b", CHUNK, 1),
        (b"d/s2", 0, 100),
        (b"a", CHUNK - 1, 2),
        (b"a", 0, WHOLE),
        (b"b", 0, WHOLE),
    )
    expected = [b[1], small[0], a[0], a[1], a[2], a[3], b[0], b[2]]
    expected += [chunk for chunk in b[3:] if chunk not in expected]
    assert listed(found.runs) == expected
    assert PrefetchRun(0, a[0][1], 5) in found.runs  # all of a, and b goes on where it ends
    assert (found.chunks, found.paths, found.paths_gone) == (len(expected), 3, 0)
    assert found.bytes >= 7 * CHUNK + 10


def test_what_has_no_chunks(image):
    found = plan(
        image,
        (b"gone", 0, 1),
        (b"gone", 5, 1),
        (b"d", 0, 1),
        (b"link", 0, 1),
        (b"a/below a file", 0, 1),
        (b"n" * 300, 0, 1),
        (b"empty", 0, WHOLE),
        (b"a", 4 * CHUNK, WHOLE - 4 * CHUNK),
        (b"holes", 0, 1 << 39),
    )
    assert (found.runs, found.chunks, found.bytes) == ((), 0, 0)
    assert (found.paths, found.paths_gone) == (8, 5)


def test_hard_links_are_one_file(image):
    assert plan(image, (b"hard", 0, WHOLE)).runs == plan(image, (b"a", 0, WHOLE), (b"hard", 0, 5)).runs


def test_longer_lists_keep_what_came_first(image, monkeypatch):
    monkeypatch.setattr(prefetch, "PREFETCH_RUNS_MAX", 2)
    a, b = chunks_of(image, b"a"), chunks_of(image, b"b")
    found = plan(image, (b"a", 2 * CHUNK, 1), (b"b", 0, 1), (b"a", 0, 1), (b"b", CHUNK, 1))
    assert listed(found.runs) == [a[2], b[0], b[1]]
    assert (found.chunks, found.chunks_left_out) == (3, 1)


def test_trace_that_keeps_the_builder_busy(image, monkeypatch):
    monkeypatch.setattr(prefetch, "TRACE_EXTENTS_MAX", 1000)
    assert plan(image, *[(b"a", 0, WHOLE)] * 200)
    with pytest.raises(LimitExceeded, match=r"at most 1000.*shorten"):
        plan(image, *[(b"a", 0, WHOLE)] * 300)
    with pytest.raises(LimitExceeded):
        plan(image, (b"holes", 0, WHOLE), (b"holes", 1, WHOLE), *[(b"holes", 0, WHOLE)] * 1000)


RANGES = [
    TracedRange(b"d/s1", 0, 100),
    TracedRange(b"b", CHUNK, CHUNK),
    TracedRange(b"gone", 0, 1),
    TracedRange(b"a", 0, CHUNK),
]


def built(tree, folder, tag="latest", **options):
    source = DirectorySource(tree)
    chosen = {"suite": Suite.INTEGRITY_ONLY, "chunk_size": CHUNK} | options
    summary = build_image(source, Reference(folder, tag), BuildOptions(**chosen), traced=RANGES)
    source.close()
    return summary


def test_build_makes_the_list_that_the_image_gives(tree, tmp_path, image):
    summary = built(tree, tmp_path / "with")
    with open_sealed(Reference(tmp_path / "with"), KeyRing(), TrustPolicy()) as with_list:
        runs = with_list.prefetch_runs()
    assert tuple(runs) == summary.prefetch.runs == plan(image, *RANGES).runs
    assert (summary.prefetch.paths, summary.prefetch.paths_gone) == (4, 1)
    assert built(tree, tmp_path / "again").manifest_digest == summary.manifest_digest


def test_what_lies_in_the_metadata_needs_no_place_in_the_list(image):
    found = plan(image, (b"d/tiny", 0, WHOLE), (b"b", 0, 1))
    assert listed(found.runs) == [chunks_of(image, b"b")[0]]
    assert (found.paths, found.paths_gone) == (2, 0)


def test_moved_and_changed_files_are_found_where_they_are_now(tree, tmp_path, image):
    before = plan(image, *RANGES).runs
    (tree / "0 first").write_bytes(random.Random(5).randbytes(9 * CHUNK))
    (tree / "b").write_bytes(random.Random(6).randbytes(2 * CHUNK))
    (tree / "d" / "s1").rename(tree / "s1")
    changed = build(tree, tmp_path / "changed", chunk_size=CHUNK)
    after = plan(changed, *RANGES)
    assert listed(after.runs) == [chunks_of(changed, b"b")[1], chunks_of(changed, b"a")[0]]
    assert after.runs != before
    assert after.paths_gone == 2


def test_traces_are_read_one_behind_the_other(tmp_path):
    for number in (1, 2):
        (tmp_path / str(number)).write_bytes(pack_trace([TracedRange(b"f%d" % number, 0, 1)]))
    ranges = load_traces([tmp_path / "2", tmp_path / "1"])
    assert [found.path for found in ranges] == [b"f2", b"f1"]


def test_traces_that_cannot_be_read(tmp_path):
    with pytest.raises(BuildError, match=r"No such file.*/missing"):
        load_traces([tmp_path / "missing"])
    (tmp_path / "bad").write_bytes(b"rafsfs-trace-1\n0 1 /a\nx\n")
    with pytest.raises(FormatError, match=r"line 3.*file .*/bad"):
        load_traces([tmp_path / "bad"])
