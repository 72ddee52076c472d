"""The state of an ad server, and the one way it changes: `apply(offset, event)`.

Live traffic, crash recovery, replicas and offline replay all come through here. `apply` reads no clock,
throws no dice, does no I/O and never refuses: events were checked before they were written.

>>> state = State("uniform")
>>> state.apply(0, AdsPut(0.0, (Ad("shoes"),)))
>>> state.apply(0, AdsPut(0.0, (Ad("hats"),)))  # delivered again: already counted
>>> list(state.catalog.ads), state.applied
(['shoes'], 1)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar

import msgspec

from . import policies
from .catalog import Catalog
from .events import Ad, AdsPut, Chosen, Event, Rewarded, Settled  # noqa: F401  (Ad, AdsPut: for the doctest)
from .joiner import Joiner
from .stats import Stats


class Gap(Exception):
    """An event is missing between the last one applied and this one."""


class State:
    """The rooms in order, and the policy.

    Parameters
    ----------
    policy, options
        Name of the policy, and its options.
    reward_min, reward_max
        Range of rewards; policies see it scaled to [0, 1].
    joining
        Options of `Joiner`.

    Attributes
    ----------
    identity
        These arguments and the libraries beneath: two states of one identity that know the same events are
        equal.
    """

    PARTS: ClassVar = ("catalog", "joiner", "stats", "policy")

    def __init__(
        self,
        policy: str = "vw",
        options: Mapping[str, Any] | None = None,
        *,
        reward_min: float = 0.0,
        reward_max: float = 1.0,
        **joining: Any,
    ) -> None:
        self.catalog = Catalog()
        self.joiner = Joiner(**joining)
        self.stats = Stats()
        self.policy_name = policy
        self.policy = policies.make(policy, **(options or {}))
        self.reward_min, self.reward_max = reward_min, reward_max
        self.applied = 0  # offset of the next event we want
        self.identity = {
            "libraries": policies.libraries(policy),
            "policy": policy,
            "options": dict(options or {}),
            "reward_min": reward_min,
            "reward_max": reward_max,
            **joining,
        }

    @classmethod
    def of(cls, identity: Mapping[str, Any]) -> State:
        """The state of such an identity that knows nothing yet, with the libraries there are now."""
        return cls(**{name: value for name, value in identity.items() if name != "libraries"})

    def apply(self, offset: int, event: Event) -> None:
        """Come to know one event. Those already known change nothing; one that is missing raises `Gap`."""
        if offset < self.applied:
            return
        if offset > self.applied:
            raise Gap(f"wanted event {self.applied}, got {offset}")
        self.applied = offset + 1
        ads = self.catalog.resolve(event) if isinstance(event, Chosen) else ()
        landed = False
        for settled in self.joiner.settle(offset, event, ads):
            self._learn(settled)
            self.stats.apply(settled)
            landed = landed or not settled.silent
        self.catalog.apply(event)
        self.stats.apply(event, late=isinstance(event, Rewarded) and not landed)

    def _learn(self, settled: Settled) -> None:
        choice = settled.choice
        reward = (settled.reward - self.reward_min) / (self.reward_max - self.reward_min)
        self.policy.learn(choice.context, settled.ads, choice.pick, reward, choice.probability)

    def dump(self) -> bytes:
        """Everything, as bytes; equal states give equal bytes."""
        return msgspec.msgpack.encode([self.applied, [getattr(self, part).dump() for part in self.PARTS]])

    def load(self, raw: bytes) -> None:
        """The inverse of `dump`."""
        self.applied, saved = msgspec.msgpack.decode(raw)
        for part, data in zip(self.PARTS, saved, strict=True):
            getattr(self, part).load(data)

    def digest(self) -> str:
        """A fingerprint that two replicas on equal machines can compare."""
        return hashlib.blake2b(self.dump(), digest_size=8).hexdigest()
