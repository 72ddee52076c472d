"""What a visitor's browser says: each thing once, for what it is worth; and which pages may ask."""

import re
from pathlib import Path

import pytest
from test_api import Site
from test_keys import bearing, path  # noqa: F401  (a fixture)

from banditads import api, cors, keys, parsing, worth
from banditads.errors import Unavailable
from banditads.events import Ad
from banditads.state import State

GIF = b"GIF89a"


@pytest.fixture
def site(make_engine):
    return Site(make_engine())


def shop(make_engine, low=0.0, high=1.0, aggregation="earliest", **worths):
    """A site with another range of rewards, and with these worths."""
    engine = make_engine()
    engine.state = State("uniform", reward_min=low, reward_max=high, aggregation=aggregation)
    engine.catch_up()
    found = Site(engine)
    found.app = api.build(engine, worths={**worth.DEFAULT, **{n: worth.parse(t) for n, t in worths.items()}})
    return found


def said(site, event_id="e1"):
    return [(each["kind"], each["reward"]) for each in site("GET", f"/decisions/{event_id}").data["signals"]]


# What counts, and how often.


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("what", ["impression", "click", "conversion"])
def test_each_counts_once_however_often_and_by_whichever_method_it_is_said(site, what, method):
    site("GET", "/choose?event_id=e1")
    other = {"GET": "POST", "POST": "GET"}[method]
    first = site(method, f"/{what}/e1")
    before, end = site.engine.state.dump(), site.engine.journal.end
    again = [site(each, f"/{what}/e1") for each in (method, other)]

    assert {first.status, *(each.status for each in again)} <= {200, 302}
    assert (site.engine.state.dump(), site.engine.journal.end) == (before, end)
    stats = site("GET", "/stats").data
    if what == "impression":
        assert (stats["impressions"], stats["rewards"]) == (1, 0)
    else:
        assert (stats["impressions"], stats["rewards"], stats["signals"][what]["count"]) == (0, 1, 1)
    beacon = first if method == "POST" else again[1]
    assert beacon.data["status"] == ("applied" if method == "POST" else "duplicate")


def test_a_conversion_with_another_value_is_a_conflict_unless_the_order_is_another(make_engine):
    site = shop(make_engine, high=100.0, aggregation="sum")
    site("GET", "/choose?event_id=e1")

    assert site("GET", "/conversion/e1?value=20&order_id=o1").raw[:6] == GIF
    assert site("POST", "/conversion/e1?value=20&order_id=o1").data["status"] == "duplicate"
    refused = site("POST", "/conversion/e1?value=21&order_id=o1")
    assert (refused.status, refused.data["error"]["field"]) == (409, "value")
    assert site("POST", "/conversion", {"event_id": "e1", "value": 30.5, "order_id": "o2"}).status == 200
    stats = site("GET", "/stats").data
    assert stats["signals"] == {"conversion": {"count": 2, "value": 50.5}}
    assert said(site) == [("conversion", 20.0), ("conversion", 30.5)]


def test_after_the_window_a_conversion_is_410_and_nothing_is_learned(site, clock):
    site("GET", "/choose?event_id=e1")
    clock.now += 600
    for method in ("GET", "POST"):
        assert site(method, "/conversion/e1").status == 410
    stats = site("GET", "/stats").data
    assert (stats["rewards"], stats["expired"], stats["late"]) == (0, 1, 1)


@pytest.mark.parametrize(
    ("text", "amount", "reward"),
    [
        ("1", 59.9, 1.0),
        ("value", 59.9, 10.0),
        ("value", -5, -1.0),
        ("value / 100", 59.9, 0.599),
        ("value*2", 3, 6.0),
        (" 0.5 ", 0, 0.5),
        ("-3", 0, -1.0),
        ("value", 2.5, 2.5),
    ],
)
def test_a_conversion_is_worth_what_the_setting_says_within_the_range(make_engine, text, amount, reward):
    site = shop(make_engine, low=-1.0, high=10.0, conversion=text)
    site("GET", "/choose?event_id=e1")
    assert site("POST", "/conversion", {"event_id": "e1", "value": amount}).data["status"] == "applied"
    assert said(site) == [("conversion", pytest.approx(reward))]


