"""Many requests by one connection: answered in order, each whole, none lost, none spoilt by another."""

import json
import random
import re
import socket
from contextlib import suppress

import pytest
from conftest import Server
from test_guard import CHUNKED, chunked, exchange, get, post


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    started = Server(tmp_path_factory.mktemp("keep") / "data", "--policy", "uniform").start()
    yield started
    started.end()


class Line:
    """A connection, and the replies that come by it, read strictly by their lengths."""

    def __init__(self, server):
        host, port = server.url.removeprefix("http://").split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=30)
        self.file = self.socket.makefile("rb")

    def reply(self, method="GET"):
        """(status, headers, body); None at the end."""
        first = self.file.readline()
        if not first:
            return None
        status = int(re.fullmatch(rb"HTTP/1\.[01] (\d{3}) [^\r\n]+\r\n", first)[1])
        headers = {}
        while (line := self.file.readline()) != b"\r\n":
            name, _, value = line.decode().partition(":")
            assert name.lower() not in headers
            headers[name.lower()] = value.strip()
        assert "transfer-encoding" not in headers
        size = 0 if method == "HEAD" or status == 204 else int(headers["content-length"])
        body = self.file.read(size)
        assert len(body) == size
        return status, headers, body

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.file.close()
        self.socket.close()


def pipeline(prefix, count, seed):
    """Requests of every kind: (method, bytes, the status, what its body must say)."""
    dice = random.Random(seed)
    made, chosen = [], []
    for number in range(count):
        name = f"{prefix}-{number}"
        match dice.randrange(10):
            case 0 | 1 | 2:
                chosen.append(name)
                body = json.dumps({"event_id": name, "context": {"a": "x" * dice.randrange(500)}})
                made.append(("POST", post(body), 200, name))
            case 3 | 4:
                if not chosen:
                    continue
                body = json.dumps({"event_id": chosen.pop(), "reward": 1})
                made.append(("POST", post(body, "/reward"), 200, "applied"))
            case 5:
                made.append(("POST", chunked(b"2\r\n{}\r\n0\r\n\r\n", CHUNKED), 200, "propensities"))
            case 6:
                made.append(("POST", post("{" + "x" * dice.randrange(5000)), 400, "well-formed"))
            case 7:
                made.append(("HEAD", get("/healthz", method="HEAD"), 200, ""))
            case 8:
                body = json.dumps({"event_id": name, "exclude": [f"ad-{n}" for n in range(6)]})
                made.append(("POST", post(body), 204, ""))
            case 9:
                raw, status, words = dice.choice(
                    [
                        (post("<a/>", kind="text/xml"), 415, "send the body as"),
                        (post("hello", "/nowhere"), 404, "no such route"),
                        (post("hello", "/healthz"), 405, "method"),
                        (get("/stats", "Content-Length: 5") + b"hello", 400, "no body"),
                        (post('{"event_id": "nobody", "reward": 1}', "/reward"), 404, "no such event"),
                        (get("/decisions/nobody"), 404, "no such event"),
                        (get("/healthz"), 200, "ok"),
                    ]
                )
                made.append((raw.split()[0].decode(), raw, status, words))
    return made


@pytest.mark.parametrize("seed", range(3))
def test_pipelined_requests_of_every_kind_are_answered_in_order_and_whole(server, seed):
    made = pipeline(f"p{seed}", 150, seed)
    before = server.data("/stats")
    with Line(server) as line:
        line.socket.sendall(b"".join(raw for _, raw, _, _ in made))
        for method, raw, status, words in made:
            got, headers, body = line.reply(method)
            assert got == status, (raw[:200], body)
            assert words in body.decode()
            if status == 204:
                assert headers["x-event-id"] in raw.decode()
                assert "content-length" not in headers
    after = server.data("/stats")
    applied = sum(words == "applied" for *_, words in made)
    assert applied > 5
    assert after["rewards"] - before["rewards"] == applied
    assert after["choices"] - before["choices"] == sum(
        status == 200 and b"POST /choose" in raw for _, raw, status, _ in made
    )


