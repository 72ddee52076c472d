"""Who may do what: every route for every kind of key, and keys that come and go."""

import hmac
import json
import os
import re
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import CATALOG, Clock, banditads
from openapi_spec_validator import validate
from test_api import Site
from test_deploy import nginx
from test_server import refused

from banditads import keys, wire
from banditads.client import Client, Failed
from banditads.errors import (
    Damaged,
    Forbidden,
    Invalid,
    Misconfigured,
    TooMany,
    Unauthenticated,
    Unavailable,
    Unknown,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "data.keys"


def test_a_key_is_kept_as_a_hash_in_a_file_for_us_only(path):
    before = os.umask(0)
    try:
        token = keys.create(path, ("reward", "choose", "reward"), name="web", rate=5)
    finally:
        os.umask(before)
    (key,) = keys.read(path).values()
    secret = token.rpartition("_")[2]

    assert re.fullmatch("ba_[0-9a-f]{12}_[0-9a-f]{64}", token)
    assert token.startswith(f"ba_{key.id}_")
    assert (key.name, key.scopes, key.rate) == ("web", ("choose", "reward"), 5)
    assert secret not in path.read_text()
    assert secret not in repr(key)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_no_two_keys_are_alike(path):
    tokens = [keys.create(path, ("choose",)) for _ in range(50)]
    assert len({part for token in tokens for part in token.split("_")[1:]}) == 100


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"name": "x" * 65}, "name"),
        ({"name": "a\nb"}, "name"),
        ({"rate": -1}, "rate"),
        ({"rate": 1e-9}, "rate"),
        ({"rate": float("nan")}, "rate"),
        ({"rate": float("inf")}, "rate"),
    ],
)
def test_a_key_that_cannot_be_is_refused_and_nothing_is_written(path, given, said):
    with pytest.raises(Invalid, match=said):
        keys.create(path, ("choose",), **given)
    assert not path.exists()


def test_there_are_at_most_so_many_keys(path, monkeypatch):
    monkeypatch.setattr(keys, "MAX_KEYS", 2)
    for _ in range(2):
        keys.create(path, ("choose",))
    with pytest.raises(Invalid, match="2 keys already"):
        keys.create(path, ("choose",))
    assert len(keys.read(path)) == 2


def test_a_full_file_of_the_longest_keys_can_be_read(path):
    key = keys.Key("a" * 12, "a" * 64, "\U0001f600" * 64, keys.SCOPES, 123456.789, 1e10)
    whole = {f"{n:012x}": keys.msgspec.structs.replace(key, id=f"{n:012x}") for n in range(keys.MAX_KEYS)}
    keys._write(path, whole)
    assert keys.read(path) == whole


def test_each_key_may_do_what_it_is_for_and_admin_everything(path):
    tokens = {scope: keys.create(path, (scope,)) for scope in keys.SCOPES}
    known = keys.Keys(path)
    may = {
        (holder, scope) for holder in tokens for scope in keys.SCOPES if allowed(known, tokens[holder], scope)
    }
    assert may == {*((scope, scope) for scope in keys.SCOPES), *(("admin", scope) for scope in keys.SCOPES)}
    both = keys.Keys(path)
    token = keys.create(path, ("choose", "reward"))
    both = keys.Keys(path)
    assert [allowed(both, token, scope) for scope in keys.SCOPES] == [True, True, False, False]


def allowed(known, token, scope):
    try:
        known.check(token, scope)
    except Forbidden:
        return False
    return True


def test_whatever_is_not_the_whole_key_is_refused_alike_after_one_comparison(path, monkeypatch):
    token, other = keys.create(path, ("admin",)), keys.create(path, ("admin",))
    known, compared, real = keys.Keys(path), [], hmac.compare_digest

    def compare(one, two):
        compared.append((type(one), len(one), type(two), len(two)))
        return real(one, two)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    id, secret = token.split("_")[1:]
    wrong = [
        "",
        "ba_",
        "ba__",
        token[:-1],
        token + "0",
        token.upper(),
        token + "_",
        f"ba_{id}_{'0' * 64}",
        f"ba_{id}_{other.rpartition('_')[2]}",  # another key's secret
        f"ba_{'f' * 12}_{secret}",  # an id that is not known
        f"ba_{keys.NOBODY.id}_{secret}",
        f"xx_{id}_{secret}",
        keys.read(path)[id].hash,
        "\ud800é√" * 100,
        "x" * 100_000,
    ]
    said = set()
    for each in wrong:
        with pytest.raises(Unauthenticated) as error:
            known.check(each, "choose")
        said.add((error.value.message, error.value.field))
    assert len(said) == 1
    assert compared == [(bytes, 64, bytes, 64)] * len(wrong)
    known.check(token, "choose")


