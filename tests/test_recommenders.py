"""Every file in recommenders/ keeps the promises of the plug-board, whatever its options."""

import importlib
import json
import pickle
import random
import time

import msgspec
import numpy as np
import pytest

from banditads import recommenders
from banditads.errors import Misconfigured
from banditads.events import Ad, AdRemoved, AdsPut, Chosen, Settled
from banditads.features import clean
from banditads.users import bucket

CASES = [
    (name, options)
    for name in recommenders.names()
    for options in ({}, *importlib.import_module(f"banditads.recommenders.{name}").EXAMPLES)
]
every_recommender = pytest.mark.parametrize("name", recommenders.names())
every_case = pytest.mark.parametrize(
    ("name", "options"), CASES, ids=[f"{name}-{','.join(map(str, o.values()))}" for name, o in CASES]
)
KINDS = ("hats", "news", "shoes")
USERS = ("", "anna", "bert", "cleo")
ADS = [
    Ad(f"ad{n}", clean({"kind": KINDS[n % 3], "price": 3.0 * n, "tags": ["new"] if n % 2 else []}))
    for n in range(12)
]


class Rows:
    """What a catalog would tell a recommender, and what the rows hold."""

    def __init__(self, recommender, ads=()):
        self.recommender, self.ads = recommender, []
        if ads:
            self.put(*ads)

    def put(self, *ads):
        rows = []
        for ad in ads:
            ids = [each.id for each in self.ads]
            rows.append(ids.index(ad.id) if ad.id in ids else len(ids))
            self.ads[rows[-1] : rows[-1] + 1] = [ad]
        self.recommender.apply(AdsPut(0.0, ads), rows)

    def remove(self, row):
        ad, last = self.ads[row], self.ads.pop()
        if row < len(self.ads):
            self.ads[row] = last
        self.recommender.apply(AdRemoved(0.0, ad.id), [row])

    def learn(self, context, ad, reward, user=""):
        row = next((row for row, each in enumerate(self.ads) if each.id == ad.id), None)
        choice = Chosen(0.0, "e", (ad.id,), b"", 0, context)
        return self.recommender.learn(Settled(choice, (ad,), reward, 0.0), row, reward, user)


def context(dice):
    known = {"user.category.1": dice.choice(KINDS), f"user.taste.{dice.randrange(16)}": dice.random()}
    return clean(
        {
            "segment": dice.choice(("sports", "books", "food")),
            "age": dice.choice((None, 18, 70.5)),
            **dice.choice(({}, known)),
        }
    )


def history(rows, n, seed=1):
    """Rewards, ads and users that come, change and go, and an ad that is not in the catalog."""
    dice = random.Random(seed)
    for number in range(n):
        ad, reward = dice.choice([*rows.ads, Ad("inline")]), dice.choice((0.0, 0.0, 1.0, 0.25))
        rows.learn(context(dice), ad, reward, dice.choice(USERS))
        if number % 7 == 2:
            rows.recommender.acted(dice.choice(USERS[1:]), [dice.randrange(len(rows.ads)) for _ in range(3)])
        if number % 13 == 6:
            rows.recommender.forget(dice.choice(USERS))
        if number % 9 == 4:
            rows.put(Ad(f"new{number}", {"kind": "hats"}), Ad(rows.ads[0].id, {"kind": "news", "price": 2.0}))
        if number % 11 == 5:
            rows.remove(dice.randrange(len(rows.ads)))


def taught(name, options, n=60, seed=1):
    rows = Rows(recommenders.make(name, **options), ADS)
    history(rows, n, seed)
    return rows


def packed(rows):
    return msgspec.msgpack.encode(rows.recommender.dump())


def answers(rows, seed=5):
    dice = random.Random(seed)
    return [rows.recommender.scores(context(dice), user).tobytes() for user in (*USERS, "new")]


def copied(rows, name, options):
    copy = Rows(recommenders.make(name, **options), rows.ads)
    copy.recommender.load(msgspec.msgpack.decode(packed(rows)))
    return copy


