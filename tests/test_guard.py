"""Whatever comes through the socket: never a 5xx, no word about the inside, and nothing changed by it."""

import io
import json
import os
import re
import resource
import socket
import threading
import time
from contextlib import closing, suppress

import pytest
import requests
from conftest import ids

from banditads import api, guard, wire
from banditads.engine import Engine
from banditads.guard import Body, Door
from banditads.journal import connect
from banditads.state import State


def post(body, path="/choose", *headers, kind="application/json"):
    """A POST as bytes."""
    body = body if isinstance(body, bytes) else body.encode()
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: x",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
        *headers,
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def get(target, *headers, method="GET"):
    """A request without a body, as bytes."""
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: x", *headers]).encode("latin-1") + b"\r\n\r\n"


def chunked(body, *headers, path="/choose", kind="application/json"):
    """A POST in chunks as they are given."""
    lines = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Type: {kind}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


CHUNKED = "Transfer-Encoding: chunked"
GOOD = b'{"event_id": "smuggled"}'
LOW = "closed"  # the HTTP server ends it before our code is reached: an empty 4xx, or no reply at all
MALFORMED = {
    "no JSON": (post("hello"), 400),
    "an empty body": (post(""), 400),
    "half of JSON": (post('{"user_id": "u'), 400),
    "two values": (post("{} {}"), 400),
    "an array": (post("[]"), 400),
    "a number": (post("5"), 400),
    "null": (post("null"), 400),
    "nested 100,000 deep": (post("[" * 60_000), 400),
    "a context nested deep": (post('{"context": ' + '{"a":' * 5000 + "1" + "}" * 5001), 400),
    "an integer of 5,000 digits": (post('{"slots": ' + "9" * 5000 + "}"), 400),
    "a feature of 5,000 digits": (post('{"context": {"a": ' + "9" * 5000 + "}}"), 400),
    "NaN": (post('{"context": {"a": NaN}}'), 400),
    "Infinity": (post('{"context": {"a": -Infinity}}'), 400),
    "1e999": (post('{"context": {"a": 1e999}}'), 400),
    "a reward of 1e999": (post('{"event_id": "a", "reward": 1e999}', "/reward"), 400),
    "a reward in words": (post('{"event_id": "a", "reward": "nan"}', "/reward"), 400),
    "a reward of true": (post('{"event_id": "a", "reward": true}', "/reward"), 400),
    "no event id": (post('{"reward": 1}', "/reward"), 400),
    "an unknown field": (post('{"event_id": "a", "reward": 1, "extra": 2}', "/reward"), 400),
    "an unpaired surrogate": (post(b'{"user_id": "\\ud800"}'), 400),
    "control characters in an id": (post('{"user_id": "a\\u0000b"}'), 400),
    "line ends in an id": (post('{"event_id": "a\\r\\nSet-Cookie: b"}'), 400),
    "an id of 10,000 characters": (post('{"user_id": "' + "a" * 10_000 + '"}'), 400),
    "a byte order mark": (post(b"\xef\xbb\xbf{}"), 400),
    "invalid UTF-8": (post(b'{"user_id": "\xff\xfe"}'), 400),
    "UTF-16": (post('{"user_id": "a"}'.encode("utf-16")), 400),
    "UTF-16, and it says so": (post("{}", kind="application/json; charset=utf-16"), 415),
    "an unknown charset": (post("{}", kind="application/json; charset=klingon"), 415),
    "gzip": (post(b"\x1f\x8b\x08\x00", "/choose", "Content-Encoding: gzip"), 415),
    "a form": (post("event_id=a&reward=1", "/reward", kind="application/x-www-form-urlencoded"), 415),
    "multipart": (post("--b\r\n", kind="multipart/form-data; boundary=b"), 415),
    "XML": (post("<a/>", kind="text/xml"), 415),
    "no content type to speak of": (post("{}", kind=";;;"), 415),
    "an array of 100,000": (post('{"ads": [' + ",".join(["0"] * 30_000) + "]}"), 400),
    "too many inline ads": (post('{"ads": [' + ",".join(f'"{n}"' for n in range(5000)) + "]}"), 400),
    "a body over the limit": (post(b" " * 70_000), 413),
    "a length over every limit": (post("", "/choose").replace(b"Length: 0", b"Length: 99999999999"), 413),
    "a length that is no number": (post("{}").replace(b"Length: 2", b"Length: two"), LOW),
    "a negative length": (post("{}").replace(b"Length: 2", b"Length: -2"), LOW),
    "two lengths": (post("{}", "/choose", "Content-Length: 5"), LOW),
    "a length too large for any number": (post("{}").replace(b"Length: 2", b"Length: " + b"9" * 40), LOW),
    "MessagePack that is none": (post(b"\xc1", kind="application/msgpack"), 400),
    "MessagePack that promises 4 GiB": (post(b"\xdd\xff\xff\xff\xff", kind="application/msgpack"), 400),
    "a chunk size that is none": (chunked(b"zz\r\n{}\r\n0\r\n\r\n", CHUNKED), (400, LOW)),
    "a chunk of 2**64 bytes": (chunked(b"ffffffffffffffff1\r\n{}", CHUNKED), (400, LOW)),
    "a negative chunk": (chunked(b"-2\r\n{}\r\n0\r\n\r\n", CHUNKED), (400, LOW)),
    "an encoding that is not chunked": (chunked(b"{}", "Transfer-Encoding: gzip"), (400, 415, LOW)),
    "chunked, written otherwise": (chunked(b"0\r\n\r\n", "Transfer-Encoding: x, chunked"), (400, 415, LOW)),
    "lines in chunks": (
        chunked(b'9\r\n{"id":"a"}\r\n0\r\n\r\n', CHUNKED, path="/catalog/ads", kind="application/x-ndjson"),
        400,
    ),
    "a space in a header's name": (get("/stats", "Bad Header: x"), LOW),
    "a NUL in a header": (get("/stats", "X-A: a\x00b"), LOW),
    "a line end alone in a header": (get("/stats", "X-A: a\rb"), LOW),
    "a folded header": (get("/stats", "X-A: a", " b"), LOW),
    "200 headers": (get("/stats", *(f"X-{n}: a" for n in range(200))), LOW),
    "a header of 1 MB": (get("/stats", "X-A: " + "a" * 10**6), LOW),
    "a query of 100 kB": (get("/choose?a=" + "b" * 100_000), (400, LOW)),
    "a query of 9 kB": (get("/choose?a=" + "b" * 9_000), 400),
    "a path of 9 kB": (get("/decisions/" + "b" * 9_000), 400),
    "a NUL in a path": (get("/decisions/a%00b"), (400, 404)),
    "a line end in a path": (get("/decisions/a%0d%0aSet-Cookie:%20b"), (400, 404)),
    "a path that is not UTF-8": (get("/decisions/%ff"), 400),
    "a query that is not UTF-8": (get("/choose?user_id=%ff"), 400),
    "a line end in a query": (get("/choose?user_id=a%0d%0ab"), 400),
    "a parameter twice": (get("/choose?user_id=a&user_id=b"), 400),
    "a parameter without a name": (get("/choose?=a"), 400),
    "400 parameters": (get("/choose?" + "&".join(f"p{n}=1" for n in range(400))), 400),
    "slots in words": (get("/choose?slots=many"), 400),
    "an unknown parameter": (get("/stats?format=xml"), 400),
    "an unknown path": (get("/admin"), 404),
    "dot segments": (get("/../../etc/passwd"), (400, 404)),
    "an unknown method": (get("/choose", method="BREW"), 405),
    "a method that a route has not": (get("/reward"), 405),
    "TRACE": (get("/stats", method="TRACE"), 405),
    "CONNECT": (get("x:1", method="CONNECT"), (400, 405, LOW)),
    "an asterisk": (get("*", method="OPTIONS"), (400, 404, 405, LOW)),
    "no target": (b"GET  HTTP/1.1\r\nHost: x\r\n\r\n", LOW),
    "HTTP/3.0": (b"GET /stats HTTP/3.0\r\nHost: x\r\n\r\n", LOW),
    "no HTTP at all": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", LOW),
    "a GET with a body": (get("/stats", "Content-Length: 5") + b"hello", 400),
    "a DELETE with chunks": (
        get("/catalog/ads/ad-1", CHUNKED, method="DELETE") + b"0\r\n\r\n",
        400,
    ),
    "a click on nothing": (get("/click/nobody"), 404),
    "an impression of nothing": (get("/impression/nobody"), 404),
    "a decision that never was": (get("/decisions/nobody"), 404),
}


