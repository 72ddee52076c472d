"""Some hundred ads of many: most are the best by a recommender's score, the others anything eligible.

The policy spreads probability over these alone, so a propensity is exact for what was proposed, and that is
in the event. One place in `1 / CHANCE` goes to an ad drawn evenly from all that were not proposed for their
score, by the dice of the event: whatever the recommender believes, every ad is proposed now and then.
"""

from __future__ import annotations

import numpy as np

from .catalog import Candidates, Crowd
from .events import Features
from .sampling import uniform
from .state import State

CHANCE = 1 / 8  # of the places


def propose(
    state: State, crowd: Crowd, context: Features, user: str = "", *, n: int, event_id: str, salt: str = ""
) -> Candidates:
    """`n` ads of a crowd that has more, sorted by id. Changes nothing; the same arguments give the same ads.

    >>> from banditads.events import Ad, AdsPut
    >>> state = State("uniform")
    >>> state.apply(0, AdsPut(0.0, tuple(Ad(f"ad-{number}") for number in range(100))))
    >>> crowd = state.catalog.crowd(at=0.0, placement="", exclude=("ad-7",), above=50)
    >>> len(propose(state, crowd, {}, n=16, event_id="e1").ids)
    16
    """
    scores = np.where(crowd.open, state.recommender.scores(context, user), -np.inf)  # (n_rows,)
    drawn = max(1, round(n * CHANCE))
    best = np.argpartition(scores, len(scores) - n + drawn)[len(scores) - n + drawn :]
    taken = {state.catalog.rows[row] for row in best.tolist()}
    closed, throw = taken | set(crowd.excluded), 0
    while len(taken) < n:
        # A line break is in no event id: no other decision throws these dice.
        ad_id = crowd.ids[int(uniform(f"{event_id}\n{throw}", salt) * len(crowd.ids))]
        throw += 1
        if ad_id not in closed:
            closed.add(ad_id)
            taken.add(ad_id)
    ids = tuple(sorted(taken))
    return Candidates(tuple(map(state.catalog.ads.__getitem__, ids)), ids, crowd.filtered)
