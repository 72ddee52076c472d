"""What a request costs, beside what else one could do: `OPENBLAS_NUM_THREADS=1 python benchmarks/serving.py
--peers`. (So many as the server allows itself: with two, the default policy learns for twice as long.)

CPU per request, user and system, medians over turns in which everybody is asked a little; ratios are of two
costs of one turn. In process: the whole WSGI application called with an environ, against Vowpal Wabbit by
hand. Over HTTP: `banditads serve` against services written in an afternoon (`peers/`), wrk as load.
`workload.py` says what is asked, `load.py` how services are started and their CPU is read. Needs wrk (a
package of Debian), and for the peers `pip install -e '.[peers]'` into the same environment and redis-server.
"""

from __future__ import annotations

import importlib
import os
import platform
import random
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import click
import falcon_routes
import load
import workload
from rich.console import Console
from rich.markdown import Markdown
from workload import Contestant, Costs

from banditads.state import USUAL

OURS, DEFAULT = "banditads", "banditads, default policy"
AT_ONCE = "banditads, default policy, silence at once"  # as a new directory has it: a choice teaches
VISIT = "choose and reward"
NO_DISK, FALCON, ALWAYS = (
    "banditads, journal in memory",
    "banditads, routes on falcon",
    "banditads, fsync always",
)
UPDATE = "its policy's update alone"
TEXT, DICTS = "VW by text, lines of ads kept", "VW by text, lines made each time"
KEPT, LEARNER = "VW, parsed ads kept", "VW's learner alone"
EMPTY_HUG, EMPTY_WSGI = "an empty hug route on the same server", "an empty WSGI callable on the same server"
FASTAPI, FASTAPI_KEPT = "FastAPI, coroutines", "FastAPI, coroutines, lines of ads kept"
FASTAPI_THREADS = "FastAPI, threads"

Key = tuple[str, str, int]  # who, "choose" or "reward", ads
COUNTS = [10, 100, 1000, 10_000, 100_000]  # of ads

# Who is asked over HTTP -> the file in peers/, and its arguments.
LIMITS = {EMPTY_HUG: ("empty_hug",), EMPTY_WSGI: ("empty_wsgi",)}
PEERS = {
    FASTAPI: ("fastapi_vw",),
    FASTAPI_KEPT: ("fastapi_vw", "cached"),
    FASTAPI_THREADS: ("fastapi_threads",),
    "Flask, gunicorn": ("flask_vw",),
    "hug's own server": ("hug_vw",),
    "Tornado, model in Redis": ("redis_tornado",),
}


class Target(NamedTuple):
    """`over` / `under` shall be at most (or, with `least`, at least) `bound`."""

    what: str
    kind: str  # of both: "in process", "over HTTP" or "rate"
    over: Key
    under: Key
    bound: float
    least: bool = False


def targets() -> list[Target]:
    """What is to be shown, in the order of the table."""
    process, http, rate = "in process", "over HTTP", "rate"
    found = []
    for count, bound in ((10, 0.75), (100, 0.28)):
        what = f"/choose, {count} ads: of `Workspace.predict(text)` with lines kept"
        found.append(Target(what, process, (OURS, "choose", count), (TEXT, "choose", count), bound))
    found += [
        Target(
            "/choose, 1,000 ads: of VW alone, parsed ads kept",
            process,
            (OURS, "choose", 1000),
            (KEPT, "choose", 1000),
            1.3,
        ),
        Target(
            "/choose, 100,000 ads: of 1,000", process, (OURS, "choose", 100_000), (OURS, "choose", 1000), 5.0
        ),
    ]
    for who, name in (
        (TEXT, "`Workspace.learn(text)`, lines kept"),
        (KEPT, "`learn_multi`, parsed ads kept"),
    ):
        for count in (10, 100):
            what = f"one update, {count} ads: of {name}"
            found.append(Target(what, process, (UPDATE, "reward", count), (who, "reward", count), 1.5))
    for path, count in (("choose", 10), ("choose", 100), ("reward", 10), ("reward", 100)):
        what, over, under = f"/{path}, {count} ads: ", (OURS, path, count), (FALCON, path, count)
        found += [
            Target(what + "default policy, of `vw` epsilon", process, (DEFAULT, path, count), over, 2.0),
            Target(what + "of the same routes on falcon", process, over, under, 1.25),
            Target(what + "rate, journal on / off", process, (NO_DISK, path, count), over, 0.95, True),
        ]
    for count in (10, 100):
        for who, name in ((DEFAULT, "default policy"), (AT_ONCE, "the same, silence at once")):
            what = f"a choice and its reward, {count} ads: {name}, of `vw` epsilon"
            found.append(Target(what, process, (who, VISIT, count), (OURS, VISIT, count), 2.0))
    for kind, name in ((rate, "requests/s"), (http, "by CPU")):
        over, under = (OURS, "choose", 100), (TEXT, "choose", 100)
        if kind == http:
            over, under = under, over
        what = f"/choose over HTTP, 100 ads: of in-process `predict(text)` with lines kept, {name}"
        found.append(Target(what, kind, over, under, 3.0, True))
    for who in (FASTAPI, FASTAPI_KEPT, FASTAPI_THREADS):
        for path, count, bound in (("choose", 10, 9.0), ("choose", 100, 10.0), ("reward", 100, 12.0)):
            what = f"/{path}, {count} ads: {who}, of ours"
            found.append(Target(what, http, (who, path, count), (OURS, path, count), bound, True))
    return found


