"""Every parser of bytes from outside, as a function of bytes that raises when a promise is broken.

A target lets through only the errors that are documented for its parser, and asks of what was accepted that
it reads back as it was written, is finite and can be used. `run.py` feeds them; so does the test suite, from
`corpus/`.
"""

from __future__ import annotations

import atexit
import io
import itertools
import json
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import unquote_to_bytes

import msgspec
import numpy as np

from banditads import api, events, logs, settings, signing
from banditads.directory import read_config
from banditads.engine import Engine
from banditads.errors import Damaged, Invalid, Misconfigured
from banditads.events import Ad
from banditads.features import MAX_FEATURES, MAX_NUMBER, clean, tokens
from banditads.journal import connect
from banditads.journal import file as journal_file
from banditads.snapshots import Snapshots
from banditads.state import State

TARGETS: dict[str, Callable[[bytes], None]] = {}
FOLDER = Path(tempfile.mkdtemp(prefix="fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
KEY = b"k" * 32
MEDIA = ("application/json", "application/msgpack", "application/x-ndjson")
FAIR = {200, 204, 302, 400, 404, 405, 409, 410, 411, 413, 414, 415, 431}


def target(check: Callable[[bytes], None]) -> Callable[[bytes], None]:
    """Put it on the board."""
    TARGETS[check.__name__] = check
    return check


# Requests, through the whole application


class Site:
    """An application in memory with three ads and a decision that waits; forgets everything now and then."""

    LIVES = 500  # requests

    def __init__(self, policy: str) -> None:
        self.policy, self.left, self.now = policy, 0, 1e9
        numbers = itertools.count()
        ids = signing.EventIds(KEY, entropy=lambda size: next(numbers).to_bytes(size, "big"))
        self.engine = Engine(State(policy), connect("memory:"), ids=ids, clock=lambda: self.now)
        self.app = api.build(self.engine)

    def fresh(self) -> None:
        """Count one request; begin again after enough of them."""
        self.left -= 1
        if self.left > 0:
            return
        self.left = self.LIVES
        self.engine.state, self.engine.journal = State(self.policy), connect("memory:")
        self.engine.put_ads([Ad("a", {"k": "x"}, "https://shop.test/a"), Ad("b", {"price": 2.0}), Ad("c")])
        self("GET", "/choose", query="event_id=e1")

    def __call__(
        self,
        method: str,
        path: str,
        raw: bytes = b"",
        media: str = MEDIA[0],
        query: str = "",
        accept: str = "",
        **more: str,
    ) -> tuple[int, bytes]:
        """(status, body). What is refused must be refused by one of the statuses, and change nothing."""
        said: list[str] = []
        environ = {
            "REQUEST_METHOD": method,
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": media,
            "CONTENT_LENGTH": str(len(raw)),
            "HTTP_ACCEPT": accept,
            "HTTP_HOST": "127.0.0.1",
            "REMOTE_ADDR": "127.0.0.1",
            "SERVER_NAME": "127.0.0.1",
            "SERVER_PORT": "80",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(raw),
            "wsgi.errors": io.StringIO(),
        } | more
        end = self.engine.journal.end
        reply = b"".join(self.app(environ, lambda status, headers, *rest: said.append(status)))
        status = int(said[0].split()[0])
        assert status in FAIR, (status, reply)
        if status >= 400:
            assert status == 410 or self.engine.journal.end == end, "a refusal was journaled"
            error = json.loads(reply) if not accept else {"error": {"code": "?", "message": "?"}}
            assert error["error"]["code"], reply
            assert error["error"]["message"], reply
        elif self.engine.journal.end > end:
            for _, record in self.engine.journal.read(end):
                assert events.encode(events.decode(record)) == record
        return status, reply

    def check_model(self) -> None:
        """What another visitor is shown is a distribution."""
        pmf = np.array(self.engine.predict(api.serving.Request({"device": "mobile", "age": 31.0})).pmf)
        assert np.isfinite(pmf).all()
        assert (pmf >= 0).all()
        assert abs(pmf.sum() - 1) < 1e-9


SITES = {policy: Site(policy) for policy in ("uniform", "vw")}


def _site(policy: str = "uniform") -> Site:
    SITES[policy].fresh()
    return SITES[policy]


def _split(data: bytes) -> tuple[int, bytes]:
    return (data[0], data[1:]) if data else (0, b"")


def _check_decision(site: Site, reply: bytes) -> None:
    decided = json.loads(reply)
    chances = decided["propensities"].values()
    assert all(0 <= each <= 1 for each in chances)
    assert math.isclose(sum(chances), 1, abs_tol=1e-9)
    if "event_id" in decided:
        assert decided["probability"] == decided["propensities"][decided["ad"]["id"]]
        status, _ = site("GET", "/decisions/" + decided["event_id"].encode().decode("latin-1"))
        assert status == 200
        if decided["event_id"] in site.engine.state.joiner.open:
            site.engine.reward(decided["event_id"], 1.0)
        site.check_model()


@target
def choose(data: bytes) -> None:
    """POST /choose and /predict: what is accepted leads to a distribution, is journaled and learned from."""
    which, raw = _split(data)
    site = _site("vw")
    status, reply = site("POST", "/predict" if which & 2 else "/choose", raw, MEDIA[which & 1])
    if status == 200:
        _check_decision(site, reply)


@target
def reward(data: bytes) -> None:
    """POST /reward: what is accepted is a finite number in the range."""
    which, raw = _split(data)
    site = _site()
    status, _ = site("POST", "/reward", raw, MEDIA[which & 1])
    if status == 200:
        assert 0 <= site.engine.state.stats.total.reward_sum <= site.engine.state.stats.total.rewards
        site.left = 0


@target
def batch(data: bytes) -> None:
    """POST /choose/batch and /reward/batch: each item gets an answer of its own."""
    which, raw = _split(data)
    site = _site()
    status, reply = site("POST", ("/choose/batch", "/reward/batch")[which >> 1 & 1], raw, MEDIA[which & 1])
    if status == 200:
        for each in json.loads(reply)["results"]:
            assert each["status"] in FAIR
            assert {"reply", "event_id", "error"} & each.keys()
            if "propensities" in each.get("reply", ()):
                _check_decision(site, json.dumps(each["reply"]).encode())


HEADERS = ("CONTENT_LENGTH", "HTTP_TRANSFER_ENCODING", "HTTP_CONTENT_ENCODING", "HTTP_ACCEPT_ENCODING")
HEADERS += ("HTTP_AUTHORIZATION", "HTTP_EXPECT", "CONTENT_TYPE", "PATH_INFO")


@target
def door(data: bytes) -> None:
    """Any values of the headers that the door looks at, and any path, separated by line ends."""
    which, raw = _split(data)
    said = dict(zip(HEADERS, raw.decode("latin-1").split("\n"), strict=False))
    more = {name: value for name, value in said.items() if value}
    method, where = (("GET", "/stats"), ("POST", "/choose"), ("PUT", "/catalog/ads/x"), ("BREW", "/"))[
        which % 4
    ]
    _site()(method, where, b"{}", **more)


@target
def put_ad(data: bytes) -> None:
    """PUT /catalog/ads/{id}: what is accepted comes back, and can be shown."""
    which, raw = _split(data)
    site = _site("vw")
    if site("PUT", "/catalog/ads/x", raw, MEDIA[which & 1])[0] == 200:
        site.left = 0
        _check_ads(site)


@target
def post_ads(data: bytes) -> None:
    """POST /catalog/ads, as an array and as JSON Lines, which is also how a catalog file is read."""
    which, raw = _split(data)
    site = _site("vw")
    if site("POST", "/catalog/ads", raw, MEDIA[2 * (which & 1)])[0] == 200:
        site.left = 0
        _check_ads(site)


def _check_ads(site: Site) -> None:
    for ad in site.engine.state.catalog.ads.values():
        assert msgspec.msgpack.decode(msgspec.msgpack.encode(ad), type=Ad) == ad
        assert clean(ad.features) == ad.features
    assert site("GET", "/catalog/ads")[0] == 200
    status, reply = site("GET", "/choose")
    assert status in (200, 204)
    if status == 200:
        _check_decision(site, reply)


@target
def query(data: bytes) -> None:
    """GET with any query string, path and Accept, separated by line ends."""
    which, raw = _split(data)
    text, path, accept = [*raw.decode("latin-1").split("\n"), "", ""][:3]
    site = _site("vw")
    unquoted = unquote_to_bytes(path.encode("latin-1")).decode("latin-1")  # as servers hand it on
    if which & 8:
        family = ("/decisions/", "/catalog/ads/", "/click/", "/impression/")[which % 4]
        site("GET", family + unquoted, query=text, accept=accept)
        return
    where = ("/choose", "/predict", "/catalog/ads", "/stats")[which % 4]
    status, reply = site("GET", where, query=text, accept=accept)
    if status == 200 and which % 4 < 2 and not accept:
        _check_decision(site, reply)


@target
def content_type(data: bytes) -> None:
    """Any Content-Type on a good body: understood, or 415."""
    site = _site()
    body = json.dumps({"context": {"a": 1}}).encode()
    status, _ = site("POST", "/predict", body, data.decode("latin-1"))
    assert status in (200, 400, 415)


# Ids and features


IDS = signing.EventIds(KEY, entropy=bytes)  # the same in every run
MINTED = IDS.mint(1e9)


@target
def event_id(data: bytes) -> None:
    """Only what we signed is ours, in the one spelling that we gave it."""
    text = data.decode("utf-8", "surrogateescape")
    assert (IDS.minted_at(text) is not None) == (text == MINTED)
    changed = "".join(chr((ord(old) ^ (new & 31)) & 127) for old, new in zip(MINTED, data, strict=False))
    changed += MINTED[len(changed) :]
    assert (IDS.minted_at(changed) is not None) == (changed == MINTED)


@target
def features(data: bytes) -> None:
    """What is clean is flat, bounded, finite, sorted, and as clean as it gets; tokens do not collide."""
    which, raw = _split(data)
    try:
        given = (msgspec.msgpack if which & 1 else msgspec.json).decode(raw, type=dict)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return
    try:
        found = clean(given)
    except Invalid:
        return
    assert list(found) == sorted(found)
    assert len(found) <= MAX_FEATURES
    assert all(isinstance(each, str) or abs(each) <= MAX_NUMBER for each in found.values())
    assert clean(found) == found
    assert len({name for name, _ in tokens(found)}) == len(found)


# Files


@target
def event(data: bytes) -> None:
    """A record of the journal is an event that is written as it was read, or a DecodeError."""
    try:
        found = events.decode(data)
    except msgspec.DecodeError:
        return
    again = events.encode(found)
    assert events.encode(events.decode(again)) == again


@target
def segment(data: bytes) -> None:
    """A file in the place of a journal's only segment."""
    _read_segment(data)


@target
def records(data: bytes) -> None:
    """A segment with a good header, and records whose crc fits whatever else is odd about them."""
    header = journal_file.HEADER.pack(journal_file.MAGIC, journal_file.VERSION, 0, 0, b"s" * 16, 0)[:-4]
    raw = header + zlib.crc32(header).to_bytes(4, "little")
    salt = zlib.crc32(b"s" * 16)
    offset = 0
    while data:
        (which, size), data = (*data[:2], 0)[:2], data[2:]
        payload, data = data[: size & 63], data[size & 63 :]
        said = offset + ((which >> 4) if which & 1 else 0)
        record = bytearray(journal_file._record(salt, said, payload))
        if which & 2 and payload:
            record[which >> 2 & 15] ^= 1 << (size & 7)
        if which & 4:
            del record[len(record) // 2 :]
        raw += record
        offset += 1
    _read_segment(raw)


def _read_segment(raw: bytes) -> None:
    path = FOLDER / "journal" / f"{0:020d}.journal"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(raw)
    try:
        found = list(journal_file.scan(path.parent))
    except Damaged:
        found = None
    try:
        journal = journal_file.Journal(str(path.parent))
    except Damaged:
        assert found is None, "opening found damage that reading did not"
        assert path.read_bytes() == raw, "a damaged file was changed"
        return
    try:
        assert found == list(journal.read(0)), "opening and reading found different records"
        assert [offset for offset, _ in found] == list(range(journal.end))
        journal.append(b"next")
    finally:
        journal.close()
    assert list(journal_file.scan(path.parent)) == [*found, (len(found), b"next")]


@target
def snapshot(data: bytes) -> None:
    """Nothing that we did not sign is loaded; what we signed comes back."""
    folder = FOLDER / "snapshots"
    folder.mkdir(exist_ok=True)
    path = folder / f"{7:020d}.snapshot"
    path.write_bytes(data)
    assert list(Snapshots(folder, KEY).load()) == [], "a forged snapshot was loaded"
    path.unlink()
    snapshots = Snapshots(folder, KEY)
    raw = bytearray(snapshots.save(7, data).read_bytes())
    assert list(snapshots.load()) == [(7, data)]
    raw[len(data) % len(raw)] ^= 1
    path.write_bytes(raw)
    assert list(snapshots.load()) == []


@target
def state(data: bytes) -> None:
    """Behind the signature: nonsense raises, and what loads is dumped and loaded again alike."""
    which, raw = _split(data)
    policy = ("uniform", "thompson", "linucb", "logistic")[which % 4]
    loaded = State(policy)
    try:
        loaded.load(raw)
        dumped = loaded.dump()
    except Exception:  # it was signed by us, so this is our own mistake: any error ends the start
        return
    copy = State(policy)
    copy.load(dumped)
    assert copy.dump() == dumped


@target
def config(data: bytes) -> None:
    """CONFIG with any text, its checksum repaired; and the key file."""
    for raw in (data, f"crc32 {zlib.crc32(data.rstrip()):08x}\n".encode() + data.rstrip() + b"\n"):
        (FOLDER / "CONFIG").write_bytes(raw)
        try:
            found = read_config(FOLDER)
        except Damaged:
            continue
        assert isinstance(found, dict)
    (FOLDER / "key").write_bytes(data)
    with suppress(Misconfigured):
        assert len(signing.load(FOLDER / "key")) == signing.KEY_BYTES


@target
def setting(data: bytes) -> None:
    """The same text as a TOML file, as variables of the environment, and as flags."""
    (FOLDER / "banditads.toml").write_bytes(data)
    pairs = dict(line.partition("=")[::2] for line in data.decode("utf-8", "surrogateescape").split("\n"))
    for given in (
        {"file": str(FOLDER / "banditads.toml")},
        {"environ": {settings.PREFIX + name.strip().upper(): text.strip() for name, text in pairs.items()}},
        {"flags": {name.strip(): text.strip() for name, text in pairs.items()}},
    ):
        try:
            found = settings.load(**given)
        except Misconfigured:
            continue
        numbers = [value for value in msgspec.structs.astuple(found) if isinstance(value, float)]
        assert all(map(math.isfinite, numbers)), found
        assert found.reward_min <= found.default_reward <= found.reward_max


def _read_log(path: Path) -> None:
    """Every round of a log is one that a policy can learn from; or Damaged, or Misconfigured."""
    with suppress(Damaged, Misconfigured):
        for settled in logs.read(path):
            choice = settled.choice
            pmf = np.frombuffer(choice.pmf, "<f8")
            assert len(pmf) == len(choice.ads) == len(settled.ads)
            assert np.isfinite(pmf).all(), pmf
            assert 0 <= choice.pick < len(pmf), "the pick is none of the ads"
            assert ((pmf >= 0) & (pmf <= 1)).all(), pmf
            assert choice.probability > 0
            assert math.isfinite(settled.reward)
            assert math.isfinite(choice.at)
            assert clean(choice.context) == choice.context
            assert all(clean(ad.features) == ad.features for ad in settled.ads)


@target
def dsjson(data: bytes) -> None:
    """A log of decision-service JSON."""
    path = FOLDER / "log.dsjson"
    path.write_bytes(data)
    _read_log(path)


@target
def open_bandit(data: bytes) -> None:
    """A log and its items in the form of the Open Bandit Dataset, separated by an empty line."""
    log, _, items = data.partition(b"\n\n")
    folder = FOLDER / "random" / "x"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "item_context.csv").write_bytes(items)
    (folder / "x.csv").write_bytes(log)
    _read_log(folder / "x.csv")


@target
def parquet(data: bytes) -> None:
    """A table with our columns and any values, as JSON; or a file that only ends like one in Parquet."""
    import pyarrow  # noqa: PLC0415  (large, and only needed here)
    import pyarrow.parquet  # noqa: PLC0415

    path = FOLDER / "log.parquet"
    which, raw = _split(data)
    if which & 1:
        path.write_bytes(raw[:4096])
    else:
        try:
            rows = msgspec.json.decode(raw, type=list[dict])
            schema = logs.parquet._schema(pyarrow) if which & 2 else None
            table = pyarrow.Table.from_pylist(rows[:8], schema)
            pyarrow.parquet.write_table(table, path)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, pyarrow.ArrowException):
            return
        except (TypeError, ValueError, OverflowError, OSError):  # nothing that can be written
            return
    _read_log(path)
