"""Where silence is learned at once, it is learned once, and a reward puts it right."""

import random

import msgspec
import pytest
from test_watchdog import poisoned  # noqa: F401  (a fixture)

from banditads import policies
from banditads.choosing import Request
from banditads.directory import DataDirectory
from banditads.engine import Engine
from banditads.errors import Unknown
from banditads.events import Ad
from banditads.journal import connect
from banditads.replay import fold, settled
from banditads.server import new_state
from banditads.settings import Settings
from banditads.signing import EventIds
from banditads.state import State

ADS = (Ad("hats"), Ad("shoes"))


def at_once(policy="vw", silence="immediate", journal=None, **more):
    state = State(policy, silence=silence, **more)
    engine = Engine(state, journal or connect("memory:"), ids=EventIds(b"k" * 32), clock=lambda: 1.0)
    if not engine.state.catalog.ads:
        engine.put_ads(ADS)
    return engine


def taught(engine, n=40, rate=0.3, seed=1):
    dice = random.Random(seed)
    for _ in range(n):
        event, _ = engine.choose(Request({"kind": dice.choice("xy")}))
        if dice.random() < rate:
            engine.reward(event.event_id, 1.0)
    return engine


def learned(engine):
    return msgspec.msgpack.encode(engine.state.policy.dump())


@pytest.mark.parametrize("policy", [name for name in policies.names() if name != "uniform"])
def test_a_choice_teaches_as_soon_as_it_is_made_and_its_reward_when_it_comes(policy):
    engine, by_hand = at_once(policy), policies.make(policy)
    event, _ = engine.choose(Request({"kind": "x"}))
    by_hand.learn(event.context, ADS, event.pick, 0.0, event.probability)
    assert learned(engine) == msgspec.msgpack.encode(by_hand.dump())

    engine.reward(event.event_id, 1.0)
    if hasattr(by_hand, "correct"):
        by_hand.correct(event.context, ADS, event.pick, reward=1.0, propensity=event.probability, before=0.0)
    else:
        by_hand.learn(event.context, ADS, event.pick, 1.0, event.probability)
    assert learned(engine) == msgspec.msgpack.encode(by_hand.dump())


def test_a_choice_that_is_asked_for_again_or_said_to_have_earned_nothing_teaches_nothing_more():
    engine = at_once()
    engine.choose(Request({"kind": "x"}), "e1")
    before = learned(engine)
    engine.choose(Request({"kind": "x"}), "e1")
    engine.reward("e1", 0.0)
    engine.choose(Request({"kind": "x"}), "e1")
    assert learned(engine) == before


def test_time_that_runs_out_teaches_nothing_more():
    engine = taught(at_once(wait=5.0))
    before, waiting = learned(engine), len(engine.state.joiner.open)
    engine.clock = lambda: 100.0
    engine.tick()
    assert waiting
    assert not engine.state.joiner.open
    assert learned(engine) == before
    assert engine.state.stats.total.expired == waiting


@pytest.mark.parametrize("policy", ["vw", "ensemble"])
def test_the_fold_and_a_snapshot_anywhere_come_to_the_same_state(policy):
    engine = taught(at_once(policy))
    records = list(engine.journal.read(0))
    for k in (0, 1, 2, len(records) // 2, len(records)):
        first = fold(records[:k], State(policy, silence="immediate"))
        second = State(policy, silence="immediate")
        second.load(first.dump())
        assert fold(records[k:], second).digest() == engine.state.digest()


def test_click_rates_of_ads_are_learned_nearly_right():
    engine = taught(at_once("thompson"), n=3000, rate=0.03)
    shown = max(engine.state.stats.ads, key=lambda ad: engine.state.stats.ads[ad].choices)
    counts = engine.state.stats.ads[shown]
    rate = counts.rewards / counts.choices
    expected = engine.state.policy.expected({}, [Ad(shown)], 0)
    assert expected == pytest.approx(rate / (1 + rate), rel=0.1)


def test_who_can_correct_itself_learns_click_rates_right_and_so_do_challengers():
    engine = at_once("ensemble", options={"epsilon": 1.0}, challengers=["ensemble"])
    dice = random.Random(1)
    for _ in range(1500):
        event, _ = engine.choose(Request({}))
        if dice.random() < 0.6:  # learned besides it would be .375
            engine.reward(event.event_id, 1.0)
    for policy in (engine.state.policy, engine.state.challengers.policies["ensemble"]):
        assert policy.expected({}, ADS, 0) == pytest.approx(0.6, abs=0.05)


def test_a_choice_that_spoils_the_model_is_forgotten_and_everything_else_goes_on(poisoned):  # noqa: F811
    poisoned(float("inf"))
    engine = taught(at_once())
    event, _ = engine.choose(Request({"victim": "yes"}))
    with pytest.raises(Unknown):
        engine.reward(event.event_id, 1.0)
    taught(engine, seed=2)
    assert engine.state.stats.set_aside == 1
    again = at_once(journal=engine.journal)
    assert again.state.digest() == engine.state.digest()

    engine.clock = lambda: 1000.0
    engine.tick()
    finished = list(settled(engine.journal.read(0), State.of(engine.state.identity)))
    total = engine.state.stats.total
    assert len(finished) == total.rewards + total.expired
    assert event.event_id not in [each.choice.event_id for each in finished]


def test_a_choice_that_does_not_wait_teaches_nothing():
    engine = at_once(max_open_bytes=1)
    before = learned(engine)
    engine.choose(Request({"kind": "x"}))
    assert not engine.state.joiner.open
    assert learned(engine) == before


def test_who_learns_silence_at_once_is_said_or_as_it_was_or_the_default_policy(tmp_path):
    def silence(folder, **given):
        return new_state(Settings(data_dir=str(tmp_path / folder), **given)).silence

    assert silence("new") == silence("new", policy="ensemble") == "immediate"
    assert silence("new", policy="vw") == silence("new", silence="wait") == "wait"
    for way in ("wait", "immediate"):
        for policy in ("ensemble", "vw"):
            with DataDirectory(tmp_path / way / policy) as directory:
                directory.commit(State(policy, silence=way).identity)
            assert silence(f"{way}/{policy}") == way
    assert silence("wait/ensemble", silence="immediate") == "immediate"
    # Another policy learns the journal again in the way that suits it.
    assert silence("immediate/ensemble", policy="vw") == silence("wait/vw", policy="linucb") == "wait"
    assert silence("wait/vw", policy="ensemble") == "immediate"
    assert silence("immediate/ensemble", policy="vw", silence="immediate") == "immediate"
