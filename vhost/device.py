"""A device behind one connection: does what messages ask for, lets its queues be served; reads no socket."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from vhost import inflight, limits, messages
from vhost.complaints import Complaints
from vhost.device_state import Transfer
from vhost.dirty_log import IS_AVAILABLE as HAS_DIRTY_LOG
from vhost.dirty_log import DirtyLog
from vhost.errors import RefusedError
from vhost.memory import GuestMemory
from vhost.messages import (
    ConfigPart,
    Feature,
    InflightArea,
    Number,
    ProtocolFeature,
    Region,
    Request,
    VringState,
)
from vhost.model import DeviceModel
from vhost.poller import Poller
from vhost.protocol import Message
from vhost.shared_memory import create_sealed
from vhost.vring import Shared, Vring


class Outcome(NamedTuple):
    """What to tell a front end whose message was obeyed; ``descriptor`` goes with it and is closed then."""

    payload: bytes | None = None
    descriptor: int | None = None


_OBEYED: Final = Outcome()

RING_FEATURES: Final = (
    Feature.VERSION_1 | Feature.RING_INDIRECT_DESC | Feature.RING_EVENT_IDX | Feature.PROTOCOL_FEATURES
)
_LOG_FEATURES: Final = Feature.LOG_ALL if HAS_DIRTY_LOG else Feature(0)


def offered_features(model: DeviceModel) -> Feature:
    """Feature bits for GET_FEATURES."""
    return model.features | RING_FEATURES | _LOG_FEATURES


def offered_protocol_features(model: DeviceModel) -> ProtocolFeature:
    """Protocol feature bits for GET_PROTOCOL_FEATURES."""
    absent = set() if HAS_DIRTY_LOG else {ProtocolFeature.LOG_SHMFD}
    if model.config is None:
        absent.add(ProtocolFeature.CONFIG)
    offered = ProtocolFeature(0)
    for feature in ProtocolFeature:
        if feature not in absent:
            offered |= feature
    return offered


class Device:
    """One device, a source of work for its poller."""

    def __init__(
        self,
        model: DeviceModel,
        poller: Poller,
        complain: Complaints,
        *,
        settled: Callable[[Outcome], None],
        failed: Callable[[], None],
        sealed_only: bool = False,
        regions_max: int = limits.REGIONS_MAX,
    ) -> None:
        """``settled`` is called with the outcome of a message for which ``obey`` had none yet.

        ``failed`` is called when the device cannot go on; what follows from it has to be ``close``.
        """
        memory = GuestMemory(sealed_only=sealed_only, regions_max=regions_max)
        self._shared = Shared(model=model, poller=poller, complain=complain, memory=memory)
        self._vrings = [Vring(index, self._shared) for index in range(model.queues)]
        self._turns = self._vrings  # in the order in which they are served
        self._settled = settled
        self._failed = failed
        self._sealed_only = sealed_only
        self._status = 0
        self._transfer: Transfer | None = None
        self._awaited: Vring | Transfer | None = None  # what has to end before there is an outcome
        self._deadline = math.inf

    def close(self) -> None:
        """Stop at once and give everything back; chains under way are answered no more."""
        self._awaited = None
        if self._transfer is not None:
            self._transfer.close()
        for vring in self._vrings:
            vring.close()
        self._change_log(None)
        if self._shared.inflight is not None:
            self._shared.inflight.close()
        self._shared.memory.close()

    # --- The source of work -------------------------------------------------------------------------------

    def work(self) -> bool:
        """Serve a batch of each queue, for a moment: the next turn begins with the queues that had none."""
        clock = time.perf_counter
        end = 0.0
        for number, vring in enumerate(self._turns):
            if vring.has_work():
                end = end or clock() + limits.TURN_S
                vring.work(end)
                if clock() > end:
                    self._turns = self._turns[number + 1 :] + self._turns[: number + 1]
                    return True
        return end > 0

    def listen(self) -> None:
        """Have the guest kick."""
        for vring in self._vrings:
            vring.listen()

    def has_work(self) -> bool:
        """Whether a queue has a chain to take."""
        return any(vring.has_work() for vring in self._vrings)

    def is_waiting(self, now: float) -> bool:
        """Whether other threads are at work on an answer."""
        return any(vring.is_waiting(now) for vring in self._vrings)

    def tick(self, now: float) -> float:
        """Settle what was waited for; returns when to come again."""
        awaited = self._awaited
        if isinstance(awaited, Vring) and (now >= self._deadline or not awaited.pending):
            self._abandon(awaited)
            self._settle(Outcome(_base(awaited)))
        elif isinstance(awaited, Transfer) and (now >= self._deadline or awaited.is_over):
            awaited.close()
            self._settle(self._transferred(awaited))
        if any(vring.is_polled for vring in self._vrings):
            return now + limits.POLL_S
        return math.inf if self._awaited is None else self._deadline

    def fail(self) -> None:
        """Have the connection closed."""
        self._failed()

    def _settle(self, outcome: Outcome) -> None:
        self._awaited = None
        self._settled(outcome)

    # --- Messages -----------------------------------------------------------------------------------------

    def obey(self, message: Message) -> Outcome | None:
        """Do what a message asks for; None when that takes a while, ``settled`` is then called later.

        Raises RefusedError. The files that it does not take stay the caller's to close.
        """
        method = _METHODS.get(message.request)
        return self._obey_for_queue(message) if method is None else method(self, message)

    def _obey_for_queue(self, message: Message) -> Outcome | None:
        record = message.record
        match message.request:
            case Request.SET_VRING_NUM:
                self._vring(record.queue).set_size(record.number)
            case Request.SET_VRING_BASE:
                self._vring(record.queue).set_base(record.number)
            case Request.SET_VRING_ADDR:
                self._vring(record.queue).set_addresses(record)
            case Request.SET_VRING_ENABLE:
                self._vring(record.queue).set_enabled(bool(record.number))
            case Request.GET_VRING_BASE:
                return self._get_vring_base(self._vring(record.queue))
            case _:
                vring = self._vring(record.value & messages.QUEUE_INDEX_MASK)
                descriptor = message.files.take() if len(message.files) else None
                match message.request:
                    case Request.SET_VRING_KICK:
                        vring.set_kick(descriptor)
                    case Request.SET_VRING_CALL:
                        vring.set_call(descriptor)
                    case _:
                        vring.set_err(descriptor)
        return _OBEYED

    def _vring(self, index: int) -> Vring:
        if index >= len(self._vrings):
            raise RefusedError("no such queue", expected=f"below {len(self._vrings)}", found=index)
        return self._vrings[index]

    def _get_vring_base(self, vring: Vring) -> Outcome | None:
        if vring.stop():
            return Outcome(_base(vring))
        self._awaited = vring
        self._deadline = time.perf_counter() + limits.DRAIN_S
        return None

    def _abandon(self, vring: Vring) -> None:
        for chain in list(vring.pending.values()):
            self._shared.complain("queue %d has to stop: a request is given up", vring.index)
            try:
                chain.answer(self._shared.model.abandon(chain))
            finally:
                chain.answer(())  # has no effect on one that is answered

    def _set_features(self, message: Message) -> Outcome:
        self._shared.features = Feature(message.record.value)
        self._apply_log()
        if Feature.PROTOCOL_FEATURES not in self._shared.features:
            for vring in self._vrings:
                vring.set_enabled(True)
        return _OBEYED

    def _disable(self, _message: Message) -> Outcome:
        """RESET_OWNER, which is no longer used: back ends may take it as this."""
        for vring in self._vrings:
            vring.set_enabled(False)
        return _OBEYED

    def _reset(self, _message: Message) -> Outcome:
        for vring in self._vrings:
            vring.reset()
        self._shared.model.reset()
        return _OBEYED

    def _set_status(self, message: Message) -> Outcome:
        # Nothing follows from it. Zero does not mean that another driver begins: QEMU sends it whenever it
        # stops a device, even if the guest is only paused (vhost_user_reset_status).
        self._status = message.record.value
        return _OBEYED

    def _get_status(self, _message: Message) -> Outcome:
        return Outcome(messages.NUMBER.pack(Number(self._status)))

    def _get_config(self, message: Message) -> Outcome:
        part: ConfigPart = message.record
        config = self._shared.model.config or b""
        asked = config[part.offset : part.offset + part.size].ljust(part.size, b"\0")
        return Outcome(messages.CONFIG_PART.pack(part) + asked)

    def _set_config(self, _message: Message) -> Outcome:
        raise RefusedError("a configuration that never changes")

    # --- Memory -------------------------------------------------------------------------------------------

    def _set_mem_table(self, message: Message) -> Outcome:
        self._change_memory(lambda memory: memory.replace(message.record, message.files))
        return _OBEYED

    def _add_mem_reg(self, message: Message) -> Outcome:
        (descriptor,) = message.files
        with self._shared.lock:  # answers look for their regions
            self._shared.memory.add(_region(message.record), descriptor)
        return _OBEYED

    def _rem_mem_reg(self, message: Message) -> Outcome:
        self._change_memory(lambda memory: memory.remove(_region(message.record)))
        return _OBEYED

    def _change_memory(self, change: Callable[[GuestMemory], None]) -> None:
        with self._shared.lock:
            for vring in self._vrings:
                vring.detach()
            try:
                change(self._shared.memory)
            finally:
                for vring in self._vrings:
                    vring.attach()

    def _set_log_base(self, message: Message) -> Outcome:
        (descriptor,) = message.files
        self._change_log(DirtyLog(message.record, descriptor, sealed_only=self._sealed_only))
        return _OBEYED

    def _change_log(self, log: DirtyLog | None) -> None:
        with self._shared.lock:
            old, self._shared.log = self._shared.log, log
            self._apply_log()
        if old is not None:
            old.close()

    def _apply_log(self) -> None:
        with self._shared.lock:
            is_logged = Feature.LOG_ALL in self._shared.features
            self._shared.memory.log = self._shared.log if is_logged else None
            for vring in self._vrings:
                vring.set_log()

    def _ignore(self, _message: Message) -> Outcome:
        """SET_LOG_FD: it may be told that the log has changed, but need not."""
        return _OBEYED

    # --- Requests under way -------------------------------------------------------------------------------

    def _get_inflight(self, message: Message) -> Outcome:
        asked: InflightArea = message.record
        inflight.check_shape(asked)
        size = asked.queues * inflight.region_bytes(asked.queue_size)
        area = asked._replace(size=size, file_offset=0)
        try:
            descriptor = create_sealed("vhost-inflight", size)
        except OSError as error:
            raise RefusedError("no memory for requests under way", found=error) from error
        return Outcome(messages.INFLIGHT_AREA.pack(area), descriptor)

    def _set_inflight(self, message: Message) -> Outcome:
        self._check_stopped("notes on requests under way, while queues run")
        (descriptor,) = message.files
        noted = inflight.InflightMemory(message.record, descriptor, sealed_only=self._sealed_only)
        old, self._shared.inflight = self._shared.inflight, noted
        if old is not None:
            old.close()
        return _OBEYED

    def _check_stopped(self, what: str) -> None:
        if any(vring.is_running for vring in self._vrings):
            raise RefusedError(what)

    # --- The state of the device, for migration -----------------------------------------------------------

    def _set_device_state(self, message: Message) -> Outcome:
        direction, phase = message.record
        if direction not in (messages.SAVE, messages.LOAD) or phase != messages.PHASE_STOPPED:
            raise RefusedError("an unknown transfer", found=f"direction {direction} in phase {phase}")
        self._check_stopped("the state of a device that runs")
        if self._transfer is not None:
            self._transfer.close()
        model = self._shared.model
        self._transfer = Transfer(
            self._shared.poller,
            message.files.take(),
            state=model.save() if direction == messages.SAVE else None,
            load=model.load,
        )
        return Outcome(
            messages.NUMBER.pack(Number(messages.NO_DESCRIPTOR))
        )  # the front end's channel is good

    def _check_device_state(self, _message: Message) -> Outcome | None:
        if self._transfer is None:
            raise RefusedError("no state was transferred")
        if self._transfer.is_over:
            return self._transferred(self._transfer)
        self._awaited = self._transfer
        self._deadline = time.perf_counter() + limits.STATE_S
        return None

    def _transferred(self, transfer: Transfer) -> Outcome:
        if transfer.failure is not None:
            self._shared.complain("the state of the device was not transferred: %s", transfer.failure)
        return Outcome(messages.NUMBER.pack(Number(int(transfer.failure is not None))))


_METHODS: Final[dict[Request, Callable[[Device, Message], Outcome | None]]] = {
    Request.SET_FEATURES: Device._set_features,
    Request.RESET_OWNER: Device._disable,
    Request.RESET_DEVICE: Device._reset,
    Request.SET_STATUS: Device._set_status,
    Request.GET_STATUS: Device._get_status,
    Request.GET_CONFIG: Device._get_config,
    Request.SET_CONFIG: Device._set_config,
    Request.SET_MEM_TABLE: Device._set_mem_table,
    Request.ADD_MEM_REG: Device._add_mem_reg,
    Request.REM_MEM_REG: Device._rem_mem_reg,
    Request.SET_LOG_BASE: Device._set_log_base,
    Request.SET_LOG_FD: Device._ignore,
    Request.GET_INFLIGHT_FD: Device._get_inflight,
    Request.SET_INFLIGHT_FD: Device._set_inflight,
    Request.SET_DEVICE_STATE_FD: Device._set_device_state,
    Request.CHECK_DEVICE_STATE: Device._check_device_state,
}
"""What is not about one queue."""


def _base(vring: Vring) -> bytes:
    return messages.VRING_STATE.pack(VringState(vring.index, vring.stopped()))


def _region(record: messages.SingleRegion) -> Region:
    return Region(*record[1:])
