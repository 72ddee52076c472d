"""The HTTP contract, in process: what is answered, what is refused, and that a refusal changes nothing."""

import io
import json
import re
from urllib.parse import unquote
from wsgiref.util import setup_testing_defaults

import msgspec
import pytest
from conftest import ADS
from openapi_spec_validator import validate
from prometheus_client.parser import text_string_to_metric_families

from banditads import api
from banditads.choosing import Request
from banditads.errors import DiskFailure, Unavailable
from banditads.signing import Pseudonyms

JSON = {"Content-Type": "application/json"}
PSEUDONYM = Pseudonyms(b"k" * 32)


class Reply:
    def __init__(self, status, headers, raw):
        self.status, self.raw = int(status.split()[0]), raw
        self.headers = {name.lower(): value for name, value in headers}

    @property
    def data(self):
        return json.loads(self.raw)


@pytest.fixture
def site(make_engine):
    return Site(make_engine())


class Site:
    """A client of an application, without sockets."""

    def __init__(self, engine, keys=None, **given):
        self.engine, self.app = engine, api.build(engine, keys, pseudonym=PSEUDONYM, **given)

    def __call__(self, method, url, body=None, **headers):
        path, _, query = url.partition("?")
        raw = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        environ = {
            "REQUEST_METHOD": method,
            "PATH_INFO": unquote(path, "latin-1"),  # as WSGI servers do
            "QUERY_STRING": query,
            "wsgi.input": io.BytesIO(raw),
        }
        setup_testing_defaults(environ)
        if body is not None:
            environ["CONTENT_LENGTH"] = str(len(raw))
            environ["CONTENT_TYPE"] = "application/json"
        for name, value in headers.items():
            environ[name] = value
        said = []
        chunks = self.app(environ, lambda status, headers, *rest: said.append((status, headers)))
        return Reply(*said[0], b"".join(chunks))


def test_choose_answers_what_is_documented(site):
    reply = site("GET", "/choose?user_id=u1&placement=home&device=mobile&event_id=e1")
    data = reply.data
    shown = next(ad for ad in ADS if ad.id == data["ad"]["id"])

    assert reply.status == 200
    assert reply.headers["cache-control"] == "no-store"
    assert data == {
        "event_id": "e1",
        "ad": {
            "id": shown.id, "landing_url": shown.landing_url, "creative": {}, "features": shown.features
        },
        "probability": data["propensities"][shown.id],
        "propensities": {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3},
        "policy": "uniform",
        "expected_reward": None,
        "offset": 1,
        "click_url": "/click/e1",
        "impression_url": "/impression/e1",
    }  # fmt: skip
    choice = site.engine.state.joiner.open["e1"].choice
    assert choice.context == {"device": "mobile", "placement": "home"}
    assert choice.user_id == PSEUDONYM("u1")


def test_get_and_post_ask_the_same(site):
    one = site("GET", "/choose?event_id=e1&placement=p&device=m&exclude=a,b").data
    two = site(
        "POST",
        "/choose",
        {"event_id": "e2", "placement": "p", "context": {"device": "m"}, "exclude": ["a", "b"]},
    ).data
    first, second = (site.engine.state.joiner.open[e].choice for e in ("e1", "e2"))

    assert one["ad"]["id"] == two["ad"]["id"] == "c"
    assert (first.context, first.filtered) == (second.context, second.filtered)


def test_predict_gives_the_bits_that_choose_draws_from_and_has_no_side_effect(site):
    before, end = site.engine.state.dump(), site.engine.journal.end
    predicted = site("GET", "/predict?device=mobile").data["propensities"]
    posted = site("POST", "/predict", {"context": {"device": "mobile"}}).data["propensities"]

    assert (site.engine.state.dump(), site.engine.journal.end) == (before, end)
    slate = site.engine.predict(Request({"device": "mobile"}))
    exact = dict(zip((ad.id for ad in slate.ads), slate.pmf, strict=True))
    assert predicted == posted == exact == site("GET", "/choose?device=mobile").data["propensities"]


