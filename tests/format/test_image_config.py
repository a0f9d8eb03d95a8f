"""The OCI image config: read with all its fields or refused, and how much of it is shown."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.errors import DigestMismatch, FormatError, LimitExceeded, RafsError
from rafsfs.format.image_config import check_visible, parse_image_config, sealed_part, visible_part
from rafsfs.limits import OCI_JSON_BYTES_MAX

SETTINGS = {
    "User": "1000:users",
    "Env": ["PATH=/bin", "A="],
    "Entrypoint": ["/bin/sh", "-c"],
    "Cmd": ["true"],
    "WorkingDir": "/srv",
    "StopSignal": "SIGINT",
    "Volumes": {"/data": {}},
    "Labels": {"a": "b"},
}
DOCUMENT = {
    "architecture": "arm64",
    "variant": "v8",
    "os": "linux",
    "author": "nobody",
    "config": SETTINGS,
    "rootfs": {"type": "layers", "diff_ids": ["sha256:" + "0" * 64]},
    "history": [{"created_by": "make"}],
}


def packed(value):
    return json.dumps(value).encode()


def test_all_fields():
    config = parse_image_config(packed(DOCUMENT))
    assert (config.architecture, config.os, config.user) == ("arm64", "linux", "1000:users")
    assert config.env == ("PATH=/bin", "A=")
    assert config.entrypoint + config.cmd == ("/bin/sh", "-c", "true")
    assert (config.working_dir, config.stop_signal) == ("/srv", "SIGINT")
    assert config.volumes == ("/data",) and config.labels == {"a": "b"}
    assert config.document == {name: value for name, value in DOCUMENT.items() if name != "rootfs"}


@pytest.mark.parametrize(
    "empty", [{}, {"config": None}, {"config": {"Env": None, "Volumes": None, "User": None}}]
)
def test_what_is_not_said_is_empty(empty):
    config = parse_image_config(packed(empty))
    assert (config.user, config.env, config.cmd, config.volumes) == ("", (), (), ())


@pytest.mark.parametrize(
    "settings",
    [
        [],
        {"Env": "A=b"},
        {"Env": [1]},
        {"Env": ["A=\0"]},
        {"User": 0},
        {"Cmd": {}},
        {"Labels": {"a": 1}},
        {"Volumes": ["/data"]},
        {"WorkingDir": "/a\0b"},
    ],
)
def test_malformed(settings):
    if settings == []:
        settings = ["a"]
    with pytest.raises(FormatError, match="image config"):
        parse_image_config(packed({"config": settings}))


def test_too_long():
    with pytest.raises(LimitExceeded):
        parse_image_config(b" " * (OCI_JSON_BYTES_MAX + 1))


def test_environment_is_not_in_the_repr():
    assert "PATH" not in repr(parse_image_config(packed(DOCUMENT)).document["architecture"])
    assert "created_by" not in repr(parse_image_config(packed(DOCUMENT)))


def test_hidden_config_shows_the_platform_alone():
    shown = visible_part(sealed_part(DOCUMENT), public=False)
    assert shown == {"architecture": "arm64", "variant": "v8", "os": "linux", "config": {}}
    check_visible(shown | {"rootfs": {}}, sealed_part(DOCUMENT))


def test_public_config_shows_all_but_layers():
    shown = visible_part(sealed_part(DOCUMENT), public=True)
    assert shown["config"] == SETTINGS and shown["author"] == "nobody" and "history" not in shown
    check_visible(shown | {"rootfs": {}}, sealed_part(DOCUMENT))


def test_visible_config_that_says_something_else():
    shown = visible_part(sealed_part(DOCUMENT), public=True)
    shown["config"] = SETTINGS | {"Entrypoint": ["/bin/evil"]}
    with pytest.raises(DigestMismatch, match="visible config"):
        check_visible(shown, sealed_part(DOCUMENT))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(SETTINGS, JSON)))
def test_any_json_is_read_or_refused(settings):
    try:
        config = parse_image_config(packed({"config": settings}))
    except RafsError:
        return
    assert all(isinstance(item, str) for item in (*config.env, *config.cmd, *config.volumes))
