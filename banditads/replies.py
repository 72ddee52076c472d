"""A reply that waits for the disk keeps no thread waiting.

A reward may be acknowledged only once the disk has it. With a thread for each that waits there are a hundred
when the disk takes a tenth of a second, all of them wake at once, and whoever asks for an ad just then shares
one processor with them. So a route may hold its reply: it says which record that waits for. One thread here
waits for the disk, once for all that came meanwhile, and lets them go one after the other; if the disk fails,
they are refused.

Under a server that knows nothing of this, routes wait by themselves.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Callable, Iterable
from queue import Empty, SimpleQueue
from typing import Any

import msgspec

from . import wire
from .parsing import MSGPACK

log = logging.getLogger(__name__)

HELD = "banditads.held"  # what a WSGI environment calls its request's `Held`
BASIC = {
    "SCRIPT_NAME": "",
    "wsgi.version": (1, 0),
    "wsgi.errors": sys.stderr,
    "wsgi.multithread": True,
    "wsgi.multiprocess": False,
    "wsgi.run_once": False,
    "wsgi.input_terminated": True,
}


class Held(msgspec.Struct):
    """What a reply waits for: the record at `offset`, nothing if that is negative.

    `tell` is told the status with which a reply that waited left.
    """

    offset: int = -1
    tell: Callable[[int], object] = lambda status: None

    def until(self, offset: int) -> None:
        """Hold the reply until the disk has this record."""
        self.offset = offset


class Reply(msgspec.Struct):
    """A reply in the making. `server` is granian's side of the request."""

    server: Any
    held: Held
    status: int = 500
    headers: list[tuple[str, str]] = []
    body: bytes = b""

    def start(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        """WSGI's `start_response`."""
        self.status, self.headers = int(status[:3]), headers

    def send(self) -> None:
        """Let it go."""
        self.server.response_bytes(self.status, self.headers, self.body)

    def refuse(self, error: Exception) -> None:
        """Make it the refusal that this error is."""
        said = wire.refusal(error)
        msgpack = any(value == MSGPACK for _, value in self.headers)
        self.body, media = wire.encode(said.data, msgpack)
        new = {"content-type": media, "content-length": str(len(self.body)), **said.headers}
        names = {name.lower() for name in new}
        kept = [each for each in self.headers if each[0].lower() not in names]
        self.status, self.headers = said.status, [*kept, *new.items()]


class Replies:
    """The replies of one server.

    `sync` returns when the disk has the record at an offset, or raises; None where no reply waits for a disk.
    """

    def __init__(self, sync: Callable[[int], None] | None) -> None:
        self._sync = sync
        self._held: SimpleQueue[Reply] = SimpleQueue()
        if sync:
            threading.Thread(target=self._work, args=(sync,), name="replies", daemon=True).start()

    def of(self, application: Callable[..., Iterable[bytes]]) -> Callable[[Any, dict[str, Any]], None]:
        """A WSGI application as granian calls it for each request."""

        def call(server: Any, scope: dict[str, Any]) -> None:
            reply = Reply(server, Held())
            environ = {**BASIC, **scope}
            if self._sync:
                environ[HELD] = reply.held
            reply.body = b"".join(application(environ, reply.start))
            if reply.held.offset < 0:
                reply.send()
            else:
                self._held.put(reply)

        return call

    def _work(self, sync: Callable[[int], None]) -> None:
        while True:
            replies = [self._held.get()]
            try:
                while True:
                    replies.append(self._held.get_nowait())
            except Empty:
                pass
            _let_go(replies, sync)


def _let_go(replies: list[Reply], sync: Callable[[int], None]) -> None:
    failed: Exception | None = None
    try:
        sync(max(reply.held.offset for reply in replies))
    except Exception as error:  # the edge: everything becomes a reply
        log.error("%d replies wait for a disk that fails", len(replies), exc_info=error)
        failed = error
    for reply in replies:
        try:
            if failed:
                reply.refuse(failed)
            reply.send()
            reply.held.tell(reply.status)
        except Exception:  # a bug; the others must not wait for ever
            log.exception("a reply could not be sent")
