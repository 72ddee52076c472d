"""The numbers on the dashboard. They are part of the state, so a replica shows the same ones."""

from __future__ import annotations

import msgspec

from .events import Chosen, Event, Impressed, Rewarded, Saved, SetAside, Settled, Unfilled, most_probable

MAX_ADS = 100_000  # names counted; the rest are counted together
REST = "(other)"
RECENT = 500  # choices that a recent average goes back over


class Counts(msgspec.Struct, array_like=True):
    """Of one ad, or of all of them."""

    choices: int = 0
    rewards: int = 0  # that somebody sent, in time
    reward_sum: float = 0.0  # of those
    expired: int = 0  # choices that nobody rewarded in time
    impressions: int = 0


class Recent(msgspec.Struct, array_like=True):
    """How choices among several ads were spread of late: averages over about `RECENT` of them."""

    top: str = ""  # the ad that is mostly the most probable one
    top_share: float = 0.5  # of choices in which it is
    left_over: float = 1.0  # probability of all ads but the most probable one

    def see(self, choice: Chosen) -> None:
        """One more choice; one without an alternative says nothing."""
        if len(choice.ads) == 1:
            return
        best, most = most_probable(choice.pmf)
        self.left_over += (1 - most - self.left_over) / RECENT
        if choice.ads[best] == self.top:
            self.top_share += (1 - self.top_share) / RECENT
        else:
            self.top_share -= self.top_share / RECENT
            if self.top_share < 0.5:
                self.top, self.top_share = choice.ads[best], 0.5


class Signals(msgspec.Struct, array_like=True):
    """What visitors did, of one kind."""

    count: int = 0
    amount: float = 0.0  # money of conversions, seconds of dwells


class Stats:
    """Counts in total, by ad, and of what was not shown.

    `late` rewards came after the window; `unfilled` requests found nothing eligible, for the `reasons` given;
    `set_aside` decisions were not learned from, because that spoilt the model; `signals` are what
    visitors did, whether it counted or not.
    """

    def __init__(self) -> None:
        self.total = Counts()
        self.ads: dict[str, Counts] = {}
        self.late = 0
        self.unfilled = 0
        self.reasons: dict[str, int] = {}
        self.recent = Recent()
        self.set_aside = 0
        self.set_aside_id = ""  # the last of them
        self.set_aside_at = 0.0
        self.signals: dict[str, Signals] = {}  # by kind

    def apply(self, event: Event | Settled, *, late: bool = False) -> None:
        """Counts an event, or what it settled; `late` is a reward that settled nothing."""
        match event:
            case Chosen():
                self.total.choices += 1
                self._of(event.ad_id).choices += 1
                self.recent.see(event)
            case Settled(choice=choice, silent=True):
                for counts in self._both(choice.ad_id):
                    counts.expired += 1
            case Settled(choice=choice, reward=reward):
                for counts in self._both(choice.ad_id):
                    counts.rewards += 1
                    counts.reward_sum += reward
            case Impressed(ad_id=ad_id):
                for counts in self._both(ad_id):
                    counts.impressions += 1
            case Rewarded():
                self.late += late
                self._signal(event.kind, event.amount)
            case SetAside():
                self.set_aside += 1
                self.set_aside_id, self.set_aside_at = event.event_id, event.at
            case Unfilled(filtered=filtered):
                self.unfilled += 1
                for reason in filtered.values():
                    self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def _signal(self, kind: str, amount: float) -> None:
        if kind:
            signals = self.signals.setdefault(kind, Signals())
            signals.count += 1
            signals.amount += amount

    def _both(self, ad_id: str) -> tuple[Counts, Counts]:
        return self.total, self._of(ad_id)

    def _of(self, ad_id: str) -> Counts:
        counts = self.ads.get(ad_id)
        if counts is None:
            counts = self.ads.setdefault(ad_id if len(self.ads) < MAX_ADS else REST, Counts())
        return counts

    def dump(self) -> Saved:
        """Every count."""
        aside = [self.set_aside, self.set_aside_id, self.set_aside_at]
        return [
            self.total, self.ads, self.late, self.unfilled, self.reasons, self.recent, aside, self.signals
        ]  # fmt: skip

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`."""
        total, ads, self.late, self.unfilled, self.reasons, recent, aside, signals = saved
        self.total = msgspec.convert(total, Counts)
        self.ads = msgspec.convert(ads, dict[str, Counts])
        self.recent = msgspec.convert(recent, Recent)
        self.set_aside, self.set_aside_id, self.set_aside_at = aside
        self.signals = msgspec.convert(signals, dict[str, Signals])