def compare(costs: Costs, over: Key, under: Key) -> list[float]:
    """Ratios of the turns in which both were asked; sorted; empty where one never was."""
    a, b = costs.get(over, {}), costs.get(under, {})
    return sorted(a[turn] / b[turn] for turn in a.keys() & b.keys())


def in_process(turns: int, counts: Sequence[int], *, peers: bool, largest: int) -> Costs:
    """Microseconds of CPU per request in this process; VW by hand up to `largest` ads, 70 KB each."""
    racing: dict[Key, Contestant] = {}
    sys.path.append(str(load.PEERS))
    with ExitStack() as stack:
        for count in counts:
            click.echo(f"in process: {count:,} ads", err=True)
            if count <= largest:
                raw = workload.RawVW(count)
                racing |= {
                    (TEXT, "choose", count): raw.predict_text,
                    (KEPT, "choose", count): raw.alone,
                    (LEARNER, "choose", count): raw.learner,
                }
            variants: dict[str, AbstractContextManager[workload.Ours]] = {OURS: workload.ours(count)}
            if count in (10, 100):
                variants |= {
                    DEFAULT: workload.ours(count, {}, policy=USUAL),
                    AT_ONCE: workload.ours(count, {}, policy=USUAL, silence="immediate"),
                    NO_DISK: workload.ours(count, journal="memory"),
                    FALCON: workload.ours(count, build=falcon_routes.build),
                }
                racing |= {
                    (DICTS, "choose", count): raw.predict_dicts,
                    (TEXT, "reward", count): raw.learn_text,
                    (KEPT, "reward", count): raw.learn_kept,
                    (UPDATE, "reward", count): workload.update(count),
                }
            for who, variant in variants.items():
                one = stack.enter_context(variant)
                racing[who, "choose", count] = one.choose
                if count in (10, 100):
                    racing[who, "reward", count] = one.reward
            if peers and find_spec("gittins") and count <= 1000:
                gittins = importlib.import_module("gittins_engine").Gittins(workload.ads(count))
                racing["gittins", "choose", count] = gittins.choose
                if count in (10, 100):
                    racing["gittins", "reward", count] = gittins.reward
        costs = workload.race(racing, turns)
    for who, count in [
        key[::2] for key in costs if key[0] in (OURS, DEFAULT, AT_ONCE) and key[1] == "reward"
    ]:
        chosen, rewarded = costs[who, "choose", count], costs[who, "reward", count]
        costs[who, VISIT, count] = {turn: chosen[turn] + rewarded[turn] for turn in chosen.keys() & rewarded}
    return costs


