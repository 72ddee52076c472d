"""Self-normalised doubly robust: the correction of DR is divided by the weights there are.

Thomas and Brunskill (2016), arXiv:1604.00923 (weighted doubly robust). A little bias for less variance, as
with SNIPS.
"""

from __future__ import annotations

from . import Floats, Rounds, normalised


def scores(rounds: Rounds) -> Floats:
    """sum over a of pi(a) q(a), plus the SNIPS scores of r - q, shape (n,). Some weight must not be zero."""
    return rounds.estimated_target + normalised(rounds.weight, rounds.residual)
