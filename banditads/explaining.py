"""Why an ad was picked: what the recommender thinks of it, and what the policy would do without a feature.

Asked after the decision, of the state as it is then. Scores are told as how far the ad lies above the mean of
the catalog, for what is the same for all ads decides nothing. Nothing is changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .columns import column_of
from .events import Ad, Chosen, Features, advised, some
from .recommenders import Scores, hybrid
from .state import State

OTHERS = 9  # candidates that a feature's part is asked among, besides the ad itself
COLUMNS = 32  # of a context that are asked about, the first by name: 20 us each
FEW = 3  # features that are told, and
LEAST = 0.001  # of probability that one must move to be told


class Why(NamedTuple):
    """What spoke for an ad.

    `scores` are by recommender, empty where none has learned yet. `features` are names of the context, and by
    how much the ad's probability would fall without each, among it and nine other candidates.
    """

    scores: dict[str, float]
    features: dict[str, float]


def why(state: State, choice: Chosen, ads: tuple[Ad, ...]) -> Why:
    """What spoke for the ad that was picked among `ads`, those of the choice.

    >>> choice = Chosen(0.0, "e", ("boots", "caps"), b"", 1, {})
    >>> why(State("uniform"), choice, (Ad("boots"), Ad("caps")))
    Why(scores={}, features={})
    """
    return Why(_scores(state, choice), _features(state, choice, advised(choice.advice, ads)))


def _scores(state: State, choice: Chosen) -> dict[str, float]:
    row = state.catalog.row(choice.ad_id)
    if row is None or len(state.catalog.ads) < state.recommend_from:
        return {}
    found: dict[str, Scores]
    if isinstance(state.recommender, hybrid.Recommender):
        found = state.recommender.contributions(choice.context, choice.user_id)
    else:
        found = {state.recommender_name: state.recommender.scores(choice.context, choice.user_id)}
    return {name: float(scores[row] - scores.mean()) for name, scores in found.items()}


def _features(state: State, choice: Chosen, ads: Sequence[Ad]) -> dict[str, float]:
    others = [place for place in range(min(len(ads), OTHERS + 1)) if place != choice.pick]
    few = some(ads, [choice.pick, *others][: OTHERS + 1])
    if len(few) == 1:
        return {}
    whole = float(state.policy.pmf(choice.context, few)[0])
    falls: dict[str, float] = {}
    for column in list(dict.fromkeys(map(column_of, choice.context)))[:COLUMNS]:
        rest: Features = {name: value for name, value in choice.context.items() if column_of(name) != column}
        falls[column] = whole - float(state.policy.pmf(rest, few)[0])
    most = sorted(falls.items(), key=lambda each: -each[1])[:FEW]
    return {column: fall for column, fall in most if fall >= LEAST}
