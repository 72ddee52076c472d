"""What a durable reward costs beside a bare group commit: `python benchmarks/commit.py`.

64 clients send rewards over HTTP (wrk) to a real server: policy `vw`, 10 ads, decisions made in advance under
ids of their own, `fsync = always`. In turn with them, on the same file system, 64 threads of Python do
nothing but write 60 bytes and wait for an fdatasync that they share in the same way: whoever comes while
nobody does it calls it for all. Each figure is the median of its slices; ratios are of two slices that follow
each other.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import click
from rich.console import Console
from rich.table import Table

from banditads import server
from banditads.choosing import Request
from banditads.events import Ad
from banditads.settings import Settings

SCRIPT = """
wrk.method, wrk.path, number = "POST", "/reward", {first}
wrk.headers["Content-Type"] = "application/json"
function request()
  number = number + 1
  return wrk.format(nil, nil, nil, string.format('{{"event_id":"e%d","reward":%d}}', number, number % 2))
end
function response(status)
  if status ~= 200 then io.write("status ", status, "\\n") end
end
"""
HEADERS = ("", "rewards/s, HTTP", "writes/s, bare", "ratio", "CPU us/reward, HTTP", "CPU us/write, bare")


class Running(NamedTuple):
    """A server in a process of its own."""

    pid: int
    port: int

    def cpu(self) -> float:
        """Seconds of user and system time."""
        return cpu(self.pid)


def cpu(pid: int) -> float:
    """Seconds of user and system time of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def make_ads(count: int) -> list[Ad]:
    """Ads of 8 features."""
    return [
        Ad(
            f"ad-{number:06d}",
            {"age": float(number % 7), **{f"f{n}": f"v{(number * 7 + n) % 20}" for n in range(6)}}
            | {"price": float(number % 50)},
        )
        for number in range(count)
    ]


def context(number: int) -> dict[str, str | float]:
    """A visitor of 15 features."""
    words: dict[str, str | float] = {f"c{n:02d}": f"w{number * (n + 7) % 30}" for n in range(12)}
    return words | {"x": number % 97 / 97, "y": number % 89 / 89, "z": number % 83 / 83}


def prepare(folder: Path, n_ads: int, decisions: int, **options: bool | int | float | str) -> None:
    """A data directory with decisions that wait, under the ids e1, e2, ..."""
    settings = Settings(data_dir=str(folder), policy="vw", policy_options=dict(options), reward_wait=86400.0)
    with server.opened(settings) as engine:
        engine.put_ads(make_ads(n_ads))
        for number in range(1, decisions + 1):
            engine.choose(Request(context(number)), f"e{number}")


@contextmanager
def served(folder: Path, *flags: str) -> Iterator[Running]:
    """`banditads serve` on a directory of `prepare`, or on an empty one."""
    command = [sys.executable, "-m", "banditads", "serve", "--port", "0", "--data-dir", str(folder), *flags]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            found = re.search(r"http://127.0.0.1:(\d+)", process.stdout.readline())
            if not found:
                raise RuntimeError(process.stderr.read()[-2000:])
            yield Running(process.pid, int(found[1]))
        finally:
            process.terminate()
            process.communicate()


def bare(folder: Path, threads: int, seconds: float) -> tuple[float, float]:
    """(writes a second, microseconds of CPU of each)."""
    file = os.open(folder / "bare", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    writing, state = threading.Lock(), threading.Lock()
    waiting: list[tuple[int, threading.Lock]] = []
    end, durable, leading, until = 0, 0, False, time.monotonic() + seconds

    def sync(mine: int) -> None:
        nonlocal durable, leading, waiting
        while True:
            with state:
                if mine < durable:
                    return
                if not leading:
                    leading, reached = True, end
                    break
                turn = threading.Lock()
                turn.acquire()
                waiting.append((mine, turn))
            turn.acquire()
        os.fdatasync(file)
        with state:
            durable, leading = reached, False
            wake = [turn for number, turn in waiting if number < durable]
            waiting = [each for each in waiting if each[0] >= durable]
            if waiting:
                wake.insert(0, waiting.pop(0)[1])
        for turn in wake:
            turn.release()

    def work() -> None:
        nonlocal end
        while time.monotonic() < until:
            with writing:
                os.write(file, b"x" * 60)
                mine, end = end, end + 1
            sync(mine)

    crew = [threading.Thread(target=work) for _ in range(threads)]
    used, began = time.process_time(), time.monotonic()
    for each in crew:
        each.start()
    for each in crew:
        each.join()
    os.close(file)
    return end / (time.monotonic() - began), (time.process_time() - used) / end * 1e6


def rewards(
    running: Running, folder: Path, first: int, clients: int, seconds: float
) -> tuple[int, float, float]:
    """(rewards answered, rewards a second, microseconds of CPU of each), from `first` on."""
    script = folder / "reward.lua"
    script.write_text(SCRIPT.format(first=first))
    command = ["wrk", "-t1", f"-c{clients}", f"-d{seconds:.0f}s", "-s", str(script)]
    used = running.cpu()
    said = subprocess.run(
        [*command, f"http://127.0.0.1:{running.port}"], capture_output=True, text=True, check=True
    ).stdout
    used = running.cpu() - used
    if "status" in said or "Non-2xx" in said:
        raise RuntimeError(said)
    count = int(re.search(r"(\d+) requests in", said)[1])
    rate = float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1])
    return count, rate, used / count * 1e6


def rows(quick: bool) -> list[tuple[str, ...]]:
    """The table, its head first."""
    slices, seconds, decisions = (1, 1.0, 20_000) if quick else (8, 2.0, 250_000)
    found: list[tuple[str, ...]] = [HEADERS]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder / "data", 10, decisions, exploration="epsilon", epsilon=0.1)
        flags = ("--policy", "vw", "--option", "exploration=epsilon", "--option", "epsilon=0.1")
        flags += ("--reward-wait", "24h")
        with served(folder / "data", *flags) as running:
            first, parts = 0, []
            for _ in range(slices):
                if first > decisions * 0.8:
                    break
                count, rate, cost = rewards(running, folder, first, 64, seconds)
                first += count + 64  # those under way when wrk stopped
                parts.append((rate, *bare(folder, 64, seconds), cost))
    http, writes, write_cost, cost = map(statistics.median, zip(*parts, strict=True))
    ratio = statistics.median(each[0] / each[1] for each in parts)
    found.append(
        ("64 clients", f"{http:,.0f}", f"{writes:,.0f}", f"{ratio:.2f}", f"{cost:.0f}", f"{write_cost:.1f}")
    )
    return found


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="Seconds instead of a minute.")
def main(quick: bool) -> None:
    head, *body = rows(quick)
    table = Table(*head)
    for row in body:
        table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
