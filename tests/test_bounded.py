"""Whatever comes from outside, what is remembered of it has a limit, and replay reaches the same one."""

import gc

import numpy as np
import pytest

from banditads import policies, stats
from banditads.api.metrics import _State
from banditads.choosing import Request
from banditads.events import Ad
from banditads.guard import Door
from banditads.policies import ensemble, logistic, vw
from banditads.replay import fold
from banditads.state import State


def same_however_reached(engine, **joining):
    """Live, replayed and saved are one state, and count the same bytes."""
    live = engine.state
    replayed, saved = fold(engine.journal.read(0), State("uniform", **joining)), State("uniform", **joining)
    saved.load(live.dump())
    assert live.digest() == replayed.digest() == saved.digest()
    assert live.joiner.open_bytes == replayed.joiner.open_bytes == saved.joiner.open_bytes


def test_large_waiting_choices_give_the_oldest_up_before_they_fill_the_memory(make_engine):
    engine = make_engine(max_open_bytes=20_000)
    learned = []
    engine.state.policy.learn = lambda *given: learned.append(given)
    sizes = []
    for number in range(100):
        ads = (Ad(f"ad-{number}", {"text": "x" * 1000}),)
        engine.choose(Request(ads=ads, user_id=f"user-{number}"), f"e{number}")
        sizes.append(engine.state.joiner.open_bytes)
    joiner = engine.state.joiner

    assert min(sizes[50:]) > 18_000  # a plateau
    assert max(sizes) <= 20_000
    assert list(joiner.open)[-1] == "e99"
    assert joiner.given_up == 100 - len(joiner.open)
    assert joiner.open_bytes == sum(each.size for each in joiner.open.values())
    assert learned == []
    same_however_reached(engine, max_open_bytes=20_000)


def test_rewards_and_silence_give_the_bytes_back(make_engine, clock):
    engine = make_engine()
    for event_id in ("e1", "e2"):
        engine.choose(Request(), event_id)
    engine.reward("e1", 1.0)
    assert engine.state.joiner.open_bytes > 0
    clock.now += 601
    engine.tick()

    assert engine.state.joiner.open_bytes == 0
    same_however_reached(engine)


def test_a_choice_larger_than_all_may_be_does_not_wait(make_engine):
    engine = make_engine(max_open_bytes=50)
    engine.choose(Request(), "e1")

    assert (engine.state.joiner.open, engine.state.joiner.open_bytes) == ({}, 0)
    assert engine.state.joiner.given_up == 1
    same_however_reached(engine, max_open_bytes=50)


def test_many_users_and_request_ids_reach_a_plateau(make_engine, clock):
    limits = {"max_open": 50, "max_done": 30}
    engine = make_engine(**limits)
    for number in range(1000):
        clock.now += 1
        engine.choose(Request(user_id=f"user-{number}", request_id=f"r{number}"), f"e{number}")
    joiner = engine.state.joiner

    assert (len(joiner.open), len(joiner.done), len(joiner.requests)) == (50, 30, 80)
    assert (joiner.given_up, joiner.forgotten) == (950, 920)
    same_however_reached(engine, **limits)


def test_ads_over_the_limit_are_counted_together(make_engine, monkeypatch):
    monkeypatch.setattr(stats, "MAX_ADS", 10)
    engine = make_engine()
    for number in range(100):
        engine.choose(Request(ads=(Ad(f"ad-{number}"),)))

    assert len(engine.state.stats.ads) == 11
    assert engine.state.stats.ads[stats.REST].choices == 90
    same_however_reached(engine)


