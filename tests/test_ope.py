"""Every file in ope/ finds the value we built in, and the figures that others published."""

import json

import numpy as np
import pytest
from golden.estimators import make
from hypothesis import given
from hypothesis import strategies as st

from banditads import logs, ope
from banditads.errors import Invalid, Misconfigured
from banditads.ope import Estimate, Rounds, clipped_ips, switch_dr

# The production prior of the policy `bts`, campaign `all`: conf/prior_bts.yaml of obp 0.4.1 (Apache-2.0).
ALPHA = """
47 8 62 142 3 14 7 857 12 15 6 100 48 23 71 61 13 16 518 30 7 4 23 8 10 11 11 18 121 11 11 10 14 9 204 58 3
19 42 1013 2 328 15 31 14 138 45 55 23 38 10 401 52 6 3 6 5 32 35 133 52 820 43 195 8 42 40 4 32 30 9 22 6
23 5 54 8 22 65 246
"""
BETA = """
12198 3566 15993 35522 2367 4609 3171 181745 4372 4951 3100 24665 13210 7061 18061 17449 5644 6787 111326
8776 3334 2271 7389 2659 3665 4724 3561 5085 27407 4601 4756 4120 4736 3788 45292 14719 2189 5589 11995
222255 2308 70034 4801 8274 5421 31912 12213 13576 6230 10382 4141 85731 12811 2707 2250 2668 2886 9581 9465
28336 12062 162793 12107 41240 3162 11604 10818 2923 8897 8654 4000 6580 3174 6766 2602 14506 3968 7523
16532 51964
"""


LOGGING = np.array([[0.7, 0.3], [0.4, 0.6]])  # probability of each arm, for two kinds of visitors
TARGET = np.array([[0.2, 0.8], [0.5, 0.5]])
MEANS = np.array([[0.2, 0.6], [0.5, 0.3]])  # what they earn
TRUTH = float((TARGET * MEANS).sum(1).mean())


def world(seed, n, model=MEANS):
    """Rounds of one policy, judged for another; of replay, those that matched and were kept."""
    rng = np.random.default_rng(seed)
    kind = rng.integers(2, size=n)
    arm = (rng.random(n) < LOGGING[kind, 1]).astype(int)
    logged, target = LOGGING[kind, arm], TARGET[kind, arm]
    drawn = rng.random(n) < TARGET[kind, 1]
    return Rounds(
        rng.random(n) < MEANS[kind, arm],
        logged,
        target,
        estimated_shown=model[kind, arm],
        estimated_target=(TARGET * model).sum(1)[kind],
        matched=(drawn == arm) & (rng.random(n) < LOGGING.min() / logged),
        possible=(TARGET / LOGGING).max(1)[kind],
    )


def rounds_of(reward, logged, target):
    """Rounds of which a model knew what they would earn."""
    return Rounds(reward, logged, target, estimated_shown=reward, estimated_target=reward)


@pytest.mark.parametrize("name", ope.names())
def test_finds_the_true_value(name):
    answer = ope.estimate(name, world(0, 20_000))

    assert answer.value == pytest.approx(TRUTH, abs=0.02)
    if name != "dm":
        assert answer.low < TRUTH < answer.high
        assert answer.high - answer.low < 0.06


@pytest.mark.parametrize("name", set(ope.names()) - {"dm"})
def test_intervals_hold_the_truth_19_times_in_20(name):
    held = 0
    for seed in range(1000):
        answer = ope.estimate(name, world(seed, 500))
        held += answer.low <= TRUTH <= answer.high

    assert 0.93 <= held / 1000 <= 0.97


@pytest.mark.parametrize("name", ["dr", "sndr", "switch_dr"])
def test_what_is_doubly_robust_survives_a_bad_model_and_the_direct_method_does_not(name):
    bad = np.array([[0.9, 0.1], [0.0, 1.0]])
    answer = ope.estimate(name, world(1, 20_000, bad))

    assert answer.low < TRUTH < answer.high
    assert abs(ope.estimate("dm", world(1, 20_000, bad)).value - TRUTH) > 0.05


def test_a_good_model_makes_intervals_narrower():
    def width(name):
        answer = ope.estimate(name, world(2, 5000))
        return answer.high - answer.low

    assert width("dr") < width("ips") * 0.9
    assert width("sndr") < width("ips") * 0.9


def test_the_direct_method_has_no_interval():
    assert ope.estimate("dm", world(3, 1000)).low is None
    assert ope.estimate("dm", world(3, 1000)).high is None


def test_large_weights_are_cut_at_the_square_root_of_how_many_rounds_there_are():
    n = 400
    rounds = Rounds(
        np.ones(n),
        [0.01] * 10 + [1.0] * (n - 10),
        np.ones(n),
        estimated_shown=np.full(n, 0.5),
        estimated_target=np.full(n, 0.5),
    )

    assert ope.estimate("ips", rounds).value == pytest.approx((10 * 100 + 390) / n)
    assert ope.estimate("clipped_ips", rounds).value == pytest.approx((10 * 20 + 390) / n)
    assert ope.estimate("switch_dr", rounds).value == pytest.approx(0.5 + 0.5 * 390 / n)


