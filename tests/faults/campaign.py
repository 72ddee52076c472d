"""The real server, clients that keep their own books, and the comparison of the two after a fault.

A client notes every reply it got, and every request it got no reply to. After the fault it sends the latter
again, as users are told to; then what the server says and what the clients noted must be equal, exactly.
Rewards are multiples of 1/64, so that their sums are exact in whatever order they are added.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from banditads import events, signing
from banditads.choosing import Request, spread
from banditads.directory import read_config
from banditads.errors import Damaged
from banditads.features import clean
from banditads.journal.file import scan
from banditads.replay import fold
from banditads.state import State
from banditads.verification import verify

ADS = [{"id": f"ad-{n}", "features": {"kind": "abc"[n % 3], "price": n}} for n in range(6)]
PROBES = [{"device": f"d{n % 3}", "age": float(7 * n), "page": "home"} for n in range(6)]  # asked of /predict
PLANTED = Path(__file__).with_name("planted.py")
FLOOR = 0.01  # the server's default


@dataclass
class Tally:
    """What a phase has seen; `wrong` is what must not be."""

    faults: int = 0
    acknowledged: int = 0
    wrong: Counter = field(default_factory=Counter)  # lost, doubled, different, or refused
    said: list[str] = field(default_factory=list)

    def expect(self, holds: bool, kind: str, what: str) -> None:
        """Note that something does not hold."""
        if not holds:
            self.wrong[kind] += 1
            if len(self.said) < 20:
                self.said.append(f"{kind}: {what}")


class NotStarted(Exception):
    """The server ended instead of answering."""

    def __init__(self, code: int, said: str) -> None:
        super().__init__(f"exit {code}: {said[-600:]}")
        self.code, self.said = code, said


class Server:
    """`banditads serve` in a process of its own, with a bug planted into it if one is named.

    Its catalog and what it says lie in `aside`, away from the disk that is going to fail.
    """

    def __init__(self, folder: Path, aside: Path, *arguments: str, bug: str = "", before=(), environ=None):
        catalog = aside / "ads.jsonl"
        catalog.write_text("\n".join(map(json.dumps, ADS)))
        program = [str(PLANTED), bug] if bug else ["-m", "banditads"]
        self.folder, self.errors = folder, aside / "stderr"
        self.command = [*before, sys.executable, *program, "serve", "--data-dir", str(folder), "--port", "0"]
        self.command += ["--catalog", str(catalog), *arguments]
        self.environ = {**os.environ, **(environ or {})}
        self.process = None

    def launch(self) -> Server:
        """Start it and wait for nothing."""
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                self.command, stdout=subprocess.PIPE, stderr=errors, text=True, env=self.environ
            )
        return self

    def start(self) -> Server:
        """Start it and wait until it answers. Raises `NotStarted`."""
        self.errors.write_bytes(b"")
        self.launch()
        line = self.process.stdout.readline()
        found = re.search(r"http://([\d.]+):(\d+)", line)
        if not found:
            code = self.end(0)
            raise NotStarted(code, self.errors.read_text())
        self.address = found[1], int(found[2])
        return self

    def end(self, how: int = signal.SIGKILL) -> int:
        """Send it a signal and wait; its exit code."""
        with suppress(ProcessLookupError):
            self.process.send_signal(how)
        try:
            self.process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            raise
        return self.process.returncode

    @contextmanager
    def running(self):
        """Started, and killed in the end if it still runs."""
        try:
            yield self.start()
        finally:
            if self.process.poll() is None:
                self.end()
            self.process.stdout.close()


class Line:
    """One connection that is kept. `ask` gives (status, decoded reply)."""

    FAILED = (OSError, http.client.HTTPException)  # no reply: whatever was asked may have happened

    def __init__(self, server: Server) -> None:
        self.connection = http.client.HTTPConnection(*server.address, timeout=30)

    def ask(self, method: str, path: str, body=None):
        raw = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if raw else {}
        self.connection.request(method, path, raw, headers)
        reply = self.connection.getresponse()
        text = reply.read()
        return reply.status, json.loads(text) if text else None

    def __enter__(self):
        return self

    def __exit__(self, *what):
        self.connection.close()


@dataclass
class Ledger:
    """What the clients know. Everything in here was acknowledged, but for the three that say otherwise."""

    decisions: dict = field(default_factory=dict)  # event id -> (ad, probability, propensities, offset)
    rewards: dict = field(default_factory=dict)  # event id -> (value, offset, when the reply came)
    requests: dict = field(default_factory=dict)  # request id -> event id
    late: dict = field(default_factory=dict)  # event id -> value that was answered 410
    unwritten: set = field(default_factory=set)  # event ids of decisions that the disk refused
    unanswered: list = field(default_factory=list)  # bodies of /choose without a reply
    unknown: dict = field(default_factory=dict)  # event id -> value of a reward without a reply


class Clients:
    """Many visitors at once, until they are told to stop or the server is gone."""

    def __init__(self, ledger: Ledger, tally: Tally, seed: int, *, threads: int = 6) -> None:
        self.ledger, self.tally, self.seed, self.threads = ledger, tally, seed, threads
        self.stop, self.refused = threading.Event(), threading.Event()

    @contextmanager
    def visiting(self, server: Server):
        """Visits as long as this lasts."""
        self.stop.clear()
        self.refused.clear()
        self.seed += 1
        running = [threading.Thread(target=self._visit, args=(server, n)) for n in range(self.threads)]
        for each in running:
            each.start()
        try:
            yield
        finally:
            self.stop.set()
            for each in running:
                each.join()

    def wait(self, more: int, seconds: float = 60.0) -> None:
        """Until so many more rewards were acknowledged."""
        goal, deadline = len(self.ledger.rewards) + more, time.monotonic() + seconds
        while len(self.ledger.rewards) < goal and time.monotonic() < deadline:
            time.sleep(0.002)
        self.tally.expect(len(self.ledger.rewards) >= goal, "refused", f"not {more} rewards in {seconds} s")

    def _visit(self, server: Server, name: int) -> None:
        dice = random.Random(f"{self.seed} {name}")
        later = []
        with Line(server) as line:
            for number in range(10**9):
                if self.stop.is_set():
                    return
                own = f"{self.seed}-{name}-{number}"
                body = {"context": {"device": f"d{dice.randrange(3)}", "age": dice.randrange(60)}}
                body["request_id" if dice.random() < 0.3 else "event_id"] = own
                event_id = choose(line, body, self.ledger, self.tally)
                if event_id is False:
                    return
                if event_id and dice.random() < 0.85:  # the others never get one
                    later.append((event_id, dice.choice([0, 64, 64, dice.randrange(65)]) / 64))
                while later and dice.random() < 0.7:
                    event_id, value = later.pop(dice.randrange(len(later)))
                    if not reward(line, event_id, value, self.ledger, self.tally):
                        return
                    if event_id in self.ledger.unknown:  # 503
                        self.refused.set()
                        time.sleep(0.01)
                    elif event_id in self.ledger.rewards and dice.random() < 0.2:
                        other = dice.choice([value, value, 1 - value if value != 0.5 else 1])
                        if not again(line, event_id, value, other, self.ledger, self.tally):
                            return


def choose(line: Line, body: dict, ledger: Ledger, tally: Tally):
    """The event id of a decision, which is noted; None if there is none, False if nobody answers."""
    try:
        status, said = line.ask("POST", "/choose", body)
    except Line.FAILED:
        ledger.unanswered.append(body)
        return False
    tally.expect(status == 200, "refused", f"/choose: {status} {said}")
    if status != 200:
        return None
    event_id = said["event_id"]
    if said["offset"] is None:
        ledger.unwritten.add(event_id)
        return None
    noted = (said["ad"]["id"], said["probability"], said["propensities"], said["offset"])
    before = ledger.decisions.setdefault(event_id, noted)
    tally.expect(before == noted, "different", f"decision {event_id} was {before} and is {noted}")
    if request_id := body.get("request_id"):
        first = ledger.requests.setdefault(request_id, event_id)
        tally.expect(first == event_id, "doubled", f"request {request_id} is event {first} and {event_id}")
    return event_id


def reward(line: Line, event_id: str, value: float, ledger: Ledger, tally: Tally, known=()) -> bool:
    """Send a reward and note what came of it; False if nobody answers."""
    try:
        status, said = line.ask("POST", "/reward", {"event_id": event_id, "reward": value})
    except Line.FAILED:
        ledger.unknown[event_id] = value
        return False
    if status == 200:
        first = said["status"] == "applied" or event_id in known  # known: sent before, without a reply
        tally.expect(first, "doubled", f"reward {event_id} was there before it was sent")
        ledger.rewards[event_id] = (value, said["offset"], time.monotonic())
        ledger.unknown.pop(event_id, None)
    elif status == 410:
        ledger.late[event_id] = value
        ledger.unknown.pop(event_id, None)
    else:
        tally.expect(status == 503, "lost" if status == 404 else "refused", f"reward {event_id}: {said}")
        ledger.unknown[event_id] = value
    return True


def again(line: Line, event_id: str, value: float, other: float, ledger: Ledger, tally: Tally) -> bool:
    """Send an acknowledged reward once more, the same or another; False if nobody answers."""
    try:
        status, said = line.ask("POST", "/reward", {"event_id": event_id, "reward": other})
    except Line.FAILED:
        return False
    if other == value:
        offset = ledger.rewards[event_id][1]
        fits = status == 503 or (status == 200 and (said["status"], said["offset"]) == ("duplicate", offset))
        tally.expect(fits, "doubled" if status == 200 else "lost", f"{event_id} again: {status} {said}")
    else:
        tally.expect(status in (409, 503), "doubled", f"{event_id} with another value: {status} {said}")
    return True


def settle(server: Server, ledger: Ledger, tally: Tally) -> None:
    """Send everything again that got no reply, until there is one."""
    with Line(server) as line:
        while ledger.unanswered:
            tally.expect(
                choose(line, ledger.unanswered.pop(), ledger, tally) is not False, "refused", "no reply"
            )
        for event_id, value in list(ledger.unknown.items()):
            reward(line, event_id, value, ledger, tally, known=(event_id,))
        tally.expect(not ledger.unknown, "lost", f"no definite answer for {list(ledger.unknown)[:3]}")
        ledger.unknown.clear()


def predictions(line: Line) -> list[dict[str, float]]:
    """What /predict says to the probes."""
    return [line.ask("POST", "/predict", {"context": each})[1]["propensities"] for each in PROBES]


def predicted(state: State) -> list[dict[str, float]]:
    """What it should say in this state."""
    slates = [spread(state, at=time.time(), request=Request(clean(each)), floor=FLOOR) for each in PROBES]
    return [dict(zip(each.ids, each.pmf, strict=True)) for each in slates]


def folded(folder: Path) -> State:
    """What a run that never crashed would know: the journal from its beginning."""
    return fold(scan(folder), State.of(read_config(folder)))


def audit(server: Server, ledger: Ledger, tally: Tally, sample: int | None = None, seed: int = 0) -> None:
    """Compare the running server, its directory, and the clients' books.

    All counts and sums; of the decisions and rewards one by one the newest, and a `sample` of the others.
    """
    settle(server, ledger, tally)
    dice = random.Random(seed)

    def some(things):
        things = list(things)
        if sample is None or len(things) <= 2 * sample:
            return things
        return things[-sample:] + dice.sample(things[:-sample], sample)

    with Line(server) as line:
        stats = line.ask("GET", "/stats")[1]
        expected = {}
        for ad, *_ in ledger.decisions.values():
            expected.setdefault(ad, Counter())["choices"] += 1
        for event_id, (value, *_) in ledger.rewards.items():
            expected[ledger.decisions[event_id][0]]["rewards"] += 1
            expected[ledger.decisions[event_id][0]]["reward_sum"] += value
        for ad in sorted(expected.keys() | stats["ads"].keys()):
            for name in ("choices", "rewards", "reward_sum"):
                ours, theirs = expected.get(ad, {}).get(name, 0), stats["ads"].get(ad, {}).get(name, 0)
                kind = "lost" if theirs < ours else "doubled"
                tally.expect(ours == theirs, kind, f"{name} of {ad}: clients have {ours}, server {theirs}")
        for event_id in some(ledger.decisions):
            ad, probability, propensities, _ = ledger.decisions[event_id]
            status, said = line.ask("GET", f"/decisions/{event_id}")
            tally.expect(status == 200, "lost", f"decision {event_id}: {status} {said}")
            if status != 200:
                continue
            there = (said["ad"], said["probability"], said["propensities"])
            tally.expect(
                there == (ad, probability, propensities), "different", f"decision {event_id}: {there}"
            )
            if event_id in ledger.rewards:
                value = ledger.rewards[event_id][0]
                fits = (said["status"], said["reward"]) == ("rewarded", value)
                tally.expect(fits, "lost", f"reward {event_id} of {value}: {said['status']} {said['reward']}")
        for event_id in some(ledger.rewards)[:20]:
            value = ledger.rewards[event_id][0]
            again(line, event_id, value, value, ledger, tally)
        for request_id in some(ledger.requests)[:20]:
            choose(line, {"request_id": request_id}, ledger, tally)
        tally.expect(line.ask("GET", "/stats")[1] == stats, "doubled", "sending things again changed counts")
        now = predictions(line)
    check_folder(server.folder, tally, now)


def check_folder(folder: Path, tally: Tally, now=None) -> None:
    """The directory is whole, and leads to what the server predicts, bit for bit."""
    try:
        key = signing.derive(signing.load(signing.key_path("", folder)), "snapshots")
        verify(folder, key)
        if now is not None:
            tally.expect(
                predicted(folded(folder)) == now, "different", "/predict is not what the journal says"
            )
    except Damaged as error:
        tally.expect(False, "different", f"verify: {error}")


def records(folder: Path) -> list[events.Event]:
    """What is in a journal."""
    return [events.decode(record) for _, record in scan(folder)]
