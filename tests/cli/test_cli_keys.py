"""``rafsfs keys`` as a user calls it: arguments in; files, lines and exit codes out; never a secret."""

import errno
import json
import os
import pty
import re
import select
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import mounts
from support.mounts import rafsfs

from rafsfs import open_image
from rafsfs.errors import WrongKey
from rafsfs.format import oci
from rafsfs.format.bootstrap import pack_head
from rafsfs.format.envelope import Recipient, Signature, parse_envelope
from rafsfs.fs.image import read_head
from rafsfs.store.oci_layout import blob_path, find_image
from rafsfs.store.reference import parse_reference
from rafsfs.trust.keys import load_key

RAFSFS = [sys.executable, "-m", "rafsfs"]
IDENTITIES = ["x25519", "mlkem768x25519"]
SIGNERS = ["ed25519", "ecdsa-p256"]
CONTENT = b"content of a file\n"


def run(*arguments, **options):
    """Succeed without a word on standard error; returns what is on standard output."""
    done = rafsfs("keys", *arguments, **options)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def refused(code, words, *arguments, **options):
    """Fail with one line that holds all the words."""
    done = rafsfs("keys", *arguments, **options)
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    assert done.stderr.startswith("rafsfs: ")
    assert done.stderr.count("\n") == 1, done.stderr
    for word in [words] if isinstance(words, str) else words:
        assert word in done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A key of every kind, and an image that is sealed for my.key."""
    folder = tmp_path_factory.mktemp("made")
    for name in ("my.key", "other.key"):
        run("new", folder / name)
    for kind in IDENTITIES:
        run("identity", folder / f"{kind}.key", "--kind", kind)
    for kind in SIGNERS:
        run("signing", folder / f"{kind}.key", "--kind", kind)
    (folder / "passphrase").write_text("correct horse\n")
    (folder / "passphrase").chmod(0o600)
    (folder / "tree").mkdir()
    (folder / "tree" / "file").write_bytes(CONTENT)
    build = rafsfs("build", folder / "tree", folder / "img", "--key", folder / "my.key", "--release", "3")
    assert build.returncode == 0, build.stderr
    return folder


@pytest.fixture
def image(made, tmp_path):
    """A copy of the image to change."""
    shutil.copytree(made / "img", tmp_path / "img")
    return tmp_path / "img"


def key_id(path):
    return load_key(path).key_id.hex()


def reads(image, *keys, passphrase=None):
    with open_image(str(image), keys=keys, passphrase=passphrase) as opened:
        return opened.read_bytes("/file") == CONTENT


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def shown(*things):
    return json.loads(run("show", "--json", *things))


# --- Making -------------------------------------------------------------------------------------------------


def test_a_new_symmetric_key(tmp_path):
    line = run("new", tmp_path / "my.key")
    name = key_id(tmp_path / "my.key")
    assert line == f"{tmp_path / 'my.key'}: symmetric key {name} (secret: seals and opens)\n"
    assert (tmp_path / "my.key").stat().st_mode & 0o7777 == 0o600
    assert load_key(tmp_path / "my.key").secret


@pytest.mark.parametrize("kind", IDENTITIES)
def test_a_new_identity_and_its_public_half(kind, tmp_path):
    lines = run("identity", tmp_path / "a.key", "--kind", kind).splitlines()
    secret, public = load_key(tmp_path / "a.key"), load_key(tmp_path / "a.key.pub")
    assert (secret.kind, public.kind) == (f"{kind}-identity", f"{kind}-recipient")
    assert secret.recipient() == public
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("a.key", "a.key.pub")]
    assert modes == [0o600, 0o644]
    assert [secret.key_id.hex() in line for line in lines] == [True, True]


@pytest.mark.parametrize("kind", SIGNERS)
def test_a_new_signing_key_and_its_public_half(kind, tmp_path):
    run("signing", tmp_path / "s.key", "--kind", kind)
    secret, public = load_key(tmp_path / "s.key"), load_key(tmp_path / "s.key.pub")
    assert (secret.kind, public.kind) == (f"{kind}-signing", f"{kind}-public")
    assert secret.public() == public
    assert (tmp_path / "s.key").stat().st_mode & 0o777 == 0o600


def test_the_usual_kinds_are_those_of_the_help(made, tmp_path):
    run("identity", tmp_path / "i")
    run("signing", tmp_path / "s")
    assert (load_key(tmp_path / "i").family, load_key(tmp_path / "s").family) == ("x25519", "ed25519")


def test_what_openssl_makes_signs_too(image, tmp_path):
    command = ["openssl", "genpkey", "-algorithm", "ED25519", "-out", tmp_path / "s.pem"]
    subprocess.run(command, check=True, capture_output=True, umask=0o077)
    public = ["openssl", "pkey", "-in", tmp_path / "s.pem", "-pubout", "-out", tmp_path / "s.pub"]
    subprocess.run(public, check=True, capture_output=True)
    run("sign", image, "--signing-key", tmp_path / "s.pem")
    run("verify", image, "--verify-key", tmp_path / "s.pub")


@pytest.mark.parametrize("command", ["new", "identity", "signing"])
def test_a_key_is_never_overwritten(command, tmp_path):
    (tmp_path / "k").write_text("precious")
    refused(4, ["exists", "k"], command, tmp_path / "k")
    assert contents(tmp_path) == {(tmp_path / "k").relative_to(tmp_path): b"precious"}


@pytest.mark.parametrize("command", ["identity", "signing"])
def test_both_halves_are_made_or_none(command, tmp_path):
    (tmp_path / "k.pub").write_text("precious")
    refused(4, ["exists", "k.pub"], command, tmp_path / "k")
    assert [path.name for path in tmp_path.iterdir()] == ["k.pub"]


def test_a_key_needs_a_place(tmp_path):
    refused(4, ["cannot create", "No such file"], "new", tmp_path / "nowhere" / "k")
    refused(2, "not standard output", "new", "-")


def test_no_secret_is_shown_when_keys_are_made(tmp_path):
    for command in ("new", "identity", "signing"):
        said = run(command, tmp_path / command)
        secret = (tmp_path / command).read_text().splitlines()[1].split()[-1]
        assert secret[8:24] not in said


# --- Showing ------------------------------------------------------------------------------------------------


def test_every_kind_of_key_file_is_shown(made):
    files = sorted(path for path in made.iterdir() if ".key" in path.name)
    lines = run("show", *files).splitlines()
    assert lines[0].split() == ["FILE", "KIND", "KEY", "ID"]
    assert len(files) == 10
    for path, line in zip(files, lines[1:], strict=True):
        assert line.split() == [str(path), load_key(path).kind, key_id(path)]
    as_json = shown(*files)
    assert [item["file"] for item in as_json] == [str(path) for path in files]
    assert as_json[0].keys() == {"file", "kind", "family", "key_id", "secret"}
    assert sum(item["secret"] for item in as_json) == 6


def test_an_image_shows_who_opens_and_who_signed_it_without_a_key(made, image):
    run("rewrap", image, "--key", made / "my.key", "--add", made / "x25519.key.pub", "--add-passphrase-file",
        made / "passphrase")  # fmt: skip
    run("sign", image, "--signing-key", made / "ecdsa-p256.key")
    (told,) = shown(image)
    recipients = [(item["kind"], item["key_id"]) for item in told["recipients"]]
    assert recipients[:2] == [
        ("symmetric", key_id(made / "my.key")),
        ("x25519", key_id(made / "x25519.key")),
    ]
    assert recipients[2][0] == "passphrase"
    assert told["signatures"] == [{"algorithm": "ecdsa-p256", "key_id": key_id(made / "ecdsa-p256.key")}]
    assert (told["release"], told["suite"], told["not_after"]) == (3, "aes-256-gcm", None)
    text = run("show", image, made / "x25519.key")
    assert "nothing here is authenticated" in text
    rows = [line.split() for line in text.splitlines()]
    file = str(made / "x25519.key")
    assert ["opened", "by", "symmetric", key_id(made / "my.key")] in rows
    assert ["opened", "by", "x25519", key_id(made / "x25519.key"), file] in rows
    assert ["signed", "by", "ecdsa-p256", key_id(made / "ecdsa-p256.key")] in rows


def test_an_unencrypted_image_is_said_to_be_open(made, tmp_path):
    assert rafsfs("build", made / "tree", tmp_path / "img", "--unencrypted", "-q").returncode == 0
    assert "anybody can open it" in run("show", tmp_path / "img")


def test_what_is_neither_key_nor_image(made, tmp_path):
    refused(3, ["neither a key file nor an image", "nowhere"], "show", tmp_path / "nowhere")
    refused(3, "no image at", "show", tmp_path)
    refused(11, ["no tag 'v9'", "latest"], "show", f"{made / 'img'}:v9")
    (tmp_path / "letter").write_text("dear")
    refused(4, ["not a key file", "letter"], "show", tmp_path / "letter")


def test_a_key_that_others_may_read_is_refused(made, tmp_path):
    shutil.copy(made / "my.key", tmp_path / "open.key")
    (tmp_path / "open.key").chmod(0o640)
    refused(4, ["others may read", "chmod 600", "open.key"], "show", tmp_path / "open.key")


def change_envelope(image, change):
    """What anybody who holds the folder can do."""
    stored = find_image(parse_reference(str(image)))
    path = blob_path(image, stored.manifest.bootstrap.digest)
    file = stored.open(stored.manifest.bootstrap)
    head = read_head(file, stored.manifest.superblock_digest)
    file.close()
    pages = path.read_bytes()[head.end :]
    data = pack_head(head.superblock, change(parse_envelope(head.envelope)).pack(), pages)
    manifest = json.loads(blob_path(image, stored.manifest_digest).read_bytes())
    manifest["layers"][-1] |= {"digest": oci.digest_of(data), "size": len(data)}
    text = oci.dump_json(manifest)
    for blob in (data, text):
        blob_path(image, oci.digest_of(blob)).write_bytes(blob)
    index = json.loads((image / "index.json").read_bytes())
    index["manifests"][0] |= {"digest": oci.digest_of(text), "size": len(text)}
    (image / "index.json").write_text(json.dumps(index))


def test_hostile_words_in_an_envelope_cannot_speak_to_the_terminal(image):
    def poison(envelope):
        evil = "\x1b[2J\r\n[bold]" + "x" * 1000
        recipient = Recipient(evil, bytes(16), b"")
        signature = Signature(evil, bytes(16), b"")
        return type(envelope)((recipient,), (signature,), envelope.seal)

    change_envelope(image, poison)
    text = run("show", image)
    assert text.replace("\n", "").isprintable()
    assert "\\x1b[2J\\r\\n[bold]xxx" in text
    assert max(map(len, text.splitlines())) < 200


# --- Rewrapping ---------------------------------------------------------------------------------------------

NEWCOMERS = {
    "key file": ("other.key", "other.key"),
    "public half": ("x25519.key.pub", "x25519.key"),
    "post-quantum public half": ("mlkem768x25519.key.pub", "mlkem768x25519.key"),
    "identity": ("x25519.key", "x25519.key"),
}


@pytest.mark.parametrize(("given", "opener"), NEWCOMERS.values(), ids=NEWCOMERS)
def test_somebody_is_added(given, opener, made, image):
    data = max(contents(image).values(), key=len)
    out = run("rewrap", image, "--key", made / "my.key", "--add", made / given)
    digest = find_image(parse_reference(str(image))).manifest_digest
    assert out == f"{image}:latest: 2 recipients, 0 signatures\ndigest {digest}\n"
    assert reads(image, made / opener)
    assert reads(image, made / "my.key")
    assert data in contents(image).values()


def test_several_are_added_and_one_removed_at_once(made, image):
    run("rewrap", image, "--key", made / "my.key", "--add", made / "other.key", "--add",
        made / "x25519.key.pub", "--remove", made / "my.key")  # fmt: skip
    assert reads(image, made / "other.key")
    assert reads(image, made / "x25519.key")
    with pytest.raises(WrongKey):
        reads(image, made / "my.key")


@pytest.mark.parametrize("spell", ["file", "public half", "id", "start of the id", "capitals"])
def test_somebody_is_removed_by(spell, made, image):
    run("rewrap", image, "--key", made / "my.key", "--add", made / "x25519.key")
    full = key_id(made / "x25519.key")
    who = {
        "file": made / "x25519.key",
        "public half": made / "x25519.key.pub",
        "id": full,
        "start of the id": full[:8],
        "capitals": full.upper(),
    }[spell]
    run("rewrap", image, "--key", made / "my.key", "--remove", who)
    with pytest.raises(WrongKey):
        reads(image, made / "x25519.key")


def test_a_passphrase_is_added_used_and_removed(made, image):
    run("rewrap", image, "--key", made / "my.key", "--add-passphrase-file", made / "passphrase")
    assert reads(image, passphrase=b"correct horse")
    run("rewrap", image, "--passphrase-file", made / "passphrase", "--remove", made / "my.key")
    (told,) = shown(image)
    assert [item["kind"] for item in told["recipients"]] == ["passphrase"]
    run("rewrap", image, "--passphrase-file", made / "passphrase", "--add", made / "my.key", "--remove",
        told["recipients"][0]["key_id"])  # fmt: skip
    with pytest.raises(WrongKey):
        reads(image, passphrase=b"correct horse")
    assert reads(image, made / "my.key")


def test_what_a_removal_leaves_in_the_folder_is_warned_of(made, image):
    index = json.loads((image / "index.json").read_bytes())
    index["manifests"].append(index["manifests"][0] | {"annotations": {oci.ANNOTATION_TAG: "same"}})
    (image / "index.json").write_text(json.dumps(index))
    change = ["--add", made / "other.key", "--remove", made / "my.key"]
    done = rafsfs("keys", "rewrap", image, "--key", made / "my.key", *change)
    assert done.returncode == 0
    assert "warning: an earlier image stays" in done.stderr
    assert done.stderr.count("\n") == 1
    assert reads(f"{image}:same", made / "my.key")


REFUSALS = {
    "the last one": (4, "nobody could open", ["--key", "my.key", "--remove", "my.key"]),
    "a stranger's removal": (4, "not a recipient", ["--key", "my.key", "--remove", "other.key"]),
    "an id of nobody": (4, "no recipients", ["--key", "my.key", "--remove", "0123456789"]),
    "an id too short": (4, "8 to 32 hexadecimal", ["--key", "my.key", "--remove", "abc"]),
    "what is no id": (4, "neither a key file nor a key id", ["--key", "my.key", "--remove", "alice.key"]),
    "a key that does not open": (4, "no given key opens", ["--key", "other.key", "--add", "x25519.key"]),
    "a key that opens nothing": (4, "opens nothing", ["--key", "x25519.key.pub", "--add", "other.key"]),
    "no key": (2, "opens the image now", ["--add", "other.key"]),
    "nothing to do": (2, "nothing to change", ["--key", "my.key"]),
    "a signer to be added": (4, "seals nothing", ["--key", "my.key", "--add", "ed25519.key"]),
    "a key that is not there": (14, "No such file", ["--key", "my.key", "--add", "nowhere.key"]),
    "another image": (
        11,
        "no image with the digest",
        ["--key", "my.key", "--add", "other.key", "--digest", "sha256:" + "0" * 64],
    ),
}


@pytest.mark.parametrize(("code", "words", "arguments"), REFUSALS.values(), ids=REFUSALS)
def test_rewrapping_refuses(code, words, arguments, made, image):
    before = contents(image)
    files = {*(path.name for path in made.iterdir()), "nowhere.key"}
    arguments = [made / word if word in files else word for word in arguments]
    refused(code, words, "rewrap", image, *arguments)
    assert contents(image) == before


def test_an_image_is_changed_by_its_tag_only(made, image):
    digest = find_image(parse_reference(str(image))).manifest_digest
    change = ["--key", made / "my.key", "--add", made / "other.key"]
    refused(2, "by its tag", "rewrap", f"{image}@{digest}", *change)
    run("rewrap", image, *change, "--digest", digest)
    refused(7, "replaced by somebody else", "rewrap", image, *change, "--digest", digest)


@pytest.mark.requires_root
@pytest.mark.integration
def test_rewrapping_on_a_full_disk_changes_nothing(made, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256K", "tmpfs", disk], check=True)
    try:
        shutil.copytree(made / "img", disk / "img")
        status = os.statvfs(disk)
        (disk / "filler").write_bytes(bytes(status.f_bavail * status.f_frsize))
        before = contents(disk)
        change = ["--key", made / "my.key", "--add", made / "other.key"]
        refused(21, ["No space left", str(disk), "make room"], "rewrap", disk / "img", *change)
        assert contents(disk) == before
        assert reads(disk / "img", made / "my.key")
    finally:
        subprocess.run(["umount", disk], check=True)


# --- Signing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SIGNERS)
def test_a_signed_image_verifies_and_mounts_only_for_who_trusts_the_signer(kind, made, image):
    signer, public = made / f"{kind}.key", made / f"{kind}.key.pub"
    refused(5, ["not signed as required", key_id(signer)], "verify", image, "--verify-key", public)
    run("sign", image, "--signing-key", signer, "--key", made / "my.key")
    assert run("verify", image, "--verify-key", public) == f"{image}: signed by {kind} {key_id(signer)}\n"
    with open_image(str(image), keys=[made / "my.key"], verify_keys=[public]) as opened:
        assert opened.read_bytes("/file") == CONTENT


def test_all_given_keys_must_have_signed(made, image):
    both = ["--verify-key", made / "ed25519.key.pub", "--verify-key", made / "ecdsa-p256.key.pub"]
    run("sign", image, "--signing-key", made / "ed25519.key")
    refused(5, f"no signature of ecdsa-p256 {key_id(made / 'ecdsa-p256.key')}", "verify", image, *both)
    run("sign", image, "--signing-key", made / "ecdsa-p256.key")
    assert len(run("verify", image, *both).splitlines()) == 2


def test_a_signature_survives_rewrapping(made, image):
    run("sign", image, "--signing-key", made / "ed25519.key")
    run("rewrap", image, "--key", made / "my.key", "--add", made / "other.key", "--remove", made / "my.key")
    run("verify", image, "--verify-key", made / "ed25519.key.pub")


def test_a_false_signature_is_refused(made, image):
    run("sign", image, "--signing-key", made / "ed25519.key")

    def falsify(envelope):
        (signature,) = envelope.signatures
        false = Signature(signature.algorithm, signature.key_id, bytes(64))
        return type(envelope)(envelope.recipients, (false,), envelope.seal)

    change_envelope(image, falsify)
    refused(5, "false signature", "verify", image, "--verify-key", made / "ed25519.key.pub")


def test_an_older_release_does_not_verify(made, image):
    run("sign", image, "--signing-key", made / "ed25519.key")
    verify = ["verify", image, "--verify-key", made / "ed25519.key.pub", "--min-release"]
    run(*verify, "3")
    refused(5, "older than you accept", *verify, "4")


def test_signing_and_verifying_refuse_keys_of_another_use(made, image):
    before = contents(image)
    refused(4, "signs nothing", "sign", image, "--signing-key", made / "ed25519.key.pub")
    refused(4, "signs nothing", "sign", image, "--signing-key", made / "my.key")
    signed = ["sign", image, "--signing-key", made / "ed25519.key"]
    refused(4, "no given key opens", *signed, "--key", made / "other.key")
    assert contents(image) == before
    refused(4, "its public half", "verify", image, "--verify-key", made / "ed25519.key")
    refused(4, "not a public signing key", "verify", image, "--verify-key", made / "my.key")


# --- Passphrases at a terminal ------------------------------------------------------------------------------


def converse(command, *lines):
    """Run a command on a terminal of its own, and type a line whenever it asks; returns (code, all shown)."""
    terminal, side = pty.openpty()
    on_terminal = ["setsid", "--ctty", "--wait", *map(str, command)]
    environment = os.environ | {"PYTHONPATH": str(mounts.ROOT)}
    process = subprocess.Popen(on_terminal, stdin=side, stdout=side, stderr=side, env=environment)
    os.close(side)
    shown, left = b"", list(lines)
    while select.select([terminal], [], [], mounts.END_S)[0]:
        try:
            shown += os.read(terminal, 4096)
        except OSError as error:  # the other side is closed
            assert error.errno == errno.EIO
            break
        if left and shown.endswith(b": "):
            os.write(terminal, left.pop(0) + b"\n")
            shown += b"|"
    os.close(terminal)
    return process.wait(timeout=mounts.END_S), shown.decode()


def test_a_new_passphrase_is_asked_for_twice_and_an_old_one_once(made, image):
    add = [*RAFSFS, "keys", "rewrap", image, "--key", made / "my.key", "--add-passphrase"]
    code, shown = converse(add, b"battery staple", b"battery staple")
    assert code == 0, shown
    assert "New passphrase: |" in shown
    assert "Repeat for confirmation: |" in shown
    assert "battery" not in shown
    assert reads(image, passphrase=b"battery staple")
    remove = [*RAFSFS, "keys", "rewrap", image, "--passphrase", "--remove", made / "my.key"]
    code, shown = converse(remove, b"battery staple")
    assert code == 0, shown
    assert "Repeat" not in shown


def test_a_wrong_passphrase(made, image):
    run("rewrap", image, "--key", made / "my.key", "--add-passphrase-file", made / "passphrase")
    before = contents(image)
    add = [*RAFSFS, "keys", "rewrap", image, "--passphrase", "--add", made / "other.key"]
    code, shown = converse(add, b"guess")
    assert code == 4
    assert "the passphrase is wrong" in shown
    assert "guess" not in shown
    assert contents(image) == before


def test_every_command_that_opens_an_image_can_ask(made, image):
    run("rewrap", image, "--key", made / "my.key", "--add-passphrase-file", made / "passphrase")
    code, shown = converse([*RAFSFS, "cat", image, "/file", "--passphrase"], b"correct horse")
    assert code == 0, shown
    assert CONTENT.decode().strip() in shown
    both = rafsfs("cat", image, "/file", "--passphrase", "--passphrase-file", made / "passphrase")
    assert (both.returncode, both.stdout) == (2, "")
    assert "either --passphrase or --passphrase-file" in both.stderr


def test_a_build_asks_for_a_passphrase_while_its_source_comes_through_a_pipe(made, tmp_path):
    """The terminal is asked, not standard input."""
    build = shlex.join([*RAFSFS, "build", "-", str(tmp_path / "img"), "--passphrase", "--quiet"])
    pipe = f"tar -C {shlex.quote(str(made / 'tree'))} -c . | {build}"
    code, shown = converse(["sh", "-c", pipe], b"battery", b"battery")
    assert code == 0, shown
    assert reads(tmp_path / "img", passphrase=b"battery")


# --- The process --------------------------------------------------------------------------------------------


def test_help_lists_the_commands_in_the_order_of_need():
    listed = run("--help").split("Commands:")[1].splitlines()
    commands = [line.split()[0] for line in listed if line.strip()]
    assert commands == ["new", "identity", "signing", "show", "rewrap", "sign", "verify"]


def test_a_reader_that_goes_away_is_no_error(made):
    """As with ``rafsfs keys show ... | head -1``: what a shell reports of any program that SIGPIPE ends."""
    reading, writing = os.pipe()
    os.close(reading)
    output = {"capture_output": False, "stdout": writing, "stderr": subprocess.PIPE}
    done = rafsfs("keys", "show", made / "my.key", **output)
    os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")


@pytest.mark.requires_root
def test_a_command_that_holds_keys_leaves_no_core(made):
    """It waits for the second key on its standard input; meanwhile its limits can be seen."""
    command = [sys.executable, "-m", "rafsfs", "keys", "show", made / "my.key", "-"]
    environment = os.environ | {"PYTHONPATH": str(mounts.ROOT)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        limits = Path(f"/proc/{process.pid}/limits")
        while not re.search(r"^Max core file size +0 +0 ", limits.read_text(), re.MULTILINE):
            assert process.poll() is None
        process.stdin.write((made / "other.key").read_text())
        process.stdin.close()
        assert key_id(made / "other.key") in process.stdout.read()
    assert process.returncode == 0
