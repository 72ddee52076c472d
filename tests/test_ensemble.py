"""What `ensemble` promises beyond what every policy does: its estimates, its doubt, and its memory."""

import math
import random

import numpy as np
import pytest

from banditads import policies
from banditads.choosing import Request, spread
from banditads.events import Ad, Advised, Promoted
from banditads.policies import ensemble
from banditads.state import State

ADS = tuple(Ad(f"ad{n}", {"kind": "abc"[n % 3]}) for n in range(6))


def chance(visitor, ad):
    """Clicks per visit, between 1 and 40 percent: some ads are better, and each kind suits one segment."""
    suits = visitor["segment"] == ad.features["kind"]
    return 0.01 + 0.03 * int(ad.id[-1]) + 0.2 * suits + 0.04 * (visitor["age"] > 40)


def visitor(dice):
    return {"age": dice.uniform(18, 70), "segment": dice.choice("abc")}


def estimates(policy, who, ads=ADS):
    return np.array([policy.expected(who, ads, pick) for pick in range(len(ads))])


def lived(visits, seed=1, **options):
    """A policy that served so many visits; of each its estimates, what was shown, click, and truth."""
    policy, dice, seen = policies.make("ensemble", **options), random.Random(seed), []
    for _ in range(visits):
        who = visitor(dice)
        pmf = policy.pmf(who, ADS)
        pick = dice.choices(range(len(ADS)), pmf)[0]
        truth = [chance(who, ad) for ad in ADS]
        click = float(dice.random() < truth[pick])
        seen.append((estimates(policy, who), pick, click, truth))
        policy.learn(who, ADS, pick, click, float(pmf[pick]))
    return policy, seen


def test_where_visitors_explain_rewards_more_is_explored_and_more_earned(monkeypatch):
    """Each of 20 kinds of visitors clicks on one of 20 ads, always. Over four seeds, .6 earned, or .5."""

    def earned(seed):
        policy, dice, clicks = policies.make("ensemble", dim=32, kernel=16), random.Random(seed), 0.0
        ads = [Ad(f"ad{n:02d}") for n in range(20)]
        for _ in range(800):
            kind = dice.randrange(20)
            pmf = policy.pmf({"kind": str(kind)}, ads)
            pick = dice.choices(range(20), pmf)[0]
            policy.learn({"kind": str(kind)}, ads, pick, float(pick == kind), float(pmf[pick]))
            clicks += pick == kind
        return clicks / 800

    more = sum(map(earned, range(4)))
    monkeypatch.setattr(ensemble, "EXPLAINED", 0.0)
    assert more > 1.1 * sum(map(earned, range(4)))


@pytest.mark.parametrize("epsilon", [0.2, 1.0])
def test_what_is_expected_is_what_comes(epsilon):
    _, seen = lived(3000, epsilon=epsilon)
    said = np.array([each[pick] for each, pick, _, _ in seen[1000:]])
    truth = np.array([chances[pick] for _, pick, _, chances in seen[1000:]])
    error = 0.0
    for part in np.array_split(np.argsort(said), 10):
        error += len(part) / len(said) * abs(said[part].mean() - truth[part].mean())

    assert error < 0.03  # expected calibration error. Who expects the average of everybody has none at all:
    off = np.square(said - truth).mean() / truth.var()
    assert off < 0.7  # so it must tell ads and visitors apart, too


def test_what_is_expected_of_an_ad_does_not_depend_on_what_is_asked_for_with_it():
    policy, _ = lived(300)
    who = visitor(random.Random(2))
    together = estimates(policy, who)

    assert ((together >= 0) & (together <= 1)).all()
    for place, ad in enumerate(ADS):
        assert policy.expected(who, [ad], 0) == pytest.approx(together[place], abs=1e-6)


def test_what_a_recommender_says_counts_as_far_as_it_is_right():
    right, wrong = policies.make("ensemble"), policies.make("ensemble")
    dice = random.Random(1)
    for _ in range(1000):
        pick, chances = dice.randrange(6), [dice.choice((0.1, 0.5)) for _ in ADS]
        click = float(dice.random() < chances[pick])
        told = Advised(ADS, [math.log(each / (1 - each)) for each in chances])
        misled = Advised(ADS, [dice.uniform(-3, 0) for _ in ADS])
        right.learn({}, told, pick, click, 1 / 6)
        wrong.learn({}, misled, pick, click, 1 / 6)
    said = Advised(ADS, [-2.2, -2.2, 0.0, -2.2, -2.2, -2.2])

    assert right.pmf({}, said)[2] > 0.8
    assert right.describe()["trust_advice"] > 0.5
    assert wrong.describe()["trust_advice"] < 0.2


