"""Key files and the caller's key ring; does no I/O but key files and shows no secret to anybody.

Two text formats. Symmetric keys and recipient identities are one line, comments aside::

    # rafsfs symmetric key 5f0c...: keep it secret
    rafsfs-key-1 KIND BASE64

Signing keys are PEM as openssl makes them: PKCS#8 unencrypted (SEC 1 is read, too), SubjectPublicKeyInfo.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import os
import re
import shlex
import stat
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from cryptography.exceptions import InternalError, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from rafsfs import limits
from rafsfs.errors import KeyFileError, KeyFileMissing, Where
from rafsfs.trust.material import (
    EcdsaP256SigningKey,
    EcdsaP256VerifyKey,
    Ed25519SigningKey,
    Ed25519VerifyKey,
    HybridIdentity,
    HybridRecipient,
    Identity,
    Key,
    Passphrase,
    RecipientKey,
    SigningKey,
    SymmetricKey,
    VerifyKey,
    X25519Identity,
    X25519Recipient,
)

__all__ = [
    "EcdsaP256SigningKey",
    "EcdsaP256VerifyKey",
    "Ed25519SigningKey",
    "Ed25519VerifyKey",
    "HybridIdentity",
    "HybridRecipient",
    "Identity",
    "Key",
    "KeyRing",
    "Passphrase",
    "RecipientKey",
    "SigningKey",
    "SymmetricKey",
    "VerifyKey",
    "X25519Identity",
    "X25519Recipient",
    "encode_key",
    "forbid_core_dumps",
    "load_key",
    "load_passphrase",
    "names_descriptor",
    "parse_key",
    "save_key",
]

_MAGIC = b"rafsfs-key-1"
_OF_LATER_RELEASE = re.compile(rb"rafsfs-key-[1-9]\d{0,3}")
_TEXT_KINDS = {
    cls.kind.encode(): cls
    for cls in (SymmetricKey, X25519Identity, X25519Recipient, HybridIdentity, HybridRecipient)
}
_OPEN_DESCRIPTOR = re.compile(r"/(?:dev|proc/self)/fd/(\d{1,9})")
_PR_SET_DUMPABLE = 4  # linux/prctl.h


# --- What key files hold ------------------------------------------------------------------------------------


def encode_key(key: Key) -> bytes:
    """Give the text of a key file; for a secret key that text is the secret."""
    if isinstance(key, Ed25519SigningKey | EcdsaP256SigningKey):
        return key.private_key().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    if isinstance(key, Ed25519VerifyKey | EcdsaP256VerifyKey):
        return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    advice = "keep it secret" if key.secret else "public"
    comment = f"# rafsfs {key.kind.replace('-', ' ')} key {key.key_id.hex()}: {advice}\n"
    return comment.encode() + b" ".join((_MAGIC, key.kind.encode(), base64.b64encode(key.raw))) + b"\n"


def parse_key(text: bytes) -> Key:
    """Read a key of any kind out of its file's text. Raises KeyFileError, which never quotes the text."""
    if len(text) > limits.KEY_FILE_BYTES_MAX:
        raise KeyFileError(
            "not a key file", expected=f"at most {limits.KEY_FILE_BYTES_MAX} bytes", found="more than that"
        )
    lines = [line.strip() for line in text.splitlines()]
    if any(line.startswith(b"-----BEGIN ") for line in lines):
        return _parse_pem(text)
    lines = [line for line in lines if line and not line.startswith(b"#")]
    if len(lines) != 1:
        raise KeyFileError("not a key file", expected="one line that is a key", found=f"{len(lines)} lines")
    return _parse_line(lines[0])


def _parse_line(line: bytes) -> SymmetricKey | Identity | RecipientKey:
    magic, *fields = line.split()
    if magic != _MAGIC:
        if _OF_LATER_RELEASE.fullmatch(magic):
            raise KeyFileError("key file of a later format", expected=_MAGIC.decode(), found=magic.decode())
        raise KeyFileError(
            "not a key file",
            expected=f"a line that begins with {_MAGIC.decode()}, or PEM",
            hint="make one with: rafsfs keys new FILE",
        )
    # A file that lacks the kind has the key in its place: no field is ever quoted.
    if len(fields) != 2:
        raise KeyFileError("malformed key file", expected="a kind and a key", found=f"{len(fields)} fields")
    cls = _TEXT_KINDS.get(fields[0])
    if cls is None:
        kinds = ", ".join(kind.decode() for kind in _TEXT_KINDS)
        raise KeyFileError("key of an unknown kind", expected=f"one of {kinds}")
    try:
        raw = base64.b64decode(fields[1], validate=True)
    except binascii.Error:
        raise KeyFileError(f"malformed {cls.kind} key", expected="base64") from None
    if base64.b64encode(raw) != fields[1]:
        raise KeyFileError(f"malformed {cls.kind} key", expected="canonical base64")
    return cls(raw)


