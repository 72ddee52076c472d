"""A batch is its items one after the other: the same answers, the same state, to the last bit."""

import itertools
import json

import msgspec
import pytest
from conftest import ADS, ids
from hypothesis import given, settings
from hypothesis import strategies as st
from test_api import Site

from banditads import keys, wire
from banditads.api.batch import MAX_BATCH, MAX_ITEMS
from banditads.engine import Engine
from banditads.errors import DiskFailure, Unavailable
from banditads.journal import connect
from banditads.parsing import JSON, MSGPACK
from banditads.state import State

NAMES = st.sampled_from(["e1", "e2", "e3"])
GOOD = st.fixed_dictionaries(
    {},
    optional={
        "user_id": st.sampled_from(["u1", "u2"]),
        "event_id": NAMES,
        "request_id": st.sampled_from(["r1", "r2"]),
        "context": st.dictionaries(
            st.sampled_from("xyz"), st.floats(-9, 9) | st.sampled_from("uv"), max_size=3
        ),
        "exclude": st.lists(st.sampled_from("abc"), max_size=3),
    },
)
ODD = st.sampled_from(
    [
        None,
        1,
        "x",
        [],
        {"context": 5},
        {"slots": 2},
        {"user_id": ""},
        {"no": 1},
        {"event_id": "a\0"},
        {"ads": []},
    ]
)
REWARDS = st.fixed_dictionaries(
    {"event_id": NAMES | st.just("nobody"), "reward": st.sampled_from([0, 1, 2, 0.5])}
)
WRONG = st.sampled_from(
    [None, {}, {"event_id": "e1"}, {"event_id": 1, "reward": 1}, {"event_id": "", "reward": 1}]
)
ROUNDS = st.lists(
    st.tuples(st.just("choose"), st.lists(GOOD | ODD, min_size=1, max_size=5))
    | st.tuples(st.just("reward"), st.lists(REWARDS | WRONG, min_size=1, max_size=5)),
    min_size=1,
    max_size=4,
)
FIELD = {"choose": "requests", "reward": "rewards"}


def site():
    """An application on an engine whose clock moves on each time it is asked."""
    ticks = itertools.count(1_000_000.0, 0.25)
    engine = Engine(State("linucb", wait=4.0), connect("memory:"), ids=ids(), clock=lambda: next(ticks))
    engine.put_ads(ADS)
    return Site(engine)


def single(site, path, item, media):
    """An item's answer alone, as a batch would have it."""
    raw = (msgspec.msgpack if media == MSGPACK else msgspec.json).encode(item)
    reply = site("POST", path, raw, CONTENT_TYPE=media)
    if reply.status == 204:
        return {"status": 204, "event_id": reply.headers["x-event-id"]}
    if reply.status == 200:
        return {"status": 200, "reply": reply.data}
    return {"status": reply.status, **reply.data}


@settings(deadline=None, max_examples=60)
@given(ROUNDS, st.sampled_from([JSON, MSGPACK]))
def test_a_batch_does_what_its_items_would_do_one_by_one(rounds, media):
    together, apart = site(), site()
    for path, items in rounds:
        raw = (msgspec.msgpack if media == MSGPACK else msgspec.json).encode({FIELD[path]: items})
        reply = together("POST", f"/{path}/batch", raw, CONTENT_TYPE=media)
        assert reply.status == 200
        assert reply.data["results"] == [single(apart, f"/{path}", item, media) for item in items]
    assert together.engine.state.digest() == apart.engine.state.digest()
    assert list(together.engine.journal.read(0)) == list(apart.engine.journal.read(0))


@pytest.fixture
def shop(make_engine):
    site = Site(make_engine())
    for name in ("e1", "e2", "e3"):
        site("GET", f"/choose?event_id={name}")
    return site


def give(site, *names, reward=1):
    body = {"rewards": [{"event_id": name, "reward": reward} for name in names]}
    reply = site("POST", "/reward/batch", body)
    assert reply.status == 200
    return reply.data["results"]


def test_the_rewards_of_a_batch_wait_for_the_disk_once(shop, monkeypatch):
    waited = []
    monkeypatch.setattr(shop.engine.journal, "sync", waited.append)
    said = give(shop, "e1", "nobody", "e2", "e1")

    assert [each["status"] for each in said] == [200, 404, 200, 200]
    assert [each["reply"]["status"] for each in said if "reply" in each] == [
        "applied",
        "applied",
        "duplicate",
    ]
    assert waited == [said[2]["reply"]["offset"]]
    assert give(shop, "nobody")[0]["status"] == 404
    assert len(waited) == 1  # for nothing, nobody waits


