"""What a choice can be expected to earn, said before it is known: the model behind DM, DR and their kin.

Logistic regression on the visitor's features, the ad's, and their crosses, hashed. It is asked about a round
before it is told, so what it says never knows the round's own reward: cross-fitting in the order of time.
That leaves doubly robust estimates unbiased however bad the model is (Dudík, Langford and Li 2011,
arXiv:1103.4601). The odds that all rewards have in common are counted; only what sets visitors and ads apart
is learned by steps (AdaGrad; Duchi, Hazan and Singer 2011).

The same rounds give the same numbers, to the last bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, chain
from math import asinh, log
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from .events import Ad, Features
from .features import tokens

SPREAD, MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)  # odd, with random-looking bits
BITS = 18  # 2^18 weights: 4 MB
STEP = 0.1  # of the log odds, at most, the first time


class RewardModel:
    """Expected rewards in [0, 1].

    >>> model, ads = RewardModel(), (Ad("hats"), Ad("shoes"))
    >>> for _ in range(100):
    ...     first = model.asked_and_told({"device": "mobile"}, ads, 1, 1.0)
    ...     then = model.asked_and_told({"device": "mobile"}, ads, 0, 0.0)
    >>> then.round(1)
    array([0.1, 0.9])
    """

    def __init__(self) -> None:
        self.weights, self.squares = np.zeros(2**BITS), np.zeros(2**BITS)
        self.count, self.sum = 1.0, 0.5
        self._ads: Sequence[Ad] | None = None
        self._side: tuple[NDArray[np.uint64], NDArray[np.float64], list[int]]

    def asked_and_told(
        self, context: Features, ads: Sequence[Ad], pick: int, reward: float
    ) -> NDArray[np.float64]:
        """What showing each of the ads would earn, shape (n_ads,), as far as was known before this round.

        Then it learns that `ads[pick]` was shown and earned `reward` in [0, 1].
        """
        keys, values, starts = self._crosses(context, ads)
        common = log(self.sum / (self.count - self.sum))  # log odds of any reward
        odds = common + np.add.reduceat(self.weights[keys] * values, starts[:-1])
        expected = 1 / (1 + np.exp(-np.clip(odds, -30, 30)))
        shown = slice(starts[pick], starts[pick + 1])
        keys, gradient = keys[shown], (expected[pick] - reward) * values[shown]
        self.squares[keys] += gradient**2
        self.weights[keys] -= STEP * gradient / np.sqrt(self.squares[keys] + 1e-12)
        self.count, self.sum = self.count + 1, self.sum + reward
        return expected

    def _crosses(
        self, context: Features, ads: Sequence[Ad]
    ) -> tuple[NDArray[np.uint64], NDArray[np.float64], list[int]]:
        """Places and values of every product of a feature, or 1, of the visitor and one of an ad; and where
        each ad's begin and the last ends. Shapes (n,), (n,), (n_ads + 1,).
        """
        if ads is not self._ads:  # mostly they are the same tuple again
            sides = [_hashed((("=" + ad.id, 1.0), *tokens(ad.features))) for ad in ads]
            hashes, y = (np.concatenate(each) for each in zip(*sides, strict=True))
            self._ads, self._side = ads, (hashes, y, [0, *accumulate(len(each) for each, _ in sides)])
        hashes, y, ends = self._side
        visitor, x = _hashed(tuple(tokens(context)))
        keys = (hashes[:, None] + visitor * MIX) * SPREAD >> np.uint64(64 - BITS)
        return keys.ravel(), np.multiply.outer(y, x).ravel(), [end * len(x) for end in ends]


@lru_cache(2**14)
def _hashed(features: tuple[tuple[str, float], ...]) -> tuple[NDArray[np.uint64], NDArray[np.float64]]:
    """Hashes and values of a constant and the features; numbers compressed to where steps suit them."""
    hashes = [0, *(crc32(name.encode()) for name, _ in features)]
    values = chain([1.0], (1.0 if "=" in name else asinh(value) / 4 for name, value in features))
    return np.array(hashes, np.uint64), np.array(list(values))
