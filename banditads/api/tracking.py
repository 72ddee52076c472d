"""What a visitor does with an ad: /impression, /click, /conversion, /dwell; and the script /banditads.js.

A browser tells without asking and without a body: by a picture, a link, or a beacon, which is an empty POST
to the same address. Each counts once. What it is worth is configured, not said by the browser.
"""

from __future__ import annotations

import base64
import logging
from hashlib import blake2b
from importlib import resources
from math import isfinite
from typing import Annotated
from urllib.parse import quote

import msgspec
from msgspec import Meta

from .. import wire
from ..errors import DiskFailure, Forbidden, Invalid, Refused, Unknown
from ..events import Unfilled
from ..parsing import Id, MaybeId, check_id

log = logging.getLogger(__name__)
PIXEL = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")  # 1x1, transparent
SCRIPT = resources.files("banditads").joinpath("data/banditads.js").read_bytes()
ETAG = f'"{blake2b(SCRIPT, digest_size=8).hexdigest()}"'
KEPT = {"ETag": ETAG, "Cache-Control": "public, max-age=3600"}  # a browser asks again after an hour
JAVASCRIPT = "text/javascript; charset=utf-8"
ONWARD = {"Referrer-Policy": "strict-origin", "X-Robots-Tag": "noindex, nofollow"}
MAX_VALUE = 1e12
MAX_DWELL = 86400.0  # seconds
PURPOSES = ("Sec-Purpose", "Purpose", "X-Purpose", "X-Moz")  # old browsers have names of their own
ONCE = {
    404: "No such event.",
    409: "Another one was already given for this event, or too many were.",
    410: "Too late: written down, not learned from.",
}
CONVERSION = {
    "value": "What it brought; 1 if it is not said.",
    "order_id": "Tells several conversions of one event apart.",
}


class ConversionBody(msgspec.Struct, forbid_unknown_fields=True):
    """The visitor bought something, or did what else the ad was for."""

    event_id: Id
    value: Annotated[float, Meta(extra_json_schema={"minimum": -MAX_VALUE, "maximum": MAX_VALUE})] = 1.0
    order_id: MaybeId = ""


class TrackReply(msgspec.Struct):
    """`applied`: counts. `duplicate`: did before. `noted`: something else counts. `ignored`: not asked for.

    `offset` is its place in the journal, where it has one.
    """

    status: str
    offset: int | None = None


def trusted(routes, engine, event_id: str) -> bool:
    """Whether whoever knows this id may click on it.

    A browser has no key; the signature in an id that we made shows that we gave it away. One that a site made
    up itself can be guessed, and is good only with a key, or where there are no keys.
    """
    return not routes.keys.configured or engine.ids.minted_at(event_id) is not None


def landing(url: str, event_id: str) -> str:
    """The landing URL of an ad, which may want to know the event it was shown in."""
    return url.replace("{event_id}", quote(event_id, safe="")) if "{" in url else url


def early(request) -> bool:
    """Whether a browser fetches this before anybody wants to see it."""
    said = ",".join(request.get_header(name) or "" for name in PURPOSES).lower()
    return "prefetch" in said or "prerender" in said or "preview" in said


