"""The protocol by bytes alone: every message whole and byte by byte, and all that can be wrong with one."""

import os
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import vhost_frontend as fe

from vhost.errors import ProtocolError, RefusedError
from vhost.messages import Feature, ProtocolFeature
from vhost.protocol import Protocol

EVERY = fe.ALL_PROTOCOL | fe.CONFIG
REGION = struct.pack("=QQQQ", 0x1000, 0x2000, 0x3000, 0)
TABLE = struct.pack("=II", 2, 0) + 2 * REGION
INFLIGHT = struct.pack("=QQHHI", 64, 0, 1, 1, 0)

VALID = [  # request, payload, files
    (fe.GET_FEATURES, b"", 0),
    (fe.SET_FEATURES, fe.u64(fe.FEATURES), 0),
    (fe.SET_OWNER, b"", 0),
    (fe.RESET_OWNER, b"", 0),
    (fe.SET_MEM_TABLE, TABLE, 2),
    (fe.SET_LOG_BASE, struct.pack("=QQ", 4096, 0), 1),
    (fe.SET_LOG_FD, b"", 1),
    (fe.SET_VRING_NUM, fe.state(0, 128), 0),
    (fe.SET_VRING_ADDR, struct.pack("=IIQQQQ", 0, 0, 0, 0, 0, 0), 0),
    (fe.SET_VRING_BASE, fe.state(0, 0), 0),
    (fe.GET_VRING_BASE, fe.state(0, 0), 0),
    (fe.SET_VRING_KICK, fe.u64(0), 1),
    (fe.SET_VRING_KICK, fe.u64(fe.NO_FD), 0),
    (fe.SET_VRING_CALL, fe.u64(1), 1),
    (fe.SET_VRING_CALL, fe.u64(fe.NO_FD | 1), 0),
    (fe.SET_VRING_ERR, fe.u64(2), 1),
    (fe.SET_VRING_ERR, fe.u64(fe.NO_FD), 0),
    (fe.GET_PROTOCOL_FEATURES, b"", 0),
    (fe.SET_PROTOCOL_FEATURES, fe.u64(EVERY), 0),
    (fe.GET_QUEUE_NUM, b"", 0),
    (fe.SET_VRING_ENABLE, fe.state(0, 1), 0),
    (fe.SET_BACKEND_REQ_FD, b"", 1),
    (fe.GET_CONFIG, struct.pack("=III", 4, 3, 0) + b"abc", 0),
    (fe.GET_CONFIG, struct.pack("=III", 0, 256, 1) + bytes(256), 0),
    (fe.SET_CONFIG, struct.pack("=III", 0, 0, 0), 0),
    (fe.GET_INFLIGHT_FD, INFLIGHT, 0),
    (fe.SET_INFLIGHT_FD, INFLIGHT, 1),
    (fe.RESET_DEVICE, b"", 0),
    (fe.GET_MAX_MEM_SLOTS, b"", 0),
    (fe.ADD_MEM_REG, fe.u64(0) + REGION, 1),
    (fe.REM_MEM_REG, fe.u64(0) + REGION, 0),
    (fe.REM_MEM_REG, fe.u64(0) + REGION, 1),
    (fe.SET_STATUS, fe.u64(15), 0),
    (fe.GET_STATUS, b"", 0),
    (fe.SET_DEVICE_STATE_FD, struct.pack("=II", 0, 0), 1),
    (fe.CHECK_DEVICE_STATE, b"", 0),
]
NEGOTIATION = {  # request -> the number that answers it
    fe.GET_FEATURES: fe.FEATURES | 1,
    fe.GET_PROTOCOL_FEATURES: EVERY,
    fe.GET_QUEUE_NUM: 3,
    fe.GET_MAX_MEM_SLOTS: 509,
}
SILENT = {fe.SET_OWNER, fe.SET_PROTOCOL_FEATURES, fe.SET_BACKEND_REQ_FD}
GATED = {
    fe.SET_LOG_BASE: fe.LOG_SHMFD,
    fe.SET_BACKEND_REQ_FD: fe.BACKEND_REQ,
    fe.GET_CONFIG: fe.CONFIG,
    fe.SET_CONFIG: fe.CONFIG,
    fe.GET_INFLIGHT_FD: fe.INFLIGHT_SHMFD,
    fe.SET_INFLIGHT_FD: fe.INFLIGHT_SHMFD,
    fe.RESET_DEVICE: fe.RESET,
    fe.GET_MAX_MEM_SLOTS: fe.MEM_SLOTS,
    fe.ADD_MEM_REG: fe.MEM_SLOTS,
    fe.REM_MEM_REG: fe.MEM_SLOTS,
    fe.SET_STATUS: fe.STATUS,
    fe.GET_STATUS: fe.STATUS,
    fe.SET_DEVICE_STATE_FD: fe.DEVICE_STATE,
    fe.CHECK_DEVICE_STATE: fe.DEVICE_STATE,
}


def files(count):
    return [os.eventfd(0) for _ in range(count)]