def test_a_click_is_worth_what_the_setting_says_and_may_be_worth_nothing(make_engine):
    site = shop(make_engine, high=10.0, click="0.5")
    site("GET", "/choose?event_id=e1")
    site("GET", "/click/e1")
    assert said(site) == [("click", 0.5)]

    unpaid = shop(make_engine, click="")
    url = unpaid("GET", "/choose?event_id=e1").data["ad"]["landing_url"]
    end = unpaid.engine.journal.end
    assert unpaid("GET", "/click/e1").headers["location"] == url
    assert unpaid("POST", "/click/e1").data == {"status": "ignored", "offset": None}
    assert unpaid.engine.journal.end == end


def test_a_click_can_be_worth_what_the_ad_bids_at_that_time(make_engine):
    site = shop(make_engine, high=10.0, click="ad.bid / 2")
    for ad_id in list(site.engine.state.catalog.ads):
        site("DELETE", f"/catalog/ads/{ad_id}")
    site("PUT", "/catalog/ads/hats", {"features": {"bid": 3.0}})
    site("GET", "/choose?event_id=e1")
    site("PUT", "/catalog/ads/hats", {"features": {"bid": "much"}})
    site("GET", "/choose?event_id=e2")

    assert site("POST", "/click/e1").data["status"] == "applied"
    site("PUT", "/catalog/ads/hats", {"features": {"bid": 8.0}})
    assert site("POST", "/click/e1").data["status"] == "duplicate"
    assert said(site) == [("click", 1.5)]
    assert site("POST", "/click/e2").data["status"] == "applied"
    assert said(site, "e2") == [("click", 0.0)]  # a word is no bid
    assert site("GET", "/stats").data["signals"]["click"]["value"] == 3.0
    assert site("POST", "/click/nobody").status == 404


def test_a_dwell_counts_only_where_it_is_worth_something(make_engine):
    site = shop(make_engine)
    site("GET", "/choose?event_id=e1")
    end = site.engine.journal.end
    assert site("POST", "/dwell/e1?seconds=30").data["status"] == "ignored"
    assert site.engine.journal.end == end

    site = shop(make_engine, dwell="value / 60", aggregation="max")
    site("GET", "/choose?event_id=e1")
    assert site("POST", "/dwell/e1?seconds=30").data["status"] == "applied"
    assert site("POST", "/dwell/e1?seconds=31").status == 409
    assert said(site) == [("dwell", 0.5)]


@pytest.mark.parametrize(
    ("method", "url", "body", "field"),
    [
        ("GET", "/conversion/e1?value=much", None, "value"),
        ("GET", "/conversion/e1?value=nan", None, "value"),
        ("POST", "/conversion/e1?value=1e999", None, "value"),
        ("POST", "/conversion/e1?value=1_0", None, "value"),
        ("POST", "/conversion/e1?value=-1e13", None, "value"),
        ("POST", "/conversion/e1?order_id=%00", None, "order_id"),
        ("POST", "/conversion/e1?worth=3", None, "worth"),
        ("POST", "/conversion/e1", {"value": 1}, "body"),
        ("POST", "/click/e1", {}, "body"),
        ("POST", "/conversion", {"event_id": "e1", "value": "3"}, "value"),
        ("POST", "/conversion", {"event_id": "e1", "value": 1e13}, "value"),
        ("POST", "/conversion", {"event_id": "e1", "order_id": "x" * 129}, "order_id"),
        ("POST", "/conversion", {"event_id": ""}, "event_id"),
        ("POST", "/dwell/e1", None, "seconds"),
        ("POST", "/dwell/e1?seconds=-1", None, "seconds"),
        ("POST", "/dwell/e1?seconds=1e9", None, "seconds"),
        ("GET", "/banditads.js?v=2", None, "v"),
    ],
)
def test_nonsense_is_refused_with_its_field_and_changes_nothing(site, method, url, body, field):
    site("GET", "/choose?event_id=e1")
    before, end = site.engine.state.dump(), site.engine.journal.end
    reply = site(method, url, body)

    assert (reply.status, reply.data["error"]["field"]) == (400, field)
    assert (site.engine.state.dump(), site.engine.journal.end) == (before, end)


# Where a click leads.


def test_a_click_says_how_the_way_on_is_to_be_treated(site):
    site("GET", "/choose?event_id=e1")
    headers = site("GET", "/click/e1").headers

    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "strict-origin"
    assert headers["x-robots-tag"] == "noindex, nofollow"