@pytest.mark.parametrize("name", ["dm", "dr", "sndr", "switch_dr"])
def test_an_estimator_that_wants_a_model_says_so(name):
    with pytest.raises(Invalid, match="wants what a model expects"):
        ope.estimate(name, Rounds([1], [0.5], [0.5]))


def test_agrees_with_obp_on_the_same_inputs():
    mu, pi, model, arm, reward = make.columns()  # how the figures were made stands there
    row = np.arange(len(reward))
    rounds = Rounds(
        reward,
        mu[row, arm],
        pi[row, arm],
        estimated_shown=model[row, arm],
        estimated_target=(pi * model).sum(1),
    )
    certain = Rounds(reward, mu[row, arm], arm == pi.argmax(1))
    found = {name: ope.estimate(name, rounds).value for name in ope.names()} | {
        "replay": ope.estimate("replay", certain).value,
        "clipped_ips": clipped_ips.scores(rounds, make.LIMIT).mean(),
        "switch_dr": switch_dr.scores(rounds, make.LIMIT).mean(),
    }

    assert found == pytest.approx(json.loads(make.FIGURES.read_text()), abs=1e-9)
    assert len({round(value, 6) for value in found.values()}) == len(ope.names())


def test_an_interval_that_may_be_looked_at_any_time_holds_the_truth_at_all_times():
    looks = np.unique(np.geomspace(20, 2000, 15).astype(int))
    anytime, normal = 0, 0
    for seed in range(400):
        rounds = world(seed, 2000)
        missed = np.zeros(2, bool)
        for n in looks:
            first = rounds.first(n)
            answers = ope.anytime(first), ope.estimate("ips", first)
            missed |= [not each.low <= TRUTH <= each.high for each in answers]
        anytime, normal = anytime + missed[0], normal + missed[1]

    assert anytime / 400 < 0.05
    assert normal / 400 > 0.15


def test_it_costs_less_than_twice_the_width():
    rounds = world(4, 50_000)
    any_time, once = ope.anytime(rounds), ope.estimate("ips", rounds)

    assert any_time.value == once.value
    assert any_time.high - any_time.low < 2 * (once.high - once.low)


def test_it_holds_in_the_unit_of_the_rewards_and_only_within_their_range():
    rounds = world(5, 1000)
    money = Rounds(rounds.reward * 30 - 10, rounds.logged, rounds.target, possible=rounds.possible)
    plain, paid = ope.anytime(rounds), ope.anytime(money, -10, 20)

    assert paid.low == pytest.approx(plain.low * 30 - 10)
    assert paid.high == pytest.approx(plain.high * 30 - 10)
    with pytest.raises(Invalid, match="must lie in"):
        ope.anytime(money)


def test_it_is_wide_and_not_wrong_where_the_log_lacks_what_the_policy_shows():
    # Half of what the policy shows earns 1 and is never in the log, the other half .2: its value is .6.
    rng = np.random.default_rng(6)
    rounds = Rounds(rng.random(5000) < 0.2, np.ones(5000), np.full(5000, 0.5), possible=np.full(5000, np.inf))

    assert ope.anytime(rounds).low <= 0.6 <= ope.anytime(rounds).high
    assert ope.estimate("ips", rounds).high < 0.6


def test_reproduces_the_published_value_of_bts_on_the_random_log():
    # https://zr-obp.readthedocs.io/en/latest/quickstart.html prints 1.198126...; all digits from obp 0.4.1:
    # BernoulliTS(n_actions=80, len_list=3, is_zozotown_prior=True, campaign="all", random_state=12345)
    # .compute_batch_action_dist(n_sim=100000), then the two estimators as above. Here is the same simulation.
    alpha, beta = (np.array(numbers.split(), float) for numbers in (ALPHA, BETA))
    draws = np.random.RandomState(12345).beta(alpha, beta, (100_000, 80))  # obp's stream of numbers
    top = np.argpartition(draws, -3)[:, -3:]
    order = np.take_along_axis(draws, top, 1).argsort(1)[:, ::-1]
    shown = np.take_along_axis(top, order, 1)  # (100000, 3), the best three, the best first
    target = np.stack([np.bincount(shown[:, place], minlength=80) for place in range(3)]) / 100_000
    log = list(logs.read("random/all"))
    rounds = Rounds(
        [each.reward for each in log],
        [each.choice.probability for each in log],
        [target[int(each.choice.context["position"]) - 1, each.choice.pick] for each in log],
    )

    ips, snips = ope.estimate("ips", rounds), ope.estimate("snips", rounds)
    assert ips.value / rounds.reward.mean() == pytest.approx(1.1981263157894735, abs=1e-9)
    assert snips.value == pytest.approx(0.0047758330812309535, abs=1e-9)


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(1e-6, 1), st.floats(0, 1)), min_size=1))
def test_snips_stays_among_the_rewards_and_the_sample_size_between_1_and_n(rows):
    rounds = Rounds(*zip(*rows, strict=True))
    value = ope.estimate("snips", rounds).value
    if value is None:
        assert not rounds.weight.any()
    else:
        assert min(rounds.reward) - 1e-9 <= value <= max(rounds.reward) + 1e-9
        assert 1 - 1e-9 <= ope.effective_sample_size(rounds) <= len(rows) + 1e-9


