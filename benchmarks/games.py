"""Games for bandits: who comes, which ads there are, and how probable a click on each of them is.

* **`Right`** is a classification set (see `datasets.py`): one ad is right and clicked for sure, the others
  are not. `abrupt`: at half of the run every class is given another class's ad. `slow`: the same, one class
  after the other, all through the run.
* **`Traffic`** is ads: the invented audience of `audiences.py`, whose log odds of a click fall with the
  squared distance between a visitor and an ad in a plane of taste, which is neither linear in any feature nor
  a product of factors; popularity is skewed and taste drifts slowly. Of a visitor only segment, age, device
  and region are told, not who it is; of an ad category, price and brand. An ad at random earns `rate` clicks
  a visit, the best one for each visit `best` times that. `arriving`: five times as many ads, each of which
  lives for a quarter of a run, some from before the beginning, so that about as many are there at any time.
  `abrupt`: at half of the run every ad stands where another one stood.

What is earned is counted as the probability of a click on what was shown: the same expectation as clicks,
with less noise. Learners get clicks. Everything is drawn from the seed, the same for every contestant.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol

import datasets
import numpy as np
from audiences import Floats, Invented

from banditads.events import Ad, Features
from banditads.features import tokens


class Visit(NamedTuple):
    """Somebody comes. `ads` are sorted by id, and the same object for as long as they are the same."""

    number: int
    context: Features
    vector: Floats  # (n_columns,): the context for those who want numbers, see `vectors`
    ads: tuple[Ad, ...]
    chances: Floats  # (n_ads,), of a click; not for contestants


class Game(Protocol):
    """What each class here promises."""

    ads: tuple[Ad, ...]  # all that will ever be there
    n: int

    def visits(self) -> Iterator[Visit]:
        """`n` visits in order of time, or as many as there are."""


class Right:
    """A classification set."""

    def __init__(self, table: datasets.Table, seed: int, n: int, *, change: str = "") -> None:
        self.ads, self.table = table.ads, table
        self.order = datasets.rounds(table, seed, n)
        self.n, k = len(self.order), len(table.ads)
        self.vectors = vectors(table.rows)
        shuffled = np.random.default_rng([seed, 1]).permutation(k)
        self.instead = np.empty(k, int)  # the ad that becomes right
        self.instead[shuffled] = np.roll(shuffled, 1)  # no class keeps its own
        self.when = np.full(k, self.n, float)  # the visit from which it is
        if change == "abrupt":
            self.when[:] = self.n / 2
        elif change == "slow":
            self.when[shuffled] = self.n * (np.arange(k) + 0.5) / k

    def visits(self) -> Iterator[Visit]:
        """Rows of the set, none twice."""
        for number, row in enumerate(self.order.tolist()):
            right = self.table.right[row]
            chances = np.zeros(len(self.ads))
            chances[self.instead[right] if number >= self.when[right] else right] = 1.0
            yield Visit(number, self.table.rows[row], self.vectors[row], self.ads, chances)


class Traffic:
    """Ads and clicks."""

    def __init__(
        self,
        seed: int,
        n: int,
        *,
        ads: int,
        rate: float,
        best: float = 5.0,
        arriving: bool = False,
        abrupt: bool = False,
    ) -> None:
        pool = 5 * ads if arriving else ads
        self.audience = Invented(seed, ads=pool, rate=rate, best=best)
        self.ads, self.n = self.audience.ads, n
        rng = np.random.default_rng([seed, 1])
        self.begins = rng.uniform(-0.25, 1.0, pool) * n if arriving else np.full(pool, -1.0)
        self.ends = self.begins + (0.25 if arriving else 2.0) * n
        self.ends[np.argmax(self.begins <= 0)] = n  # one is always there
        places = rng.permutation(pool)
        self.instead = np.empty(pool, int)
        self.instead[places] = np.roll(places, 1)
        self.turn = n / 2 if abrupt else n

    def visits(self) -> Iterator[Visit]:
        """People of the audience, as strangers."""
        visits = [*self.audience.visits(self.n)]
        told = vectors([visit.context for visit in visits])
        there: tuple[Ad, ...] = ()
        alive = np.zeros(0, int)
        for visit, vector in zip(visits, told, strict=True):
            now = np.flatnonzero((self.begins <= visit.number) & (visit.number < self.ends))
            if not np.array_equal(now, alive):
                alive, there = now, tuple(self.ads[place] for place in now)
            chances = visit.chances[self.instead] if visit.number >= self.turn else visit.chances
            yield Visit(visit.number, visit.context, vector, there, chances[alive])


def vectors(rows: Sequence[Features]) -> Floats:
    """Contexts as numbers, shape (n_rows, n_columns): a column for each number and word, and one of ones.

    Standardised over all of them, which nobody could know at the first visit: a gift to those who need it.
    """
    named = [dict(tokens(row)) for row in rows]
    names = sorted({name for row in named for name in row})
    found = np.array([[row.get(name, 0.0) for name in names] for row in named])
    spread = found.std(axis=0)
    scaled = (found - found.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return np.hstack([scaled, np.ones((len(rows), 1))])
