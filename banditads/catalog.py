"""The ads there are: who may be shown now, and why the others may not.

>>> catalog = Catalog()
>>> catalog.apply(AdsPut(0.0, (Ad("hats"), Ad("shoes", ends=100.0), Ad("tea", placements=("kitchen",)))))
>>> ads, filtered = catalog.eligible(at=200.0, placement="home")
>>> [ad.id for ad in ads], filtered
(['hats'], {'shoes': 'ended', 'tea': 'placement'})
"""

from __future__ import annotations

from collections.abc import Container

from .events import Ad, AdRemoved, AdsPut, Chosen, Event, Saved

MAX_REASONS = 100  # filtered ads named in one decision


class Catalog:
    """Ads by id.

    Attributes
    ----------
    ads
        Sorted by id, so that the order in which ads arrived decides nothing.
    """

    def __init__(self) -> None:
        self.ads: dict[str, Ad] = {}
        self._slate: tuple[tuple[str, ...], tuple[Ad, ...]] = ((), ())  # the last one resolved

    def apply(self, event: Event) -> None:
        """Ads come and go."""
        match event:
            case AdsPut(ads=ads):
                new = {ad.id: ad for ad in ads}
                if new.keys() <= self.ads.keys():
                    self.ads.update(new)
                else:
                    self.ads = dict(sorted({**self.ads, **new}.items()))
            case AdRemoved(ad_id=ad_id):
                self.ads.pop(ad_id, None)
            case _:
                return
        self._slate = ((), ())

    def eligible(
        self,
        *,
        at: float,
        placement: str = "",
        exclude: Container[str] = (),
        among: tuple[Ad, ...] | None = None,
    ) -> tuple[tuple[Ad, ...], dict[str, str]]:
        """Candidates sorted by id, and for at most `MAX_REASONS` others the reason why they are not.

        `among` are the only ones to consider, instead of the whole catalog. House ads step in only when no
        other ad is eligible.
        """
        found, house, filtered = list[Ad](), list[Ad](), dict[str, str]()
        for ad in self.ads.values() if among is None else among:
            reason = _reason(ad, at, placement, exclude)
            if not reason:
                (house if ad.house else found).append(ad)
            elif len(filtered) < MAX_REASONS:
                filtered[ad.id] = reason
        if not found:
            return tuple(house), filtered
        for ad in house[: MAX_REASONS - len(filtered)]:
            filtered[ad.id] = "house"
        return tuple(found), filtered

    def resolve(self, choice: Chosen) -> tuple[Ad, ...]:
        """The ads of a choice that was made just now, as they are in this moment, in its own order."""
        if not choice.inline and choice.ads == self._slate[0]:
            return self._slate[
                1
            ]  # one tuple for all choices among the same ads: it is kept for as long as they wait
        inline = {ad.id: ad for ad in choice.inline}
        ads = tuple(inline.get(ad_id) or self.ads.get(ad_id) or Ad(ad_id) for ad_id in choice.ads)
        if not inline:
            self._slate = (choice.ads, ads)
        return ads

    def dump(self) -> Saved:
        """Ads as they were put."""
        return list(self.ads.values())

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`."""
        self.ads = {ad.id: ad for ad in map(Ad.load, saved)}
        self._slate = ((), ())


def _reason(ad: Ad, at: float, placement: str, exclude: Container[str]) -> str:
    if ad.id in exclude:
        return "excluded"
    if ad.placements and placement not in ad.placements:
        return "placement"
    if ad.starts is not None and at < ad.starts:
        return "not started"
    if ad.ends is not None and at >= ad.ends:
        return "ended"
    return ""