def test_a_new_ad_starts_with_what_is_known_of_similar_ones():
    policy, _ = lived(3000)
    new = [Ad(f"new-{kind}", {"kind": kind}) for kind in "abc"]
    for place, segment in enumerate("abc"):
        said = estimates(policy, {"age": 30.0, "segment": segment}, new)
        assert said.argmax() == place


def test_the_regressions_are_ridge_regressions():
    policy, dice = policies.make("ensemble", dim=6, ridge=2.0), np.random.default_rng(1)
    x, y = dice.normal(size=(50, 6)).astype(np.float32), dice.normal(size=50)
    inverse, weights = policy.linear[0].copy(), np.zeros(6, np.float32)
    for row, target in zip(x, y, strict=True):
        ensemble._regress(inverse, weights, row, float(target - weights @ row))
    gram = x.T @ x + 2.0 * np.eye(6)

    np.testing.assert_allclose(weights, np.linalg.solve(gram, x.T @ y), atol=1e-5)
    np.testing.assert_allclose(inverse[policy.diagonal], np.diagonal(np.linalg.inv(gram)), atol=1e-6)


def test_a_million_steps_leave_a_regression_sound():
    """In single precision: what is known ever better must not become less than nothing."""
    policy, dice = policies.make("ensemble", dim=8), np.random.default_rng(1)
    inverse, weights = policy.linear[0].copy(), np.zeros(8, np.float32)
    truth = np.linspace(-0.2, 0.2, 8)
    few = dice.normal(size=(1000, 8)).astype(np.float32) * np.array([1, 1, 1, 1, 1, 1, 0.01, 100], np.float32)
    for step in range(100_000):
        row = few[step % 1000]
        ensemble._regress(inverse, weights, row, float(row @ truth) - float(weights @ row))

    assert (inverse[policy.diagonal] > 0).all()
    np.testing.assert_allclose(weights, truth, atol=0.01)


def test_a_step_is_what_its_formulas_say(monkeypatch):
    """Which are written here as one would without hurry."""
    policy, _ = lived(31)
    who, ad, heard = {"segment": "b"}, ADS[1], []
    monkeypatch.setattr(
        policy, "_weigh", lambda *given: heard.append(given) or ensemble.Policy._weigh(policy, *given)
    )
    gram, moment, shared, squares = (
        getattr(policy, name).copy() for name in ("gram", "moment", "shared", "squares")
    )
    average, rows, values = policy._average(), *policy._vector(who)[2:]
    policy.learn(who, ADS, 1, 1.0, 0.5)
    ((stage, said),) = heard
    near, noise = 0.5 ** abs(np.arange(8) - stage), policy.noise[1] / policy.noise[0]
    for each, weight in enumerate(near):
        gram[each] = (1 - weight / 1000) * gram[each] + weight / noise * np.outer(said[:6], said[:6])
        moment[each] = (1 - weight / 1000) * moment[each] + weight / noise * said[6] * said[:6]
        trust = np.linalg.solve(gram[each] + np.eye(6), moment[each] + [0.25, 0.25, 0.25, 0.25, 0, 0]).clip(0)
        np.testing.assert_allclose(policy.trust[:, each], trust / max(1, trust.sum()), rtol=1e-9)
    gradient = np.zeros_like(shared)
    gradient[rows] = np.outer(values, policy._ad(ad).row) * (said[2] + average - 1.0)
    squares += gradient**2
    shared -= 0.4 * gradient / np.sqrt(squares + 0.01)

    assert said[6] == 1.0 - average
    np.testing.assert_allclose(policy.gram, gram, rtol=1e-9)
    np.testing.assert_allclose(policy.moment, moment, rtol=1e-9)
    np.testing.assert_allclose(policy.squares, squares, rtol=1e-4)
    np.testing.assert_allclose(policy.shared, shared, rtol=1e-4, atol=1e-7)