@every_case
@pytest.mark.parametrize("n", [0, 1, 60])
def test_every_ad_has_a_finite_score(name, options, n):
    rows = taught(name, options, n)
    for visitor in ({}, {"segment": "sports", "age": 30.0}, {"never": "seen"}):
        scores = rows.recommender.scores(visitor, "anna" if "age" in visitor else "")
        assert scores.shape == (len(rows.ads),)
        assert np.isfinite(scores).all()


@every_case
def test_asking_changes_nothing_and_gives_the_same_bits_again(name, options):
    rows = taught(name, options)
    before, said = packed(rows), answers(rows)
    rows.recommender.scores({"unheard": "of"})[:] = 7.0
    rows.recommender.scores({"unheard": "of"}, "anna")[:] = 7.0

    assert answers(rows) == said
    assert packed(rows) == before


@every_case
@pytest.mark.parametrize("n", [0, 60])
def test_a_copy_goes_on_exactly_like_the_original(name, options, n):
    rows = taught(name, options, n)
    copy = copied(rows, name, options)
    assert answers(copy) == answers(rows)
    assert packed(copy) == packed(rows)
    for each in (rows, copy):
        history(each, 60, seed=2)
        answers(rows)  # only one of the two is asked

    assert answers(copy) == answers(rows)
    assert packed(copy) == packed(rows)


@every_case
def test_rows_are_followed_when_ads_come_and_go(name, options):
    rows = Rows(recommenders.make(name, **options), ADS)
    for number, ad in enumerate(ADS * 4):
        rows.learn({"segment": "books"}, ad, float(number % 5 == 0), "anna")

    def scores():
        found = rows.recommender.scores({"segment": "books"}, "anna")
        return dict(zip([ad.id for ad in rows.ads], found, strict=True))

    before = scores()
    for row in (3, 0, 9):
        rows.remove(row)
    rows.put(Ad("ad3", ADS[3].features), Ad("other"))
    after = scores()

    stayed = before.keys() & after.keys() - {"ad3"}
    assert len(stayed) == 9
    for ad_id in stayed:
        assert after[ad_id] == pytest.approx(before[ad_id], abs=1e-5)
    assert after["ad3"] != pytest.approx(before["ad3"], abs=1e-3)  # it left, and what it earned is forgotten


@every_case
def test_an_ad_that_is_replaced_keeps_what_it_earned(name, options):
    rows = Rows(recommenders.make(name, **options), [Ad("a"), Ad("b")])
    for _ in range(30):
        rows.learn({}, Ad("a"), 1.0)
        rows.learn({}, Ad("b"), 0.0)
    rows.put(Ad("a", {}, "https://new.test"), Ad("b", {}, "https://new.test"))
    a, b = rows.recommender.scores({})

    assert a > b


@every_case
def test_needs_no_clock_and_no_dice_and_is_not_pickled(name, options, monkeypatch):
    rows = Rows(recommenders.make(name, **options), ADS)

    def forbidden(*args, **given):
        raise AssertionError("not repeatable")

    for where, what in ((time, "time"), (time, "monotonic"), (random, "random"), (np.random, "default_rng")):
        monkeypatch.setattr(where, what, forbidden)
    for what in ("dumps", "loads", "dump", "load", "Pickler", "Unpickler"):
        monkeypatch.delattr(pickle, what)
    history(rows, 20)

    assert packed(copied(rows, name, options)) == packed(rows)


@every_case
def test_nothing_becomes_infinite_whatever_is_learned(name, options):
    extreme = Ad("x", {**{f"n{i}": 1e6 * (-1) ** i for i in range(200)}, "日本|a:b": "ー"})
    rows = Rows(recommenders.make(name, **options), [*ADS, extreme])
    visitor = {f"c{i}": -1e6 for i in range(256)}
    for number in range(400):
        rows.learn(visitor, extreme, float(number >= 200), "anna")
        rows.recommender.acted("anna", [len(ADS)])

    assert np.isfinite(rows.recommender.scores(visitor, "anna")).all()
    assert b"nan" not in json.dumps(rows.recommender.describe()).encode()


