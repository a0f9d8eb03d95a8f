"""Options that commands share: sizes, and how they reach the library."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.cli.options import ImageAccess, image_options, parse_size
from rafsfs.errors import KeyFileError
from rafsfs.limits import CACHE_BYTES_DEFAULT


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("4096", 4096), ("64k", 2**16), ("256M", 2**28), ("1GiB", 2**30), ("2TB", 2**41), (" 7b ", 7)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "M", "-1", "1.5G", "1 000", "1e9", "1P", "9" * 16, "0x10", "\u0661"])
def test_no_sizes(text):
    with pytest.raises(ValueError, match="is not a size"):
        parse_size(text)


@given(st.text())
def test_a_size_is_a_number_or_a_value_error(text):
    try:
        assert parse_size(text) >= 0
    except ValueError as error:
        assert repr(text) in str(error)


@click.command()
@click.argument("image")
@image_options
@click.option("--own", is_flag=True)
def probe(image: str, access: ImageAccess, own: bool) -> None:
    """Show what arrives."""
    click.echo(repr((image, access, own)))


def shown(*arguments):
    result = CliRunner().invoke(probe, arguments)
    assert result.exit_code == 0, result.output
    return result.output.strip()


def test_nothing_given():
    assert shown("img") == repr(("img", ImageAccess(), False))
    assert ImageAccess().cache_bytes == CACHE_BYTES_DEFAULT


def test_everything_given():
    access = ImageAccess(
        keys=(Path("a"), Path("b")),
        passphrase_file=Path("p"),
        verify_keys=(Path("v"), Path("w")),
        min_release=7,
        digest="sha256:00",
        cache_bytes=2**26,
    )
    arguments = (
        "img --own --key a --key b --passphrase-file p --verify-key v --verify-key w --min-release 7 "
        "--digest sha256:00 --cache-size 64M"
    )
    assert shown(*arguments.split()) == repr(("img", access, True))


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604])
def test_a_passphrase_that_others_can_read_is_refused(tmp_path, mode):
    file = tmp_path / "passphrase"
    file.write_text("secret\n")
    file.chmod(mode)
    with pytest.raises(KeyFileError, match="others may read") as raised:
        ImageAccess(passphrase_file=file).open("nowhere")
    assert "secret\n" not in str(raised.value)


def test_a_missing_passphrase_file(tmp_path):
    with pytest.raises(KeyFileError, match=str(tmp_path / "none")):
        ImageAccess(passphrase_file=tmp_path / "none").open("nowhere")
