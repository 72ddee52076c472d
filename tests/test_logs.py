"""Logs say what their files say, and come back as they were written."""

import csv
import json
import lzma
import math
import sys
from itertools import islice

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import vowpalwabbit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from banditads import logs
from banditads.choosing import Request
from banditads.directory import DataDirectory
from banditads.engine import Engine
from banditads.errors import Damaged, Misconfigured
from banditads.events import Ad, Chosen, Settled
from banditads.features import clean
from banditads.journal.file import Journal
from banditads.logs import open_bandit
from banditads.signing import EventIds
from banditads.state import State

CLICKS = {  # as in banditads/data/open_bandit_dataset/README.md
    "random/all": (38, 80),
    "random/men": (46, 34),
    "random/women": (46, 46),
    "bts/all": (42, 80),
    "bts/men": (69, 34),
    "bts/women": (46, 46),
}


def text(name):
    return lzma.decompress((open_bandit.DATA / f"{name}.csv.xz").read_bytes()).decode()


def raw(name):
    return list(csv.DictReader(text(name).splitlines()))


@pytest.fixture(scope="module")
def some():
    """A log with two slates and every field in use, and a piece of a real one."""
    hats = Ad("hats", clean({"price": 9.5, "colour": "red|blue: x"}), "https://shop/hats", {"title": "Häte"})
    shoes = Ad("shoes", {}, "", {}, ("home", "cart"), 0.0, 1.7e9, True)
    tea = Ad("tea é", clean({"_hidden": 1, "a.b": "c"}))
    pmf = np.array([0.1, 0.2, 0.7], "<f8").tobytes()
    ids = ("hats", "shoes", "tea é")
    first = Chosen(
        1.7e9,
        "e1",
        ids,
        pmf,
        2,
        clean({"age": 31, "device": "mobile"}),
        "vw",
        "u 1",
        "home",
        "r1",
        (tea,),
        {"x": "ended"},
        expected=0.125,
        promised=0.0625,
    )
    second = Chosen(1700000000.1234567, "e2", ("hats",), np.ones(1).tobytes(), 0, {})
    return [
        Settled(first, (hats, shoes, tea), 0.25, 1700000001.7654321, offset=7),
        Settled(second, (hats,), 0.0, math.inf, silent=True),
        *islice(logs.read("bts/men"), 50),
    ]


words = st.text(st.characters(exclude_categories=("C", "Z")), min_size=1, max_size=8)
values = st.one_of(words, st.floats(-1e6, 1e6))
features = st.dictionaries(words, values, max_size=4).map(clean)
moments = st.floats(1e9, 4e9)
ads = st.builds(
    Ad,
    id=words,
    features=features,
    landing_url=st.sampled_from(["", "https://example.com/"]),
    creative=st.dictionaries(
        words, st.recursive(words | st.booleans() | st.none(), st.lists, max_leaves=3), max_size=2
    ),
    placements=st.lists(words, max_size=2).map(tuple),
    starts=st.none() | moments,
    ends=st.none() | moments,
    house=st.booleans(),
)


@st.composite
def settled(draw):
    slate = tuple(draw(st.lists(ads, min_size=1, max_size=4, unique_by=lambda ad: ad.id)))
    weights = np.array(draw(st.lists(st.floats(0.01, 1), min_size=len(slate), max_size=len(slate))), "<f8")
    choice = Chosen(
        at=draw(moments),
        event_id=draw(words),
        ads=tuple(ad.id for ad in slate),
        pmf=(weights / weights.sum()).tobytes(),
        pick=draw(st.integers(0, len(slate) - 1)),
        context=draw(features),
        policy=draw(words),
        user_id=draw(st.just("") | words),
        placement=draw(st.just("") | words),
        request_id=draw(st.just("") | words),
        inline=draw(st.sampled_from([(), slate, slate[:1]])),
        filtered=draw(st.dictionaries(words, words, max_size=2)),
        expected=draw(st.none() | st.floats(0, 1)),
        promised=draw(st.none() | st.floats(0, 1)),
    )
    at = draw(moments | st.just(math.inf))
    offset = draw(st.integers(-1, 2**60))
    return Settled(choice, slate, draw(st.floats(-10, 10)) + 0.0, at, draw(st.booleans()), offset)


