"""OCI image documents as rafsfs uses them (OCI image-spec v1.1: image-layout, manifest, descriptor); no file
access.

They are plain JSON from whoever holds the folder: bounded, type-checked, and believed only as far as a digest
that the caller pinned reaches.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from typing import Any

from rafsfs.errors import COPY_AGAIN, DigestMismatch, FormatError, ImageNotFound, LimitExceeded, TagNotFound
from rafsfs.limits import OCI_JSON_BYTES_MAX, OCI_LAYERS_MAX

LAYOUT_FILE = "oci-layout"
LAYOUT_VERSION = "1.0.0"

MEDIA_TYPE_INDEX = "application/vnd.oci.image.index.v1+json"
MEDIA_TYPE_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
MEDIA_TYPE_CONFIG = "application/vnd.oci.image.config.v1+json"
MEDIA_TYPE_BLOB = "application/vnd.rafsfs.blob.v1"
MEDIA_TYPE_BOOTSTRAP = "application/vnd.rafsfs.bootstrap.v1"

MEDIA_TYPE_DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
MEDIA_TYPE_DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"

LAYER_TYPES = (
    "application/vnd.oci.image.layer.v1.tar",
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
)
"""Of stock images; how they are compressed is told by their first bytes."""

INDEXES = (MEDIA_TYPE_INDEX, MEDIA_TYPE_DOCKER_INDEX)
MANIFESTS = ", ".join(
    (MEDIA_TYPE_MANIFEST, MEDIA_TYPE_INDEX, MEDIA_TYPE_DOCKER_MANIFEST, MEDIA_TYPE_DOCKER_INDEX)
)
"""Of an Accept header: all that a tag may lead to."""

ANNOTATION_TAG = "org.opencontainers.image.ref.name"
ANNOTATION_SUPERBLOCK = "vnd.rafsfs.superblock.digest"
"""On a manifest: ``sha256:`` of the superblock, so that pinning a manifest pins an image without hashing all
of it.
"""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def is_digest(text: str) -> bool:
    """Whether a text is a digest of the one kind that is used here."""
    return _DIGEST.fullmatch(text) is not None


def digest_of(data: bytes) -> str:
    """The OCI digest of some bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def check_digest(data: bytes, digest: str, what: str) -> None:
    """Raise DigestMismatch unless ``data`` has this OCI digest."""
    if (found := digest_of(data)) != digest:
        raise DigestMismatch(
            f"{what} is not the one that was named", expected=digest, found=found, hint=COPY_AGAIN
        )


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A reference to a blob: what it is, its digest (``sha256:<hex>``), its size in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The JSON object of the specification."""
        value: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.annotations:
            value["annotations"] = self.annotations
        return value


@dataclass(frozen=True, slots=True)
class Manifest:
    """A rafsfs image's manifest: its data blobs in the superblock's order, and its bootstrap."""

    config: Descriptor
    blobs: tuple[Descriptor, ...]
    bootstrap: Descriptor
    superblock_digest: str
    subject: Descriptor | None = None
    """The image that it was made of, where everybody may know: registries then list it as a referrer."""

    def to_json(self) -> dict[str, Any]:
        """The JSON object of the specification; the bootstrap is the last layer."""
        subject = {} if self.subject is None else {"subject": self.subject.to_json()}
        return subject | {
            "schemaVersion": 2,
            "mediaType": MEDIA_TYPE_MANIFEST,
            "config": self.config.to_json(),
            "layers": [layer.to_json() for layer in (*self.blobs, self.bootstrap)],
            "annotations": {ANNOTATION_SUPERBLOCK: self.superblock_digest},
        }


def dump_json(value: dict[str, Any]) -> bytes:
    """Spell a document: sorted, compact, always the same bytes for the same value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def load_json(data: bytes, what: str) -> dict[str, Any]:
    """Read one JSON object; raises FormatError or LimitExceeded, nothing else."""
    if len(data) > OCI_JSON_BYTES_MAX:
        raise LimitExceeded(
            f"{what} is too long", expected=f"at most {OCI_JSON_BYTES_MAX} bytes", found=len(data)
        )
    try:
        value = json.loads(data.decode())  # given bytes, it would take UTF-16, too
        if b"\\u" in data:
            dump_json(value)  # lone surrogates can be escaped, but never be written again
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not JSON", found=type(error).__name__, hint=COPY_AGAIN) from None
    if not isinstance(value, dict):
        raise FormatError(f"{what} is not a JSON object", hint=COPY_AGAIN)
    return value


def parse_descriptor(value: Any, what: str) -> Descriptor:
    """Read one descriptor; raises FormatError."""
    match value:
        case {"mediaType": str(media_type), "digest": str(digest), "size": int(size)} if (
            size >= 0 and type(size) is int  # true is an int, too
        ):
            pass
        case _:
            raise FormatError(f"{what} is not a descriptor")
    if not _DIGEST.fullmatch(digest):
        raise FormatError(f"{what}: digest", expected="sha256:<64 hex digits>", found=digest[:80])
    return Descriptor(media_type, digest, size, _annotations(value, what))


