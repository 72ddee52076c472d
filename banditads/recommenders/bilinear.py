"""Who likes what, in few dimensions: each ad is a vector, a visitor's features weigh its numbers.

Every feature of an ad stands for a random vector of signs, and an ad is their mean: one matrix product scores
a whole catalog, however many features its ads have. A visitor's features are hashed to rows of a matrix of
weights, which are learned online by logistic regression; on top comes what an ad earns beyond what its
features promise (`Lifts`). With more different features than dimensions, features blur into each other.

Source: Duchi, Hazan, Singer 2011 (AdaGrad).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np

from ..events import Ad, AdRemoved, AdsPut, Features, Settled  # noqa: F401  (for the doctest)
from ..policies import check_ranges
from . import VISITOR, Scores, Signs, Weighed, chance, follow, words

EXAMPLES: tuple[dict[str, Any], ...] = (
    {"learning_rate": 0.02, "prior": 0.3, "memory": 50.0},
    {"width": 0.0, "dim": 8, "places": 64, "seed": 7},
)


class Recommender(Weighed):
    """Low rank, and the ads' own lifts.

    Parameters
    ----------
    dim
        Numbers that an ad is made into, a multiple of 8, 8 to 256.
    places
        Rows of weights that the visitor's features share, 2 to 65,536.

    >>> bilinear = Recommender()
    >>> bilinear.apply(AdsPut(0.0, (Ad("hats"), Ad("shoes"))), rows=(0, 1))
    >>> bilinear.scores({"device": "mobile"})
    array([0.5, 0.5], dtype=float32)
    """

    def __init__(
        self,
        *,
        learning_rate: float = 1.0,
        dim: int = 32,
        places: int = 1024,
        **shared: Any,
    ) -> None:
        super().__init__(learning_rate=learning_rate, **shared)
        check_ranges(
            ("dim", dim, 8, 256),
            ("places", places, 2, 65536),
        )
        self.dim, self.places = dim - dim % 8, places
        self.weights = np.zeros((places, 1 + self.dim), np.float32)
        self.squares = np.ones((places, 1 + self.dim), np.float32)  # sums of squared gradients, and 1
        self.ads = np.zeros((0, self.dim), np.float32)  # (capacity, dim)
        self.signs = Signs(dim=self.dim, seed=self.seed)

    def apply(self, event: AdsPut | AdRemoved, rows: Sequence[int]) -> None:
        """A new ad begins with what its features promise."""
        super().apply(event, rows)
        self.ads = follow(self.ads, event, rows, self.lifts.n_rows)
        if isinstance(event, AdsPut):
            for row, ad in zip(rows, event.ads, strict=True):
                self.ads[row] = self.signs.vector(ad)

    def scores(self, context: Features, user: str = "") -> Scores:
        """Log odds of a reward, less what is the same for all ads, shape (n_rows,)."""
        n_rows = self.lifts.n_rows
        taste = self.weights[self._visitor(context)].sum(axis=0)  # (1 + dim,)
        return self.ads[:n_rows] @ taste[1:] + self.lifts.values[:n_rows]

    def learn(self, settled: Settled, row: int | None, reward: float, user: str = "") -> float:
        """A step of AdaGrad towards the reward; all weights together move as far as one would."""
        choice = settled.choice
        places = self._visitor(choice.context)
        x = np.concatenate(([1.0], self.signs.vector(settled.ads[choice.pick]))).astype(np.float32)
        weights = self.weights[places]  # (n_places, 1 + dim)
        taste = weights.sum(axis=0)
        score = float(taste[1:] @ x[1:]) + self.lifts.of(row)
        expected = chance(self.start + float(taste @ x))
        gradient = np.float32(expected - reward) * x
        self.squares[places] = squares = self.squares[places] + gradient * gradient
        step = self.learning_rate / len(places)
        self.weights[places] = weights - step * gradient / np.sqrt(squares)
        if row is not None:
            self.lifts.learn(row, expected, reward)
        self.learned += 1
        return score

    def _visitor(self, context: Features) -> list[int]:
        """Rows of the constant and of the first `VISITOR` features."""
        digests = map(self.signs.digest, islice(words(context), VISITOR))
        return sorted({0, *(int.from_bytes(each[:8], "big") % self.places for each in digests)})
