"""Several signals of one choice: which of them count, and when."""

import math
import struct

import pytest
from conftest import Clock, ids
from hypothesis import given, settings
from hypothesis import strategies as st

from banditads import events
from banditads.choosing import Request
from banditads.engine import Engine
from banditads.errors import Conflict, Damaged, Expired
from banditads.events import Ad
from banditads.joiner import MAX_SAID
from banditads.journal import connect
from banditads.replay import fold
from banditads.state import State

CHOSEN = events.Chosen(0.0, "e", ("a", "b"), struct.pack("<2d", 0.5, 0.5), 0, {})
NAMES = [("click", ""), ("dwell", ""), ("", ""), *(("conversion", f"order-{n}") for n in range(4))]


def life(signals, *, cut=None, low=0.0, high=1.0, **joining):
    """(rewards that were learned, the state in the end) of a choice, with a restart after `cut` events."""
    history = [events.AdsPut(0.0, (Ad("a"), Ad("b"))), CHOSEN]
    history += [
        events.Rewarded(1.0 + at, "e", value, kind, order, value)
        for at, ((kind, order), value) in enumerate(signals)
    ]
    history += [events.Ticked(599.0), events.Ticked(600.0), events.Ticked(9999.0)]
    learned = []

    def fresh():
        state = State("uniform", reward_min=low, reward_max=high, **joining)
        state.policy.learn = lambda context, ads, pick, reward, probability: learned.append(
            reward * (high - low) + low
        )
        return state

    state = fresh()
    for offset, event in enumerate(history):
        if offset == cut:
            saved, state = state.dump(), fresh()
            state.load(saved)
        state.apply(offset, event)
    return learned, state


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_order_repeated_and_interrupted_anywhere_settles_with_the_same_reward(data):
    aggregation = data.draw(st.sampled_from(["sum", "max"]))
    low = data.draw(st.sampled_from([0.0, -1.0]))
    values = st.floats(low, 1.0, allow_subnormal=False)
    signals = list(data.draw(st.dictionaries(st.sampled_from(NAMES), values, min_size=1)).items())
    told = data.draw(st.permutations(signals))
    repeated = data.draw(st.permutations(told + data.draw(st.lists(st.sampled_from(signals), max_size=4))))
    whole = [value for _, value in signals]
    wanted = max(whole) if aggregation == "max" else min(1.0, max(low, math.fsum(whole)))

    plain, state = life(told, low=low, aggregation=aggregation)
    again, other = life(repeated, low=low, aggregation=aggregation)
    cut = data.draw(st.integers(0, len(told) + 5))
    resumed, third = life(told, low=low, aggregation=aggregation, cut=cut)

    assert plain == again == resumed == [pytest.approx(wanted)]
    rewards = [each.joiner.done["e"].reward for each in (state, other, third)]
    assert rewards == [wanted] * 3  # to the last bit
    assert state.dump() == third.dump()
    assert state.stats.total.rewards == other.stats.total.rewards == 1
    assert state.stats.late == 0


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_the_first_counts_where_the_earliest_is_to_and_the_rest_is_only_written_down(data):
    signals = [(name, data.draw(st.floats(0, 1))) for name in data.draw(st.permutations(NAMES))]
    cut = data.draw(st.integers(0, len(signals) + 5))
    learned, state = life(signals, cut=cut)

    assert learned == [pytest.approx(signals[0][1])]
    said = [(each.kind, each.order) for each in state.joiner.done["e"].said]
    assert said == [name for name, _ in signals if name != ("", "") or signals[0][0] == ("", "")]


