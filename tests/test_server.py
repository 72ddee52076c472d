"""The real server, started as users start it, talked to over sockets, and killed."""

import ctypes
import http.client
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress

import pytest
import requests
from conftest import CATALOG, banditads

from banditads import events
from banditads.directory import read_config
from banditads.journal.file import scan
from banditads.state import State


def folded(folder):
    """What a program that only reads the journal comes to know."""
    state = State.of(read_config(folder))
    for offset, record in scan(folder):
        state.apply(offset, events.decode(record))
    return state


PREDICT = "/predict?device=mobile&daypart=evening"


def test_it_prints_its_url_and_two_curl_lines_that_work(start):
    server = start()
    lines = [server.process.stdout.readline().strip() for _ in range(2)]

    said = r"banditads answers at http://127\.0\.0\.1:\d+ \(policy ensemble, 6 ads, data in "
    assert re.match(said, server.said)
    assert all(line.startswith("curl ") for line in lines)
    assert shutil.which("curl")
    chosen, rewarded = (
        json.loads(subprocess.run(line, shell=True, capture_output=True, check=True).stdout) for line in lines
    )
    assert chosen["ad"]["id"] in {ad["id"] for ad in CATALOG}
    assert rewarded["status"] == "applied"


def test_a_full_segment_gets_its_name_although_nobody_waits_for_the_disk(start, tmp_path):
    server = start("--segment-bytes", "4096")
    for number in range(60):  # choices only, which are acknowledged without the disk
        server.data(f"/choose?event_id=e{number}")
    deadline = time.monotonic() + 10
    while list((tmp_path / "data").glob("*.early")) and time.monotonic() < deadline:
        time.sleep(0.05)

    assert not list((tmp_path / "data").glob("*.early"))
    assert len(list((tmp_path / "data").glob("*.journal"))) > 1


def test_kill_9_under_load_loses_and_doubles_nothing_and_goes_on_bit_for_bit(start, tmp_path):
    """Two lives; each is killed at a random instant, while clients note what was acknowledged."""
    dice = random.Random(7)
    sent, acknowledged = [], []
    for life in range(2):
        server = start("--snapshot-every", "0.1", "--segment-bytes", "20000")

        def visitor(name, server=server):
            session = requests.Session()
            try:
                for number in range(10**6):
                    event_id = f"{name}-{number}"
                    context = {"device": f"d{number % 3}", "age": number % 50}
                    server("POST", "/choose", {"event_id": event_id, "context": context}, session)
                    sent.append(event_id)
                    said = server("POST", "/reward", {"event_id": event_id, "reward": number % 2}, session)
                    assert said.status_code == 200, said.text
                    acknowledged.append((event_id, number % 2))
            except (requests.RequestException, OSError):
                session.close()  # killed

        before = len(acknowledged)
        clients = [threading.Thread(target=visitor, args=(f"{life}-{n}",)) for n in range(6)]
        for client in clients:
            client.start()
        goal = before + 100 + dice.randrange(200)
        while len(acknowledged) < goal:
            time.sleep(0.001)
        server.end(signal.SIGKILL)
        for client in clients:
            client.join()

        server = start()
        stats, predicted = server.data("/stats"), server.data(PREDICT)
        assert len(acknowledged) <= stats["rewards"] <= len(sent)
        for event_id, value in acknowledged[-20:]:
            decision = server.data(f"/decisions/{event_id}")
            assert (decision["status"], decision["reward"]) == ("rewarded", value)
            again = server("POST", "/reward", {"event_id": event_id, "reward": value}).json()
            assert again["status"] == "duplicate"
        assert server.data("/stats") == stats
        server.end(signal.SIGKILL)

        alone = folded(tmp_path / "data")  # a run that never crashed: the journal from its beginning
        assert stats["ads"].keys() == alone.stats.ads.keys()
        assert (stats["choices"], stats["reward_sum"]) == (
            alone.stats.total.choices,
            alone.stats.total.reward_sum,
        )
        server = start()
        assert server.data("/stats") == stats
        assert server.data(PREDICT) == predicted
        server.end(signal.SIGKILL)
    assert list((tmp_path / "data").glob("*.snapshot"))
    assert "is whole" in banditads("verify", tmp_path / "data").stdout


def test_sigterm_ends_in_time_with_a_snapshot_though_clients_keep_connections_open(start, tmp_path):
    server = start()
    server("GET", "/choose?event_id=e1")
    address = server.url.removeprefix("http://").split(":")
    idle = [socket.create_connection((address[0], int(address[1]))) for _ in range(5)]
    idle[0].sendall(b"POST /reward HTTP/1.1\r\nHost: x\r\nContent-Le")
    half = (
        b"POST /reward HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{"
    )
    idle[1].sendall(half)
    began = time.monotonic()
    status, errors = server.end()

    assert status == 0, errors
    assert time.monotonic() - began < 5  # promised; not a measurement
    assert len(list((tmp_path / "data").glob("*.snapshot"))) == 1
    for each in idle:
        each.close()


