"""Nothing leaves decode/ before digest and MAC were checked, and nothing that failed is kept (1, 2)."""

import gc
import random
import threading
from dataclasses import replace

import pytest
from attacks.conftest import ENCRYPTING
from attacks.sealing import BLOCK, ForgedBlob, ForgedSection, compressed, forge_blob, seal, seal_chunk
from attacks.surgery import opened, put, take
from blake3 import blake3
from support.images import build

from rafsfs.errors import AuthError, DigestMismatch, FormatError, MacMismatch, RafsError
from rafsfs.format.chunk import Codec
from rafsfs.format.erofs import FileType

PLAIN = random.Random(9).randbytes(BLOCK)
"""In no object of this process but those that hold it on purpose."""


@pytest.fixture(params=ENCRYPTING, ids=lambda suite: suite.name)
def suite(request):
    return request.param


def one_file(suite, blob, folder):
    section = ForgedSection(devices=[blob.decoded_blocks])
    nid = section.file(BLOCK, [(1, 0)])
    section.directory([(b"file", nid, FileType.REGULAR)], nid=section.root)
    return put(seal(section.pack(), [blob], suite=suite), folder)


def with_wrong_tag(suite, payload=PLAIN, codec=Codec.STORED):
    """A chunk whose id fits and whose tag does not: what GCM's missing key commitment could be used for."""
    encoded, record = seal_chunk(suite, payload, BLOCK, codec)
    encoded = encoded[:-1] + bytes((encoded[-1] ^ 1,))
    return forge_blob([(encoded, record._replace(chunk_id=blake3(encoded).digest()))])


def copies_in_memory(piece):
    """Buffers, of those that the collector or a thread's locals lead to, that hold a piece of plaintext."""
    from rafsfs.decode import pipeline

    scratch = getattr(pipeline._local, "scratch", None)
    found = [scratch] if scratch is not None and piece in bytes(scratch) else []
    for holder in gc.get_objects():
        if isinstance(holder, dict):
            values = list(holder.values())
        elif isinstance(holder, list | tuple):
            values = list(holder)
        else:
            continue
        found += [value for value in values if isinstance(value, bytes | bytearray) and piece in value]
    return [value for value in found if value is not PLAIN and value is not piece]


def test_plaintext_of_a_wrong_tag_stays_nowhere(suite, tmp_path):
    piece = PLAIN[1000:1064]
    blob = with_wrong_tag(suite)
    with opened(one_file(suite, blob, tmp_path)) as image:
        nid = image.filesystem.lookup(image.filesystem.root, b"file")
        with pytest.raises(MacMismatch):
            image.filesystem.read(nid, 0, BLOCK)
        assert copies_in_memory(piece) == []
        assert image.filesystem.try_read(nid, 0, BLOCK) is None, "nor is it in the cache"


def test_plaintext_of_a_right_tag_is_found(suite, tmp_path):
    """So that the search above can find."""
    blob = forge_blob([seal_chunk(suite, PLAIN, BLOCK, Codec.STORED)])
    with opened(one_file(suite, blob, tmp_path)) as image:
        image.filesystem.read(image.filesystem.lookup(image.filesystem.root, b"file"), 0, 1)
        assert len(copies_in_memory(PLAIN[1000:1064])) >= 2, "in scratch and in the cache"


def test_order_of_the_checks(suite, tmp_path):
    """Id before tag before frame: told by which error comes of a chunk that is wrong in all that follows."""
    bomb = compressed(bytes(1 << 24))
    wrong_tag = with_wrong_tag(suite, bomb, Codec.ZSTD)
    (record,) = wrong_tag.records
    wrong_id = ForgedBlob(wrong_tag.data, [record._replace(chunk_id=bytes(32))], 1)
    wrong_frame = forge_blob([seal_chunk(suite, bomb, BLOCK)])
    for number, (blob, expected) in enumerate(
        ((wrong_id, DigestMismatch), (wrong_tag, MacMismatch), (wrong_frame, FormatError))
    ):
        with opened(one_file(suite, blob, tmp_path / str(number))) as image:
            nid = image.filesystem.lookup(image.filesystem.root, b"file")
            with pytest.raises(RafsError) as raised:
                image.filesystem.read(nid, 0, BLOCK)
            assert type(raised.value) is expected


def test_error_names_the_place(suite, tree, tmp_path):
    stored = take(build(tree(1), tmp_path / "image", suite=suite, chunk_size=BLOCK))
    (blob,) = stored.blobs
    damaged = blob.changed(bytes((blob.data[0] ^ 1,)) + blob.data[1:])
    with opened(put(replace(stored, blobs=(damaged,)), tmp_path / "damaged")) as image:
        nid = image.filesystem.lookup(image.filesystem.root, b"large")
        with pytest.raises(DigestMismatch) as raised:
            image.filesystem.read(nid, 0, 1)
    where = raised.value.where
    assert (where.blob, where.chunk, where.offset) == (blob.digest, 0, 0)


def test_damage_is_met_by_its_own_reads_only(suite, tree, tmp_path):
    stored = take(build(tree(1), tmp_path / "image", suite=suite, chunk_size=BLOCK))
    (blob,) = stored.blobs
    damaged = blob.changed(bytes((blob.data[0] ^ 1,)) + blob.data[1:])
    large = (tree(1) / "large").read_bytes()
    with opened(put(replace(stored, blobs=(damaged,)), tmp_path / "damaged")) as image:
        nid = image.filesystem.lookup(image.filesystem.root, b"large")
        for offset in range(0, len(large), 512):
            if offset < BLOCK:
                with pytest.raises(AuthError):
                    image.filesystem.read(nid, offset, 512)
            else:
                parts = image.filesystem.read(nid, offset, 512)
                assert b"".join(map(bytes, parts)) == large[offset : offset + 512]


def test_error_reaches_all_who_wait_and_is_forgotten(suite, tree, tmp_path):
    stored = take(build(tree(1), tmp_path / "image", suite=suite, chunk_size=BLOCK))
    (blob,) = stored.blobs
    damaged = blob.changed(bytes((blob.data[0] ^ 1,)) + blob.data[1:])
    reference = put(replace(stored, blobs=(damaged,)), tmp_path / "damaged")
    outcomes = []
    with opened(reference) as image:
        nid = image.filesystem.lookup(image.filesystem.root, b"large")
        barrier = threading.Barrier(8)

        def read():
            barrier.wait()
            try:
                outcomes.append(image.filesystem.read(nid, 0, 1))
            except AuthError as error:
                outcomes.append(error)

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [type(outcome) for outcome in outcomes] == [DigestMismatch] * 8
        put(stored, tmp_path / "damaged")  # repaired in place, as by a new copy
        blob_file = tmp_path / "damaged/blobs" / blob.digest.replace(":", "/")
        assert blob_file.read_bytes() == blob.data
        assert bytes(image.filesystem.read(nid, 0, 1)[0]) == (tree(1) / "large").read_bytes()[:1]