@pytest.mark.parametrize("kind", logs.writable())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=60)
@given(rounds=st.lists(settled(), max_size=5))
def test_what_was_written_comes_back(kind, rounds, tmp_path):
    path = tmp_path / f"log.{kind}"

    assert logs.write(kind, rounds, path) == len(rounds)
    assert list(logs.read(path)) == rounds


def test_a_journal_is_read_whoever_challenges(tmp_path):
    state = State("thompson", challengers=["uniform", "vw:bits=10"], floor=0.1)
    with DataDirectory(tmp_path) as directory:
        directory.commit(state.identity)
        engine = Engine(state, Journal(str(tmp_path)), ids=EventIds(b"k" * 32), clock=lambda: 1.0)
        engine.put_ads([Ad("hats"), Ad("shoes")])
        engine.reward(engine.choose(Request()).event.event_id, 1.0)
        engine.journal.close()

    assert [each.reward for each in logs.read(tmp_path)] == [1.0]


@pytest.mark.parametrize("kind", logs.writable())
def test_every_field_comes_back(kind, some, tmp_path):
    logs.write(kind, some, tmp_path / f"log.{kind}")

    assert list(logs.read(tmp_path / f"log.{kind}")) == some


def test_more_rounds_than_a_row_group_come_back(some, tmp_path, monkeypatch):
    monkeypatch.setattr("banditads.logs.parquet.ROWS", 7)
    logs.write("parquet", iter(some), tmp_path / "log.parquet")

    assert pq.ParquetFile(tmp_path / "log.parquet").num_row_groups == math.ceil(len(some) / 7)
    assert list(logs.read(tmp_path / "log.parquet")) == some


def test_parquet_columns_are_typed_for_queries(some, tmp_path):
    logs.write("parquet", some, tmp_path / "log.parquet")
    table = pq.read_table(tmp_path / "log.parquet")

    assert str(table.schema.field("at").type) == "timestamp[ns, tz=UTC]"
    assert str(table.schema.field("pmf").type) == "list<element: double>"
    assert table["ad_id"].to_pylist()[:2] == ["tea é", "hats"]
    assert table["probability"].to_pylist()[:2] == [0.7, 1.0]
    assert table["reward"].to_pylist() == [each.reward for each in some]


@pytest.mark.parametrize(("column", "readable"), [("offset", True), ("promised", True), ("reward", False)])
def test_parquet_of_before_a_column_there_is_now_is_read_but_not_without_a_reward(
    column, readable, some, tmp_path
):
    path = tmp_path / "log.parquet"
    logs.write("parquet", some, path)
    pq.write_table(pq.read_table(path, read_dictionary=["ad_features"]).drop_columns([column]), path)

    if readable:
        assert [each.reward for each in logs.read(path)] == [each.reward for each in some]
    else:
        with pytest.raises(Damaged, match=column):
            list(logs.read(path))


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "log.parquet").touch()

    assert "parquet" in logs.names()
    with pytest.raises(Misconfigured, match=r"banditads\[parquet\]"):
        list(logs.read(tmp_path / "log.parquet"))


def test_vw_learns_from_dsjson_without_a_complaint(some, tmp_path):
    log = [*some[:2], *islice(logs.read("random/men"), 300)]
    logs.write("dsjson", log, tmp_path / "log.dsjson")
    vw = vowpalwabbit.Workspace(
        f"--dsjson --cb_explore_adf --data {tmp_path / 'log.dsjson'} -P 1", enable_logging=True
    )
    examples, loss = vw.get_weighted_examples(), vw.get_sum_loss()
    vw.finish()
    said = "\n".join(vw.get_log())

    assert examples == len(log)
    assert math.isfinite(loss)
    assert f"number of examples = {len(log)}" in said
    assert not any(word in said.lower() for word in ("warning", "error", "critical", "nan", "malformed"))
    rows = [line.split() for line in said.splitlines() if len(line.split()) == 7 and line[0] in "-0123456789"]
    label = [row[4].split(":") for row in rows]
    assert [int(pick) for pick, _, _ in label] == [each.choice.pick for each in log]
    assert [-float(cost) for _, cost, _ in label] == [each.reward for each in log]
    assert [float(p) for _, _, p in label] == pytest.approx(
        [each.choice.probability for each in log], abs=0.01
    )
    # hats, shoes, tea: the context, which ad it is, a constant, its own features (but not the hidden one)
    assert int(rows[0][6]) == (2 + 1 + 1 + 2) + (2 + 1 + 1 + 0) + (2 + 1 + 1 + 1)


