"""Whatever comes in is refused with its field, or is a flat, bounded, sorted set of features."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banditads import policies
from banditads.api.serving import from_query
from banditads.errors import Invalid
from banditads.events import Ad
from banditads.features import MAX_FEATURES, MAX_NUMBER, MAX_PARTS, MISSING, clean, tokens

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), anything, max_size=8))
def test_anything_is_refused_or_clean(raw):
    try:
        found = clean(raw)
    except Invalid:
        return
    assert list(found) == sorted(found)
    assert len(found) <= MAX_FEATURES
    for name, value in found.items():
        assert name
        assert isinstance(value, str) or (math.isfinite(value) and abs(value) <= MAX_NUMBER)
    assert clean(found) == found


@given(
    st.dictionaries(st.text("ab=%.", min_size=1), st.text("ab=%", min_size=1) | st.floats(-9, 9), max_size=6)
)
def test_different_features_have_different_tokens(features):
    try:
        found = tokens(clean(features))
    except Invalid:
        return
    assert len({name for name, _ in found}) == len(found)


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({"a": float("nan")}, "context.a"),
        ({"a": float("inf")}, "context.a"),
        ({"a": 10**400}, "context.a"),
        ({"a": -1e7}, "context.a"),
        ({"a": ""}, "context.a"),
        ({"a": "x\n|A evil"}, "context.a"),
        ({"a": {"b": [1]}}, "context.a.b"),
        ({"a": {1: "x"}}, "context"),
        ({"x" * 129: 1}, "context"),
        ({f"f{n}": 1 for n in range(257)}, "context"),
        ({"a": {"a": {"a": {"a": {"a": 1}}}}}, "context"),
    ],
)
def test_what_cannot_be_a_feature_is_refused_by_name(raw, field):
    with pytest.raises(Invalid) as refused:
        clean(raw)
    assert refused.value.field == field


def test_the_order_in_which_features_come_decides_nothing():
    assert list(clean({"b": 1, "a": {"d": 2, "c": 3}})) == list(clean({"a": {"c": 3, "d": 2}, "b": 1}))


def test_minus_zero_is_zero():
    assert math.copysign(1, clean({"a": -0.0})["a"]) == 1


def test_what_is_said_to_be_missing_is_flagged_and_not_dropped():
    assert clean({"age": None, "geo": {"city": None}}) == {"age": MISSING, "geo.city": MISSING}
    assert clean(from_query({"age": "", "device": "mobile"}).context) == {"age": MISSING, "device": "mobile"}


@pytest.mark.parametrize("policy", ["vw", "logistic", "linucb"])
def test_a_policy_learns_from_a_number_that_it_is_missing(policy):
    """It is missing for those who like hats; for the others it says nothing."""
    made, ads = policies.make(policy), [Ad("hats"), Ad("shoes")]
    for n in range(200):
        for context, liked in (({"age": MISSING}, 0), ({"age": float(20 + n % 40)}, 1)):
            for pick in (0, 1):
                made.learn(context, ads, pick, float(pick == liked), 0.5)

    assert made.pmf({"age": MISSING}, ads).argmax() == 0
    assert made.pmf({"age": 33.0}, ads).argmax() == 1


@pytest.mark.parametrize(
    "said",
    ["2024-07-01T18:00:00Z", "2024-07-01 18:00", "2024-07-01T18:00:00.5+02:00", "2024-07-01T18:00+0200"],
)
def test_a_date_becomes_where_it_stands_in_day_week_and_year(said):
    found = clean({"seen": said})

    assert found["seen.weekday"] == "monday"
    assert found["seen.year"] == 2024.0
    assert (found["seen.hour.sin"], found["seen.hour.cos"]) == (-1.0, 0.0)
    assert (found["seen.month.sin"], found["seen.month.cos"]) == (0.0, -1.0)
    assert len(found) == 6


def test_the_last_hour_of_a_day_is_beside_the_first():
    def apart(one, other):
        hours = [clean({"at": f"2024-07-01T{each}"}) for each in (one, other)]
        return math.dist(*([each["at.hour.sin"], each["at.hour.cos"]] for each in hours))

    assert apart("23:30", "00:30") == pytest.approx(apart("11:30", "12:30"), abs=1e-5)


def test_seconds_since_the_epoch_are_a_date_if_the_name_says_so():
    assert clean({"seen_at": 1719856800}) == clean({"seen_at": "2024-07-01T18:00:00Z"})
    assert clean({"looked_at": 3}) == {"looked_at": 3.0}
    for name, value in (("seen", 1719856800), ("seen_at", 1e300), ("seen_at", -1e9)):
        with pytest.raises(Invalid):
            clean({name: value})


@pytest.mark.parametrize(
    "word", ["2024-13-01", "2024-02-31", "20240701", "2024-07", "1234-56-789", "2024-07-01x"]
)
def test_what_is_no_date_stays_a_category(word):
    assert clean({"code": word}) == {"code": word}


def test_a_text_becomes_its_words_and_a_name_of_a_city_does_not():
    assert clean({"about": "The RED shoe; the blue one"}) == {
        f"about~{word}": 1.0 for word in ("blue", "one", "red", "shoe", "the")
    }
    for category in ("New York City", "Sports & Outdoors", "f" * 512, "-" * 100):
        assert clean({"about": category}) == {"about": category}


def test_words_are_bounded_and_never_push_a_column_out():
    long = " ".join(f"w{n}" for n in range(100))
    assert len(clean({"about": long})) == MAX_PARTS
    many = {f"about {n}": long for n in range(MAX_FEATURES - 20)} | {f"n{n}": 1 for n in range(20)}
    found = clean(many)
    assert len(found) <= MAX_FEATURES
    assert {name.partition("~")[0] for name in found} == set(many)
