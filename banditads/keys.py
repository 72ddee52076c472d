"""API keys: who may ask, who may reward, who may change things.

A key is `ba_<id>_<secret>`. One file beside the data directory holds, for each, what it may do and a hash;
the secret itself is shown once and kept nowhere. It is 256 random bits, which nobody can try out, so a plain
fast hash is enough: slow ones are for passwords that people think up.

Where the file is, there are keys, even when none is left in it; a file that cannot be read is never taken for
no keys.

>>> Keys(None).check("", "admin")  # no file: everybody may do everything
"""

from __future__ import annotations

import fcntl
import hmac
import logging
import os
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from math import ceil
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec
from msgspec import Meta

from .directory import beside, make_folder, write_durably
from .errors import (
    Damaged,
    Fatal,
    Forbidden,
    Invalid,
    Misconfigured,
    TooMany,
    Unauthenticated,
    Unavailable,
    Unknown,
)

log = logging.getLogger(__name__)

Scope = Literal["choose", "reward", "users", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
MAX_KEYS = 1000
MAX_FILE = 2**20  # bytes
MAX_RATE = 1e6  # requests a second
MIN_RATE = 0.001
ID_BYTES, SECRET_BYTES = 6, 32
LOOK_EVERY = 1.0  # seconds between two looks at the file


class Key(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is kept of a key. `rate` is in requests a second, 0 without a limit; `created` since the epoch."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]{12}$")]
    hash: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]
    name: Annotated[str, Meta(max_length=64)]
    scopes: Annotated[tuple[Scope, ...], Meta(min_length=1, max_length=4)]
    rate: Annotated[float, Meta(ge=0, le=MAX_RATE)]
    created: float


NOBODY = Key("0" * 12, "0" * 64, "", ("choose",), 0, 0)  # what an unknown id is compared with


def keys_path(name: str, folder: Path) -> Path:
    """Where the keys of a data directory lie: beside it, unless `name` says where."""
    return beside(folder, "keys", name, "keys_file")


def read(path: Path) -> dict[str, Key]:
    """The keys in a file, by id. Raises `Damaged`, or `Misconfigured` if there is nothing to be read."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE + 1)
    except OSError as error:
        raise Misconfigured(f"the keys file {path} cannot be read: {error.strerror}") from None
    checksum, _, text = raw.partition(b"\n")
    try:
        if len(raw) > MAX_FILE:
            raise ValueError(f"it has more than {MAX_FILE} bytes")
        if checksum != _checksum(text):
            raise ValueError("its checksum does not fit")
        found = msgspec.json.decode(text, type=list[Key])
        if len({key.id for key in found}) < len(found):
            raise ValueError("an id is in it twice")
    except ValueError as error:  # msgspec's are ValueErrors too
        raise Damaged(
            f"the keys file {path} is damaged: {error}. Put back a copy of it; or remove it, start again "
            "and create new keys"
        ) from None
    return {key.id: key for key in found}


def create(path: Path, scopes: tuple[Scope, ...], *, name: str = "", rate: float = 0.0) -> str:
    """A new key for these scopes, and the file if there is none; the token, which is not kept.

    Raises `Invalid`.
    """
    if len(name) > 64 or not name.isprintable():
        raise Invalid("a name may have at most 64 printable characters", "name")
    if rate and not MIN_RATE <= rate <= MAX_RATE:
        raise Invalid(f"a rate must be 0, or between {MIN_RATE:g} and {MAX_RATE:g} requests a second", "rate")
    token = f"ba_{secrets.token_hex(ID_BYTES)}_{secrets.token_hex(SECRET_BYTES)}"
    sorted_scopes = tuple(scope for scope in SCOPES if scope in scopes)
    key = Key(_id(token), _hash(token), name, sorted_scopes, rate, float(int(time.time())))
    with _alone(path):
        known = read(path) if path.exists() else {}
        if len(known) >= MAX_KEYS:
            raise Invalid(f"there are {MAX_KEYS} keys already", "name")
        _write(path, known | {key.id: key})
    return token


def revoke(path: Path, id: str) -> Key:
    """Take a key away, by its id or its whole token. Raises `Unknown`."""
    with _alone(path):
        known = read(path)
        gone = known.pop(_id(id) if id.startswith("ba_") else id, None)
        if gone is None:
            raise Unknown("there is no key with that id", "id")  # not repeated: it may be a secret
        _write(path, known)
    return gone


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Nobody else changes this file meanwhile. The lock is on its folder: the file itself is replaced."""
    try:
        make_folder(path.parent)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)
    except OSError as error:
        raise Misconfigured(f"the keys file {path} cannot be changed: {error.strerror}") from None


