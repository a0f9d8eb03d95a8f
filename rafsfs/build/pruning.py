"""Removes from an OCI layout folder what nothing in it leads to any more; never touches a tagged image."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rafsfs.build.layout_writer import locked, temporary_files
from rafsfs.build.references import needed_digests
from rafsfs.errors import ImageNotFound, RafsError, StoreError, Where
from rafsfs.format import oci
from rafsfs.store.oci_layout import blob_digests, blob_path, read_small_file


@dataclass(frozen=True, slots=True)
class Removed:
    """A blob that is gone, or would be; ``freed_bytes`` is 0 where another name keeps its data."""

    digest: str
    size: int
    freed_bytes: int


@dataclass(frozen=True, slots=True)
class Pruned:
    """What was removed from a folder, and what stays. ``litter`` are files of builds that were killed."""

    removed: tuple[Removed, ...]
    litter: int
    freed_bytes: int
    kept: int
    kept_bytes: int


def prune(folder: Path, *, dry_run: bool = False) -> Pruned:
    """Remove all blobs that no manifest of the index needs, and what killed builds left.

    Raises ImageNotFound unless it is an OCI layout, StoreError while somebody writes into it or when
    its blobs are not its own, or as `needed_digests` when nobody can tell what is needed. Nothing is removed
    then. Raises OSError when something cannot be removed.
    """
    blobs = _checked(folder)
    with _alone(blobs), locked(folder):
        try:
            needed = needed_digests(folder)
        except RafsError as error:
            error.hint = f"nothing was removed; {error.hint or 'see what `rafsfs check` says of its images'}"
            raise
        present = {digest: blob_path(folder, digest).lstat() for digest in blob_digests(folder)}
        removed = tuple(
            Removed(digest, status.st_size, status.st_size if status.st_nlink == 1 else 0)
            for digest, status in present.items()
            if digest not in needed
        )
        litter = temporary_files(folder)
        freed = sum(item.freed_bytes for item in removed) + sum(path.lstat().st_size for path in litter)
        if not dry_run:
            for path in (*(blob_path(folder, item.digest) for item in removed), *litter):
                path.unlink(missing_ok=True)
    kept = [status.st_size for digest, status in present.items() if digest in needed]
    return Pruned(removed, len(litter), freed, len(kept), sum(kept))


def _checked(folder: Path) -> Path:
    """The folder of a layout's blobs, once it is known to be one."""
    try:
        layout = oci.load_json(read_small_file(folder / oci.LAYOUT_FILE, oci.LAYOUT_FILE), oci.LAYOUT_FILE)
    except RafsError:
        layout = {}
    if not isinstance(layout.get("imageLayoutVersion"), str):
        raise ImageNotFound(
            f"no OCI layout at {str(folder)!r}", hint="name the folder of images alone, without a tag"
        )
    blobs = blob_path(folder, "sha256:")
    for path in (blobs.parent, blobs):
        if path.is_symlink():
            raise StoreError(
                "the folder's blobs lie elsewhere, where other folders may need them",
                where=Where(file=str(path)),
                hint="nothing was removed; such a place cannot be pruned",
            )
    return blobs


@contextmanager
def _alone(blobs: Path) -> Iterator[None]:
    """Keep writers out: each holds a shared lock for as long as it lives (``LayoutWriter``)."""
    descriptor = os.open(blobs, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                "somebody is writing an image into the folder",
                where=Where(file=str(blobs.parent.parent)),
                hint="nothing was removed; try again when the build is done",
            ) from None
        yield
    finally:
        os.close(descriptor)
