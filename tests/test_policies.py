"""Every file in policies/ keeps the promises of the plug-board, whatever its options; learners do learn."""

import gc
import importlib
import inspect
import json
import pickle
import random
import time

import msgspec
import numpy as np
import pytest
from river import bandit, proba
from vowpalwabbit import Workspace

from banditads import policies
from banditads.errors import Misconfigured
from banditads.events import Ad, Advised
from banditads.features import clean


def module(name):
    return importlib.import_module(f"banditads.policies.{name}")


CASES = [
    (name, options) for name in policies.names() for options in ({}, *getattr(module(name), "EXAMPLES", ()))
]
every_policy = pytest.mark.parametrize("name", policies.names())
every_case = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=[f"{name}-{','.join(map(str, o.values()))}" for name, o in CASES]
)
LEARNERS = [(name, options) for name, options in CASES if name != "uniform"]
every_learner = pytest.mark.parametrize(
    ("name", "options"), LEARNERS, ids=[f"{name}-{','.join(map(str, o.values()))}" for name, o in LEARNERS]
)

KINDS = ("hats", "news", "shoes")
ADS = [
    Ad(f"ad{n}", clean({"kind": KINDS[n % 3], "price": 3.0 * n, "tags": ["new"] if n % 2 else []}))
    for n in range(9)
]
HOSTILE = [
    "x\n0:-1000:0.001 |A =ad3",
    "a|b c:d",
    "shared",
    "日本 ー",
    "123",
    "0123",
    "%3D=",
    "ad=a3 ad=a1:100",
]


def context(dice):
    """A visitor; numbers and features may be missing."""
    return clean(
        {
            "segment": dice.choice(("sports", "books", "food")),
            "age": dice.choice((None, 18, 31.5, 70)),
            "seen": [dice.choice("abcd")],
            "vip": dice.choice((None, True)),
        }
    )


def history(n, seed=1):
    """Rounds as they come: changing sets of ads, rewards of 0, 1 and between."""
    dice = random.Random(seed)
    for _ in range(n):
        ads = dice.sample(ADS, dice.randrange(1, len(ADS)))
        reward = dice.choice((0.0, 0.0, 1.0, 0.25))
        yield context(dice), ads, dice.randrange(len(ads)), reward, dice.choice((1.0, 0.5, 0.01))


def taught(name, options, n=60, seed=1):
    policy = policies.make(name, **options)
    for each in history(n, seed):
        policy.learn(*each)
    return policy


def packed(policy):
    return msgspec.msgpack.encode(policy.dump())


def copied(policy, name, options):
    copy = policies.make(name, **options)
    copy.load(msgspec.msgpack.decode(packed(policy)))
    return copy


def answers(policy, seed=5, n=5):
    """What it says to a few visitors, as bytes."""
    dice = random.Random(seed)
    return [policy.pmf(context(dice), ADS).tobytes() for _ in range(n)]


def assert_distribution(pmf, n):
    assert pmf.shape == (n,)
    assert pmf.dtype == np.float64
    assert np.isfinite(pmf).all()
    assert (pmf >= 0).all()
    assert abs(pmf.sum() - 1) < 1e-9


@every_case
@pytest.mark.parametrize("rounds", [0, 1, 60])
def test_an_answer_is_a_distribution_over_the_ads(name, options, rounds):
    policy = taught(name, options, rounds)
    for n in (1, 2, 3, 100):
        ads = [Ad(f"ad{i}", {"kind": KINDS[i % 3], "price": float(i)}) for i in range(n)]
        for visitor in ({}, {"segment": "sports", "age": 30.0}, {"never": "seen"}):
            assert_distribution(policy.pmf(visitor, ads), n)


@every_case
def test_asking_changes_nothing_and_gives_the_same_bits_again(name, options):
    policy = taught(name, options)
    before, said = packed(policy), answers(policy)
    policy.pmf({"unheard": "of", "number": 7.0}, [Ad("unknown", {"kind": "odd", "weight": 2.0})])
    policy.expected({"unheard": "of", "number": 7.0}, [Ad("unknown", {"kind": "odd", "weight": 2.0})], 0)

    assert answers(policy) == said
    assert packed(policy) == before


