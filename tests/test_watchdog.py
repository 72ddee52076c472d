"""A model that was spoilt is restored without what spoilt it, and somebody is told."""

import logging

import numpy as np
import pytest
from conftest import drive, ids

from banditads import diagnosis, events, policies, verification
from banditads.choosing import Request
from banditads.directory import DataDirectory
from banditads.engine import Engine, recover
from banditads.errors import DiskFailure, Unavailable
from banditads.events import Ad
from banditads.journal import connect
from banditads.journal.memory import Journal
from banditads.replay import fold, refold
from banditads.snapshots import Snapshots
from banditads.state import Spoilt, State

KEY = b"k" * 32
EVERY = [(name, {}) for name in policies.names()] + [("vw", {"exploration": "epsilon"})]
EVERY += [("vw", {"exploration": name}) for name in ("softmax", "regcb", "regcbopt")]
EVERY += [("logistic", {"exploration": "softmax"})]


def poison(state, how):
    """From now on the policy has a bug that strikes those decisions whose context says "victim"."""
    policy, learn = state.policy, state.policy.learn

    def spoil(context, ads, pick, reward, propensity):
        if "victim" in context:
            if isinstance(how, Exception):
                raise how
            if isinstance(how, float):
                reward = how
            elif not hasattr(policy, "sound"):  # who has it is not asked for a distribution
                policy.pmf = lambda context, ads: np.full(len(ads), np.nan)
        learn(context, ads, pick, reward, propensity)
        if how == "its model" and "victim" in context and hasattr(policy, "sound"):
            policy.sound = False

    policy.learn = spoil


@pytest.fixture
def poisoned(monkeypatch):
    """Every state that is made has the bug."""
    made = State.__init__

    def make(how):
        def init(self, *args, **options):
            made(self, *args, **options)
            poison(self, how)

        monkeypatch.setattr(State, "__init__", init)

    return make


@pytest.mark.parametrize(("name", "options"), EVERY)
@pytest.mark.parametrize("reward", [float("inf"), float("nan"), 1e30, -1e30, 1.1, -0.1])
def test_a_reward_that_no_model_may_learn_is_noticed_before_it_is_learned(name, options, reward):
    state = State(name, options)
    ads = (Ad("a"), Ad("b"))
    chosen = events.Chosen(0.0, "e", ("a", "b"), np.array([0.5, 0.5]).tobytes(), 0, {"x": 1.0})
    settled = events.Settled(chosen, ads, reward, 1.0)
    before = state.policy.dump()
    with pytest.raises(Spoilt):
        state._learn(settled)
    assert state.policy.dump() == before


@pytest.mark.parametrize("options", [options for name, options in EVERY if name == "vw"])
def test_a_model_of_vw_that_is_no_longer_finite_is_noticed_at_once(options, make_engine, clock):
    """VW hides it: with epsilon-greedy it goes on with sound probabilities, of nothing, for ever."""
    engine = make_engine("vw", options=options)
    drive(engine, clock, 50)
    poison(engine.state, float("inf"))
    engine.choose(Request({"victim": "bad"}), "bad")
    waiting = engine.state.joiner.open["bad"]
    with pytest.raises(Spoilt):
        engine.state._learn(events.Settled(waiting.choice, waiting.ads, 1.0, 0.0))


@pytest.mark.parametrize(("name", "options"), EVERY)
@pytest.mark.parametrize("number", [float("inf"), float("nan")])
def test_a_number_that_no_model_can_learn_is_noticed_or_does_no_harm(name, options, number):
    """The door lets none in; this is what happens if it did."""
    state, ads = State(name, options), (Ad("a"), Ad("b"))

    def learn(context, pick, reward):
        chosen = events.Chosen(0.0, "e", ("a", "b"), np.array([0.5, 0.5]).tobytes(), pick, context)
        state._learn(events.Settled(chosen, ads, reward, 1.0))

    learn({"x": 1.0}, 0, 1.0)
    try:
        learn({"x": number}, 0, 1.0)
    except Spoilt:
        return
    for _ in range(100):
        learn({"x": 1.0}, 0, 0.0)
        learn({"x": 1.0}, 1, 1.0)
    pmf = state.policy.pmf({"x": 1.0}, ads)
    assert name == "uniform" or pmf[1] > 0.8


