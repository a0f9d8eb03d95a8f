"""The vhost-user protocol as a state machine: bytes and files in, replies and messages to obey out; no I/O.

It frames and checks, answers what is only negotiation, and says how to answer the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final, NamedTuple, TypeAlias

from vhost import limits, messages
from vhost.errors import ProtocolError, RefusedError
from vhost.files import Files
from vhost.messages import Feature, Header, Layout, Number, ProtocolFeature, Request


class Message(NamedTuple):
    """A request that was understood. ``record`` is its payload; ``files`` came with it, to be closed."""

    request: Request
    record: Any
    files: Files
    needs_reply: bool


Step: TypeAlias = tuple[bytes, Message | None]
"""What to send at once, and what to obey."""


class Rule(NamedTuple):
    """What a request looks like: its payload, how many files, the feature that it is part of."""

    layout: Layout[Any] | None = None
    files: tuple[int, ...] = (0,)
    feature: ProtocolFeature = ProtocolFeature(0)


_TABLE: Final = tuple(range(1, limits.TABLE_REGIONS_MAX + 1))  # and as many as it has regions
_ONE_OR_NONE: Final = (0, 1)

_RULES: Final[dict[Request, Rule]] = {
    Request.GET_FEATURES: Rule(),
    Request.SET_FEATURES: Rule(messages.NUMBER),
    Request.SET_OWNER: Rule(),
    Request.RESET_OWNER: Rule(),
    Request.SET_MEM_TABLE: Rule(files=_TABLE),
    Request.SET_LOG_BASE: Rule(messages.LOG_AREA, (1,), ProtocolFeature.LOG_SHMFD),
    Request.SET_LOG_FD: Rule(files=(1,)),
    Request.SET_VRING_NUM: Rule(messages.VRING_STATE),
    Request.SET_VRING_ADDR: Rule(messages.VRING_ADDR),
    Request.SET_VRING_BASE: Rule(messages.VRING_STATE),
    Request.GET_VRING_BASE: Rule(messages.VRING_STATE),
    Request.SET_VRING_KICK: Rule(messages.NUMBER, _ONE_OR_NONE),
    Request.SET_VRING_CALL: Rule(messages.NUMBER, _ONE_OR_NONE),
    Request.SET_VRING_ERR: Rule(messages.NUMBER, _ONE_OR_NONE),
    Request.GET_PROTOCOL_FEATURES: Rule(),
    Request.SET_PROTOCOL_FEATURES: Rule(messages.NUMBER),
    Request.GET_QUEUE_NUM: Rule(),
    Request.SET_VRING_ENABLE: Rule(messages.VRING_STATE),
    Request.SET_BACKEND_REQ_FD: Rule(None, (1,), ProtocolFeature.BACKEND_REQ),
    Request.GET_CONFIG: Rule(feature=ProtocolFeature.CONFIG),
    Request.SET_CONFIG: Rule(feature=ProtocolFeature.CONFIG),
    Request.GET_INFLIGHT_FD: Rule(messages.INFLIGHT_AREA, (0,), ProtocolFeature.INFLIGHT_SHMFD),
    Request.SET_INFLIGHT_FD: Rule(messages.INFLIGHT_AREA, (1,), ProtocolFeature.INFLIGHT_SHMFD),
    Request.RESET_DEVICE: Rule(None, (0,), ProtocolFeature.RESET_DEVICE),
    Request.GET_MAX_MEM_SLOTS: Rule(None, (0,), ProtocolFeature.CONFIGURE_MEM_SLOTS),
    Request.ADD_MEM_REG: Rule(messages.SINGLE_REGION, (1,), ProtocolFeature.CONFIGURE_MEM_SLOTS),
    # Some front ends send the file of what they take away. It is closed, as the specification has it.
    Request.REM_MEM_REG: Rule(messages.SINGLE_REGION, _ONE_OR_NONE, ProtocolFeature.CONFIGURE_MEM_SLOTS),
    Request.SET_STATUS: Rule(messages.NUMBER, (0,), ProtocolFeature.STATUS),
    Request.GET_STATUS: Rule(None, (0,), ProtocolFeature.STATUS),
    Request.SET_DEVICE_STATE_FD: Rule(messages.STATE_TRANSFER, (1,), ProtocolFeature.DEVICE_STATE),
    Request.CHECK_DEVICE_STATE: Rule(None, (0,), ProtocolFeature.DEVICE_STATE),
}

_RING_FILES: Final = frozenset((Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR))

_REFUSALS: Final[dict[int, bytes]] = {
    Request.SET_DEVICE_STATE_FD: messages.NUMBER.pack(Number(messages.NO_DESCRIPTOR | 1)),
    Request.CHECK_DEVICE_STATE: messages.NUMBER.pack(Number(1)),
    Request.GET_CONFIG: b"",
    # An area of no size: the front end goes on without (QEMU vhost_user_get_inflight_fd).
    Request.GET_INFLIGHT_FD: messages.INFLIGHT_AREA.pack(messages.InflightArea(0, 0, 0, 0)),
}
"""Payloads that say no, of those requests whose replies are more than an acknowledgement."""

_WITH_REPLY: Final = frozenset(
    (*_REFUSALS, Request.GET_FEATURES, Request.GET_PROTOCOL_FEATURES, Request.GET_QUEUE_NUM),
) | {Request.GET_MAX_MEM_SLOTS, Request.GET_VRING_BASE, Request.GET_STATUS, Request.SET_LOG_BASE}
"""Requests that are answered whether their sender asks for it or not."""

_ACCEPTED: Final = messages.NUMBER.pack(Number(0))
_REFUSED: Final = messages.NUMBER.pack(Number(1))


class Protocol:
    """One connection as the back end sees it. After a ProtocolError all that is left is to close it."""

    def __init__(
        self,
        *,
        features: Feature,
        protocol_features: ProtocolFeature,
        queues: int,
        regions_max: int = limits.REGIONS_MAX,
    ) -> None:
        self.offered_features = features | Feature.PROTOCOL_FEATURES
        self.offered_protocol_features = protocol_features
        self.protocol_features = ProtocolFeature(0)
        """Those in use."""
        self._queues = queues
        self._regions_max = regions_max
        self._buffer = bytearray()
        self._header: Header | None = None
        self._files = Files()
        self._kept = Files()  # the channel for requests of ours: we have none, but it must not be closed

    def close(self) -> None:
        """Close what files are left, of a message that was cut off as well."""
        self._files.close()
        self._kept.close()

    def wanted(self) -> int:
        """How many bytes to receive next at most: files belong to the message whose bytes they come with."""
        size = messages.HEADER.size if self._header is None else self._header.size
        return size - len(self._buffer)

    @property
    def is_within_message(self) -> bool:
        """Whether a part of a message was received, and the rest was not."""
        return self._header is not None or bool(self._buffer)

    def receive(self, data: bytes, descriptors: Iterable[int] = ()) -> Step:
        """Take in what was received, at most ``wanted`` bytes; owns the descriptors from now on.

        Raises ProtocolError where the connection has to be closed.
        """
        self._files.add(descriptors)
        if len(self._files) > limits.DESCRIPTORS_MAX:
            raise ProtocolError("too many files with a message", expected=f"at most {limits.DESCRIPTORS_MAX}")
        assert len(data) <= self.wanted()
        self._buffer += data
        if self.wanted():
            return b"", None
        if self._header is None:
            self._header = _checked(messages.HEADER.unpack(bytes(self._buffer)))
            self._buffer.clear()
            if self.wanted():
                return b"", None
        header, payload, files = self._header, bytes(self._buffer), self._files
        self._header, self._files = None, Files()
        self._buffer.clear()
        try:
            return self._take_in(header, payload, files)
        except BaseException:
            files.close()
            raise

    def accept(self, message: Message, payload: bytes | None = None) -> bytes:
        """Say that ``message`` was obeyed; ``payload`` is what it asks for, where it asks for something."""
        if message.request in _WITH_REPLY:
            return _reply(message.request, _ACCEPTED if payload is None else payload)
        return _reply(message.request, _ACCEPTED) if message.needs_reply else b""

    def refuse(self, message: Message, error: RefusedError) -> bytes:
        """Say that ``message`` is not obeyed; raises ProtocolError where there is no way to say so."""
        if message.request in _REFUSALS:
            return _reply(message.request, _REFUSALS[message.request])
        if message.needs_reply and message.request not in _WITH_REPLY:
            return _reply(message.request, _REFUSED)
        raise ProtocolError(f"{message.request.name} cannot be obeyed: {error}") from error

    # --- Messages ---------------------------------------------------------------------------------------

    def _take_in(self, header: Header, payload: bytes, files: Files) -> Step:
        needs_reply = bool(header.flags & messages.FLAG_NEED_REPLY)
        try:
            request = Request(header.request)
        except ValueError:
            files.close()
            if needs_reply:
                return _reply(header.request, _REFUSED), None
            # Whether its sender waits for a reply cannot be known, and a hang is worse than an end.
            raise ProtocolError("an unknown request", found=header.request) from None
        rule = _RULES[request]
        message = Message(request, _unpack(request, rule, payload), files, needs_reply)
        _check_files(message, rule)
        try:
            reply = self._negotiate(message, rule)
        except RefusedError as error:
            files.close()
            return self.refuse(message, error), None
        if reply is None:
            return b"", message
        files.close()
        return reply, None

    def _negotiate(self, message: Message, rule: Rule) -> bytes | None:
        """Reply to what is no business of a device; None to all else. Raises RefusedError."""
        if rule.feature not in self.protocol_features:
            raise RefusedError("a feature that was not negotiated", expected=repr(rule.feature))
        match message.request:
            case Request.GET_FEATURES:
                return self._number(message, self.offered_features)
            case Request.GET_PROTOCOL_FEATURES:
                return self._number(message, self.offered_protocol_features)
            case Request.GET_QUEUE_NUM:
                return self._number(message, self._queues)
            case Request.GET_MAX_MEM_SLOTS:
                return self._number(message, self._regions_max)
            case Request.SET_PROTOCOL_FEATURES:
                wanted = message.record.value
                _check_offered(wanted, self.offered_protocol_features)
                self.protocol_features = ProtocolFeature(wanted)
            case Request.SET_FEATURES:
                _check_offered(message.record.value, self.offered_features)
                return None
            case Request.SET_BACKEND_REQ_FD:
                self._kept.close()
                self._kept = Files([message.files.take()])
            case Request.SET_OWNER:
                pass
            case _:
                return None
        return self.accept(message)

    def _number(self, message: Message, value: int) -> bytes:
        return self.accept(message, messages.NUMBER.pack(Number(value)))


def _checked(header: Header) -> Header:
    if header.flags & messages.VERSION_MASK != messages.VERSION:
        raise ProtocolError(
            "an unknown version of vhost-user", expected=messages.VERSION, found=hex(header.flags)
        )
    if header.flags & ~messages.FLAGS_KNOWN or header.flags & messages.FLAG_REPLY:
        raise ProtocolError("a message that is no request", found=f"flags {header.flags:#x}")
    if header.size > limits.PAYLOAD_BYTES_MAX:
        raise ProtocolError(
            "a payload that is too long",
            expected=f"at most {limits.PAYLOAD_BYTES_MAX} bytes",
            found=header.size,
        )
    return header


def _check_offered(wanted: int, offered: int) -> None:
    # As plain numbers: the complement of an IntFlag has only those bits that have names.
    if strange := wanted & ~int(offered):
        raise RefusedError("features that were not offered", found=hex(strange))


def _unpack(request: Request, rule: Rule, payload: bytes) -> Any:
    if request == Request.SET_MEM_TABLE:
        return messages.unpack_regions(payload)
    if request in (Request.GET_CONFIG, Request.SET_CONFIG):
        return messages.unpack_config_part(payload)
    if rule.layout is not None:
        return rule.layout.unpack(payload)
    if payload:
        raise ProtocolError(f"{request.name} has a wrong size", expected="no payload", found=len(payload))
    return None


def _check_files(message: Message, rule: Rule) -> None:
    expected = rule.files
    if message.request == Request.SET_MEM_TABLE:
        expected = tuple(count for count in expected if count == len(message.record))
    elif message.request in _RING_FILES:
        expected = (0,) if message.record.value & messages.NO_DESCRIPTOR else (1,)
    if len(message.files) not in expected:
        raise ProtocolError(
            f"{message.request.name} with a wrong number of files",
            expected=" or ".join(map(str, expected)) or f"1 to {limits.TABLE_REGIONS_MAX} regions",
            found=len(message.files),
        )


def _reply(request: int, payload: bytes) -> bytes:
    # The flags are exactly these: QEMU refuses a reply with any other (vhost_user_read_header).
    header = Header(request, messages.VERSION | messages.FLAG_REPLY, len(payload))
    return messages.HEADER.pack(header) + payload
