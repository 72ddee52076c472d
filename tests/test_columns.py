"""What is known of features, where the truth was planted."""

import json
import random
import struct
from threading import Lock

import msgspec
import pytest
from conftest import ADS, drive
from test_contract import Site

from banditads import columns as columns_module
from banditads.choosing import Request, choose
from banditads.columns import ENOUGH, Columns
from banditads.events import Ad, AdsPut, Chosen, Rewarded, Settled
from banditads.features import MISSING, clean
from banditads.influence import influence
from banditads.snapshots import Snapshots
from banditads.state import State

LIKED = {"hats": 0, "shoes": 1, "coats": 2}


@pytest.fixture(scope="module")
def planted():
    """4,000 visits; what each feature is was decided beforehand. By `taste` visitors like one ad in three."""
    engine, dice = Planted(), random.Random(1)
    for number in range(4000):
        taste = dice.choice([*LIKED])
        spoils = dice.random() < 0.1  # 10 % click, whatever is shown
        context = {
            "taste": taste,
            "weather": dice.choice(["sun", "rain"]),
            "visitor": f"v{number}",
            "serial": 700_000 + number,
            "site": "main",
            "thanked": "yes" if spoils else "no",
            "age": dice.gauss(40, 12) if dice.random() < 0.75 else None,
            "about": f"one two three word{number % 50}",
            **({"basket": dice.random()} if spoils else {}),
            **({"campaign": dice.choice(["a", "b"])} if number < 2000 else {}),
        }
        engine.visit(number, clean(context), taste, spoils)
    return engine


class Planted:
    """A state and its decisions, without a journal."""

    def __init__(self):
        self.state, self.applied = State("vw", reward_max=2.0, wait=1e6), 0
        self.put(AdsPut(0.0, tuple(ADS)))

    def put(self, event):
        self.state.apply(self.state.applied, event)

    def visit(self, number, context, taste, spoils):

        choice = choose(
            self.state, at=float(number), event_id=f"e{number}", request=Request(context), floor=0.1
        )
        self.put(choice)
        if number < 3900:  # the last ones wait
            liked = choice.ad_id == "abc"[LIKED[taste]]
            self.put(Rewarded(float(number), choice.event_id, 2.0 if spoils else 0.2 * liked))

    def facts(self, side="context"):
        return {each.name: each for each in self.state.columns.facts(side)}

    def moves(self):
        return influence(lambda: self.state, Lock(), lambda: False)


def test_each_feature_is_of_the_type_that_it_was_planted_with(planted):
    kinds = {name: each.kind for name, each in planted.facts().items()}
    assert kinds["taste"] == kinds["visitor"] == "category"
    assert kinds["age"] == kinds["serial"] == "number"
    assert kinds["about"] == "text"
    assert not any("~" in name for name in kinds)


def test_gaps_values_mean_and_spread_are_about_what_was_planted(planted):
    facts = planted.facts()
    assert facts["age"].missing == pytest.approx(0.25, abs=0.03)
    assert facts["age"].mean == pytest.approx(40, abs=1.5)
    assert facts["age"].spread == pytest.approx(12, abs=1)
    assert facts["taste"].missing == 0
    assert facts["about"].seen == facts["taste"].seen  # once a choice, however many words
    assert round(facts["taste"].distinct) == 3
    assert facts["about"].distinct == pytest.approx(53, rel=0.15)
    assert facts["visitor"].distinct == pytest.approx(facts["visitor"].seen, rel=0.2)
    assert facts["campaign"].last_at == pytest.approx(2000, abs=100)


def test_only_what_deserves_it_is_pointed_out(planted):
    words = {name: "".join(each.warnings).partition(":")[0] for name, each in planted.facts().items()}
    assert words == {
        "visitor": "nearly an identifier",
        "serial": "nearly an identifier",
        "thanked": "leaks the reward",
        "basket": "leaks the reward",
        "site": "constant",
        "campaign": "vanished",
        **dict.fromkeys(["taste", "weather", "age", "about"], ""),
    }


def test_what_is_there_only_after_a_click_is_told_from_a_telling_value(planted):
    facts = planted.facts()
    assert "whether it is there" in facts["basket"].warnings[0]
    assert "whether it is there" not in facts["thanked"].warnings[0]
    assert facts["thanked"].association > 0.9
    assert facts["weather"].association < 0.1


def test_a_decisive_feature_moves_choices_and_an_irrelevant_one_does_not(planted):
    moves = planted.moves()
    assert moves["context", "taste"] > 0.3
    assert moves["context", "weather"] < moves["context", "taste"] / 5
    assert moves["context", "site"] < moves["context", "taste"] / 2
    assert all(0 <= each <= 1 for each in moves.values())
    assert ("ad", "kind") in moves


def test_asking_how_much_features_move_choices_changes_nothing(planted):
    before = planted.state.dump()
    planted.moves()
    assert planted.state.dump() == before


def test_asking_holds_the_lock_for_one_question_and_ends_when_time_is_up(planted):
    class Counting:
        held = 0

        def __enter__(self):
            self.held += 1

        def __exit__(self, *error):
            pass

    lock = Counting()
    influence(lambda: planted.state, lock, lambda: lock.held > 10)
    assert lock.held == 11


def choice(number, context, pick=0, ads=("a",)):
    pmf = struct.pack(f"<{len(ads)}d", *[1 / len(ads)] * len(ads))
    return Chosen(float(number), f"e{number}", tuple(ads), pmf, pick, context)


