"""What 1,500 slow connections do to the others: `python benchmarks/slow_clients.py`.

A third send half of their headers, a third half of a body, a third ask and never read; the former send a
byte now and then, and all come back when they are cut. Meanwhile one client with a kept connection chooses
and rewards, 20 times a second. Three rounds: nobody slow, slow clients on the bare server, and slow clients
in front of the nginx of `deploy/`, which passes the others on. Slow clients and the measured one are two
processes.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import resource
import selectors
import socket
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

sys.path[:0] = [str(Path(__file__).parent.parent / "tests" / name) for name in ("", "faults")]
from campaign import Server  # noqa: E402
from test_deploy import nginx  # noqa: E402

HALF = (
    b"GET /choose HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    b"POST /reward HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n{",
    b"GET /choose HTTP/1.1\r\nHost: x\r\n\r\n",
)


def attack(port: int, count: int, ready) -> None:
    """Keep so many slow connections open until this process is ended."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    lines = selectors.DefaultSelector()

    def come(kind: int) -> None:
        line = socket.create_connection(("127.0.0.1", port), timeout=5)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.sendall(HALF[kind])
        line.setblocking(False)
        lines.register(line, selectors.EVENT_READ, kind)

    for number in range(count):
        come(number % 3)
    ready.set()
    while True:
        began = time.monotonic()
        for key in list(lines.get_map().values()):
            try:
                if key.data < 2:
                    key.fileobj.send(b" ")
                    with suppress(BlockingIOError):
                        if key.fileobj.recv(4096) == b"":
                            raise ConnectionResetError
            except (OSError, ConnectionError):
                lines.unregister(key.fileobj)
                key.fileobj.close()
                with suppress(OSError):
                    come(key.data)
        time.sleep(max(0.0, 1.0 - (time.monotonic() - began)))


def visit(port: int, seconds: float) -> list[float]:
    """Milliseconds of each request."""
    took, line = [], None
    until = time.monotonic() + seconds
    number = 0
    while time.monotonic() < until:
        line = line or http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        event_id = f"v{port}-{number}"
        number += 1
        for method, path, body in (
            ("GET", f"/choose?event_id={event_id}&device=mobile", None),
            ("POST", "/reward", json.dumps({"event_id": event_id, "reward": 1})),
        ):
            began = time.perf_counter()
            line.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            reply = line.getresponse()
            reply.read()
            took.append(1000 * (time.perf_counter() - began))
            if reply.status != 200:
                raise SystemExit(f"{method} {path}: {reply.status}")
        time.sleep(0.05)
    line.close()
    return took


@click.command()
@click.option("--connections", default=1500)
@click.option("--seconds", default=20.0)
def main(connections: int, seconds: float) -> None:
    """Three rounds."""
    table = Table("round", "requests", "p50 ms", "p99 ms", "worst ms", "server MB", "threads")
    for name in ("nobody slow, bare", f"{connections} slow, bare", f"{connections} slow, behind nginx"):
        with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
            server = Server(Path(folder, "data"), Path(folder))
            stack.enter_context(server.running())
            port = server.address[1]
            if "nginx" in name:
                port = stack.enter_context(nginx(Path(folder), port))
            if "nobody" not in name:
                ready = multiprocessing.Event()
                slow = multiprocessing.Process(target=attack, args=(port, connections, ready), daemon=True)
                slow.start()
                stack.callback(slow.join)
                stack.callback(slow.kill)
                if not ready.wait(60):
                    raise SystemExit("the slow clients did not get in")
            took = visit(port, seconds)
            status = Path(f"/proc/{server.process.pid}/status").read_text()
            facts = dict(line.split(":", 1) for line in status.splitlines())
            p50, p99, worst = np.percentile(took, [50, 99, 100])
            table.add_row(
                name,
                str(len(took)),
                f"{p50:.1f}",
                f"{p99:.1f}",
                f"{worst:.1f}",
                f"{int(facts['VmRSS'].split()[0]) / 1024:.0f}",
                facts["Threads"].strip(),
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