def mount(routes, engine) -> None:  # noqa: D103, PLR0915
    def known(id: str, field: str = "id") -> str:
        if not trusted(routes, engine, check_id(id, field)):
            raise Unknown("no such event", "event_id")
        return id

    def signal(event_id: str, kind: str, amount: float = 0.0, order: str = "", hold=None) -> TrackReply:
        if (worth := routes.worths[kind]) is None:
            return TrackReply("ignored")
        if worth.of_ad:
            amount = engine.amount_of_ad(event_id, kind, order, worth.of_ad)
        reward = worth(amount, engine.state.reward_min, engine.state.reward_max)
        return TrackReply(*engine.reward(event_id, reward, kind, order, amount, hold=hold))

    def convert(call) -> TrackReply:
        value, order = call.query.get("value", "1"), call.query.get("order_id", "")
        return converted(known(call.id), number(value, "value"), order, call.hold)

    def converted(event_id: str, value: float, order: str, hold) -> TrackReply:
        if not abs(value) <= MAX_VALUE:  # NaN too
            raise Invalid(f"must lie within {MAX_VALUE:g}", "value")
        return signal(event_id, "conversion", value, check_id(order, "order_id") if order else "", hold)

    @routes.add(
        "GET",
        "/impression/{id}",
        scope=None,
        in_turn=True,
        produces="image/gif",
        statuses={404: "No such event."},
    )
    def impression(call):
        """A 1x1 image that says the ad was seen; counted once."""
        if not early(call.request):
            engine.impress(known(call.id))
        return wire.Reply(PIXEL, content_type="image/gif")

    @routes.add(
        "POST",
        "/impression/{id}",
        scope=None,
        in_turn=True,
        reply=TrackReply,
        statuses={404: "No such event."},
    )
    def impression_beacon(call):
        """The ad was seen; counted once. No body."""
        return TrackReply("applied" if engine.impress(known(call.id)) else "duplicate")

    leads = {
        204: "The ad has no landing URL.",
        302: "To the ad's landing URL.",
        403: "A browser fetches this before anybody has clicked.",
        404: "No such event.",
    }

    @routes.add("HEAD", "/click/{id}", scope=None, statuses=leads, produces="text/plain")
    def click_head(call):
        """Where a click would lead. Counts for nothing."""
        return click(call, counts=False)

    @routes.add("GET", "/click/{id}", scope=None, statuses=leads, produces="text/plain")
    def click(call, counts=True):
        """The reward of a click, and the way on to the ad's own landing URL."""
        if early(call.request):  # a browser throws this away, and asks again when there is a click
            raise Forbidden("a click is not fetched before it is made", "Sec-Purpose")
        event = engine.decision(known(call.id)).event
        if isinstance(event, Unfilled):
            raise Unknown("nothing was shown under this event id", "id")
        url = landing(engine.shown(event).landing_url, event.event_id)  # before it settles: as it was shown
        try:
            if counts:
                signal(event.event_id, "click")
        except (Refused, DiskFailure) as error:  # the visitor goes on whatever we think of the click
            log.warning("a click was not learned from: %s", error)
        if not url:
            return wire.Reply(status=204)
        return wire.Reply(b"", 302, {"Location": url, **ONWARD}, "text/plain")

    @routes.add("POST", "/click/{id}", scope=None, in_turn=True, reply=TrackReply, statuses=ONCE)
    def click_beacon(call):
        """The ad was clicked, and the page goes on by itself. No body."""
        return signal(known(call.id), "click", hold=call.hold)

    @routes.add("GET", "/conversion/{id}", scope=None, query=CONVERSION, statuses=ONCE, produces="image/gif")
    def conversion(call):
        """A 1x1 image that says that the visitor bought something."""
        if not early(call.request):
            convert(call)
        return wire.Reply(PIXEL, content_type="image/gif")

    @routes.add(
        "POST",
        "/conversion/{id}",
        scope=None,
        in_turn=True,
        query=CONVERSION,
        reply=TrackReply,
        statuses=ONCE,
    )
    def conversion_beacon(call):
        """The visitor bought something. No body."""
        return convert(call)

    @routes.add(
        "POST", "/conversion", scope=None, in_turn=True, body=ConversionBody, reply=TrackReply, statuses=ONCE
    )
    def conversion_of_a_server(call):
        """The visitor bought something. A key for `reward`, if one is sent, is good for ids of your own."""
        body = call.body
        check_id(body.event_id, "event_id")
        if call.token:
            routes.keys.check(call.token, "reward")
        else:
            known(body.event_id, "event_id")
        return converted(body.event_id, body.value, body.order_id, call.hold)

    @routes.add(
        "POST",
        "/dwell/{id}",
        scope=None,
        in_turn=True,
        query={"seconds": "How long the visitor stayed on the landing page."},
        reply=TrackReply,
        statuses=ONCE,
    )
    def dwell(call):
        """How long the visitor stayed; ignored unless `dwell_reward` says what that is worth. No body."""
        seconds = number(call.query.get("seconds", ""), "seconds")
        if not 0 <= seconds <= MAX_DWELL:
            raise Invalid(f"must lie between 0 and {MAX_DWELL:g}", "seconds")
        return signal(known(call.id), "dwell", seconds, hold=call.hold)

    @routes.add(
        "GET", "/banditads.js", scope=None, statuses={304: "You have it already."}, produces=JAVASCRIPT
    )
    def script(call):
        """The script for pages; see docs/tracking.md."""
        if ETAG in (call.request.get_header("If-None-Match") or ""):
            return wire.Reply(None, 304, KEPT)
        return wire.Reply(SCRIPT, 200, KEPT, JAVASCRIPT)

    @routes.add("GET", "/robots.txt", scope=None, produces="text/plain")
    def robots(call):
        """Robots that ask may follow nothing here."""
        return wire.Reply(b"User-agent: *\nDisallow: /\n", content_type="text/plain")


def number(text: str, field: str) -> float:
    """A finite number. Raises `Invalid`."""
    try:
        value = float(text) if text.isascii() and "_" not in text else float("nan")
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise Invalid("must be a number", field)
    return value
