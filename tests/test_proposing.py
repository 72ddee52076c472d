"""Many ads: a few hundred are proposed, exactly those are in the event, and nobody is out of reach."""

import random
from collections import Counter

import numpy as np
import pytest
from conftest import Clock, ids

from banditads import recommenders
from banditads.choosing import Request, choose
from banditads.engine import Engine
from banditads.events import Ad
from banditads.journal import connect
from banditads.replay import fold
from banditads.state import State

N = 1200
LIMITS = {"floor": 0.01, "max_scored": 1000, "proposals": 64}
MANY = [Ad(f"ad-{n:04d}", {"kind": f"kind-{n % 7}", "price": float(n % 90)}) for n in range(N)]


def engine_of(policy="vw", ads=MANY, recommender="crosses"):
    state = State(policy, recommender=recommender)
    engine = Engine(state, connect("memory:"), ids=ids(), clock=Clock(), **LIMITS)
    if ads:
        engine.put_ads(ads)
    return engine


def drive(engine, n, seed=1):
    dice = random.Random(seed)
    for number in range(n):
        exclude = frozenset(dice.sample([ad.id for ad in MANY], dice.choice([0, 3, 150])))
        event, _ = engine.choose(Request({"page": dice.choice("ab")}, exclude=exclude), f"{seed}-{number}")
        engine.clock.now += 1
        if dice.random() < 0.7:
            engine.reward(event.event_id, float(event.ad_id < "ad-0300"))
        if number % 10 == 3:
            engine.put_ads([Ad(f"new-{seed}-{number}", {"kind": "new"})])
            engine.remove_ad(dice.choice(engine.state.catalog.ids))


def test_what_is_proposed_is_in_the_event_with_exact_probabilities():
    engine = engine_of()
    drive(engine, 30)
    event, _ = engine.choose(Request({"page": "a"}), "e")

    assert len(event.ads) == 64
    assert list(event.ads) == sorted(set(event.ads))
    ads = tuple(engine.state.catalog.ads[ad_id] for ad_id in event.ads)
    copy = State("vw")
    copy.load(engine.state.dump())
    pmf = copy.policy.pmf(event.context, ads)
    expected = 0.99 * pmf / pmf.sum() + 0.01 / 64
    np.testing.assert_allclose(list(event.propensities.values()), expected, rtol=1e-12)
    assert engine.state.joiner.open["e"].ads == ads


def test_up_to_the_limit_all_are_scored():
    engine = engine_of("uniform")
    excluded = frozenset(ad.id for ad in MANY[:200])
    event, _ = engine.choose(Request(exclude=excluded), "e")

    assert event.ads == tuple(ad.id for ad in MANY[200:])
    assert len(engine.choose(Request(exclude=excluded - {MANY[0].id}), "f")[0].ads) == 64


def test_the_same_event_id_gets_the_same_proposals_and_another_gets_others():
    state = engine_of().state

    def ask(event_id, salt=""):
        return choose(
            state, at=0.0, event_id=event_id, request=Request(), salt=salt, max_scored=1000, proposals=64
        )

    before = state.dump()
    assert ask("e1") == ask("e1")
    assert ask("e1").ads != ask("e2").ads
    assert ask("e1").ads != ask("e1", "another loop").ads
    assert state.dump() == before


def test_exploration_reaches_every_ad_evenly():
    engine, counts = engine_of("uniform"), Counter()
    favourites = set(engine.predict(Request()).ids)
    for number in range(2000):
        slate = choose(
            engine.state, at=0.0, event_id=f"e{number}", request=Request(), max_scored=1000, proposals=64
        )
        counts.update(slate.ads)
    often = {ad_id for ad_id, n in counts.items() if n == 2000}
    drawn = np.array([counts[ad.id] for ad in MANY if ad.id not in often])

    assert len(often) == 56  # seven of eight
    assert len(often & favourites) == 56
    expected = 2000 * 8 / (N - 56)
    assert drawn.min() > 0
    assert ((drawn - expected) ** 2 / expected).sum() < 1350  # chi squared, 1,143 degrees: mean + 4 sd


def test_nothing_excluded_or_ineligible_is_proposed():
    ads = [*MANY, Ad("kitchen", placements=("kitchen",)), Ad("house", house=True), Ad("over", ends=1.0)]
    engine = engine_of("uniform", ads=ads)
    excluded = frozenset(ad.id for ad in MANY[:150])
    for number in range(300):
        event, _ = engine.choose(Request(exclude=excluded, placement="home"), f"e{number}")
        assert not excluded & set(event.ads)
        assert not {"kitchen", "house", "over"} & set(event.ads)
        assert len(event.filtered) == 100


def test_a_crowd_of_house_ads_is_a_crowd():
    engine = engine_of("uniform", ads=[Ad(ad.id, house=True) for ad in MANY])
    event, _ = engine.choose(Request(), "e")

    assert len(event.ads) == 64


@pytest.mark.parametrize("recommender", recommenders.names())
@pytest.mark.parametrize("policy", ["vw", "thompson"])
def test_a_recovered_server_goes_on_like_one_that_never_stopped(policy, recommender):
    straight = engine_of(policy, recommender=recommender)
    drive(straight, 60)
    stopped, journal = State(policy, recommender=recommender), connect("memory:")
    stopped.load(straight.state.dump())
    for _, record in straight.journal.read(0):
        journal.append(record)
    twin = Engine(stopped, journal, ids=ids(), clock=Clock(straight.clock.now), **LIMITS)
    drive(straight, 60, seed=3)
    drive(twin, 60, seed=3)

    assert list(straight.journal.read(0)) == list(journal.read(0))
    assert straight.state.recommender.describe()["learned"] > 50
    replayed = fold(journal.read(0), State(policy, recommender=recommender))
    assert straight.state.digest() == twin.state.digest() == replayed.digest()


def test_the_limits_change_no_state():
    engine = engine_of("uniform")
    drive(engine, 30)

    assert "max_scored" not in engine.state.identity
    assert engine.state.identity["recommender"] == "crosses"


def test_a_small_catalog_teaches_no_recommender():
    engine = engine_of("uniform", ads=MANY[: recommenders.LARGE - 1])
    engine.choose(Request(), "e")
    engine.reward("e", 1.0)
    assert engine.state.recommender.describe()["learned"] == 0

    engine.put_ads(MANY[: recommenders.LARGE])
    engine.choose(Request(), "f")
    engine.reward("f", 1.0)
    assert engine.state.recommender.describe()["learned"] == 1


def test_what_earns_is_proposed():
    engine = engine_of("uniform")
    few = tuple(ad.id for ad in MANY[100::200])
    for number in range(400):
        event, _ = engine.choose(Request(ads=few), f"e{number}")
        engine.reward(event.event_id, float(event.ad_id in ("ad-0100", "ad-1100")))
    for number in range(50):
        event, _ = engine.choose(Request(), f"f{number}")
        assert {"ad-0100", "ad-1100"} <= set(event.ads)
