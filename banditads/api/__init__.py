"""The HTTP API. Each file here is a family of routes: `mount(routes, engine)` hangs them on the API.

A handler takes a `Call` and returns a value; whatever it raises becomes a reply by the one table in
`wire.py`. hug routes the requests; what a route takes and gives is declared once, beside it, for
`/openapi.json`. A route reads its request and makes its reply by itself, so what hug and falcon would do for
it besides is left out, by their own means: between the server and a handler 9 us are spent instead of 27.
"""

from __future__ import annotations

import importlib
import inspect
import itertools
import logging
import pkgutil
import secrets
import sys
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from gzip import compress
from types import ModuleType
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import msgspec
import numpy as np

np.unicode_ = np.str_  # noqa: NPY201  (hug 2.6.1 still asks for the name that NumPy 2 dropped)
# It also asks for a name each of distutils.util and distutils.version, and needs neither here. Where
# setuptools stands in for distutils, that takes a quarter of a start to import.
_missed: dict[str, Any] = {
    name: ModuleType(name) for name in ("distutils", "distutils.util", "distutils.version")
}
_missed["distutils.util"].strtobool = _missed["distutils.version"].LooseVersion = None
_missed["marshmallow"] = None  # the version of which it would compare
_there = {name: sys.modules[name] for name in _missed.keys() & sys.modules.keys()}
sys.modules.update(_missed)
import falcon  # noqa: E402
import hug  # noqa: E402

for _name in _missed:
    del sys.modules[_name]
sys.modules.update(_there)

from .. import errors, keys, parsing, wire, worth  # noqa: E402
from ..cors import Cors  # noqa: E402
from ..guard import Door, Guard  # noqa: E402
from ..replies import HELD  # noqa: E402
from ..signing import Pseudonyms  # noqa: E402

log = logging.getLogger(__name__)
_serial = itertools.count()
BODILESS = (wire.LINES[204], wire.LINES[304])
FREELY: AbstractContextManager[None] = nullcontext()
WORTH = 1024  # bytes of a reply from which on it is compressed, where it is at all


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
    compress: bool  # a long reply, for who asks for that; not where milliseconds count
    in_turn: bool  # it is asked for often, and waits for nothing but the engine and replies that are held
    doc: str


class Call(msgspec.Struct):  # made in .06 us, a tuple in .3
    """One request, checked against its route."""

    id: str  # the path's variable, unquoted
    query: dict[str, str]
    body: Any  # decoded; None where the route takes none
    media: str  # of the body
    token: str  # of the key; empty where there is none
    request: wire.Incoming  # as it came
    hold: Callable[[int], None] | None = None  # lets the reply wait for a record, if the server can


class Routes:
    """The routes of one engine.

    Attributes
    ----------
    api
        hug's.
    all
        Every route in the order in which it was declared.
    handlers
        What answers, by method and path.
    keys
        Who may do what.
    door
        What never got so far.
    pseudonym
        What is written down instead of a user's id.
    worths
        What the things that visitors do are worth.
    turns
        What routes that wait for nothing but the engine go through.
    observe
        Told of every request: method, path as declared, status, seconds.
    """

    def __init__(
        self,
        api: hug.API,
        known: keys.Keys,
        door: Door,
        pseudonym: Callable[[str], str],
        worths: worth.Worths,
        *,
        turns: AbstractContextManager[None],
    ) -> None:
        self.api, self.keys, self.door = api, known, door
        self.pseudonym, self.worths, self.turns = pseudonym, worths, turns
        self.all: list[Route] = []
        self.handlers: dict[tuple[str, str], Callable[[Call], Any]] = {}
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
        compress: bool = False,
        in_turn: bool = False,
    ) -> Callable[[Callable[[Call], Any]], Callable[[Call], Any]]:
        """Declare a route; the function below it answers."""

        def declare(handler):
            doc = inspect.getdoc(handler) or ""
            said, parameters = statuses or {}, query or {}
            route = Route(
                method,
                path,
                scope,
                parameters,
                body,
                shape or body,
                reply,
                said,
                media,
                limit,
                produces,
                compress,
                in_turn,
                doc,
            )
            self.all.append(route)
            self.handlers[method, path] = handler

            def run(request, response, id=""):
                started = time.perf_counter()
                answer = self._answer(route, handler, request, id)
                self._send(route, answer, request, response)
                held = request.env.get(HELD)
                if held and held.offset >= 0:
                    held.tell = lambda status: self.observe(
                        method, path, status, time.perf_counter() - started
                    )
                else:
                    self.observe(method, path, answer.status, time.perf_counter() - started)

            run.__doc__ = doc
            takes = ("request", "response", "id") if "{id}" in path else ("request", "response")
            _http(
                path, accept=(method,), api=self.api, output=_as_it_is, parameters=takes, defaults={"id": ""}
            )(run)
            return handler

        return declare

    def _answer(self, route: Route, handler, request, id: str) -> wire.Reply:
        held = request.env.get(HELD)
        try:
            token = wire.bearer(request)
            if route.scope is not None:  # before anything else of the request is read
                self.keys.check(token, route.scope)
            if route.body is None:
                wire.no_body(request)
            query = wire.query(request)
            if query and "*" not in route.query and (unknown := query.keys() - route.query.keys()):
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
            call = Call(_id(id) if id else "", query, body, media, token, request, held and held.until)
            with self.turns if route.in_turn else FREELY:
                answer = handler(call)
        except Exception as error:  # the edge: everything becomes a reply
            answer = wire.refusal(error)
            if answer.status >= 500:
                log.error("%s %s failed", route.method, route.path, exc_info=error)
        return answer if isinstance(answer, wire.Reply) else wire.Reply(answer)

    def _send(self, route: Route, answer: wire.Reply, request, response) -> None:
        data, headers = answer.data, {"cache-control": "no-store"}
        if isinstance(data, bytes):
            headers["content-type"] = answer.content_type
        elif data is not None:
            data, headers["content-type"] = wire.encode(data, wire.wants_msgpack(request))
        if answer.headers:
            headers |= {name.lower(): value for name, value in answer.headers.items()}
        if route.compress:
            headers["vary"] = "Accept-Encoding"
            if len(data) > WORTH and wire.wants_gzip(request):
                data, headers["content-encoding"] = compress(data, mtime=0), "gzip"
        response.give(wire.LINES[answer.status], headers, data)