def test_what_was_learned_as_nothing_and_corrected_was_learned_right():
    """To the last digits where it is a sum; what the models say of each other's mistakes depends on when."""
    (right, _), (corrected, _), (besides, _) = (lived(300) for _ in range(3))
    who = {"age": 30.0, "segment": "b"}
    right.learn(who, ADS, 2, 0.7, 0.5)
    corrected.learn(who, ADS, 2, 0.1, 0.5)
    corrected.correct(who, ADS, 2, reward=0.7, propensity=0.5, before=0.1)
    besides.learn(who, ADS, 2, 0.1, 0.5)

    for name in ("weights", "cosines", "linear", "kernels", "rates"):
        np.testing.assert_allclose(getattr(corrected, name), getattr(right, name), rtol=1e-3, atol=1e-5)
    assert corrected.earned == pytest.approx(right.earned)
    assert (corrected.learned, corrected.stages.tolist()) == (right.learned, right.stages.tolist())
    for name in ("shared", "moment", "noise"):
        target = getattr(right, name)
        assert (
            np.abs(getattr(corrected, name) - target).max()
            < 0.2 * np.abs(getattr(besides, name) - target).max()
        )


def test_a_model_is_trusted_for_what_it_would_have_said_without_the_choice_that_is_corrected():
    """Of an ad that is new, where one choice changes much. Learned twice, trust is off by 1."""
    off = []
    for seed in (1, 2, 3):
        (right, _), (corrected, _), (besides, _) = (lived(300, seed) for _ in range(3))
        who, ads = {"age": 30.0, "segment": "b"}, (*ADS, Ad("new", {"kind": "c"}))
        right.learn(who, ads, 6, 0.7, 0.5)
        corrected.learn(who, ads, 6, 0.1, 0.5)
        corrected.correct(who, ads, 6, reward=0.7, propensity=0.5, before=0.1)
        besides.learn(who, ads, 6, 0.1, 0.5)
        worst = (np.abs(each.moment - right.moment).max() for each in (corrected, besides))
        off.append(next(worst) / next(worst))
    assert np.mean(off) < 0.3


def test_a_crowd_learns_again_what_is_corrected():
    policy, _ = crowded(visits=100)
    ads = [Ad(next(iter(policy.rows)), {"kind": "k1"})]
    policy.learn({"segment": "k0"}, ads, 0, 0.0, 1.0)
    before = policy.crowd.dump()
    policy.correct({"segment": "k0"}, ads, 0, reward=1.0, propensity=1.0, before=0.0)
    assert policy.crowd.dump() != before


def test_noise_does_not_run_out_where_many_are_corrected_together():
    """What the first of them had added has faded by then: taken away whole it would leave nothing."""
    policy = policies.make("ensemble", memory=100)
    dice = random.Random(1)
    for _ in range(5):
        told = [(visitor(dice), dice.randrange(6)) for _ in range(300)]
        for who, pick in told:
            policy.learn(who, ADS, pick, 0.0, 1 / 6)
        for who, pick in told:
            policy.correct(who, ADS, pick, reward=1.0, propensity=1 / 6, before=0.0)
            average = policy.earned / policy.learned
            assert policy.noise[1] / policy.noise[0] > 0.04 * average * (1 - average)
    assert np.abs(policy.moment).max() < 1e5


def test_a_correction_of_an_ad_that_was_forgotten_begins_with_it_again():
    policy = policies.make("ensemble", max_ads=2)
    for pick in (0, 1, 2):
        policy.learn({}, ADS, pick, 0.0, 0.5)
    assert ADS[0].id not in policy.rows
    policy.correct({}, ADS, 0, reward=1.0, propensity=0.5, before=0.0)
    assert policy.rates[policy.rows[ADS[0].id]].tolist() == [1.0, 1.0]


def test_a_correction_of_an_ad_that_came_back_since_does_not_overshoot():
    policy = policies.make("ensemble", max_ads=2)
    who = {f"word{n}": "w" for n in range(8)}
    policy.learn(who, ADS, 2, 0.0, 0.5)
    for pick in (0, 1, 2):  # forgotten, and here again; it knows of other visitors only
        policy.learn({}, ADS, pick, 0.0, 0.5)
    policy.correct(who, ADS, 2, reward=1.0, propensity=0.5, before=0.0)

    row = policy.rows[ADS[2].id]
    assert float(policy.weights[row, : policy._size()] @ policy._read(who).linear) < 1.0
    assert policy.rates[row].tolist() == [2.0, 1.0]


