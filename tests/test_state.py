"""state = fold(events): one answer, however you come to it."""

import builtins
import os
import random
import struct
import time

import pytest
from conftest import ADS, Clock, drive, ids
from hypothesis import given, settings
from hypothesis import strategies as st

from banditads import events, policies
from banditads.choosing import Request, choose
from banditads.engine import Engine, recover
from banditads.events import Ad
from banditads.journal import connect
from banditads.replay import fold
from banditads.snapshots import Snapshots
from banditads.state import Gap, State

PMF = struct.pack("<2d", 0.25, 0.75)


@pytest.mark.parametrize("policy", policies.names())
def test_live_recovered_replica_and_replayed_are_one_state(policy, make_engine, clock, tmp_path):
    journal = connect(f"file:{tmp_path}", segment_bytes=4096)
    snapshots = Snapshots(tmp_path, b"k" * 32)
    live = make_engine(policy, journal, snapshots=snapshots)
    replica = State(policy)
    drive(live, clock, 120)
    live.snapshot()
    fold(journal.read(replica.applied), replica)
    drive(live, clock, 120, seed=2)
    fold(journal.read(replica.applied), replica)

    recovered = State(policy)
    recover(recovered, journal, snapshots)
    assert 0 < recovered.applied < live.state.applied
    Engine(recovered, journal, ids=ids(), clock=clock)
    replayed = fold(journal.read(0), State(policy))

    assert live.state.stats.total.rewards > 10
    assert len({each.digest() for each in (live.state, replica, recovered, replayed)}) == 1
    journal.close()


@pytest.mark.parametrize("policy", policies.names())
def test_a_recovered_server_goes_on_like_one_that_never_stopped(policy, make_engine, clock, tmp_path):
    straight = make_engine(policy)
    drive(straight, clock, 100)
    stopped = State(policy)
    stopped.load(straight.state.dump())
    twin_clock = Clock(clock.now)
    journal = connect("memory:")
    for _, record in straight.journal.read(0):
        journal.append(record)
    twin = Engine(stopped, journal, ids=ids(), clock=twin_clock)
    drive(straight, clock, 100, seed=3)
    drive(twin, twin_clock, 100, seed=3)

    assert list(straight.journal.read(0)) == list(journal.read(0))  # the same ads, the same probabilities
    assert straight.state.digest() == twin.state.digest()


def test_apply_reads_no_clock_throws_no_dice_opens_no_file(make_engine, clock, monkeypatch):
    engine = make_engine("vw")
    drive(engine, clock, 60)
    known = [(offset, events.decode(record)) for offset, record in engine.journal.read(0)]
    state = State("vw")

    def forbidden(*args, **kwargs):
        raise AssertionError("apply reached outside")

    for place, name in [
        (time, "time"), (time, "monotonic"), (random, "random"), (os, "urandom"), (builtins, "open")
    ]:  # fmt: skip
        monkeypatch.setattr(place, name, forbidden)
    for offset, event in known:
        state.apply(offset, event)
    monkeypatch.undo()

    assert state.digest() == engine.state.digest()


def test_choosing_changes_nothing(make_engine, clock):
    engine = make_engine("vw")
    drive(engine, clock, 60)
    before = engine.state.dump()
    first = choose(engine.state, at=clock.now, event_id="e", request=Request({"page": "new"}))
    again = choose(engine.state, at=clock.now, event_id="e", request=Request({"page": "new"}))

    assert first == again
    assert engine.state.dump() == before


def test_events_delivered_twice_count_once(make_engine, clock):
    journal = connect("memory:")
    drive(make_engine("uniform", journal), clock, 50)
    once = fold(journal.read(0), State("uniform"))
    twice = fold(journal.read(20), fold(journal.read(0), State("uniform")))

    assert once.digest() == twice.digest()


def test_a_missing_event_is_noticed():
    with pytest.raises(Gap):
        State("uniform").apply(1, events.Ticked(0.0))