def test_every_reply_to_a_reward(site, clock):
    for event_id in ("e1", "e2"):
        site("GET", f"/choose?event_id={event_id}")

    def reward(event_id, value):
        reply = site("POST", "/reward", {"event_id": event_id, "reward": value})
        return reply.status, reply.data.get("status") or reply.data["error"]["code"]

    assert reward("e1", 1) == (200, "applied")
    assert reward("e1", 1) == (200, "duplicate")
    assert reward("e1", 0) == (409, "conflict")
    assert reward("nobody", 1) == (404, "unknown")
    assert reward("e2", 1.5) == (400, "invalid")
    clock.now += 601
    assert reward("e2", 1) == (410, "expired")
    decision = site("GET", "/decisions/e2").data
    assert (decision["status"], decision["reward"]) == ("expired", 1.0)
    assert site("GET", "/decisions/e1").data["status"] == "rewarded"
    assert site("GET", "/decisions/nobody").status == 404


def test_a_request_that_nothing_is_eligible_for_is_204_and_can_be_looked_up(site):
    reply = site("GET", "/choose?exclude=a,b,c")
    decision = site("GET", f"/decisions/{reply.headers['x-event-id']}").data

    assert (reply.status, reply.raw) == (204, b"")
    assert decision["status"] == "unfilled"
    assert decision["filtered"] == {"a": "excluded", "b": "excluded", "c": "excluded"}
    assert site("GET", "/stats").data["unfilled_reasons"] == {"excluded": 3}


