"""/diagnostics names what the test has done to the traffic, and keeps quiet about healthy traffic."""

import random

import msgspec
import numpy as np
import pytest
from conftest import ADS, Clock, ids
from test_api import Site

from banditads import drift, history
from banditads.choosing import Request
from banditads.diagnosis import View, findings
from banditads.engine import Engine
from banditads.events import Ad
from banditads.history import KEPT, MAX_STREAMS, History
from banditads.journal import connect
from banditads.replay import fold
from banditads.state import State
from banditads.stats import Counts


class World:
    """Visitors of an engine in memory, whose habits a test may change on the way."""

    def __init__(self, seed=1, ads=ADS, policy="uniform", **options):
        self.clock, self.dice = Clock(), random.Random(seed)
        self.engine = Engine(State(policy, options), connect("memory:"), ids=ids(), clock=self.clock)
        self.engine.put_ads(ads)
        self.mobile, self.age, self.rate, self.number = 0.5, 40.0, 0.2, 0
        self.dead = self.silent = False
        self.pace = 1.0

    def visits(self, n):
        """n visitors, one a second; whoever clicks, does so within a minute."""
        clicks = []
        for _ in range(n):
            self.clock.now += self.pace * self.dice.expovariate(1)
            self.number += 1
            device = "mobile" if self.dice.random() < self.mobile else "desktop"
            context = {"device": device, "age": self.dice.gauss(self.age, 10.0)}
            event = self.engine.choose(Request(context), f"{self.number}").event
            good = event.ad_id != "a" if self.dead else True
            if self.dice.random() < self.rate and good and not self.silent:
                clicks.append((self.clock.now + self.dice.random() * 60, event.event_id))
            while clicks and clicks[0][0] <= self.clock.now:
                self.engine.reward(clicks.pop(0)[1], 1.0)
        for _, event_id in clicks:
            self.engine.reward(event_id, 1.0)
        return self

    def over(self):
        """Everything that waited has settled."""
        self.clock.now += 601
        self.engine.tick()
        self.pace, pace = 0.01, self.pace
        self.visits(2 * history.WIDTH)  # only who comes later shows that a stretch is over
        self.pace = pace
        return self

    def codes(self):
        return [each.code for each in findings(View.of(self.engine.state))]

    def found(self, code):
        return next(each for each in findings(View.of(self.engine.state)) if each.code == code)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Short stretches, so that thousands of visits are many."""
    monkeypatch.setattr(history, "WIDTH", 64)
    monkeypatch.setattr(history, "EVERY", 1)


@pytest.fixture(scope="module")
def healthy():
    """Visitors as they always are, and enough of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history, "WIDTH", 64)
        patch.setattr(history, "EVERY", 1)
        yield World().visits(6000).engine.journal


def again(journal):
    """That world, to go on with."""
    world = World(seed=2)
    world.engine = Engine(State("uniform"), connect("memory:"), ids=ids(), clock=world.clock)
    for _, record in journal.read(0):
        world.engine.journal.append(record)
    world.engine.catch_up()
    world.clock.now, world.number = world.engine.state.joiner.now, 10**6
    return world


def test_healthy_traffic_is_nothing_to_talk_about(healthy):
    assert again(healthy).codes() == []


def test_more_visitors_at_noon_than_at_night_change_nothing(healthy):
    world = again(healthy)
    for pace in (0.1, 1.0, 10.0):
        world.pace = pace
        world.visits(1500)

    assert world.codes() == []


def test_little_data_is_said():
    world = World().visits(100)

    assert world.codes() == ["little_data"]
    assert world.found("little_data").message.endswith("too few to tell one ad from another")


def test_a_dead_ad_is_named():
    world = World(seed=3)
    world.dead = True
    world.visits(6000)

    assert world.codes() == ["dead_ad"]
    assert world.found("dead_ad").message.startswith("a: never rewarded")


def test_an_ad_that_is_never_shown_is_named(monkeypatch):
    monkeypatch.setattr("banditads.diagnosis.PATIENCE", 300)
    world = World(ads=[*ADS, Ad("elsewhere", placements=("cart",)), Ad("tomorrow", starts=2e9)]).visits(1700)
    assert world.codes() == []  # six times 300 is not reached yet
    world.visits(300)

    assert world.codes() == ["never_shown"]
    assert world.found("never_shown").message.startswith("elsewhere: never shown in 2000 choices")
    world.engine.put_ads(ADS[:1])  # as it was: but somebody is at work on the catalog
    assert world.codes() == []


def test_changed_traffic_is_named_with_the_feature_and_the_time(healthy):
    world = again(healthy)
    at = world.clock.now
    world.mobile = 0.9
    world.visits(2500).over()

    assert world.codes() == ["changed_traffic"]
    found = world.found("changed_traffic")
    assert "device=mobile was 0.5" in found.message
    assert "device=desktop" in found.message
    assert "age" not in found.message
    assert abs(found.since - at) < 300


def test_a_number_that_changes_is_named(healthy):
    world = again(healthy)
    world.age = 50.0
    world.visits(2500).over()

    assert world.codes() == ["changed_traffic"]
    assert world.found("changed_traffic").message.startswith("age was 39.8 and is 50")


def test_less_reward_is_more_silence_and_both_are_said(healthy):
    world = again(healthy)
    at = world.clock.now
    world.rate = 0.05
    world.visits(2500).over()

    assert world.codes() == ["growing_silence", "changed_reward"]
    assert abs(world.found("changed_reward").since - at) < 300
    assert abs(world.found("growing_silence").since - at) < 300


