"""Self-normalised inverse propensity scoring: a little bias for much less variance.

Swaminathan and Joachims (2015), "The self-normalized estimator for counterfactual learning". The estimate is
sum(w r) / sum(w), so it never leaves the range of the rewards.
"""

from __future__ import annotations

from . import Floats, Rounds, normalised


def scores(rounds: Rounds) -> Floats:
    """v + w (r - v) / mean(w) with v = sum(w r) / sum(w), shape (n,). Some weight must not be zero."""
    return normalised(rounds.weight, rounds.reward)