DEEP = b'{"context":' * 2000 + b"{}" + b"}" * 2000
REFUSED = [
    # method, url, body, status, field
    ("POST", "/reward", b"{", 400, "body"),
    ("POST", "/reward", b"", 400, "body"),
    ("POST", "/reward", b"\xff\xfe", 400, "body"),
    ("POST", "/reward", b'{"event_id": "\xff", "reward": 1}', 400, "body"),
    ("POST", "/reward", b'{"event_id": "\\ud800", "reward": 1}', 400, "body"),
    ("POST", "/reward", b"[" * 60_000, 400, "body"),
    ("POST", "/reward", b"[]", 400, "body"),
    ("POST", "/reward", {"event_id": "e"}, 400, "reward"),
    ("POST", "/reward", {"reward": 1}, 400, "event_id"),
    ("POST", "/reward", {"event_id": "e", "reward": 1, "value": 1}, 400, "value"),
    ("POST", "/reward", {"event_id": "e", "reward": "1"}, 400, "reward"),
    ("POST", "/reward", {"event_id": "e", "reward": True}, 400, "reward"),
    ("POST", "/reward", {"event_id": "e", "reward": None}, 400, "reward"),
    ("POST", "/reward", {"event_id": 7, "reward": 1}, 400, "event_id"),
    ("POST", "/reward", {"event_id": "", "reward": 1}, 400, "event_id"),
    ("POST", "/reward", {"event_id": "x" * 129, "reward": 1}, 400, "event_id"),
    ("POST", "/reward", {"event_id": "a\nb", "reward": 1}, 400, "event_id"),
    ("POST", "/reward", b'{"event_id": "e", "reward": NaN}', 400, "body"),
    ("POST", "/reward", b'{"event_id": "e", "reward": Infinity}', 400, "body"),
    ("POST", "/reward", b'{"event_id": "e", "reward": 1e999}', 400, "reward"),
    ("POST", "/reward", b'{"event_id": "e", "reward": ' + b"9" * 5000 + b"}", 400, "reward"),
    ("POST", "/reward?event_id=e", {"event_id": "e", "reward": 1}, 400, "event_id"),
    ("POST", "/reward", b" " * 70_000, 413, "body"),
    ("GET", "/choose?slots=2", None, 400, "slots"),
    ("GET", "/choose?slots=-1", None, 400, "slots"),
    ("GET", "/choose?slots=%C2%B2", None, 400, "slots"),
    ("GET", "/choose?a=1&a=2", None, 400, "a"),
    ("GET", "/choose?=1", None, 400, "query"),
    ("GET", "/choose?a=%FF", None, 400, "query"),
    ("GET", "/choose?" + "&".join(f"f{n}=1" for n in range(301)), None, 400, "query"),
    ("GET", "/choose?" + "&".join(f"f{n}=1" for n in range(257)), None, 400, "context"),
    ("GET", "/choose?a=" + "x" * 513, None, 400, "context.a"),
    ("GET", "/choose?a=%0A", None, 400, "context.a"),
    ("GET", "/choose?user_id=" + "u" * 129, None, 400, "user_id"),
    ("GET", "/choose?event_id=a%00b", None, 400, "event_id"),
    ("POST", "/choose", {"context": {"a": 1e7}}, 400, "context.a"),
    ("POST", "/choose", {"context": {"a": [1]}}, 400, "context.a"),
    ("POST", "/choose", {"context": {"a": {"b": {"c": {"d": {"e": 1}}}}}}, 400, "context"),
    ("POST", "/choose", {"context": {"a.b": 1, "a": {"b": 2}}}, 400, "context"),
    ("POST", "/choose", {"context": []}, 400, "context"),
    ("POST", "/choose", DEEP, 400, "body"),
    ("POST", "/choose", {"colour": "red"}, 400, "colour"),
    ("POST", "/choose", {"ads": []}, 400, "ads"),
    ("POST", "/choose", {"ads": ["nobody"]}, 400, "ads"),
    ("POST", "/choose", {"ads": ["a", "a"]}, 400, "ads"),
    ("POST", "/choose", {"ads": [{"id": "x", "price": 3}]}, 400, "ads[0].price"),
    (
        "POST",
        "/choose",
        {"ads": [{"id": "x", "landing_url": "javascript:alert(1)"}]},
        400,
        "ads[0].landing_url",
    ),
    ("POST", "/choose", {"ads": [f"x{n}" for n in range(1001)]}, 400, "ads"),
    ("PUT", "/catalog/ads/x", {"landing_url": "//evil.test"}, 400, "ad.landing_url"),
    ("PUT", "/catalog/ads/x", {"landing_url": "https://a.test/\r\nSet-Cookie: a=b"}, 400, "ad.landing_url"),
    ("PUT", "/catalog/ads/x", {"id": "y"}, 400, "id"),
    ("PUT", "/catalog/ads/x", {"features": {"": 1}}, 400, "ad.features"),
    ("PUT", "/catalog/ads/x", {"creative": {"html": "x" * 20_000}}, 400, "ad.creative"),
    ("PUT", "/catalog/ads/x", {"starts": 2, "ends": 1}, 400, "ad.ends"),
    ("PUT", "/catalog/ads/x", {"creative": {"x": 2**64}}, 400, "ad.creative"),
    ("PUT", "/catalog/ads/x", b'{"creative": {"x":' + b"[" * 17 + b"]" * 17 + b"}}", 400, "ad.creative"),
    ("PUT", "/catalog/ads/x", b'{"creative": {"x":' + b"[" * 200 + b"]" * 200 + b"}}", 400, "ad.creative"),
    ("GET", "/catalog/ads/%FF", None, 400, "id"),
    ("POST", "/choose", {"placement": "a", "context": {"placement": "b"}}, 400, "placement"),
    ("POST", "/choose", {"context": {"x" * 100: {"y" * 100: 1}}}, 400, "context"),
    ("POST", "/choose", {"context": {"x" * 100: ["y" * 100]}}, 400, "context." + "x" * 100),
    ("PUT", "/catalog/ads/x", {"house": "yes"}, 400, "house"),
    ("PUT", "/catalog/ads/x%0Ay", {}, 400, "ad.id"),
    ("POST", "/catalog/ads", [{"id": "x"}, {"id": ""}], 400, "[1].id"),
    ("POST", "/catalog/ads", [{"id": "x"}, {"id": "x"}], 400, "id"),
    ("POST", "/catalog/ads", [], 400, "body"),
    ("DELETE", "/catalog/ads/nobody", None, 404, "id"),
    ("GET", "/catalog/ads/nobody", None, 404, "id"),
    ("GET", "/catalog/ads?limit=0", None, 400, "limit"),
    ("GET", "/decisions/nobody?id=e1", None, 400, "id"),
    ("GET", "/click/nobody", None, 404, "event_id"),
    ("GET", "/impression/nobody", None, 404, "event_id"),
    ("GET", "/nowhere", None, 404, "path"),
    ("GET", "/", None, 404, "path"),
    ("GET", "/v1/choose", None, 404, "path"),
    ("DELETE", "/choose", None, 405, "method"),
    ("BREW", "/catalog/ads/a", None, 405, "method"),
    ("BREW", "/nowhere", None, 404, "path"),
    ("GET", "/predict?event_id=%C2%84", None, 400, "event_id"),
]