SIZES = {
    "logistic": ({"bits": 8, "kept_ads": 5}, lambda p: (len(p.model._weights), len(p.model.optimizer.g2),
        len(p.scaler.counts), len(p.scaler.means), len(p.scaler.vars), len(p._ads)),
        (256, 256, 64, 64, 64, 5)),
    "vw": ({"bits": 8, "kept_ads": 5}, lambda p: (len(p.scales), len(p._examples)), (64, 5)),
    "linucb": ({"dim": 4, "max_arms": 5}, lambda p: (
        len(p.arms), max((len(arm._idx) for arm in p.arms.values()), default=0)), (5, 4)),
    "ensemble": ({"dim": 8, "kernel": 4, "bits": 4, "max_ads": 5}, lambda p: (
        len(p.scales), len(p.slots), len(p.columns), len(p._kept), len(p.shared), len(p.counts) <= 64,
        len(p._hashes) <= 64, len(p._places) <= 64, *(len(getattr(p, each)) for each in ensemble.BY_ROW)),
        (64, 7, 127, 10, 16, True, True, True, *[6] * 7)),
    "thompson": ({"max_arms": 5}, lambda p: (len(p.arms),), (5,)),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_new_feature_and_ad_names_stop_adding_to_a_policy(name, monkeypatch):
    for module in (ensemble, logistic, vw):
        monkeypatch.setattr(module, "PLACES", 64)
    monkeypatch.setattr(ensemble, "KEPT", 10)
    options, sizes, limits = SIZES[name]
    policy, copy, saved = policies.make(name, **options), policies.make(name, **options), []
    for number in range(1200):
        ad = Ad(f"ad-{number // 20}", {f"kind-{number}": "new", f"price-{number}": 1.0 * number})
        policy.learn({f"page-{number}": "new", f"age-{number}": 1.0 * number}, [ad], 0, number % 2, 1.0)
        if number in (599, 1199):
            saved.append(policy.dump())
    copy.load(saved[-1])
    context, ads = {"page-7": "new", "age-9": 3.0}, [Ad("ad-59"), Ad("unknown")]

    assert sizes(policy) == limits
    assert np.array_equal(policy.pmf(context, ads), copy.pmf(context, ads))
    assert copy.dump() == saved[-1]


@pytest.mark.parametrize(
    ("policy", "fact"), [("vw", "scales"), ("logistic", "weights"), ("thompson", "arms")]
)
def test_a_policy_says_in_the_metrics_how_much_it_holds(policy, fact, make_engine):
    engine = make_engine(policy)
    for number in range(3):
        engine.choose(Request({f"number-{number}": 1.0}), f"e{number}")
        engine.reward(f"e{number}", 1.0)
    found = {
        sample.labels["fact"]: sample.value
        for family in _State(engine, Door()).collect()
        if family.name == "banditads_policy"
        for sample in family.samples
    }
    assert found[fact] >= 1
    assert found[fact] == engine.state.policy.describe()[fact]


def test_a_server_says_how_full_it_is_and_what_it_gave_up(make_engine):
    engine = make_engine(max_open=5, max_done=3)
    for number in range(20):
        engine.choose(Request(request_id=f"r{number}"), f"e{number}")
    found = {each.name: each.samples[0].value for each in _State(engine, Door()).collect() if each.samples}
    assert {
        name: found[f"banditads_{name}"]
        for name in ("pending", "pending_limit", "settled", "settled_limit", "requests_remembered",
            "given_up", "forgotten", "pending_bytes", "pending_bytes_limit")
    } == {
        "pending": 5, "pending_limit": 5, "settled": 3, "settled_limit": 3, "requests_remembered": 8,
        "given_up": 15, "forgotten": 12, "pending_bytes": engine.state.joiner.open_bytes,
        "pending_bytes_limit": 2**30,
    }  # fmt: skip


def test_the_garbage_collector_does_not_look_at_what_waits(make_engine):
    engine = make_engine()
    gc.collect()
    before = len(gc.get_objects())
    for number in range(500):
        engine.choose(
            Request({"page": f"p{number}", "age": 1.0}, f"u{number}", request_id=f"r{number}"), f"{number}"
        )
    for number in range(0, 500, 2):
        engine.reward(f"{number}", 1.0)
    gc.collect()
    assert len(gc.get_objects()) - before < 100
