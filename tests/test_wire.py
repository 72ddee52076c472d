"""What is read fast is read as the plain way would; every route in two encodings; some compressed."""

import gzip
import json
import re
from types import SimpleNamespace
from urllib.parse import parse_qsl

import msgspec
import pytest
from conftest import ADS
from hypothesis import example, given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from test_api import Site
from test_contract import BODIES

from banditads import api, wire
from banditads.api import metrics
from banditads.errors import Invalid, Refused, Unsupported
from banditads.parsing import JSON, MSGPACK


def outcome(function, *arguments):
    """What it returns, or the refusal."""
    try:
        return function(*arguments)
    except Refused as error:
        return type(error), error.message, error.field


def plain_query(text):
    """The library's way."""
    found = {}
    if not text:
        return found
    try:
        pairs = parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=wire.MAX_QUERY)
    except ValueError:
        raise Invalid("the query string is not UTF-8, or too long", "query") from None
    for name, value in pairs:
        if not name:
            raise Invalid("a query parameter has no name", "query")
        if name in found:
            raise Invalid("given twice", name[:128])
        found[name] = value
    return found


PIECES = st.sampled_from(
    ["a", "b", "é", "=", "&", "&&", "%", "%2", "%26", "%3d", "%C3%A9", "%ff", "+", ";", "\0"]
)
QUERIES = st.lists(PIECES, max_size=12).map("".join) | st.text(max_size=20)


@example("&".join(f"p{n}=1" for n in range(wire.MAX_QUERY)))
@example("&".join(f"p{n}=1" for n in range(wire.MAX_QUERY + 1)))
@given(QUERIES | st.integers(250, 350).map(lambda n: "&".join(f"p{i}=1" for i in range(n))))
def test_a_query_is_read_as_the_library_reads_it(text):
    assert outcome(wire.query, SimpleNamespace(query_string=text)) == outcome(plain_query, text)


def plain_media(said, allowed):
    """Name and parameters taken apart whatever they are."""
    name, *parameters = (part.strip().lower() for part in (said or JSON).split(";"))
    name = {"application/x-msgpack": MSGPACK}.get(name, name)
    if name not in allowed:
        raise Unsupported(f"send the body as {' or '.join(allowed)}", "Content-Type")
    for parameter in parameters:
        if parameter.startswith("charset=") and parameter not in ("charset=utf-8", 'charset="utf-8"'):
            raise Unsupported("the charset must be utf-8", "Content-Type")
    return name


KINDS = (
    JSON,
    MSGPACK,
    "application/x-msgpack",
    "Application/JSON",
    "application/x-ndjson",
    "text/xml",
    "",
    " ",
)
TAILS = (
    "",
    ";",
    "; charset=utf-8",
    ";charset=UTF-8",
    '; charset="utf-8"',
    "; charset=latin-1",
    "; a=b",
    ";;",
)


@given(
    st.none() | st.builds(str.__add__, st.sampled_from(KINDS), st.sampled_from(TAILS)) | st.text(max_size=9)
)
def test_a_media_type_is_read_as_if_it_had_parameters(said):
    request = SimpleNamespace(content_type=said)
    for allowed in ((JSON, MSGPACK), (JSON, "application/x-ndjson")):
        assert outcome(wire.media_type, request, allowed) == outcome(plain_media, said, allowed)


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("gzip", True),
        ("x-gzip", True),
        ("GZIP;Q=0.5", True),
        ("gzip, deflate, br", True),
        ("*", True),
        ("*;q=0", False),
        ("gzip;q=0", False),
        ("gzip;q=0.000, *", False),
        ("deflate, br;q=0.9", False),
        ("identity, gzip;q=0.5", False),
        ("identity;q=0.5, gzip;q=0.6", True),
        ("gzip;q=nonsense", False),
        ("gzip;q=nan", False),
        ("gzip;q=1e9", False),
        ("gzip ; q=1", True),
        (";;;,,,", False),
    ],
)
def test_accept_encoding_is_weighed(accept, wanted):
    assert wire.wants_gzip(SimpleNamespace(env={"HTTP_ACCEPT_ENCODING": accept})) is wanted


@given(
    st.text(max_size=30)
    | st.lists(st.sampled_from(["gzip", ";", "q=", "1", ".", ",", "*", " "])).map("".join)
)
def test_no_accept_encoding_is_too_strange(accept):
    assert wire.wants_gzip(SimpleNamespace(env={"HTTP_ACCEPT_ENCODING": accept})) in (True, False)


SECONDS = st.lists(st.tuples(st.sampled_from([200, 404]), st.sampled_from(metrics.BUCKETS) | st.floats(0, 4)))


