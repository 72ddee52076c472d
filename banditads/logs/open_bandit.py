"""The Open Bandit Dataset: real impressions and clicks of a fashion shop, with true propensities.

Saito, Aihara, Matsutani and Narita (2021), arXiv:2008.07146. A small version is bundled, six logs of 10,000
rounds: `random/all`, `bts/men` and so on; the files of the full one are read as they come. The policy
`random` is uniform. Of `bts`, Thompson sampling, the dataset tells the propensity of the item that was shown
and no other: in its PMFs only the entry of the pick is real, the rest is spread evenly over the other items.
"""

from __future__ import annotations

import csv
import lzma
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import TextIO

import numpy as np

from ..errors import Damaged, Invalid, Misconfigured
from ..events import Ad, Chosen, Settled
from ..features import clean

DATA = Path(__file__).parent.parent / "data" / "open_bandit_dataset"
POLICIES = ("random", "bts")
CAMPAIGNS = ("all", "men", "women")
UNREADABLE = (ValueError, LookupError, EOFError, lzma.LZMAError, csv.Error, Invalid)
BUNDLED = tuple(f"{policy}/{campaign}" for policy in POLICIES for campaign in CAMPAIGNS)


def recognises(path: Path) -> bool:
    """A CSV file, or the name of a bundled log."""
    found = _locate(path)
    return found.name.endswith((".csv", ".csv.xz")) and found.is_file()


def read(path: Path) -> Iterator[Settled]:
    """One round per row. Its event id is `obd-<policy>-<campaign>-<row>`.

    The context is the position (1 to 3), the four hashed user features, and the user's counts of past
    clicks on items where there are any. The ads are all items of the campaign, the same objects every time.
    """
    path = _locate(path)
    campaign = path.name.partition(".")[0]
    policy = next((part for part in reversed(path.parts) if part in POLICIES), "unknown")
    ads = _items(_items_file(path, policy, campaign))
    index = {ad.id: place for place, ad in enumerate(ads)}
    ids = tuple(index)
    with _open(path) as file:
        rows = csv.reader(file)
        try:
            columns = {name: place for place, name in enumerate(next(rows, []))}
        except UNREADABLE as error:
            raise Damaged(f"{path}: {type(error).__name__}: {error}") from error
        users = [(name, place) for name, place in columns.items() if name.startswith("user_feature_")]
        affinities = [
            (name, place) for name, place in columns.items() if name.startswith("user-item_affinity_")
        ]
        row = -1
        try:
            when, item, position, click, propensity = (
                columns[name] for name in ("timestamp", "item_id", "position", "click", "propensity_score")
            )
            for row, cells in enumerate(rows):
                context = {"position": cells[position]}
                context |= {name: cells[place] for name, place in users if cells[place]}
                counts = {name: float(cells[place]) for name, place in affinities if cells[place] != "0.0"}
                pick = index[f"item-{cells[item]}"]
                at = datetime.fromisoformat(cells[when]).timestamp()
                choice = Chosen(
                    at,
                    f"obd-{policy}-{campaign}-{row}",
                    ids,
                    _pmf(float(cells[propensity]), pick, len(ids)),
                    pick,
                    clean(context | {name: count for name, count in counts.items() if count}),
                    policy,
                )
                yield Settled(choice, ads, float(cells[click]), at)
        except UNREADABLE as error:
            raise Damaged(f"{path} after row {row}: {type(error).__name__}: {error}") from error


def items(campaign: str) -> tuple[Ad, ...]:
    """The items of a bundled campaign: `all` (80), `men` (34) or `women` (46). Their URLs are made up.

    >>> items("all")[14].id, len(items("all"))
    ('item-14', 80)
    """
    if campaign not in CAMPAIGNS:
        raise Misconfigured(f"there is no campaign {campaign!r}; there are: {', '.join(CAMPAIGNS)}")
    return _items(DATA / "random" / f"{campaign}_items.csv")


def _pmf(propensity: float, pick: int, n: int) -> bytes:
    """float64 little-endian, shape (n,): exact at the pick, even elsewhere."""
    if not 0 < propensity <= 1:
        raise ValueError(f"{propensity} is not a propensity")
    rest = propensity if propensity == 1 / n else (1 - propensity) / max(1, n - 1)
    pmf = np.full(n, rest, "<f8")
    pmf[pick] = propensity
    return pmf.tobytes()


def _locate(path: Path) -> Path:
    """The bundled file of that name; any other path as it is."""
    found = re.fullmatch(r"(?:open_bandit/)?(\w+/\w+)", path.as_posix())
    if found and found[1] in BUNDLED and not path.exists():
        return DATA / f"{found[1]}.csv.xz"
    return path


def _items_file(path: Path, policy: str, campaign: str) -> Path:
    """Where the items of a log are: beside it, as here or as in the full dataset, or bundled."""
    places = (
        path.with_name(f"{campaign}_items.csv"),
        path.with_name("item_context.csv"),
        DATA / policy / f"{campaign}_items.csv",
    )
    for place in places:
        if place.is_file():
            return place
    raise Damaged(f"{path} has no items: none of {', '.join(map(str, places))} is there")


def _items(path: Path) -> tuple[Ad, ...]:
    with _open(path) as file:
        try:
            return tuple(
                Ad(
                    f"item-{row['item_id']}",
                    clean(
                        {
                            name: float(value) if name == "item_feature_0" else value
                            for name, value in row.items()
                            if name and name.startswith("item_feature_") and value
                        }
                    ),
                    f"https://example.com/items/{row['item_id']}",
                )
                for row in csv.DictReader(file)
            )
        except UNREADABLE as error:
            raise Damaged(f"{path}: {type(error).__name__}: {error}") from error


def _open(path: Path) -> TextIO:
    return lzma.open(path, "rt", newline="") if path.suffix == ".xz" else path.open(newline="")