@every_case
def test_what_is_expected_lies_within_the_rewards_and_does_not_depend_on_who_asked_before(name, options):
    policy, dice = taught(name, options), random.Random(7)
    for _ in range(5):
        visitor, pick = context(dice), dice.randrange(len(ADS))
        alone = policy.expected(dict(visitor), list(ADS), pick)
        policy.pmf(visitor, ADS)
        assert policy.expected(visitor, ADS, pick) == alone
        assert alone is None or 0 <= alone <= 1
        policy.learn(visitor, ADS, pick, 1.0, 0.5)
        again = policy.expected(visitor, ADS, pick)
        assert again == copied(policy, name, options).expected(visitor, ADS, pick)


@every_case
def test_a_copy_goes_on_exactly_like_the_original(name, options):
    policy = taught(name, options)
    copy = copied(policy, name, options)
    assert packed(copy) == packed(policy)
    assert answers(copy) == answers(policy)

    for each in history(60, seed=2):
        policy.pmf(each[0], each[1])  # only one of the two is asked
        policy.learn(*each)
        copy.learn(*each)
    assert answers(copy) == answers(policy)
    assert packed(copy) == packed(policy)
    assert answers(copied(copy, name, options)) == answers(policy)


@every_case
def test_a_policy_that_learned_something_else_becomes_the_one_it_loads(name, options):
    policy, other = taught(name, options), taught(name, options, seed=3)
    other.load(policy.dump())

    assert answers(other) == answers(policy)
    assert packed(other) == packed(policy)


@every_case
def test_equal_histories_give_equal_bytes_in_spite_of_others_in_the_process(name, options):
    alone = packed(taught(name, options))
    policy, others = policies.make(name, **options), [policies.make(name, **options), taught(name, options)]
    for each, disturbance in zip(history(60), history(60, seed=9), strict=True):
        policy.learn(*each)
        for other in others:
            other.learn(*disturbance)
            other.pmf(*disturbance[:2])

    assert packed(policy) == alone


@every_case
def test_the_order_of_the_ads_does_not_matter(name, options):
    policy = taught(name, options)
    dice = random.Random(4)
    for _ in range(5):
        visitor, order = context(dice), dice.sample(range(len(ADS)), len(ADS))
        shuffled = policy.pmf(visitor, [ADS[i] for i in order])
        np.testing.assert_allclose(shuffled, policy.pmf(visitor, ADS)[order], rtol=1e-4, atol=1e-6)


@every_policy
def test_new_ads_are_explored_from_their_first_request(name):
    policy = taught(name, {})
    new = [Ad("new", {"kind": "never heard of"}), Ad("newer")]
    pmf = policy.pmf({"segment": "sports"}, [*ADS, *new])

    assert (pmf[-2:] > 1e-4).all()


@every_case
def test_an_ad_that_changed_is_not_taken_for_what_it_was(name, options):
    policy = taught(name, options)
    copy = copied(policy, name, options)
    changed = [Ad(ad.id, {"kind": "hats", "price": 1.0}) for ad in ADS]
    policy.pmf({"segment": "food"}, ADS)

    assert (
        policy.pmf({"segment": "food"}, changed).tobytes() == copy.pmf({"segment": "food"}, changed).tobytes()
    )


@every_case
def test_needs_no_clock_and_no_dice(name, options, monkeypatch):
    policy = policies.make(name, **options)

    def forbidden(*args, **given):
        raise AssertionError("not repeatable")

    for where in (time.time, time.monotonic, random.random, random.betavariate, np.random.default_rng):
        monkeypatch.setattr(inspect.getmodule(where) or random, where.__name__, forbidden)
    monkeypatch.setattr(random.Random, "random", forbidden)
    policy.pmf({"age": 3.0}, ADS)
    policy.learn({"age": 3.0}, ADS, 1, 0.5, 0.1)
    policy.pmf({"age": 3.0}, ADS)


@every_case
def test_nothing_is_pickled(name, options, monkeypatch):
    policy = taught(name, options)
    for what in ("dumps", "loads", "dump", "load", "Pickler", "Unpickler"):
        monkeypatch.delattr(pickle, what)

    assert packed(copied(policy, name, options)) == packed(policy)


# Learning


