"""How long the slowest requests take: `python benchmarks/tail.py`.

Open loop: requests are sent at fixed moments, half as many as the server can answer (wrk, 16 connections, 100
ads), whether or not earlier ones were answered, and a latency counts from the moment at which the request was
to be sent. First 64 clients ask as fast as they can; then, in turn: nothing else going on; a snapshot each
second; a bulk import of ads that are shown elsewhere; an evaluation by `POST /evaluations`. The load keeps
off the processor that the server keeps to, as if it came from another machine. `late` is how late it was
itself, which is not the server's doing; `from sending` are latencies that count from when the request was
really sent. (Of the tools with constant arrival and such latencies, Debian and PyPI have none.)
"""

from __future__ import annotations

import gc
import json
import os
import re
import select
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click
import numpy as np
from commit import Running, context, make_ads, prepare, served
from rich.console import Console
from rich.table import Table

HEADERS = (
    "while",
    "asked",
    "a second",
    "p50 ms",
    "p99 ms",
    "p99 / p50",
    "worst ms",
    "from sending: p99",
    "worst",
    "late: p99",
    "worst",
)
FLAGS = (
    "--policy",
    "vw",
    "--option",
    "exploration=epsilon",
    "--option",
    "epsilon=0.1",
    "--reward-wait",
    "24h",
)


class Latencies(NamedTuple):
    """Milliseconds of each choice and each reward, and how late each of them was sent."""

    choices: list[tuple[float, float]]
    rewards: list[tuple[float, float]]


def post(path: str, body: object) -> bytes:
    """A request."""
    raw = json.dumps(body).encode()
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(raw)}\r\n\r\n"
    ).encode() + raw


