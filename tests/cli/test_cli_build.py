"""``rafsfs build`` as a user calls it: arguments in; image, summary or one line, and an exit code out."""

import errno
import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from support import mounts
from support.mounts import rafsfs
from support.trees import assert_same_tree, read_folder, read_image

from rafsfs import open_image
from rafsfs.store.oci_layout import find_image
from rafsfs.store.reference import parse_reference
from rafsfs.trust.keys import HybridIdentity, SymmetricKey, X25519Identity, save_key

MIB = 1 << 20
NOISE = os.urandom(MIB)
USER = 65534


@pytest.fixture(scope="module")
def keys(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    for name, key in (
        ("my.key", SymmetricKey.generate()),
        ("other.key", SymmetricKey.generate()),
        ("dedup.secret", SymmetricKey.generate()),
        ("alice.key", X25519Identity.generate()),
        ("pq.key", HybridIdentity.generate()),
    ):
        save_key(key, folder / name)
        if not isinstance(key, SymmetricKey):
            save_key(key.recipient(), folder / f"{name}.pub")
    (folder / "passphrase").write_text("correct horse\n")
    (folder / "passphrase").chmod(0o600)
    assert rafsfs("keys", "signing", folder / "release.key").returncode == 0
    return folder


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "hostname").write_text("box\n")
    (root / "twin a").write_bytes(NOISE[:300_000])
    (root / "twin b").write_bytes(NOISE[:300_000])
    (root / "link").symlink_to("etc/hostname")
    (root / "again").hardlink_to(root / "etc" / "hostname")
    with (root / "sparse").open("wb") as file:
        file.truncate(MIB)
    return root


