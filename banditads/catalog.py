"""The ads there are: who may be shown now, and why the others may not.

Who may be shown at a placement is worked out once and then kept: an ad that changes, or whose flight begins
or ends, is put in its new place by bisection, and all others stay where they are.

>>> catalog = Catalog()
>>> tea = Ad("tea", placements=("kitchen",))
>>> rows = catalog.apply(AdsPut(0.0, (Ad("hats"), Ad("shoes", ends=100.0), tea)))
>>> found = catalog.eligible(at=200.0, placement="home")
>>> found.ids, found.filtered
(('hats',), {'shoes': 'ended', 'tea': 'placement'})
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import islice
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .events import Ad, AdRemoved, AdsPut, Chosen, Event, Saved

MAX_REASONS = 100  # filtered ads named in one decision
MAX_SLATES = 32  # placements kept ready; 1.7 MB each with 100,000 ads
FEW = 256  # changes that are made one by one; more are sorted in together
OTHER, SHOWN, HOUSE = 0, 1, 2  # at a placement: not eligible, eligible, or if nothing else is


class Candidates(NamedTuple):
    """Eligible ads sorted by id, and for at most `MAX_REASONS` others the reason why they are not."""

    ads: tuple[Ad, ...]
    ids: tuple[str, ...]
    filtered: dict[str, str]  # ad id -> reason


class Crowd(NamedTuple):
    """Eligible ads that are too many to be copied for one request."""

    ids: Sequence[str]  # sorted; those that were excluded are still among them. Not to be changed
    excluded: Collection[str]
    open: NDArray[np.bool_]  # (n_rows,), whether the ad of that row of the catalog is eligible
    filtered: dict[str, str]


_NOTHING = Candidates((), (), {})


class Catalog:
    """Ads by id.

    Attributes
    ----------
    ads
        By id, in no order.
    rows
        Their ids in the order of everybody's arrays: a new ad takes the next row; where one leaves, the last
        takes its row.
    ids
        The same ids, sorted, so that the order in which ads arrived decides nothing.
    """

    def __init__(self) -> None:
        self.ads: dict[str, Ad] = {}
        self.rows: list[str] = []
        self.ids: list[str] = []
        self._row: dict[str, int] = {}
        self._resolved = _NOTHING  # the last choice
        self._index()

    def apply(self, event: Event) -> Sequence[int]:
        """Ads come and go. The rows of those that came, in their order, or the row that one left."""
        match event:
            case AdsPut(ads=ads):
                return self._put(ads)
            case AdRemoved(ad_id=ad_id) if ad_id in self.ads:
                return (self._remove(ad_id),)
        return ()

    def in_rows(self) -> tuple[Ad, ...]:
        """All ads, row by row."""
        return tuple(map(self.ads.__getitem__, self.rows))

    def row(self, ad_id: str) -> int | None:
        """Where an ad stands in `rows`; None if it is not in the catalog."""
        return self._row.get(ad_id)

    def eligible(
        self,
        *,
        at: float,
        placement: str = "",
        exclude: Collection[str] = (),
        among: tuple[Ad, ...] | None = None,
    ) -> Candidates:
        """Who may be shown.

        `among` are the only ones to consider, sorted by id, instead of the whole catalog. House ads step in
        only when no other ad is eligible. Where nothing is excluded, the answer is the same object until
        something changes at this placement.
        """
        if among is not None:
            return _scan(among, at, placement, exclude)
        slate = self._slate(at, placement)
        if not exclude or not (gone := self._known(exclude)):
            return slate.everyone()
        return slate.candidates(gone)

    def crowd(self, *, at: float, placement: str, exclude: Collection[str], above: int) -> Crowd | None:
        """Who may be shown, if those are more than `above`. Costs nothing per ad but a look at an array."""
        slate = self._slate(at, placement)
        gone = self._known(exclude)
        rows = [self._row[ad_id] for ad_id in gone]
        for side in (SHOWN, HOUSE):
            ids = slate.sides[side].ids
            left = len(ids) - sum(slate.side[row] == side for row in rows)
            if left:
                break
        if left <= above:
            return None
        open = np.frombuffer(slate.side, np.uint8) == side
        open[rows] = False
        return Crowd(ids, gone, open, slate.filtered(gone, house=side == SHOWN))

    def resolve(self, choice: Chosen) -> tuple[Ad, ...]:
        """The ads of a choice that was made just now, as they are in this moment, in its own order."""
        if not choice.inline:
            # One tuple for all choices among the same ads: it is kept for as long as they wait.
            slate = self._slates.get(choice.placement) or self._slates.get("")
            for known in (slate and slate.kept, self._resolved):
                if known and (known.ids is choice.ads or known.ids == choice.ads):
                    return known.ads
        inline = {ad.id: ad for ad in choice.inline}
        ads = tuple(inline.get(ad_id) or self.ads.get(ad_id) or Ad(ad_id) for ad_id in choice.ads)
        if not inline:
            self._resolved = Candidates(ads, choice.ads, {})
        return ads

    def dump(self) -> Saved:
        """Ads as they were put, row by row."""
        return self.in_rows()

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`."""
        self.ads = {ad.id: ad for ad in map(Ad.load, saved)}
        self.rows, self.ids = list(self.ads), list(self.ads)
        self._row = {ad_id: row for row, ad_id in enumerate(self.rows)}
        self._index()

    def _known(self, ad_ids: Collection[str]) -> list[str]:
        return sorted(ad_id for ad_id in ad_ids if ad_id in self.ads)

    def _put(self, ads: tuple[Ad, ...]) -> list[int]:
        rows, new, few = list[int](), set[str](), len(ads) <= FEW
        for ad in ads:
            old = self.ads.get(ad.id)
            if old is None:
                self._row[ad.id] = len(self.rows)
                self.rows.append(ad.id)
                new.add(ad.id)
            self.ads[ad.id] = ad
            rows.append(self._row[ad.id])
            if few:
                self._change(old, ad)
        if not few:
            self.ids += new
            self._index()
        return rows

    def _remove(self, ad_id: str) -> int:
        old, row, last = self.ads.pop(ad_id), self._row.pop(ad_id), self.rows.pop()
        if last != ad_id:
            self.rows[row], self._row[last] = last, row
        self._change(old, None, row)
        return row

    def _index(self) -> None:
        """Forget what is kept, after more than a few changes."""
        self.ids.sort()  # fast: most are in order
        self._moments = sorted(moment for ad in self.ads.values() for moment in _moments(ad))
        self._named = Counter(name for ad in self.ads.values() for name in ad.placements)
        self._slates: dict[str, _Slate] = {}  # by placement; that of "" is for all that no ad names
        self._resolved = _NOTHING

    def _change(self, old: Ad | None, new: Ad | None, row: int = 0) -> None:
        """One ad became another one, came (no `old`) or left its row (no `new`)."""
        self._resolved = _NOTHING
        if old:
            for moment in _moments(old):
                del self._moments[bisect_left(self._moments, moment)]
            self._named.subtract(old.placements)
            for name in old.placements:
                if not self._named[name]:  # from now on like any other that no ad names
                    del self._named[name]
        if new:
            for moment in _moments(new):
                insort(self._moments, moment)
            self._named.update(new.placements)
            if not old:
                insort(self.ids, new.id)
        elif old:
            del self.ids[bisect_left(self.ids, old.id)]
        for slate in self._slates.values():
            if new:
                slate.put(new, self._row[new.id])
                slate.narrow(_moments(new))
            elif old:
                slate.remove(old.id, row)

    def _slate(self, at: float, placement: str) -> _Slate:
        """What is known of a placement, as it is at this time."""
        name = placement if placement in self._named else ""
        slate = self._slates.get(name)
        if slate and slate.since <= at < slate.until:
            return slate
        passed = self._between(slate.at, at) if slate else ()
        if slate is None or len(passed) > FEW:
            if slate is None and len(self._slates) >= MAX_SLATES:
                del self._slates[next(iter(self._slates))]
            slate, passed = _Slate(name, at, [self.ads[each] for each in self.ids], self._row), ()
            self._slates[name] = slate
        before, slate.at, slate.since, slate.until = slate.at, at, -inf, inf
        for _, ad_id in passed:
            ad = self.ads[ad_id]
            if _reason(ad, before, name) != _reason(ad, at, name):
                slate.put(ad, self._row[ad_id])
        place = bisect_right(self._moments, at, key=_time)
        slate.narrow([*self._moments[max(place - 1, 0) : place + 1]])
        return slate

    def _between(self, one: float, other: float) -> Sequence[tuple[float, str]]:
        """Flights that begin or end after the earlier of two times and not after the later."""
        first, last = (bisect_right(self._moments, at, key=_time) for at in sorted((one, other)))
        return self._moments[first:last]


