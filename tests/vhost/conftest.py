"""Back ends that serve in this process, and a watch on the files that front ends pass to them."""

import gc
import logging
from contextlib import ExitStack

import pytest
from support.vhost_frontend import FrontEnd, Memory
from support.vhost_server import BackEnd, Echo, Keeper, open_files


@pytest.fixture(autouse=True)
def every_file_is_closed():
    gc.collect()  # what earlier tests left in circles would be closed while we look
    before = open_files()
    yield
    assert open_files() == before


@pytest.fixture
def back_end(tmp_path):
    served = BackEnd(tmp_path)
    yield served
    served.stop()


@pytest.fixture
def share():
    """Make guest memory; it is closed after the front ends."""
    with ExitStack() as stack:
        yield lambda *words, **options: stack.enter_context(Memory(*words, **options))


@pytest.fixture
def memory(share):
    return share()


@pytest.fixture
def connect(share):
    """Connect to a path and negotiate, as QEMU does; closed at the end."""
    with ExitStack() as stack:

        def connected(path, **options):
            front_end = stack.enter_context(FrontEnd(path))
            front_end.negotiate(**options)
            return front_end

        yield connected


@pytest.fixture
def echo(back_end):
    """Path of an echo device's socket."""
    path = back_end.serve(Echo())
    back_end.start()
    return path


@pytest.fixture
def keeper(back_end):
    """A device whose chains the test answers, and the path of its socket."""
    model = Keeper()
    path = back_end.serve(model)
    back_end.start()
    return model, path


@pytest.fixture
def log_lines(caplog):
    """Warnings and worse that were logged by now."""
    caplog.set_level(logging.WARNING, "vhost")
    return lambda: [record.getMessage() for record in caplog.records]
