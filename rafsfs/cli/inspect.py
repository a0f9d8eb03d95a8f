"""``rafsfs inspect``: what an image is made of, with its key or without; and exports of its EROFS form."""

from __future__ import annotations

import shlex
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import click

from rafsfs.build.pipeline import worker_count
from rafsfs.build.rewrap import PlainHead, read_plain_head, verify_head
from rafsfs.cli import output
from rafsfs.cli.looking import write_line, writing_to
from rafsfs.cli.options import ImageAccess, image_options
from rafsfs.cli.signals import ended_cleanly
from rafsfs.format.chunk import Suite
from rafsfs.format.erofs import BLOCK_SIZE
from rafsfs.format.superblock import Superblock
from rafsfs.frontends.export import export_devices, export_section
from rafsfs.frontends.library import Image
from rafsfs.frontends.logs import one_line
from rafsfs.fs.image import open_sealed
from rafsfs.fs.inspection import ChunkNumbers, PrefetchNumbers, chunk_numbers, codec_name, prefetch_numbers
from rafsfs.store.base import StoredImage
from rafsfs.store.reference import ImageReference
from rafsfs.store.stores import find_stored
from rafsfs.types import blob_digest

SUITES: Final = {
    Suite.AES_256_GCM: "AES-256-GCM, BLAKE3",
    Suite.CHACHA20_POLY1305: "ChaCha20-Poly1305, BLAKE3",
    Suite.INTEGRITY_ONLY: "not encrypted, BLAKE3",
}
TEXT_MAX: Final = 60
"""Of what a stranger wrote into an envelope."""


@dataclass(frozen=True, slots=True)
class Findings:
    """What is known of an image. ``verified`` lists by what; ``opened`` and below are of an open one."""

    reference: ImageReference
    stored: StoredImage
    head: PlainHead
    verified: tuple[str, ...]
    opened: Image | None = None
    chunks: tuple[ChunkNumbers, ...] = ()
    prefetch: PrefetchNumbers | None = None

    @property
    def superblock(self) -> Superblock:
        """The superblock."""
        return self.head.superblock


@click.command()
@click.argument("image")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object.")
@click.option(
    "--export-erofs",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the metadata as the EROFS image that it is, in plaintext.",
)
@click.option(
    "--export-data",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Write what the blobs hold, in plaintext, as files DIR/1, DIR/2 ...: devices of the EROFS image.",
)
@image_options
def command(
    image: str, as_json: bool, export_erofs: Path | None, export_data: Path | None, access: ImageAccess
) -> None:
    """Show what IMAGE is made of: superblock, recipients, signatures, metadata, blobs, chunks, codecs.

    Without a key, what is public is shown: the superblock, who can open the image, who signed it, its blobs.
    Unless --verify-key is given that is not verified: whoever stored the image can have written it.

    The exports are for independent tools: fsck.erofs, dump.erofs and the Linux kernel take the EROFS image
    and the devices, and must agree with rafsfs about every file. Exporting needs the key; the files are
    plaintext, and only you can read them.

    \b
    Examples:
      rafsfs inspect /images/tree
      rafsfs inspect /images/tree --key my.key --json
      rafsfs inspect /images/tree --key my.key --export-erofs tree.erofs --export-data devices
    """
    request = access.request(image)
    stored = find_stored(request.reference, access.stores)
    with closing(stored.store):
        head = read_plain_head(stored)
    pins = (
        *(("signatures",) if access.verify_keys else ()),
        *(("digest",) if request.reference.digest is not None else ()),
    )
    wanted = export_erofs is not None or export_data is not None
    if head.superblock.suite.encrypts and not (access.keys or access.passphrase_file or wanted):
        verify_head(head, request.policy)
        _show(Findings(request.reference, stored, head, pins), as_json)
        return
    verified = (*(("key",) if head.superblock.suite.encrypts else ()), *pins)
    pinned = request.reference.pinned(stored.manifest_digest)  # the one whose head was read
    with (
        ended_cleanly(),
        Image(
            open_sealed(
                pinned,
                request.keyring,
                request.policy,
                cache_bytes=access.cache_bytes,
                stores=access.stores,
            )
        ) as opened,
    ):
        chunks = tuple(chunk_numbers(opened.sealed))
        prefetch = prefetch_numbers(opened.sealed)
        _show(Findings(request.reference, stored, head, verified, opened, chunks, prefetch), as_json)
        devices = _export(opened, export_erofs, export_data)
    if export_erofs is not None:
        click.echo(f"\nTo mount it on /mnt:\n  {_mount_line(export_erofs, devices)}", err=as_json)