def test_the_hash_of_nothing_opens_nothing(path):
    """The key that unknown ids are compared with is nobody's, even for who could find its secret."""
    token = keys.create(path, ("admin",))
    keys.revoke(path, token)
    known = keys.Keys(path)
    nobody = keys.msgspec.structs.replace(keys.NOBODY, hash=keys._hash(token), scopes=("admin",))
    keys.NOBODY, before = nobody, keys.NOBODY
    try:
        with pytest.raises(Unauthenticated):
            known.check(token, "choose")
    finally:
        keys.NOBODY = before


def test_a_key_with_a_rate_may_ask_so_often_and_is_told_when_to_come_back(path):
    clock = Clock(100.0)
    slow, fast = keys.create(path, ("choose",), rate=0.25), keys.create(path, ("choose",), rate=3)
    free = keys.create(path, ("choose",))
    known = keys.Keys(path, clock)

    for _ in range(3):  # a second's worth at once
        known.check(fast, "choose")
    with pytest.raises(TooMany) as error:
        known.check(fast, "choose")
    assert error.value.retry_after == 1
    known.check(slow, "choose")  # at least one
    with pytest.raises(TooMany) as error:
        known.check(slow, "choose")
    assert error.value.retry_after == 4
    for _ in range(100):
        known.check(free, "choose")

    clock.now += 0.34  # one more of the fast
    known.check(fast, "choose")
    with pytest.raises(TooMany):
        known.check(fast, "choose")
    clock.now += 3.66
    known.check(slow, "choose")  # as was promised
    clock.now += 1000
    for _ in range(3):  # and never more than a second's worth
        known.check(fast, "choose")
    with pytest.raises(TooMany):
        known.check(fast, "choose")


def test_who_only_knows_the_id_or_has_the_wrong_scope_does_not_use_the_rate_up(path):
    token = keys.create(path, ("choose",), rate=1)
    known = keys.Keys(path, Clock())
    for _ in range(10):
        with pytest.raises(Unauthenticated):
            known.check(token[:-1], "choose")
        with pytest.raises(Forbidden):
            known.check(token, "admin")
    known.check(token, "choose")


def test_a_new_key_gives_no_other_key_a_new_second(path):
    clock, token = Clock(), keys.create(path, ("choose",), rate=0.1)
    known = keys.Keys(path, clock)
    known.check(token, "choose")
    keys.create(path, ("choose",))
    clock.now += keys.LOOK_EVERY
    with pytest.raises(TooMany):
        known.check(token, "choose")
    assert len(known.known) == 2


def test_rates_are_remembered_of_keys_that_exist_only(path):
    clock = Clock()
    known = keys.Keys(path, clock)
    for _ in range(5):
        token = keys.create(path, ("choose",), rate=1)
        clock.now += keys.LOOK_EVERY
        known.check(token, "choose")
        keys.revoke(path, token)
    clock.now += keys.LOOK_EVERY
    with pytest.raises(Unauthenticated):
        known.check(token, "choose")
    assert known._levels == {}


def test_keys_come_and_go_while_the_server_runs_and_it_looks_once_a_second(path, monkeypatch):
    clock = Clock()
    known = keys.Keys(path, clock)
    known.check("", "admin")  # no keys yet
    token = keys.create(path, ("choose",))
    clock.now += keys.LOOK_EVERY
    with pytest.raises(Unauthenticated):
        known.check("", "choose")
    known.check(token, "choose")

    looks, real = [], keys.read
    monkeypatch.setattr(keys, "read", lambda path: looks.append(path) or real(path))
    stats, real_stat = [], Path.stat
    monkeypatch.setattr(Path, "stat", lambda self, **given: stats.append(self) or real_stat(self, **given))
    for _ in range(40):
        clock.now += keys.LOOK_EVERY / 8
        known.check(token, "choose")
    assert len(stats) == 5  # a stat a second
    assert looks == []  # and nothing is read that has not changed
    monkeypatch.undo()

    keys.revoke(path, token)
    clock.now += keys.LOOK_EVERY
    with pytest.raises(Unauthenticated):
        known.check(token, "choose")


def test_a_server_that_had_keys_stays_closed_without_any(path):
    token = keys.create(path, ("admin",))
    clock = Clock()
    known = keys.Keys(path, clock)
    keys.revoke(path, token)
    assert keys.read(path) == {}
    for each in (known, keys.Keys(path)):  # running, and started again
        clock.now += keys.LOOK_EVERY
        for asked in ("", token):
            with pytest.raises(Unauthenticated):
                each.check(asked, "choose")


