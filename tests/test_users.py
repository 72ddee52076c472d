"""A profile: the same in whatever order and batches, small whatever the history, nothing without consent."""

import math
import random

import pytest
from conftest import drive
from hypothesis import given, settings
from hypothesis import strategies as st

from banditads.api.metrics import _State
from banditads.choosing import Request, choose
from banditads.errors import Unavailable
from banditads.events import Act, Chosen, Heard, UserActed, UserErased, UserPut
from banditads.guard import Door
from banditads.replay import fold
from banditads.state import State
from banditads.users import ADS as KEPT_ADS
from banditads.users import BUCKETS, DAY, FULL, KINDS, Users

NOW = 1.7e9
ABOUT = {"age": 31.0, "city": "Oslo"}


def known(*users, **given):
    room = Users(**given)
    for user in users or ("u",):
        room.apply(UserPut(NOW, user, ABOUT, consent=True))
    return room


def told(acts, at=NOW, **given):
    """A room after these batches of acts of one user."""
    room = known(**given)
    for batch in acts:
        room.apply(UserActed(at, "u", tuple(batch)))
    return room


def shuffled(data, acts):
    """The same acts in another order and other batches."""
    mixed = data.draw(st.permutations(acts))
    while mixed:
        size = data.draw(st.integers(1, len(mixed)))
        yield mixed[:size]
        mixed = mixed[size:]


words = st.sampled_from(["", *"abcdefghij"])
amounts = st.one_of(st.just(0.0), st.floats(-1e6, 1e6).map(lambda x: round(x, 3)), st.just(0.1))


def acts_at(times):
    kinds = st.sampled_from([*KINDS, "wish", "share"])
    return st.lists(st.builds(Act, kinds, words, words, amounts, times), max_size=30)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.floats(0, NOW).flatmap(lambda at: acts_at(st.just(at))))
def test_acts_of_one_moment_give_the_same_bytes_in_any_order_and_batches(data, acts):
    assert told(shuffled(data, acts)).dump() == told([[act] for act in acts]).dump()


@settings(max_examples=150, deadline=None)
@given(st.data(), acts_at(st.floats(-1e6, 2 * NOW)))
def test_acts_of_any_times_give_the_same_profile_in_any_order_and_batches(data, acts):
    one = told(shuffled(data, acts)).known("u", NOW)
    two = told([acts] if acts else []).known("u", NOW)

    assert (one.items, one.categories) == (two.items, two.categories)
    assert list(one.items) == list(two.items)
    assert one.acts.keys() == two.acts.keys()
    for kind, done in one.acts.items():
        other = two.acts[kind]
        assert (done.number, done.amount, done.latest) == (other.number, other.amount, other.latest)
        assert math.isclose(done.count, other.count, rel_tol=1e-5, abs_tol=1e-4)
    for bucket in one.tastes.keys() | two.tastes.keys():
        pair = one.tastes.get(bucket, 0.0), two.tastes.get(bucket, 0.0)
        assert math.isclose(*pair, rel_tol=1e-5, abs_tol=1e-4)


def test_an_act_counts_half_after_its_half_life_whenever_it_is_told():
    late = Act("view", at=NOW - 60 * DAY)
    for batches in ([[late], [Act("view", at=NOW)]], [[Act("view", at=NOW), late]]):
        room = told(batches)
        assert room.known("u", NOW).acts["view"].count == pytest.approx(1.25, rel=0.003)
        assert room.known("u", NOW + 30 * DAY).acts["view"].count == pytest.approx(0.625, rel=0.003)
        assert room.known("u", NOW).acts["view"].number == 2


def test_the_latest_items_are_kept_by_time_and_then_by_name():
    acts = [
        Act("view", name, at=NOW - age)
        for name, age in zip("abcdefab", [9, 8, 5, 5, 5, 7, 1, 99], strict=True)
    ]
    assert list(told([acts]).known("u", NOW).items.items()) == [
        ("a", int(NOW) - 1), ("e", int(NOW) - 5), ("d", int(NOW) - 5), ("c", int(NOW) - 5)
    ]  # fmt: skip


@pytest.mark.parametrize("at", [-1e12, -1.0, 0.0, 1e-300, NOW + 1e12, 1e300, math.inf])
def test_a_time_that_cannot_be_is_taken_for_the_nearest_that_can(at):
    room = told([[Act("view", "a", "b", 1.0, at)]])
    found, features = room.known("u", NOW), room.features("u", NOW)

    assert 0 <= found.acts["view"].latest <= NOW
    assert all(math.isfinite(each) for each in features.values() if not isinstance(each, str))
    assert (
        told([[Act("view", "a", "b", 1.0, at)], [Act("view", at=NOW)]]).known("u", NOW).acts["view"].number
        == 2
    )