def built(*arguments, **options):
    """Build without a word on standard error; returns the summary."""
    done = rafsfs("build", *arguments, "--json", **options)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def refused(code, words, *arguments, **options):
    """Fail with one line that holds all the words, and nothing else."""
    done = rafsfs("build", *arguments, **options)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("rafsfs: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in [words] if isinstance(words, str) else words:
        assert word in done.stderr
    return done.stderr


def contents(folder):
    """All that is in a folder; nothing where there is none."""
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def assert_holds(image, tree, key):
    with open_image(str(image), keys=[key]) as opened:
        assert_same_tree(read_image(opened.filesystem), read_folder(tree))


def names(image, key):
    with open_image(str(image), keys=[key]) as opened:
        return {path for path, _ in opened.walk()}


# --- What a build makes and says ----------------------------------------------------------------------------


def test_a_directory_becomes_an_image_that_holds_it(tree, keys, tmp_path):
    summary = built(tree, tmp_path / "img", "--key", keys / "my.key")
    assert_holds(tmp_path / "img", tree, keys / "my.key")
    size = 300_000 * 2 + 4 + MIB
    stored = sum(len(data) for data in contents(tmp_path / "img" / "blobs").values())
    assert summary["digest"] == find_image(parse_reference(str(tmp_path / "img"))).manifest_digest
    assert summary["bytes_in"] == size
    assert summary["bytes_holes"] == MIB
    assert summary["bytes_deduplicated"] == 300_000
    assert summary["bytes_unique"] == 300_004
    assert 300_000 < summary["bytes_stored"] < stored < summary["bytes_stored"] + 2000
    assert (summary["files"], summary["directories"], summary["inodes"]) == (4, 2, 7)
    assert summary["image"] == f"{tmp_path / 'img'}:latest"
    # Seconds are told in thousandths, the rate is of the unrounded time: one that rounds to them explains it.
    shortest, longest = summary["seconds"] - 0.0005, summary["seconds"] + 0.0005
    rate, data = summary["bytes_per_second"], size - MIB
    assert shortest * (rate - 1) <= data <= longest * (rate + 1)


def test_a_hole_takes_no_time_and_counts_in_no_rate(keys, tmp_path):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").touch()
    os.truncate(tmp_path / "tree" / "file", 1 << 40)
    options = [tmp_path / "tree", tmp_path / "img", "--key", keys / "my.key"]
    summary = built(*options)
    assert (summary["bytes_in"], summary["bytes_holes"], summary["bytes_per_second"]) == (1 << 40, 1 << 40, 0)
    assert rafsfs("build", *options).stdout.splitlines()[0].endswith(" s, 0.0 MB/s")


def test_the_summary_for_people(tree, keys, tmp_path):
    done = rafsfs("build", tree, tmp_path / "img", "--key", keys / "my.key")
    assert (done.returncode, done.stderr) == (0, "")
    first, *fields, digest = done.stdout.splitlines()
    assert first.startswith(f"Built {tmp_path / 'img'}:latest in ")
    assert first.endswith(" MB/s")
    values = dict(line.strip().split("  ", 1) for line in fields)
    assert values.keys() == {"files", "bytes in", "holes", "saved by dedup", "unique", "stored"}
    assert values["bytes in"].strip() == "1.57 MiB"
    assert values["saved by dedup"].strip() == "293 KiB (18 %)"
    assert digest.strip() == find_image(parse_reference(str(tmp_path / "img"))).manifest_digest


def test_quiet_says_nothing(tree, keys, tmp_path):
    done = rafsfs("build", tree, tmp_path / "img", "--key", keys / "my.key", "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("compression", ["plain", "gz", "zst"])
@pytest.mark.parametrize("way", ["file", "stdin"])
def test_a_tar_becomes_an_image(compression, way, tree, keys, tmp_path):
    archive = tmp_path / "tree.tar"
    subprocess.run(["tar", "-C", tree, "--sparse", "--format=pax", "-cf", archive, "."], check=True)
    if compression == "gz":
        subprocess.run(["gzip", archive], check=True)
        archive = tmp_path / "tree.tar.gz"
    elif compression == "zst":
        subprocess.run(["zstd", "-q", archive], check=True)
        archive = tmp_path / "tree.tar.zst"
    if way == "file":
        built(archive, tmp_path / "img", "--key", keys / "my.key")
    else:
        with archive.open("rb") as file:
            built("-", tmp_path / "img", "--key", keys / "my.key", stdin=file)
    assert_holds(tmp_path / "img", tree, keys / "my.key")


def test_a_tar_out_of_a_pipe_with_a_name(tree, keys, tmp_path):
    """As shells make them: ``rafsfs build <(tar c .) img``."""
    with subprocess.Popen(["tar", "-C", tree, "--format=pax", "-c", "."], stdout=subprocess.PIPE) as tar:
        fd = tar.stdout.fileno()
        built(f"/dev/fd/{fd}", tmp_path / "img", "--key", keys / "my.key", pass_fds=[fd])
    assert_holds(tmp_path / "img", tree, keys / "my.key")


@pytest.mark.parametrize("opener", ["my.key", "alice.key", "pq.key"])
def test_everybody_whom_it_is_sealed_for_can_open_it(opener, tree, keys, tmp_path):
    """A symmetric key, a public half, and an identity of which the public half is taken."""
    who = ["--key", keys / "my.key", "--key", keys / "alice.key.pub", "--key", keys / "pq.key"]
    built(tree, tmp_path / "img", *who)
    assert_holds(tmp_path / "img", tree, keys / opener)


def test_a_passphrase_opens_it(tree, keys, tmp_path):
    built(tree, tmp_path / "img", "--passphrase-file", keys / "passphrase")
    with open_image(str(tmp_path / "img"), passphrase=b"correct horse") as image:
        assert image.read_bytes("/etc/hostname") == b"box\n"


def test_a_signed_image_with_a_name_and_a_release(tree, keys, tmp_path):
    built(
        tree, tmp_path / "img", "--key", keys / "my.key", "--sign", keys / "release.key",
        "--name", "box", "--release", 7, "--not-after", "2999-12-31", "--suite", "chacha20-poly1305",
        "--compress", "none", "--chunk-size", "64K", "--platform", "linux/riscv64",
    )  # fmt: skip
    shown = json.loads(rafsfs("keys", "show", "--json", tmp_path / "img").stdout)[0]
    assert (shown["name"], shown["release"], shown["suite"]) == ("box", 7, "chacha20-poly1305")
    assert shown["not_after"] == 32503679999  # date -u -d '2999-12-31 23:59:59' +%s
    done = rafsfs("keys", "verify", tmp_path / "img", "--verify-key", keys / "release.key.pub")
    assert done.returncode == 0
    with open_image(str(tmp_path / "img"), keys=[keys / "my.key"]) as image:
        assert {image.filesystem.engine.blobs[0].chunks.record(index).decoded_length for index in range(4)}
        config = image.sealed.stored.manifest.config.digest.removeprefix("sha256:")
    assert json.loads((tmp_path / "img/blobs/sha256" / config).read_text())["architecture"] == "riscv64"


def test_an_unencrypted_image_opens_without_a_key_and_is_reproducible(tree, tmp_path):
    first = built(tree, tmp_path / "a", "--unencrypted")
    second = built(tree, tmp_path / "b", "--unencrypted")
    assert first["digest"] == second["digest"]
    with open_image(str(tmp_path / "a")) as image:
        assert image.read_bytes("/etc/hostname") == b"box\n"


def test_source_date_epoch_holds_later_times(tree, tmp_path):
    os.utime(tree / "etc" / "hostname", (1000, 1000))
    environment = os.environ | {"SOURCE_DATE_EPOCH": "1500000000", "PYTHONPATH": str(mounts.ROOT)}
    digest = built(tree, tmp_path / "a", "--unencrypted", env=environment)["digest"]
    (tree / "twin a").touch()
    assert built(tree, tmp_path / "b", "--unencrypted", env=environment)["digest"] == digest
    with open_image(str(tmp_path / "a")) as image:
        assert image.stat("/etc/hostname").mtime_ns == 1000 * 10**9
        assert image.stat("/twin a").mtime_ns == 1_500_000_000 * 10**9


def test_excluded_names_stay_out_of_a_directory_and_of_a_tar(tree, keys, tmp_path):
    (tree / "etc" / "x.pyc").write_text("")
    (tree / "cache").mkdir()
    (tree / "cache" / "file").write_text("")
    out = ["--key", keys / "my.key", "--exclude", "*.pyc", "--exclude", "/cache/", "--exclude", "twin*"]
    built(tree, tmp_path / "a", *out)
    with subprocess.Popen(["tar", "-C", tree, "--format=pax", "-c", "."], stdout=subprocess.PIPE) as tar:
        built("-", tmp_path / "b", *out, stdin=tar.stdout)
    expected = {"/", "/etc", "/etc/hostname", "/link", "/again", "/sparse"}
    assert names(tmp_path / "a", keys / "my.key") == expected
    assert names(tmp_path / "b", keys / "my.key") == expected


def test_extended_attributes_are_kept_or_left_out(tree, keys, tmp_path):
    os.setxattr(tree / "twin a", "user.note", b"mine")
    for options, expected in (((), {"user.note": b"mine"}), (("--no-xattrs",), {})):
        built(tree, tmp_path / "img", "--key", keys / "my.key", *options)
        with open_image(str(tmp_path / "img"), keys=[keys / "my.key"]) as image:
            assert image.xattrs("/twin a") == expected


@pytest.mark.requires_root
@pytest.mark.integration
def test_other_file_systems_are_left_out_when_asked(tree, keys, tmp_path):
    (tree / "mnt").mkdir()
    with small_disk(tree / "mnt", MIB):
        (tree / "mnt" / "file").write_text("")
        built(tree, tmp_path / "img", "--key", keys / "my.key", "--one-file-system")
    assert {"/mnt", "/mnt/file"} & names(tmp_path / "img", keys / "my.key") == {"/mnt"}


IN_CHUNKS = ("--inline-size", "0")  # also the smallest files, so that a dictionary can hold them


@pytest.mark.parametrize("folder", ["img", "elsewhere"])
def test_what_a_dictionary_holds_is_not_stored_again(folder, tree, keys, tmp_path):
    built(tree, tmp_path / "img:v1", "--key", keys / "my.key", *IN_CHUNKS)
    (tree / "new").write_bytes(NOISE[300_000:310_000])
    target = tmp_path / f"{folder}:v2"
    given = ["--key", keys / "my.key", "--chunk-dict", tmp_path / "img:v1"]
    summary = built(tree, target, *given, *IN_CHUNKS)
    assert summary["bytes_unique"] == 10_000
    assert_holds(target, tree, keys / "my.key")


@pytest.mark.parametrize(
    ("options", "is_inline"),
    [([], True), (["--inline-size", "0"], False), (["--compress", "none"], False),
     (["--compress", "none", "--inline-size", "10"], True)],
)  # fmt: skip
def test_small_files_lie_in_the_metadata(options, is_inline, tree, keys, tmp_path):
    """Unless nothing is to be compressed, for metadata is."""
    (tree / "tiny").write_bytes(NOISE[:9])
    built(tree, tmp_path / "img", "--key", keys / "my.key", *options)
    done = rafsfs("stat", tmp_path / "img", "tiny", "--key", keys / "my.key")
    assert ("9 bytes in the metadata" in done.stdout) is is_inline
    found = json.loads(rafsfs("stat", tmp_path / "img", "tiny", "--key", keys / "my.key", "--json").stdout)[
        0
    ]["stored"]
    assert found["inline_bytes"] == (9 if is_inline else 0)
    assert bool(found["blobs"]) is not is_inline


def test_a_dictionary_with_a_key_of_its_own(tree, keys, tmp_path):
    built(tree, tmp_path / "old", "--key", keys / "other.key", *IN_CHUNKS)
    build = [tree, tmp_path / "new", "--key", keys / "alice.key.pub", "--chunk-dict", tmp_path / "old"]
    refused(4, ["chunk dictionary", "no given key opens", str(tmp_path / "old"), "--dict-key"], *build)
    assert built(*build, "--dict-key", keys / "other.key", *IN_CHUNKS)["bytes_unique"] == 0
    assert_holds(tmp_path / "new", tree, keys / "alice.key")


def test_an_unencrypted_dictionary_of_a_sealed_build(tree, keys, tmp_path):
    built(tree, tmp_path / "old", "--unencrypted")
    build = [tree, tmp_path / "new", "--key", keys / "my.key", "--chunk-dict", tmp_path / "old"]
    message = refused(4, ["chunk dictionary", "not encrypted", "build with --unencrypted"], *build)
    assert "--dict-key" not in message


def test_keys_out_of_pipes_open_dictionaries_too(tree, keys, tmp_path):
    """They can be read only once: ``--key <(pass show my.key)``."""
    built(tree, tmp_path / "old", "--key", keys / "alice.key.pub", *IN_CHUNKS)
    reading, writing = os.pipe()
    os.write(writing, (keys / "alice.key").read_bytes())
    os.close(writing)
    own = ["--key", f"/dev/fd/{reading}", "--chunk-dict", tmp_path / "old"]
    summary = built(tree, tmp_path / "new", *own, *IN_CHUNKS, pass_fds=[reading])
    os.close(reading)
    assert summary["bytes_unique"] == 0


def test_a_dedup_domain_gives_equal_images(tree, keys, tmp_path):
    domain = ["--key", keys / "my.key", "--dedup-secret", keys / "dedup.secret"]
    first, second = (built(tree, tmp_path / name, *domain) for name in ("a", "b"))
    assert first["image_id"] == second["image_id"]
    assert_holds(tmp_path / "a", tree, keys / "my.key")


def test_a_dedup_secret_that_is_also_a_key_is_warned_of_once(tree, keys, tmp_path):
    secret = keys / "dedup.secret"
    who = ["--key", secret, "--key", keys / "my.key", "--key", secret, "--dedup-secret", secret]
    done = rafsfs("build", tree, tmp_path / "img", *who, "--quiet")
    assert done.returncode == 0
    assert done.stderr.startswith("rafsfs: warning: the dedup secret is also a key of the image")
    assert done.stderr.count("\n") == 1


def test_an_image_that_has_expired_is_warned_of(tree, keys, tmp_path):
    until = ["--not-after", "2001-02-03T04:05Z"]
    done = rafsfs("build", tree, tmp_path / "img", "--key", keys / "my.key", *until)
    assert done.returncode == 0
    assert "warning: the image expires before it is built (2001-02-03 04:05:00 UTC)" in done.stderr


def test_a_bar_is_shown_on_a_terminal_and_erased(tree, keys, tmp_path):
    """The summary still goes to standard output, which is none."""
    terminal, side = pty.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80", "PYTHONPATH": str(mounts.ROOT)}
    command = [sys.executable, "-m", "rafsfs", "build", tree, tmp_path / "img", "--key", keys / "my.key"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=side, env=environment) as process:
        os.close(side)
        shown = b""
        while select.select([terminal], [], [], mounts.END_S)[0]:
            try:
                shown += os.read(terminal, 4096)
            except OSError as error:  # the other side is closed
                assert error.errno == errno.EIO
                break
        assert process.stdout.read().startswith(b"Built ")
    os.close(terminal)
    assert process.returncode == 0
    assert b"Building" in shown
    assert b"entries" in shown
    assert b"MB/s" in shown
    assert shown.rstrip().endswith(b"\x1b[2K")  # erase the line: ECMA-48, EL


# --- Bad input ----------------------------------------------------------------------------------------------

WRONG_USE = {
    "no key": ([], "nobody could open the image; give --key"),
    "key for nothing": (["--key", "{my.key}", "--unencrypted"], "--unencrypted goes with none of"),
    "no size": (["--key", "{my.key}", "--chunk-size", "big"], "is not a size"),
    "no level": (["--key", "{my.key}", "--compress", "zstd:23"], "zstd:1 to zstd:22"),
    "no codec": (["--key", "{my.key}", "--compress", "lz4"], "zstd:1 to zstd:22"),
    "no suite": (["--key", "{my.key}", "--suite", "xts"], "aes-256-gcm"),
    "no date": (["--key", "{my.key}", "--not-after", "tomorrow"], "is no date"),
    "no platform": (["--key", "{my.key}", "--platform", "windows/amd64"], "linux/ARCH"),
    "no dictionary": (["--key", "{my.key}", "--dict-key", "{my.key}"], "there is none"),
}


@pytest.mark.parametrize(("options", "words"), WRONG_USE.values(), ids=WRONG_USE)
def test_wrong_use(options, words, tree, keys, tmp_path):
    options = [option.replace("{my.key}", str(keys / "my.key")) for option in options]
    refused(2, words, tree, tmp_path / "img", *options)
    assert not (tmp_path / "img").exists()


UNFIT = {
    "chunks of no power of two": (["--chunk-size", "5000"], "chunk size: expected a power of two"),
    "inline files as large as a block": (["--inline-size", "4K"], "size of inline files: expected 0 to 4032"),
    "a name of two lines": (["--name", "a\nb"], "image name"),
    "a pattern of nothing": (["--exclude", "/"], "names nothing"),
}


@pytest.mark.parametrize(("options", "words"), UNFIT.values(), ids=UNFIT)
def test_what_no_image_can_be(options, words, tree, keys, tmp_path):
    refused(2, words, tree, tmp_path / "img", "--key", keys / "my.key", *options)
    assert not (tmp_path / "img").exists()


def test_bad_source_date_epoch(tree, tmp_path):
    environment = os.environ | {"SOURCE_DATE_EPOCH": "yesterday", "PYTHONPATH": str(mounts.ROOT)}
    refused(2, "SOURCE_DATE_EPOCH", tree, tmp_path / "img", "--unencrypted", env=environment)


BAD_KEYS = {
    "of a signer": ("--key", "release.key", "seals nothing"),
    "of a recipient as signer": ("--sign", "alice.key.pub", "signs nothing"),
    "of an identity as secret": ("--dedup-secret", "alice.key", "rafsfs keys new"),
    "no key at all": ("--key", "passphrase", "not a key file"),
}


@pytest.mark.parametrize(("option", "file", "words"), BAD_KEYS.values(), ids=BAD_KEYS)
def test_bad_key(option, file, words, tree, keys, tmp_path):
    who = ["--key", keys / "my.key", option, keys / file]
    refused(4, [words, file], tree, tmp_path / "img", *who)
    assert not (tmp_path / "img").exists()


def test_missing_key(tree, keys, tmp_path):
    words = ["no such key file", "nowhere.key", "rafsfs keys new FILE"]
    refused(14, words, tree, tmp_path / "img", "--key", keys / "nowhere.key")
    assert not (tmp_path / "img").exists()


def test_a_key_that_others_may_read(tree, keys, tmp_path):
    shutil.copy(keys / "my.key", tmp_path / "open.key")
    (tmp_path / "open.key").chmod(0o644)
    refused(4, ["others may read", "chmod 600"], tree, tmp_path / "img", "--key", tmp_path / "open.key")


def test_a_passphrase_is_not_asked_for_without_a_terminal(tree, tmp_path):
    build = [tree, tmp_path / "img", "--passphrase"]
    refused(2, "there is no terminal", *build, start_new_session=True, stdin=subprocess.DEVNULL)


def test_no_source(keys, tmp_path):
    build = [tmp_path / "nowhere", tmp_path / "img", "--key", keys / "my.key"]
    refused(8, ["cannot be read", "nowhere"], *build)
    assert not (tmp_path / "img").exists()


def test_a_file_that_is_no_archive(keys, tmp_path):
    (tmp_path / "letter").write_text("dear" * 1000)
    refused(8, "tar", tmp_path / "letter", tmp_path / "img", "--key", keys / "my.key")
    assert not (tmp_path / "img").exists()


def test_a_tar_that_is_cut_off(tree, keys, tmp_path):
    built(tree, tmp_path / "img", "--key", keys / "my.key")
    before = contents(tmp_path / "img")
    whole = subprocess.run(
        ["tar", "-C", tree, "--format=pax", "-c", "."], check=True, capture_output=True
    ).stdout
    for length in (0, 100, 512, 700, len(whole) // 2):
        (tmp_path / "cut.tar").write_bytes(whole[:length])
        refused(8, "tar", tmp_path / "cut.tar", tmp_path / "img", "--key", keys / "my.key")
    assert contents(tmp_path / "img") == before


def test_a_hard_link_to_what_is_left_out_of_a_tar(tree, keys, tmp_path):
    archive = tmp_path / "tree.tar"
    subprocess.run(["tar", "-C", tree, "-cf", archive, "etc", "again"], check=True)
    out = ["--key", keys / "my.key", "--exclude", "hostname"]
    refused(8, ["hard link", "again", "etc/hostname"], archive, tmp_path / "img", *out)


def test_options_of_directories_are_no_options_of_tars(tree, keys, tmp_path):
    (tmp_path / "a.tar").write_bytes(bytes(1024))
    build = [tmp_path / "a.tar", tmp_path / "img", "--key", keys / "my.key"]
    refused(2, "for directories", *build, "--one-file-system")


def test_standard_input_is_either_source_or_key(tmp_path):
    refused(2, "both", "-", tmp_path / "img", "--key", "-", input="")


def test_standard_input_that_is_a_terminal(keys, tmp_path):
    terminal, side = pty.openpty()
    refused(2, "is a terminal", "-", tmp_path / "img", "--key", keys / "my.key", stdin=side)
    os.close(terminal)
    os.close(side)


@pytest.mark.parametrize("image", ["{}/img:bad tag", "{}/img@sha256:" + "0" * 64, ":v1"])
def test_bad_names_of_images(image, tree, keys, tmp_path):
    done = rafsfs("build", tree, image.format(tmp_path), "--key", keys / "my.key")
    assert done.returncode in (3, 8)
    assert done.stderr.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tree"]


def test_a_target_that_cannot_be_made(tree, keys, tmp_path):
    place = "choose a folder that is there or can be made"
    refused(3, ["/proc/img", place], tree, "/proc/img", "--key", keys / "my.key")
    refused(3, ["/dev/null", place], tree, "/dev/null", "--key", keys / "my.key")


def test_a_target_that_holds_something_else(tree, keys, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    refused(8, ["something else", "home"], tree, tmp_path / "home", "--key", keys / "my.key")
    refused(3, "letter", tree, tmp_path / "home" / "letter", "--key", keys / "my.key")
    assert contents(tmp_path / "home") == {Path("letter"): b"dear"}


def test_an_image_inside_its_own_source(tree, keys, tmp_path):
    for target in (tree, tree / "img", tree / "var" / "img"):
        refused(8, "inside its own source", tree, target, "--key", keys / "my.key")
    (tmp_path / "way").symlink_to(tree)
    refused(8, "inside its own source", tree, tmp_path / "way" / "img", "--key", keys / "my.key")
    assert not (tree / "img").exists()
    built(tree, tree / "var" / "img", "--key", keys / "my.key", "--exclude", "/var/img")
    assert "/var/img" not in names(tree / "var" / "img", keys / "my.key")


def test_a_dictionary_that_is_not_there(tree, keys, tmp_path):
    dictionary = ["--key", keys / "my.key", "--chunk-dict", tmp_path / "nowhere"]
    refused(3, ["chunk dictionary", "no image at"], tree, tmp_path / "img", *dictionary)
    assert not (tmp_path / "img").exists()


def test_a_dictionary_that_is_damaged(tree, keys, tmp_path):
    built(tree, tmp_path / "old", "--key", keys / "my.key")
    blob = max((tmp_path / "old/blobs/sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(blob.read_bytes())
    data[1000] ^= 1
    blob.write_bytes(data)
    dictionary = ["--key", keys / "my.key", "--chunk-dict", tmp_path / "old"]
    refused(5, "blob", tree, tmp_path / "img", *dictionary)
    assert not (tmp_path / "img").exists()


# --- A build that ends too early ----------------------------------------------------------------------------


@contextmanager
def small_disk(folder, size):
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.requires_root
@pytest.mark.integration
def test_a_disk_that_is_full(tree, keys, tmp_path):
    """Full at every 64 KiB from nothing to nearly enough: data, metadata and documents all meet it."""
    disk = tmp_path / "disk"
    needed = sum(len(data) for data in contents(tree).values()) - 2 * 300_000 - MIB + 300_000
    with small_disk(disk, 2 * MIB):
        built(tree, disk / "img", "--key", keys / "my.key")
        before = contents(disk)
        (tree / "more").write_bytes(NOISE[:needed])
        for left in (0, 4096, 65536, 131072, 196608, 262144, 303104, 311296):
            status = os.statvfs(disk)
            free = status.f_bavail * status.f_frsize
            (disk / "filler").write_bytes(bytes(free - left))
            build = [tree, disk / "img:new", "--key", keys / "my.key"]
            refused(21, ["No space left", str(disk), "make room"], *build)
            (disk / "filler").unlink()
            assert contents(disk) == before
        assert "/more" not in names(disk / "img", keys / "my.key")
        built(tree, disk / "img:new", "--key", keys / "my.key")
        assert_holds(disk / "img:new", tree, keys / "my.key")


@pytest.fixture
def large(tree):
    """A tree that takes a while, with names that are not opened before that while is over."""
    (tree / "again").unlink()  # so that etc alone has all links of its files
    with (tree / "a large file").open("wb") as file:
        for _ in range(48):
            file.write(os.urandom(MIB))
    for number in range(40):
        (tree / f"b{number:02}").write_text(f"{number}")
    return tree


@contextmanager
def stopped_build(tree, image, keys):
    """A build that stands still in the middle of the large file; killed at the end if it is still there."""
    blobs = image / "blobs" / "sha256"
    command = [sys.executable, "-m", "rafsfs", "build", tree, image, "--key", keys / "my.key"]
    command += ["--compress", "zstd:22"]  # so slow that it is not at the end before we are there
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(mounts.ROOT)},
    )  # fmt: skip
    try:
        while not (written := sum(path.stat().st_size for path in blobs.glob(".rafsfs-*"))):
            assert process.poll() is None, process.stderr.read()
        process.send_signal(signal.SIGSTOP)
        written = sum(path.stat().st_size for path in blobs.glob(".rafsfs-*"))
        assert written < 40 * MIB
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("there", [True, False], ids=["over an image", "into nothing"])
def test_a_signal_ends_a_build_cleanly(number, there, large, keys, tmp_path):
    image = tmp_path / "images" / "img"
    if there:
        built(large / "etc", image, "--key", keys / "my.key")
    before = contents(image)
    with stopped_build(large, image, keys) as process:
        process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        out, errors = process.communicate(timeout=mounts.END_S)
    assert (process.returncode, out, errors) == (130, "", "rafsfs: interrupted\n")
    assert contents(image) == before
    assert (tmp_path / "images").exists() == there


def test_a_second_signal_does_not_disturb_the_cleaning_up(large, keys, tmp_path):
    with stopped_build(large, tmp_path / "img", keys) as process:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            process.send_signal(number)
        process.send_signal(signal.SIGCONT)
        out, errors = process.communicate(timeout=mounts.END_S)
    assert (process.returncode, out, errors) == (130, "", "rafsfs: interrupted\n")
    assert not (tmp_path / "img").exists()


@pytest.mark.parametrize("there", [True, False], ids=["over an image", "into nothing"])
def test_a_killed_build_leaves_the_image_and_the_next_one_tidies_up(there, large, keys, tmp_path):
    image = tmp_path / "img"
    if there:
        built(large / "etc", image, "--key", keys / "my.key")
    before = contents(image)
    with stopped_build(large, image, keys) as process:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=mounts.END_S)
    assert process.returncode == -signal.SIGKILL
    litter = contents(image).keys() - before.keys()
    assert [path.name.startswith(".rafsfs-") for path in litter] == [True]
    if there:
        assert_holds(image, large / "etc", keys / "my.key")
    built(large / "etc", f"{image}:next", "--key", keys / "my.key")
    assert_holds(f"{image}:next", large / "etc", keys / "my.key")
    assert not any(path.name.startswith(".rafsfs-") for path in contents(image))


CHANGES = {
    "is appended to": (lambda tree: append(tree / "a large file"), "a large file"),
    "is truncated": (lambda tree: os.truncate(tree / "a large file", MIB), "a large file"),
    "vanishes": (lambda tree: (tree / "b39").unlink(), "b39"),
    "becomes a directory": (lambda tree: replace_by_directory(tree / "b39"), "b39"),
    "becomes a pipe": (lambda tree: replace_by_pipe(tree / "b39"), "b39"),
}


def append(path):
    with path.open("ab") as file:
        file.write(b"more")


def replace_by_directory(path):
    path.unlink()
    path.mkdir()


def replace_by_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(("change", "name"), CHANGES.values(), ids=CHANGES)
def test_a_source_that_changes_while_it_is_read(change, name, large, keys, tmp_path):
    image = tmp_path / "img"
    built(large / "etc", image, "--key", keys / "my.key")
    before = contents(image)
    with stopped_build(large, image, keys) as process:
        change(large)
        process.send_signal(signal.SIGCONT)
        out, errors = process.communicate(timeout=mounts.END_S)
    assert (process.returncode, out) == (17, "")
    assert errors.startswith("rafsfs: the source changed while it was read")
    assert f"path {name}" in errors
    assert errors.count("\n") == 1
    assert contents(image) == before


# --- As another user ----------------------------------------------------------------------------------------

# The interpreter and the packages may lie where only root can read, so all is imported while root.
AS_USER = f"""
import os, sys
import rafsfs.cli.build, rafsfs.build.builder, rafsfs.build.directory_source, ctypes, locale, resource
from rafsfs.cli.main import main
os.setgroups([])
os.setgid({USER})
os.setuid({USER})
sys.exit(main())
"""


@pytest.fixture
def place():
    """A folder of the user's own with a tree and a key, outside pytest's folders, which are root's."""
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="rafsfs-user-"))
    try:
        (folder / "tree").mkdir()
        (folder / "tree" / "open").write_bytes(b"hello\n")
        (folder / "tree" / "link").symlink_to("open")
        save_key(SymmetricKey.generate(), folder / "key")
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, USER, USER, follow_symlinks=False)
        yield folder
    finally:
        shutil.rmtree(folder)