def exchange(server, raw, more=0.0):
    """The first reply, and what else comes within `more` seconds."""
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as line, suppress(OSError):
        seen = b""
        with suppress(ConnectionError):
            line.sendall(raw)
        with suppress(ConnectionError, TimeoutError):
            while not whole(seen) and (part := line.recv(65536)):
                seen += part
            line.settimeout(more or 0.001)
            while part := line.recv(65536):
                seen += part
    return seen


def whole(reply):
    """Whether a reply has all of its body."""
    head, end, body = reply.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    return bool(end) and len(body) >= int(length[1] if length else 0)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    from conftest import Server

    started = Server(tmp_path_factory.mktemp("guard") / "data", "--policy", "uniform").start()
    yield started
    started.end()


INSIDE = re.compile(
    rb"Traceback|banditads/|\.py|site-packages|msgspec|falcon|line \d+, in|/tmp/|<class", re.I
)


def test_there_are_more_than_60_of_them():
    assert len(MALFORMED) >= 60


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_request_is_refused_and_changes_nothing(server, name):
    raw, expected = MALFORMED[name]
    expected = expected if isinstance(expected, tuple) else (expected,)
    before = server.data("/stats")
    reply = exchange(server, raw)
    statuses = [int(each) for each in re.findall(rb"HTTP/1\.1 (\d{3})", reply)]

    assert not INSIDE.search(reply), reply
    assert all(400 <= each < 500 for each in statuses), reply
    if statuses and statuses[0] in expected:
        head, _, body = reply.partition(b"\r\n\r\n")
        if b"GET" in raw[:3] or body:
            error = json.loads(body)["error"]
            assert set(error) == {"code", "message", "field"}
            assert error["code"]
            assert error["message"]
            assert b"no-store" in head.lower()
    else:
        assert LOW in expected, reply
        assert reply.partition(b"\r\n\r\n")[2] == b""
    assert server.data("/stats") == before
    assert server("GET", "/healthz").status_code == 200