@every_case
def test_learning_says_what_the_score_was(name, options):
    rows, dice = taught(name, options), random.Random(4)
    for _ in range(20):
        visitor, user, row = context(dice), dice.choice(USERS), dice.randrange(len(rows.ads))
        expected = rows.recommender.scores(visitor, user)[row]
        assert rows.learn(visitor, rows.ads[row], 1.0, user) == pytest.approx(expected, abs=1e-4)


@every_case
def test_of_a_user_who_is_forgotten_nothing_is_kept(name, options):
    rows = taught(name, options)
    rows.recommender.acted("anna", [0, 1])
    rows.learn({}, rows.ads[0], 1.0, "anna")
    rows.recommender.forget("anna")

    assert b"anna" not in packed(rows)
    anna, new = rows.recommender.scores({}, "anna"), rows.recommender.scores({}, "new")
    assert anna.tobytes() == new.tobytes()


@every_case
def test_users_are_bounded_and_the_latest_are_kept(name, options):
    rows = Rows(recommenders.make(name, **options), ADS)
    for number in range(70):
        rows.learn({}, ADS[0], 1.0, f"user-{number}")
    kept = packed(rows).count(b"user-")

    personal = name in ("content", "collaborative", "hybrid")
    parts = 2 if name == "hybrid" else 1
    assert kept == parts * min(70, options.get("max_users", 70)) * personal
    assert not personal or b"user-69" in packed(rows)


@pytest.mark.parametrize("name", ["collaborative", "hybrid"])
def test_who_likes_the_same_gets_the_same(name):
    """Ads without features, two camps; anna has seen half of what her camp likes."""
    rows, dice = Rows(recommenders.make(name), [Ad(f"ad{n}") for n in range(12)]), random.Random(3)
    for number in range(6000):
        user, row = number % 20, dice.randrange(12)
        if user or row < 6:
            reward = float(user % 2 == row % 2)
            rows.learn({}, rows.ads[row], reward, "anna" if user == 0 else f"user-{user}")
    scores = rows.recommender.scores({}, "anna")

    assert min(scores[6::2]) > max(scores[7::2])


@pytest.mark.parametrize("name", ["content", "hybrid"])
def test_what_is_like_what_somebody_liked_comes_first_though_never_shown(name):
    rows, dice = Rows(recommenders.make(name), ADS), random.Random(3)
    for number in range(3000):
        ad = dice.choice(ADS)
        rows.learn({}, ad, float(ad.features["kind"] == KINDS[number % 3]), f"user-{number % 3}")
    rows.put(*(Ad(f"new{kind}", {"kind": kind}) for kind in KINDS))
    for number, kind in enumerate(KINDS):
        scores = rows.recommender.scores({}, f"user-{number}")[-3:]
        assert rows.ads[np.argmax(scores) - 3].features["kind"] == kind


@pytest.mark.parametrize("name", ["content", "collaborative", "hybrid"])
def test_what_a_user_did_with_an_ad_elsewhere_counts(name):
    rows = Rows(recommenders.make(name), ADS)
    before = rows.recommender.scores({}, "anna")
    rows.recommender.acted("anna", [2, 2])
    gained = rows.recommender.scores({}, "anna") - before

    assert np.argmax(gained) == 2
    assert gained[2] > 0
    assert rows.recommender.scores({}, "bert").tobytes() == before.tobytes()


def test_words_that_no_ad_has_any_more_are_not_kept():
    content = recommenders.make("content")
    rows = Rows(content, ADS)
    for number in range(3000):
        rows.put(Ad("ad3", {"kind": f"kind-{number}"}))
    copy = Rows(recommenders.make("content"), rows.ads).recommender

    assert len(content.known) == len(content.buckets) < 2000
    for word in ("hats", "kind-2999", "kind-7"):
        said = {"user.category.1": word, f"user.taste.{bucket(word)}": 1.0}
        assert content.scores(said).tobytes() == copy.scores(said).tobytes()


