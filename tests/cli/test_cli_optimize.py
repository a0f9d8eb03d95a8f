"""``rafsfs optimize`` as a user calls it: what it says of lists, signatures and traces that are none."""

import json

import pytest
from support.images import KEY, build
from support.mounts import rafsfs

from rafsfs import open_image
from rafsfs.errors import FormatError
from rafsfs.store.oci_layout import find_image
from rafsfs.store.reference import Reference
from rafsfs.trust.keys import save_key
from rafsfs.trust.material import Ed25519SigningKey

SIGNER, OTHER = Ed25519SigningKey(bytes(range(32))), Ed25519SigningKey(bytes(range(1, 33)))


@pytest.fixture
def place(tmp_path):
    (tmp_path / "tree").mkdir()
    for name in "ab":
        (tmp_path / "tree" / name).write_bytes(name.encode() * 100_000)
    save_key(KEY, tmp_path / "key")
    for name, signer in (("signer", SIGNER), ("other", OTHER)):
        save_key(signer, tmp_path / name)
        save_key(signer.public(), tmp_path / f"{name}.pub")
    (tmp_path / "trace").write_text("rafsfs-trace-1\n0 1 /b\n0 9999999 /gone\n")
    build(tmp_path / "tree", tmp_path / "img")
    build(tmp_path / "tree", tmp_path / "signed", signers=(SIGNER, OTHER))
    return tmp_path


def optimize(place, image, *words):
    return rafsfs("optimize", place / image, "--key", place / "key", *words)


def test_list_is_made_told_and_taken_out_again(place):
    before = find_image(Reference(place / "img")).manifest_digest
    done = optimize(place, "img", "--prefetch", place / "trace")
    after = find_image(Reference(place / "img")).manifest_digest
    assert done.stdout == (
        f"{place}/img:latest: 1 chunks to prefetch (198 KiB) for 2 files, of which 1 are not there\n"
        f"digest {after}\n"
    ), done.stderr
    assert after != before
    done = optimize(place, "img", "--no-prefetch", "--json")
    assert json.loads(done.stdout)["digest"] == before
    assert json.loads(done.stdout)["prefetch"]["chunks"] == 0


def test_signed_image(place):
    before = find_image(Reference(place / "signed")).manifest_digest
    done = optimize(place, "signed", "--prefetch", place / "trace")
    assert (done.returncode, done.stdout) == (8, "")
    assert "the image is signed" in done.stderr
    assert SIGNER.key_id.hex() in done.stderr
    assert "--sign FILE" in done.stderr
    assert find_image(Reference(place / "signed")).manifest_digest == before
    words = ["--prefetch", place / "trace", "--sign", place / "signer", "--verify-key", place / "signer.pub"]
    done = optimize(place, "signed", *words)
    assert done.returncode == 0
    assert f"warning: the signature of ed25519 {OTHER.key_id.hex()} is gone" in done.stderr
    assert rafsfs("keys", "verify", place / "signed", "--verify-key", place / "signer.pub").returncode == 0
    assert rafsfs("keys", "verify", place / "signed", "--verify-key", place / "other.pub").returncode == 5


def test_what_was_not_signed_by_the_right_one_is_not_signed_again(place):
    words = ["--prefetch", place / "trace", "--sign", place / "signer", "--verify-key", place / "signer.pub"]
    done = optimize(place, "img", *words)
    assert done.returncode == 5


def test_signatures_can_be_dropped(place):
    done = optimize(place, "signed", "--prefetch", place / "trace", "--drop-signatures", "--json")
    assert done.returncode == 0
    gone = {item["key_id"] for item in json.loads(done.stdout)["signatures_gone"]}
    assert gone == {SIGNER.key_id.hex(), OTHER.key_id.hex()}
    assert done.stderr.count("is gone") == 2


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ([], "--prefetch TRACE or --no-prefetch"),
        (["--prefetch", "trace", "--no-prefetch"], "--prefetch TRACE or --no-prefetch"),
        (["--no-prefetch", "--sign", "signer", "--drop-signatures"], "--sign FILE or --drop-signatures"),
    ],
)
def test_wrong_use(place, words, complaint):
    done = optimize(place, "img", *words)
    assert done.returncode == 2
    assert complaint in done.stderr


def test_image_by_digest_has_no_tag_to_move(place):
    digest = find_image(Reference(place / "img")).manifest_digest
    done = rafsfs("optimize", f"{place}/img@{digest}", "--key", place / "key", "--no-prefetch")
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("text", "code", "complaint"),
    [
        (b"", 6, "not an access trace"),
        (b"rafsfs-trace-1\n0 1 /a\n\n0 x /a\n", 6, "line 4"),
        (b"rafsfs-trace-1\n0 1 /a\n0 1 /\xff\x1b[2J\n", 6, "line 3"),
        (None, 8, "cannot be read"),
    ],
)
def test_traces_that_are_none(place, text, code, complaint):
    path = place / "bad"
    if text is not None:
        path.write_bytes(text)
    for command in (["optimize", place / "img"], ["build", place / "tree", place / "new"]):
        done = rafsfs(*command, "--key", place / "key", "--prefetch", path)
        assert done.returncode == code
        assert complaint in done.stderr
        assert str(path) in done.stderr
        assert done.stderr.rstrip("\n").isprintable()
    assert not (place / "new").exists()


def test_library_writes_traces(place):
    with open_image(str(place / "img"), keys=[place / "key"]) as image:
        with pytest.raises(ValueError, match="start_trace"):
            image.write_trace(place / "mine")
        image.read_bytes("/a")
        image.start_trace()
        image.read_bytes("/b")
        assert image.write_trace(place / "mine") == 1
    assert (place / "mine").read_text() == "rafsfs-trace-1\n0 100000 /b\n"
    assert optimize(place, "img", "--prefetch", place / "mine").returncode == 0
    with open_image(str(place / "img"), keys=[place / "key"]) as image:
        assert len(image.sealed.prefetch_runs()) == 1


def test_trace_of_wrong_bytes_is_a_format_error(place):
    from rafsfs.build.prefetch import load_traces

    (place / "bad").write_bytes(b"\0" * 10)
    with pytest.raises(FormatError):
        load_traces([place / "bad"])