@pytest.mark.parametrize("error", [Unavailable("the disk is full"), DiskFailure("the disk has failed")])
def test_nothing_is_acknowledged_that_the_disk_does_not_have(shop, monkeypatch, error):
    def sync(offset):
        raise error

    monkeypatch.setattr(shop.engine.journal, "sync", sync)
    said = give(shop, "e1", "nobody", "e2")
    assert [each["status"] for each in said] == [503, 404, 503]
    assert [each.get("retry_after") for each in said] == [1, None, 1]


def test_what_the_disk_refuses_in_the_middle_is_refused_alone(shop, monkeypatch):
    append, count = shop.engine.journal.append, itertools.count()

    def sometimes(record):
        if next(count) == 1:
            raise Unavailable("the disk is full")
        return append(record)

    monkeypatch.setattr(shop.engine.journal, "append", sometimes)
    assert [each["status"] for each in give(shop, "e1", "e2", "e3")] == [200, 503, 200]
    assert [each["status"] for each in give(shop, "e2")] == [200]


def test_a_reward_that_comes_late_is_refused_alone(shop, clock):
    clock.now += 601
    shop("GET", "/choose?event_id=new")
    assert [each["status"] for each in give(shop, "e1", "new")] == [410, 200]


def test_a_fault_of_ours_in_one_item_is_its_own_and_is_logged(shop, monkeypatch, caplog):
    choose = shop.engine.choose
    monkeypatch.setattr(
        shop.engine, "choose", lambda request, name: 1 / 0 if name == "b" else choose(request, name)
    )
    reply = shop("POST", "/choose/batch", {"requests": [{"event_id": name} for name in "abc"]})
    assert [each["status"] for each in reply.data["results"]] == [200, 500, 200]
    assert "ZeroDivision" in caplog.text
    assert "ZeroDivision" not in reply.raw.decode()


@pytest.mark.parametrize("path", ["choose", "reward"])
def test_a_key_pays_for_each_item(make_engine, tmp_path, path):
    file = tmp_path / "keys"
    token = keys.create(file, ("choose", "reward"), rate=3)
    site = Site(make_engine(), keys.Keys(file, clock=lambda: 0.0))
    items = [{}] * 5 if path == "choose" else [{"event_id": "nobody", "reward": 1}] * 5
    bearing = {"HTTP_AUTHORIZATION": f"Bearer {token}"}
    said = site("POST", f"/{path}/batch", {FIELD[path]: items}, **bearing).data["results"]

    good = 200 if path == "choose" else 404
    assert [each["status"] for each in said] == [good] * 3 + [429] * 2
    assert said[-1]["error"]["code"] == "too_many"
    assert said[-1]["retry_after"] == 1
    assert site("POST", f"/{path}/batch", {FIELD[path]: items}, **bearing).status == 429


@pytest.mark.parametrize(
    ("body", "status", "field"),
    [
        ({"requests": []}, 400, "requests"),
        ({"requests": [{}] * (MAX_ITEMS + 1)}, 400, "requests"),
        ({"requests": {}}, 400, "requests"),
        ({}, 400, "requests"),
        ([], 400, "body"),
        ({"requests": [{}], "more": 1}, 400, "more"),
        (b'{"requests": [{}, {"user_id": ]}', 400, "body"),
        (b'{"requests": [' + b"[" * 50_000 + b"]" * 50_000 + b"]}", 400, "body"),
        (b" " * (MAX_BATCH + 1), 413, "body"),
    ],
)
def test_what_is_no_batch_is_refused_as_a_whole(shop, body, status, field):
    before, end = shop.engine.state.dump(), shop.engine.journal.end
    reply = shop("POST", "/choose/batch", body)
    assert (reply.status, reply.data["error"]["field"]) == (status, field)
    assert (shop.engine.state.dump(), shop.engine.journal.end) == (before, end)


def test_an_item_may_be_as_large_as_alone_and_no_larger(shop):
    fits = {"user_id": "u"}
    large = {"user_id": "u" * wire.MAX_BODY}
    said = shop("POST", "/choose/batch", {"requests": [fits, large, fits]}).data["results"]
    assert [each["status"] for each in said] == [200, 413, 200]
    assert shop("POST", "/choose", large).status == 413
    assert shop("POST", "/choose/batch", {"requests": [{}] * MAX_ITEMS}).status == 200


def test_an_item_says_only_what_belongs_to_it(shop):
    reply = shop("POST", "/choose/batch", {"requests": [{}, {"exclude": [*"abc"]}, {"slots": 2}]})
    assert [sorted(each) for each in json.loads(reply.raw)["results"]] == [
        ["reply", "status"],
        ["event_id", "status"],
        ["error", "status"],
    ]