@pytest.mark.parametrize(
    ("aggregation", "low", "values", "settled_after"),
    [
        ("sum", 0.0, [0.5, 0.5, 0.1], 2),
        ("sum", -1.0, [0.5, 0.5, 0.1], None),  # a negative one could still come
        ("sum", 0.0, [0.5, 0.4], None),
        ("max", -1.0, [0.5, 1.0], 2),
        ("max", 0.0, [0.5, 0.9], None),
        ("earliest", 0.0, [0.0, 1.0], 1),
    ],
)
def test_it_settles_as_soon_as_nothing_could_change_it_and_not_before(
    make_engine, aggregation, low, values, settled_after
):
    engine = make_engine()
    engine.state = state = State("uniform", aggregation=aggregation, reward_min=low)
    engine.catch_up()
    engine.choose(Request(), "e")
    for number, value in enumerate(values, 1):
        engine.reward("e", value, "conversion", f"order-{number}", value)
        assert ("e" in state.joiner.done) is (settled_after is not None and number >= settled_after)


def test_a_click_and_a_conversion_are_learned_together_when_the_window_ends(make_engine, clock):
    engine = make_engine(aggregation="sum")
    learned = []
    engine.state.policy.learn = lambda context, ads, pick, reward, probability: learned.append(reward)
    engine.choose(Request(), "e")
    assert engine.reward("e", 0.25, "click").status == "applied"
    assert engine.reward("e", 0.5, "conversion", "", 50.0).status == "applied"
    assert engine.reward("e", 0.25, "click").status == "duplicate"
    assert engine.decision("e").status == "pending"
    assert not engine.tick()
    clock.now += 600
    assert engine.tick()

    assert learned == [0.75]
    assert engine.decision("e")[1:3] == ("rewarded", 0.75)
    total = engine.state.stats.total
    assert (total.rewards, total.reward_sum, total.expired) == (1, 0.75, 0)
    assert fold(engine.journal.read(0), State("uniform", aggregation="sum")).digest() == engine.state.digest()


def test_of_a_kind_and_an_order_there_is_one(make_engine):
    engine = make_engine(aggregation="sum")
    engine.choose(Request(), "e")
    first = engine.reward("e", 0.1, "conversion", "o1", 10.0)
    assert engine.reward("e", 0.1, "conversion", "o1", 10.0) == ("duplicate", first.offset)
    with pytest.raises(Conflict):
        engine.reward("e", 0.1, "conversion", "o1", 11.0)  # worth the same, and another amount
    assert engine.reward("e", 0.1, "conversion", "o2", 10.0).status == "applied"
    assert [each.order for each in engine.decision("e").said] == ["o1", "o2"]


def test_a_conversion_after_a_click_that_counted_is_noted_until_the_window_ends(make_engine, clock):
    engine = make_engine()
    engine.choose(Request(), "e")
    engine.reward("e", 1.0, "click")
    clock.now += 599
    assert engine.reward("e", 0.5, "conversion", "o1", 5.0).status == "noted"
    assert engine.state.stats.late == 0
    clock.now += 1
    with pytest.raises(Expired):
        engine.reward("e", 0.5, "conversion", "o2", 5.0)
    assert engine.reward("e", 0.5, "conversion", "o1", 5.0).status == "duplicate"
    stats = engine.state.stats
    assert (stats.total.rewards, stats.total.reward_sum, stats.late) == (1, 1.0, 1)
    assert (stats.signals["click"].count, stats.signals["conversion"].amount) == (1, 10.0)
    with pytest.raises(Conflict):
        engine.reward("e", 0.5)  # a reward of no kind is another value of what counted


def test_who_knows_an_id_can_say_only_so_much_of_it(make_engine):
    engine = make_engine(aggregation="sum")
    engine.choose(Request(), "e")
    for number in range(MAX_SAID):
        engine.reward("e", 0.0, "conversion", f"order-{number}")
    end = engine.journal.end
    with pytest.raises(Conflict, match="8"):
        engine.reward("e", 0.0, "conversion", "one more")
    assert engine.journal.end == end


def test_what_was_said_of_a_choice_that_is_given_up_counts(make_engine):
    engine = make_engine(aggregation="sum", max_open=1)
    learned = []
    engine.state.policy.learn = lambda *given: learned.append(given[3])
    engine.choose(Request(), "silent")
    engine.choose(Request(), "clicked")
    engine.reward("clicked", 0.5, "click")
    engine.choose(Request(), "last")

    assert learned == [0.5]
    assert engine.state.joiner.given_up == 2
    assert engine.decision("clicked").reward == 0.5


