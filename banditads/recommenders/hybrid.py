"""What several recommenders say together: their scores, weighed by how well each foretold rewards.

Popular, content, collaborative and crosses each learn as they would alone. Before they learn from a reward,
each says what it would have scored the ad, and the weights of those scores are learned online, by logistic
regression: whoever foretells rewards gains weight.

Sources: Burke 2002 (weighted hybrids); Duchi, Hazan, Singer 2011 (AdaGrad).
"""

from __future__ import annotations

from collections.abc import Sequence
from math import log
from typing import Any

import numpy as np

from ..events import Ad, AdRemoved, AdsPut, Features, Saved, Settled  # noqa: F401  (for the doctest)
from ..policies import check_ranges
from . import Recommender as Part
from . import Scores, chance, make, options

EXAMPLES: tuple[dict[str, Any], ...] = (
    {"learning_rate": 0.5, "prior": 0.3, "memory": 50.0, "max_users": 2},
    {"width": 0.0},
)
PARTS = ("popular", "content", "collaborative", "crosses")


class Recommender:
    """A learned blend. The other options are those of its parts.

    Parameters
    ----------
    learning_rate
        How far a first step moves a weight, at most, in (0, 1]; the steps shrink with use.
    >>> hybrid = Recommender()
    >>> hybrid.apply(AdsPut(0.0, (Ad("hats"), Ad("shoes"))), rows=(0, 1))
    >>> hybrid.scores({}, "somebody new")
    array([0.5, 0.5], dtype=float32)
    """

    def __init__(
        self,
        *,
        learning_rate: float = 0.05,
        memory: float = 5000.0,
        width: float = 0.5,
        prior: float = 0.03,
        max_users: int = 100_000,
    ) -> None:
        check_ranges(("learning_rate", learning_rate, 1e-6, 1.0), ("max_users", max_users, 1, 10**7))
        self.learning_rate = learning_rate
        self.shared = {"memory": memory, "width": width, "prior": prior, "max_users": max_users}
        self.parts: dict[str, Part] = {}
        for name in PARTS:
            known = {each.name for each in options(name)}
            self.parts[name] = make(name, **{each: self.shared[each] for each in known & self.shared.keys()})
        self.learned = 0  # rewards
        # The last is for what is the same for all ads.
        self.weights = np.array([1 / len(PARTS)] * len(PARTS) + [log(prior / (1 - prior))])
        self.squares = np.ones(len(PARTS) + 1)  # sums of squared gradients, and 1

    @property
    def start(self) -> float:
        """Log odds of a reward where the score is 0."""
        return float(self.weights[-1])

    def apply(self, event: AdsPut | AdRemoved, rows: Sequence[int]) -> None:
        """Every part is told."""
        for part in self.parts.values():
            part.apply(event, rows)

    def scores(self, context: Features, user: str = "") -> Scores:
        """The sum of what each part contributes, shape (n_rows,)."""
        total, *others = self.contributions(context, user).values()
        for each in others:
            total += each
        return total

    def contributions(self, context: Features, user: str = "") -> dict[str, Scores]:
        """What each part adds to the scores, by name: its own, times its weight."""
        return {
            name: part.scores(context, user) * np.float32(weight)
            for (name, part), weight in zip(self.parts.items(), self.weights[:-1], strict=True)
        }

    def learn(self, settled: Settled, row: int | None, reward: float, user: str = "") -> float:
        """A step of AdaGrad towards the reward, by what the parts said before they learned."""
        said = [part.learn(settled, row, reward, user) for part in self.parts.values()]
        x = np.clip([*said, 1.0], -10, 10)
        gradient = (chance(float(self.weights @ x)) - reward) * x
        score = float(self.weights[:-1] @ x[:-1])
        self.squares += gradient * gradient
        self.weights -= self.learning_rate * gradient / np.sqrt(self.squares)
        self.learned += 1
        return score

    def acted(self, user: str, rows: Sequence[int]) -> None:
        """Every part is told."""
        for part in self.parts.values():
            part.acted(user, rows)

    def forget(self, user: str) -> None:
        """Every part is told."""
        for part in self.parts.values():
            part.forget(user)

    def dump(self) -> Saved:
        """How much was learned, the weights, and what every part learned."""
        weights = self.weights.tobytes(), self.squares.tobytes()
        return [self.learned, *weights, [part.dump() for part in self.parts.values()]]

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`."""
        self.learned, weights, squares, parts = saved
        self.weights, self.squares = np.frombuffer(weights).copy(), np.frombuffer(squares).copy()
        for part, each in zip(self.parts.values(), parts, strict=True):
            part.load(each)

    def describe(self) -> dict[str, Any]:
        """The options, how much was learned, the weights, and the parts."""
        return {
            "learning_rate": self.learning_rate,
            **self.shared,
            "learned": self.learned,
            "weights": dict(zip(PARTS, self.weights.tolist(), strict=False)),
            "parts": {name: part.describe() for name, part in self.parts.items()},
        }
