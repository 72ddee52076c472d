"""Yesterday's journal, folded again: recovery, verification and finished interactions.

>>> from banditads.journal import connect
>>> fold(connect("memory:").read(0), State("uniform")).applied
0
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import msgspec

from . import events
from .state import Spoilt, State

log = logging.getLogger(__name__)

Records: TypeAlias = Iterable[tuple[int, bytes]]


def fold(records: Records, state: State) -> State:
    """The state after these records: what the server was, or would have been."""
    for offset, record in records:
        state.apply(offset, events.decode(record))
    return state


def refold(read: Callable[[int], Records], state: State, begin: Callable[[State], None]) -> State:
    """`state` after all records; if it was spoilt, another one that has not learned what spoils it.

    `read` gives the records from an offset on; `begin` takes a state that knows nothing to where it may begin
    again, such as a snapshot. Raises `Spoilt` if one decision does it twice.
    """
    skip: set[str] = set()
    while True:
        try:
            return fold(read(state.applied), state)
        except Spoilt as error:
            if error.event_id in skip:
                raise
            log.critical("%s; it is set aside, and the model made again without it", error)
            state = State.of(state.identity)
            begin(state)
            skip |= {error.event_id, *set_aside(read(state.applied))}  # not one by one
            state.skip = set(skip)


def set_aside(records: Records) -> Iterator[str]:
    """Ids of the decisions that these records say were not learned from."""
    for _, record in records:
        if isinstance(event := events.decode(record), events.SetAside):
            yield event.event_id


def settled(records: Records, state: State) -> Iterator[events.Settled]:
    """The finished interactions in these records, in the order in which they finished.

    `state` says how long rewards may take; its policy is not asked and learns nothing. What still waited when
    the records end is not finished, and is left out.
    """
    for offset, record in records:
        event = events.decode(record)
        ads = state.catalog.resolve(event) if isinstance(event, events.Chosen) else ()
        for each in state.joiner.settle(offset, event, ads):
            # Whoever reads this has no recommender: its advice is the ads' own.
            advised = events.advised(each.choice.advice, each.ads)
            yield msgspec.structs.replace(each, ads=advised) if each.choice.advice else each
        if isinstance(event, events.SetAside) and event.event_id in state.joiner.open:
            state.joiner.forget([event.event_id])  # as `State.apply` does
        state.catalog.apply(event)
