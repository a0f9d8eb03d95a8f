"""What becomes of an image's config in a container: user, environment, arguments, network."""

import json

import pytest
from support.images import build, opened
from support.trees import Planned, PlannedSource, Segment

from rafsfs.errors import FormatError, LimitExceeded, MountError
from rafsfs.format.erofs import FileType
from rafsfs.format.image_config import parse_image_config
from rafsfs.frontends import container_user
from rafsfs.frontends.container_spec import ContainerOptions, runtime_spec
from rafsfs.frontends.container_user import ContainerUser, find_user
from rafsfs.frontends.library import Image

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
# a comment:x:1:1::/:
daemon:x:1:1::/var:/none
app:x:1000:100:An app:/home/app:/bin/sh
homeless:x:1001:100:::
short:x:1
evil:x:-1:0::/:
evil:x:99999999999:0::/:
"""
GROUP = b"""root:x:0:
users:x:100:
audio:x:29:app,homeless
video:x:44:other,app
broken:x:what:app
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    root = tmp_path_factory.mktemp("tree")
    (root / "etc").mkdir()
    (root / "etc/passwd").write_bytes(PASSWD)
    (root / "etc/group").write_bytes(GROUP)
    with opened(build(root, root.parent / "users-layout")) as sealed:
        yield Image(sealed)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ContainerUser(0, 0, (), "/root")),
        ("0", ContainerUser(0, 0, (), "/root")),
        ("app", ContainerUser(1000, 100, (29, 44), "/home/app")),
        ("1000", ContainerUser(1000, 100, (29, 44), "/home/app")),
        ("app:audio", ContainerUser(1000, 29, (), "/home/app")),
        ("app:7", ContainerUser(1000, 7, (), "/home/app")),
        ("homeless", ContainerUser(1001, 100, (29,), "/")),
        ("4711", ContainerUser(4711, 0, (), "/")),
        ("4711:users", ContainerUser(4711, 100, (), "/")),
    ],
)
def test_users(image, text, expected):
    assert find_user(image, text) == expected


@pytest.mark.parametrize("text", ["nobody", "app:none", "short", "evil", "-1", "4294967295", "1e3", "٣"])
def test_unknown_users_are_refused(image, text):
    with pytest.raises(MountError, match="the image knows no such"):
        find_user(image, text)


def test_image_without_accounts(tmp_path):
    source = PlannedSource((Planned(b"", FileType.DIRECTORY),))
    with opened(build(source, tmp_path / "layout")) as sealed:
        assert find_user(Image(sealed), "") == ContainerUser(0, 0, (), "/")
        with pytest.raises(MountError):
            find_user(Image(sealed), "app")


def test_endless_passwd_is_refused(tmp_path, monkeypatch):
    plan = (
        Planned(b"", FileType.DIRECTORY),
        Planned(b"etc", FileType.DIRECTORY),
        Planned(b"etc/passwd", FileType.REGULAR, segments=(Segment(1 << 34, None),)),
    )
    with opened(build(PlannedSource(plan), tmp_path / "layout")) as sealed, pytest.raises(LimitExceeded):
        find_user(Image(sealed), "app")


def test_user_of_too_many_groups(image, monkeypatch):
    monkeypatch.setattr(container_user, "ACCOUNT_GROUPS_MAX", 1)
    with pytest.raises(LimitExceeded):
        find_user(image, "app")


ROOT = ContainerUser(0, 0, (), "/root")


def spec(settings=None, user=ROOT, **options):
    config = parse_image_config(json.dumps({"config": settings or {"Cmd": ["true"]}}).encode())
    return runtime_spec(config, user, ContainerOptions(**options), annotations={})


def test_command_replaces_cmd_and_not_entrypoint():
    settings = {"Entrypoint": ["/entry", "-x"], "Cmd": ["default"]}
    assert spec(settings)["process"]["args"] == ["/entry", "-x", "default"]
    assert spec(settings, command=("a", "b"))["process"]["args"] == ["/entry", "-x", "a", "b"]
    with pytest.raises(MountError, match="what to run"):
        spec({"Cmd": []})


def test_environment_of_image_and_caller():
    settings = {"Cmd": ["x"], "Env": ["A=image", "B=image", "PATH=/image", "=odd", "EMPTY"]}
    env = spec(settings, env=(("B", "caller"),), hostname="box")["process"]["env"]
    assert sorted(env) == [
        "A=image",
        "B=caller",
        "EMPTY=",
        "HOME=/root",
        "HOSTNAME=box",
        "PATH=/image",
    ]
    assert any(item.startswith("PATH=/usr/local/sbin:") for item in spec()["process"]["env"])
    assert any(item.startswith("TERM=") for item in spec(terminal=True)["process"]["env"])


def test_working_directory():
    assert spec()["process"]["cwd"] == "/"
    assert spec({"Cmd": ["x"], "WorkingDir": "/srv"})["process"]["cwd"] == "/srv"
    assert spec({"Cmd": ["x"], "WorkingDir": "/srv"}, working_dir="/tmp")["process"]["cwd"] == "/tmp"
    with pytest.raises(MountError, match="absolute"):
        spec({"Cmd": ["x"], "WorkingDir": "srv"})


def test_only_root_holds_capabilities():
    held = spec()["process"]["capabilities"]
    assert held["effective"] == held["bounding"] and "CAP_SYS_ADMIN" not in held["bounding"]
    assert len(held["bounding"]) == 14
    assert spec(user=ContainerUser(1, 1, (2,), "/"))["process"]["capabilities"]["effective"] == []


def test_network_is_its_own_or_the_hosts():
    own, host = spec(), spec(network="host")
    assert {"type": "network"} in own["linux"]["namespaces"]
    assert {"type": "network"} not in host["linux"]["namespaces"]
    assert not any(mount["destination"].startswith("/etc") for mount in own["mounts"])
    assert {"allow": False, "access": "rwm"} in own["linux"]["resources"]["devices"]


def test_malformed_config_is_refused():
    with pytest.raises(FormatError):
        spec({"Cmd": "sh"})
