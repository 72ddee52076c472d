"""Challengers learn unseen, and are promoted only if they would certainly have earned more."""

import json
import re
import struct
import threading

import numpy as np
import pytest
from conftest import ADS, banditads, drive
from test_api import Site
from test_erasing import ANNA, visits

from banditads import events
from banditads.challengers import ALPHA, Challengers, Figures, spec
from banditads.choosing import Request
from banditads.confidence import Tail
from banditads.erasing import Scrubber
from banditads.errors import Conflict, Misconfigured, Unavailable, Unknown
from banditads.events import Ad, Chosen
from banditads.journal import connect
from banditads.policies import thompson
from banditads.replay import fold
from banditads.snapshots import Snapshots
from banditads.state import State

RATES = {"a": 0.7, "b": 0.1, "c": 0.1}


def traffic(engine, clock, n, seed=0, rates=RATES):
    """n visits; every click comes before the next one, and every silence 600 s later."""
    rng = np.random.default_rng(seed)
    for number in range(n):
        clock.now += 1
        event = engine.choose(Request(), f"{seed}-{number}").event
        if rng.random() < rates[event.ad_id]:
            engine.reward(event.event_id, 1.0)
    clock.now += 601
    engine.tick()


def choice(event_id, pmf, pick, context=None):
    return Chosen(0.0, event_id, ("a", "b"), struct.pack("<2d", *pmf), pick, context or {})


TWO = (Ad("a"), Ad("b"))


@pytest.mark.parametrize(
    ("logging", "target", "means"),
    [
        ([0.5, 0.5], [0.9, 0.1], [0.3, 0.3]),  # another policy, but worth the same
        ([0.9, 0.1], [0.1, 0.9], [0.05, 0.05]),
        ([0.8, 0.2], [0.2, 0.8], [0.5, 0.4]),  # worse
    ],
)
def test_a_challenger_that_is_no_better_is_promoted_no_more_often_than_is_stated(logging, target, means):
    # 1,000 runs of 3,000 decisions, looked at all along. The first reign may spend half of ALPHA.
    logging, target, means = map(np.array, (logging, target, means))
    looks = np.unique(np.geomspace(20, 3000, 12).astype(int))
    fooled, fooled_by_normal = 0, 0
    for seed in range(1000):
        rng = np.random.default_rng(seed)
        arm = (rng.random(3000) < logging[1]).astype(int)
        gains = (target[arm] / logging[arm] - 1) * (rng.random(3000) < means[arm])
        fooled += any(Tail.of(gains[:n], -1.0).bound(ALPHA / 2) > 0 for n in looks)
        errors = [gains[:n].std(ddof=1) / n**0.5 for n in looks]
        fooled_by_normal += any(
            gains[:n].mean() > 1.96 * error for n, error in zip(looks, errors, strict=True)
        )

    assert fooled <= 1000 * ALPHA / 2
    if means[0] == 0.3:
        assert fooled_by_normal > 2 * 1000 * ALPHA


def test_the_room_says_the_same_as_its_statistics():
    room = Challengers(["thompson"], "uniform", floor=1.0)  # with this floor it is as good as even
    rng = np.random.default_rng(1)
    gains = []
    for number in range(300):
        pick, reward = int(rng.random() < 0.3), float(rng.random() < 0.5)
        made = choice(str(number), (0.7, 0.3), pick)
        room.see(made, TWO)
        room.hear(str(number), reward)
        room.count(())
        gains.append((0.5 / (0.7, 0.3)[pick] - 1) * reward)

    assert room.gain("thompson")[0] == pytest.approx(np.mean(gains))
    assert room.gain("thompson")[1] == pytest.approx(Tail.of(np.array(gains), -1.0).bound(ALPHA / 2))
    assert room.figures["thompson"].largest == pytest.approx(0.5 / 0.3)
    low, high = room.figures["thompson"].interval()
    assert low < room.figures["thompson"].earned.mean < high


@pytest.mark.parametrize("champion", ["uniform", "vw"])
def test_one_that_is_clearly_better_is_promoted_and_decides(champion, make_engine, clock):
    engine = make_engine(
        champion,
        challengers=("thompson",),
        promote="auto",
        promote_after=700,
        options={"exploration": "epsilon", "epsilon": 0.9} if champion == "vw" else {},
    )
    traffic(engine, clock, 699)
    assert engine.state.challengers.gain("thompson")[1] > 0  # but too few
    assert engine.state.policy_name == champion
    traffic(engine, clock, 300, seed=1)
    engine.tick()

    assert engine.state.policy_name == "thompson"
    assert engine.state.challengers.reign == 2
    answer = engine.choose(Request(), "now").event
    assert answer.policy == "thompson"
    assert answer.propensities["a"] > 0.9
    (promoted,) = [
        event for _, raw in engine.journal.read(0) if isinstance(event := events.decode(raw), events.Promoted)
    ]
    assert promoted.by == "rule"
    assert promoted.replaced.startswith(champion)
    assert promoted.decisions >= 700
    assert promoted.gain > promoted.gain_low > 0


