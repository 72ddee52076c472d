"""gittins, a contextual bandit engine in Rust, in process: no service, no log, no disk.

Its features are those of visitor and ad together; what is compared is the cost of a choice, not what it
earns.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any

import gittins


class Gittins:
    """2^18 weights, epsilon-greedy."""

    def __init__(self, ads: Sequence[Any]) -> None:
        self.state = gittins.create(bits=18, horizon=600.0, epsilon=0.1)
        self.candidates = [(ad.id, ad.features) for ad in ads]
        self.now = itertools.count()

    def choose(self, visitors: Sequence[dict[str, Any]]) -> Callable[[], list[Any]]:
        """`decide`."""

        def decide(visitor: dict[str, Any]) -> Any:
            now = next(self.now) / 1e6
            return gittins.decide(self.state, visitor, self.candidates, now, str(now))

        return lambda: [decide(each) for each in visitors]

    def reward(self, visitors: Sequence[dict[str, Any]]) -> Callable[[], list[Any]]:
        """`learn`, for choices made before."""
        ids = [record.decision_id for record in self.choose(visitors)()]
        return lambda: [gittins.learn(self.state, each, 1.0, next(self.now) / 1e6) for each in ids]
