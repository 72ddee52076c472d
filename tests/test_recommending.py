"""Recommenders in the state: when they learn, of whom, and that nothing of a user outlives their consent."""

import math

import msgspec
import numpy as np
import pytest
from conftest import Clock, ids

from banditads import policies, replay
from banditads.choosing import Request
from banditads.engine import Engine
from banditads.errors import Misconfigured
from banditads.events import Act, Ad, Advised
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


def test_its_options_are_settings_and_part_of_what_was_learned():
    given = Settings(data_dir="x", recommender="hybrid", recommender_options={"prior": 0.5, "max_users": 1})
    state = new_state(given)
    copy = State.of(state.identity)
    copy.load(state.dump())

    for each in (state, copy):
        assert each.recommender.describe()["prior"] == 0.5
        assert each.recommender.parts["content"].describe()["max_users"] == 1
    assert "recommender_options" not in new_state(Settings(data_dir="x")).identity
    with pytest.raises(Misconfigured, match="speed"):
        new_state(Settings(data_dir="x", recommender_options={"speed": 9}))


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


def advised_engine(policy="vw"):
    state = State(policy, recommender="hybrid", recommend_from=0, advise=True)
    engine = Engine(state, connect("memory:"), ids=ids(), clock=Clock(), floor=0.01)
    engine.put_ads(ADS)
    engine.put_users({ANNA: {}})
    return engine


@pytest.mark.parametrize("policy", ["ensemble", "vw", "linucb", "thompson", "logistic", "uniform"])
def test_a_policy_that_is_advised_decides_from_what_is_in_the_event(policy):
    engine = advised_engine(policy)
    visits(engine, 60)
    before = State.of(engine.state.identity)
    before.load(engine.state.dump())
    event, _ = engine.choose(Request({"page": "a"}, ANNA, ads=(*(ad.id for ad in ADS), Ad("inline"))))
    said = dict(zip(event.ads, np.frombuffer(event.advice, "<f4").tolist(), strict=True))
    ads = [*ADS, Ad("inline")]
    scores = dict(
        zip(before.catalog.rows, before.recommender.scores(event.context, ANNA).tolist(), strict=True)
    )
    odds = {ad_id: before.recommender.start + score for ad_id, score in scores.items()}

    assert said == pytest.approx({**odds, "inline": sum(odds.values()) / len(odds)}, rel=1e-5)
    assert max(said.values()) - min(said.values()) > 1
    ordered = sorted(ads, key=lambda ad: ad.id)
    seen = Advised(ordered, [said[ad.id] for ad in ordered])
    pmf = before.policy.pmf(event.context, seen)
    expected = 0.99 * pmf / pmf.sum() + 0.01 / len(ads)
    np.testing.assert_allclose(list(event.propensities.values()), expected, rtol=1e-12)


def test_a_policy_that_trusts_takes_the_recommender_at_its_word_until_rewards_say_otherwise():
    policy = policies.make("vw", exploration="epsilon", epsilon=0.1, trust=1.0)
    said = Advised(ADS, [-3.0 + (ad.id == "ad-7") for ad in ADS])
    assert policy.pmf({"page": "a"}, said).argmax() == 7
    assert policy.expected({"page": "a"}, said, 7) == pytest.approx(1 / (1 + math.exp(2)), abs=1e-4)
    assert max(policy.pmf({"page": "a"}, tuple(ADS))) == pytest.approx(1 / len(ADS))  # nobody said anything
    for number in range(300):
        policy.learn({"page": "a"}, said, number % 12, float(number % 12 == 4), 1 / 12)
    assert policy.pmf({"page": "a"}, said).argmax() == 4


def test_the_policy_learns_what_it_was_told_and_the_recommender_does_not():
    engine = advised_engine()
    told = {"policy": [], "recommender": []}
    policy, recommender = engine.state.policy.learn, engine.state.recommender.learn

    def learn(context, ads, *rest):
        told["policy"].append([ad.features["recommended"] for ad in ads])
        policy(context, ads, *rest)

    def also(settled, *rest):
        told["recommender"] += [ad.features for ad in settled.ads]
        return recommender(settled, *rest)

    engine.state.policy.learn, engine.state.recommender.learn = learn, also
    said = []
    for _ in range(20):
        event, _ = engine.choose(Request(user_id=ANNA))
        said.append(np.frombuffer(event.advice, "<f4").tolist())
        visits(engine, 1)  # the recommender thinks otherwise by now
        engine.reward(event.event_id, float(event.ad_id == "ad-2"))

    assert told["policy"][1::2] == said
    assert len({tuple(each) for each in said}) > 3
    assert not any("recommended" in features for features in told["recommender"])
    assert "recommended" not in engine.shown(event).features


def test_advised_decisions_are_folded_saved_and_read_as_logs_without_a_recommender():
    engine = advised_engine()
    visits(engine, 40)
    engine.choose(Request(user_id=ANNA), "waits")
    state = engine.state
    saved = State.of(state.identity)
    saved.load(state.dump())

    assert saved.digest() == fold(engine.journal.read(0), State.of(state.identity)).digest() == state.digest()
    for each in (state, saved):
        event = each.joiner.open["waits"].choice
        assert len(event.advice) == 4 * len(ADS)
    rounds = list(replay.settled(engine.journal.read(0), State("uniform")))
    assert len(rounds) == 40
    for each in rounds:
        said = [ad.features["recommended"] for ad in each.ads]
        assert said == np.frombuffer(each.choice.advice, "<f4").tolist()


def test_without_advise_nothing_is_said_and_directories_stay_as_they_were():
    engine = engine_of(policy="vw")
    visits(engine, 10)
    event, _ = engine.choose(Request(user_id=ANNA))

    assert event.advice == b""
    assert "advise" not in engine.state.identity
    assert new_state(Settings(data_dir="x", advise=True)).identity["advise"] is True
    few = State("vw", advise=True)  # the recommender has not begun
    assert few.advice(tuple(ADS), {}, "") == b""
