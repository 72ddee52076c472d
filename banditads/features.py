"""Context and ad attributes -> features: flat, named, bounded, and in one order.

Whatever arrives from outside goes through `clean` before it is journaled, so everything behind it may rely
on: at most `MAX_FEATURES` names, each a string or a finite number, sorted by name. Nothing here guesses:
what cannot be a feature is refused with the field's name.

>>> clean({"device": "mobile", "age": 31, "vip": True, "geo": {"city": "Oslo"}, "tags": ["new"], "x": None})
{'age': 31.0, 'device': 'mobile', 'geo.city': 'Oslo', 'tags.new': 1.0, 'vip': 'true'}
>>> tokens({"age": 31.0, "device": "mobile"})
[('age', 31.0), ('device=mobile', 1.0)]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .errors import Invalid
from .events import Features

MAX_FEATURES = 256  # names in one context or one ad
MAX_NAME = 128  # characters
MAX_STRING = 512  # characters of a value
MAX_NUMBER = 1e6  # larger ones ruin running means and step sizes for everybody
MAX_DEPTH = 4  # levels of nesting


def clean(raw: Mapping[str, Any], field: str = "context") -> Features:
    """Flat features of a nested mapping, sorted by name.

    Nested names are joined with dots, `true` and `false` become strings, a list of strings becomes one
    indicator each, `null` is absent. Raises `Invalid`, naming the field, for anything else.
    """
    return _clean_flat(raw) or _clean(raw, field)


def _clean_flat(raw: Mapping[str, Any]) -> Features:
    """What `_clean` gives, three times as fast, if there are only names, words and numbers; else nothing.

    Whatever is not plainly right is left to `_clean`, which says what is wrong.
    """
    found: Features = {}
    for name, value in raw.items():
        kind = type(value)
        if not (type(name) is str and 0 < len(name) <= MAX_NAME and name.isprintable()):
            return {}
        if kind is str and 0 < len(value) <= MAX_STRING and value.isprintable():
            found[name] = value
        elif (kind is float or kind is int) and -MAX_NUMBER <= value <= MAX_NUMBER:
            found[name] = float(value) + 0.0  # -0.0 becomes 0.0
        else:
            return {}
    return dict(sorted(found.items())) if len(found) <= MAX_FEATURES else {}


def _clean(raw: Mapping[str, Any], field: str) -> Features:
    found: Features = {}
    for name, value in _flat(raw, field, "", MAX_DEPTH):
        if name in found:
            raise Invalid(f"feature {name!r} is given twice", field)
        found[name] = value
        if len(found) > MAX_FEATURES:
            raise Invalid(f"more than {MAX_FEATURES} features", field)
    return dict(sorted(found.items()))


def tokens(features: Features) -> list[tuple[str, float]]:
    """(name, value) pairs for a linear model: categories as indicators, numbers as they are, shape (n,)."""
    found = []
    for name, value in features.items():
        escaped = _escape(name) if "=" in name or "%" in name else name
        found.append((f"{escaped}={value}", 1.0) if isinstance(value, str) else (escaped, value))
    return found


def _escape(name: str) -> str:
    """No name may look like another name's category."""
    return name.replace("%", "%25").replace("=", "%3D")


def _flat(raw: Mapping[str, Any], field: str, prefix: str, depth: int) -> Iterator[tuple[str, str | float]]:
    if depth == 0:
        raise Invalid(f"nested deeper than {MAX_DEPTH} levels", field)
    for key, value in raw.items():
        name = _text(
            prefix + _text(key, "a feature name", field, MAX_NAME), "a feature name", field, MAX_NAME
        )
        where = f"{field}.{name}"
        match value:
            case None:
                continue
            case bool():
                yield name, "true" if value else "false"
            case str():
                yield name, _text(value, "the value", where, MAX_STRING)
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
