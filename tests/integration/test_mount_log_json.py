"""``rafsfs mount --log-json``: every line of a real mount's log is a JSON object, damage taken apart."""

import errno
import json
import os

import pytest
from support.images import KEY, build
from support.mounts import chunk_place, flip, mounting, read_error, wait_for_lines

from rafsfs.trust.keys import save_key

pytestmark = [pytest.mark.integration, pytest.mark.requires_root]


@pytest.mark.parametrize("frontend", ["devfuse", "pyfuse3"])
def test_every_line_is_an_object(tmp_path, frontend):
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "odd\n\x1b[31m").write_bytes(os.urandom(10_000))
    reference = build(tmp_path / "tree", tmp_path / "image")
    file, chunk, offset, _ = chunk_place(reference, b"odd\n\x1b[31m")
    flip(file, offset)
    save_key(KEY, tmp_path / "key")
    log = tmp_path / "log"
    words = ["--key", tmp_path / "key", "--log-file", log, "--log-json", "--frontend", frontend]
    with mounting(tmp_path / "image", tmp_path / "m", *words) as directory:
        assert read_error(directory / "odd\n\x1b[31m") == errno.EIO
        (line,) = wait_for_lines(log, '"level": "error"')
    lines = log.read_text().splitlines()
    objects = [json.loads(text) for text in lines]
    assert all(text.isascii() and text.isprintable() for text in lines)
    assert objects[0]["message"].startswith("serving ")
    damage = json.loads(line)
    assert "; met in /odd\n\x1b[31m (inode " in damage["message"]
    assert damage["error"]["blob"] == f"sha256:{file.name}"
    assert (damage["error"]["chunk"], damage["error"]["offset"]) == (chunk, offset)
    assert damage["error"]["type"] in ("DigestMismatch", "MacMismatch")