def test_what_spoils_the_model_is_set_aside_and_the_rest_is_learned(poisoned, make_engine, clock, caplog):
    poisoned(float("inf"))
    engine = make_engine("vw")
    drive(engine, clock, 60)
    engine.choose(Request({"victim": "bad"}), "bad")
    with caplog.at_level(logging.CRITICAL):
        assert engine.reward("bad", 1.0).status == "applied"  # recorded and counted; not learned
    drive(engine, clock, 60, seed=2)

    kinds = [type(events.decode(record)).__name__ for _, record in engine.journal.read(0)]
    assert kinds.count("SetAside") == 1
    assert "bad" in caplog.text
    assert engine.state.stats.set_aside == 1
    assert engine.state.skip == set()
    assert engine.decision("bad").reward == 1.0
    assert [alarm.code for alarm in engine.alarms()] == ["set_aside"]
    assert engine.trouble() == ""

    class Deaf(State):  # what the model should be: as if it had never been told
        def _learn(self, settled):
            if settled.choice.event_id != "bad":
                super()._learn(settled)

    deaf = Deaf("vw")
    deaf.skip = {"bad"}
    assert fold(engine.journal.read(0), deaf).digest() == engine.state.digest()
    clock.now += diagnosis.SET_ASIDE_SECONDS + 1
    engine.tick()
    engine.choose(Request())
    assert engine.alarms() == []


@pytest.mark.parametrize("how", [ValueError("a bug in the library"), "its model"])
@pytest.mark.parametrize("policy", [name for name in policies.names() if name != "uniform"])
def test_live_recovered_and_folded_again_agree_on_what_was_set_aside(
    policy, how, poisoned, make_engine, clock, tmp_path
):
    poisoned(how)
    journal, snapshots = connect(f"file:{tmp_path}"), Snapshots(tmp_path, KEY)
    engine = make_engine(policy, journal, snapshots=snapshots)
    drive(engine, clock, 40)
    engine.snapshot()
    for number in range(3):
        event_id = f"bad{number}"
        engine.choose(Request({"victim": "bad"}), event_id)
        engine.reward(event_id, 1.0)
        drive(engine, clock, 20, seed=5 + number)
    live = engine.state.digest()

    recovered = State(policy)
    recover(recovered, journal, snapshots)
    assert recovered.applied > 0
    assert Engine(recovered, journal, ids=ids(), clock=clock, snapshots=snapshots).state.digest() == live
    assert refold(journal.read, State(policy), lambda state: None).digest() == live
    assert engine.state.stats.set_aside == 3
    journal.close()


def test_a_crash_before_it_was_written_down_changes_nothing(poisoned, make_engine, clock, monkeypatch):
    poisoned(float("inf"))
    journal = connect("memory:")
    engine = make_engine("vw", journal)
    drive(engine, clock, 30)
    monkeypatch.setattr(engine, "_set_aside", lambda: None)  # killed just before
    engine.choose(Request({"victim": "bad"}), "bad")
    engine.reward("bad", 1.0)
    again = Engine(State("vw"), journal, ids=ids(), clock=clock)

    assert again.state.stats.set_aside == 1
    assert isinstance(events.decode(journal.records[-1]), events.SetAside)
    assert again.state.policy.dump() == engine.state.policy.dump()


def test_on_a_full_disk_it_is_written_down_later(poisoned, make_engine):
    class Filling(Journal):
        room = 10**9

        def append(self, payload):
            self.room -= 1
            if self.room < 0:
                raise Unavailable("no space left on device")
            return super().append(payload)

    disk = Filling()
    poisoned(float("inf"))
    engine = make_engine("vw", disk)
    engine.choose(Request({"victim": "bad"}), "bad")
    disk.room = 1  # for the reward
    assert engine.reward("bad", 1.0).status == "applied"
    assert engine.state.skip == {"bad"}
    disk.room = 10
    engine.tick()
    assert engine.state.skip == set()
    assert engine.state.stats.set_aside == 1


def test_a_state_that_cannot_be_made_again_acknowledges_nothing_more(poisoned, make_engine, monkeypatch):
    poisoned(float("inf"))
    engine = make_engine("vw")
    engine.choose(Request({"victim": "bad"}), "bad")
    engine.choose(Request(), "good")
    monkeypatch.setattr(engine, "_begin", lambda state: 1 / 0)
    for event_id in ("bad", "good"):
        with pytest.raises(DiskFailure):
            engine.reward(event_id, 1.0)
    assert "cannot be made again" in engine.failed()


