"""What an OCI layout folder's index leads to, images of other tools included; changes nothing.

A document is JSON that a descriptor names as such. All descriptors in it count, wherever they stand: indexes,
manifests, configs and artifacts (OCI image-spec v1.1) then need no rules of their own, nor does what comes
next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from rafsfs.errors import BlobNotFound, FormatError, RafsError
from rafsfs.format import oci
from rafsfs.limits import OCI_JSON_BYTES_MAX
from rafsfs.store.oci_layout import LocalFile, blob_digests, blob_path, read_index, read_small_blob

_DOCUMENT = "json"  # how media types of documents end: application/json, …+json
_DOCUMENT_START = b"{"


def needed_digests(folder: Path) -> set[str]:
    """Digests of all that the folder's index leads to, and of what refers to that.

    Raises RafsError when a document of it is damaged, or one of the index's own entries is missing: then
    nobody can tell. Documents deeper down may be missing, as in a copy for one platform.
    """
    needed: set[str] = set()
    entries = [entry.digest for entry in read_index(folder)]
    for digest in entries:
        if not blob_path(folder, digest).exists():
            raise BlobNotFound(
                "a manifest that the index lists is not in the folder",
                hint="copy the image again, it is incomplete",
            ).at(file=str(folder), blob=digest)
    _follow(folder, ((digest, True) for digest in entries), needed)
    subjects = dict(_referrers(folder))
    while found := [
        digest for digest, subject in subjects.items() if subject in needed and digest not in needed
    ]:
        _follow(folder, ((digest, True) for digest in found), needed)
    return needed


def _follow(folder: Path, start: Iterable[tuple[str, bool]], needed: set[str]) -> None:
    """Add all that ``start`` leads to: digests, and whether they are documents."""
    waiting = list(start)
    seen: set[str] = set()
    while waiting:
        digest, is_document = waiting.pop()
        needed.add(digest)
        if is_document and digest not in seen:
            seen.add(digest)
            waiting += _descriptors(_document(folder, digest))


def _document(folder: Path, digest: str) -> dict[str, Any]:
    """A document; empty when it is not there, is none after all, or is longer than manifests can be."""
    path = blob_path(folder, digest)
    if not path.exists() or path.stat().st_size > OCI_JSON_BYTES_MAX:
        return {}
    try:
        data = read_small_blob(folder, digest, "document")
    except RafsError as error:
        raise error.at(file=str(folder), blob=digest) from None
    try:
        return oci.load_json(data, "document")
    except FormatError:
        return {}


def _descriptors(document: dict[str, Any]) -> Iterator[tuple[str, bool]]:
    """All descriptors in a document, and whether they name documents; those without a media type may."""
    waiting: list[Any] = [document]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            if isinstance(digest := value.get("digest"), str) and oci.is_digest(digest):
                yield digest, str(value.get("mediaType", _DOCUMENT)).endswith(_DOCUMENT)
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _referrers(folder: Path) -> Iterator[tuple[str, str]]:
    """Manifests that say what they are about, such as signatures by other tools, and the digest of that.

    Not those of sealed images: what they were made of does not need them.
    """
    for digest in blob_digests(folder):
        try:
            with closing(LocalFile(blob_path(folder, digest), digest, None)) as file:
                if (
                    file.size > OCI_JSON_BYTES_MAX
                    or not file.size
                    or file.read_range(0, 1) != _DOCUMENT_START
                ):
                    continue
            document = oci.load_json(read_small_blob(folder, digest, "document"), "document")
        except RafsError:
            continue  # whoever looks for referrers does not find it either
        match document:
            case {"annotations": {oci.ANNOTATION_SUPERBLOCK: _}}:
                pass
            case {"subject": {"digest": str(subject)}}:
                yield digest, subject
