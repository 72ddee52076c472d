"""Lets pages of other origins read what is meant for a visitor's browser: the origins listed, and no others.

A WSGI middleware. Cookies and logins are never part of it; there are none. A browser asks before it sends
JSON (a preflight), which is answered here, and shows a page the reply only if that says so. What a page may
send unasked, such as a click, reaches the server in any case: this protects replies, not the server.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any

PATHS = ("/choose", "/ads", "/impression/", "/click/", "/conversion", "/dwell/")  # and what begins with them
GRANTED = [
    ("Access-Control-Allow-Methods", "GET, POST"),
    ("Access-Control-Allow-Headers", "Authorization, Content-Type"),
    ("Access-Control-Max-Age", "7200"),  # seconds; Chromium remembers no longer
    ("Content-Length", "0"),
]


class Cors:
    """A WSGI application, for pages of these origins too."""

    def __init__(self, application: Callable[..., Iterable[bytes]], origins: Collection[str]) -> None:
        self.application, self.origins = application, frozenset(origins)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answer a preflight; mark the reply to anything else."""
        if not environ["PATH_INFO"].startswith(PATHS):
            return self.application(environ, start_response)
        origin, marks = environ.get("HTTP_ORIGIN"), [("Vary", "Origin")]  # caches keep one for each origin
        if origin in self.origins:
            marks.append(("Access-Control-Allow-Origin", origin))
            marks.append(("Access-Control-Expose-Headers", "Retry-After, X-Event-Id"))
            if environ["REQUEST_METHOD"] == "OPTIONS" and "HTTP_ACCESS_CONTROL_REQUEST_METHOD" in environ:
                start_response("204 No Content", [*marks, *GRANTED])
                return [b""]

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            return start_response(status, [*headers, *marks], *rest)

        return self.application(environ, start)
