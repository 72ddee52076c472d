"""Replies that wait for the disk: they keep no thread, and they say what became of the disk."""

import io
import json
import threading
from wsgiref.util import setup_testing_defaults

import pytest

from banditads import api
from banditads.choosing import Request
from banditads.errors import DiskFailure
from banditads.replies import Replies


class Disk:
    """One that keeps everybody waiting until it is let, and then may fail."""

    def __init__(self):
        self.ready, self.busy = threading.Semaphore(0), threading.Event()
        self.asked, self.error = [], None

    def sync(self, offset):
        self.asked.append(offset)
        self.busy.set()
        assert self.ready.acquire(timeout=10)
        if self.error:
            raise self.error


class Client:
    """A server's side of a request; what it was told to reply."""

    def __init__(self, broken=False):
        self.broken, self.replied, self.said = broken, threading.Event(), []

    def response_bytes(self, *said):
        self.said.append(said)
        self.replied.set()
        if self.broken:
            raise RuntimeError("this client is gone")

    def text(self):
        assert self.replied.wait(10)
        return self.said[0][2].decode()

    def reply(self):
        body = json.loads(self.text())
        ((status, headers, _),) = self.said
        return status, dict(headers), body


@pytest.fixture
def disk():
    return Disk()


@pytest.fixture
def engine(make_engine):
    made = make_engine()
    for number in range(5):
        made.choose(Request(), f"e{number}")
    return made


@pytest.fixture
def ask(engine, disk):
    call = Replies(disk.sync).of(api.build(engine, origins=["https://shop.example"]))

    def send(path, body=None, client=None, method="POST", **headers):
        raw = b"" if body is None else json.dumps(body).encode()
        scope = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "QUERY_STRING": "",
            "wsgi.input": io.BytesIO(raw),
        }
        setup_testing_defaults(scope)
        if body is not None:
            scope |= {"CONTENT_LENGTH": str(len(raw)), "CONTENT_TYPE": "application/json"}
        client = client or Client()
        call(client, scope | headers)
        return client

    return send


def rewarded(engine):
    return sum(done.reward is not None for done in engine.state.joiner.done.values())


def test_a_held_reward_is_learned_and_keeps_nobody_and_is_acknowledged_when_the_disk_has_it(
    ask, engine, disk
):
    clients = [ask("/click/e0")]
    assert disk.busy.wait(10)
    clients += [ask("/reward", {"event_id": f"e{number}", "reward": 1}) for number in (1, 2, 3)]
    assert rewarded(engine) == 4
    assert ask("/choose", {}).reply()[0] == 200
    assert not any(client.said for client in clients)

    disk.ready.release(2)  # the first alone, the others together
    said = [client.reply() for client in clients]
    assert [status for status, *_ in said] == [200] * 4
    offsets = [body["offset"] for *_, body in said]
    assert [body["status"] for *_, body in said] == ["applied"] * 4
    assert disk.asked == [offsets[0], offsets[3]]


def test_what_is_held_when_the_disk_fails_is_refused_and_keeps_its_marks_for_browsers(ask, disk):
    disk.error = DiskFailure("fdatasync failed")
    client = ask("/click/e1", HTTP_ORIGIN="https://shop.example")
    disk.ready.release()
    status, headers, body = client.reply()
    assert (status, body["error"]["code"]) == (503, "unavailable")
    assert headers["Access-Control-Allow-Origin"] == "https://shop.example"
    assert {"Retry-After", "cache-control"} <= headers.keys()
    assert headers["content-length"] == str(len(client.said[0][2]))


def test_a_refusal_that_was_written_down_waits_for_the_disk_too(ask, engine, clock, disk):
    clock.now += engine.state.joiner.wait + 1
    client = ask("/reward", {"event_id": "e1", "reward": 1})
    assert not client.said
    disk.ready.release()
    assert client.reply()[0] == 410


def test_a_client_that_cannot_be_told_keeps_no_other_back(ask, disk):
    first = ask("/reward", {"event_id": "e0", "reward": 1})
    clients = [ask("/reward", {"event_id": f"e{n}", "reward": 1}, Client(broken=n == 1)) for n in (1, 2)]
    disk.ready.release(2)
    assert [client.reply()[0] for client in (first, *clients)] == [200] * 3


def test_what_a_held_reply_came_to_is_counted_when_it_leaves(ask, disk):
    disk.error = DiskFailure("fdatasync failed")
    clients = [ask("/reward", {"event_id": f"e{number}", "reward": 1}) for number in range(2)]
    disk.ready.release(2)
    assert [client.reply()[0] for client in clients] == [503] * 2

    metrics = ask("/metrics", method="GET").text().splitlines()
    count = next(
        line for line in metrics if line.startswith("banditads_request_seconds_count") and "/reward" in line
    )
    assert 'status="503"' in count
    assert float(count.split()[-1]) >= 1  # the last may be counted just now
