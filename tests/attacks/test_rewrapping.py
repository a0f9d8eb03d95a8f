"""Rewrapping touches no page and no blob, and takes nothing back from whoever was a recipient (promise 7)."""

import pytest
from attacks.conftest import ENCRYPTING
from attacks.surgery import KEY, put, read_image, take
from support.images import build

from rafsfs.build.rewrap import rewrap
from rafsfs.decode.pipeline import decode_page
from rafsfs.errors import WrongKey
from rafsfs.format.bootstrap import PAGE_ENTRY
from rafsfs.store.oci_layout import find_image
from rafsfs.trust.derive import page_key
from rafsfs.trust.keys import KeyRing, SymmetricKey, X25519Identity
from rafsfs.trust.opening import TrustPolicy
from rafsfs.trust.wrapping import unwrap_committed

RING = KeyRing(symmetric=(KEY,))


@pytest.fixture(params=ENCRYPTING, ids=lambda suite: suite.name)
def suite(request):
    return request.param


def test_rewrapping(suite, tree, tmp_path):
    removed, added = SymmetricKey.generate(), X25519Identity.generate()
    reference = build(tree(1), tmp_path / "image", suite=suite, recipients=(KEY, removed))
    before = take(reference)
    kept_copy = put(before, tmp_path / "kept")
    contents = read_image(reference)
    rewrap(
        find_image(reference),
        "latest",
        RING,
        policy=TrustPolicy(),
        add=(added.recipient(),),
        remove={removed.key_id},
    )
    after = take(reference)

    assert after.blobs == before.blobs
    for part in ("superblock", "page_table", "pages"):
        assert getattr(after.bootstrap, part) == getattr(before.bootstrap, part)
    assert read_image(reference) == contents
    assert read_image(reference, KeyRing(identities=(added,))) == contents
    with pytest.raises(WrongKey):
        read_image(reference, KeyRing(symmetric=(removed,)))

    # What rewrapping cannot do: the older copy, and whoever kept the image key.
    old_ring = KeyRing(symmetric=(removed,))
    assert read_image(kept_copy, old_ring) == contents
    head = before.bootstrap.head
    image_key = unwrap_committed(
        before.bootstrap.unwrapped.recipients, head.image_id, old_ring, head.key_commitment
    )
    entry = next(PAGE_ENTRY.iter_unpack(after.bootstrap.page_table))
    encoded = after.bootstrap.pages[: entry.encoded_length]
    assert decode_page(encoded, entry, 0, suite, page_key(image_key, head.page_salt), head.page_size)


def test_envelope_of_before_still_fits(suite, tree, tmp_path):
    """A host that puts the older envelope back gives access to those who had it, and to nobody else."""
    removed = SymmetricKey.generate()
    reference = build(tree(1), tmp_path / "image", suite=suite, recipients=(KEY, removed))
    before = take(reference)
    rewrap(find_image(reference), "latest", RING, policy=TrustPolicy(), remove={removed.key_id})
    assert read_image(put(before, tmp_path / "back"), KeyRing(symmetric=(removed,)))
    with pytest.raises(WrongKey):
        read_image(put(before, tmp_path / "back"), KeyRing(symmetric=(SymmetricKey.generate(),)))