@given(SECONDS)
def test_times_are_counted_as_prometheus_client_counts_them(observed):
    ours, theirs = metrics._Times(), CollectorRegistry()
    histogram = Histogram(
        "banditads_request_seconds",
        "Time to answer a request, by route and status.",
        ("method", "route", "status"),
        registry=theirs,
        buckets=metrics.BUCKETS,
    )
    for status, seconds in observed:
        ours.observe("GET", "/", status, seconds)
        histogram.labels("GET", "/", status).observe(seconds)
    pages = [generate_latest(each).decode() for each in (ours, theirs)]
    ours, theirs = (re.sub(r"(_created\{.*\}) .*", r"\1", page) for page in pages)
    assert ours == theirs


def test_a_header_that_would_take_long_to_weigh_is_not_weighed(make_engine, monkeypatch):
    site = Site(make_engine())
    monkeypatch.setattr(api._Request, "client_prefers", lambda *_: pytest.fail("weighed"))
    for path in ("/healthz", "/nowhere"):
        assert (
            site("GET", path, HTTP_ACCEPT=";" * 60_000 + "application/msgpack").headers["content-type"]
            == JSON
        )


def asked(site, route, packed, query=""):
    """The reply of a route to a good request."""
    site("GET", "/choose?event_id=e1")
    body = BODIES.get(route.path) if route.method in ("POST", "PUT") else None
    raw = None if body is None else (msgspec.msgpack if packed else msgspec.json).encode(body)
    headers = {"HTTP_ACCEPT": MSGPACK, "CONTENT_TYPE": MSGPACK} if packed else {}
    path = route.path.replace("{id}", "a" if "catalog" in route.path else "e1")
    return site(route.method, path + query, raw, **headers)


def test_every_route_speaks_both_and_says_the_same(make_engine, clock):
    def fresh():
        return Site(make_engine())

    spoken = 0
    for route in fresh().app.application.routes.all:
        for query in ("", "?=1"):  # granted; refused
            plain, packed = (asked(fresh(), route, form, query) for form in (False, True))
            assert packed.status == plain.status
            if not plain.raw or plain.headers["content-type"] != JSON:
                assert (
                    packed.headers.get("content-type") == plain.headers.get("content-type") or not plain.raw
                )
                continue
            assert packed.headers["content-type"] == MSGPACK
            assert msgspec.msgpack.decode(packed.raw) == plain.data
            granted = (
                {404} if "promote" in route.path else {200, 400}
            )  # there are no challengers or snapshots
            assert {plain.status} <= ({400} if query else granted), route.path
            spoken += 1
    assert spoken > 30


COLD = ["/openapi.json", "/help", "/metrics", "/stats", "/catalog/ads"]


def test_long_replies_of_the_cold_routes_are_compressed_for_who_asks(make_engine):
    site = Site(make_engine(ads=[*ADS, *(ADS[0].__class__(f"ad-{n}", {"k": "v"}) for n in range(50))]))
    for number in range(30):
        site("GET", f"/choose?event_id=e{number}")
    for path in COLD:
        plain = site("GET", path)
        packed = site("GET", path, HTTP_ACCEPT_ENCODING="gzip, br")
        assert plain.headers["vary"] == packed.headers["vary"] == "Accept-Encoding"
        assert "content-encoding" not in plain.headers
        assert packed.headers["content-encoding"] == "gzip"
        assert packed.headers["content-type"] == plain.headers["content-type"]
        assert int(packed.headers["content-length"]) == len(packed.raw) < len(plain.raw) / 2
        if path != "/metrics":  # where the last request is counted
            assert gzip.decompress(packed.raw) == plain.raw
    assert "content-encoding" not in site("GET", "/stats?x=1", HTTP_ACCEPT_ENCODING="gzip").headers


def test_what_is_asked_for_each_visitor_is_never_compressed(make_engine):
    site = Site(make_engine(ads=[ADS[0].__class__(f"ad-{n}", {"k": "v" * 200}) for n in range(100)]))
    bodies = {"/choose": {}, "/predict": {}, "/choose/batch": {"requests": [{}] * 9}}
    for path, body in bodies.items():
        reply = site("POST", path, body, HTTP_ACCEPT_ENCODING="gzip")
        assert len(reply.raw) > api.WORTH
        assert not {"content-encoding", "vary"} & reply.headers.keys()
        json.loads(reply.raw)
    compressed = {route.path for route in site.app.application.routes.all if route.compress}
    assert compressed == {*COLD, "/evaluations", "/evaluations/{id}"}  # which are short here
