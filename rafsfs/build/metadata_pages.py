"""Plain metadata to sealed pages: cut, compressed, sealed under a key of their own; knows no sections."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from rafsfs.build.encode import Encoder
from rafsfs.format.erofs import align
from rafsfs.format.record import Buffer
from rafsfs.trust.derive import page_key, page_salt
from rafsfs.types import PageNumber


def compress_pages(
    sections: Sequence[bytes], page_size: int, encoder: Encoder, pool: ThreadPoolExecutor
) -> list[bytes]:
    """Cut the metadata into pages, the last one filled up with zeros, and compress each."""
    length = sum(map(len, sections))
    view = memoryview(b"".join((*sections, bytes(align(length, page_size) - length))))
    pieces = [view[start : start + page_size] for start in range(0, len(view), page_size)]
    return list(pool.map(encoder.compress_page, pieces))


def pages_digest(compressed: Sequence[bytes]) -> bytes:
    """SHA-256 over all compressed pages, each behind its length u32; what keys and ids are derived from."""
    digest = hashlib.sha256()
    for page in compressed:
        digest.update(len(page).to_bytes(4, "little") + page)
    return digest.digest()


def seal_pages(
    compressed: Sequence[bytes], encoder: Encoder, image_key: bytes, page_size: int
) -> tuple[list[Buffer], bytes]:
    """Seal all pages; returns them with their salt for the superblock. As they are where there is no key.

    The salt follows from the pages, so that an image key never seals two pages under one page key and nonce.
    """
    salt = page_salt(image_key, pages_digest(compressed)) if image_key else b""
    key = page_key(image_key, salt) if image_key else b""
    sealed = [
        encoder.seal_page(page, PageNumber(number), key, page_size) for number, page in enumerate(compressed)
    ]
    return sealed, salt
