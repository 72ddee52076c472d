"""The people who visit: /users/{id}, what they did, and many of both at once.

An id becomes a pseudonym before anything else sees it, and no reply says an id again.
"""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from .. import parsing, users
from ..parsing import (
    MAX_LISTED,
    ActBody,
    ListedAct,
    ListedUser,
    UserBody,
    check_act,
    check_listed,
    check_user,
    check_user_id,
)
from .catalog import JSON_LINES

MAX_BULK = 4 * 2**20  # bytes of many users, or of what they did
MANY = Meta(extra_json_schema={"minItems": 1, "maxItems": MAX_LISTED})


class ProfileReply(msgspec.Struct):
    """All that is kept of a user, and what of it decisions are made from now. Times are in seconds.

    `profile` is null of whom nothing is kept: unknown, without consent, erased or forgotten.
    """

    consent: bool
    profile: users.Known | None
    features: dict[str, str | float]


class UsersReply(msgspec.Struct):
    """How many users consent and were taken down; `offset` is null if nothing had to change."""

    users: int
    offset: int | None


class ActsReply(msgspec.Struct):
    """How many acts were taken down: those of users who consent. `offset` is null if there are none."""

    acts: int
    offset: int | None


class ErasedReply(msgspec.Struct):
    """Where it stands in the journal that the user is to be forgotten."""

    offset: int


def mount(routes, engine) -> None:  # noqa: D103
    def user(id: str, field: str = "id") -> str:
        return routes.pseudonym(check_user_id(id, field))

    def listed(call, kind, check, what: str) -> list[Any]:
        lines = call.media in JSON_LINES
        return check_listed(call.body, lines, call.media, kind, check, what=what, most=MAX_LISTED)

    def put(known: dict[str, Any]) -> UsersReply:
        offset = engine.put_users(known)
        return UsersReply(sum(each is not None for each in known.values()), offset)

    @routes.add("PUT", "/users/{id}", scope="users", body=UserBody, reply=UsersReply)
    def put_user(call):
        """Say what is known of a user, or replace it. Without consent nothing is kept, and the past goes."""
        return put({user(call.id): check_user(call.body, "")})

    @routes.add("GET", "/users/{id}", scope="users", reply=ProfileReply)
    def get_user(call):
        """Everything that is kept of a user, and what of it is used: nothing of one who does not consent."""
        name = user(call.id)
        with engine.lock:
            at = engine.clock()
            known = engine.state.users.known(name, at)
            features = engine.state.users.features(name, at)
        return ProfileReply(known is not None, known, features)

    @routes.add("DELETE", "/users/{id}", scope="users", reply=ErasedReply)
    def delete_user(call):
        """Forget a user: profile, history and exposure, at once."""
        return ErasedReply(engine.erase(user(call.id)))

    @routes.add(
        "POST",
        "/users/{id}/events",
        scope="users",
        body=bytes,
        shape=ActBody | Annotated[list[ActBody], MANY],
        reply=ActsReply,
        media=(parsing.JSON, parsing.MSGPACK, *JSON_LINES),
        limit=MAX_BULK,
    )
    def post_acts(call):
        """Say what a user did: one act, an array, or JSON Lines; all of it or nothing."""
        name, check = user(call.id), partial(check_act, now=engine.now())
        if call.media not in JSON_LINES:
            body = parsing.decode(call.body, ActBody | list[msgspec.Raw], call.media)
            if isinstance(body, ActBody):
                return ActsReply(*engine.act({name: [check(body, "")]}))
        return ActsReply(*engine.act({name: listed(call, ActBody, check, "act")}))

    @routes.add(
        "POST",
        "/users",
        scope="users",
        body=bytes,
        shape=Annotated[list[ListedUser], MANY],
        reply=UsersReply,
        media=(parsing.JSON, parsing.MSGPACK, *JSON_LINES),
        limit=MAX_BULK,
    )
    def post_users(call):
        """Say what is known of many users, as an array or as JSON Lines; if one comes twice, the last."""

        def check(body, field):
            return user(body.id, f"{field}.id"), check_user(body, field)

        return put(dict(listed(call, ListedUser, check, "user")))

    @routes.add(
        "POST",
        "/events",
        scope="users",
        body=bytes,
        shape=Annotated[list[ListedAct], MANY],
        reply=ActsReply,
        media=(parsing.JSON, parsing.MSGPACK, *JSON_LINES),
        limit=MAX_BULK,
    )
    def post_events(call):
        """Say what many users did, as an array or as JSON Lines, each with its `user`."""
        now = engine.now()

        def check(body, field):
            return user(body.user, f"{field}.user"), check_act(body, field, now)

        acts = {}
        for name, act in listed(call, ListedAct, check, "act"):
            acts.setdefault(name, []).append(act)
        return ActsReply(*engine.act(acts))
