"""Apache Parquet: the log as a table, one row per decision, for notebooks and query engines.

Needs `pip install banditads[parquet]`. Everything comes back as it was. Times are kept in nanoseconds, which
is exact for the seconds since the epoch of our days; microseconds would not be. `context`, `filtered` and
`ad_features`, the ads with all their fields, are JSON. `ad_id` and `probability` repeat what was picked, for
easy queries.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from ..errors import Damaged, Invalid, Misconfigured
from ..events import Chosen, Settled
from ..features import clean
from . import ad_from_dict, ad_to_dict

listed = msgspec.json.Decoder(list[dict[str, Any]])
mapping = msgspec.json.Decoder(dict[str, Any])
named = msgspec.json.Decoder(dict[str, str])
ROWS = 5_000  # per row group: what is held in memory


def recognises(path: Path) -> bool:
    """By the end of the name."""
    return path.suffix == ".parquet" and path.is_file()


def write(rounds: Iterable[Settled], path: Path) -> int:
    """Write a row group at a time; return the number of rows."""
    arrow, pq = _libraries()
    schema = _schema(arrow)
    rounds, count = iter(rounds), 0
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        while rows := list(_rows(islice(rounds, ROWS))):
            writer.write_table(arrow.Table.from_pylist(rows, schema))
            count += len(rows)
    return count


def read(path: Path) -> Iterator[Settled]:
    """Rows in order, a batch at a time."""
    arrow, pq = _libraries()
    try:
        with pq.ParquetFile(path, read_dictionary=["ad_features"]) as file:
            for batch in file.iter_batches(ROWS):
                yield from _rounds(arrow, batch)
    except (arrow.ArrowException, OSError, LookupError, ValueError, msgspec.DecodeError, Invalid) as error:
        raise Damaged(f"{path} is not a log in Parquet as banditads writes it: {error}") from error


def _schema(arrow: Any) -> Any:
    text, moment = arrow.string(), arrow.timestamp("ns", tz="UTC")
    return arrow.schema(
        {
            "event_id": text,
            "at": moment,
            "settled_at": moment,  # null: after the last event of its journal
            "user_id": text,
            "placement": text,
            "request_id": text,
            "policy": text,
            "context": text,
            "ads": arrow.list_(text),
            "ad_features": arrow.dictionary(arrow.int32(), text),
            "pmf": arrow.list_(arrow.float64()),
            "pick": arrow.int32(),
            "ad_id": text,
            "probability": arrow.float64(),
            "reward": arrow.float64(),
            "silent": arrow.bool_(),
            "inline": arrow.list_(text),
            "filtered": text,
            "offset": arrow.int64(),
            "expected": arrow.float64(),  # null: the policy had no idea
            "promised": arrow.float64(),
        }
    )


def _rows(rounds: Iterable[Settled]) -> Iterator[dict[str, Any]]:
    ads, written = None, ""
    for settled in rounds:
        choice = settled.choice
        if settled.ads is not ads:  # most rounds share one slate
            ads, written = settled.ads, _json([ad_to_dict(ad) for ad in settled.ads])
        yield {
            "event_id": choice.event_id,
            "at": _nanoseconds(choice.at),
            "settled_at": _nanoseconds(settled.at),
            "user_id": choice.user_id,
            "placement": choice.placement,
            "request_id": choice.request_id,
            "policy": choice.policy,
            "context": _json(choice.context),
            "ads": choice.ads,
            "ad_features": written,
            "pmf": np.frombuffer(choice.pmf, "<f8"),
            "pick": choice.pick,
            "ad_id": choice.ad_id,
            "probability": choice.probability,
            "reward": settled.reward,
            "silent": settled.silent,
            "inline": [ad.id for ad in choice.inline],
            "filtered": _json(choice.filtered),
            "offset": settled.offset,
            "expected": choice.expected,
            "promised": choice.promised,
        }


class Row(msgspec.Struct):
    """A row, but for the ads and the times."""

    event_id: str
    user_id: str
    placement: str
    request_id: str
    policy: str
    context: str
    pmf: list[float]
    pick: int
    reward: float
    silent: bool
    inline: list[str]
    filtered: str
    offset: int = -1  # older files lack it, and the following
    expected: float | None = None
    promised: float | None = None


def _rounds(arrow: Any, batch: Any) -> Iterator[Settled]:
    slates = batch.column("ad_features")
    if not arrow.types.is_dictionary(slates.type) or slates.null_count:
        raise ValueError("ad_features is not text, or not everywhere")
    known = [tuple(map(ad_from_dict, listed.decode(text))) for text in slates.dictionary.to_pylist()]
    ids = [tuple(ad.id for ad in ads) for ads in known]
    times = [batch.column(name).cast(arrow.int64()).to_pylist() for name in ("at", "settled_at")]
    there = [name for name in Row.__struct_fields__ if name in batch.schema.names]
    rest = msgspec.convert(batch.select(there).to_pylist(), list[Row])
    for row, slate, at, settled_at in zip(rest, slates.indices.to_pylist(), *times, strict=True):
        ads = known[slate]
        choice = Chosen(
            _seconds(at),
            row.event_id,
            ids[slate],
            np.array(row.pmf, "<f8").tobytes(),
            row.pick,
            clean(mapping.decode(row.context)),
            row.policy,
            row.user_id,
            row.placement,
            row.request_id,
            tuple(ads[ids[slate].index(ad_id)] for ad_id in row.inline),
            named.decode(row.filtered),
            expected=row.expected,
            promised=row.promised,
        )
        yield Settled(choice, ads, row.reward, _seconds(settled_at), row.silent, row.offset)


def _nanoseconds(seconds: float) -> int | None:
    """In two parts, because the product would not fit a float.

    >>> _seconds(_nanoseconds(1574553634.76283))
    1574553634.76283
    """
    if seconds == math.inf:
        return None
    fraction, whole = math.modf(seconds)
    return int(whole) * 10**9 + round(fraction * 1e9)


def _seconds(nanoseconds: int | None) -> float:
    return math.inf if nanoseconds is None else nanoseconds / 10**9  # exactly rounded, for integers


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _libraries() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise Misconfigured("logs in Parquet need pyarrow: pip install 'banditads[parquet]'") from error
