"""Finds a stock image (OCI or Docker) and hands out its documents and layers; applies nothing."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from rafsfs.build.layer_reader import StockLayer
from rafsfs.format import oci
from rafsfs.format.oci import Descriptor
from rafsfs.format.stock import Platform, choose_manifest, parse_diff_ids, parse_stock_manifest
from rafsfs.store.base import RemoteFile, Store, StoredFile
from rafsfs.store.oci_layout import LocalFile
from rafsfs.store.reference import DockerArchiveReference, SourceReference
from rafsfs.store.settings import StoreSettings
from rafsfs.store.stores import architecture, open_store


@dataclass(frozen=True, slots=True)
class StockImage:
    """A stock image. ``manifest`` is None for one that has none (docker-archive).

    Layers come from the lowest to the uppermost; they can be opened while the image is open.
    """

    manifest: Descriptor | None
    config: bytes
    layers: tuple[StockLayer, ...]

    @property
    def stored_bytes(self) -> int:
        """Size of all layers as they are stored."""
        return sum(layer.size for layer in self.layers)


def host_platform() -> Platform:
    """What this machine runs."""
    return Platform("linux", architecture())


@contextmanager
def opened_stock_image(
    reference: SourceReference, platform: Platform, stores: StoreSettings, scratch: Path | None = None
) -> Iterator[StockImage]:
    """Find an image, in an index the one for ``platform``; its documents have the digests that name them.

    Layers that are not on this machine are fetched when they are opened for the first time, into files
    without names in ``scratch`` (None: the usual place for temporary files), and kept to the end.

    Raises ImageNotFound, StoreError, FormatError, DigestMismatch.
    """
    with ExitStack() as resources:
        if isinstance(reference, DockerArchiveReference):
            yield _saved(reference, scratch, resources)
            return
        store = open_store(reference, stores)
        resources.callback(store.close)
        found = store.find(reference.tag, reference.digest)
        data = store.manifest(found)
        if found.media_type in oci.INDEXES:
            found = choose_manifest(data, platform)
            data = store.manifest(found)
        manifest = parse_stock_manifest(data)
        config = store.document(manifest.config, "config")
        diff_ids = parse_diff_ids(config, len(manifest.layers))
        layers = []
        for descriptor, diff_id in zip(manifest.layers, diff_ids, strict=True):
            opener = _Opener(store, descriptor, scratch, resources)
            known = (descriptor.digest, descriptor.digest, diff_id, descriptor.size)
            layers.append(StockLayer(*known, opener.open, descriptor.media_type))
        yield StockImage(Descriptor(found.media_type, found.digest, len(data)), config, tuple(layers))


def _saved(reference: DockerArchiveReference, scratch: Path | None, resources: ExitStack) -> StockImage:
    from rafsfs.build.plain_archive import plain_archive
    from rafsfs.store.docker_archive import DockerArchive

    plain = resources.enter_context(plain_archive(reference.file, scratch))
    archive = DockerArchive(plain, reference.file)
    resources.callback(archive.close)
    image = archive.find(reference.name)
    diff_ids = parse_diff_ids(image.config, len(image.layers))
    layers = tuple(
        StockLayer(file.name, None, diff_id, file.size, partial(_itself, file))
        for file, diff_id in zip(image.layers, diff_ids, strict=True)
    )
    return StockImage(None, image.config, layers)


def _itself(file: StoredFile) -> StoredFile:
    return file


class _Opener:
    """Opens one layer; one that is elsewhere is fetched once."""

    def __init__(
        self, store: Store, descriptor: Descriptor, scratch: Path | None, resources: ExitStack
    ) -> None:
        self._store = store
        self._descriptor = descriptor
        self._scratch = scratch
        self._resources = resources
        self._fetched: StoredFile | None = None

    def open(self) -> StoredFile:
        """See ``StockLayer.open``."""
        if self._fetched is not None:
            return _Kept(self._fetched)
        file = self._store.open(self._descriptor)
        if not isinstance(file, RemoteFile):
            return file
        try:
            self._fetched = self._fetch(file)
        finally:
            file.close()
        return _Kept(self._fetched)

    def _fetch(self, file: RemoteFile) -> StoredFile:
        with tempfile.NamedTemporaryFile(dir=self._scratch, prefix="rafsfs-layer-") as copy:

            def take(data: bytes) -> None:
                copy.write(data)

            file.stream_range(0, file.size, take)
            copy.flush()
            local = LocalFile(Path(copy.name), file.name, file.size)
        self._resources.callback(local.close)
        return local


class _Kept:
    """A file that stays open when its reader closes it."""

    def __init__(self, file: StoredFile) -> None:
        self.name = file.name
        self.size = file.size
        self.read_range = file.read_range

    def close(self) -> None:
        """The image closes it."""
