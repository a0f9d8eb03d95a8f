"""``rafsfs prune`` as its users call it: what it says, in words and JSON, and how it ends."""

import json
import os

import pytest
from support.images import build
from support.mounts import rafsfs

from rafsfs.store.oci_layout import blob_digests


@pytest.fixture
def folder(tmp_path):
    """A folder whose tag was moved once."""
    tree = tmp_path / "tree"
    tree.mkdir()
    for _ in range(2):
        (tree / "file").write_bytes(os.urandom(1 << 20))
        build(tree, tmp_path / "images")
    return tmp_path / "images"


def test_it_says_what_it_freed(folder):
    listed = rafsfs("prune", folder, "--dry-run")
    assert (listed.returncode, listed.stderr) == (0, "")
    *lines, total = listed.stdout.splitlines()
    assert len(lines) == 4
    assert f"{folder}: would remove 4 blobs, 1.0" in total
    assert len(blob_digests(folder)) == 8
    done = rafsfs("prune", folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == total.replace("would remove", "removed") + "\n"
    assert {line.split()[0] for line in lines}.isdisjoint(blob_digests(folder))
    assert len(blob_digests(folder)) == 4


def test_json(folder):
    before = set(blob_digests(folder))
    done = rafsfs("prune", folder, "--json")
    told = json.loads(done.stdout)
    assert {item["digest"] for item in told["removed"]} == before - set(blob_digests(folder))
    assert told["freed_bytes"] == sum(item["size"] for item in told["removed"])
    assert (told["folder"], told["dry_run"], told["litter"], told["kept"]) == (str(folder), False, 0, 4)


@pytest.mark.parametrize("name", ["tree", "images:latest", "nowhere"])
def test_what_is_no_layout_is_one_line(folder, name):
    done = rafsfs("prune", folder.parent / name)
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("\n") == 1
    assert "no OCI layout at" in done.stderr
    assert "name the folder of images alone" in done.stderr
