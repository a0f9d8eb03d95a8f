"""Encoding of chunks and pages: what is compressed, whose key it gets, and that the reader opens it."""

import hashlib
import hmac

import pytest
from blake3 import blake3
from hypothesis import given, settings
from hypothesis import strategies as st

from rafsfs.build.encode import Encoder
from rafsfs.decode.pipeline import decode_chunk, decode_page
from rafsfs.format.bootstrap import PageEntry
from rafsfs.format.chunk import ChunkRecord, Codec, Suite, chunk_aad

SEALED = [Suite.AES_256_GCM, Suite.CHACHA20_POLY1305]
TEXT = b"compresses well, " * 500
NOISE = hashlib.shake_256(b"noise").digest(8000)
K_CONV = b"c" * 32


def record_of(chunk, plain):
    return ChunkRecord(0, len(plain), 0, len(chunk.data), chunk.codec, 0, chunk.chunk_id, chunk.key)


@pytest.mark.parametrize("suite", Suite)
@pytest.mark.parametrize("level", [None, 1, 19])
@pytest.mark.parametrize("secret", [None, K_CONV])
@settings(max_examples=20)
@given(plain=st.one_of(st.binary(min_size=1, max_size=3000), st.sampled_from([TEXT, NOISE, b"\0" * 5000])))
def test_reader_opens_what_is_encoded(suite, level, secret, plain):
    chunk = Encoder(suite, level, secret if suite.encrypts else None).chunk(plain)
    assert chunk.chunk_id == blake3(chunk.data).digest()
    assert decode_chunk(bytes(chunk.data), record_of(chunk, plain), suite) == plain


@pytest.mark.parametrize(
    ("plain", "level", "codec"),
    [(TEXT, 3, Codec.ZSTD), (TEXT, None, Codec.STORED), (NOISE, 3, Codec.STORED), (b"x", 19, Codec.STORED)],
)
def test_only_what_gets_smaller_is_compressed(plain, level, codec):
    chunk = Encoder(Suite.INTEGRITY_ONLY, level, None).chunk(plain)
    assert chunk.codec is codec
    assert (chunk.data == plain) == (codec is Codec.STORED)
    assert len(chunk.data) <= len(plain)


def test_saving_too_little_is_not_worth_it():
    plain = NOISE[:7900] + bytes(100)  # some 90 bytes less: more than nothing, less than one part in 64
    assert Encoder(Suite.INTEGRITY_ONLY, 3, None).chunk(plain).codec is Codec.STORED


@pytest.mark.parametrize("suite", SEALED)
def test_private_keys_are_never_the_same(suite):
    chunks = [Encoder(suite, 3, None).chunk(TEXT) for _ in range(20)]
    assert len({chunk.key for chunk in chunks}) == len({chunk.chunk_id for chunk in chunks}) == 20


@pytest.mark.parametrize("suite", SEALED)
def test_convergent_key_follows_from_secret_and_compressed_bytes(suite):
    chunk = Encoder(suite, None, K_CONV).chunk(TEXT)
    aad = chunk_aad(suite, Codec.STORED, len(TEXT))
    message = b"rafsfs chunk" + aad + hashlib.sha256(TEXT).digest()
    assert chunk.key == hmac.digest(K_CONV, message, "sha256")
    assert Encoder(suite, None, K_CONV).chunk(TEXT) == chunk


@pytest.mark.parametrize("suite", SEALED)
def test_another_compression_is_another_key(suite):
    """One key and nonce for two messages would give both away."""
    levels = (None, 1, 3, 19)
    chunks = [Encoder(suite, level, K_CONV).chunk(TEXT + NOISE) for level in levels]
    by_key = {}
    for chunk in chunks:
        assert by_key.setdefault(chunk.key, chunk.data) == chunk.data
    assert len(by_key) > 1


def test_another_secret_or_suite_is_another_key():
    keys = {Encoder(suite, 3, secret).chunk(TEXT).key for suite in SEALED for secret in (K_CONV, b"d" * 32)}
    assert len(keys) == 4


def test_integrity_only_has_no_keys():
    assert Encoder(Suite.INTEGRITY_ONLY, 3, None).chunk(TEXT).key == bytes(32)


@pytest.mark.parametrize("suite", Suite)
@pytest.mark.parametrize("level", [None, 3])
def test_pages_are_always_compressed_and_open_in_their_place(suite, level):
    encoder = Encoder(suite, level, None)
    page = TEXT[:4096]
    sealed = bytes(encoder.seal_page(encoder.compress_page(page), 7, b"p" * 32, 4096))
    assert len(sealed) < 1000
    entry = PageEntry(0, len(sealed), blake3(sealed).digest())
    assert decode_page(sealed, entry, 7, suite, b"p" * 32, 4096) == page
