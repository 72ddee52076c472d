"""A state, a journal and one lock. Everything that changes an ad server at run time is here.

Writing is: decide, append, catch up. Recovering and following are: catch up. What is refused is refused
before it is journaled; what a reward waits for, the disk, it waits for outside the lock.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from itertools import islice
from typing import NamedTuple, Protocol, TypeVar

import msgspec

from . import diagnosis, events, replay
from .choosing import Request, Slate, choose, spread
from .diagnosis import Alarm
from .errors import Conflict, Damaged, DiskFailure, Expired, Invalid, Refused, Unavailable, Unknown
from .events import Act, Ad, Chosen, Event, Features, Unfilled
from .forking import Copy
from .joiner import MAX_SAID, Done, Said, Status
from .journal import Journal
from .parsing import MAX_ADS, SLICE, in_slices
from .snapshots import Snapshots
from .state import State

log = logging.getLogger(__name__)

LATE = "the reward came after its window: written down, not learned from"
AT_ONCE = 100  # users told of while everybody else waits: about a millisecond
Told = TypeVar("Told")


class Receipt(NamedTuple):
    """What became of a reward, and where it stands in the journal.

    `applied`: it counts. `duplicate`: it did already. `noted`: something else counts for this choice.
    """

    status: str
    offset: int


class Answer(NamedTuple):
    """A choice and where it stands in the journal: None when it could not be written down.

    Then it cannot be rewarded and is not learned from.
    """

    event: Chosen | Unfilled
    offset: int | None


class Decision(NamedTuple):
    """What was decided and what became of it."""

    event: Chosen | Unfilled
    status: Status
    reward: float | None
    said: tuple[Said, ...] = ()


class Ids(Protocol):
    """Makes event ids and knows its own again."""

    def mint(self, at: float) -> str:
        """A new one that nobody can guess."""

    def minted_at(self, event_id: str) -> float | None:
        """When we made it; None if we did not."""


class Engine:
    """One writer of one journal.

    Parameters
    ----------
    state
        As it was when the journal was empty, or as a snapshot had it; what is newer is read at once.
    ids
        Makes event ids.
    clock
        Seconds since the epoch; read once for each request.
    floor, salt, max_scored, proposals
        See `choosing`.
    snapshots
        Where to keep them; None keeps none.
    keep_journal
        Never drop records that the older snapshot covers.
    promote, promote_after
        `auto`: a challenger that certainly earns more, after so many decisions, is promoted. `ask`: an alarm
        says so. `never`: only the figures do.
    watch
        Alarms of what the state does not know of.
    """

    def __init__(
        self,
        state: State,
        journal: Journal,
        *,
        ids: Ids,
        clock: Callable[[], float] = time.time,
        floor: float = 0.0,
        salt: str = "",
        max_scored: int = 1000,
        proposals: int = 256,
        snapshots: Snapshots | None = None,
        keep_journal: bool = True,
        promote: str = "ask",
        promote_after: int = 1000,
        watch: Callable[[], Sequence[Alarm]] = tuple,
    ) -> None:
        self.state, self.journal, self.ids, self.clock = state, journal, ids, clock
        self.floor, self.salt, self.snapshots, self.keep_journal = floor, salt, snapshots, keep_journal
        self.max_scored, self.proposals = max_scored, proposals
        self.promotes, self.promote_after = promote, promote_after
        self.watch = watch
        self.lock = threading.Lock()
        self.put_lock = threading.Lock()  # taken before `lock`: one import after the other
        self.snapshot_lock = threading.Lock()
        self.snapshot_offset = state.applied
        self.scrubbing = (
            False  # users are being erased from the journal, which is not to be dropped meanwhile
        )
        self.unwritten = 0  # choices served from memory because the disk refused them
        self.broken = ""  # why there is no state any more; empty while there is
        self.refusal = ""  # why the newest event could not be written down; empty when it was
        self.catch_up()

    def catch_up(self) -> None:
        """Fold in whatever the journal has and we have not."""
        self.state = replay.refold(self.journal.read, self.state, self._begin)
        self._set_aside()

    def _begin(self, state: State) -> None:
        recover(state, self.journal, self.snapshots)

    def _start_over(self) -> None:
        """Make the state again from what is written down. If even that fails, the process must end."""
        try:
            fresh = State.of(self.state.identity)
            self._begin(fresh)
            self.state = replay.refold(self.journal.read, fresh, self._begin)
        except Exception as error:
            self.broken = f"the state cannot be made again: {error}"
            raise DiskFailure(self.broken) from error
        self._set_aside()

    def _set_aside(self) -> None:
        """Journal what must not be learned: so far that is known only because it was tried."""
        for event_id in sorted(self.state.skip):
            with suppress(Unavailable, DiskFailure):  # the next start finds out in the same way
                self._record(events.SetAside(self.clock(), event_id))

    def _record(self, event: events.Event) -> int:
        """Append an event and come to know it. When this returns, the model has learned."""
        if self.broken:
            raise DiskFailure(self.broken)
        try:
            offset = self.journal.append(events.encode(event))
        except (Unavailable, DiskFailure) as error:
            if not self.refusal:  # once, not at every request: the log may be on the same full disk
                log.error("nothing can be written down; choices are served from memory: %s", error)
            self.refusal = str(error)
            raise
        if self.refusal:
            log.warning("events are written down again")
            self.refusal = ""
        try:
            self.state.apply(offset, event)
        except Exception as error:  # a state that knows half an event is of no more use
            log.error("event %d could not be learned: %s", offset, error)
            self._start_over()
        return offset

    def choose(self, request: Request, event_id: str = "") -> Answer:
        """Pick an ad. The same `event_id` or `request_id` again gets the same answer and is one event."""
        with self.lock:
            at = self.clock()
            known = event_id or self.state.joiner.requests.get(request.request_id, "")
            if waiting := self.state.joiner.open.get(known):
                return Answer(waiting.choice, waiting.offset)
            done = self.state.joiner.done.get(known)
            if not done:
                return self._choose(at, request, event_id or self.ids.mint(at))
        return self._read_back(done)  # from the disk: not in the lock

    def _choose(self, at: float, request: Request, event_id: str) -> Answer:
        event = choose(
            self.state,
            at=at,
            event_id=event_id,
            request=request,
            floor=self.floor,
            salt=self.salt,
            max_scored=self.max_scored,
            proposals=self.proposals,
        )
        try:
            return Answer(event, self._record(event))
        except (Unavailable, DiskFailure):
            self.unwritten += 1
            return Answer(event, None)

    def rank(self, request: Request, n: int) -> list[tuple[Answer, tuple[Ad, ...]]]:
        """Choose up to `n` times, each time among those not chosen yet; with each, the ads it was among.

        So every place is a decision of its own, with the exact probability of its ad given those before. From
        the second on the context says which place it is, as the word `slot`, because what stands further down
        earns less. The first may be `Unfilled`, and is then alone.
        """
        found: list[tuple[Answer, tuple[Ad, ...]]] = []
        while len(found) < n:
            with self.lock:
                at = self.clock()
                answer = self._choose(at, request, self.ids.mint(at))
                event = answer.event
                if isinstance(event, Unfilled):  # later on: what was left has ended, or was removed
                    return found or [(answer, ())]
                found.append((answer, self.state.catalog.resolve(event)))
            if len(event.ads) == 1:
                break
            slot = {"slot": str(len(found) + 1)}
            request = msgspec.structs.replace(
                request,
                exclude=request.exclude | {event.ad_id},
                context=dict(sorted({**request.context, **slot}.items())),
            )
        return found

    def predict(self, request: Request) -> Slate:
        """The distribution that `choose` would draw from. No side effect of any kind.

        Where more than `max_scored` ads are eligible, which ones are proposed depends on an event id. Here is
        none: these are the proposals of the id "", the same for the same context.
        """
        with self.lock:
            return spread(
                self.state,
                at=self.clock(),
                request=request,
                floor=self.floor,
                salt=self.salt,
                max_scored=self.max_scored,
                proposals=self.proposals,
            )

    def reward(
        self,
        event_id: str,
        value: float,
        kind: str = "",
        order: str = "",
        amount: float = 0.0,
        *,
        hold: Callable[[int], None] | None = None,
    ) -> Receipt:
        """Say what a choice was worth. Returns when the reward is learned and durable.

        `kind`, `order` and `amount` as in `events.Rewarded`. Of each kind and order there is one. `hold`
        is given the offset instead of waiting for the disk, by who tells nobody before that is durable.
        """
        receipt, late = self._take(event_id, value, kind, order, amount)
        (hold or self.journal.sync)(receipt.offset)
        if late:
            raise Expired(LATE, "event_id")
        return receipt

    def rewards(self, given: Iterable[tuple[str, float]]) -> list[Receipt | Exception]:
        """Many as if one by one, but the disk is waited for once. What each would have got or raised."""
        taken: list[tuple[Receipt, bool] | Exception] = []
        for event_id, value in given:  # others may come between: the lock is not kept
            try:
                taken.append(self._take(event_id, value))
            except (Refused, DiskFailure) as error:
                taken.append(error)
        offsets = [each[0].offset for each in taken if isinstance(each, tuple)]
        failed: Exception | None = None
        try:
            if offsets:
                self.journal.sync(max(offsets))
        except (Refused, DiskFailure) as error:
            failed = error
        said: list[Receipt | Exception] = []
        for each in taken:
            if isinstance(each, Exception):
                said.append(each)
            else:
                said.append(failed or (Expired(LATE, "event_id") if each[1] else each[0]))
        return said

    def _take(
        self, event_id: str, value: float, kind: str = "", order: str = "", amount: float = 0.0
    ) -> tuple[Receipt, bool]:
        low, high = self.state.reward_min, self.state.reward_max
        if not low <= value <= high:
            raise Invalid(f"reward must lie between {low:g} and {high:g}", "reward")
        whose = self._whose(event_id, kind, order)
        with self.lock:
            return self._reward(event_id, value, kind, order, amount, whose=whose)

    def _reward(
        self, event_id: str, value: float, kind: str, order: str, amount: float, *, whose: tuple[str, str]
    ) -> tuple[Receipt, bool]:
        """(what became of it, whether it was too late)."""
        at, joiner = self.clock(), self.state.joiner
        if not joiner.knows(event_id):
            raise self._unknown(event_id)
        done = joiner.done.get(event_id)
        if done and done.status is Status.UNFILLED:
            raise Unknown("nothing was shown under this event id", "event_id")
        if said := joiner.heard(event_id, kind, order):
            expired = done is not None and done.status is Status.EXPIRED
            if said.amount != (amount if kind else value) and not expired:
                raise Conflict(
                    f"another {kind or 'reward'} was already given for this event",
                    "value" if kind else "reward",
                )
            return Receipt("duplicate", said.offset), expired
        if len(joiner.said(event_id)) >= MAX_SAID:
            raise Conflict(f"{MAX_SAID} rewards were already given for this event", "event_id")
        late = not joiner.in_time(event_id, at)
        if whose[0] not in self.state.users.profiles:  # or was erased meanwhile
            whose = "", ""
        offset = self._record(events.Rewarded(at, event_id, float(value), kind, order, amount, *whose))
        return Receipt("noted" if done else "applied", offset), late

    def _whose(self, event_id: str, kind: str, order: str) -> tuple[str, str]:
        """The user and the ad of a decision that settled, of which this was not said before; empty of others.

        Reads the disk: not in the lock. What waits is known without.
        """
        done = self.state.joiner.done.get(event_id)
        if not done or not self.state.users.profiles or self.state.joiner.heard(event_id, kind, order):
            return "", ""
        try:
            choice = self._read_back(done).event
        except (Refused, Damaged, OSError):  # what is said of it counts all the same
            return "", ""
        return (choice.user_id, choice.ad_id) if isinstance(choice, Chosen) else ("", "")

    def impress(self, event_id: str) -> bool:
        """The ad of a choice was seen. Counted once, while the choice waits for its reward; whether now."""
        with self.lock:
            waiting = self.state.joiner.open.get(event_id)
            if waiting is None and event_id not in self.state.joiner.done:
                raise self._unknown(event_id)
            if waiting is None or waiting.seen:
                return False
            self._record(events.Impressed(self.clock(), event_id, waiting.choice.ad_id))
            return True

    def put_ads(self, ads: Sequence[Ad]) -> int:
        """Add ads to the catalog or replace them. Returns when that is durable.

        They are refused as a whole. Into a catalog that is in use many come in slices, so that no request
        waits for all of them: 20,000 at once took 100 ms. Should the disk refuse one, those before it stay.
        """
        with self.put_lock:
            with self.lock:
                offset = self.state.applied - 1  # should there be none
                known, new = self.state.catalog.ads.keys(), {ad.id for ad in ads}
                if len(known) + len(new) > MAX_ADS and len(known | new) > MAX_ADS:
                    raise Invalid(f"the catalog may hold at most {MAX_ADS} ads", "id")
                together = SLICE if known else len(ads)
            coming = iter(ads) if len(ads) <= together else in_slices(ads)
            while some := tuple(islice(coming, together)):
                with self.lock:
                    offset = self._record(events.AdsPut(self.clock(), some))
        self.journal.sync(offset)
        return offset

    def remove_ad(self, ad_id: str) -> int:
        """Take an ad out of the catalog. Returns when that is durable."""
        with self.lock:
            if ad_id not in self.state.catalog.ads:
                raise Unknown(f"there is no ad {ad_id!r}", "id")
            offset = self._record(events.AdRemoved(self.clock(), ad_id))
        self.journal.sync(offset)
        return offset

    def put_users(self, known: Mapping[str, Features | None]) -> int | None:
        """Say what is known of users, or replace it; None of one who does not consent, whose past goes too.

        Users are pseudonyms. Returns when that is durable: the newest offset, None if nothing had to change.
        """

        def put(at: float, user: str, attributes: Features | None) -> Event | None:
            if attributes is None and user not in self.state.users.profiles:
                return None  # nothing is known, and not even that is written down
            return events.UserPut(at, user, attributes or {}, consent=attributes is not None)

        return self._record_each(known, put)

    def act(self, acts: Mapping[str, Sequence[Act]]) -> tuple[int, int | None]:
        """Take down what users did: how many acts, and the newest offset. Returns when that is durable.

        Of a user without consent nothing is taken down. What one user did is one event, all or nothing.
        """
        kept = 0

        def acted(at: float, user: str, done: Sequence[Act]) -> Event | None:
            nonlocal kept
            if user not in self.state.users.profiles:
                return None
            kept += len(done)
            return events.UserActed(at, user, tuple(done))

        offset = self._record_each(acts, acted)
        return kept, offset

    def now(self) -> float:
        """Seconds since the epoch, by the clock that events get their time from."""
        with self.lock:
            return self.clock()

    def erase(self, user: str) -> int:
        """Forget a user, known or not: what was decided for them may be written down. Durable on return."""
        with self.lock:
            offset = self._record(events.UserErased(self.clock(), user))
        self.journal.sync(offset)
        return offset

    def _record_each(
        self, said: Mapping[str, Told], event: Callable[[float, str, Told], Event | None]
    ) -> int | None:
        """Record an event for each user of whom there is one to record; the newest offset, once durable."""
        offset, users, count = None, iter(said.items()), 0
        try:
            while some := list(islice(users, AT_ONCE)):
                with self.lock:
                    at = self.clock()
                    for user, each in some:
                        if made := event(at, user, each):
                            offset = self._record(made)
                        count += 1
        except Unavailable as error:
            if not count:
                raise
            raise Unavailable(
                f"only the first {count} users of this request were written down: {error}"
            ) from error
        if offset is not None:
            self.journal.sync(offset)
        return offset

    def tick(self) -> bool:
        """Let silence be known: journal the time if a choice has run out of it. Whether it was journaled.

        After a refusal it is journaled in any case, to find out whether the disk takes events again.
        """
        with self.lock:
            at, oldest = self.clock(), self.state.joiner.oldest()
            self._set_aside()
            if self.promotes == "auto" and (better := self.better()):
                with suppress(Unavailable, DiskFailure):  # it will be better at the next tick too
                    self._promote(better[0], "rule")
            if not self.refusal and (oldest is None or at < oldest.deadline):
                return False
            self._record(events.Ticked(at))
            return True

    def shown(self, choice: Chosen) -> Ad:
        """The ad of a choice: as it was chosen, or, once that has settled, as it is now."""
        waiting = self.state.joiner.open.get(choice.event_id)
        if waiting:
            return waiting.ads[choice.pick]
        inline = {ad.id: ad for ad in choice.inline}
        return inline.get(choice.ad_id) or self.state.catalog.ads.get(choice.ad_id) or Ad(choice.ad_id)

    def amount_of_ad(self, event_id: str, kind: str, order: str, feature: str) -> float:
        """What the ad of a choice says under this name: 0 where that is no number.

        Of something that was said before, what it said then. Raises `Unknown`.
        """
        if said := self.state.joiner.heard(event_id, kind, order):
            return said.amount
        event = self.decision(event_id).event
        value = self.shown(event).features.get(feature, 0.0) if isinstance(event, Chosen) else 0.0
        return 0.0 if isinstance(value, str) else value

    def trouble(self) -> str:
        """Why rewards are not accepted just now; empty when they are."""
        return self.failed() or self.refusal

    def failed(self) -> str:
        """Why this process must end; empty while it need not."""
        return self.journal.poisoned or self.broken

    def alarms(self) -> list[Alarm]:
        """What somebody should look at, while the server goes on."""
        asked = []
        if self.promotes == "ask" and self.state.challengers.policies:  # whoever has none waits for nobody
            with self.lock:
                asked = self.better()
        return [*diagnosis.alarms(self.state), *diagnosis.challenged(asked), *self.watch()]

    def better(self) -> list[str]:
        """Challengers that certainly earn more than who decides, the surest first; for who holds the lock."""
        challengers = self.state.challengers
        return challengers.better(self.promote_after) if challengers.policies else []

    def promote(self, name: str) -> int:
        """Let a challenger decide from now on, whatever its figures. Returns when that is durable."""
        with self.lock:
            challengers = self.state.challengers
            if name == challengers.champion:
                raise Conflict(f"{name!r} decides already", "id")
            if name not in challengers.policies:
                raise Unknown(f"there is no policy {name!r} here", "id")
            if why := challengers.failed.get(name):
                raise Conflict(f"{name!r} cannot be used: {why}", "id")
            offset = self._promote(name, "request")
        self.journal.sync(offset)
        return offset

    def _promote(self, name: str, by: str) -> int:
        challengers, span = self.state.challengers, self.state.reward_max - self.state.reward_min
        gain, low = challengers.gain(name)  # of rewards within [0, 1]
        counted, champion = challengers.own.earned.count, challengers.champion
        gain, low = gain * span, max(low, -1.0) * span  # no policy can earn less
        offset = self._record(events.Promoted(self.clock(), name, champion, by, counted, gain, low))
        why = "because it is certainly better" if by == "rule" else "as was requested"
        more, least = (round(each, 6) + 0.0 for each in (gain, low))
        known = f"decisions counted: {counted:,}; it earns {more:+g} each, certainly {least:+g} at least"
        log.warning("%s decides instead of %s, %s; %s", name, champion, why, known if counted else "untried")
        return offset

    def decision(self, event_id: str) -> Decision:
        """What was decided under this id, and what became of it."""
        with self.lock:
            if waiting := self.state.joiner.open.get(event_id):
                return Decision(waiting.choice, Status.PENDING, None, waiting.said)
            done = self.state.joiner.done.get(event_id)
            if not done:
                raise self._unknown(event_id)
        return Decision(self._read_back(done).event, done.status, done.reward, done.said)

    def _read_back(self, done: Done) -> Answer:
        """A decision as it stands in the journal."""
        try:
            event = events.decode(next(self.journal.read(done.offset))[1])
        except Damaged:
            if done.offset < self.journal.start:  # its segment was dropped, perhaps just now
                raise Expired("this decision is no longer in the journal", "event_id") from None
            raise
        if not isinstance(event, Chosen | Unfilled):  # scrubbed
            raise Unknown("this decision was erased", "event_id")
        return Answer(event, done.offset)

    def _unknown(self, event_id: str) -> Unknown | Expired:
        """The refusal for an id that is not remembered: ours and old, or never ours."""
        made = self.ids.minted_at(event_id)
        if made is not None and made + self.state.joiner.wait <= self.clock():
            return Expired("this event is too old and no longer remembered", "event_id")
        return Unknown("no such event", "event_id")

    def snapshot(self) -> int:
        """Save the state as it is now; return its offset. Requests wait only while the process is copied."""
        if self.snapshots is None:
            raise Invalid("this server keeps no snapshots")
        with self.snapshot_lock:
            offset, prepared = self._prepare(self.snapshots)
            if offset:
                try:
                    drop = prepared()
                    self.journal.flush()  # what a snapshot knows, the disk must have
                    self.snapshots.publish(offset, drop)
                except BaseException:
                    self.snapshots.abandon(offset)
                    raise
                if not (self.keep_journal or self.scrubbing):
                    self.journal.drop_before(self.snapshots.older_offset())
            self.snapshot_offset = offset
        return offset

    def _prepare(self, snapshots: Snapshots) -> tuple[int, Callable[[], list[str]]]:
        """(offset of the state as it is now, what waits until that is written). See `Snapshots.prepare`."""
        with self.lock:
            offset = self.state.applied
            if not offset:
                return 0, list
            try:
                copy = Copy(lambda: "\n".join(snapshots.prepare(offset, self.state.dump())).encode())
            except OSError as error:
                log.warning("requests wait for this snapshot, the process cannot be copied: %s", error)
                saved = self.state.dump()
                return offset, lambda: snapshots.prepare(offset, saved)
        return offset, lambda: copy.result().decode().split()


def recover(state: State, journal: Journal, snapshots: Snapshots | None) -> None:
    """Load the newest snapshot that is good and that the journal goes on from; the rest is catching up.

    Raises `Damaged` when nothing leads to the present.
    """
    for offset, saved in snapshots.load() if snapshots else ():
        if offset > journal.end:
            raise Damaged(
                f"the journal ends at offset {journal.end}, before the snapshot at {offset}: its newest "
                "segments are missing. Put them back, or remove that snapshot to go on without them"
            )
        if offset >= journal.start:
            state.load(saved)
            return
    if journal.start > 0:
        raise Damaged(
            f"the journal begins at offset {journal.start} and no good snapshot reaches that far. Put back "
            "the missing segments or a snapshot"
        )
