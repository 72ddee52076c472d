"""The HTTP API. Each file here is a family of routes: `mount(routes, engine)` hangs them on the API.

A handler takes a `Call` and returns a value; whatever it raises becomes a reply by the one table in
`wire.py`. hug routes the requests; what a route takes and gives is declared once, beside it, for
`/openapi.json`.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import logging
import pkgutil
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import numpy as np

np.unicode_ = np.str_  # noqa: NPY201  (hug 2.6.1 still asks for the name that NumPy 2 dropped)
import falcon  # noqa: E402
import hug  # noqa: E402

from .. import errors, keys, parsing, wire  # noqa: E402
from ..guard import Door, Guard  # noqa: E402

log = logging.getLogger(__name__)
_serial = itertools.count()


class Route(NamedTuple):
    """What is declared of a route."""

    method: str
    path: str  # with at most one variable, called {id}
    scope: keys.Scope | None  # what a key must be good for; None asks for none
    query: Mapping[str, str]  # parameter -> what it means; others are refused, unless there is "*"
    body: Any  # type of the body; None takes none
    shape: Any  # what a body of bytes is made of, for the contract
    reply: Any  # type of the reply; None has none
    statuses: Mapping[int, str]  # status other than 200 -> when
    media: tuple[str, ...]  # content types of the body
    limit: int  # bytes of the body
    produces: str  # content type of the reply
    doc: str


class Call(NamedTuple):
    """One request, checked against its route."""

    id: str  # the path's variable, unquoted
    query: dict[str, str]
    body: Any  # decoded; None where the route takes none
    media: str  # of the body


class Routes:
    """The routes of one engine.

    Attributes
    ----------
    api
        hug's.
    all
        Every route in the order in which it was declared.
    keys
        Who may do what.
    door
        What never got so far.
    observe
        Told of every request: method, path as declared, status, seconds.
    """

    def __init__(self, api: hug.API, known: keys.Keys, door: Door) -> None:
        self.api, self.keys, self.door = api, known, door
        self.all: list[Route] = []
        self.observe: Callable[[str, str, int, float], None] = lambda *_: None

    def add(
        self,
        method: str,
        path: str,
        *,
        scope: keys.Scope | None,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        shape: Any = None,
        reply: Any = None,
        statuses: Mapping[int, str] | None = None,
        media: tuple[str, ...] = (parsing.JSON, parsing.MSGPACK),
        limit: int = wire.MAX_BODY,
        produces: str = parsing.JSON,
    ) -> Callable[[Callable[[Call], Any]], Callable[[Call], Any]]:
        """Declare a route; the function below it answers."""

        def declare(handler):
            doc = inspect.getdoc(handler) or ""
            said, parameters = statuses or {}, query or {}
            route = Route(
                method, path, scope, parameters, body, shape or body, reply, said, media, limit, produces, doc
            )
            self.all.append(route)

            def run(request, response, id=""):
                started = time.perf_counter()
                answer = self._answer(route, handler, request, id)
                self._send(answer, request, response)
                self.observe(method, path, answer.status, time.perf_counter() - started)

            run.__doc__ = doc
            if "{id}" not in path:  # hug would take ?id= for it
                run = _without_id(run)
            hug.http(path, accept=(method,), api=self.api, output=_as_it_is, parse_body=False)(run)
            return handler

        return declare

    def _answer(self, route: Route, handler, request, id: str) -> wire.Reply:
        try:
            if route.scope is not None:  # before anything else of the request is read
                self.keys.check(wire.bearer(request), route.scope)
            if route.method in ("GET", "HEAD", "DELETE"):
                wire.no_body(request)
            query = wire.query(request)
            if "*" not in route.query and (unknown := query.keys() - route.query.keys()):
                raise errors.Invalid("this route has no such parameter", min(unknown)[:128])
            media, body = parsing.JSON, None
            if route.body is not None:
                media = wire.media_type(request, route.media)
                if media not in (parsing.JSON, parsing.MSGPACK) and request.content_length is None:
                    raise errors.Invalid(
                        "lines need a length: half of them would look whole", "Content-Length"
                    )
                raw = wire.body(request, route.limit)
                body = raw if route.body is bytes else parsing.decode(raw, route.body, media)
            answer = handler(Call(_id(id), query, body, media))
        except Exception as error:  # the edge: everything becomes a reply
            answer = wire.refusal(error)
            if answer.status >= 500:
                log.error("%s %s failed", route.method, route.path, exc_info=error)
        return answer if isinstance(answer, wire.Reply) else wire.Reply(answer)

    def _send(self, answer: wire.Reply, request, response) -> None:
        response.status = f"{answer.status} {wire.REASONS[answer.status]}"
        response.set_header("Cache-Control", "no-store")
        for name, value in answer.headers.items():
            response.set_header(name, value)
        if isinstance(answer.data, bytes):
            response.data, response.content_type = answer.data, answer.content_type
        elif answer.data is not None:
            response.data, response.content_type = wire.encode(answer.data, wire.wants_msgpack(request))


def _id(quoted: str) -> str:
    try:
        return unquote(quoted, errors="strict")
    except UnicodeDecodeError:
        raise errors.Invalid("not UTF-8", "id") from None


def _without_id(run):
    def plain(request, response):
        run(request, response)

    plain.__doc__ = run.__doc__
    return plain


def _as_it_is(content, request, response):
    """JSON, or MessagePack if that is asked for."""
    return response.data


_as_it_is.content_type = parsing.JSON


def build(engine, known: keys.Keys | None = None, door: Door | None = None) -> Guard:
    """The WSGI application of one engine, for whom it may concern. Several can live in one process."""
    api = hug.API(f"banditads-{next(_serial)}")  # hug keeps one API per name; each engine gets its own
    routes = Routes(api, known or keys.Keys(None), door or Door())
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        importlib.import_module(f"{__name__}.{module.name}").mount(routes, engine)
    api.http.set_not_found_handler(_not_found)
    versions, api.http.versions = api.http.versions, set()  # or hug adds every route again under /v{n}
    application = api.http.server()
    api.http.versions = versions  # its help needs them
    application.set_error_serializer(partial(_serialise, routes))
    return Guard(_Edge(application, routes), routes.door, max(route.limit for route in routes.all))


class _Edge:
    """Lets an id hold a slash.

    The server has unquoted the path already, so what follows a route's prefix is quoted again before routing.
    """

    def __init__(self, application, routes: Routes) -> None:
        self.application, self.routes = application, routes
        self.prefixes = tuple({route.path[:-4] for route in routes.all if route.path.endswith("{id}")})

    def __call__(self, environ, start_response):
        path = environ["PATH_INFO"]
        if path.startswith(self.prefixes):
            prefix = next(each for each in self.prefixes if path.startswith(each))
            rest = path[len(prefix) :].encode("latin-1", "surrogateescape")  # WSGI strings carry bytes
            environ["PATH_INFO"] = prefix + quote(rest, safe="")
        return self.application(environ, start_response)


def _error(request, response, status: int, *said: str) -> None:
    said = wire.ErrorReply(wire.ErrorBody(*said))
    response.status = f"{status} {wire.REASONS[status]}"
    response.set_header("Cache-Control", "no-store")
    response.data, response.content_type = wire.encode(said, wire.wants_msgpack(request))


def _not_found(request, response, *args, **kwargs) -> None:
    _error(request, response, 404, "unknown", "there is no such route; see /openapi.json", "path")


_not_found.interface = True  # hug asks for the mark of something that answers by itself


def _serialise(routes: Routes, request, response, error) -> None:
    """falcon's own refusals: a method that a route does not have, a header that cannot be read."""
    status = int(error.status.split()[0])
    if status not in wire.REASONS:
        status = 400
    if request.method not in falcon.COMBINED_METHODS:  # falcon would call that a bad request
        status = 405
        allowed = [route.method for route in routes.all if route.path == request.uri_template]
        response.set_header("Allow", ", ".join([*dict.fromkeys(allowed), "OPTIONS"]))
    if status == 405:
        _error(request, response, 405, "unsupported", "this route does not have that method", "method")
    else:
        _error(request, response, status, "invalid", "the request is malformed", "headers")
