"""What is known of the visitors who consented: a profile each, which stays small however much they do.

A profile keeps what was said of a user (attributes), decayed counts of what they did by kind and by category,
totals, the latest items and categories, and which ads they saw and clicked. It is packed: a million of them
have to fit. Nothing is kept of anybody who did not consent, and beyond `max_users` the one who was idle
longest is forgotten. The order in which acts arrive decides nothing.

>>> users = Users()
>>> users.apply(UserPut(0.0, "u", {"age": 31.0}, consent=True))
>>> users.apply(UserActed(9.0, "u", (Act("view", "boot-7", "shoes", at=9.0),)))
>>> users.features("u", 9.0)["user.age"], users.features("u", 9.0)["user.category.1"]
(31.0, 'shoes')
>>> users.features("somebody else", 9.0)
{}
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from math import copysign, log1p
from struct import Struct
from zlib import crc32

import msgspec

from .events import Act, Chosen, Event, Features, Heard, Saved, UserActed, UserErased, UserPut  # noqa: F401

KINDS = ("view", "search", "like", "cart", "purchase", "other")  # "other" is whatever is none of these
BUCKETS = 16  # categories share so many counts
# Places of counts; kinds come first.
SHOWN, CLICKED, CONVERTED, TASTE = len(KINDS), len(KINDS) + 1, len(KINDS) + 2, len(KINDS) + 3
SIGNALS = {"": CLICKED, "click": CLICKED, "conversion": CONVERTED}  # a reward of no kind is a click
ITEMS, CATEGORIES, ADS = 4, 3, 4  # the latest, which are remembered by name
TASTES = 8  # the strongest buckets, which are features
STEPS = (
    256  # a weight is a multiple of 1 / STEPS, so sums are exact in float32, in whatever order, up to FULL
)
FULL = 2.0**16  # no decayed count grows beyond
GONE = 2.0**-16  # one below this is dropped
MOST = 2**32 - 1  # no total number grows beyond
WORTH = 2**62  # nor a total amount, in thousandths
DAY = 86400.0  # seconds
# Bytes of a packed profile in memory, of which Python takes HEAD. One that grew a little with every act would
# leave a hole behind each time: after ten acts each, 622 bytes a user in all instead of 579.
LEAST, STEP, HEAD = 256, 128, 33
COUNT = Struct("<Bf")  # place, decayed count at the beginning of the profile's epoch


class Profile(msgspec.Struct, array_like=True):
    """What is kept of one user. Times are whole seconds since the epoch of Unix."""

    attributes: msgspec.Raw  # `Features`, packed
    epoch: int = 0  # half-lives since 1970: the time to which `counts` refer
    counts: bytes = b""  # of COUNT, sorted by place
    kinds: list[tuple[int, int, int, int]] = []  # kind, latest, number, amount in thousandths; sorted
    items: list[tuple[int, str]] = []  # latest, name; the latest first
    categories: list[tuple[int, str]] = []
    ads: list[tuple[int, str, int, int, int]] = []  # latest, id, shown, clicked, converted; the latest first
    spare: bytes = b""  # so that packed profiles have few different lengths


class Done(msgspec.Struct, frozen=True):
    """Everything of one kind that a user did. `count` is decayed, `latest` in seconds since the epoch."""

    count: float
    number: int
    amount: float
    latest: int


class Exposure(msgspec.Struct, frozen=True):
    """What a user saw of one ad, in whole times."""

    shown: int
    clicked: int
    converted: int
    latest: int


class Known(msgspec.Struct, frozen=True):
    """A profile as people read it: everything that is kept of a user."""

    attributes: Features
    acts: dict[str, Done]  # by kind
    items: dict[str, int]  # name -> latest
    categories: dict[str, int]
    tastes: dict[str, float]  # bucket of categories -> decayed count
    shown: float  # decayed
    clicked: float
    converted: float
    ads: dict[str, Exposure]


class Users:
    """Profiles of those who consented, by pseudonym.

    Parameters
    ----------
    max_users
        Profiles that may be kept; beyond, the one who was idle longest is forgotten.
    half_life
        Seconds after which an act counts half.
    """

    def __init__(self, *, max_users: int = 10**6, half_life: float = 30 * DAY) -> None:
        self.max_users, self.half_life = max_users, half_life
        self.profiles = OrderedDict[str, bytes]()  # packed `Profile`s; the user who was idle longest first
        self.bytes = 0  # of all of them
        self.forgotten = 0  # users who had to make room
        self._pack = msgspec.msgpack.Encoder().encode
        self._unpack = msgspec.msgpack.Decoder(Profile).decode

    def apply(self, event: Event | Heard) -> None:
        """Come to know what happened to a user, or what they did with an ad that they were shown."""
        match event:
            case Chosen():
                if event.user_id and (packed := self.profiles.get(event.user_id)):
                    self._expose(event.user_id, packed, event.ad_id, event.at, SHOWN)
            case Heard(user=user):
                place = SIGNALS.get(event.kind) if event.kind or event.value > 0 else None
                if place and (packed := self.profiles.get(user)):
                    self._expose(user, packed, event.ad_id, event.at, place)
            case UserActed(user=user):
                if packed := self.profiles.get(user):
                    self._act(packed, event)
            case UserPut(user=user, consent=True):
                packed = self.profiles.get(user)
                attributes = msgspec.Raw(self._pack(event.attributes))
                profile = self._unpack(packed) if packed else Profile(attributes)
                profile.attributes = attributes
                self._keep(user, profile)
            case UserPut(user=user) | UserErased(user=user):
                self.bytes -= len(self.profiles.pop(user, b""))

    def _keep(self, user: str, profile: Profile) -> None:
        profile.spare = b""
        packed = self._pack(profile)
        if spare := max(LEAST, -(-(len(packed) + HEAD) // STEP) * STEP) - HEAD - len(packed):
            packed = (
                packed[:-1] + bytes((spare,)) + bytes(spare)
            )  # `spare` is packed last, its length before it
        self.bytes += len(packed) - len(self.profiles.get(user, b""))
        self.profiles[user] = packed
        self.profiles.move_to_end(user)
        while len(self.profiles) > self.max_users:
            self.bytes -= len(self.profiles.popitem(last=False)[1])
            self.forgotten += 1

    def _act(self, packed: bytes, event: UserActed) -> None:
        profile = self._unpack(packed)
        counts = _Counts(profile, self.half_life)
        totals = {each[0]: each for each in profile.kinds}
        items, categories = _times(profile.items), _times(profile.categories)
        for act in event.acts:
            at = max(0.0, min(act.at or event.at, event.at))  # nothing is done after it is told
            second, kind = int(at), PLACES.get(act.kind, PLACES["other"])
            counts.add(kind, at)
            _, latest, number, amount = totals.get(kind, (kind, 0, 0, 0))
            amount = max(-WORTH, min(amount + round(1000 * act.amount), WORTH))
            totals[kind] = (kind, max(latest, second), min(number + 1, MOST), amount)
            if act.category:
                counts.add(TASTE + bucket(act.category), at)
                categories[act.category] = max(second, categories.get(act.category, 0))
            if act.item:
                items[act.item] = max(second, items.get(act.item, 0))
        profile.epoch, profile.counts = counts.epoch, counts.pack()
        profile.kinds = sorted(totals.values())
        profile.items, profile.categories = _latest(items, ITEMS), _latest(categories, CATEGORIES)
        self._keep(event.user, profile)

    def _expose(self, user: str, packed: bytes, ad_id: str, at: float, place: int) -> None:
        """An ad was shown to a user, clicked, or led to a conversion."""
        profile, at = self._unpack(packed), max(0.0, at)
        counts = _Counts(profile, self.half_life)
        counts.add(place, at)
        profile.epoch, profile.counts = counts.epoch, counts.pack()
        ads = {each[1]: each for each in profile.ads}
        if place == SHOWN or ad_id in ads:  # a click on what later ads have pushed out counts in total only
            latest, _, *times = ads.get(ad_id, (0, ad_id, 0, 0, 0))
            shown, clicked, converted = (min(n + (place == SHOWN + i), MOST) for i, n in enumerate(times))
            ads[ad_id] = max(latest, int(at) * (place == SHOWN)), ad_id, shown, clicked, converted
        profile.ads = sorted(ads.values(), reverse=True)[:ADS]
        self._keep(user, profile)

    def features(self, user: str, at: float) -> Features:
        """What is known of a user, as features of a decision at this time; nothing of who did not consent.

        Sorted by name, at most 48, numbers bounded: attributes as they were given, `user.<kind>` and
        `user.taste.<bucket>` the logarithms of decayed counts, `user.<kind>.recency` 1 for just now and half
        after a day, `user.category.1` the category of late. An attribute wins over what has its name.
        """
        packed = self.profiles.get(user)
        if not packed:
            return {}
        profile = self._unpack(packed)
        found: Features = {}
        share = self._share(profile, at)
        tastes = []
        for place, count in COUNT.iter_unpack(profile.counts):
            if place < TASTE:
                found[NAMES[place]] = log1p(count * share)
            else:
                tastes.append((-count, place))
        for count, place in sorted(tastes)[:TASTES]:
            found[NAMES[place]] = log1p(-count * share)
        number = amount = 0
        for kind, latest, times, worth in profile.kinds:
            found[RECENCIES[kind]] = 1 / (1 + max(0.0, at - latest) / DAY)
            number, amount = number + times, amount + worth
        if number:
            found["user.acts"] = log1p(number)
            found["user.amount"] = copysign(log1p(abs(amount) / 1000), amount)
        for place, (_, category) in enumerate(profile.categories, 1):
            found[f"user.category.{place}"] = category
        for name, value in msgspec.msgpack.decode(profile.attributes).items():
            found[f"user.{name}"] = value
        return dict(sorted(found.items()))

    def known(self, user: str, at: float) -> Known | None:
        """Everything that is kept of a user, counts as they are at this time; None if nothing is."""
        packed = self.profiles.get(user)
        if not packed:
            return None
        profile = self._unpack(packed)
        share = self._share(profile, at)
        counts = {place: count * share for place, count in COUNT.iter_unpack(profile.counts)}
        return Known(
            msgspec.msgpack.decode(profile.attributes),
            {
                KINDS[kind]: Done(counts.get(kind, 0.0), number, amount / 1000, latest)
                for kind, latest, number, amount in profile.kinds
            },
            {name: latest for latest, name in profile.items},
            {name: latest for latest, name in profile.categories},
            {str(place - TASTE): count for place, count in counts.items() if place >= TASTE},
            counts.get(SHOWN, 0.0),
            counts.get(CLICKED, 0.0),
            counts.get(CONVERTED, 0.0),
            {
                ad: Exposure(shown, clicked, converted, latest)
                for latest, ad, shown, clicked, converted in profile.ads
            },
        )

    def _share(self, profile: Profile, at: float) -> float:
        """What is left at this time of a count that is kept."""
        return 2.0 ** min(0.0, profile.epoch - at / self.half_life)

    def dump(self) -> Saved:
        """Every profile, as it is packed."""
        return [self.forgotten, self.profiles]

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`."""
        self.forgotten, profiles = saved
        self.profiles = OrderedDict(profiles)
        self.bytes = sum(map(len, profiles.values()))


