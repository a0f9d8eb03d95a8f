"""Key files: every kind there and back, who may read them, hostile text, and the key ring."""

import base64
import os
import re
import socket
import stat
import subprocess
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs import limits
from rafsfs.errors import KeyFileError
from rafsfs.trust.keys import (
    EcdsaP256SigningKey,
    EcdsaP256VerifyKey,
    Ed25519SigningKey,
    Ed25519VerifyKey,
    HybridIdentity,
    KeyRing,
    SymmetricKey,
    X25519Identity,
    encode_key,
    load_key,
    load_passphrase,
    parse_key,
    save_key,
)

SYMMETRIC = SymmetricKey(bytes(range(32)))
X25519 = X25519Identity(bytes(range(32)))
HYBRID = HybridIdentity(bytes(range(96)))
ED25519 = Ed25519SigningKey(bytes(range(32)))
ECDSA = EcdsaP256SigningKey(bytes(range(32)))
SECRETS = [SYMMETRIC, X25519, HYBRID, ED25519, ECDSA]
PUBLICS = [X25519.recipient(), HYBRID.recipient(), ED25519.public(), ECDSA.public()]


def ids(key):
    return key.kind


def python(program, *arguments, data=b""):
    """Run a program that finds the same packages as this process; give what it prints."""
    command = [sys.executable, "-c", program, *arguments]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, input=data, env=environment, capture_output=True, check=True)
    return done.stdout.decode()


# --- There and back -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", SECRETS + PUBLICS, ids=ids)
def test_every_kind_is_loaded_as_it_was_saved(tmp_path, key):
    file = tmp_path / "key"
    save_key(key, file)
    assert load_key(file) == key
    assert load_key(str(file)) == key
    assert stat.S_IMODE(file.stat().st_mode) == (0o600 if key.secret else 0o644 & ~_umask())


def _umask():
    before = os.umask(0)
    os.umask(before)
    return before


def test_text_format_stays_as_it_is():
    """Key files outlive releases: these lines must be read for good."""
    line = b"rafsfs-key-1 symmetric AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n"
    assert parse_key(line) == SYMMETRIC
    assert encode_key(SYMMETRIC).splitlines(keepends=True)[1] == line
    assert parse_key(line.replace(b"symmetric", b"x25519-identity")) == X25519
    assert parse_key(b"\r\n# one\r\n\t# two\r\n" + line.replace(b"\n", b"\r\n") + b"\r\n") == SYMMETRIC
    assert SYMMETRIC.key_id.hex() == "ef9be7b5b33be8fa756700201b79f246"
    assert X25519.key_id.hex() == "2982b706b79b002c795395f4919cc2b8"
    assert HYBRID.key_id.hex() == "7d6f66e01fc6095bf21b81eea18ca331"


def test_comment_names_the_key_and_not_more():
    comment = encode_key(SYMMETRIC).splitlines()[0].decode()
    assert comment == f"# rafsfs symmetric key {SYMMETRIC.key_id.hex()}: keep it secret"
    assert encode_key(X25519.recipient()).startswith(b"# rafsfs x25519 recipient key ")


@pytest.mark.parametrize("old", [b"", b"something else"])
def test_save_never_overwrites(tmp_path, old):
    file = tmp_path / "key"
    file.write_bytes(old)
    with pytest.raises(KeyFileError, match="not overwritten"):
        save_key(SYMMETRIC, file)
    assert file.read_bytes() == old


def test_save_follows_no_symlink(tmp_path):
    (tmp_path / "key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(KeyFileError, match="not overwritten"):
        save_key(SYMMETRIC, tmp_path / "key")
    assert not (tmp_path / "elsewhere").exists()


def test_save_is_0600_even_under_a_wide_umask(tmp_path):
    before = os.umask(0)
    try:
        save_key(SYMMETRIC, tmp_path / "secret")
        save_key(X25519.recipient(), tmp_path / "public")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "public").stat().st_mode) == 0o644


def test_save_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match="cannot write key file: No space left"):
        save_key(SYMMETRIC, tmp_path / "key")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["missing/key", "a\0b", "x" * 300])
def test_save_where_no_file_can_be(tmp_path, name):
    with pytest.raises(KeyFileError, match="cannot create key file"):
        save_key(SYMMETRIC, f"{tmp_path}/{name}")


