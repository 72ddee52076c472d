"""What earns most, whoever asks: the decayed reward of each ad, with the benefit of the doubt."""

from __future__ import annotations

from typing import Any

from ..events import Ad, AdsPut, Features, Saved, Settled  # noqa: F401  (for the doctest)
from . import Lifted, Scores

EXAMPLES: tuple[dict[str, Any], ...] = (
    {"memory": 20.0, "prior": 0.3},
    {"width": 0.0},
)


class Recommender(Lifted):
    """Popularity.

    >>> popular = Recommender()
    >>> popular.apply(AdsPut(0.0, (Ad("hats"), Ad("shoes"))), rows=(0, 1))
    >>> popular.scores({})
    array([0.5, 0.5], dtype=float32)
    """

    def scores(self, context: Features, user: str = "") -> Scores:
        """The lift of each ad, shape (n_rows,)."""
        return self.lifts.values[: self.lifts.n_rows].copy()

    def learn(self, settled: Settled, row: int | None, reward: float, user: str = "") -> float:
        """One more showing of the ad."""
        self.learned += 1
        score = self.lifts.of(row)
        if row is not None:
            self.lifts.learn(row, self.prior, reward)
        return score
