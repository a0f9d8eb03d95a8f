"""The guest's memory as the front end has shared it; every address goes through its check, or nowhere.

Guest addresses stand in descriptors, the front end's own addresses in its messages about rings. Nothing here
is kept across calls but the mappings: memory that was taken away is not written to any more.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from typing import Final, TypeAlias

from vhost import limits
from vhost.dirty_log import DirtyLog
from vhost.errors import BadAddressError, RefusedError
from vhost.messages import Region
from vhost.shared_memory import Mapping

Buffer: TypeAlias = bytes | bytearray | memoryview
Span: TypeAlias = tuple[int, int]
"""Guest address and length in bytes."""

_ADDRESSES_END: Final = 1 << 64


class MappedRegion:
    """One region; ``shift`` is what to take from a guest address to get a place in the mapping."""

    __slots__ = ("end", "map", "mapping", "region", "shift", "start")

    def __init__(self, region: Region, mapping: Mapping) -> None:
        self.region = region
        self.mapping = mapping
        self.map = mapping.map
        self.start = region.guest_address
        self.end = region.guest_address + region.size
        self.shift = region.guest_address - mapping.skip


class GuestMemory:
    """All regions. One thread changes them; ``scatter`` may be called by others while none does."""

    def __init__(self, *, sealed_only: bool = False, regions_max: int = limits.REGIONS_MAX) -> None:
        self.log: DirtyLog | None = None
        """Where writes are noted, when they are."""
        self._sealed_only = sealed_only
        self._regions_max = regions_max
        self._regions: list[MappedRegion] = []  # by guest address
        self._starts: list[int] = []
        self._recent: MappedRegion | None = None  # most addresses are in the same region as the last

    def __len__(self) -> int:
        return len(self._regions)

    # --- Regions ----------------------------------------------------------------------------------------

    def replace(self, regions: Sequence[Region], descriptors: Iterable[int]) -> None:
        """Map other memory instead; the descriptors stay the caller's. RefusedError leaves all as it was."""
        _check(regions)
        mapped: list[MappedRegion] = []
        try:
            for region, descriptor in zip(regions, descriptors, strict=True):
                mapped.append(self._map(region, descriptor))
        except RefusedError:
            for done in mapped:
                done.mapping.close()
            raise
        old, self._regions = self._regions, []
        self._set(mapped)
        for region_before in old:
            region_before.mapping.close()

    def add(self, region: Region, descriptor: int) -> None:
        """Map one more region; raises RefusedError."""
        if len(self._regions) >= self._regions_max:
            raise RefusedError("too many memory regions", expected=f"at most {self._regions_max}")
        _check([*(mapped.region for mapped in self._regions), region])
        self._set([*self._regions, self._map(region, descriptor)])

    def remove(self, region: Region) -> None:
        """Unmap the region with these addresses and this size; raises RefusedError when there is none."""
        wanted = region._replace(file_offset=0)
        for mapped in self._regions:
            if mapped.region._replace(file_offset=0) == wanted:
                self._set([other for other in self._regions if other is not mapped])
                mapped.mapping.close()
                return
        raise RefusedError("a memory region that is not there", found=hex(region.guest_address))

    def close(self) -> None:
        """Unmap everything; nobody may have a view any more."""
        regions = self._regions
        self._set([])
        for mapped in regions:
            mapped.mapping.close()

    def _map(self, region: Region, descriptor: int) -> MappedRegion:
        mapping = Mapping(
            descriptor, offset=region.file_offset, size=region.size, sealed_only=self._sealed_only
        )
        return MappedRegion(region, mapping)

    def _set(self, regions: list[MappedRegion]) -> None:
        self._regions = sorted(regions, key=lambda mapped: mapped.start)
        self._starts = [mapped.start for mapped in self._regions]
        self._recent = self._regions[0] if self._regions else None

    # --- Access -----------------------------------------------------------------------------------------

    def user_view(self, address: int, size: int) -> memoryview:
        """View of ``size`` bytes at an address of the front end, within one region; to be released.

        Raises BadAddressError.
        """
        for mapped in self._regions:
            place = address - mapped.region.user_address
            if place >= 0 and place + size <= mapped.region.size:
                place += mapped.mapping.skip
                return memoryview(mapped.map)[place : place + size]
        raise BadAddressError("no memory there for a ring", found=f"{size} bytes at {address:#x}")

    def read(self, address: int, size: int) -> bytes:
        """Copy ``size`` bytes, which may lie across regions that touch; raises BadAddressError."""
        near = self._recent
        if near is not None and near.start <= address and address + size <= near.end:
            place = address - near.shift
            return near.map[place : place + size]
        pieces = []
        for mapped, place, length in self._pieces(address, size):
            pieces.append(mapped.map[place : place + length])
        return b"".join(pieces)

    def read_whole(self, address: int, size: int) -> bytes:
        """Copy ``size`` bytes that have to be within one region; raises BadAddressError."""
        mapped = self._at(address)
        if address + size > mapped.end:
            raise BadAddressError("not within one region", found=f"{size} bytes at {address:#x}")
        place = address - mapped.shift
        return mapped.map[place : place + size]

    def scatter(self, parts: Sequence[Buffer], spans: Sequence[Span]) -> int:
        """Write parts one after the other into spans one after the other; returns the bytes written.

        Every byte is copied once. Raises BadAddressError, some bytes being written by then, and IndexError
        when the spans are too short.
        """
        written = sum(map(len, parts))
        try:
            self._scatter(parts, spans)
        finally:
            if self.log is not None:
                self.log.mark_spans(spans, written)
        return written

    def _scatter(self, parts: Sequence[Buffer], spans: Sequence[Span]) -> None:
        number = room = address = 0
        for part in parts:
            length = len(part)
            if length <= room:
                self._write(address, part, length)
                address += length
                room -= length
                continue
            view = memoryview(part)
            done = 0
            while done < length:
                while not room:
                    address, room = spans[number]
                    number += 1
                # What follows is min() and _write, spelled out: there may be hundreds of pages to fill.
                size = room if room < length - done else length - done
                until = done + size
                near = self._recent
                if near is not None and near.start <= address and address + size <= near.end:
                    place = address - near.shift
                    near.map[place : place + size] = view[done:until]
                else:
                    self._write(address, view[done:until], size)
                done = until
                address += size
                room -= size

    def _write(self, address: int, data: Buffer, size: int) -> None:
        near = self._recent
        if near is not None and near.start <= address and address + size <= near.end:
            place = address - near.shift
            near.map[place : place + size] = data
            return
        done = 0
        for mapped, place, length in self._pieces(address, size):
            mapped.map[place : place + length] = memoryview(data)[done : done + length]
            done += length

    def _at(self, address: int) -> MappedRegion:
        number = bisect_right(self._starts, address) - 1
        if number < 0 or address >= self._regions[number].end:
            raise BadAddressError("no memory there", found=hex(address))
        self._recent = mapped = self._regions[number]
        return mapped

    def _pieces(self, address: int, size: int) -> Iterator[tuple[MappedRegion, int, int]]:
        """Region, place in its mapping and length of each piece of a range."""
        while size:
            mapped = self._at(address)
            length = min(size, mapped.end - address)
            yield mapped, address - mapped.shift, length
            address += length
            size -= length


def _check(regions: Sequence[Region]) -> None:
    """Refuse regions that are empty, too large, beyond all addresses, or overlap for guest or front end."""
    if (total := sum(region.size for region in regions)) > limits.GUEST_BYTES_MAX:
        raise RefusedError("too much memory", expected=f"at most {limits.GUEST_BYTES_MAX} bytes", found=total)
    for region in regions:
        highest = max(region.guest_address, region.user_address, region.file_offset)
        if not region.size or highest + region.size > _ADDRESSES_END:
            raise RefusedError("a memory region that cannot be", found=region)
    for name in ("guest_address", "user_address"):
        end = 0
        for start, size in sorted((getattr(region, name), region.size) for region in regions):
            if start < end:
                raise RefusedError("memory regions overlap", found=f"{name} {start:#x}")
            end = start + size
