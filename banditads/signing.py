"""What only we could have written: the secret key, and what is signed with it.

Event ids are signed, so nobody can guess one or make one up; snapshots are, so none is parsed that we did not
write. Each purpose has its own key, derived from the one in the key file.

>>> ids = EventIds(b"k" * 32)
>>> event_id = ids.mint(1700000000.0)
>>> len(event_id), ids.minted_at(event_id), ids.minted_at("a" + event_id[1:])
(32, 1700000000.0, None)
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path

from .directory import beside, fsync, fsync_folder, make_folder
from .errors import Misconfigured

KEY_BYTES = 32
TIME_BYTES, RANDOM_BYTES, TAG_BYTES = 6, 10, 8  # of an event id; 24 in all
ID_CHARACTERS = 32


def load_or_create(path: Path) -> bytes:
    """The secret in this file, 32 bytes in hexadecimal; made, readable by us only, if it is not there."""
    try:
        if not path.exists():
            _create(path)
    except OSError as error:
        raise Misconfigured(f"the key file {path} cannot be made: {error.strerror}") from None
    return load(path)


def _create(path: Path) -> None:
    make_folder(path.parent)
    new = path.with_name(f"{path.name}.{secrets.token_hex(8)}.tmp")
    file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(file, "wb") as out:
            out.write(secrets.token_bytes(KEY_BYTES).hex().encode() + b"\n")
            out.flush()
            fsync(file, new)
        with suppress(FileExistsError):
            os.link(new, path)  # unlike a rename, never replaces the key of somebody who was faster
    finally:
        new.unlink()
    fsync_folder(path.parent)  # what is signed must not outlive the key


def load(path: Path) -> bytes:
    """The secret in this file. Raises `Misconfigured`."""
    try:
        key = bytes.fromhex(path.read_text("ascii").strip())
    except (OSError, ValueError) as error:
        raise Misconfigured(f"the key file {path} cannot be read: {error}") from None
    if len(key) != KEY_BYTES:
        raise Misconfigured(f"the key file {path} must hold {2 * KEY_BYTES} hexadecimal digits")
    return key


def key_path(name: str, folder: Path) -> Path:
    """Where the secret of a data directory lies: beside it, unless `name` says where."""
    return beside(folder, "key", name, "key_file")


def derive(key: bytes, purpose: str) -> bytes:
    """A key of its own for each purpose, so that nothing signed for one is good for another."""
    return blake2b(purpose.encode(), key=key, digest_size=KEY_BYTES).digest()


class Pseudonyms:
    """User id -> what is written down instead: the same for the same id, and no way back without the key.

    >>> pseudonym = Pseudonyms(b"k" * 32)
    >>> pseudonym("anna@example.com"), pseudonym("")
    ('faofsxVC71tlNwLxd6AR5w', '')
    """

    def __init__(self, key: bytes) -> None:
        self._key = derive(key, "users")

    def __call__(self, user_id: str) -> str:
        """22 characters; nothing for nobody."""
        if not user_id:
            return ""
        digest = blake2b(user_id.encode(), key=self._key, digest_size=16).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class EventIds:
    """Makes event ids, and knows its own again.

    An id is base64 of: milliseconds since the epoch, random bytes, and a keyed hash of both.
    """

    def __init__(self, key: bytes, entropy: Callable[[int], bytes] = secrets.token_bytes) -> None:
        self._key, self._entropy = derive(key, "event ids"), entropy

    def mint(self, at: float) -> str:
        """A new id that nobody can guess."""
        body = max(0, round(at * 1000)).to_bytes(TIME_BYTES, "big") + self._entropy(RANDOM_BYTES)
        return base64.urlsafe_b64encode(body + self._tag(body)).decode()

    def minted_at(self, event_id: str) -> float | None:
        """Seconds since the epoch when we made this id; None if we did not."""
        if len(event_id) != ID_CHARACTERS:
            return None
        try:
            raw = base64.b64decode(event_id.encode(), altchars=b"-_", validate=True)
        except (UnicodeEncodeError, binascii.Error):
            return None
        body, tag = raw[:-TAG_BYTES], raw[-TAG_BYTES:]
        if len(body) != TIME_BYTES + RANDOM_BYTES or not hmac.compare_digest(tag, self._tag(body)):
            return None
        if base64.urlsafe_b64encode(raw).decode() != event_id:
            return None  # another spelling: Python reads + and / too
        return int.from_bytes(body[:TIME_BYTES], "big") / 1000

    def _tag(self, body: bytes) -> bytes:
        return blake2b(body, key=self._key, digest_size=TAG_BYTES).digest()
