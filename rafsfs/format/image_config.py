"""The OCI image config (image-spec v1.1, config.md): what containers are started with; never acts on it.

The real one is sealed in the bootstrap. The config blob of the manifest, which whoever stores the image can
read, has either nothing but the platform or a copy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rafsfs.errors import DigestMismatch, FormatError
from rafsfs.format import oci

ANNOTATION_SOURCE = "vnd.rafsfs.source.digest"
"""In a config: digest of the manifest of the stock image that this one was made of."""

PATH_DEFAULT = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for when the image does not say: Docker's choice, on which images rely."""

_OF_LAYERS = {"rootfs", "history"}  # tell of the layers of the image that it was made from
_PLATFORM = ("architecture", "os", "variant")


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """A parsed config. Empty strings and tuples stand for what the image does not say.

    ``volumes`` are paths that containers write to; ``document`` is the whole of it, without ``rootfs``.
    """

    architecture: str
    os: str
    user: str
    env: tuple[str, ...]
    entrypoint: tuple[str, ...]
    cmd: tuple[str, ...]
    working_dir: str
    stop_signal: str
    volumes: tuple[str, ...]
    labels: Mapping[str, str]
    document: Mapping[str, Any] = field(repr=False)  # environments hold passwords


def platform_config(architecture: str) -> dict[str, Any]:
    """The config of an image that was made of files alone."""
    return {"architecture": architecture, "os": "linux", "config": {}}


def sealed_part(document: Mapping[str, Any]) -> dict[str, Any]:
    """What of a stock image's config is sealed: all but the list of layers, which are others now."""
    return {name: value for name, value in document.items() if name != "rootfs"}


def visible_part(document: Mapping[str, Any], *, public: bool) -> dict[str, Any]:
    """What of a sealed config the stored config blob shows, besides its own ``rootfs``."""
    if public:
        return {name: value for name, value in document.items() if name not in _OF_LAYERS}
    return {name: document[name] for name in _PLATFORM if name in document} | {"config": {}}


def check_visible(visible: Mapping[str, Any], sealed: Mapping[str, Any]) -> None:
    """Raise DigestMismatch unless a stored config blob says what the sealed config lets it say."""
    shown = sealed_part(visible)
    if shown not in (visible_part(sealed, public=False), visible_part(sealed, public=True)):
        raise DigestMismatch(
            "the image's visible config is not the sealed one",
            hint="rafsfs goes by the sealed one; other tools may not",
        )


def parse_image_config(data: bytes) -> ImageConfig:
    """Read a config; raises FormatError or LimitExceeded, nothing else."""
    document = oci.load_json(data, "image config")
    settings = document.get("config") or {}
    if not isinstance(settings, dict):
        raise FormatError("image config: 'config' is not an object")
    return ImageConfig(
        architecture=_text(document, "architecture"),
        os=_text(document, "os"),
        user=_text(settings, "User"),
        env=_texts(settings, "Env"),
        entrypoint=_texts(settings, "Entrypoint"),
        cmd=_texts(settings, "Cmd"),
        working_dir=_text(settings, "WorkingDir"),
        stop_signal=_text(settings, "StopSignal"),
        volumes=tuple(_object(settings, "Volumes")),
        labels=_labels(settings),
        document=sealed_part(document),
    )


def _text(value: dict[str, Any], name: str) -> str:
    text = value.get(name)
    if text is None:
        return ""
    if not isinstance(text, str):
        raise FormatError(f"image config: {name!r} is not text")
    return _without_nul(text, name)


def _texts(value: dict[str, Any], name: str) -> tuple[str, ...]:
    items = value.get(name)
    if items is None:
        return ()
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise FormatError(f"image config: {name!r} is not a list of texts")
    return tuple(_without_nul(item, name) for item in items)


def _object(value: dict[str, Any], name: str) -> dict[str, Any]:
    found = value.get(name)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise FormatError(f"image config: {name!r} is not an object")
    for key in found:
        _without_nul(key, name)
    return found


def _labels(value: dict[str, Any]) -> dict[str, str]:
    labels = _object(value, "Labels")
    if not all(isinstance(text, str) for text in labels.values()):
        raise FormatError("image config: 'Labels' is not a map of texts")
    return labels


def _without_nul(text: str, name: str) -> str:
    if "\0" in text:  # no argument, variable or path can hold one
        raise FormatError(f"image config: {name!r} holds a NUL")
    return text
