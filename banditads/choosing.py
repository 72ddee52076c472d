"""Picks an ad. Reads the state, changes nothing, throws only dice that can be thrown again.

Eligible ads -> the policy's distribution -> the floor under it -> one draw from exactly what is logged.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import msgspec

from .errors import Invalid
from .events import FEW, Ad, Chosen, Features, Unfilled, advised, packed
from .policies import Floats
from .proposing import propose
from .sampling import pick, uniform
from .state import State


class Request(msgspec.Struct, frozen=True):
    """What somebody asks for, checked and cleaned. `user_id` is a pseudonym.

    `ads` are the only candidates, as ids from the catalog or with features of their own; None means the
    whole catalog.
    """

    context: Features = {}
    user_id: str = ""
    placement: str = ""
    request_id: str = ""
    ads: tuple[str | Ad, ...] | None = None
    exclude: frozenset[str] = frozenset()


class Slate(msgspec.Struct, frozen=True):
    """The candidates, sorted by id, and the probability of each."""

    ads: tuple[Ad, ...]
    ids: tuple[str, ...]
    chances: list[float] | Floats  # (n_ads,), sum to 1; a list of few
    context: Features  # what the policy was told
    filtered: dict[str, str]  # ad id -> why it is not a candidate
    advice: bytes = b""  # see `Chosen`
    told: Sequence[Ad] = ()  # `ads` as the policy saw them

    @property
    def pmf(self) -> list[float]:
        """The probabilities."""
        return list(self.chances) if isinstance(self.chances, list) else self.chances.tolist()


def spread(
    state: State,
    *,
    at: float,
    request: Request,
    floor: float,
    event_id: str = "",
    salt: str = "",
    max_scored: int = 1000,
    proposals: int = 256,
) -> Slate:
    """The distribution that this request would be drawn from. `floor` is shared evenly by all candidates.

    If more than `max_scored` ads of the catalog are eligible, so many `proposals` of them are the candidates,
    and which they are depends on the event id. A prediction has none: its dice are those of the id "".

    What is known of the user is part of the context; of a name that the request gives too, the request's
    value counts.
    """
    among = None if request.ads is None else _named(state, request.ads)
    context = request.context
    if request.user_id and (known := state.users.features(request.user_id, at)):
        context = dict(sorted((known | context).items()))
    if request.placement:
        if "placement" in context:
            raise Invalid("given in the context too", "placement")
        context = dict(sorted({**context, "placement": request.placement}.items()))
    context = state.columns.complete(context)
    crowd = None
    if among is None and len(state.catalog.ads) > max_scored:
        crowd = state.catalog.crowd(
            at=at, placement=request.placement, exclude=request.exclude, above=max_scored
        )
    ads, ids, filtered = (
        propose(state, crowd, context, request.user_id, n=proposals, event_id=event_id, salt=salt)
        if crowd
        else state.catalog.eligible(at=at, placement=request.placement, exclude=request.exclude, among=among)
    )
    if not ads:
        return Slate((), (), [], context, filtered)
    advice = state.advice(ads, context, request.user_id) if state.advise else b""
    told = advised(advice, ads) if advice else ads
    pmf = state.policy.pmf(context, told)
    if len(pmf) != len(ads):
        raise ArithmeticError(f"policy {state.policy_name} gave {len(pmf)} probabilities for {len(ads)} ads")
    listed = pmf.tolist() if len(pmf) <= FEW else None
    total = sum(listed) if listed else float(pmf.cumsum()[-1])  # not finite if any of them is not
    if not 0 < total < inf or (min(listed) if listed else pmf.min()) < 0:
        raise ArithmeticError(f"policy {state.policy_name} gave {pmf.tolist()!r} for {len(ads)} ads")
    scale, least = (1 - floor) / total, floor / len(ads)
    chances = [p * scale + least for p in listed] if listed else pmf * scale + least
    return Slate(ads, ids, chances, context, filtered, advice, told)


def choose(
    state: State,
    *,
    at: float,
    event_id: str,
    request: Request,
    floor: float = 0.0,
    salt: str = "",
    max_scored: int = 1000,
    proposals: int = 256,
) -> Chosen | Unfilled:
    """The event that this request would become.

    >>> state = State("uniform")
    >>> choose(state, at=0.0, event_id="e1", request=Request(ads=(Ad("hats"),))).ad_id
    'hats'
    """
    slate = spread(
        state,
        at=at,
        request=request,
        floor=floor,
        event_id=event_id,
        salt=salt,
        max_scored=max_scored,
        proposals=proposals,
    )
    if not slate.ads:
        return Unfilled(
            at,
            event_id,
            slate.context,
            request.user_id,
            request.placement,
            request.request_id,
            slate.filtered,
        )
    picked = pick(slate.chances, uniform(event_id, salt))
    expected = state.policy.expected(slate.context, slate.told, picked)
    return Chosen(
        at,
        event_id,
        slate.ids,
        packed(slate.chances),
        picked,
        slate.context,
        state.policy_name,
        request.user_id,
        request.placement,
        request.request_id,
        () if request.ads is None else tuple([ad for ad in request.ads if isinstance(ad, Ad)]),
        slate.filtered,
        slate.advice,
        expected,
        None if expected is None else state.calibration.of(expected),
    )


def _named(state: State, wanted: tuple[str | Ad, ...]) -> tuple[Ad, ...]:
    found: dict[str, Ad] = {}
    for each in wanted:
        ad = each if isinstance(each, Ad) else state.catalog.ads.get(each)
        if ad is None:
            raise Invalid(f"ad {each!r} is not in the catalog", "ads")
        if ad.id in found:
            raise Invalid(f"ad {ad.id!r} is given twice", "ads")
        found[ad.id] = ad
    return tuple(found[ad_id] for ad_id in sorted(found))
