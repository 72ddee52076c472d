"""Services in processes of their own, wrk as their load, and the CPU that they use.

The load's own CPU is nobody's cost: what counts is user and system time of the service and its children.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
PEERS = HERE / "peers"
TICK = os.sysconf("SC_CLK_TCK")


class Service(NamedTuple):
    """One that runs."""

    pid: int
    url: str

    def post(self, path: str, body: object) -> dict[str, object]:
        """Ask it, once."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with direct.open(request, timeout=60) as reply:
            return json.load(reply)

    def cpu(self) -> float:
        """Seconds of user and system time, children and those that have ended included."""
        return sum(map(_cpu, _tree(self.pid)))


def _tree(pid: int) -> Iterator[int]:
    yield pid
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from _tree(int(child))


def _cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICK  # utime, stime, and both of children that were waited for


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(command: Sequence[object], port: int, log: Path, seconds: float = 60.0) -> Iterator[Service]:
    """A service, from when it listens on this port; ended with everything that it started."""
    with log.open("wb") as out:
        process = subprocess.Popen([*map(str, command)], stdout=out, stderr=out, start_new_session=True)
    try:
        until = time.monotonic() + seconds
        while not _listens(port):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{command} does not listen: {log.read_text()[-2000:]}")
            time.sleep(0.05)
        yield Service(process.pid, f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what it left behind
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def banditads(catalog: Path, folder: Path, *flags: str) -> Iterator[Service]:
    """`banditads serve` as anybody starts it, with the policy of `workload`."""
    port = free_port()
    options = ["--policy", "vw", "--option", "exploration=epsilon", "--option", "epsilon=0.1"]
    command = [sys.executable, "-m", "banditads", "serve", "--port", port, "--catalog", catalog]
    command += ["--data-dir", folder / "data", *options, *flags]
    folder.mkdir(parents=True)
    with running(command, port, folder / "log") as service:
        yield service


@contextmanager
def peer(name: str, catalog: Path, folder: Path, *arguments: str) -> Iterator[Service]:
    """A file of `peers/`, run with a port, the catalog, and a folder for what it writes down."""
    port = free_port()
    folder.mkdir(parents=True)
    command = [sys.executable, PEERS / f"{name}.py", port, catalog, folder, *arguments]
    with running(command, port, folder / "log") as service:
        yield service


class Load(NamedTuple):
    """What a slice of load came to."""

    rate: float  # requests answered per second
    cpu: float  # microseconds per request, of the service
    sent: int = 0  # requests; those that nobody waited for any more included


def wrk(
    service: Service,
    path: str,
    bodies: Path,
    *,
    seconds: float = 1.0,
    connections: int = 16,
    once: bool = False,
    ids: Path | None = None,
) -> Load:
    """Post the lines of a file over kept connections, each waiting for its reply before it asks again.

    `once`: no line twice. `ids`: where to write the event ids of the replies. Anything
    refused or broken raises.
    """
    command = ["wrk", "-t1", f"-c{connections}", "-d1m", "--timeout", "30s", "-s", HERE / "load.lua"]
    command += [service.url + path, "--", bodies, connections if once else "again", ids or "-"]
    before = service.cpu()
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True) as process:
        while process.stdout.readline() not in ("begun\n", ""):  # it says other things before
            pass
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)  # it stops and sums up; by itself it knows whole seconds only
        output = process.communicate(timeout=60)[0]
    time.sleep(0.05)  # requests that were sent are answered, whoever has gone meanwhile
    used = service.cpu() - before
    said = json.loads(output.partition("\nsummary ")[2])
    if said["refused"] or said["failed"] or not said["answered"]:
        raise RuntimeError(f"{path}: {said}")
    return Load(said["answered"] / said["seconds"], used / said["sent"] * 1e6, said["sent"])


def write_lines(file: Path, values: Iterable[object]) -> Path:
    """A file with a line of JSON for each value."""
    file.write_text("".join(json.dumps(value) + "\n" for value in values))
    return file
