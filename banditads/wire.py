"""Bytes of a request -> checked values; values and refusals -> bytes of a reply.

Knows HTTP's words (content types, status codes, query strings); knows no route, and not hug. Every reply
that is not 2xx or 3xx is `{"error": {"code", "message", "field"}}`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol
from urllib.parse import unquote

import msgspec

from . import errors
from .parsing import JSON, MSGPACK

MAX_BODY = 64 * 2**10  # bytes; routes that take catalogs allow more
MAX_QUERY = 300  # parameters
MAX_ACCEPT = 1024  # characters of a header that is weighed; that takes time with the square of them

STATUS: Mapping[type[Exception], int] = {
    errors.Invalid: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.Unknown: 404,
    errors.Conflict: 409,
    errors.Expired: 410,
    errors.TooLarge: 413,
    errors.Unsupported: 415,
    errors.TooMany: 429,
    errors.Damaged: 500,
    errors.Unavailable: 503,
    errors.DiskFailure: 503,
}
REASONS = {
    200: "OK",
    204: "No Content",
    302: "Found",
    304: "Not Modified",
    400: "Bad Request",
    401: "Unauthorized",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    409: "Conflict",
    410: "Gone",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    429: "Too Many Requests",
    500: "Internal Server Error",
    503: "Service Unavailable",
}
LINES = {status: f"{status} {reason}" for status, reason in REASONS.items()}


class ErrorBody(msgspec.Struct):
    """Why a request was refused."""

    code: str
    message: str
    field: str = ""


class ErrorReply(msgspec.Struct):
    """What every refusal looks like."""

    error: ErrorBody


class Incoming(Protocol):
    """What is read of a request."""

    query_string: str
    content_type: str | None
    content_length: int | None
    stream: Any
    env: Mapping[str, Any]  # as WSGI has it: headers are HTTP_...

    def client_prefers(self, media_types: tuple[str, ...]) -> str | None:
        """Which of these the header Accept weighs most."""


class Reply(msgspec.Struct):
    """A reply before it is bytes. `data` is any value for JSON, or bytes as they are."""

    data: Any = None
    status: int = 200
    headers: Mapping[str, str] = {}
    content_type: str = JSON


def bearer(request: Incoming) -> str:
    """The token of `Authorization: Bearer ...`; empty where there is none."""
    if "HTTP_AUTHORIZATION" not in request.env:
        return ""
    scheme, _, token = request.env["HTTP_AUTHORIZATION"].partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def query(request: Incoming) -> dict[str, str]:
    """Parameters by name. A name that is given twice, or is empty, is refused; commas mean nothing.

    Otherwise it is read as `urllib.parse.parse_qsl` would with blank values, in a fifth of the time.
    """
    text = request.query_string
    if not text:
        return {}
    pairs = [part.partition("=")[::2] for part in text.split("&") if part]
    try:
        if text.count("&") >= MAX_QUERY:
            raise ValueError
        if "%" in text or "+" in text:
            pairs = [(_unquoted(name), _unquoted(value)) for name, value in pairs]
    except ValueError:  # UnicodeDecodeError is one
        raise errors.Invalid("the query string is not UTF-8, or too long", "query") from None
    found = dict(pairs)
    if len(found) < len(pairs) or "" in found:
        names = [name for name, _ in pairs]
        for number, name in enumerate(names):
            if not name:
                raise errors.Invalid("a query parameter has no name", "query")
            if name in names[:number]:
                raise errors.Invalid("given twice", name[:128])
    return found


def _unquoted(text: str) -> str:
    return unquote(text.replace("+", " "), errors="strict") if "%" in text or "+" in text else text


def no_body(request: Incoming) -> None:
    """A body that nobody reads is refused: two programs may differ on where the next request begins."""
    if request.content_length or request.env.get("HTTP_TRANSFER_ENCODING"):
        raise errors.Invalid("a request of this method has no body", "body")


def body(request: Incoming, limit: int = MAX_BODY) -> bytes:
    """The whole body; `TooLarge` from the header alone where it says so."""
    length = request.content_length
    if length is not None and length > limit:
        raise errors.TooLarge(f"the body may have at most {limit} bytes", "body")
    raw: bytes = request.stream.read(limit + 1 if length is None else length)
    if len(raw) > limit:
        raise errors.TooLarge(f"the body may have at most {limit} bytes", "body")
    if length is not None and len(raw) < length:
        raise errors.Invalid("the body is shorter than Content-Length says", "body")
    return raw


def media_type(request: Incoming, allowed: tuple[str, ...] = (JSON, MSGPACK)) -> str:
    """The body's media type, if it is one that is spoken here."""
    if request.content_type in allowed:  # most say just that
        return request.content_type
    name, *parameters = (part.strip().lower() for part in (request.content_type or JSON).split(";"))
    name = {"application/x-msgpack": MSGPACK}.get(name, name)
    if name not in allowed:
        raise errors.Unsupported(f"send the body as {' or '.join(allowed)}", "Content-Type")
    for parameter in parameters:
        if parameter.startswith("charset=") and parameter not in ("charset=utf-8", 'charset="utf-8"'):
            raise errors.Unsupported("the charset must be utf-8", "Content-Type")
    return name


def wants_msgpack(request: Incoming) -> bool:
    """Whether MessagePack was asked for, and not less than JSON. Who accepts neither gets JSON."""
    accept = request.env.get("HTTP_ACCEPT", "")
    if "msgpack" not in accept or len(accept) > MAX_ACCEPT:
        return False
    return request.client_prefers((JSON, "application/x-msgpack", MSGPACK)) not in (None, JSON)


def wants_gzip(request: Incoming) -> bool:
    """Whether gzip was asked for, and not less than nothing at all. What cannot be read asks for nothing."""
    weights: dict[str, float] = {}
    for part in request.env.get("HTTP_ACCEPT_ENCODING", "")[:MAX_ACCEPT].lower().split(","):
        name, *parameters = (each.strip() for each in part.split(";"))
        weight = (parameters or ["q=1"])[0].removeprefix("q=")
        weights[name] = float(weight) if re.fullmatch(r"[01](\.\d{0,3})?", weight) else 0.0
    asked = weights.get("gzip", weights.get("x-gzip", weights.get("*", 0.0)))
    return asked > 0 and asked >= weights.get("identity", 0.0)


def encode(data: Any, msgpack: bool) -> tuple[bytes, str]:
    """(bytes, content type), as MessagePack or as JSON. Floats read back to the same bits."""
    if msgpack:
        return msgspec.msgpack.encode(data), MSGPACK
    return msgspec.json.encode(data), JSON


def refusal(error: Exception) -> Reply:
    """The reply to what went wrong. Anything that is not in the table is our fault, and says nothing."""
    status = STATUS.get(type(error))
    if status is None:
        return Reply(ErrorReply(ErrorBody("internal", "something went wrong here; it has been logged")), 500)
    headers = {}
    if status in (429, 503):
        headers["Retry-After"] = str(getattr(error, "retry_after", errors.Unavailable.retry_after))
    if status == 413:  # what was not read is still on its way, and the server will not let anything follow it
        headers["Connection"] = "close"
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if isinstance(error, errors.Refused):
        return Reply(ErrorReply(ErrorBody(error.code, error.message, error.field)), status, headers)
    if isinstance(error, errors.Damaged):
        said = ErrorBody(
            "damaged", "this is damaged on the disk; the log says where, `banditads verify` what else"
        )
    else:
        said = ErrorBody("unavailable", "the disk has failed; nothing is accepted until a restart")
    return Reply(ErrorReply(said), status, headers)
