"""Images in a tar file as ``docker save`` writes it; reads files where they lie in it, believes no name.

Such an archive states no digests of its parts. Layers are known by the digests of their plain form, which the
config lists; the config is what whoever made the archive says it is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rafsfs.errors import BlobNotFound, FormatError, ImageNotFound, LimitExceeded, Where
from rafsfs.limits import OCI_JSON_BYTES_MAX, OCI_LAYERS_MAX
from rafsfs.store.oci_archive import ArchivedFile, archive_members
from rafsfs.store.oci_layout import LocalFile

_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class SavedImage:
    """One image of an archive: its config, and its layers from the lowest to the uppermost."""

    config: bytes
    layers: tuple[ArchivedFile, ...]


class DockerArchive:
    """All images of one archive, which stays open."""

    def __init__(self, file: Path, named: Path) -> None:
        """List what is in the plain tar ``file``, which errors call ``named``.

        Raises ImageNotFound, FormatError, StoreError.
        """
        self.name = f"docker-archive:{named}"
        try:
            self._file = LocalFile(file, self.name, None)
        except BlobNotFound:
            raise ImageNotFound(f"no archive at {str(named)!r}") from None
        try:
            self._members = archive_members(file, named)
            self._images = self._listed()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the archive."""
        self._file.close()

    def find(self, name: str | None) -> SavedImage:
        """The image with this ``name:tag``, or for None the only one. Raises ImageNotFound, FormatError."""
        named = [image for image in self._images if name is None or name in (image.get("RepoTags") or ())]
        if not named or (name is None and len(named) > 1):
            names = [str(tag) for image in self._images for tag in image.get("RepoTags") or ()]
            raise ImageNotFound(
                f"no image {name!r} in {self.name}" if name else f"{len(named) or 'no'} images, not one",
                hint=f"it has: {', '.join(names[:20])}" if names else "its images have no names",
            )
        match named[0]:
            case {"Config": str(config), "Layers": list(layers)} if all(
                isinstance(layer, str) for layer in layers
            ):
                pass
            case _:
                raise self._malformed("an image without config or layers")
        if len(layers) > OCI_LAYERS_MAX:
            raise LimitExceeded("image's layers", expected=f"at most {OCI_LAYERS_MAX}", found=len(layers))
        return SavedImage(self._small(config), tuple(map(self._open, layers)))

    def _listed(self) -> list[dict[str, Any]]:
        try:
            images = json.loads(self._small(_MANIFEST).decode())
        except (ValueError, RecursionError) as error:
            raise self._malformed(type(error).__name__) from None
        if not isinstance(images, list):
            raise self._malformed("no list")
        for image in images:
            tags = image.get("RepoTags") if isinstance(image, dict) else 0
            if tags is not None and not isinstance(tags, list):
                raise self._malformed("an image that is no object, or without a list of names")
        return images

    def _malformed(self, found: str) -> FormatError:
        return FormatError(
            f"the archive's {_MANIFEST} is malformed", found=found, where=Where(file=self.name)
        )

    def _place(self, name: str) -> tuple[int, int]:
        if name not in self._members:
            raise BlobNotFound(
                f"{name!a} is not in the archive",
                where=Where(file=self.name),
                hint="make it again with `docker save` or skopeo",
            )
        return self._members[name]

    def _open(self, name: str) -> ArchivedFile:
        return ArchivedFile(self._file, name, *self._place(name))

    def _small(self, name: str) -> bytes:
        offset, size = self._place(name)
        if size > OCI_JSON_BYTES_MAX:
            raise LimitExceeded(f"{name!a} is too long", expected=f"at most {OCI_JSON_BYTES_MAX} bytes")
        return self._file.read_range(offset, size)
