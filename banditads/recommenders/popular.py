"""What earns most, whoever asks: the decayed reward of each ad, with the benefit of the doubt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..events import Ad, AdRemoved, AdsPut, Features, Saved, Settled  # noqa: F401  (for the doctest)
from ..policies import check_ranges
from . import Impersonal, Lifts, Scores

EXAMPLES: tuple[dict[str, Any], ...] = (
    {"memory": 20.0, "prior": 0.3},
    {"width": 0.0},
)


class Recommender(Impersonal):
    """Popularity.

    Parameters
    ----------
    memory
        Showings of an ad after which what it earned counts 1/e, in [1, 1e9].
    width
        Standard deviations above its estimate at which an ad is judged, in [0, 10].
    prior
        Reward that is expected of any ad, in [1e-6, 1].

    >>> popular = Recommender()
    >>> popular.apply(AdsPut(0.0, (Ad("hats"), Ad("shoes"))), rows=(0, 1))
    >>> popular.scores({})
    array([0.5, 0.5], dtype=float32)
    """

    def __init__(self, *, memory: float = 5000.0, width: float = 0.5, prior: float = 0.03) -> None:
        check_ranges(("memory", memory, 1.0, 1e9), ("width", width, 0.0, 10.0), ("prior", prior, 1e-6, 1.0))
        self.memory, self.prior = memory, prior
        self.learned = 0  # rewards
        self.lifts = Lifts(width=width, keep=1 - 1 / memory)

    def apply(self, event: AdsPut | AdRemoved, rows: Sequence[int]) -> None:
        """A new ad begins with nothing."""
        self.lifts.apply(event, rows)

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

    def dump(self) -> Saved:
        """How much was learned, and what each ad earned."""
        return [self.learned, self.lifts.dump()]

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`."""
        self.learned, lifts = saved
        self.lifts.load(lifts)

    def describe(self) -> dict[str, Any]:
        """The options, and how much was learned."""
        return {
            "memory": self.memory,
            "width": self.lifts.width,
            "prior": self.prior,
            "learned": self.learned,
            "ads": self.lifts.n_rows,
        }
