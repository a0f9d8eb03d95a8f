"""ACLs in words, against what the kernel makes of them by way of setfacl."""

import grp
import os
import pwd
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rafsfs.build.acl import acl_from_text, acl_mode
from rafsfs.errors import BuildError

OBJ = "ffffffff"
# user::rw- user:33:r-- group::r-- group:7:--x mask::r-x other::---
XATTR = bytes.fromhex(
    f"0200000001000600{OBJ}020004002100000004000400{OBJ}080001000700000010000500{OBJ}20000000{OBJ}"
)

SPELLINGS = [
    b"user::rw-\nuser:33:r--\ngroup::r--\ngroup:7:--x\nmask::r-x\nother::---\n",
    b"user::rw-,user:33:r--,group::r--,group:7:--x,mask::r-x,other::---",
    b"other::---,mask::r-x,group:7:--x,group::r--,user:33:r--,user::rw-",
    b"u::rw-,u:33:r--,g::r--,g:7:--x,m::r-x,o::---",
    b"user::rw,user:33:r,group::r,group:7:x,mask:r-x,other:-",
    b"user::rw-,user:nobody-like-this:r--:33,group::r--,group:neither:--x:7,mask::r-x,other::---",
    b"user::rw-\nuser:33:r--\t#effective:r--\ngroup::r--\n# a comment\n\ngroup:7:--x\nmask::r-x\nother::---",
    b"default:user::rw-,default:user:33:r--,d:group::r--,d:group:7:--x,d:mask::r-x,default:other::---",
    b" user :: rw- , user : 33 : r--, group::r--, group:7:--x, mask::r-x, other::---",
]


@pytest.mark.parametrize("text", SPELLINGS)
def test_spelling(text):
    assert acl_from_text(text) == XATTR


def test_names_are_looked_up():
    user, group = pwd.getpwuid(0), grp.getgrgid(0)
    text = f"user::rwx,user:{user.pw_name}:r--,group::r--,group:{group.gr_name}:-w-,mask::rwx,other::---"
    numbers = "user::rwx,user:0:r--,group::r--,group:0:-w-,mask::rwx,other::---"
    assert acl_from_text(text.encode()) == acl_from_text(numbers.encode())


@pytest.mark.parametrize("text", [b"", b"\n", b"user::rwx,group::r-x,other::r--"])
def test_no_more_than_a_mode_is_no_acl(text):
    assert acl_from_text(text) == b""


MINIMAL = b"user::rwx,group::r-x,other::r--,"
REFUSED = [
    (b"user::rwx", "lacks"),
    (MINIMAL + b"user:1:r--", "no mask"),
    (MINIMAL + b"group:1:r--", "no mask"),
    (MINIMAL + b"mask::r--,user:1:r--,user:01:r--", "twice"),
    (MINIMAL + b"other::r--", "twice"),
    (MINIMAL + b"mask::rwx,user:no such account here:r--", "no account"),
    (MINIMAL + b"mask::rwx,group:\xff\xfe:r--", "no account"),
    (MINIMAL + b"mask::rwx,user:a\0b:r--", "no account"),
    (MINIMAL + b"mask::rwx,user:4294967295:r--", "out of range"),
    (MINIMAL + b"mask::rwx,user:" + b"9" * 5000 + b":r--", "out of range"),
    (MINIMAL + b"mask::rwx,user:x:r--:-1", "no account"),
    (MINIMAL + b"mask:1:rwx", "does not parse"),
    (MINIMAL + b"mask::rwx:1", "does not parse"),
    (MINIMAL + b"owner@:rwx", "does not parse"),
    (MINIMAL + b"everyone@:r-x---:fd:allow", "does not parse"),
    (MINIMAL + b"mask::rwx,user:1", "does not parse"),
    (MINIMAL + b"mask::rwx,user", "does not parse"),
    (MINIMAL + b"mask::rwx,default", "does not parse"),
    (MINIMAL + b"mask::rwx,user:1:r:2:3", "does not parse"),
    (MINIMAL + b"mask::rwx,user:1:", "permissions"),
    (MINIMAL + b"mask::rwx,user:1:s--", "permissions"),
    (MINIMAL + b"mask::rwx,user:1:rwxr", "permissions"),
    (MINIMAL + b"mask::rwx,user:1:7", "permissions"),
]


@pytest.mark.parametrize(("text", "words"), REFUSED)
def test_refused(text, words):
    with pytest.raises(BuildError, match=words) as caught:
        acl_from_text(text)
    assert str(caught.value).isprintable()


BROKEN = {
    "nothing": b"",
    "no entries": XATTR[:4],
    "version 1": b"\1" + XATTR[1:],
    "version 2, big-endian": XATTR[:4][::-1] + XATTR[4:],
    "cut off": XATTR[:-1],
    "no other": XATTR[:-8],
    "no mask": XATTR[:-16] + XATTR[-8:],
    "unknown tag": XATTR[:-8] + b"\x40" + XATTR[-7:],
    "no tag": XATTR[:-8] + b"\0" + XATTR[-7:],
    "unknown permission": XATTR[:6] + b"\x08" + XATTR[7:],
    "out of order": XATTR[:4] + XATTR[12:20] + XATTR[4:12] + XATTR[20:],
    "two owners": XATTR[:12] + XATTR[4:],
}


@pytest.mark.parametrize("xattr", BROKEN.values(), ids=BROKEN.keys())
def test_what_kernels_do_not_take_has_no_mode(xattr, tmp_path):
    with pytest.raises(BuildError, match="an ACL"):
        acl_mode(xattr)
    if xattr[4:]:  # kernels take nothing to mean that there shall be none
        with pytest.raises(OSError, match=r"Invalid argument|not supported"):
            os.setxattr(tmp_path, "system.posix_acl_access", xattr)


@given(st.binary(max_size=200) | st.text("ugmo:,rwx-#d1\n ", max_size=60).map(str.encode))
def test_nothing_but_a_build_error_comes_out(text):
    try:
        xattr = acl_from_text(text)
    except BuildError:
        return
    assert xattr == b"" or len(xattr) % 8 == 4


PERMISSIONS = st.integers(0, 7).map(
    lambda bits: "".join(c if bits >> i & 1 else "-" for i, c in enumerate("xwr"))[::-1]
)
NAMED = st.dictionaries(st.integers(0, 2**32 - 2) | st.integers(0, 50), PERMISSIONS, max_size=5)


@settings(max_examples=30)
@given(NAMED, NAMED, st.lists(PERMISSIONS, min_size=4, max_size=4), st.booleans())
def test_kernel_agrees(tmp_path_factory, users, groups, others, is_default):
    owner, group, mask, other = others
    entries = [f"user::{owner}", f"group::{group}", f"mask::{mask}", f"other::{other}"]
    entries += [f"user:{number}:{bits}" for number, bits in users.items()]
    entries += [f"group:{number}:{bits}" for number, bits in groups.items()]
    folder = tmp_path_factory.mktemp("acl")
    subprocess.run(
        ["setfacl", *(["-d"] if is_default else []), "--set", ",".join(entries), folder], check=True
    )
    kernels = os.getxattr(folder, "system.posix_acl_default" if is_default else "system.posix_acl_access")
    assert acl_from_text(",".join(entries).encode()) == kernels
    if not is_default:
        assert acl_mode(kernels) == folder.stat().st_mode & 0o777
    said = subprocess.run(
        ["getfacl", "-cpE", "-d" if is_default else "-a", folder], check=True, capture_output=True
    )
    assert acl_from_text(said.stdout) == kernels  # with names for those who have accounts
