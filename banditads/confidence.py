"""A bound that may be looked at after every round, for ever, and is wrong with probability `alpha` in all.

Whoever watches an ordinary 95 % interval until it says something will see it say something. A confidence
sequence holds at all times at once, so one may look whenever one likes and stop when it is clear. This one is
for the mean so far of what is seldom but hugely larger than usual, as rewards with importance weights are: it
asks only how far a number may lie *below* what was expected of it.

For numbers x with conditional means m, any forecast f made before, and x - f >= -c, the process
exp(l sum(x - m) - psi(l) sum(x - f)^2), psi(l) = (-log(1 - c l) - c l) / c^2, is a supermartingale for any l
in [0, 1/c) that starts at 1 (Fan, Grama and Liu 2015, arXiv:1311.6273; Howard, Ramdas, McAuliffe and Sekhon
2021, arXiv:1810.08240). So is a mixture of them over l, and it reaches 1 / alpha with probability alpha at
most (Ville 1939). The forecast here is the mean of the earlier numbers, and the mixture over 20 l. psi
grows with c, so the largest c yet serves for all. Means may change from round to round: what is bounded is
their average. For off-policy values: Karampatziakis, Mineiro and Ramdas 2021, arXiv:2103.05050; Waudby-Smith,
Wu, Ramdas, Karampatziakis and Mineiro 2022, arXiv:2210.10768.

>>> tail = Tail()
>>> for _ in range(1000):
...     tail.add(0.5, least=0.0)
>>> 0.49 < tail.bound(0.05) < 0.5
True
"""

from __future__ import annotations

from math import inf, log
from typing import TypeAlias

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats: TypeAlias = NDArray[np.float64]

# The best l is about 3 / sqrt(sum of squares): these are for sums of 1 to 10^12. Steps of 2 are at most 6 %
# wider than the best. The first weigh most: a few rare rewards are where every bit is wanted.
BETS: Floats = 2.0 ** -np.arange(20.0)  # (20,)
SHARES: Floats = 1 / (np.arange(1.0, 21.0) * np.arange(2.0, 22.0))  # (20,), of the mixture; 20/21 in all


class Tail(msgspec.Struct, array_like=True):
    """What a lower bound of the mean of numbers is made of. They come one by one, in the order of time."""

    count: int = 0
    sum: float = 0.0
    squares: float = 0.0  # of the distances from what was forecast
    reach: float = 0.0  # the furthest that a number could have been below its forecast

    def add(self, x: float, least: float) -> None:
        """One more number, of which it was known that it would not be below `least`."""
        forecast = self.sum / self.count if self.count else 0.0
        self.reach = max(self.reach, forecast - least)
        self.squares += (x - forecast) ** 2
        self.sum += x
        self.count += 1

    @classmethod
    def of(cls, numbers: Floats, least: ArrayLike) -> Tail:
        """The same for all numbers, shape (n,), at once; equal but for rounding."""
        if not numbers.size:
            return cls()
        totals = np.cumsum(numbers)
        forecasts = np.concatenate([[0.0], totals[:-1] / np.arange(1, numbers.size)])
        reach = max(0.0, float((forecasts - least).max()))
        return cls(numbers.size, float(totals[-1]), float(((numbers - forecasts) ** 2).sum()), reach)

    @property
    def mean(self) -> float:
        """Of the numbers so far; 0 without any."""
        return self.sum / self.count if self.count else 0.0

    def bound(self, alpha: float) -> float:
        """Below the mean so far of the numbers' true means, at all times but with probability `alpha`."""
        if not self.count or self.reach * BETS[-1] >= 1:
            return -inf
        goal, bets, shares = -log(alpha), *_open(self.reach)
        price = _psi(bets, self.reach) * self.squares - shares
        # The first of the mixture to reach the goal alone is right of where all do; from there Newton's steps
        # come nearer and, the curve being convex, never go past it.
        excess = float(((goal + price) / bets).min())
        for _ in range(20):
            terms = bets * excess - price
            top = float(terms.max())
            parts = np.exp(terms - top)
            step = (top + log(parts.sum()) - goal) / float(bets @ parts / parts.sum())
            excess -= step
            if step <= 1e-9 * excess:
                break
        return (self.sum - excess) / self.count


def _open(reach: float) -> tuple[Floats, Floats]:
    """The bets that may be made with such a reach, and the logarithms of their shares."""
    made = reach * BETS < 1
    return BETS[made], np.log(SHARES[made])


def _psi(bets: Floats, reach: float) -> Floats:
    """(-log(1 - c l) - c l) / c^2, for each of the bets, shape (n,); its limit l^2 / 2 where c is tiny."""
    scaled = reach * bets
    exact = (-np.log1p(-scaled) - scaled) / max(reach, 1e-9) ** 2
    return np.where(scaled < 1e-4, bets**2 * (0.5 + scaled / 2.9), exact)
