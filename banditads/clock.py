"""The time that events carry: the system's clock, except that a leap forwards must last to be believed.

Silence is learned when time has passed, so a clock that is set an hour ahead by mistake would teach the model
that nobody clicked on anything. The monotonic clock, which nobody sets, shows the leap. A step backwards is
harmless: decisions expire by the newest time seen.

>>> walls, steadies = iter([100.0, 101.0, 4000.0]), iter([0.0, 1.0, 2.0])
>>> clock = Clock(wall=lambda: next(walls), steady=lambda: next(steadies))
>>> clock(), clock(), clock.ahead
(101.0, 102.0, 3898.0)
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

LEAP = 300.0  # seconds at once that no drift or daemon moves a clock
HOLD = 300.0  # seconds for somebody to put it right


class Clock:
    """Seconds since the epoch.

    Attributes
    ----------
    ahead
        Seconds by which the system's clock is ahead of what is said here; 0 but after a leap.
    """

    def __init__(
        self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic
    ) -> None:
        self._wall, self._steady = wall, steady
        self._epoch = wall() - steady()  # when the steady clock was 0
        self._leapt = 0.0  # when it leapt, by the steady clock
        self.ahead = 0.0

    def __call__(self) -> float:
        """Now. One thread at a time."""
        wall, steady = self._wall(), self._steady()
        ahead = wall - (self._epoch + steady)
        if ahead > LEAP:
            if not self.ahead:
                self._leapt = steady
                log.critical(
                    "the clock leapt %.0f s ahead and is not followed for %.0f s: set it back if it is wrong",
                    ahead,
                    HOLD,
                )
            if steady - self._leapt < HOLD:
                self.ahead = ahead
                return self._epoch + steady
        if self.ahead:
            log.warning("the system's clock is followed again")
        self.ahead, self._epoch = 0.0, wall - steady
        return wall
