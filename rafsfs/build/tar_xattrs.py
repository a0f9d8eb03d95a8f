"""Extended attributes out of pax records; owns how star, GNU tar and libarchive spell them, does no I/O."""

from __future__ import annotations

import binascii
import re
from urllib.parse import unquote_to_bytes

from rafsfs.build.acl import acl_from_text
from rafsfs.build.source import NO_XATTRS_HINT, POSIX_ACL_ACCESS, POSIX_ACL_DEFAULT, check_xattr
from rafsfs.errors import BuildError

_SCHILY = b"SCHILY.xattr."
_LIBARCHIVE = b"LIBARCHIVE.xattr."
_ACLS = {b"SCHILY.acl.access": POSIX_ACL_ACCESS, b"SCHILY.acl.default": POSIX_ACL_DEFAULT}
_GNU_ESCAPE = re.compile(rb"%(25|3D)")


def xattrs_of(path: bytes, records: dict[bytes, bytes]) -> tuple[tuple[bytes, bytes], ...]:
    """Give (name, value) sorted by name, each checked. Raises BuildError when one cannot be read or stored.

    libarchive writes an attribute twice, and only its own spelling is unambiguous, so that one is believed. A
    POSIX ACL that came as an attribute is believed before the same in words.
    """
    found: dict[bytes, bytes] = {}
    spelled: set[bytes] = set()
    for keyword, value in records.items():
        if keyword.startswith(_LIBARCHIVE):
            spelling = keyword[len(_LIBARCHIVE) :]
            spelled.add(spelling)
            found[unquote_to_bytes(spelling)] = _from_base64(spelling, value)
    for keyword, value in records.items():
        if keyword.startswith(_SCHILY) and (spelling := keyword[len(_SCHILY) :]) not in spelled:
            found[_GNU_ESCAPE.sub(_unescape, spelling)] = value
    for keyword, name in _ACLS.items():
        if name not in found and (value := acl_from_text(records.get(keyword, b""))):
            found[name] = value
    if context := records.get(b"RHT.security.selinux"):  # GNU tar --selinux; the kernel's value ends in a NUL
        found.setdefault(b"security.selinux", context + b"\0")
    if records.get(b"SCHILY.acl.ace"):
        raise BuildError("an NFSv4 ACL cannot be stored", hint=NO_XATTRS_HINT)
    for name, value in found.items():
        check_xattr(path, name, value)
    return tuple(sorted(found.items()))


def _from_base64(spelling: bytes, value: bytes) -> bytes:
    try:
        return binascii.a2b_base64(
            value.rstrip(b"=") + b"=" * (-len(value.rstrip(b"=")) % 4), strict_mode=True
        )
    except binascii.Error as error:
        raise BuildError(
            f"the value of extended attribute {spelling!r} is not base64",
            found=str(error),
            hint=NO_XATTRS_HINT,
        ) from error


def _unescape(match: re.Match[bytes]) -> bytes:
    return bytes([int(match[1], 16)])
