"""The helper of mount(8): how its command line becomes a mount request, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.cli import mount_helper
from rafsfs.cli.mount import MountRequest
from rafsfs.cli.mount_helper import mount, parse_options, request_of
from rafsfs.cli.options import ImageAccess
from rafsfs.errors import MountError
from rafsfs.store.settings import StoreSettings


def request(text, **options):
    return request_of("img", "/mnt", parse_options(text, **options))


STORES = StoreSettings(cache_folder=Path("/caches/rafsfs"))
PLAIN = MountRequest("img", Path("/mnt"), ImageAccess(stores=STORES))


@pytest.fixture(scope="module", autouse=True)
def caches():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", "/caches")
        yield


def test_everything_at_once():
    text = (
        "ro,key=/k1,key=/k2,passphrase_file=/p,verify_key=/v,min_release=3,digest=sha256:aa,cache_size=64M,"
        "allow_other,uid=0,gid=4294967294,log_file=/l,log_level=debug,log_json,noexec,suid"
    )
    access = ImageAccess((Path("/k1"), Path("/k2")), Path("/p"), (Path("/v"),), 3, "sha256:aa", 64 << 20)
    assert request(text) == MountRequest(
        "img",
        Path("/mnt"),
        access,
        allow_other=True,
        uid=0,
        gid=2**32 - 2,
        flags=frozenset(("noexec", "suid")),
        log_file=Path("/l"),
        log_level="debug",
        log_json=True,
    )


@pytest.mark.parametrize(
    "text",
    [
        "",
        "rw",
        "ro",
        ",,ro,,",
        "rw,noatime,defaults,noauto,nofail,_netdev,user,users,owner,x-systemd.automount,x-gvfs-show,comment=x",
        "ro,user=somebody,X-mount.mkdir,relatime,default_permissions,subtype=rafsfs,uhelper=x",
    ],
)
def test_what_means_nothing_is_ignored(text):
    assert request(text) == PLAIN


def test_dashes_are_as_good_as_underscores():
    assert request("allow-other,cache-size=1G,log-file=/l,verify-key=/v") == replace(
        PLAIN,
        allow_other=True,
        log_file=Path("/l"),
        access=ImageAccess(verify_keys=(Path("/v"),), cache_bytes=2**30),
    )


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("ro,rw", "an image cannot be mounted for writing: option rw"),
        ("key=/k,rw", "an image cannot be mounted for writing"),
        ("ro,kye=/k", "unknown mount option: kye=/k; known are key=FILE"),
        ("ro,key", "a mount option has no value: key"),
        ("ro,key=", "a mount option has no value: key="),
        ("ro,uid=", "a mount option has no value"),
        ("ro,uid=root", "mount option uid: expected a number up to 4294967294, found root"),
        ("ro,gid=-1", "mount option gid"),
        ("ro,uid=4294967295", "mount option uid"),
        ("ro,uid=²", "mount option uid"),
        ("ro,min_release=1.5", "mount option min_release"),
        ("ro,cache_size=all", "mount option cache_size: 'all' is not a size"),
        ("ro,log_level=all", "unknown log level: expected debug or info or warning or error, found all"),
        ("ro,remount", "unknown mount option: remount"),
        ("ro,mirror=https://m,mirror=foo", "mount option mirror: it is no URL of a server"),
        ("ro,proxy=http://carol:secret@host", "mount option proxy: a login in it would be seen"),
    ],
)
def test_refused(text, complaint):
    with pytest.raises(MountError) as raised:
        request(text)
    assert str(raised.value).startswith(complaint)


def test_sloppy_takes_what_is_not_known_but_not_what_is_wrong():
    assert request("ro,kye=/k,remount", sloppy=True) == PLAIN
    with pytest.raises(MountError):
        request("ro,rw", sloppy=True)
    with pytest.raises(MountError):
        request("ro,uid=root", sloppy=True)


@given(st.text())
def test_any_text_is_a_request_or_a_mount_error(text):
    try:
        assert isinstance(request(text), MountRequest)
    except MountError as error:
        assert str(error)


@pytest.fixture
def asked(monkeypatch):
    """What the helper would mount, and what it would only check, for root."""
    monkeypatch.setattr(mount_helper.os, "geteuid", lambda: 0)
    found = {"mount": [], "check": []}
    monkeypatch.setattr(mount_helper, "mount_image", found["mount"].append)
    monkeypatch.setattr(mount_helper, "check_only", found["check"].append)
    return found


@pytest.mark.parametrize(
    "arguments",
    [
        ["img", "/mnt", "-o", "ro,key=/k"],
        ["-o", "ro,key=/k", "img", "/mnt"],
        ["img", "/mnt", "-n", "-v", "-o", "ro", "-o", "key=/k", "-t", "fuse.rafsfs"],
        ["img", "/mnt", "-s", "-o", "ro,key=/k,what=ever"],
    ],
)
def test_command_lines_of_mount(arguments, asked):
    assert mount(arguments) == 0
    expected = replace(PLAIN, access=ImageAccess(keys=(Path("/k"),)), flags=frozenset(("suid", "dev")))
    assert asked == {"mount": [expected], "check": []}


@pytest.mark.parametrize(
    ("text", "user", "flags"),
    [
        ("ro", 0, {"suid", "dev"}),
        ("ro,nosuid", 0, {"nosuid", "dev"}),
        ("ro,nodev,nosuid,noexec", 0, {"nodev", "nosuid", "noexec"}),
        ("ro,suid,exec", 0, {"suid", "dev", "exec"}),
        ("ro", 1000, set()),
        ("ro,noexec,nosuid,nodev,user", 1000, {"noexec", "nosuid", "nodev"}),
    ],
)
def test_flags_mean_what_they_mean_to_mount(text, user, flags, asked, monkeypatch):
    monkeypatch.setattr(mount_helper.os, "geteuid", lambda: user)
    assert mount(["img", "/mnt", "-o", text]) == 0
    assert asked["mount"][0].flags == flags


def test_a_fake_mount_only_checks(asked):
    assert mount(["img", "/mnt", "-f", "-o", "ro,nosuid,nodev"]) == 0
    assert asked == {"mount": [], "check": [replace(PLAIN, flags=frozenset(("nosuid", "nodev")))]}


def test_another_namespace_is_refused(asked):
    with pytest.raises(MountError, match="another namespace"):
        mount(["img", "/mnt", "-N", "/proc/1/ns/mnt", "-o", "ro"])
    assert asked == {"mount": [], "check": []}


@pytest.mark.parametrize(
    "arguments", [[], ["img"], ["img", "/mnt", "more"], ["-z", "img", "/mnt"], ["img", "/mnt", "-o"]]
)
def test_other_command_lines_are_wrong_usage(arguments, asked, capsys):
    assert mount(arguments) == 2
    assert "mount -t fuse.rafsfs IMAGE DIR" in capsys.readouterr().err
    assert asked == {"mount": [], "check": []}
