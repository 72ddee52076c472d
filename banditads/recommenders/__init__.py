"""Recommenders: ways to score every ad of a large catalog for one visitor, in a millisecond or two.

The file name is the name: `recommenders/popular.py` holds `Recommender`, and `"popular"` loads it. A
recommender decides nothing. Its scores only order the catalog; `proposing.py` takes the best few hundred and
some others, and the policy decides among those.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from math import asinh, exp, log, sqrt
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..errors import Misconfigured
from ..events import Ad, AdRemoved, AdsPut, Features, Saved, Settled
from ..policies import Option, check_ranges, checked, documented

Scores: TypeAlias = NDArray[np.float32]
Array = TypeVar("Array", bound=NDArray[Any])

Vector: TypeAlias = NDArray[np.float32]

DOUBT = 1.0  # rewards
VISITOR = 32  # features of a visitor that count, the first by name: time grows with them
LARGE = 500  # ads; unless it was asked for, a recommender learns only where a catalog has so many


class Recommender(Protocol):
    """What every file in this package promises, whatever its options.

    Ads are known by their row, which is the catalog's: a new ad takes the next row, and where one leaves, the
    last takes its row. A `user` is the pseudonym of somebody who consented, or empty.

    Attributes
    ----------
    start
        Log odds of a reward where the score is 0.
    """

    @property
    def start(self) -> float: ...  # noqa: D102

    def apply(self, event: AdsPut | AdRemoved, rows: Sequence[int]) -> None:
        """The ads of `event` now stand in `rows`, or the one that stood in `rows[0]` left the catalog.

        What was learned of an ad is kept while it is replaced, and forgotten when it leaves.
        """

    def scores(self, context: Features, user: str = "") -> Scores:
        """The higher, the better for this visitor, shape (n_rows,), finite; the caller may change the array.

        Log odds of a reward, less what is the same for all ads. Changes nothing. Ads and users never seen
        before are fine. The same state, context and user give the same bits.
        """

    def learn(self, settled: Settled, row: int | None, reward: float, user: str = "") -> float:
        """What was shown earned `reward` in [0, 1]. It stands in `row`, unless it is not in the catalog.

        Returns the score that it had before.
        """

    def acted(self, user: str, rows: Sequence[int]) -> None:
        """A user did something with these ads: looked at them, bought them."""

    def forget(self, user: str) -> None:
        """Keep nothing more of this user."""

    def dump(self) -> Saved:
        """Everything learned, as msgpack-able data; equal states dump equally. What is the ads' is not."""

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`, once `apply` has been told of every row again."""

    def describe(self) -> dict[str, Any]:
        """A few JSON-able facts for people: options, sizes, how much was learned."""


def names() -> list[str]:
    """All recommenders there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def options(name: str) -> list[Option]:
    """The options of a recommender, those that it shares with others first."""
    return documented(_made(name), (Lifted, Personal))


def make(name: str, **options: Any) -> Recommender:
    """A recommender that has learned nothing yet.

    >>> make("popular", speed=9)
    Traceback (most recent call last):
    banditads.errors.Misconfigured: recommender 'popular' has no option 'speed'; it has: memory, width, prior
    """
    if name not in names():
        raise Misconfigured(f"there is no recommender {name!r}; there are: {', '.join(names())}")
    known = documented(_made(name), (Lifted, Personal))
    recommender: Recommender = _made(name)(**checked(f"recommender {name!r}", known, options))
    return recommender


def _made(name: str) -> type:
    made: type = importlib.import_module(f"{__name__}.{name}").Recommender
    return made


class Lifted:
    """What each ad earns, on which most recommenders build, and the options of all who do.

    Parameters
    ----------
    memory
        Showings of an ad after which what it earned counts 1/e, in [1, 1e9].
    width
        Standard deviations above its estimate at which an ad is judged, in [0, 10].
    prior
        Reward that is expected before anything is learned, in (0, 1).
    """

    def __init__(self, *, memory: float = 5000.0, width: float = 0.5, prior: float = 0.03) -> None:
        check_ranges(
            ("memory", memory, 1.0, 1e9), ("width", width, 0.0, 10.0), ("prior", prior, 1e-6, 1 - 1e-6)
        )
        self.memory, self.width, self.prior = memory, width, prior
        self.start = log(prior / (1 - prior))
        self.learned = 0  # rewards
        self.lifts = Lifts(width=width, keep=1 - 1 / memory)

    def apply(self, event: AdsPut | AdRemoved, rows: Sequence[int]) -> None:
        """A new ad begins with nothing."""
        self.lifts.apply(event, rows)

    def acted(self, user: str, rows: Sequence[int]) -> None:
        """Nothing to do: nothing is kept of any user."""

    def forget(self, user: str) -> None:
        """Nothing to do either."""

    def dump(self) -> Saved:
        """How much was learned, and what each ad earned."""
        return [self.learned, self.lifts.dump()]

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`."""
        self.learned, lifts = saved
        self.lifts.load(lifts)

    def describe(self) -> dict[str, Any]:
        """The options, and how much was learned."""
        given = {each.name: getattr(self, each.name) for each in documented(type(self), (Lifted, Personal))}
        return {**given, "learned": self.learned, "ads": self.lifts.n_rows}


class Weighed(Lifted):
    """Weights, learned by steps of AdaGrad, too.

    Parameters
    ----------
    learning_rate
        How far a first step moves the log odds, at most, in (0, 100]; the steps shrink with use.
    seed
        Of the hash function, 0 to 2 ** 32 - 1.
    """

    weights: Vector  # shape as `squares`
    squares: Vector  # sums of squared gradients, and 1

    def __init__(self, *, learning_rate: float = 0.5, seed: int = 0, **shared: Any) -> None:
        super().__init__(**shared)
        check_ranges(("learning_rate", learning_rate, 1e-6, 100.0), ("seed", seed, 0, 2**32 - 1))
        self.learning_rate, self.seed = learning_rate, seed

    def dump(self) -> Saved:
        """What each ad earned, the weights and their squared gradients."""
        if not self.learned:
            return None
        return [super().dump(), self.weights.tobytes(), self.squares.tobytes()]

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`."""
        if saved is None:
            return
        lifted, weights, squares = saved
        super().load(lifted)
        self.weights = np.frombuffer(weights, np.float32).reshape(self.weights.shape).copy()
        self.squares = np.frombuffer(squares, np.float32).reshape(self.squares.shape).copy()


