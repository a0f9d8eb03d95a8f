"""Gives a stored image another prefetch list: seals its metadata anew; touches no blob, asks nobody's key.

The image key stays, and with it all recipients. The superblock changes, so signatures have to be made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from rafsfs.build.encode import Encoder
from rafsfs.build.layout_writer import LayoutWriter
from rafsfs.build.metadata_pages import compress_pages, pages_digest, seal_pages
from rafsfs.build.options import ZSTD_LEVEL_DEFAULT
from rafsfs.build.pipeline import worker_count
from rafsfs.build.prefetch import PrefetchPlan, plan_prefetch
from rafsfs.build.rewrap import write_documents
from rafsfs.errors import BuildError
from rafsfs.format import oci
from rafsfs.format.bootstrap import pack_head, pack_page_table, page_table_digest
from rafsfs.format.envelope import Envelope
from rafsfs.format.prefetch import pack_prefetch_list
from rafsfs.format.record import Buffer
from rafsfs.format.superblock import IMAGE_ID_BYTES, Section, Superblock
from rafsfs.format.trace import TracedRange
from rafsfs.fs.image import OpenImage
from rafsfs.metadata.space import MetadataSpace
from rafsfs.store.oci_layout import LayoutImage
from rafsfs.trust.derive import superblock_seal
from rafsfs.trust.material import SigningKey
from rafsfs.trust.signature import sign


@dataclass(frozen=True, slots=True)
class Optimized:
    """An image after it got another list. ``signatures_gone`` are (algorithm, key id) of those that it had
    and that were not made again.
    """

    manifest_digest: str
    plan: PrefetchPlan
    signatures_gone: tuple[tuple[str, bytes], ...]


def optimize(
    image: OpenImage,
    tag: str,
    ranges: Sequence[TracedRange],
    *,
    signers: Sequence[SigningKey] = (),
    drop_signatures: bool = False,
) -> Optimized:
    """Replace the prefetch list by that of ``ranges`` (none: an empty one), and move ``tag`` to the result.

    The same image and ranges give the same superblock and pages. The older bootstrap stays in the folder.
    Raises BuildError for a signed image without ``signers``, unless its signatures may be dropped; StoreError
    when the tag was moved meanwhile, LimitExceeded for a trace that asks too much, OSError. The folder is
    then as it was.
    """
    superblock, envelope = image.opened.superblock, image.opened.envelope
    stored = image.stored
    if not isinstance(stored, LayoutImage):
        raise BuildError(
            "the image is not in a local folder, and only there it can be changed",
            hint="`rafsfs pull` brings it into one, `rafsfs push` sends it back",
        )
    if envelope.signatures and not signers and not drop_signatures:
        raise BuildError(
            "the image is signed, and no signature would hold after the change",
            found=", ".join(f"{item.algorithm} {item.key_id.hex()}" for item in envelope.signatures),
            hint="sign it anew with --sign FILE, or let it go unsigned with --drop-signatures",
        )
    tables = [blob.chunks for blob in image.filesystem.engine.blobs]
    plan = plan_prefetch(ranges, image.filesystem.tree, tables)
    changed, pages, page_table = _seal(image, pack_prefetch_list(plan.runs))
    head = changed.pack()
    made = tuple(sign(head, signer) for signer in signers)
    seal = superblock_seal(image.opened.image_key, head) if superblock.suite.encrypts else b""
    bootstrap = pack_head(head, Envelope(envelope.recipients, made, seal).pack(), page_table)
    with LayoutWriter(stored.folder) as layout:
        blob = layout.new_blob()
        for part in (bootstrap, *pages):
            blob.write(part)
        descriptor = layout.name_blob(blob, oci.MEDIA_TYPE_BOOTSTRAP)
        manifest = write_documents(layout, stored, descriptor, superblock_digest=oci.digest_of(head))
        layout.commit(manifest, tag, replaces=stored.manifest_digest)
    again = {(item.algorithm, item.key_id) for item in made}
    gone = tuple(
        (item.algorithm, item.key_id)
        for item in envelope.signatures
        if (item.algorithm, item.key_id) not in again
    )
    return Optimized(manifest.digest, plan, gone)


def _seal(image: OpenImage, prefetch: bytes) -> tuple[Superblock, list[Buffer], bytes]:
    """The superblock with another list; all pages, and their table."""
    superblock = image.opened.superblock
    space = MetadataSpace(
        image.metadata.load, superblock.page_size, offset=0, length=superblock.metadata_bytes
    )
    erofs_section, tables, config = (
        space.read(section.offset, section.length)
        for section in (superblock.erofs, superblock.chunk_tables, superblock.config)
    )
    config_end = len(erofs_section) + len(tables) + len(prefetch) + len(config)
    checkpoints = superblock.checkpoints and space.read(*superblock.checkpoints)
    sections = erofs_section, tables, prefetch, config, checkpoints or b""
    encoder = Encoder(superblock.suite, ZSTD_LEVEL_DEFAULT, None)
    with ThreadPoolExecutor(worker_count(), thread_name_prefix="rafsfs-build") as pool:
        compressed = compress_pages(sections, superblock.page_size, encoder, pool)
    pages, salt = seal_pages(compressed, encoder, image.opened.image_key, superblock.page_size)
    page_table = pack_page_table(pages)
    tables_end = len(erofs_section) + len(tables)
    changed = replace(
        superblock,
        page_count=len(pages),
        page_table_digest=page_table_digest(page_table),
        chunk_tables=Section(len(erofs_section), len(tables)),
        prefetch=Section(tables_end, len(prefetch)),
        config=Section(tables_end + len(prefetch), len(config)),
        checkpoints=None if checkpoints is None else Section(config_end, len(checkpoints)),
        page_salt=salt,
    )
    if not superblock.suite.encrypts:  # it has no key to tell it from others, so its id is of what it holds
        changed = replace(changed, image_id=pages_digest(compressed)[:IMAGE_ID_BYTES])
    return changed, pages, page_table