# --- Who may read them --------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", SECRETS, ids=ids)
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o777])
def test_secret_that_others_may_use_is_refused(tmp_path, key, mode):
    file = tmp_path / "a key"
    save_key(key, file)
    file.chmod(mode)
    with pytest.raises(KeyFileError) as caught:
        load_key(file)
    assert f"found mode {mode:04o}" in str(caught.value)
    assert f"run: chmod 600 '{file}'" in str(caught.value)
    file.chmod(0o400)
    assert load_key(file) == key


@pytest.mark.parametrize("key", PUBLICS, ids=ids)
def test_public_half_may_be_read_but_not_replaced_by_all(tmp_path, key):
    file = tmp_path / "key"
    save_key(key, file)
    file.chmod(0o444)
    assert load_key(file) == key
    file.chmod(0o646)
    with pytest.raises(KeyFileError, match=r"found mode 0646.*chmod 644"):
        load_key(file)


def test_symlink_to_a_key_is_followed_and_its_target_checked(tmp_path):
    save_key(SYMMETRIC, tmp_path / "key")
    (tmp_path / "link").symlink_to("key")
    assert load_key(tmp_path / "link") == SYMMETRIC
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(KeyFileError, match="mode 0644"):
        load_key(tmp_path / "link")


def test_missing_directory_fifo_device_and_nul(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        for name, words in (
            (tmp_path / "missing", "No such file"),
            (tmp_path, "found a directory"),
            (tmp_path / "fifo", "found a pipe"),
            (tmp_path / "socket", "cannot read key file"),
            ("/dev/zero", "found a pipe, socket or device"),
            ("a\0b", "cannot read key file"),
            ("", "No such file"),
        ):
            with pytest.raises(KeyFileError, match=words) as caught:
                load_key(name)
            assert "\n" not in str(caught.value)


def test_keys_from_open_descriptors():
    for opened in (os.pipe, _socketpair):
        reading, writing = opened()
        try:
            os.write(writing, encode_key(SYMMETRIC)[:50])
            os.write(writing, encode_key(SYMMETRIC)[50:])
            os.close(writing)
            assert load_key(f"/dev/fd/{reading}") == SYMMETRIC
        finally:
            os.close(reading)


def _socketpair():
    left, right = socket.socketpair()
    return left.detach(), right.detach()


def test_descriptor_of_a_file_is_held_to_its_permissions(tmp_path):
    save_key(SYMMETRIC, tmp_path / "key")
    for mode, fine in ((0o600, True), (0o640, False)):
        (tmp_path / "key").chmod(mode)
        with (tmp_path / "key").open("rb") as file:
            if fine:
                assert load_key(f"/dev/fd/{file.fileno()}") == SYMMETRIC
            else:
                with pytest.raises(KeyFileError, match="mode 0640"):
                    load_key(f"/dev/fd/{file.fileno()}")


def test_descriptor_that_is_not_open_or_a_directory(tmp_path):
    with pytest.raises(KeyFileError, match="Bad file descriptor"):
        load_key("/dev/fd/999999999")
    descriptor = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(KeyFileError, match="found a directory"):
            load_key(f"/dev/fd/{descriptor}")
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_key_from_standard_input(name):
    program = "import sys; from rafsfs.trust.keys import load_key; print(load_key(sys.argv[1]).key_id.hex())"
    assert python(program, name, data=encode_key(HYBRID)).strip() == HYBRID.key_id.hex()


def test_endless_pipe_is_read_up_to_the_limit_only():
    reading, writing = os.pipe()

    def feed():
        with os.fdopen(writing, "wb", buffering=0) as file:
            try:
                while True:
                    file.write(b"#" * 4096)
            except BrokenPipeError:
                return

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        with pytest.raises(KeyFileError, match=f"at most {limits.KEY_FILE_BYTES_MAX} bytes"):
            load_key(f"/dev/fd/{reading}")
    finally:
        os.close(reading)
        feeder.join()


# --- Text that is no key ------------------------------------------------------------------------------------

SECRET_WORD = base64.b64encode(bytes(range(32)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "found 0 lines"),
        (b"# only a comment\n", "found 0 lines"),
        (encode_key(SYMMETRIC) * 2, "found 2 lines"),
        (bytes(range(32)), "not a key file"),
        (SECRET_WORD, "not a key file"),
        (b"rafsfs-key-1", "found 0 fields"),
        (b"rafsfs-key-1 " + SECRET_WORD, "found 1 fields"),
        (b"rafsfs-key-1 " + SECRET_WORD + b" symmetric", "unknown kind"),
        (b"rafsfs-key-1 symmetric " + SECRET_WORD + b" x", "found 3 fields"),
        (b"rafsfs-key-1 Symmetric " + SECRET_WORD, "unknown kind"),
        (b"rafsfs-key-2 symmetric " + SECRET_WORD, "later format: expected rafsfs-key-1, found rafsfs-key-2"),
        (b"rafsfs-key-01 symmetric " + SECRET_WORD, "not a key file"),
        (b"rafsfs-key-1 symmetric " + SECRET_WORD[:-1], "expected base64"),
        (b"rafsfs-key-1 symmetric " + SECRET_WORD[:-4], "expected 32 bytes"),
        (b"rafsfs-key-1 symmetric " + SECRET_WORD + b"====", "symmetric key"),
        (b"rafsfs-key-1 symmetric " + SECRET_WORD.replace(b"8=", b"9="), "canonical base64"),
        (b"rafsfs-key-1 symmetric !" + SECRET_WORD[1:], "expected base64"),
        (b"rafsfs-key-1 symmetric \xff" + SECRET_WORD[1:], "expected base64"),
        (b"rafsfs-key-1 x25519-recipient " + base64.b64encode(bytes(32)), "unusable x25519-recipient"),
        (b"#" * (limits.KEY_FILE_BYTES_MAX + 1), "at most 16384 bytes"),
        (b"-----BEGIN PRIVATE KEY-----\n" + SECRET_WORD + b"\n-----END PRIVATE KEY-----\n", "malformed PEM"),
        (b"-----BEGIN PUBLIC KEY-----\n" + SECRET_WORD + b"\n-----END PUBLIC KEY-----\n", "malformed PEM"),
        (b"-----BEGIN CERTIFICATE-----\n" + SECRET_WORD + b"\n-----END CERTIFICATE-----\n", "malformed PEM"),
        (b"-----BEGIN PRIVATE KEY-----\n" + SECRET_WORD, "malformed PEM"),
        (b"-----BEGIN ", "not a key file"),
        (b"-----BEGIN X", "malformed PEM"),
    ],
)
def test_text_that_is_no_key_is_refused_and_not_quoted(tmp_path, text, words):
    file = tmp_path / "key"
    file.write_bytes(text)
    file.chmod(0o600)
    with pytest.raises(KeyFileError) as caught:
        load_key(file)
    message = str(caught.value)
    assert words in message
    assert f"(file {file})" in message
    for hidden in (SECRET_WORD[:8].decode(), SECRET_WORD[9:20].decode(), bytes(range(32)).hex()[8:16]):
        assert hidden not in f"{message} {caught.value!r} {caught.value.__cause__!r}"


