"""Who likes what others like: factors of users and of ads, learned online, on top of what each ad earns.

A user is a vector, and so is an ad; their product says how much more than its popularity the ad is worth to
this user. Both are learned by stochastic gradient descent on the log odds of a reward, with a bias for each.
An ad begins at a small vector that its id alone decides, a user at zero: somebody unknown gets what is
popular, and an ad that nobody saw the benefit of the doubt. What a user did with an ad elsewhere moves the
user only.

Sources: Koren, Bell, Volinsky 2009 (IEEE Computer 42, factors and biases by gradient descent); Johnson 2014
(logistic matrix factorisation).
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np

from ..events import Ad, AdRemoved, AdsPut, Features, Saved, Settled  # noqa: F401  (for the doctest)
from ..policies import check_ranges
from . import Personal, Scores, Vector, chance

EXAMPLES: tuple[dict[str, Any], ...] = (
    {"learning_rate": 0.02, "prior": 0.3, "memory": 50.0, "max_users": 2},
    {"width": 0.0, "dim": 8, "shrink": 0.0},
)
BEGIN = 0.5  # length of the vector that an ad begins at
MOST = 3.0  # no number of a vector goes beyond


class Recommender(Personal):
    """Matrix factorisation, and the ads' own lifts.

    Parameters
    ----------
    learning_rate
        Step of gradient descent, in (0, 1].
    shrink
        How strongly vectors are drawn to where they began, per step, in [0, 1].

    >>> collaborative = Recommender()
    >>> collaborative.apply(AdsPut(0.0, (Ad("hats"), Ad("shoes"))), rows=(0, 1))
    >>> collaborative.scores({}, "somebody new")
    array([0.5, 0.5], dtype=float32)
    """

    def __init__(
        self,
        *,
        learning_rate: float = 0.1,
        shrink: float = 0.02,
        dim: int = 16,
        **shared: Any,
    ) -> None:
        super().__init__(dim=dim, **shared)
        check_ranges(("learning_rate", learning_rate, 1e-6, 1.0), ("shrink", shrink, 0.0, 1.0))
        self.learning_rate, self.shrink = learning_rate, shrink

    def apply(self, event: AdsPut | AdRemoved, rows: Sequence[int]) -> None:
        """A new ad begins near zero."""
        before = self.lifts.n_rows
        super().apply(event, rows)
        if isinstance(event, AdsPut):
            for row, ad in zip(rows, event.ads, strict=True):
                if row >= before:
                    self.ads[row] = self._begin(ad.id)

    def scores(self, context: Features, user: str = "") -> Scores:
        """The product of their vectors and the ads' lifts, shape (n_rows,)."""
        n_rows, taste = self.lifts.n_rows, self.users.of(user)
        lifts = self.lifts.values[:n_rows]
        return lifts.copy() if taste is None else self.ads[:n_rows] @ taste[1:] + lifts

    def learn(self, settled: Settled, row: int | None, reward: float, user: str = "") -> float:
        """A step of both vectors towards the reward; without a user only the ad's lift is learned."""
        ad_id, likes, bias = settled.choice.ad_id, 0.0, 0.0
        if user:
            taste = self.users.touch(user)
            begin = self._begin(ad_id)
            factors = begin if row is None else self.ads[row]
            likes, bias = float(factors @ taste[1:]), float(taste[0])
            error = reward - chance(self.start + bias + likes + self.lifts.known(row))
            moved = factors + self.learning_rate * (error * taste[1:] - self.shrink * (factors - begin))
            self._move(taste, factors, error)
            if row is not None:
                self.ads[row] = np.clip(moved, -MOST, MOST)
        score = likes + self.lifts.of(row)
        if row is not None:
            self.lifts.learn(row, chance(self.start + bias + likes), reward)
        self.learned += 1
        return score

    def acted(self, user: str, rows: Sequence[int]) -> None:
        """A step of the user towards each ad."""
        for row in rows:
            taste, factors = self.users.touch(user), self.ads[row]
            odds = self.start + float(taste[0] + factors @ taste[1:]) + self.lifts.known(row)
            self._move(taste, factors, 1 - chance(odds), bias=False)

    def dump(self) -> Saved:
        """What each ad earned, the users' vectors and the ads'."""
        return [super().dump(), self.ads[: self.lifts.n_rows].tobytes()]

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`."""
        personal, ads = saved
        super().load(personal)
        self.ads[: self.lifts.n_rows] = np.frombuffer(ads, np.float32).reshape(-1, self.dim)

    def _move(self, taste: Vector, factors: Vector, error: float, *, bias: bool = True) -> None:
        rate, shrink = self.learning_rate, self.shrink
        if bias:
            taste[0] += rate * (error - shrink * float(taste[0]))
        taste[1:] += rate * (error * factors - shrink * taste[1:])
        np.clip(taste, -MOST, MOST, out=taste)

    def _begin(self, ad_id: str) -> Vector:
        """Where the vector of an ad begins: random signs."""
        signs = np.frombuffer(blake2b(ad_id.encode(), digest_size=self.dim // 8).digest(), np.uint8)
        return (2 * np.unpackbits(signs).astype(np.float32) - 1) * np.float32(BEGIN / self.dim**0.5)
