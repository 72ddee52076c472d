"""Users and what they did, from files of whatever columns: CSV, JSON Lines, Parquet.

A file is read twice: first to see what its columns hold, then row by row, so a file of any size takes the
same memory. A row that cannot be taken is refused by itself, with its line and the reason; the rest goes on.
Ids of users become pseudonyms before they are written down, and are in no message.
"""

from __future__ import annotations

import csv
import importlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from math import isfinite, isnan
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import msgspec

from .client import Client
from .engine import Engine
from .errors import Invalid, Misconfigured
from .events import Act
from .parsing import ActBody, UserBody, check_act, check_user, check_user_id
from .users import KINDS

Row: TypeAlias = dict[str, Any]
BATCH = 1000  # rows taken at once
SHOWN = 20  # refused rows that are told of one by one
MAX_COLUMNS = 256
MAX_REASONS = 100  # that are counted apart
MISSING = {"", "NA", "N/A", "NaN", "nan", "null", "NULL", "None"}  # of text
MILLISECONDS = 1e11  # a larger time is not in seconds: that would be after the year 5138
COLUMNS: Mapping[str, tuple[str, ...]] = {  # what a column is often called
    "user": ("user", "user_id", "userid", "visitor_id", "visitorid", "customer_id", "id"),
    "consent": ("consent",),
    "time": ("time", "timestamp", "at", "date", "datetime"),
    "item": ("item", "item_id", "itemid", "product_id", "movie_id"),
    "category": ("category", "category_id", "categoryid", "genre"),
    "kind": ("kind", "event", "event_type", "type", "behavior", "action"),
    "amount": ("amount", "price", "value", "revenue"),
}
CALLED = {  # what kinds are often called
    **{kind: kind for kind in KINDS},
    **dict.fromkeys(("pv", "click", "pageview", "page_view", "detail"), "view"),
    **dict.fromkeys(("addtocart", "add_to_cart", "basket"), "cart"),
    **dict.fromkeys(("transaction", "buy", "order", "sale"), "purchase"),
    **dict.fromkeys(("fav", "favorite", "favourite"), "like"),
}
YES, NO = {"yes", "true", "1", "y", "t"}, {"no", "false", "0", "n", "f"}
NUMBER = re.compile(r"[+-]?(0|[1-9]\d*)?(\.\d+)?([eE][+-]?\d+)?")  # 007 is a word


class Column(msgspec.Struct):
    """What a column holds. `kind` is number, word, yes or no, list, or nothing."""

    kind: str = "nothing"
    rows: int = 0
    missing: int = 0

    def see(self, value: Any) -> None:
        """One more row."""
        self.rows += 1
        if is_missing(value):
            self.missing += 1
            return
        kind = _kind(value)
        self.kind = kind if self.kind in ("nothing", kind) else "word"


class Report(msgspec.Struct):
    """What came of a file. `refused` are the first lines with their reasons, `reasons` counts them all."""

    what: str
    rows: int = 0
    taken: int = 0
    without_consent: int = 0  # rows about users who did not consent: nothing of them is kept
    refused: list[tuple[int, str]] = []
    reasons: dict[str, int] = {}
    columns: dict[str, Column] = {}
    used: dict[str, str] = {}  # what -> the column it is in


class Taker(Protocol):
    """Where users and acts go: a data directory or a server. Both say how many of them consented."""

    def users(self, known: Sequence[tuple[str, UserBody]]) -> int:
        """Take down what is known of users, by their ids."""

    def acts(self, acts: Sequence[tuple[str, ActBody]]) -> int:
        """Take down what users did."""


class Directory:
    """An engine that this process holds, and what makes pseudonyms."""

    def __init__(self, engine: Engine, pseudonym: Callable[[str], str]) -> None:
        self.engine, self.pseudonym = engine, pseudonym

    def users(self, known: Sequence[tuple[str, UserBody]]) -> int:
        """Written down durably when this returns."""
        found = {self.pseudonym(user): check_user(body, "") for user, body in known}
        self.engine.put_users(found)
        return sum(body.consent for _, body in known)

    def acts(self, acts: Sequence[tuple[str, ActBody]]) -> int:
        """Written down durably when this returns."""
        now, found = self.engine.now(), dict[str, list[Act]]()
        for user, body in acts:
            found.setdefault(self.pseudonym(user), []).append(check_act(body, "act", now))
        return self.engine.act(found)[0]