def _id(quoted: str) -> str:
    try:
        return unquote(quoted, errors="strict")
    except UnicodeDecodeError:
        raise errors.Invalid("not UTF-8", "id") from None


def _as_it_is(content, request, response):
    """JSON, or MessagePack if that is asked for."""
    return response.data


_as_it_is.content_type = parsing.JSON


class _Interface(hug.interface.HTTP):
    """hug's, for a function that takes request, response and the path's variables, and does the rest.

    What hug would do is left out: gather parameters, validate, transform, format, catch exceptions.
    """

    __slots__ = ("run",)

    def __init__(self, route, function, catch_exceptions=True):
        super().__init__(route, function, catch_exceptions)
        self.run = function

    def __call__(self, request, response, api_version=None, **variables):
        self.run(request, response, **variables)


class _http(hug.http):
    """The decorator `hug.http`, with that interface."""

    __slots__ = ()

    def _create_interface(self, api, api_function, catch_exceptions=True):
        return _Interface(self.route, api_function, catch_exceptions), api_function


class _Request(falcon.Request):
    """falcon's, which has read neither parameters nor cookies nor forms; what it keeps of them is None."""

    __slots__ = ()
    _bounded_stream = _media = context = _params = None
    _cached_access_route = _cached_forwarded = _cached_forwarded_prefix = _cached_forwarded_uri = None
    _cached_headers = _cached_prefix = _cached_relative_uri = _cached_uri = None

    def __init__(self, env, options=None):
        self.env, self.options, self.uri_template = env, options, None
        self.method, self.stream = env["REQUEST_METHOD"], env["wsgi.input"]
        self.query_string, self.content_type = env["QUERY_STRING"], env.get("CONTENT_TYPE")
        path = env["PATH_INFO"]
        if not path.isascii():  # WSGI strings carry bytes
            path = path.encode("latin-1").decode("utf-8", "replace")
        self.path = path[:-1] if path.endswith("/") and len(path) > 1 else path

    @property
    def content_length(self):
        """Bytes of the body; None where that is not said. The guard has seen that it is a number."""
        said = self.env.get("CONTENT_LENGTH")
        return int(said) if said else None


class _Response(falcon.Response):
    """falcon's, for a reply of bytes."""

    __slots__ = ()
    body = stream = context = _media = _cookies = _extra_headers = None

    def __init__(self, options=None):
        self.options, self._headers, self._data, self.status = options, {}, None, "200 OK"

    def give(self, status: str, headers: dict[str, str], data: bytes | None) -> None:
        """The whole reply; names of headers in lower case."""
        self.status, self._headers, self._data = status, headers, data