def test_dsjson_of_other_people_is_read(tmp_path):
    line = {
        "_label_cost": -1,
        "_label_probability": 0.8,
        "_label_Action": 2,
        "_labelIndex": 1,
        "Timestamp": "2020-11-15T17:09:31.8350000Z",
        "EventId": "b94a280e32024acb9a4fa12b058157d3",
        "a": [2, 1],
        "c": {
            "GUser": {"id": "Tom", "age": 31, "vip": True},
            "_multi": [{"TAction": {"topic": "politics"}}, {"_tag": "sport", "TAction": {"topic": "sports"}}],
        },
        "p": [0.8, 0.2],
        "VWState": {"m": "x/y"},
    }
    dangling = {"RewardValue": 1.0, "EventId": "other"}
    path = tmp_path / "log.dsjson"
    path.write_text(json.dumps(line) + "\n" + json.dumps(dangling) + "\n")
    (found,) = logs.read(path)

    assert found.reward == 1
    assert found.choice.propensities == {"1": 0.2, "sport": 0.8}
    assert found.choice.ad_id == "sport"
    assert found.choice.context == {"GUser.age": 31.0, "GUser.id": "Tom", "GUser.vip": "true"}
    assert found.ads[0].features == {"TAction.topic": "politics"}
    assert found.at == 1605460171.835


@pytest.mark.parametrize("kind", logs.writable())
def test_a_file_that_is_no_log_is_called_damaged(kind, tmp_path):
    path = tmp_path / f"log.{kind}"
    path.write_bytes(b'{"_label_cost": -1, "c": {}}\n')

    with pytest.raises(Damaged, match=r"log\."):
        list(logs.read(path))


def test_a_write_that_fails_leaves_the_old_log(some, tmp_path):
    path = tmp_path / "log.dsjson"
    logs.write("dsjson", some, path)

    def broken():
        yield some[0]
        raise RuntimeError

    with pytest.raises(RuntimeError):
        logs.write("dsjson", broken(), path)
    assert list(logs.read(path)) == some
    assert [each.name for each in tmp_path.iterdir()] == ["log.dsjson"]


@pytest.mark.parametrize(("name", "expected"), CLICKS.items())
def test_bundled_logs_are_as_their_readme_says(name, expected):
    rounds = list(logs.read(name))
    clicks, items = expected

    assert len(rounds) == 10_000
    assert sum(each.reward for each in rounds) == clicks
    assert len(rounds[0].ads) == items
    assert all(each.ads is rounds[0].ads for each in rounds)
    assert len({each.choice.event_id for each in rounds}) == 10_000
    assert [each.choice.at for each in rounds] == sorted(each.choice.at for each in rounds)


@pytest.mark.parametrize("name", CLICKS)
def test_propensities_and_items_are_exactly_those_of_the_file(name):
    for each, row in zip(logs.read(name), raw(name), strict=True):
        choice = each.choice
        assert choice.probability == float(row["propensity_score"])
        assert choice.ad_id == f"item-{row['item_id']}"
        assert each.reward == float(row["click"])
        pmf = np.frombuffer(choice.pmf)
        assert abs(pmf.sum() - 1) < 1e-9
        assert len(set(np.delete(pmf, choice.pick))) == 1


@pytest.mark.parametrize("name", [name for name in CLICKS if name.startswith("random")])
def test_random_logs_are_uniform_to_the_last_bit(name):
    for each in islice(logs.read(name), 100):
        assert each.choice.pmf == np.full(len(each.ads), 1 / len(each.ads)).tobytes()


