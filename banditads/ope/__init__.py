"""Off-policy evaluation: what another policy would have earned on a log, one estimator a file.

The file name is the name. An estimator is a formula `scores(rounds) -> (n,)` whose mean is the estimate; the
interval, and the test whether there is enough to say anything, are worked out here, once, for all of them.
A formula whose error its scores do not show says `INTERVAL = False`.
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

from ..confidence import Tail
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
    estimated_shown, estimated_target : arrays, shape (n,)
        What a model expects of the ad that was shown, and on average of those the policy being judged would
        show: sum over a of pi(a) q(a). The model must not know the round's own reward. Both or neither;
        the estimators that want them raise `errors.Invalid` where they were not given.
    matched : array of bool, shape (n,)
        Whether the policy being judged drew that same ad; unless given, where it shows it for certain.
    possible : array, shape (n,)
        The largest weight that the round could have had, whatever had been shown: known before it was.
        Unless given, nothing is known of it: infinite.

    Raises `errors.Invalid` for columns that cannot be these.
    """

    def __init__(
        self,
        reward: ArrayLike,
        logged: ArrayLike,
        target: ArrayLike,
        *,
        estimated_shown: ArrayLike | None = None,
        estimated_target: ArrayLike | None = None,
        matched: ArrayLike | None = None,
        possible: ArrayLike | None = None,
    ) -> None:
        self.reward, self.logged, self.target = (np.asarray(x, np.float64) for x in (reward, logged, target))
        n = (self.reward.size,)
        if not self.reward.shape == self.logged.shape == self.target.shape == n:
            raise Invalid("reward, logged and target must be columns of one length")
        if not np.isfinite(self.reward).all():
            raise Invalid("must be finite numbers", "reward")
        if not ((self.logged > 0) & (self.logged <= 1)).all():
            raise Invalid("a probability of what was shown lies in (0, 1]", "logged")
        if not ((self.target >= 0) & np.isfinite(self.target)).all():
            raise Invalid("a probability is not negative", "target")
        self.matched = np.asarray(self.target == 1 if matched is None else matched, np.bool_)
        self.possible = np.full(n, np.inf) if possible is None else np.asarray(possible, np.float64)
        if not self.matched.shape == self.possible.shape == n:
            raise Invalid("matched and possible must be as long as the others")
        if not (self.weight <= self.possible * (1 + 1e-9)).all():  # NaN too
            raise Invalid("a weight is larger than it could have been", "possible")
        self._estimated: tuple[Floats, Floats] | None = None
        if estimated_shown is not None and estimated_target is not None:
            self._estimated = (
                np.asarray(estimated_shown, np.float64),
                np.asarray(estimated_target, np.float64),
            )
            if not all(each.shape == n and np.isfinite(each).all() for each in self._estimated):
                raise Invalid("estimated rewards must be finite numbers, as many as rewards")

    @cached_property
    def weight(self) -> Floats:
        """Importance weights, shape (n,)."""
        return self.target / self.logged

    @property
    def estimated_shown(self) -> Floats:
        """What a model expects of what was shown, shape (n,)."""
        return self._modelled[0]

    @property
    def estimated_target(self) -> Floats:
        """What a model expects of the policy being judged, shape (n,)."""
        return self._modelled[1]

    @property
    def residual(self) -> Floats:
        """What was earned beyond what a model expected, shape (n,)."""
        return self.reward - self.estimated_shown

    @property
    def _modelled(self) -> tuple[Floats, Floats]:
        if self._estimated is None:
            raise Invalid("this estimator wants what a model expects of each round", "estimated_target")
        return self._estimated

    def limit(self, given: float | None = None) -> float:
        """The weight above which a round is cut, where some are: the square root of n, or the one given."""
        return self.reward.size**0.5 if given is None else given

    def clipped(self, limit: float | None = None) -> Floats:
        """Weights that are at most the limit, shape (n,)."""
        return np.minimum(self.weight, self.limit(limit))

    def first(self, n: int) -> Rounds:
        """The first n of them."""
        return self.part(slice(n))

    def part(self, which: slice | NDArray[np.bool_]) -> Rounds:
        """Some of them."""
        return self._like(self.reward[which], which)

    def earned_in(self, which: NDArray[np.bool_]) -> Rounds:
        """All of them, as if only these had earned anything."""
        return self._like(np.where(which, self.reward, 0.0), slice(None))

    def _like(self, reward: Floats, which: slice | NDArray[np.bool_]) -> Rounds:
        shown, target = (each[which] for each in self._estimated) if self._estimated else (None, None)
        return Rounds(
            reward,
            self.logged[which],
            self.target[which],
            estimated_shown=shown,
            estimated_target=target,
            matched=self.matched[which],
            possible=self.possible[which],
        )

    def replayed(self) -> Rounds:
        """Those that match, as the rounds of a log that the policy being judged made itself."""
        ones = np.ones(int(self.matched.sum()))
        return Rounds(self.reward[self.matched], ones, ones)


