"""Logistic regression on visitor x ad features: the probability of a reward, and a rule to explore by.

River does the steps: numbers are standardised (`StandardScaler`), names are hashed (`FeatureHasher`), every
feature of the visitor is crossed with every one of the ad, and `LogisticRegression` learns the crosses. A
missing number is imputed as its mean, which standardised is 0 and so is left out; that it is missing is a
feature itself. Weights belong to features, not to ads: a new ad starts with what is known of similar ones.

Propensities are not used: every gradient is bounded, and no single reward can ruin the model.

Sources: McMahan et al. 2013 (KDD, prediction of clicks on ads); Duchi, Hazan, Singer 2011 (AdaGrad); for
"squarecb" Foster, Rakhlin 2020 (arXiv:2002.04926), whose bound asks for a model of least squares, not of log
loss as here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from math import asinh, log, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from river import linear_model, optim, preprocessing, utils

from ..errors import Misconfigured
from ..events import Ad, Features, Saved
from ..features import tokens
from . import Floats, check_ranges

LIBRARIES = ("river", "numpy")
EXAMPLES: tuple[dict[str, Any], ...] = (
    {"exploration": "epsilon", "epsilon": 0.2, "prior": 0.3},
    {"exploration": "softmax", "lambda_": 20.0, "kept_ads": 2},
    {"exploration": "squarecb", "gamma_scale": 10.0, "bits": 10, "seed": 3, "learning_rate": 0.5},
)

EXPLORATIONS = ("squarecb", "epsilon", "softmax")
FAR = 5.0  # standard deviations: a number further off its mean counts as this far
PLACES = 2**16  # means and variances that are kept; numbers whose names meet in one place share them
MIX, SPREAD = np.uint64(0xD6E8FEB86659FD93), np.uint64(0x9E3779B97F4A7C15)  # odd, with random-looking bits


class Hashed(NamedTuple):
    """Features with their names hashed: what stays the same while scales change."""

    hashes: NDArray[np.uint64]  # (n,): the constant, the names, the numbers
    ones: int  # how many of them are always 1
    numbers: dict[int, float]  # hash -> value, compressed but not scaled


class Policy:
    """Logistic regression with an exploration rule.

    Parameters
    ----------
    exploration
        "squarecb": the further an ad's estimate is behind the best, the less. "epsilon": now and then any
        ad. "softmax": in proportion to exp(lambda x estimate).
    epsilon
        Share of choices that "epsilon" spreads evenly, in [0, 1].
    gamma_scale
        How greedy "squarecb" is; grows with the square root of the number of rewards by itself.
    lambda_
        How greedy "softmax" is, per unit of reward.
    learning_rate
        First step of every weight; the steps shrink with use.
    prior
        Reward that is expected before anything is learned, in (0, 1).
    bits
        The model has at most 2 ** bits weights.
    seed
        Of the hash function, 0 to 2 ** 32 - 2.
    kept_ads
        Ads whose hashes are kept, about 1 KB each.

    >>> policy, ads = Policy(exploration="epsilon", epsilon=0.1), [Ad("shoes"), Ad("hats")]
    >>> policy.learn({"device": "mobile"}, ads, pick=1, reward=1.0, propensity=0.5)
    >>> policy.pmf({"device": "mobile"}, ads)
    array([0.05, 0.95])
    """

    def __init__(
        self,
        *,
        exploration: str = "squarecb",
        epsilon: float = 0.05,
        gamma_scale: float = 200.0,
        lambda_: float = 50.0,
        learning_rate: float = 0.2,
        prior: float = 0.05,
        bits: int = 18,
        seed: int = 0,
        kept_ads: int = 10_000,
    ) -> None:
        check_ranges(
            ("epsilon", epsilon, 0.0, 1.0),
            ("gamma_scale", gamma_scale, 1e-3, 1e6),
            ("lambda_", lambda_, 0.0, 1e3),
            ("learning_rate", learning_rate, 1e-6, 10.0),
            ("prior", prior, 1e-6, 1 - 1e-6),
            ("bits", bits, 8, 26),
            ("seed", seed, 0, 2**32 - 2),
            ("kept_ads", kept_ads, 1, 10**6),
        )
        if exploration not in EXPLORATIONS:
            raise Misconfigured(f"option exploration must be one of {EXPLORATIONS}, not {exploration!r}")
        self.exploration, self.epsilon = exploration, epsilon
        self.gamma_scale, self.lambda_ = gamma_scale, lambda_
        self.bits, self.kept_ads = bits, kept_ads
        # Two seeds: a visitor's number and an ad's of the same name are different things.
        self.of_visitor, self.of_ad = (
            preprocessing.FeatureHasher(n_features=2**31 - 1, seed=seed + side, alternate_sign=False)
            for side in (0, 1)
        )
        self.scaler: Any = preprocessing.StandardScaler()
        self.model: Any = linear_model.LogisticRegression(
            optim.AdaGrad(learning_rate), intercept_init=log(prior / (1 - prior)), intercept_lr=0.0
        )
        self.learned = 0  # rewards
        self._ads: OrderedDict[str, tuple[Ad, Hashed]] = OrderedDict()  # by id; least recently used first

    def pmf(self, context: Features, ads: Sequence[Ad]) -> Floats:
        """The exploration rule on the estimates of the model, shape (n_ads,)."""
        visitor = self._hashed(self.of_visitor, tokens(context))
        crosses = self._crosses(visitor, [self._kept(ad) for ad in ads])
        estimates = np.array([self.model.predict_proba_one(x)[True] for x in crosses])  # (n_ads,)
        behind = estimates.max() - estimates
        best = behind == 0
        match self.exploration:
            case "epsilon":
                return (1 - self.epsilon) * best / best.sum() + self.epsilon / len(ads)
            case "softmax":
                pmf = np.exp(-self.lambda_ * behind)
            case _:
                pmf = 1 / (len(ads) + self.gamma_scale * sqrt(self.learned) * behind)
                pmf += best * (1 - pmf.sum()) / best.sum()
        return pmf / pmf.sum()

    def learn(
        self, context: Features, ads: Sequence[Ad], pick: int, reward: float, propensity: float
    ) -> None:
        """A step towards 1 with the weight of the reward, and one towards 0 with the rest."""
        visitor, ad = self._hashed(self.of_visitor, tokens(context)), self._kept(ads[pick])
        for numbers in (visitor.numbers, ad.numbers):
            self.scaler.learn_one({h % PLACES: value for h, value in numbers.items()})
        (x,) = self._crosses(visitor, [ad])
        if reward > 0:
            self.model.learn_one(x, True, w=reward)
        if reward < 1:
            self.model.learn_one(x, False, w=1 - reward)
        self.learned += 1

    def expected(self, context: Features, ads: Sequence[Ad], pick: int) -> float | None:
        """The estimate of the model."""
        visitor = self._hashed(self.of_visitor, tokens(context))
        (x,) = self._crosses(visitor, [self._kept(ads[pick])])
        return float(self.model.predict_proba_one(x)[True])

    def dump(self) -> Saved:
        """How much was learned; key, weight and squared gradients of each cross; scales of numbers."""
        weights, squares = self.model.weights, self.model.optimizer.g2
        counts, means, variances = self.scaler.counts, self.scaler.means, self.scaler.vars
        return [
            [self.learned, self.model.optimizer.n_iterations],
            [
                np.fromiter(weights, np.int64).tobytes(),
                np.fromiter(weights.values(), float).tobytes(),
                np.array([squares[key] for key in weights], float).tobytes(),
            ],
            [[place, counts[place], means[place], variances[place]] for place in counts],
        ]

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`."""
        (self.learned, self.model.optimizer.n_iterations), (keys, weights, squares), scales = saved
        places = np.frombuffer(keys, np.int64).tolist()
        self.model._weights = utils.VectorDict(
            dict(zip(places, np.frombuffer(weights).tolist(), strict=True))
        )
        self.model.optimizer.g2.clear()
        self.model.optimizer.g2.update(zip(places, np.frombuffer(squares).tolist(), strict=True))
        self.scaler = preprocessing.StandardScaler()
        for place, count, mean, variance in scales:
            self.scaler.counts[place] = count
            self.scaler.means[place], self.scaler.vars[place] = mean, variance

    def describe(self) -> dict[str, Any]:
        """The options, and how much was learned."""
        return {
            "exploration": self.exploration,
            "epsilon": self.epsilon,
            "gamma_scale": self.gamma_scale,
            "lambda_": self.lambda_,
            "learning_rate": self.model.optimizer.learning_rate,
            "bits": self.bits,
            "learned": self.learned,
            "weights": len(self.model._weights),
            "kept_ads": len(self._ads),
        }

    def _kept(self, ad: Ad) -> Hashed:
        kept = self._ads.get(ad.id)
        if kept is None or (kept[0] is not ad and kept[0].features != ad.features):
            # No feature can be called "=...": names are not empty, and `tokens` escapes what they contain.
            kept = self._ads[ad.id] = ad, self._hashed(self.of_ad, [("=" + ad.id, 1.0), *tokens(ad.features)])
            if len(self._ads) > self.kept_ads:
                self._ads.popitem(last=False)
        self._ads.move_to_end(ad.id)
        return kept[1]

    def _hashed(self, hasher: Any, features: Iterable[tuple[str, float]]) -> Hashed:
        # A number is two features: that it is there, and how far it is from its mean. Compressed, one 1e6
        # among ages does not make all ages look alike. No category is called "name=": values are not empty.
        names, numbers = {}, {}
        for name, value in features:
            names[name] = 1.0
            if "=" not in name:
                numbers[name + "="] = asinh(value)
        names, numbers = hasher.transform_one(names), hasher.transform_one(numbers)
        return Hashed(np.array([0, *names, *numbers], np.uint64), 1 + len(names), numbers)

    def _values(self, hashed: Hashed) -> list[float]:
        """1 for the constant and the names, then the numbers standardised."""
        # The scaler makes up what it is asked for: it is asked only for what it knows.
        known = {h % PLACES: value for h, value in hashed.numbers.items() if h % PLACES in self.scaler.counts}
        scaled = self.scaler.transform_one(known)
        return [1.0] * hashed.ones + [
            max(-FAR, min(FAR, scaled.get(h % PLACES, 0.0))) for h in hashed.numbers
        ]

    def _crosses(self, visitor: Hashed, ads: Sequence[Hashed]) -> Iterable[dict[int, float]]:
        """For each ad all products of a feature of the visitor with one of the ad: key -> value."""
        row = np.array(self._values(visitor))  # (n_visitor,)
        column = np.array([value for ad in ads for value in self._values(ad)])  # (n_tokens of all ads,)
        hashes = np.concatenate([ad.hashes for ad in ads])
        keys = (hashes[:, None] + visitor.hashes * MIX) * SPREAD >> np.uint64(64 - self.bits)
        values = column[:, None] * row
        start = 0
        for ad in ads:
            end = start + len(ad.hashes)
            # Two crosses with one key: the last counts, once among 2 ** bits.
            yield dict(zip(keys[start:end].ravel().tolist(), values[start:end].ravel().tolist(), strict=True))
            start = end