@pytest.mark.parametrize("how", ["removed", "emptied", "damaged", "a folder"])
def test_a_file_that_goes_bad_lets_nobody_in_until_it_is_good_again(path, how, caplog):
    token = keys.create(path, ("admin",))
    good, clock = path.read_bytes(), Clock()
    known = keys.Keys(path, clock)
    path.unlink()
    if how == "a folder":
        path.mkdir()
    elif how != "removed":
        path.write_bytes(b"" if how == "emptied" else good[:-9])
    for _ in range(3):
        clock.now += keys.LOOK_EVERY
        for asked in ("", token):
            with pytest.raises(Unavailable):
                known.check(asked, "choose")
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]  # once, not at every request
    assert str(path) in caplog.text

    if how == "a folder":
        path.rmdir()
    path.write_bytes(good)
    clock.now += keys.LOOK_EVERY
    known.check(token, "choose")


def test_a_file_that_could_not_be_read_once_is_read_again_though_it_did_not_change(path, monkeypatch):
    """There may have been too many open files, say."""
    clock = Clock()
    known = keys.Keys(path, clock)
    token = keys.create(path, ("choose",))

    def no_more(*_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(Path, "open", no_more)
    clock.now += keys.LOOK_EVERY
    with pytest.raises(Unavailable):
        known.check(token, "choose")
    monkeypatch.undo()
    clock.now += keys.LOOK_EVERY
    known.check(token, "choose")


def test_no_flipped_bit_and_no_cut_is_taken_for_other_keys_or_for_none(path):
    keys.create(path, ("choose",), name="web", rate=3)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        with pytest.raises(Damaged, match=r"data\.keys is damaged"):
            keys.read(path)
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        with pytest.raises(Damaged):
            keys.Keys(path)


KEY = {"id": "a" * 12, "hash": "b" * 64, "name": "", "scopes": ["choose"], "rate": 0, "created": 0}


@pytest.mark.parametrize(
    "odd",
    [
        {},
        [KEY, KEY],
        [{**KEY, "id": "A" * 12}],
        [{**KEY, "hash": ""}],
        [{**KEY, "scopes": []}],
        [{**KEY, "scopes": ["root"]}],
        [{**KEY, "rate": -1}],
        [{**KEY, "more": 1}],
        [{"id": "a" * 12}],
        [{**KEY, "name": "x" * 65}],
    ],
    ids=str,
)
def test_what_is_well_written_and_no_list_of_keys_is_refused(path, odd):
    text = json.dumps(odd).encode()
    path.write_bytes(keys._checksum(text) + b"\n" + text)
    with pytest.raises(Damaged, match="Put back a copy"):
        keys.read(path)


def test_a_file_without_end_is_not_read_to_its_end(path):
    path.symlink_to("/dev/zero")
    with pytest.raises(Damaged, match="more than"):
        keys.read(path)


def test_changes_at_the_same_time_are_all_kept(path):
    gone = [keys.create(path, ("choose",)) for _ in range(20)]
    made = []

    def work(number):
        for each in gone[number * 5 : number * 5 + 5]:
            made.append(keys.create(path, ("reward",)))
            keys.revoke(path, each)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    arguments = ["key", "create", "--scope", "admin", "--keys-file", str(path)]
    processes = [
        subprocess.Popen([sys.executable, "-m", "banditads", *arguments], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    made += [process.communicate(timeout=120)[0].strip() for process in processes]
    for thread in threads:
        thread.join()

    assert len(made) == 24
    assert set(keys.read(path)) == {token.split("_")[1] for token in made}


def test_a_file_that_cannot_be_written_stays_as_it_was(path, monkeypatch):
    keys.create(path, ("choose",))
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(Exception, match="No space left"):
        keys.create(path, ("choose",))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make files for others")
def test_a_file_that_root_makes_belongs_to_who_runs_the_server(tmp_path):
    os.chown(tmp_path, 10001, 10002)
    path = tmp_path / "data.keys"
    keys.create(path, ("choose",))
    keys.create(path, ("choose",))
    status = path.stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (10001, 10002, 0o600)


def test_a_link_in_the_way_is_not_followed(path, tmp_path):
    """The folder may be somebody's who wants root to overwrite a file."""
    precious = tmp_path / "precious"
    precious.write_text("as it was")
    path.with_name("data.keys.tmp").symlink_to(precious)
    with pytest.raises(Misconfigured, match="cannot be changed"):
        keys.create(path, ("choose",))
    assert precious.read_text() == "as it was"
    assert precious.stat().st_uid == os.geteuid()


def test_keys_lie_beside_the_data_and_never_in_it(tmp_path):
    folder = tmp_path / "data"
    assert keys.keys_path("", folder) == tmp_path / "data.keys"
    assert keys.keys_path(str(tmp_path / "k"), folder) == tmp_path / "k"
    with pytest.raises(Misconfigured, match=r"keys_file: .* inside the data directory"):
        keys.keys_path(str(folder / "keys"), folder)


# The application, without sockets.

SCOPES = {
    "GET /choose": "choose",
    "POST /choose": "choose",
    "GET /ads": "choose",
    "GET /predict": "choose",
    "POST /predict": "choose",
    "POST /reward": "reward",
    "GET /decisions/{id}": "admin",
    "GET /catalog/ads": "admin",
    "POST /catalog/ads": "admin",
    "GET /catalog/ads/{id}": "admin",
    "PUT /catalog/ads/{id}": "admin",
    "DELETE /catalog/ads/{id}": "admin",
    "PUT /users/{id}": "users",
    "GET /users/{id}": "users",
    "DELETE /users/{id}": "users",
    "POST /users/{id}/events": "users",
    "POST /users": "users",
    "POST /events": "users",
    "GET /features": "admin",
    "GET /diagnostics": "admin",
    "GET /policies": "admin",
    "POST /policies/{id}/promote": "admin",
    "POST /evaluations": "admin",
    "GET /evaluations": "admin",
    "GET /evaluations/{id}": "admin",
    "DELETE /evaluations/{id}": "admin",
    "GET /stats": "admin",
    "GET /metrics": "admin",
    "POST /snapshot": "admin",
    "GET /click/{id}": None,
    "HEAD /click/{id}": None,
    "POST /click/{id}": None,
    "GET /impression/{id}": None,
    "POST /impression/{id}": None,
    "GET /conversion/{id}": None,
    "POST /conversion/{id}": None,
    "POST /conversion": None,
    "POST /dwell/{id}": None,
    "GET /banditads.js": None,
    "GET /robots.txt": None,
    "GET /healthz": None,
    "HEAD /healthz": None,
    "POST /choose/batch": "choose",
    "POST /reward/batch": "reward",
    "GET /readyz": None,
    "HEAD /readyz": None,
    "GET /openapi.json": None,
    "GET /help": None,
}


class Untouched:
    """A body that must not be read."""

    def read(self, *_):
        raise AssertionError("the body was read before the key")


@pytest.fixture
def locked(make_engine, path):
    """An application with keys: (site, scope -> token)."""
    tokens = {scope: keys.create(path, (scope,)) for scope in keys.SCOPES}
    return Site(make_engine(), keys.Keys(path)), tokens


def bearing(token):
    return {"HTTP_AUTHORIZATION": f"Bearer {token}"}


def test_every_route_asks_for_its_key_before_anything_of_the_request_is_read(locked):
    site, tokens = locked
    routes = site.app.application.routes.all
    assert {f"{route.method} {route.path}": route.scope for route in routes} == SCOPES
    before, end = site.engine.state.dump(), site.engine.journal.end
    unread = {"wsgi.input": Untouched(), "CONTENT_TYPE": "no/such", "CONTENT_LENGTH": "16000000"}
    for route in routes:
        url = route.path.replace("{id}", "%FF") + "?a=1&a=2"
        wrong = [{}, bearing(tokens["admin"][:-1]), bearing(""), {"HTTP_AUTHORIZATION": tokens["admin"]}]
        wrong += [{"HTTP_AUTHORIZATION": f"Basic {tokens['admin']}"}]
        for headers in wrong if SCOPES[f"{route.method} {route.path}"] else ():
            reply = site(route.method, url, **headers, **unread)
            assert (reply.status, reply.data["error"]["code"]) == (401, "unauthenticated")
            assert reply.headers["www-authenticate"] == "Bearer"
        for scope, token in tokens.items():
            if SCOPES[f"{route.method} {route.path}"] not in (None, scope) and scope != "admin":
                reply = site(route.method, url, **bearing(token), **unread)
                assert (reply.status, reply.data["error"]["code"]) == (403, "forbidden")
    assert (site.engine.state.dump(), site.engine.journal.end) == (before, end)


NO_DISK = ("POST /evaluations", "GET /evaluations/{id}", "DELETE /evaluations/{id}")
NOBODY = ("POST /policies/{id}/promote",)  # no policy has such a name


def test_every_route_answers_whom_it_is_for(locked):
    site, tokens = locked
    event_id = site("GET", "/choose", **bearing(tokens["choose"])).data["event_id"]
    bodies = {
        "POST /choose": {},
        "POST /predict": {},
        "POST /reward": {"event_id": event_id, "reward": 1},
        "POST /choose/batch": {"requests": [{}]},
        "POST /reward/batch": {"rewards": [{"event_id": event_id, "reward": 1}]},
        "POST /conversion": {"event_id": event_id},
        "POST /catalog/ads": [{"id": "new"}],
        "PUT /catalog/ads/{id}": {},
        "PUT /users/{id}": {"consent": True},
        "POST /users/{id}/events": {"kind": "view"},
        "POST /users": [{"id": "u"}],
        "POST /events": [{"user": "u", "kind": "view"}],
    }
    answered = {}
    for route in site.app.application.routes.all:
        name = f"{route.method} {route.path}"
        path = route.path.replace("{id}", "a" if "catalog" in route.path else event_id)
        path += "?seconds=1" if "seconds" in route.query else ""
        for scope in {route.scope, "admin"}:
            headers = bearing(tokens[scope]) if route.scope else {}
            answered[name] = site(route.method, path, bodies.get(name), **headers).status
            nothing_kept = name in ("DELETE /catalog/ads/{id}", "POST /snapshot", *NO_DISK, *NOBODY)
            if not nothing_kept:  # gone; or the engine here keeps no files
                assert answered[name] in (200, 204, 302), name
            assert answered[name] in (200, 204, 302, 400, 404), name
    assert answered.keys() == SCOPES.keys()


def test_a_route_cannot_be_declared_without_saying_who_may_use_it(locked):
    site, _ = locked
    with pytest.raises(TypeError, match="scope"):
        site.app.application.routes.add("GET", "/new")


def test_the_scheme_is_read_as_http_says_and_the_key_from_nowhere_else(locked):
    site, tokens = locked
    for good in ("bearer ", "BEARER ", "Bearer   "):
        assert site("GET", "/choose", HTTP_AUTHORIZATION=good + tokens["choose"]).status == 200
    for query in ("access_token", "key", "token", "authorization"):
        assert site("GET", f"/choose?{query}={tokens['choose']}").status == 401
    assert site("POST", "/choose", {"key": tokens["choose"]}).status == 401
    assert site("GET", "/choose", HTTP_COOKIE=f"token={tokens['choose']}").status == 401
    twice = f"Bearer {tokens['choose']},Bearer {tokens['admin']}"
    assert site("GET", "/choose", HTTP_AUTHORIZATION=twice).status == 401


def test_beyond_the_rate_it_is_429_with_retry_after(make_engine, path):
    token = keys.create(path, ("choose",), rate=0.1)
    site = Site(make_engine(), keys.Keys(path, Clock()))
    assert site("GET", "/choose", **bearing(token)).status == 200
    reply = site("POST", "/choose", b"{", **bearing(token))
    assert (reply.status, reply.data["error"]["code"]) == (429, "too_many")
    assert reply.headers["retry-after"] == "10"
    assert site("GET", "/healthz").status == 200


def test_every_status_of_a_refusal_has_its_reason():
    assert set(wire.STATUS.values()) <= wire.REASONS.keys()


def test_a_browser_clicks_without_a_key_on_ids_that_we_signed_only(locked):
    site, tokens = locked
    ours = site("GET", "/choose", **bearing(tokens["choose"])).data
    theirs = site("GET", "/choose?event_id=order-17", **bearing(tokens["choose"])).data

    assert (theirs["click_url"], theirs["impression_url"]) == (None, None)
    for path in ("/click/order-17", "/impression/order-17"):
        reply = site("GET", path)
        assert (reply.status, reply.data["error"]["code"]) == (404, "unknown")
        assert site("GET", path, **bearing(tokens["admin"])).status == 404
    assert site.engine.state.stats.total.rewards == 0
    unknown = site("GET", "/click/nobody-has-this")  # nothing tells which ids a site uses
    assert unknown.data == reply.data
    assert site("GET", ours["impression_url"]).status == 200
    assert site("GET", ours["click_url"]).status == 302
    assert site.engine.state.stats.total.rewards == 1
    again = site("POST", "/reward", {"event_id": "order-17", "reward": 1}, **bearing(tokens["reward"]))
    assert again.data["status"] == "applied"


def test_openapi_says_which_key_each_route_wants(locked, make_engine):
    site, _ = locked
    document = site("GET", "/openapi.json").data
    validate(document)
    for name, scope in SCOPES.items():
        method, path = name.split()
        operation = document["paths"][path][method.lower()]
        assert operation["security"] == ([{"bearer": [scope]}] if scope else [])
        assert ({"401", "403", "429"} <= operation["responses"].keys()) is bool(scope)
    assert document["components"]["securitySchemes"]["bearer"]["scheme"] == "bearer"

    without = Site(make_engine())("GET", "/openapi.json").data
    validate(without)
    assert without["paths"]["/choose"]["get"]["security"] == [{"bearer": ["choose"]}, {}]


# The command and the server, as they are used.


def made(folder, *arguments):
    """A key that the command printed, and nothing else."""
    done = banditads("key", "create", "--data-dir", folder, *arguments)
    assert re.fullmatch(r"ba_\w+\n", done.stdout)
    return done.stdout.strip()


def test_the_command_says_where_the_key_is_known(tmp_path):
    """A key for a directory that no server uses protects nothing."""
    done = banditads("key", "create", "--data-dir", tmp_path / "data", "--scope", "choose")
    assert str(tmp_path / "data.keys") in done.stderr
    assert done.stdout.strip() not in done.stderr


def test_the_command_shows_a_secret_once_only(tmp_path):
    folder = tmp_path / "data"
    assert "everybody" in banditads("key", "list", "--data-dir", folder).stderr
    token = made(folder, "--scope", "choose", "--scope", "reward", "--name", "web shop", "--rate", "100")
    id, secret = token.split("_")[1:]
    listed = banditads("key", "list", "--data-dir", folder)
    for each in (id, "choose,reward", "web shop", "100/s"):
        assert each in listed.stdout
    stored = keys.read(tmp_path / "data.keys")[id].hash
    assert secret not in listed.stdout + listed.stderr
    assert stored not in listed.stdout + listed.stderr

    nothing = banditads("key", "revoke", "--data-dir", folder, f"ba_{'0' * 12}_{secret}", code=78)
    assert secret not in nothing.stdout + nothing.stderr
    assert "Traceback" not in nothing.stderr
    other = made(folder, "--scope", "admin")
    assert id in banditads("key", "revoke", "--data-dir", folder, id).stdout
    assert other not in banditads("key", "revoke", "--data-dir", folder, other).stdout
    assert "nobody is let in" in banditads("key", "list", "--data-dir", folder).stderr
    with pytest.raises(Unknown):
        keys.revoke(tmp_path / "data.keys", id)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["create"], 2),
        (["create", "--scope", "root"], 2),
        (["create", "--scope", "choose", "--rate", "nan"], 78),
        (["create", "--scope", "choose", "--keys-file", "/proc/keys.new/x"], 78),
        (["revoke"], 2),
        (["revoke", "ba_x"], 78),
        (["fly"], 2),
    ],
    ids=str,
)
def test_the_command_refuses_what_cannot_be(tmp_path, arguments, code):
    where = [] if "--keys-file" in arguments else ["--data-dir", tmp_path / "data"]
    done = banditads("key", *arguments, *where, code=code)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_the_keys_are_where_the_settings_say(tmp_path, monkeypatch):
    config = tmp_path / "banditads.toml"
    config.write_text(f'keys_file = "{tmp_path}/one.keys"')
    banditads("key", "create", "--scope", "choose", "--config", config)
    monkeypatch.setenv("BANDITADS_KEYS_FILE", f"{tmp_path}/two.keys")
    banditads("key", "create", "--scope", "choose", "--config", config)
    assert sorted(path.name for path in tmp_path.glob("*.keys")) == ["one.keys", "two.keys"]
    assert [len(keys.read(tmp_path / name)) for name in ("one.keys", "two.keys")] == [1, 1]


