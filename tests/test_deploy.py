"""The files in deploy/ are accepted by the programs that read them, and nginx really keeps its promises."""

import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple

import pytest

from banditads import cli, errors, settings
from banditads.api.batch import MAX_BATCH
from banditads.client import Client
from banditads.logs import open_bandit
from banditads.simulation import World, visits

DEPLOY = Path(__file__).parent.parent / "deploy"


def tool(name: str) -> str:
    """Where a program is."""
    path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        pytest.skip(f"{name} is not installed here; .ci/run installs it")
    return path


def run(name: str, *arguments: str | Path) -> str:
    """What a tool says; fails with its words if it refuses."""
    command = [tool(name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def replaced(text: str, *pairs: tuple[str, str]) -> str:
    """The text with each first string, which occurs exactly once, replaced by the second."""
    for old, new in pairs:
        assert text.count(old) == 1, f"{old!r} occurs {text.count(old)} times"
        text = text.replace(old, new)
    return text


@pytest.fixture
def unit(tmp_path):
    """The service file, with a program that exists here."""
    text = (DEPLOY / "banditads.service").read_text()
    path = tmp_path / "banditads.service"
    path.write_text(replaced(text, ("ExecStart=/opt/banditads/bin/banditads", "ExecStart=/bin/true")))
    return path


def test_hadolint_has_nothing_to_say_about_the_dockerfile():
    assert run("hadolint", "--failure-threshold", "info", DEPLOY / "Dockerfile") == ""


def test_the_compose_file_follows_the_compose_specification():
    run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", DEPLOY / "compose.yaml")


def test_systemd_understands_every_line_of_the_unit(unit):
    assert run("systemd-analyze", "verify", unit) == ""


def test_systemd_rates_the_unit_at_most_one_and_a_half_of_ten(unit):
    run("systemd-analyze", "security", "--offline=true", "--threshold=15", "--no-pager", unit)


def test_systemd_tries_again_only_after_what_can_heal():
    line = re.search(r"^RestartPreventExitStatus=(.*)$", (DEPLOY / "banditads.service").read_text(), re.M)
    heals = cli.EXIT[errors.DiskFailure]
    assert {int(code) for code in line[1].split()} == {2, *cli.EXIT.values()} - {heals}


@pytest.mark.parametrize(
    ("name", "starts"),
    [("Dockerfile", "ENTRYPOINT"), ("banditads.service", "ExecStart="), ("compose.yaml", "    command:")],
)
def test_the_server_is_started_with_flags_that_exist(name, starts):
    text = (DEPLOY / name).read_text()
    command = re.search(rf"^{starts}(.*\\\n)*.*$", text, re.M)
    flags = re.findall(r"--([a-z-]+)", command[0])
    assert flags
    assert {flag.replace("-", "_") for flag in flags} <= {row.name for row in settings.rows()}


def test_every_variable_that_is_mentioned_is_a_setting():
    text = "".join(path.read_text() for path in DEPLOY.iterdir())
    variables = set(re.findall(r"BANDITADS_([A-Z_]+)\b", text))
    assert variables
    assert {variable.lower() for variable in variables} <= {row.name for row in settings.rows()}


@contextmanager
def serving(folder: Path, *before: str) -> Iterator[str]:
    """A real server, started by the command `before`; its URL. It has to end well."""
    command = [*before, sys.executable, "-m", "banditads", "serve", "--data-dir", str(folder / "data")]
    options = ["--port", "0", "--catalog", "demo", "--snapshot-every", "0.5"]
    with subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield re.search(r"http://\S+", process.stdout.readline())[0]
            process.terminate()
            assert process.wait(30) == 0
        finally:
            process.kill()


def visited(url: str) -> int:
    """How many of fifty visits were served."""
    world = World(open_bandit.items("all"), 1)
    with Client(url) as client:
        return len(list(visits(world, client.choose, client.reward, 50)))


def test_the_server_works_where_memory_can_never_become_code(tmp_path):
    without = "import ctypes, os, sys; ctypes.CDLL(None).prctl(65, 1, 0, 0, 0) and sys.exit(77); "
    if subprocess.run([sys.executable, "-c", without], check=False).returncode == 77:
        pytest.skip("this Linux is older than 6.3 and cannot refuse executable memory")
    run = f"{without} os.execv(sys.argv[1], sys.argv[1:])"
    with serving(tmp_path, sys.executable, "-c", run) as url:
        assert visited(url) == 50


def test_the_server_makes_no_system_call_that_the_unit_forbids(tmp_path):
    allowed = set(syscalls("@default"))
    for line in re.findall(r"^SystemCallFilter=(.*)$", (DEPLOY / "banditads.service").read_text(), re.M):
        named = {call for name in line.removeprefix("~").split() for call in syscalls(name)}
        allowed = allowed - named if line.startswith("~") else allowed | named
    trace = tmp_path / "trace"
    with serving(tmp_path, tool("strace"), "-D", "-f", "-q", "-o", str(trace)) as url:
        visited(url)
    for _ in range(100):  # strace may still be writing
        text = trace.read_text()
        if text.rstrip().endswith("+++ exited with 0 +++"):
            break
        time.sleep(0.05)
    made = set(re.findall(r"^\d+ +(\w+)\(", text, re.M))
    assert {"fdatasync", "accept4", "rename"} <= made
    assert made - allowed == set()
    assert set(re.findall(r" socket\((\w+)", text)) <= {"AF_INET", "AF_INET6"}


def syscalls(name: str) -> list[str]:
    """The system calls of a group of systemd's, or just this one."""
    if not name.startswith("@"):
        return [name]
    lines = run("systemd-analyze", "syscall-filter", "--no-pager", name).splitlines()[1:]
    members = [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]
    return [call for member in members for call in syscalls(member)]


class Seen(NamedTuple):
    """A request as it reached the server behind nginx."""

    method: str
    target: str  # raw, as on the wire
    body: bytes


class Proxy(NamedTuple):
    """nginx with the configuration under test, and what came out behind it."""

    port: int
    seen: list[Seen]
    log: Path

    def ask(self, method: str, target: str, body: bytes = b"") -> tuple[int, dict]:
        """Status and JSON of an answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, target, body or None)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read())
        finally:
            connection.close()


class Backend(BaseHTTPRequestHandler):
    """Stands for banditads."""

    protocol_version = "HTTP/1.1"
    seen: list[Seen]

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.seen.append(Seen(self.command, self.path, body))
        reply = b'{"ok": true}'
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    do_GET = do_POST = answer

    def log_message(self, *_: object) -> None:
        pass


def configure(folder: Path, port: int, backend: int) -> Path:
    """Both nginx files as they are in deploy/, with ports and paths of this test."""
    site, main = folder / "site.conf", folder / "nginx.conf"
    site.write_text(
        replaced(
            (DEPLOY / "nginx.conf").read_text(),
            ("listen 80;", f"listen 127.0.0.1:{port};"),
            ("/var/log/nginx/access.log", str(folder / "access.log")),
            ("/var/log/nginx/error.log", str(folder / "error.log")),
        )
    )
    text = replaced(
        (DEPLOY / "nginx-main.conf").read_text().replace("/tmp/", f"{folder}/"),
        ("/etc/nginx/banditads.conf", str(site)),
        ("server banditads:8080;", f"server 127.0.0.1:{backend};"),
        ("worker_rlimit_nofile 20000;", ""),  # needs a hard limit as high
        ("worker_processes auto;", "worker_processes 1;"),
    )
    main.write_text(text)
    return main


@contextmanager
def nginx(folder: Path, backend: int) -> Iterator[int]:
    """A real nginx on loopback in front of a port; its own port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [tool("nginx"), "-e", folder / "error.log", "-c", configure(folder, port, backend)]
    with subprocess.Popen([*command, "-g", "daemon off;"]) as process:
        try:
            for _ in range(200):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                time.sleep(0.02)
            yield port
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def proxy(tmp_path_factory) -> Iterator[Proxy]:
    """nginx in front of `Backend`."""
    folder = tmp_path_factory.mktemp("nginx")
    seen: list[Seen] = []
    with ThreadingHTTPServer(("127.0.0.1", 0), type("Recorder", (Backend,), {"seen": seen})) as backend:
        backend.daemon_threads = True
        threading.Thread(target=backend.serve_forever, args=(0.05,), daemon=True).start()
        with nginx(folder, backend.server_address[1]) as port:
            yield Proxy(port, seen, folder / "access.log")
        backend.shutdown()


def test_nginx_accepts_the_configuration(tmp_path):
    assert "test is successful" in run(
        "nginx", "-t", "-e", tmp_path / "error.log", "-c", configure(tmp_path, 18080, 18081)
    )


def test_a_reward_goes_through_nginx(proxy):
    assert proxy.ask("POST", "/reward", b'{"event_id": "e1", "reward": 1}') == (200, {"ok": True})
    assert proxy.seen[-1] == Seen("POST", "/reward", b'{"event_id": "e1", "reward": 1}')


def test_the_server_hears_of_a_request_when_it_is_whole(proxy):
    proxy.seen.clear()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as slow:
        slow.sendall(b"POST /reward HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n12345")
        time.sleep(0.3)
        assert proxy.seen == []
        slow.sendall(b"67890")
        assert slow.recv(100).startswith(b"HTTP/1.1 200")
    assert [request.body for request in proxy.seen] == [b"1234567890"]


def test_three_hundred_slow_clients_do_not_keep_another_waiting(proxy):
    with ExitStack() as stack:
        for _ in range(300):
            slow = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), timeout=10))
            slow.sendall(b"POST /reward HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
        started = time.monotonic()
        assert proxy.ask("GET", "/choose?user_id=u1")[0] == 200
        assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    "target",
    [
        "/metrics",
        "/metrics/",
        "/%6Detrics",
        "//metrics",
        "/snapshot",
        "/catalog/ads",
        "/stats",
        "/users/u1",
        "/decisions/e1",
        "/dashboard",
        "/openapi.json",
        "/click/../metrics",
        "/click/%2e%2e/metrics",
        "/click/..%2Fmetrics",
        "/metrics/../click/e1",
        "/choose/../stats",
        "/",
    ],
)
def test_the_world_sees_nothing_of_the_inside(proxy, target):
    proxy.seen.clear()
    status, reply = proxy.ask("GET", target)
    assert (status, reply["error"]["code"]) == (404, "unknown")
    assert proxy.seen == []


