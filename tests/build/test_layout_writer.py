"""An image appears at once and whole, or not at all: the layout folder before, during and after a change."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from rafsfs.build.layout_writer import LayoutWriter
from rafsfs.errors import BuildError, StoreError
from rafsfs.format import oci
from rafsfs.store.oci_layout import blob_path, read_index

ROOT = Path(__file__).parents[2]
MEDIA_TYPE = "application/octet-stream"


def contents(folder):
    """Path below ``folder`` -> bytes; None for directories."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def manifest_of(layout, *blobs):
    """Add a manifest that refers to the blobs, the first one as its config."""
    config, *layers = [blob.to_json() for blob in blobs]
    return layout.add_blob(oci.dump_json({"config": config, "layers": layers}), oci.MEDIA_TYPE_MANIFEST)


def write_image(folder, tag, *data):
    with LayoutWriter(folder) as layout:
        manifest = manifest_of(layout, *(layout.add_blob(item, MEDIA_TYPE) for item in data))
        layout.commit(manifest, tag)
    return manifest


def tags(folder):
    return {entry.annotations[oci.ANNOTATION_TAG]: entry.digest for entry in read_index(folder)}


def test_image_is_there_after_commit_and_nothing_of_it_before(tmp_path):
    folder = tmp_path / "deep" / "images"
    with LayoutWriter(folder) as layout:
        blob = layout.new_blob()
        blob.write(b"one")
        blob.write(b"two")
        data = layout.name_blob(blob, MEDIA_TYPE)
        manifest = manifest_of(layout, data)
        assert not blob_path(folder, data.digest).exists()
        assert not (folder / "index.json").exists()
        layout.commit(manifest, "v1")
    assert blob_path(folder, data.digest).read_bytes() == b"onetwo"
    assert data == oci.Descriptor(MEDIA_TYPE, oci.digest_of(b"onetwo"), 6)
    assert tags(folder) == {"v1": manifest.digest}
    assert json.loads((folder / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    assert sorted(path.name for path in folder.iterdir()) == ["blobs", "index.json", "oci-layout"]
    assert len(list((folder / "blobs" / "sha256").iterdir())) == 2


def test_uncommitted_change_leaves_nothing_not_even_folders(tmp_path):
    with pytest.raises(KeyboardInterrupt), LayoutWriter(tmp_path / "a" / "b") as layout:
        layout.new_blob().write(b"half of it")
        manifest_of(layout, layout.add_blob(b"whole", MEDIA_TYPE))
        raise KeyboardInterrupt
    assert contents(tmp_path) == {}


def test_uncommitted_change_leaves_the_earlier_image_as_it_was(tmp_path):
    write_image(tmp_path, "v1", b"a", b"b")
    before = contents(tmp_path)
    with pytest.raises(KeyboardInterrupt), LayoutWriter(tmp_path) as layout:
        layout.add_blob(b"a", MEDIA_TYPE)
        layout.add_blob(b"new", MEDIA_TYPE)
        raise KeyboardInterrupt
    assert contents(tmp_path) == before


@pytest.mark.parametrize("fails", ["oci-layout", "index.json", "sync"])
def test_commit_that_fails_half_way_leaves_the_folder_as_it_was(tmp_path, fails, monkeypatch):
    """The disk gives up at each step of a commit."""
    folder = tmp_path / "images"
    if fails != "oci-layout":
        write_image(folder, "v1", b"a")
    before = contents(tmp_path)
    with LayoutWriter(folder) as layout:
        manifest = manifest_of(layout, layout.add_blob(b"a", MEDIA_TYPE), layout.add_blob(b"b", MEDIA_TYPE))
        rename, fsync = type(folder).rename, os.fsync

        def failing_rename(path, target):
            if target.name == fails:
                raise OSError(errno.EIO, "disk failed", str(target))
            return rename(path, target)

        def failing_fsync(fd):
            if fails == "sync" and os.path.samestat(os.fstat(fd), (folder / "blobs/sha256").stat()):
                raise OSError(errno.EIO, "disk failed")
            fsync(fd)

        with monkeypatch.context() as patch:
            patch.setattr(type(folder), "rename", failing_rename)
            patch.setattr(os, "fsync", failing_fsync)
            with pytest.raises(OSError, match="disk failed"):
                layout.commit(manifest, "v1")
    assert contents(tmp_path) == before


def test_interrupt_after_the_tag_has_moved_keeps_the_new_image_whole(tmp_path, monkeypatch):
    write_image(tmp_path, "v1", b"old")
    rename = type(tmp_path).rename

    def interrupted_rename(path, target):
        rename(path, target)
        if target.name == "index.json":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, LayoutWriter(tmp_path) as layout:
        data = layout.add_blob(b"new", MEDIA_TYPE)
        manifest = manifest_of(layout, data)
        patch.setattr(type(tmp_path), "rename", interrupted_rename)
        with pytest.raises(KeyboardInterrupt):
            layout.commit(manifest, "v1")
    assert tags(tmp_path) == {"v1": manifest.digest}
    assert blob_path(tmp_path, manifest.digest).exists()
    assert blob_path(tmp_path, data.digest).read_bytes() == b"new"


KILLED = """
import os, pathlib, signal, sys
from rafsfs.build.layout_writer import LayoutWriter
layout = LayoutWriter(pathlib.Path(sys.argv[1]))
layout.new_blob().write(b"litter")
layout.add_blob(b"finished litter", "a/b")
os.kill(os.getpid(), signal.SIGKILL)
"""
COMMITS = """
import pathlib, sys
from rafsfs.build.layout_writer import LayoutWriter
with LayoutWriter(pathlib.Path(sys.argv[1])) as layout:
    manifest = layout.add_blob(b"{}", "a/b")
    print("ready", flush=True)
    layout.commit(manifest, "v2")
"""


def killed_while_writing(folder):
    """A process that dies of SIGKILL with a blob half written and another one finished."""
    done = subprocess.run([sys.executable, "-c", KILLED, folder], cwd=ROOT)
    assert done.returncode == -signal.SIGKILL


def test_what_a_killed_build_left_is_removed_by_the_next(tmp_path):
    write_image(tmp_path, "v1", b"a")
    before = contents(tmp_path)
    killed_while_writing(tmp_path)
    (tmp_path / ".rafsfs-0123456789abcdef-7").write_bytes(b"an index that was never renamed")
    assert len(contents(tmp_path)) == len(before) + 3
    with LayoutWriter(tmp_path):
        assert contents(tmp_path) == before


def test_folder_of_a_build_that_was_killed_before_its_first_image_can_be_built_into(tmp_path):
    killed_while_writing(tmp_path / "images")
    manifest = write_image(tmp_path / "images", "v1", b"a")
    assert len(list((tmp_path / "images" / "blobs" / "sha256").iterdir())) == 2
    assert tags(tmp_path / "images") == {"v1": manifest.digest}


def test_what_another_build_is_writing_stays(tmp_path):
    with LayoutWriter(tmp_path) as first:
        blob = first.new_blob()
        blob.write(b"slow")
        write_image(tmp_path, "quick", b"a")
        assert blob.path.exists()
        manifest = manifest_of(first, first.name_blob(blob, MEDIA_TYPE))
        first.commit(manifest, "slow")
    assert set(tags(tmp_path)) == {"quick", "slow"}


def test_build_that_fails_takes_no_blob_from_one_that_shares_it(tmp_path):
    with pytest.raises(KeyboardInterrupt), LayoutWriter(tmp_path) as failing:
        failing.add_blob(b"shared", MEDIA_TYPE)
        write_image(tmp_path, "v1", b"shared")
        raise KeyboardInterrupt
    assert blob_path(tmp_path, oci.digest_of(b"shared")).read_bytes() == b"shared"


def test_damaged_blob_is_replaced_by_the_good_one_that_has_its_name(tmp_path):
    write_image(tmp_path, "v1", b"data")
    damaged = blob_path(tmp_path, oci.digest_of(b"data"))
    damaged.write_bytes(b"dat")
    write_image(tmp_path, "v1", b"data")
    assert damaged.read_bytes() == b"data"


def test_blob_of_another_layout_is_linked(tmp_path):
    write_image(tmp_path / "old", "v1", b"data")
    source = blob_path(tmp_path / "old", oci.digest_of(b"data"))
    with LayoutWriter(tmp_path / "new") as layout:
        data = oci.Descriptor(MEDIA_TYPE, oci.digest_of(b"data"), 4)
        layout.take_blob(source, data)
        layout.commit(manifest_of(layout, data), "v1")
    assert blob_path(tmp_path / "new", data.digest).samefile(source)


def test_own_blob_is_taken_again(tmp_path):
    write_image(tmp_path, "v1", b"data")
    data = oci.Descriptor(MEDIA_TYPE, oci.digest_of(b"data"), 4)
    before = contents(tmp_path)
    with LayoutWriter(tmp_path) as layout:
        layout.take_blob(blob_path(tmp_path, data.digest), data)
        layout.commit(manifest_of(layout, data), "v1")
    assert contents(tmp_path) == before


def test_blob_that_cannot_be_linked_is_copied_and_checked(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "another file system")

    monkeypatch.setattr(os, "link", refuse)
    source = tmp_path / "blob"
    data = oci.Descriptor(MEDIA_TYPE, oci.digest_of(b"data"), 4)
    source.write_bytes(b"dxta")
    with LayoutWriter(tmp_path / "new") as layout:
        with pytest.raises(BuildError, match="damaged"):
            layout.take_blob(source, data)
        source.write_bytes(b"data")
        layout.take_blob(source, data)
        layout.commit(manifest_of(layout, data), "v1")
    assert blob_path(tmp_path / "new", data.digest).read_bytes() == b"data"
    assert not blob_path(tmp_path / "new", data.digest).samefile(source)


def test_tags_of_others_keep_all_that_is_said_of_them(tmp_path):
    write_image(tmp_path, "v1", b"a")
    index = json.loads((tmp_path / "index.json").read_bytes())
    index["manifests"][0] |= {"platform": {"os": "linux", "architecture": "riscv64"}, "artifactType": "a/b"}
    index["annotations"] = {"by": "somebody"}
    (tmp_path / "index.json").write_text(json.dumps(index))
    manifest = write_image(tmp_path, "v2", b"b")
    after = json.loads((tmp_path / "index.json").read_bytes())
    assert after["manifests"].pop() == manifest.to_json() | {"annotations": {oci.ANNOTATION_TAG: "v2"}}
    assert after == index


def test_two_builds_at_once_lose_no_tag(tmp_path):
    """One commits while the other waits for the lock, with what it knew of the index before."""
    with LayoutWriter(tmp_path) as first, LayoutWriter(tmp_path) as second:
        one = manifest_of(first, first.add_blob(b"1", MEDIA_TYPE))
        two = manifest_of(second, second.add_blob(b"2", MEDIA_TYPE))
        first.commit(one, "one")
        second.commit(two, "two")
    assert tags(tmp_path) == {"one": one.digest, "two": two.digest}


def test_commit_waits_for_the_lock_of_the_folder(tmp_path):
    write_image(tmp_path, "v1", b"a")
    lock = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    command = [sys.executable, "-c", COMMITS, tmp_path]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"ready\n"
        assert set(tags(tmp_path)) == {"v1"}
        os.close(lock)
    assert other.returncode == 0
    assert set(tags(tmp_path)) == {"v1", "v2"}


def test_commit_refuses_when_the_tag_was_moved_by_somebody_else(tmp_path):
    old = write_image(tmp_path, "v1", b"a")
    with LayoutWriter(tmp_path) as layout:
        mine = manifest_of(layout, layout.add_blob(b"mine", MEDIA_TYPE))
        write_image(tmp_path, "v1", b"theirs")
        before = tags(tmp_path)
        with pytest.raises(StoreError, match="replaced by somebody else"):
            layout.commit(mine, "v1", replaces=old.digest)
    assert tags(tmp_path) == before
    assert not blob_path(tmp_path, mine.digest).exists()


def test_superseded_blobs_are_dropped_but_not_those_that_an_image_needs(tmp_path):
    old = write_image(tmp_path, "v1", b"config", b"old", b"shared")
    write_image(tmp_path, "other", b"config 2", b"shared")
    superseded = [old.digest, *(oci.digest_of(data) for data in (b"config", b"old", b"shared"))]
    with LayoutWriter(tmp_path) as layout:
        assert layout.drop_blobs(superseded) == superseded
        layout.commit(manifest_of(layout, layout.add_blob(b"new", MEDIA_TYPE)), "v1", replaces=old.digest)
        assert layout.drop_blobs(superseded) == [oci.digest_of(b"shared")]
    present = [blob_path(tmp_path, digest).exists() for digest in superseded]
    assert present == [False, False, False, True]


def test_nothing_is_dropped_from_a_folder_with_an_image_that_cannot_be_read(tmp_path):
    write_image(tmp_path, "v1", b"a")
    damaged = write_image(tmp_path, "v2", b"b")
    blob_path(tmp_path, damaged.digest).write_bytes(b"{}")
    with LayoutWriter(tmp_path) as layout:
        assert layout.drop_blobs([oci.digest_of(b"a")]) == [oci.digest_of(b"a")]
    assert blob_path(tmp_path, oci.digest_of(b"a")).exists()


def test_folder_with_other_things_is_refused_and_left_alone(tmp_path):
    (tmp_path / "letter.txt").write_text("dear")
    (tmp_path / "blobs").mkdir()
    before = contents(tmp_path)
    with pytest.raises(BuildError, match=r"something else than images.*letter\.txt"):
        LayoutWriter(tmp_path)
    assert contents(tmp_path) == before


def test_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "images").write_text("dear")
    with pytest.raises(NotADirectoryError):
        LayoutWriter(tmp_path / "images")
    with pytest.raises(NotADirectoryError):
        LayoutWriter(tmp_path / "images" / "below")
    assert contents(tmp_path) == {"images": b"dear"}
