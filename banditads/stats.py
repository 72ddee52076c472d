"""The numbers on the dashboard. They are part of the state, so a replica shows the same ones."""

from __future__ import annotations

import msgspec

from .events import Chosen, Event, Impressed, Rewarded, Saved, Settled, Unfilled

MAX_ADS = 100_000  # names counted; the rest are counted together
REST = "(other)"


class Counts(msgspec.Struct, array_like=True):
    """Of one ad, or of all of them."""

    choices: int = 0
    rewards: int = 0  # that somebody sent, in time
    reward_sum: float = 0.0  # of those
    expired: int = 0  # choices that nobody rewarded in time
    impressions: int = 0


class Stats:
    """Counts in total, by ad, and of what was not shown.

    `late` rewards came after the window; `unfilled` requests found nothing eligible, for the `reasons` given.
    """

    def __init__(self) -> None:
        self.total = Counts()
        self.ads: dict[str, Counts] = {}
        self.late = 0
        self.unfilled = 0
        self.reasons: dict[str, int] = {}

    def apply(self, event: Event | Settled, *, late: bool = False) -> None:
        """Counts an event, or what it settled; `late` is a reward that settled nothing."""
        match event:
            case Chosen():
                for counts in self._both(event.ad_id):
                    counts.choices += 1
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
            case Unfilled(filtered=filtered):
                self.unfilled += 1
                for reason in filtered.values():
                    self.reasons[reason] = self.reasons.get(reason, 0) + 1

    def _both(self, ad_id: str) -> tuple[Counts, Counts]:
        if ad_id not in self.ads and len(self.ads) >= MAX_ADS:
            ad_id = REST
        return self.total, self.ads.setdefault(ad_id, Counts())

    def dump(self) -> Saved:
        """Every count."""
        return [self.total, self.ads, self.late, self.unfilled, self.reasons]

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`."""
        total, ads, self.late, self.unfilled, self.reasons = saved
        self.total = msgspec.convert(total, Counts)
        self.ads = msgspec.convert(ads, dict[str, Counts])