class Server:
    """A running server."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def users(self, known: Sequence[tuple[str, UserBody]]) -> int:
        """The server has them on its disk when this returns."""
        rows = [{"id": user, **msgspec.structs.asdict(body)} for user, body in known]
        self.client.put_users(rows)
        return sum(body.consent for _, body in known)

    def acts(self, acts: Sequence[tuple[str, ActBody]]) -> int:
        """The server has them on its disk when this returns."""
        return self.client.act([{"user": user, **msgspec.structs.asdict(body)} for user, body in acts])


class Names(NamedTuple):
    """Columns that the caller names; None looks for one of the usual names."""

    user: str | None = None
    consent: str | None = None
    time: str | None = None
    item: str | None = None
    category: str | None = None
    kind: str | None = None
    amount: str | None = None


def users(
    file: Path,
    taker: Taker,
    names: Names,
    *,
    now: float,
    consent: bool = False,
    words: Sequence[str] = (),
    progress: Callable[[int, int], object] = lambda more, all: None,
) -> Report:
    """Take users from a file: their ids, their consent, and every other column as an attribute.

    `consent` says that all of them consent, where no column does; `words` are columns of numbers that are
    names of something. Raises `Misconfigured` when the file as a whole cannot be read.
    """
    report = _look(file, "users", names, ("user", "consent"), needed=("user",))
    if "consent" not in report.used and not consent:
        raise Misconfigured(
            "nobody in this file consents, and of who does not nothing is kept: name the column that says so "
            "(--consent-column), or say that all do (--consent)"
        )
    attributes = [name for name in report.columns if name not in report.used.values()]

    def body(row: Row) -> UserBody:
        given = {}
        for name in attributes:
            value = row.get(name)
            if not is_missing(value):
                kind = "word" if name in words else report.columns[name].kind
                given[name] = _value(value, kind)
        agreed = _agreed(row.get(report.used["consent"])) if "consent" in report.used else True
        found = UserBody(given, agreed)
        check_user(found, "")
        return found

    return _take(file, report, body, taker.users, progress)


def acts(
    file: Path,
    taker: Taker,
    names: Names,
    *,
    now: float,
    progress: Callable[[int, int], object] = lambda more, all: None,
) -> Report:
    """Take what users did from a file; other columns are left out. Rows without a kind are views.

    `now` is what a row without a time gets, and how late one may be. Raises `Misconfigured` when the file as
    a whole cannot be read.
    """
    wanted = ("user", "time", "item", "category", "kind", "amount")
    report = _look(file, "events", names, wanted, needed=("user",))

    def body(row: Row) -> ActBody:
        def get(what: str) -> Any:
            value = row.get(report.used.get(what, ""))
            return None if is_missing(value) else value

        kind, amount, at = _word(get("kind")) or "view", get("amount"), get("time")
        found = ActBody(
            CALLED.get(kind.lower(), kind),
            _word(get("item")),
            _word(get("category")),
            0.0 if amount is None else _number(amount, "amount"),
            now if at is None else moment(at),
        )
        check_act(found, "act", now)
        return found

    return _take(file, report, body, taker.acts, progress)


def _look(file: Path, what: str, names: Names, wanted: Sequence[str], needed: Sequence[str]) -> Report:
    """Read a file once: its columns, and which of them is what."""
    report, whole = Report(what), 0
    for _, row in rows(file):
        report.rows += 1
        if isinstance(row, dict):
            whole += 1
            for name, value in row.items():
                report.columns.setdefault(name, Column()).see(value)
            if len(report.columns) > MAX_COLUMNS:
                raise Misconfigured(f"{file} has more than {MAX_COLUMNS} columns")
    for column in report.columns.values():  # in JSON Lines a column may not be in every row
        column.missing += whole - column.rows
        column.rows = whole
    by_name = {name.lower(): name for name in reversed(report.columns)}
    for each in wanted:
        named = getattr(names, each)
        if named is not None and named not in report.columns:
            raise Misconfigured(f"{file} has no column {named!r}; it has {', '.join(report.columns)}")
        found = named or next((by_name[name] for name in COLUMNS[each] if name in by_name), None)
        if found is not None and found not in report.used.values():
            report.used[each] = found
        elif each in needed:
            raise Misconfigured(f"{file}: no column looks like the {each}: name it with --{each}")
    return report


def _take(
    file: Path,
    report: Report,
    body: Callable[[Row], Any],
    take: Callable[[list[tuple[str, Any]]], int],
    progress: Callable[[int, int], object],
) -> Report:
    """Read a file again, and take what can be taken in batches."""
    reasons = Counter[str]()
    user = report.used["user"]

    def good() -> Iterator[tuple[str, Any]]:
        for line, row in rows(file):
            progress(1, report.rows)
            try:
                if isinstance(row, str):
                    raise Invalid(row)
                name = _word(row.get(user))
                yield check_user_id(name, user), body(row)
            except Invalid as error:
                reason = f"{error.field}: {error.message}" if error.field else error.message
                reasons[reason if reason in reasons or len(reasons) < MAX_REASONS else "another"] += 1
                if len(report.refused) < SHOWN:
                    report.refused.append((line, reason))

    found = good()
    while batch := list(islice(found, BATCH)):
        taken = take(batch)
        report.taken += taken
        report.without_consent += len(batch) - taken
    report.reasons = dict(reasons.most_common())
    return report


def rows(file: Path) -> Iterator[tuple[int, Row | str]]:
    """(line, row by column, or why it cannot be read). Raises `Misconfigured` for what is not such a file."""
    kinds = {".csv": _csv, ".jsonl": _lines, ".ndjson": _lines, ".json": _lines, ".parquet": _parquet}
    read = kinds.get(file.suffix.lower())
    if read is None:
        raise Misconfigured(f"{file} is neither .csv, .jsonl, .ndjson, .json nor .parquet")
    try:
        yield from read(file)
    except OSError as error:
        raise Misconfigured(f"{file} cannot be read: {error.strerror or error}") from None


def _csv(file: Path) -> Iterator[tuple[int, Row | str]]:
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        reader = csv.reader(line.replace("\0", "\N{REPLACEMENT CHARACTER}") for line in lines)
        header = next(reader, [])
        if not header or len(set(header)) < len(header) or "" in header:
            raise Misconfigured(f"{file} does not begin with a line of column names, each different")
        while True:
            try:
                values = next(reader, None)
            except csv.Error as error:
                yield reader.line_num, f"not CSV: {error}"
                continue
            if values is None:
                return
            if not values:
                continue  # an empty line
            if len(values) != len(header):
                yield reader.line_num, "not as many values as there are columns"
            else:
                yield reader.line_num, dict(zip(header, values, strict=True))


def _lines(file: Path) -> Iterator[tuple[int, Row | str]]:
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                yield number, msgspec.json.decode(line, type=dict[str, Any])
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                yield number, "not a JSON object"


def _parquet(file: Path) -> Iterator[tuple[int, Row | str]]:
    try:
        parquet = importlib.import_module("pyarrow.parquet")
        arrow = importlib.import_module("pyarrow")
    except ImportError:
        raise Misconfigured("Parquet files need `pip install banditads[parquet]`") from None
    try:
        batches = parquet.ParquetFile(file).iter_batches(batch_size=BATCH)
        number = 0
        for batch in batches:
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except arrow.ArrowException as error:
        raise Misconfigured(f"{file} is not a whole Parquet file: {error}") from None


def moment(value: Any) -> float:
    """Seconds since the epoch of a number of seconds or milliseconds, or of ISO 8601; UTC where it says none.

    >>> moment(1.7e9), moment("1700000000000"), moment("2023-11-14T22:13:20Z")
    (1700000000.0, 1700000000.0, 1700000000.0)
    """
    if isinstance(value, str) and not NUMBER.fullmatch(value.strip()):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            raise Invalid("neither seconds, milliseconds nor ISO 8601", "time") from None
    if isinstance(value, datetime):
        try:
            return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
        except (OverflowError, ValueError):
            raise Invalid("neither seconds, milliseconds nor ISO 8601", "time") from None
    seconds = _number(value, "time")
    return seconds / 1000 if abs(seconds) >= MILLISECONDS else seconds


def is_missing(value: Any) -> bool:
    """Whether a cell says nothing."""
    return (
        value is None
        or (isinstance(value, float) and isnan(value))
        or (isinstance(value, str) and value.strip() in MISSING)
    )


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "yes or no"
        case int() | float():
            return "number"
        case str():
            return "number" if NUMBER.fullmatch(value.strip()) else "word"
        case list() | dict():
            return "list"
        case _:
            return "word"


def _value(value: Any, kind: str) -> Any:
    """A cell as its column's type."""
    if kind == "number":
        return _number(value, "attributes")
    return value if kind == "yes or no" or isinstance(value, list | dict) else _word(value)


