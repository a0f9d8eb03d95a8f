"""The order of trust: the state machine that turns a bootstrap's untrusted head into what may be used. No
I/O.

Rules, in the order in which they are applied; a step that fails ends the opening for good:

1. The superblock's bytes have the digest that the manifest names. (A pinned manifest thereby pins the image.)
2. They parse, within every limit.
3. The signature policy holds, when the caller has one. Without one, signatures mean nothing.
4. The image is not older than the caller's floor, and not expired.
5. Sealed suites: the image key is unwrapped with one of the caller's keys and fits the superblock's
commitment;
   then the seal over the whole superblock fits the image key, so that every field of it is authentic.
6. The page table has the digest that the superblock holds.
7. Pages, EROFS records, chunk records and chunks are checked where they are read: ``decode``, ``metadata``,
``reading``.

In the integrity-only suite step 5 is that the caller gave no key: such an image is as authentic as its pinned
digest or its signature, and whoever gives a key expects more than anybody could have put in its place.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from rafsfs.errors import FormatError, NotEncrypted
from rafsfs.format import oci
from rafsfs.format.bootstrap import PageTable, check_page_table
from rafsfs.format.envelope import SEAL_BYTES, Envelope, parse_envelope
from rafsfs.format.superblock import Superblock, parse_superblock
from rafsfs.trust.derive import check_superblock_seal, page_key
from rafsfs.trust.freshness import check_freshness
from rafsfs.trust.keys import KeyRing
from rafsfs.trust.signature import SignaturePolicy, verify
from rafsfs.trust.wrapping import unwrap_committed


@dataclass(frozen=True, slots=True)
class TrustPolicy:
    """What a caller asks of an image beyond opening with one of his keys."""

    signatures: SignaturePolicy | None = None
    min_release: int | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """A superblock that may be believed, its page table, and the key of its metadata pages (empty without
    keys).
    """

    superblock: Superblock
    envelope: Envelope
    page_table: PageTable
    page_key: bytes = field(repr=False)
    image_key: bytes = field(repr=False)


class Opening:
    """One image on its way to being believed. Feed it superblock, envelope and page table, in this order.

    Every method raises FormatError, or an AuthError that says which rule failed.
    """

    def __init__(
        self, policy: TrustPolicy, keyring: KeyRing, *, superblock_digest: str, now_s: float
    ) -> None:
        """``superblock_digest`` comes from the manifest (``sha256:...``); ``now_s`` is the Unix time."""
        self._policy = policy
        self._keyring = keyring
        self._superblock_digest = superblock_digest
        self._now_s = now_s
        self._signed: bytes | None = None
        self._superblock: Superblock | None = None
        self._envelope: Envelope | None = None
        self._image_key = b""

    def superblock(self, data: bytes) -> Superblock:
        """Rules 1 and 2. What it returns may be used for the lengths of the other parts, and for nothing
        else.
        """
        assert self._signed is None
        oci.check_digest(data, self._superblock_digest, "superblock")
        self._superblock = parse_superblock(data)
        self._signed = data
        return self._superblock

    def envelope(self, data: bytes) -> None:
        """Rules 3 to 5."""
        assert self._signed is not None and self._superblock is not None and self._envelope is None
        superblock = self._superblock
        envelope = parse_envelope(data)
        if self._policy.signatures is not None:
            verify(self._signed, envelope.signatures, self._policy.signatures)
        check_freshness(superblock, min_release=self._policy.min_release, now_s=self._now_s)
        if superblock.suite.encrypts:
            if len(envelope.seal) != SEAL_BYTES:
                raise FormatError("envelope's seal", expected=f"{SEAL_BYTES} bytes", found=len(envelope.seal))
            self._image_key = unwrap_committed(
                envelope.recipients, superblock.image_id, self._keyring, superblock.key_commitment
            )
            check_superblock_seal(self._image_key, self._signed, envelope.seal)
        elif self._keyring != KeyRing():
            raise NotEncrypted(
                "image is not encrypted, yet a key was given for it",
                hint="leave the key out if it should not be; else it was put in a sealed one's place",
            )
        self._envelope = envelope

    def page_table(self, data: bytes) -> Opened:
        """Rule 6; ends the opening."""
        assert self._superblock is not None and self._envelope is not None
        table = check_page_table(data, self._superblock)
        key = page_key(self._image_key, self._superblock.page_salt) if self._image_key else b""
        return Opened(self._superblock, self._envelope, table, key, self._image_key)
