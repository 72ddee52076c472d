"""Context and ad attributes -> features: flat, named, bounded, and in one order.

Whatever arrives from outside goes through `clean` before it is journaled, so everything behind it may rely
on: at most `MAX_FEATURES` names, each a string or a finite number, sorted by name. What has parts comes as
its parts: a date as where it stands in the day, the week and the year, a text as its words. What is missing
is said to be `MISSING`. Nothing here guesses: what cannot be a feature is refused with the field's name.

>>> clean({"device": "mobile", "age": 31, "vip": True, "geo": {"city": "Oslo"}, "tags": ["new"], "x": None})
{'age': 31.0, 'device': 'mobile', 'geo.city': 'Oslo', 'tags.new': 1.0, 'vip': 'true', 'x': '?'}
>>> clean({"joined": "2024-04-29"})
{'joined.month.cos': 0.0, 'joined.month.sin': 1.0, 'joined.weekday': 'monday', 'joined.year': 2024.0}
>>> clean({"title": "Red shoes for red feet"})
{'title~feet': 1.0, 'title~for': 1.0, 'title~red': 1.0, 'title~shoes': 1.0}
>>> tokens({"age": 31.0, "device": "mobile"})
[('age', 31.0), ('device=mobile', 1.0)]
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from math import cos, pi, sin
from typing import Any, TypeAlias

from .errors import Invalid
from .events import Features

MAX_FEATURES = 256  # names in one context or one ad
MAX_NAME = 128  # characters
MAX_STRING = 512  # characters of a value
MAX_NUMBER = 1e6  # larger ones ruin running means and step sizes for everybody
MAX_DEPTH = 4  # levels of nesting
MISSING = "?"  # the value of a feature that is known to be unknown
PART = "~"  # stands between the name of a text and a word of it
MAX_PARTS = 16  # words of one text; fewer where there are so many texts that there is no room
MAX_WORD = 32  # characters; longer words are cut
LONG, FEW = 40, 3  # characters and words that a category may have, if it has more than one word
DATE = re.compile(r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d([.,]\d+)?)?(Z|[+-]\d\d:?\d\d)?)?", re.ASCII)
WEEKDAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
DATED = ("_at", "_date")  # a number too large for a feature, under such a name, is seconds since the epoch
LATEST = 253402300800.0  # seconds since the epoch: the year 10,000

Parts: TypeAlias = dict[str, str | float]


def clean(raw: Mapping[str, Any], field: str = "context") -> Features:
    """Flat features of a nested mapping, sorted by name.

    Nested names are joined with dots, `true` and `false` become strings, a list of strings becomes one
    indicator each, `null` becomes `MISSING`. An ISO 8601 date, with or without a time, becomes `_date`'s
    parts; so do seconds since the epoch under a name that ends in `_at` or `_date`, if they are beyond
    `MAX_NUMBER`. A string of more than `FEW` words, or of more than one and `LONG` characters, becomes an
    indicator for each of its first words. Raises `Invalid`, naming the field, for anything else.
    """
    return _clean_flat(raw) or _clean(raw, field)


def _clean_flat(raw: Mapping[str, Any]) -> Features:
    """What `_clean` gives, three times as fast, if there are only names, words and numbers; else nothing.

    Whatever is not plainly right is left to `_clean`, which says what is wrong.
    """
    found: Features = {}
    try:
        names = sorted(raw)  # half the time of sorting what is found
    except TypeError:
        return {}
    for name in names:
        value = raw[name]
        kind = type(value)
        if not (type(name) is str and 0 < len(name) <= MAX_NAME and name.isprintable()):
            return {}
        # One word of letters and digits is no text and no date, and asking that costs nothing more.
        if kind is str and (
            (value.isalnum() and len(value) <= MAX_STRING) or (0 < len(value) <= LONG and _is_plain(value))
        ):
            found[name] = value
        elif (kind is float or kind is int) and -MAX_NUMBER <= value <= MAX_NUMBER:
            found[name] = float(value) + 0.0  # -0.0 becomes 0.0
        else:
            return {}
    return found if len(found) <= MAX_FEATURES else {}


def _is_plain(value: str) -> bool:
    """Whether a short string is surely a category as it stands."""
    return value.isprintable() and value.count(" ") < FEW and not value[:4].isdigit()


def _clean(raw: Mapping[str, Any], field: str) -> Features:
    found: Features = {}
    divided: list[Parts] = []
    for name, value in _flat(raw, field, "", MAX_DEPTH):
        if isinstance(value, dict):
            divided.append(value)
        else:
            _add(found, ((name, value),), field)
    for place, parts in enumerate(divided):
        room = (MAX_FEATURES - len(found)) // (len(divided) - place)  # shared evenly with those to come
        _add(found, list(parts.items())[: max(1, room)], field)
    return dict(sorted(found.items()))


def _add(found: Features, more: Iterable[tuple[str, str | float]], field: str) -> None:
    for name, value in more:
        if name in found:
            raise Invalid(f"feature {name!r} is given twice", field)
        found[name] = value
        if len(found) > MAX_FEATURES:
            raise Invalid(f"more than {MAX_FEATURES} features", field)


def tokens(features: Features) -> list[tuple[str, float]]:
    """(name, value) pairs for a linear model: categories as indicators, numbers as they are, shape (n,)."""
    found = []
    for name, value in features.items():
        escaped = escape(name) if "=" in name or "%" in name else name
        found.append((f"{escaped}={value}", 1.0) if isinstance(value, str) else (escaped, value))
    return found


def escape(name: str) -> str:
    """No name may look like another name's category."""
    return name.replace("%", "%25").replace("=", "%3D")