def _number(value: Any, field: str) -> float:
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        raise Invalid("not a number", field) from None
    if not isfinite(found):
        raise Invalid("not a number", field)
    return found


def _word(value: Any) -> str:
    """A cell as text; whole numbers without a point: a gap in their column may have made them floats."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip()


def _agreed(value: Any) -> bool:
    word = _word(value).lower()
    if word in YES or word in NO:
        return word in YES
    if is_missing(value):
        return False
    raise Invalid("neither yes nor no", "consent")


def lines(report: Report) -> Iterable[str]:
    """A report as text."""
    yield f"{report.rows:,} rows read, {report.taken:,} taken"
    if report.without_consent:
        yield f"{report.without_consent:,} about users without consent: nothing of those is kept"
    if refused := sum(report.reasons.values()):
        yield f"{refused:,} refused:"
        yield from (f"  {count:,} times: {reason}" for reason, count in report.reasons.items())
        yield from (f"  line {line}: {reason}" for line, reason in report.refused)
    yield "columns:"
    meant = {column: what for what, column in report.used.items()}
    other = "an attribute" if report.what == "users" else "left out"
    for name, column in report.columns.items():
        share = column.missing / column.rows if column.rows else 0.0
        yield f"  {name}: {column.kind}, {share:.1%} missing, {meant.get(name, other)}"
