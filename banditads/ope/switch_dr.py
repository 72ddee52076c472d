"""SWITCH-DR: doubly robust, but where a weight is large only the model's word counts.

Wang, Agarwal and Dudík (2017), arXiv:1612.01205. They choose the limit by an estimate of the error; here it
is the square root of n, as in clipped IPS, and so the bias goes away as the log grows. Where nothing is
switched this is DR; where much is, the interval does not know what the model gets wrong there.
"""

from __future__ import annotations

from . import Floats, Rounds


def scores(rounds: Rounds, limit: float | None = None) -> Floats:
    """DR with w = 0 where w > limit, shape (n,). The limit is the square root of n unless it is given."""
    kept = rounds.weight <= rounds.limit(limit)
    return rounds.estimated_target + kept * rounds.weight * rounds.residual
