"""``rafsfs convert``: a stock container image in, a sealed one out; applies and seals nothing itself."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from rafsfs.cli import output, sealing
from rafsfs.cli.build_request import about_target, show_summary, summary_json
from rafsfs.cli.options import store_options
from rafsfs.cli.sealing_options import SealRequest, check_sealing, sealing_build_options, sealing_options
from rafsfs.cli.signals import ended_cleanly
from rafsfs.errors import BuildError
from rafsfs.store.reference import ImageReference, Reference, parse_reference, parse_source_reference
from rafsfs.store.settings import StoreSettings
from rafsfs.trust.keys import forbid_core_dumps

if TYPE_CHECKING:
    from collections.abc import Callable

    from rafsfs.build.builder import BuildProgress
    from rafsfs.build.options import BuildSummary
    from rafsfs.format.stock import Platform


BuildFunction: TypeAlias = "Callable[..., BuildSummary]"
"""``convert_image``, or ``index_image``."""


@dataclass(frozen=True, slots=True)
class ConvertRequest(SealRequest):
    """One conversion as it was asked for."""

    source: str
    target: str
    platform: Platform | None
    public_config: bool
    no_xattrs: bool
    stores: StoreSettings


def convert(request: ConvertRequest, build: BuildFunction, done: str) -> None:
    """Have ``build`` make a sealed image of a stock one, and tell that it is ``done``."""
    from rafsfs.build.stock_image import host_platform, opened_stock_image

    forbid_core_dumps()
    source = parse_source_reference(request.source)
    target = parse_reference(request.target)
    with ended_cleanly(), ExitStack() as resources:
        folder = _folder_for(target, resources)
        check_sealing(request)
        keys = sealing.load_sealing_keys(request.keys)
        options = sealing_build_options(request, keys, public_config=request.public_config)
        with opened_stock_image(source, request.platform or host_platform(), request.stores) as image:
            read = 0

            def told(count: int) -> None:
                nonlocal read
                read += count

            def fraction() -> float | None:
                return read / (2 * image.stored_bytes) if image.stored_bytes else None

            shown = not (request.quiet or request.as_json)
            with output.progress("Converting", shown=shown, fraction=fraction) as update:

                def report(progress: BuildProgress) -> None:
                    assert update is not None
                    update(progress.entries, progress.bytes_read)

                try:
                    summary = build(
                        image,
                        folder,
                        options,
                        xattrs=not request.no_xattrs,
                        report=report if update else None,
                        told=told,
                    )
                except OSError as error:
                    raise about_target(error, folder) from error
            digest = image.manifest.digest if image.manifest else None
        if folder != target:
            _send(folder, target, request.stores, shown=shown)
    if request.as_json:
        output.print_json(
            summary_json(request.source, target, summary)
            | {"source_digest": digest, "layers": len(image.layers)}
        )
    elif not request.quiet:
        show_summary(target, summary, done=done)


def _folder_for(target: ImageReference, resources: ExitStack) -> Reference:
    """Where to build an image that is to go to ``target``: there, or in a folder to copy it from."""
    if isinstance(target, Reference):
        return target
    if target.digest is not None:
        raise BuildError("an image is built under a tag", found=str(target))
    return Reference(Path(resources.enter_context(tempfile.TemporaryDirectory(prefix="rafsfs-convert-"))))


def _send(folder: Reference, target: ImageReference, stores: StoreSettings, *, shown: bool) -> None:
    from rafsfs.build.copying import copy_image

    state = [0, 1]
    with output.progress("Sending", shown=shown, fraction=lambda: state[0] / max(state[1], 1)) as update:

        def report(done: int, total: int) -> None:
            state[:] = done, total
            if update is not None:
                update(1, done)

        copy_image(folder, target, stores, report)


def platform_callback(_ctx: click.Context, _parameter: click.Parameter, text: str | None) -> Platform | None:
    """``OS/ARCH[/VARIANT]`` -> the platform."""
    from rafsfs.format.stock import parse_platform

    if text is None:
        return None
    try:
        return parse_platform(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


platform_option = click.option(
    "--platform",
    callback=platform_callback,
    metavar="OS/ARCH",
    help="Which image of an index to take, such as linux/arm64 or linux/arm/v7.  [default: this machine's]",
)


@click.command()
@click.argument("source")
@click.argument("target")
@sealing_options
@platform_option
@click.option(
    "--keep-layers",
    is_flag=True,
    help="Store each layer in a blob of its own; with --dedup-secret, images that have a layer in common "
    "then have its blob in common. Costs the room of what upper layers hide.",
)
@click.option(
    "--public-config",
    is_flag=True,
    help="Let whoever stores the image read its config (environment, command, labels), and see what it was "
    "made of. Without it they see the platform alone.",
)
@click.option("--no-xattrs", is_flag=True, help="Leave out extended attributes, capabilities and ACLs.")
@store_options
def command(keep_layers: bool, **request: Any) -> None:
    """Seal the container image SOURCE into TARGET.

    SOURCE is any OCI or Docker image: docker://HOST/REPOSITORY:TAG, oci:FOLDER:TAG, oci-archive:FILE,
    docker-archive:FILE; a bare path is an OCI layout folder. Its layers (tar, gzip, zstd) become one tree, as
    a container sees it; all digests are checked, and nothing is unpacked. Its config is sealed with it, and
    a list of what its command reads first: the program, its loader and libraries. `rafsfs optimize` replaces
    that by a trace of a real start.

    TARGET is a folder, as for `rafsfs build`, or docker://HOST/REPOSITORY:TAG or oci-archive:FILE; for those
    the image is made in the folder for temporary files first.

    \b
    Examples:
      rafsfs convert docker://registry.example/library/python:3.12-slim /images/python:3.12 --key my.key
      rafsfs convert docker-archive:saved.tar /images/app --key my.key --sign release.key
      rafsfs convert oci:layout:v1 docker://registry.example/team/app:sealed --key my.key
    """
    from rafsfs.build.converter import convert_image

    convert(ConvertRequest(**request), partial(convert_image, keep_layers=keep_layers), "Converted")
