"""Deciding and learning: /choose, /predict, /reward, /decisions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any
from urllib.parse import quote

import msgspec
from msgspec import Meta

from .. import wire
from ..choosing import Request
from ..errors import Invalid
from ..events import Ad, Unfilled
from ..features import clean
from ..parsing import Id, ListedAd, MaybeId, Named, check_ad, check_id, check_user_id
from ..shares import Shares
from .tracking import landing, trusted

MAX_INLINE = 1000  # inline candidates of one request
RESERVED = {
    "user_id": "Who is asking: what is known of them counts; the id itself is not kept.",
    "placement": "Where the ad will stand: filters ads, and is a feature.",
    "request_id": "Makes a retry safe: the same id gets the same decision.",
    "slots": "How many ads; 1.",
    "exclude": "Ids that must not be shown, separated by commas.",
    "event_id": "An id of your own for this decision.",
}
ONE = Meta(extra_json_schema={"const": 1})
SOME_ADS = Meta(extra_json_schema={"minItems": 1, "maxItems": MAX_INLINE, "uniqueItems": True})


class ChooseBody(msgspec.Struct, forbid_unknown_fields=True):
    """What to decide."""

    user_id: MaybeId = ""
    placement: MaybeId = ""
    context: Named = {}
    ads: Annotated[list[Id | ListedAd], SOME_ADS] | None = None
    exclude: list[str] = []
    slots: Annotated[int, ONE] = 1
    request_id: MaybeId = ""
    event_id: MaybeId = ""


class ShownAd(msgspec.Struct):
    """The ad to show."""

    id: str
    landing_url: str
    creative: dict[str, Any]
    features: dict[str, str | float]


class ChooseReply(msgspec.Struct):
    """A decision. `offset` is null, and a reward impossible, when the disk refused to take it down.

    `expected_reward` is what this ad is expected to earn, calibrated by what came of such expectations; null
    from a policy that expects nothing.

    The URLs are null when there are keys and the event id is not the server's own.
    """

    event_id: str
    ad: ShownAd
    probability: float
    propensities: dict[str, float]
    policy: str
    expected_reward: float | None
    offset: int | None
    click_url: str | None
    impression_url: str | None


class PredictReply(msgspec.Struct):
    """What a decision would be drawn from."""

    propensities: dict[str, float]
    policy: str


class RewardBody(msgspec.Struct, forbid_unknown_fields=True):
    """What a decision was worth."""

    event_id: Id
    reward: float


class RewardReply(msgspec.Struct):
    """`applied`; `duplicate` with the offset of the first time; `noted` where something else counts."""

    status: str
    offset: int


class Signal(msgspec.Struct):
    """Something that was said of a decision; `kind` is click, conversion, dwell, or empty."""

    kind: str
    order_id: str
    reward: float
    value: float
    offset: int


class DecisionReply(msgspec.Struct):
    """A decision and what became of it. `user_id` is the user's pseudonym."""

    event_id: str
    at: float
    user_id: str
    placement: str
    context: dict[str, str | float]
    ad: str | None
    probability: float | None
    propensities: dict[str, float]
    policy: str
    reward: float | None
    status: str
    filtered: dict[str, str]
    signals: list[Signal]


