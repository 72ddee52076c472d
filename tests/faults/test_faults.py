"""Short forms of the fault campaign, and bugs planted to see that it notices."""

import phases
import pytest


def whole(tally):
    assert not tally.wrong, tally.said
    assert tally.faults
    assert tally.acknowledged


def test_kills_under_load_and_while_starting_lose_double_and_change_nothing():
    whole(phases.kills(3, sample=100))


def test_a_power_cut_loses_nothing_that_was_acknowledged():
    try:
        whole(phases.power_cuts(2))
    except phases.Impossible as why:
        pytest.skip(str(why))


def test_sigterm_under_load_saves_everything():
    whole(phases.sigterm(1))


def test_a_second_server_is_sent_away_and_the_first_does_not_notice():
    whole(phases.two_processes())
