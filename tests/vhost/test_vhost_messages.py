"""Records of vhost-user as bytes, written down by hand from the specification."""

import struct

import pytest

from vhost import messages
from vhost.errors import ProtocolError

RECORDS = [
    (messages.HEADER, messages.Header(5, 0x9, 264), "05000000 09000000 08010000"),
    (messages.NUMBER, messages.Number(0x1_0000_0203), "0302000001000000"),
    (messages.VRING_STATE, messages.VringState(3, 1024), "03000000 00040000"),
    (
        messages.VRING_ADDR,
        messages.VringAddr(1, 1, 0x10, 0x20, 0x30, 0x40),
        "01000000 01000000 1000000000000000 2000000000000000 3000000000000000 4000000000000000",
    ),
    (
        messages.REGION,
        messages.Region(0x1000, 0x2000, 0x3000, 0x4000),
        "0010000000000000 0020000000000000 0030000000000000 0040000000000000",
    ),
    (
        messages.SINGLE_REGION,
        messages.SingleRegion(0, 0x1000, 0x2000, 0x3000, 0x4000),
        "0000000000000000 0010000000000000 0020000000000000 0030000000000000 0040000000000000",
    ),
    (messages.LOG_AREA, messages.LogArea(0x100, 0x200), "0001000000000000 0002000000000000"),
    (
        messages.INFLIGHT_AREA,
        messages.InflightArea(0x100, 0, 2, 128),
        "0001000000000000 0000000000000000 0200 8000 00000000",
    ),
    (messages.STATE_TRANSFER, messages.StateTransfer(1, 0), "01000000 00000000"),
]


@pytest.mark.parametrize(("layout", "record", "spelled"), RECORDS)
def test_record_is_packed_and_unpacked(layout, record, spelled):
    packed = bytes.fromhex(spelled)
    assert layout.pack(record) == packed
    assert layout.unpack(packed) == record
    assert layout.size == len(packed)


@pytest.mark.parametrize(("layout", "record"), [row[:2] for row in RECORDS])
def test_record_of_another_size_is_refused(layout, record):
    packed = layout.pack(record)
    for wrong in (packed[:-1], packed + b"\0", b""):
        with pytest.raises(ProtocolError, match="wrong size"):
            layout.unpack(wrong)


def test_regions_are_as_many_as_the_table_says():
    region = struct.pack("=QQQQ", 1, 2, 3, 4)
    assert messages.unpack_regions(struct.pack("=II", 2, 0) + 2 * region) == 2 * [messages.Region(1, 2, 3, 4)]
    for wrong in (
        struct.pack("=II", 2, 0) + region,
        struct.pack("=II", 1, 0) + 2 * region,
        struct.pack("=II", 0xFFFF_FFFF, 0) + region,
        struct.pack("=II", 1, 0) + region[:-1],
        b"\1\0\0\0",
    ):
        with pytest.raises(ProtocolError):
            messages.unpack_regions(wrong)