def looked(contexts):
    columns = Columns()
    for number, context in enumerate(contexts):
        columns.apply(choice(number, context), (Ad("a"),))
    return columns


def test_what_is_usually_there_is_flagged_where_it_is_missing():
    rare = [{}, {}, {"rare": "x"}]
    columns = looked([{"age": float(n), "page": "home", **rare[n % 3]} for n in range(300)])
    assert columns.complete({"page": "home"}) == {"age": MISSING, "page": "home"}
    assert columns.complete({"age": MISSING, "new": "x"}) == {"age": MISSING, "new": "x", "page": MISSING}
    whole = {"age": 1.0, "page": "news"}
    assert columns.complete(whole) is whole


def test_nothing_is_usual_before_enough_was_seen_nor_long_after_it_vanished():
    assert looked([{"age": float(n)} for n in range(ENOUGH - 1)]).complete({}) == {}
    there = [{"age": float(n)} for n in range(300)]
    assert looked(there).complete({}) == {"age": MISSING}
    assert looked([*there, *[{"age": MISSING}] * 500]).complete({}) == {}


def test_indicators_texts_and_profiles_are_not_flagged():
    context = {"about~red": 1.0, "about~shoe": 1.0, "tags.new": 1.0, "user.views": 3.0, "user.city": "Oslo"}
    columns = looked([{**context, "user.views": float(n)} for n in range(300)])
    assert columns.usual == frozenset()


def test_flags_never_make_a_context_too_large():
    columns = looked([{f"f{n}": float(n + m) for n in range(200)} for m in range(200)])
    assert len(columns.complete({f"g{n}": 1.0 for n in range(200)})) == 256


def test_what_was_missing_at_choice_time_is_in_the_journal(make_engine, clock):
    engine = make_engine()
    for number in range(150):
        engine.choose(Request({"age": float(number), "page": "home"}), f"e{number}")
    engine.choose(Request({"page": "home"}), "without")

    assert engine.decision("without").event.context == {"age": MISSING, "page": "home"}
    assert "age" in engine.predict(Request({"page": "home"})).context


def test_names_without_end_take_bounded_room_and_push_out_nothing_steady(monkeypatch):
    monkeypatch.setattr(columns_module, "MAX_COLUMNS", 50)
    columns = looked([{"page": "home", f"junk{n}": "x"} for n in range(500)])
    facts = {each.name: each for each in columns.facts("context")}
    assert len(facts) == 50
    assert facts["page"].seen == 500
    assert columns.forgotten == 451


def test_a_feature_of_an_ad_and_one_of_a_visitor_are_two_columns():
    columns = Columns()
    columns.apply(choice(1, {"price": "high"}), (Ad("a", {"price": 3.0}),))
    assert columns.facts("context")[0].kind == "category"
    assert columns.facts("ad")[0].kind == "number"


@pytest.mark.parametrize("n", [1, 10, 100, 1000, 20_000])
def test_the_number_of_different_values_is_estimated_within_a_fifth(n):
    column = columns_module.Column(0, (0, 0.0, 0.0))
    for number in range(n):
        column.tell_apart(f"value {number}")
    assert column.distinct == pytest.approx(n, rel=0.2)


def test_columns_that_were_saved_go_on_like_those_that_were_not(make_engine, clock):
    engine = make_engine()
    drive(engine, clock, 150)
    other = Columns()
    other.load(msgspec.msgpack.decode(msgspec.msgpack.encode(engine.state.columns.dump())))
    assert other.usual == engine.state.columns.usual == {"age", "page"}
    for columns in (engine.state.columns, other):
        for number in range(200):
            one = choice(number, {"age": float(number), "about~red": 1.0})
            columns.apply(one, ADS)
            columns.apply(Settled(one, tuple(ADS), 1.0, 1.0))

    assert other.earned.count > 5
    assert msgspec.msgpack.encode(other.dump()) == msgspec.msgpack.encode(engine.state.columns.dump())


def test_the_page_of_features_says_what_is_known(make_engine, clock, tmp_path):

    engine = make_engine("vw", snapshots=Snapshots(tmp_path, b"k" * 32), keep_journal=False)
    site = Site(engine, clock)
    assert json.loads(site("GET", "/features")[1])["context"] == []
    for number in range(20):
        engine.choose(Request({"age": float(number), "page": "home"}), f"more-{number}")
    status, body = site("GET", "/features")
    said = json.loads(body)

    assert status == 200
    assert [each["name"] for each in said["context"]] == ["age", "page"]
    assert said["context"][0]["mean"] == 9.5
    assert 0 <= said["context"][0]["moves_choices"] <= 1
    assert {each["name"] for each in said["ad"]} == {"kind", "price"}


def test_what_chance_explains_is_no_association(monkeypatch):
    """Fifteen values explain 14 / 300 of any reward."""
    monkeypatch.setattr(columns_module, "EVERY", 1)
    columns, dice = Columns(), random.Random(2)
    for number in range(300):
        one = choice(number, {f"luck {n}": f"v{dice.randrange(15)}" for n in range(20)})
        columns.apply(one, (Ad("a"),))
        columns.apply(Settled(one, (Ad("a"),), float(dice.random() < 0.3), 1.0))
    found = [each.association for each in columns.facts("context")]

    assert sum(found) / len(found) < 0.02