class _Counts:
    """The decayed counts of a profile, unpacked. Each act weighs 2 ** (its time in half-lives - `epoch`).

    So an act that comes late finds the place that it would have had, and moving to another epoch halves
    exactly.
    """

    def __init__(self, profile: Profile, half_life: float) -> None:
        self.epoch, self.half_life = profile.epoch, half_life
        self.found: dict[int, float] = dict(COUNT.iter_unpack(profile.counts))

    def add(self, place: int, at: float) -> None:
        """Count one more."""
        moment = at / self.half_life
        epoch = int(moment)
        weight = round(STEPS * 2.0 ** (moment - epoch)) / STEPS
        if epoch > self.epoch:
            left = 2.0 ** (self.epoch - epoch)
            self.found = {each: count * left for each, count in self.found.items()}
            self.epoch = epoch
        else:
            weight *= 2.0 ** (epoch - self.epoch)
        self.found[place] = min(FULL, self.found.get(place, 0.0) + weight)

    def pack(self) -> bytes:
        """As a profile keeps them."""
        return b"".join(COUNT.pack(*each) for each in sorted(self.found.items()) if each[1] > GONE)


def bucket(category: str) -> int:
    """Which count a category shares."""
    return crc32(category.encode()) % BUCKETS


def _times(latest: Iterable[tuple[int, str]]) -> dict[str, int]:
    return {name: at for at, name in latest}


def _latest(times: dict[str, int], most: int) -> list[tuple[int, str]]:
    """The latest, by time and then by name: whatever comes in between, in whatever order, these remain."""
    return sorted(((at, name) for name, at in times.items()), reverse=True)[:most]


PLACES = {kind: place for place, kind in enumerate(KINDS)}
NAMES = [
    f"user.{name}"
    for name in (*KINDS, "shown", "clicked", "converted", *(f"taste.{n}" for n in range(BUCKETS)))
]
RECENCIES = [f"user.{kind}.recency" for kind in KINDS]
