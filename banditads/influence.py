"""How much a feature moves choices: what the policy would do without it, asked of real decisions.

The measure is the total variation between the two distributions over the same ads: the share of visits that
would be shown another ad, 0 if the feature decides nothing and 1 if it decides everything. It says what the
policy makes of a feature, not what the feature is worth. Nothing is changed or learned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice

import msgspec
import numpy as np

from .columns import Key, column_of
from .events import ADVICE, Ad, Advised, Features, advised, apart, some
from .joiner import Open
from .state import State

DECISIONS = {"context": 30, "ad": 5}  # the newest that wait; an ad with other features costs VW 25 us more
MAX_ADS = 50  # candidates that are asked about, the one that was shown among them


def influence(
    read: Callable[[], State], lock: AbstractContextManager[object], out_of_time: Callable[[], bool]
) -> dict[Key, float]:
    """Mean total variation for each column of the newest decisions, until time is up.

    A column counts in decisions that have it, and the lock is held for one question at a time.
    """
    found: dict[Key, list[float]] = {}
    with lock:
        newest = [*islice(reversed(read().joiner.open.values()), max(DECISIONS.values()))]
    for number, waiting in enumerate(newest):
        for key in _columns_of(waiting, number):
            if out_of_time():
                break
            with lock:  # the state may be another one by now
                found.setdefault(key, []).append(moved(read(), waiting, key))
    return {key: sum(each) / len(each) for key, each in found.items()}


def moved(state: State, waiting: Open, key: Key) -> float:
    """Total variation, in [0, 1], between the policy's choice now and the one without this column."""
    side, name = key
    context, ads = waiting.choice.context, _few(waiting)
    with_it = state.policy.pmf(context, ads)  # (n_ads,)
    if side == "context":
        context = _without(context, name)
    else:
        plain, said = apart(ads)
        plain = tuple(msgspec.structs.replace(ad, features=_without(ad.features, name)) for ad in plain)
        ads = Advised(plain, said) if said and name != ADVICE else plain
    return float(np.abs(with_it - state.policy.pmf(context, ads)).sum() / 2)


def _columns_of(waiting: Open, number: int) -> Iterator[Key]:
    if len(waiting.ads) == 1:
        return  # nothing moves that
    if number < DECISIONS["context"]:
        for name in dict.fromkeys(map(column_of, waiting.choice.context)):
            yield "context", name
    if number < DECISIONS["ad"]:
        for name in dict.fromkeys(column_of(name) for ad in _few(waiting) for name in ad.features):
            yield "ad", name


def _few(waiting: Open) -> Sequence[Ad]:
    choice = waiting.choice
    ads, pick = advised(choice.advice, waiting.ads), choice.pick
    return ads if len(ads) <= MAX_ADS else some(ads, (*range(MAX_ADS - 1), max(pick, MAX_ADS - 1)))


def _without(features: Features, column: str) -> Features:
    return {name: value for name, value in features.items() if column_of(name) != column}