@pytest.mark.parametrize(
    ("method", "url", "body", "status", "field"),
    REFUSED,
    ids=[f"{m} {u[:30]} {str(b)[:40]}" for m, u, b, *_ in REFUSED],
)
def test_bad_input_is_refused_with_code_sentence_and_field_and_changes_nothing(
    site, method, url, body, status, field
):
    before, end = site.engine.state.dump(), site.engine.journal.end
    reply = site(method, url, body)
    error = reply.data["error"]

    assert (reply.status, error["field"]) == (status, field)
    assert re.fullmatch("[a-z_]+", error["code"])
    assert len(error["message"]) > 5
    assert "Traceback" not in reply.raw.decode()
    assert (site.engine.state.dump(), site.engine.journal.end) == (before, end)


@pytest.mark.parametrize(
    "content_type",
    [
        "application/x-www-form-urlencoded",
        "text/plain",
        "multipart/form-data",
        "application/json; charset=latin-1",
    ],
)
def test_other_content_types_are_refused(site, content_type):
    reply = site("POST", "/reward", {"event_id": "e", "reward": 1}, CONTENT_TYPE=content_type)

    assert reply.status == 415
    assert reply.data["error"]["field"] == "Content-Type"


def test_a_body_that_is_shorter_than_it_says_is_refused(site):
    assert site("POST", "/reward", b'{"event', CONTENT_LENGTH="5000").status == 400


def test_parameters_of_the_content_type_are_no_arguments(site):
    site("GET", "/choose?event_id=e1")
    body = {"event_id": "e1", "reward": 1}

    assert site("POST", "/reward", body, CONTENT_TYPE="application/json; reward=0; x=y").status == 200


def test_head_never_decides(site):
    assert site("HEAD", "/choose").status == 405
    assert site.engine.state.stats.total.choices == 0


def test_messagepack_in_and_out(site):
    raw = msgspec.msgpack.encode({"event_id": "e1", "context": {"age": 31}})
    reply = site(
        "POST", "/choose", raw, CONTENT_TYPE="application/msgpack", HTTP_ACCEPT="application/msgpack"
    )
    said = msgspec.msgpack.decode(reply.raw)

    assert reply.headers["content-type"] == "application/msgpack"
    assert said["propensities"] == {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}
    nan = msgspec.msgpack.encode({"event_id": "e1", "reward": float("nan")})
    assert site("POST", "/reward", nan, CONTENT_TYPE="application/msgpack").status == 400


@pytest.mark.parametrize(
    "odd",
    [
        {"starts": float("nan")},
        {"ends": float("inf")},
        {"creative": {"x": float("nan")}},
        {"creative": {"x": msgspec.msgpack.Ext(1, b"x")}},
        {"creative": {"x": {1: 2}}},
        {"creative": {"x": b"bytes"}},
    ],
    ids=str,
)
def test_messagepack_brings_in_nothing_that_json_could_not(site, odd):
    raw = msgspec.msgpack.encode(odd)
    reply = site("PUT", "/catalog/ads/x", raw, CONTENT_TYPE="application/msgpack")

    assert reply.status == 400
    assert reply.data["error"]["field"].startswith("ad.")


def test_ads_are_put_listed_read_and_deleted(site):
    ad = {
        "features": {"colour": "red", "price": 3},
        "landing_url": "https://shop.test/x",
        "creative": {"t": "X"},
    }
    stored = site("PUT", "/catalog/ads/x", ad)

    assert stored.status == 200
    assert site("GET", "/catalog/ads/x").data == {
        "id": "x", **ad, "placements": [], "starts": None, "ends": None, "house": False
    }  # fmt: skip
    page = site("GET", "/catalog/ads?limit=3").data
    assert ([each["id"] for each in page["ads"]], page["total"], page["next"]) == (["a", "b", "c"], 4, "c")
    page = site("GET", "/catalog/ads?after=c").data
    assert ([each["id"] for each in page["ads"]], page["next"]) == (["x"], None)
    assert site("DELETE", "/catalog/ads/x").status == 200
    assert site("GET", "/catalog/ads/x").status == 404


