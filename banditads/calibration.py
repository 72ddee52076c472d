"""How far expected rewards can be believed, and what they are once that is taken into account.

A policy says at choice time what it expects the ad to earn. Policies are bold or timid: what they expect one
time in ten may happen one time in seven. Here their expectations are bent, by a straight line between log
odds, towards what really happened; and what was promised is set beside what came, in groups of like promises.
Every showing counts `KEEP` times the next one, so all of it follows a world that changes.

Outcomes count in the order of the decisions, when the time of each is over, and not as they come: clicks are
quicker than silence, and until the first window is over there would be nothing but clicks.

Sources: Platt 1999 (the line), its two numbers learned one reward at a time by Newton's step, as in Penny,
Roberts 1999 ("Dynamic logistic regression"); Naeini, Cooper, Hauskrecht 2015 (expected calibration error).

>>> Calibration().of(0.1)
0.1
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from math import exp, log

import msgspec

from .events import Saved, Settled

KEEP = 1 - 1 / 10_000
TRUST = 5.0  # precision, of both numbers, of the line that changes nothing; learning begins there
LEAST = 1e-3  # expectations nearer to 0 or 1 count as this: who is sure must not outweigh all others
FAR = 14.0  # no promise has longer odds: one in a million
STEEPEST = 20.0  # slope of the line
WIDTH = 0.5  # of a group, in log odds
GROUPS = 29  # the one in the middle begins at even odds; the outer two hold all beyond
ENOUGH = 1000.0  # showings, and
OUTCOMES = 50.0  # rewards among them, before an error is worth a word
MAX_EARLY = 100_000  # outcomes that came early and wait for their time; beyond, one does not count


class Group(msgspec.Struct, array_like=True):
    """Showings of which about the same was expected. Rewards are within [0, 1]."""

    last: int = 0  # number of the showing that changed it last; the sums are as of then
    count: float = 0.0
    expected: float = 0.0  # sum of what the policy expected
    promised: float = 0.0  # sum of what was said instead
    earned: float = 0.0  # sum of rewards

    def at(self, number: int) -> Group:
        """As it counts at the showing of this number, at or after `last`."""
        keep = KEEP ** (number - self.last)
        sums = (self.count, self.expected, self.promised, self.earned)
        return Group(number, *[keep * each for each in sums])


class Reliability(msgspec.Struct):
    """What was promised and what came, for people. Means lie within [0, 1], as policies see rewards.

    The errors are what a promise is off on average, over like promises: `raw` of the policy, `calibrated` of
    what is said. They are None while there is too little to say.
    """

    showings: float  # counted; old ones count less
    raw: float | None
    calibrated: float | None
    groups: list[tuple[float, float, float, float]]  # showings; means expected, promised and earned


class Calibration:
    """The line, and the groups."""

    def __init__(self) -> None:
        self.number = 0  # showings learned from
        self.arrived = 0  # outcomes, so that those of one time have an order
        self.start, self.slope = 0.0, 1.0  # odds that are said = start + slope * odds that were expected
        self.precision = [TRUST, 0.0, TRUST]  # of start, of both together, and of slope
        self.groups = [Group() for _ in range(GROUPS)]
        self.early: list[
            tuple[float, int, float, float, float]
        ] = []  # a heap: when to count; number; the rest

    def of(self, expected: float) -> float:
        """What will be earned where a policy expects this, both in [0, 1]; never falls as that rises."""
        if (self.start, self.slope) == (0.0, 1.0):
            return expected
        return self._said(_odds(expected))

    def apply(self, settled: Settled, reward: float, wait: float = 0.0) -> None:
        """What was expected earned `reward`, in [0, 1]; counts `wait` seconds after the choice. 4 us."""
        expected, promised = settled.choice.expected, settled.choice.promised
        if expected is None or promised is None:
            return
        over = settled.choice.at + wait
        if over <= settled.at or len(self.early) < MAX_EARLY:
            self.arrived += 1
            heappush(self.early, (over, self.arrived, expected, promised, reward))

    def pass_time(self, now: float) -> None:
        """Count outcomes whose time is over, in its order, whenever this is asked for."""
        while self.early and self.early[0][0] <= now:
            self._count(*heappop(self.early)[2:])

    def _count(self, expected: float, promised: float, reward: float) -> None:
        self.number += 1
        odds = _odds(expected)
        place = min(GROUPS - 1, max(0, int(_odds(promised) / WIDTH + GROUPS / 2)))
        group = self.groups[place].at(self.number)
        self.groups[place] = group
        group.count += 1
        group.expected += expected
        group.promised += promised
        group.earned += reward
        self._learn(odds, self._said(odds), reward)

    def _said(self, odds: float) -> float:
        return 1 / (1 + exp(-max(-FAR, min(FAR, self.start + self.slope * odds))))

    def _learn(self, odds: float, said: float, reward: float) -> None:
        """Newton's step. What is forgotten of the precision is replaced by that of the beginning."""
        weight, forgotten = said * (1 - said), (1 - KEEP) * TRUST
        a, b, c = self.precision
        a, b, c = (
            KEEP * a + weight + forgotten,
            KEEP * b + weight * odds,
            KEEP * c + weight * odds * odds + forgotten,
        )
        self.precision = [a, b, c]
        step = (reward - said) / (a * c - b * b)
        self.start += step * (c - b * odds)
        self.slope = min(STEEPEST, max(0.0, self.slope + step * (a * odds - b)))

    def reliability(self) -> Reliability:
        """Promises beside outcomes."""
        groups = [group for each in self.groups if (group := each.at(self.number)).count >= 0.5]
        showings = sum(group.count for group in groups)
        enough = showings >= ENOUGH and sum(group.earned for group in groups) >= OUTCOMES
        return Reliability(
            showings,
            _error([group.expected - group.earned for group in groups], showings) if enough else None,
            _error([group.promised - group.earned for group in groups], showings) if enough else None,
            [
                (n, each.expected / n, each.promised / n, each.earned / n)
                for each in groups
                if (n := each.count)
            ],
        )

    def dump(self) -> Saved:
        """Everything."""
        early = sorted(self.early)
        return [self.number, self.arrived, self.start, self.slope, self.precision, self.groups, early]

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`."""
        self.number, self.arrived, self.start, self.slope, self.precision, groups, early = saved
        self.early = [(each[0], each[1], each[2], each[3], each[4]) for each in early]
        heapify(self.early)
        self.groups = msgspec.convert(groups, list[Group])


def _odds(chance: float) -> float:
    chance = min(1 - LEAST, max(LEAST, chance))
    return log(chance / (1 - chance))


def _error(differences: Sequence[float], showings: float) -> float:
    return sum(map(abs, differences)) / showings
