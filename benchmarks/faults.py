"""Breaks the real server over and over, and counts what was lost: `python benchmarks/faults.py`.

The phases are those of `tests/faults/`, for longer. Exit code 1 if anything was lost, doubled or different.
`--planted` runs the phases against servers with bugs planted into them, to show which phase notices which.
`--recovery N` measures how long a start takes with N events in the journal.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from banditads import settings
from banditads.choosing import Request
from banditads.server import opened

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "faults"))
import phases
import planted
from campaign import ADS, Server

WIDE = Console(width=150)


def shared(total: int, lives: int, phase: Callable[[int, int], phases.Tally]) -> phases.Tally:
    """A phase in `lives` parts, each on a data directory of its own."""
    tally, part = phases.Tally(), 0
    while tally.faults < total and not tally.wrong:
        part += 1
        one = phase(min(-(-total // lives), total - tally.faults), part)
        tally.faults += one.faults
        tally.acknowledged += one.acknowledged
        tally.wrong += one.wrong
        tally.said += one.said
    return tally


def campaign(kills: int, cuts: int, flips: int, seed: int) -> bool:
    """Every phase; whether nothing went wrong."""
    runs: list[tuple[str, Callable[[], phases.Tally]]] = [
        (
            f"SIGKILL under load and while starting, {policy}",
            lambda policy=policy, share=share: shared(
                share, 5, lambda n, part: phases.kills(n, seed + part, policy=policy, sample=200)
            ),
        )
        for policy, share in (("vw", kills - kills // 4), ("logistic", kills // 8), ("linucb", kills // 8))
    ]
    runs += [
        (
            "power cut, fsync always",
            lambda: shared(cuts, 5, lambda n, part: phases.power_cuts(n, seed + part)),
        ),
        ("power cut, fsync everysec", lambda: phases.power_cuts(5, seed, fsync="everysec")),
        ("torn tails", lambda: phases.torn_tails(10, seed)),
        ("flipped bits", lambda: shared(flips, 5, lambda n, part: phases.bit_flips(n, seed + part, real=10))),
        ("full disk", lambda: phases.full_disk(seed)),
        ("fdatasync fails", lambda: phases.fsync_errors(10, seed)),
        ("order of system calls", lambda: phases.call_order(seed)),
        ("SIGTERM under load", lambda: phases.sigterm(10, seed)),
        ("second process", lambda: phases.two_processes(seed)),
        ("clock set back and ahead", lambda: phases.clock_steps(seed)),
        ("records that come twice", lambda: phases.delivered_twice(seed)),
        *(
            (
                f"the same run with and without crashes, {policy}",
                lambda policy=policy: phases.twins(300, seed, "", policy),
            )
            for policy in ("vw", "logistic", "linucb", "thompson")
        ),
    ]
    table = Table(
        "phase", "faults", "acknowledged rewards", "lost", "doubled", "different", "other", "seconds"
    )
    good = True
    for name, run in runs:
        began = time.monotonic()
        try:
            tally = run()
        except phases.Impossible as why:
            table.add_row(name, f"not run: {why}")
            continue
        wrong = [str(tally.wrong[kind]) for kind in ("lost", "doubled", "different", "refused")]
        seconds = f"{time.monotonic() - began:.0f}"
        table.add_row(name, str(tally.faults), str(tally.acknowledged), *wrong, seconds)
        good = good and not tally.wrong
        click.echo(
            f"{name}: {tally.faults} faults, {dict(tally.wrong) or 'nothing wrong'} {tally.said[:3] or ''}",
            err=True,
        )
    WIDE.print(table)
    return good


def matrix(bugs: list[str]) -> bool:
    """Every phase against every planted bug; whether each was noticed, and the sound server never."""
    table = Table("planted bug", *phases.PHASES)
    good = True
    for bug in ["", *bugs]:
        seen = []
        for phase in phases.PHASES.values():
            try:
                seen.append(bool(phase(bug).wrong))
            except phases.Impossible:
                seen.append(False)
        good = good and any(seen) is bool(bug)
        table.add_row(bug or "(none)", *("noticed" if each else "-" for each in seen))
        click.echo(f"{bug or 'no bug'}: {sum(seen)} phases", err=True)
    WIDE.print(table)
    return good


def recovery(events: int, policy: str) -> None:
    """Fill a journal and time starts: after a kill just before the next snapshot, and without one."""
    with tempfile.TemporaryDirectory(prefix="banditads-recovery-") as name:
        folder = Path(name)
        chosen = settings.load(
            flags={"data_dir": str(folder / "data"), "policy": policy, "fsync": "everysec"}
        )
        (folder / "ads.jsonl").write_text("\n".join(map(json.dumps, ADS)))
        chosen = settings.load(
            flags={
                "data_dir": str(folder / "data"),
                "policy": policy,
                "fsync": "everysec",
                "catalog": str(folder / "ads.jsonl"),
            }
        )
        with opened(chosen) as engine:
            for number in range(events // 2):
                if number == events // 2 - chosen.snapshot_rewards:
                    engine.snapshot()
                event_id = f"e{number}"
                engine.choose(Request({"age": float(number % 60), "device": f"d{number % 3}"}), event_id)
                engine.reward(event_id, float(number % 7 == 0))
            engine.snapshots.save = lambda offset, saved: None  # killed: there is none of the end
        for what in ("newest snapshot 50,000 rewards old", "no snapshot"):
            if what == "no snapshot":
                for path in (folder / "data").glob("*.snapshot"):
                    path.unlink()
            server = Server(folder / "data", folder, "--policy", policy)
            began = time.monotonic()
            with server.running():
                took = time.monotonic() - began
                click.echo(f"{policy}: {events:,} events, {what}: answers after {took:.1f} s")


@click.command()
@click.option("--kills", default=200)
@click.option("--cuts", default=50)
@click.option("--flips", default=500)
@click.option("--seed", default=1)
@click.option("--planted", "bugs", is_flag=True, help="The table of planted bugs instead.")
@click.option("--recovery", "events", default=0, help="Time starts with so many events instead.")
@click.option("--policy", default="vw", help="For --recovery.")
def main(*, kills: int, cuts: int, flips: int, seed: int, bugs: bool, events: int, policy: str) -> None:
    """Break it."""
    logging.disable(logging.CRITICAL)
    if events:
        recovery(events, policy)
        return
    good = matrix(list(planted.BUGS)) if bugs else campaign(kills, cuts, flips, seed)
    if not good:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