def test_silence_is_learned_though_nobody_asks(start):
    server = start("--reward-wait", "200ms")
    server("GET", "/choose?event_id=e1")
    deadline = time.monotonic() + 20
    while server.data("/stats")["expired"] == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    late = server("POST", "/reward", {"event_id": "e1", "reward": 1})

    assert late.status_code == 410
    assert server.data("/stats")["pending"] == 0


def refused(*arguments, environment=None):
    """(exit code, what it said) of a server that does not start."""
    done = subprocess.run(
        [sys.executable, "-m", "banditads", "serve", "--port", "0", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **(environment or {})},
    )
    return done.returncode, done.stderr


def test_a_second_process_on_the_directory_exits_73_and_the_first_is_unharmed(start, tmp_path):
    server = start()
    code, said = refused("--data-dir", tmp_path / "data")

    assert code == 73
    assert str(server.process.pid) in said
    assert server("GET", "/choose").status_code == 200


def test_what_cannot_be_is_refused_by_name_with_exit_78(start, tmp_path):
    server = start()
    port = server.url.rsplit(":", 1)[1]
    other = tmp_path / "other"
    for arguments, named in [
        (["--fsync", "never"], "fsync"),
        (["--policy", "nope"], "nope"),
        (["--option", "speed=9"], "speed"),
        (["--option", "learning_rate=true"], "learning_rate"),
        (["--recommender-option", "speed=9"], "speed"),
        (["--host", "0.0.0.0"], "allow_remote"),
        (["--host", "example"], "host"),
        (["--port", port], "port"),
        (["--catalog", tmp_path / "missing"], "catalog"),
        (["--key-file", other / "key"], "key_file"),
        (["--default-reward", "3"], "default_reward"),
    ]:
        code, said = refused("--data-dir", other, *arguments)
        assert (code, "Traceback" in said) == (78, False), said
        assert named in said
    code, said = refused("--data-dir", other, environment={"BANDITADS_PROT": "1"})
    assert (code, "BANDITADS_PORT" in said) == (78, True)


def test_another_configuration_is_refused_and_can_be_relearned(start, tmp_path):
    server = start("--policy", "uniform")
    for number in range(20):
        server("POST", "/choose", {"event_id": f"e{number}"})
        server("POST", "/reward", {"event_id": f"e{number}", "reward": 1})
    server.end()
    code, said = refused("--data-dir", tmp_path / "data", "--policy", "vw")

    assert code == 78
    assert "--policy was uniform and is now vw. Put it back" in said
    again = start("--policy", "vw", "--relearn")
    assert again.data("/stats")["rewards"] == 20
    assert again.data("/stats")["policy"]["name"] == "vw"
    again.end()
    banditads("verify", tmp_path / "data")
    newest = max((tmp_path / "data").glob("*.snapshot"))
    newest.write_bytes(
        newest.read_bytes()[:50]
    )  # what is older was learned otherwise, and must not come back
    last = start("--policy", "vw")
    assert last.data("/stats")["rewards"] == 20
    assert len(last.data(PREDICT)["propensities"]) == 6


def test_a_directory_keeps_the_policy_it_was_made_with_unless_another_is_named(start, tmp_path):
    start("--policy", "vw", "--option", "exploration=epsilon").end()
    again = start("--option", "exploration=epsilon")

    assert again.data("/stats")["policy"]["name"] == "vw"
    assert "(policy vw, 6 ads" in again.said
    again.end()
    code, said = refused("--data-dir", tmp_path / "data", "--policy", "ensemble")
    assert (code, "--policy was vw and is now ensemble" in said) == (78, True)


def test_ads_that_were_changed_over_http_stay_so_after_a_restart(start):
    server = start()
    server("DELETE", "/catalog/ads/ad-1")
    server("PUT", "/catalog/ads/ad-2", {"features": {"kind": "new"}})
    server.end()
    again = start()

    assert again("GET", "/catalog/ads/ad-1").status_code == 404
    assert again.data("/catalog/ads/ad-2")["features"] == {"kind": "new"}


