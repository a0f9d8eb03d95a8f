"""Encoded chunks and pages: every way in which they are not the sealed ones, refused in the right order."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.decode import aead, pipeline
from rafsfs.decode.codec import Compressor
from rafsfs.decode.pipeline import decode_chunk, decode_page
from rafsfs.errors import DigestMismatch, FormatError, LengthMismatch, MacMismatch
from rafsfs.format.bootstrap import PageEntry, page_aad, page_nonce
from rafsfs.format.chunk import ChunkRecord, Codec, Suite, chunk_aad

PAGE_SIZE = 4096
KEY = b"k" * 32
SEALED = [Suite.AES_256_GCM, Suite.CHACHA20_POLY1305]
SUITES = [*SEALED, Suite.INTEGRITY_ONLY]


def seal_chunk(plain, suite=Suite.AES_256_GCM, codec=Codec.ZSTD, key=KEY, payload=None, aad=None):
    """An encoded chunk and the sealed record that fits it; ``payload`` and ``aad`` are for liars."""
    if payload is None:
        payload = Compressor(3).compress(plain) if codec is Codec.ZSTD else plain
    if suite.encrypts:
        aad = chunk_aad(suite, codec, len(plain)) if aad is None else aad
        payload = bytes(aead.seal(suite, key, aead.ZERO_NONCE, aad, payload))
    return payload, ChunkRecord(0, len(plain), 0, len(payload), codec, 0, blake3(payload).digest(), key)


def seal_page(plain, number=3, suite=Suite.AES_256_GCM, key=KEY, nonce=None, aad=None):
    payload = Compressor(3).compress(plain)
    if suite.encrypts:
        payload = bytes(
            aead.seal(suite, key, nonce or page_nonce(number), aad or page_aad(suite, PAGE_SIZE), payload)
        )
    return payload, PageEntry(0, len(payload), blake3(payload).digest())


def renamed(encoded, record):
    """The record that a hostile author would write for other bytes."""
    return record._replace(encoded_length=len(encoded), chunk_id=blake3(encoded).digest())


PLAIN = b"the same words again and again; " * 40


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("codec", Codec)
@given(plain=st.binary(min_size=1, max_size=9000))
def test_chunk_comes_back(suite, codec, plain):
    encoded, record = seal_chunk(plain, suite, codec)
    assert decode_chunk(encoded, record, suite) == plain


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("codec", Codec)
def test_every_changed_byte_of_a_chunk_is_refused(suite, codec):
    encoded, record = seal_chunk(PLAIN, suite, codec)
    for position in range(len(encoded)):
        changed = bytearray(encoded)
        changed[position] ^= 1
        with pytest.raises(DigestMismatch, match="chunk id"):
            decode_chunk(bytes(changed), record, suite)


@pytest.mark.parametrize("suite", SUITES)
def test_chunk_of_another_length_is_refused_before_it_is_digested(suite):
    encoded, record = seal_chunk(PLAIN, suite)
    for other in (b"", encoded[:-1], encoded + b"\0", encoded * 2):
        with pytest.raises(LengthMismatch, match="chunk id: stored length"):
            decode_chunk(other, record, suite)


@pytest.mark.parametrize("suite", SEALED)
def test_sealed_key_decides_even_when_the_digest_fits(suite):
    encoded, record = seal_chunk(PLAIN, suite)
    for other in (record._replace(key=bytes(32)), record._replace(key=b"k" * 31 + b"j")):
        with pytest.raises(MacMismatch):
            decode_chunk(encoded, other, suite)
    tampered = encoded[:-1] + bytes((encoded[-1] ^ 1,))
    with pytest.raises(MacMismatch):
        decode_chunk(tampered, renamed(tampered, record), suite)


@pytest.mark.parametrize("suite", SEALED)
def test_what_the_record_says_is_bound_by_the_tag(suite):
    encoded, record = seal_chunk(PLAIN, suite, Codec.STORED)
    lies = [
        record._replace(codec=Codec.ZSTD),
        record._replace(decoded_length=len(PLAIN) - 1),
        record._replace(flags=1),
    ]
    for lie in lies:
        with pytest.raises(MacMismatch):
            decode_chunk(encoded, lie, suite)
    (other,) = set(SEALED) - {suite}
    with pytest.raises(MacMismatch):
        decode_chunk(encoded, record, other)


@pytest.mark.parametrize("suite", SUITES)
def test_author_who_lies_about_the_frame_is_refused(suite):
    for payload in (
        b"no frame at all",
        Compressor(3).compress(PLAIN[:-1]),
        Compressor(3).compress(PLAIN) + b"\0",
    ):
        encoded, record = seal_chunk(PLAIN, suite, payload=payload)
        with pytest.raises(FormatError):
            decode_chunk(encoded, record, suite)


def test_no_plaintext_stays_in_scratch_memory_after_a_wrong_tag():
    encoded, record = seal_chunk(PLAIN, codec=Codec.STORED)
    tampered = encoded[:-1] + bytes((encoded[-1] ^ 1,))
    seen = []

    def decode():
        with pytest.raises(MacMismatch):
            decode_chunk(tampered, renamed(tampered, record), Suite.AES_256_GCM)
        seen.append(bytes(pipeline._scratch(len(PLAIN))))

    thread = threading.Thread(target=decode)
    thread.start()
    thread.join()
    assert seen == [bytes(len(PLAIN))]


def test_decoded_bytes_do_not_change_with_the_next_decode():
    """Each thread has one scratch; what it gave away must be a copy."""
    first, first_record = seal_chunk(b"1" * 5000, codec=Codec.STORED)
    second, second_record = seal_chunk(b"2" * 5000, codec=Codec.STORED)
    kept = decode_chunk(first, first_record, Suite.AES_256_GCM)
    decode_chunk(second, second_record, Suite.AES_256_GCM)
    assert kept == b"1" * 5000


@pytest.mark.parametrize("suite", SUITES)
def test_threads_do_not_get_into_each_others_way(suite):
    chunks = [
        (
            bytes((number,)) * (1000 + 7919 * number),
            *seal_chunk(bytes((number,)) * (1000 + 7919 * number), suite),
        )
        for number in range(1, 30)
    ]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            decoded = pool.map(lambda chunk: decode_chunk(chunk[1], chunk[2], suite), chunks)
            assert list(decoded) == [plain for plain, _, _ in chunks]


def test_chunks_larger_than_the_kept_scratch_come_back():
    plain = bytes(range(256)) * 4096 * 3
    encoded, record = seal_chunk(plain, codec=Codec.STORED)
    assert decode_chunk(encoded, record, Suite.AES_256_GCM) == plain


PAGE = (b"metadata " * 500)[:PAGE_SIZE]


@pytest.mark.parametrize("suite", SUITES)
def test_page_comes_back(suite):
    encoded, entry = seal_page(PAGE, suite=suite)
    assert decode_page(encoded, entry, 3, suite, KEY, PAGE_SIZE) == PAGE


@pytest.mark.parametrize("suite", SUITES)
def test_every_changed_byte_of_a_page_is_refused(suite):
    encoded, entry = seal_page(PAGE, suite=suite)
    for position in range(len(encoded)):
        changed = bytearray(encoded)
        changed[position] ^= 0x40
        with pytest.raises(DigestMismatch, match="metadata page"):
            decode_page(bytes(changed), entry, 3, suite, KEY, PAGE_SIZE)
    with pytest.raises(LengthMismatch):
        decode_page(encoded[:-1], entry, 3, suite, KEY, PAGE_SIZE)


@pytest.mark.parametrize("suite", SEALED)
def test_page_opens_only_in_its_own_place_and_image(suite):
    encoded, entry = seal_page(PAGE, 3, suite)
    (other,) = set(SEALED) - {suite}
    for page, of_suite, key, size in [
        (2, suite, KEY, PAGE_SIZE),
        (3, other, KEY, PAGE_SIZE),
        (3, suite, b"j" * 32, PAGE_SIZE),
        (3, suite, KEY, 2 * PAGE_SIZE),
    ]:
        with pytest.raises(MacMismatch):
            decode_page(encoded, entry, page, of_suite, key, size)


@pytest.mark.parametrize("suite", SEALED)
def test_chunk_does_not_open_as_a_page(suite):
    encoded, record = seal_chunk(PAGE, suite)
    entry = PageEntry(0, len(encoded), record.chunk_id)
    with pytest.raises(MacMismatch):
        decode_page(encoded, entry, 0, suite, KEY, PAGE_SIZE)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("length", [1, PAGE_SIZE - 1, PAGE_SIZE + 1])
def test_page_of_another_decoded_size_is_refused(suite, length):
    encoded, entry = seal_page(bytes(length), suite=suite)
    with pytest.raises(FormatError, match="what its record says"):
        decode_page(encoded, entry, 3, suite, KEY, PAGE_SIZE)


@pytest.mark.parametrize("length", [1, 15, 16])
def test_page_shorter_than_its_tag_is_refused(length):
    encoded = bytes(length)
    entry = PageEntry(0, length, blake3(encoded).digest())
    with pytest.raises(FormatError, match="shorter than its tag"):
        decode_page(encoded, entry, 0, Suite.AES_256_GCM, KEY, PAGE_SIZE)
