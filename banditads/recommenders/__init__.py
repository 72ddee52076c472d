"""Recommenders: ways to score every ad of a large catalog for one visitor, in a millisecond or two.

The file name is the name: `recommenders/popular.py` holds `Recommender`, and `"popular"` loads it. A
recommender decides nothing. Its scores only order the catalog; `proposing.py` takes the best few hundred and
some others, and the policy decides among those.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Sequence
from math import asinh, log, sqrt
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import Misconfigured
from ..events import AdRemoved, AdsPut, Features, Saved, Settled

Scores: TypeAlias = NDArray[np.float32]
Array = TypeVar("Array", bound=NDArray[Any])

DOUBT = 1.0  # rewards
VISITOR = 32  # features of a visitor that count, the first by name: time grows with them
LARGE = 500  # ads; recommenders learn where a catalog has so many. No smaller one ever needs them


class Recommender(Protocol):
    """What every file in this package promises, whatever its options.

    Ads are known by their row, which is the catalog's: a new ad takes the next row, and where one leaves, the
    last takes its row.
    """

    def apply(self, event: AdsPut | AdRemoved, rows: Sequence[int]) -> None:
        """The ads of `event` now stand in `rows`, or the one that stood in `rows[0]` left the catalog.

        What was learned of an ad is kept while it is replaced, and forgotten when it leaves.
        """

    def scores(self, context: Features) -> Scores:
        """The higher, the better for this visitor, shape (n_rows,), finite; the caller may change the array.

        Changes nothing. Ads never seen before are fine. The same state and context give the same bits.
        """

    def learn(self, settled: Settled, row: int | None, reward: float) -> None:
        """What was shown earned `reward` in [0, 1]. It stands in `row`, unless it is not in the catalog."""

    def dump(self) -> Saved:
        """Everything learned, as msgpack-able data; equal states dump equally. What is the ads' is not."""

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`, once `apply` has been told of every row again."""

    def describe(self) -> dict[str, Any]:
        """A few JSON-able facts for people: options, sizes, how much was learned."""


def names() -> list[str]:
    """All recommenders there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def make(name: str, **options: Any) -> Recommender:
    """A recommender that has learned nothing yet.

    >>> make("popular", speed=9)
    Traceback (most recent call last):
    banditads.errors.Misconfigured: recommender 'popular' has no option 'speed'; it has: memory, width, prior
    """
    if name not in names():
        raise Misconfigured(f"there is no recommender {name!r}; there are: {', '.join(names())}")
    made = importlib.import_module(f"{__name__}.{name}").Recommender
    known = inspect.signature(made).parameters
    for option in options:
        if option not in known:
            raise Misconfigured(f"recommender {name!r} has no option {option!r}; it has: {', '.join(known)}")
    recommender: Recommender = made(**options)
    return recommender


class Lifts:
    """How much more each ad earns than was expected of it: the log of a ratio, with the benefit of the doubt.

    An ad's ratio has a Gamma distribution that begins with `DOUBT` rewards expected and as many earned; the
    lift is the log of its mean, plus `width` relative standard deviations. So an ad that was never shown
    stands above one that was shown in vain, and is proposed until it was shown often enough.

    Attributes
    ----------
    values
        The lift of each ad, shape (capacity,); only the first `n_rows` count.
    counts
        Rewards expected and rewards earned, shape (capacity, 2), each `keep` times what it was for every
        showing since.
    """

    def __init__(self, *, width: float, keep: float) -> None:
        self.width, self.keep, self.n_rows = width, keep, 0
        self.values = np.zeros(0, np.float32)
        self.counts = np.zeros((0, 2))

    def apply(self, event: AdsPut | AdRemoved, rows: Sequence[int]) -> None:
        """New ads begin with nothing."""
        before, self.n_rows = self.n_rows, rows_after(self.n_rows, event, rows)
        self.counts = follow(self.counts, event, rows, self.n_rows)
        self.values = follow(self.values, event, rows, self.n_rows)
        self.values[before : self.n_rows] = self._value(0.0, 0.0)

    def learn(self, row: int, expected: float, earned: float) -> None:
        """An ad was shown once more."""
        before = self.counts[row]
        total, sum_earned = self.keep * before[0] + expected, self.keep * before[1] + earned
        self.counts[row] = total, sum_earned
        self.values[row] = self._value(total, sum_earned)

    def _value(self, expected: float, earned: float) -> float:
        return log((earned + DOUBT) / (expected + DOUBT)) + self.width / sqrt(earned + DOUBT)

    def dump(self) -> Saved:
        """The counts, row by row."""
        return self.counts[: self.n_rows].tobytes()

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`."""
        self.counts[: self.n_rows] = np.frombuffer(saved).reshape(-1, 2)
        for row in range(self.n_rows):
            self.values[row] = self._value(*self.counts[row])


def rows_after(n_rows: int, event: AdsPut | AdRemoved, rows: Sequence[int]) -> int:
    """How many rows there are after `event`."""
    return max(n_rows, max(rows) + 1) if isinstance(event, AdsPut) else n_rows - 1


def follow(array: Array, event: AdsPut | AdRemoved, rows: Sequence[int], n_rows: int) -> Array:
    """An array of at least `n_rows` rows, after `event`; those that nobody has yet are zero."""
    if isinstance(event, AdRemoved):
        array[rows[0]] = array[n_rows]
        array[n_rows] = 0
    elif n_rows > len(array):
        more = np.zeros((max(n_rows, 2 * len(array)), *array.shape[1:]), array.dtype)
        more[: len(array)] = array
        array = more  # type: ignore[assignment]
    return array


def words(features: Features) -> Iterator[str]:
    """Features as words; a number becomes the bucket it falls in, four to a unit of asinh.

    What is learned of one price then holds for those near it, and no number is too large.

    >>> list(words({"kind": "hats", "price": 59.9, "discount": 61.0}))
    ['kind=hats', 'price~19', 'discount~19']
    """
    for name, value in features.items():
        yield f"{name}={value}" if isinstance(value, str) else f"{name}~{round(4 * asinh(value))}"