def test_a_length_beside_chunks_means_nothing_and_the_connection_ends(server):
    """As RFC 9112 has it: the chunks count, and nothing after them is taken for a request."""
    raw = chunked(b"2\r\n{}\r\n0\r\n\r\n", CHUNKED, "Content-Length: 4") + get("/choose?event_id=smuggled")
    reply = exchange(server, raw, more=1.0)
    assert reply.count(b"HTTP/1.1 ") == 1
    assert server("GET", "/decisions/smuggled").status_code == 404


def test_rubbish_after_a_good_request_is_refused_and_the_good_one_answered(server):
    reply = exchange(server, get("/healthz") + b"\x00\x01rubbish\r\n\r\n")
    assert reply.startswith(b"HTTP/1.1 200")
    assert b" 5" not in reply.split(b"\r\n")[0]


def test_a_body_that_ends_early_is_no_request(server):
    before = server.data("/stats")
    raw = post('{"event_id": "half"}').replace(b"Length: 20", b"Length: 500")
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as line:
        line.sendall(raw)
    deadline = time.monotonic() + 20
    while 'banditads_request_seconds_count{method="POST",route="/choose",status="400"}' not in (
        server("GET", "/metrics").text
    ):
        assert time.monotonic() < deadline
    assert server.data("/stats") == before


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/msgpack", wire.MSGPACK),
        ("application/msgpack;q=0", wire.JSON),
        ("application/msgpack;q=0.2, application/json", wire.JSON),
        ("application/json;q=0.2, application/msgpack;q=0.9", wire.MSGPACK),
        ("application/x-msgpack", wire.MSGPACK),
        ("*/*", wire.JSON),
        ("text/html", wire.JSON),
        ("text/html, application/json;q=nonsense", wire.JSON),
        ("", wire.JSON),
    ],
)
def test_accept_is_weighed(server, accept, kind):
    for path in ("/healthz", "/nowhere"):
        reply = requests.get(server.url + path, headers={"Accept": accept}, timeout=20)
        assert reply.headers["content-type"] == kind
        assert reply.headers["cache-control"] == "no-store"


