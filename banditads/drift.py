"""Whether a series of means has changed, by River's ADWIN, and when.

ADWIN (Bifet, Gavaldà 2007) keeps the longest window in which no two parts differ by more than chance would
have it. It is fed what `history` keeps, from the beginning, each time somebody asks: so it has no state of
its own that could differ after a restart. A series counts in units of its noise, which is what neighbours
differ by (von Neumann 1941); a change leaves that as it was.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

LEAST = 20  # means, below which nothing is said
DELTA = (
    1e-3  # of ADWIN, which is careful: of 20,000 series that did not change, it took none for one that had
)
CLEAR = 4.0  # standard errors by which both sides of the newest change must differ
AROUND = 5  # means on either side of it, at least


class Change(NamedTuple):
    """The newest change of a series."""

    at: float  # when what is new began, seconds since the epoch
    before: float  # mean, from the change before on
    after: float


def newest(series: Sequence[tuple[float, float]]) -> Change | None:
    """The newest change of (time, mean)s; None if chance explains all.

    >>> newest([(float(n), n % 3 + 9.0 * (n >= 50)) for n in range(100)])
    Change(at=50.0, before=0.98, after=10.0)
    """
    values = np.array([value for _, value in series])
    if len(values) < LEAST:
        return None
    noise = float(np.sqrt(np.mean(np.diff(values) ** 2) / 2))
    if noise <= 1e-12 * max(1.0, float(np.abs(values).max())):
        return None
    make: Any = importlib.import_module("river.drift").ADWIN  # .6 s: only who asks waits for it

    detector: Any = make(delta=DELTA, clock=1, grace_period=AROUND, min_window_length=AROUND)
    cuts = [0]
    for number, value in enumerate(((values - values[0]) / noise).tolist(), 1):
        detector.update(value)
        if detector.drift_detected:
            cuts.append(number - int(detector.width))
    if len(cuts) < 2:
        return None
    cut = _sharpened(values, max(0, cuts[-2]), cuts[-1])
    before, after = values[max(0, cuts[-2]) : cut], values[cut:]
    if min(len(before), len(after)) < AROUND:
        return None
    error = noise * (1 / len(before) + 1 / len(after)) ** 0.5
    if abs(after.mean() - before.mean()) < CLEAR * error:
        return None
    return Change(series[cut][0], float(before.mean()), float(after.mean()))


def _sharpened(values: Floats, begin: int, cut: int) -> int:
    """Where both sides differ most: ADWIN drops whole buckets, so its own cut comes early or late."""
    window = values[begin:]
    places = np.arange(AROUND, len(window) - AROUND + 1)
    if not len(places):
        return cut
    sums = np.cumsum(window)
    left = sums[places - 1] / places
    right = (sums[-1] - sums[places - 1]) / (len(window) - places)
    gain = (left - right) ** 2 * places * (len(window) - places)
    return begin + int(places[gain.argmax()])
