"""The commands that look into images, run as a person runs them: what they print, and how they end."""

import base64
import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support.images import KEY, build
from support.resealing import Parts
from support.trees import Planned, PlannedSource, Segment, assert_same_tree, expected, read_folder

from rafsfs.cli.names import shown, text_fields, time_utc
from rafsfs.format.chunk import Suite
from rafsfs.format.erofs import FileType
from rafsfs.store.oci_layout import blob_path, find_image
from rafsfs.store.reference import Reference
from rafsfs.trust.keys import save_key
from rafsfs.trust.material import Ed25519SigningKey, SymmetricKey

ROOT = Path(__file__).parents[2]
USER = 65534
CHUNK = 16 * 1024
D, F, L = FileType.DIRECTORY, FileType.REGULAR, FileType.SYMLINK
ODD = b"odd \\ \xff\n\x1b[31m\xe2\x80\xae"
TIME = 1_600_000_000_123_456_789
PLAN = (
    Planned(b"", D, mtime_ns=TIME),
    Planned(b"a", D, 0o711, uid=1, gid=2, mtime_ns=TIME),
    Planned(b"a/" + ODD, F, 0o604, mtime_ns=TIME, segments=(Segment(10, 0),)),
    Planned(b"a/deep", D, mtime_ns=TIME),
    Planned(b"a/deep/file", F, 0o644, mtime_ns=TIME, segments=(Segment(5000, 1),)),
    Planned(b"big", F, 0o640, uid=3, mtime_ns=TIME, segments=(Segment(5 * CHUNK + 100, 1),)),
    Planned(b"holes", F, 0o600, mtime_ns=TIME, segments=(Segment(CHUNK, 3), Segment(1 << 20, None))),
    Planned(b"link", L, 0o777, mtime_ns=TIME, target=b"a/" + ODD),
    Planned(b"pipe", FileType.FIFO, 0o600, mtime_ns=TIME),
    Planned(b"null", FileType.CHARACTER, 0o666, mtime_ns=TIME, rdev=(1, 3)),
    Planned(b"same", F, hard_link_to=b"big"),
    Planned(
        b"tagged", F, 0o600, mtime_ns=TIME, xattrs=((b"trusted.a", b"\x00\xff"), (b"user.text", b"plain"))
    ),
    Planned(b"up", L, 0o777, mtime_ns=TIME, target=b"a/deep"),
)
CONTENT = {item.path: item.plain() for item in PLAN if item.kind is F and item.hard_link_to is None}