def _export(image: Image, export_erofs: Path | None, export_data: Path | None) -> list[Path]:
    """Write what was asked for; returns the devices."""
    if export_erofs is not None:
        with writing_to(export_erofs):
            export_section(image.sealed, export_erofs)
    if export_data is None:
        return []
    blobs = image.sealed.opened.superblock.blobs
    total = sum(blob.decoded_blocks for blob in blobs) * BLOCK_SIZE
    done = 0
    with output.progress("exporting", fraction=lambda: done / max(total, 1)) as update:

        def report(written: int) -> None:
            nonlocal done
            done = written
            if update is not None:
                update(len(blobs), written)

        with writing_to(export_data):
            return export_devices(image.sealed, export_data, workers=worker_count(), report=report)


def _mount_line(section: Path, devices: list[Path]) -> str:
    """The command that has Linux mount the exports, with loop devices, which all of its releases can use."""
    options = ["ro"]
    options += [f"device=$(losetup -r -f --show {shlex.quote(str(device))})" for device in devices]
    return f"mount -t erofs -o {','.join(options)} {shlex.quote(str(section))} /mnt"


# --- For people ---------------------------------------------------------------------------------------------


def _show(found: Findings, as_json: bool) -> None:
    if as_json:
        output.print_json(_as_json(found))
        return
    write_line(one_line(str(found.reference)))
    output.print_fields(_fields(found))
    envelope = found.head.envelope
    if envelope.recipients:
        click.echo("\nIt can be opened by")
        rows = [
            (item.kind[:TEXT_MAX], item.key_id.hex(), f"scrypt, N = 2^{item.log2_n}" if item.log2_n else "")
            for item in envelope.recipients
        ]
        output.print_table(("KIND", "KEY ID", ""), rows, indent=2)
    if envelope.signatures:
        click.echo("\nIt is signed by")
        signers = [(item.algorithm[:TEXT_MAX], item.key_id.hex()) for item in envelope.signatures]
        output.print_table(("ALGORITHM", "KEY ID"), signers, indent=2)
    if found.superblock.blobs:
        click.echo("\nBlobs")
        _print_blobs(found)


def _fields(found: Findings) -> list[tuple[str, str]]:
    superblock = found.superblock
    verified = ", ".join(found.verified)
    if not found.verified:
        verified = "nothing; " + (
            "give --key, or --verify-key" if superblock.suite.encrypts else "give --verify-key, or --digest"
        )
    fields = [
        ("verified by", verified),
        ("manifest", found.stored.manifest_digest),
        ("superblock", found.stored.manifest.superblock_digest),
        ("image id", superblock.image_id.hex()),
        ("name", superblock.name or "-"),
        ("release", str(superblock.release)),
        ("not after", "-" if superblock.not_after is None else output.utc(superblock.not_after)),
        ("suite", SUITES[superblock.suite]),
        ("dedup domain", superblock.dedup_domain.hex() or "none: chunk keys are random"),
        (
            "metadata",
            f"{output.byte_size(superblock.metadata_bytes)} in {superblock.page_count:,} pages of "
            f"{output.byte_size(superblock.page_size)}, "
            f"{output.byte_size(found.stored.manifest.bootstrap.size)} stored",
        ),
        ("EROFS", output.byte_size(superblock.erofs.length)),
        ("chunk tables", output.byte_size(superblock.chunk_tables.length)),
        ("prefetch", _prefetch_text(found)),
    ]
    if found.opened is not None:
        decoded = sum(numbers.decoded_bytes for numbers in found.chunks)
        encoded = sum(numbers.encoded_bytes for numbers in found.chunks)
        fields += [
            ("inodes", f"{found.opened.filesystem.tree.inode_count:,}"),
            (
                "data",
                f"{output.byte_size(decoded)} in {sum(numbers.chunks for numbers in found.chunks):,} chunks, "
                f"{output.byte_size(encoded)} encoded ({output.share(encoded, decoded)})",
            ),
        ]
    return fields