def status(server, method, path, token="", body=None):
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    reply = server.session.request(method, server.url + path, json=body, headers=headers, timeout=30)
    return reply.status_code


def becomes(wanted, ask):
    """Wait until the answer is this; what the server notices by itself it notices within about a second."""
    deadline = time.monotonic() + 20
    while (seen := ask()) != wanted:
        assert time.monotonic() < deadline, seen
        time.sleep(0.05)


def test_a_running_server_notices_by_itself_what_is_created_and_revoked(start, tmp_path):
    server, folder = start("--policy", "uniform"), tmp_path / "data"
    assert status(server, "GET", "/stats") == 200  # no keys, and only this machine can ask

    choosing = made(folder, "--scope", "choose")
    becomes(401, lambda: status(server, "GET", "/choose"))
    assert status(server, "GET", "/choose", choosing) == 200
    assert status(server, "GET", "/stats", choosing) == 403
    admin = made(folder, "--scope", "admin")
    becomes(200, lambda: status(server, "GET", "/stats", admin))

    banditads("key", "revoke", "--data-dir", folder, choosing)
    becomes(401, lambda: status(server, "GET", "/choose", choosing))
    assert status(server, "GET", "/stats", admin) == 200
    banditads("key", "revoke", "--data-dir", folder, admin)
    becomes(401, lambda: status(server, "GET", "/stats", admin))
    assert status(server, "GET", "/stats") == 401  # the last is gone, and it is closed
    assert status(server, "GET", "/healthz") == 200
    server.end()
    again = start("--policy", "uniform")
    assert status(again, "GET", "/stats") == 401


