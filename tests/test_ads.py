"""GET /ads: a list in which every place is an exact decision, explained, and no past is used unasked."""

import json
from itertools import pairwise

import numpy as np
import pytest
from conftest import Clock, ids
from test_api import PSEUDONYM, Site

from banditads.choosing import Request, spread
from banditads.engine import Engine
from banditads.errors import Unavailable
from banditads.events import Act, Ad, Chosen, Unfilled, advised, decode
from banditads.explaining import why
from banditads.journal import connect
from banditads.replay import fold
from banditads.state import State

ADS = [
    Ad(f"ad-{n}", {"kind": ("hats", "news", "shoes")[n % 3]}, f"https://shop.test/{n}", {"title": f"Ad {n}"})
    for n in range(12)
]


def site_of(policy="vw", recommender="hybrid", ads=ADS, advise=False, **given):
    state = State(policy, recommender=recommender, recommend_from=0, advise=advise)
    engine = Engine(state, connect("memory:"), ids=ids(), clock=Clock(), floor=0.01, **given)
    engine.put_ads(ads)
    return Site(engine)


@pytest.fixture
def site():
    return site_of()


def listed(site, query=""):
    reply = site("GET", f"/ads?{query}")
    assert reply.status == 200, reply.raw
    return reply.data


def taught(site, user="anna", n=300):
    """Somebody who consents and likes shoes."""
    site("PUT", f"/users/{user}", {"consent": True, "attributes": {"club": "runners"}})
    for _ in range(n):
        event_id, ad = (site("GET", f"/choose?user_id={user}").data[name] for name in ("event_id", "ad"))
        site("POST", "/reward", {"event_id": event_id, "reward": float(ad["features"]["kind"] == "shoes")})


def chosen(site):
    return [event for _, raw in site.engine.journal.read(0) if isinstance(event := decode(raw), Chosen)]


def test_the_answer_is_what_is_documented(site):
    first, *others = listed(site, "user_id=anna&n=3&device=mobile")
    ad = next(ad for ad in ADS if ad.id == first["id"])

    assert len(others) == 2
    assert first == {
        "event_id": first["event_id"],
        "id": ad.id,
        "score": 0.0,
        "probability": chosen(site)[0].probability,
        "landing_url": ad.landing_url,
        "creative": ad.creative,
        "features": ad.features,
        "why": {
            "recommender": None,
            "scores": {"popular": 0.0, "content": 0.0, "collaborative": 0.0, "crosses": 0.0},
            "features": {},
        },
        "policy": "vw",
        "expected_reward": 0.0,  # nothing was learned yet
        "offset": 1,
        "click_url": f"/click/{first['event_id']}",
        "impression_url": f"/impression/{first['event_id']}",
    }
    assert "user_id" not in json.dumps(first)


def test_every_place_is_a_decision_among_those_not_above_it(site):
    taught(site, n=50)
    before = len(chosen(site))
    found = listed(site, "user_id=anna&n=12")
    events = chosen(site)[before:]

    assert [each["event_id"] for each in found] == [event.event_id for event in events]
    assert sorted(each["id"] for each in found) == sorted(ad.id for ad in ADS)  # all, none twice
    for each, event in zip(found, events, strict=True):
        assert each["probability"] == event.propensities[each["id"]]
        assert sum(event.propensities.values()) == pytest.approx(1)
    for one, other in pairwise(events):
        assert set(other.ads) == set(one.ads) - {one.ad_id}
    assert [event.context.get("slot") for event in events] == [None, *(str(n) for n in range(2, 13))]


def test_the_first_place_is_drawn_as_choose_would_draw(site):
    taught(site, n=50)
    engine = site.engine
    request = Request({"device": "mobile"}, PSEUDONYM("anna"))
    expected = spread(engine.state, at=engine.clock(), request=request, floor=0.01)
    first = listed(site, "user_id=anna&n=1&device=mobile")[0]

    assert first["probability"] == expected.pmf[expected.ids.index(first["id"])]
    assert chosen(site)[-1].propensities == dict(zip(expected.ids, expected.pmf, strict=True))


