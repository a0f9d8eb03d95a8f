"""Commands whose standard streams are closed, or take nothing, do their work and end with their own code."""

import json
import subprocess

import pytest
from support import mounts
from support.images import KEY, build
from support.mounts import ROOT, command_line, mounted

from rafsfs.trust.keys import SymmetricKey, load_key, save_key


@pytest.fixture
def place(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(b"content")
    (tmp_path / "m").mkdir()
    build(tree, tmp_path / "img")
    save_key(KEY, tmp_path / "key")
    save_key(SymmetricKey.generate(), tmp_path / "other")
    return tmp_path


def shell(place, *words, streams):
    """Run a command with redirections as a shell spells them; whatever is left of its output."""
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}
    line = f"{command_line(*words)} {streams}"
    done = subprocess.run(
        ["sh", "-c", line], cwd=place, env=environment, capture_output=True, text=True, timeout=mounts.END_S
    )
    assert "mistake" not in done.stderr
    return done


CLOSED = ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"]


@pytest.mark.parametrize("streams", CLOSED)
def test_commands_work_without_standard_streams(place, streams):
    for words in (
        ("keys", "new", "k"),
        ("build", "tree", "img2", "--key", "key"),
        ("ls", "img", "--key", "key"),
    ):
        done = shell(place, *words, streams=streams)
        assert (done.returncode, done.stderr) == (0, "")
    assert load_key(place / "k").secret
    assert json.loads((place / "img2" / "index.json").read_bytes())["manifests"]


@pytest.mark.parametrize("streams", CLOSED)
def test_what_is_printed_goes_into_no_file_of_ours(place, streams):
    """The next file that is opened must not become standard output."""
    before = {path: path.read_bytes() for path in (place / "img").rglob("*") if path.is_file()}
    shell(place, "check", "img", "--key", "key", streams=streams)
    assert {path: path.read_bytes() for path in (place / "img").rglob("*") if path.is_file()} == before


def test_source_on_standard_input_that_is_closed(place):
    done = shell(place, "build", "-", "img2", "--key", "key", streams="<&-")
    assert done.returncode == 8
    assert "standard input is closed" in done.stderr


@pytest.mark.integration
@pytest.mark.parametrize("streams", CLOSED)
def test_mount_serves_without_standard_streams(place, streams):
    done = shell(place, "mount", "img", "m", "--key", "key", streams=streams)
    try:
        assert (done.returncode, mounts.without_log_warning(done.stderr)) == (0, "")
        assert (place / "m" / "file").read_bytes() == b"content"
    finally:
        if mounted(place / "m") is not None:
            mounts.umount(place / "m")


@pytest.mark.parametrize("streams", ["2>&-", "2>/dev/full"])
def test_code_of_an_error_that_nobody_hears_of(place, streams):
    assert shell(place, "mount", "img", "m", "--key", "other", streams=streams).returncode == 4
    assert shell(place, "ls", "img:v9", "--key", "key", streams=streams).returncode == 11
    assert shell(place, "ls", "--nonsense", streams=streams).returncode == 2