def _write(path: Path, known: dict[str, Key]) -> None:
    text = msgspec.json.format(msgspec.json.encode(list(known.values())), indent=1) + b"\n"

    def hand_over(new: Path) -> None:
        """A file that root made must be readable for whoever runs the server: the folder is theirs."""
        if os.geteuid() == 0:
            owner = path.parent.stat()
            os.chown(new, owner.st_uid, owner.st_gid, follow_symlinks=False)

    write_durably(path, _checksum(text), b"\n", text, check=hand_over, mode=0o600)


def _checksum(text: bytes) -> bytes:
    return b"sha256 " + sha256(text).hexdigest().encode()


def _id(token: str) -> str:
    return token[3:].partition("_")[0]


def _hash(token: str) -> str:
    return sha256(token.encode("utf-8", "replace")).hexdigest()


class Keys:
    """The keys of a running server: knows within `LOOK_EVERY` seconds what was created and revoked.

    `path` is the file; None never has any. Raises `Fatal` if there is a file and it is not good. One that
    goes bad later, or away, lets nobody in until it is good again.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.path, self._clock = path, clock
        self.configured = False  # never goes back to False: that would open a closed server
        self.known: dict[str, Key] = {}
        self._trouble: Fatal | None = None
        self._seen: object = None  # what the file looked like
        self._next = 0.0  # when to look again
        self._levels: dict[str, tuple[float, float]] = {}  # id -> requests it may make, as of when
        self._lock = threading.Lock()
        if path:
            self._look(path)
        if self._trouble:
            raise self._trouble

    def check(self, token: str, scope: Scope) -> None:
        """Nothing, if this token may do this now; `Unauthenticated`, `Forbidden` or `TooMany` if not.

        `Unavailable` while the file is not good.
        """
        if trouble := self.trouble():
            raise Unavailable(trouble)
        if not self.configured:
            return
        key = self.known.get(_id(token), NOBODY)
        same = hmac.compare_digest(key.hash.encode(), _hash(token).encode())
        if not same or key is NOBODY:
            raise Unauthenticated("a key is needed: Authorization: Bearer ba_...", "Authorization")
        if scope not in key.scopes and "admin" not in key.scopes:
            raise Forbidden(f"this key may not {scope}", "Authorization")
        if key.rate:
            with self._lock:
                self._take(key)

    def trouble(self) -> str:
        """Why nobody is let in; empty when the file is good, or there never was one."""
        if self.path and self._clock() >= self._next:
            with self._lock:
                self._look(self.path)
        return "the keys cannot be read, so nobody is let in" if self._trouble else ""

    def _take(self, key: Key) -> None:
        """One request off the key's bucket, which holds a second's worth and fills at its rate."""
        now, size = self._clock(), max(1.0, key.rate)
        level, then = self._levels.get(key.id, (size, now))
        level = min(size, level + (now - then) * key.rate)
        if level < 1:
            wait = ceil((1 - level) / key.rate)
            raise TooMany(f"this key may ask {key.rate:g} times a second", retry_after=max(1, wait))
        self._levels[key.id] = level - 1, now

    def _look(self, path: Path) -> None:
        """Read the file, if it is another one than last time."""
        self._next = self._clock() + LOOK_EVERY
        try:
            status = path.stat()
            now: object = (status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        except FileNotFoundError:
            now = None
        except OSError as error:
            now = error.errno
        if now == self._seen:
            return
        self._seen, self.configured = now, True
        try:
            self.known, self._trouble = read(path), None
        except Fatal as error:
            if str(error) != str(self._trouble):  # once, not every second
                log.critical("nobody is let in: %s", error)
            self._trouble, self._seen = error, error  # look again next time: the reason may lie elsewhere
            return
        self._levels = {id: level for id, level in self._levels.items() if id in self.known}
        log.info("%d keys are known", len(self.known))
