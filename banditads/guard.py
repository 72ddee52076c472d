"""The door: a WSGI middleware that sends malformed requests away before anything of them is read, and cuts
connections whose request does not arrive in time.

The HTTP server has parsed the request by now; what it lets through and nobody should act on is refused here,
as JSON like every other refusal. A body that comes slowly holds a thread of the server. There are many, and
one that waits costs 60 KB; but after `seconds` its connection is cut. The server does not say which
connection a request came by, so the kernel is asked: which ones have sent us something since we last sent
them anything, and have waited for so long? Idle connections are not among them.
"""

from __future__ import annotations

import itertools
import os
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from . import wire
from .errors import Invalid, Refused, TooLarge, Unsupported

MAX_TARGET = 8192  # characters of path and query
LAST_SENT, LAST_RECEIVED, SEGMENTS_SENT = 44, 52, 156  # in Linux' tcp_info; the first two in milliseconds ago


class Door:
    """Who is at the door: bodies that are being read, and what became of others.

    Attributes
    ----------
    refused
        Requests sent away here, by status.
    cut
        Connections cut because their request did not arrive in time.
    """

    def __init__(self, seconds: float = 10.0) -> None:
        self.seconds = seconds
        self.port = 0  # that is listened to
        self.reading: dict[int, float] = {}  # a body that is being read -> since when, by the monotonic clock
        self.refused: dict[int, int] = {}
        self.cut = 0
        self._serial = itertools.count()

    def read(self, read: Callable[..., bytes], *size: int) -> bytes:
        """Read a body, and be known to."""
        mine = next(self._serial)
        self.reading[mine] = time.monotonic()
        try:
            return read(*size)
        finally:
            del self.reading[mine]

    def late(self) -> bool:
        """Whether a body has been on its way for too long."""
        before = time.monotonic() - self.seconds
        return any(since < before for since in list(self.reading.values()))

    def clear(self) -> None:
        """Cut the connections that keep us waiting, if any does."""
        if not self.late():
            return
        for name in os.listdir("/proc/self/fd"):
            with suppress(OSError):  # not a socket, not connected, or gone meanwhile
                self._clear(int(name))

    def _clear(self, number: int) -> None:
        with socket.socket(fileno=os.dup(number)) as line:
            if line.family not in (socket.AF_INET, socket.AF_INET6) or line.getsockname()[1] != self.port:
                return
            line.getpeername()  # the one that listens has none
            if _waited(line) >= self.seconds:
                line.shutdown(socket.SHUT_RDWR)
                self.cut += 1


def _waited(line: socket.socket) -> float:
    """Seconds since we last answered somebody who has asked again since; 0 for others."""
    info = line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    sent, received, segments = (
        struct.unpack_from("=I", info, at)[0] for at in (LAST_SENT, LAST_RECEIVED, SEGMENTS_SENT)
    )
    asks = received < sent or not segments  # the kernel counts in steps of some milliseconds
    return float(sent) / 1000 if asks else 0.0


class Guard:
    """A WSGI application behind a `Door`. `limit` is the largest body that any route takes, in bytes."""

    def __init__(self, application: Callable[..., Any], door: Door, limit: int) -> None:
        self.application, self.door, self.limit = application, door, limit

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Refuse the request, or pass it on."""
        try:
            self._check(environ)
        except Refused as error:
            return self._refuse(error, environ, start_response)
        environ["wsgi.input"] = _Body(environ["wsgi.input"], self.door)
        return self.application(environ, start_response)

    def _check(self, environ: dict[str, Any]) -> None:
        if len(environ["PATH_INFO"]) + len(environ["QUERY_STRING"]) > MAX_TARGET:
            raise Invalid(f"path and query may have at most {MAX_TARGET} characters", "path")
        if not environ["PATH_INFO"].startswith("/"):
            raise Invalid("the path must begin with /", "path")
        if environ.get("HTTP_CONTENT_ENCODING", "identity").lower() != "identity":
            raise Unsupported("send the body as it is, not compressed", "Content-Encoding")
        length = environ.get("CONTENT_LENGTH") or "0"
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise Invalid("not a number of bytes", "Content-Length")
        if environ.get("HTTP_TRANSFER_ENCODING", "chunked").strip().lower() != "chunked":
            raise Unsupported("only chunked is understood", "Transfer-Encoding")
        if int(length) > self.limit:
            raise TooLarge(f"the body may have at most {self.limit} bytes", "body")

    def _refuse(
        self, error: Refused, environ: dict[str, Any], start_response: Callable[..., Any]
    ) -> Iterable[bytes]:
        reply = wire.refusal(error)
        body, media = wire.encode(reply.data, False)
        self.door.refused[reply.status] = self.door.refused.get(reply.status, 0) + 1
        headers = [("Content-Type", media), ("Content-Length", str(len(body))), ("Cache-Control", "no-store")]
        start_response(f"{reply.status} {wire.REASONS[reply.status]}", [*headers, ("Connection", "close")])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]


class _Body:
    """What comes in, under the eyes of the door."""

    def __init__(self, body: Any, door: Door) -> None:
        self.body, self.door = body, door

    def read(self, *size: int) -> bytes:
        return self.door.read(self.body.read, *size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.body, name)


def raise_limits() -> None:
    """As many open files as the system lets us have: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
