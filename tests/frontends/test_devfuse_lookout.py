"""When the thread that serves looks for requests and when it sleeps, told by times alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rafsfs.frontends.devfuse_lookout import CONTENTION_S, SPIN_MAX_S, SUSPECT_S, WORTH_S, Lookout

STEP_S = 2e-6  # one look at an empty queue


class Clock:
    """Plays a thread: looks until it may sleep, is woken after a while, answers."""

    def __init__(self, **options):
        self.now = 1000.0
        self.switches = 0
        self.lookout = Lookout(self.now, lambda: self.switches, **options)

    def look_until_asleep(self, step_s=STEP_S):
        """For how long it looks for a request that does not come."""
        begun = self.now
        while self.lookout.looks_again(self.now):
            self.now += step_s
            assert self.now - begun < 10, "it never sleeps"
        return self.now - begun

    def request_after(self, gap_s):
        """A request comes so long after the last answer; returns for how long it was looked for."""
        begun = self.now
        looked_s = 0.0
        while self.lookout.looks_again(self.now):
            if self.now - begun >= gap_s:
                break
            self.now += STEP_S
            looked_s = self.now - begun
        else:
            self.now = max(self.now, begun + gap_s)
            self.lookout.slept(self.now)
        self.lookout.answered(self.now)
        return looked_s


def test_it_looks_for_about_as_long_as_a_wake_up_takes_and_then_sleeps():
    assert SPIN_MAX_S <= Clock().look_until_asleep() < SPIN_MAX_S + 2 * STEP_S


def test_an_idle_mount_looks_no_more():
    clock = Clock()
    looked = [clock.request_after(1.0) for _ in range(10)]
    assert looked[0] >= SPIN_MAX_S
    assert looked[1:] == sorted(looked[1:], reverse=True)
    assert looked[-3:] == [0.0, 0.0, 0.0]


def test_one_sleep_that_was_too_short_and_it_looks_again():
    clock = Clock()
    for _ in range(10):
        clock.request_after(1.0)
    assert clock.request_after(WORTH_S / 4) == 0.0
    assert clock.request_after(WORTH_S / 4) >= WORTH_S / 4


def test_requests_that_come_too_far_apart_are_slept_for():
    clock = Clock()
    assert sum(clock.request_after(3 * WORTH_S) for _ in range(1000)) < 3 * SPIN_MAX_S


def test_who_loses_the_core_stops_looking_for_a_while():
    clock = Clock()
    assert clock.lookout.looks_again(clock.now)
    clock.now += 2 * SUSPECT_S
    clock.switches += 1
    assert not clock.lookout.looks_again(clock.now)
    until = clock.now + CONTENTION_S
    while clock.now < until - WORTH_S:
        assert clock.request_after(WORTH_S / 2) == 0.0
    clock.now = until
    clock.lookout.answered(clock.now)
    clock.request_after(WORTH_S / 2)
    assert clock.request_after(WORTH_S / 4) > 0.0


def test_an_interrupt_is_no_loss_of_the_core():
    clock = Clock()
    assert clock.lookout.looks_again(clock.now)
    clock.now += 2 * SUSPECT_S
    assert clock.lookout.looks_again(clock.now)


def test_on_a_single_core_it_never_looks():
    clock = Clock(spin_max_s=0.0)
    assert [clock.request_after(gap) for gap in (0.0, 1e-6, 1e-4, 1.0)] == [0.0] * 4


@given(st.lists(st.floats(0, 0.01), max_size=60))
def test_it_never_looks_for_longer_than_a_wake_up_takes(gaps):
    clock = Clock()
    assert all(clock.request_after(gap) <= SPIN_MAX_S + 2 * STEP_S for gap in gaps)


@pytest.mark.parametrize("step_s", [1e-6, 1e-5, SUSPECT_S * 0.9, SUSPECT_S * 1.1, 1.0])
def test_it_sleeps_in_the_end_however_slow_its_looks_are(step_s):
    assert Clock().look_until_asleep(step_s) <= SPIN_MAX_S + step_s
