"""Thompson sampling: every ad is shown as often as it is probable that it is the best one, for anybody.

Each ad has a Beta distribution over its reward, River's. The probability that an ad's draw would be the
largest is computed, not sampled, so the distribution is smooth, the same for the same state, and never rules
an ad out. It stays random where ads are close, and so copes with late feedback.

Sources: Thompson 1933; Chapelle, Li 2011 (NeurIPS, for display ads); Agrawal, Goyal 2012
(arXiv:1111.1797). The latter toss a coin for a reward between 0 and 1. Here it counts as that much success
and the rest as failure: the same expectation without dice, but their bound is proved for the coin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from river import proba
from scipy.special import betainc, betaincinv  # type: ignore[import-untyped]

from ..events import Ad, Features, Saved
from . import Floats, check_ranges

LIBRARIES = ("river", "numpy", "scipy")
EXAMPLES: tuple[dict[str, Any], ...] = (
    {"alpha": 0.5, "beta": 20.0},
    {"max_arms": 50},
)

TAIL = 1e-6  # probability that is given away at either end of the integral
COARSE, FINE = 32, 64  # cells of the integral; with 64, probabilities were within .001 of the truth


class Policy:
    """Thompson sampling with Beta distributions, whatever the context.

    Parameters
    ----------
    alpha, beta
        What is believed of an ad that was never shown: as if it had earned `alpha` and missed `beta`;
        each in [0.5, 1e6].
    max_arms
        Ads that are remembered; beyond, the one that learned longest ago is forgotten.

    >>> policy, ads = Policy(), [Ad("shoes"), Ad("hats")]
    >>> policy.learn({}, ads, pick=1, reward=1.0, propensity=0.5)
    >>> policy.pmf({}, ads).round(3)
    array([0.333, 0.667])
    """

    def __init__(self, *, alpha: float = 1.0, beta: float = 1.0, max_arms: int = 10_000) -> None:
        check_ranges(("alpha", alpha, 0.5, 1e6), ("beta", beta, 0.5, 1e6), ("max_arms", max_arms, 1, 10**7))
        self.alpha, self.beta, self.max_arms = float(alpha), float(beta), max_arms
        self.arms: dict[str, Any] = {}  # ad id -> proba.Beta; learned longest ago first

    def pmf(self, context: Features, ads: Sequence[Ad]) -> Floats:
        """Probability that each ad is the best, shape (n_ads,)."""
        new = self._arm()
        arms = [self.arms.get(ad.id, new) for ad in ads]
        return _best(np.array([[arm.alpha, arm.beta] for arm in arms]))

    def learn(
        self, context: Features, ads: Sequence[Ad], pick: int, reward: float, propensity: float
    ) -> None:
        """`reward` of a success, and the rest of a failure."""
        name = ads[pick].id
        arm = self.arms.pop(name, None) or self._arm()
        arm.alpha += reward  # `Beta.update` knows 0 and 1 only
        arm.beta += 1 - reward
        self.arms[name] = arm
        if len(self.arms) > self.max_arms:
            del self.arms[next(iter(self.arms))]

    def expected(self, context: Features, ads: Sequence[Ad], pick: int) -> float | None:
        """The mean of the ad's distribution."""
        arm = self.arms.get(ads[pick].id) or self._arm()
        return float(arm.alpha / (arm.alpha + arm.beta))

    def dump(self) -> Saved:
        """Ad id, alpha and beta of each ad, the one that learned longest ago first."""
        return [[name, arm.alpha, arm.beta] for name, arm in self.arms.items()]

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`."""
        self.arms = {}
        for name, alpha, beta in saved:
            self.arms[name] = arm = self._arm()
            arm.alpha, arm.beta = alpha, beta

    def describe(self) -> dict[str, Any]:
        """The options, and how many ads are remembered."""
        return {"alpha": self.alpha, "beta": self.beta, "max_arms": self.max_arms, "arms": len(self.arms)}

    def _arm(self) -> Any:
        beta: Any = proba.Beta  # annotated for integers, right for any number
        return beta(self.alpha, self.beta, seed=0)


def _best(arms: Floats) -> Floats:
    """Probability that each of independent Beta(alpha, beta) variables is the largest; (n, 2) -> (n,).

    With F_a their distribution functions and G the product of those, which is that of the largest, this is
    the integral of dG * (d ln F_a / d ln G). The fraction is taken as constant within a cell, which shares
    the cell's dG out completely: the sum is right on any grid. Cells of equal dG make the error small.
    """
    kinds, which, count = np.unique(arms, axis=0, return_inverse=True, return_counts=True)
    alpha, beta = kinds.T  # (n_kinds,) each: ads with the same numbers are computed once

    def log_f(x: Floats) -> Floats:  # (n_points, n_kinds)
        return np.log(np.maximum(betainc(alpha, beta, x[:, None]), 1e-300))

    ends = np.array([betaincinv(alpha, beta, p).max() for p in (TAIL, 1 - TAIL)]).clip(1e-12, 1 - 1e-12)
    low, high = (ends / (1 - ends)).tolist()
    odds = np.geomspace(low, high, COARSE + 1)
    x = odds / (1 + odds)  # fine near 0 and near 1
    g = np.exp(log_f(x) @ count)
    at = log_f(np.interp(np.linspace(g[0], g[-1], FINE + 1), g, x))
    log_g = at @ count
    fraction = np.diff(at, axis=0) / np.maximum(np.diff(log_g), 1e-300)[:, None]
    pmf = np.maximum(np.diff(np.exp(log_g)) @ fraction, 0.0)  # rounding may leave -1e-17
    return (pmf / (pmf @ count))[which]