def test_nothing_grows_with_the_length_of_the_history():
    dice, room, sizes, features = random.Random(1), known(), [], []
    for number in range(6000):
        name = f"name-{dice.randrange(1000):03}"
        at = NOW + number
        act = Act(dice.choice([*KINDS, name]), f"item-{number:05}", f"category-{name}", 9.99, at)
        room.apply(UserActed(at, "u", (act,)))
        choice = Chosen(at, "e", (f"ad-{number % 100:02}",), b"", 0, {}, user_id="u")
        room.apply(choice)
        room.apply(Heard("u", choice.ad_id, dice.choice(["click", "conversion"]), 1.0, at))
        sizes.append(len(room.profiles["u"]))
        features.append(len(room.features("u", at)))

    assert max(sizes[3000:]) <= max(sizes[500:3000]) + 16  # larger numbers take a byte or two more
    assert max(sizes) < 700
    assert max(features) <= 48
    found = room.known("u", NOW + 6000)
    assert (len(found.ads), len(found.tastes), len(found.acts)) == (KEPT_ADS, BUCKETS, len(KINDS))
    assert room.bytes == len(room.profiles["u"])


def test_a_count_stops_at_its_limit_in_whatever_order():
    room = told([[Act("view", amount=1e9)] * 1000] * 70)
    assert room.known("u", NOW).acts["view"].count <= FULL
    assert room.known("u", NOW).acts["view"].number == 70_000
    for _ in range(20):
        room.apply(UserActed(NOW, "u", (Act("view", amount=1e300),)))
    copy = Users()
    copy.load([room.forgotten, dict(room.profiles)])
    assert copy.features("u", NOW) == room.features("u", NOW)


def test_of_who_does_not_consent_nothing_is_kept():
    room = Users()
    choice = Chosen(NOW, "e", ("a",), b"", 0, {}, user_id="u")
    for event in (
        UserActed(NOW, "u", (Act("view"),)), UserPut(NOW, "u", ABOUT, consent=False), choice,
        Heard("u", "a", "click", 1.0, NOW),
    ):  # fmt: skip
        room.apply(event)
        assert (dict(room.profiles), room.features("u", NOW), room.known("u", NOW)) == ({}, {}, None)


@pytest.mark.parametrize("gone", [UserPut(NOW, "u", ABOUT, consent=False), UserErased(NOW, "u")])
def test_who_takes_consent_back_or_is_erased_begins_anew(gone):
    room = told([[Act("purchase", "a", "b", 5.0)]])
    room.apply(gone)
    assert (room.features("u", NOW), room.bytes) == ({}, 0)
    room.apply(UserPut(NOW, "u", ABOUT, consent=True))
    assert room.dump() == known().dump()


def test_new_attributes_replace_the_old_and_leave_the_past():
    room = told([[Act("view", "a")]])
    room.apply(UserPut(NOW, "u", {"member": "true"}, consent=True))
    found = room.known("u", NOW)
    assert (found.attributes, found.items) == ({"member": "true"}, {"a": int(NOW)})


def test_beyond_the_limit_the_user_who_was_idle_longest_is_forgotten():
    room = known(*"abc", max_users=3)
    room.apply(UserActed(NOW, "a", (Act("view"),)))
    room.apply(Chosen(NOW, "e", ("x",), b"", 0, {}, user_id="b"))
    room.apply(UserPut(NOW, "d", {}, consent=True))

    assert list(room.profiles) == ["a", "b", "d"]
    assert room.forgotten == 1
    assert room.bytes == sum(map(len, room.profiles.values()))


def test_what_was_shown_and_clicked_is_known_by_ad_and_in_total():
    room = known()
    for ad, said in [("a", [("click", 0.0)]), ("b", [("", 0.0), ("dwell", 1.0)]), ("a", [])]:
        room.apply(Chosen(NOW, "e", (ad,), b"", 0, {}, user_id="u"))
        for kind, value in said:
            room.apply(Heard("u", ad, kind, value, NOW))
    found = room.known("u", NOW)

    assert {ad: (each.shown, each.clicked) for ad, each in found.ads.items()} == {"a": (2, 1), "b": (1, 0)}
    assert found.shown == pytest.approx(3, rel=0.003)
    assert found.clicked == pytest.approx(1, rel=0.003)
    assert room.features("u", NOW)["user.clicked"] == pytest.approx(math.log(2), rel=0.003)


