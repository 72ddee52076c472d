"""A bound that may be looked at after every round is wrong no more often than it says."""

import numpy as np
import pytest

from banditads.confidence import Tail

RUNS, ROUNDS, ALPHA = 1000, 1000, 0.1
LOOKS = np.unique(np.geomspace(5, ROUNDS, 12).astype(int))


def weighted_clicks(rng):
    """Seldom something, but then a lot: clicks of 10 %, weights of 10 in a tenth of the rounds."""
    shown = rng.random(ROUNDS) < 0.1
    return 10.0 * (shown & (rng.random(ROUNDS) < 0.1)), 0.0, np.full(ROUNDS, 0.1)


def moving(rng):
    """What is to be found changes all the time."""
    mean = 0.3 + 0.2 * np.sin(np.arange(ROUNDS) / 30)
    return (rng.random(ROUNDS) < mean).astype(float), 0.0, mean


def differences(rng):
    """Two policies that are worth the same, one with weights of up to 5: between -1 and 4."""
    shown = rng.random(ROUNDS) < 0.2
    return (5.0 * shown - 1) * (rng.random(ROUNDS) < 0.3), -1.0, np.zeros(ROUNDS)


def losses(rng):
    """Nothing, and now and then far less: what an upper bound is made of."""
    return -10.0 * (rng.random(ROUNDS) < 0.05), -10.0, np.full(ROUNDS, -0.5)


@pytest.mark.parametrize("world", [weighted_clicks, moving, differences, losses])
def test_the_bound_is_at_no_time_above_the_truth_but_as_seldom_as_it_says(world):
    wrong, wrong_once = 0, 0
    for seed in range(RUNS):
        numbers, least, means = world(np.random.default_rng(seed))
        truth = (means.cumsum() / np.arange(1, ROUNDS + 1))[LOOKS - 1]
        wrong += any(
            Tail.of(numbers[:n], least).bound(ALPHA) > mean for n, mean in zip(LOOKS, truth, strict=True)
        )
        means_so_far = np.array([numbers[:n].mean() for n in LOOKS])
        errors = np.array([numbers[:n].std(ddof=1) / n**0.5 for n in LOOKS])
        wrong_once += (means_so_far - 1.2816 * errors > truth).any()  # a normal bound, for the same alpha

    assert wrong / RUNS < ALPHA
    assert wrong_once / RUNS > 1.5 * ALPHA


@pytest.mark.parametrize("world", [weighted_clicks, moving, differences, losses])
def test_the_bound_comes_near(world):
    numbers, least, _ = world(np.random.default_rng(0))
    numbers = np.tile(numbers, 50)
    gap = numbers.mean() - Tail.of(numbers, least).bound(ALPHA)

    assert 0 < gap < 3 * 1.2816 * numbers.std() / numbers.size**0.5


def test_one_by_one_is_the_same_as_all_at_once():
    numbers, least, _ = differences(np.random.default_rng(1))
    tail = Tail()
    for number in numbers.tolist():
        tail.add(number, least)

    assert tail.bound(ALPHA) == pytest.approx(Tail.of(numbers, least).bound(ALPHA), abs=1e-12)
    assert tail.mean == pytest.approx(numbers.mean())
    assert tail.reach >= 1


def test_the_bound_solves_what_it_says_it_solves():
    numbers, least, _ = weighted_clicks(np.random.default_rng(2))
    tail = Tail.of(numbers, least)
    bets = 2.0 ** -np.arange(20)
    shares = 1 / np.arange(1, 21) / np.arange(2, 22)
    open_ = bets * tail.reach < 1
    bets, shares = bets[open_], shares[open_]
    price = (-np.log(1 - tail.reach * bets) - tail.reach * bets) / tail.reach**2 * tail.squares
    excess = tail.sum - tail.count * tail.bound(ALPHA)

    assert (shares * np.exp(bets * excess - price)).sum() == pytest.approx(1 / ALPHA, rel=1e-6)


def test_nothing_known_bounds_nothing():
    assert Tail().bound(ALPHA) == -np.inf
    assert Tail.of(np.empty(0), 0.0) == Tail()
    assert Tail.of(np.ones(9), -np.inf).bound(ALPHA) == -np.inf
    assert Tail.of(np.zeros(9), 0.0).bound(ALPHA) < 0
