"""The door: a WSGI middleware that sends malformed requests away before anything of them is read, and cuts
connections whose request does not arrive in time.

The HTTP server has parsed the request by now; what it lets through and nobody should act on is refused here,
as JSON like every other refusal. A body that comes slowly holds a thread of the server. There are many, and
one that waits costs 60 KB; but after `seconds` its connection is cut. The server says from which address a
body comes, and not by which connection, so the kernel is asked: which ones of that address have sent us
something since we last sent them anything, and have waited for so long? Idle connections are not among them,
nor one that was idle for long and asks just now: whoever is cut was found waiting twice. What cannot be told
apart is a request of the same address on which we have worked ourselves for `seconds`.
"""

from __future__ import annotations

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
IDLE = 5.0  # seconds after which the HTTP server ends a connection by which no request comes
UNREAD = 10.0  # seconds after which a client that does not take its reply is given up
AGAIN = 0.5  # seconds between the two times at which a connection must be found waiting
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
        self.reading: dict[
            Body, float
        ] = {}  # a body that is being read -> since when, by the monotonic clock
        self.refused: dict[int, int] = {}
        self.cut = 0
        self._waiting: dict[int, float] = {}  # inode of a connection that keeps us waiting -> known since

    def late(self) -> set[str]:
        """The addresses from which a body has been on its way for too long."""
        before = time.monotonic() - self.seconds
        return {body.address for body, since in list(self.reading.items()) if since < before}

    def clear(self) -> None:
        """Cut the connections that keep us waiting, if any does. To be called every now and then."""
        late = self.late()
        found: dict[int, float] = {}
        for name in os.listdir("/proc/self/fd") if late else ():
            with suppress(OSError):  # not a socket, not connected, or gone meanwhile
                found |= self._clear(int(name), late)
        self._waiting = found

    def _clear(self, number: int, late: set[str]) -> dict[int, float]:
        """Look at one descriptor; what is to be remembered of it."""
        copy = os.dup(number)  # which stays this connection's, whoever gets the number meanwhile
        try:
            line = socket.socket(fileno=copy)
        except OSError:  # not a socket
            os.close(copy)
            raise
        with line:
            here = line.getsockname()
            if not isinstance(here, tuple) or here[1] != self.port:
                return {}
            if line.getpeername()[0].partition("%")[0] not in late or _waited(line) < self.seconds:
                return {}  # the one that listens has no peer
            now, inode = time.monotonic(), os.fstat(line.fileno()).st_ino
            since = self._waiting.get(inode, now)
            if now - since >= AGAIN:
                line.shutdown(socket.SHUT_RDWR)
                self.cut += 1
                return {}
            return {inode: since}


def _waited(line: socket.socket) -> float:
    """Seconds since we last sent something to somebody who wants something; 0 for others.

    Who was told to continue, and does not, looks like an idle one; but idle ones are not there for long.
    """
    info = line.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 160)
    sent, received, segments = (
        struct.unpack_from("=I", info, at)[0] for at in (LAST_SENT, LAST_RECEIVED, SEGMENTS_SENT)
    )
    asks = received < sent or not segments or sent > 1000 * (IDLE + 1)
    return float(sent) / 1000 if asks else 0.0  # it counts in steps of some milliseconds


class Body:
    """What comes in, under the eyes of the door. `address` is that of the client, without its port."""

    __slots__ = ("address", "body", "door")

    def __init__(self, body: Any, door: Door, address: str) -> None:
        self.body, self.door, self.address = body, door, address

    def read(self, *size: int) -> bytes:
        """Read, and be known to: 0.3 us."""
        reading = self.door.reading
        reading[self] = time.monotonic()
        try:
            raw: bytes = self.body.read(*size)
            return raw
        finally:
            del reading[self]


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
        if "CONTENT_LENGTH" in environ or "HTTP_TRANSFER_ENCODING" in environ:
            environ["wsgi.input"] = Body(environ["wsgi.input"], self.door, environ.get("REMOTE_ADDR", ""))
        return self.application(environ, start_response)

    def _check(self, environ: dict[str, Any]) -> None:
        path = environ["PATH_INFO"]
        if len(path) + len(environ["QUERY_STRING"]) > MAX_TARGET:
            raise Invalid(f"path and query may have at most {MAX_TARGET} characters", "path")
        if not path.startswith("/"):
            raise Invalid("the path must begin with /", "path")
        if "HTTP_CONTENT_ENCODING" in environ and environ["HTTP_CONTENT_ENCODING"].lower() != "identity":
            raise Unsupported("send the body as it is, not compressed", "Content-Encoding")
        length = environ.get("CONTENT_LENGTH") or "0"
        if not (length.isascii() and length.isdigit() and len(length) < 20):
            raise Invalid("not a number of bytes", "Content-Length")
        coding = environ.get("HTTP_TRANSFER_ENCODING")
        if coding is not None and coding.strip().lower() != "chunked":
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
        start_response(wire.LINES[reply.status], [*headers, ("Connection", "close")])
        return [b"" if environ["REQUEST_METHOD"] == "HEAD" else body]


def give_up_on_who_does_not_read(listening: int) -> None:
    """Connections to this socket end when the client has taken nothing of a reply for `UNREAD` seconds.

    The kernel sees to it: connections inherit the option. Otherwise they stay for ever, and there are
    twice as many as `threads` at most.
    """
    with socket.socket(fileno=os.dup(listening)) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * UNREAD))


def raise_limits() -> None:
    """As many open files as the system lets us have: each connection is one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
