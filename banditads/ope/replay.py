"""Rejection replay: the plain average of the rounds in which the policy drew what was shown.

Li, Chu, Langford and Wang (2011), arXiv:1003.5956. Unbiased where the log is uniform, or where matching
rounds were thinned out as if it were; `evaluation` does that. It uses no weights, and so few rounds.
"""

from __future__ import annotations

from . import Floats, Rounds


def scores(rounds: Rounds) -> Floats:
    """The rewards of the m rounds that match, shape (m,)."""
    return rounds.reward[rounds.matched]
