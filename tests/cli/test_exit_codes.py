"""Every way a command can end becomes its code and at most one line, never a traceback."""

import errno
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from support.images import KEY, build
from support.mounts import rafsfs

from rafsfs import errors
from rafsfs.cli.exit_codes import (
    MEANINGS,
    TABLE,
    TRACEBACK_VARIABLE,
    ExitCode,
    describe,
    exit_code_of,
    run,
)
from rafsfs.errors import COPY_AGAIN
from rafsfs.store.oci_layout import blob_path, find_image
from rafsfs.store.reference import Reference
from rafsfs.trust.keys import SymmetricKey, save_key

ROOT = Path(__file__).parents[2]

ROOM = "; make room there, or choose a place on another disk\n"
CODES = {
    errors.RafsError: 1,
    errors.FormatError: 6,
    errors.UnsupportedVersion: 16,
    errors.LimitExceeded: 6,
    errors.AuthError: 5,
    errors.MacMismatch: 5,
    errors.DigestMismatch: 5,
    errors.WrongKey: 4,
    errors.NotEncrypted: 4,
    errors.BadSignature: 5,
    errors.Rollback: 5,
    errors.KeyFileError: 4,
    errors.KeyFileMissing: 14,
    errors.PathNotFound: 13,
    errors.StoreError: 7,
    errors.ImageNotFound: 3,
    errors.TagNotFound: 11,
    errors.BlobNotFound: 12,
    errors.StoreUnavailable: 7,
    errors.Denied: 7,
    errors.LengthMismatch: 15,
    errors.BuildError: 8,
    errors.OptionError: 2,
    errors.SourceChanged: 17,
    errors.SourceUnreadable: 18,
    errors.MountError: 9,
    errors.MountPointBusy: 19,
    errors.MountPointNotDirectory: 20,
}


def raising(error):
    def command():
        raise error

    return command


def subclasses(kind):
    yield kind
    for below in kind.__subclasses__():
        yield from subclasses(below)


def test_every_error_of_ours_has_a_code_here():
    ours = {kind for kind in subclasses(errors.RafsError) if kind.__module__ == "rafsfs.errors"}
    assert ours == set(CODES)


@pytest.mark.parametrize(("kind", "code"), CODES.items())
def test_our_errors_are_a_line_and_their_code(kind, code, capsys):
    error = kind("what", expected="a", found="b", where=errors.Where(blob="x", chunk=3), hint="do this")
    assert run(raising(error)) == code
    output, complaint = capsys.readouterr()
    assert output == ""
    assert complaint.count("\n") == 1
    assert complaint.startswith("rafsfs: ")
    assert "what: expected a, found b (blob x, chunk 3); do this" in complaint


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file", "/a"), 3, "rafsfs: /a: No such file\n"),
        (
            NotADirectoryError(errno.ENOTDIR, "Not a directory", b"/\xff"),
            3,
            "rafsfs: /\\udcff: Not a directory\n",
        ),
        (
            OSError(errno.ENOSPC, "No space left", "/a", None, "/b"),
            21,
            "rafsfs: /a: /b: No space left" + ROOM,
        ),
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/a"), 21, "rafsfs: /a: Disk quota exceeded" + ROOM),
        (OSError("odd"), 10, "rafsfs: odd\n"),
        (KeyboardInterrupt(), 130, "rafsfs: interrupted\n"),
        (click.exceptions.Abort(), 130, "rafsfs: interrupted\n"),
        (click.UsageError("no such thing."), 2, "rafsfs: no such thing; see rafsfs --help\n"),
        (click.FileError("name", "hint"), 10, "rafsfs: Could not open file 'name': hint\n"),
        (errors.MountError("two\nlines\x1b[2J"), 9, "rafsfs: two\\nlines\\x1b[2J\n"),
    ],
)
def test_other_ends(error, code, line, capsys):
    assert run(raising(error)) == code
    assert capsys.readouterr() == ("", line)


@pytest.mark.parametrize("error", [ZeroDivisionError("by zero"), AssertionError(), MemoryError()])
def test_mistakes_of_ours_are_a_line_too(error, capsys, monkeypatch):
    monkeypatch.delenv(TRACEBACK_VARIABLE, raising=False)
    assert run(raising(error)) == 1
    complaint = capsys.readouterr().err
    assert complaint.startswith(
        f"rafsfs: unexpected {type(error).__name__}: {error}; this is a mistake in rafsfs"
    )
    assert complaint.count("\n") == 1
    assert TRACEBACK_VARIABLE in complaint


