"""How long a start takes: `python benchmarks/starting.py`.

From the start of the process to its first answer on an empty directory, policy `vw`, beside a process that
only imports vowpalwabbit, river and hug (and gives NumPy back the name that hug asks for). They alternate;
figures are medians, the ratio is of two starts that follow each other.
"""

from __future__ import annotations

import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import click
from commit import cpu
from rich.console import Console
from rich.table import Table

IMPORTS = "import numpy; numpy.unicode_ = numpy.str_; import vowpalwabbit, river, hug"
HEADERS = ("", "seconds", "CPU seconds")


def imports() -> tuple[float, float]:
    """(seconds, seconds of CPU) of importing the libraries."""
    used, began = _children(), time.perf_counter()
    subprocess.run([sys.executable, "-c", IMPORTS], check=True)
    return time.perf_counter() - began, _children() - used


def answers() -> tuple[float, float]:
    """(seconds, seconds of CPU) to the first answer of a server on an empty directory."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        command = [sys.executable, "-m", "banditads", "serve", "--port", str(port)]
        with subprocess.Popen(
            [*command, "--data-dir", str(Path(folder, "data"))],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            while not _answers(port):
                if process.poll() is not None:
                    raise RuntimeError(f"the server ended with {process.returncode}")
                time.sleep(0.002)
            took = time.perf_counter() - began, cpu(process.pid)
            process.terminate()
        return took


def _answers(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as line:
        line.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        return line.recv(4096).startswith(b"HTTP/1.1 200")
    return False


def _children() -> float:
    """Seconds of CPU of processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rows(quick: bool) -> list[tuple[str, ...]]:
    """The table, its head first."""
    both = [(imports(), answers()) for _ in range(1 if quick else 15)]
    found: list[tuple[str, ...]] = [HEADERS]
    for name, which in (("importing vowpalwabbit, river, hug", 0), ("to the first answer", 1)):
        took, used = (statistics.median(each[which][what] for each in both) for what in (0, 1))
        found.append((name, f"{took:.2f}", f"{used:.2f}"))
    ratios = [statistics.median(server[what] / libs[what] for libs, server in both) for what in (0, 1)]
    return [*found, ("ratio", *(f"{ratio:.2f}" for ratio in ratios))]


@click.command(help=__doc__)
@click.option("--quick", is_flag=True, help="Once instead of 15 times.")
def main(quick: bool) -> None:
    head, *body = rows(quick)
    table = Table(*head)
    for row in body:
        table.add_row(*row)
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
