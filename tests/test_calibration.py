"""What is promised comes true, whatever the policy thinks of itself; where it does not, that is said."""

import itertools
import random
from math import exp, log

import msgspec
import pytest
from test_api import Site

from banditads import policies
from banditads.calibration import ENOUGH, GROUPS, Calibration
from banditads.choosing import Request
from banditads.engine import Engine
from banditads.events import Ad, Chosen, Settled
from banditads.journal import connect
from banditads.signing import EventIds
from banditads.state import State


def settled(expected, promised):
    return Settled(Chosen(0.0, "e", ("a",), b"", 0, {}, expected=expected, promised=promised), (), 0.0, 0.0)


def chance(odds):
    return 1 / (1 + exp(-odds))


def told(bend, n=20_000, seed=0, calibration=None):
    """A calibration after `n` showings by a policy that expects `bend(truth)`."""
    dice, calibration = random.Random(seed), calibration or Calibration()
    for _ in range(n):
        truth = chance(dice.gauss(-3, 1))
        expected = bend(truth)
        earned = float(dice.random() < truth)
        calibration.apply(settled(expected, calibration.of(expected)), earned)
        calibration.pass_time(0.0)
    return calibration


BENDS = {
    "bold": lambda p: chance(1.8 * log(p / (1 - p)) + 2.5),
    "timid": lambda p: chance(0.5 * log(p / (1 - p)) - 1.0),
    "three times too high": lambda p: min(1.0, 3 * p),
    "right": lambda p: p,
}


@pytest.mark.parametrize("name", ["bold", "timid", "right"])
@pytest.mark.parametrize("truth", [0.01, 0.05, 0.2])
def test_a_promise_is_near_the_truth_however_the_policy_bends_it(name, truth):
    assert told(BENDS[name]).of(BENDS[name](truth)) == pytest.approx(truth, rel=0.3)


@pytest.mark.parametrize("name", ["bold", "timid", "three times too high"])
def test_the_error_of_what_is_promised_is_far_below_the_policys_own(name):
    found = told(BENDS[name]).reliability()
    assert found.calibrated < 0.5 * found.raw
    assert found.calibrated < 0.02


def test_the_error_of_a_liar_is_seen():
    calibration, dice = Calibration(), random.Random(1)
    for _ in range(4000):
        calibration.apply(settled(0.3, 0.3), float(dice.random() < 0.1))
        calibration.pass_time(0.0)
    assert calibration.reliability().raw == pytest.approx(0.2, abs=0.02)


def test_groups_hold_like_promises_and_add_up():
    found = told(BENDS["bold"], n=2000).reliability()
    promised = [group[2] for group in found.groups]
    assert promised == sorted(promised)
    assert sum(group[0] for group in found.groups) == pytest.approx(found.showings)
    assert found.showings == pytest.approx(2000, rel=0.12)  # old ones count a little less


def test_too_little_is_not_judged():
    calibration = told(BENDS["bold"], n=int(ENOUGH) - 100)
    assert calibration.reliability().raw is None
    quiet = Calibration()
    for _ in range(3000):
        quiet.apply(settled(0.001, 0.001), 0.0)
        quiet.pass_time(0.0)
    assert quiet.reliability().calibrated is None


def test_a_higher_expectation_is_never_a_lower_promise():
    contrary = told(lambda p: 1 - p)
    said = [contrary.of(step / 100) for step in range(101)]
    assert said == sorted(said)


def test_extremes_are_survived():
    calibration = Calibration()
    for n in range(3000):
        expected = (0.0, 1.0)[n % 2]
        calibration.apply(settled(expected, calibration.of(expected)), (1.0, 0.0)[n % 2])
        calibration.pass_time(0.0)
    assert 0 < calibration.of(0.0) < 1
    assert 0 < calibration.of(1.0) < 1
    assert len(calibration.groups) == GROUPS


def test_a_world_that_changes_is_followed():
    calibration = told(BENDS["right"])
    told(BENDS["three times too high"], seed=1, calibration=calibration)
    assert calibration.of(0.3) == pytest.approx(0.1, rel=0.3)


def test_a_copy_goes_on_exactly_like_the_original():
    calibration, copy = told(BENDS["bold"], n=500), Calibration()
    copy.load(msgspec.msgpack.decode(msgspec.msgpack.encode(calibration.dump())))
    for each in (calibration, copy):
        told(BENDS["timid"], n=500, seed=2, calibration=each)
    assert msgspec.msgpack.encode(copy.dump()) == msgspec.msgpack.encode(calibration.dump())


RATES = {("a", "x"): 0.3, ("a", "y"): 0.05, ("b", "x"): 0.1, ("b", "y"): 0.2}


