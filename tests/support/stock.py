"""Stock container images for tests, written by hand from tar members; never used by the package."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
TAG = "org.opencontainers.image.ref.name"
FRAME_BYTES = 256 << 10


def frames(data: bytes) -> bytes:
    """Zstd frames one after the other, as seekable layers have them, and one to be skipped at the end."""
    parts = (data[start : start + FRAME_BYTES] for start in range(0, len(data), FRAME_BYTES))
    packed = b"".join(zstandard.ZstdCompressor(write_checksum=True).compress(part) for part in parts)
    return packed + (0x184D2A50).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"end"


PACKERS = {
    "tar": lambda data: data,
    "gzip": lambda data: gzip.compress(data, 6, mtime=0),
    "zstd": lambda data: zstandard.ZstdCompressor().compress(data),
    "frames": frames,
}
SUFFIXES = {"tar": "", "gzip": "+gzip", "zstd": "+zstd", "frames": "+zstd"}


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def member(name: str, data: bytes | None = None, **fields: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A member of a layer; a regular file when there are data, else a directory unless ``type`` says so."""
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE if data is None else tarfile.REGTYPE
    info.mode = 0o755 if data is None else 0o644
    info.mtime = 1_600_000_000
    for key, value in fields.items():
        setattr(info, key, value)
    info.size = len(data or b"")
    return info, data or b""


def link(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.LNKTYPE, linkname=target)


def symlink(name: str, target: str) -> tuple[tarfile.TarInfo, bytes]:
    return member(name, type=tarfile.SYMTYPE, linkname=target, mode=0o777)


def layer(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    """A plain tar of these members, in this order."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, data in members:
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


@dataclass
class Stock:
    """A layout folder that images are put into."""

    folder: Path
    entries: list[dict[str, Any]] = field(default_factory=list)

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        digest = digest_of(data)
        path = self.folder / "blobs" / "sha256" / digest.removeprefix("sha256:")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return {"mediaType": media_type, "digest": digest, "size": len(data)}

    def image(
        self,
        layers: Sequence[bytes],
        *,
        packing: Sequence[str] = (),
        config: dict[str, Any] | None = None,
        architecture: str = "amd64",
        diff_ids: Sequence[str] | None = None,
        media_types: Sequence[str] | None = None,
    ) -> dict[str, Any]:
        """Store an image and give its descriptor; ``packing`` names how each layer is packed (gzip)."""
        packing = packing or ["gzip"] * len(layers)
        document = {
            "architecture": architecture,
            "os": "linux",
            "config": config or {},
            "rootfs": {"type": "layers", "diff_ids": list(diff_ids or map(digest_of, layers))},
        }
        types = media_types or [LAYER_TYPE + SUFFIXES[kind] for kind in packing]
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": self.blob(json.dumps(document).encode(), CONFIG_TYPE),
            "layers": [
                self.blob(PACKERS[kind](data), media_type)
                for data, kind, media_type in zip(layers, packing, types, strict=True)
            ],
        }
        return self.blob(json.dumps(manifest).encode(), MANIFEST_TYPE)

    def index(self, images: dict[str, dict[str, Any]]) -> dict[str, Any]:
        """Store an index of images by platform (``linux/arm/v7``) and give its descriptor."""
        entries = []
        for platform, descriptor in images.items():
            parts = dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))
            entries.append(descriptor | {"platform": parts})
        data = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": entries}
        return self.blob(json.dumps(data).encode(), INDEX_TYPE)

    def tag(self, descriptor: dict[str, Any], tag: str = "latest") -> str:
        """Let a tag lead to it; gives the reference."""
        self.entries.append(descriptor | {"annotations": {TAG: tag}})
        (self.folder / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        index = {"schemaVersion": 2, "manifests": self.entries}
        (self.folder / "index.json").write_text(json.dumps(index))
        return f"{self.folder}:{tag}"


def stock_image(folder: Path, *layers: bytes, **options: Any) -> str:
    """An image of plain tars in a folder of its own; gives the reference."""
    stock = Stock(folder)
    return stock.tag(stock.image(layers, **options))
