"""GET /openapi.json: the contract, made from what each route declares."""

from __future__ import annotations

from typing import Any

import msgspec

from .. import __version__, features, parsing, wire
from .tracking import MAX_DWELL, MAX_VALUE

REF = "#/components/schemas/{name}"
EVERY = {400: "Malformed or out of range; nothing changed.", 500: "Our fault; logged."}
WRITES = {503: "The disk refused; safe to send again."}
FORGOTTEN = {410: "Known, and too old."}
KEYED = {
    401: "No key, or a wrong one.",
    403: "The key may not do this.",
    429: "More than the key's rate; Retry-After says when.",
    503: "Not possible just now; Retry-After says when.",
}
BEARER = {
    "type": "http",
    "scheme": "bearer",
    "description": "A key of `banditads key create`. The word beside it is the scope that it must have; the "
    "scope admin is good for all.",
}
TEXT = {"type": "string"}
MAYBE_ID = TEXT | parsing.SHORT
ID = MAYBE_ID | {"minLength": 1}
QUERY = {  # what a parameter may be, where not any text
    "slots": {"type": "integer", "const": 1},
    "n": {"type": "integer", "minimum": 1, "maximum": 20},
    "limit": {"type": "integer", "minimum": 1, "maximum": 1000},
    "value": {"type": "number", "minimum": -MAX_VALUE, "maximum": MAX_VALUE},
    "seconds": {"type": "number", "minimum": 0, "maximum": MAX_DWELL},
    **dict.fromkeys(("user_id", "placement", "request_id", "event_id", "order_id"), MAYBE_ID),
}
REQUIRED = ("seconds",)
FREE = {  # the parameters that are features
    "type": "object",
    "propertyNames": {"minLength": 1, "maxLength": features.MAX_NAME, "pattern": parsing.PRINTABLE},
    "additionalProperties": TEXT | {"maxLength": features.MAX_STRING, "pattern": parsing.PRINTABLE},
    "maxProperties": features.MAX_FEATURES,
}


def mount(routes, engine) -> None:  # noqa: D103
    @routes.add("GET", "/openapi.json", scope=None, reply=dict[str, Any], compress=True)
    def openapi(call):
        """This document."""
        found = document(routes.all, locked=routes.keys.configured)
        reward = found["components"]["schemas"]["RewardBody"]["properties"]["reward"]
        reward |= {"minimum": engine.state.reward_min, "maximum": engine.state.reward_max}
        return found


def document(routes, locked: bool) -> dict[str, Any]:
    """OpenAPI 3.1 for these routes; `locked` when there are keys."""
    kinds = [wire.ErrorReply]
    kinds += [each for route in routes for each in (route.shape, route.reply) if each is not None]
    schemas, components = msgspec.json.schema_components(kinds, ref_template=REF)
    schema = dict(zip(map(repr, kinds), schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, schema, locked)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "banditads",
            "version": __version__,
            "description": "An ad decision server that learns from every click.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"bearer": BEARER}},
    }


def _operation(route, schema, locked) -> dict[str, Any]:
    words = [word for word in route.path.replace("{id}", "one").replace(".", "/").split("/") if word]
    said = {"schema": schema[repr(wire.ErrorReply)]}
    error = {parsing.JSON: said, parsing.MSGPACK: said}
    good = {"description": "Done."}
    if route.reply is not None:
        content = {"schema": schema[repr(route.reply)]}
        good["content"] = {parsing.JSON: content, parsing.MSGPACK: content}
    elif route.produces != parsing.JSON:
        good["content"] = {route.produces.partition(";")[0]: {"schema": {"type": "string"}}}
    statuses = dict(EVERY) | (KEYED if locked and route.scope is not None else {})
    changes = route.method in ("POST", "PUT", "DELETE") or route.path.startswith(
        ("/impression", "/conversion")
    )
    whole = not route.path.endswith("/batch")  # there, each item has a status of its own
    if changes and whole and not route.path.startswith(("/choose", "/predict")):  # those answer from memory
        statuses |= WRITES
    if whole and route.path.startswith(("/choose", "/click", "/impression", "/conversion", "/dwell")):
        statuses |= FORGOTTEN
    statuses |= route.statuses
    if route.body is not None:
        statuses |= {413: "The body is too large.", 415: "Not a content type that is spoken here."}
    replies = {} if 302 in statuses else {"200": good}
    for status, when in sorted(statuses.items()):
        replies[str(status)] = {"description": when} | ({"content": error} if status >= 400 else {})
    if route.reply is not None and route.path == "/readyz":
        replies["503"]["content"] = good["content"]
    operation: dict[str, Any] = {
        "operationId": "_".join([route.method.lower(), *words]),
        "summary": route.doc.splitlines()[0],
        "security": _security(route, locked),
        "parameters": _parameters(route),
        "responses": replies,
    }
    if route.body is not None:
        content = {"schema": schema[repr(route.shape)]}
        spoken = {
            each: content if each in (parsing.JSON, parsing.MSGPACK) else {"schema": TEXT}
            for each in route.media
        }
        operation["requestBody"] = {"content": spoken, "required": True}
    return operation


def _security(route, locked) -> list[dict[str, Any]]:
    """Alternatives: the key that is needed, or none; an empty list needs none ever."""
    if route.scope is None:
        return []
    return [{"bearer": [route.scope]}] if locked else [{"bearer": [route.scope]}, {}]


def _parameters(route) -> list[dict[str, Any]]:
    found = [
        {"name": name, "in": "query", "description": help, "schema": QUERY.get(name, TEXT)}
        | ({"required": True} if name in REQUIRED else {})
        for name, help in route.query.items()
        if name != "*"
    ]
    if "*" in route.query:
        found.append({"name": "context", "in": "query", "description": route.query["*"], "schema": FREE})
        found[-1] |= {"style": "form", "explode": True}
    if "{id}" in route.path:
        found.append({"name": "id", "in": "path", "required": True, "schema": ID})
    return found
