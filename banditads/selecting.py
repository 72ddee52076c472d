"""Which rounds of a log are judged, and what they are told apart by.

A window is of decisions, by when they were made or by their place in the journal, whenever they settled.
Policies begin knowing nothing at its beginning; with `warm` they have learned what came before.

>>> Selection(since=10.0, until=20.0).place(at=15.0, offset=-1)
0
"""

from __future__ import annotations

from datetime import UTC, datetime
from math import isfinite

import msgspec
import numpy as np
from numpy.typing import NDArray

from .errors import Invalid
from .events import Settled

AD, PLACEMENT = "ad", "placement"  # words of `by` that are no feature of the context
NONE, OTHER = "(none)", "(other)"
GROUPS = 20  # shown; the rounds of all others are one
KNOWN = 10_000  # values told apart while a log is read


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """A window, open at its end, and what to group by. None is no bound."""

    since: float | None = None  # seconds since the epoch
    until: float | None = None
    first_offset: int | None = None  # of the decision in the journal
    end_offset: int | None = None
    by: str = ""  # a feature of the context, "placement" or "ad"; empty: no groups
    warm: bool = False  # learn from what came before the window

    def check(self) -> Selection:
        """The same. Raises `Invalid` for a window that can hold nothing."""
        for low, high in (("since", "until"), ("first_offset", "end_offset")):
            begin, end = getattr(self, low), getattr(self, high)
            for name, value in ((low, begin), (high, end)):
                if value is not None and not (isfinite(value) and 0 <= value < 2**63):
                    raise Invalid("must be a number from 0 on", name)
            if begin is not None and end is not None and begin >= end:
                raise Invalid(f"must be after {low}", high)
        if len(self.by) > 128 or not self.by.isprintable():
            raise Invalid("may have at most 128 printable characters", "by")
        if self.warm and self.since is None and self.first_offset is None:
            raise Invalid("there is nothing before a window that has no beginning", "warm")
        return self

    def place(self, at: float, offset: int) -> int:
        """-1 before the window, 0 in it, 1 after it. Raises `Invalid` for an offset that is not known."""
        if offset < 0 and (self.first_offset is not None or self.end_offset is not None):
            raise Invalid("this log does not say at which offset its decisions were", "first_offset")
        if (self.until is not None and at >= self.until) or (
            self.end_offset is not None and offset >= self.end_offset
        ):
            return 1
        early = (self.since is not None and at < self.since) or (
            self.first_offset is not None and offset < self.first_offset
        )
        return -1 if early else 0

    def label(self, settled: Settled) -> str:
        """What a round is told from others by."""
        choice = settled.choice
        if not self.by:
            return ""
        if self.by == AD:
            return choice.ad_id
        value = choice.placement or None if self.by == PLACEMENT else choice.context.get(self.by)
        return NONE if value is None else value if isinstance(value, str) else f"{value:g}"


class Labels:
    """Numbers for labels, in the order in which they are first met; those beyond `KNOWN` share one."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    def number(self, label: str) -> int:
        """The number of a label."""
        number = self._numbers.get(label)
        if number is None:
            label = label if len(self._numbers) < KNOWN else OTHER
            number = self._numbers.setdefault(label, len(self._numbers))
        return number

    @property
    def all(self) -> list[str]:
        """Every label, at its number."""
        return list(self._numbers)


def groups(numbers: NDArray[np.int32], labels: list[str]) -> dict[str, NDArray[np.bool_]]:
    """Label -> which rounds, shape (n,): the `GROUPS` that have most rounds, most first, then all others.

    >>> {label: which.tolist() for label, which in groups(np.array([1, 0, 1]), ["tea", "hats"]).items()}
    {'hats': [True, False, True], 'tea': [False, True, False]}
    """
    counts = np.bincount(numbers, minlength=len(labels))
    order = [int(each) for each in np.argsort(-counts, kind="stable") if counts[each]]
    shown = [each for each in order if labels[each] != OTHER][:GROUPS]
    found = {labels[each]: numbers == each for each in shown}
    if len(shown) < len(order):
        found[OTHER] = ~np.isin(numbers, shown)
    return found


def moment(text: str) -> float:
    """Seconds since the epoch, from such a number or ISO 8601; without a zone it is UTC. Raises `ValueError`.

    >>> moment("1970-01-02"), moment("1970-01-01T01:00+01:00"), moment("12.5")
    (86400.0, 0.0, 12.5)
    """
    try:
        return float(text)
    except ValueError:
        found = datetime.fromisoformat(text)
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
