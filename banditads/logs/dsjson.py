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
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            try:
                line = msgspec.json.decode(raw)
                if "_label_cost" in line:
                    yield _settled(line)
            except (msgspec.DecodeError, Invalid, LookupError, TypeError, ValueError) as error:
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
        },
    }


def _multi(ad: Ad) -> dict[str, Any]:
    fields = ad_to_dict(ad)
    features = fields.pop("features", {})
    return {"_tag": ad.id, "Id": {"ad": fields.pop("id")}, "Ad": features, "_banditads": fields}


def _settled(line: dict[str, Any]) -> Settled:
    """A round from a line, ours or not."""
    ours = line.get("banditads")
    shared, multi = line["c"], line["c"]["_multi"]
    if ours:
        context = shared["Context"]
        ads = tuple(
            ad_from_dict({"id": each["Id"]["ad"], "features": each["Ad"], **each["_banditads"]})
            for each in multi
        )
        at, settled_at = ours["at"], ours["settled_at"]
    else:
        context = clean(_named(shared))
        ads = tuple(
            Ad(each.get("_tag") or str(place), clean(_named(each), "ad"))
            for place, each in enumerate(multi, 1)
        )
        ours = {}
        at = settled_at = datetime.fromisoformat(line["Timestamp"]).timestamp()
    pmf = np.zeros(len(ads), "<f8")
    for action, probability in zip(line["a"], line["p"], strict=True):
        pmf[action - 1] = probability
    pmf[line["_labelIndex"]] = line["_label_probability"]
    by_id = {ad.id: ad for ad in ads}
    choice = Chosen(
        at,
        line["EventId"],
        tuple(ad.id for ad in ads),
        pmf.tobytes(),
        line["_labelIndex"],
        context,
        ours.get("policy", ""),
        ours.get("user_id", ""),
        ours.get("placement", ""),
        ours.get("request_id", ""),
        tuple(by_id[ad_id] for ad_id in ours.get("inline", ())),
        ours.get("filtered", {}),
    )
    return Settled(
        choice,
        ads,
        0.0 - line["_label_cost"],
        math.inf if settled_at is None else settled_at,
        ours.get("silent", False),
    )


def _named(fields: dict[str, Any]) -> dict[str, Any]:
    """Without the names that VW passes over."""
    return {name: value for name, value in fields.items() if not name.startswith("_")}