def test_a_file_that_is_damaged_stops_a_start_and_closes_a_running_server(start, tmp_path):
    token = made(tmp_path / "data", "--scope", "admin")
    server, path = start("--policy", "uniform"), tmp_path / "data.keys"
    assert status(server, "GET", "/stats", token) == 200
    path.write_bytes(path.read_bytes()[:-5])
    becomes(503, lambda: status(server, "GET", "/readyz"))  # a supervisor hears of it
    assert str(path) not in server("GET", "/readyz").text
    assert [status(server, "GET", "/stats", each) for each in ("", token)] == [503, 503]
    _, errors = server.end()
    assert "damaged" in errors
    code, said = refused("--data-dir", tmp_path / "data")
    assert (code, "Traceback" in said) == (65, False)
    assert str(path) in said
    assert "damaged" in banditads("key", "list", "--data-dir", tmp_path / "data", code=65).stderr
    assert (
        "damaged"
        in banditads("key", "create", "--scope", "admin", "--data-dir", tmp_path / "data", code=65).stderr
    )


def test_others_may_reach_a_server_that_has_a_key_and_no_other(start, tmp_path):
    folder = tmp_path / "data"
    code, said = refused("--data-dir", folder, "--host", "0.0.0.0")
    assert (code, "banditads key create" in said) == (78, True)
    token = made(folder, "--scope", "choose")
    server = start("--host", "0.0.0.0", "--policy", "uniform")
    assert (status(server, "GET", "/choose"), status(server, "GET", "/choose", token)) == (401, 200)
    banditads("key", "revoke", "--data-dir", folder, token)
    becomes(401, lambda: status(server, "GET", "/choose", token))
    server.end()
    code, said = refused("--data-dir", folder, "--host", "0.0.0.0")
    assert (code, "there are no keys" in said) == (78, True)
    asked = start("--host", "0.0.0.0", "--allow-remote", "--policy", "uniform")
    assert status(asked, "GET", "/choose") == 401  # it listens, and is closed all the same