@given(st.binary(max_size=300))
def test_garbage_is_refused_with_nothing_but_key_file_error(text):
    with pytest.raises(KeyFileError):
        parse_key(text)


@given(
    st.sampled_from(SECRETS + PUBLICS),
    st.lists(st.tuples(st.integers(0, 5_000), st.integers(0, 255)), max_size=4),
    st.integers(0, 20),
)
def test_damaged_keys_give_a_key_or_key_file_error(key, changes, cut):
    text = bytearray(encode_key(key))
    for position, value in changes:
        text[position % len(text)] = value
    try:
        parsed = parse_key(bytes(text[: len(text) - cut]))
    except KeyFileError:
        return
    assert len(parsed.key_id) == 16


@given(
    st.binary(max_size=200),
    st.sampled_from(["PRIVATE KEY", "EC PRIVATE KEY", "PUBLIC KEY", "ENCRYPTED PRIVATE KEY"]),
)
def test_garbage_in_pem_is_refused(der, label):
    body = base64.encodebytes(der).decode()
    with pytest.raises(KeyFileError):
        parse_key(f"-----BEGIN {label}-----\n{body}-----END {label}-----\n".encode())


# --- Keys made by openssl -----------------------------------------------------------------------------------


def openssl(*arguments, data=None):
    return subprocess.run(["openssl", *arguments], input=data, capture_output=True, check=True).stdout