def over_http(
    turns: int,
    paths: dict[int, Sequence[str]],
    services: dict[str, tuple[str, ...]],
    *,
    seconds: float,
    connections: int,
) -> tuple[Costs, Costs]:
    """(microseconds of CPU per request, requests per second) of services, by the number of ads.

    `paths` says what is asked at how many ads; a turn is so many `seconds` of each.
    """
    ask = partial(load.wrk, seconds=seconds, connections=connections)
    cpu: Costs = {}
    rates: Costs = {}

    def note(key: Key, turn: int, seen: load.Load) -> None:
        if turn:  # the first is to warm up
            cpu.setdefault(key, {})[turn] = seen.cpu
            rates.setdefault(key, {})[turn] = seen.rate

    for count, asked in paths.items():
        with TemporaryDirectory() as name, ExitStack() as stack:
            folder = Path(name)
            listed = ({"id": ad.id, "features": ad.features} for ad in workload.ads(count))
            catalog = load.write_lines(folder / "ads.jsonl", listed)
            visits = load.write_lines(
                folder / "visits", ({"context": each} for each in workload.contexts(4000))
            )
            running = {}
            for who, start in _starts(count, asked, services).items():
                click.echo(f"over HTTP: {count:,} ads: {who}", err=True)
                running[who] = stack.enter_context(start(catalog, folder / f"{len(running)}"))
            by_text = workload.RawVW(count).predict_text
            order, dice = [*running], random.Random(0)
            for turn in range(turns + 1):
                dice.shuffle(order)
                for who in order:
                    service, ids = running[who], folder / "ids"
                    seen = ask(service, "/choose", visits, ids=ids)
                    note((who, "choose", count), turn, seen)
                    if "reward" in asked and who not in LIMITS:
                        rewards = [{"event_id": each, "reward": 1.0} for each in ids.read_text().split()]
                        bodies = load.write_lines(folder / "rewards", rewards)
                        seen = ask(service, "/reward", bodies, once=True)
                        note((who, "reward", count), turn, seen)
                note((TEXT, "choose", count), turn, _timed(by_text, max(1, 50_000 // count)))
    return cpu, rates


def _starts(
    count: int, asked: Sequence[str], services: dict[str, tuple[str, ...]]
) -> dict[str, Callable[[Path, Path], AbstractContextManager[load.Service]]]:
    starts = {OURS: partial(_banditads, "everysec")}
    if "reward" in asked:
        starts[ALWAYS] = partial(_banditads, "always")
    for who, (file, *arguments) in services.items():
        if (count == 10 or who not in LIMITS) and (count <= 100 or who in (FASTAPI, FASTAPI_KEPT)):
            starts[who] = partial(_peer, file, arguments)
    return starts


def _banditads(fsync: str, catalog: Path, folder: Path) -> AbstractContextManager[load.Service]:
    return load.banditads(catalog, folder, "--fsync", fsync)


def _peer(
    file: str, arguments: Sequence[str], catalog: Path, folder: Path
) -> AbstractContextManager[load.Service]:
    return load.peer(file, catalog, folder, *arguments)


def _timed(contestant: Contestant, size: int) -> load.Load:
    """An in-process contestant as if it were a service."""
    run = contestant(workload.contexts(size))
    began, used = time.perf_counter(), time.process_time()
    run()
    used, took = time.process_time() - used, time.perf_counter() - began
    return load.Load(size / took, used / size * 1e6)


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """As Markdown; numbers to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def costs_table(costs: Costs, rates: Costs | None = None) -> str:
    """Who, by what was asked; medians."""
    columns = sorted({key[1:] for key in costs if key[2] in COUNTS})
    rows = []
    for who in dict.fromkeys(key[0] for key in sorted(costs, key=_rank)):
        cells = []
        for path, count in columns:
            seen = costs.get((who, path, count))
            cell = f"{statistics.median(seen.values()):,.0f}" if seen else ""
            if seen and rates:
                cell += f" ({statistics.median(rates[who, path, count].values()):,.0f}/s)"
            cells.append(cell)
        rows.append([who, *cells])
    return table(["", *(f"{path}, {count:,} ads" for path, count in columns)], rows)


RANK = [OURS, DEFAULT, AT_ONCE, NO_DISK, FALCON, ALWAYS, UPDATE, LEARNER, KEPT, TEXT, DICTS, *LIMITS, *PEERS]


def _rank(key: Key) -> int:
    return RANK.index(key[0]) if key[0] in RANK else len(RANK)


def targets_table(kinds: dict[str, Costs]) -> str:
    """Every target that was measured, and whether it was met."""
    rows = []
    for target in targets():
        ratios = compare(kinds.get(target.kind, {}), target.over, target.under)
        if ratios:
            middle = statistics.median(ratios)
            met = middle >= target.bound if target.least else middle <= target.bound
            spread = f"{_quantile(ratios, 0.25):.3g} - {_quantile(ratios, 0.75):.3g}"
            bound = f"{'>=' if target.least else '<='} {target.bound:g}"
            rows.append([target.what, f"{middle:.3g}", spread, bound, "yes" if met else "**no**"])
    return table(["", "ratio", "middle half", "target", "met"], rows)


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def plot(file: str, process: Costs, http: Costs) -> None:
    """Cost of a choice against the number of ads."""
    from matplotlib.figure import Figure  # noqa: PLC0415  (an extra)

    figure = Figure((8, 5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for costs, who, label, style in (
        (process, OURS, "banditads, whole request in process", "C0o-"),
        (process, KEPT, "VW alone, parsed ads kept", "C2s--"),
        (process, TEXT, "VW by text, lines of ads kept: predict(text)", "C1^--"),
        (http, OURS, "banditads, over HTTP", "C0o:"),
        (http, FASTAPI, "FastAPI + VW, over HTTP", "C3D:"),
    ):
        counts = sorted(count for name, path, count in costs if (name, path) == (who, "choose"))
        if counts:
            heights = [statistics.median(costs[who, "choose", count].values()) / 1000 for count in counts]
            axes.loglog(counts, heights, style, label=label, markersize=5)
    axes.set_xlabel("ads to choose among")
    axes.set_ylabel("CPU per choice, milliseconds")
    axes.grid(True, which="major", alpha=0.3)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:,g}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(file)


def machine() -> str:
    """Where and when."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    names = ("vowpalwabbit", "hug", "falcon", "granian")
    if find_spec("fastapi"):
        names += ("fastapi", "uvicorn", "flask", "gunicorn", "tornado", "gittins")
    versions = ", ".join(f"{name} {version(name)}" for name in names if find_spec(name))
    cpu = models[0].partition(": ")[2] if models else platform.machine()
    today = f"{datetime.now(UTC):%Y-%m-%d}"
    return f"{os.cpu_count()} cores ({cpu}), CPython {platform.python_version()}, {today}; {versions}."


@click.command(help=__doc__)
@click.option("--peers", is_flag=True, help="Other people's way of doing it, too.")
@click.option("--quick", is_flag=True, help="About a minute: fewer turns, and no more than 1,000 ads.")
@click.option("--turns", default=0, help="Of those in process; 60, or 15 with --quick.")
@click.option("--http/--no-http", default=True, show_default=True)
@click.option("--connections", default=16, show_default=True, help="Kept by wrk.")
@click.option(
    "--plot", "picture", default="", metavar="FILE", help="Cost of a choice against ads, as a PNG. 12 GB."
)
@click.option("--markdown", is_flag=True, help="As it stands in RESULTS.md.")
@click.option("--all", "others", is_flag=True, help="The tables of tail.py and commit.py, too.")
def main(
    *, peers: bool, quick: bool, turns: int, http: bool, connections: int, picture: str, markdown: bool,
    others: bool,
) -> None:  # fmt: skip
    counts = COUNTS[:3] if quick else COUNTS
    if picture:
        counts = sorted([*counts, 30, 300] + ([] if quick else [3000]))
    kinds: dict[str, Costs] = {}
    if http:  # first: what is asked in process below takes memory
        paths = {10: ("choose",), 100: ("choose", "reward")}
        if picture and not quick:
            paths[1000] = ("choose",)
        services = LIMITS | (PEERS if peers else {})
        pace = {"turns": 2, "seconds": 0.4} if quick else {"turns": 7, "seconds": 1.0}
        cpu, rates = over_http(paths=paths, services=services, connections=connections, **pace)
        kinds |= {"over HTTP": cpu, "rate": rates}
    turns = turns or (15 if quick else 60)
    process = in_process(turns, counts, peers=peers, largest=counts[-1] if picture else 10_000)
    kinds["in process"] = process
    said = ["## What a request costs", f"`{shlex.join(['python', *sys.argv])}`: {machine()}"]
    said += ["Microseconds of CPU per request in process:", costs_table(process)]
    if http:
        about = f"Over HTTP, microseconds of CPU per request (requests/s, {connections} connections):"
        said += [about, costs_table(kinds["over HTTP"], kinds["rate"])]
    said += ["Ratios of CPU per request:", targets_table(kinds)]
    for name in ("tail", "commit") if others else ():
        if find_spec(name):
            head, *body = importlib.import_module(name).rows(quick)
            said += [f"`python benchmarks/{name}.py`:", table(head, body)]
    text = "\n\n".join(said)
    Console(width=180).print(text if markdown else Markdown(text), markup=False, soft_wrap=markdown)
    if picture:
        plot(picture, process, kinds.get("over HTTP", {}))


if __name__ == "__main__":
    main()
