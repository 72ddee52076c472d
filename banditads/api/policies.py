"""Who decides, who learns along, and what each would earn: /policies."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta


class Standing(msgspec.Struct):
    """One policy. What it earns is a mean per decision since the champion began; null: nothing is known."""

    name: str
    decisions: Annotated[int, Meta(description="That were counted.")]
    value: Annotated[float | None, Meta(description="What it would have earned.")]
    low: Annotated[float | None, Meta(description="Where that lies, with 95 % at all times.")]
    high: float | None
    gain: Annotated[float | None, Meta(description="What it earns more than the champion.")] = None
    gain_low: Annotated[float | None, Meta(description="At least that, at all times.")] = None
    effective_sample_size: float = 0.0
    largest_weight: float = 0.0
    better: Annotated[bool, Meta(description="Certainly, and enough was counted.")] = False
    failed: Annotated[str, Meta(description="Why it cannot be used; empty if it can.")] = ""


class PoliciesReply(msgspec.Struct):
    """Who decides, since when, how many did until now, what becomes of a better one; and how all stand."""

    champion: str
    since: float
    reign: int
    promote: str
    policies: list[Standing]


class PromotedReply(msgspec.Struct):
    """Where in the journal it stands that this policy decides."""

    champion: str
    offset: int


def standings(engine) -> PoliciesReply:
    """How everybody stands, the champion first; for who holds the engine's lock."""
    state, contest = engine.state, engine.state.challengers
    low, span, better = state.reward_min, state.reward_max - state.reward_min, engine.better()

    def standing(name, figures):
        count = figures.earned.count
        within = figures.interval() if count else (0.0, 0.0)
        made = Standing(name, count, *(low + span * each for each in (figures.earned.mean, *within)))
        if not count:
            made.value = made.low = made.high = None
        made.effective_sample_size, made.largest_weight = figures.effective_sample_size, figures.largest
        return made

    found = [standing(contest.champion, contest.own)]
    for name, figures in contest.figures.items():
        each = standing(name, figures)
        if each.decisions:
            gain, least = contest.gain(name)
            each.gain, each.gain_low = span * gain, span * max(-1.0, least)
        each.better, each.failed = name in better, contest.failed.get(name, "")
        found.append(each)
    return PoliciesReply(contest.champion, contest.since, contest.reign, engine.promotes, found)


def mount(routes, engine) -> None:  # noqa: D103
    @routes.add("GET", "/policies", scope="admin", reply=PoliciesReply)
    def policies(call):
        """Which policy decides, which ones learn along, and what each would have earned."""
        with engine.lock:
            return standings(engine)

    @routes.add(
        "POST",
        "/policies/{id}/promote",
        scope="admin",
        reply=PromotedReply,
        statuses={404: "There is no such policy here.", 409: "It decides already, or cannot be used."},
    )
    def promote(call):
        """Let a challenger decide from now on; who did becomes a challenger, and can come back."""
        return PromotedReply(call.id, engine.promote(call.id))