class Estimate(msgspec.Struct, frozen=True):
    """A value and its 95 % interval, each None where the rounds cannot tell."""

    value: float | None = None
    low: float | None = None
    high: float | None = None


def names() -> list[str]:
    """All estimators there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def check(name: str) -> None:
    """Raises `errors.Misconfigured` if there is no estimator of that name."""
    if name not in names():
        raise Misconfigured(f"there is no estimator {name!r}; there are: {', '.join(names())}")


def estimate(name: str, rounds: Rounds) -> Estimate:
    """What the target policy earns per round. Weights that are all zero tell nothing, and neither does n = 0.

    Raises `errors.Misconfigured` for a name that there is not, and `errors.Invalid` where the estimator wants
    a column that was not given.

    >>> estimate("ips", Rounds(reward=[1, 0], logged=[0.5, 0.5], target=[0.5, 0.5])).value
    0.5
    """
    formula, has_interval = _formula(name)
    if not rounds.weight.any():
        return Estimate()
    found = average(formula(rounds))
    return found if has_interval else Estimate(found.value)


@cache
def _formula(name: str) -> tuple[Callable[[Rounds], Floats], bool]:
    """The scores, and whether the spread of them is the error of their mean."""
    check(name)
    module = importlib.import_module(f"{__name__}.{name}")
    return module.scores, getattr(module, "INTERVAL", True)


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


def normalised(weight: Floats, values: Floats) -> Floats:
    """Scores whose mean is sum(w x) / sum(w), shape (n,). Some weight must not be zero.

    A ratio has no scores of its own: these are linearised around it (delta method), so their spread is its
    error.
    """
    weight = weight / weight.max()  # the smallest numbers would vanish
    weight /= weight.mean()
    value = (weight * values).mean()
    return value + weight * (values - value)


def anytime(rounds: Rounds, low: float = 0.0, high: float = 1.0, alpha: float = 0.05) -> Estimate:
    """IPS with an interval that holds however often it is looked at: a confidence sequence, see `confidence`.

    Rewards lie in `low` .. `high`. With probability 1 - `alpha` the value lies within at every length of the
    log at once, so one may stop when it says enough. What it holds is the mean value over the rounds, of a
    policy that may learn. Few rounds, rare rewards or large weights make it wide, not wrong, and so does a
    log that lacks what the policy would show: the lower bound asks nothing of the weights, and neither does
    one upper bound, by what is *not* earned. The other goes by `Rounds.possible`; the lower of the two holds.
    """
    if not rounds.weight.any():
        return Estimate()
    reward = (rounds.reward - low) / (high - low)
    if not ((reward >= 0) & (reward <= 1)).all():
        raise Invalid(f"must lie in {low} .. {high}", "reward")
    earned, missed = rounds.weight * reward, rounds.weight * (1 - reward)
    least = Tail.of(earned, 0.0).bound(alpha / 2)
    most = min(
        -Tail.of(-earned, -rounds.possible).bound(alpha / 4), 1 - Tail.of(missed, 0.0).bound(alpha / 4)
    )
    value = float(earned.mean())
    scaled = (low + (high - low) * each for each in (value, max(0.0, least), min(1.0, most)))
    return Estimate(*scaled)


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
