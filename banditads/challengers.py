"""Challengers: policies that learn from the champion's traffic without being shown, and what they would earn.

Whoever decides is the champion. A challenger is asked about every decision at the moment it is made, with
what was known then, and is told of every outcome; only what it would have done is put down. An outcome r of
an ad that was shown with probability p, and that the challenger would have shown with probability q, says
that it earns w r on average, with w = q / p, and (w - 1) r more than the champion. p is logged and exact, and
the floor that the server mixes into the champion's probabilities is mixed into q too: nothing is guessed.

Both means have bounds that hold at all times at once (`confidence`), so they may be looked at continuously.
A challenger that is no better is taken for better with probability `ALPHA` at most: in all, since each reign
spends its part of that, shared by the challengers there are. Outcomes are counted in the order of the
decisions, never as they arrive: clicks are quicker than silence, and would make everything look good for a
while. What is never known of a decision, because it was given up or erased, counts as what speaks most
against a challenger.

A bound is for the mean over the reign of this champion, while both learned. Nothing here decides: whoever
journals `Promoted` does.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Container, Mapping, Sequence
from math import inf
from typing import Any

import msgspec
import numpy as np

from . import policies
from .confidence import Tail
from .errors import Misconfigured
from .events import Ad, Chosen, Features, Saved
from .policies import Floats, Policy

ALPHA = 0.05  # that a challenger which is no better is ever taken for better; also of every interval
MOST = 8  # challengers; each takes as much time as the champion
MAX_WAITING = 1_000_000  # decisions whose outcome is waited for, in their order; about 300 bytes each


class Figures(msgspec.Struct, array_like=True):
    """What one policy would have earned in this reign, per decision, with rewards scaled to [0, 1]."""

    earned: Tail = msgspec.field(default_factory=Tail)  # w r
    spent: Tail = msgspec.field(default_factory=Tail)  # -w r: its lower bound is an upper one
    gain: Tail = msgspec.field(default_factory=Tail)  # (w - 1) r
    weights: float = 0.0
    squares: float = 0.0  # of weights
    largest: float = 0.0  # weight

    def add(self, weight: float, most: float, reward: float | None) -> None:
        """One more decision, in which the weight could not be above `most`; None is an unknown outcome."""
        low, high = (0.0, 1.0) if reward is None else (reward, reward)
        self.earned.add(weight * low, 0.0)
        self.spent.add(-weight * high, -most)
        self.gain.add((weight - 1) * (high if weight < 1 else low), -1.0)
        self.weights += weight
        self.squares += weight * weight
        self.largest = max(self.largest, weight)

    @property
    def effective_sample_size(self) -> float:
        """How many decisions of the policy's own these are worth, Kish (1965)."""
        return self.weights**2 / self.squares if self.squares else 0.0

    def interval(self) -> tuple[float, float]:
        """Where the value lies, at all times."""
        return max(0.0, self.earned.bound(ALPHA / 2)), min(1.0, -self.spent.bound(ALPHA / 2))


class Waiting(msgspec.Struct, array_like=True, gc=False):
    """A decision whose outcome is not counted yet."""

    weights: tuple[float, ...]  # one for each challenger, in their order
    most: tuple[float, ...]  # what the weights could have been at most, whatever had been shown
    reward: float | None = None


