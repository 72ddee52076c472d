"""Doubly robust: the model's word, corrected by what it was seen to get wrong.

Dudík, Langford and Li (2011), arXiv:1103.4601. Unbiased where the logged propensities are true, however bad
the model, if that did not know the round's own reward; the better it is, the less is left to be weighted.
"""

from __future__ import annotations

from . import Floats, Rounds


def scores(rounds: Rounds) -> Floats:
    """sum over a of pi(a) q(a), plus w (r - q of what was shown), shape (n,)."""
    return rounds.estimated_target + rounds.weight * rounds.residual