def test_the_lines_it_prints_work_with_the_key(start, tmp_path):
    token = made(tmp_path / "data", "--scope", "choose", "--scope", "reward")
    server = start("--policy", "uniform")
    said = []
    for _ in range(2):
        line = server.process.stdout.readline().strip()
        assert token not in line
        done = subprocess.run(
            line, shell=True, capture_output=True, check=True, env={**os.environ, "KEY": token}
        )
        said.append(json.loads(done.stdout))
    assert said[0]["ad"]["id"] in {ad["id"] for ad in CATALOG}
    assert said[1]["status"] == "applied"


def test_a_client_has_its_key_and_does_not_tell_it(start, tmp_path):
    token = made(tmp_path / "data", "--scope", "choose")
    server = start("--policy", "uniform")
    with Client(server.url, key=token) as client:
        assert client.choose("e1", "u1", {})[1] == "e1"
        with pytest.raises(Failed) as error:
            client.reward("e1", 1.0)
    assert (error.value.status, error.value.code) == (403, "forbidden")
    with Client(server.url) as client, pytest.raises(Failed) as error:
        client.choose("e1", "u1", {})
    assert error.value.status == 401
    with pytest.raises(ValueError, match="characters") as error:
        Client(server.url, key=token + "\n")
    assert token not in str(error.value)