@pytest.mark.parametrize("ad_id", ["shop%2Fred", "50%25", "%E2%82%AC%20uro", "a+b", "a%2F..%2Fb"])
def test_an_id_may_hold_any_printable_character(site, ad_id):
    site("PUT", f"/catalog/ads/{ad_id}", {})

    assert site("GET", f"/catalog/ads/{ad_id}").data["id"] == unquote(ad_id)


def test_many_ads_are_all_or_nothing(site):
    lines = b'{"id": "x"}\n\n{"id": "y", "features": {"price": 1}}\n'
    bad = lines + b'{"id": "z", "features": {"price": "1", "x": {}, "y": [2]}}'
    refused = site("POST", "/catalog/ads", bad, CONTENT_TYPE="application/x-ndjson")

    assert refused.status == 400
    assert refused.data["error"]["field"].startswith("line 4")
    assert sorted(site.engine.state.catalog.ads) == ["a", "b", "c"]
    assert site("POST", "/catalog/ads", lines, CONTENT_TYPE="application/x-ndjson").data["ads"] == 2
    assert site("POST", "/catalog/ads", [{"id": "z"}]).data["ads"] == 1
    assert sorted(site.engine.state.catalog.ads) == ["a", "b", "c", "x", "y", "z"]


def test_a_click_rewards_once_and_leads_to_the_stored_page_only(site):
    ad = site("GET", "/choose?event_id=e1").data["ad"]
    for _ in range(2):
        reply = site("GET", "/click/e1")
        assert (reply.status, reply.headers["location"]) == (302, ad["landing_url"])
    assert site.engine.state.stats.total.reward_sum == 1.0
    assert site("GET", "/click/e1?url=https://evil.test").status == 400


def test_a_click_leads_to_the_page_of_choice_time(site):
    ads = [site("GET", f"/choose?event_id=e{number}").data["ad"] for number in range(2)]
    for ad in ads:
        site("PUT", f"/catalog/ads/{ad['id']}", {"landing_url": "https://elsewhere.test/"})
    assert site("GET", "/click/e0").headers["location"] == ads[0]["landing_url"]
    site("DELETE", f"/catalog/ads/{ads[1]['id']}")
    assert site("GET", "/click/e1").headers["location"] == ads[1]["landing_url"]


def test_a_click_leads_on_though_it_is_too_late_or_the_disk_is_full(site, clock, monkeypatch):
    site("GET", "/choose?event_id=e1")
    monkeypatch.setattr(site.engine, "reward", lambda *_, **__: (_ for _ in ()).throw(Unavailable("full")))
    assert site("GET", "/click/e1").status == 302
    monkeypatch.undo()
    clock.now += 601
    assert site("GET", "/click/e1").status == 302
    assert site.engine.state.stats.total.rewards == 0


def test_a_click_on_an_ad_that_leads_nowhere_counts(make_engine):
    from banditads.events import Ad

    site = Site(make_engine(ads=[Ad("x")]))
    data = site("GET", "/choose?event_id=a%2Fb%23%25").data
    assert data["click_url"] == "/click/a%2Fb%23%25"
    assert site("GET", data["click_url"]).status == 204
    assert site.engine.decision("a/b#%").reward == 1.0


def test_an_uptime_checker_may_use_head(site):
    assert [site("HEAD", path).status for path in ("/healthz", "/readyz")] == [200, 200]
    assert site("HEAD", "/healthz").raw == b""


def test_the_pixel_is_a_picture(site):
    site("GET", "/choose?event_id=e1")
    reply = site("GET", "/impression/e1")

    assert reply.raw[:6] == b"GIF89a"
    assert reply.headers["content-type"] == "image/gif"
    assert site("GET", "/stats").data["impressions"] == 1


