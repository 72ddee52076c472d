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
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import msgspec
import numpy as np

from . import policies, recommenders
from .calibration import Calibration
from .catalog import Catalog
from .challengers import Challengers, spec
from .columns import Columns
from .events import (
    Ad,
    AdRemoved,
    AdsPut,
    Chosen,
    Event,
    Features,
    Promoted,
    Rewarded,
    SetAside,
    Settled,
    UserActed,
    UserErased,
    UserPut,
    advised,
    some,
)
from .history import History
from .joiner import Joiner
from .stats import Stats
from .users import DAY, Users

USUAL = "ensemble"  # the policy where nobody named one
MOST = 10.0  # no log odds that are told lie further from 0


class Gap(Exception):
    """An event is missing between the last one applied and this one."""


class Spoilt(Exception):
    """The model has learned a decision that it must not learn. This state is of no more use.

    Fold again from before, with that decision in `skip`: see `replay.fold`.
    """

    def __init__(self, event_id: str, why: str) -> None:
        super().__init__(f"learning from {event_id!r}: {why}")
        self.event_id = event_id


class State:
    """The rooms in order, and the policy.

    Parameters
    ----------
    policy, options
        Name of the policy, and its options.
    reward_min, reward_max
        Range of rewards; policies see it scaled to [0, 1].
    recommender, recommender_options
        Name of what orders a catalog that is too large for the policy, and its options; see `proposing`.
    recommend_from
        Ads that a catalog must hold for the recommender to learn.
    advise
        Whether the policy is told what the recommender says of each ad.
    silence
        When the policy learns that nobody rewarded a choice: "wait", when its time is over; "immediate", as
        soon as it is made, and what it earns besides, should a reward come.
    challengers, floor
        See `Challengers`.
    max_users, half_life
        Options of `Users`.
    joining
        Options of `Joiner`.

    Attributes
    ----------
    skip
        Ids of decisions not to learn from, until the journal says of them that they were set aside.
    identity
        These arguments and the libraries beneath: two states of one identity that know the same events are
        equal.
    """

    PARTS: ClassVar = (
        "catalog",
        "joiner",
        "users",
        "stats",
        "recommender",
        "columns",
        "calibration",
        "history",
        "challengers",
        "policy",  # after who it is
    )

    def __init__(
        self,
        policy: str = USUAL,
        options: Mapping[str, Any] | None = None,
        *,
        reward_min: float = 0.0,
        reward_max: float = 1.0,
        recommender: str = "crosses",
        recommender_options: Mapping[str, Any] | None = None,
        recommend_from: int = recommenders.LARGE,
        advise: bool = False,
        silence: str = "wait",
        max_users: int = 10**6,
        half_life: float = 30 * DAY,
        challengers: Sequence[str] = (),
        floor: float = 0.0,
        **joining: Any,
    ) -> None:
        self.catalog = Catalog()
        self.joiner = Joiner(low=reward_min, high=reward_max, **joining)
        self.users = Users(max_users=max_users, half_life=half_life)
        self.stats = Stats()
        self.columns = Columns()
        self.calibration = Calibration()
        self.history = History()
        self.policy_name, self.policy = policy, policies.make(policy, **(options or {}))
        self.challengers = Challengers(challengers, spec(policy, options or {}), floor)
        self.recommender_name = recommender
        self.recommender_options = dict(recommender_options or {})
        self.recommender = recommenders.make(recommender, **self.recommender_options)
        self.recommend_from, self.advise, self.silence = recommend_from, advise, silence
        self._let_see(self.joiner.waiting)
        self.reward_min, self.reward_max = reward_min, reward_max
        self.applied = 0  # offset of the next event we want
        self.skip: set[str] = set()
        self.identity = {
            "libraries": {
                library: version
                for each in (policy, *challengers)
                for library, version in policies.libraries(policies.parse(each)[0]).items()
            },
            "policy": policy,
            "options": dict(options or {}),
            "reward_min": reward_min,
            "reward_max": reward_max,
            "recommender": recommender,
            "max_users": max_users,
            "half_life": half_life,
            **joining,
        }
        if recommend_from != recommenders.LARGE:  # directories that are older than the argument lack it
            self.identity["recommend_from"] = recommend_from
        if recommender_options:
            self.identity["recommender_options"] = self.recommender_options
        if advise:
            self.identity["advise"] = advise
        if silence != "wait":
            self.identity["silence"] = silence
        if challengers:
            self.identity |= {"challengers": list(challengers), "floor": floor}

    @classmethod
    def of(cls, identity: Mapping[str, Any]) -> State:
        """The state of such an identity that knows nothing yet, with the libraries there are now."""
        return cls(**{name: value for name, value in identity.items() if name != "libraries"})

    def apply(self, offset: int, event: Event) -> None:
        """Come to know one event. Those already known change nothing; one that is missing raises `Gap`.

        Raises `Spoilt` when what is learned leaves a model that cannot be used.
        """
        if offset < self.applied:
            return
        if offset > self.applied:
            raise Gap(f"wanted event {self.applied}, got {offset}")
        self.applied = offset + 1
        ads: tuple[Ad, ...] = ()
        late = False
        if isinstance(event, Chosen):
            ads = self.catalog.resolve(event)
            if self.challengers.policies and not self.joiner.knows(event.event_id):
                # Before anything is learned: they know what the champion knew.
                self.challengers.see(event, advised(event.advice, ads))
        elif isinstance(event, Rewarded):
            late = not self.joiner.in_time(event.event_id, event.at)
            if self.users.profiles and (heard := self.joiner.hear(event)):
                self.users.apply(heard)
        for settled in self.joiner.settle(offset, event, ads):
            self._learn(settled)
            self.stats.apply(settled)
            self.columns.apply(settled)
            self.history.settle(settled, self._scaled(settled.reward))
        self.calibration.pass_time(self.joiner.now)
        if self.challengers.policies:
            self._contest(event)
        if isinstance(event, Chosen):  # the rest of what most events are costs 2 us, and is not for it
            if event.user_id:
                self.users.apply(event)
            self.columns.apply(event, ads)
        else:
            self._change(event)
        self.history.apply(event, offset, self.joiner.now, self.joiner.wait)
        self.stats.apply(event, late=late)
        if self.silence == "immediate" and isinstance(event, Chosen) and self.joiner.waits(offset, event):
            self._teach(event, ads, self.joiner.default)

    def _change(self, event: Event) -> None:
        """What is no choice and changes what is known of ads, users or the model."""
        if isinstance(event, SetAside):
            if event.event_id not in self.skip and self.joiner.knows(event.event_id):
                raise Spoilt(event.event_id, "the journal says that it was set aside")
            self.skip.discard(event.event_id)
            if event.event_id in self.joiner.open:  # it spoilt the model before its reward could
                self.joiner.forget([event.event_id])
        if rows := self.catalog.apply(event):
            assert isinstance(event, AdsPut | AdRemoved)
            self.recommender.apply(event, rows)
        self.users.apply(event)
        if isinstance(event, UserActed | UserErased | UserPut):
            self._recommend_for(event)

    def _learn(self, settled: Settled) -> None:
        """Learn from what a choice earned."""
        choice = settled.choice
        if choice.event_id in self.skip:
            return
        self.calibration.apply(settled, self._scaled(settled.reward), self.joiner.wait)
        if self.silence == "wait":
            self._teach(choice, settled.ads, settled.reward)
        elif settled.reward != self.joiner.default:
            self._teach(choice, settled.ads, settled.reward, before=self._scaled(self.joiner.default))
        if self.challengers.policies:
            self.challengers.hear(choice.event_id, self._scaled(settled.reward))
        if len(self.catalog.ads) >= self.recommend_from:
            user = choice.user_id if choice.user_id in self.users.profiles else ""
            reward = self._scaled(settled.reward)
            try:
                self.recommender.learn(settled, self.catalog.row(choice.ad_id), reward, user)
            except Exception as error:
                raise Spoilt(choice.event_id, repr(error)) from error

    def _teach(
        self, choice: Chosen, as_chosen: Sequence[Ad], earned: float, before: float | None = None
    ) -> None:
        """A step of the policy, and a look at what came of it. `before` is what it had learned so far."""
        if choice.event_id in self.skip:
            return
        reward = self._scaled(earned)
        if not (0 <= reward <= 1 and 0 < choice.probability <= 1):
            raise Spoilt(choice.event_id, f"reward {reward}, propensity {choice.probability}")
        ads = advised(choice.advice, as_chosen)
        try:
            policies.teach(self.policy, choice, ads, reward, before)
            sound = getattr(self.policy, "sound", None)
            if sound is None:  # the ad that was shown and one more have every weight that was touched
                pair = some(ads, (choice.pick, choice.pick - 1)[: len(ads)])
                sound = abs(self.policy.pmf(choice.context, pair).sum() - 1) < 1e-6  # NaN is not
        except Exception as error:  # whatever it was, it would happen again at every start
            raise Spoilt(choice.event_id, repr(error)) from error
        if not sound:
            raise Spoilt(choice.event_id, "the model is not finite any more")
        if self.challengers.policies:
            self.challengers.learn(choice, ads, reward, before)

    def _contest(self, event: Event) -> None:
        """Count what challengers would have earned; exchange the champion, if the new one is here."""
        self.challengers.count(self.joiner.open)
        if isinstance(event, Promoted) and self.challengers.can_decide(event.policy):
            self._crown(event.policy, event.at)

    def _crown(self, name: str, at: float) -> None:
        """Let a challenger decide."""
        self._let_see({})
        self.policy = self.challengers.crown(name, self.policy, at)
        self.policy_name = name.partition(":")[0]
        self._let_see(self.joiner.waiting)

    def _let_see(self, waiting: Mapping[str, int]) -> None:
        """Let the policy see what waits for its reward, unless it has learned silence at once."""
        if hasattr(self.policy, "waiting") and self.silence == "wait":
            self.policy.waiting = waiting

    def _scaled(self, reward: float) -> float:
        """As policies see it."""
        return (reward - self.reward_min) / (self.reward_max - self.reward_min)

    def advice(self, ads: tuple[Ad, ...], context: Features, user: str) -> bytes:
        """What the policy is told of these ads, for `Chosen.advice`; empty where it is told nothing.

        The log odds of each; their mean for an ad that is not in the catalog.
        """
        if not self.advise or len(self.catalog.ads) < self.recommend_from:
            return b""
        rows = [self.catalog.row(ad.id) for ad in ads]
        known = [row for row in rows if row is not None]
        odds = np.clip(self.recommender.start + self.recommender.scores(context, user)[known], -MOST, MOST)
        if len(known) < len(rows):
            mean = odds.mean() if known else self.recommender.start
            said = np.full(len(rows), mean, "<f4")
            said[[row is not None for row in rows]] = odds
            odds = said
        return odds.astype("<f4").tobytes()

    def in_rewards(self, promised: float | None) -> float | None:
        """What a policy sees within [0, 1], in the range of rewards."""
        return None if promised is None else self.reward_min + promised * (self.reward_max - self.reward_min)

    def _recommend_for(self, event: UserActed | UserErased | UserPut) -> None:
        """Tell the recommender of a user: nothing is learned of anybody who has no profile."""
        if event.user not in self.users.profiles:
            self.recommender.forget(event.user)
        elif isinstance(event, UserActed) and len(self.catalog.ads) >= self.recommend_from:
            rows = [row for act in event.acts if (row := self.catalog.row(act.item)) is not None]
            self.recommender.acted(event.user, rows)

    def dump(self) -> bytes:
        """Everything, as bytes; equal states give equal bytes."""
        return msgspec.msgpack.encode([self.applied, [getattr(self, part).dump() for part in self.PARTS]])

    def load(self, raw: bytes) -> None:
        """The inverse of `dump`."""
        self.applied, saved = msgspec.msgpack.decode(raw)
        for part, data in zip(self.PARTS, saved, strict=True):
            if part == "recommender":  # learned by row; what the rows hold is the catalog's
                self.recommender = recommenders.make(self.recommender_name, **self.recommender_options)
                if ads := self.catalog.in_rows():
                    self.recommender.apply(AdsPut(0.0, ads), range(len(ads)))
            if part == "challengers" and data[0][0] != self.challengers.champion:
                self._crown(data[0][0], 0.0)
            getattr(self, part).load(data)

    def digest(self) -> str:
        """A fingerprint that two replicas on equal machines can compare."""
        return hashlib.blake2b(self.dump(), digest_size=8).hexdigest()