def test_a_landing_page_that_wants_to_know_the_event_is_told(make_engine):
    site = Site(make_engine(ads=[Ad("x", landing_url="https://shop.test/?from={event_id}")]))
    data = site("GET", "/choose?event_id=a%2Fb%26c").data

    assert data["ad"]["landing_url"] == "https://shop.test/?from=a%2Fb%26c"
    assert site("GET", data["click_url"]).headers["location"] == data["ad"]["landing_url"]


def test_head_shows_the_way_and_counts_for_nothing(site):
    url = site("GET", "/choose?event_id=e1").data["ad"]["landing_url"]
    before, end = site.engine.state.dump(), site.engine.journal.end
    reply = site("HEAD", "/click/e1")

    assert (reply.status, reply.headers["location"]) == (302, url)
    assert [site("HEAD", f"/{what}/e1").status for what in ("impression", "conversion", "dwell")] == [405] * 3
    assert (site.engine.state.dump(), site.engine.journal.end) == (before, end)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HTTP_SEC_PURPOSE", "prefetch"),
        ("HTTP_SEC_PURPOSE", "prefetch;prerender"),
        ("HTTP_PURPOSE", "prefetch"),
        ("HTTP_X_PURPOSE", "preview"),
        ("HTTP_X_MOZ", "prefetch"),
    ],
)
def test_what_a_browser_fetches_before_anybody_asked_counts_for_nothing(site, name, value):
    site("GET", "/choose?event_id=e1")
    before, end = site.engine.state.dump(), site.engine.journal.end
    click = site("GET", "/click/e1", **{name: value})

    assert (click.status, click.headers["cache-control"]) == (403, "no-store")  # thrown away, asked for again
    for what in ("impression", "conversion"):
        assert site("GET", f"/{what}/e1", **{name: value}).raw[:6] == GIF
    assert (site.engine.state.dump(), site.engine.journal.end) == (before, end)
    assert site("GET", "/click/e1", HTTP_SEC_PURPOSE="navigate").status == 302


def test_a_visitor_is_led_on_though_the_click_was_refused(site, monkeypatch):
    site("GET", "/choose?event_id=e1")
    monkeypatch.setattr(site.engine.journal, "append", lambda _: (_ for _ in ()).throw(Unavailable("full")))

    assert site("GET", "/click/e1").status == 302
    assert site("POST", "/click/e1").status == 503
    assert site("GET", "/conversion/e1").status == 503


# Who may.


def test_without_a_key_only_ids_that_we_signed_are_believed(make_engine, path):  # noqa: F811
    tokens = {scope: keys.create(path, (scope,)) for scope in keys.SCOPES}
    site = Site(make_engine(aggregation="sum"), keys.Keys(path))
    ours = site("GET", "/choose", **bearing(tokens["choose"])).data["event_id"]
    site("GET", "/choose?event_id=order-17", **bearing(tokens["choose"]))
    end = site.engine.journal.end

    for method, url in [
        ("GET", "/impression/order-17"), ("GET", "/conversion/order-17"),
        ("POST", "/impression/order-17"), ("POST", "/conversion/order-17"),
        ("POST", "/click/order-17"), ("HEAD", "/click/order-17"), ("POST", "/dwell/order-17?seconds=1"),
    ]:  # fmt: skip
        assert site(method, url).status == 404, (method, url)
    body = {"event_id": "order-17", "value": 0.5}
    assert site("POST", "/conversion", body).status == 404
    assert site("POST", "/conversion", body, **bearing(tokens["choose"])).status == 403
    assert site("POST", "/conversion", body, **bearing("ba_nobody")).status == 401
    assert site.engine.journal.end == end
    assert site("POST", "/conversion", body, **bearing(tokens["reward"])).data["status"] == "applied"
    assert site("POST", "/conversion", {"event_id": ours}).data["status"] == "applied"


# To whom we talk.

SHOP = "https://shop.test"


def foreign(site, origins=(SHOP,)):
    site.app = api.build(site.engine, origins=origins)
    return site