def _prefetch_text(found: Findings) -> str:
    length = found.superblock.prefetch.length
    listed = found.prefetch
    if not length or listed is None:
        return output.byte_size(length) if length else "none"
    return (
        f"{listed.chunks:,} chunks in {listed.runs:,} runs, {output.byte_size(listed.decoded_bytes)}, "
        f"{output.byte_size(listed.encoded_bytes)} encoded"
    )


def _print_blobs(found: Findings) -> None:
    columns = ["SLOT", "BLOB", "STORED", "CHUNKS", "DECODED SPACE"]
    rows = [
        [
            str(slot),
            blob_digest(blob.blob_id),
            output.byte_size(blob.size),
            f"{blob.chunk_count:,}",
            output.byte_size(blob.decoded_blocks * BLOCK_SIZE),
        ]
        for slot, blob in enumerate(found.superblock.blobs, 1)
    ]
    if found.chunks:
        columns += ["ENCODED", "CODECS"]
        for row, numbers in zip(rows, found.chunks, strict=True):
            row.append(output.byte_size(numbers.encoded_bytes))
            row.append(", ".join(f"{count:,} {codec_name(codec)}" for codec, count in _codecs(numbers)))
    output.print_table(columns, rows, right=set(columns) - {"BLOB", "CODECS"}, indent=2)


def _codecs(numbers: ChunkNumbers) -> list[tuple[int, int]]:
    return sorted(numbers.codecs.items())


# --- For programs -------------------------------------------------------------------------------------------


def _as_json(found: Findings) -> dict[str, Any]:
    superblock = found.superblock
    envelope = found.head.envelope
    sections = {name: getattr(superblock, name) for name in ("erofs", "chunk_tables", "prefetch", "config")}
    return {
        "image": str(found.reference),
        "verified_by": list(found.verified),
        "manifest": found.stored.manifest_digest,
        "superblock": found.stored.manifest.superblock_digest,
        "image_id": superblock.image_id.hex(),
        "name": superblock.name,
        "release": superblock.release,
        "not_after": superblock.not_after,
        "suite": superblock.suite.name.lower().replace("_", "-"),
        "encrypted": superblock.suite.encrypts,
        "dedup_domain": superblock.dedup_domain.hex() or None,
        "metadata": {
            "page_size": superblock.page_size,
            "pages": superblock.page_count,
            "bytes": superblock.metadata_bytes,
            "stored_bytes": found.stored.manifest.bootstrap.size,
            "sections": {name: section._asdict() for name, section in sections.items()},
        },
        "prefetch": None if found.prefetch is None else asdict(found.prefetch),
        "inodes": None if found.opened is None else found.opened.filesystem.tree.inode_count,
        "recipients": [
            {"kind": item.kind, "key_id": item.key_id.hex(), "scrypt_log2_n": item.log2_n or None}
            for item in envelope.recipients
        ],
        "signatures": [
            {"algorithm": item.algorithm, "key_id": item.key_id.hex()} for item in envelope.signatures
        ],
        "blobs": [_blob_json(found, index) for index in range(len(superblock.blobs))],
    }


def _blob_json(found: Findings, index: int) -> dict[str, Any]:
    blob = found.superblock.blobs[index]
    numbers = found.chunks[index] if found.chunks else None
    return {
        "slot": index + 1,
        "digest": blob_digest(blob.blob_id),
        "stored_bytes": blob.size,
        "chunks": blob.chunk_count,
        "decoded_space_bytes": blob.decoded_blocks * BLOCK_SIZE,
        "decoded_bytes": numbers.decoded_bytes if numbers else None,
        "encoded_bytes": numbers.encoded_bytes if numbers else None,
        "codecs": {codec_name(codec): count for codec, count in _codecs(numbers)} if numbers else None,
    }