def test_each_place_is_rewarded_by_itself_and_a_replay_knows_the_same(site):
    found = listed(site, "user_id=anna&n=3")
    assert (
        site("POST", "/reward", {"event_id": found[1]["event_id"], "reward": 1}).data["status"] == "applied"
    )
    assert site("GET", found[2]["click_url"]).status == 302
    state = site.engine.state

    assert state.joiner.open.keys() == {found[0]["event_id"]}
    assert site("GET", "/stats").data["rewards"] == 2
    assert fold(site.engine.journal.read(0), State.of(state.identity)).digest() == state.digest()


def test_what_somebody_likes_comes_first_and_the_reasons_say_so():
    site = site_of()
    for user, club in (("anna", "runners"), ("bert", "swimmers")):
        site("PUT", f"/users/{user}", {"consent": True, "attributes": {"club": club}})
    for number in range(600):
        user, liked = (("anna", "shoes"), ("bert", "hats"))[number % 2]
        data = site("GET", f"/choose?user_id={user}").data
        reward = float(data["ad"]["features"]["kind"] == liked)
        site("POST", "/reward", {"event_id": data["event_id"], "reward": reward})
    firsts = [listed(site, "user_id=anna&n=1")[0] for _ in range(40)]
    shoes = [each for each in firsts if each["features"]["kind"] == "shoes"]

    assert len(shoes) > 25
    assert all(each["score"] > 0 and each["why"]["recommender"] for each in shoes)
    assert all(each["score"] == pytest.approx(sum(each["why"]["scores"].values())) for each in firsts)
    assert max(each["why"]["features"].get("user.club", 0) for each in shoes) > 0.01


@pytest.mark.parametrize("advise", [False, True])
def test_reasons_are_what_the_recommender_and_the_policy_say(advise):
    site = site_of("logistic", advise=advise)
    taught(site, n=100)
    engine = site.engine
    event, _ = engine.choose(Request({"device": "mobile"}, PSEUDONYM("anna")))
    ads = engine.state.joiner.open[event.event_id].ads
    before = engine.state.dump()
    said = why(engine.state, event, ads)
    scores = engine.state.recommender.scores(event.context, PSEUDONYM("anna"))
    row = engine.state.catalog.row(event.ad_id)

    assert sum(said.scores.values()) == pytest.approx(scores[row] - scores.mean(), abs=1e-4)
    ads = advised(event.advice, ads)
    few = (ads[event.pick], *(ad for ad in ads if ad.id != event.ad_id))[:10]
    whole = engine.state.policy.pmf(event.context, few)[0]
    for name, fall in said.features.items():
        rest = {each: value for each, value in event.context.items() if each != name}
        assert fall == whole - engine.state.policy.pmf(rest, few)[0] >= 0.001
    assert said.features
    assert list(said.features.values()) == sorted(said.features.values(), reverse=True)
    assert engine.state.dump() == before


def test_without_a_recommender_that_learns_there_is_no_score():
    engine = Engine(State("uniform"), connect("memory:"), ids=ids(), clock=Clock())
    engine.put_ads(ADS)
    first = listed(Site(engine), "n=1")[0]

    assert first["score"] is None
    assert first["why"] == {"recommender": None, "scores": {}, "features": {}}


def past(site, user):
    """How the next decision for somebody would be spread, and what it would be told."""
    listed(site, f"user_id={user}&n=4")
    return [(event.propensities, event.context) for event in chosen(site)[-4:]][:1]