def test_verify_comes_to_the_same_state(poisoned, make_engine, clock, tmp_path):
    poisoned(float("inf"))
    journal, snapshots = connect(f"file:{tmp_path}"), Snapshots(tmp_path, KEY)
    engine = make_engine("vw", journal, snapshots=snapshots)
    with DataDirectory(tmp_path) as directory:
        directory.check(engine.state.identity)
    drive(engine, clock, 30)
    engine.snapshot()
    engine.choose(Request({"victim": "bad"}), "bad")
    engine.reward("bad", 1.0)
    end = engine.snapshot()
    verdict = verification.verify(tmp_path, KEY)

    assert verdict.digest == engine.state.digest()
    assert end in verdict.snapshots
    journal.close()


def collapsed(*, reward=0.0, others=0.0, left_over=0.0):
    """A state in which one ad takes everything; others were shown 1,000 times before."""
    state, offset = State("uniform"), 0
    for number in range(4500):
        late = number >= 1000
        pmf = np.array([1 - left_over, left_over] if late else [0.5, 0.5])
        pick = 0 if late else 1
        event_id = f"e{number}"
        for event in (
            events.Chosen(float(number), event_id, ("top", "rest"), pmf.tobytes(), pick, {}),
            events.Rewarded(float(number), event_id, reward if late else others),
        ):
            state.apply(offset, event)
            offset += 1
    return state


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"left_over": 0.01}, "nothing was ever rewarded"),
        ({"reward": 0.1, "others": 0.3, "left_over": 0.01}, "stuck on what was learned early"),
        ({"reward": 0.3, "others": 0.1}, "may be the best, for now"),
    ],
)
def test_one_ad_that_takes_everything_is_an_alarm_with_its_likely_cause(given, said):
    (alarm,) = diagnosis.alarms(collapsed(**given))
    assert alarm.code == "collapsed"
    assert "'top'" in alarm.message
    assert said in alarm.message
    assert alarm.advice


def test_an_ad_that_is_the_best_while_the_floor_still_tries_others_is_no_alarm():
    assert diagnosis.alarms(collapsed(reward=0.3, others=0.1, left_over=0.01)) == []


def test_an_ad_that_took_everything_before_others_were_tried_is_said_to_be_unproven():
    state = State("uniform")
    pmf = np.array([0.999, 0.001]).tobytes()
    for number in range(3000):
        state.apply(2 * number, events.Chosen(0.0, f"e{number}", ("top", "rest"), pmf, 0, {}))
        state.apply(2 * number + 1, events.Rewarded(0.0, f"e{number}", 1.0))
    (alarm,) = diagnosis.alarms(state)
    assert "too little was shown of the others" in alarm.message


@pytest.mark.parametrize("policy", policies.names())
def test_healthy_traffic_raises_no_alarm(policy, make_engine, clock):
    engine = make_engine(policy, floor=0.05)
    drive(engine, clock, 600)
    assert engine.alarms() == []


def test_ads_that_are_certain_for_different_visitors_are_no_collapse():
    state = State("uniform")
    for number in range(5000):
        pmf = np.eye(2)[number % 2] * 0.998 + 0.001
        state.apply(number, events.Chosen(0.0, f"e{number}", ("a", "b"), pmf.tobytes(), number % 2, {}))
    assert diagnosis.alarms(state) == []


def test_alarms_are_in_readyz_in_metrics_and_in_the_log(start):
    server = start("--policy", "vw", "--option", "exploration=regcbopt", "--catalog", "")
    server("PUT", "/catalog/ads/one", {})
    server("PUT", "/catalog/ads/two", {})
    assert server.data("/readyz") == {"status": "ready", "alarms": []}
    for number in range(40):
        shown = server.data(f"/choose?event_id=e{number}")["ad"]["id"]
        server("POST", "/reward", {"event_id": f"e{number}", "reward": int(shown == "one")})
    for _ in range(2600):
        server("GET", "/choose")
    (alarm,) = server.data("/readyz")["alarms"]
    assert (alarm["code"], "floor" in alarm["advice"]) == ("collapsed", True)
    metrics = server("GET", "/metrics").text
    assert 'banditads_alarm{code="collapsed"} 1.0' in metrics
    assert 'banditads_alarm{code="set_aside"} 0.0' in metrics
    _, errors = server.end()
    assert errors.count("takes everything") == 1
