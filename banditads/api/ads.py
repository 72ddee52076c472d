"""GET /ads: a ranked list of ads for one visitor, each place of it a decision of its own."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

import msgspec

from .. import wire
from ..errors import Invalid
from ..events import Unfilled
from ..explaining import why
from .serving import RESERVED, from_query, request_of
from .tracking import landing, trusted

DEFAULT, MOST = 5, 20  # ads of a list
QUERY = {
    **{name: RESERVED[name] for name in ("user_id", "placement", "exclude")},
    "n": f"How many ads, 1 to {MOST}; {DEFAULT} if not given, and fewer where there are no more.",
    "*": "Every other parameter is a feature of the context.",
}
OURS = ("slot", *(RESERVED.keys() - QUERY.keys()))  # no feature may be called so


class Reasons(msgspec.Struct):
    """Why this ad.

    `recommender` is the one that speaks most for it, null if none does; `scores` say how far each puts it
    above the mean of the catalog. `features` are those of the context without which its probability would
    fall most, and by how much.
    """

    recommender: str | None
    scores: dict[str, float]
    features: dict[str, float]


class RankedAd(msgspec.Struct):
    """One place of the list, which is a decision: its reward goes to this `event_id`.

    `probability` is that of this ad in this place, given those above it. `score` is the recommender's, null
    where none has learned. `expected_reward`, `offset` and the URLs are as in /choose.
    """

    event_id: str
    id: str
    score: float | None
    probability: float
    landing_url: str
    creative: dict[str, Any]
    features: dict[str, str | float]
    why: Reasons
    policy: str
    expected_reward: float | None
    offset: int | None
    click_url: str | None
    impression_url: str | None


def mount(routes, engine) -> None:  # noqa: D103
    def ranked(event, offset: int | None, ads) -> RankedAd:
        with engine.lock:  # for one ad at a time
            reasons = why(engine.state, event, ads)
        ad, scores = ads[event.pick], reasons.scores
        best = max(scores, key=scores.__getitem__, default=None)
        quoted = quote(event.event_id, safe="")
        linked = trusted(routes, engine, event.event_id)
        return RankedAd(
            event.event_id,
            ad.id,
            sum(scores.values()) if scores else None,
            event.probability,
            landing(ad.landing_url, event.event_id),
            ad.creative,
            ad.features,
            Reasons(best if best and scores[best] > 0 else None, scores, reasons.features),
            event.policy,
            engine.state.in_rewards(event.promised),
            offset,
            f"/click/{quoted}" if linked else None,
            f"/impression/{quoted}" if linked else None,
        )

    @routes.add(
        "GET",
        "/ads",
        scope="choose",
        in_turn=True,
        query=QUERY,
        reply=list[RankedAd],
        statuses={204: "Nothing is eligible; X-Event-Id names the record of why."},
    )
    def ads(call):
        """Ads for this visitor, best first, with reasons. Each is a decision among those not above it."""
        query = dict(call.query)
        n = query.pop("n", str(DEFAULT))
        if not (n.isascii() and n.isdigit() and 1 <= int(n[:9]) <= MOST):
            raise Invalid(f"must be a whole number from 1 to {MOST}", "n")
        for name in OURS:
            if name in query:
                raise Invalid("this route has no such parameter", name)
        found = engine.rank(request_of(from_query(query), routes.pseudonym), int(n))
        if isinstance(found[0][0].event, Unfilled):
            return wire.Reply(status=204, headers={"X-Event-Id": found[0][0].event.event_id})
        return [ranked(answer.event, answer.offset, ads) for answer, ads in found]