@pytest.mark.parametrize("url", ["/choose", "/conversion", "/conversion/e1", "/click/e1", "/impression/e1"])
def test_a_listed_origin_may_ask_first(site, url):
    end = site.engine.journal.end
    asks = {"HTTP_ACCESS_CONTROL_REQUEST_METHOD": "POST"}
    reply = foreign(site)("OPTIONS", url, HTTP_ORIGIN=SHOP, **asks)

    assert (reply.status, reply.raw) == (204, b"")
    assert reply.headers["access-control-allow-origin"] == SHOP
    assert "POST" in reply.headers["access-control-allow-methods"]
    assert "Content-Type" in reply.headers["access-control-allow-headers"]
    assert "access-control-allow-credentials" not in reply.headers
    assert site.engine.journal.end == end
    other = site("OPTIONS", url, HTTP_ORIGIN="https://evil.test", **asks)
    assert not any(name.startswith("access-control") for name in other.headers)
    assert other.headers["vary"] == "Origin"


def test_the_reply_is_for_a_listed_origin_and_for_no_other(site):
    foreign(site)
    for origin in (SHOP, "https://evil.test", "null", f"{SHOP}.evil.test", SHOP.upper(), None):
        given = {} if origin is None else {"HTTP_ORIGIN": origin}
        for reply in (site("GET", "/choose", **given), site("POST", "/choose", b"{", **given)):
            allowed = reply.headers.get("access-control-allow-origin")
            assert allowed == (SHOP if origin == SHOP else None), origin
            assert reply.headers["vary"] == "Origin"


def test_what_is_not_for_browsers_is_for_no_origin(site):
    foreign(site)
    for url in ("/catalog/ads", "/stats", "/metrics", "/decisions/e1", "/reward", "/predict", "/healthz"):
        asks = {"HTTP_ORIGIN": SHOP, "HTTP_ACCESS_CONTROL_REQUEST_METHOD": "GET"}
        for method in ("OPTIONS", "GET"):
            assert not any(name.startswith("access-control") for name in site(method, url, **asks).headers)


def test_nobody_is_listed_unless_somebody_is(site):
    headers = site("GET", "/choose", HTTP_ORIGIN=SHOP).headers
    assert not any(name.startswith(("access-control", "vary")) for name in headers)


def test_a_refusal_at_the_door_can_be_read_by_a_listed_origin(site):
    foreign(site)
    reply = site("POST", "/choose", b"{}", HTTP_ORIGIN=SHOP, HTTP_CONTENT_ENCODING="gzip")
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (415, SHOP)


def test_every_path_that_a_foreign_page_may_read_exists_and_changes_no_catalog(site):
    paths = {route.path for route in site.app.application.routes.all if route.path.startswith(cors.PATHS)}
    assert not any("catalog" in each or "snapshot" in each for each in paths)
    assert {"/choose", "/click/{id}", "/impression/{id}", "/conversion", "/dwell/{id}"} <= paths


@pytest.mark.parametrize(
    "text", ["*", "null", "shop.test", "https://", "https://Shop.test", "https://shop.test/x", "ftp://x",
             "https://a.test,https://b.test", "https://user@shop.test", "https://*.shop.test"]
)  # fmt: skip
def test_what_is_no_origin_is_refused(text):
    with pytest.raises(parsing.Invalid, match="not an origin"):
        parsing.origins(f"https://good.test {text}")


# The script.


def test_the_script_is_small_and_kept_by_browsers(site):
    reply = site("GET", "/banditads.js")

    assert reply.status == 200
    assert len(reply.raw) <= 2000
    assert reply.headers["content-type"].startswith("text/javascript")
    assert "max-age" in reply.headers["cache-control"]
    again = site("GET", "/banditads.js", HTTP_IF_NONE_MATCH=reply.headers["etag"])
    assert (again.status, again.raw, again.headers["etag"]) == (304, b"", reply.headers["etag"])
    assert site("GET", "/banditads.js", HTTP_IF_NONE_MATCH='"other"').status == 200


def test_robots_that_ask_may_follow_nothing(site):
    assert site("GET", "/robots.txt").raw == b"User-agent: *\nDisallow: /\n"


def test_the_page_of_documentation_names_every_function_of_the_script(site):
    page = (Path(__file__).parent.parent / "docs/tracking.md").read_text()
    source = site("GET", "/banditads.js").raw.decode()
    functions = re.findall(r"^    (?:async )?(\w+)\(.*\) \{$", source, re.M)

    assert functions == ["choose", "watch", "convert", "dwell"]
    for name in functions:
        assert f"banditads.{name}(" in page
