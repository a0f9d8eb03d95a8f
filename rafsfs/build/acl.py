"""POSIX ACLs, from the text in tars to the xattr that kernels read; owns both spellings, touches no files."""

from __future__ import annotations

import struct

from rafsfs.build.source import NO_XATTRS_HINT
from rafsfs.errors import BuildError

# linux/posix_acl_xattr.h: a header of one le32, then entries {le16 tag, le16 permissions, le32 id}
_HEADER = struct.pack("<I", 2)  # POSIX_ACL_XATTR_VERSION
_ENTRY = struct.Struct("<HHI")
_NO_ID = 0xFFFF_FFFF  # ACL_UNDEFINED_ID

# linux/posix_acl.h; ascending is the order that posix_acl_valid() asks for
_USER_OBJ, _USER, _GROUP_OBJ, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20
_TAGS = {
    b"user": (_USER_OBJ, _USER),
    b"group": (_GROUP_OBJ, _GROUP),
    b"mask": (_MASK, None),
    b"other": (_OTHER, None),
}
_ABBREVIATED = {b"u": b"user", b"g": b"group", b"m": b"mask", b"o": b"other"}
_PERMISSIONS = {ord("r"): 4, ord("w"): 2, ord("x"): 1, ord("-"): 0}
_MINIMAL = {_USER_OBJ, _GROUP_OBJ, _OTHER}
_ALL = _MINIMAL | {_USER, _GROUP, _MASK}


def acl_from_text(text: bytes) -> bytes:
    """Turn the text form of acl(5), long or short, as star, GNU tar and libarchive write it, into the xattr.

    Entries are ``tag:qualifier:permissions``, separated by commas or newlines, with comments after ``#``. A
    fourth field is the numeric id of the name (star, libarchive) and is believed before this machine's own
    accounts, which are asked last.

    Returns ``b""`` for an ACL that says no more than the three classes of a mode: kernels store none then.
    Raises BuildError when it does not parse, names nobody, or is no valid ACL.
    """
    found: dict[tuple[int, int], int] = {}
    for line in text.replace(b",", b"\n").split(b"\n"):
        entry = line.partition(b"#")[0].strip()
        if not entry:
            continue
        tag, identity, permissions = _entry(entry)
        if (tag, identity) in found:
            raise _invalid("an ACL says the same twice", entry)
        found[tag, identity] = permissions
    if not found:
        return b""
    tags = {tag for tag, _ in found}
    if not tags >= _MINIMAL:
        raise _invalid("an ACL lacks user::, group:: or other::", text)
    if tags == _MINIMAL:
        return b""
    if _MASK not in tags and tags & {_USER, _GROUP}:
        raise _invalid("an ACL names users or groups but has no mask::", text)
    return _HEADER + b"".join(
        _ENTRY.pack(tag, permissions, identity) for (tag, identity), permissions in sorted(found.items())
    )


def acl_mode(xattr: bytes) -> int:
    """Give the nine permission bits that a file has once a kernel set this ACL (posix_acl_equiv_mode()).

    Raises BuildError on bytes that no kernel takes for an ACL.
    """
    body = xattr[len(_HEADER) :]
    if not xattr.startswith(_HEADER) or len(body) % _ENTRY.size:
        raise _invalid("an ACL is not of the version and size that kernels read", xattr[:40])
    permissions: dict[int, int] = {}
    before = 0
    for tag, bits, _ in _ENTRY.iter_unpack(body):
        if tag not in _ALL or bits > 7 or tag < before or (tag == before and tag not in {_USER, _GROUP}):
            raise _invalid("an ACL's entries are unknown or out of order", xattr[:40])
        permissions[tag] = bits
        before = tag
    if not permissions.keys() >= _MINIMAL or (_MASK not in permissions and permissions.keys() != _MINIMAL):
        raise _invalid("an ACL lacks an entry that it must have", xattr[:40])
    group = permissions.get(_MASK, permissions[_GROUP_OBJ])
    return permissions[_USER_OBJ] << 6 | group << 3 | permissions[_OTHER]


def _entry(entry: bytes) -> tuple[int, int, int]:
    """Read one entry as (tag, id, permissions)."""
    fields = [field.strip() for field in entry.split(b":")]
    if fields[0] in {b"default", b"d"}:  # libarchive can mark default ACLs so
        del fields[0]
    if fields and fields[0] in {b"mask", b"m", b"other", b"o"} and len(fields) == 2:  # mask:rwx is allowed
        fields.insert(1, b"")
    if len(fields) not in {3, 4}:
        raise _invalid("an ACL entry does not parse", entry)
    kind, qualifier, permissions = fields[:3]
    number = fields[3] if len(fields) == 4 else b""
    unnamed, named = _TAGS.get(_ABBREVIATED.get(kind, kind), (None, None))
    if unnamed is None or (named is None and qualifier) or (not qualifier and number):
        raise _invalid("an ACL entry does not parse", entry)
    if not 1 <= len(permissions) <= 3 or any(letter not in _PERMISSIONS for letter in permissions):
        raise _invalid("an ACL entry's permissions do not parse", entry)
    bits = 0
    for letter in permissions:
        bits |= _PERMISSIONS[letter]
    if not qualifier or named is None:
        return unnamed, _NO_ID, bits
    return named, _identity(number or qualifier, named, entry), bits


def _identity(text: bytes, tag: int, entry: bytes) -> int:
    if text.isdigit():
        if len(text) > 10 or int(text) >= _NO_ID:
            raise _invalid("an ACL entry's id is out of range", entry)
        return int(text)
    look_up = _user_id if tag == _USER else _group_id
    try:
        return look_up(text.decode("utf-8", "surrogateescape"))
    except (KeyError, ValueError) as error:  # ValueError: a NUL in it
        raise BuildError(
            "an ACL names somebody who has no account here",
            found=repr(text),
            hint="have the archive say its id too (GNU tar: --acls and --xattrs), or " + NO_XATTRS_HINT,
        ) from error


def _user_id(name: str) -> int:
    import pwd

    return pwd.getpwnam(name).pw_uid


def _group_id(name: str) -> int:
    import grp

    return grp.getgrnam(name).gr_gid


def _invalid(what: str, found: bytes) -> BuildError:
    return BuildError(what, found=repr(found[:200]), hint=NO_XATTRS_HINT)
