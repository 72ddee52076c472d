"""How long choices wait while a user is erased: `python benchmarks/erasing.py`.

A real journal in a folder, in process, with a snapshot in use. A thread chooses at fixed times, so what waits
for the lock is seen in all that were to come meanwhile; a tenth is rewarded. In turn: nothing else for a
while, then users are erased one after the other, each of them scrubbed from the whole journal. `held` is how
long the scrubber had the engine's lock, from asking for it, which counts the wait for the disk in there.
"""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np

from banditads.choosing import Request
from banditads.engine import Engine
from banditads.erasing import Scrubber
from banditads.events import Ad
from banditads.journal.file import Journal
from banditads.signing import EventIds
from banditads.snapshots import Snapshots
from banditads.state import State

USERS, ADS = 500, 10


class Watched:
    """A lock that says how long its holder had it, if that is the thread that is watched."""

    def __init__(self) -> None:
        self.lock, self.thread, self.held = threading.Lock(), -1, list[float]()

    def __enter__(self) -> None:
        self.lock.acquire()
        self.since = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        took = time.perf_counter() - self.since
        self.lock.release()
        if threading.get_ident() == self.thread:
            self.held.append(took)


def visit(engine: Engine, number: int) -> None:
    """A choice, and now and then a reward."""
    event, _ = engine.choose(Request({"page": f"p{number % 7}"}, f"user-{number % USERS}"))
    if number % 10 == 0:
        engine.reward(event.event_id, float(number % 30 == 0))


@contextmanager
def traffic(engine: Engine, rate: float):
    """Visits at fixed times until the block ends; yields the list of their latencies, in seconds."""
    took: list[float] = []
    stop = threading.Event()

    def run() -> None:
        begin, number = time.perf_counter(), 0
        while not stop.is_set():
            due = begin + number / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            visit(engine, number)
            took.append(time.perf_counter() - due)
            number += 1

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield took
    finally:
        stop.set()
        thread.join()


@click.command(help=__doc__)
@click.option("--records", default=20_000, show_default=True, help="Visits in the journal before.")
@click.option("--erasures", default=10, show_default=True)
@click.option("--rate", default=100.0, show_default=True, help="Visits a second.")
@click.option("--folder", default=None, help="Where the journal lies; a temporary folder by default.")
def main(*, records: int, erasures: int, rate: float, folder: str | None) -> None:
    with TemporaryDirectory(dir=folder) as made:
        data, lock = Path(made), Watched()
        journal = Journal(str(data), fsync="everysec")
        engine = Engine(
            State("vw"), journal, ids=EventIds(b"k" * 32), snapshots=Snapshots(data, b"k" * 32), floor=0.01
        )
        engine.lock = lock  # type: ignore[assignment]
        engine.put_ads([Ad(f"ad-{number}", {"kind": f"k{number % 3}"}) for number in range(ADS)])
        engine.put_users({f"user-{number}": {"age": float(number % 80)} for number in range(USERS)})
        for number in range(records):
            visit(engine, number)
        scrubber, seconds = Scrubber(engine, threading.Event()), []
        alone: list[float] = []
        beside: list[float] = []
        lock.thread = threading.get_ident()
        for number in range(erasures):
            with traffic(engine, rate) as took:
                time.sleep(2.0)
            alone += took
            engine.erase(f"user-{number}")
            lock.held.clear() if not number else None
            with traffic(engine, rate) as took:
                begin = time.perf_counter()
                scrubber.scrub()
                seconds.append(time.perf_counter() - begin)
            beside += took
        journal.close()
    print("| while | visits | p50 ms | p99 ms | worst ms |\n|---|---|---|---|---|")
    for label, each in (("nothing", alone), ("a user is erased", beside)):
        p50, p99, worst = np.quantile(each, [0.5, 0.99, 1.0]) * 1e3
        print(f"| {label} | {len(each):,} | {p50:.1f} | {p99:.1f} | {worst:.1f} |")
    held = np.array(lock.held) * 1e3
    print(
        f"\nan erasure took {np.median(seconds):.1f} s; the lock was held {len(held)} times, "
        f"{np.median(held):.2f} ms in the median, {held.max():.1f} at most"
    )


if __name__ == "__main__":
    main()
