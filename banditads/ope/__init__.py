"""Off-policy evaluation: what another policy would have earned on a log, one estimator a file.

The file name is the name. An estimator is a formula `scores(rounds) -> (n,)` whose mean is the estimate; the
interval, and the test whether there is enough to say anything, are worked out here, once, for all of them.
Everything rests on the logged propensities: they must be the true ones.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache, cached_property
from typing import TypeAlias

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import Invalid, Misconfigured

Floats: TypeAlias = NDArray[np.float64]

# Below these a normal interval promises more than it keeps. With 0.4 % clicks, 10,000 uniform rounds over 46
# ads and a target that nearly always shows one of them (ESS 240, 1 outcome), 58 % of them hold the truth.
ENOUGH = 100  # effective rounds
OUTCOMES = 10  # of them with another reward than the usual one


class Rounds:
    """n finished interactions as columns.

    Attributes
    ----------
    reward : array, shape (n,)
        What was earned.
    logged : array, shape (n,)
        Probability that the server gave the ad it showed, in (0, 1].
    target : array, shape (n,)
        Probability that the policy being judged gives that same ad.

    Raises `errors.Invalid` for columns that cannot be these.
    """

    def __init__(self, reward: ArrayLike, logged: ArrayLike, target: ArrayLike) -> None:
        self.reward, self.logged, self.target = (np.asarray(x, np.float64) for x in (reward, logged, target))
        if not self.reward.shape == self.logged.shape == self.target.shape == (self.reward.size,):
            raise Invalid("reward, logged and target must be columns of one length")
        if not np.isfinite(self.reward).all():
            raise Invalid("must be finite numbers", "reward")
        if not ((self.logged > 0) & (self.logged <= 1)).all():
            raise Invalid("a probability of what was shown lies in (0, 1]", "logged")
        if not ((self.target >= 0) & np.isfinite(self.target)).all():
            raise Invalid("a probability is not negative", "target")

    @cached_property
    def weight(self) -> Floats:
        """Importance weights, shape (n,)."""
        return self.target / self.logged

    def first(self, n: int) -> Rounds:
        """The first n of them."""
        return Rounds(self.reward[:n], self.logged[:n], self.target[:n])


class Estimate(msgspec.Struct, frozen=True):
    """A value and its 95 % interval, each None where the rounds cannot tell."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


def names() -> list[str]:
    """All estimators there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def estimate(name: str, rounds: Rounds) -> Estimate:
    """What the target policy earns per round. Weights that are all zero tell nothing, and neither does n = 0.

    >>> estimate("ips", Rounds(reward=[1, 0], logged=[0.5, 0.5], target=[0.5, 0.5])).value
    0.5
    """
    formula = _formula(name)
    return average(formula(rounds)) if rounds.weight.any() else Estimate()


@cache
def _formula(name: str) -> Callable[[Rounds], Floats]:
    if name not in names():
        raise Misconfigured(f"there is no estimator {name!r}; there are: {', '.join(names())}")
    scores: Callable[[Rounds], Floats] = importlib.import_module(f"{__name__}.{name}").scores
    return scores


def average(scores: Floats) -> Estimate:
    """Mean and 95 % normal interval of scores, shape (n,). Scores without any spread have no interval.

    >>> average(np.ones(9))
    Estimate(value=1.0, low=None, high=None)
    """
    if not scores.size:
        return Estimate()
    value = float(scores.mean())
    if (scores == scores[0]).all():
        return Estimate(value)
    half = 1.96 * float(scores.std(ddof=1)) / scores.size**0.5
    return Estimate(value, value - half, value + half)


def effective_sample_size(rounds: Rounds) -> float:
    """How many rounds of the target policy's own these are worth: (sum w)^2 / sum w^2, Kish (1965).

    >>> effective_sample_size(Rounds(reward=[0, 0], logged=[0.5, 0.5], target=[0.5, 0.0]))
    1.0
    """
    if not rounds.weight.any():
        return 0.0
    weight = rounds.weight / largest_weight(rounds)  # squares of tiny weights would vanish
    return float(weight.sum() ** 2 / (weight @ weight))


def largest_weight(rounds: Rounds) -> float:
    """The weight of the one round that counts most; 0 without rounds."""
    return float(rounds.weight.max(initial=0.0))


def outcomes(rounds: Rounds) -> float:
    """How many of the effective rounds have another reward than the most usual one: the clicks, say.

    >>> outcomes(Rounds(reward=[0, 0, 0, 1], logged=[0.5] * 4, target=[0.5] * 4))
    1.0
    """
    if not rounds.weight.any():
        return 0.0
    shares = np.bincount(np.unique(rounds.reward, return_inverse=True)[1], rounds.weight)
    return effective_sample_size(rounds) * float((shares.sum() - shares.max()) / shares.sum())


def covered(rounds: Rounds) -> bool:
    """Whether the weights average 1, within 5 standard errors.

    They do if the logged propensities are true and the log shows everything that the target policy would
    (Lefortier et al. 2016, arXiv:1612.00367). A log that leaves something out can look certain otherwise.
    """
    weight = rounds.weight
    return bool(abs(weight.sum() - weight.size) <= 5 * weight.std() * weight.size**0.5 + 1e-9)


def enough(rounds: Rounds) -> bool:
    """Whether an estimate from these rounds may be believed; if not, say "not enough to say"."""
    return effective_sample_size(rounds) >= ENOUGH and outcomes(rounds) >= OUTCOMES and covered(rounds)