def closed(descriptors):
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    return True


@pytest.fixture
def protocol():
    made = fresh()
    yield made
    made.close()


def fresh(negotiated=EVERY):
    made = Protocol(features=Feature(fe.FEATURES | 1), protocol_features=ProtocolFeature(EVERY), queues=3)
    made.protocol_features = ProtocolFeature(negotiated)
    return made


def feed(protocol, data, descriptors=(), *, piece=None):
    """Give a message in pieces; the files come with the first byte. Returns the last step."""
    step = b"", None
    while data:
        size = min(protocol.wanted(), piece or len(data), len(data))
        step = protocol.receive(data[:size], descriptors)
        data, descriptors = data[size:], ()
        assert not data or step == (b"", None)
    return step


@pytest.mark.parametrize("piece", [None, 1, 5])
@pytest.mark.parametrize(("request_", "payload", "count"), VALID)
def test_every_message_is_understood_in_any_pieces(protocol, request_, payload, count, piece):
    descriptors = files(count)
    reply, message = feed(protocol, fe.message(request_, payload), descriptors, piece=piece)
    assert not protocol.is_within_message
    if request_ in NEGOTIATION:
        assert reply == fe.message(request_, fe.u64(NEGOTIATION[request_]), 0x5)
    elif request_ in SILENT:
        assert (reply, message) == (b"", None)
    else:
        assert (reply, message.request, list(message.files)) == (b"", request_, descriptors)
        message.files.close()
        assert closed(descriptors)


def test_channel_for_requests_of_the_back_end_stays_open_until_the_end(protocol):
    first, second = files(2)
    feed(protocol, fe.message(fe.SET_BACKEND_REQ_FD), [first])
    os.fstat(first)
    feed(protocol, fe.message(fe.SET_BACKEND_REQ_FD), [second])
    assert closed([first])
    os.fstat(second)
    protocol.close()
    assert closed([second])


@pytest.mark.parametrize("change", [-1, 1, 2, 9])
@pytest.mark.parametrize(("request_", "payload", "count"), VALID)
def test_wrong_number_of_files_is_refused_and_they_are_closed(protocol, request_, payload, count, change):
    wrong = count + change
    if wrong < 0 or (request_, payload, wrong) in VALID:
        return
    descriptors = files(wrong)
    with pytest.raises(ProtocolError, match="files"):
        feed(protocol, fe.message(request_, payload), descriptors)
    protocol.close()
    assert closed(descriptors)


@pytest.mark.parametrize("change", [-1, 1, 8, 4096])
@pytest.mark.parametrize(("request_", "payload", "count"), VALID)
def test_wrong_size_is_refused_and_files_are_closed(protocol, request_, payload, count, change):
    if len(payload) + change < 0:
        return
    wrong = payload[:change] if change < 0 else payload + bytes(change)
    descriptors = files(count)
    with pytest.raises(ProtocolError, match=r"size|too long"):
        feed(protocol, fe.message(request_, wrong), descriptors)
    protocol.close()
    assert closed(descriptors)


@pytest.mark.parametrize(("request_", "payload", "count"), VALID)
def test_message_cut_off_at_any_byte_leaves_no_file_open(request_, payload, count):
    whole = fe.message(request_, payload)
    for cut in range(1, len(whole)):
        protocol = fresh()
        descriptors = files(count)
        assert feed(protocol, whole[:cut], descriptors) == (b"", None)
        assert protocol.is_within_message
        protocol.close()
        assert closed(descriptors)


@pytest.mark.parametrize("flags", [0, 2, 3, 0x5, 0xD, 0x11, 0x8000_0001])
def test_flags_that_no_request_has_are_refused(protocol, flags):
    with pytest.raises(ProtocolError, match=r"version|no request"):
        feed(protocol, fe.message(fe.GET_FEATURES, flags=flags))


@pytest.mark.parametrize("size", [4097, 2**31, 2**32 - 1])
def test_huge_size_is_refused_before_anything_is_kept(protocol, size):
    with pytest.raises(ProtocolError, match="too long"):
        protocol.receive(fe.message(fe.SET_FEATURES, size=size))


def test_files_that_come_drop_by_drop_are_bounded(protocol):
    descriptors = files(9)
    data = fe.message(fe.SET_MEM_TABLE, TABLE)
    for number in range(8):
        protocol.receive(data[number : number + 1], descriptors[number : number + 1])
    with pytest.raises(ProtocolError, match="too many files"):
        protocol.receive(data[8:9], descriptors[8:])
    protocol.close()
    assert closed(descriptors)


@pytest.mark.parametrize("request_", [*sorted(set(range(64)) - {row[0] for row in VALID}), 2**32 - 1])
def test_unknown_request_is_answered_when_it_asks_for_that(protocol, request_):
    asked = fe.message(request_, b"whatever", 1 | fe.NEED_REPLY)
    descriptors = files(2)
    assert feed(protocol, asked, descriptors) == (fe.message(request_, fe.u64(1), 0x5), None)
    assert closed(descriptors)
    with pytest.raises(ProtocolError, match="unknown request"):
        feed(protocol, fe.message(request_))