def test_more_reward_is_no_trouble(healthy):
    world = again(healthy)
    world.rate = 0.5
    world.visits(2500).over()

    assert world.codes() == []


def test_rewards_that_stop_are_missed(healthy):
    world = again(healthy)
    at = world.clock.now
    world.silent = True
    world.visits(1500).over()

    assert world.codes() == ["rewards_stopped"]
    assert abs(world.found("rewards_stopped").since - at) < 300


def promising(world, promised):
    """The state's history, as if all that is settled from now on had been promised so much."""
    settle = world.engine.state.history.settle

    def told(settled, reward):
        choice = msgspec.structs.replace(settled.choice, promised=promised)
        settle(msgspec.structs.replace(settled, choice=choice), reward)

    world.engine.state.history.settle = told
    return world


def test_expectations_that_no_longer_hold_are_said():
    world = promising(World(seed=5), 0.2).visits(5000)
    assert world.codes() == []
    world.rate = 0.4
    world.visits(3000).over()

    assert world.codes() == ["changed_calibration"]
    assert "earn +0.19" in world.found("changed_calibration").message


@pytest.mark.parametrize("rate", [0.005, 0.05, 0.5])
def test_chance_alone_is_hardly_ever_taken_for_a_change(rate):
    """400 series of 256 means each, of so rare rewards: fewer than one in a hundred is wrong."""
    rng = np.random.default_rng(1)
    wrong = 0
    for _ in range(400):
        means = rng.binomial(200, rate, KEPT) / 200
        wrong += drift.newest(list(enumerate(means.tolist()))) is not None

    assert wrong <= 4


def test_a_healthy_server_is_left_in_peace():
    """Of 100 servers with 16 features each, whose traffic never changes, one at most is told that it does."""
    talked = 0
    for seed in range(100):
        rng, made = np.random.default_rng(seed), History()
        made.streams = {f"f={each}" if each % 2 else f"f{each}": each for each in range(16)}
        for number in range(KEPT):
            looked, settled = int(rng.integers(30, 60)), int(rng.integers(120, 250))
            sums = rng.binomial(looked, 0.3, 16).astype(float)
            numbers = [float(each) for each in rng.normal(5, 2, (looked, 8)).sum(axis=0)]
            clicks = int(rng.binomial(settled, 0.03))
            made.over.append(
                history.Stretch(
                    number,
                    float(number),
                    looked,
                    {each: sums[each] if each % 2 else numbers[each // 2] for each in range(16)},
                    dict.fromkeys(range(0, 16, 2), looked),
                    settled,
                    settled - clicks,
                    float(clicks),
                    settled,
                    clicks - 0.03 * settled,
                )
            )
        total = Counts(60_000, 1500, 1500.0, 48_500)
        talked += findings(View(total, {}, {}, made, 1.0, 0.0)) != []

    assert talked <= 1


@pytest.mark.parametrize("shift", [1.0, 2.0, 5.0])
def test_a_change_is_found_where_it_was(shift):
    """Shifts by so many times the noise of a mean, 100 means after it."""
    rng = np.random.default_rng(2)
    near = []
    for _ in range(50):
        means = rng.normal(10.0 + shift * (np.arange(200) >= 100), 1.0)
        found = drift.newest([(float(n), float(x)) for n, x in enumerate(means)])
        if found:
            near.append(abs(found.at - 100))
            assert found.before < found.after
    assert len(near) >= 45
    assert np.median(near) <= 3


def test_a_series_without_noise_changes_only_where_it_changes():
    assert drift.newest([(float(n), 1.0) for n in range(100)]) is None
    assert drift.newest([(float(n), float(n >= 50)) for n in range(100)]).at == 50.0


def test_the_history_is_the_same_however_it_was_reached():
    live = World(seed=4).visits(1500).engine
    folded = fold(live.journal.read(0), State("uniform"))
    saved = State("uniform")
    half = fold(((offset, raw) for offset, raw in live.journal.read(0) if offset < 900), State("uniform"))
    saved.load(half.dump())
    fold(live.journal.read(900), saved)

    assert len(live.state.history.over) > 5
    assert live.state.history.dump() == folded.history.dump()
    assert live.state.digest() == folded.digest() == saved.digest()


def test_the_history_is_bounded(monkeypatch):
    world = World(seed=6)
    made = world.engine.state.history
    monkeypatch.setattr(history, "WIDTH", 4)
    for number in range(1500):
        world.clock.now += 10
        world.engine.choose(Request({f"n{number}": 1.0, "word": f"w{number}"}), f"e{number}")

    assert len(made.over) == KEPT
    assert len(made.streams) == MAX_STREAMS
    assert len(made.open) <= 600 / 10 / 2
    assert isinstance(made, History)


def test_the_route_says_alarms_and_findings(make_engine):
    engine = make_engine()
    engine.watch = lambda: [("clock", "it leapt", "set it back")]
    reply = Site(engine)("GET", "/diagnostics")

    assert reply.status == 200
    assert [each["code"] for each in reply.data["diagnoses"]] == ["clock", "little_data"]
    assert reply.data["diagnoses"][0] == {
        "code": "clock",
        "message": "it leapt",
        "advice": "set it back",
        "since": None,
    }
