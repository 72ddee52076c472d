"""The live view says what happened, in a terminal and without one; the client says what went wrong."""

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from rich.console import Console

from banditads import demo
from banditads.client import Client, Failed
from banditads.simulation import Visit


def visit(number: int) -> Visit:
    """Every tenth visitor clicks; a fixed ad earns twice what random ones do."""
    return Visit(f"item-{number % 3}", number % 10 == 0, 0.1, 0.2, 0.05)


def watched(n: int, total: int, **console: object) -> tuple[demo.Summary, str]:
    """What `show` returned, and what it wrote."""
    written = Console(file=io.StringIO(), **{"width": 100, **console})
    summary = demo.show(map(visit, range(n)), total, written, hint="Next: have tea [really].")
    return summary, written.file.getvalue()


def test_without_a_terminal_there_is_a_plain_line_every_500_visits():
    _, text = watched(1200, 1200)
    lines = text.splitlines()
    assert len(lines) == 4
    assert lines[1].startswith(
        "1,000 visits, 100 clicks (10.0%; last 500: 10.0%), 2.00 x random (5.0%), 50% of"
    )
    assert lines[2].startswith("1,200 visits, 120 clicks")
    assert lines[3] == "Next: have tea [really]."
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_in_a_terminal_the_last_picture_holds_all_figures(width):
    _, text = watched(1200, 1200, force_terminal=True, width=width, color_system=None)
    picture = text[text.rindex("╭") :]
    for words in ("10.0%", "2.00", "50%", "item-0", "1,200 of 1,200", "Next: have tea [really]."):
        assert words in picture
    lines = picture[: picture.rindex("╯") + 1].splitlines()
    assert {len(line) for line in lines} == {min(width, 100)}


def test_nothing_is_drawn_of_no_visits():
    summary, _ = watched(0, 100, force_terminal=True)
    assert summary.visits == 0


def test_fewer_visits_than_announced_are_fine():
    summary, text = watched(700, 5000)
    assert summary.visits == 700
    assert len(text.splitlines()) == 2


def test_the_summary_adds_up():
    summary, _ = watched(1005, 1005)
    assert summary.shown.total() == 1005
    assert summary.clicks.total() == summary.clicked.sum() == 101
    assert summary.lift() == pytest.approx(101 / 1005 / 0.05)
    assert summary.share(500) == pytest.approx(50 / 500 / 0.2)
    assert summary.expected.shape == (1005,)


@pytest.mark.parametrize("n", [1, 7, 1200])
def test_the_learning_curve_is_a_picture(n, tmp_path):
    summary, _ = watched(n, n)
    demo.plot(summary, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


class Server(BaseHTTPRequestHandler):
    """Answers what it is told to; keeps what it was asked."""

    protocol_version = "HTTP/1.1"
    answers: list[tuple[int, bytes]]
    asked: list[tuple[str, dict]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.asked.append((self.path, json.loads(body)))
        status, reply = self.answers.pop(0)
        self.send_response(status)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server():
    handler = type("Told", (Server,), {"answers": [], "asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.daemon_threads = True
        running.block_on_close = False
        threading.Thread(target=running.serve_forever, args=(0.01,), daemon=True).start()
        yield handler, f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def test_the_client_chooses_and_rewards(server):
    told, url = server
    told.answers += [(200, b'{"event_id": "e1.s", "ad": {"id": "a3"}}'), (200, b'{"status": "applied"}')]
    with Client(url + "/") as client:
        assert client.choose("e1", "u1", {"device": "mobile", "loyalty": 0.5}) == ("a3", "e1.s")
        assert client.reward("e1.s", 1.0) is None
    context = {"device": "mobile", "loyalty": 0.5}
    assert told.asked == [
        ("/choose", {"event_id": "e1", "user_id": "u1", "context": context}),
        ("/reward", {"event_id": "e1.s", "reward": 1.0}),
    ]


def test_a_refusal_arrives_with_its_code_sentence_and_field(server):
    told, url = server
    told.answers += [(400, b'{"error": {"code": "invalid", "message": "must be finite", "field": "reward"}}')]
    with Client(url) as client, pytest.raises(Failed, match="400 invalid: must be finite") as refused:
        client.reward("e1", 7.0)
    assert (refused.value.status, refused.value.code, refused.value.field) == (400, "invalid", "reward")


def test_an_error_without_a_field_is_understood_too(server):
    told, url = server
    told.answers += [(503, b'{"error": {"code": "unavailable", "message": "disk full"}}')]
    with Client(url) as client, pytest.raises(Failed, match=r"^503 unavailable: disk full$"):
        client.reward("e1", 1.0)


@pytest.mark.parametrize(
    ("status", "reply"),
    [(502, b"<html>Bad Gateway</html>"), (200, b"[]"), (500, b'{"error": "x"}'), (200, b"{}"), (404, b'"')],
)
def test_an_answer_that_is_not_the_servers_is_shown(server, status, reply):
    told, url = server
    told.answers += [(status, reply)]
    with Client(url) as client, pytest.raises(Failed, match="not_understood") as failed:
        client.choose("e1", "u1", {})
    assert reply.decode() in str(failed.value)


def test_no_eligible_ad_is_said_in_words(server):
    told, url = server
    told.answers += [(204, b"")]
    with Client(url) as client, pytest.raises(Failed, match="no ad may be shown"):
        client.choose("e1", "u1", {})


def test_a_server_that_is_not_there_is_a_failure_with_its_address(server):
    url = "http://127.0.0.1:9"  # nobody listens on the discard port
    with Client(url, timeout=0.5) as client, pytest.raises(Failed, match="did not answer") as failed:
        client.reward("e1", 1.0)
    assert failed.value.status == 0
    assert url in str(failed.value)