def test_stats_count_what_happened(site):
    site("GET", "/choose?event_id=e1")
    site("POST", "/reward", {"event_id": "e1", "reward": 0.5})
    stats = site("GET", "/stats").data
    shown = site.engine.decision("e1").event.ad_id

    assert (stats["choices"], stats["rewards"], stats["reward_sum"], stats["offset"]) == (1, 1, 0.5, 3)
    assert stats["ads"] == {
        shown: {"choices": 1, "rewards": 1, "reward_sum": 0.5, "expired": 0, "impressions": 0}
    }
    assert stats["policy"]["name"] == "uniform"


def test_metrics_are_what_prometheus_reads(site):
    site("GET", "/choose?event_id=e1")
    site("POST", "/reward", {"event_id": "e1", "reward": 1})
    families = {
        each.name: each for each in text_string_to_metric_families(site("GET", "/metrics").raw.decode())
    }

    assert families["banditads_choices"].samples[0].value == 1
    assert families["banditads_rewards"].samples[0].value == 1
    assert families["banditads_ready"].samples[0].value == 1
    counts = [s for s in families["banditads_request_seconds"].samples if s.name.endswith("_count")]
    assert {(s.labels["route"], s.labels["status"]) for s in counts} == {
        ("/choose", "200"),
        ("/reward", "200"),
    }


def test_a_server_that_cannot_write_is_not_ready_and_says_when_to_come_back(site, monkeypatch):
    assert site("GET", "/readyz").status == 200
    site("GET", "/choose?event_id=e1")
    site.engine.journal.poisoned = "fdatasync failed"
    assert site("GET", "/readyz").status == 503
    assert site("GET", "/healthz").status == 200

    def dead(*_):
        raise DiskFailure("/secret/path")

    monkeypatch.setattr(site.engine.journal, "sync", dead)
    reply = site("POST", "/reward", {"event_id": "e1", "reward": 1})
    assert reply.status == 503
    assert int(reply.headers["retry-after"]) >= 1
    assert b"secret" not in reply.raw


def test_our_own_faults_show_nothing_of_the_inside(site, monkeypatch, caplog):
    def broken(*_, **__):
        raise RuntimeError("secret of the house")

    monkeypatch.setattr(site.engine, "choose", broken)
    reply = site("GET", "/choose")

    assert (reply.status, reply.data["error"]["code"]) == (500, "internal")
    assert b"secret" not in reply.raw
    assert "secret of the house" in caplog.text


def test_openapi_is_valid_and_lists_exactly_the_routes_there_are(site):
    document = site("GET", "/openapi.json").data
    validate(document)
    listed = {(path, method.upper()) for path, item in document["paths"].items() for method in item}
    real = {
        (url, method)
        for routes in site.app.application.routes.api.http.routes.values()
        for url, methods in routes.items()
        for method in methods
    }

    assert listed == real
    ids = [operation["operationId"] for item in document["paths"].values() for operation in item.values()]
    assert len(set(ids)) == len(ids)


def test_hugs_help_is_at_one_place_only(site):
    assert "/choose" in site("GET", "/help").data["handlers"]
    assert "handlers" not in site("GET", "/nowhere").raw.decode()


def test_two_engines_in_one_process(make_engine):
    from banditads.events import Ad

    one, two = Site(make_engine(ads=[Ad("x")])), Site(make_engine(ads=[Ad("y")]))

    assert one("GET", "/choose").data["ad"]["id"] == "x"
    assert two("GET", "/choose").data["ad"]["id"] == "y"
    assert one.engine.state.stats.total.choices == 1


# Users


