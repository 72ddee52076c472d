"""Clipped inverse propensity scoring: no round counts more than the square root of how many there are.

Ionides (2008), "Truncated importance sampling": with that limit the variance stays bounded, and the bias goes
away as the log grows. The bias is towards 0: what the cut rounds earned is missing. Where nothing is cut this
is IPS; where much is, the interval is around less than the policy earns.
"""

from __future__ import annotations

from . import Floats, Rounds


def scores(rounds: Rounds, limit: float | None = None) -> Floats:
    """min(w, limit) r, shape (n,). The limit is the square root of n unless it is given."""
    return rounds.clipped(limit) * rounds.reward
