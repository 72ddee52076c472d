"""What a choice is expected to earn is learned from the rounds before it, and from no other."""

import numpy as np
import pytest

from banditads.events import Ad
from banditads.reward_model import RewardModel

ADS = (Ad("boots", {"kind": "shoe", "price": 80.0}), Ad("hats", {"kind": "hat", "price": 20.0}), Ad("tea"))
MEANS = {"cold": np.array([0.7, 0.3, 0.5]), "warm": np.array([0.1, 0.5, 0.2])}


def trained(n, seed=0):
    rng, model = np.random.default_rng(seed), RewardModel()
    for site, pick in zip(rng.choice(list(MEANS), n), rng.integers(3, size=n), strict=True):
        model.asked_and_told({"site": str(site)}, ADS, int(pick), float(rng.random() < MEANS[site][pick]))
    return model


def test_it_finds_who_likes_what():
    model = trained(6000)

    for site, means in MEANS.items():
        assert model.asked_and_told({"site": site}, ADS, 0, 0.0) == pytest.approx(means, abs=0.1)


def test_it_does_not_know_the_rewards_own_round():
    for reward in (0.0, 1.0):
        told = trained(100).asked_and_told({"site": "cold"}, ADS, 1, reward)
        assert told.tolist() == trained(100).asked_and_told({"site": "cold"}, ADS, 2, 0.5).tolist()


def test_the_same_rounds_give_the_same_bits():
    first, second = trained(300), trained(300)

    assert first.weights.tobytes() == second.weights.tobytes()
    assert first.weights.any()


def test_rare_rewards_are_soon_expected_to_be_rare():
    model = RewardModel()
    for number in range(500):
        expected = model.asked_and_told({"site": "cold"}, ADS, number % 3, float(number % 100 == 0))

    assert 0.001 < expected.mean() < 0.03


def test_an_ad_that_was_never_shown_is_expected_to_be_like_those_of_its_kind():
    model, ads = trained(6000), (Ad("sandals", {"kind": "shoe", "price": 80.0}), Ad("caps", {"kind": "hat"}))

    cold, warm = (model.asked_and_told({"site": site}, ads, 0, 0.5) for site in MEANS)
    assert cold[0] > cold[1] + 0.1
    assert warm[0] < warm[1] - 0.1


def test_numbers_however_large_leave_it_finite():
    model, ads = RewardModel(), (Ad("a", {"price": 1e6}), Ad("b", {"price": -1e6}))
    for number in range(300):
        expected = model.asked_and_told({"age": 1e6}, ads, number % 2, float(number % 2))

    assert np.isfinite(expected).all()
    assert expected[0] < 0.2
    assert expected[1] > 0.8