class Place:
    """An image, its key, and the command on them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = folder / "key"
        save_key(KEY, self.key)
        self.reference = build(PlannedSource(PLAN), folder / "image", chunk_size=CHUNK)
        self.image = str(self.reference.folder)

    def run(self, command: str, *arguments, key=True, image=None, check=True, **named):
        """Run ``rafsfs COMMAND IMAGE ARGUMENTS --key KEY``; its output as bytes."""
        words = [command, image or self.image, *arguments, *(("--key", self.key) if key else ())]
        done = subprocess.run(
            [sys.executable, "-m", "rafsfs", *map(os.fspath, words)],
            capture_output="stdout" not in named,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            check=False,
            timeout=120,
            **named,
        )
        if check:
            assert (done.returncode, done.stderr) == (0, b"")
        return done

    def fails(self, code: int, command: str, *arguments, **named) -> str:
        """Run it; it has to end with ``code`` and one line, which is returned."""
        done = self.run(command, *arguments, check=False, **named)
        line = done.stderr.decode()
        assert done.returncode == code, line
        assert line.startswith("rafsfs: ") and line.endswith("\n") and line.count("\n") == 1, line
        return line

    def json(self, command: str, *arguments, **named):
        return json.loads(self.run(command, *arguments, "--json", **named).stdout)

    def record(self, index: int):
        return Parts.of(self.reference).records[0][index]

    @property
    def blob(self) -> Path:
        return blob_path(self.reference.folder, find_image(self.reference).manifest.blobs[0].digest)

    def flip(self, offset: int) -> None:
        with self.blob.open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            file.seek(offset)
            file.write(bytes((byte ^ 1,)))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory) -> Place:
    return Place(tmp_path_factory.mktemp("pristine"))


@pytest.fixture
def place(tmp_path, pristine) -> Place:
    """A copy that a test may damage."""
    copied = object.__new__(Place)
    copied.folder = tmp_path
    copied.key = pristine.key
    shutil.copytree(pristine.image, tmp_path / "image")
    copied.reference = Reference(tmp_path / "image")
    copied.image = str(tmp_path / "image")
    return copied


# --- Bad input ----------------------------------------------------------------------------------------------

COMMANDS = {
    "ls": (),
    "stat": ("/",),
    "cat": ("big",),
    "extract": ("{folder}/out",),
    "inspect": (),
    "check": (),
}


def all_but(*commands: str) -> list[str]:
    return [command for command in COMMANDS if command not in commands]


def words(place: Place, command: str) -> list[str]:
    return [word.format(folder=place.folder) for word in COMMANDS[command]]


@pytest.mark.parametrize("command", COMMANDS)
def test_images_that_cannot_be_opened(place, command):
    arguments = words(place, command)
    other = place.folder / "other"
    save_key(SymmetricKey(bytes(32)), other)
    assert "no given key" in place.fails(4, command, *arguments, "--key", other, key=False)
    assert "no image at" in place.fails(3, command, *arguments, image=str(place.folder / "nowhere"))
    line = place.fails(11, command, *arguments, image=place.image + ":other")
    assert "no tag 'other'" in line and "it has: latest" in line
    place.key = place.folder / "readable"
    save_key(KEY, place.key)
    place.key.chmod(0o644)
    assert str(place.key) in place.fails(4, command, *arguments)
    assert not (place.folder / "out").exists()


@pytest.mark.parametrize("command", all_but("inspect"))
def test_sealed_image_without_a_key(pristine, command):
    line = pristine.fails(4, command, *words(pristine, command), key=False)
    assert KEY.key_id.hex() in line


@pytest.mark.parametrize("command", all_but("check"))
def test_image_of_a_newer_format(place, command):
    bootstrap = blob_path(place.reference.folder, find_image(place.reference).manifest.bootstrap.digest)
    data = bytearray(bootstrap.read_bytes())
    data[8:12] = (2).to_bytes(4, "little")
    bootstrap.write_bytes(data)
    line = place.fails(16, command, *words(place, command))
    assert "version" in line and "update rafsfs" in line


@pytest.mark.parametrize("command", all_but("check", "inspect"))
def test_image_without_its_blob(place, command):
    place.blob.unlink()
    assert "is not in the store" in place.fails(12, command, *words(place, command))


@pytest.mark.parametrize("command", all_but("check", "inspect"))
def test_image_with_a_truncated_blob(place, command):
    size = place.blob.stat().st_size
    os.truncate(place.blob, size - 1)
    line = place.fails(15, command, *words(place, command))
    assert f"expected {size}, found {size - 1}" in line and place.blob.name in line


@pytest.mark.parametrize("command", ["ls", "stat", "cat", "extract"])
@pytest.mark.parametrize("path", ["nowhere", "/a/nowhere", "big/more", b"\xff"])
def test_path_that_is_not_there(pristine, tmp_path, command, path):
    folder = (tmp_path / "out",) if command == "extract" else ()
    line = pristine.fails(13, command, *folder, os.fsdecode(path))
    assert shown(os.fsencode(path).lstrip(b"/")) in line
    assert not (tmp_path / "out").exists()


# --- ls -----------------------------------------------------------------------------------------------------


def lines(done) -> list[str]:
    return done.stdout.decode().splitlines()


def test_ls(pristine):
    top = ["a", "big", "holes", "link", "null", "pipe", "same", "tagged", "up"]
    assert lines(pristine.run("ls")) == top
    assert lines(pristine.run("ls", "/")) == top
    assert lines(pristine.run("ls", "a/deep")) == lines(pristine.run("ls", "/up/")) == ["file"]
    assert lines(pristine.run("ls", "big")) == ["big"]
    assert lines(pristine.run("ls", "up/../../a/deep/file")) == ["up/../../a/deep/file"]


def test_ls_shows_odd_names_on_one_line_and_reversibly(pristine):
    name = "odd \\\\ \\xff\\n\\x1b[31m\\u202e"
    assert lines(pristine.run("ls", "a")) == ["deep", name]
    long = lines(pristine.run("ls", "-l"))
    assert long[3].endswith(f" link -> a/{name}")


def test_ls_long(pristine):
    long = lines(pristine.run("ls", "-l"))
    assert long[0].split() == ["drwx--x--x", "3", "1", "2", long[0].split()[4], "2020-09-13", "12:26", "a"]
    assert long[1].split() == [
        "-rw-r-----",
        "2",
        "3",
        "0",
        str(5 * CHUNK + 100),
        "2020-09-13",
        "12:26",
        "big",
    ]
    assert long[4].split()[:6] == ["crw-rw-rw-", "1", "0", "0", "1,", "3"]
    assert long[5].startswith("prw-------")


def test_ls_recursive(pristine):
    found = lines(pristine.run("ls", "-R"))
    assert found == [
        "/",
        *(shown(b"/" + item.path) for item in sorted(PLAN[1:], key=lambda item: item.path.split(b"/"))),
    ]
    assert lines(pristine.run("ls", "-R", "/a/deep")) == ["/a/deep", "/a/deep/file"]


def test_ls_json_is_reversible(pristine):
    found = {}
    for entry in pristine.json("ls", "-R"):
        path = base64.b64decode(entry["path_b64"]) if "path_b64" in entry else entry["path"].encode()
        found[path.lstrip(b"/")] = entry
    wanted = expected(PLAN)
    assert set(found) == set(wanted)
    for path, entry in found.items():
        what = wanted[path]
        assert int(entry["mode"], 8) == stat.S_IMODE(what.mode)
        assert (entry["uid"], entry["gid"], entry["mtime_ns"]) == (what.uid, what.gid, what.mtime_ns)
        if entry["type"] != "directory":
            assert (entry["size"], entry["nlink"]) == (what.size, what.nlink)
    assert found[b"a"]["type"] == "directory" and found[b"pipe"]["type"] == "fifo"
    assert found[b"null"]["device"] == [1, 3]
    assert base64.b64decode(found[b"link"]["target_b64"]) == b"a/" + ODD
    assert found[b"up"]["target"] == "a/deep" and "target_b64" not in found[b"up"]
    assert found[b"big"]["mtime"] == "2020-09-13T12:26:40.123456789Z"
    assert found[b"big"]["nid"] == found[b"same"]["nid"]


def test_ls_json_of_an_empty_directory(tmp_path):
    build(PlannedSource(PLAN[:1]), tmp_path / "image", suite=Suite.INTEGRITY_ONLY)
    done = subprocess.run(
        [sys.executable, "-m", "rafsfs", "ls", "--json", str(tmp_path / "image")],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert json.loads(done.stdout) == []


def test_ls_in_a_locale_without_the_characters(pristine, tmp_path):
    image = build(PlannedSource((*PLAN[:1], Planned("ä".encode(), F))), tmp_path / "image")
    done = pristine.run("ls", image=str(image.folder), check=False)
    assert lines(done) == ["ä"]
    words = [
        sys.executable,
        "-X",
        "utf8=0",
        "-m",
        "rafsfs",
        "ls",
        str(image.folder),
        "--key",
        str(pristine.key),
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(words, capture_output=True, env=environment, check=True)
    assert done.stdout == b"\\xe4\n"


def test_ls_whose_reader_goes_away(pristine):
    command = f"'{sys.executable}' -m rafsfs ls -R '{pristine.image}' --key '{pristine.key}' | true"
    done = subprocess.run(
        ["bash", "-c", command + "; exit ${PIPESTATUS[0]}"],
        capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert (done.returncode, done.stderr) in ((141, b""), (0, b""))  # it may have been quicker


# --- stat ---------------------------------------------------------------------------------------------------


def test_stat(pristine):
    text = pristine.run("stat", "tagged", "/null").stdout.decode()
    first, second = text.split("\n\n")
    fields = dict(line.split(maxsplit=1) for line in first.splitlines()[1:])
    assert first.startswith("/tagged\n") and second.startswith("/null\n")
    assert fields["type"] == "file" and fields["mode"] == "0600"
    assert fields["trusted.a"] == "\\x00\\xff" and fields["user.text"] == "plain"
    assert fields["modified"] == "2020-09-13T12:26:40.123456789Z"
    assert "device    1, 3" in second


def test_stat_of_links(pristine):
    entry, followed = pristine.json("stat", "up")[0], pristine.json("stat", "-L", "up")[0]
    assert (entry["type"], entry["target"]) == ("symlink", "a/deep")
    assert followed["type"] == "directory"


def test_stat_says_where_bytes_lie(pristine):
    holes, big = pristine.json("stat", "holes", "big")
    digest = f"sha256:{pristine.blob.name}"
    held = {"hole_bytes": 1 << 20, "inline_bytes": 0, "blobs": {digest: {"pieces": 1, "bytes": CHUNK}}}
    assert holes["stored"] == held
    assert big["stored"]["blobs"][digest]["bytes"] == 5 * CHUNK + 100
    assert "xattrs" in big and "stored" not in pristine.json("stat", "a")[0]


def test_stat_json_holds_attributes(pristine):
    found = pristine.json("stat", "tagged")[0]["xattrs"]
    assert {item["name"]: base64.b64decode(item["value_b64"]) for item in found} == {
        "trusted.a": b"\x00\xff",
        "user.text": b"plain",
    }


# --- cat ----------------------------------------------------------------------------------------------------


def test_cat(pristine):
    done = pristine.run("cat", "big", "/link", "holes", "tagged", "same")
    parts = [b"big", b"a/" + ODD, b"holes", b"tagged", b"big"]
    assert done.stdout == b"".join(CONTENT[path] for path in parts)


@pytest.mark.parametrize(
    ("path", "what"), [("a", "directory"), ("pipe", "fifo"), ("up", "directory"), ("null", "character")]
)
def test_cat_of_what_has_no_bytes(pristine, path, what):
    """Refused before anything is written, also when it comes last."""
    done = pristine.run("cat", "big", path, check=False)
    assert (done.returncode, done.stdout) == (2, b"")
    assert what in done.stderr.decode() and done.stderr.count(b"\n") == 1


@pytest.mark.parametrize("chunk", [0, 2, 4])
def test_cat_of_a_damaged_file_gives_what_is_before(place, chunk):
    record = place.record(chunk)
    place.flip(record.encoded_offset + record.encoded_length // 2)
    done = place.run("cat", "tagged", "big", check=False)
    assert done.returncode == 5
    assert done.stdout == CONTENT[b"big"][: chunk * CHUNK]
    line = done.stderr.decode()
    assert line.count("\n") == 1 and "(" in line
    for part in (f"chunk {chunk}", f"offset {record.encoded_offset}", "/big", place.blob.name):
        assert part in line


def test_cat_into_a_full_device(pristine):
    with Path("/dev/full").open("wb") as full:
        done = pristine.run("cat", "big", check=False, stdout=full, stderr=subprocess.PIPE)
    assert done.returncode == 21
    assert done.stderr == b"rafsfs: No space left on device\n"


# --- extract ------------------------------------------------------------------------------------------------


@pytest.mark.requires_root
def test_extract(pristine, tmp_path):
    done = pristine.run("extract", tmp_path / "out")
    assert_same_tree(expected(PLAN), read_folder(tmp_path / "out"))
    assert done.stdout.startswith(b"5 files, 2 directories, 2 symlinks, 1 hard links, 2 others: ")


def test_extract_of_a_path(pristine, tmp_path):
    summary = pristine.json("extract", tmp_path / "out", "/a/deep")
    assert sorted(read_folder(tmp_path / "out")) == [b"", b"a", b"a/deep", b"a/deep/file"]
    assert (summary["directories"], summary["files"], summary["problem_count"]) == (2, 1, 0)


@pytest.mark.requires_root
def test_extract_into_what_is_not_empty(pristine, tmp_path):
    (tmp_path / "mine").write_text("precious")
    assert "not empty" in pristine.fails(10, "extract", tmp_path)
    pristine.run("extract", tmp_path, "a/deep", "--force")
    assert (tmp_path / "mine").read_text() == "precious"
    assert (tmp_path / "a" / "deep" / "file").read_bytes() == CONTENT[b"a/deep/file"]


@pytest.mark.requires_root
def test_extract_of_a_damaged_image(place):
    place.flip(place.record(1).encoded_offset)
    out = place.folder / "out"
    done = place.run("extract", out, check=False)
    assert done.returncode == 5
    told = done.stderr.decode().splitlines()
    assert len(told) == 1 and told[0].startswith("rafsfs: not extracted: /big and 1 more: ")
    found = read_folder(out)
    assert b"big" not in found and b"same" not in found and b"holes" in found
    shutil.rmtree(out)
    done = place.run("extract", out, "--json", check=False)
    assert done.returncode == 5 and done.stderr == b""
    summary = json.loads(done.stdout)
    assert sorted(path["path"] for path in summary["problems"][0]["paths"]) == ["/big", "/same"]


# The interpreter and the packages may lie where only root can read, so all is imported while root.
AS_USER = f"""
import os, sys
import rafsfs.cli.extract, rafsfs.trust.keys, rafsfs.frontends.library, concurrent.futures.thread
from rafsfs.cli.main import main
os.setgroups([])
os.setgid({USER})
os.setuid({USER})
sys.exit(main())
"""


@pytest.fixture
def user_place(pristine):
    """A folder of a user who is not root, outside pytest's folders, which are root's."""
    folder = Path(subprocess.check_output(["mktemp", "-d", "/tmp/rafsfs-user-XXXXXX"], text=True).strip())
    try:
        shutil.copytree(pristine.image, folder / "image")
        shutil.copy(pristine.key, folder / "key")
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, USER, USER)
        yield folder
    finally:
        shutil.rmtree(folder)


@pytest.mark.requires_root
def test_extract_as_another_user(user_place):
    words = ["extract", user_place / "image", user_place / "out", "--key", user_place / "key"]
    done = subprocess.run(
        [sys.executable, "-c", AS_USER, *map(str, words)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd="/",
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert sorted(done.stderr.splitlines()) == [
        "rafsfs: left out, because only root may set them: 1 device nodes",
        "rafsfs: left out, because only root may set them: 1 extended attributes",
        "rafsfs: left out, because only root may set them: 11 owners",
    ]
    found = read_folder(user_place / "out")
    assert set(found) == {item.path for item in PLAN} - {b"null"}
    assert {(what.uid, what.gid) for what in found.values()} == {(USER, USER)}
    wanted = expected(PLAN)
    for path, what in found.items():
        assert (what.mode, what.mtime_ns, what.content) == (
            wanted[path].mode,
            wanted[path].mtime_ns,
            wanted[path].content,
        )
    assert dict(found[b"tagged"].xattrs) == {b"user.text": b"plain"}


# --- check --------------------------------------------------------------------------------------------------


def test_check_of_a_sound_image(pristine):
    text = pristine.run("check").stdout.decode()
    assert text.startswith(f"{pristine.image}:latest: all is well\n")
    assert "12 inodes: 3 directories, 5 files, 2 symlinks, 2 others" in text
    assert "(metadata only)" in pristine.run("check", "--quick").stdout.decode()
    found = pristine.json("check")
    assert found["ok"] and found["exit_code"] == 0 and found["tree"]["inodes"] == 12
    assert found["chunks"] > 5 and found["problems"] == []


def test_check_tells_all_damage(place):
    for chunk in (0, 3):
        place.flip(place.record(chunk).encoded_offset)
    done = place.run("check", check=False)
    assert (done.returncode, done.stderr) == (5, b"")
    told = lines(done)
    assert sum(line.startswith("/big: ") for line in told) == 2
    assert sum(f"chunk {chunk}, " in line for line in told for chunk in (0, 3)) == 2
    assert f"{place.image}:latest: 3 problems" in told  # and the file as a whole
    found = json.loads(place.run("check", "--json", check=False).stdout)
    assert [problem["kind"] for problem in found["problems"]] == ["DigestMismatch"] * 3
    assert found["problems"][0]["where"]["chunk"] == 0
    assert found["problems"][0]["paths"] == [{"path": "/big"}]
    assert place.run("check", "--quick").returncode == 0


def test_check_of_missing_and_short_blobs(place):
    os.truncate(place.blob, place.blob.stat().st_size - 1)
    done = place.run("check", check=False)
    assert done.returncode == 15 and "length" in lines(done)[0]
    place.blob.unlink()
    done = place.run("check", check=False)
    assert done.returncode == 12 and "is not in the store" in lines(done)[0]
    assert "12 inodes" in done.stdout.decode()


def test_check_of_a_hostile_image(place):
    parts = Parts.of(place.reference)
    parts.set_dirent(b"a", b"deep", nid=parts.nids[b""])
    parts.set_inode(b"tagged", nlink=9)
    parts.seal("hostile")
    done = place.run("check", image=place.image + ":hostile", check=False)
    assert done.returncode == 6
    told = lines(done)
    assert any(line.startswith("/a/deep: a directory has two names") for line in told)


def test_check_holds_to_what_is_asked(place):
    public = place.folder / "signer.pub"
    save_key(Ed25519SigningKey.generate().public(), public)
    done = place.run("check", "--verify-key", public, check=False)
    assert done.returncode == 5 and "not signed as required" in lines(done)[0]
    done = place.run("check", "--min-release", "1", check=False)
    assert done.returncode == 5 and "older" in lines(done)[0]


# --- inspect ------------------------------------------------------------------------------------------------


def test_inspect_without_a_key_shows_what_is_public(pristine):
    text = pristine.run("inspect", key=False).stdout.decode()
    assert "verified by   nothing" in text
    assert KEY.key_id.hex() in text and pristine.blob.name in text and "AES-256-GCM" in text
    found = pristine.json("inspect", key=False)
    assert found["verified_by"] == [] and found["inodes"] is None
    assert found["recipients"] == [{"kind": "symmetric", "key_id": KEY.key_id.hex(), "scrypt_log2_n": None}]
    assert found["blobs"][0]["digest"] == f"sha256:{pristine.blob.name}"
    assert found["blobs"][0]["codecs"] is None


def test_inspect_with_the_key_shows_all(pristine):
    found = pristine.json("inspect")
    assert found["verified_by"] == ["key"] and found["inodes"] == 12
    blob = found["blobs"][0]
    assert blob["stored_bytes"] == pristine.blob.stat().st_size
    assert sum(blob["codecs"].values()) == blob["chunks"]
    assert blob["encoded_bytes"] < blob["stored_bytes"]
    assert blob["decoded_bytes"] <= blob["decoded_space_bytes"]
    assert "12" in pristine.run("inspect").stdout.decode()


def test_inspect_verifies_signatures_without_the_key(tmp_path, pristine):
    signer = Ed25519SigningKey.generate()
    save_key(signer.public(), tmp_path / "signer.pub")
    save_key(Ed25519SigningKey.generate().public(), tmp_path / "other.pub")
    image = str(build(PlannedSource(PLAN), tmp_path / "image", signers=(signer,)).folder)
    found = pristine.json("inspect", "--verify-key", tmp_path / "signer.pub", image=image, key=False)
    assert found["verified_by"] == ["signatures"]
    assert found["signatures"] == [{"algorithm": "ed25519", "key_id": signer.key_id.hex()}]
    line = pristine.fails(5, "inspect", "--verify-key", tmp_path / "other.pub", image=image, key=False)
    assert "not signed as required" in line


def test_inspect_of_an_unencrypted_image(tmp_path, pristine):
    image = str(build(PlannedSource(PLAN), tmp_path / "image", suite=Suite.INTEGRITY_ONLY).folder)
    found = pristine.json("inspect", image=image, key=False)
    assert found["verified_by"] == [] and not found["encrypted"] and found["inodes"] == 12
    digest = found["manifest"]
    assert pristine.json("inspect", "--digest", digest, image=image, key=False)["verified_by"] == ["digest"]


def test_exports_are_what_other_tools_take(pristine, tmp_path):
    section, devices = tmp_path / "it's.erofs", tmp_path / "devices"
    section.write_text("an older one")
    done = pristine.run("inspect", "--export-erofs", section, "--export-data", devices)
    assert "mount -t erofs -o ro,device=$(losetup -r -f --show " in lines(done)[-1]
    assert stat.S_IMODE(section.stat().st_mode) == stat.S_IMODE((devices / "1").stat().st_mode) == 0o600
    assert {path.name for path in tmp_path.iterdir()} == {"it's.erofs", "devices"}
    assert {path.name for path in devices.iterdir()} == {"1"}
    subprocess.run(["fsck.erofs", f"--device={devices / '1'}", section], check=True, capture_output=True)
    dumped = subprocess.run(
        ["dump.erofs", f"--device={devices / '1'}", "--cat", "--path=/big", section],
        check=False,
        capture_output=True,
    )
    if dumped.returncode == 0:  # --cat came with erofs-utils 1.8
        assert dumped.stdout == CONTENT[b"big"]


def test_exports_need_the_key_and_leave_nothing_half_written(place):
    section = place.folder / "section"
    assert "no given key" in place.fails(4, "inspect", "--export-erofs", section, key=False)
    place.flip(place.record(4).encoded_offset)
    done = place.run("inspect", "--export-data", place.folder / "devices", check=False)
    assert done.returncode == 5 and done.stderr.count(b"\n") == 1
    assert not section.exists() and list((place.folder / "devices").iterdir()) == []


# --- Names --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (b"plain", "plain"),
        ("ä€".encode(), "ä€"),
        (b"\\xff", "\\\\xff"),
        (b"\xff", "\\xff"),
        (b"\xc3", "\\xc3"),
        (b"\t\n\r\x00\x7f", "\\t\\n\\r\\x00\\x7f"),
        ("\u202e\ufeff".encode(), "\\u202e\\ufeff"),
        ("\U000e0001".encode(), "\\U000e0001"),
        (b"\xed\xa0\x80", "\\xed\\xa0\\x80"),  # a surrogate is not UTF-8
    ],
)
def test_shown(name, text):
    assert shown(name) == text


def test_text_fields():
    assert text_fields("path", "ä".encode()) == {"path": "ä"}
    fields = text_fields("path", b"a\xff")
    assert fields["path"] == "a\ufffd" and base64.b64decode(fields["path_b64"]) == b"a\xff"


@pytest.mark.parametrize(
    ("mtime_ns", "text"),
    [
        (0, "1970-01-01T00:00:00.000000000Z"),
        (-1, "1969-12-31T23:59:59.999999999Z"),
        (10**9 * 2**62 + 5, f"@{2**62}.000000005"),
    ],
)
def test_time_utc(mtime_ns, text):
    assert time_utc(mtime_ns) == text
