"""Joins a choice with its reward, and with its silence.

A choice is open for `wait` seconds. The first reward within them settles it at once; or, where the sum or the
largest of them is to count, they do when the time is over, or as soon as nothing could change the outcome. If
none comes, the passing of time settles it with `default`. Time is the newest `at` seen in any event, never
the clock on the wall, so a choice expires at the same place in the journal everywhere, and a clock that jumps
back never un-expires one. What has settled is remembered for a while, to tell a repeated reward from a
conflicting one. What waits for a user who is erased is forgotten as if it had never been decided.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from enum import StrEnum
from math import fsum
from typing import Any

import msgspec

from .events import (
    Ad,
    Chosen,
    Event,
    Heard,
    Impressed,
    Rewarded,
    Saved,
    Settled,
    Unfilled,
    UserErased,
    decode,
    encode,
)


class Status(StrEnum):
    """What became of a decision."""

    PENDING = "pending"
    REWARDED = "rewarded"
    EXPIRED = "expired"
    UNFILLED = "unfilled"


class Said(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One thing that was said of a choice; `kind` and `order` together stand once."""

    kind: str
    order: str
    value: float  # what it is worth, within the reward range
    amount: float  # what it was made from; another one under the same name is a conflict
    offset: int  # in the journal


MAX_SAID = 8  # of one choice: anybody who sees its id in a page can say something


class Open(msgspec.Struct, gc=False):
    """A choice that waits for its reward."""

    offset: int  # of the choice in the journal
    deadline: float  # seconds since the epoch; a reward at or after it is late
    packed: bytes  # the choice as in the journal, but without the ids of its ads: a third of the memory
    ads: tuple[Ad, ...]  # as they were at choice time
    size: int  # bytes of the above, and of what was said
    seen: bool = False  # the ad was reported as seen
    said: tuple[Said, ...] = ()

    @property
    def choice(self) -> Chosen:
        """The choice as it was made. Unpacking takes 3 us."""
        packed = decode(self.packed)
        assert isinstance(packed, Chosen)
        return msgspec.structs.replace(packed, ads=tuple([ad.id for ad in self.ads]))


