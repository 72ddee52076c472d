"""What is like what this user liked: taste as a vector of ad features, and the categories of the profile.

An ad is the mean of random signs of its features (`Signs`). Each user has a vector that is learned online, by
logistic regression on their own showings and what they did with ads elsewhere; it fades as they go on. To it
comes what their profile knows (`users.py`): how near the ad's words are to the categories that they looked
at, all along and of late, each with one learned weight for everybody. Somebody unknown gets what is popular;
an ad that nobody saw is judged by its features.

Sources: Rocchio 1971 (taste as a vector that moves towards what was liked); Lops, de Gemmis, Semeraro 2011
(content-based recommenders).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..events import Ad, AdRemoved, AdsPut, Features, Saved, Settled
from ..policies import check_ranges
from ..users import BUCKETS, CATEGORIES, bucket
from . import Personal, Scores, Signs, Vector, chance, follow

EXAMPLES: tuple[dict[str, Any], ...] = (
    {"learning_rate": 0.02, "prior": 0.3, "memory": 50.0, "max_users": 2},
    {"width": 0.0, "dim": 8, "fade": 0.0, "seed": 7},
)
WORDS = 8  # of an ad: its categories, the first by name
MOST = 10.0  # no number of a taste goes beyond
SINCE = tuple(f"user.category.{place}" for place in range(1, CATEGORIES + 1))
TASTES = tuple(f"user.taste.{place}" for place in range(BUCKETS))


class Recommender(Personal):
    """Tastes x features, and the ads' own lifts.

    Parameters
    ----------
    learning_rate
        Step of gradient descent, in (0, 10].
    fade
        Share of a taste that is lost with each showing, in [0, 1].
    seed
        Of the hash function, 0 to 2 ** 32 - 1.

    >>> content = Recommender()
    >>> ads = (Ad("boots", {"kind": "shoes"}), Ad("caps", {"kind": "hats"}))
    >>> content.apply(AdsPut(0.0, ads), rows=(0, 1))
    >>> boots, caps = content.scores({"user.category.1": "shoes"})
    >>> bool(boots > caps)
    True
    """

    def __init__(
        self,
        *,
        learning_rate: float = 0.5,
        fade: float = 0.01,
        seed: int = 0,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        check_ranges(
            ("learning_rate", learning_rate, 1e-6, 10.0),
            ("fade", fade, 0.0, 1.0),
            ("seed", seed, 0, 2**32 - 1),
        )
        self.learning_rate, self.fade, self.seed = learning_rate, fade, seed
        self.signs = Signs(dim=self.dim, seed=seed)
        # Of each slot the place of the word that every ad has there, shape (capacity,); 0 where it has none.
        self.slots: list[NDArray[np.intp]] = []
        self.known = {"": 0}  # word -> place, of all that ads have or had
        self.buckets = bytearray([BUCKETS])  # of the word at each place; the one of no word is beyond all
        self.weights = np.full(2, 0.3)  # of near categories all along, and of late
        self.squares = np.ones(2)  # sums of squared gradients, and 1

    def apply(self, event: AdsPut | AdRemoved, rows: Sequence[int]) -> None:
        """An ad is what its features are."""
        super().apply(event, rows)
        spelt = [_words(ad) for ad in event.ads] if isinstance(event, AdsPut) else []
        while len(self.slots) < max(map(len, spelt), default=0):
            self.slots.append(np.zeros(len(self.lifts.values), np.intp))
        for slot, old in enumerate(self.slots):
            self.slots[slot] = new = follow(old, event, rows, self.lifts.n_rows)
            if spelt:
                new[list(rows)] = [self._place(each[slot]) if slot < len(each) else 0 for each in spelt]
        if isinstance(event, AdsPut):
            for row, ad in zip(rows, event.ads, strict=True):
                self.ads[row] = self.signs.vector(ad)
            if len(self.known) > 2 * WORDS * self.lifts.n_rows + 1024:
                self._tidy()

    def scores(self, context: Features, user: str = "") -> Scores:
        """Log odds of a reward, less what is the same for all ads, shape (n_rows,)."""
        n_rows, taste = self.lifts.n_rows, self.users.of(user)
        total = self.lifts.values[:n_rows].copy()
        if taste is not None:
            total += self.ads[:n_rows] @ taste[1:]
        profile = _Profile(context)
        if profile.known:
            tastes = np.array([*profile.tastes, 0.0], np.float32) * np.float32(self.weights[0])
            near = tastes[np.frombuffer(self.buckets, np.uint8)]
            for word, late in profile.late.items():
                if place := self.known.get(word):
                    near[place] += late * self.weights[1]
            one = np.empty(n_rows, np.float32)
            for places in self.slots:  # as in `crosses`
                total += np.take(near, places[:n_rows], out=one, mode="clip")
        return total

    def learn(self, settled: Settled, row: int | None, reward: float, user: str = "") -> float:
        """A step of the user's taste, and of everybody's weights, towards the reward."""
        ad = settled.ads[settled.choice.pick]
        x, near = self.signs.vector(ad), _Profile(settled.choice.context).near(ad)
        taste = self.users.touch(user) if user else np.zeros(1 + self.dim, np.float32)
        likes = float(taste[1:] @ x) + float(near @ self.weights)
        expected = chance(self.start + float(taste[0]) + likes)
        error = reward - chance(self.start + float(taste[0]) + likes + self.lifts.known(row))
        self._move(taste, x, error)
        gradient = np.clip(-error * near, -1, 1)
        self.squares += gradient * gradient
        self.weights -= 0.1 * gradient / np.sqrt(self.squares)
        score = likes + self.lifts.of(row)
        if row is not None:
            self.lifts.learn(row, expected, reward)
        self.learned += 1
        return score

    def acted(self, user: str, rows: Sequence[int]) -> None:
        """A step of the user towards each ad."""
        for row in rows:
            taste = self.users.touch(user)
            odds = self.start + float(taste[0] + self.ads[row] @ taste[1:])
            bias = taste[0].copy()
            self._move(taste, self.ads[row], 1 - chance(odds))
            taste[0] = bias  # how often somebody clicks is another matter

    def dump(self) -> Saved:
        """What each ad earned, the users' tastes and everybody's weights."""
        return [super().dump(), self.weights.tobytes(), self.squares.tobytes()]

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`."""
        personal, weights, squares = saved
        super().load(personal)
        self.weights, self.squares = np.frombuffer(weights).copy(), np.frombuffer(squares).copy()

    def describe(self) -> dict[str, Any]:
        """The options, how much was learned, of how many users, and the weights."""
        return {**super().describe(), "weights": self.weights.tolist()}

    def _move(self, taste: Vector, x: Vector, error: float) -> None:
        taste[0] += 0.1 * self.learning_rate * error
        taste[1:] += self.learning_rate * error * x
        taste *= np.float32(1 - self.fade)
        np.clip(taste, -MOST, MOST, out=taste)

    def _place(self, word: str) -> int:
        if word not in self.known:
            self.known[word] = len(self.known)
            self.buckets.append(bucket(word))
        return self.known[word]

    def _tidy(self) -> None:
        """Leave out words that no ad has any more."""
        known = list(self.known)
        used = np.unique(np.concatenate([[0], *self.slots]))
        self.slots = [np.searchsorted(used, places) for places in self.slots]
        self.known = {known[place]: new for new, place in enumerate(used.tolist())}
        self.buckets = bytearray(self.buckets[place] for place in used.tolist())


class _Profile:
    """What a context says of the categories that a user looked at."""

    def __init__(self, context: Features) -> None:
        tastes = [context.get(name, 0.0) for name in TASTES]
        numbers = [max(0.0, each) if isinstance(each, float) else 0.0 for each in tastes]
        norm = sum(each * each for each in numbers) ** 0.5
        self.tastes = [each / norm if norm else 0.0 for each in numbers]  # by bucket, of length 1
        late = [str(context[name]) for name in SINCE if name in context]
        self.late = {word: 1 / place for place, word in enumerate(late, 1)}
        self.known = bool(norm or late)

    def near(self, ad: Ad) -> NDArray[np.float64]:
        """Sums over the words of an ad, shape (2,): shares of the taste, and 1 / place among the latest."""
        words = _words(ad) if self.known else []
        return np.array(
            [
                sum(self.tastes[bucket(word)] for word in words),
                sum(self.late.get(word, 0.0) for word in words),
            ]
        )


def _words(ad: Ad) -> list[str]:
    """Its features that are words."""
    return list(islice((each for each in ad.features.values() if isinstance(each, str) and each), WORDS))
