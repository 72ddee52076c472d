"""Every ad alike: the baseline everything else has to beat."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..events import Ad, Features, Saved
from . import Floats


class Policy:
    """Uniform at random. Its logs can judge any other policy.

    >>> Policy().pmf({}, [Ad("a"), Ad("b")])
    array([0.5, 0.5])
    """

    def pmf(self, context: Features, ads: Sequence[Ad]) -> Floats:
        """1 / n_ads each, shape (n_ads,)."""
        return np.full(len(ads), 1 / len(ads))

    def learn(
        self, context: Features, ads: Sequence[Ad], pick: int, reward: float, propensity: float
    ) -> None:
        """Learns nothing."""

    def expected(self, context: Features, ads: Sequence[Ad], pick: int) -> float | None:
        """Nothing was learned."""
        return None

    def dump(self) -> Saved:
        """Nothing to keep."""
        return None

    def load(self, saved: Saved) -> None:
        """Nothing to restore."""

    def describe(self) -> dict[str, Any]:
        """No options."""
        return {}