def test_an_address_that_climbs_above_the_root_is_not_even_http(proxy):
    proxy.seen.clear()
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as client:
        client.sendall(b"GET /metrics/..%2f../../click/e1 HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 400")
    assert proxy.seen == []


def test_an_escaped_slash_arrives_as_it_was_sent(proxy):
    assert proxy.ask("GET", "/click/a%2Fb%20c?x=%2F&y=..")[0] == 200
    assert proxy.seen[-1].target == "/click/a%2Fb%20c?x=%2F&y=.."


def test_a_body_of_64_kib_passes_and_one_more_byte_does_not(proxy):
    assert proxy.ask("POST", "/reward", b"x" * 65536)[0] == 200
    proxy.seen.clear()
    status, reply = proxy.ask("POST", "/reward", b"x" * 65537)
    assert (status, reply["error"]["code"]) == (413, "too_large")
    assert proxy.seen == []


@pytest.mark.parametrize("path", ["/choose/batch", "/reward/batch"])
def test_a_batch_of_1_mib_passes_and_one_more_byte_does_not(proxy, path):
    assert proxy.ask("POST", path, b"x" * MAX_BATCH)[0] == 200
    proxy.seen.clear()
    status, reply = proxy.ask("POST", path, b"x" * (MAX_BATCH + 1))
    assert (status, reply["error"]["code"]) == (413, "too_large")
    assert proxy.seen == []


def test_the_log_knows_no_users(proxy):
    proxy.ask("GET", "/choose?user_id=somebody")
    for _ in range(100):
        lines = proxy.log.read_text()
        if "GET /choose" in lines:
            break
        time.sleep(0.02)
    assert "GET /choose" in lines
    assert "somebody" not in lines
    assert "127.0.0.1" not in lines


def test_a_server_that_is_gone_is_a_503_that_says_to_come_back(tmp_path):
    with socket.socket() as nobody:  # bound, not listening: connections are refused
        nobody.bind(("127.0.0.1", 0))
        with nginx(tmp_path, nobody.getsockname()[1]) as port:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", "/choose?user_id=somebody")
            answer = connection.getresponse()
            reply = json.loads(answer.read())
            connection.close()
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert reply["error"]["code"] == "unavailable"
    assert "somebody" not in (tmp_path / "error.log").read_text()
