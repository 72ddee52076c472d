"""Who likes what: logistic regression on visitor x ad features, for a whole catalog by looking up.

Every feature of the visitor is crossed with every one of the ad, the crosses are hashed, and their weights
learned online. Ads are made of the same few features: for one visitor, each feature that any ad has gets its
sum of weights once, and an ad costs no more than adding up those of its own. On top of that comes what an ad
earns beyond what its features promise (`Lifts`), which is all there is to tell ads without features apart.

Every gradient is bounded, and so is every step.

Sources: Chapelle, Manavoglu, Rosales 2014 (ACM TIST, crosses hashed for display ads); Duchi, Hazan, Singer
2011 (AdaGrad).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from hashlib import blake2b
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..events import Ad, AdRemoved, AdsPut, Features, Settled
from ..policies import check_ranges
from . import VISITOR, Scores, Weighed, chance, follow, words

EXAMPLES: tuple[dict[str, Any], ...] = (
    {"learning_rate": 0.02, "prior": 0.3, "memory": 50.0},
    {"width": 0.0, "bits": 10, "words": 64, "slots": 4, "seed": 7},
)
SPREAD, MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)  # odd, with random-looking bits


class Recommender(Weighed):
    """Crossed features, and the ads' own lifts.

    Parameters
    ----------
    bits
        The model has 2 ** bits weights, 8 to 24.
    words
        Different features of ads that are told apart, 16 to 65,536; others share a place with one.
    slots
        Features of one ad that count, 1 to 64: the first ones by name.

    >>> crosses = Recommender()
    >>> crosses.apply(AdsPut(0.0, (Ad("hats"), Ad("shoes"))), rows=(0, 1))
    >>> crosses.scores({"device": "mobile"})
    array([0.5, 0.5], dtype=float32)
    """

    def __init__(
        self,
        *,
        bits: int = 18,
        words: int = 16384,
        slots: int = 16,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        check_ranges(
            ("bits", bits, 8, 24),
            ("words", words, 16, 65536),
            ("slots", slots, 1, 64),
        )
        self.bits, self.words, self.slots = bits, words, slots
        self.weights = np.zeros(2**bits, np.float32)
        self.squares = np.ones(2**bits, np.float32)  # sums of squared gradients, and 1
        self.key = self.seed.to_bytes(4, "big")
        self.hash = lru_cache(2**16)(self._hash)
        # Of each slot the word that every ad has there, shape (capacity,); 0 stands where an ad has none.
        self.spelt: list[NDArray[np.intp]] = []
        self.used = np.zeros(words, np.bool_)  # words that some ad has, or had

    def apply(self, event: AdsPut | AdRemoved, rows: Sequence[int]) -> None:
        """A new ad begins with what its features promise."""
        super().apply(event, rows)
        spelt = [self._words(ad) for ad in event.ads] if isinstance(event, AdsPut) else []
        while len(self.spelt) < max(map(len, spelt), default=0):
            self.spelt.append(np.zeros(len(self.lifts.values), np.intp))
        for slot, old in enumerate(self.spelt):
            self.spelt[slot] = new = follow(old, event, rows, self.lifts.n_rows)
            if spelt:
                new[list(rows)] = [each[slot] if slot < len(each) else 0 for each in spelt]
        for each in spelt:
            self.used[each] = True

    def scores(self, context: Features, user: str = "") -> Scores:
        """Log odds of a reward, less what is the same for all ads, shape (n_rows,)."""
        n_rows = self.lifts.n_rows
        total = self.lifts.values[:n_rows].copy()
        used = self.used.nonzero()[0]
        weight = np.zeros(self.words, np.float32)
        weight[used] = self.weights[self._crosses(self._visitor(context), used)].sum(axis=0)
        weight[0] = 0.0
        one = np.empty(n_rows, np.float32)
        for slot in self.spelt:  # 70 us per 100,000 ads; without `mode` and `out` 120
            total += np.take(weight, slot[:n_rows], out=one, mode="clip")
        return total

    def learn(self, settled: Settled, row: int | None, reward: float, user: str = "") -> float:
        """A step of AdaGrad towards the reward; all crosses together move as far as one weight would."""
        choice = settled.choice
        spelt = [0, *self._words(settled.ads[choice.pick])]
        crosses = self._crosses(self._visitor(choice.context), spelt).ravel()
        weights = self.weights[crosses]
        expected = chance(self.start + float(weights.sum()))
        score = float(weights.reshape(-1, len(spelt))[:, 1:].sum()) + self.lifts.of(row)
        gradient = expected - reward
        self.squares[crosses] = squares = self.squares[crosses] + gradient * gradient
        self.weights[crosses] = weights - self.learning_rate / len(crosses) * gradient / np.sqrt(squares)
        if row is not None:
            self.lifts.learn(row, expected, reward)
        self.learned += 1
        return score

    def describe(self) -> dict[str, Any]:
        """The options, how much was learned, and how many words ads have."""
        return {**super().describe(), "used": int(self.used.sum())}

    def _crosses(self, visitor: Sequence[int], spelt: Any) -> NDArray[np.intp]:
        """Places of weights, shape (n_visitor, n_words)."""
        mixed = np.array(visitor, np.uint64)[:, None] + np.asarray(spelt, np.uint64) * MIX
        return (mixed * SPREAD >> np.uint64(64 - self.bits)).view(np.intp)

    def _visitor(self, context: Features) -> list[int]:
        """Hashes of the constant and of the first `VISITOR` features."""
        return [0, *map(self.hash, islice(words(context), VISITOR))]

    def _words(self, ad: Ad) -> list[int]:
        """Words of the first `slots` features; 0 is the constant."""
        return [1 + self.hash(name) % (self.words - 1) for name in islice(words(ad.features), self.slots)]

    def _hash(self, name: str) -> int:
        return int.from_bytes(blake2b(name.encode(), digest_size=8, key=self.key).digest(), "big")
