"""Events: everything that can happen to an ad server, and how it is written down.

An event is past tense, immutable and complete: it carries its own time, its own dice and what was decided,
so folding the same events in the same order gives the same state on any machine. On disk an event is one
msgpack array whose first item is the event's name. Fields are only ever added, at the end, with a default;
old journals then still decode, and old programs skip what they do not know.

>>> event = Rewarded(at=12.5, event_id="e1", value=1.0)
>>> encode(event)[:26]
b'\\x99\\xa8rewarded\\xcb@)\\x00\\x00\\x00\\x00\\x00\\x00\\xa2e1\\xcb?\\xf0\\x00'
>>> decode(encode(event)) == event
True
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

Features: TypeAlias = dict[str, str | float]
Saved: TypeAlias = Any  # whatever msgpack can write: None, bool, int, float, str, bytes, list, dict
FEW = (
    200  # numbers; of fewer, Python makes what is wanted sooner than numpy, which has left the caches by then
)
ADVICE = "recommended"  # name of the feature that `Chosen.advice` is


class Ad(msgspec.Struct, frozen=True, array_like=True, eq=True, gc=False):
    """An ad as it was at one moment. Rooms and policies may keep it: it never changes.

    It holds nothing that could hold it, and so is no work for the garbage collector: of 1,000,000 decisions
    that wait, it would look at everything, for .7 s. The same goes for `Chosen` and what the joiner keeps.
    """

    id: str
    features: Features = {}  # cleaned: sorted by name, strings or finite numbers
    landing_url: str = ""
    creative: dict[str, Any] = {}  # opaque to us, handed to the site
    placements: tuple[str, ...] = ()  # where it may be shown; empty: everywhere
    starts: float | None = None  # seconds since the epoch, first moment it may be shown
    ends: float | None = None  # seconds since the epoch, first moment it may not be shown any more
    house: bool = False  # shown only when nothing else is eligible

    @classmethod
    def load(cls, saved: Saved) -> Ad:
        """An ad from what msgpack made of one."""
        return msgspec.convert(saved, cls)


class AdsPut(msgspec.Struct, frozen=True, array_like=True, tag="ads_put"):
    """Ads entered the catalog, or replaced those of the same id; all of them at once."""

    at: float  # seconds since the epoch, read once at the edge
    ads: tuple[Ad, ...]


class AdRemoved(msgspec.Struct, frozen=True, array_like=True, tag="ad_removed"):
    """An ad left the catalog. Decisions already made with it still settle."""

    at: float
    ad_id: str


class Chosen(msgspec.Struct, frozen=True, array_like=True, tag="chosen", gc=False):
    """An ad was picked. `pmf` is over `ads`, sums to 1, and is what `pick` was really drawn from.

    `ads` are ids. The features of those in `inline` stand there; those of the others are the catalog's at
    this place in the journal, which a journal's one writer cannot have changed in between.
    """

    at: float
    event_id: str
    ads: tuple[str, ...]
    pmf: bytes  # float64 little-endian, shape (n_ads,)
    pick: int
    context: Features  # the features that were used, cleaned
    policy: str = ""
    user_id: str = ""
    placement: str = ""
    request_id: str = ""
    inline: tuple[Ad, ...] = ()
    filtered: dict[str, str] = {}  # ad id -> why it was not a candidate (at most 100 of them)
    advice: bytes = b""  # log odds by a recommender, float32 little-endian, shape (n_ads,); or empty
    expected: float | None = None  # what the policy expected the picked ad to earn, in [0, 1]; None: no idea
    promised: float | None = None  # the same, calibrated by what had come of such expectations

    @property
    def ad_id(self) -> str:
        """The id of the ad that was picked."""
        return self.ads[self.pick]

    @property
    def probability(self) -> float:
        """The propensity of the ad that was picked, in (0, 1]."""
        return float(struct.unpack_from("<d", self.pmf, 8 * self.pick)[0])

    @property
    def propensities(self) -> dict[str, float]:
        """Ad id -> probability, in the order of `ads`."""
        return dict(zip(self.ads, struct.unpack(f"<{len(self.ads)}d", self.pmf), strict=True))


class Unfilled(msgspec.Struct, frozen=True, array_like=True, tag="unfilled"):
    """Somebody asked and nothing was eligible."""

    at: float
    event_id: str
    context: Features
    user_id: str = ""
    placement: str = ""
    request_id: str = ""
    filtered: dict[str, str] = {}


class Rewarded(msgspec.Struct, frozen=True, array_like=True, tag="rewarded"):
    """Somebody said what a choice was worth, within the configured reward range."""

    at: float
    event_id: str
    value: float
    kind: str = ""  # what happened: click, conversion, dwell; empty where only a number was said
    order: str = ""  # tells several conversions of one choice apart
    amount: float = 0.0  # money of a conversion, seconds of a dwell: as it was said, before it became `value`
    user: str = ""  # pseudonym, and the ad, of a choice that had settled: nothing else remembers them. Empty
    ad_id: str = ""  # where it still waited, or where nothing is known of the user


class Impressed(msgspec.Struct, frozen=True, array_like=True, tag="impressed"):
    """The ad of a choice was really seen on a page, for the first time."""

    at: float
    event_id: str
    ad_id: str


class Ticked(msgspec.Struct, frozen=True, array_like=True, tag="ticked"):
    """Time passed and nothing else happened, so that silence can be learned from."""

    at: float


class SetAside(msgspec.Struct, frozen=True, array_like=True, tag="set_aside"):
    """What a choice earned was not learned, because learning it spoilt the model."""

    at: float
    event_id: str


class Promoted(msgspec.Struct, frozen=True, array_like=True, tag="promoted"):
    """A challenger became the champion, and the champion a challenger."""

    at: float
    policy: str  # who decides from now on, by its specification
    replaced: str = ""  # who did until now
    by: str = ""  # "rule", or "request"
    decisions: int = 0  # that were counted in the reign that ends here
    gain: float = 0.0  # what the challenger was estimated to earn more, in rewards a decision
    gain_low: float = 0.0  # the lower bound of that


class Act(msgspec.Struct, frozen=True, array_like=True):
    """Something that a user did."""

    kind: str  # view, search, like, cart, purchase, ...
    item: str = ""
    category: str = ""
    amount: float = 0.0  # of money, or of whatever the site counts
    at: float = 0.0  # seconds since the epoch, when it was done


class UserPut(msgspec.Struct, frozen=True, array_like=True, tag="user_put"):
    """What is known of a user was said, or replaced. Without consent nothing is kept."""

    at: float
    user: str  # pseudonym: ids of people are never written down
    attributes: Features
    consent: bool


class UserActed(msgspec.Struct, frozen=True, array_like=True, tag="user_acted"):
    """A user did something; all of it at once."""

    at: float
    user: str
    acts: tuple[Act, ...]


class UserErased(msgspec.Struct, frozen=True, array_like=True, tag="user_erased"):
    """A user is to be forgotten: profile, history, and decisions that still wait."""

    at: float
    user: str


class Scrubbed(msgspec.Struct, frozen=True, array_like=True, tag="scrubbed"):
    """What stood here was about a user who was erased. Only its time is left."""

    at: float


class Heard(msgspec.Struct, frozen=True):
    """Derived, never journaled: something was said for the first time of an ad that a user was shown."""

    user: str
    ad_id: str
    kind: str
    value: float
    at: float


class Settled(msgspec.Struct, frozen=True):
    """Derived, never journaled: a choice got its reward, or its time ran out."""

    choice: Chosen
    ads: Sequence[Ad]  # what `choice.ads` were at choice time, same order
    reward: float
    at: float  # seconds since the epoch, when it settled
    silent: bool = False  # nobody said anything: `reward` is the default
    offset: int = -1  # of the choice in its journal; -1 where that is not known


Event: TypeAlias = (
    AdsPut
    | AdRemoved
    | Chosen
    | Unfilled
    | Rewarded
    | Impressed
    | Ticked
    | SetAside
    | Promoted
    | UserPut
    | UserActed
    | UserErased
    | Scrubbed
)


class Advised(Sequence[Ad]):
    """Ads as a policy sees them: what a recommender said of each is a feature like the others.

    Such an ad is made when it is asked for. A policy that can do without takes it apart instead.

    Attributes
    ----------
    plain
        The ads without it.
    said
        Log odds of a reward, in the same order.
    """

    def __init__(self, plain: Sequence[Ad], said: Sequence[float]) -> None:
        self.plain, self.said = plain, said

    def __len__(self) -> int:
        return len(self.plain)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return Advised(self.plain[place], self.said[place])
        ad, said = self.plain[place], self.said[place]
        return msgspec.structs.replace(ad, features=dict(sorted({**ad.features, ADVICE: said}.items())))


def advised(advice: bytes, ads: Sequence[Ad]) -> Sequence[Ad]:
    """Ads, and what is said of them if anything is.

    >>> advised(struct.pack("<f", 1.5), (Ad("hats", {"kind": "hat"}),))[0].features
    {'kind': 'hat', 'recommended': 1.5}
    """
    return Advised(ads, struct.unpack(f"<{len(ads)}f", advice)) if advice else ads


def apart(ads: Sequence[Ad]) -> tuple[Sequence[Ad], Sequence[float]]:
    """Ads, and what is said of them; nothing if nothing is."""
    return (ads.plain, ads.said) if isinstance(ads, Advised) else (ads, ())


def some(ads: Sequence[Ad], places: Sequence[int]) -> Sequence[Ad]:
    """Some of these ads, with what is said of them."""
    plain, said = apart(ads)
    found = tuple([plain[place] for place in places])
    return Advised(found, [said[place] for place in places]) if said else found


def packed(pmf: Sequence[float] | NDArray[np.float64]) -> bytes:
    """Probabilities as in `Chosen.pmf`."""
    if isinstance(pmf, np.ndarray):
        return pmf.astype("<f8", copy=False).tobytes()
    return struct.pack(f"<{len(pmf)}d", *pmf)


def most_probable(pmf: bytes) -> tuple[int, float]:
    """The place of the ad that is most probable, the first of several, and how probable it is."""
    if len(pmf) > 8 * FEW:
        found = np.frombuffer(pmf, "<f8")
        best = int(found.argmax())
        return best, float(found[best])
    listed = struct.unpack(f"<{len(pmf) // 8}d", pmf)
    most = max(listed)
    return listed.index(most), most


_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Event] = msgspec.msgpack.Decoder(Event)


_slate: list[tuple[tuple[str, ...], msgspec.Raw]] = [((), msgspec.Raw())]  # the last long one, and encoded


def encode(event: Event) -> bytes:
    """An event as msgpack."""
    if isinstance(event, Chosen) and len(event.ads) > FEW:
        return _encoder.encode(msgspec.structs.replace(event, ads=_encoded(event.ads)))
    return _encoder.encode(event)


def _encoded(ids: tuple[str, ...]) -> msgspec.Raw:
    """Ids of ads as msgpack; at once for the tuple that came last: 1,000 would take 24 us."""
    last, encoded = _slate[0]
    if ids is not last:
        encoded = msgspec.Raw(_encoder.encode(ids))
        _slate[0] = ids, encoded
    return encoded


def decode(raw: bytes) -> Event:
    """The inverse of `encode`. Raises `msgspec.DecodeError` for anything else."""
    try:
        return _decoder.decode(raw)
    except UnicodeDecodeError as error:  # msgspec lets it through where the name of the event stands
        raise msgspec.DecodeError(str(error)) from None