def test_a_traceback_can_be_asked_for(monkeypatch):
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    with pytest.raises(ZeroDivisionError):
        run(raising(ZeroDivisionError()))
    assert run(raising(errors.MountError("no"))) == 9


@pytest.mark.parametrize(("result", "code"), [(None, 0), (0, 0), (5, 5), (ExitCode.FORMAT, 6), ("text", 0)])
def test_what_a_command_returns(result, code):
    assert run(lambda: result) == code


def test_no_entry_of_the_table_hides_another():
    for position, (kind, _) in enumerate(TABLE):
        assert not any(issubclass(kind, earlier) for earlier, _ in TABLE[:position])


@given(st.text())
def test_no_message_breaks_the_line(text):
    assert describe(errors.FormatError(text)).isprintable()
    assert describe(OSError(5, text, text)).isprintable()
    assert describe(ValueError(text)).isprintable()


def test_a_full_disk_shows_although_output_is_buffered(monkeypatch, capsys):
    with io.open("/dev/full", "w") as full:  # noqa: UP020
        monkeypatch.setattr(sys, "stdout", full)
        assert run(lambda: print("text")) == 21
        assert capsys.readouterr().err == "rafsfs: No space left on device\n"
        full.detach = None
        monkeypatch.undo()
        with pytest.raises(OSError, match="No space left"):
            full.close()


def test_a_reader_that_goes_away_is_no_error_worth_a_line():
    program = (
        "import sys\n"
        "from rafsfs.cli.exit_codes import run\n"
        "sys.exit(run(lambda: [print('y' * 1000) for _ in range(1000)]))\n"
    )
    reading, writing = os.pipe()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=writing, stderr=subprocess.PIPE, env=environment
    )
    os.close(writing)
    assert os.read(reading, 1) == b"y"
    os.close(reading)
    errors_shown = process.communicate(timeout=60)[1]
    assert (process.returncode, errors_shown) == (141, b"")


def test_every_code_has_its_line_in_the_help():
    from rafsfs.cli.main import command

    shown = CliRunner().invoke(command, ["--help"], prog_name="rafsfs").output
    _, table = shown.split("Exit codes:\n")
    lines = [line.split(maxsplit=1) for line in table.splitlines()]
    assert [(int(code), meaning) for code, meaning in lines] == list(MEANINGS.items())
    assert list(MEANINGS) == sorted(ExitCode)


BAD_INPUT = {
    "wrong key": errors.WrongKey(""),
    "missing key": errors.KeyFileMissing(""),
    "no image": errors.ImageNotFound(""),
    "unknown tag": errors.TagNotFound(""),
    "newer format version": errors.UnsupportedVersion(""),
    "missing blob": errors.BlobNotFound(""),
    "truncated bytes": errors.LengthMismatch(""),
    "changed bytes": errors.DigestMismatch(""),
    "a path that is not there": errors.PathNotFound(""),
    "a full disk": OSError(errno.ENOSPC, "No space left on device"),
    "a source file that changes": errors.SourceChanged(""),
    "unreadable files": errors.SourceUnreadable(""),
    "a busy mount point": errors.MountPointBusy(""),
    "a mount point that is no directory": errors.MountPointNotDirectory(""),
    "a bad option": errors.OptionError(""),
}


def test_each_kind_of_bad_input_has_a_code_of_its_own():
    codes = {what: exit_code_of(error) for what, error in BAD_INPUT.items()}
    assert len(set(codes.values())) == len(codes), codes