def build_as_user(place, *options):
    build = ["build", place / "tree", place / "img", "--key", place / "key", *options]
    environment = os.environ | {"PYTHONPATH": str(mounts.ROOT)}
    command = [sys.executable, "-c", AS_USER, *build]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", env=environment)


@pytest.mark.requires_root
def test_a_user_builds_what_he_may_read(place):
    done = build_as_user(place, "--quiet")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert_holds(place / "img", place / "tree", place / "key")


@pytest.mark.requires_root
@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_a_user_may_not_read_is_named(place, kind):
    secret = place / "tree" / "secret"
    if kind == "file":
        secret.write_bytes(b"root's")
    else:
        secret.mkdir()
    secret.chmod(0o600 if kind == "file" else 0o700)
    done = build_as_user(place)
    assert (done.returncode, done.stdout) == (18, "")
    assert done.stderr.startswith("rafsfs: the source cannot be read: Permission denied (path secret)")
    assert "--exclude" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (place / "img").exists()
    done = build_as_user(place, "--exclude", "secret", "--quiet")
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.requires_root
def test_a_target_that_a_user_may_not_write(place):
    (place / "img").mkdir()
    done = build_as_user(place)
    assert (done.returncode, done.stdout) == (10, "")
    assert "Permission denied; choose a folder that you may write to" in done.stderr
    assert done.stderr.count("\n") == 1


def test_keys_never_reach_a_message(keys, tmp_path):
    """Malformed key files of all kinds, whose text must not be quoted."""
    text = (keys / "my.key").read_text()
    magic, kind, secret = text.splitlines()[-1].split()
    bad = tmp_path / "bad.key"
    for line in (secret, f"{magic} {secret}", f"{magic} {kind} {secret[:-3]}", f"{magic} {secret} {kind}"):
        bad.write_text(line)
        bad.chmod(0o600)
        message = refused(4, "bad.key", tmp_path, tmp_path / "img", "--key", bad)
        assert secret[:10] not in message


def test_a_tar_member_with_a_hostile_name_cannot_speak_to_the_terminal(keys, tmp_path):
    archive = tmp_path / "hostile.tar"
    with tarfile.open(archive, "w") as tar:
        member = tarfile.TarInfo("\x1b[31mred\n" + "x" * 300)
        member.size = 1
        tar.addfile(member, io.BytesIO(b"x"))
    message = refused(8, "too long", archive, tmp_path / "img", "--key", keys / "my.key")
    assert message.rstrip("\n").isprintable()
