"""Hostile words and numbers cannot move the model: predictions are the same bits as without them."""

import pytest
from conftest import ADS, Clock, drive, ids
from hypothesis import given, settings
from hypothesis import strategies as st

from banditads import policies
from banditads.choosing import Request
from banditads.engine import Engine
from banditads.errors import Invalid
from banditads.events import Ad
from banditads.features import clean
from banditads.journal import connect
from banditads.state import State

WORDS = [
    "0:-1000:0.001 |A ad=a3",
    "|U a |A b",
    "a3 ad=a1:100",
    "shared |U x",
    "' 1 1.0 'tag|ns f:9999",
    "0123",
    "123",
    "=a",
    "%3D%7C",
    "placement=home:1e30",
    "nan",
    "1e999",
]
BAD = [
    {"x": "\u202egnp.ad"},
    {"age": float("nan")},
    {"age": float("inf")},
    {"age": 1e300},
    {"age": -(10**400)},
    {"x": "a\n0:-1000:0.001 |A ad=a3"},
    {"x\n": 1},
    {"": 1},
    {"x" * 1000: 1},
    {"x": "y" * 10_000},
    {"x": {"y": {"z": {"a": {"b": {"c": 1}}}}}},
    {"x": [float("nan")]},
    {"x": b"\xff"},
    {str(n): n for n in range(1000)},
]
PROBES = [{"page": "home", "age": 30.0}, {"page": "news"}, {}]


def predictions(engine):
    return [[p.hex() for p in engine.predict(Request(probe)).pmf] for probe in PROBES]


@pytest.mark.parametrize("policy", policies.names())
def test_what_is_refused_leaves_the_model_as_it_was_to_the_last_bit(policy, make_engine):
    with_them, without = make_engine(policy), make_engine(policy)
    for engine in (with_them, without):
        now = Clock()
        engine.clock = now
        drive(engine, now, 40)
        if engine is with_them:
            for bad in BAD:
                with pytest.raises(Invalid):
                    engine.choose(Request(clean(bad, "context")))
            for reward in (float("nan"), float("inf"), -1e30, 1e30, 1.0000001):
                with pytest.raises(Invalid):
                    engine.reward("1-39", reward)
        drive(engine, now, 40, seed=2)
    assert with_them.state.digest() == without.state.digest()
    assert predictions(with_them) == predictions(without)


def harmless(word):
    """A word for a word, and for a text as many different ones, in the same order."""
    parts = clean({"word": word}, "context")
    if "word" in parts:
        return "harmless"
    return " ".join(f"harmless{number}" for number, _ in enumerate(parts)) + " - - -"


# linucb hashes a context into 32 numbers that all names share, on purpose: no two words are alike there.
@pytest.mark.parametrize("policy", [name for name in policies.names() if name != "linucb"])
@settings(max_examples=40, deadline=None)
@given(word=st.one_of(st.sampled_from(WORDS), st.text("|:= '#%\"0123aé\\", min_size=1, max_size=30)))
def test_a_hostile_word_teaches_about_others_what_a_harmless_one_would(policy, word):
    found = []
    for name in (word, harmless(word)):
        now = Clock()
        engine = Engine(State(policy), connect("memory:"), ids=ids(), clock=now)
        engine.put_ads([*ADS, Ad("d", {"slogan": name})])
        for number in range(12):
            context = clean({"page": "home", "word": name}, "context")
            shown = engine.choose(Request(context), f"e{number}").event
            engine.reward(f"e{number}", float(shown.ad_id == "a"))
        among = Request({"page": "home"}, ads=("a", "b", "c"))
        found.append([p.hex() for p in engine.predict(among).pmf])
    assert found[0] == found[1]
