"""Bugs on purpose: `python planted.py BUG serve ...` is `banditads serve ...` with that bug in it.

The fault campaign must notice each of them; one that it does not notice is a hole in the campaign.
"""

from __future__ import annotations

import errno
import fcntl
import hmac
import os
import struct
import sys
import threading
import time
from contextlib import suppress

import msgspec

from banditads import cli, directory, engine, events, joiner, signing, snapshots, state
from banditads.journal import file as journal

BUGS = {}


def bug(function):
    """A bug is a function that patches it in; its docstring says what it is."""
    BUGS[function.__name__] = function
    return function


def replace(owner, name, make):
    """Put `make(what was there)` in its place."""
    setattr(owner, name, make(getattr(owner, name)))


@bug
def no_fsync():
    """Nothing is ever brought to the disk."""
    os.fsync = os.fdatasync = lambda number: None


@bug
def ack_before_write():
    """A record is written a little after it was acknowledged."""

    def append(self, payload):
        offset, self.end = self.end, self.end + 1
        self.waiting = [*getattr(self, "waiting", []), (offset, payload)]
        if len(self.waiting) > 3:
            os.write(self._file, b"".join(journal._record(self._salt_crc, *each) for each in self.waiting))
            self.waiting = []
        return offset

    journal.Journal.append = append


@bug
def ack_before_fsync():
    """A reward is acknowledged while the disk is still being asked."""

    def make(sync):
        def later(self, offset):
            threading.Timer(0.2, sync, (self, offset)).start()

        return later

    replace(journal.Journal, "sync", make)


@bug
def snapshot_off_by_one():
    """A snapshot claims to know one event more than it does."""

    def make(dump):
        def more(self):
            applied, rest = msgspec.msgpack.decode(dump(self))
            return msgspec.msgpack.encode([applied + 1, rest])

        return more

    replace(state.State, "dump", make)


@bug
def rename_without_directory_fsync():
    """A new name is not brought to the disk."""
    for module in (directory, journal, snapshots, signing):
        module.fsync_folder = lambda folder: None


@bug
def snapshot_without_duplicates():
    """What has settled is not in the snapshot."""

    def make(dump):
        def less(self):
            saved = dump(self)
            saved[5] = {}
            return saved

        return less

    replace(joiner.Joiner, "dump", make)


@bug
def snapshot_without_request_ids():
    """Which request got which decision is not in the snapshot."""

    def make(dump):
        def less(self):
            saved = dump(self)
            saved[6] = {}
            return saved

        return less

    replace(joiner.Joiner, "dump", make)


@bug
def learns_one_behind():
    """Each decision is learned when the next one has settled, and what waits is in no snapshot."""

    def make(learn):
        def behind(self, settled):
            previous, self.behind = getattr(self, "behind", None), settled
            if previous:
                learn(self, previous)

        return behind

    replace(state.State, "_learn", make)


@bug
def torn_tail_not_truncated():
    """Half a record is left where the next one goes."""

    def make(open_last):
        def opened(self):
            real, os.ftruncate = os.ftruncate, lambda number, size: None
            try:
                open_last(self)
            finally:
                os.ftruncate = real

        return opened

    replace(journal.Journal, "_open_last", make)


@bug
def no_checksum():
    """Every checksum fits."""

    class Any(int):
        def __eq__(self, other):
            return True

        __hash__ = int.__hash__

    replace(journal, "_crc", lambda real: lambda *what: Any(real(*what)))
    hmac.compare_digest = lambda one, other: True


@bug
def fsync_error_ignored():
    """A failed fdatasync is passed over."""

    def make(real):
        def careless(number):
            with suppress(OSError):
                real(number)

        return careless

    replace(os, "fdatasync", make)


@bug
def fsync_error_retried():
    """A failed fdatasync is tried again until it succeeds."""

    def make(real):
        def stubborn(number):
            while True:
                try:
                    return real(number)
                except OSError as error:
                    if error.errno != errno.EIO:
                        raise

        return stubborn

    replace(os, "fdatasync", make)


@bug
def applied_twice_after_recovery():
    """The last reward before a crash is counted again."""

    def make(catch_up):
        def twice(self):
            catch_up(self)
            last = next((e for e in reversed(list(journal.scan(self.journal.folder))) if True), None)
            if last and isinstance(event := events.decode(last[1]), events.Rewarded):
                done = self.state.joiner.done.get(event.event_id)
                counts = self.state.stats.total
                if done:
                    counts.rewards += 1
                    counts.reward_sum += event.value
                    for ad in list(self.state.stats.ads)[:1]:
                        self.state.stats.ads[ad].rewards += 1

        return twice

    replace(engine.Engine, "catch_up", make)


@bug
def half_a_record_stays():
    """What a full disk has taken of a record is not taken back."""
    journal.Journal._take_back = lambda self: None


@bug
def lock_ignored():
    """Everybody gets the lock."""
    fcntl.flock = lambda file, how: None


@bug
def expiry_by_the_wall_clock():
    """Whether a decision has expired is asked of the clock on the wall, not of the journal."""

    def make(settle):
        def by_wall(self, offset, event, ads):
            self.now = time.time()
            return settle(self, offset, msgspec.structs.replace(event, at=time.time()), ads)

        return by_wall

    replace(joiner.Joiner, "settle", make)


@bug
def snapshot_before_flush():
    """A snapshot is written while the journal is not yet on the disk."""

    def make(save):
        def first(self):
            real, self.journal.flush = self.journal.flush, lambda: None
            try:
                return save(self)
            finally:
                self.journal.flush = real

        return first

    replace(engine.Engine, "snapshot", make)


@bug
def rounded_probabilities():
    """The journal has the probabilities in single precision."""

    def make(encode):
        def rounded(event):
            if isinstance(event, events.Chosen):
                numbers = struct.unpack(f"<{len(event.ads)}d", event.pmf)
                single = struct.unpack(f"<{len(numbers)}f", struct.pack(f"<{len(numbers)}f", *numbers))
                event = msgspec.structs.replace(event, pmf=struct.pack(f"<{len(single)}d", *single))
            return encode(event)

        return rounded

    replace(events, "encode", make)


@bug
def no_snapshot_at_the_end():
    """SIGTERM ends it without saving."""
    engine.Engine.snapshot = lambda self: 0


if __name__ == "__main__":
    if "faketime" in os.environ.get("LD_PRELOAD", ""):
        time.sleep = lambda seconds: (
            threading.Event().wait(seconds) and None
        )  # libfaketime breaks the real one
    if (name := sys.argv.pop(1)) != "none":
        BUGS[name]()
    cli.main()
