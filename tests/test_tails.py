"""The pieces of benchmarks/tail.py, commit.py, starting.py and memory.py do what their tables say."""

import fcntl
import itertools
import resource
import socket
import sys
import threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import commit
import memory
import starting
import tail


@pytest.mark.parametrize("module", [commit, starting, tail])
def test_a_benchmark_gives_a_table_of_figures(module):
    head, *body = module.rows(quick=True)
    assert body
    assert all(len(row) == len(head) for row in body)
    assert all(float(figure.replace(",", "")) >= 0 for row in body for figure in row[1:] if figure)


def test_every_figure_of_memory_is_that_of_something():
    with ProcessPoolExecutor(1, get_context("spawn")) as process:  # this one has freed memory to give away
        sizes = [process.submit(memory.weigh_waiting, 10, 3000), process.submit(memory.weigh_settled, 3000)]
        assert all(size.result() > 0 for size in sizes)


def test_rewards_are_of_decisions_that_wait_and_every_other_request():
    made = tail.requests("t", 10, itertools.count(1), mix=True)
    assert [b"/reward" in each for each in made] == [False, True] * 5
    assert b'"e5"' in made[-1]
    assert not any(b"/reward" in each for each in tail.requests("t", 10, itertools.count(1), mix=False))


def test_a_latency_counts_from_when_the_request_was_to_be_sent():
    """The answer to the first comes when three have been asked: all of them have waited for it."""
    arrived, go = [], threading.Event()

    def serve(line):
        with line:
            while line.recv(4096):
                arrived.append(line)
                if len(arrived) == 3:
                    go.set()
                go.wait(20)
                line.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")

    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept():
            for _ in range(3):
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()

        threading.Thread(target=accept, daemon=True).start()
        found = tail.open_loop(listening.getsockname()[1], [tail.post("/choose", {})] * 3, rate=10.0)
    assert len(found.choices) == 3
    assert max(found.choices)[0] >= 200  # milliseconds: two more were to come, 100 apart
    assert all(0 <= late <= took for took, late in found.choices)
    assert found.rewards == []


def test_what_is_refused_ends_the_measurement():
    with pytest.raises(RuntimeError, match="404"):
        tail._whole(bytearray(b"HTTP/1.1 404 Not Found\r\n\r\n"))


def test_the_load_hears_of_replies_on_more_than_a_thousand_connections():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    near, far = socket.socketpair()
    with near, far, socket.socket(fileno=fcntl.fcntl(near, fcntl.F_DUPFD, 1500)) as high:
        assert tail._readable([high], 0.01) == []
        far.send(b"a reply")
        assert tail._readable([high, far], 10.0) == [high]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(("said", "meant"), [("850.00us", 0.85), ("1.50ms", 1.5), ("2.00s", 2000.0)])
def test_a_latency_is_read_as_wrk_means_it(said, meant):
    assert tail._milliseconds(said) == meant
