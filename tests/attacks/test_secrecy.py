"""What stored bytes tell whoever has no key, and who could confirm a guess (promises 4, 6)."""

import base64
import hashlib
import hmac
import os
import random
from itertools import product

import pytest
import zstandard
from attacks.conftest import ENCRYPTING, MTIME_NS
from attacks.surgery import KEY, Bootstrap, opened, stored_files, take
from blake3 import blake3
from support.images import build

from rafsfs.build.encode import Encoder
from rafsfs.format.blob import TOC_ENTRY, parse_footer
from rafsfs.format.bootstrap import PAGE_ENTRY
from rafsfs.format.chunk import Codec, Suite, chunk_aad
from rafsfs.trust.derive import convergent_chunk_key, convergent_image_key, convergent_key
from rafsfs.trust.keys import SymmetricKey

SECRET = SymmetricKey(bytes(range(200, 232)))
OTHER_SECRET = SymmetricKey(bytes(range(201, 233)))
NAME = "a-name-that-nobody-else-has"
TARGET = "a/target-that-nobody-else-has"
XATTR = b"an-attribute-that-nobody-else-has"
NOISE = random.Random(5).randbytes(4096)
"""Nothing in it compresses, so it would be found in stored bytes as it is."""


@pytest.fixture(params=ENCRYPTING, ids=lambda suite: suite.name)
def suite(request):
    return request.param


def telling_tree(folder, noise=NOISE):
    (folder / NAME).mkdir(parents=True)
    (folder / NAME / "whole").write_bytes(noise)
    (folder / NAME / "small").write_bytes(noise[:1999])
    (folder / NAME / "tiny").write_bytes(noise[:99])
    (folder / NAME / "link").symlink_to(TARGET)
    os.setxattr(folder / NAME / "small", b"user." + XATTR, noise[:40])
    for path in [*sorted(folder.rglob("*")), folder]:
        os.chown(path, 123456, 654321, follow_symlinks=False)
        os.utime(path, ns=(MTIME_NS, MTIME_NS), follow_symlinks=False)
    return folder


def everything_stored(reference):
    return b"\0".join(path.read_bytes() for path in stored_files(reference.folder))


