"""The ads: /catalog/ads, one by one or many at once."""

from __future__ import annotations

from bisect import bisect_right
from typing import Annotated, Any

import msgspec

from .. import parsing
from ..errors import Invalid, Unknown
from ..events import Ad
from ..parsing import AdBody, ListedAd, check_ad, check_ads

MAX_BULK = 16 * 2**20  # bytes of many ads at once
SOME_ADS = msgspec.Meta(extra_json_schema={"minItems": 1, "maxItems": parsing.MAX_ADS, "uniqueItems": True})
JSON_LINES = ("application/x-ndjson", "application/jsonl", "application/x-jsonlines")


class AdReply(msgspec.Struct):
    """An ad as it is kept: features flat, cleaned and sorted."""

    id: str
    features: dict[str, str | float]
    landing_url: str
    creative: dict[str, Any]
    placements: tuple[str, ...]
    starts: float | None
    ends: float | None
    house: bool


class Ads(msgspec.Struct):
    """Ads in the catalog, sorted by id. `next` asks for those after, if there are more."""

    ads: list[AdReply]
    total: int
    next: str | None


class Stored(msgspec.Struct):
    """How many ads changed, and where that stands in the journal."""

    ads: int
    offset: int


def mount(routes, engine) -> None:  # noqa: D103
    def put(ads: list[Ad]) -> Stored:
        return Stored(len(ads), engine.put_ads(ads))

    @routes.add(
        "GET",
        "/catalog/ads",
        scope="admin",
        query={"after": "Only ids after this one.", "limit": "At most so many, 1 to 1000; 1000."},
        reply=Ads,
        compress=True,
    )
    def list_ads(call):
        """The ads in the catalog, sorted by id."""
        limit = call.query.get("limit", "1000")
        if not (limit.isascii() and limit.isdigit() and 1 <= int(limit[:9]) <= 1000):
            raise Invalid("must be between 1 and 1000", "limit")
        with engine.lock:
            catalog = engine.state.catalog
            n, first = len(catalog.ids), bisect_right(catalog.ids, call.query.get("after", ""))
            page = [catalog.ads[ad_id] for ad_id in catalog.ids[first : first + int(limit)]]
        return Ads([_reply(ad) for ad in page], n, page[-1].id if n > first + len(page) else None)

    @routes.add(
        "POST",
        "/catalog/ads",
        scope="admin",
        body=bytes,
        shape=Annotated[list[ListedAd], SOME_ADS],
        reply=Stored,
        media=(parsing.JSON, parsing.MSGPACK, *JSON_LINES),
        limit=MAX_BULK,
    )
    def post_ads(call):
        """Add or replace many ads, as an array or as JSON Lines: all of them or none."""
        return put(check_ads(call.body, call.media in JSON_LINES, call.media))

    @routes.add("GET", "/catalog/ads/{id}", scope="admin", reply=AdReply, statuses={404: "No such ad."})
    def get_ad(call):
        """One ad."""
        ad = engine.state.catalog.ads.get(call.id)
        if ad is None:
            raise Unknown(f"there is no ad {call.id!r}", "id")
        return _reply(ad)

    @routes.add("PUT", "/catalog/ads/{id}", scope="admin", body=AdBody, reply=Stored)
    def put_ad(call):
        """Add an ad, or replace it. Decisions already made keep the features they were made with."""
        if call.body.id not in ("", call.id):
            raise Invalid("the id in the body is another one than in the path", "id")
        call.body.id = call.id
        return put([check_ad(call.body, "ad")])

    @routes.add("DELETE", "/catalog/ads/{id}", scope="admin", reply=Stored, statuses={404: "No such ad."})
    def delete_ad(call):
        """Take an ad out of the catalog. Decisions already made with it can still be rewarded."""
        return Stored(1, engine.remove_ad(call.id))


def _reply(ad: Ad) -> AdReply:
    return AdReply(
        ad.id,
        ad.features,
        ad.landing_url,
        ad.creative,
        ad.placements,
        ad.starts,
        ad.ends,
        ad.house,
    )
