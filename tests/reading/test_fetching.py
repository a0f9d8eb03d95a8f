"""Chunks that are fetched end for all who wait, also when what fetches them goes wrong as nobody foresaw."""

import pytest
from blake3 import blake3

from rafsfs.limits import KIB
from rafsfs.reading.fetcher import Fetcher, Place
from rafsfs.reading.fetching import FetchedFile

LENGTH = 768 * KIB  # one request for each chunk
CONTENT = b"".join(bytes([number]) * LENGTH for number in range(5))


class Remote:
    """A file in memory; answers nothing but ``error`` while there is one."""

    def __init__(self):
        self.name = "sha256:remote"
        self.size = len(CONTENT)
        self.error = None

    def read_range(self, offset, length):
        if self.error is not None:
            raise self.error
        return CONTENT[offset : offset + length]

    def stream_range(self, offset, length, take, *, afresh=False):
        take(self.read_range(offset, length))

    def close(self):
        pass


@pytest.fixture
def remote():
    return Remote()


@pytest.fixture(params=["threads", "alone"])
def fetched(request, remote):
    fetcher = Fetcher(None)
    if request.param == "threads":
        fetcher.start()
    file = FetchedFile(remote, fetcher)
    parts = [(start, CONTENT[start : start + LENGTH]) for start in range(0, len(CONTENT), LENGTH)]
    file.use([Place(start, LENGTH, blake3(part).digest()) for start, part in parts])
    return file


@pytest.mark.parametrize("work", ["read_range", "fetch"])
def test_nobody_waits_for_what_a_mistake_ended(remote, fetched, work):
    remote.error = UnicodeError("a label is too long")
    with pytest.raises(UnicodeError):
        fetched.read_range(0, 4 * LENGTH) if work == "read_range" else fetched.fetch(range(4))
    for index in range(4):  # whose flight is over when this is: others may still be about to end theirs
        with pytest.raises(UnicodeError):
            fetched.read_range(index * LENGTH, LENGTH)
    remote.error = None
    assert fetched.read_range(0, 5 * LENGTH) == CONTENT


def test_what_lands_between_a_look_and_a_claim_is_not_fetched_again(remote, fetched):
    fetcher, requests = fetched._fetcher, []
    look, stream = fetcher.known, remote.stream_range

    def slow_look(place):
        """Others bring it home while we think that it is not there."""
        found = look(place)
        if not requests:
            fetched.fetch([0])
        return found

    def counted(offset, length, take, *, afresh=False):
        requests.append((offset, length))
        stream(offset, length, take, afresh=afresh)

    fetcher.known, remote.stream_range = slow_look, counted
    assert fetched.read_range(0, LENGTH) == CONTENT[:LENGTH]
    assert requests.count((0, LENGTH)) == 1


class Untouchable:
    """Places that cost a round trip to look at."""

    def __len__(self):
        return 5

    def __getitem__(self, index):
        raise AssertionError("looked at")


def test_places_are_not_looked_at_before_they_are_wanted(remote):
    file = FetchedFile(remote, Fetcher(None))
    file.use(Untouchable())
    with pytest.raises(AssertionError, match="looked at"):
        file.read_range(0, LENGTH)
