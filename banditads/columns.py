"""What is known of every feature: how often it is there, what it holds, and whether it gives the reward away.

Features come and go, and nobody declares them. A column is one feature of the visitor or of the ad that was
shown; the words of a text are one column. All choices are looked at until `ALL` were, then one in `EVERY`;
what they earn, of one in `EVERY` from the beginning. Which they are is a hash of the event id: the same ones
everywhere. Memory is bounded: at most `MAX_COLUMNS`, about 2 KB each; beyond, the one that was not seen
longest is forgotten.

Sources: Welford 1962 (mean and spread); Flajolet, Fusy, Gandouet, Meunier 2007 (HyperLogLog, for how many
different values there are, here within about 6 %); Kelley 1935 (epsilon squared, the share of the reward's
variance that a column explains, without what chance would).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from math import asinh, inf, log, sqrt
from typing import Literal, NamedTuple, TypeAlias
from zlib import crc32

import msgspec

from .events import Ad, Chosen, Event, Features, Saved, Settled
from .features import MAX_FEATURES, MISSING, PART

ALL, EVERY = 1000, 16
MAX_COLUMNS = 2000
KEEP = 1 - 1 / 300  # "usually" goes back over about 300 of the choices looked at
ENOUGH = 100  # choices looked at before anything is said of a column
USUAL = 0.5  # share of recent choices
REGISTERS = 256  # of HyperLogLog; the standard error is 1.04 / 16
GROUPS = 16  # of values, for the association with the reward: the first 15 and all others; one for "missing"
CLICKS = 10  # rewards, or as much variance as so many make, before an association is worth a word
LEAK = 0.5  # share of the reward's variance: what is known of clicks in advance explains a few percent
PROFILE = "user."  # what comes from a profile is not there for whoever has none

Side: TypeAlias = Literal["context", "ad"]
Key: TypeAlias = tuple[Side, str]


class Column(msgspec.Struct, array_like=True):
    """One feature, in the choices that were looked at."""

    born: int  # choices looked at before it was first seen
    settled_before: tuple[int, float, float]  # what `Earned` was then
    last: int = 0  # number of the choice in which it had a value last
    last_at: float = 0.0  # seconds since the epoch
    seen: int = 0  # choices in which it had a value
    numbers: int = 0  # of those, how many were numbers
    whole: int = 0  # of those, the whole ones
    words: bool = False  # it is a text, and came as its words
    mean: float = 0.0  # of the numbers
    squares: float = 0.0  # sum of squared differences from the mean
    recent: float = 0.0  # choices that had it, each counting `KEEP` times the next one, times 1 - `KEEP`
    registers: bytes = bytes(REGISTERS)
    groups: list[int] = []  # hashes of the values that have a group of their own
    counts: list[int] = msgspec.field(default_factory=lambda: [0] * GROUPS)  # settled, by group
    sums: list[float] = msgspec.field(default_factory=lambda: [0.0] * GROUPS)  # of their rewards

    def see(self, value: str | float, number: int, at: float) -> None:
        """It had a value in a choice, the one of this number."""
        self.recent = self.recent * KEEP ** (number - self.last) + 1 - KEEP
        self.last, self.last_at = number, at
        self.seen += 1
        if not isinstance(value, str):
            self.numbers += 1
            self.whole += value.is_integer()
            before = value - self.mean
            self.mean += before / self.numbers
            self.squares += before * (value - self.mean)
        self.tell_apart(value)

    def tell_apart(self, value: str | float) -> None:
        """Count a value among the different ones."""
        register, rank, _ = _hashed(value)
        if rank > self.registers[register]:  # seldom, so that bytes do: they are what is dumped
            changed = bytearray(self.registers)
            changed[register] = rank
            self.registers = bytes(changed)

    def earn(self, like: int, reward: float) -> None:
        """It had a value in a choice that has settled; like values have one number."""
        if like in self.groups:
            group = self.groups.index(like)
        elif (group := len(self.groups)) < GROUPS - 1:
            self.groups.append(like)
        self.counts[group] += 1
        self.sums[group] += reward

    def usually(self, number: int) -> float:
        """Share of recent choices that had it, at the choice of this number, at or after the last."""
        return self.recent * KEEP ** (number - self.last) / (1 - KEEP ** (number - self.born))

    @property
    def kind(self) -> str:
        """What it holds: number, category, text, mixed if there are numbers and words, or unknown."""
        if not self.seen:
            return "unknown"
        if self.words:
            return "text"
        return "number" if self.numbers == self.seen else "mixed" if self.numbers else "category"

    @property
    def distinct(self) -> float:
        """About how many different values it has had: words, if it is a text."""
        empty = self.registers.count(0)
        raw = 0.7213 / (1 + 1.079 / REGISTERS) * REGISTERS**2 / sum(2.0**-each for each in self.registers)
        return REGISTERS * log(REGISTERS / empty) if empty and raw <= 2.5 * REGISTERS else raw


class Facts(NamedTuple):
    """A column for people. Shares are in [0, 1]."""

    side: Side
    name: str
    kind: str
    seen: int  # choices, of those looked at
    missing: float  # share of the choices looked at since it was first seen that had no value
    distinct: float
    mean: float | None  # of the numbers, if any
    spread: float | None
    last_at: float
    association: float | None  # share of the reward's variance that it explains; None: too little is known
    warnings: tuple[str, ...]


class Earned(msgspec.Struct, array_like=True):
    """What the choices earned that were looked at and have settled."""

    count: int = 0
    sum: float = 0.0
    squares: float = 0.0
    least: float = inf
    most: float = -inf


class Columns:
    """Columns of the visitors' and of the shown ads' features.

    Attributes
    ----------
    usual
        Context features that most recent choices had: whoever asks without one has it flagged as missing.
        Indicators, texts and what comes from profiles are not among them.
    """

    def __init__(self) -> None:
        self.looked_at = 0  # choices
        self.earned = Earned()
        self.columns = OrderedDict[Key, Column]()  # not seen longest first
        self.forgotten = 0
        self.usual: frozenset[str] = frozenset()

    def apply(self, event: Event | Settled, ads: Sequence[Ad] = ()) -> None:
        """Look at a choice, or at what it earned. `ads` are those of the event, if it is a choice."""
        match event:
            case Chosen() if ads and (self.looked_at < ALL or _sampled(event)):
                self._look(event, ads[event.pick])
            case Settled() if _sampled(event.choice):
                self._settle(event)

    def complete(self, context: Features) -> Features:
        """The context, with what is usually there and is not flagged as missing, as far as there is room."""
        if context.keys() >= self.usual:
            return context
        lacking = sorted(self.usual - context.keys())[: max(0, MAX_FEATURES - len(context))]
        return dict(sorted({**context, **dict.fromkeys(lacking, MISSING)}.items()))

    def facts(self, side: Side) -> list[Facts]:
        """Every column of this side, by name."""
        found = sorted((name, column) for (where, name), column in self.columns.items() if where == side)
        return [self._facts(side, name, column) for name, column in found]

    def _look(self, choice: Chosen, shown: Ad) -> None:
        self.looked_at = number = self.looked_at + 1
        last: Key | None = None
        for key, value, word in _columns(choice.context, shown.features):
            column = self.columns.get(key) or self._new(key)
            if key == last:
                column.tell_apart(value)  # one more word of the same text
                continue
            self.columns.move_to_end(key)
            column.words |= word
            if value != MISSING:
                column.see(value, number, choice.at)
            last = key
        if number % ENOUGH == 0:
            self.usual = frozenset(self._usual())

    def _settle(self, settled: Settled) -> None:
        earned, reward, choice = self.earned, settled.reward, settled.choice
        earned.count += 1
        earned.sum += reward
        earned.squares += reward * reward
        earned.least, earned.most = min(earned.least, reward), max(earned.most, reward)
        last: Key | None = None
        for key, value, word in _columns(choice.context, settled.ads[choice.pick].features):
            column = self.columns.get(key)
            if column is not None and key != last and value != MISSING:
                column.earn(0 if word else _hashed(value)[2], reward)  # of a text only whether it is there
            last = key

    def _new(self, key: Key) -> Column:
        if len(self.columns) >= MAX_COLUMNS:
            self.columns.popitem(last=False)
            self.forgotten += 1
        earned = self.earned
        column = Column(self.looked_at - 1, (earned.count, earned.sum, earned.squares))
        return self.columns.setdefault(key, column)

    def _usual(self) -> Iterator[str]:
        for (side, name), column in self.columns.items():
            indicator = column.numbers and not column.squares
            if (
                side == "context"
                and not (column.words or indicator or name.startswith(PROFILE))
                and self.looked_at - column.born >= ENOUGH
                and column.usually(self.looked_at) >= USUAL
            ):
                yield name

    def _facts(self, side: Side, name: str, column: Column) -> Facts:
        associated, by_presence = self._associated(column)
        numbers = column.numbers > 0
        return Facts(
            side,
            name,
            column.kind,
            column.seen,
            1 - column.seen / (self.looked_at - column.born),
            column.distinct,
            column.mean if numbers else None,
            sqrt(column.squares / column.numbers) if numbers else None,
            column.last_at,
            associated,
            tuple(self._warnings(column, associated or 0.0, by_presence or 0.0)),
        )

    def _warnings(self, column: Column, associated: float, by_presence: float) -> Iterator[str]:
        seen, silence = column.seen, self.looked_at - column.last
        if by_presence >= LEAK:
            yield "leaks the reward: whether it is there says what is earned; it may be known only afterwards"
        elif associated >= LEAK:
            yield f"leaks the reward: it explains {associated:.0%} of it; it may be known only afterwards"
        if seen < ENOUGH:
            return
        distinct, kind = round(column.distinct), column.kind
        if (kind == "category" and distinct >= seen / 2) or (
            kind == "number" and column.whole == seen and distinct >= 0.9 * seen
        ):
            yield (
                f"nearly an identifier: about {min(distinct, seen)} values in {seen} choices; "
                "what is learned of one says nothing of the next"
            )
        if distinct == 1 and column.usually(column.last) > 0.99:
            yield "constant: it tells no choice from another"
        if silence * seen / (column.last - column.born) > 20:  # by chance: e ** -20
            yield f"vanished: not in the last {silence} choices that were looked at"

    def _associated(self, column: Column) -> tuple[float | None, float | None]:
        """Epsilon squared of the groups of values and "missing", and of being there or not; in [0, 1]."""
        earned, (count, sums, squares) = self.earned, column.settled_before
        count, sums, squares = earned.count - count, earned.sum - sums, earned.squares - squares
        total = squares - sums * sums / count if count else 0.0
        if count < ENOUGH or total <= (earned.most - earned.least) ** 2 * CLICKS / 2:
            return None, None
        there, of_there = sum(column.counts), sum(column.sums)
        absent = (count - there, sums - of_there)

        def explained(groups: Sequence[tuple[int, float]]) -> float:
            filled = [group for group in groups if group[0] > 0]
            between = sum(s * s / n for n, s in filled) - sums * sums / count
            if count <= len(filled):
                return 0.0
            by_chance = (total - between) / (count - len(filled)) * (len(filled) - 1)
            return min(1.0, max(0.0, (between - by_chance) / total))

        return (
            explained([*zip(column.counts, column.sums, strict=True), absent]),
            explained([(there, of_there), absent]),
        )

    def copy(self) -> Columns:
        """The same columns, which stay as they are."""
        made = Columns()
        made.load(msgspec.msgpack.decode(msgspec.msgpack.encode(self.dump())))
        return made

    def dump(self) -> Saved:
        """Everything counted."""
        columns = [[*key, column] for key, column in self.columns.items()]
        return [self.looked_at, self.earned, self.forgotten, sorted(self.usual), columns]

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`."""
        self.looked_at, earned, self.forgotten, usual, columns = saved
        self.earned, self.usual = msgspec.convert(earned, Earned), frozenset(usual)
        self.columns = OrderedDict(
            ((side, name), msgspec.convert(column, Column)) for side, name, column in columns
        )


def column_of(name: str) -> str:
    """The column that a feature belongs to: itself, or the text that it is a word of."""
    return name.partition(PART)[0] or name


def _columns(context: Features, shown: Features) -> Iterator[tuple[Key, str | float, bool]]:
    """Column, value, and whether that is a word of a text; words of one text follow each other."""
    sides: tuple[tuple[Side, Features], ...] = (("context", context), ("ad", shown))
    for side, features in sides:
        for name, value in features.items():
            if PART in name:
                column, _, word = name.partition(PART)
                yield (side, column), word, True
            else:
                yield (side, name), value, False


def _sampled(choice: Chosen) -> bool:
    return crc32(choice.event_id.encode()) % EVERY == 0


@lru_cache(2**14)  # most values come again and again: a tenth of the time
def _hashed(value: str | float) -> tuple[int, int, int]:
    """Register and rank of HyperLogLog; and a number, the same for numbers that are near."""
    hashed = int.from_bytes(blake2b(str(value).encode(), digest_size=8).digest(), "big")
    register, rest = hashed % REGISTERS, hashed // REGISTERS
    like = hashed % 2**32 if isinstance(value, str) else round(2 * asinh(value))
    return register, 57 - rest.bit_length(), like