@pytest.mark.parametrize("who", ["unknown", "no consent", "consent withdrawn", "erased"])
def test_nothing_is_used_of_the_past_of_whom_it_may_not_be(who):
    """Two servers that were taught the same; on one, somebody has a past that may not be used."""
    site, other = site_of(), site_of()
    for each in (site, other):
        taught(each)
    act = {"kind": "like", "item": "ad-4", "category": "hats"}
    if who in ("consent withdrawn", "erased"):
        site("PUT", "/users/bert", {"consent": True, "attributes": {"club": "swimmers"}})
    if who != "unknown":
        site("POST", "/users/bert/events", act)
    if who == "no consent":
        site("PUT", "/users/bert", {"consent": False})
        site("POST", "/users/bert/events", act)
    if who == "consent withdrawn":
        site("PUT", "/users/bert", {"consent": False})
    if who == "erased":
        site("DELETE", "/users/bert")
    found = listed(site, "user_id=bert&n=4")
    context = chosen(site)[-4].context
    scores = site.engine.state.recommender.scores(context, PSEUDONYM("bert"))

    assert len(found) == 4
    assert not [
        name for each in found for name in each["why"]["features"] if name in ("user.club", "user.like")
    ]
    assert not {"swimmers", "hats"} & set(context.values())
    assert past(site, "bert") == past(other, "nobody")
    np.testing.assert_array_equal(scores, other.engine.state.recommender.scores(context, PSEUDONYM("nobody")))


def test_a_list_ends_where_there_are_no_more(site):
    assert len(listed(site, "n=20")) == 12
    assert len(listed(site, "n=3&exclude=" + ",".join(ad.id for ad in ADS[2:]))) == 2
    assert not [raw for _, raw in site.engine.journal.read(0) if isinstance(decode(raw), Unfilled)]


def test_nothing_eligible_is_204_and_written_down_once(site):
    reply = site("GET", "/ads?exclude=" + ",".join(ad.id for ad in ADS))
    unfilled = [e for _, raw in site.engine.journal.read(0) if isinstance(e := decode(raw), Unfilled)]

    assert (reply.status, reply.raw) == (204, b"")
    assert [event.event_id for event in unfilled] == [reply.headers["x-event-id"]]


def test_house_ads_are_shown_only_if_nothing_else_is():
    site = site_of(ads=[Ad("a"), Ad("b"), Ad("house", house=True)])

    assert {each["id"] for each in listed(site)} == {"a", "b"}
    assert [each["id"] for each in listed(site, "exclude=a,b")] == ["house"]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("n=0", "n"),
        ("n=21", "n"),
        ("n=x", "n"),
        ("n=" + "1" * 5000, "n"),
        ("n=-1", "n"),
        ("n=1.5", "n"),
        ("slot=2", "slot"),
        ("slots=1", "slots"),
        ("request_id=r", "request_id"),
        ("event_id=e", "event_id"),
        ("user_id=%00", "user_id"),
    ],
)
def test_what_is_wrong_is_refused_and_changes_nothing(site, query, field):
    before = site.engine.state.dump()
    reply = site("GET", f"/ads?{query}")

    assert (reply.status, reply.data["error"]["field"]) == (400, field)
    assert site.engine.state.dump() == before


def test_on_a_full_disk_lists_go_on_and_say_so(site, monkeypatch):
    def full(*args):
        raise Unavailable("the disk is full")

    monkeypatch.setattr(site.engine.journal, "append", full)
    found = listed(site, "n=3")

    assert [each["offset"] for each in found] == [None] * 3
    assert len({each["id"] for each in found}) == 3


def test_head_decides_nothing(site):
    before = site.engine.journal.end
    assert site("HEAD", "/ads").status == 405
    assert site.engine.journal.end == before


def test_among_many_ads_every_place_has_its_proposals():
    site = site_of("uniform", ads=[Ad(f"ad-{n:04d}", {"kind": "x"}) for n in range(1200)], proposals=16)
    found = listed(site, "n=4")

    assert len({each["id"] for each in found}) == 4
    assert [each["probability"] for each in found] == pytest.approx([1 / 16] * 4)


def test_acts_with_ads_move_the_list_of_who_did_them():
    site = site_of()
    taught(site, "bert")
    site("PUT", "/users/anna", {"consent": True})

    def scores():
        found = listed(site, "user_id=anna&n=12")
        return {each["id"]: each["why"]["scores"]["collaborative"] for each in found}

    before = scores()
    site.engine.act({PSEUDONYM("anna"): [Act("like", "ad-1", "news")] * 5})
    after = scores()

    assert max(after, key=lambda ad_id: after[ad_id] - before[ad_id]) == "ad-1"
