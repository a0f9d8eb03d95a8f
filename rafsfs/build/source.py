"""What the builder is fed with, one name at a time; owns the model, never opens or parses anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from rafsfs.errors import BuildError, Where
from rafsfs.format.erofs import FileType
from rafsfs.limits import FILE_NAME_BYTES_MAX, XATTR_VALUE_BYTES_MAX

_XATTR_NAMESPACES = (
    b"user.",
    b"trusted.",
    b"security.",
)  # EROFS_XATTR_INDEX_*: what erofs_fs.h has a prefix for
_XATTR_SUFFIX_BYTES_MAX = 255  # erofs_xattr_entry.e_name_len is 8 bits
POSIX_ACL_ACCESS = b"system.posix_acl_access"
POSIX_ACL_DEFAULT = b"system.posix_acl_default"
NO_XATTRS_HINT = "leave all extended attributes out with --no-xattrs"


@dataclass(frozen=True, slots=True)
class Hole:
    """A run of zero bytes that occupies nothing in the source."""

    length: int


Content = Callable[[int], Iterator[bytes | Hole]]
"""``content(piece_size)`` gives a file front to back, in consecutive pieces that start at multiples of
``piece_size`` bytes: ``bytes`` of exactly ``piece_size`` (the last may be shorter), or a ``Hole`` that may
span many pieces and whose length is a multiple of ``piece_size`` (except at the end of the file). A piece
that is only partly a hole comes as bytes with the zeros in it. All lengths together are the entry's size,
else BuildError."""


@dataclass(slots=True)
class Entry:
    """One name of the tree, and the inode it leads to."""

    path: bytes
    """Relative, without leading or trailing slash, components separated by one slash; ``b""`` is the root."""
    kind: FileType
    permissions: int
    """0..0o7777."""
    uid: int
    gid: int
    mtime_ns: int
    """Nanoseconds since 1970; may be negative."""
    size: int = 0
    """Regular files: bytes."""
    rdev: tuple[int, int] = (0, 0)
    """Device nodes: (major, minor)."""
    target: bytes = b""
    """Symbolic links."""
    xattrs: tuple[tuple[bytes, bytes], ...] = ()
    """(full name, value), sorted by name; each passed ``check_xattr``."""
    hard_link_to: bytes | None = None
    """Path of an earlier entry that this one is the same inode as. The other fields then do not matter."""
    content: Content | None = None
    """Regular files only."""


class Source(Protocol):
    """A tree to build from.

    The consumer reads an entry's content, once and to its end, before it asks for the next entry, or not at
    all: a tar on a pipe cannot be rewound.
    """

    def entries(self) -> Iterator[Entry]:
        """Give the whole tree, the root first, parents before children, and links after what they link to.

        A later entry of a path replaces the earlier one, and what was below it; but a directory over a
        directory only changes its attributes. Other names of a replaced inode keep it.

        Raises BuildError: the source cannot be read, changes meanwhile, or holds what an image cannot say.
        """

    def close(self) -> None:
        """Let go of what the source holds open. Entries and contents are of no use afterwards."""


def shown(path: bytes) -> str:
    """Spell a path of any bytes on one line of a terminal; the root is ``.``."""
    text = path.decode("utf-8", "backslashreplace") or "."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def refusal(
    path: bytes,
    what: str,
    *,
    expected: object = None,
    found: object = None,
    hint: str | None = None,
    kind: type[BuildError] = BuildError,
) -> BuildError:
    """Make the error that says why ``path`` cannot become part of an image."""
    return kind(what, expected=expected, found=found, where=Where(path=shown(path)), hint=hint)


def check_name(path: bytes, name: bytes) -> None:
    """Refuse what cannot be the last component of ``path``, with BuildError."""
    if len(name) > FILE_NAME_BYTES_MAX:
        raise refusal(
            path, "a file name is too long", expected=f"at most {FILE_NAME_BYTES_MAX} bytes", found=len(name)
        )
    if name in {b"", b".", b".."} or b"\0" in name or b"/" in name:
        raise refusal(path, "not a file name", found=repr(shown(name)))


def check_xattr(path: bytes, name: bytes, value: bytes) -> None:
    """Refuse an extended attribute that EROFS has no way to say, with BuildError."""
    if name not in {POSIX_ACL_ACCESS, POSIX_ACL_DEFAULT}:
        namespace, dot, suffix = name.partition(b".")
        if namespace + dot not in _XATTR_NAMESPACES or not suffix or b"\0" in name:
            raise refusal(
                path,
                f"extended attribute {shown(name)} cannot be stored",
                expected="user.*, trusted.*, security.* or a POSIX ACL",
                hint=NO_XATTRS_HINT,
            )
        if len(suffix) > _XATTR_SUFFIX_BYTES_MAX:
            raise refusal(
                path,
                f"the name of extended attribute {shown(name[:80])} is too long",
                expected=f"at most {_XATTR_SUFFIX_BYTES_MAX} bytes after the first dot",
                found=len(suffix),
                hint=NO_XATTRS_HINT,
            )
    if len(value) > XATTR_VALUE_BYTES_MAX:
        raise refusal(
            path,
            f"extended attribute {shown(name)} is too long",
            expected=f"at most {XATTR_VALUE_BYTES_MAX} bytes",
            found=len(value),
            hint=NO_XATTRS_HINT,
        )
