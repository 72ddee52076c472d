"""Short forms of the fault campaign, and bugs planted to see that it notices."""

import phases
import pytest


def whole(phase):
    """It went wrong often enough, and nothing was lost, doubled or different."""
    try:
        tally = phase()
    except phases.Impossible as why:
        pytest.skip(str(why))
    assert not tally.wrong, tally.said
    assert tally.faults
    assert tally.acknowledged


@pytest.mark.parametrize("policy", ["ensemble", "logistic"])
def test_kills_under_load_and_while_starting_lose_double_and_change_nothing(policy):
    whole(lambda: phases.kills(3, policy=policy, sample=100))


def test_a_power_cut_loses_nothing_that_was_acknowledged():
    whole(lambda: phases.power_cuts(3))


def test_a_power_cut_with_everysec_loses_no_more_than_the_last_moment_and_leaves_no_hole():
    whole(lambda: phases.power_cuts(2, fsync="everysec", window=5.0))


def test_sigterm_under_load_saves_everything():
    whole(lambda: phases.sigterm(1))


def test_a_second_server_is_sent_away_and_the_first_does_not_notice():
    whole(phases.two_processes)


def test_a_tail_torn_at_any_byte_is_cut():
    whole(lambda: phases.torn_tails(2))


def test_a_flipped_bit_is_refused_or_changes_nothing():
    whole(lambda: phases.bit_flips(60, real=4))


def test_a_full_disk_refuses_and_goes_on_when_there_is_space():
    whole(phases.full_disk)


def test_a_failed_fsync_ends_the_process_before_anything_more_is_acknowledged():
    whole(lambda: phases.fsync_errors(2))


def test_the_kernel_is_asked_to_write_then_to_sync_then_to_reply():
    whole(phases.call_order)


def test_no_clock_brings_a_decision_back_or_ends_it_early():
    whole(phases.clock_steps)


def test_records_that_come_twice_count_once():
    whole(phases.delivered_twice)


@pytest.mark.parametrize("policy", ["vw", "ensemble"])
def test_a_run_with_crashes_is_the_run_without(policy):
    whole(lambda: phases.twins(40, policy=policy))


@pytest.mark.parametrize(("bug", "phase"), phases.CATCHES.items())
def test_a_planted_bug_is_noticed(bug, phase):
    """By the phase that is the quickest to see it; the long campaign shows which others do."""
    try:
        tally = phases.PHASES[phase](bug)
    except phases.Impossible as why:
        pytest.skip(str(why))
    assert tally.wrong
