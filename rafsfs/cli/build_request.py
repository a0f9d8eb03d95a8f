"""One build as the command line asks for it: keys, source and dictionaries in, progress and summary out."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from rafsfs.cli import output, sealing
from rafsfs.cli.exit_codes import DISK_FULL
from rafsfs.cli.optimize import prefetch_json, prefetch_text
from rafsfs.cli.sealing_options import SealRequest, check_sealing, sealing_build_options
from rafsfs.cli.signals import ended_cleanly
from rafsfs.errors import BuildError, NotEncrypted, RafsError, Where, WrongKey
from rafsfs.frontends.logs import one_line
from rafsfs.store.reference import ImageReference, Reference, parse_layout_reference
from rafsfs.trust.keys import KeyRing, Passphrase, SymmetricKey, forbid_core_dumps

if TYPE_CHECKING:
    from rafsfs.build.builder import BuildProgress
    from rafsfs.build.options import BuildOptions, BuildSummary
    from rafsfs.build.source import Source
    from rafsfs.fs.image import OpenImage

STANDARD_INPUT: Final = "-"
NO_FOLDER: Final = {errno.ENOENT, errno.ENOTDIR}
NOT_ALLOWED: Final = {errno.EACCES, errno.EPERM, errno.EROFS}
DICTIONARY_CACHE_BYTES: Final = 64 << 20  # each of its chunks is read once, front to back


@dataclass(frozen=True, slots=True)
class BuildRequest(SealRequest):
    """One build as it was asked for: file names and numbers, no secrets."""

    source: str
    image: str
    chunk_dict: tuple[str, ...]
    dict_key: tuple[Path, ...]
    exclude: tuple[str, ...]
    one_file_system: bool
    no_xattrs: bool
    prefetch: tuple[Path, ...]
    platform: str | None


def build(request: BuildRequest) -> None:
    """Build the image and tell how it went. Raises what `build_image` raises, KeyFileError, UsageError."""
    from rafsfs.build.builder import build_image
    from rafsfs.build.prefetch import load_traces

    forbid_core_dumps()
    target = parse_layout_reference(request.image)
    with ended_cleanly(), ExitStack() as resources:
        _check_use(request)
        keys = sealing.load_sealing_keys(request.keys)
        given = {"architecture": request.platform} if request.platform else {}
        options = sealing_build_options(request, keys, **given)
        traced = load_traces(request.prefetch)
        source, fraction = resources.enter_context(_opened_source(request, target))
        dictionaries = _open_dictionaries(request, options, keys, resources)
        shown = not (request.quiet or request.as_json)
        update = resources.enter_context(output.progress("Building", shown=shown, fraction=fraction))

        def report(progress: BuildProgress) -> None:
            assert update is not None
            update(progress.entries, progress.bytes_read)

        try:
            summary = build_image(
                source,
                target,
                options,
                dictionaries=dictionaries,
                traced=traced,
                report=report if update else None,
            )
        except OSError as error:
            raise about_target(error, target) from error
    if request.as_json:
        output.print_json(summary_json(request.source, target, summary))
    elif not request.quiet:
        show_summary(target, summary)


# --- What is asked for --------------------------------------------------------------------------------------


def _check_use(request: BuildRequest) -> None:
    check_sealing(request)
    if request.source == STANDARD_INPUT and STANDARD_INPUT in map(
        str, (*request.keys, *request.sign, *request.dict_key, request.dedup_secret, request.passphrase_file)
    ):
        raise click.UsageError("standard input cannot be both the source and a key")


# --- What is read -------------------------------------------------------------------------------------------


@contextmanager
def _opened_source(
    request: BuildRequest, target: Reference
) -> Iterator[tuple[Source, Callable[[], float | None]]]:
    """Open the source, and give it with what tells how much of it is read (None: nobody knows)."""
    if request.source != STANDARD_INPUT and Path(request.source).is_dir():
        from rafsfs.build.directory_source import DirectorySource

        _check_outside(request, target)
        tree = DirectorySource(
            request.source,
            request.exclude,
            xattrs=not request.no_xattrs,
            one_file_system=request.one_file_system,
        )
        try:
            yield tree, lambda: None
        finally:
            tree.close()
        return
    if request.one_file_system:
        raise click.UsageError("--one-file-system is for directories, not for tar archives")
    with _opened_archive(request.source) as fd, open(fd, "rb", closefd=False) as file:
        from rafsfs.build.excluding_source import ExcludingSource
        from rafsfs.build.tar_source import TarSource

        archive: Source = TarSource(file, xattrs=not request.no_xattrs)
        if request.exclude:
            archive = ExcludingSource(archive, request.exclude)
        try:
            yield archive, _read_fraction(fd)
        finally:
            archive.close()


@contextmanager
def _opened_archive(name: str) -> Iterator[int]:
    if name == STANDARD_INPUT:
        if sys.stdin is None or sys.stdin.closed:
            raise BuildError("the source cannot be read", found="standard input is closed")
        if sys.stdin.isatty():
            raise click.UsageError("standard input is a terminal; pipe a tar archive into it")
        yield sys.stdin.fileno()
        return
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise BuildError(
            "the source cannot be read",
            found=error.strerror,
            where=Where(path=name),
            hint="give a directory, a tar archive, or - for one on standard input",
        ) from error
    try:
        yield fd
    finally:
        os.close(fd)


def _read_fraction(fd: int) -> Callable[[], float | None]:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or not status.st_size:
        return lambda: None
    return lambda: os.lseek(fd, 0, os.SEEK_CUR) / status.st_size


def _check_outside(request: BuildRequest, target: Reference) -> None:
    """Refuse to make the image a part of itself."""
    from rafsfs.build.exclude import Exclude

    source, folder = Path(request.source).resolve(), target.folder.resolve()
    if not folder.is_relative_to(source):
        return
    path = folder.relative_to(source)
    exclude = Exclude(request.exclude)
    above = [parent for parent in (path, *path.parents) if parent.name]
    if any(exclude(str(parent), parent.name, is_directory=True) for parent in above):
        return
    raise BuildError(
        "the image lies inside its own source",
        where=Where(path=str(target.folder)),
        hint="build into another folder" + (f", or leave it out with --exclude /{path}" if path.name else ""),
    )


def _open_dictionaries(
    request: BuildRequest, options: BuildOptions, keys: sealing.SealingKeys, resources: ExitStack
) -> Sequence[OpenImage]:
    if not request.chunk_dict:
        if request.dict_key:
            raise click.UsageError("--dict-key opens a --chunk-dict, but there is none")
        return ()
    from rafsfs.fs.image import open_sealed
    from rafsfs.trust.opening import TrustPolicy

    keyring = _dictionary_keys(request, options, keys)
    opened = []
    for name in request.chunk_dict:
        try:
            image = open_sealed(
                parse_layout_reference(name), keyring, TrustPolicy(), cache_bytes=DICTIONARY_CACHE_BYTES
            )
        except RafsError as error:
            error.what = f"chunk dictionary {name}: {error.what}"
            if isinstance(error, NotEncrypted):
                error.hint = (
                    "a sealed image takes no unencrypted dictionary; build with --unencrypted, or another"
                )
            elif isinstance(error, WrongKey):
                error.hint = "give one of the expected keys with --dict-key FILE"
            raise
        resources.callback(image.close)
        opened.append(image)
    return opened


def _dictionary_keys(request: BuildRequest, options: BuildOptions, keys: sealing.SealingKeys) -> KeyRing:
    """Give all keys of the build that can open something, and those that are there for dictionaries."""
    extra = KeyRing.load(request.dict_key)
    symmetric = [key for key in options.recipients if isinstance(key, SymmetricKey)]
    return KeyRing(
        symmetric=(*symmetric, *extra.symmetric),
        identities=(*keys.identities, *extra.identities),
        passphrases=tuple(key for key in options.recipients if isinstance(key, Passphrase)),
    )


# --- What is told -------------------------------------------------------------------------------------------


def about_target(error: OSError, target: Reference) -> OSError:
    """Say what to do about an error of the system's; the source's own have become BuildErrors by then."""
    place = error.filename if error.filename is not None else str(target.folder)
    if error.errno in DISK_FULL:  # what to do about that is the same for all commands
        return OSError(error.errno, error.strerror, place)
    hint = "there is no image, or the earlier one as it was"
    if error.errno in NO_FOLDER:
        hint = "choose a folder that is there or can be made"
    elif error.errno in NOT_ALLOWED:
        hint = "choose a folder that you may write to"
    return OSError(error.errno, f"{error.strerror}; {hint}", place)


def summary_json(source: str, target: ImageReference, summary: BuildSummary) -> dict[str, Any]:
    """Tell a program what was built."""
    return {
        "source": source,
        "image": str(target),
        "digest": summary.manifest_digest,
        "image_id": summary.image_id,
        "inodes": summary.inodes,
        "files": summary.files,
        "directories": summary.directories,
        "chunks": summary.chunks,
        "bytes_in": summary.bytes_in,
        "bytes_holes": summary.bytes_holes,
        "bytes_unique": summary.bytes_unique,
        "bytes_deduplicated": summary.bytes_deduplicated,
        "bytes_stored": summary.bytes_stored,
        "metadata_bytes": summary.metadata_bytes,
        "prefetch": prefetch_json(summary.prefetch),
        "seconds": round(summary.seconds, 3),
        "bytes_per_second": round(summary.bytes_data / max(summary.seconds, 1e-6)),
    }


def show_summary(target: ImageReference, summary: BuildSummary, done: str = "Built") -> None:
    """Tell a user what was built."""
    others = summary.inodes - summary.files - summary.directories
    output.print_line(
        f"{done} {one_line(str(target))} in {summary.seconds:.1f} s, "
        f"{output.speed(summary.bytes_data, summary.seconds)}"
    )
    stored_share = output.share(summary.bytes_stored, summary.bytes_in)
    fields = [
        ("files", f"{summary.files:,}, directories {summary.directories:,}, others {others:,}"),
        ("bytes in", output.byte_size(summary.bytes_in)),
        ("holes", output.byte_size(summary.bytes_holes)),
        (
            "saved by dedup",
            f"{output.byte_size(summary.bytes_deduplicated)} "
            f"({output.share(summary.bytes_deduplicated, summary.bytes_in)})",
        ),
        ("unique", output.byte_size(summary.bytes_unique)),
        (
            "stored",
            f"{output.byte_size(summary.bytes_stored)} ({stored_share} of bytes in), "
            f"of which metadata {output.byte_size(summary.metadata_bytes)}",
        ),
    ]
    if summary.prefetch.paths:
        fields.append(("prefetch", prefetch_text(summary.prefetch)))
    output.print_fields(field for field in fields if field[0] != "holes" or summary.bytes_holes)
    output.print_line(f"  {summary.manifest_digest}")
