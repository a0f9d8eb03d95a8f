"""rafsfs: sealed, read-only images of file trees; this file is the public API and nothing else."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rafsfs.frontends.library import Image as Image
    from rafsfs.frontends.library import open_image as open_image

__all__ = ["Image", "open_image"]


def __getattr__(name: str) -> Any:
    # late, so that `rafsfs mount` does not import what only programs use
    if name in __all__:
        from rafsfs.frontends import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
