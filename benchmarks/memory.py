"""Whether memory stops growing: `python benchmarks/memory.py`; what each thing takes: with `--each`.

Choices that nobody rewards, each by a new visitor with a new request id and a new word in the context,
through a real engine, journal and snapshots. Time is counted, not waited for: 1,000 choices are a second.
Ends with 1 if memory still grew: if in the last 40 % of the run its median was 2 % higher in the second half.

With `--each`: how much larger a fresh process has become per ad, per decision that waits, and per settled
one. Ads have 8 features, visitors 15; every decision has a user id, a request id, and values of its own, as
if it had come in a request.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory, mkdtemp

import click
import msgspec
from commit import context, make_ads

from banditads import events, policies
from banditads.choosing import Request
from banditads.engine import Engine
from banditads.events import Ad
from banditads.journal import connect
from banditads.signing import EventIds
from banditads.snapshots import Snapshots
from banditads.state import State

KEY = b"k" * 32
LAST, GROWTH = 0.4, 0.02  # a plateau: memory goes up and down by some MB, but its median grows by less


def resident() -> float:
    """MB of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def rows(quick: bool) -> list[tuple[str, ...]]:
    """What each thing takes, each in a process of its own; the head first."""
    found: list[tuple[str, ...]] = [("each", "bytes")]
    for name, weigh in WEIGHED.items():
        with ProcessPoolExecutor(1, get_context("spawn")) as process:
            size = process.submit(weigh, 2_000 if quick else 50_000).result()
        found.append((name, f"{size:,.0f}"))
    return found


def _engine(n_ads: int) -> Engine:
    engine = Engine(State("uniform"), connect("file:" + mkdtemp(), fsync="everysec"), ids=EventIds(KEY))
    engine.put_ads(make_ads(n_ads))
    return engine


def _asked(number: int) -> Request:
    raw = msgspec.json.encode(context(number))  # strings of its own, as those of a request are
    return Request(msgspec.json.decode(raw), f"user-{number}", request_id=f"request-{number}")


def _weigh(work: Callable[[], object], count: int) -> float:
    gc.collect()
    before = resident()
    work()
    gc.collect()
    return (resident() - before) * 1e6 / count


def weigh_ads(count: int) -> float:
    """Bytes of an ad in the catalog."""
    engine, raw = _engine(1), events.encode(events.AdsPut(0.0, tuple(make_ads(count))))
    return _weigh(lambda: engine.state.apply(1, events.decode(raw)), count)


def weigh_kept(count: int) -> float:
    """Bytes of an ad that the policy `vw` keeps ready."""
    policy, ads = policies.make("vw", kept_ads=count), make_ads(count // 10)
    policy.pmf(context(1), ads[:1])
    return _weigh(lambda: policy.pmf(context(1), ads), count // 10)  # asked itself: it keeps all of them


def weigh_waiting(n_ads: int, count: int) -> float:
    """Bytes of a decision that waits."""
    engine = _engine(n_ads)
    engine.choose(_asked(0))
    return _weigh(lambda: [engine.choose(_asked(n)) and None for n in range(1, count)], count)


def weigh_settled(count: int) -> float:
    """Bytes of a settled decision that is remembered."""
    engine = _engine(10)

    def work() -> None:
        for number in range(count):
            engine.reward(engine.choose(_asked(number)).event.event_id, 1.0)

    return _weigh(work, count)


WEIGHED: dict[str, Callable[[int], float]] = {
    "ad in the catalog": weigh_ads,
    "ad that `vw` keeps ready, besides": weigh_kept,
    "decision that waits, among 10 ads": partial(weigh_waiting, 10),
    "decision that waits, among 100 ads": partial(weigh_waiting, 100),
    "settled decision": weigh_settled,
}


@click.command(help=__doc__)
@click.option("--each", is_flag=True, help="What each thing takes, and no more.")
@click.option("--policy", default="uniform", show_default=True)
@click.option("--choices", default=5_000_000, show_default=True)
@click.option("--ads", "n_ads", default=10, show_default=True, help="In the catalog, or inline.")
@click.option("--inline", is_flag=True, help="Each choice brings ads of its own.")
@click.option("--wait", default=100.0, show_default=True, help="Seconds; 1,000 choices are one.")
@click.option("--max-open", default=1_000_000, show_default=True)
@click.option("--max-open-bytes", default=2**30, show_default=True)
@click.option("--max-done", default=100_000, show_default=True)
@click.option("--every", default=250_000, show_default=True, help="Choices between two rows and snapshots.")
@click.option("--snapshots/--no-snapshots", default=True, show_default=True)
def main(
    *, each: bool, policy: str, choices: int, n_ads: int, inline: bool, wait: float, max_open: int,
    max_open_bytes: int, max_done: int, every: int, snapshots: bool,
) -> None:  # fmt: skip
    if each:
        for name, size in rows(quick=False):
            print(f"| {name} | {size} |")
        return
    state = State(policy, wait=wait, max_open=max_open, max_open_bytes=max_open_bytes, max_done=max_done)
    now, seen, started = 1e9, [], time.perf_counter()
    with TemporaryDirectory() as folder:
        journal = connect(f"file:{folder}", fsync="everysec", segment_bytes=16 * 2**20)
        kept = Snapshots(Path(folder), KEY)
        engine = Engine(
            state, journal, ids=EventIds(KEY), clock=lambda: now, snapshots=kept, keep_journal=False
        )
        engine.put_ads([_ad(number) for number in range(n_ads)])
        joiner, empty = engine.state.joiner, resident()
        print("| choices | waiting | MB of them in the journal | settled | given up | RSS, MB | us/choice |")
        print("|--------:|--------:|--------------------------:|--------:|---------:|--------:|----------:|")
        for number in range(1, choices + 1):
            now += 0.001
            ads = tuple(_ad(number * n_ads + which) for which in range(n_ads)) if inline else None
            context = {"page": f"page-{number}", "age": float(number % 90)}
            engine.choose(Request(context, f"user-{number}", request_id=f"request-{number}", ads=ads))
            if number % every == 0:
                seen.append(resident())
                print(
                    f"| {number:,} | {len(joiner.open):,} | {joiner.open_bytes / 1e6:.1f} "
                    f"| {len(joiner.done):,} | {joiner.given_up:,} | {seen[-1]:.1f} "
                    f"| {(time.perf_counter() - started) / number * 1e6:.0f} |",
                    flush=True,
                )
                if snapshots:
                    engine.snapshot()
        journal.close()
    last = seen[-max(2, round(len(seen) * LAST)) :]
    half = len(last) // 2
    growth = median(last[half:]) / median(last[:half]) - 1
    print(f"\nempty: {empty:.1f} MB; from half to half of the last {len(last)} rows: {growth:+.2%}")
    sys.exit(growth >= GROWTH)


def _ad(number: int) -> Ad:
    return Ad(f"ad-{number:09d}", {"kind": f"kind-{number}", "price": float(number % 100)})


if __name__ == "__main__":
    main()