def test_features_say_what_is_known_and_an_attribute_wins():
    room = told([[Act("purchase", "boot", "shoes", 59.9, NOW - DAY), Act("view", "", "hats", 0.0, NOW)]])
    found = room.features("u", NOW)

    assert list(found) == sorted(found)
    assert (found["user.age"], found["user.city"]) == (31.0, "Oslo")
    assert (found["user.category.1"], found["user.category.2"]) == ("hats", "shoes")
    assert found["user.purchase.recency"] == 0.5
    assert found["user.amount"] == pytest.approx(math.log1p(59.9))
    room.apply(UserPut(NOW, "u", {"view": "from my window"}, consent=True))
    assert room.features("u", NOW)["user.view"] == "from my window"


# In the state and in the engine


def test_choosing_uses_what_is_known_and_a_name_in_the_request_wins(make_engine, clock):
    engine = make_engine("vw")
    engine.put_users({"u": ABOUT, "v": None})
    request = Request({"page": "home", "user.city": "Rome"}, "u")
    before = engine.state.dump()
    event = choose(engine.state, at=clock.now, event_id="e", request=request)

    assert engine.state.dump() == before
    assert event.context == {"page": "home", "user.age": 31.0, "user.city": "Rome"}
    assert list(event.context) == sorted(event.context)
    for nobody in ("v", "w", ""):
        request = Request({"page": "home"}, nobody)
        assert choose(engine.state, at=clock.now, event_id="e", request=request).context == {"page": "home"}


def test_a_choice_and_its_click_are_known_of_the_user_they_were_for(make_engine, clock):
    engine = make_engine("uniform")
    engine.put_users({"u": {}, "v": {}})
    event = engine.choose(Request({}, "u")).event
    engine.reward(event.event_id, 1.0)
    engine.choose(Request({}))

    seen = engine.state.users.known("u", clock.now).ads[event.ad_id]
    assert (seen.shown, seen.clicked) == (1, 1)
    assert not engine.state.users.known("v", clock.now).ads


def test_users_survive_snapshot_and_replay_to_the_last_byte(make_engine, clock):
    engine = make_engine("vw", max_users=5)
    dice = random.Random(1)
    for number in range(60):
        user = f"u{dice.randrange(9)}"
        engine.put_users({user: ABOUT if dice.random() < 0.8 else None})
        engine.act({f"u{dice.randrange(9)}": [Act("view", f"i{number}", "c", 1.0, clock.now - number)]})
        engine.choose(Request(user_id=user), f"e{number}")
        engine.reward(f"e{number}", float(number % 2))
        clock.now += 1
    drive(engine, clock, 20)
    engine.erase("u1")
    copy = State("vw", max_users=5)
    copy.load(engine.state.dump())

    assert engine.state.users.forgotten > 0
    assert fold(engine.journal.read(0), State("vw", max_users=5)).digest() == engine.state.digest()
    assert copy.digest() == engine.state.digest()
    assert copy.users.bytes == engine.state.users.bytes


def test_of_who_does_not_consent_nothing_is_written_down(make_engine):
    engine = make_engine()
    end = engine.journal.end
    assert engine.put_users({"u": None}) is None
    assert engine.act({"u": [Act("view")]}) == (0, None)
    assert engine.journal.end == end
    offset = engine.put_users({"u": ABOUT, "v": None})
    assert engine.act({"u": [Act("view")] * 2, "v": [Act("view")]}) == (2, offset + 1)
    assert engine.put_users({"u": None}) == offset + 2
    assert "u" not in engine.state.users.profiles


def test_a_disk_that_fills_up_amid_many_users_says_how_many_it_took(make_engine, monkeypatch):
    engine = make_engine()
    append, room = engine.journal.append, iter(range(150))

    def fills_up(record):
        if next(room, None) is None:
            raise Unavailable("the disk is full")
        return append(record)

    monkeypatch.setattr(engine.journal, "append", fills_up)
    with pytest.raises(Unavailable, match="only the first 150 users"):
        engine.put_users({f"u{number}": ABOUT for number in range(400)})
    assert len(engine.state.users.profiles) == 150
    with pytest.raises(Unavailable, match=r"^the disk is full"):
        engine.put_users({"w": ABOUT})


def test_a_server_says_how_many_users_it_knows(make_engine):
    engine = make_engine(max_users=3)
    engine.put_users({f"u{number}": ABOUT for number in range(5)})
    found = {each.name: each.samples[0].value for each in _State(engine, Door()).collect() if each.samples}
    names = ("users", "users_limit", "users_bytes", "users_forgotten")
    assert {name: found[f"banditads_{name}"] for name in names} == {
        "users": 3, "users_limit": 3, "users_bytes": engine.state.users.bytes, "users_forgotten": 2
    }  # fmt: skip
