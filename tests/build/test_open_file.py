"""A source file that is closed by a walk that was interrupted anywhere, perhaps for the second time."""

import os

from rafsfs.build.open_file import open_regular


def test_closing_twice_closes_no_other_file(tmp_path):
    (tmp_path / "a").write_text("x")
    folder = os.open(tmp_path, os.O_RDONLY)
    file, _ = open_regular(folder, b"a", b"a")
    number = file.fd
    file.close()
    other = os.open(tmp_path / "a", os.O_RDONLY)
    assert other == number
    file.close()
    assert os.read(other, 1) == b"x"
    os.close(other)
    os.close(folder)
