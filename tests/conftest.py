"""What several tests need: a clock that only the test moves, ids that repeat, an engine, a driver."""

from __future__ import annotations

import itertools
import json
import os
import random
import re
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
import requests

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as the server does, before anything imports NumPy

from banditads.choosing import Request
from banditads.engine import Engine
from banditads.errors import Refused
from banditads.events import Ad
from banditads.journal import connect
from banditads.signing import EventIds
from banditads.state import State

ADS = [
    Ad(name, {"kind": name, "price": float(number)}, f"https://shop.test/{name}")
    for number, name in enumerate("abc")
]


class Clock:
    """Seconds since the epoch, as the test says."""

    def __init__(self, now: float = 1_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def ids() -> EventIds:
    """Event ids that are the same in every run."""
    numbers = itertools.count()
    return EventIds(b"k" * 32, entropy=lambda size: next(numbers).to_bytes(size, "big"))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_engine(clock):
    def make(policy="uniform", journal=None, *, ads=ADS, options=None, **given):
        joining = {
            name: given.pop(name)
            for name in (
                "wait",
                "default",
                "max_open",
                "max_open_bytes",
                "max_done",
                "max_users",
                "aggregation",
                "recommender",
                "recommend_from",
                "advise",
                "challengers",
                "silence",
            )
            if name in given
        }
        if "challengers" in joining:
            joining["floor"] = given.get("floor", 0.0)
        state = State(policy, options, **joining)
        engine = Engine(state, journal or connect("memory:"), ids=ids(), clock=clock, **given)
        if ads and not engine.state.catalog.ads:
            engine.put_ads(ads)
        return engine

    return make


def drive(engine, clock, n=200, seed=1):
    """n requests with clicks that come late, twice, with another value, never, or for nothing."""
    dice = random.Random(seed)
    for number in range(n):
        clock.now += dice.choice([0, 1, 7, 30, -20])
        context = {"page": dice.choice(["home", "news"]), "age": float(dice.randrange(20, 60))}
        engine.choose(Request(context), f"{seed}-{number}")
        for _ in range(dice.choice([0, 0, 1, 2])):
            with suppress(Refused):
                engine.reward(f"{seed}-{number - dice.randrange(40)}", dice.choice([0.0, 1.0]))
        if dice.random() < 0.02:
            engine.put_ads([Ad(dice.choice("abcd"), {"kind": "new", "price": float(number)})])
        if dice.random() < 0.02:
            engine.tick()


def banditads(*arguments, code=0):
    """The command, run to its end."""
    done = subprocess.run(
        [sys.executable, "-m", "banditads", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, done.stderr
    return done


CATALOG = [{"id": f"ad-{n}", "features": {"kind": "abc"[n % 3], "price": n}} for n in range(6)]


class Server:
    """`banditads serve` in a process of its own, on a free port."""

    def __init__(self, folder, *arguments):
        catalog = folder.parent / "ads.jsonl"
        catalog.write_text("\n".join(json.dumps(ad) for ad in CATALOG))
        self.folder = folder
        self.command = [sys.executable, "-m", "banditads", "serve", "--data-dir", str(folder), "--port", "0"]
        self.command += ["--catalog", str(catalog), *arguments]

    def start(self):
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, bufsize=1
        )
        self.said = self.process.stdout.readline()
        if not self.said:
            raise AssertionError(f"exit {self.process.wait()}: {self.process.stderr.read()}")
        self.url = re.search(r"http://[\d.:]+", self.said)[0]
        self.session = requests.Session()
        return self

    def __call__(self, method, path, body=None, session=None):
        return (session or self.session).request(method, self.url + path, json=body, timeout=30)

    def data(self, path):
        return self("GET", path).json()

    def end(self, how=signal.SIGTERM):
        self.session.close()
        self.process.send_signal(how)
        errors = self.process.communicate(timeout=30)[1]
        return self.process.returncode, errors


@pytest.fixture
def start(tmp_path):
    started = []

    def begin(*arguments, folder=None):
        started.append(Server(folder or tmp_path / "data", *arguments))
        return started[-1].start()

    yield begin
    for server in started:
        if server.process.poll() is None:
            server.end(signal.SIGKILL)