class Done(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is remembered of a decision that no longer waits."""

    offset: int  # of the choice in the journal
    status: Status
    reward: float | None = None  # what somebody said, in time or too late
    reward_offset: int = -1  # where they said it
    request_id: str = ""
    said: tuple[Said, ...] = ()
    deadline: float = 0.0  # of one that was rewarded: until then more may be said


class Joiner:
    """Open and settled decisions.

    Parameters
    ----------
    wait
        Seconds in which a reward counts.
    default
        Reward of a choice that nobody rewarded in time.
    max_open
        Choices that may wait; beyond, the oldest is given up: expired, and not learned from.
    max_open_bytes
        What waiting choices may take together, in packed bytes; beyond, the oldest are given up. One
        that is larger by itself does not wait at all.
    max_done
        Settled decisions remembered; beyond, the oldest is forgotten.
    aggregation
        What counts of several rewards: the `earliest`, their `sum` or the `max`.
    low, high
        Range of what counts.
    """

    def __init__(
        self,
        *,
        wait: float = 600.0,
        default: float = 0.0,
        max_open: int = 10**6,
        max_open_bytes: int = 2**30,
        max_done: int = 10**6,
        aggregation: str = "earliest",
        low: float = 0.0,
        high: float = 1.0,
    ) -> None:
        self.wait, self.default, self.max_done = wait, default, max_done
        self.max_open, self.max_open_bytes = max_open, max_open_bytes
        self.aggregation, self.low, self.high = aggregation, low, high
        self.now = 0.0  # newest `at` seen
        # Ordered dicts, for finding the first: in a plain one that takes a walk over all that left before it,
        # 100 us with 100,000 waiting.
        self.open = OrderedDict[str, Open]()  # by event id; oldest deadline first, because `now` only grows
        self.done = OrderedDict[str, Done]()  # by event id; oldest settled first
        self.requests: dict[
            str, str
        ] = {}  # request id -> event id, for as long as that is in `open` or `done`
        self.waiting: dict[str, int] = {}  # ad id -> how many in `open` are of it; always the same object
        self.open_bytes = 0  # of all choices in `open`
        self.given_up = 0  # choices that had to leave before their time
        self.forgotten = 0  # settled decisions that had to be forgotten
        self.erased = -1  # offset of the newest erasure of a user; -1 when there was none

    def settle(self, offset: int, event: Event, ads: tuple[Ad, ...]) -> Iterator[Settled]:
        """What this event settles: choices whose time ran out, then the one that it rewards.

        `ads` are those of the event, if it is a choice.
        """
        self.now = max(self.now, event.at)
        while (oldest := self.oldest()) and oldest.deadline <= self.now:
            yield self._end(oldest)
        match event:
            case Chosen(event_id=event_id) if not self.knows(event_id):  # the first choice under an id stands
                packed = encode(msgspec.structs.replace(event, ads=()))
                opened = Open(offset, self.now + self.wait, packed, ads, _size(packed, ads))
                self._open(event_id, event.ad_id, opened)
                self._request(event.request_id, event_id)
                if len(self.open) > self.max_open or self.open_bytes > self.max_open_bytes:
                    yield from self._give_up()
            case Impressed(event_id=event_id) if waiting := self.open.get(event_id):
                waiting.seen = True
            case Unfilled(event_id=event_id) if not self.knows(event_id):
                self._request(event.request_id, event_id)
                self._remember(event_id, Done(offset, Status.UNFILLED, request_id=event.request_id))
            case Rewarded() if not self.heard(event.event_id, event.kind, event.order):
                amount = event.amount if event.kind else event.value
                yield from self._hear(
                    event.event_id, Said(event.kind, event.order, event.value, amount, offset)
                )
            case UserErased(user=user):
                self.erased = offset
                raw = user.encode()  # a hundred times quicker than unpacking all of them
                waiting_for = [one for one in self.open.values() if raw in one.packed]
                self.forget([one.choice.event_id for one in waiting_for if user == one.choice.user_id != ""])

    def forget(self, event_ids: Iterable[str]) -> None:
        """Know nothing of these decisions any more, nor of the requests that led to them."""
        for event_id in event_ids:
            if waiting := self.open.get(event_id):
                choice = waiting.choice
                self._leave(choice)
                self._forget_request(choice.request_id, event_id)
            if done := self.done.pop(event_id, None):
                self._forget_request(done.request_id, event_id)

    def oldest(self) -> Open | None:
        """The open choice that will expire first."""
        return next(iter(self.open.values()), None)

    def knows(self, event_id: str) -> bool:
        """Whether a decision was made under this id, and is remembered."""
        return event_id in self.open or event_id in self.done

    def waits(self, offset: int, choice: Chosen) -> bool:
        """Whether this very choice, at this offset, waits for its reward."""
        waiting = self.open.get(choice.event_id)
        return waiting is not None and waiting.offset == offset

    def in_time(self, event_id: str, at: float) -> bool:
        """Whether this time is within the window of a choice that has not expired."""
        each = self.open.get(event_id) or self.done.get(event_id)
        return each is not None and max(self.now, at) < each.deadline

    def said(self, event_id: str) -> tuple[Said, ...]:
        """What was said of a choice, in the order in which it was."""
        each = self.open.get(event_id) or self.done.get(event_id)
        return each.said if each else ()

    def heard(self, event_id: str, kind: str, order: str) -> Said | None:
        """What was said before under the same name.

        Where the earliest counts, a reward of no kind has the name of whatever it was that counted.
        """
        for said in self.said(event_id):
            if (said.kind, said.order) == (kind, order):
                return said
        done = self.done.get(event_id)
        if done and done.reward is not None and not kind and self.aggregation == "earliest":
            return Said("", "", done.reward, done.reward, done.reward_offset)
        return None

    def hear(self, event: Rewarded) -> Heard | None:
        """Of whom and of what this is; None if it was said before, or nobody knows. Ask before `settle`."""
        if not self.knows(event.event_id) or self.heard(event.event_id, event.kind, event.order):
            return None
        user, ad_id = event.user, event.ad_id
        if waiting := self.open.get(event.event_id):
            user, ad_id = waiting.choice.user_id, waiting.choice.ad_id
        return Heard(user, ad_id, event.kind, event.value, event.at)

    def _open(self, event_id: str, ad_id: str, opened: Open) -> None:
        self.open[event_id] = opened
        self.open_bytes += opened.size
        self.waiting[ad_id] = self.waiting.get(ad_id, 0) + 1

    def _leave(self, choice: Chosen) -> None:
        self.open_bytes -= self.open.pop(choice.event_id).size
        self.waiting[choice.ad_id] -= 1
        if not self.waiting[choice.ad_id]:
            del self.waiting[choice.ad_id]

    def _hear(self, event_id: str, said: Said) -> Iterator[Settled]:
        if waiting := self.open.get(event_id):
            self._say(waiting, said)
            if self._final(waiting.said):
                yield self._end(waiting)
            else:
                yield from self._give_up()
        elif (done := self.done.get(event_id)) and done.status is not Status.UNFILLED:
            late = {"reward": said.value, "reward_offset": said.offset}
            self.done[event_id] = msgspec.structs.replace(
                done, said=(*done.said, said), **late if done.status is Status.EXPIRED else {}
            )

    def _say(self, waiting: Open, said: Said) -> None:
        size = len(msgspec.msgpack.encode(said))
        waiting.said = (*waiting.said, said)
        waiting.size += size
        self.open_bytes += size

    def _worth(self, said: tuple[Said, ...]) -> float:
        """The same for any order, unless the order is what counts."""
        values = [each.value for each in said]
        match self.aggregation:
            case "sum":
                return min(self.high, max(self.low, fsum(values)))  # a plain sum depends on the order
            case "max":
                return max(values)
        return values[0]

    def _final(self, said: tuple[Said, ...]) -> bool:
        """Whether nothing that may still be said could change what this is worth."""
        if self.aggregation == "earliest":
            return True
        return self._worth(said) >= self.high and (self.aggregation == "max" or self.low >= 0)

    def _end(self, waiting: Open) -> Settled:
        """Settle with what was said until now, or with silence."""
        if not waiting.said:
            return self._close(waiting, Status.EXPIRED, self.default, silent=True)
        worth, last = self._worth(waiting.said), waiting.said[-1]
        return self._close(
            waiting, Status.REWARDED, worth, reward=worth, reward_offset=last.offset, said=waiting.said,
            deadline=waiting.deadline,
        )  # fmt: skip

    def _give_up(self) -> Iterator[Settled]:
        """Make room. What was said counts; a silence that was cut short is not learned from."""
        while len(self.open) > self.max_open or self.open_bytes > self.max_open_bytes:
            settled = self._end(next(iter(self.open.values())))
            self.given_up += 1
            if not settled.silent:
                yield settled

    def _close(
        self, waiting: Open, status: Status, value: float, silent: bool = False, **said: Any
    ) -> Settled:
        choice = waiting.choice
        self._leave(choice)
        self._remember(choice.event_id, Done(waiting.offset, status, request_id=choice.request_id, **said))
        return Settled(choice, waiting.ads, value, self.now, silent, waiting.offset)

    def _remember(self, event_id: str, done: Done) -> None:
        self.done[event_id] = done
        while len(self.done) > self.max_done:
            event_id, forgotten = self.done.popitem(last=False)
            self.forgotten += 1
            self._forget_request(forgotten.request_id, event_id)

    def _request(self, request_id: str, event_id: str) -> None:
        """The first decision under a request id stands, for as long as it is remembered."""
        if request_id:
            self.requests.setdefault(request_id, event_id)

    def _forget_request(self, request_id: str, event_id: str) -> None:
        if self.requests.get(request_id) == event_id:
            del self.requests[request_id]

    def dump(self) -> Saved:
        """Each ad once, each slate once, then the choices that refer to them."""
        ads, slates, waiting = _Numbers(), _Numbers(), []
        for each in self.open.values():
            number = slates.of(each.ads, lambda slate: [ads.of(ad) for ad in slate])
            waiting.append([each.offset, each.deadline, number, each.packed, each.seen, each.said])
        counts = [self.given_up, self.forgotten, self.erased]
        return [self.now, counts, ads.items, slates.items, waiting, self.done, self.requests]

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`."""
        self.now, counts, raw_ads, raw_slates, waiting, done, self.requests = saved
        self.given_up, self.forgotten, self.erased = counts
        ads = [Ad.load(raw) for raw in raw_ads]
        slates = [tuple(ads[number] for number in numbers) for numbers in raw_slates]
        self.open, self.open_bytes = OrderedDict(), 0
        self.waiting.clear()
        for offset, deadline, number, packed, seen, said in waiting:
            opened = Open(offset, deadline, packed, slates[number], _size(packed, slates[number]), seen)
            choice = opened.choice
            self._open(choice.event_id, choice.ad_id, opened)
            for each in msgspec.convert(said, tuple[Said, ...]):
                self._say(opened, each)
        self.done = OrderedDict(msgspec.convert(done, dict[str, Done]))


def _size(packed: bytes, ads: tuple[Ad, ...]) -> int:
    return len(packed) + 8 * len(ads)


class _Numbers:
    """Numbers equal things in the order in which they are first met. Most are the same object again."""

    def __init__(self) -> None:
        self.items: list[Any] = []
        self._known: dict[bytes, int] = {}
        self._same: dict[int, int] = {}  # identity -> number; all of them are alive for as long as we are

    def of(self, thing: Any, plain: Callable[[Any], Any] = lambda thing: thing) -> int:
        """The number of a thing, by what `plain` makes of it."""
        number = self._same.get(id(thing))
        if number is None:
            item = plain(thing)
            number = self._known.setdefault(msgspec.msgpack.encode(item), len(self.items))
            if number == len(self.items):
                self.items.append(item)
            self._same[id(thing)] = number
        return number