# --- Without a key ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dedup_secret", [None, SECRET], ids=["private", "convergent"])
@pytest.mark.parametrize("level", [None, 3], ids=["stored", "compressed"])
def test_nothing_of_the_tree_is_in_the_stored_bytes(suite, dedup_secret, level, tmp_path):
    tree = telling_tree(tmp_path / "tree")
    reference = build(
        tree, tmp_path / "image", suite=suite, dedup_secret=dedup_secret, zstd_level=level, chunk_size=4096
    )
    stored = everything_stored(reference)
    for telling in (
        *(NOISE[start : start + 16] for start in range(0, len(NOISE), 16)),
        *(NAME[:12].encode(), TARGET[:12].encode(), XATTR[:12], b"whole", b"small", b"tiny", b"link"),
        *((123456).to_bytes(4, "little"), (654321).to_bytes(4, "little")),
        (MTIME_NS // 10**9).to_bytes(8, "little"),
    ):
        assert telling not in stored
    with opened(reference) as image:
        assert len(list(image.filesystem.walk())) == 6


def test_the_same_search_finds_it_all_where_nothing_is_encrypted(tmp_path):
    """So that the test above can fail."""
    tree = telling_tree(tmp_path / "tree")
    reference = build(tree, tmp_path / "image", suite=Suite.INTEGRITY_ONLY, zstd_level=None, chunk_size=4096)
    bootstrap = take(reference).bootstrap
    pages = b"".join(
        zstandard.decompress(bootstrap.pages[entry.encoded_offset :][: entry.encoded_length])
        for entry in PAGE_ENTRY.iter_unpack(bootstrap.page_table)
    )
    assert NOISE in everything_stored(reference)
    assert NAME[:12].encode() in pages and TARGET[:12].encode() in pages and XATTR[:12] in pages


def derived_values(plain):
    """Digests of a plain piece, of the compressed piece, and of what is made of them."""
    payloads = {plain}
    for level in (1, 3, 19):
        payloads.add(zstandard.ZstdCompressor(level=level, write_content_size=True).compress(plain))
    for payload in payloads:
        digests = [
            blake3(payload).digest(),
            hashlib.sha256(payload).digest(),
            hashlib.sha512(payload).digest(),
        ]
        yield from digests
        for digest, suite, codec in product(digests, ENCRYPTING, Codec):
            aad = chunk_aad(suite, codec, len(plain))
            # the key derivation, by somebody who takes the secret to be empty, zero or the domain's name
            for guess in (b"", bytes(32), b"rafsfs"):
                yield hmac.digest(guess, b"rafsfs chunk" + aad + digest, "sha256")


@pytest.mark.parametrize("dedup_secret", [None, SECRET], ids=["private", "convergent"])
def test_no_digest_of_plain_data_is_in_the_stored_bytes(suite, dedup_secret, tmp_path):
    """A guess of a file cannot be confirmed by digesting it: not in bytes, hex or base64."""
    tree = telling_tree(tmp_path / "tree")
    reference = build(tree, tmp_path / "image", suite=suite, dedup_secret=dedup_secret, chunk_size=4096)
    stored = everything_stored(reference)
    guesses = [NOISE, NOISE[:999], NOISE[:999] + bytes(4096 - 999)]
    with opened(reference) as image:  # the metadata is a guess like any other
        superblock = image.opened.superblock
        guesses += [bytes(image.metadata.load(page)) for page in range(superblock.page_count)]
        guesses.append(b"".join(guesses[3:])[: superblock.erofs.length])
    for guess in guesses:
        for value in derived_values(guess):
            for part in (value, value[:16], value[:16].hex().encode(), base64.b64encode(value)[:20]):
                assert part not in stored


def test_plain_parts_of_images_of_other_content_differ_in_nothing_but_random_strings(suite, tmp_path):
    """Two contents of the same sizes: lengths, counts and offsets are the same, so they tell sizes alone."""
    shapes = []
    for seed in (1, 2):
        noise = random.Random(seed).randbytes(4096)
        tree = telling_tree(tmp_path / f"tree{seed}", noise)
        stored = take(build(tree, tmp_path / f"image{seed}", suite=suite, chunk_size=4096))
        (blob,) = stored.blobs
        head = stored.bootstrap.head
        footer = parse_footer(blob.data, len(blob.data))
        toc = blob.data[footer.toc_offset : footer.toc_offset + footer.toc_length]
        shapes.append(
            (
                [(entry.encoded_offset, entry.encoded_length) for entry in TOC_ENTRY.iter_unpack(toc)],
                head.page_count,
                head.erofs,
                head.chunk_tables,
                [(entry.size, entry.chunk_count, entry.decoded_blocks) for entry in head.blobs],
                stored.config.count(b"sha256:"),
            )
        )
    assert shapes[0] == shapes[1]


def test_lengths_do_tell(suite, tmp_path):
    """Not promised: encoded lengths are those of the compressed chunks, so a well-known file can be told."""
    text = b"".join(b"line %d of a well-known file\n" % number for number in range(3000))
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/file").write_bytes(text)
    stored = take(build(tmp_path / "tree", tmp_path / "image", suite=suite, chunk_size=4096))
    (blob,) = stored.blobs
    footer = parse_footer(blob.data, len(blob.data))
    toc = blob.data[footer.toc_offset : footer.toc_offset + footer.toc_length]
    seen = [entry.encoded_length for entry in TOC_ENTRY.iter_unpack(toc)]
    compressor = zstandard.ZstdCompressor(level=3)
    pieces = [text[start : start + 4096] for start in range(0, len(text), 4096)]
    assert seen == [len(compressor.compress(piece)) + suite.tag_bytes for piece in pieces]


def test_neighbours_in_a_dictionary_can_be_read(suite, tmp_path):
    """Not promised: small files share chunks, and a chunk is taken over whole, with its key."""
    for name, files in (
        ("old", {"shared": b"shared " * 200, "withheld": b"withheld " * 200}),
        ("new", {"shared": b"shared " * 200}),
    ):
        (tmp_path / name).mkdir()
        for file, content in files.items():
            (tmp_path / name / file).write_bytes(content)
    dictionary = build(tmp_path / "old", tmp_path / "image", "old", suite=suite)
    reference = build(tmp_path / "new", tmp_path / "image", "new", suite=suite, dictionaries=[dictionary])
    with opened(reference) as image:
        assert [path for path, _ in image.filesystem.walk()] == [b"", b"shared"]
        assert b"withheld " * 200 in image.filesystem.engine.decode(0, 0)


# --- Convergent keys ----------------------------------------------------------------------------------------


def chunk_ids(reference):
    with opened(reference) as image:
        chunks = image.filesystem.engine.blobs[0].chunks
        return [chunks.record(index).chunk_id for index in range(len(chunks))]


def test_equal_chunks_have_equal_ids_in_one_domain_and_others_in_another(suite, tmp_path):
    tree = telling_tree(tmp_path / "tree")

    def ids(name, secret):
        return chunk_ids(build(tree, tmp_path / name, suite=suite, dedup_secret=secret, chunk_size=4096))

    one, same, another, private = (
        ids(name, secret) for name, secret in (("1", SECRET), ("2", SECRET), ("3", OTHER_SECRET), ("4", None))
    )
    assert one == same and len(one) == 2
    assert not set(one) & set(another) and not set(one) & set(private)


def test_images_of_one_domain_show_what_they_share_and_of_two_nothing(suite, tmp_path):
    """Equal chunks and the domain's name are visible to everybody; between domains nothing is equal."""
    tree = telling_tree(tmp_path / "tree")
    heads = {}
    for name, secret in (("1", SECRET), ("2", SECRET), ("3", OTHER_SECRET)):
        heads[name] = take(build(tree, tmp_path / name, suite=suite, dedup_secret=secret)).bootstrap
    assert heads["1"].head == heads["2"].head and heads["1"].pages == heads["2"].pages
    assert heads["1"].head.dedup_domain == heads["2"].head.dedup_domain
    one, three = heads["1"].head, heads["3"].head
    for field in ("image_id", "dedup_domain", "key_commitment", "page_table_digest"):
        assert getattr(one, field) != getattr(three, field)
    assert not digests(heads["1"]) & digests(heads["3"])


def digests(bootstrap: Bootstrap):
    return {entry.digest for entry in PAGE_ENTRY.iter_unpack(bootstrap.page_table)}


def test_one_key_seals_one_message():
    """Levels, codecs, suites, lengths and contents in every combination: no key comes for another message."""
    k_conv = convergent_key(SECRET.raw)
    sealed = {}
    count = 0
    contents = [b"a" * 5000, b"a" * 4999, b"a" * 4096 + b"b" * 904, NOISE, NOISE[:-1], b"x", b"ab" * 3000]
    for suite, level, plain in product(ENCRYPTING, (None, 1, 2, 3, 9, 15, 19, 22), contents):
        made = Encoder(suite, level, k_conv).chunk(plain)
        message = (suite, made.codec, len(plain), bytes(made.data))
        assert sealed.setdefault(made.key, message) == message
        count += 1
    assert len(sealed) > len(contents) * len(ENCRYPTING)
    assert len(sealed) < count, "equal compressed bytes do have equal keys"


def test_one_page_key_seals_one_set_of_pages(suite, tmp_path):
    """The same tree under other levels, page sizes, names and releases: equal image keys mean equal pages."""
    tree = telling_tree(tmp_path / "tree")
    pages = {}
    options = product((1, 3, 19), (4096, 65536), (0, 7))
    for number, (level, page_size, release) in enumerate(options):
        reference = build(
            tree,
            tmp_path / str(number),
            suite=suite,
            dedup_secret=SECRET,
            zstd_level=level,
            page_size=page_size,
            release=release,
        )
        with opened(reference) as image:
            stored = take(reference).bootstrap.pages
            assert pages.setdefault(image.opened.image_key, stored) == stored
    assert 2 <= len(pages) <= 6


def test_derivations_keep_their_inputs_apart():
    """Suite, codec and length are part of what is derived from, at fixed places; so are labels."""
    k_conv = convergent_key(SECRET.raw)
    keys = {
        convergent_chunk_key(k_conv, chunk_aad(suite, codec, length), payload)
        for suite, codec, length, payload in product(ENCRYPTING, Codec, (1, 2, 256), (b"", b"a", b"b"))
    }
    assert len(keys) == 2 * 2 * 3 * 3
    image_keys = {convergent_image_key(k_conv, suite, bytes(32)) for suite in Suite}
    assert len(image_keys) == 3 and not image_keys & keys


def test_private_images_share_nothing(suite, tmp_path):
    tree = telling_tree(tmp_path / "tree")
    stored = [take(build(tree, tmp_path / name, suite=suite, chunk_size=4096)) for name in ("1", "2")]
    one, two = (set(chunks) for chunks in map(pieces_of, stored))
    assert not one & two
    assert stored[0].bootstrap.head.dedup_domain == b""


def pieces_of(stored):
    """Every aligned run of 16 bytes in the parts that are sealed or random."""
    data = b"".join(blob.data[: parse_footer(blob.data, len(blob.data)).toc_offset] for blob in stored.blobs)
    data += stored.bootstrap.pages
    return [data[start : start + 16] for start in range(0, len(data) - 15, 16)]


def test_recipients_do_not_name_their_key(suite, tmp_path):
    """A key id is a labelled digest of 32 random bytes, which nobody can guess."""
    stored = everything_stored(build(telling_tree(tmp_path / "tree"), tmp_path / "image", suite=suite))
    assert KEY.raw not in stored and KEY.key_id in stored
    for digest in (hashlib.sha256(KEY.raw).digest(), blake3(KEY.raw).digest()):
        assert digest[:16] not in stored