def test_the_log_says_who_decides_now_and_why(make_engine, clock, caplog):
    engine = make_engine("uniform", challengers=("thompson",), promote="auto", promote_after=300, floor=0.1)
    engine.promote("thompson")
    assert "thompson decides instead of uniform, as was requested; untried" in caplog.text
    engine.promote("uniform")
    traffic(engine, clock, 700)
    engine.tick()
    said = "thompson decides instead of uniform, because it is certainly better; "
    known = r"decisions counted: [\d,]+; it earns \+0\.\d+ each, certainly \+0\.\d+ at least"
    assert re.search(said + known, caplog.text)


def test_none_is_promoted_that_is_the_champion_by_another_name(make_engine, clock):
    engine = make_engine("linucb", challengers=("linucb:seed=0",), promote="auto", promote_after=1, floor=0.1)
    traffic(engine, clock, 300)

    assert engine.state.challengers.gain("linucb:seed=0")[0] == pytest.approx(0, abs=1e-12)
    assert engine.state.challengers.reign == 1


def test_live_recovered_and_replayed_are_one_state_through_promotions(make_engine, clock):
    def fresh():
        return State("uniform", challengers=["thompson", "vw:bits=10", "linucb:dim=4"], floor=0.05)

    engine = make_engine("uniform", challengers=("thompson", "vw:bits=10", "linucb:dim=4"), floor=0.05)
    saved = []
    for seed, name in enumerate(["thompson", "linucb:dim=4", "uniform", "vw:bits=10"]):
        drive(engine, clock, 60, seed)
        saved.append(engine.state.dump())
        engine.promote(name)
        saved.append(engine.state.dump())
        drive(engine, clock, 30, seed + 10)
    replayed = fold(engine.journal.read(0), fresh())

    assert engine.state.challengers.reign == 5
    assert replayed.digest() == engine.state.digest()
    for dump in saved:
        recovered = fresh()
        recovered.load(dump)
        assert recovered.dump() == dump
        fold(engine.journal.read(recovered.applied), recovered)
        assert recovered.digest() == engine.state.digest()
        assert recovered.policy_name == "vw"


def test_a_promotion_can_be_taken_back(make_engine, clock):
    engine = make_engine(challengers=("thompson",))
    traffic(engine, clock, 50)
    before = engine.state.policy
    engine.promote("thompson")
    traffic(engine, clock, 50, seed=1)
    engine.promote("uniform")

    assert engine.state.policy is before
    assert list(engine.state.challengers.policies) == ["thompson"]
    assert engine.state.challengers.own.earned.count == 0  # the figures were about another champion


@pytest.mark.parametrize("whole", [True, False])
def test_after_an_erasure_it_is_the_fold_without_the_user_and_the_promotion_stands(
    whole, make_engine, clock, tmp_path
):
    def fresh():
        return State("uniform", challengers=["thompson"])

    journal = connect(f"file:{tmp_path}", segment_bytes=4096)
    snapshots = Snapshots(tmp_path, b"k" * 32)
    engine = make_engine(journal=journal, challengers=("thompson",), snapshots=snapshots, keep_journal=whole)
    visits(engine, clock, 100)
    engine.promote("thompson")
    visits(engine, clock, 60, seed=2)
    if not whole:
        engine.snapshot(), visits(engine, clock, 60, seed=3), engine.snapshot()
    assert any(ANNA in name for name in engine.state.challengers.waiting)
    engine.erase(ANNA)
    Scrubber(engine, threading.Event()).scrub()

    assert (journal.start == 0) == whole
    assert engine.state.policy_name == "thompson"
    if whole:  # otherwise model, counts and figures stay as they are
        assert not any(ANNA in name for name in engine.state.challengers.waiting)
        assert fold(journal.read(0), fresh()).digest() == engine.state.digest()
    journal.close()


@pytest.mark.parametrize("silence", ["wait", "immediate"])
def test_challengers_learn_what_the_champion_learns(silence, make_engine, clock):
    engine = make_engine(challengers=("thompson",), silence=silence)
    alone = make_engine("thompson", silence=silence)
    traffic(engine, clock, 100)
    for _, raw in engine.journal.read(alone.state.applied):
        alone.state.apply(alone.state.applied, events.decode(raw))

    assert engine.state.challengers.policies["thompson"].dump() == alone.state.policy.dump()


