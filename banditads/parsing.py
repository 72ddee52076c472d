"""Bytes and ids from outside -> checked values, or a refusal that names the field.

>>> decode(b'{"id": "a1", "features": {"price": "59.9"}, "colour": "red"}', AdBody)
Traceback (most recent call last):
banditads.errors.Invalid: Object contains unknown field `colour`
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from math import isfinite
from typing import Annotated, Any, TypeAlias, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from .errors import Invalid
from .events import Act, Ad, Features
from .features import MAX_FEATURES, clean

S = TypeVar("S")
T = TypeVar("T")

JSON, MSGPACK = "application/json", "application/msgpack"
MAX_ID = 128  # characters
MAX_WORD = 64  # characters of what a profile may hold a few of: kinds, items, categories, attributes' names
MAX_ATTRIBUTES = 16  # of a user
MAX_ATTRIBUTES_BYTES = 1024  # of all of them, packed
MAX_AMOUNT = 1e9
MAX_LISTED = 10_000  # users or acts of one request
AHEAD = 86400.0  # seconds; whoever says that something will be done later than that has mixed up units
MAX_ADS = 100_000  # at once, and in a catalog
SLICE = 20  # of many, worked on without a pause
MAX_CREATIVE = 16 * 2**10  # bytes
MAX_URL = 2048  # characters
MAX_DEPTH = 16  # levels of a creative
# For the contract only; refusing is done below and in `features`, in sentences. JSON Schema cannot name the
# characters that are not printable; of those up to U+00FF this lists all.
PRINTABLE = r"^[^\x00-\x1f\x7f-\xa0\xad]*$"
SHORT = {"maxLength": MAX_ID, "pattern": PRINTABLE}
MaybeId: TypeAlias = Annotated[str, Meta(extra_json_schema=SHORT)]
Id: TypeAlias = Annotated[str, Meta(extra_json_schema=SHORT | {"minLength": 1})]
NAME = SHORT | {"maxLength": MAX_WORD}
MaybeName: TypeAlias = Annotated[str, Meta(extra_json_schema=NAME)]
Name: TypeAlias = Annotated[str, Meta(extra_json_schema=NAME | {"minLength": 1})]
Named: TypeAlias = Annotated[dict[Id, Any], Meta(extra_json_schema={"maxProperties": MAX_FEATURES})]
Url: TypeAlias = Annotated[
    str, Meta(extra_json_schema={"maxLength": MAX_URL, "pattern": "^(https?://[!-~]+)?$"})
]


class AdBody(msgspec.Struct, forbid_unknown_fields=True):
    """An ad as people write it where its id is said elsewhere."""

    id: MaybeId = ""
    features: Named = {}
    landing_url: Url = ""
    creative: dict[str, Any] = {}
    placements: Annotated[list[Id], Meta(extra_json_schema={"maxItems": 100})] = []
    starts: float | None = None
    ends: float | None = None
    house: bool = False


class ListedAd(AdBody, forbid_unknown_fields=True, kw_only=True):
    """An ad among others: in a request, or as a line of a catalog file."""

    id: Id


class ActBody(msgspec.Struct, forbid_unknown_fields=True):
    """Something that a user did: view, search, like, cart, purchase, or anything else.

    `at` is in seconds since the epoch; without it, it is done now.
    """

    kind: Name
    item: MaybeName = ""
    category: MaybeName = ""
    amount: Annotated[float, Meta(extra_json_schema={"minimum": -MAX_AMOUNT, "maximum": MAX_AMOUNT})] = 0.0
    at: Annotated[float, Meta(extra_json_schema={"minimum": 0})] | None = None


class ListedAct(ActBody, forbid_unknown_fields=True, kw_only=True):
    """Something that a user did, among what others did."""

    user: Id


class UserBody(msgspec.Struct, forbid_unknown_fields=True):
    """What is known of a user. Without consent nothing is kept, and what was kept goes."""

    attributes: Annotated[dict[Name, Any], Meta(extra_json_schema={"maxProperties": MAX_ATTRIBUTES})] = {}
    consent: bool = False


class ListedUser(UserBody, forbid_unknown_fields=True, kw_only=True):
    """A user among others."""

    id: Id


def decode(raw: bytes, kind: type[T], media: str = JSON) -> T:
    """A value of this type; `Invalid`, with the field, if the bytes are not one."""
    try:
        if media == MSGPACK:
            return msgspec.msgpack.decode(raw, type=kind)
        return msgspec.json.decode(raw, type=kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `")
        named = re.search(r"field `([^`]*)`", message)  # required, or unknown
        steps = [path.rstrip("`").removeprefix("$").lstrip("."), named[1] if named else ""]
        raise Invalid(message, ".".join(filter(None, steps))[:MAX_ID] or "body") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Invalid(f"not well-formed {media.partition('/')[2]}", "body") from None


def in_slices(items: Iterable[T]) -> Iterator[T]:
    """The same items, with pauses: who works through many leaves Python's lock to others.

    A thread that needs the lock waits 5 ms for one that computes, and several times in each request. 20 ads
    take .13 ms, so this leaves two thirds of the time to requests.
    """
    for number, item in enumerate(items):
        if number % SLICE == SLICE - 1:
            time.sleep(2.5e-4)
        yield item


def check_id(text: str, field: str) -> str:
    """An id as it may be: 1 to 128 printable characters."""
    if not 1 <= len(text) <= MAX_ID or not text.isprintable():
        raise Invalid(f"must be 1 to {MAX_ID} printable characters", field)
    return text


def check_user_id(text: str, field: str) -> str:
    """The id of a user: one that its own route can be asked for."""
    if text.endswith("/events"):
        raise Invalid("may not end in /events", field)
    return check_id(text, field)


def check_ad(body: AdBody, field: str) -> Ad:
    """An ad, checked and cleaned. Raises `Invalid`, naming the field."""
    check_id(body.id, f"{field}.id")
    if body.landing_url:
        _check_url(body.landing_url, f"{field}.landing_url")
    _check_creative(body.creative, f"{field}.creative", MAX_DEPTH)
    if len(msgspec.json.encode(body.creative)) > MAX_CREATIVE:
        raise Invalid(f"may have at most {MAX_CREATIVE} bytes", f"{field}.creative")
    if len(body.placements) > 100:
        raise Invalid("may name at most 100 placements", f"{field}.placements")
    for name, moment in (("starts", body.starts), ("ends", body.ends)):
        if moment is not None and not isfinite(moment):
            raise Invalid("must be seconds since the epoch", f"{field}.{name}")
    if body.starts is not None and body.ends is not None and body.starts >= body.ends:
        raise Invalid("must be after starts", f"{field}.ends")
    return Ad(
        body.id,
        clean(body.features, f"{field}.features"),
        body.landing_url,
        body.creative,
        tuple(check_id(each, f"{field}.placements") for each in body.placements),
        body.starts,
        body.ends,
        body.house,
    )


def check_ads(raw: bytes, lines: bool, media: str = JSON) -> list[Ad]:
    """Ads of an array or of JSON Lines. Raises `Invalid`, naming the first bad one."""
    ads = check_listed(raw, lines, media, ListedAd, check_ad, what="ad", most=MAX_ADS)
    ids = Counter(ad.id for ad in ads)
    if len(ids) < len(ads):
        raise Invalid(f"the id {ids.most_common(1)[0][0]!r} is given twice", "id")
    return ads


def check_listed(
    raw: bytes, lines: bool, media: str, kind: type[S], check: Callable[[S, str], T], *, what: str, most: int
) -> list[T]:
    """What `check` makes of each body of an array or of JSON Lines. Raises `Invalid`, with the place."""
    if lines:
        bodies = [(f"line {n}: ", line) for n, line in enumerate(raw.splitlines(), 1) if line.strip()]
    else:  # one by one: as a whole, 100,000 take half a second in which no other thread runs
        bodies = [(f"[{n}].", bytes(each)) for n, each in enumerate(decode(raw, list[msgspec.Raw], media))]
    found = []
    for where, each in in_slices(bodies):
        try:
            found.append(check(decode(each, kind, JSON if lines else media), what if lines else ""))
        except Invalid as error:
            raise Invalid(error.message, where + error.field.lstrip(".")) from None
    if not 1 <= len(found) <= most:
        raise Invalid(f"give between 1 and {most} {what}s", "body")
    return found


def check_act(body: ActBody, field: str, now: float) -> Act:
    """An act, checked. Raises `Invalid`, naming the field."""
    _check_word(body.kind, f"{field}.kind")
    for name, text in (("item", body.item), ("category", body.category)):
        if text:
            _check_word(text, f"{field}.{name}")
    if not abs(body.amount) <= MAX_AMOUNT:  # NaN too
        raise Invalid(f"must be between -{MAX_AMOUNT:g} and {MAX_AMOUNT:g}", f"{field}.amount")
    if body.at is not None and not 0 <= body.at <= now + AHEAD:
        raise Invalid(
            "must be seconds since the epoch, and not more than a day ahead of the server's clock",
            f"{field}.at",
        )
    return Act(body.kind, body.item, body.category, body.amount, now if body.at is None else body.at)


def check_user(body: UserBody, field: str) -> Features | None:
    """What is known of a user, cleaned; None if that may not be kept. Raises `Invalid`, naming the field."""
    where = f"{field}.attributes" if field else "attributes"
    found = clean(body.attributes, where)
    if len(found) > MAX_ATTRIBUTES:
        raise Invalid(f"more than {MAX_ATTRIBUTES} attributes", where)
    for name in found:
        if len(name) > MAX_WORD:
            raise Invalid(f"a name is longer than {MAX_WORD} characters", where)
    if len(msgspec.msgpack.encode(found)) > MAX_ATTRIBUTES_BYTES:
        raise Invalid(f"may have at most {MAX_ATTRIBUTES_BYTES} bytes", where)
    return found if body.consent else None


def _check_word(text: str, field: str) -> None:
    if not 1 <= len(text) <= MAX_WORD or not text.isprintable():
        raise Invalid(f"must be 1 to {MAX_WORD} printable characters", field)


def origins(text: str) -> tuple[str, ...]:
    """Origins of pages, separated by spaces, as a browser writes them. Raises `Invalid`.

    >>> origins("https://shop.example http://127.0.0.1:8000")
    ('https://shop.example', 'http://127.0.0.1:8000')
    """
    for each in text.split():
        if not re.fullmatch(
            r"https?://[a-z0-9.-]+(:[0-9]{1,5})?|https?://\[[0-9a-f:]+\](:[0-9]{1,5})?", each
        ):
            raise Invalid(
                f"{each!r} is not an origin such as https://shop.example: no path, small letters", "origin"
            )
    return tuple(text.split())


def _check_creative(value: Any, field: str, depth: int) -> None:
    """What is journaled must be readable for ever, whatever it came in as: plain JSON, not too deep."""
    if depth < 0:
        raise Invalid(f"nested deeper than {MAX_DEPTH} levels", field)
    match value:
        case None | bool() | str():
            pass
        case int() if abs(value) < 2**63:
            pass
        case float() if isfinite(value):
            pass
        case list():
            for each in value:
                _check_creative(each, field, depth - 1)
        case dict() if all(isinstance(key, str) for key in value):
            for each in value.values():
                _check_creative(each, field, depth - 1)
        case _:
            raise Invalid("may hold JSON only, numbers of at most 64 bits", field)


def _check_url(url: str, field: str) -> None:
    """Only what a browser may be sent to: absolute, http or https, one line of ASCII."""
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        good = False
    if not good or not url.isascii() or not url.isprintable() or " " in url or len(url) > MAX_URL:
        raise Invalid(f"must be an absolute http or https URL in ASCII, at most {MAX_URL} characters", field)
