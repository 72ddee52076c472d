"""Erases users for good: what the journal says of them is replaced, and the state is made again without it.

That a user is forgotten is journaled and applied at once (`UserErased`). What is here follows soon after, for
all who were erased until then: every record about them becomes a `Scrubbed` of the same offset and time; the
journal is folded again from its beginning, so the model, too, is what it would be without them; old snapshots
go. Requests are served meanwhile: the work is done in slices, and the lock is held only for the last records.

What is left to do stands in the journal itself: the newest `UserErased` is the last record to be replaced,
and until then the state knows of it. So killed anywhere in here, the next start begins again and finishes.

A journal whose beginning was dropped cannot be folded again. Then the model and the counts stay as they are;
profiles, decisions, records and snapshots are erased all the same.

>>> traces = Traces({"anna": 3})
>>> traces.replace(0, encode(UserPut(7.0, "bert", {}, True)))
>>> decode(traces.replace(1, encode(UserPut(7.0, "anna", {}, True))))
Scrubbed(at=7.0)
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping

from . import replay
from .engine import Engine
from .errors import Damaged
from .events import (
    Chosen,
    Event,
    Impressed,
    Rewarded,
    Scrubbed,
    SetAside,
    Unfilled,
    UserErased,
    UserPut,  # noqa: F401  (for the doctest)
    decode,
    encode,
)
from .snapshots import Snapshots
from .state import State

log = logging.getLogger(__name__)

WORK, REST = 0.001, 0.003  # seconds of each in turn: a quarter of a processor, and no request waits for long
FEW = 100  # records that may be folded while everybody waits: about 5 ms
CHOSEN, ERASED = b"\xa6chosen", b"\xabuser_erased"  # how such a record goes on after its first byte


class Stopped(Exception):
    """The process is about to end. What is not finished is finished after the next start."""


class Traces:
    """Finds the records about some users, in one walk from the first record on.

    `users` says of each pseudonym where it was erased, the last time: who comes back begins anew. `decisions`
    are the ids of their decisions that were met so far; an id that was forgotten and given to somebody else's
    decision is somebody else's from there on.
    """

    def __init__(self, users: Mapping[str, int]) -> None:
        self.users = users
        self.decisions: set[str] = set()

    def replace(self, offset: int, record: bytes) -> bytes | None:
        """What is to stand here instead of a record; None if that is about nobody who was erased."""
        event = decode(record)
        return encode(Scrubbed(event.at)) if self._is_met(offset, event) else None

    def _is_met(self, offset: int, event: Event) -> bool:
        event_id = getattr(event, "event_id", "")
        user = getattr(event, "user", "") or getattr(event, "user_id", "")
        theirs = bool(user) and offset <= self.users.get(user, -1)
        if not isinstance(event, Chosen | Unfilled):
            return theirs or event_id in self.decisions
        (self.decisions.add if theirs else self.decisions.discard)(event_id)
        return theirs


class Scrubber:
    """Erases in one engine what is left of users; `stop` is set when the process is about to end."""

    def __init__(self, engine: Engine, stop: threading.Event) -> None:
        self.engine, self._stop = engine, stop
        self._clean = -1  # an offset at which no erasure waits
        self._rest, self._until = REST, 0.0

    def pending(self) -> bool:
        """Whether anything is left to do. Cheap as long as nobody is erased."""
        newest = self.engine.state.joiner.erased
        if newest == self._clean:
            return False
        try:
            waits = newest >= self.engine.journal.start and isinstance(self._event(newest), UserErased)
        except Damaged:
            if newest >= self.engine.journal.start:
                raise
            waits = False  # dropped just now, with all that came before
        if not waits:
            self._clean = newest
        return waits

    def scrub(self) -> int:
        """Erase what is left of all who were erased until now; how many records that were.

        Raises `Stopped`, and whatever the disk raises; then it can be done again from the beginning.
        """
        with self.engine.snapshot_lock:
            self.engine.scrubbing = True
        try:
            return self._scrub()
        finally:
            self.engine.scrubbing = False

    def _scrub(self) -> int:
        engine, journal, self._rest = self.engine, self.engine.journal, REST
        with engine.lock:
            newest, sealed = engine.state.joiner.erased, journal.seal()
        users, whole = self._users(newest), journal.start == 0
        traces = Traces(users)

        def replace(offset: int, record: bytes) -> bytes | None:
            return None if offset == newest else traces.replace(offset, record)

        done = journal.rewrite(replace, journal.start, sealed, self._pause)
        fold = _Fold(engine, () if whole else traces.decisions)
        while fold.follow(self._pause) > FEW:
            self._rest /= 2  # more came meanwhile than is good: faster

        def replace_rest(offset: int, record: bytes) -> bytes | None:
            if offset in fold.orphans:
                return encode(Scrubbed(decode(record).at))
            return replace(offset, record) if offset >= sealed else None

        with engine.snapshot_lock:  # nobody saves the old state any more
            if engine.snapshots:
                fold.save(engine.snapshots)
            with engine.lock:
                fold.follow()
                end = journal.seal()
                old, engine.state = engine.state, fold.state
            del old  # not under the lock: letting go of it takes milliseconds
            done += journal.rewrite(replace_rest, min([sealed, *fold.orphans]), end, self._pause)
            done += journal.rewrite(traces.replace, newest, newest + 1, self._pause)
            with engine.lock:
                if engine.state.joiner.erased == newest:  # as whoever folds the journal now would have it
                    engine.state.joiner.erased = -1
        if engine.snapshots:
            engine.snapshots.clear(but=engine.snapshot())
        log.info("%d users are erased; %d records about them are gone from the journal", len(users), done)
        if not whole:
            log.warning(
                "the journal does not go back to its beginning, so the model and the counts still know what "
                "was learned from users who are erased now"
            )
        return done

    def _users(self, newest: int) -> dict[str, int]:
        """Pseudonym -> offset of its last erasure, up to `newest`."""
        found: dict[str, int] = {}
        for offset, record in self.engine.journal.read(self.engine.journal.start):
            self._pause()
            if record.startswith(ERASED, 1) and isinstance(event := decode(record), UserErased):
                found[event.user] = offset
            if offset == newest:
                break
        return found

    def _event(self, offset: int) -> Event:
        return decode(next(self.engine.journal.read(offset))[1])

    def _pause(self) -> None:
        if time.monotonic() >= self._until:
            if self._stop.wait(self._rest):
                raise Stopped
            self._until = time.monotonic() + WORK


class _Fold:
    """The state that will take the place of the present one, folded from the journal as it will be.

    What is said about a decision that nobody made was said about one that is erased: late rewards may have
    come since, and whoever was killed in the middle may have left some. It is not read; `orphans` are the
    offsets. `forgotten` are the decisions to forget where the journal does not go back to its beginning.
    """

    def __init__(self, engine: Engine, forgotten: Collection[str]) -> None:
        self.journal, self.forgotten = engine.journal, forgotten
        self.orphans: set[int] = set()
        self.saved = b""  # what it begins with, where that is not nothing
        if self.journal.start > 0:
            with engine.lock:
                self.saved = engine.state.dump()
        self.state = State.of(engine.state.identity)
        self._begin(self.state)

    def follow(self, pause: Callable[[], None] = lambda: None) -> int:
        """Fold in what the journal has, pausing between records; how many came meanwhile."""

        def read(start: int) -> Iterator[tuple[int, bytes]]:
            for offset, record in self.journal.read(start):
                pause()
                yield offset, self._without_orphan(offset, record)

        self.state = replay.refold(read, self.state, self._begin)
        return self.journal.end - self.state.applied

    def save(self, snapshots: Snapshots) -> None:
        """Leave no snapshot that knows what the journal no longer says.

        Without its beginning the journal needs one to begin with: that is written first.
        """
        if self.saved:
            self.journal.flush()
            snapshots.save(self.state.applied, self.state.dump())
            snapshots.clear(but=self.state.applied)
        else:
            snapshots.clear()

    def _begin(self, state: State) -> None:
        self.state = state
        if self.saved:
            state.load(self.saved)
            state.joiner.forget(self.forgotten)

    def _without_orphan(self, offset: int, record: bytes) -> bytes:
        if record.startswith(CHOSEN, 1):  # most bytes are in these
            return record
        match event := decode(record):
            case Rewarded(event_id=event_id) | Impressed(event_id=event_id) | SetAside(event_id=event_id):
                if not self.state.joiner.knows(event_id) and event_id not in self.state.skip:
                    self.orphans.add(offset)
                    return encode(Scrubbed(event.at))
        return record
