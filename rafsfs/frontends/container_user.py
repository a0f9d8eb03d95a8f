"""Who a container runs as: names from the image's own passwd(5) and group(5), never this system's."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rafsfs.errors import LimitExceeded, MountError
from rafsfs.frontends.library import Image
from rafsfs.limits import ACCOUNT_FILE_BYTES_MAX, ACCOUNT_GROUPS_MAX

_ID_MAX = 2**32 - 2  # (uid_t)-1 means 'nobody in particular': chown(2)


@dataclass(frozen=True, slots=True)
class ContainerUser:
    """What becomes of ``User`` in an image's config. ``home`` is ``/`` where nothing is known."""

    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str


def find_user(image: Image, user: str) -> ContainerUser:
    """Read ``USER[:GROUP]``, each a name or a number; empty is root.

    As in runc and Docker: without a group it is the user's own with the groups he is a member of; a number
    need not be known. Raises MountError for a name that the image does not know, and what reading raises.
    """
    name, _, group = user.partition(":")
    account = _account(image, name or "0")
    if group:
        return ContainerUser(account.uid, _group(image, group), (), account.home)
    groups = tuple(_memberships(image, account.name)) if account.name else ()
    return ContainerUser(account.uid, account.gid, groups, account.home)


@dataclass(frozen=True, slots=True)
class _Account:
    name: str
    uid: int
    gid: int
    home: str


def _account(image: Image, wanted: str) -> _Account:
    number = _number(wanted)
    for fields in _lines(image, "/etc/passwd", 7):
        uid, gid = _number(fields[2]), _number(fields[3])
        if uid is not None and gid is not None and (fields[0] == wanted or uid == number):
            return _Account(fields[0], uid, gid, fields[5] or "/")
    if number is None:
        raise MountError(
            "the image knows no such user", found=repr(wanted), hint="give a number with --user, or another"
        )
    return _Account("", number, 0, "/")


def _group(image: Image, wanted: str) -> int:
    number = _number(wanted)
    if number is not None:
        return number
    for fields in _lines(image, "/etc/group", 4):
        if fields[0] == wanted and (gid := _number(fields[2])) is not None:
            return gid
    raise MountError("the image knows no such group", found=repr(wanted), hint="give a number with --user")


def _memberships(image: Image, name: str) -> Iterator[int]:
    count = 0
    for fields in _lines(image, "/etc/group", 4):
        if name in fields[3].split(",") and (gid := _number(fields[2])) is not None:
            count += 1
            if count > ACCOUNT_GROUPS_MAX:
                raise LimitExceeded("groups of a user", expected=f"at most {ACCOUNT_GROUPS_MAX}")
            yield gid


def _number(text: str) -> int | None:
    if text.isascii() and text.isdigit() and len(text) <= 10 and int(text) <= _ID_MAX:
        return int(text)
    return None


def _lines(image: Image, path: str, count: int) -> Iterator[list[str]]:
    """Give the fields of each line that has enough of them; none when there is no such file."""
    try:
        with image.open(path) as file:
            data = file.read(ACCOUNT_FILE_BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return
    if len(data) > ACCOUNT_FILE_BYTES_MAX:
        raise LimitExceeded("file is too long", expected=f"at most {ACCOUNT_FILE_BYTES_MAX} bytes").at(
            path=path
        )
    for line in data.decode("utf-8", "replace").split("\n"):
        fields = line.strip().split(":")
        if len(fields) >= count and not line.startswith("#"):
            yield fields
