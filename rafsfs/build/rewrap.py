"""Rewrites a stored image's envelope: who can open it, who signed it; never touches the superblock or blobs.

As the superblock stays the same, its seal and all signatures stay valid.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from rafsfs.build.earlier_copies import copies_opened_by
from rafsfs.build.layout_writer import LayoutWriter
from rafsfs.errors import BuildError, DigestMismatch, KeyFileError, RafsError
from rafsfs.format import oci
from rafsfs.format.bootstrap import pack_head, page_table_bytes
from rafsfs.format.envelope import Envelope, parse_envelope
from rafsfs.format.oci import Descriptor
from rafsfs.format.superblock import Superblock, parse_superblock
from rafsfs.fs.image import Head, read_head
from rafsfs.limits import SIGNATURES_MAX
from rafsfs.store.base import StoredImage
from rafsfs.store.oci_layout import LayoutImage, read_small_blob
from rafsfs.trust.freshness import check_freshness
from rafsfs.trust.keys import KeyRing
from rafsfs.trust.material import Passphrase, RecipientKey, SigningKey, SymmetricKey
from rafsfs.trust.opening import Opening, TrustPolicy
from rafsfs.trust.signature import sign, verify
from rafsfs.trust.wrapping import check_recipients, wrap

_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class PlainHead:
    """What an image tells whoever has no key. None of it is authentic yet."""

    stored: Head
    superblock: Superblock
    envelope: Envelope


@dataclass(frozen=True, slots=True)
class Rewritten:
    """An image after its envelope was rewritten.

    ``kept`` are digests of what was to be deleted but stays, because an image in the folder may need it.
    """

    manifest_digest: str
    envelope: Envelope
    kept: tuple[str, ...] = ()


def read_plain_head(image: StoredImage) -> PlainHead:
    """Read who can open an image and who signed it, as whoever stored it says.

    Raises StoreError, FormatError, or DigestMismatch when the superblock is not the one that the manifest
    names.
    """
    file = image.open(image.manifest.bootstrap)
    try:
        head = read_head(file, image.manifest.superblock_digest)
        return PlainHead(head, parse_superblock(head.superblock), parse_envelope(head.envelope))
    except RafsError as error:
        raise error.at(file=image.store.name) from None
    finally:
        file.close()


def verify_head(head: PlainHead, policy: TrustPolicy) -> None:
    """Hold an image to ``policy`` without its key. Raises BadSignature, Rollback or LimitExceeded.

    When signatures were asked for, the superblock may be believed afterwards, and all that its digests pin.
    """
    if policy.signatures is not None:
        verify(head.stored.superblock, head.envelope.signatures, policy.signatures)
    check_freshness(head.superblock, min_release=policy.min_release, now_s=time.time())


def rewrap(
    image: LayoutImage,
    tag: str,
    keyring: KeyRing,
    *,
    policy: TrustPolicy,
    add: Sequence[SymmetricKey | RecipientKey | Passphrase] = (),
    remove: Collection[bytes] = (),
) -> Rewritten:
    """Let ``add`` open the image, and the recipients with the key ids in ``remove`` no longer; moves ``tag``.

    Whoever was removed but kept the image key, or has an older copy of the image, can still read it. After a
    removal all older bootstraps of the image that he can open are deleted from the folder, but for those that
    another tag leads to.

    Raises WrongKey unless the key ring opens the image, KeyFileError when a key id is nobody's or nobody
    would be left, LimitExceeded for too many recipients, StoreError when the tag was moved meanwhile,
    DigestMismatch for a damaged bootstrap, OSError. The folder is then as it was.
    """
    head = read_plain_head(image)
    if not head.superblock.suite.encrypts:
        raise KeyFileError("an unencrypted image has no recipients", hint="build it anew with --key FILE")
    present = head.envelope.recipients
    if unknown := set(remove) - {recipient.key_id for recipient in present}:
        raise KeyFileError(
            "not a recipient of this image",
            found=", ".join(sorted(key_id.hex() for key_id in unknown)),
            hint="`rafsfs keys show IMAGE` lists them",
        )
    image_key = _open(image, head, keyring, policy)
    added = tuple(wrap(image_key, head.superblock.image_id, key) for key in add)
    # Who is added again replaces what is there: whether that would open the image only he could tell.
    replaced = {(recipient.kind, recipient.key_id) for recipient in added}
    kept = tuple(
        recipient
        for recipient in present
        if recipient.key_id not in remove and (recipient.kind, recipient.key_id) not in replaced
    )
    if not kept and not added:
        raise KeyFileError(
            "nobody could open the image any more", hint="add another recipient with --add FILE"
        )
    check_recipients(kept + added)
    envelope = replace(head.envelope, recipients=kept + added)
    return _rewrite(image, tag, head, envelope, removed=remove)


def add_signature(
    image: LayoutImage, tag: str, signer: SigningKey, keyring: KeyRing | None, *, policy: TrustPolicy
) -> Rewritten:
    """Sign the image and move ``tag`` to it; an earlier signature of the same key is replaced.

    With a key ring the image is opened first, so that what is signed was sealed by somebody who has its key;
    without one, whatever stands in the folder is signed. Raises BuildError for too many signatures, and as
    `rewrap` does.
    """
    head = read_plain_head(image)
    if keyring is None:
        verify_head(head, policy)
    else:
        _open(image, head, keyring, policy)
    made = sign(head.stored.superblock, signer)
    kept = tuple(
        signature
        for signature in head.envelope.signatures
        if (signature.algorithm, signature.key_id) != (made.algorithm, made.key_id)
    )
    if len(kept) >= SIGNATURES_MAX:
        raise BuildError(
            "the image has as many signatures as it can have", expected=f"at most {SIGNATURES_MAX}"
        )
    envelope = replace(head.envelope, signatures=(*kept, made))
    return _rewrite(image, tag, head, envelope)


def _open(image: LayoutImage, head: PlainHead, keyring: KeyRing, policy: TrustPolicy) -> bytes:
    """Go through the whole opening; returns the image key."""
    opening = Opening(policy, keyring, superblock_digest=image.manifest.superblock_digest, now_s=time.time())
    opening.superblock(head.stored.superblock)
    opening.envelope(head.stored.envelope)
    file = image.open(image.manifest.bootstrap)
    try:
        table = file.read_range(head.stored.end, page_table_bytes(head.superblock))
        return opening.page_table(table).image_key
    finally:
        file.close()


def _rewrite(
    image: LayoutImage, tag: str, head: PlainHead, envelope: Envelope, *, removed: Collection[bytes] = ()
) -> Rewritten:
    """Write bootstrap, config and manifest anew, and move the tag; delete all that ``removed`` could open."""
    with LayoutWriter(image.folder) as layout:
        bootstrap = _write_bootstrap(layout, image, head, envelope)
        manifest = write_documents(layout, image, bootstrap)
        layout.commit(manifest, tag, replaces=image.manifest_digest)
        kept = []
        if removed:
            found = copies_opened_by(removed, head.superblock.image_id, image.folder)
            old = (image.manifest_digest, image.manifest.config.digest, image.manifest.bootstrap.digest)
            kept = layout.drop_blobs(dict.fromkeys((*old, *found)))
    return Rewritten(manifest.digest, envelope, tuple(kept))


def _write_bootstrap(
    layout: LayoutWriter, image: LayoutImage, head: PlainHead, envelope: Envelope
) -> Descriptor:
    """Copy the bootstrap with another envelope, and compare the old one with the digest in its manifest."""
    old = image.manifest.bootstrap
    file = image.open(old)
    try:
        digest = hashlib.sha256(file.read_range(0, head.stored.end))
        blob = layout.new_blob()
        blob.write(pack_head(head.stored.superblock, envelope.pack(), b""))
        for position in range(head.stored.end, file.size, _COPY_BYTES):
            data = file.read_range(position, min(_COPY_BYTES, file.size - position))
            digest.update(data)
            blob.write(data)
    finally:
        file.close()
    if (found := f"sha256:{digest.hexdigest()}") != old.digest:
        raise DigestMismatch(
            "the image's bootstrap is damaged, so it is not rewritten", expected=old.digest, found=found
        )
    return layout.name_blob(blob, oci.MEDIA_TYPE_BOOTSTRAP)


def write_documents(
    layout: LayoutWriter,
    image: LayoutImage,
    bootstrap: Descriptor,
    *,
    superblock_digest: str | None = None,
) -> Descriptor:
    """Write config and manifest with the new bootstrap in the old one's place, all else as it was.

    ``superblock_digest`` is for a bootstrap whose superblock is another one, too.
    """
    old = image.manifest
    config = oci.load_json(read_small_blob(image.folder, old.config.digest, "config"), "config")
    rootfs = config.get("rootfs")
    if isinstance(rootfs, dict) and isinstance(layers := rootfs.get("diff_ids"), list):
        renamed = [bootstrap.digest if layer == old.bootstrap.digest else layer for layer in layers]
        config["rootfs"] = rootfs | {"diff_ids": renamed}
    config_descriptor = layout.add_blob(oci.dump_json(config), old.config.media_type)
    manifest = oci.load_json(read_small_blob(image.folder, image.manifest_digest, "manifest"), "manifest")
    manifest["config"] |= {"digest": config_descriptor.digest, "size": config_descriptor.size}
    manifest["layers"][-1] |= {"digest": bootstrap.digest, "size": bootstrap.size}
    if superblock_digest is not None:
        manifest["annotations"] |= {oci.ANNOTATION_SUPERBLOCK: superblock_digest}
    return layout.add_blob(oci.dump_json(manifest), oci.MEDIA_TYPE_MANIFEST)