# --- As users meet them -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An image with a few things that are not as they should be around it."""
    place = tmp_path_factory.mktemp("place")
    tree = place / "tree"
    tree.mkdir()
    (tree / "file").write_bytes(os.urandom(1 << 20))
    build(tree, place / "img")
    save_key(KEY, place / "key")
    save_key(SymmetricKey.generate(), place / "other.key")
    for name in ("short", "changed", "gone"):
        shutil.copytree(place / "img", place / name)
        blob = blob_path(place / name, find_image(Reference(place / name)).manifest.blobs[0].digest)
        data = blob.read_bytes()
        if name == "gone":
            blob.unlink()
        else:
            blob.write_bytes(data[:-1] if name == "short" else b"x" + data[1:])
    shutil.copytree(place / "img", place / "newer")
    bootstrap = blob_path(place / "newer", find_image(Reference(place / "newer")).manifest.bootstrap.digest)
    with bootstrap.open("r+b") as file:
        file.seek(8)
        file.write((99).to_bytes(4, "little"))
    shutil.copytree(place / "img", place / "cut")
    os.truncate(place / "cut" / "index.json", 20)
    shutil.copytree(place / "img", place / "forged")
    manifest = blob_path(place / "forged", find_image(Reference(place / "forged")).manifest_digest)
    manifest.write_bytes(manifest.read_bytes() + b" ")
    return place


WHERE_AND_WHAT_TO_DO = {
    "truncated blob": ("blobs/sha256/", COPY_AGAIN),
    "changed blob": ("chunk 0", COPY_AGAIN),
    "cut-off index": ("cut/index.json", COPY_AGAIN),
    "changed manifest": ("forged/blobs/sha256/", COPY_AGAIN),
    "missing blob": ("blobs/sha256/", "copy the image again"),
    "no path": ("path /nowhere", "`rafsfs ls IMAGE`"),
    "missing key": ("nowhere.key", "rafsfs keys new"),
}


@pytest.mark.integration
@pytest.mark.parametrize("case", WHERE_AND_WHAT_TO_DO)
def test_lines_say_where_and_what_to_do(place, case):
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    complaint = rafsfs(*MET[case][1].split(), cwd=place, env=environment).stderr
    for words in WHERE_AND_WHAT_TO_DO[case]:
        assert words in complaint


MET = {
    "wrong key": (4, "ls img --key other.key"),
    "missing key": (14, "ls img --key nowhere.key"),
    "no image": (3, "ls nowhere --key key"),
    "unknown tag": (11, "ls img:v9 --key key"),
    "unknown digest": (11, f"ls img@sha256:{'0' * 64} --key key"),
    "newer format": (16, "ls newer --key key"),
    "cut-off index": (6, "ls cut --key key"),
    "changed manifest": (5, "ls forged --key key"),
    "missing blob": (12, "cat gone /file --key key"),
    "truncated blob": (15, "cat short /file --key key"),
    "changed blob": (5, "cat changed /file --key key"),
    "no path": (13, "cat img /nowhere --key key"),
    "path below a file": (13, "stat img /file/below --key key"),
    "no source": (8, "build nowhere new --key key"),
    "no tar": (8, "build key new --key key"),
    "full disk": (21, "ls img --key key"),
    "mount point that is a file": (20, "mount img key --key key"),
    "mount point that is busy": (19, "mount img /proc --key key"),
    "mount point that is missing": (9, "mount img nowhere --key key"),
    "odd chunk size": (2, "build tree new --key key --chunk-size 3K"),
    "pattern of nothing": (2, "build tree new --key key --exclude /"),
}


@pytest.mark.integration
@pytest.mark.parametrize("case", MET)
def test_users_meet_them_as_one_line(place, case):
    code, line = MET[case]
    options = {"cwd": place, "env": os.environ | {"PYTHONPATH": str(ROOT)}}
    if code == 21:
        with Path("/dev/full").open("w") as full:
            done = rafsfs(*line.split(), **options, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    else:
        done = rafsfs(*line.split(), **options)
        assert done.stdout == ""
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("rafsfs: ")
    assert not (place / "new").exists()


@pytest.mark.integration
@pytest.mark.requires_root
@pytest.mark.parametrize(
    "line",
    ["extract img disk/out", "inspect img --export-erofs disk/erofs", "inspect img --export-data disk/data"],
)
def test_full_disk_says_where_and_what_to_do(place, line):
    disk = place / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], check=True)
    try:
        (disk / "filler").write_bytes(bytes(64 << 10))
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = rafsfs(*line.split(), "--key", "key", cwd=place, env=environment)
    finally:
        subprocess.run(["umount", disk], check=True)
        disk.rmdir()
    assert done.returncode == 21
    assert done.stderr.splitlines()[-1].startswith("rafsfs: disk/")
    assert done.stderr.endswith(ROOM)
