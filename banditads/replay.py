"""Yesterday's journal, folded again: recovery, verification and finished interactions.

>>> from banditads.journal import connect
>>> fold(connect("memory:").read(0), State("uniform")).applied
0
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeAlias

from . import events
from .state import State

Records: TypeAlias = Iterable[tuple[int, bytes]]


def fold(records: Records, state: State) -> State:
    """The state after these records: what the server was, or would have been."""
    for offset, record in records:
        state.apply(offset, events.decode(record))
    return state


def settled(records: Records, state: State) -> Iterator[events.Settled]:
    """The finished interactions in these records, in the order in which they finished.

    `state` says how long rewards may take; its policy is not asked and learns nothing. What still waited when
    the records end is not finished, and is left out.
    """
    for offset, record in records:
        event = events.decode(record)
        ads = state.catalog.resolve(event) if isinstance(event, events.Chosen) else ()
        yield from state.joiner.settle(offset, event, ads)
        state.catalog.apply(event)