@pytest.mark.parametrize(("request_", "payload", "count"), [row for row in VALID if row[0] in GATED])
def test_what_was_not_negotiated_is_refused(request_, payload, count):
    protocol = fresh(EVERY & ~GATED[request_])
    descriptors = files(count)
    try:
        reply, message = feed(protocol, fe.message(request_, payload, 1 | fe.NEED_REPLY), descriptors)
    except ProtocolError as error:
        assert "not negotiated" in str(error)
    else:
        assert message is None
        assert reply[:8] == struct.pack("=II", request_, 0x5)
        assert reply[12:] in (fe.u64(1), fe.u64(0x101), bytes(24), b"")
    assert closed(descriptors)
    protocol.close()


@pytest.mark.parametrize("request_", [fe.SET_FEATURES, fe.SET_PROTOCOL_FEATURES])
def test_features_that_were_not_offered_are_refused(protocol, request_):
    wrong = fe.u64(1 << 60)
    assert feed(protocol, fe.message(request_, wrong, 1 | fe.NEED_REPLY))[0][12:] == fe.u64(1)
    assert protocol.protocol_features == EVERY
    with pytest.raises(ProtocolError, match="not offered"):
        feed(protocol, fe.message(request_, wrong))


@pytest.mark.parametrize("needs_reply", [False, True])
@pytest.mark.parametrize(
    ("request_", "payload", "count"), [r for r in VALID if r[0] not in NEGOTIATION.keys() | SILENT]
)
def test_acknowledgement_and_refusal(protocol, request_, payload, count, needs_reply):
    flags = 1 | (fe.NEED_REPLY if needs_reply else 0)
    _, message = feed(protocol, fe.message(request_, payload, flags), files(count))
    message.files.close()
    has_own_reply = request_ in (
        *(fe.SET_LOG_BASE, fe.GET_VRING_BASE, fe.GET_INFLIGHT_FD, fe.GET_STATUS),
        *(fe.SET_DEVICE_STATE_FD, fe.CHECK_DEVICE_STATE, fe.GET_CONFIG),
    )
    accepted = protocol.accept(message, b"payload!" if has_own_reply else None)
    if has_own_reply:
        assert accepted == fe.message(request_, b"payload!", 0x5)
    else:
        assert accepted == (fe.message(request_, fe.u64(0), 0x5) if needs_reply else b"")

    refusals = {
        fe.GET_INFLIGHT_FD: bytes(24),
        fe.GET_CONFIG: b"",
        fe.SET_DEVICE_STATE_FD: fe.u64(0x101),
        fe.CHECK_DEVICE_STATE: fe.u64(1),
    }
    if request_ in refusals:
        expected = refusals[request_]
    else:
        expected = fe.u64(1) if needs_reply and not has_own_reply else None
    if expected is None:
        with pytest.raises(ProtocolError, match="cannot be obeyed: no"):
            protocol.refuse(message, RefusedError("no"))
    else:
        assert protocol.refuse(message, RefusedError("no")) == fe.message(request_, expected, 0x5)


@pytest.mark.parametrize(
    "payload",
    [b"", bytes(11), struct.pack("=III", 0, 1, 0), struct.pack("=III", 0, 257, 0) + bytes(257)],
)
@pytest.mark.parametrize("request_", [fe.GET_CONFIG, fe.SET_CONFIG])
def test_parts_of_the_configuration_have_the_size_that_they_say(protocol, request_, payload):
    with pytest.raises(ProtocolError, match="wrong size"):
        feed(protocol, fe.message(request_, payload))


def test_bits_beyond_the_index_say_nothing_but_whether_a_file_comes(protocol):
    _, message = feed(protocol, fe.message(fe.SET_VRING_KICK, fe.u64(0xFFFF_FFFF_FFFF_FFFF)))
    assert (message.record.value & 0xFF, len(message.files)) == (255, 0)


@given(data=st.data())
def test_any_bytes_give_replies_messages_or_a_protocol_error(data):
    protocol = fresh()
    descriptors = []
    try:
        for _ in range(8):
            request_, payload, count = data.draw(st.sampled_from(VALID))
            bytes_ = bytearray(fe.message(request_, payload, data.draw(st.sampled_from([1, 9]))))
            for _ in range(data.draw(st.integers(0, 2))):
                bytes_[data.draw(st.integers(0, len(bytes_) - 1))] = data.draw(st.integers(0, 255))
            while bytes_:
                size = min(protocol.wanted(), len(bytes_))
                given_files = files(data.draw(st.sampled_from([0, 0, count, 1])))
                descriptors += given_files
                reply, message = protocol.receive(bytes(bytes_[:size]), given_files)
                assert reply == b"" or message is None
                del bytes_[:size]
                if message is not None:
                    message.files.close()
    except ProtocolError:
        pass
    finally:  # hypothesis may give up in the middle as well
        protocol.close()
    assert closed(descriptors)