@pytest.mark.parametrize("name", ope.names())
def test_judging_the_logging_policy_itself_gives_the_average_reward(name):
    same = [0.5, 0.1, 0.2, 0.9, 1.0]
    reward = [1, 0, 0, 1, 1]
    rounds = Rounds(
        reward, same, same, estimated_shown=reward, estimated_target=reward, matched=np.ones(5, bool)
    )

    assert ope.estimate(name, rounds).value == pytest.approx(0.6, abs=1e-12)


def test_effective_sample_size_and_largest_weight():
    rounds = Rounds([0, 0, 0], [0.5, 0.5, 0.1], [0.5, 0.25, 0.4])  # weights 1, 0.5, 4

    assert ope.effective_sample_size(rounds) == pytest.approx(5.5**2 / 17.25)
    assert ope.largest_weight(rounds) == 4


def test_enough_is_a_hundred_effective_rounds_and_ten_outcomes():
    def rounds(n, rewarded, last=1.0):
        return Rounds(np.arange(n) < rewarded, [*np.ones(n - 1), last], np.ones(n))

    assert ope.enough(rounds(100, 10))
    assert ope.enough(rounds(100, 90))
    assert not ope.enough(rounds(99, 50))
    assert not ope.enough(rounds(101, 50, last=0.001))
    assert not ope.enough(rounds(1000, 9))
    assert not ope.enough(rounds(1000, 991))


def test_rare_rewards_are_not_enough_where_intervals_would_fail():
    held, believed = 0, 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        ad = rng.integers(46, size=10_000)
        target = np.where(ad == 0, 0.95, 0) + 0.05 / 46
        rounds = Rounds(rng.random(10_000) < 0.004, np.full(10_000, 1 / 46), target)
        answer = ope.estimate("snips", rounds)
        held += answer.low <= 0.004 <= answer.high
        believed += ope.enough(rounds)

    assert ope.effective_sample_size(rounds) > 200
    assert held < 150
    assert believed == 0


def test_weights_that_do_not_average_one_are_not_believed():
    assert ope.covered(Rounds(np.ones(200), np.ones(200), np.ones(200)))
    assert not ope.covered(Rounds(np.ones(200), np.ones(200), np.full(200, 0.9)))
    assert not ope.enough(Rounds(np.ones(200), np.ones(200), np.full(200, 0.9)))


@pytest.mark.parametrize("name", ope.names())
def test_what_rounds_cannot_tell_is_none(name):
    nothing = Estimate(None, None, None)
    assert ope.estimate(name, rounds_of([], [], [])) == nothing
    assert ope.estimate(name, rounds_of([1, 1], [0.5, 0.5], [0, 0])) == nothing
    if name == "replay":  # nothing of these is sure to be shown
        assert ope.estimate(name, rounds_of([1], [0.5], [0.5])) == nothing
    else:
        assert ope.estimate(name, rounds_of([1], [0.5], [0.5])) == Estimate(1, None, None)
        assert ope.estimate(name, rounds_of([0, 0], [0.5, 0.5], [0.5, 0.1])) == Estimate(0, None, None)
    assert ope.anytime(Rounds([], [], [])) == nothing
    assert ope.effective_sample_size(Rounds([], [], [])) == ope.largest_weight(Rounds([], [], [])) == 0


@pytest.mark.parametrize(
    "columns",
    [
        ([1], [0.5, 0.5], [0.5]),
        ([[1]], [[0.5]], [[0.5]]),
        ([1], [0.0], [0.5]),
        ([1], [1.5], [0.5]),
        ([1], [float("nan")], [0.5]),
        ([float("inf")], [0.5], [0.5]),
        ([1], [0.5], [-0.1]),
        ([1], [0.5], [float("nan")]),
    ],
)
def test_columns_that_cannot_be_are_refused(columns):
    with pytest.raises(Invalid):
        Rounds(*columns)


@pytest.mark.parametrize(
    "more",
    [
        {"estimated_shown": [0.5], "estimated_target": [0.5]},
        {"estimated_shown": [0.5, float("nan")], "estimated_target": [0.5, 0.5]},
        {"matched": [True]},
        {"possible": [1]},
        {"possible": [0.5, 1]},
        {"possible": [float("nan"), 1]},
    ],
)
def test_further_columns_that_cannot_be_are_refused(more):
    with pytest.raises(Invalid):
        Rounds([0, 1], [0.5, 0.5], [0.5, 0.5], **more)


def test_an_unknown_estimator_is_refused():
    with pytest.raises(Misconfigured, match="ips, replay, sndr, snips"):
        ope.estimate("magic", Rounds([1], [1], [1]))