def test_without_a_key_no_body_is_waited_for(start, tmp_path):
    made(tmp_path / "data", "--scope", "admin")
    server = start("--policy", "uniform")
    host, port = server.url.removeprefix("http://").split(":")
    for length in (b"Content-Length: 60000", b"Content-Length: 16000000", b"Transfer-Encoding: chunked"):
        with socket.create_connection((host, int(port)), timeout=20) as line:
            head = b"POST /catalog/ads HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            line.sendall(head + length + b"\r\n\r\n")  # and nothing after
            assert line.recv(65536).startswith(b"HTTP/1.1 401 ")


def test_neither_a_key_nor_a_visitors_id_is_in_any_log(start, tmp_path):
    folder, private = tmp_path / "data", "very-private"
    may = made(folder, "--scope", "choose", "--scope", "reward", "--scope", "users")
    slow, admin = made(folder, "--scope", "choose", "--rate", "0.001"), made(folder, "--scope", "admin")
    server = start("--policy", "uniform")
    asked = f"/choose?user_id={private}"
    chosen = server.session.get(server.url + asked, headers={"Authorization": f"Bearer {may}"}).json()
    event = chosen["event_id"]
    reward = {"event_id": event, "reward": 1}
    seen = {
        status(server, "POST", "/reward", may, reward),  # 200
        status(server, "GET", f"{asked}&event_id={private}&device={private}&x={private}&x=1", may),  # 400
        status(server, "POST", "/choose", may, {"user_id": private, "context": {private: [1]}}),
        status(server, "POST", "/choose", may, {private: may}),
        status(server, "PUT", f"/users/{private}", may, {"consent": True, "attributes": {"a": private}}),
        status(server, "PUT", f"/users/{private}", may, {"attributes": {private: [1]}}),
        status(server, "POST", f"/users/{private}/events", may, {"kind": private, "at": 1e30}),
        status(
            server, "POST", "/events", may, [{"user": private, "kind": private}, {"user": private + "\n"}]
        ),
        status(server, "DELETE", f"/users/{private}", may),
        status(server, "GET", asked),  # 401
        status(server, "GET", asked, private),
        status(server, "GET", f"{asked}&token={may}", may[:-1]),
        status(server, "GET", asked, admin[:20]),
        status(server, "GET", f"/decisions/{private}", may),  # 403
        status(server, "GET", f"/decisions/{private}", admin),  # 404
        status(server, "GET", f"/click/{private}?user_id={private}"),
        status(server, "GET", f"/{private}/{may}"),
        status(server, "PATCH", asked, may),  # 405
        status(server, "POST", "/reward", may, {"event_id": event, "reward": 0}),  # 409
        status(server, "POST", "/choose", may, {"user_id": private, "context": {"a": "x" * 70_000}}),  # 413
        server.session.post(
            server.url + "/choose", data={"user_id": private}, headers={"Authorization": f"Bearer {may}"}
        ).status_code,  # 415
        status(server, "GET", asked, slow),
        status(server, "GET", asked, slow),  # 429
    }
    click = server.session.get(server.url + chosen["click_url"], allow_redirects=False)
    path = tmp_path / "data.keys"
    path.write_bytes(b"rubbish")
    becomes(503, lambda: status(server, "GET", asked, may))
    with socket.create_connection(server.url.removeprefix("http://").split(":"), timeout=20) as line:
        line.sendall(f"GET {asked} HTTP/9.9\r\nAuthorization: Bearer {may}\r\n: {private}\r\n\r\n".encode())
        line.recv(65536)
    code, errors = server.end()
    forgetful = start("--policy", "uniform", "--reward-wait", "200ms", folder=tmp_path / "other")
    assert status(forgetful, "GET", f"{asked}&event_id={private}") == 200
    becomes(1, lambda: forgetful.data("/stats")["expired"])
    seen.add(status(forgetful, "GET", f"/click/{private}"))
    seen.add(status(forgetful, "POST", "/reward", "", {"event_id": private, "reward": 1}))  # 410
    errors += forgetful.end()[1]

    assert seen >= {200, 400, 401, 403, 404, 405, 409, 410, 413, 415, 429}
    assert (click.status_code, code) == (204, 0)  # these ads lead nowhere
    assert "keys are known" in errors
    assert "a click was not learned from" in errors
    for secret in (private, *(part for token in (may, slow, admin) for part in (token, token[16:30]))):
        assert secret not in errors


