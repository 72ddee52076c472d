"""Whether memory stops growing: `python benchmarks/memory.py`.

Choices that nobody rewards, each by a new visitor with a new request id and a new word in the context,
through a real engine, journal and snapshots. Time is counted, not waited for: 1,000 choices are a second.
Ends with 1 if the memory of the process still grew by 2 % or more in the last 40 % of the run.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from banditads.choosing import Request
from banditads.engine import Engine
from banditads.events import Ad
from banditads.journal import connect
from banditads.signing import EventIds
from banditads.snapshots import Snapshots
from banditads.state import State

KEY = b"k" * 32
LAST, GROWTH = 0.4, 0.02  # a plateau: in the last 40 % of the run, memory grows by less than 2 %


def resident() -> float:
    """MB of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


@click.command(help=__doc__)
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
    *, policy: str, choices: int, n_ads: int, inline: bool, wait: float, max_open: int, max_open_bytes: int,
    max_done: int, every: int, snapshots: bool,
) -> None:  # fmt: skip
    state = State(policy, wait=wait, max_open=max_open, max_open_bytes=max_open_bytes, max_done=max_done)
    now, rows, started = 1e9, [], time.perf_counter()
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
            ads = tuple(_ad(number * n_ads + each) for each in range(n_ads)) if inline else None
            context = {"page": f"page-{number}", "age": float(number % 90)}
            engine.choose(Request(context, f"user-{number}", request_id=f"request-{number}", ads=ads))
            if number % every == 0:
                rows.append(resident())
                print(
                    f"| {number:,} | {len(joiner.open):,} | {joiner.open_bytes / 1e6:.1f} "
                    f"| {len(joiner.done):,} | {joiner.given_up:,} | {rows[-1]:.1f} "
                    f"| {(time.perf_counter() - started) / number * 1e6:.0f} |",
                    flush=True,
                )
                if snapshots:
                    engine.snapshot()
        journal.close()
    last = rows[-max(2, round(len(rows) * LAST)) :]
    growth = max(last) / last[0] - 1
    print(f"\nempty: {empty:.1f} MB; growth in the last {len(last)} rows: {growth:+.2%}")
    sys.exit(growth >= GROWTH)


def _ad(number: int) -> Ad:
    return Ad(f"ad-{number:09d}", {"kind": f"kind-{number}", "price": float(number % 100)})


if __name__ == "__main__":
    main()
