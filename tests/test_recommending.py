"""Recommenders in the state: when they learn, of whom, and that nothing of a user outlives their consent."""

import msgspec
import numpy as np
import pytest
from conftest import Clock, ids

from banditads.choosing import Request
from banditads.engine import Engine
from banditads.events import Act, Ad
from banditads.journal import connect
from banditads.replay import fold
from banditads.server import new_state
from banditads.settings import Settings
from banditads.signing import Pseudonyms
from banditads.state import State

ADS = [Ad(f"ad-{n}", {"kind": ("hats", "news", "shoes")[n % 3]}) for n in range(12)]
PERSONAL = ("collaborative", "content", "hybrid")
ANNA = Pseudonyms(b"k" * 32)("anna")


def engine_of(recommender="hybrid", recommend_from=0, ads=ADS, policy="uniform"):
    state = State(policy, recommender=recommender, recommend_from=recommend_from)
    engine = Engine(state, connect("memory:"), ids=ids(), clock=Clock())
    engine.put_ads(ads)
    return engine


def visits(engine, n, user=ANNA):
    for _ in range(n):
        engine.clock.now += 1
        event, _ = engine.choose(Request(user_id=user))
        engine.reward(event.event_id, float(event.ad_id in ("ad-2", "ad-5")))


def scores(engine, user=ANNA):
    return engine.state.recommender.scores({}, user)


def test_one_that_is_named_learns_however_few_ads_there_are_and_the_default_only_with_many():
    named, default = (new_state(Settings(data_dir="x", recommender=name)) for name in ("hybrid", ""))

    assert (named.recommender_name, named.recommend_from) == ("hybrid", 0)
    assert (default.recommender_name, default.recommend_from) == ("crosses", 500)
    assert "recommend_from" not in default.identity  # as directories have it that are older
    assert State.of(named.identity).identity == named.identity
    for recommend_from, learned in ((0, 5), (12, 5), (13, 0)):
        engine = engine_of("popular", recommend_from)
        visits(engine, 5)
        assert engine.state.recommender.describe()["learned"] == learned


@pytest.mark.parametrize("name", PERSONAL)
def test_only_of_who_consents_anything_is_kept(name):
    engine = engine_of(name)
    visits(engine, 30)
    engine.act({ANNA: [Act("view", "ad-1")]})
    engine.put_users({ANNA: None})

    assert ANNA.encode() not in msgspec.msgpack.encode(engine.state.recommender.dump())
    np.testing.assert_array_equal(scores(engine), scores(engine, "nobody"))
    engine.put_users({ANNA: {}})
    visits(engine, 30)
    assert not np.array_equal(scores(engine), scores(engine, "nobody"))


@pytest.mark.parametrize("name", PERSONAL)
@pytest.mark.parametrize("how", ["erased", "consent withdrawn"])
def test_what_was_learned_of_a_user_goes_with_them(name, how):
    engine = engine_of(name)
    engine.put_users({ANNA: {}})
    visits(engine, 30)
    engine.act({ANNA: [Act("view", "ad-1")]})
    if how == "erased":
        engine.erase(ANNA)
    else:
        engine.put_users({ANNA: None})

    np.testing.assert_array_equal(scores(engine), scores(engine, "nobody"))
    visits(engine, 30)  # they come back and have said nothing of consent
    np.testing.assert_array_equal(scores(engine), scores(engine, "nobody"))
    engine.put_users({ANNA: {}})
    np.testing.assert_array_equal(scores(engine), scores(engine, "nobody"))


@pytest.mark.parametrize("name", PERSONAL)
def test_what_somebody_does_with_an_ad_elsewhere_counts(name):
    engine = engine_of(name)
    engine.put_users({ANNA: {}})
    before = scores(engine)
    engine.act({ANNA: [Act("like", "ad-4"), Act("like", "something else")]})

    gained = scores(engine) - before
    assert max(gained) == gained[engine.state.catalog.row("ad-4")] > 0


@pytest.mark.parametrize("name", PERSONAL)
def test_live_folded_and_saved_are_one_state(name):
    engine = engine_of(name)
    engine.put_users({ANNA: {"age": 31.0}, "bert": {}})
    visits(engine, 20)
    visits(engine, 20, "bert")
    engine.act({ANNA: [Act("view", "ad-1", "hats")], "bert": [Act("cart", "ad-4")]})
    engine.remove_ad("ad-4")
    engine.erase("bert")
    visits(engine, 20)
    saved = State.of(engine.state.identity)
    saved.load(engine.state.dump())
    folded = fold(engine.journal.read(0), State.of(engine.state.identity))

    assert saved.digest() == folded.digest() == engine.state.digest()
    assert saved.recommender.scores({}, ANNA).tobytes() == scores(engine).tobytes()


def test_proposals_are_those_of_the_user():
    ads = [Ad(f"ad-{n:04d}") for n in range(1200)]
    engine = engine_of("collaborative", ads=ads)
    engine.proposals = 16
    engine.put_users({ANNA: {}})
    engine.act({ANNA: [Act("like", f"ad-{n:04d}") for n in (7, 700)] * 20})
    event, _ = engine.choose(Request(user_id=ANNA), "e")
    other, _ = engine.choose(Request(user_id="nobody"), "f")

    assert {"ad-0007", "ad-0700"} <= set(event.ads)
    assert not {"ad-0007", "ad-0700"} <= set(other.ads)