class _Sorted:
    """Ads sorted by id. One more or one less moves pointers: about 30 us among 100,000."""

    def __init__(self, ads: Iterable[Ad]) -> None:
        self.ads = list(ads)
        self.ids = [ad.id for ad in self.ads]

    def put(self, ad: Ad) -> None:
        place = bisect_left(self.ids, ad.id)
        if self.ids[place : place + 1] == [ad.id]:
            self.ads[place] = ad
        else:
            self.ids.insert(place, ad.id)
            self.ads.insert(place, ad)

    def drop(self, ad_id: str) -> None:
        place = bisect_left(self.ids, ad_id)
        del self.ids[place], self.ads[place]

    def without(self, gone: Iterable[str]) -> tuple[tuple[Ad, ...], tuple[str, ...]]:
        places = [
            place for each in gone if self.ids[(place := bisect_left(self.ids, each)) : place + 1] == [each]
        ]
        ads, ids = self.ads.copy(), self.ids.copy()
        for place in reversed(places):
            del ads[place], ids[place]
        return tuple(ads), tuple(ids)


class _Slate:
    """What every ad is at one placement at one time; that time is as good as any in [`since`, `until`)."""

    def __init__(self, placement: str, at: float, ads: Sequence[Ad], row: dict[str, int]) -> None:
        self.placement, self.at, self.since, self.until = placement, at, -inf, inf
        self.side = bytearray(len(ads))  # by row
        sorted_out: tuple[list[Ad], ...] = ([], [], [])
        for ad in ads:
            self.side[row[ad.id]] = side = self._side(ad)
            sorted_out[side].append(ad)
        self.sides = tuple(map(_Sorted, sorted_out))
        self.kept: Candidates | None = None  # when nothing is excluded

    def _side(self, ad: Ad) -> int:
        return OTHER if _reason(ad, self.at, self.placement) else HOUSE if ad.house else SHOWN

    def put(self, ad: Ad, row: int) -> None:
        """An ad that came, or changed, or whose time did."""
        side = self._side(ad)
        if row == len(self.side):
            self.side.append(side)
        elif self.side[row] != side:
            self.sides[self.side[row]].drop(ad.id)
            self.side[row] = side
        self.sides[side].put(ad)
        self.kept = None

    def remove(self, ad_id: str, row: int) -> None:
        """An ad left; the last takes its row."""
        self.sides[self.side[row]].drop(ad_id)
        last = self.side.pop()
        if row < len(self.side):
            self.side[row] = last
        self.kept = None

    def narrow(self, moments: Iterable[tuple[float, str]]) -> None:
        """Something begins or ends at these times."""
        for moment, _ in moments:
            if moment <= self.at:
                self.since = max(self.since, moment)
            else:
                self.until = min(self.until, moment)

    def everyone(self) -> Candidates:
        """Candidates when nothing is excluded: the same object until something changes."""
        self.kept = kept = self.kept or self.candidates(())
        return kept

    def candidates(self, gone: Sequence[str]) -> Candidates:
        """Who is left without these, which are sorted."""
        ads, ids = self.sides[SHOWN].without(gone)
        if ads:
            return Candidates(ads, ids, self.filtered(gone, house=True))
        return Candidates(*self.sides[HOUSE].without(gone), self.filtered(gone, house=False))

    def filtered(self, gone: Sequence[str], *, house: bool) -> dict[str, str]:
        """Why others are not candidates, the first by id; then that they are house ads, if that is why."""
        if house and not gone and self.kept:
            return self.kept.filtered
        found = {
            ad.id: _reason(ad, self.at, self.placement)
            for ad in islice(self.sides[OTHER].ads, MAX_REASONS)
        }  # fmt: skip
        if gone:
            found |= dict.fromkeys(gone, "excluded")
            found = dict(sorted(found.items())[:MAX_REASONS])
        if house:
            excluded = set(gone)
            waiting = (each for each in self.sides[HOUSE].ids if each not in excluded)
            found |= dict.fromkeys(islice(waiting, MAX_REASONS - len(found)), "house")
        return found


def _scan(ads: Iterable[Ad], at: float, placement: str, exclude: Collection[str]) -> Candidates:
    """Candidates among a few ads that a request names."""
    found, house, filtered = list[Ad](), list[Ad](), dict[str, str]()
    for ad in ads:
        reason = "excluded" if ad.id in exclude else _reason(ad, at, placement)
        if not reason:
            (house if ad.house else found).append(ad)
        elif len(filtered) < MAX_REASONS:
            filtered[ad.id] = reason
    if found:
        for ad in house[: MAX_REASONS - len(filtered)]:
            filtered[ad.id] = "house"
    shown = tuple(found or house)
    return Candidates(shown, tuple([ad.id for ad in shown]), filtered)


def _reason(ad: Ad, at: float, placement: str) -> str:
    if ad.placements and placement not in ad.placements:
        return "placement"
    if ad.starts is not None and at < ad.starts:
        return "not started"
    if ad.ends is not None and at >= ad.ends:
        return "ended"
    return ""


def _moments(ad: Ad) -> list[tuple[float, str]]:
    """When its flight begins and ends."""
    return [(moment, ad.id) for moment in (ad.starts, ad.ends) if moment is not None]


def _time(moment: tuple[float, str]) -> float:
    return moment[0]