def _parse_pem(text: bytes) -> SigningKey | VerifyKey:
    secret = b"PRIVATE KEY-----" in text
    try:
        loaded = load_pem_private_key(text, password=None) if secret else load_pem_public_key(text)
    except TypeError:  # cryptography's word for an encrypted key without a password
        raise KeyFileError(
            "encrypted PEM key", hint="decrypt it first: openssl pkey -in FILE -out NEW_FILE"
        ) from None
    except (ValueError, UnsupportedAlgorithm, InternalError):  # their words may point into the key
        raise KeyFileError(
            "malformed PEM key",
            expected="an unencrypted PKCS#8 private key or a SubjectPublicKeyInfo public key",
        ) from None
    if isinstance(loaded, ed25519.Ed25519PrivateKey):
        return Ed25519SigningKey(loaded.private_bytes_raw())
    if isinstance(loaded, ed25519.Ed25519PublicKey):
        return Ed25519VerifyKey(loaded.public_bytes_raw())
    if isinstance(loaded, ec.EllipticCurvePrivateKey) and isinstance(loaded.curve, ec.SECP256R1):
        return EcdsaP256SigningKey.of(loaded)
    if isinstance(loaded, ec.EllipticCurvePublicKey) and isinstance(loaded.curve, ec.SECP256R1):
        return EcdsaP256VerifyKey(loaded.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint))
    raise KeyFileError(
        "PEM key of an unknown kind",
        expected="Ed25519 or ECDSA on P-256",
        hint="make one with: openssl genpkey -algorithm ED25519 -out FILE",
    )


# --- Files --------------------------------------------------------------------------------------------------


def load_key(path: str | os.PathLike[str]) -> Key:
    """Read a key file of any kind; ``-`` is standard input, ``/dev/fd/N`` an open descriptor, pipes too.

    Raises KeyFileError: missing, unreadable, not a regular file, malformed, or a secret key that others may
    use. The permissions of pipes are their maker's business and are not looked at.
    """
    name = os.fspath(path)
    text, mode = _read(name)
    try:
        key = parse_key(text)
        _check_mode(mode, secret=key.secret, name=name)
    except KeyFileError as error:
        raise error.at(file=_shown(name)) from error.__cause__
    return key


def load_passphrase(path: str | os.PathLike[str]) -> Passphrase:
    """Read a passphrase: all of the file but one newline at its end. Raises as `load_key` does."""
    name = os.fspath(path)
    text, mode = _read(name)
    try:
        _check_mode(mode, secret=True, name=name)
        return Passphrase(text.removesuffix(b"\n").removesuffix(b"\r"))
    except KeyFileError as error:
        raise error.at(file=_shown(name)) from error.__cause__


def save_key(key: Key, path: str | os.PathLike[str]) -> None:
    """Write a new key file, mode 0600, or 0644 for a public half, and see it to the disk.

    Never overwrites: a key that is gone cannot be made again. Raises KeyFileError, and then leaves no file.
    """
    name = os.fspath(path)
    text = encode_key(key)
    try:
        # No umask widens 0600, and O_EXCL follows no symlink.
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600 if key.secret else 0o644)
    except FileExistsError:
        raise KeyFileError(
            "key file exists and is not overwritten", where=Where(file=name), hint="choose another name"
        ) from None
    except (OSError, ValueError) as error:
        raise _unusable("create", name, error) from error
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        _sync_directory(Path(name).parent)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        if isinstance(error, OSError):
            raise _unusable("write", name, error) from error
        raise