def test_the_first_step_after_a_load_adds_in_the_same_order():
    """In another one BLAS may round the last bit in another way."""
    policy, _ = lived(300)
    copy = policies.make("ensemble")
    copy.load(policy.dump())

    assert copy.trust.flags.f_contiguous == policy.trust.flags.f_contiguous
    assert copy.trust.strides == policy.trust.strides
    for name in ("stack", "gram", "moment", "noise", "weights", "linear"):
        assert getattr(copy, name).strides == getattr(policy, name).strides


def test_what_waits_for_its_reward_is_explored_less():
    policy, _ = lived(500)
    ads, who = (*ADS, Ad("new", {"kind": "a"})), {"age": 30.0, "segment": "b"}
    policy.width = 2.0
    assert policy.pmf(who, ads)[-1] > 0.9
    policy.waiting = {"new": 1000}

    assert policy.pmf(who, ads)[-1] < 0.1


def test_before_the_first_reward_all_ads_are_shown_alike_often(make_engine):
    engine = make_engine("ensemble", ads=ADS)
    dice = random.Random(1)
    for number in range(300):
        engine.choose(Request(visitor(dice)), f"e{number}")

    assert set(engine.state.joiner.waiting) == {ad.id for ad in ADS}
    assert max(engine.state.joiner.waiting.values()) < 60  # of 50 each


def test_a_state_tells_its_policy_what_waits_and_so_does_one_that_was_loaded(make_engine, clock):
    engine = make_engine("ensemble", ads=ADS, wait=60.0)
    dice = random.Random(1)
    for number in range(40):
        clock.now += 5.0
        engine.choose(Request(visitor(dice)), f"e{number}")
        if number % 3:
            engine.reward(f"e{number}", 1.0)
    policy, copy = engine.state.policy, State("ensemble", wait=60.0)
    copy.load(engine.state.dump())

    assert policy.waiting
    assert copy.policy.waiting == policy.waiting == engine.state.joiner.waiting
    asked = {"at": clock.now, "request": Request({"segment": "a"}), "floor": 0.0}
    assert spread(copy, **asked).pmf == spread(engine.state, **asked).pmf
    clock.now += 60.0
    engine.tick()
    assert policy.waiting == {}


def test_who_decides_sees_what_waits_and_a_challenger_does_not():
    other = "ensemble:width=0.1"
    state = State("ensemble", challengers=[other])
    loaded = State("ensemble", challengers=[other])
    first, second = state.policy, state.challengers.policies[other]
    assert first.waiting is state.joiner.waiting is not second.waiting
    state.apply(0, Promoted(1.0, other))
    loaded.load(state.dump())

    assert second.waiting is state.joiner.waiting is not first.waiting
    assert loaded.policy.waiting is loaded.joiner.waiting
    assert all(each.waiting is not loaded.joiner.waiting for each in loaded.challengers.policies.values())


def test_the_ads_that_learned_longest_ago_start_again():
    policy = policies.make("ensemble", max_ads=3)
    for pick in (0, 1, 2, 3, 1, 4):  # 0 is forgotten for 3, then 2 for 4
        policy.learn({}, ADS, pick, 1.0, 0.5)

    assert list(policy.rows) == ["ad3", "ad1", "ad4"]
    assert sorted(policy.rows.values()) == [1, 2, 3]
    assert policy.rates[policy.rows["ad4"]].tolist() == [1.0, 1.0]


def test_what_is_kept_of_the_last_ads_is_as_good_as_new():
    policy, dice = policies.make("ensemble", max_ads=3), random.Random(1)
    for visit in range(30):
        who = visitor(dice)
        policy.learn(who, ADS, visit * 5 % 6, visit % 2, 0.5)
        assert estimates(policy, who).tobytes() == estimates(policy, who, [*ADS]).tobytes()