class Challengers:
    """Who challenges the champion, and how they stand.

    Parameters
    ----------
    specs
        A policy and its options each, as `policies.parse` reads them.
    champion
        The same of who decides at the beginning.
    floor
        Share of probability that the server spreads evenly over all candidates.

    Attributes
    ----------
    champion
        Who decides.
    policies, figures
        By name. The champion's policy is the state's.
    failed
        Challengers that cannot be used any more, and why.
    own
        The champion's figures; its weights are 1.
    reign
        How many champions there were, this one included.
    since
        Seconds since the epoch, when this one began; 0 for the first.
    """

    def __init__(self, specs: Sequence[str] = (), champion: str = "", floor: float = 0.0) -> None:
        if len(specs) > MOST:
            raise Misconfigured(f"there may be at most {MOST} challengers")
        if len({*specs, champion}) != len(specs) + 1:
            raise Misconfigured(f"challengers must differ from each other and from {champion!r}")
        self.policies: dict[str, Policy] = {spec: policies.from_spec(spec) for spec in specs}
        self.champion, self.floor = champion, floor
        self.reign, self.since = 0, 0.0
        self.failed: dict[str, str] = {}
        self._begin(0.0)

    def _begin(self, at: float) -> None:
        self.reign, self.since = self.reign + 1, at
        self.own = Figures()
        self.figures = {name: Figures() for name in self.policies}
        self.waiting = OrderedDict[str, Waiting]()  # by event id, oldest decision first

    def see(self, choice: Chosen, ads: Sequence[Ad]) -> None:
        """A decision is being made: ask everybody. `ads` are as the champion saw them."""
        propensities = np.frombuffer(choice.pmf, "<f8")
        weights, most = [], []
        for name in self.policies:
            pmf = self._asked(name, choice.context, ads)
            with np.errstate(divide="ignore", over="ignore"):  # what had no chance to be shown
                ratios = np.divide(pmf, propensities, out=np.zeros(len(ads)), where=pmf > 0)
            weights.append(float(ratios[choice.pick]))
            most.append(float(ratios.max()))
        if forgotten := self.waiting.pop(choice.event_id, None):
            self._count(forgotten)  # now: its id is another decision's from here on
        self.waiting[choice.event_id] = Waiting(tuple(weights), tuple(most))

    def learn(self, choice: Chosen, ads: Sequence[Ad], reward: float, before: float | None) -> None:
        """What the champion learns, they learn. `ads` are as it saw them, rewards are in [0, 1]."""
        for name, policy in self.policies.items():
            if name not in self.failed:
                try:
                    policies.teach(policy, choice, ads, reward, before)
                except Exception as error:  # it would happen again wherever this is folded
                    self.failed[name] = repr(error)

    def hear(self, event_id: str, reward: float) -> None:
        """A decision has come to this, in [0, 1]."""
        if waiting := self.waiting.get(event_id):
            waiting.reward = reward

    def count(self, still_open: Container[str]) -> None:
        """Count what is known, in the order of the decisions, as far as no outcome is missing."""
        while self.waiting:
            event_id, first = next(iter(self.waiting.items()))
            if first.reward is None and event_id in still_open and len(self.waiting) <= MAX_WAITING:
                return
            del self.waiting[event_id]
            self._count(first)

    def _count(self, one: Waiting) -> None:
        self.own.add(1.0, 1.0, one.reward)
        for figures, weight, most in zip(self.figures.values(), one.weights, one.most, strict=True):
            figures.add(weight, most, one.reward)

    def gain(self, name: str) -> tuple[float, float]:
        """What a challenger earns more than the champion: the estimate, and a lower bound for all times."""
        share = ALPHA / (self.reign * (self.reign + 1)) / len(self.policies)  # of all reigns: ALPHA
        tail = self.figures[name].gain
        return tail.mean, tail.bound(share)

    def better(self, after: int) -> list[str]:
        """Who certainly earns more than the champion, the surest first, from `after` decisions on."""
        if self.own.earned.count < max(1, after):
            return []
        found = [(self.gain(name)[1], name) for name in list(self.policies) if name not in self.failed]
        return [name for low, name in sorted(found, reverse=True) if low > 0]

    def can_decide(self, name: str) -> bool:
        """Whether this is a challenger that works."""
        return name in self.policies and name not in self.failed

    def crown(self, name: str, policy: Policy, at: float) -> Policy:
        """Let a challenger be the champion; the old one, whose policy this is, becomes a challenger.

        Gives the new champion's policy. All figures begin anew: they are about another champion.
        """
        crowned = self.policies.pop(name)
        self.policies[self.champion] = policy
        self.champion = name
        self._begin(at)
        return crowned

    def _asked(self, name: str, context: Features, ads: Sequence[Ad]) -> Floats:
        """The distribution of a challenger with the floor; of one that fails now, or did, the floor's."""
        even = np.full(len(ads), 1 / len(ads))
        if name in self.failed:
            return even
        try:
            pmf = self.policies[name].pmf(context, ads)
            if pmf.shape != even.shape or not 0 < (total := float(pmf.sum())) < inf or pmf.min() < 0:
                raise ArithmeticError(f"probabilities are {pmf.tolist()}")
        except Exception as error:
            self.failed[name] = repr(error)
            return even
        return (1 - self.floor) / total * pmf + self.floor * even

    def dump(self) -> Saved:
        """Everything: who is who, what they learned, how they stand, and what is waited for."""
        return [
            [self.champion, self.reign, self.since],
            [
                [name, self.failed.get(name, ""), self.figures[name], self._learned(name)]
                for name in self.policies
            ],
            self.own,
            self.waiting,
        ]

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`, for one who has the same champion: see `crown`."""
        (_, self.reign, self.since), contenders, own, waiting = saved
        self.policies = {name: self.policies[name] for name, *_ in contenders}
        self.failed = {name: why for name, why, *_ in contenders if why}
        self.figures = {name: msgspec.convert(figures, Figures) for name, _, figures, _ in contenders}
        for name, why, _, learned in contenders:
            if not why:
                self.policies[name].load(learned)
        self.own = msgspec.convert(own, Figures)
        self.waiting = OrderedDict(msgspec.convert(waiting, dict[str, Waiting]))

    def _learned(self, name: str) -> Saved:
        return None if name in self.failed else self.policies[name].dump()


def spec(policy: str, options: Mapping[str, Any]) -> str:
    """The name of a policy with these options among others; the same for options that are equal.

    >>> spec("vw", {"epsilon": 0.2, "learning_rate": 1.0, "exploration": "epsilon"})
    'vw:epsilon=0.2,exploration=epsilon,learning_rate=1'
    """
    said = ",".join(f"{name}={_said(value)}" for name, value in sorted(options.items()))
    return f"{policy}:{said}" if said else policy


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