@pytest.mark.parametrize(
    "url", ["/choose?user_id=very-private", "/click/very-private", "/decisions/very-private"]
)
def test_our_own_faults_are_logged_without_the_visitors_id_or_the_key(locked, monkeypatch, caplog, url):
    site, tokens = locked
    monkeypatch.setattr("banditads.api.tracking.trusted", lambda *_: True)

    def broken(*_, **__):
        raise RuntimeError("broken")

    for name in ("choose", "decision"):
        monkeypatch.setattr(site.engine, name, broken)
    assert site("GET", url, **bearing(tokens["admin"])).status == 500
    assert "RuntimeError: broken" in caplog.text
    assert "very-private" not in caplog.text
    assert tokens["admin"][16:] not in caplog.text


def test_nginx_passes_keys_and_refusals_on_and_writes_no_key_down(start, tmp_path):
    token = made(tmp_path / "data", "--scope", "choose")
    server = start("--policy", "uniform")
    with nginx(tmp_path, int(server.url.rpartition(":")[2])) as port:
        url = f"http://127.0.0.1:{port}/choose"
        let_in = server.session.get(url, headers={"Authorization": f"Bearer {token}"}, timeout=30)
        refused = [server.session.get(url, timeout=30)]
        refused.append(server.session.post(url, json={}, headers={"Authorization": "Bearer x"}, timeout=30))
    assert let_in.status_code == 200
    for reply in refused:
        assert (reply.status_code, reply.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert reply.json()["error"]["code"] == "unauthenticated"
    logs = "".join((tmp_path / name).read_text() for name in ("access.log", "error.log"))
    assert logs.count("/choose") == 3
    assert token[16:] not in logs