def requests(name: str, count: int, waiting: Iterator[int], mix: bool) -> list[bytes]:
    """Choices; with `mix`, every other request rewards one of the decisions that wait."""
    found = []
    for number in range(count):
        if mix and number % 2:
            found.append(post("/reward", {"event_id": f"e{next(waiting)}", "reward": number // 2 % 2}))
        else:
            body = {"context": context(number), "event_id": f"{name}-{number}", "placement": "here"}
            found.append(post("/choose", body))
    return found


def open_loop(port: int, wanted: list[bytes], rate: float) -> Latencies:
    """Send them at a fixed rate, over as many connections as it takes."""
    gc.collect()
    gc.disable()
    found = Latencies([], [])
    idle: list[socket.socket] = []
    busy: dict[socket.socket, tuple[float, float, bytearray, list[tuple[float, float]]]] = {}

    def receive(wait: float) -> None:
        for line in _readable([*busy], wait):
            due, late, reply, took = busy[line]
            reply += line.recv(65536)
            if _whole(reply):
                took.append((1000 * (time.perf_counter() - due), late))
                del busy[line]
                idle.append(line)

    began = time.perf_counter() + 0.1
    for number, request in enumerate(wanted):
        due = began + number / rate
        while (left := due - time.perf_counter()) > 0:
            receive(left)
        if not idle:
            line = socket.create_connection(("127.0.0.1", port))
            line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            idle.append(line)
        line = idle.pop()
        took = found.choices if request.startswith(b"POST /choose") else found.rewards
        busy[line] = due, 1000 * (time.perf_counter() - due), bytearray(), took
        line.sendall(request)
    while busy:
        receive(1.0)
    for line in idle:
        line.close()
    gc.enable()
    return found


def _readable(lines: list[socket.socket], wait: float) -> list[socket.socket]:
    """Those on which something has come, after so many seconds at most."""
    try:
        return select.select(lines, [], [], wait)[0]
    except ValueError:  # over a thousand connections: the server does not keep up, so milliseconds will do
        poll = select.poll()
        for line in lines:
            poll.register(line, select.POLLIN)
        ready = dict(poll.poll(1000 * wait))
        return [line for line in lines if line.fileno() in ready]


def _whole(reply: bytearray) -> bool:
    """Whether this is the end of a reply; anything but 200 raises."""
    head, end, body = reply.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200"):
        raise RuntimeError(reply[:300].decode() or "a connection was closed")
    return bool(end) and len(body) >= int(re.search(rb"content-length: (\d+)", head.lower())[1])


class Closed(NamedTuple):
    """What clients see that ask again as soon as they have an answer; latencies in milliseconds."""

    asked: int
    rate: float  # choices a second
    p50: float
    p99: float
    worst: float


def closed_loop(running: Running, folder: Path, clients: int, seconds: int) -> Closed:
    """So many clients that ask for choices as fast as they can."""
    script = folder / "choose.lua"
    body = json.dumps({"context": context(1), "placement": "here"})
    script.write_text(
        f"wrk.method, wrk.path, wrk.body = 'POST', '/choose', [[{body}]]\n"
        "wrk.headers['Content-Type'] = 'application/json'"
    )
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds}s", "--latency", "-s", str(script)]
    command.append(f"http://127.0.0.1:{running.port}")
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    if "Non-2xx" in said:
        raise RuntimeError(said)
    figures = [
        re.search(pattern, said)[1]
        for pattern in (r"(\d+) requests in", r"Requests/sec:\s+(\S+)", r"\s50%\s+(\S+)", r"\s99%\s+(\S+)")
    ]
    worst = re.search(r"Latency\s+\S+\s+\S+\s+(\S+)", said)[1]
    asked, rate, *took = figures
    return Closed(int(asked), float(rate), *map(_milliseconds, (*took, worst)))


def _milliseconds(said: str) -> float:
    """wrk's way of saying how long something took."""
    number, unit = re.fullmatch(r"([\d.]+)(us|ms|s|m)", said).groups()
    return float(number) * {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}[unit]


@contextmanager
def away_from(pid: int) -> Iterator[None]:
    """Keep off the processors that a process keeps to, if that leaves any."""
    all = os.sched_getaffinity(0)
    os.sched_setaffinity(0, all - os.sched_getaffinity(pid) or all)
    try:
        yield
    finally:
        os.sched_setaffinity(0, all)


@contextmanager
def again(what: Callable[[], object], pause: float) -> Iterator[None]:
    """Do it over and over in a thread, with pauses."""
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            what()
            stop.wait(pause)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def send(port: int, path: str, body: bytes = b"", media: str = "application/json") -> None:
    """One request by itself."""
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body, {"Content-Type": media})
    direct.open(request, timeout=600).read()


def evaluate(port: int) -> None:
    """One evaluation in the server's background, to its end."""
    send(port, "/evaluations", json.dumps({"policies": ["uniform"]}).encode())
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    while True:
        time.sleep(0.2)
        with direct.open(f"http://127.0.0.1:{port}/evaluations", timeout=60) as reply:
            newest = json.load(reply)["evaluations"][0]
        if newest["status"] == "failed":
            raise RuntimeError(newest["error"])
        if newest["status"] == "done":
            return


def elsewhere(count: int) -> bytes:
    """So many ads for another placement, as JSON Lines."""
    ads = (
        {"id": f"else-{ad.id}", "features": ad.features, "placements": ["there"]} for ad in make_ads(count)
    )
    return "\n".join(map(json.dumps, ads)).encode()


def measure(
    name: str, *, bits: int, pending: int, turns: int, seconds: float, others: int = 0, first: bool = False
) -> list[tuple[str, ...]]:
    """Rows for one server: with so many bits of weights, waiting decisions, and ads for another placement.

    `first`: server and load come before everything else on this machine.
    """
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        data = folder / "data"
        prepare(data, 100, pending, exploration="epsilon", epsilon=0.1, bits=bits)
        if first:
            os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
        with (
            served(data, *FLAGS, "--option", f"bits={bits}", "--snapshot-every", "1h") as running,
            away_from(running.pid),
        ):
            port, lines = running.port, elsewhere(others) if others else b""
            if others:
                send(port, "/catalog/ads", lines, "application/x-ndjson")
            rate = closed_loop(running, folder, 16, 1 if seconds < 2 else 3).rate / 2
            crowd = closed_loop(running, folder, 64, 1 if seconds < 2 else 3)
            cases: dict[str, tuple[bool, Callable[[], object], float]] = {
                "nothing": (False, lambda: None, 1.0),
                "nothing, half are rewards": (True, lambda: None, 1.0),
            }
            if others:
                cases |= {
                    f"{others:,} ads come": (
                        True,
                        lambda: send(port, "/catalog/ads", lines, "application/x-ndjson"),
                        0.0,
                    )
                }
            else:
                cases |= {
                    "a snapshot each second": (True, lambda: send(port, "/snapshot"), 1.0),
                    "an evaluation": (True, lambda: evaluate(port), 0.0),
                }
            waiting = iter(range(1, pending + 1))
            found: dict[str, list[Latencies]] = {each: [] for each in cases}
            for turn in range(turns):
                for number, (each, (mix, meanwhile, pause)) in enumerate(cases.items()):
                    wanted = requests(f"t{turn}-{number}", int(rate * seconds), waiting, mix)
                    with again(meanwhile, pause):
                        found[each].append(open_loop(port, wanted, rate))
    figures = [crowd.p50, crowd.p99, crowd.p99 / crowd.p50, crowd.worst]
    head = (f"{name}: 64 clients as fast as they can", f"{crowd.asked:,}", f"{crowd.rate:,.0f}")
    table = [(*head, *(f"{figure:.1f}" for figure in figures), "", "", "", "")]
    for each, slices in found.items():
        table.append(_row(f"{name}: {each}", rate, [one.choices for one in slices]))
        if cases[each][0]:
            table.append(_row("... the rewards among them", rate, [one.rewards for one in slices]))
    return table


def _row(name: str, rate: float, slices: list[list[tuple[float, float]]]) -> tuple[str, ...]:
    """Medians of the slices; the worst of all."""
    took, late = ([np.array(each)[:, column] for each in slices] for column in (0, 1))
    sent = [all - before for all, before in zip(took, late, strict=True)]

    def percentile(what: list[np.ndarray], q: float) -> float:
        return float(np.median([np.percentile(each, q) for each in what]))

    p50, p99 = percentile(took, 50), percentile(took, 99)
    figures = [p50, p99, p99 / p50, max(map(max, took))]
    for each in (sent, late):
        figures += [percentile(each, 99), max(map(max, each))]
    asked = f"{sum(map(len, took)):,}"
    return (name, asked, f"{rate:,.0f}", *(f"{figure:.1f}" for figure in figures))


def rows(quick: bool, first: bool = False) -> list[tuple[str, ...]]:
    """The table, its head first."""
    if quick:
        return [HEADERS, *measure("2^18", bits=18, pending=3000, turns=1, seconds=0.5)]
    found = [HEADERS]
    for bits in (18, 22):
        found += measure(f"2^{bits}", bits=bits, pending=30_000, turns=2, seconds=3.0, first=first)
    return found + measure(
        "20,000 more ads", bits=18, pending=30_000, turns=2, seconds=3.0, others=20_000, first=first
    )


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="Some seconds instead of some minutes.")
@click.option("--first", is_flag=True, help="Before all other work of the machine (needs root).")
def main(quick: bool, first: bool) -> None:
    head, *body = rows(quick, first)
    table = Table(*head)
    for row in body:
        table.add_row(*row)
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
