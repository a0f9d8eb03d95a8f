"""A packed archive as a plain file, for who reads it at many places; knows nothing of what is in it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rafsfs.build.tar_stream import TarStream, is_packed
from rafsfs.errors import BuildError, Where
from rafsfs.limits import GIB, LAYER_EXPANSION_MAX, LAYER_PLAIN_BYTES_MAX

_PIECE_BYTES: Final = 1 << 20


@contextmanager
def plain_archive(file: Path, scratch: Path | None) -> Iterator[Path]:
    """The archive itself, or of one in gzip or zstd a copy in ``scratch``, while the context lasts.

    Raises BuildError when it is damaged or expands too far. What is no file is left to the reader.
    """
    if not file.is_file():
        yield file
        return
    with file.open("rb") as packed:
        first = packed.read(4)
        packed.seek(0)
        if not is_packed(first):
            yield file
            return
        with tempfile.NamedTemporaryFile(dir=scratch, prefix="rafsfs-archive-") as copy:
            count = 0

            def observe(data: bytes) -> None:
                nonlocal count
                count += len(data)
                most = min(LAYER_PLAIN_BYTES_MAX, max(GIB, LAYER_EXPANSION_MAX * packed.tell()))
                if count > most:
                    raise BuildError(
                        "the archive expands too far",
                        expected=f"at most {most} bytes",
                        where=Where(file=str(file)),
                    )
                copy.write(data)

            stream = TarStream(packed, observe)
            before = -1
            while before != stream.offset:
                before = stream.offset
                stream.skip_padding(_PIECE_BYTES)
            copy.flush()
            yield Path(copy.name)
