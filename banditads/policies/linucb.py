"""LinUCB with disjoint arms: the ad whose reward for this visitor may still be the highest is shown.

Each ad has its own ridge regression on the visitor's features, River's Bayesian one, which knows how sure it
is. River's `LinUCBDisjoint` keeps the same regressions but is not used: it picks instead of spreading
probability, and makes an arm when asked about one. Its bound also counts the noise of a single reward,
which is the same for all ads and dwarfs what tells them apart: here it is taken off again.

Optimism alone repeats one ad until the first feedback comes. `epsilon` keeps some choices random, which also
makes the log usable for judging other policies; the regret bound is lost for that share.

Source: Li, Chu, Langford, Schapire 2010 (arXiv:1003.0146, algorithm 1). Their context is numeric and given;
here it is hashed into `dim` numbers and scaled to length 1, as their analysis asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import asinh, sqrt
from typing import Any

import numpy as np
from river import linear_model, preprocessing

from ..events import Ad, Features, Saved
from ..features import tokens
from . import Floats, check_ranges

LIBRARIES = ("river", "numpy")
EXAMPLES: tuple[dict[str, Any], ...] = (
    {"width": 1.0, "ridge": 0.1, "epsilon": 0.0},
    {"dim": 8, "seed": 7, "epsilon": 0.3},
    {"max_arms": 50},
)


class Policy:
    """LinUCB, disjoint.

    Parameters
    ----------
    width
        Standard deviations above its estimate at which an ad is judged ("alpha" in the paper), in [0, 100].
    ridge
        Strength of the pull of all weights towards 0, in rewards, in (0, 1e6].
    epsilon
        Share of choices spread evenly over all ads, in [0, 1].
    dim
        Numbers that a context is hashed into, and one for the constant, 2 to 512. Time and memory grow with
        its square: an ad takes 16 KB with 32.
    seed
        Of the hash function, 0 to 2 ** 32 - 1.
    max_arms
        Ads that are remembered; beyond, the one that learned longest ago is forgotten.

    >>> policy, ads = Policy(width=0.1, epsilon=0.1), [Ad("shoes"), Ad("hats")]
    >>> for reward, pick in ((1.0, 1), (0.0, 0)):
    ...     policy.learn({"device": "mobile"}, ads, pick=pick, reward=reward, propensity=0.5)
    >>> policy.pmf({"device": "mobile"}, ads)
    array([0.05, 0.95])
    """

    def __init__(
        self,
        *,
        width: float = 0.2,
        ridge: float = 1.0,
        epsilon: float = 0.05,
        dim: int = 32,
        seed: int = 0,
        max_arms: int = 2000,
    ) -> None:
        check_ranges(
            ("width", width, 0.0, 100.0),
            ("ridge", ridge, 1e-6, 1e6),
            ("epsilon", epsilon, 0.0, 1.0),
            ("dim", dim, 2, 512),
            ("seed", seed, 0, 2**32 - 1),
            ("max_arms", max_arms, 1, 10**6),
        )
        self.width, self.ridge, self.epsilon = width, ridge, epsilon
        self.dim, self.max_arms = dim, max_arms
        self.hasher: Any = preprocessing.FeatureHasher(n_features=dim - 1, seed=seed)
        self.arms: dict[str, Any] = {}  # ad id -> its regression; learned longest ago first

    def pmf(self, context: Features, ads: Sequence[Ad]) -> Floats:
        """The ads with the highest bound, and `epsilon` for all, shape (n_ads,)."""
        x, new = self._vector(context), self._arm()
        bounds = np.array([self._bound(self.arms.get(ad.id, new), x) for ad in ads])  # (n_ads,)
        best = bounds == bounds.max()
        return (1 - self.epsilon) * best / best.sum() + self.epsilon / len(ads)

    def learn(
        self, context: Features, ads: Sequence[Ad], pick: int, reward: float, propensity: float
    ) -> None:
        """One step of the regression of the ad that was picked."""
        name = ads[pick].id
        arm = self.arms.pop(name, None) or self._arm()
        arm.learn_one(self._vector(context), reward)
        self.arms[name] = arm
        if len(self.arms) > self.max_arms:
            del self.arms[next(iter(self.arms))]

    def expected(self, context: Features, ads: Sequence[Ad], pick: int) -> float | None:
        """The mean of the ad's regression, within the range of rewards."""
        arm = self.arms.get(ads[pick].id) or self._arm()
        return float(min(1.0, max(0.0, arm.predict_one(self._vector(context)))))

    def dump(self) -> Saved:
        """Ad id, features by place, precision, covariance and natural mean of each arm."""
        return [
            [
                name,
                list(arm._idx),
                arm._ss_arr.tobytes(),
                arm._ss_inv_arr.tobytes("F"),
                arm._eta_arr.tobytes(),
            ]
            for name, arm in self.arms.items()
        ]

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`."""
        self.arms = {}
        for name, features, precision, covariance, mean in saved:
            arm = self.arms[name] = self._arm()
            arm._idx = {feature: place for place, feature in enumerate(features)}
            arm._eta_arr = np.frombuffer(mean).copy()  # (capacity,)
            arm._cap = len(arm._eta_arr)
            shape = arm._cap, arm._cap
            arm._ss_arr = np.frombuffer(precision).reshape(shape).copy()
            arm._ss_inv_arr = np.frombuffer(covariance).reshape(shape, order="F").copy("F")
            arm._m_dirty = True  # River computes the posterior mean from the above when it is next asked

    def describe(self) -> dict[str, Any]:
        """The options, and how many ads are remembered."""
        return {
            "width": self.width,
            "ridge": self.ridge,
            "epsilon": self.epsilon,
            "dim": self.dim,
            "max_arms": self.max_arms,
            "arms": len(self.arms),
        }

    def _arm(self) -> Any:
        return linear_model.BayesianLinearRegression(alpha=self.ridge, beta=1.0)

    def _bound(self, arm: Any, x: dict[int, float]) -> float:
        reward = arm.predict_one(x, with_dist=True)
        return reward.mu + self.width * sqrt(max(reward.sigma**2 - 1.0, 0.0))  # 1: the noise of one reward

    def _vector(self, context: Features) -> dict[int, float]:
        """The context as a vector of length 1: bucket -> value. Numbers beyond 1 are compressed."""
        x = self.hasher.transform_one(
            {name: value if "=" in name else asinh(value) for name, value in tokens(context)}
        )
        x[self.dim - 1] = 1.0  # the constant
        length = sqrt(sum(value * value for value in x.values()))
        return {bucket: value / length for bucket, value in x.items()}
