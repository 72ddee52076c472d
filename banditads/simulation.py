"""Simulated visitors whose taste depends on who they are and when they come, over any catalog of ads.

A learner can only be shown to learn where the truth is known. Here it is: a visit of context c clicks on ad
a with probability

    sigmoid(bias + strength * (appeal[a] + sum over features f of c of taste[f] . features(a)))

`taste` gives every value of a context feature (`segment=sports`) its own random liking for every value of
an ad feature (`item_feature_1=x`), weighted by how much people really differ in that respect (`FEATURES`)
and centred over visitors: it says what suits whom, not what is liked by all. That is `appeal`, and it is
weak: partly the ad's features, partly the ad's own. `bias` and `strength` are then fixed so that ads picked
at random earn `UNIFORM` clicks per visit and the best ad for each visit `BEST_TO_UNIFORM` times that. No
policy's model is used, and policies see contexts and ads only, never these numbers.

Everything is drawn from the seed: the same seed gives the same people, the same taste and, for the same
visit and ad, the same click, whatever was shown before.

>>> from banditads.events import Ad
>>> shoes, coats = Ad("shoes", {"kind": "shoes"}), Ad("coats", {"kind": "coats"})
>>> world = World([shoes, coats], seed=7)
>>> world.visitor(0) == World([coats, shoes], seed=7).visitor(0)
True
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .events import Ad, Features
from .features import tokens
from .sampling import pick, uniform

UNIFORM = 0.04  # clicks per visit when ads are picked at random
BEST_TO_UNIFORM = 5.0  # how much more the best ad for each visit earns, if the catalog is varied enough
USERS = 2000  # people who come again and again

# Context feature -> value -> share of visits.
SHARES = {
    "daypart": {"morning": 0.2, "afternoon": 0.3, "evening": 0.38, "night": 0.12},
    "device": {"mobile": 0.62, "desktop": 0.3, "tablet": 0.08},
    "member": {"true": 0.45, "false": 0.55},
    "segment": {"bargains": 0.3, "trends": 0.25, "sports": 0.2, "classics": 0.15, "gifts": 0.1},
}
# Context feature -> how much it matters to taste, relative to the others.
FEATURES = {"segment": 1.0, "device": 0.5, "loyalty": 0.5, "daypart": 0.4, "member": 0.3}
APPEAL, QUIRK = 0.1, 0.15  # how much ads differ for everybody: by their features, and each for itself

Choose: TypeAlias = Callable[[str, str, Features], tuple[str, str]]
"""(event_id, user_id, context) -> (id of the ad shown, id to send the reward to)."""
Reward: TypeAlias = Callable[[str, float], object]
"""(id to send the reward to, 1.0 for a click or 0.0)."""
Floats: TypeAlias = NDArray[np.float64]


class Visit(NamedTuple):
    """What happened at one visit, and what could have; rates are probabilities of a click in (0, 1)."""

    ad_id: str
    clicked: bool
    expected: float  # of the ad that was shown
    best: float  # of the best ad for this visit
    uniform: float  # of an ad picked at random


class World:
    """People and their taste, drawn from a seed over a catalog of at least two different ads."""

    def __init__(self, ads: Sequence[Ad], seed: int) -> None:
        self.ads = tuple(sorted(ads, key=lambda ad: ad.id))
        self.seed = seed
        self._index = {ad.id: i for i, ad in enumerate(self.ads)}
        self._people = [self._person(f"user-{number}") for number in range(USERS)]

        rng = np.random.default_rng(seed)
        matrix = _matrix(self.ads)  # (n_ad_tokens, n_ads)
        likes = {name: rng.normal(size=(len(of), len(matrix))) @ matrix for name, of in SHARES.items()}
        taste = {
            (name, value): FEATURES[name] * (row - np.fromiter(of.values(), float) @ likes[name])
            for name, of in SHARES.items()
            for value, row in zip(of, likes[name], strict=True)
        }
        loyal = FEATURES["loyalty"] * rng.normal(size=len(matrix)) @ matrix
        appeal = APPEAL * rng.normal(size=len(matrix)) @ matrix + QUIRK * rng.normal(size=len(self.ads))

        self._taste, self._loyal, self._base = taste, loyal, appeal  # (n_ads,) each: summands of a log odds
        sample = np.array([self._log_odds(self.visitor(number)[1]) for number in range(1000)])
        strength, bias = _calibrate(sample)
        self._taste = {value: strength * row for value, row in taste.items()}
        self._loyal = strength * loyal
        self._base = strength * appeal + bias

    def visitor(self, number: int) -> tuple[str, Features]:
        """Who comes at this visit, and what a site would know: (user id, context)."""
        person = int(USERS * self._dice(f"visitor-{number}"))
        user_id, known = f"user-{person}", self._people[person]
        return user_id, {"daypart": self._draw("daypart", f"visit-{number}"), **known}

    def chances(self, context: Features) -> Floats:
        """Probability of a click on each of `self.ads`, shape (n_ads,)."""
        return _sigmoid(self._log_odds(context))

    def click_probability(self, context: Features, ad: Ad) -> float:
        """What this ad earns at such a visit, in clicks."""
        return float(self.chances(context)[self._index[ad.id]])

    def best(self, context: Features) -> float:
        """What the best ad earns at such a visit, in clicks."""
        return float(self.chances(context).max())

    def uniform(self, context: Features) -> float:
        """What an ad picked at random earns at such a visit, in clicks."""
        return float(self.chances(context).mean())

    def clicks(self, event_id: str, context: Features, ad: Ad) -> bool:
        """Whether this visitor clicks: always the same answer to the same question."""
        return self._clicks(event_id, self.click_probability(context, ad))

    def visit(self, number: int, choose: Choose, reward: Reward) -> Visit:
        """Somebody comes, is shown an ad, and clicks or does not."""
        event_id = f"visit-{number}"
        user_id, context = self.visitor(number)
        ad_id, shown = choose(event_id, user_id, context)
        chances = self.chances(context)
        expected = float(chances[self._index[ad_id]])
        clicked = self._clicks(event_id, expected)
        reward(shown, float(clicked))
        return Visit(ad_id, clicked, expected, float(chances.max()), float(chances.mean()))

    def _clicks(self, event_id: str, probability: float) -> bool:
        return self._dice(f"click-{event_id}") < probability  # other dice than the one that picks the ad

    def _log_odds(self, context: Features) -> Floats:
        """Log odds of a click on each ad, shape (n_ads,)."""
        odds = self._base + (float(context["loyalty"]) - 0.5) * self._loyal
        for name in SHARES:
            odds += self._taste[name, str(context[name])]
        return odds

    def _person(self, user_id: str) -> Features:
        """What stays the same about a user from visit to visit."""
        return {
            "device": self._draw("device", user_id),
            "loyalty": round(self._dice(f"loyalty-{user_id}"), 2),  # share of past visits with a purchase
            "member": self._draw("member", user_id),
            "segment": self._draw("segment", user_id),
        }

    def _draw(self, name: str, of: str) -> str:
        shares = SHARES[name]
        return tuple(shares)[pick(tuple(shares.values()), self._dice(f"{name}-{of}"))]

    def _dice(self, name: str) -> float:
        return uniform(name, f"world {self.seed}")


def visits(world: World, choose: Choose, reward: Reward, n: int) -> Iterator[Visit]:
    """The loop: `n` visits, each chosen for and rewarded before the next one comes."""
    return (world.visit(number, choose, reward) for number in range(n))


def _matrix(ads: Sequence[Ad]) -> Floats:
    """Features of ads, shape (n_tokens, n_ads): categories as 0 or 1, numbers scaled into -1 .. 1."""
    described = [dict(tokens(ad.features)) for ad in ads]
    names = sorted({name for ad in described for name in ad})
    matrix = np.array([[ad.get(name, 0.0) for ad in described] for name in names]).reshape(-1, len(ads))
    return matrix / np.maximum(np.abs(matrix).max(axis=1, keepdims=True), 1e-12)


def _calibrate(log_odds: Floats) -> tuple[float, float]:
    """(strength, bias) that make these log odds, shape (n_visits, n_ads), earn what is promised above."""

    def bias(strength: float) -> float:
        return _bisect(lambda b: float(_sigmoid(strength * log_odds + b).mean()), UNIFORM, -20, 20)

    def ratio(strength: float) -> float:
        chances = _sigmoid(strength * log_odds + bias(strength))
        return float(chances.max(axis=1).mean() / chances.mean())

    strength = _bisect(ratio, BEST_TO_UNIFORM, 0, 3)
    return strength, bias(strength)


def _bisect(rising: Callable[[float], float], goal: float, low: float, high: float) -> float:
    """Where a rising function reaches the goal, to about a thousandth."""
    while high - low > 1e-3:
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < goal else (low, middle)
    return (low + high) / 2


def _sigmoid(log_odds: Floats) -> Floats:
    return 1 / (1 + np.exp(-log_odds))
