"""Makes sealed images of stock ones; owns what of the stock image's documents goes where."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from rafsfs.build.builder import Report, build_image
from rafsfs.build.layered_builder import build_layered
from rafsfs.build.layered_source import LayeredSource, tell_nobody
from rafsfs.build.options import BuildOptions, BuildSummary
from rafsfs.build.stock_image import StockImage
from rafsfs.format import oci
from rafsfs.format.image_config import ANNOTATION_SOURCE, parse_image_config
from rafsfs.store.reference import Reference


def convert_image(
    image: StockImage,
    target: Reference,
    options: BuildOptions,
    *,
    xattrs: bool = True,
    keep_layers: bool = False,
    report: Report | None = None,
    told: Callable[[int], None] = tell_nobody,
) -> BuildSummary:
    """Build ``image``'s tree and config into ``target``; what ``options`` say of a config does not count.

    With ``keep_layers`` each layer has a blob of its own, which images with that layer can have in common.
    ``told`` is called with how many stored bytes of layers were read; each is read twice. Raises as
    ``build_image``, and FormatError, StoreError and DigestMismatch for a source that is not what it says.
    """
    options = with_config_of(image, options)
    if keep_layers:
        return build_layered(image.layers, target, options, xattrs=xattrs, report=report, told=told)
    source = LayeredSource(image.layers, xattrs=xattrs, told=told)
    try:
        return build_image(source, target, options, report=report)
    finally:
        source.close()


def with_config_of(image: StockImage, options: BuildOptions) -> BuildOptions:
    """``options`` with the config of a stock image, in which it says what it was made of."""
    parse_image_config(image.config)  # what nobody could run should be known now
    document: dict[str, Any] = oci.load_json(image.config, "image config")
    if image.manifest is not None:
        document[ANNOTATION_SOURCE] = image.manifest.digest
    return replace(options, config=document, subject=image.manifest)