def test_what_is_said_takes_room_like_the_choices_do(make_engine):
    engine = make_engine(aggregation="sum")
    engine.choose(Request(), "e")
    before = engine.state.joiner.open_bytes
    engine.reward("e", 0.1, "conversion", "o" * 100)
    copy = State("uniform", aggregation="sum")
    copy.load(engine.state.dump())

    assert engine.state.joiner.open_bytes > before + 100
    assert copy.joiner.open_bytes == engine.state.joiner.open_bytes == engine.state.joiner.open["e"].size


@pytest.mark.parametrize("aggregation", ["earliest", "sum"])
def test_a_profile_hears_of_every_signal_once_also_after_the_choice_has_settled(aggregation):
    engine = Engine(State("uniform", aggregation=aggregation), connect("memory:"), ids=ids(), clock=Clock())
    engine.put_ads([Ad("a")])
    engine.put_users({"anna": {}})
    event, _ = engine.choose(Request(user_id="anna"))
    other, _ = engine.choose(Request(user_id="nobody"))
    signals = [("click", ""), ("click", ""), ("conversion", "1"), ("conversion", "2"), ("dwell", "")]
    for kind, order in signals:
        for each in (event, other):
            engine.reward(each.event_id, 0.1, kind, order, 0.1)
    engine.clock.now += 1e6
    with pytest.raises(Expired):  # too late to be learned from, but it happened
        engine.reward(event.event_id, 0.1, "conversion", "3", 0.1)

    exposure = engine.state.users.known("anna", engine.clock.now).ads["a"]
    assert (exposure.shown, exposure.clicked, exposure.converted) == (1, 1, 3)
    assert fold(engine.journal.read(0), State.of(engine.state.identity)).digest() == engine.state.digest()
    written = [events.decode(record) for _, record in engine.journal.read(0)]
    said = [each.user for each in written if isinstance(each, events.Rewarded)]
    assert "nobody" not in said  # nothing is known of them, and nothing more is written down


@pytest.mark.parametrize("trouble", [Damaged("a byte has turned"), OSError(24, "Too many open files")])
def test_what_is_said_counts_although_the_choice_cannot_be_read_any_more(make_engine, monkeypatch, trouble):
    def unreadable(start):
        raise trouble

    engine = make_engine()
    engine.put_users({"anna": {}})
    event, _ = engine.choose(Request(user_id="anna"))
    engine.reward(event.event_id, 1.0, "click")
    monkeypatch.setattr(engine.journal, "read", unreadable)

    assert engine.reward(event.event_id, 1.0, "conversion", "1", 5.0).status == "noted"
    assert engine.state.stats.signals["conversion"].amount == 5.0


def test_a_settled_choice_is_read_outside_the_lock_and_not_of_who_is_erased_meanwhile(
    make_engine, monkeypatch
):
    engine = make_engine()
    engine.put_users({"anna": {}, "bert": {}})
    shown = {user: engine.choose(Request(user_id=user)).event.event_id for user in ("anna", "bert")}
    for event_id in shown.values():
        engine.reward(event_id, 1.0, "click")
    read_back = engine._read_back
    locked = []

    def read(done):
        locked.append(engine.lock.locked())
        found = read_back(done)
        if found.event.user_id == "anna":
            engine.erase("anna")
        return found

    monkeypatch.setattr(engine, "_read_back", read)
    for event_id in shown.values():
        assert engine.reward(event_id, 1.0, "conversion", "1", 5.0).status == "noted"
        assert engine.reward(event_id, 1.0, "conversion", "1", 5.0).status == "duplicate"

    assert locked == [False, False]  # and not at all of what was said before
    written = [events.decode(record) for _, record in engine.journal.read(0)]
    assert [each.user for each in written if isinstance(each, events.Rewarded)] == ["", "", "", "bert"]
