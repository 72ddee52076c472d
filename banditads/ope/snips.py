"""Self-normalised inverse propensity scoring: a little bias for much less variance.

Swaminathan and Joachims (2015), "The self-normalized estimator for counterfactual learning". The estimate is
sum(w r) / sum(w), so it never leaves the range of the rewards. A ratio has no scores of its own: these are
linearised around it (delta method), so their mean is the estimate and their spread its error.
"""

from __future__ import annotations

from . import Floats, Rounds


def scores(rounds: Rounds) -> Floats:
    """v + w (r - v) / mean(w) with v = sum(w r) / sum(w), shape (n,). Some weight must not be zero."""
    weight = rounds.weight / rounds.weight.max()
    weight /= weight.mean()
    value = (weight * rounds.reward).mean()
    return value + weight * (rounds.reward - value)