@pytest.mark.parametrize("name", ["content", "hybrid"])
@pytest.mark.parametrize("profile", [{"user.category.1": "shoes"}, {f"user.taste.{bucket('shoes')}": 2.0}])
def test_the_categories_of_a_profile_speak_for_ads_that_are_of_them(name, profile):
    rows = Rows(recommenders.make(name), ADS)
    best = np.argsort(rows.recommender.scores(profile))[-4:]

    assert {rows.ads[row].features["kind"] for row in best} == {"shoes"}


def test_whoever_foretells_rewards_gains_weight():
    hybrid = recommenders.make("hybrid")
    rows, dice = Rows(hybrid, [Ad(f"ad{n}") for n in range(12)]), random.Random(3)
    for _ in range(3000):
        user, row = dice.randrange(20), dice.randrange(12)
        rows.learn({}, rows.ads[row], float(user % 2 == row % 2), f"user-{user}")
    weights = hybrid.describe()["weights"]

    others = [weight for name, weight in weights.items() if name != "collaborative"]

    assert min(others) > 0
    assert weights["collaborative"] > 1.5 * max(others)


@every_recommender
def test_what_earns_comes_first(name):
    rows, dice = Rows(recommenders.make(name), ADS), random.Random(3)
    for _ in range(2000):
        ad = dice.choice(ADS)
        rows.learn(context(dice), ad, float(dice.random() < (0.4 if ad.id in ("ad4", "ad7") else 0.05)))
    scores = rows.recommender.scores({"segment": "food"})

    assert {ADS[row].id for row in np.argsort(scores)[-2:]} == {"ad4", "ad7"}


@pytest.mark.parametrize("name", ["bilinear", "crosses", "hybrid"])
def test_taste_is_learned_and_holds_for_ads_never_shown(name):
    rows, dice = Rows(recommenders.make(name), ADS), random.Random(3)
    suits = {"sports": "shoes", "books": "news", "food": "hats"}
    for _ in range(4000):
        visitor, ad = context(dice), dice.choice(ADS)
        likes = ad.features["kind"] == suits[visitor["segment"]]
        rows.learn(visitor, ad, float(dice.random() < (0.3 if likes else 0.02)))
    rows.put(*(Ad(f"new{kind}", {"kind": kind}) for kind in KINDS))
    for segment, kind in suits.items():
        best = np.argsort(rows.recommender.scores({"segment": segment}))[-4:]
        assert {rows.ads[row].features["kind"] for row in best} == {kind}


@every_recommender
def test_an_ad_shown_in_vain_falls_behind_one_that_never_was(name):
    rows = Rows(recommenders.make(name), [Ad("shown", {"kind": "hats"}), Ad("new", {"kind": "hats"})])
    for _ in range(300):
        rows.learn({"segment": "food"}, rows.ads[0], 0.0)
    shown, new = rows.recommender.scores({"segment": "food"})

    assert shown < new


@every_recommender
def test_options_are_documented_and_wrong_ones_are_refused_by_name(name):
    for option in recommenders.options(name):
        assert len(option.help) > 20
        with pytest.raises(Misconfigured, match=option.name):
            recommenders.make(name, **{option.name: -1})
        with pytest.raises(Misconfigured, match=option.name):
            recommenders.make(name, **{option.name: True})
    made = importlib.import_module(f"banditads.recommenders.{name}").Recommender()
    told = made.describe()
    assert (
        told
        == recommenders.make(
            name, **{each.name: each.default for each in recommenders.options(name)}
        ).describe()
    )
    with pytest.raises(Misconfigured, match="speed"):
        recommenders.make(name, speed=9)
    with pytest.raises(Misconfigured, match="there are: "):
        recommenders.make("best")