def test_a_tag_counts_although_its_number_is_always_the_same():
    policy, ads = policies.make("ensemble"), [Ad("one"), Ad("two")]
    for visit in range(400):
        tagged = {"tags.vip": 1.0} if visit % 2 else {}
        policy.learn(tagged, ads, visit // 2 % 2, float(visit % 2 == visit // 2 % 2), 0.5)

    assert policy.pmf({}, ads)[0] > 0.9
    assert policy.pmf({"tags.vip": 1.0}, ads)[1] > 0.9


def crowded(seed=1, visits=1500):
    """A policy with room for 8 of 60 ads, whose words decide who likes them; and the clicks it earned."""
    ads = [Ad(f"ad{n}", {"kind": f"k{n % 6}", "size": f"s{n % 5}"}) for n in range(60)]
    policy, dice, earned = policies.make("ensemble", max_ads=8), random.Random(seed), []
    for _ in range(visits):
        who = {"segment": f"k{dice.randrange(6)}"}
        some = dice.sample(ads, 6)
        pmf = policy.pmf(who, some)
        pick = dice.choices(range(6), pmf)[0]
        click = float(dice.random() < (0.5 if some[pick].features["kind"] == who["segment"] else 0.1))
        policy.learn(who, some, pick, click, float(pmf[pick]))
        earned.append(click)
    return policy, sum(earned[-500:]) / 500


def test_among_more_ads_than_it_remembers_it_knows_an_ad_that_it_never_saw_by_its_words():
    policy, earned = crowded()
    assert policy.crowd is not None
    assert policy.describe()["ads"] == 8
    new = [Ad("new", {"kind": f"k{n}", "size": "s1"}) for n in range(2)]
    likes, does_not = estimates(policy, {"segment": "k0"}, new)
    assert likes > does_not + 0.1
    assert earned > 0.3  # at random .17; somebody of the right kind is among six with .67: at best .37


def test_a_crowd_is_part_of_what_is_saved():
    policy, _ = crowded(visits=300)
    copy = policies.make("ensemble", max_ads=8)
    copy.load(policy.dump())
    who, ads = {"segment": "k3"}, [Ad(f"ad{n}", {"kind": f"k{n % 6}"}) for n in range(60)]
    assert estimates(copy, who, ads).tobytes() == estimates(policy, who, ads).tobytes()

    copy.load(policies.make("ensemble", max_ads=8).dump())
    assert copy.crowd is None


@pytest.mark.parametrize("own", [0.0, 0.2])
def test_in_a_crowd_the_doubt_about_one_ad_counts_as_far_as_models_that_know_it_alone_are_trusted(own):
    taught, _ = crowded(visits=300)
    known = max(
        (Ad(name, {"kind": "k1"}) for name in taught.rows),
        key=lambda ad: taught.expected({"segment": "k1"}, [ad], 0),
    )
    firsts = []
    for width in (0.0, 50.0):  # no doubt; much of it
        policy = policies.make("ensemble", max_ads=8, width=width)
        policy.load(taught.dump())
        policy.trust[:] = own
        policy.trust[4] = 0.2
        ads = [known, Ad("nobody saw it", {"kind": "k2"})]
        firsts.append(int(policy.pmf({"segment": "k1"}, ads).argmax()))
    assert firsts == [0, 1 if own else 0]


TABLES = ["weights", "cosines", "linear", "kernels", "shared", "squares", "noise", "gram", "moment"]


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("table", TABLES)
def test_a_number_that_is_not_finite_is_noticed_by_the_step_that_meets_it(table, number, monkeypatch):
    monkeypatch.setattr(ensemble, "OFTEN", 0)
    policy, _ = lived(23 if table in ("gram", "moment") else 20)  # trust is renewed at every eighth step
    assert policy.sound
    getattr(policy, table)[:] = number
    with np.errstate(all="ignore"):
        policy.learn({"age": 30.0, "segment": "b"}, ADS, 1, 1.0, 0.5)

    assert not policy.sound


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("table", ["weights", "cosines", "linear", "kernels", "shared", "squares", "noise"])
def test_a_number_that_is_not_finite_is_noticed_by_the_correction_that_meets_it(table, number):
    policy, _ = lived(20)
    getattr(policy, table)[:] = number
    with np.errstate(all="ignore"):
        policy.correct({"age": 30.0, "segment": "b"}, ADS, 1, reward=1.0, propensity=0.5, before=0.0)

    assert not policy.sound


def test_what_is_not_finite_in_the_regression_of_a_crowd_is_noticed_at_once():
    policy, _ = crowded(visits=100)
    ads, learn = [Ad("ad1", {"kind": "k1"})], policy.crowd.learn
    policy.learn({"segment": "k0"}, ads, 0, 1.0, 1.0)
    assert policy.sound
    policy.crowd.learn = lambda who, ads, pick, reward, chance: learn(who, ads, pick, math.inf, chance)
    policy.learn({"segment": "k0"}, ads, 0, 1.0, 1.0)

    assert not policy.sound
