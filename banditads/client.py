"""A client of the HTTP interface: ask for an ad, say what it was worth.

One `Client` is one kept-alive connection and belongs to one thread. Whatever goes wrong arrives as a
`Failed` with the server's own code and sentence. Nothing is sent twice: after a time-out it is unknown
whether the server has acted, and only the caller knows whether asking again is right (sending the same
reward again always is).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Self, TypeVar

import requests

from .events import Features

Said = TypeVar("Said")


class Failed(Exception):
    """The server refused, broke, or did not answer. `status` is the HTTP status, 0 without an answer."""

    def __init__(self, status: int, code: str, message: str, field: str = "") -> None:
        super().__init__(f"{status} {code}: {message}" + (f" (field {field})" if field else ""))
        self.status, self.code, self.message, self.field = status, code, message, field


class Client:
    """A connection to the server at `url`.

    `timeout` is in seconds, for connecting and for each answer; `key` is one of `banditads key create`, where
    the server has keys.
    """

    def __init__(self, url: str, timeout: float = 10.0, key: str = "") -> None:
        self.url, self.timeout = url.rstrip("/"), timeout
        self._session = requests.Session()
        self._session.trust_env = False  # a proxy for the outside world must not get 127.0.0.1
        if key:
            if not re.fullmatch(r"\w+", key, re.ASCII):  # requests would say it aloud
                raise ValueError("the key holds characters that no key has")
            self._session.headers["Authorization"] = f"Bearer {key}"

    def choose(self, event_id: str, user_id: str, context: Features) -> tuple[str, str]:
        """The id of the ad to show, and the event id to send its reward to."""
        body = {"event_id": event_id, "user_id": user_id, "context": context}
        return self._post("/choose", body, lambda said: (said["ad"]["id"], said["event_id"]))

    def reward(self, event_id: str, reward: float) -> None:
        """Say what a choice was worth. Once this returns, the server has written it down."""
        self._post("/reward", {"event_id": event_id, "reward": reward}, lambda said: said["status"])

    def put_users(self, users: list[dict[str, Any]]) -> int:
        """Say what is known of users, as `POST /users` takes them; how many of them consent."""
        return self._post("/users", users, lambda said: int(said["users"]))

    def act(self, acts: list[dict[str, Any]]) -> int:
        """Say what users did, as `POST /events` takes it; how much of it was taken down."""
        return self._post("/events", acts, lambda said: int(said["acts"]))

    def close(self) -> None:
        """Give the connection back."""
        self._session.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _post(self, path: str, body: Any, read: Callable[[Any], Said]) -> Said:
        """What was looked for in the JSON of a 200."""
        try:
            reply = self._session.post(f"{self.url}{path}", json=body, timeout=self.timeout)
        except requests.RequestException as broken:
            raise Failed(0, "no_answer", f"{self.url}{path} did not answer: {broken}") from broken
        if reply.status_code == 204:
            raise Failed(204, "nothing_eligible", "no ad may be shown to this visitor")
        try:
            said = reply.json()
            if reply.status_code == 200:
                return read(said)
            error = said["error"]
            failed = Failed(reply.status_code, error["code"], error["message"], error.get("field") or "")
        except (ValueError, LookupError, TypeError, AttributeError):  # something else answered, a proxy say
            failed = Failed(reply.status_code, "not_understood", f"{reply.text[:200]!r} from {path}")
        raise failed