def _flat(
    raw: Mapping[str, Any], field: str, prefix: str, depth: int
) -> Iterator[tuple[str, str | float | Parts]]:
    if depth == 0:
        raise Invalid(f"nested deeper than {MAX_DEPTH} levels", field)
    for key, value in raw.items():
        name = _text(
            prefix + _text(key, "a feature name", field, MAX_NAME), "a feature name", field, MAX_NAME
        )
        where = f"{field}.{name}"
        match value:
            case None:
                yield name, MISSING
            case bool():
                yield name, "true" if value else "false"
            case str():
                text = _text(value, "the value", where, MAX_STRING)
                yield name, _date(name, text, where) or _words(name, text, where) or text
            case int() | float() if MAX_NUMBER < value < LATEST and name.endswith(DATED):
                yield name, _moment(name, datetime.fromtimestamp(value, UTC), where)
            case int() | float():
                yield name, _number(value, where)
            case dict():
                yield from _flat(value, field, f"{name}.", depth - 1)
            case list() | tuple():
                for item in value:
                    if not isinstance(item, str):
                        raise Invalid("a list may hold strings only", where)
                    tag = f"{name}.{_text(item, 'an item', where, MAX_NAME)}"
                    yield _text(tag, "an item with its name", where, MAX_NAME), 1.0
            case _:
                raise Invalid("not a string, number, boolean, list of strings or object", where)


def _date(name: str, text: str, field: str) -> Parts:
    """The parts of an ISO 8601 date; none if it is not one. The hour is that of the place it names."""
    if not DATE.fullmatch(text):
        return {}
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:  # the 31st of February
        return {}
    parts = _moment(name, moment, field)
    return parts if len(text) > 10 else {part: parts[part] for part in parts if ".hour." not in part}


def _moment(name: str, moment: datetime, field: str) -> Parts:
    """Where a moment stands in the day, the week and the year: the last hour is beside the first."""
    day = 2 * pi * (moment.hour + moment.minute / 60) / 24
    year = 2 * pi * (moment.month - 1) / 12
    parts: Parts = {
        "weekday": WEEKDAYS[moment.weekday()],
        "hour.sin": round(sin(day), 6) + 0.0,
        "hour.cos": round(cos(day), 6) + 0.0,
        "month.sin": round(sin(year), 6) + 0.0,
        "month.cos": round(cos(year), 6) + 0.0,
        "year": float(moment.year),
    }
    return {
        _text(f"{name}.{part}", "a feature of a date", field, MAX_NAME): value
        for part, value in parts.items()
    }


def _words(name: str, text: str, field: str) -> Parts:
    """An indicator for each of the first words of a text, in lower case; none if it is a category."""
    if len(text) <= LONG and len(text.split()) <= FEW:
        return {}
    words = [word[:MAX_WORD] for word in re.findall(r"\w+", text.lower())]
    if len(words) < 2:
        return {}
    tags = [f"{name}{PART}{word}" for word in dict.fromkeys(words)]
    return {_text(tag, "a word with its name", field, MAX_NAME): 1.0 for tag in tags[:MAX_PARTS]}


def _text(value: object, what: str, field: str, limit: int) -> str:
    if not isinstance(value, str) or not value:
        raise Invalid(f"{what} must be a non-empty string", field)
    if len(value) > limit:
        raise Invalid(f"{what} is longer than {limit} characters", field)
    if not value.isprintable():
        raise Invalid(f"{what} holds control or unpaired surrogate characters", field)
    return value


def _number(value: float, field: str) -> float:
    if not abs(value) <= MAX_NUMBER:  # NaN too
        raise Invalid(f"must be a number between -{MAX_NUMBER:g} and {MAX_NUMBER:g}", field)
    return float(value) + 0.0  # -0.0 becomes 0.0
