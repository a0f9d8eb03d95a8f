"""Devices for tests, and a back end that serves them on a thread of this process."""

import queue
import threading
from pathlib import Path

from support.vhost_frontend import TIMEOUT_S

from vhost.model import LATER, DeviceModel
from vhost.poller import Poller
from vhost.transport import Listener, listen


class Echo(DeviceModel):
    """Answers with the request."""

    queues = 4

    def handle(self, chain):
        return [chain.request]


class Keeper(DeviceModel):
    """Answers nothing by itself: the test has the chains."""

    queues = 4

    def __init__(self):
        self.chains = queue.Queue()
        self.resets = 0
        self.last_words = [b"given up"]

    def handle(self, chain):
        self.chains.put(chain)
        return LATER

    def abandon(self, chain):
        return self.last_words

    def reset(self):
        self.resets += 1

    def next(self):
        return self.chains.get(timeout=TIMEOUT_S)


class BackEnd:
    """One thread that serves any number of sockets."""

    def __init__(self, folder):
        self.poller = Poller()
        self._folder = folder
        self._listeners = []
        self._thread = threading.Thread(target=self.poller.run, name="poller")

    def serve(self, model, **options):
        """Serve a model on a socket of its own; returns the path. Before ``start`` only."""
        path = self._folder / f"s{len(self._listeners)}"
        self._listeners.append(Listener(self.poller, listen(path), model, name=path.name, **options))
        return path

    def start(self):
        self._thread.start()

    def stop(self):
        self.poller.stop()
        if self._thread.ident:
            self._thread.join(TIMEOUT_S)
            assert not self._thread.is_alive()
        for listener in self._listeners:
            listener.close()
        self.poller.close()


def open_files():
    """What this process has open, as sorted names: descriptors of the same kind look alike."""
    names = []
    for link in list(Path("/proc/self/fd").iterdir()):
        try:
            target = str(link.readlink())
        except FileNotFoundError:  # that of the listing itself
            continue
        names.append(target.partition(":")[0] if target.startswith(("socket", "pipe")) else target)
    return sorted(names)
