"""What the visitor's browser does: /impression and /click."""

from __future__ import annotations

import base64
import logging

from .. import wire
from ..errors import DiskFailure, Refused, Unknown
from ..events import Unfilled
from ..parsing import check_id

log = logging.getLogger(__name__)
PIXEL = base64.b64decode("R0lGODlhAQABAIAAAAAAAP///yH5BAEAAAAALAAAAAABAAEAAAIBRAA7")  # 1x1, transparent


def trusted(routes, engine, event_id: str) -> bool:
    """Whether whoever knows this id may click on it.

    A browser has no key; the signature in an id that we made shows that we gave it away. One that a site made
    up itself can be guessed, and is good only with a key, or where there are no keys.
    """
    return not routes.keys.configured or engine.ids.minted_at(event_id) is not None


def mount(routes, engine) -> None:  # noqa: D103
    def known(id: str) -> str:
        if not trusted(routes, engine, check_id(id, "id")):
            raise Unknown("no such event", "event_id")
        return id

    @routes.add("GET", "/impression/{id}", scope=None, produces="image/gif", statuses={404: "No such event."})
    def impression(call):
        """A 1x1 image that says the ad was seen; counted once."""
        engine.impress(known(call.id))
        return wire.Reply(PIXEL, content_type="image/gif")

    @routes.add(
        "GET",
        "/click/{id}",
        scope=None,
        statuses={
            204: "Taken down; the ad has no landing URL.",
            302: "To the ad's landing URL.",
            404: "No such event.",
        },
        produces="text/plain",
    )
    def click(call):
        """The reward of a click, and the way on to the ad's own landing URL."""
        event = engine.decision(known(call.id)).event
        if isinstance(event, Unfilled):
            raise Unknown("nothing was shown under this event id", "id")
        url = engine.shown(event).landing_url  # before the reward settles it: as it was when it was shown
        try:
            engine.reward(event.event_id, engine.state.reward_max)
        except (Refused, DiskFailure) as error:  # the visitor goes on whatever we think of the click
            log.warning("a click was not learned from: %s", error)
        return wire.Reply(b"", 302, {"Location": url}, "text/plain") if url else wire.Reply(status=204)