@pytest.mark.parametrize(
    ("command", "signing", "verifying"),
    [
        (["genpkey", "-algorithm", "ED25519"], Ed25519SigningKey, Ed25519VerifyKey),
        (
            ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            EcdsaP256SigningKey,
            EcdsaP256VerifyKey,
        ),
        (["ecparam", "-name", "prime256v1", "-genkey", "-noout"], EcdsaP256SigningKey, EcdsaP256VerifyKey),
        (["ecparam", "-name", "prime256v1", "-genkey"], EcdsaP256SigningKey, EcdsaP256VerifyKey),
    ],
)
def test_openssl_keys_are_read_and_ours_by_openssl(tmp_path, command, signing, verifying):
    private_pem = openssl(*command)
    public_pem = openssl("pkey", "-pubout", data=private_pem)
    (tmp_path / "private").write_bytes(private_pem)
    (tmp_path / "private").chmod(0o600)
    (tmp_path / "public").write_bytes(public_pem)
    private, public = load_key(tmp_path / "private"), load_key(tmp_path / "public")
    assert isinstance(private, signing)
    assert isinstance(public, verifying)
    assert private.public() == public
    assert encode_key(public) == public_pem
    assert openssl("pkey", "-pubout", data=encode_key(private)) == public_pem


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-384"], "unknown kind"),
        (["-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:secp256k1"], "unknown kind"),
        (["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"], "unknown kind"),
        (["-algorithm", "X25519"], "unknown kind"),
        (["-algorithm", "ED25519", "-aes256", "-pass", "pass:secret"], "encrypted PEM key"),
    ],
)
def test_other_openssl_keys_are_refused(arguments, words):
    pem = openssl("genpkey", *arguments)
    with pytest.raises(KeyFileError, match=words):
        parse_key(pem)
    if "-pass" not in arguments:
        with pytest.raises(KeyFileError, match=words):
            parse_key(openssl("pkey", "-pubout", data=pem))


# --- Passphrases and the key ring ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "secret"),
    [
        (b"open sesame\n", b"open sesame"),
        (b"  two \n\n", b"  two \n"),
        (b"w\r\n", b"w"),
        (b"\xff\0", b"\xff\0"),
    ],
)
def test_passphrase_file_loses_one_newline_only(tmp_path, text, secret):
    file = tmp_path / "passphrase"
    file.write_bytes(text)
    file.chmod(0o600)
    assert load_passphrase(file).secret == secret


@pytest.mark.parametrize(
    ("text", "mode"), [(b"", 0o600), (b"\n", 0o600), (b"x" * 1025, 0o600), (b"fine", 0o644)]
)
def test_passphrase_file_that_will_not_do(tmp_path, text, mode):
    file = tmp_path / "passphrase"
    file.write_bytes(text)
    file.chmod(mode)
    with pytest.raises(KeyFileError, match=re.escape(f"(file {file})")):
        load_passphrase(file)


def test_key_ring_sorts_what_it_loads(tmp_path):
    for number, key in enumerate([SYMMETRIC, X25519, HYBRID, ED25519.public(), ECDSA.public()]):
        save_key(key, tmp_path / str(number))
    ring = KeyRing.load([tmp_path / str(number) for number in range(5)], passphrase=b"open sesame")
    assert ring.symmetric == (SYMMETRIC,)
    assert ring.identities == (X25519, HYBRID)
    assert ring.verification == (ED25519.public(), ECDSA.public())
    assert [passphrase.secret for passphrase in ring.passphrases] == [b"open sesame"]
    shown = f"{ring!r} {ring!s}"
    for secret in (bytes(range(8)).hex(), SECRET_WORD[:8].decode(), "\\x01\\x02", "open sesame"):
        assert secret not in shown
    assert SYMMETRIC.key_id.hex() in shown


def test_empty_key_ring():
    assert KeyRing.load() == KeyRing()


@pytest.mark.parametrize("key", [X25519.recipient(), HYBRID.recipient(), ED25519, ECDSA], ids=ids)
def test_key_ring_refuses_keys_that_open_nothing(tmp_path, key):
    save_key(key, tmp_path / "key")
    with pytest.raises(KeyFileError, match=r"opens nothing.*give"):
        KeyRing.load([tmp_path / "key"])


# --- Core dumps ---------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux")
def test_core_dumps_are_forbidden():
    program = (
        "import ctypes, resource; from rafsfs.trust.keys import forbid_core_dumps; forbid_core_dumps();"
        "print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    assert python(program) == "(0, 0) 0\n"


def test_import_needs_nothing_of_linux():
    program = (
        "import sys; sys.platform = 'darwin'; sys.modules['ctypes'] = None;"
        "from rafsfs.trust import keys; keys.forbid_core_dumps(); print('fine')"
    )
    assert python(program) == "fine\n"