def mount(routes, engine) -> None:  # noqa: D103
    shares = Shares()
    any_query = {**RESERVED, "*": "Every other parameter is a feature of the context."}
    nothing = {204: "Nothing is eligible; X-Event-Id names the record of why."}

    def choose(body: ChooseBody, call) -> wire.Reply:
        request = request_of(body, routes.pseudonym)
        event, offset = engine.choose(request, body.event_id)
        if isinstance(event, Unfilled):
            return wire.Reply(status=204, headers={"X-Event-Id": event.event_id})
        ad = engine.shown(event)
        event_id = event.event_id
        quoted = event_id if event_id.isalnum() else quote(event_id, safe="")
        linked = trusted(routes, engine, event_id)
        return wire.Reply(
            ChooseReply(
                event.event_id,
                ShownAd(ad.id, landing(ad.landing_url, event.event_id), ad.creative, ad.features),
                event.probability,
                event.propensities if wire.wants_msgpack(call.request) else shares(event.ads, event.pmf),
                event.policy,
                engine.state.in_rewards(event.promised),
                offset,
                f"/click/{quoted}" if linked else None,
                f"/impression/{quoted}" if linked else None,
            )
        )

    def predict(body: ChooseBody) -> PredictReply:
        slate = engine.predict(request_of(body, routes.pseudonym))
        return PredictReply(dict(zip(slate.ids, slate.pmf, strict=True)), engine.state.policy_name)

    @routes.add(
        "GET", "/choose", scope="choose", in_turn=True, query=any_query, reply=ChooseReply, statuses=nothing
    )
    def get_choose(call):
        """Pick an ad for this visitor. Query values are text; send numbers with POST."""
        return choose(from_query(call.query), call)

    @routes.add(
        "POST", "/choose", scope="choose", in_turn=True, body=ChooseBody, reply=ChooseReply, statuses=nothing
    )
    def post_choose(call):
        """Pick an ad for this visitor, among the catalog's or among those in the body."""
        return choose(call.body, call)

    @routes.add("GET", "/predict", scope="choose", in_turn=True, query=any_query, reply=PredictReply)
    def get_predict(call):
        """The probabilities that /choose would draw from. No side effect."""
        return predict(from_query(call.query))

    @routes.add("POST", "/predict", scope="choose", in_turn=True, body=ChooseBody, reply=PredictReply)
    def post_predict(call):
        """The probabilities that /choose would draw from. No side effect."""
        return predict(call.body)

    @routes.add(
        "POST",
        "/reward",
        scope="reward",
        in_turn=True,
        body=RewardBody,
        reply=RewardReply,
        statuses={
            404: "No such event.",
            409: "Another reward was already given.",
            410: "Too late: written down, not learned from.",
            503: "Not accepted; safe to send again.",
        },
    )
    def reward(call):
        """Say what a decision was worth. When the reply comes, the model has learned and the disk has it."""
        event_id = check_id(call.body.event_id, "event_id")
        receipt = engine.reward(event_id, call.body.reward, hold=call.hold)
        return RewardReply(receipt.status, receipt.offset)

    @routes.add(
        "GET",
        "/decisions/{id}",
        scope="admin",
        reply=DecisionReply,
        statuses={404: "No such event.", 410: "Forgotten."},
    )
    def decision(call):
        """What was decided, with which probabilities, from which features, and what became of it."""
        event, status, reward, said = engine.decision(check_id(call.id, "id"))
        shown = not isinstance(event, Unfilled)
        return DecisionReply(
            event.event_id,
            event.at,
            event.user_id,
            event.placement,
            event.context,
            event.ad_id if shown else None,
            event.probability if shown else None,
            event.propensities if shown else {},
            event.policy if shown else "",
            reward,
            status.value,
            event.filtered,
            [Signal(*msgspec.structs.astuple(each)) for each in said],
        )


def from_query(query: dict[str, str]) -> ChooseBody:
    """What the query says; names that mean nothing else are features."""
    given = {name: query[name] for name in RESERVED if name in query}
    slots = given.pop("slots", "1")
    exclude = given.pop("exclude", "")
    return ChooseBody(
        **given,
        context={name: value or None for name, value in query.items() if name not in RESERVED},
        slots=int(slots) if slots.isascii() and slots.isdigit() and len(slots) < 9 else 0,
        exclude=exclude.split(",") if exclude else [],
    )


def request_of(body: ChooseBody, pseudonym: Callable[[str], str]) -> Request:
    """A body, checked and cleaned. Raises `Invalid`."""
    if body.event_id:
        check_id(body.event_id, "event_id")
    if body.slots != 1:
        raise Invalid("this server fills one slot at a time", "slots")
    ads: list[str | Ad] | None = None
    if body.ads is not None:
        if not 1 <= len(body.ads) <= MAX_INLINE:
            raise Invalid(f"give between 1 and {MAX_INLINE} ads", "ads")
        ads = [
            check_id(each, "ads") if isinstance(each, str) else check_ad(each, f"ads[{number}]")
            for number, each in enumerate(body.ads)
        ]
    return Request(
        clean(body.context),
        pseudonym(check_user_id(body.user_id, "user_id")) if body.user_id else "",
        check_id(body.placement, "placement") if body.placement else "",
        check_id(body.request_id, "request_id") if body.request_id else "",
        None if ads is None else tuple(ads),
        frozenset(body.exclude),
    )
