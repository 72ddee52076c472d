"""/choose and /reward hung on falcon by hand: what the routes would cost without hug.

The same handlers, the same checks in the same order, the same replies and metrics, behind the same guard.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from banditads import api, errors, keys, parsing, wire  # api first: it makes hug and falcon importable
from banditads.api import metrics, serving
from banditads.guard import Door, Guard
from banditads.signing import Pseudonyms

import falcon  # isort: skip

HOT = ("/choose", "/reward")


class _Resource:
    def __init__(self, routes: _Routes, path: str, scope: keys.Scope, body: Any, handler: Any) -> None:
        self.routes, self.path, self.scope, self.body, self.handler = routes, path, scope, body, handler

    def on_post(self, request: falcon.Request, response: falcon.Response) -> None:
        started = time.perf_counter()
        try:
            token = wire.bearer(request)
            self.routes.keys.check(token, self.scope)
            if wire.query(request):
                raise errors.Invalid("this route has no such parameter", "query")
            media = wire.media_type(request)
            body = parsing.decode(wire.body(request), self.body, media)
            answer = self.handler(api.Call("", {}, body, media, token, request))
        except Exception as error:
            answer = wire.refusal(error)
        if not isinstance(answer, wire.Reply):
            answer = wire.Reply(answer)
        response.status = f"{answer.status} {wire.REASONS[answer.status]}"
        response.set_header("Cache-Control", "no-store")
        for name, value in answer.headers.items():
            response.set_header(name, value)
        if answer.data is not None:
            response.data, response.content_type = wire.encode(answer.data, wire.wants_msgpack(request))
        self.routes.observe("POST", self.path, answer.status, time.perf_counter() - started)


class _Routes:
    """What `mount` needs of `api.Routes`."""

    def __init__(self) -> None:
        self.keys, self.door = keys.Keys(None), Door()
        self.application = falcon.API()
        self.pseudonym = Pseudonyms(b"k" * 32)
        self.observe: Callable[[str, str, int, float], None] = lambda *_: None

    def add(self, method: str, path: str, *, scope: Any, body: Any = None, **declared: Any) -> Any:
        def declare(handler: Any) -> Any:
            if method == "POST" and path in HOT:
                self.application.add_route(path, _Resource(self, path, scope, body, handler))
            return handler

        return declare


def build(engine: Any) -> Guard:
    """The WSGI application of one engine, of these two routes only."""
    routes = _Routes()
    for module in (metrics, serving):
        module.mount(routes, engine)
    return Guard(routes.application, routes.door, wire.MAX_BODY)