def build(
    engine,
    known: keys.Keys | None = None,
    door: Door | None = None,
    pseudonym: Callable[[str], str] | None = None,
    *,
    worths: worth.Worths = worth.DEFAULT,
    origins: Collection[str] = (),
    turns: AbstractContextManager[None] = FREELY,
) -> Guard | Cors:
    """The WSGI application of one engine, for whom it may concern. Several can live in one process.

    Where nobody says what users' pseudonyms are, they are such that nobody can make them again.
    """
    api = hug.API(f"banditads-{next(_serial)}")  # hug keeps one API per name; each engine gets its own
    routes = Routes(
        api, known or keys.Keys(None), door or Door(), pseudonym or _anybody(), worths, turns=turns
    )
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
        importlib.import_module(f"{__name__}.{module.name}").mount(routes, engine)
    api.http.set_not_found_handler(_not_found)
    versions, api.http.versions = api.http.versions, set()  # or hug adds every route again under /v{n}
    application = api.http.server()
    api.http.versions = versions  # its help needs them
    application.set_error_serializer(partial(_serialise, routes))
    guard = Guard(_Edge(application, routes), routes.door, max(route.limit for route in routes.all))
    return Cors(guard, origins) if origins else guard


def _anybody() -> Pseudonyms:
    return Pseudonyms(secrets.token_bytes(32))


class _Edge:
    """Asks hug's route what falcon would ask it, and lets an id hold a slash.

    Falcon's own way from a request to its route and back passes by what is not used here, such as middleware:
    3 us. Its router, its errors and its replies without a body are as they were.

    The server has unquoted the path already, so what follows a route's prefix is quoted again before routing,
    but for what a route has after the id; no id may end so.
    """

    def __init__(self, application, routes: Routes) -> None:
        self.application, self.routes = application, routes
        around = {tuple(route.path.split("{id}")) for route in routes.all if "{id}" in route.path}
        self.prefixes = tuple({prefix for prefix, _ in around})
        self.suffixes = {prefix: suffix for prefix, suffix in around if suffix}  # at most one each
        # What falcon's router finds for whole paths, asked once: 2 us less.
        self.found = {
            (route.method, route.path): application._router_search(route.path)[1][route.method]
            for route in routes.all
            if "{id}" not in route.path
        }

    def __call__(self, environ, start_response):
        path = environ["PATH_INFO"]
        responder, variables = self.found.get((environ["REQUEST_METHOD"], path)), {}
        if not responder and path.startswith(self.prefixes):
            prefix = next(each for each in self.prefixes if path.startswith(each))
            suffix = self.suffixes.get(prefix, "")
            suffix = suffix if path.endswith(suffix) and len(path) > len(prefix + suffix) else ""
            rest = path[len(prefix) : len(path) - len(suffix)]
            rest = rest.encode("latin-1", "surrogateescape")  # WSGI strings carry bytes
            environ["PATH_INFO"] = prefix + quote(rest, safe="") + suffix
        falcon = self.application
        request, response = _Request(environ, falcon.req_options), _Response(falcon.resp_options)
        try:
            if not responder:
                responder, variables, _, request.uri_template = falcon._get_responder(request)
            responder(request, response, **variables)
        except Exception as error:
            if not falcon._handle_exception(request, response, error, variables):
                raise
        status, headers, data = response.status, response._headers, response._data
        if request.method == "HEAD" or status in BODILESS:
            body = []
        else:
            body = [] if data is None else [data]
            headers["content-length"] = str(len(data or b""))
        if status not in BODILESS:
            headers.setdefault("content-type", parsing.JSON)
        start_response(status, [*headers.items()])
        return body


def _error(request, response, status: int, *said: str, **headers: str) -> None:
    body, media = wire.encode(wire.ErrorReply(wire.ErrorBody(*said)), wire.wants_msgpack(request))
    response.give(wire.LINES[status], {"cache-control": "no-store", "content-type": media, **headers}, body)


def _not_found(request, response, *args, **kwargs) -> None:
    _error(request, response, 404, "unknown", "there is no such route; see /openapi.json", "path")


_not_found.interface = True  # hug asks for the mark of something that answers by itself


def _serialise(routes: Routes, request, response, error) -> None:
    """falcon's own refusals: a method that a route does not have, a header that cannot be read."""
    if request.method in falcon.COMBINED_METHODS and not error.status.startswith("405"):
        _error(request, response, 400, "invalid", "the request is malformed", "headers")
        return  # falcon would say the same of a method that nobody knows
    allowed = dict.fromkeys(route.method for route in routes.all if route.path == request.uri_template)
    allow = ", ".join([*allowed, "OPTIONS"])
    _error(
        request, response, 405, "unsupported", "this route does not have that method", "method", allow=allow
    )
