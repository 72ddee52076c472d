"""What /openapi.json promises is what is answered: by Schemathesis, and status by status.

`SCHEMATHESIS_EXAMPLES=2000 SCHEMATHESIS_SEED=7 pytest tests/test_contract.py` looks for longer, elsewhere.
"""

import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from wsgiref.util import setup_testing_defaults

from banditads import api, engine, jobs, wire, worth
from banditads.api.tracking import ETAG
from banditads.choosing import Request
from banditads.errors import Unavailable
from banditads.events import Ad
from banditads.joiner import MAX_SAID
from banditads.signing import Pseudonyms
from banditads.snapshots import Snapshots

HERE = Path(__file__).parent


def test_schemathesis_finds_no_difference_between_the_contract_and_the_server(start):
    # If the earliest counted, what was converted could hardly be rewarded; and there must be whom to promote.
    server = start("--reward-aggregation", "max", "--challengers", "thompson linucb")
    done = subprocess.run(
        [
            *(sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()"),
            *("--config-file", HERE / "schemathesis.toml", "--no-color", "run", f"{server.url}/openapi.json"),
            *("--seed", os.environ.get("SCHEMATHESIS_SEED", "1")),
            *("--max-examples", os.environ.get("SCHEMATHESIS_EXAMPLES", "12")),
        ],
        cwd=HERE.parent,
        capture_output=True,
        text=True,
    )
    code, errors = server.end()

    assert done.returncode == 0, done.stdout
    assert "No issues found" in done.stdout
    assert code == 0
    assert "Traceback" not in errors


BODIES = {
    "/choose": {},
    "/predict": {},
    "/reward": {"event_id": "e1", "reward": 1},
    "/choose/batch": {"requests": [{}]},
    "/reward/batch": {"rewards": [{"event_id": "e1", "reward": 1}]},
    "/conversion": {"event_id": "e1"},
    "/catalog/ads": [{"id": "x"}],
    "/catalog/ads/{id}": {},
    "/users": [{"id": "u"}],
    "/users/{id}": {"consent": True},
    "/users/{id}/events": {"kind": "view"},
    "/events": [{"user": "u", "kind": "view"}],
    "/evaluations": {"policies": ["uniform"]},
}


class Here:
    """What stands in for a copy of this process, which takes 40 ms to make."""

    def __init__(self, make):
        self.result = make


class Site:
    """An application in memory, with one decision open, and one that has settled and left the journal."""

    def __init__(self, engine, clock):
        self.engine = engine
        engine.choose(Request(), "gone")
        clock.now += 601
        engine.tick()
        for name in ("e1", "e2"):
            engine.snapshot()
            engine.choose(Request(), name)
        engine.choose(Request(ads=(Ad("bare"),)), "bare")
        engine.reward("e2", 1.0)
        engine.choose(Request(), "full")
        for number in range(MAX_SAID):
            engine.reward("full", 0.0, "conversion", f"order-{number}")
        pseudonym = Pseudonyms(b"k" * 32)
        engine.put_users({pseudonym("u"): {}, pseudonym("e1"): {}})
        self.app = api.build(
            engine, pseudonym=pseudonym, worths={**worth.DEFAULT, "dwell": worth.parse("value / 60")}
        )
        self.old = engine.ids.mint(clock.now - 601)

    def __call__(
        self, method, path, body=None, *, length=None, media="application/json", query="", **headers
    ):
        said, raw = [], b"" if body is None else json.dumps(body).encode()
        environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query}
        environ |= {"wsgi.input": io.BytesIO(raw), "CONTENT_LENGTH": str(length or len(raw))}
        setup_testing_defaults(environ)
        reply = self.app(
            environ | headers | {"CONTENT_TYPE": media}, lambda status, *rest: said.append(status)
        )
        return int(said[0].split()[0]), b"".join(reply)


def refuse(*args):
    raise Unavailable("the disk is full")


def fail(*args, **given):
    raise OSError("the disk is full")


NAMES = {
    "catalog": lambda site: "a",
    "policies": lambda site: "thompson",
    "evaluations": lambda site: json.loads(site("POST", "/evaluations", {"policies": ["vw"]})[1])["id"],
}
MORE = {
    304: {"HTTP_IF_NONE_MATCH": ETAG},
    403: {"HTTP_SEC_PURPOSE": "prefetch"},
    413: {"length": 2**30},
    415: {"media": "text/plain"},
}


def reach(site, method, path, status, monkeypatch):
    """The status of a request that should get this one."""
    body = BODIES.get(path) if method in ("POST", "PUT") else None
    name = NAMES.get(path.split("/")[1], lambda site: "e1")(site)
    more = {"query": "seconds=1"} if path.startswith("/dwell") else {}
    more |= MORE.get(status, {})
    match status:
        case 204 if "choose" in path or path == "/ads":
            more, body = ({"query": "exclude=a,b,c"}, None) if body is None else ({}, {"exclude": [*"abc"]})
        case 204:
            name = "bare"
        case 400:
            more = {"query": "=1"}
        case 404:
            name, body = "nobody", body and body | {"event_id": "nobody"}
        case 409 if path == "/reward":
            body = {"event_id": "e2", "reward": 0}
        case 409:
            name = "uniform" if path.startswith("/policies") else "full"
            body = body and {"event_id": "full"}
        case 410 if "choose" in path:
            more, body = ({"query": "event_id=gone"}, None) if body is None else ({}, {"event_id": "gone"})
        case 410:
            name, body = site.old, body and body | {"event_id": site.old}
        case 429:
            monkeypatch.setattr(jobs, "MAX_WAITING", 0)
        case 500:
            monkeypatch.setattr(wire, "query", None)
        case 503:
            site.engine.refusal = "the disk is full"
            monkeypatch.setattr(site.engine.journal, "append", refuse)
            monkeypatch.setattr(site.engine.snapshots, "publish", refuse)
            monkeypatch.setattr(jobs, "write_durably", fail)
            monkeypatch.setattr(jobs, "fsync_folder", fail)
    return site(method, path.replace("{id}", name), body, **more)[0]


def test_every_status_in_the_contract_can_be_reached(make_engine, clock, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs.Jobs, "_start", lambda self: None)  # asking is what is tried here
    monkeypatch.setattr(engine, "Copy", Here)

    def fresh():
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        snapshots = Snapshots(folder, b"k" * 32)
        return Site(make_engine(snapshots=snapshots, keep_journal=False, challengers=("thompson",)), clock)

    paths = json.loads(fresh()("GET", "/openapi.json")[1])["paths"]
    wanted, reached = [], []
    for path, operations in paths.items():
        for method, operation in operations.items():
            site = None  # what is refused changes nothing, and comes first; with a full disk there is another
            for status in sorted(
                map(int, operation["responses"]), key=lambda each: (each == 503, each < 400)
            ):
                if site is None or status == 503 or path.startswith("/evaluations"):
                    site = fresh()
                with monkeypatch.context() as patch:
                    wanted.append((method, path, status))
                    reached.append((method, path, reach(site, method.upper(), path, status, patch)))

    assert reached == wanted
    assert len(wanted) > 80
