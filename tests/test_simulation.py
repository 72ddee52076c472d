"""The simulated world is what its documentation says, whatever the seed."""

import numpy as np
import pytest

from banditads import policies
from banditads.events import Ad
from banditads.features import clean
from banditads.logs import open_bandit
from banditads.sampling import pick, uniform
from banditads.simulation import BEST_TO_UNIFORM, SHARES, UNIFORM, World, visits

SEEDS = range(5)
ADS = open_bandit.items("all")


@pytest.fixture(scope="module", params=SEEDS)
def world(request):
    return World(ADS, request.param)


@pytest.fixture(scope="module")
def chances(world):
    """What every ad earns at 3,000 visits that were not used to calibrate, shape (3000, n_ads)."""
    return np.array([world.chances(world.visitor(number)[1]) for number in range(5000, 8000)])


def at_random(event_id, user_id, context):
    return ADS[pick([1 / len(ADS)] * len(ADS), uniform(event_id))].id, event_id


def test_random_ads_earn_four_percent(chances):
    assert chances.mean() == pytest.approx(UNIFORM, rel=0.1)


def test_the_best_ads_earn_five_times_as_much(chances):
    assert chances.max(axis=1).mean() / chances.mean() == pytest.approx(BEST_TO_UNIFORM, rel=0.1)


def test_no_click_is_certain(chances):
    assert chances.min() > 0
    assert chances.max() < 0.9


def test_the_best_ad_depends_on_the_visitor(chances):
    assert len(set(chances.argmax(axis=1))) >= 15


def test_one_ad_for_everybody_earns_less_than_60_percent_of_the_best(chances):
    assert chances.mean(axis=0).max() < 0.6 * chances.max(axis=1).mean()


@pytest.mark.parametrize("name", SHARES)
def test_every_category_of_the_context_changes_the_best_ad(world, name):
    contexts = [world.visitor(number)[1] for number in range(300)]
    bests = [
        {int(world.chances({**context, name: value}).argmax()) for value in SHARES[name]}
        for context in contexts
    ]
    assert np.mean([len(best) > 1 for best in bests]) > 0.1


def test_loyalty_changes_the_best_ad(world):
    contexts = [world.visitor(number)[1] for number in range(300)]
    bests = [{int(world.chances({**context, "loyalty": x}).argmax()) for x in (0, 1)} for context in contexts]
    assert np.mean([len(best) > 1 for best in bests]) > 0.1


def test_visitors_come_as_often_as_is_said(world):
    seen = [world.visitor(number)[1] for number in range(5000)]
    for name, of in SHARES.items():
        for value, share in of.items():
            assert np.mean([context[name] == value for context in seen]) == pytest.approx(share, abs=0.05)


def test_users_come_again_and_stay_who_they_are(world):
    known = {}
    for number in range(1000):
        user_id, context = world.visitor(number)
        context.pop("daypart")
        assert known.setdefault(user_id, context) == context
    assert 500 < len(known) < 1000


def test_a_context_is_clean_as_it_is(world):
    context = world.visitor(0)[1]
    assert clean(context) == context
    assert list(clean(context)) == list(context)


def test_the_same_seed_gives_the_same_visitors():
    one, other = World(ADS, 1), World(ADS[::-1], 1)
    for number in range(100):
        user_id, context = one.visitor(number)
        assert other.visitor(number) == (user_id, context)
        assert (other.chances(context) == one.chances(context)).all()
        assert [one.clicks("e", context, ad) for ad in ADS] == [other.clicks("e", context, ad) for ad in ADS]


def test_another_seed_gives_other_visitors_and_another_taste():
    one, other = World(ADS, 1), World(ADS, 2)
    assert [one.visitor(number) for number in range(20)] != [other.visitor(number) for number in range(20)]
    context = one.visitor(0)[1]
    assert not np.allclose(one.chances(context), other.chances(context))


def test_the_figures_of_one_visit_agree(world):
    context = world.visitor(0)[1]
    each = [world.click_probability(context, ad) for ad in ADS]
    assert world.best(context) == max(each)
    assert world.uniform(context) == pytest.approx(np.mean(each))


def test_people_click_as_often_as_they_should(world):
    ad = ADS[0]
    contexts = [world.visitor(number)[1] for number in range(5000)]
    clicks = sum(world.clicks(f"visit-{number}", context, ad) for number, context in enumerate(contexts))
    expected = [world.click_probability(context, ad) for context in contexts]
    spread = np.sqrt(sum(p * (1 - p) for p in expected))
    assert abs(clicks - sum(expected)) < 4 * spread


def test_every_visit_is_chosen_for_and_then_rewarded_with_what_happened(world):
    calls, rewards = [], {}

    def choose(event_id, user_id, context):
        calls.append((event_id, user_id, context))
        assert len(rewards) == len(calls) - 1
        return at_random(event_id, user_id, context)[0], f"signed {event_id}"

    seen = list(visits(world, choose, rewards.__setitem__, 300))
    assert [call[0] for call in calls] == [f"visit-{number}" for number in range(300)]
    assert [call[1:] for call in calls] == [world.visitor(number) for number in range(300)]
    assert list(rewards) == [f"signed visit-{number}" for number in range(300)]
    assert list(rewards.values()) == [float(visit.clicked) for visit in seen]
    for visit, (event_id, _, context) in zip(seen, calls, strict=True):
        ad = next(ad for ad in ADS if ad.id == visit.ad_id)
        assert visit.clicked == world.clicks(event_id, context, ad)
        assert visit[2:] == pytest.approx(
            (world.click_probability(context, ad), world.best(context), world.uniform(context))
        )


def test_random_picks_earn_what_the_world_says_they_do(world):
    seen = list(visits(world, at_random, lambda *_: None, 5000))
    spread = np.sqrt(sum(visit.uniform * (1 - visit.uniform) for visit in seen))
    assert abs(sum(visit.clicked - visit.uniform for visit in seen)) < 4 * spread


def test_there_is_enough_to_learn_for_half_as_many_clicks_again_in_5000_visits():
    policy, open_choices, ads = policies.make("vw"), {}, sorted(ADS, key=lambda ad: ad.id)

    def choose(event_id, user_id, context):
        pmf = policy.pmf(context, ads).tolist()
        index = pick(pmf, uniform(event_id))
        open_choices[event_id] = (context, ads, index, pmf[index])
        return ads[index].id, event_id

    def reward(event_id, value):
        context, ads, index, probability = open_choices.pop(event_id)
        policy.learn(context, ads, index, value, probability)

    seen = list(visits(World(ADS, 1), choose, reward, 5000))
    assert sum(visit.clicked for visit in seen) > 1.5 * sum(visit.uniform for visit in seen)


def test_ads_without_features_differ_too():
    world = World([Ad(ad.id) for ad in ADS[:10]], 1)
    chances = world.chances(world.visitor(0)[1])
    assert len(set(chances)) == 10
