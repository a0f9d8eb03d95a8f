"""One front end: receives its messages with their files, has them obeyed, replies; never waits for it.

Whatever it sends, and however it ends, the worst is one line of log and a closed connection.
"""

from __future__ import annotations

import array
import os
import select
import socket
from collections.abc import Callable
from typing import Final

from vhost import limits
from vhost.complaints import Complaints
from vhost.device import Device, Outcome, offered_features, offered_protocol_features
from vhost.errors import ProtocolError, RefusedError
from vhost.files import Files
from vhost.model import DeviceModel
from vhost.poller import Poller
from vhost.protocol import Message, Protocol

_ITEM: Final = array.array("i").itemsize
_SPACE: Final = socket.CMSG_SPACE(limits.DESCRIPTORS_MAX * _ITEM)


class Connection:
    """One connection, from its acceptance to its end."""

    def __init__(
        self,
        poller: Poller,
        accepted: socket.socket,
        model: DeviceModel,
        *,
        complain: Complaints,
        closed: Callable[[], None],
        sealed_only: bool = False,
        regions_max: int = limits.REGIONS_MAX,
    ) -> None:
        """Owns the socket. ``closed`` is called when the front end has gone, and after ``close``."""
        accepted.setblocking(False)
        self._poller = poller
        self._socket = accepted
        self._complain = complain
        self._closed = closed
        self._is_open = True
        self._awaiting: Message | None = None  # what is being obeyed: the next message has to wait
        self._protocol = Protocol(
            features=offered_features(model),
            protocol_features=offered_protocol_features(model),
            queues=model.queues,
            regions_max=regions_max,
        )
        self._device = Device(
            model,
            poller,
            complain,
            settled=self._settled,
            failed=self.close,
            sealed_only=sealed_only,
            regions_max=regions_max,
        )
        poller.attach(self._device)
        poller.watch(accepted.fileno(), self._readable)

    def close(self) -> None:
        """End; chains under way are answered no more."""
        if not self._is_open:
            return
        self._is_open = False
        self._poller.detach(self._device)
        self._poller.unwatch(self._socket.fileno())
        self._socket.close()
        self._protocol.close()
        if self._awaiting is not None:
            self._awaiting.files.close()
        try:
            self._device.close()
        finally:
            self._closed()

    def _readable(self, _events: int) -> None:
        try:
            for _ in range(limits.MESSAGES_PER_TURN):
                if not self._receive():
                    break
        except ProtocolError as error:
            self._complain("the connection is closed: %s", error)
            self.close()
        except Exception as error:
            self._complain("the connection is closed by a mistake of ours", trace=error)
            self.close()

    def _receive(self) -> bool:
        """Receive what there is of one message; False when no more can be received now."""
        if self._awaiting is not None:  # watched for nothing but its end
            raise ProtocolError("the front end has gone while it waited for a reply")
        wanted = self._protocol.wanted()
        try:
            data, ancillary, flags, _ = self._socket.recvmsg(wanted, _SPACE, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return False
        except ConnectionError as error:
            raise ProtocolError("the front end has gone", found=error) from error
        descriptors = array.array("i")
        for level, kind, content in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(content[: len(content) - len(content) % _ITEM])
        if not data:
            self._gone()
            return False
        if flags & socket.MSG_CTRUNC:
            Files(descriptors).close()
            raise ProtocolError("too many files with a message, or in this process")
        reply, message = self._protocol.receive(data, descriptors)
        self._send(reply)
        if message is not None:
            self._obey(message)
        return self._is_open and self._awaiting is None

    def _gone(self) -> None:
        if self._protocol.is_within_message:
            raise ProtocolError("the front end has gone within a message")
        self.close()

    def _obey(self, message: Message) -> None:
        self._awaiting = message
        try:
            outcome = self._device.obey(message)
        except RefusedError as error:
            self._finish()
            reply = self._protocol.refuse(message, error)
            self._complain("%s is refused: %s", message.request.name, error)
            self._send(reply)
            return
        if outcome is None:
            self._poller.watch(self._socket.fileno(), self._readable, 0)
        else:
            self._reply(message, outcome)

    def _settled(self, outcome: Outcome) -> None:
        """``Device`` has an outcome at last."""
        message = self._awaiting
        assert message is not None
        self._poller.watch(self._socket.fileno(), self._readable, select.POLLIN)
        try:
            self._reply(message, outcome)
        except ProtocolError as error:
            self._complain("the connection is closed: %s", error)
            self.close()

    def _reply(self, message: Message, outcome: Outcome) -> None:
        self._finish()
        try:
            self._send(self._protocol.accept(message, outcome.payload), outcome.descriptor)
        finally:
            if outcome.descriptor is not None:
                os.close(outcome.descriptor)

    def _finish(self) -> None:
        message, self._awaiting = self._awaiting, None
        if message is not None:
            message.files.close()

    def _send(self, reply: bytes, descriptor: int | None = None) -> None:
        if not reply:
            return
        rights = (
            ()
            if descriptor is None
            else ((socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", (descriptor,))),)
        )
        try:
            sent = self._socket.sendmsg((reply,), rights, socket.MSG_NOSIGNAL)
        except OSError as error:  # BlockingIOError too: some hundred replies were not read
            raise ProtocolError("the front end does not take its reply", found=error) from error
        if sent < len(reply):
            raise ProtocolError("the front end does not take its reply")
