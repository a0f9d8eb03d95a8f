"""How a mount was made, as it is told to the next server: what comes out is what went in."""

import json
import os
from dataclasses import fields, replace
from pathlib import Path

import pytest

from rafsfs.cli import upgrade
from rafsfs.cli.handover import check_readable_again, packed, unpacked
from rafsfs.cli.mount import MountRequest
from rafsfs.cli.options import ImageAccess
from rafsfs.cli.upgrade import _replaced
from rafsfs.errors import KeyFileError, MountError
from rafsfs.store.settings import StoreSettings

REQUEST = MountRequest(
    image="/images/tree:v2",
    directory=Path("/mnt"),
    access=ImageAccess(
        keys=(Path("/a/key"), Path(os.fsdecode(b"/odd \xff key"))),
        passphrase_file=Path("/a/phrase"),
        verify_keys=(Path("/a/public"),),
        min_release=7,
        digest="sha256:" + "a" * 64,
        cache_bytes=12345,
        stores=StoreSettings(ca_file=Path("/a/ca"), mirrors=("https://mirror.example",), deadline_s=1.5),
    ),
    allow_other=True,
    uid=0,
    flags=frozenset({"noexec", "suid"}),
    frontend="erofs",
    foreground=True,
    log_file=Path("/var/log/tree"),
    log_json=True,
)


@pytest.mark.parametrize("request_", [REQUEST, MountRequest("/i:latest", Path("/m"), ImageAccess())])
def test_what_comes_out_is_what_went_in(request_):
    assert unpacked(json.loads(json.dumps(packed(request_)))) == request_


def test_names_hold_in_every_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    access = ImageAccess(keys=(Path("key"), Path("../key")), passphrase_file=Path("-"))
    found = unpacked(packed(MountRequest("i", Path("m"), access)))
    assert found.directory == tmp_path / "m"
    assert found.access.keys == (tmp_path / "key", tmp_path.parent / "key")
    assert found.access.passphrase_file == Path("-")


@pytest.mark.parametrize(
    "bend",
    [
        lambda found: found.update(novelty=1),
        lambda found: found["access"].update(novelty=1),
        lambda found: found["access"]["stores"].update(novelty=1),
        lambda found: found.pop("access"),
        lambda found: found.pop("image"),
        lambda found: found.update(access=[]),
        lambda found: found["access"].update(stores=None),
        lambda found: found.update(directory={"path": 7}),
        lambda found: found.update(flags={"set": 7}),
    ],
)
def test_what_another_release_says_is_refused(bend):
    found = packed(REQUEST)
    bend(found)
    with pytest.raises(MountError, match="does not know"):
        unpacked(found)


@pytest.mark.parametrize(
    ("access", "named"),
    [
        (ImageAccess(keys=(Path("-"),)), "-"),
        (ImageAccess(keys=(Path("/a"), Path("/dev/fd/7"))), "/dev/fd/7"),
        (ImageAccess(verify_keys=(Path("/proc/self/fd/3"),)), "/proc/self/fd/3"),
        (ImageAccess(passphrase_file=Path("/dev/stdin")), "/dev/stdin"),
        (ImageAccess(ask_passphrase=True), "--passphrase"),
    ],
)
def test_what_gives_keys_only_once_is_refused(access, named):
    with pytest.raises(KeyFileError, match="what to do") as raised:
        check_readable_again(access, "what to do")
    assert raised.value.found == named
    check_readable_again(REQUEST.access, "nothing")


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({"cache_bytes"}, lambda access: replace(access, cache_bytes=1)),
        ({"min_release", "digest"}, lambda access: replace(access, min_release=None, digest=None)),
        ({"node_cache"}, lambda access: in_stores(access, cache_folder=Path("/c"))),
        ({"node_cache_bytes"}, lambda access: in_stores(access, cache_bytes=2)),
        ({"deadline_s", "mirrors"}, lambda access: in_stores(access, deadline_s=3.0, mirrors=())),
        (set(), lambda access: access),
    ],
)
def test_only_what_is_given_is_replaced(given, changed):
    now = ImageAccess(
        cache_bytes=1,
        stores=StoreSettings(cache_folder=Path("/c"), cache_bytes=2, deadline_s=3.0),
    )
    assert _replaced(REQUEST.access, now, frozenset(given)) == changed(REQUEST.access)


def in_stores(access, **values):
    return replace(access, stores=replace(access.stores, **values))


def test_every_option_on_images_can_replace_the_mount_s():
    options = {option.name for option in upgrade.command.params} - {"directory", "image"}
    own = {field.name for field in fields(ImageAccess)} - {"stores"}
    assert options <= own | set(upgrade._STORE_FIELDS)
