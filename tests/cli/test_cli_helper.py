"""Putting the helper where mount(8) looks, and taking it away, without touching what is somebody else's."""

import sys

import pytest
from click.testing import CliRunner

from rafsfs.cli.helper import NAME, command
from rafsfs.errors import MountError


@pytest.fixture
def installation(tmp_path, monkeypatch):
    """An installation of rafsfs, as far as its helper goes."""
    script = tmp_path / "bin" / NAME
    script.parent.mkdir()
    script.touch()
    monkeypatch.setattr(sys, "executable", str(script.with_name("python")))
    (tmp_path / "sbin").mkdir()
    return script


@pytest.fixture
def link(installation, tmp_path):
    return tmp_path / "sbin" / NAME


def helper(verb, link):
    return CliRunner().invoke(
        command, [verb, "--sbin", str(link.parent)], catch_exceptions=False, standalone_mode=False
    )


def test_install_twice_and_remove_twice(installation, link):
    assert helper("install", link).output == f"installed {link} -> {installation}\n"
    assert link.readlink() == installation
    assert helper("install", link).output == f"{link} is installed already\n"
    assert helper("remove", link).output == f"removed {link}\n"
    assert not link.is_symlink()
    assert helper("remove", link).output == f"{link} is not installed\n"


def test_an_installation_that_is_gone_is_replaced(installation, link):
    link.symlink_to(f"/gone/bin/{NAME}")
    helper("install", link)
    assert link.readlink() == installation


@pytest.mark.parametrize(
    "make", [lambda link: link.write_text("mine"), lambda link: link.symlink_to("/bin/true")]
)
def test_what_is_not_ours_is_left_alone(link, make):
    make(link)
    before = link.lstat()
    with pytest.raises(MountError, match="place is taken"):
        helper("install", link)
    with pytest.raises(MountError, match="not rafsfs' helper"):
        helper("remove", link)
    assert link.lstat().st_ino == before.st_ino


def test_without_an_installation_there_is_nothing_to_link_to(installation, link):
    installation.unlink()
    with pytest.raises(MountError, match="not installed"):
        helper("install", link)
    assert not link.is_symlink()
