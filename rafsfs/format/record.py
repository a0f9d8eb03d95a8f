"""Declares fixed-size little-endian records once; packing, unpacking and sizes follow. Never reads a file.

A record is a ``NamedTuple`` whose fields are annotated with the integer types below (or ``raw(n)`` for byte
fields); its codec checks at import that the fields fill the size that the format's source states.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Annotated, Any, Generic, TypeVar, get_type_hints

from rafsfs.errors import FormatError

u8 = Annotated[int, "B"]
u16 = Annotated[int, "H"]
u32 = Annotated[int, "I"]
u64 = Annotated[int, "Q"]
i32 = Annotated[int, "i"]
i64 = Annotated[int, "q"]
bytes8 = Annotated[bytes, "8s"]
bytes16 = Annotated[bytes, "16s"]
bytes32 = Annotated[bytes, "32s"]
bytes64 = Annotated[bytes, "64s"]

T = TypeVar("T", bound=tuple[Any, ...])

Buffer = bytes | bytearray | memoryview


class RecordCodec(Generic[T]):
    """Packs and unpacks one kind of record; ``size`` is in bytes and includes trailing padding."""

    def __init__(self, record: type[T], *, size: int) -> None:
        hints = get_type_hints(record, include_extras=True)
        self._formats = {name: hint.__metadata__[0] for name, hint in hints.items()}
        body = "".join(self._formats.values())
        self._padding = size - struct.calcsize("<" + body)
        assert self._padding >= 0, f"{record.__name__} does not fit {size} bytes"
        self.size = size
        self._struct = struct.Struct(f"<{body}{self._padding}x")
        self._make: Any = record._make  # type: ignore[attr-defined]  # every NamedTuple has it; typing has no bound for that
        self._name = record.__name__

    def layout(self, *names: str) -> str:
        """Spell the record for ``struct`` with only the fields ``names``, in the record's order.

        The others are padding. This is for where microseconds count: such a Struct makes no record and skips
        what nobody looks at. No byte order stands in front, so that layouts can be joined; all want ``<``.
        """
        assert set(names) <= set(self._formats), f"{self._name} has no such fields: {names}"
        sizes = {name: struct.calcsize("<" + form) for name, form in self._formats.items()}
        fields = (form if name in names else f"{sizes[name]}x" for name, form in self._formats.items())
        return "".join(fields) + f"{self._padding}x"

    def unpack_from(self, buffer: Buffer, offset: int = 0) -> T:
        """Read one record at ``offset``; raises FormatError when the buffer ends inside it."""
        try:
            record: T = self._make(self._struct.unpack_from(buffer, offset))
        except struct.error:
            raise FormatError(
                f"{self._name} is cut off",
                expected=f"{self.size} bytes",
                found=f"{max(0, len(buffer) - offset)} bytes",
            ) from None
        return record

    def iter_unpack(self, buffer: Buffer) -> Iterator[T]:
        """Read records back to back; raises FormatError unless the buffer holds a whole number of them."""
        if len(buffer) % self.size:
            raise FormatError(
                f"table of {self._name} is cut off",
                expected=f"a multiple of {self.size} bytes",
                found=f"{len(buffer)} bytes",
            )
        return map(self._make, self._struct.iter_unpack(buffer))

    def pack(self, record: T) -> bytes:
        """Write one record; a value that does not fit its field is a mistake of ours (struct.error)."""
        return self._struct.pack(*record)
