"""Documents of stock images, OCI (image-spec v1.1) and Docker (image manifest v2, schema 2); no file access.

What they name is believed only as far as digests reach, and read by nobody but the builder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from rafsfs.errors import FormatError, ImageNotFound, LimitExceeded, UnsupportedVersion
from rafsfs.format import oci
from rafsfs.format.oci import Descriptor
from rafsfs.limits import OCI_LAYERS_MAX

_CONFIG_TYPES = {oci.MEDIA_TYPE_CONFIG, "application/vnd.docker.container.image.v1+json"}
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PLATFORM = re.compile(r"([a-z0-9]{1,32})/([a-z0-9_]{1,32})(?:/([a-z0-9.]{1,32}))?")


@dataclass(frozen=True, slots=True)
class Platform:
    """What an image runs on, in the names of Go's GOOS and GOARCH; an empty variant fits each."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))


@dataclass(frozen=True, slots=True)
class StockManifest:
    """A stock image's manifest; layers from the lowest to the uppermost."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


def parse_platform(text: str) -> Platform:
    """Read ``OS/ARCHITECTURE[/VARIANT]``; raises ValueError."""
    match = _PLATFORM.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a platform; write linux/amd64 or linux/arm/v7")
    return Platform(match[1], match[2], match[3] or "")


def choose_manifest(data: bytes, wanted: Platform) -> Descriptor:
    """Find the image for a platform in an index; raises FormatError, or ImageNotFound, which lists them."""
    manifests = oci.load_json(data, "image index").get("manifests")
    if not isinstance(manifests, list) or len(manifests) > OCI_LAYERS_MAX:
        raise FormatError("image index lists no manifests")
    found = []
    for item in manifests:
        descriptor = oci.parse_descriptor(item, "image index: entry")
        platform = _platform(item.get("platform"))
        if platform is None and len(manifests) == 1:  # nothing to choose from
            return descriptor
        if platform is not None and platform.os != "unknown":  # buildkit lists attestations so
            found.append((platform, descriptor))
    for platform, descriptor in found:
        if (platform.os, platform.architecture) == (wanted.os, wanted.architecture) and (
            not wanted.variant or wanted.variant == platform.variant
        ):
            return descriptor
    raise ImageNotFound(
        f"no image for {wanted}",
        hint="it has: " + ", ".join(sorted(str(platform) for platform, _ in found[:20])),
    )


def _platform(value: Any) -> Platform | None:
    match value:
        case {"os": str(os), "architecture": str(architecture)}:
            variant = value.get("variant")
            return Platform(os[:32], architecture[:32], variant[:32] if isinstance(variant, str) else "")
        case _:
            return None


def parse_stock_manifest(data: bytes) -> StockManifest:
    """Read the manifest of one image; raises FormatError, UnsupportedVersion or LimitExceeded."""
    value = oci.load_json(data, "manifest")
    if value.get("schemaVersion") != 2:
        raise UnsupportedVersion(
            "image manifest's schema version", expected=2, found=repr(value.get("schemaVersion"))[:40]
        )
    layers = value.get("layers")
    if not isinstance(layers, list):
        raise FormatError("manifest has no layers")
    if len(layers) > OCI_LAYERS_MAX:
        raise LimitExceeded("manifest's layers", expected=f"at most {OCI_LAYERS_MAX}", found=len(layers))
    config = oci.parse_descriptor(value.get("config"), "manifest: config")
    if config.media_type not in _CONFIG_TYPES:
        raise FormatError(
            "this is not a container image", expected=oci.MEDIA_TYPE_CONFIG, found=config.media_type[:120]
        )
    parsed = tuple(oci.parse_descriptor(layer, "manifest: layer") for layer in layers)
    for layer in parsed:
        if layer.media_type in {oci.MEDIA_TYPE_BOOTSTRAP, oci.MEDIA_TYPE_BLOB}:
            raise FormatError("this image is sealed already", hint="mount it, or copy it as it is")
        if layer.media_type not in oci.LAYER_TYPES:
            raise UnsupportedVersion(
                "a layer of a kind that is not read",
                expected="tar, tar+gzip or tar+zstd",
                found=layer.media_type[:120],
            )
    return StockManifest(config, parsed)


def parse_diff_ids(config: bytes, layer_count: int) -> list[str]:
    """The digests of the plain layers out of a config; raises FormatError unless there is one for each."""
    rootfs = oci.load_json(config, "image config").get("rootfs")
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list) or not all(
        isinstance(item, str) and _DIGEST.fullmatch(item) for item in diff_ids
    ):
        raise FormatError("image config lists no digests of layers (rootfs.diff_ids)")
    if len(diff_ids) != layer_count:
        raise FormatError(
            "image config lists other layers than the manifest", expected=layer_count, found=len(diff_ids)
        )
    return diff_ids
