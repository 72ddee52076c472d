"""The direct method: what a model of the rewards says that the target policy earns.

Beygelzimer and Langford (2009), arXiv:0812.4044. Weights play no part, so neither does their variance; but
what the model gets wrong stays wrong however long the log is. How wrong that is no column can tell, so there
is no interval.
"""

from __future__ import annotations

from . import Floats, Rounds

INTERVAL = False


def scores(rounds: Rounds) -> Floats:
    """sum over a of pi(a) q(a), shape (n,)."""
    return rounds.estimated_target