def test_clicks_do_not_count_before_the_silence_of_those_before_them(make_engine, clock):
    engine = make_engine(challengers=("thompson",))
    for number in range(10):
        engine.choose(Request(), str(number))
    for number in range(1, 10):
        engine.reward(str(number), 1.0)
    assert engine.state.challengers.own.earned.count == 0

    clock.now += 601
    engine.tick()
    assert engine.state.challengers.own.earned.count == 10
    assert engine.state.challengers.own.earned.mean == pytest.approx(0.9)


def test_what_is_never_known_speaks_against_the_challenger(make_engine):
    engine = make_engine(challengers=("thompson",), max_open=3)
    for number in range(10):
        engine.choose(Request(), str(number))  # the oldest is given up each time
    counted = engine.state.challengers.figures["thompson"]

    assert counted.earned.count == 7
    assert counted.earned.sum == 0
    assert counted.gain.sum <= 0
    figures = Figures()
    figures.add(0.25, 2.0, None)
    figures.add(2.0, 2.0, None)
    assert (figures.gain.sum, figures.earned.sum, figures.spent.sum) == (-0.75, 0, -2.25)


def test_a_decision_is_counted_although_another_one_gets_its_id(make_engine):
    engine = make_engine(challengers=("thompson",))
    engine.choose(Request(), "first")  # the others are counted after this one
    engine.choose(Request(user_id="anna"), "again")
    engine.erase("anna")
    engine.choose(Request(), "again")
    engine.reward("again", 1.0)
    engine.reward("first", 1.0)

    assert engine.state.challengers.own.earned.count == 3
    assert engine.state.challengers.own.earned.sum == 2


def test_what_waits_to_be_counted_is_bounded(make_engine, monkeypatch):
    monkeypatch.setattr("banditads.challengers.MAX_WAITING", 5)
    engine = make_engine(challengers=("thompson",))
    for number in range(20):
        engine.choose(Request(), str(number))
        if number:  # the first one waits, and all others behind it
            engine.reward(str(number), 1.0)

    assert len(engine.state.challengers.waiting) <= 5
    assert engine.state.challengers.own.earned.sum == engine.state.challengers.own.earned.count - 1


def test_a_challenger_that_breaks_is_left_out_and_harms_nobody(make_engine, clock, monkeypatch):
    alone = make_engine()
    traffic(alone, clock, 60)
    clock.now -= 661

    def broken(self, *_):
        raise ZeroDivisionError("nothing learned")

    monkeypatch.setattr(thompson.Policy, "learn", broken)
    engine = make_engine(challengers=("thompson", "linucb"), promote="auto", promote_after=1)
    traffic(engine, clock, 60)

    assert engine.state.challengers.failed == {"thompson": "ZeroDivisionError('nothing learned')"}
    assert engine.state.stats.total == alone.state.stats.total
    assert engine.state.challengers.figures["linucb"].earned.count == 60
    assert "thompson" not in engine.better()
    with pytest.raises(Conflict, match="nothing learned"):
        engine.promote("thompson")
    loaded = State("uniform", challengers=["thompson", "linucb"])
    loaded.load(engine.state.dump())
    assert loaded.digest() == engine.state.digest()


@pytest.mark.parametrize("pmf", [np.array([np.nan, 1.0]), np.array([2.0, -1.0]), np.ones(3), np.zeros(2)])
def test_probabilities_that_are_none_break_the_challenger(pmf):
    room = Challengers(["thompson"], "uniform")
    room.policies["thompson"].pmf = lambda *_: pmf
    room.see(choice("e", (0.5, 0.5), 0), TWO)

    assert "ArithmeticError" in room.failed["thompson"]
    assert room.waiting["e"].weights == (1.0,)


def test_without_challengers_nothing_is_asked_and_nothing_kept(make_engine, clock, monkeypatch):
    for name in ("see", "learn", "hear", "count", "gain", "better"):
        monkeypatch.setattr(Challengers, name, None)  # calling it would raise
    engine = make_engine(promote="auto")
    drive(engine, clock, 60)

    assert engine.alarms() == []
    assert not engine.state.challengers.waiting
    assert "challengers" not in engine.state.identity
    assert "floor" not in engine.state.identity


def test_what_challengers_depend_on_is_part_of_the_configuration():
    state = State("vw", challengers=["linucb", "thompson"], floor=0.05)

    assert state.identity["challengers"] == ["linucb", "thompson"]
    assert state.identity["floor"] == 0.05
    assert State.of(json.loads(json.dumps(state.identity))).identity == state.identity


def test_a_journal_folds_under_a_configuration_that_lacks_who_was_promoted(make_engine, clock):
    engine = make_engine(challengers=("thompson",))
    drive(engine, clock, 30)
    engine.promote("thompson")
    drive(engine, clock, 30, seed=2)

    assert fold(engine.journal.read(0), State("linucb")).policy_name == "linucb"