@pytest.mark.parametrize("policy", [name for name in policies.names() if name != "uniform"])
def test_what_a_server_promises_is_what_its_visitors_pay(policy):
    dice, ads = random.Random(3), (Ad("a"), Ad("b"))
    now = itertools.count()
    engine = Engine(
        State(policy, wait=20.0),
        connect("memory:"),
        ids=EventIds(b"k" * 32),
        floor=0.2,
        clock=lambda: float(next(now)),
    )
    engine.put_ads(ads)
    promised = earned = 0.0
    for n in range(3000):
        kind = dice.choice("xy")
        event, _ = engine.choose(Request({"kind": kind}), f"e{n}")
        click = float(dice.random() < RATES[event.ad_id, kind])
        engine.reward(event.event_id, click)
        if n >= 1000:
            promised, earned = promised + event.promised, earned + click
    assert promised == pytest.approx(earned, rel=0.15)
    found = engine.state.calibration.reliability()
    assert found.calibrated < 0.03


def test_who_expects_nothing_promises_nothing():
    engine = Engine(State("uniform"), connect("memory:"), ids=EventIds(b"k" * 32))
    engine.put_ads((Ad("a"),))
    event, _ = engine.choose(Request())
    assert event.expected is event.promised is engine.state.in_rewards(event.promised) is None


def test_a_promise_is_in_rewards():
    assert State("uniform", reward_min=-1.0, reward_max=3.0).in_rewards(0.25) == 0.0


def test_outcomes_count_in_the_order_of_the_decisions_however_quick_clicks_are():
    """Nine of ten visitors do not click, which is known long after the one has."""
    dice = random.Random(4)
    now = itertools.count()
    engine = Engine(
        State("thompson", silence="immediate", wait=5000.0),
        connect("memory:"),
        ids=EventIds(b"k" * 32),
        clock=lambda: float(next(now)),
    )
    engine.put_ads((Ad("a"),))
    for n in range(4000):
        event, _ = engine.choose(Request(), f"e{n}")
        if dice.random() < 0.1:
            engine.reward(event.event_id, 1.0)
    assert (
        event.promised == event.expected == pytest.approx(0.1 / 1.1, rel=0.15)
    )  # nothing is known for certain
    assert engine.state.calibration.reliability().showings == 0
    copy = State("thompson", silence="immediate", wait=5000.0)
    copy.load(engine.state.dump())
    assert copy.digest() == engine.state.digest()
    for n in range(4000, 12_000):
        event, _ = engine.choose(Request(), f"e{n}")
        if dice.random() < 0.1:
            engine.reward(event.event_id, 1.0)
    assert event.promised == pytest.approx(0.1, rel=0.15)
    showings, _, _, earned = max(engine.state.calibration.reliability().groups)
    assert showings > 1000
    assert earned == pytest.approx(0.1, rel=0.15)


def test_a_reply_says_what_is_expected_and_says_it_again(make_engine, clock):
    site = Site(make_engine("vw", wait=10.0))
    for n in range(30):
        site("GET", f"/choose?event_id=e{n}")
        site("POST", "/reward", {"event_id": f"e{n}", "reward": float(n % 3 == 0)})
    first = site("GET", "/choose?event_id=again").data
    assert 0 < first["expected_reward"] < 1
    site("POST", "/reward", {"event_id": "again", "reward": 1.0})
    assert site("GET", "/choose?event_id=again").data == first
    assert 0 < site("GET", "/ads").data[0]["expected_reward"] < 1
    clock.now += 20
    site("GET", "/choose")
    said = site("GET", "/stats").data["calibration"]
    assert said["raw"] is said["calibrated"] is None
    assert said["showings"] == pytest.approx(34, rel=0.01)  # three of them in the list


def test_when_time_passes_in_between_changes_nothing_of_the_order():
    """A click of a later decision is known before the silence of an earlier one."""
    made = []
    for moments in ((), (5.0, 11.0, 12.5)):
        calibration, dice = Calibration(), random.Random(2)
        for n in range(50):
            choice = Chosen(float(n), f"e{n}", ("a",), b"", 0, {}, expected=0.3, promised=dice.random())
            early = n % 3 == 0
            calibration.apply(
                Settled(choice, (), float(early), n + (1.0 if early else 10.0)), float(early), 10.0
            )
            for moment in moments:
                calibration.pass_time(n + moment - 10)
        calibration.pass_time(1000.0)
        made.append(msgspec.msgpack.encode(calibration.dump()))
    assert made[0] == made[1]


def test_old_promises_count_less_than_new_ones():
    calibration = Calibration()
    for n in range(40_000):
        calibration.apply(settled(0.3, 0.3), float(n < 20_000))
        calibration.pass_time(0.0)
    ((showings, _, _, earned),) = calibration.reliability().groups
    assert showings == pytest.approx(10_000, rel=0.03)
    assert earned == pytest.approx(0.12, abs=0.03)  # e^-2 of the weight is of the time when all earned