class Personal(Lifted):
    """A vector for each user too.

    Parameters
    ----------
    dim
        Numbers that an ad is made into, a multiple of 8, 8 to 256.
    max_users
        Users of whom a taste is kept, the latest, 1 to 10,000,000; 4 * (dim + 1) bytes each, and their ids.
    """

    def __init__(self, *, dim: int = 32, max_users: int = 100_000, **shared: Any) -> None:
        super().__init__(**shared)
        check_ranges(("dim", dim, 8, 256), ("max_users", max_users, 1, 10**7))
        self.dim, self.max_users = dim - dim % 8, max_users
        self.ads = np.zeros((0, self.dim), np.float32)  # (capacity, dim)
        self.users = Tastes(dim=1 + self.dim, most=max_users)  # the bias first

    def apply(self, event: AdsPut | AdRemoved, rows: Sequence[int]) -> None:
        """A new ad begins at zero."""
        super().apply(event, rows)
        self.ads = follow(self.ads, event, rows, self.lifts.n_rows)

    def forget(self, user: str) -> None:
        """The user's vector goes; what it taught the rest remains until the journal is folded again."""
        self.users.forget(user)

    def dump(self) -> Saved:
        """What each ad earned, and the users' vectors."""
        return [super().dump(), self.users.dump()]

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`."""
        lifted, users = saved
        super().load(lifted)
        self.users.load(users)

    def describe(self) -> dict[str, Any]:
        """The options, how much was learned, and of how many users."""
        return {**super().describe(), "users": len(self.users.places)}


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

    def known(self, row: int | None) -> float:
        """The lift of an ad without the benefit of the doubt; 0 for one that is not in the catalog."""
        if row is None:
            return 0.0
        expected, earned = self.counts[row].tolist()
        return log((earned + DOUBT) / (expected + DOUBT))

    def of(self, row: int | None) -> float:
        """The lift of an ad; 0 for one that is not in the catalog."""
        return 0.0 if row is None else float(self.values[row])

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


class Tastes:
    """A vector for each user, of the `most` of whom something was learned last.

    Shape (dim,), zero to begin with. Parameters that are the user's alone, and gone with them.
    """

    def __init__(self, *, dim: int, most: int) -> None:
        self.dim, self.most = dim, most
        self.places = OrderedDict[str, int]()  # who was learned of longest ago comes first
        self.vectors = np.zeros((0, dim), np.float32)  # (capacity, dim)
        self.free: list[int] = []

    def of(self, user: str) -> Vector | None:
        """What is known of a user; None if nothing is. Not to be changed."""
        place = self.places.get(user)
        return None if place is None else self.vectors[place]

    def touch(self, user: str) -> Vector:
        """The vector of a user, to be changed."""
        if user not in self.places:
            if len(self.places) >= self.most:
                self.forget(next(iter(self.places)))
            self.places[user] = self.free.pop() if self.free else len(self.places)
            if self.places[user] >= len(self.vectors):
                more = np.zeros((max(64, 2 * len(self.vectors)), self.dim), np.float32)
                more[: len(self.vectors)] = self.vectors
                self.vectors = more
        self.places.move_to_end(user)
        return self.vectors[self.places[user]]

    def forget(self, user: str) -> None:
        """Begin anew should this user come again."""
        place = self.places.pop(user, None)
        if place is not None:
            self.vectors[place] = 0.0
            self.free.append(place)

    def dump(self) -> Saved:
        """Users in order, and their vectors."""
        return [list(self.places), self.vectors[list(self.places.values())].tobytes()]

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`."""
        users, vectors = saved
        self.places = OrderedDict((user, place) for place, user in enumerate(users))
        self.vectors = np.frombuffer(vectors, np.float32).reshape(len(users), self.dim).copy()
        self.free = []


class Signs:
    """Features as random vectors of signs, and ads as their means: unrelated ones are at right angles.

    Source: Achlioptas 2003 (J. Comput. Syst. Sci. 66, random signs keep products).
    """

    def __init__(self, *, dim: int, seed: int) -> None:
        self.dim, key = dim, seed.to_bytes(4, "big")

        def digest(name: str) -> bytes:
            return blake2b(name.encode(), digest_size=dim // 8, key=key).digest()

        self.digest = lru_cache(2**16)(digest)

    def vector(self, ad: Ad) -> Vector:
        """The mean of the signs of its features, of length 1 if they are unrelated; shape (dim,)."""
        signs = b"".join(map(self.digest, words(ad.features)))
        if not signs:
            return np.zeros(self.dim, np.float32)
        bits = np.unpackbits(np.frombuffer(signs, np.uint8)).reshape(-1, self.dim)
        vector = 2 * bits.sum(axis=0, dtype=np.float32) - np.float32(len(bits))
        return vector / np.float32(sqrt(len(bits) * self.dim))


def chance(odds: float) -> float:
    """The probability of these log odds, within 2e-9 and 1 - 2e-9."""
    return 1 / (1 + exp(-max(-20.0, min(20.0, odds))))


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
