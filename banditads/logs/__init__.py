"""Logs: finished interactions in files, ours and other people's. A kind of log is a file here.

`read` asks each file whether it recognises a path; `write` is for the kinds that can be written. Optional
libraries are imported only by the file that needs them, and only when it is used.

>>> rounds = list(read("random/men"))
>>> len(rounds), sum(each.reward for each in rounds)
(10000, 46.0)
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Damaged, Misconfigured
from ..events import Ad, Settled
from ..features import clean
from ..joiner import Open


def names() -> list[str]:
    """All kinds of log there are."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


class Log:
    """The interactions of a log, in its order, once; and what still waited where reading stopped.

    Only our own journal knows of the latter.
    """

    def __init__(self, rounds: Iterator[Settled], waiting: Callable[[], Iterable[Open]] = lambda: ()) -> None:
        self.rounds, self.waiting = rounds, waiting

    def __iter__(self) -> Iterator[Settled]:
        return self.rounds


def read(source: str | Path) -> Log:
    """The interactions of a log. Raises `errors.Damaged`, with the place, where it is not one.

    A kind of log is a module with `recognises(path) -> bool`, which is cheap, and `read(path)`, an iterator
    or a `Log`.
    """
    path = Path(source)
    for name in names():
        kind = _kind(name)
        if kind.recognises(path):
            found = kind.read(path)
            log = found if isinstance(found, Log) else Log(found)
            return Log(_possible(log, path), log.waiting)
    raise Misconfigured(f"{source} is not a log that is there and recognised; kinds: {', '.join(names())}")


def _possible(rounds: Iterable[Settled], path: Path) -> Iterator[Settled]:
    """The same rounds. One that cannot have happened, is `Damaged`."""
    for number, settled in enumerate(rounds, 1):
        choice, pmf = settled.choice, np.frombuffer(settled.choice.pmf, "<f8")
        good = len(pmf) == len(settled.ads) and 0 <= choice.pick < len(pmf) and pmf[choice.pick] > 0
        if not good or not ((pmf >= 0) & (pmf <= 1)).all():
            raise Damaged(f"{path} round {number}: {pmf} are no probabilities of {len(settled.ads)} ads")
        if not isfinite(settled.reward) or not isfinite(choice.at):
            raise Damaged(f"{path} round {number}: the reward or the time is not a finite number")
        yield settled


def write(name: str, rounds: Iterable[Settled], path: str | Path) -> int:
    """Write a log of this kind and return how many rounds it has. What was at the path stays until then."""
    if name not in writable():
        raise Misconfigured(f"logs can be written as {' or '.join(writable())}, not as {name!r}")
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial")
    try:
        count: int = _kind(name).write(rounds, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count


def writable() -> list[str]:
    """The kinds of log that can be written."""
    return [name for name in names() if hasattr(_kind(name), "write")]


def ad_to_dict(ad: Ad) -> dict[str, Any]:
    """The fields of an ad that say something, by name."""
    blank = Ad(ad.id)
    fields = [(name, getattr(ad, name), getattr(blank, name)) for name in ad.__struct_fields__]
    return {name: value for name, value, default in fields if name == "id" or value != default}


def ad_from_dict(fields: dict[str, Any]) -> Ad:
    """The inverse of `ad_to_dict`, also after a trip through JSON. Raises `Invalid`, `msgspec.DecodeError`.

    >>> ad_from_dict(ad_to_dict(Ad("hats", {"price": 9.5}, house=True))).features
    {'price': 9.5}
    """
    blank = Ad("")
    given = fields | {"features": clean(fields.get("features", {}), "ad")}
    return Ad.load([given.get(name, getattr(blank, name)) for name in blank.__struct_fields__])


def _kind(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")
