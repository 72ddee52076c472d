"""Numbers on one scale: how far each lies from its mean, in standard deviations, of all that were seen.

They are compressed first (asinh), and cut off `FAR` from the mean, so that no single one moves anything far.
"""

from __future__ import annotations

from math import asinh, copysign, sqrt
from typing import NamedTuple

FAR = 5.0  # standard deviations: a number further off its mean counts as this far


class Scale(NamedTuple):
    """What was seen of a number, compressed (Welford 1962).

    >>> scale = Scale().after(1.0).after(2.0).after(3.0)
    >>> scale.seen, round(scale.of(2.0), 2), scale.of(1e6)
    (3, 0.16, 5.0)
    """

    seen: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared differences from the mean

    def after(self, value: float) -> Scale:
        """With one more value."""
        seen, mean, squares = self
        pressed = asinh(value)
        before = pressed - mean
        mean += before / (seen + 1)
        return Scale(seen + 1, mean, squares + before * (pressed - mean))

    def of(self, value: float) -> float:
        """The value in standard deviations from the mean, at most `FAR`; 0 if all were the same."""
        seen, mean, squares = self
        if not squares:
            return 0.0
        deviations = (asinh(value) - mean) / sqrt(squares / seen)
        return deviations if -FAR < deviations < FAR else copysign(FAR, deviations)