def test_a_row_becomes_context_and_ads():
    rounds = list(logs.read("open_bandit/random/all"))
    row = next(
        place for place, each in enumerate(raw("random/all")) if each["user-item_affinity_39"] == "1.0"
    )
    choice = rounds[row].choice

    assert choice.event_id == f"obd-random-all-{row}"
    assert choice.policy == "random"
    assert choice.context["user-item_affinity_39"] == 1.0
    assert choice.context["position"] in ("1", "2", "3")
    assert choice.context == clean(choice.context)
    assert sorted(name for name in choice.context if name.startswith("user_")) == [
        f"user_feature_{i}" for i in range(4)
    ]
    assert all(
        isinstance(rounds[0].ads[0].features[f"item_feature_{i}"], (str, float)[i == 0]) for i in range(4)
    )
    assert rounds[0].choice.at == 1574553634.76283
    assert rounds == list(logs.read("random/all"))


def test_files_of_the_full_dataset_are_read_where_they_lie(tmp_path):
    home = tmp_path / "random" / "men"
    home.mkdir(parents=True)
    (home / "men.csv").write_text(text("random/men"))
    without_items = list(logs.read(home / "men.csv"))
    (home / "item_context.csv").write_bytes((open_bandit.DATA / "random/men_items.csv").read_bytes())

    assert list(logs.read(home / "men.csv")) == without_items == list(logs.read("random/men"))


def test_a_broken_row_is_named(tmp_path):
    lines = text("random/men").splitlines()[:5]
    lines[3] = lines[3].replace("0.029411764705882353", "0")
    (tmp_path / "men.csv").write_text("\n".join(lines))
    (tmp_path / "men_items.csv").write_bytes((open_bandit.DATA / "random/men_items.csv").read_bytes())

    with pytest.raises(Damaged, match=r"row 2: ValueError: 0.0 is not a propensity"):
        list(logs.read(tmp_path / "men.csv"))
    (tmp_path / "men.csv").write_text("a,b\n1,2\n")
    with pytest.raises(Damaged, match="timestamp"):
        list(logs.read(tmp_path / "men.csv"))


def test_a_cut_off_file_is_called_damaged(tmp_path):
    whole = (open_bandit.DATA / "random/men.csv.xz").read_bytes()
    (tmp_path / "men.csv.xz").write_bytes(whole[:50_000])
    (tmp_path / "men_items.csv").write_bytes((open_bandit.DATA / "random/men_items.csv").read_bytes())

    with pytest.raises(Damaged):
        list(logs.read(tmp_path / "men.csv.xz"))


def test_items_for_a_catalog():
    assert [len(open_bandit.items(campaign)) for campaign in open_bandit.CAMPAIGNS] == [80, 34, 46]
    with pytest.raises(Misconfigured, match="campaign"):
        open_bandit.items("children")


@pytest.mark.parametrize(
    "source", ["nothing/there", "missing.parquet", "missing.dsjson", "/", "random/children"]
)
def test_what_is_no_log_is_refused(source):
    with pytest.raises(Misconfigured, match="not a log"):
        logs.read(source)


def test_only_some_kinds_can_be_written(tmp_path):
    assert logs.writable() == ["dsjson", "parquet"]
    with pytest.raises(Misconfigured, match="dsjson or parquet"):
        logs.write("open_bandit", [], tmp_path / "x")


def test_ads_survive_a_trip_through_json():
    ad = Ad("a", {"x": 1.0}, "u", {"k": [1]}, ("home",), 0.0, 5.0, True)

    assert logs.ad_from_dict(msgspec.json.decode(msgspec.json.encode(logs.ad_to_dict(ad)))) == ad
    assert logs.ad_to_dict(Ad("b")) == {"id": "b"}


def test_the_data_are_bundled_with_their_licence():
    assert "Apache License" in (open_bandit.DATA / "LICENSE").read_text()
    assert "arXiv:2008.07146" in (open_bandit.DATA / "README.md").read_text()
