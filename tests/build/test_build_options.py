"""What a build refuses before it begins, and what it tells while it goes on."""

import pytest

from rafsfs.build.builder import BuildProgress, build_image
from rafsfs.build.directory_source import DirectorySource
from rafsfs.build.options import BuildOptions
from rafsfs.errors import BuildError
from rafsfs.format.chunk import Suite
from rafsfs.limits import MIB, NAME_CHARS_MAX, PASSPHRASE_RECIPIENTS_MAX, RECIPIENTS_MAX, SIGNATURES_MAX
from rafsfs.store.reference import Reference
from rafsfs.trust.material import Ed25519SigningKey, Passphrase, SymmetricKey

KEY = SymmetricKey(bytes(range(32)))

REFUSED = {
    "nobody": ({"recipients": ()}, "nobody could open"),
    "keys for nothing": ({"suite": Suite.INTEGRITY_ONLY}, "unencrypted image has no keys"),
    "chunks of no power of two": ({"chunk_size": 3 * 4096}, "chunk size"),
    "inline files of less than nothing": ({"inline_size": -1}, "inline files"),
    "inline files that leave an inode no room": ({"inline_size": 4033}, "inline files"),
    "chunks below a block": ({"chunk_size": 2048}, "chunk size"),
    "chunks that nobody decodes": ({"chunk_size": 32 * MIB}, "chunk size"),
    "a level that zstd lacks": ({"zstd_level": 23}, "zstd level"),
    "a long name": ({"name": "x" * (NAME_CHARS_MAX + 1)}, "image name"),
    "a name of two lines": ({"name": "a\nb"}, "image name"),
    "a negative release": ({"release": -1}, "release"),
    "a release of 65 bits": ({"release": 2**64}, "release"),
    "an end beyond all time": ({"not_after": 2**41}, "not-after"),
    "many recipients": (
        {"recipients": tuple(SymmetricKey(bytes([n] * 32)) for n in range(RECIPIENTS_MAX + 1))},
        "number of recipients",
    ),
    "many passphrases": (
        {"recipients": (Passphrase(b"x"),) * (PASSPHRASE_RECIPIENTS_MAX + 1)},
        "number of passphrases",
    ),
    "many signatures": (
        {"signers": tuple(Ed25519SigningKey.generate() for _ in range(SIGNATURES_MAX + 1))},
        "number of signatures",
    ),
}


@pytest.mark.parametrize(("options", "words"), REFUSED.values(), ids=REFUSED)
def test_image_that_no_reader_would_take_is_refused_before_the_build(options, words):
    with pytest.raises(BuildError, match=words):
        BuildOptions(**{"recipients": (KEY,)} | options)


def test_the_largest_values_that_readers_take_are_allowed():
    options = BuildOptions(
        recipients=(KEY,) * RECIPIENTS_MAX,
        signers=(Ed25519SigningKey.generate(),) * SIGNATURES_MAX,
        name="x" * NAME_CHARS_MAX,
        release=2**64 - 1,
        not_after=2**40,
        chunk_size=16 * MIB,
        zstd_level=22,
    )
    assert options.suite is Suite.AES_256_GCM


def test_progress_is_told_after_every_entry_and_inside_large_files(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "large").write_bytes(bytes(range(256)) * (12 * MIB // 256))
    (tree / "small").write_bytes(b"x")
    told: list[BuildProgress] = []
    source = DirectorySource(tree)
    options = BuildOptions(recipients=(KEY,))
    build_image(source, Reference(tmp_path / "image"), options, report=told.append)
    source.close()
    assert {item.entries for item in told} == {1, 2, 3}
    inside = [item.bytes_read for item in told if item.entries == 2]
    assert inside == sorted(inside)
    assert len(set(inside)) == 12 * MIB // options.chunk_size
    assert told[-1].bytes_read == 12 * MIB + 1