def test_requests_in_pieces_of_any_size_are_the_same_requests(server):
    made = pipeline("pieces", 20, 5)
    stream, dice = b"".join(raw for _, raw, _, _ in made), random.Random(6)
    with Line(server) as line:
        line.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while stream:
            size = dice.choice([1, 3, 50, 700])
            line.socket.sendall(stream[:size])
            stream = stream[size:]
        assert [line.reply(method)[0] for method, *_ in made] == [status for _, _, status, _ in made]


REFUSED = {
    "the wrong type": post('{"event_id": "x"}', kind="text/xml"),
    "an unknown path": post("GET /choose?event_id=smuggled HTTP/1.1\r\n\r\n", "/nowhere"),
    "a method that it has not": post("hello", "/healthz"),
    "chunks of the wrong type": chunked(b"5\r\nhello\r\n0\r\n\r\n", CHUNKED, kind="text/xml"),
    "a body where none should be": get("/stats", "Content-Length: 5") + b"hello",
    "a body that is not JSON": post("hello"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_body_does_not_poison_the_next_request(server, name):
    with Line(server) as line:
        for number in range(3):
            line.socket.sendall(REFUSED[name] + post(json.dumps({"event_id": f"{name}-{number}"})))
            assert 400 <= line.reply()[0] < 500
            status, _, body = line.reply()
            assert status == 200
            assert json.loads(body)["event_id"] == f"{name}-{number}"
    assert server("GET", "/decisions/smuggled").status_code == 404


@pytest.mark.parametrize(
    "raw",
    [
        post(get("/choose?event_id=smuggled") * 2000),  # more than the route takes
        post(get("/choose?event_id=smuggled"), "/choose", "Content-Encoding: gzip"),  # refused at the door
        post(b"x" * 100, "/nowhere")[:-50],  # refused before it is there
        chunked(b"5\r\nhe", CHUNKED, path="/nowhere"),
    ],
    ids=["too large", "compressed", "half", "half a chunk"],
)
def test_a_body_that_was_not_read_ends_the_connection_and_nothing_in_it_is_a_request(server, raw):
    with Line(server) as line:
        line.socket.sendall(raw)
        status, headers, _ = line.reply()
        assert 400 <= status < 500
        if status == 413:  # who was not told would send the next one here, and never get an answer
            assert headers["connection"] == "close"
        with suppress(ConnectionError):
            assert line.reply() is None
    assert server("GET", "/decisions/smuggled").status_code == 404


@pytest.mark.parametrize(
    ("first", "answers"),
    [
        (get("/healthz", "Connection: close"), 1),
        (get("/healthz", "Connection: Close"), 1),
        (get("/healthz").replace(b"HTTP/1.1", b"HTTP/1.0"), 1),
        (post("{}").replace(b"HTTP/1.1", b"HTTP/1.0"), 1),
        (get("/healthz", "Connection: keep-alive").replace(b"HTTP/1.1", b"HTTP/1.0"), 2),
        (get("/healthz", "Connection: keep-alive"), 2),
    ],
)
def test_a_connection_ends_when_that_is_asked_for(server, first, answers):
    with Line(server) as line:
        line.socket.sendall(first + get("/healthz", "Connection: close") + get("/healthz"))
        for _ in range(answers):
            assert line.reply()[0] == 200
        assert line.reply() is None


def test_who_waits_to_be_told_to_continue_is_told(server):
    body = b'{"event_id": "continued"}'
    raw = post(body, "/choose", "Expect: 100-continue")
    with Line(server) as line:
        line.socket.sendall(raw[: -len(body)])
        assert line.file.readline() + line.file.readline() == b"HTTP/1.1 100 Continue\r\n\r\n"
        line.socket.sendall(body)
        assert json.loads(line.reply()[2])["event_id"] == "continued"


def test_who_is_refused_is_not_told_to_continue(server):
    reply = exchange(server, post("{}", "/choose", "Expect: 100-continue", kind="text/xml")[:-2])
    assert reply.startswith(b"HTTP/1.1 415")
