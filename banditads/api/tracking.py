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


def mount(routes, engine) -> None:  # noqa: D103
    @routes.add("GET", "/impression/{id}", produces="image/gif", statuses={404: "No such event."})
    def impression(call):
        """A 1x1 image that says the ad was seen; counted once."""
        engine.impress(check_id(call.id, "id"))
        return wire.Reply(PIXEL, content_type="image/gif")

    @routes.add(
        "GET",
        "/click/{id}",
        statuses={
            204: "Taken down; the ad has no landing URL.",
            302: "To the ad's landing URL.",
            404: "No such event.",
        },
        produces="text/plain",
    )
    def click(call):
        """The reward of a click, and the way on to the ad's own landing URL."""
        event = engine.decision(check_id(call.id, "id")).event
        if isinstance(event, Unfilled):
            raise Unknown("nothing was shown under this event id", "id")
        url = engine.shown(event).landing_url  # before the reward settles it: as it was when it was shown
        try:
            engine.reward(event.event_id, engine.state.reward_max)
        except (Refused, DiskFailure) as error:  # the visitor goes on whatever we think of the click
            log.warning("a click was not learned from: %s", error)
        return wire.Reply(b"", 302, {"Location": url}, "text/plain") if url else wire.Reply(status=204)