def test_a_user_is_put_acts_is_shown_and_erased(site, clock):
    url = "/users/anna%2Fevents%3F@example.com"  # a slash, a question mark, what looks like a route
    nothing = {"consent": False, "profile": None, "features": {}}
    assert site("GET", url).data == nothing
    put = site("PUT", url, {"attributes": {"age": 31, "city": "Oslo"}, "consent": True})
    assert (put.status, put.data) == (200, {"users": 1, "offset": 1})
    act = {"kind": "purchase", "item": "boot", "category": "shoes", "amount": 59.9, "at": clock.now - 86400}
    assert site("POST", f"{url}/events", act).data == {"acts": 1, "offset": 2}
    assert site("POST", f"{url}/events", [act, {"kind": "view"}]).data == {"acts": 2, "offset": 3}

    found = site("GET", url)
    profile, features = found.data["profile"], found.data["features"]
    assert found.data["consent"] is True
    assert profile["attributes"] == {"age": 31.0, "city": "Oslo"}
    assert profile["acts"]["purchase"]["number"] == 2
    assert profile["acts"]["purchase"]["amount"] == 119.8
    assert profile["items"] == {"boot": int(clock.now) - 86400}
    assert features["user.category.1"] == "shoes"
    context = site.engine.choose(Request(user_id=PSEUDONYM("anna/events?@example.com"))).event.context
    assert context == features

    assert site("DELETE", url).data == {"offset": 5}
    assert site("GET", url).data == nothing
    assert site("DELETE", url).status == 200  # unknown: what was decided for them may be written down
    for reply in (put, found):
        assert b"anna" not in reply.raw


def test_what_stands_after_the_id_is_a_route_of_its_own(site):
    for method in ("GET", "PUT", "DELETE", "PATCH"):
        reply = site(method, "/users/a%2Fb/events")
        assert (reply.status, reply.headers["allow"]) == (405, "POST, OPTIONS")
    assert site("POST", "/users/events").status == 405
    assert site("PUT", "/users/events", {}).status == 200


LINES = {"CONTENT_TYPE": "application/x-ndjson"}


def test_many_users_and_acts_come_as_lines_or_an_array(site):
    people = b'{"id": "anna", "consent": true, "attributes": {"age": 3}}\n\n{"id": "bert"}\n'
    assert site("POST", "/users", people, **LINES).data == {"users": 1, "offset": 1}
    assert site("POST", "/users", [{"id": "carl", "consent": True}]).data == {"users": 1, "offset": 2}
    done = b'{"user": "anna", "kind": "a"}\n{"user": "bert", "kind": "b"}\n{"user": "carl", "kind": "c"}'
    assert site("POST", "/events", done, **LINES).data == {"acts": 2, "offset": 4}
    assert site("POST", "/events", [{"user": "bert", "kind": "view"}]).data == {"acts": 0, "offset": None}
    assert (
        site("POST", "/users/carl/events", b'{"kind": "view"}\n{"kind": "cart"}\n', **LINES).data["acts"] == 2
    )
    assert site("GET", "/users/bert").data["consent"] is False


def test_consent_taken_back_drops_the_past_and_without_it_nothing_is_kept(site):
    site("PUT", "/users/anna", {"consent": True, "attributes": {"age": 3}})
    site("POST", "/users/anna/events", {"kind": "view"})
    assert site("PUT", "/users/anna", {"attributes": {"age": 3}}).data == {"users": 0, "offset": 3}
    assert site("GET", "/users/anna").data["profile"] is None
    assert site("POST", "/users/anna/events", {"kind": "view"}).data == {"acts": 0, "offset": None}
    assert site("PUT", "/users/anna", {"attributes": {"age": 3}}).data == {"users": 0, "offset": None}


