"""A clock that leaps forwards has to stay there before anything expires by it."""

import pytest

from banditads.clock import HOLD, LEAP, Clock
from banditads.diagnosis import leap


class World:
    def __init__(self):
        self.wall, self.steady = 1_000_000.0, 50.0
        self.clock = Clock(lambda: self.wall, lambda: self.steady)

    def passes(self, seconds, leaps=0.0):
        self.wall += seconds + leaps
        self.steady += seconds
        return self.clock()


def test_it_follows_the_system_clock_as_it_drifts_and_steps_back():
    world = World()
    for seconds, leaps in [(1, 0), (1000, 0), (1, LEAP - 1), (1, -5000), (60, 0.5)]:
        assert world.passes(seconds, leaps) == world.wall
        assert world.clock.ahead == 0


def test_a_leap_forwards_raises_an_alarm_and_moves_no_time(caplog):
    world = World()
    before = world.clock()
    assert world.passes(1, 7200) == before + 1
    assert world.passes(HOLD / 2) == before + 1 + HOLD / 2
    (alarm,) = leap(world.clock.ahead)
    assert (alarm.code, "7200 s" in alarm.message) == ("clock", True)
    assert caplog.text.count("leapt 7200 s") == 1


def test_a_leap_that_was_put_right_never_happened():
    world = World()
    before = world.clock()
    world.passes(1, 7200)
    assert world.passes(10, -7200) == before + 11
    assert leap(world.clock.ahead) == []


def test_a_leap_that_lasts_is_followed():
    world = World()
    world.passes(1, 7200)
    assert world.passes(HOLD) == world.wall
    assert world.clock.ahead == 0
    assert world.passes(1) == world.wall


@pytest.mark.parametrize("second", [3600, -3600])
def test_a_second_leap_while_the_first_is_held_is_not_followed_either(second):
    world = World()
    before = world.clock()
    world.passes(1, 7200)
    assert world.passes(1, second) == before + 2
    assert world.clock.ahead == 7200 + second