def _annotations(value: dict[str, Any], what: str) -> dict[str, str]:
    annotations = value.get("annotations") or {}
    if not isinstance(annotations, dict) or not all(isinstance(text, str) for text in annotations.values()):
        raise FormatError(f"{what}: annotations are not a map of strings")
    return annotations


def parse_index(data: bytes) -> list[Descriptor]:
    """The manifests that an ``index.json`` lists."""
    value = load_json(data, "index.json")
    manifests = value.get("manifests")
    if not isinstance(manifests, list):
        raise FormatError("index.json lists no manifests", hint=COPY_AGAIN)
    return [parse_descriptor(item, "index.json: entry") for item in manifests]


def described(digest: str, entries: list[Descriptor]) -> Descriptor:
    """The entry of an index with this digest; for one that is not listed, all that its digest says."""
    listed = next((entry for entry in entries if entry.digest == digest), None)
    return listed or Descriptor(MEDIA_TYPE_MANIFEST, digest, 0)


def no_image_with(digest: str, place: str) -> TagNotFound:
    """Make the error for a digest that no entry has and that nothing is stored under."""
    return TagNotFound(
        f"no image with the digest {digest} in {place!r}", hint="name one that is there, or a tag of it"
    )


def tagged(tag: str | None, entries: list[Descriptor], place: str) -> Descriptor:
    """The last entry of an index with this tag, or the only entry for None; raises TagNotFound."""
    found = [entry for entry in entries if tag is None or entry.annotations.get(ANNOTATION_TAG) == tag]
    if not found or (tag is None and len(found) > 1):
        tags = sorted({entry.annotations.get(ANNOTATION_TAG, "") for entry in entries} - {""})
        raise TagNotFound(
            f"no tag {tag!r} in {place!r}" if tag else f"{len(found) or 'no'} images in {place!r}, not one",
            hint=f"it has: {', '.join(tags[:20])}" if tags else "it has no tags",
        )
    return found[-1]


def index_entries(data: bytes) -> list[Descriptor]:
    """What an image index lists; raises FormatError or LimitExceeded."""
    manifests = load_json(data, "image index").get("manifests")
    if not isinstance(manifests, list):
        raise FormatError("image index lists no manifests")
    if len(manifests) > OCI_LAYERS_MAX:
        raise LimitExceeded("image index", expected=f"at most {OCI_LAYERS_MAX}", found=len(manifests))
    return [parse_descriptor(item, "image index: entry") for item in manifests]


def manifest_parts(data: bytes) -> list[Descriptor]:
    """Config and layers of any image's manifest, a sealed one's or another; raises FormatError."""
    value = load_json(data, "manifest")
    layers = value.get("layers")
    if not isinstance(layers, list):
        raise FormatError("manifest has no layers")
    if len(layers) > OCI_LAYERS_MAX:
        raise LimitExceeded("manifest's layers", expected=f"at most {OCI_LAYERS_MAX}", found=len(layers))
    config = parse_descriptor(value.get("config"), "manifest: config")
    return [config, *(parse_descriptor(layer, "manifest: layer") for layer in layers)]


def choose_platform(data: bytes, architecture: str) -> Descriptor:
    """The manifest for Linux on ``architecture`` (a Go name) out of an image index; raises ImageNotFound.

    A single entry is taken whatever it says, for who made a sealed image may not have said anything.
    """
    entries = index_entries(data)
    manifests = load_json(data, "image index")["manifests"]
    platforms = [item.get("platform") if isinstance(item, dict) else None for item in manifests]
    if len(entries) == 1:
        return entries[0]
    for entry, platform in zip(entries, platforms, strict=True):
        match platform:
            case {"os": "linux", "architecture": str(found)} if found == architecture:
                return entry
    raise ImageNotFound(f"the image index has no image for linux/{architecture}")


def parse_manifest(data: bytes) -> Manifest:
    """Read a rafsfs manifest; raises FormatError when it is another kind of image."""
    value = load_json(data, "manifest")
    layers = value.get("layers")
    if not isinstance(layers, list) or not layers:
        raise FormatError("manifest has no layers", hint="this is not a rafsfs image")
    if len(layers) > OCI_LAYERS_MAX:
        raise LimitExceeded("manifest's layers", expected=f"at most {OCI_LAYERS_MAX}", found=len(layers))
    *blobs, bootstrap = (parse_descriptor(layer, "manifest: layer") for layer in layers)
    if bootstrap.media_type != MEDIA_TYPE_BOOTSTRAP or any(
        blob.media_type not in (MEDIA_TYPE_BLOB, *LAYER_TYPES) for blob in blobs
    ):
        raise FormatError(
            "manifest is not of a rafsfs image",
            expected=f"a last layer of type {MEDIA_TYPE_BOOTSTRAP}",
            found=bootstrap.media_type[:120],
        )
    digest = _annotations(value, "manifest").get(ANNOTATION_SUPERBLOCK, "")
    if not _DIGEST.fullmatch(digest):
        raise FormatError(f"manifest has no annotation {ANNOTATION_SUPERBLOCK}")
    config = parse_descriptor(value.get("config"), "manifest: config")
    subject = value.get("subject")
    if subject is not None:
        subject = parse_descriptor(subject, "manifest: subject")
    return Manifest(config, tuple(blobs), bootstrap, digest, subject)