@pytest.mark.parametrize(
    ("method", "url", "body", "field"),
    [
        ("PUT", "/users/" + "u" * 129, {}, "id"),
        ("PUT", "/users/%0A", {}, "id"),
        ("POST", "/users", [{"id": "a/events"}], "[0].id"),  # whose routes nobody could ask for
        ("POST", "/choose", {"user_id": "a/events"}, "user_id"),
        ("PUT", "/users/u", {"consent": "yes"}, "consent"),
        ("PUT", "/users/u", {"name": "x"}, "name"),
        ("PUT", "/users/u", {"attributes": {"x": [1]}}, "attributes.x"),
        ("PUT", "/users/u", {"attributes": {f"a{n}": n for n in range(17)}}, "attributes"),
        ("PUT", "/users/u", {"attributes": {"a" * 65: 1}}, "attributes"),
        ("PUT", "/users/u", {"attributes": {f"a{n}": "x" * 500 for n in range(3)}}, "attributes"),
        ("POST", "/users", [{"consent": True}], "[0].id"),
        ("POST", "/users", [{"id": "a"}, {"id": ""}], "[1].id"),
        ("POST", "/users", b'{"id": "a"}\n{"id": "b", "attributes": {"": 1}}', "line 2: user.attributes"),
        ("POST", "/users", [], "body"),
        ("POST", "/users/u/events", {}, "kind"),
        ("POST", "/users/u/events", {"kind": ""}, "kind"),
        ("POST", "/users/u/events", {"kind": "view", "item": "x" * 65}, "item"),
        ("POST", "/users/u/events", [{"kind": "view"}, {"kind": "view", "category": "\n"}], "[1].category"),
        ("POST", "/users/u/events", {"kind": "view", "amount": 2e9}, "amount"),
        ("POST", "/users/u/events", {"kind": "view", "at": -1}, "at"),
        ("POST", "/users/u/events", {"kind": "view", "at": 1.7e12}, "at"),
        ("POST", "/users/u/events", {"kind": "view", "user": "v"}, "user"),
        ("POST", "/users/u/events", b'{"kind": "view"}\n\n{"kind": 7}', "line 3: kind"),
        ("POST", "/users/u/events", b'{"kind": "view"}, {"kind": 7}', "body"),
        ("POST", "/users/u/events", b"", "body"),
        ("POST", "/events", b'{"user": "u", "kind": "view"}\n{"kind": "view"}', "line 2: user"),
        ("POST", "/events", b'{"user": "u", "kind": "view"}\n{"user": "", "kind": "x"}', "line 2: act.user"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_user_or_an_act_is_refused_whole_by_line_and_field(
    site, method, url, body, field
):
    site("PUT", "/users/u", {"consent": True})
    before, end = site.engine.state.dump(), site.engine.journal.end
    lines = LINES if isinstance(body, bytes) and b"\n{" in body else {}
    reply = site(method, url, body, **lines)

    assert reply.status == 400
    assert reply.data["error"]["field"].endswith(field)
    assert (site.engine.state.dump(), site.engine.journal.end) == (before, end)


def test_no_id_of_a_user_is_in_the_journal_in_a_reply_or_in_a_decision(site):
    private = "very-private"
    replies = [
        site("PUT", f"/users/{private}", {"consent": True, "attributes": {"age": 3}}),
        site("POST", f"/users/{private}/events", {"kind": "view"}),
        site("POST", "/users", [{"id": private, "consent": True}]),
        site("POST", "/events", [{"user": private, "kind": "view"}]),
        site("GET", f"/users/{private}"),
        site("GET", f"/choose?user_id={private}&event_id=e1"),
        site("POST", "/choose", {"user_id": private, "event_id": "e2", "exclude": ["a", "b", "c"]}),
        site("POST", "/predict", {"user_id": private}),
        site("GET", "/decisions/e1"),
        site("DELETE", f"/users/{private}"),
        site("POST", "/users", [{"id": private, "x": 1}]),
        site("PUT", f"/users/{private}%0A", {}),
    ]
    assert [reply.status for reply in replies] == [200] * 6 + [204] + [200] * 3 + [400] * 2
    assert replies[8].data["user_id"] == PSEUDONYM(private)
    written = b"".join(record for _, record in site.engine.journal.read(0))
    for place in (written, site.engine.state.dump(), *(reply.raw for reply in replies)):
        assert private.encode() not in place
    assert PSEUDONYM(private).encode() in written


def test_who_is_known_is_predicted_and_chosen_for_alike(make_engine):
    site = Site(make_engine("vw", options={"epsilon": 0.2}))
    site("PUT", "/users/anna", {"consent": True, "attributes": {"taste": "a"}})
    for number in range(30):
        shown = site("GET", f"/choose?user_id=anna&event_id=e{number}").data["ad"]["id"]
        site("POST", "/reward", {"event_id": f"e{number}", "reward": float(shown == "b")})
    anna = site("GET", "/predict?user_id=anna").data["propensities"]

    assert anna == site("GET", "/choose?user_id=anna").data["propensities"]
    assert max(anna, key=anna.get) == "b"
    assert site("GET", "/predict?user_id=bert").data == site("GET", "/predict").data