def test_a_server_behind_a_proxy_for_the_outside_world_still_finds_itself(start, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    server = start("--host", "localhost", "--option", "learning_rate=1")
    server.session.trust_env = False
    assert server("GET", "/healthz").status_code == 200
    server.end()
    assert start("--option", "learning_rate=1.0").said


def test_a_server_without_ads_or_with_placed_ones_says_what_to_do(start, tmp_path):
    empty = start("--catalog", "")
    assert "no ads yet" in empty.process.stdout.readline()
    placed = tmp_path / "placed.jsonl"
    placed.write_text('{"id": "x", "placements": ["top row"]}')
    server = start("--catalog", str(placed), folder=tmp_path / "other")
    line = server.process.stdout.readline().strip()
    said = subprocess.run(line, shell=True, capture_output=True, check=True).stdout

    assert json.loads(said)["ad"]["id"] == "x"


def test_damaged_data_is_refused_with_exit_65_and_the_place(start, tmp_path):
    server = start("--policy", "uniform")
    for number in range(5):
        server("POST", "/choose", {"event_id": f"e{number}"})
    server.end(signal.SIGKILL)
    journal = next((tmp_path / "data").glob("*.journal"))
    raw = bytearray(journal.read_bytes())
    raw[300] ^= 1
    journal.write_bytes(raw)
    code, said = refused("--data-dir", tmp_path / "data", "--policy", "uniform")

    assert code == 65
    assert re.search(rf"{journal} at byte \d+ is damaged", said)
    banditads("verify", tmp_path / "data", code=65)


def test_pipelined_requests_are_answered_in_order_and_chunked_bodies_are_read(start):
    server = start("--policy", "uniform")
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as line:
        line.sendall(
            b"".join(f"GET /choose?event_id=p{n} HTTP/1.1\r\nHost: x\r\n\r\n".encode() for n in range(20))
        )
        line.settimeout(20)
        seen = b""
        while seen.count(b'"event_id"') < 20:
            seen += line.recv(65536)
    assert re.findall(rb'"event_id":"(p\d+)"', seen) == [b"p%d" % n for n in range(20)]

    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    body = json.dumps({"event_id": "p0", "reward": 1}).encode()
    connection.request(
        "POST",
        "/reward",
        iter([body[:7], body[7:]]),
        {"Content-Type": "application/json"},
        encode_chunked=True,
    )
    assert json.loads(connection.getresponse().read())["status"] == "applied"
    connection.close()


def test_a_visitors_id_is_in_no_log(start):
    server = start("--policy", "uniform")
    server("GET", "/choose?user_id=very-private&event_id=e1")
    server("POST", "/choose", {"user_id": "very-private", "context": {"a": [1]}})
    _, errors = server.end()

    assert "very-private" not in errors


def test_a_sigterm_that_meets_another_thread_ends_the_server_all_the_same(start):
    """The system may hand a signal of the process to any of its threads."""
    server = start("--policy", "uniform")
    threads = sorted(map(int, os.listdir(f"/proc/{server.process.pid}/task")))
    libc = ctypes.CDLL(None, use_errno=True)
    tgkill = 234 if os.uname().machine == "x86_64" else 131
    assert len(threads) > 3
    assert libc.syscall(tgkill, server.process.pid, threads[-1], int(signal.SIGTERM)) == 0

    status, errors = server.end(0)  # says nothing more
    assert status == 0, errors


@pytest.fixture
def small_disk(tmp_path):
    """A file system with room for a quarter of a megabyte."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"needs root and tmpfs to have a small disk: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def test_on_a_full_disk_nothing_acknowledged_is_lost_and_it_goes_on_when_there_is_space(start, small_disk):
    ballast = small_disk / "ballast"
    server = start(
        "--policy", "uniform", "--key-file", str(small_disk.parent / "key"), folder=small_disk / "data"
    )
    waiting = [f"e{number}" for number in range(200)]
    for event_id in waiting:
        server("GET", f"/choose?event_id={event_id}")
    with ballast.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"x" * 512):
            pass
    acknowledged = []
    for event_id in waiting:
        said = server("POST", "/reward", {"event_id": event_id, "reward": 1})
        if said.status_code == 503:
            break
        acknowledged.append(event_id)
    assert "retry-after" in said.headers
    unwritten = server("POST", "/choose", {"context": {"filler": "x" * 500}})
    assert (unwritten.status_code, unwritten.json()["offset"]) == (200, None)  # it goes on choosing
    assert server("GET", "/readyz").status_code == 503

    ballast.unlink()
    deadline = time.monotonic() + 20
    while server("GET", "/readyz").status_code == 503:  # it looks by itself
        assert time.monotonic() < deadline
        time.sleep(0.05)
    again = server("POST", "/reward", {"event_id": event_id, "reward": 1})
    assert again.json()["status"] == "applied"
    assert server.data("/stats")["reward_sum"] == len(acknowledged) + 1
    status, errors = server.end()
    assert status == 0
    assert errors.count("ERROR") < 10  # the log may be on the same disk
    banditads("verify", small_disk / "data", "--key-file", small_disk.parent / "key")