def click(visitor, ad):
    """Clicks per visit: everybody likes ad4 a little, and of the rest what suits the segment."""
    suits = {"sports": "shoes", "books": "news", "food": "hats"}[visitor["segment"]]
    return 0.25 if ad.id == "ad4" else 0.6 if ad.features["kind"] == suits else 0.05


def same_for_all(visitor, ad):
    """Clicks per visit where only the ad matters."""
    return 0.5 if ad.id == "ad4" else 0.1


def live(policy, world, visits, seed=0, keep=0.02):
    """Expected clicks per visit, over the last half."""
    dice, earned = random.Random(seed), []
    for _ in range(visits):
        visitor = context(dice)
        pmf = (1 - keep) * policy.pmf(visitor, ADS) + keep / len(ADS)
        pick = dice.choices(range(len(ADS)), pmf)[0]
        chance = world(visitor, ADS[pick])
        policy.learn(visitor, ADS, pick, float(dice.random() < chance), float(pmf[pick]))
        earned.append(chance)
    return sum(earned[visits // 2 :]) / len(earned[visits // 2 :])


def value(policy, world):
    """Expected clicks per visit of what it would do now, with visitors it may have met."""
    dice = random.Random(77)
    visitors = [context(dice) for _ in range(50)]
    return np.mean([policy.pmf(v, ADS) @ [world(v, ad) for ad in ADS] for v in visitors])


def chance_of_random_picks(world):
    return value(policies.make("uniform"), world)


@every_learner
def test_every_learner_earns_clearly_more_than_random_picks(name, options):
    world = same_for_all if name == "thompson" else click
    earned = live(policies.make(name, **options), world, 1500)

    assert earned > 1.4 * chance_of_random_picks(world)


@every_learner
def test_a_fraction_of_a_reward_counts_as_a_fraction(name, options):
    policy = policies.make(name, **options)
    ads = [Ad("little"), Ad("more"), Ad("nothing")]
    for _ in range(100):
        for pick, reward in enumerate((0.3, 0.6, 0.0)):
            policy.learn({"a": "b"}, ads, pick, reward, 1 / 3)
    little, more, nothing = policy.pmf({"a": "b"}, ads)

    assert more > little >= nothing


@pytest.mark.parametrize("name", ["vw", "logistic"])
def test_a_new_ad_starts_with_what_is_known_of_similar_ones(name):
    policy = policies.make(name, exploration="softmax", lambda_=10.0)
    live(policy, click, 1500)
    new = [Ad("one", {"kind": "hats"}), Ad("two", {"kind": "news"})]

    for segment, better in (("food", 0), ("books", 1)):
        pmf = policy.pmf({"segment": segment}, new)
        assert pmf[better] > 0.6


@every_learner
def test_extreme_and_hostile_input_does_not_spoil_what_others_get(name, options):
    world = same_for_all if name == "thompson" else click
    policy = policies.make(name, **options)
    live(policy, world, 1500)
    before = value(policy, world)
    worst = [Ad("ad0", ADS[0].features), *(Ad(text, {text: text, "price": 1e6}) for text in HOSTILE)]
    visitors = [
        {"age": 1e6, "segment": "x"},
        {"age": -1e6, "price": 1e-300},
        {f"n{i}": (-1) ** i * 1e6 for i in range(256)},
        {f"n{i}": HOSTILE[i % len(HOSTILE)] for i in range(256)},
        *({text: text} for text in HOSTILE),
    ]
    for number, visitor in enumerate(visitors):
        assert_distribution(policy.pmf(visitor, worst), len(worst))
        policy.learn(visitor, worst, number % len(worst), 1.0, 1e-12)
        assert_distribution(policy.pmf(visitor, worst), len(worst))
    wide = [Ad("wide", {f"a{i}": 1e6 for i in range(200)}), Ad("w", {f"a{i}": "x" for i in range(200)})]
    policy.learn({"age": 1e6}, wide, 0, 0.0, 1e-12)
    assert_distribution(policy.pmf({"age": 1e6}, wide), 2)

    assert value(policy, world) - chance_of_random_picks(world) > 0.7 * (
        before - chance_of_random_picks(world)
    )


# What is refused, bounded and told


OPTIONS = [
    (name, option)
    for name in policies.names()
    for option in inspect.signature(module(name).Policy).parameters
]


@pytest.mark.parametrize(("name", "option"), OPTIONS)
@pytest.mark.parametrize("impossible", [float("nan"), -1, 1e300, None, "nonsense", {"a": 1}, [[1]]], ids=repr)
def test_an_impossible_option_is_refused_by_name(name, option, impossible):
    with pytest.raises(Misconfigured, match=rf"\b{option}\b"):
        policies.make(name, **{option: impossible})


@every_policy
def test_an_unknown_option_is_refused_by_name(name):
    with pytest.raises(Misconfigured, match="has no option 'speed'"):
        policies.make(name, speed=1)


@pytest.mark.parametrize("name", ["thompson", "linucb"])
def test_the_ads_that_learned_longest_ago_are_forgotten(name):
    policy = policies.make(name, max_arms=3)
    for pick in (0, 1, 2, 3, 1, 4):  # 0 is forgotten for 3, then 2 for 4
        policy.learn({}, ADS, pick, 1.0, 0.5)

    assert [arm[0] for arm in policy.dump()] == ["ad3", "ad1", "ad4"]
    assert policy.describe()["arms"] == 3


@pytest.mark.parametrize("name", ["vw", "logistic"])
def test_few_ads_are_kept_and_it_makes_no_difference(name):
    small, large = policies.make(name, kept_ads=2), policies.make(name)
    for each in history(60):
        small.learn(*each)
        large.learn(*each)

    assert answers(small) == answers(large)
    assert (small.describe()["kept_ads"], large.describe()["kept_ads"]) == (2, len(ADS))


def test_vw_gives_back_the_memory_of_its_examples():
    def resident():
        gc.collect()
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096

    def visit_often():
        for visit in range(3000):  # unfinished examples of VW's parser would take 31 KB each: 180 MB
            policy.pmf({"visit": float(visit)}, ADS)
            policy.learn({"visit": float(visit)}, ADS, 1, 0.0, 0.5)

    policy = taught("vw", {})
    visit_often()  # what the process needs once, whoever ran before, is not counted
    before = resident()
    visit_often()

    assert resident() - before < 20e6


def test_logistic_has_no_more_weights_than_it_was_given():
    policy = policies.make("logistic", bits=8)
    for number in range(300):
        policy.learn({f"name{number}": "x"}, ADS, 0, 0.0, 0.5)

    assert policy.describe()["weights"] <= 256


@every_policy
def test_says_what_it_is_and_what_its_options_mean(name):
    about = module(name)
    assert about.__doc__.splitlines()[0].endswith(".")
    for option in inspect.signature(about.Policy).parameters:
        assert option in about.Policy.__doc__.split("Parameters")[1]
    assert getattr(about, "EXAMPLES", ()) or not inspect.signature(about.Policy).parameters


@every_case
def test_describes_itself_in_json(name, options):
    described = taught(name, options).describe()
    assert json.loads(json.dumps(described)) == described


# Vowpal Wabbit


def test_vw_gets_the_features_that_its_text_format_would_give_it():
    policy = policies.make("vw", exploration="softmax")
    text = Workspace(f"{policy.command} --quiet")
    dice = random.Random(1)
    ads = [Ad(f"a{n}", {"kind": KINDS[n % 3]}) for n in range(5)]
    for _ in range(50):
        visitor, pick, reward = {"segment": dice.choice("abc")}, dice.randrange(5), dice.choice((0.0, 1.0))
        lines = [f"|A =a{n} kind={KINDS[n % 3]}" for n in range(5)]
        shared = f"shared |U segment={visitor['segment']}"
        expected = np.array(text.predict([shared, *lines]))
        np.testing.assert_array_equal(policy.pmf(visitor, ads), expected / expected.sum())
        lines[pick] = f"0:{-reward}:0.25 {lines[pick]}"
        text.learn([shared, *lines])
        policy.learn(visitor, ads, pick, reward, 0.25)


def test_vw_tells_names_of_digits_apart_and_an_ad_from_a_feature_called_id():
    policy = policies.make("vw", exploration="softmax")
    ads = [Ad("123"), Ad("0123"), Ad("y", {"=123": 1.0}), Ad("z", {"id": "123"})]
    for _ in range(20):
        policy.learn({}, ads[:2], 0, 1.0, 0.5)
    pmf = policy.pmf({}, ads)

    assert pmf[0] > 1.5 * pmf[1:].max()


def test_vw_does_not_read_a_name_of_digits_as_a_number():
    policy = policies.make("vw", exploration="softmax")
    for _ in range(20):
        policy.learn({}, [Ad("x", {"123": 1.0}), Ad("y")], 0, 1.0, 0.5)
    pmf = policy.pmf({}, [Ad("new", {"123": 1.0}), Ad("newer", {"0123": 1.0})])

    assert pmf[0] > 1.5 * pmf[1]


def test_vw_learns_alike_whatever_the_place_of_the_ad_in_the_list():
    # VW 9.11.9 forgets to take the importance weight off the last ad when it learns for squarecb and regcb.
    for exploration in ("squarecb", "regcbopt"):
        first, last = (policies.make("vw", exploration=exploration) for _ in range(2))
        for reward in (1.0, 0.0, 1.0):
            first.learn({}, ADS[:2], 0, reward, 0.001)
            last.learn({}, ADS[1::-1], 1, reward, 0.001)
        assert packed(first) == packed(last)


def test_vw_refuses_a_model_of_other_options():
    saved = policies.make("vw", epsilon=0.3, exploration="epsilon").dump()
    with pytest.raises(Misconfigured, match="options"):
        policies.make("vw").load(saved)


# River


def test_vw_is_told_nothing_twice_after_it_failed(monkeypatch):
    policy, context, seen = policies.make("vw"), {"device": "mobile"}, Advised(ADS, [2.0] * len(ADS))
    for _ in range(20):
        policy.learn(context, seen, 0, 1.0, 0.5)
    before = policy.expected(context, seen, 0)
    with monkeypatch.context() as broken:
        broken.setattr(policy._vw, "predict_multi", None)
        with pytest.raises(TypeError):
            policy.pmf(context, seen)

    assert policy.expected(context, Advised(ADS, seen.said), 0) == before


def test_vw_does_not_take_what_a_failure_left_behind_for_an_answer(monkeypatch):
    class FailsLate:
        def __enter__(self):
            pass

        def __exit__(self, *error):
            raise RuntimeError

    policy, one, other = taught("vw", {}, 40), {"segment": "books"}, {"segment": "food"}
    said = policy.expected(one, ADS, 0)
    assert said != policy.expected(dict(other), ADS, 0)
    policy.pmf(one, ADS)
    with monkeypatch.context() as broken:
        broken.setattr(module("vw"), "SILENCE", FailsLate())
        with pytest.raises(RuntimeError):
            policy.pmf(other, ADS)
    assert policy.expected(one, ADS, 0) == said


def test_thompson_believes_what_rivers_does_and_knows_how_probable_it_is_that_an_ad_is_best():
    ours = policies.make("thompson")
    theirs = bandit.ThompsonSampling(reward_obj=proba.Beta(), seed=1)
    dice = random.Random(1)
    for _ in range(300):
        pick = dice.randrange(len(ADS))
        reward = float(dice.random() < pick / 20)
        ours.learn({}, ADS, pick, reward, 0.1)
        theirs.update(ADS[pick].id, reward)
    believed = {name: (alpha, beta) for name, alpha, beta in ours.dump()}
    assert believed == {name: (arm.alpha, arm.beta) for name, arm in theirs._rewards.items()}

    parameters = np.array([believed[ad.id] for ad in ADS])
    draws = np.random.default_rng(1).beta(*parameters.T, size=(200_000, len(ADS)))
    frequency = np.bincount(draws.argmax(axis=1), minlength=len(ADS)) / len(draws)
    np.testing.assert_allclose(ours.pmf({}, ADS), frequency, atol=0.004)


@pytest.mark.parametrize(
    ("alpha", "beta"),
    [([1, 1e6], [1e6, 1]), ([1] * 100, [1] * 100), ([4e4, 4.01e4], [1e6, 1e6]), ([1, 400.0], [1, 1e4])],
)
def test_thompson_is_right_where_an_integral_is_hard(alpha, beta):
    policy = policies.make("thompson")
    ads = [Ad(str(n)) for n in range(len(alpha))]
    policy.load([[ad.id, a, b] for ad, a, b in zip(ads, alpha, beta, strict=True)])
    draws = np.random.default_rng(1).beta(alpha, beta, size=(100_000, len(ads)))
    frequency = np.bincount(draws.argmax(axis=1), minlength=len(ads)) / len(draws)

    np.testing.assert_allclose(policy.pmf({}, ads), frequency, atol=0.006)


def test_linucb_has_the_estimates_of_rivers_and_the_width_of_the_paper():
    policy = policies.make("linucb", ridge=0.5, dim=8)
    theirs = bandit.LinUCBDisjoint(alpha=0.5, beta=1.0)
    gram, moment = 0.5 * np.eye(8), np.zeros(8)  # of ad1: A and b of algorithm 1
    for visitor, ads, pick, reward, propensity in history(100):
        x = policy._vector(visitor)
        policy.learn(visitor, ads, pick, reward, propensity)
        theirs.update(ads[pick].id, x, reward)
        if ads[pick].id == "ad1":
            dense = np.array([x.get(bucket, 0.0) for bucket in range(8)])
            gram += np.outer(dense, dense)
            moment += reward * dense
    visitor = clean({"segment": "food", "age": 31.5})
    x = policy._vector(visitor)
    dense = np.array([x.get(bucket, 0.0) for bucket in range(8)])
    assert dense @ dense == pytest.approx(1)

    arm = policy.arms["ad1"]
    assert arm.predict_one(x) == theirs._bayes_lin_regs["ad1"].predict_one(x)
    paper = dense @ np.linalg.solve(gram, moment) + policy.width * np.sqrt(
        dense @ np.linalg.solve(gram, dense)
    )
    assert policy._bound(arm, x) == pytest.approx(paper, rel=1e-9)


@pytest.mark.parametrize("name", ["vw", "logistic"])
def test_a_tag_counts_although_its_number_is_always_the_same(name):
    policy = policies.make(name, exploration="softmax", lambda_=10.0)
    ads = [Ad("one"), Ad("two")]
    for visit in range(400):
        visitor = clean({"tags": ["vip"] if visit % 2 else []})
        policy.learn(visitor, ads, visit // 2 % 2, float(visit % 2 == visit // 2 % 2), 0.5)
    policy.learn({"tags.vip": 9.0}, ads, 1, 1.0, 0.5)  # who sends a number for a tag spoils it for nobody

    assert policy.pmf({}, ads)[0] > 0.9
    assert policy.pmf({"tags.vip": 1.0}, ads)[1] > 0.9


@pytest.mark.parametrize("name", ["ensemble", "vw", "logistic"])
def test_a_number_matters_and_one_that_is_far_off_does_not_spoil_it(name):
    policy, ads, dice = policies.make(name), [Ad("young"), Ad("old")], random.Random(1)

    def play(rounds):
        for _ in range(rounds):
            age, pick = dice.uniform(18, 72), dice.randrange(2)
            policy.learn(
                {"age": age}, ads, pick, float(dice.random() < (0.6 if pick == (age > 45) else 0.1)), 0.5
            )

    play(1000)
    for far in (1e6, -1e6):
        policy.learn({"age": far}, ads, 0, 1.0, 0.5)
    assert policy.pmf({"age": 20.0}, ads)[0] > 0.8
    assert policy.pmf({"age": 70.0}, ads)[1] > 0.8


def test_three_quarters_of_a_reward_are_learned_as_three_rewards_of_four_are():
    logistic, ads = policies.make("logistic", exploration="softmax", lambda_=10.0), [Ad("part"), Ad("coin")]
    for visit in range(600):
        logistic.learn({}, ads, 0, 0.75, 0.5)
        logistic.learn({}, ads, 1, float(visit % 4 > 0), 0.5)
    assert logistic.pmf({}, ads)[0] == pytest.approx(0.5, abs=0.1)

    thompson = policies.make("thompson")
    thompson.learn({}, ads, 0, 0.75, 0.5)
    assert thompson.dump() == [["part", 1.75, 1.25]]


def test_logistic_keeps_no_scale_of_a_number_it_was_only_asked_about():
    policy = taught("logistic", {})
    before = len(policy.scaler.vars)
    policy.pmf({"never": 1.0, "learned": 2.0}, ADS)

    assert len(policy.scaler.vars) == before
