"""The messages of vhost-user and their records, each declared once; never looks at what they ask for.

Source: QEMU docs/interop/vhost-user.rst. Numbers are in the machine's own byte order.
"""

from __future__ import annotations

import struct
from enum import IntEnum, IntFlag
from typing import Annotated, Any, Final, Generic, NamedTuple, TypeVar, get_type_hints

from vhost.errors import ProtocolError
from vhost.limits import CONFIG_BYTES_MAX

u16 = Annotated[int, "H"]
u32 = Annotated[int, "I"]
u64 = Annotated[int, "Q"]

T = TypeVar("T", bound=tuple[Any, ...])


class Layout(Generic[T]):
    """Packs and unpacks one kind of record; ``size`` is in bytes and includes trailing padding."""

    def __init__(self, record: type[T], *, size: int) -> None:
        fields = get_type_hints(record, include_extras=True).values()
        body = "".join(field.__metadata__[0] for field in fields)
        self.size = size
        self._struct = struct.Struct(f"={body}{size - struct.calcsize('=' + body)}x")
        self._make: Any = record._make  # type: ignore[attr-defined]  # every NamedTuple has it; typing has no bound for that
        self._name = record.__name__

    def unpack(self, payload: bytes) -> T:
        """Read a payload that is this record and nothing else; raises ProtocolError when it is not."""
        if len(payload) != self.size:
            raise ProtocolError(
                f"{self._name} has a wrong size", expected=f"{self.size} bytes", found=len(payload)
            )
        record: T = self._make(self._struct.unpack(payload))
        return record

    def pack(self, record: T) -> bytes:
        """Write a record; a value that does not fit its field is a mistake of ours (struct.error)."""
        return self._struct.pack(*record)


class Request(IntEnum):
    """What a front end asks for: those requests that this back end knows."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40
    SET_DEVICE_STATE_FD = 42
    CHECK_DEVICE_STATE = 43


class Feature(IntFlag):
    """Feature bits of any virtio device, as GET_FEATURES has them (virtio 1.2, 6), and vhost's own two."""

    LOG_ALL = 1 << 26  # VHOST_F_LOG_ALL: mark the pages that are written
    RING_INDIRECT_DESC = 1 << 28
    RING_EVENT_IDX = 1 << 29
    PROTOCOL_FEATURES = 1 << 30  # VHOST_USER_F_PROTOCOL_FEATURES; the guest never sees it
    VERSION_1 = 1 << 32


class ProtocolFeature(IntFlag):
    """VHOST_USER_PROTOCOL_F_*: those that this back end offers."""

    MQ = 1 << 0
    LOG_SHMFD = 1 << 1
    REPLY_ACK = 1 << 3
    BACKEND_REQ = 1 << 5
    CONFIG = 1 << 9
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16
    DEVICE_STATE = 1 << 19


VERSION: Final = 1
VERSION_MASK: Final = 0x3
FLAG_REPLY: Final = 0x4
FLAG_NEED_REPLY: Final = 0x8
FLAGS_KNOWN: Final = VERSION_MASK | FLAG_REPLY | FLAG_NEED_REPLY

QUEUE_INDEX_MASK: Final = 0xFF  # of the payload of SET_VRING_KICK, CALL and ERR
NO_DESCRIPTOR: Final = 0x100  # there, and in the reply to SET_DEVICE_STATE_FD: no file comes with it

VRING_LOG: Final = 0x1  # VringAddr.flags, VHOST_VRING_F_LOG: mark the pages of the used ring as well


class Header(NamedTuple):
    """In front of every message; ``size`` is that of the payload."""

    request: u32
    flags: u32
    size: u32


class Number(NamedTuple):
    """A payload that is one number."""

    value: u64


class VringState(NamedTuple):
    """One number about one queue."""

    queue: u32
    number: u32


class VringAddr(NamedTuple):
    """Where a queue's parts are, as addresses of the front end; ``log`` is a guest address."""

    queue: u32
    flags: u32
    descriptors: u64
    used: u64
    available: u64
    log: u64


class RegionTable(NamedTuple):
    """In front of the regions of SET_MEM_TABLE."""

    regions: u32
    padding: u32


class Region(NamedTuple):
    """Guest memory in one piece: its address for the guest and for the front end, its place in its file."""

    guest_address: u64
    size: u64
    user_address: u64
    file_offset: u64


class SingleRegion(NamedTuple):
    """Payload of ADD_MEM_REG and REM_MEM_REG."""

    padding: u64
    guest_address: u64
    size: u64
    user_address: u64
    file_offset: u64


class LogArea(NamedTuple):
    """Where the dirty page bits are in their file."""

    size: u64
    file_offset: u64


class ConfigPart(NamedTuple):
    """In front of ``size`` bytes of the device's configuration space, those from ``offset`` on."""

    offset: u32
    size: u32
    flags: u32


class InflightArea(NamedTuple):
    """Where the notes on requests under way are in their file, and for what they have room."""

    size: u64
    file_offset: u64
    queues: u16
    queue_size: u16


class StateTransfer(NamedTuple):
    """Which way the state of the device goes, and when."""

    direction: u32
    phase: u32


SAVE: Final = 0  # StateTransfer.direction: from the back end
LOAD: Final = 1
PHASE_STOPPED: Final = 0  # StateTransfer.phase: all queues are stopped

HEADER: Final = Layout(Header, size=12)
NUMBER: Final = Layout(Number, size=8)
VRING_STATE: Final = Layout(VringState, size=8)
VRING_ADDR: Final = Layout(VringAddr, size=40)
REGION_TABLE: Final = Layout(RegionTable, size=8)
REGION: Final = Layout(Region, size=32)
SINGLE_REGION: Final = Layout(SingleRegion, size=40)
LOG_AREA: Final = Layout(LogArea, size=16)
CONFIG_PART: Final = Layout(ConfigPart, size=12)
INFLIGHT_AREA: Final = Layout(InflightArea, size=24)  # a C struct: four bytes of padding at its end
STATE_TRANSFER: Final = Layout(StateTransfer, size=8)


def unpack_regions(payload: bytes) -> list[Region]:
    """Read the payload of SET_MEM_TABLE; raises ProtocolError when its size and its count disagree."""
    table = REGION_TABLE.unpack(payload[: REGION_TABLE.size])
    body = payload[REGION_TABLE.size :]
    if len(body) != table.regions * REGION.size:
        raise ProtocolError(
            "a memory table has a wrong size", expected=f"{table.regions} regions", found=f"{len(body)} bytes"
        )
    return [REGION.unpack(body[at : at + REGION.size]) for at in range(0, len(body), REGION.size)]


def unpack_config_part(payload: bytes) -> ConfigPart:
    """Read the head of a payload of GET_CONFIG or SET_CONFIG; ProtocolError when the sizes disagree."""
    part = CONFIG_PART.unpack(payload[: CONFIG_PART.size])
    if len(payload) - CONFIG_PART.size != part.size or part.size > CONFIG_BYTES_MAX:
        raise ProtocolError(
            "a part of the configuration has a wrong size",
            expected=f"at most {CONFIG_BYTES_MAX} bytes",
            found=f"{len(payload) - CONFIG_PART.size}, said to be {part.size}",
        )
    return part
