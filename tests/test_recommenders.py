"""Every file in recommenders/ keeps the promises of the plug-board, whatever its options."""

import importlib
import inspect
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

    def learn(self, context, ad, reward):
        row = next((row for row, each in enumerate(self.ads) if each.id == ad.id), None)
        choice = Chosen(0.0, "e", (ad.id,), b"", 0, context)
        self.recommender.learn(Settled(choice, (ad,), reward, 0.0), row, reward)


def context(dice):
    return clean({"segment": dice.choice(("sports", "books", "food")), "age": dice.choice((None, 18, 70.5))})


def history(rows, n, seed=1):
    """Rewards, ads that come, change and go, and one that is not in the catalog."""
    dice = random.Random(seed)
    for number in range(n):
        rows.learn(context(dice), dice.choice([*rows.ads, Ad("inline")]), dice.choice((0.0, 0.0, 1.0, 0.25)))
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
    return [rows.recommender.scores(context(dice)).tobytes() for _ in range(5)]


def copied(rows, name, options):
    copy = Rows(recommenders.make(name, **options), rows.ads)
    copy.recommender.load(msgspec.msgpack.decode(packed(rows)))
    return copy


@every_case
@pytest.mark.parametrize("n", [0, 1, 60])
def test_every_ad_has_a_finite_score(name, options, n):
    rows = taught(name, options, n)
    for visitor in ({}, {"segment": "sports", "age": 30.0}, {"never": "seen"}):
        scores = rows.recommender.scores(visitor)
        assert scores.shape == (len(rows.ads),)
        assert np.isfinite(scores).all()


@every_case
def test_asking_changes_nothing_and_gives_the_same_bits_again(name, options):
    rows = taught(name, options)
    before, said = packed(rows), answers(rows)
    rows.recommender.scores({"unheard": "of"})[:] = 7.0

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
        rows.learn({"segment": "books"}, ad, float(number % 5 == 0))
    before = dict(zip([ad.id for ad in rows.ads], rows.recommender.scores({"segment": "books"}), strict=True))
    for row in (3, 0, 9):
        rows.remove(row)
    rows.put(Ad("ad3", ADS[3].features), Ad("other"))
    after = dict(zip([ad.id for ad in rows.ads], rows.recommender.scores({"segment": "books"}), strict=True))

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
        rows.learn(visitor, extreme, float(number >= 200))

    assert np.isfinite(rows.recommender.scores(visitor)).all()
    assert b"nan" not in json.dumps(rows.recommender.describe()).encode()


@every_recommender
def test_what_earns_comes_first(name):
    rows, dice = Rows(recommenders.make(name), ADS), random.Random(3)
    for _ in range(2000):
        ad = dice.choice(ADS)
        rows.learn(context(dice), ad, float(dice.random() < (0.4 if ad.id in ("ad4", "ad7") else 0.05)))
    scores = rows.recommender.scores({"segment": "food"})

    assert {ADS[row].id for row in np.argsort(scores)[-2:]} == {"ad4", "ad7"}


@pytest.mark.parametrize("name", ["bilinear", "crosses"])
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
    made = importlib.import_module(f"banditads.recommenders.{name}").Recommender
    for option in inspect.signature(made).parameters:
        assert f"\n{option}\n" in inspect.getdoc(made)
        with pytest.raises(Misconfigured, match=option):
            recommenders.make(name, **{option: -1})
    with pytest.raises(Misconfigured, match="speed"):
        recommenders.make(name, speed=9)
    with pytest.raises(Misconfigured, match="there are: "):
        recommenders.make("best")
