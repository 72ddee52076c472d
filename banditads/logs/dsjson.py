"""Decision-service JSON: one line per decision, as `vw --dsjson --cb_explore_adf` reads it.

The format of the Decision Service, Agarwal et al. (2016), arXiv:1606.03966. Costs are negative rewards.
VW learns from the namespaces `Context`, `Ad` (an ad's features) and `Id` (which ad it is), and passes over
names that begin with an underscore, and over `banditads`, which holds what the format has no place for. With
it everything comes back as it was; lines that others wrote are read as well, with every namespace of theirs
as a prefix of its features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..errors import Damaged, Invalid
from ..events import Ad, Chosen, Settled
from ..features import clean
from . import ad_from_dict, ad_to_dict


class Ours(msgspec.Struct):
    """What the format has no place for."""

    at: float
    settled_at: float | None
    silent: bool = False
    policy: str = ""
    user_id: str = ""
    placement: str = ""
    request_id: str = ""
    inline: list[str] = []
    filtered: dict[str, str] = {}
    offset: int = -1
    expected: float | None = None
    promised: float | None = None


class Line(msgspec.Struct):
    """A line, as far as it is read. Without a cost it is passed over."""

    cost: float | None = msgspec.field(name="_label_cost", default=None)
    probability: float = msgspec.field(name="_label_probability", default=0.0)
    index: int = msgspec.field(name="_labelIndex", default=-1)
    timestamp: str = msgspec.field(name="Timestamp", default="")
    event_id: str = msgspec.field(name="EventId", default="")
    a: list[int] = []
    c: dict[str, Any] = {}
    p: list[float] = []
    banditads: Ours | None = None


class Multi(msgspec.Struct):
    """An ad in a line of ours."""

    id: dict[str, str] = msgspec.field(name="Id")
    ad: dict[str, Any] = msgspec.field(name="Ad")
    rest: dict[str, Any] = msgspec.field(name="_banditads")


def recognises(path: Path) -> bool:
    """By the end of the name."""
    return path.suffix == ".dsjson" and path.is_file()


def write(rounds: Iterable[Settled], path: Path) -> int:
    """Write line by line; return their number."""
    count = 0
    with path.open("wb") as file:
        for settled in rounds:
            file.write(msgspec.json.encode(_line(settled)) + b"\n")
            count += 1
    return count


def read(path: Path) -> Iterator[Settled]:
    """Lines in order. Those without a label are passed over: nothing was learned from them either."""
    decoder = msgspec.json.Decoder(Line)
    slate, ads = (False, b""), tuple[Ad, ...]()
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = decoder.decode(raw)
                if line.cost is not None:
                    read = line.banditads is None, msgspec.json.encode(line.c.get("_multi"))
                    if read != slate:  # most lines share one
                        slate, ads = read, _ads(line)
                    yield _settled(line, ads)
            except (msgspec.DecodeError, Invalid, LookupError, ValueError, OverflowError) as error:
                raise Damaged(f"{path} line {number}: {type(error).__name__}: {error}") from error


def _line(settled: Settled) -> dict[str, Any]:
    choice, pmf = settled.choice, np.frombuffer(settled.choice.pmf, "<f8").tolist()
    order = [choice.pick, *(place for place in range(len(pmf)) if place != choice.pick)]  # the pick first
    return {
        "_label_cost": 0.0 - settled.reward,
        "_label_probability": choice.probability,
        "_label_Action": choice.pick + 1,
        "_labelIndex": choice.pick,
        "Timestamp": datetime.fromtimestamp(choice.at, UTC).isoformat().replace("+00:00", "Z"),
        "Version": "1",
        "EventId": choice.event_id,
        "a": [place + 1 for place in order],
        "c": {"Context": choice.context, "_multi": [_multi(ad) for ad in settled.ads]},
        "p": [pmf[place] for place in order],
        "banditads": {
            "at": choice.at,
            "settled_at": None if settled.at == math.inf else settled.at,
            "silent": settled.silent,
            "policy": choice.policy,
            "user_id": choice.user_id,
            "placement": choice.placement,
            "request_id": choice.request_id,
            "inline": [ad.id for ad in choice.inline],
            "filtered": choice.filtered,
            "offset": settled.offset,
            "expected": choice.expected,
            "promised": choice.promised,
        },
    }


def _multi(ad: Ad) -> dict[str, Any]:
    fields = ad_to_dict(ad)
    features = fields.pop("features", {})
    return {"_tag": ad.id, "Id": {"ad": fields.pop("id")}, "Ad": features, "_banditads": fields}


def _ads(line: Line) -> tuple[Ad, ...]:
    multi = msgspec.convert(line.c["_multi"], list[dict[str, Any]])
    if line.banditads:
        ours = msgspec.convert(multi, list[Multi])
        return tuple(ad_from_dict({**each.rest, "id": each.id["ad"], "features": each.ad}) for each in ours)
    return tuple(
        Ad(str(each.get("_tag") or place), clean(_named(each), "ad")) for place, each in enumerate(multi, 1)
    )


def _settled(line: Line, ads: tuple[Ad, ...]) -> Settled:
    """A round from a line, ours or not."""
    if line.banditads:
        ours = line.banditads
        context = clean(msgspec.convert(line.c["Context"], dict[str, Any]))
    else:
        at = datetime.fromisoformat(line.timestamp).timestamp()
        ours, context = Ours(at, at), clean(_named(line.c))
    pmf = np.zeros(len(ads), "<f8")
    for action, probability in zip(line.a, line.p, strict=True):
        if not 1 <= action <= len(ads):
            raise ValueError(f"there is no action {action}")
        pmf[action - 1] = probability
    if not 0 <= line.index < len(ads):
        raise ValueError(f"there is no action of index {line.index}")
    pmf[line.index] = line.probability
    by_id = {ad.id: ad for ad in ads}
    choice = Chosen(
        ours.at,
        line.event_id,
        tuple(ad.id for ad in ads),
        pmf.tobytes(),
        line.index,
        context,
        ours.policy,
        ours.user_id,
        ours.placement,
        ours.request_id,
        tuple(by_id[ad_id] for ad_id in ours.inline),
        ours.filtered,
        expected=ours.expected,
        promised=ours.promised,
    )
    settled_at = math.inf if ours.settled_at is None else ours.settled_at
    return Settled(choice, ads, 0.0 - (line.cost or 0.0), settled_at, ours.silent, ours.offset)


def _named(fields: dict[str, Any]) -> dict[str, Any]:
    """Without the names that VW passes over."""
    return {name: value for name, value in fields.items() if not name.startswith("_")}