def test_what_was_refused_at_the_door_is_in_the_metrics(server):
    exchange(server, post("{}", "/choose", "Content-Encoding: gzip"))
    metrics = server("GET", "/metrics").text
    assert re.search(r'banditads_refused_at_the_door_total\{status="415"\} [1-9]', metrics)
    assert "banditads_connections_cut_total" in metrics


def half_sent(server, count):
    """Connections that have sent half of a reward."""
    host, port = server.url.removeprefix("http://").split(":")
    lines = []
    for _ in range(count):
        line = socket.create_connection((host, int(port)), timeout=30)
        line.sendall(post(b"{" + b" " * 49, "/reward")[:-40])
        lines.append(line)
    return lines


@pytest.fixture
def many_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_300_bodies_that_do_not_come_stop_nobody_else_and_not_the_end(start, many_files):
    server = start("--policy", "uniform")
    lines = half_sent(server, 300)
    for number in range(30):
        assert server("GET", f"/choose?event_id=e{number}").status_code == 200
        assert server("POST", "/reward", {"event_id": f"e{number}", "reward": 1}).status_code == 200
    began = time.monotonic()
    status, errors = server.end()
    assert status == 0, errors
    assert time.monotonic() - began < 5  # promised; not a measurement
    for line in lines:
        line.close()


def test_a_body_that_does_not_come_loses_its_connection_and_an_idle_one_does_not(start):
    server = start("--policy", "uniform", "--body-timeout", "1")
    server("GET", "/healthz")  # this session's connection is idle from here on
    (line,) = half_sent(server, 1)
    trickle = half_sent(server, 1)[0]

    def drip():
        try:
            while True:
                trickle.sendall(b" ")
                time.sleep(0.2)
        except OSError:
            pass

    dripping = threading.Thread(target=drip)
    dripping.start()
    for each in (line, trickle):
        with closing(each):
            while each.recv(4096):  # a reply, perhaps; then the end
                pass
    dripping.join()
    adapter = server.session.get_adapter(server.url)
    kept = next(iter(adapter.poolmanager.pools._container.values()))
    assert server("GET", "/healthz").status_code == 200
    assert kept.num_connections == 1  # it is still the same connection
    assert int(re.search(r"connections_cut_total (\d+)", server("GET", "/metrics").text)[1]) == 2


def test_a_body_that_is_not_late_leaves_every_connection_alone(monkeypatch):
    door = Door(seconds=60.0)
    monkeypatch.setattr("os.listdir", lambda path: pytest.fail("looked for connections"))
    assert Body(io.BytesIO(b"xxxx"), door, "127.0.0.1").read(3) == b"xxx"
    door.clear()
    assert door.reading == {}


