"""Many at once: /choose/batch and /reward/batch. Each item gets what it would have got alone, in their order.

A body is taken apart before its items are read, so that one which is wrong spoils no other. A key's rate
counts items: those beyond it are refused, each for itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .. import wire
from ..errors import Invalid, Refused, TooLarge
from ..keys import Scope
from ..parsing import check_id, decode
from .serving import ChooseBody, ChooseReply, RewardBody, RewardReply

log = logging.getLogger(__name__)
MAX_ITEMS = 100
MAX_BATCH = 2**20  # bytes: 10 KB an item, 30 times a visitor of 15 features; no item may have more than alone


def _some(kind: str) -> Any:
    """For the contract: items of this kind. Others are answered too, each with its own refusal."""
    items = {"anyOf": [{"$ref": f"#/components/schemas/{kind}"}, {}]}
    return Annotated[list[Any], Meta(min_length=1, max_length=MAX_ITEMS, extra_json_schema={"items": items})]


class ChooseBatch(msgspec.Struct, forbid_unknown_fields=True):
    """Decisions to make, each as the body of POST /choose."""

    requests: _some("ChooseBody")


class RewardBatch(msgspec.Struct, forbid_unknown_fields=True):
    """Rewards, each as the body of POST /reward."""

    rewards: _some("RewardBody")


class _Requests(msgspec.Struct, forbid_unknown_fields=True):
    requests: list[msgspec.Raw]


class _Rewards(msgspec.Struct, forbid_unknown_fields=True):
    rewards: list[msgspec.Raw]


class ChooseItem(msgspec.Struct, omit_defaults=True):
    """What became of an item: `reply` with 200, `event_id` with 204, `error` with the rest.

    `retry_after`, in seconds, is what a single reply says in the header Retry-After.
    """

    status: int
    reply: ChooseReply | None = None
    event_id: str | None = None
    error: wire.ErrorBody | None = None
    retry_after: int | None = None


class RewardItem(msgspec.Struct, omit_defaults=True):
    """What became of an item: `reply` with 200, `error` with the rest; `retry_after` in seconds."""

    status: int
    reply: RewardReply | None = None
    error: wire.ErrorBody | None = None
    retry_after: int | None = None


class ChooseResults(msgspec.Struct):
    """One for each item, in the same order."""

    results: list[ChooseItem]


class RewardResults(msgspec.Struct):
    """One for each item, in the same order."""

    results: list[RewardItem]


def mount(routes, engine) -> None:  # noqa: D103
    def read(call, found: list[msgspec.Raw], kind, scope: Scope) -> Iterator[Any]:
        """Each item as this kind; or the exception that is its answer."""
        for number, raw in enumerate(found):
            try:
                if number:  # the first was let in with the request
                    routes.keys.check(call.token, scope)
                if len(raw) > wire.MAX_BODY:
                    raise TooLarge(f"the body may have at most {wire.MAX_BODY} bytes", "body")
                yield decode(raw, kind, call.media)
            except Refused as error:
                yield error

    def choose(call, body) -> ChooseItem:
        if isinstance(body, Exception):
            return _refused(ChooseItem, body)
        try:
            said = routes.handlers["POST", "/choose"](msgspec.structs.replace(call, body=body))
        except Exception as error:  # an item is an edge of its own
            return _refused(ChooseItem, error)
        if said.status == 204:
            return ChooseItem(204, event_id=said.headers["X-Event-Id"])
        return ChooseItem(200, said.data)

    @routes.add(
        "POST",
        "/choose/batch",
        scope="choose",
        body=_Requests,
        shape=ChooseBatch,
        reply=ChooseResults,
        limit=MAX_BATCH,
    )
    def choose_batch(call):
        """Pick an ad for each of several visitors, as POST /choose would one after the other."""
        found = _few(call.body.requests, "requests")
        return ChooseResults([choose(call, body) for body in read(call, found, ChooseBody, "choose")])

    @routes.add(
        "POST",
        "/reward/batch",
        scope="reward",
        body=_Rewards,
        shape=RewardBatch,
        reply=RewardResults,
        limit=MAX_BATCH,
    )
    def reward_batch(call):
        """Say what several decisions were worth, as POST /reward would; waits for the disk once."""
        found = _few(call.body.rewards, "rewards")
        bodies = [_checked(body) for body in read(call, found, RewardBody, "reward")]
        taken = iter(engine.rewards([(b.event_id, b.reward) for b in bodies if isinstance(b, RewardBody)]))
        said = [next(taken) if isinstance(body, RewardBody) else body for body in bodies]
        return RewardResults(
            [
                _refused(RewardItem, each)
                if isinstance(each, Exception)
                else RewardItem(200, RewardReply(each.status, each.offset))
                for each in said
            ]
        )


def _few(found: list[msgspec.Raw], field: str) -> list[msgspec.Raw]:
    if not 1 <= len(found) <= MAX_ITEMS:
        raise Invalid(f"give between 1 and {MAX_ITEMS}", field)
    return found


def _checked(body: RewardBody | Refused) -> RewardBody | Refused:
    try:
        if isinstance(body, RewardBody):
            check_id(body.event_id, "event_id")
        return body
    except Refused as error:
        return error


def _refused(kind, error: Exception):
    """The item that says so, as the one table has it."""
    said = wire.refusal(error)
    if said.status >= 500:
        log.error("an item of a batch failed", exc_info=error)
    wait = said.headers.get("Retry-After")
    return kind(said.status, error=said.data.error, retry_after=int(wait) if wait else None)
