"""GET /features: what is known of every feature, and what to look at."""

from __future__ import annotations

import time

import msgspec

from ..columns import EVERY
from ..influence import influence

SECONDS = 2.0  # for asking the policy; requests go on in between


class Feature(msgspec.Struct):
    """One feature of visitors or of the ads that were shown; the words of a text are one.

    `seen` and `missing` are of the choices looked at, `distinct` is an estimate, `mean` and `spread` are of
    its numbers. `association` is the share of the reward's variance that it explains, null while too little
    is known. `moves_choices` is the share of recent visits that would be shown another ad without it, null
    if no decision that waits for a reward has it.
    """

    name: str
    type: str
    seen: int
    missing: float
    distinct: int
    mean: float | None
    spread: float | None
    last_seen: float
    association: float | None
    moves_choices: float | None
    warnings: tuple[str, ...]


class FeaturesReply(msgspec.Struct):
    """`looked_at` choices of all: later on, one in `every`. Columns beyond the limit are `forgotten`."""

    looked_at: int
    every: int
    forgotten: int
    context: list[Feature]
    ad: list[Feature]


def mount(routes, engine) -> None:  # noqa: D103
    @routes.add("GET", "/features", scope="admin", reply=FeaturesReply)
    def features(call):
        """What visitors and ads are described by: types, gaps, values, influence, and warnings in words."""
        until = time.monotonic() + SECONDS
        moves = influence(lambda: engine.state, engine.lock, lambda: time.monotonic() > until)
        with engine.lock:
            columns = engine.state.columns
            # Copied in a few milliseconds even if full; what takes longer is worked out from the copy.
            looked_at, forgotten, columns = columns.looked_at, columns.forgotten, columns.copy()
        sides = {
            side: [
                Feature(
                    each.name,
                    each.kind,
                    each.seen,
                    each.missing,
                    round(each.distinct),
                    each.mean,
                    each.spread,
                    each.last_at,
                    each.association,
                    moves.get((side, each.name)),
                    each.warnings,
                )
                for each in columns.facts(side)
            ]
            for side in ("context", "ad")
        }
        return FeaturesReply(looked_at, EVERY, forgotten, **sides)
