"""What containers are started with is sealed: hidden from the host, and believed from nobody else."""

import json
from dataclasses import replace

import pytest
from attacks.surgery import put, take
from support.images import KEY, build, opened
from support.trees import Planned, PlannedSource

from rafsfs.build.rewrap import rewrap
from rafsfs.errors import RafsError
from rafsfs.format.bootstrap import PAGE_ENTRY
from rafsfs.format.chunk import Suite
from rafsfs.format.erofs import FileType
from rafsfs.fs.checking import check_image
from rafsfs.store.oci_layout import blob_path, find_image
from rafsfs.trust.keys import KeyRing
from rafsfs.trust.material import SymmetricKey
from rafsfs.trust.opening import TrustPolicy

CONFIG = {
    "architecture": "riscv64",
    "os": "linux",
    "config": {"Env": ["TOKEN=open sesame"], "Cmd": ["run"]},
    "history": [{"created_by": "echo open sesame"}],
    "rootfs": {"type": "layers", "diff_ids": ["of other layers"]},
}


def built(tmp_path, **options):
    source = PlannedSource((Planned(b"", FileType.DIRECTORY),))
    return build(source, tmp_path / "layout", config=CONFIG, **options)


def visible(reference):
    image = find_image(reference)
    return json.loads(blob_path(reference.folder, image.manifest.config.digest).read_bytes())


def problems(reference):
    result = check_image(reference, KeyRing(symmetric=(KEY,)), TrustPolicy())
    return [str(problem.error) for problem in result.problems.kept]


@pytest.mark.parametrize("suite", Suite)
def test_sealed_config_comes_back(tmp_path, suite):
    reference = built(tmp_path, suite=suite)
    with opened(reference) as image:
        config = image.config()
    assert config.cmd == ("run",) and config.architecture == "riscv64"
    assert config.document == {name: value for name, value in CONFIG.items() if name != "rootfs"}
    shown = visible(reference)
    assert len(shown["rootfs"]["diff_ids"]) == len(find_image(reference).manifest.blobs) + 1
    assert shown["architecture"] == "riscv64"
    assert (shown["config"] == CONFIG["config"]) is not suite.encrypts


def test_host_sees_nothing_of_a_sealed_config(tmp_path):
    reference = built(tmp_path)
    files = [path for path in reference.folder.rglob("*") if path.is_file()]
    assert len(files) == 5
    assert not any(b"sesame" in path.read_bytes() for path in files)
    assert problems(reference) == []


def test_public_config_is_a_copy(tmp_path):
    reference = built(tmp_path, public_config=True)
    assert visible(reference)["config"] == CONFIG["config"]
    assert "history" not in visible(reference)
    assert problems(reference) == []


def test_changed_public_config_is_not_believed_and_is_found(tmp_path):
    stored = take(built(tmp_path, public_config=True))
    config = json.loads(stored.config)
    config["config"]["Cmd"] = ["evil"]
    reference = put(replace(stored, config=json.dumps(config).encode()), tmp_path / "changed")
    with opened(reference) as image:
        assert image.config().cmd == ("run",)
    (problem,) = problems(reference)
    assert "visible config is not the sealed one" in problem


def test_every_changed_byte_of_the_sealed_config_is_refused(tmp_path, tally):
    """It lies in the last page, of which nothing else is read here."""
    stored = take(built(tmp_path, page_size=4096))
    pages = stored.bootstrap.pages
    last = list(PAGE_ENTRY.iter_unpack(stored.bootstrap.page_table))[-1]
    tried = 0
    for position in range(last.encoded_offset, last.encoded_offset + last.encoded_length):
        changed = pages[:position] + bytes((pages[position] ^ 1,)) + pages[position + 1 :]
        bootstrap = replace(stored.bootstrap, pages=changed)
        reference = put(replace(stored, bootstrap=bootstrap), tmp_path / "changed")
        with opened(reference) as image, pytest.raises(RafsError):
            image.config()
        tried += 1
    tally("changed bytes of sealed configs refused", tried)


def test_rewrapping_keeps_both_configs(tmp_path):
    reference = built(tmp_path, public_config=True)
    before = visible(reference)
    other = SymmetricKey(bytes(32))
    rewrap(find_image(reference), "latest", KeyRing(symmetric=(KEY,)), policy=TrustPolicy(), add=[other])
    after = visible(reference)
    assert before.pop("rootfs") != after.pop("rootfs")
    assert before == after and problems(reference) == []