def test_two_states_in_one_process_do_not_disturb_each_other(make_engine, clock):
    alone = make_engine("vw")
    drive(alone, clock, 50)
    clock.now = Clock().now
    one, two = make_engine("vw"), make_engine("vw")
    half = Clock().now
    for seed in (1, 9):
        clock.now = half
        drive(one if seed == 1 else two, clock, 50, seed)

    assert one.state.digest() == alone.state.digest()


def test_learning_uses_the_features_of_choice_time(make_engine, clock):
    seen = []
    engine = make_engine("uniform", ads=[Ad("a", {"price": 1.0})])
    engine.state.policy.learn = lambda context, ads, pick, reward, propensity: seen.append(ads[pick].features)
    engine.choose(Request(), "e")
    engine.put_ads([Ad("a", {"price": 2.0})])
    engine.reward("e", 1.0)

    assert seen == [{"price": 1.0}]


def test_ads_of_a_waiting_choice_survive_a_snapshot_after_they_left_the_catalog(make_engine):
    engine = make_engine("uniform")
    engine.choose(Request(), "e")
    for ad in ADS:
        engine.remove_ad(ad.id)
    copy = State("uniform")
    copy.load(engine.state.dump())

    assert copy.joiner.open["e"].ads == tuple(ADS)
    assert copy.dump() == engine.state.dump()


times, names = st.integers(0, 20).map(lambda n: 100.0 * n), st.sampled_from(["e1", "e2", "e3"])
histories = st.lists(
    st.one_of(
        st.builds(
            events.Chosen, times, names, st.just(("a", "b")), st.just(PMF), st.integers(0, 1), st.just({}),
            request_id=st.sampled_from(["", "r1"]),
        ),
        st.builds(events.Unfilled, times, names, st.just({}), filtered=st.just({"a": "ended"})),
        st.builds(events.Rewarded, times, names, st.sampled_from([0.0, 1.0])),
        st.builds(events.Impressed, times, names, st.just("a")),
        st.builds(events.Ticked, times),
        st.builds(events.AdRemoved, times, st.sampled_from("ab")),
        st.builds(events.AdsPut, times, st.sampled_from([(), (Ad("a"),), (Ad("b"), Ad("a", {"x": 1.0}))])),
    ),
    max_size=40,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(histories, st.data())
def test_a_snapshot_anywhere_changes_nothing(history, data):
    """Even with clocks that run backwards, ids that come twice, and limits that are reached."""
    cut = data.draw(st.integers(0, len(history)))
    limits = data.draw(st.sampled_from([{}, {"max_open": 1}, {"max_open_bytes": 80}, {"max_done": 1}]))
    straight, stopped, resumed = (State("uniform", **limits) for _ in range(3))
    for offset, event in enumerate(history):
        straight.apply(offset, event)
        if offset < cut:
            stopped.apply(offset, event)
    resumed.load(stopped.dump())
    for offset, event in enumerate(history[cut:], cut):
        resumed.apply(offset, event)

    assert straight.dump() == resumed.dump()


@settings(max_examples=200, deadline=None)
@given(histories)
def test_every_event_comes_back_from_the_journal_as_it_was(history):
    for event in history:
        assert events.decode(events.encode(event)) == event


@settings(max_examples=100, deadline=None)
@given(histories)
def test_every_choice_settles_exactly_once(history):
    state, settled = State("uniform"), []
    state.policy.learn = lambda *args, **_: settled.append(args)
    for offset, event in enumerate([*history, events.Ticked(1e9)]):
        state.apply(offset, event)
    total = state.stats.total
    first = {e.event_id: e for e in reversed(history) if isinstance(e, events.Chosen | events.Unfilled)}
    shown = sum(isinstance(e, events.Chosen) for e in first.values())

    assert state.joiner.open == {}
    assert len(settled) == total.rewards + total.expired == shown