def _read(name: str) -> tuple[bytes, int | None]:
    """Give the bytes of a key file and its permission bits, None for what is not a regular file."""
    given = _descriptor_named(name)
    descriptor = -1
    try:
        # O_NONBLOCK: opening a FIFO that nobody writes to would wait for ever.
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
        descriptor = os.open(name, flags) if given is None else os.dup(given)
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode) and (given is None or stat.S_ISDIR(mode)):
            raise KeyFileError(
                "not a key file",
                expected="a regular file",
                found="a directory" if stat.S_ISDIR(mode) else "a pipe, socket or device",
                where=Where(file=_shown(name)),
            )
        text = b""
        while len(text) <= limits.KEY_FILE_BYTES_MAX:
            piece = os.read(descriptor, limits.KEY_FILE_BYTES_MAX + 1 - len(text))
            if not piece:
                break
            text += piece
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        raise _unusable("read", name, error) from error
    finally:
        if descriptor >= 0:
            os.close(descriptor)
    return text, stat.S_IMODE(mode) if stat.S_ISREG(mode) else None


def names_descriptor(path: str | os.PathLike[str]) -> bool:
    """Whether a name stands for an open descriptor, which may give what it has only once."""
    return _descriptor_named(os.fspath(path)) is not None


def _descriptor_named(name: str) -> int | None:
    """Say which open descriptor a name stands for. It is read, not opened anew: a socket cannot be."""
    if name in ("-", "/dev/stdin"):
        return 0
    matched = _OPEN_DESCRIPTOR.fullmatch(name)
    return int(matched[1]) if matched else None


def _check_mode(mode: int | None, *, secret: bool, name: str) -> None:
    # Who can replace a public half decides whom we seal for and whose signature we believe.
    forbidden = 0o077 if secret else 0o002
    if mode is None or not mode & forbidden:
        return
    wanted = "600" if secret else "644"
    what = (
        "secret key file that others may read or write"
        if secret
        else "public key file that anybody may write"
    )
    file = shlex.quote(name) if _descriptor_named(name) is None else "FILE"
    raise KeyFileError(
        what, expected=f"mode 0{wanted}", found=f"mode {mode:04o}", hint=f"run: chmod {wanted} {file}"
    )


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(verb: str, name: str, error: OSError | ValueError) -> KeyFileError:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    if verb == "read" and isinstance(error, FileNotFoundError | NotADirectoryError):
        return KeyFileMissing(
            "no such key file",
            found=reason,
            where=Where(file=_shown(name)),
            hint="name another, or make one: rafsfs keys new FILE",
        )
    hint = "name a file that you may read" if verb == "read" else "name a place that you may write to"
    return KeyFileError(f"cannot {verb} key file", found=reason, where=Where(file=_shown(name)), hint=hint)


def _shown(name: str) -> str:
    return "standard input" if _descriptor_named(name) == 0 else name


# --- The caller ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KeyRing:
    """All that a caller has to open images with, and the public halves whose signatures it asks for."""

    symmetric: tuple[SymmetricKey, ...] = ()
    identities: tuple[Identity, ...] = ()
    passphrases: tuple[Passphrase, ...] = ()
    verification: tuple[VerifyKey, ...] = ()

    @classmethod
    def load(
        cls, paths: Iterable[str | os.PathLike[str]] = (), passphrase: bytes | Passphrase | None = None
    ) -> Self:
        """Load key files of all the kinds that open or verify.

        Raises KeyFileError as `load_key` does, and for a key that can do neither: a recipient's public half
        seals only, a signing key is not for those who verify.
        """
        keys: list[Key] = []
        for path in paths:
            key = load_key(path)
            if isinstance(key, X25519Recipient | HybridRecipient):
                hint = "give the identity that it belongs to"
            elif isinstance(key, Ed25519SigningKey | EcdsaP256SigningKey):
                hint = "to verify, give its public half"
            else:
                keys.append(key)
                continue
            raise KeyFileError(
                f"{key.kind} key opens nothing", where=Where(file=_shown(os.fspath(path))), hint=hint
            )
        if isinstance(passphrase, bytes):
            passphrase = Passphrase(passphrase)
        return cls(
            symmetric=tuple(key for key in keys if isinstance(key, SymmetricKey)),
            identities=tuple(key for key in keys if isinstance(key, X25519Identity | HybridIdentity)),
            passphrases=() if passphrase is None else (passphrase,),
            verification=tuple(key for key in keys if isinstance(key, Ed25519VerifyKey | EcdsaP256VerifyKey)),
        )


def forbid_core_dumps() -> None:
    """Keep keys and plaintext out of core files, and on Linux out of reach of other processes' ptrace.

    There it also makes /proc/self root's for everybody but this process. Raises OSError when refused.
    """
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        import ctypes

        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
            code = ctypes.get_errno()
            raise OSError(code, f"prctl(PR_SET_DUMPABLE): {os.strerror(code)}")