class Hall:
    """A door in this process with connections from 127.0.0.1, all of which have been answered once."""

    def __init__(self, connections, address="127.0.0.1", host="127.0.0.1"):
        self.door = Door(seconds=0.3)
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.listener = socket.create_server((host, 0), family=family)
        self.door.port = self.listener.getsockname()[1]
        self.clients, self.ours = [], []
        for _ in range(connections):
            self.clients.append(socket.create_connection((host, self.door.port), timeout=10))
            self.ours.append(self.listener.accept()[0])
            self.ours[-1].sendall(b"answer")
            self.clients[-1].recv(100)
        time.sleep(0.05)  # the kernel's clock is a coarse one
        self.door.reading[Body(None, self.door, address)] = time.monotonic() - 60

    def cut(self):
        """Look twice; which of the connections are no more."""
        self.door.clear()
        time.sleep(guard.AGAIN)
        self.door.clear()
        gone = []
        for number, client in enumerate(self.clients):
            client.setblocking(False)
            with suppress(BlockingIOError):
                gone += [number] if client.recv(100) == b"" else []
        assert len(gone) == self.door.cut
        return gone

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for each in (*self.clients, *self.ours, self.listener):
            each.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_who_asks_and_waits_is_cut_and_who_is_idle_is_not(host):
    with Hall(2, address=host, host=host) as hall:
        hall.clients[0].sendall(b"ask")
        time.sleep(0.4)
        assert hall.cut() == [0]


def test_a_connection_that_was_idle_for_long_and_asks_just_now_is_not_cut():
    with Hall(2) as hall:
        time.sleep(0.4)
        for client in hall.clients:
            client.sendall(b"ask")
        hall.door.clear()
        hall.ours[0].sendall(b"answer")
        assert hall.cut() == [1]


def test_a_late_body_cuts_no_connection_of_another_address():
    with Hall(1, address="192.0.2.1") as hall:
        hall.clients[0].sendall(b"ask")
        time.sleep(0.4)
        assert hall.cut() == []


def test_looking_for_who_is_late_leaves_no_file_open():
    with Hall(1) as hall, open(os.devnull) as _:
        before = os.listdir("/proc/self/fd")
        for _ in range(5):
            hall.door.clear()
        assert len(os.listdir("/proc/self/fd")) == len(before)


def test_who_was_told_to_continue_and_does_not_loses_the_connection(start):
    server = start("--policy", "uniform", "--body-timeout", "1")
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=30) as line:
        line.sendall(post("{}", "/reward", "Expect: 100-continue")[:-2])
        assert line.recv(4096) == b"HTTP/1.1 100 Continue\r\n\r\n"
        while line.recv(4096):  # a reply, perhaps; then the end, and no time-out of ours
            pass


def test_who_does_not_read_the_replies_is_given_up(start):
    server = start("--policy", "uniform", "--threads", "2")
    host, port = server.url.removeprefix("http://").split(":")
    server.session.close()
    held = []
    for _ in range(4):  # as many connections as there may be
        line = socket.socket()
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        line.connect((host, int(port)))
        line.setblocking(False)
        with suppress(BlockingIOError):
            while True:
                line.send(get("/openapi.json") * 100)
        held.append(line)
    with closing(socket.create_connection((host, int(port)), timeout=60)) as waits:
        waits.sendall(get("/healthz"))
        assert waits.recv(4096).startswith(b"HTTP/1.1 200")  # and no time-out
    for line in held:
        line.close()


def test_a_stop_while_it_starts_ends_it_cleanly(tmp_path):
    import signal
    import subprocess
    import sys

    for pause in (0.05, 0.3, 0.6):
        process = subprocess.Popen(
            [sys.executable, "-m", "banditads", "serve", "--data-dir", str(tmp_path / "data"), "--port", "0"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        time.sleep(pause)
        process.send_signal(signal.SIGTERM)
        errors = process.communicate(timeout=30)[1]
        assert process.returncode in (0, -signal.SIGTERM), errors  # the latter before Python runs our code
        assert b"Traceback" not in errors


def test_no_status_is_without_its_words():
    assert set(wire.STATUS.values()) <= set(wire.REASONS)
    application = api.build(Engine(State("uniform"), connect("memory:"), ids=ids()))
    assert application.limit >= wire.MAX_BODY