@pytest.mark.parametrize(
    "challengers",
    [
        ["nobody"],
        ["thompson:speed=9"],
        ["thompson:alpha"],
        ["uniform"],
        ["vw", "vw"],
        [f"vw:bits={n}" for n in range(8, 17)],
    ],
)
def test_challengers_that_cannot_be_are_refused(challengers):
    with pytest.raises(Misconfigured):
        State("uniform", challengers=challengers)


def test_a_server_does_not_start_with_them(tmp_path):
    banditads("serve", "--data-dir", tmp_path / "data", "--challengers", "nobody", code=78)


def test_a_name_says_policy_and_options():
    assert spec("vw", {"flag": True, "bits": 10}) == "vw:bits=10,flag=true"
    assert spec("uniform", {}) == "uniform"
    assert spec("vw", {"epsilon": 1}) == spec("vw", {"epsilon": 1.0})  # which is one configuration


def test_asking_raises_an_alarm_and_promotes_nobody(make_engine, clock):
    engine = make_engine(challengers=("thompson",), promote_after=300)
    traffic(engine, clock, 1200)

    assert [alarm.code for alarm in engine.alarms()] == ["challenger"]
    assert "thompson" in engine.alarms()[0].message
    assert engine.state.challengers.reign == 1
    engine.promotes = "never"
    assert engine.alarms() == []


def test_a_full_disk_puts_a_promotion_off(make_engine, clock, monkeypatch):
    engine = make_engine(challengers=("thompson",), promote_after=300, promote="never")
    traffic(engine, clock, 1200)
    engine.promotes = "auto"
    append = engine.journal.append

    def refuse(_):
        raise Unavailable("the disk is full")

    monkeypatch.setattr(engine.journal, "append", refuse)
    with pytest.raises(Unavailable):  # the tick finds out whether the disk takes events again
        engine.tick()
    assert engine.state.challengers.reign == 1
    monkeypatch.setattr(engine.journal, "append", append)
    engine.tick()
    assert engine.state.challengers.reign == 2


def test_reigns_share_what_may_go_wrong(monkeypatch):
    room, shares = Challengers(["thompson", "linucb"], "uniform"), []
    monkeypatch.setattr(Tail, "bound", lambda self, alpha: shares.append(alpha) or 0.0)
    for reign in range(1, 200):
        room.reign = reign
        for name in room.policies:
            room.gain(name)

    assert ALPHA * 0.99 < sum(shares) < ALPHA


def test_how_all_stand_is_seen_and_a_promotion_asked_for(make_engine, clock):
    engine = make_engine(challengers=("thompson", "linucb:dim=4"), promote_after=300, floor=0.02)
    site = Site(engine)
    first = site("GET", "/policies").data
    assert first["champion"] == "uniform"
    assert [each["value"] for each in first["policies"]] == [None, None, None]
    traffic(engine, clock, 1200)

    said = site("GET", "/policies").data
    champion, thompson_, linucb = said["policies"]
    assert (said["promote"], said["reign"], champion["name"]) == ("ask", 1, "uniform")
    assert champion["value"] == pytest.approx(0.3, abs=0.05)
    assert champion["low"] < champion["value"] < champion["high"]
    assert thompson_["better"]
    assert thompson_["gain"] > thompson_["gain_low"] > 0
    assert thompson_["low"] < 0.7 < thompson_["high"]
    assert thompson_["effective_sample_size"] > 100
    assert linucb["name"] == "linucb:dim=4"
    metrics = site("GET", "/metrics").raw.decode()
    assert 'banditads_policy_decides{policy="uniform"} 1.0' in metrics
    assert 'banditads_alarm{code="challenger"} 1.0' in metrics

    assert site("POST", "/policies/linucb%3Adim%3D4/promote").data["champion"] == "linucb:dim=4"
    assert site("GET", "/policies").data["policies"][0]["name"] == "linucb:dim=4"
    assert site("GET", "/policies").data["since"] == clock.now
    assert site("POST", "/policies/linucb:dim=4/promote").status == 409
    assert site("POST", "/policies/nobody/promote").status == 404
    with pytest.raises(Unknown):
        engine.promote("nobody")


def test_values_are_in_the_unit_of_the_rewards(clock, make_engine):
    engine = make_engine(challengers=("thompson",))
    engine.state.reward_min, engine.state.reward_max = -1.0, 3.0
    engine.choose(Request(ads=("a",)), "e")
    engine.reward("e", 2.0)

    assert [each["value"] for each in Site(engine)("GET", "/policies").data["policies"]] == [2.0, 2.0]
    assert len(ADS) == 3
