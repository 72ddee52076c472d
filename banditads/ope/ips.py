"""Inverse propensity scoring: every reward counts as often as the target policy would have earned it.

Horvitz and Thompson (1952); for bandits Strehl, Langford, Li and Kakade (2010), arXiv:1003.0120. Unbiased
when the logged propensities are true and nothing the target policy shows had no chance in the log; its
variance grows with the largest weight.
"""

from __future__ import annotations

from . import Floats, Rounds


def scores(rounds: Rounds) -> Floats:
    """w r, shape (n,)."""
    return rounds.weight * rounds.reward
