"""Whatever comes in is refused with its field, or is a flat, bounded, sorted set of features."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banditads.errors import Invalid
from banditads.features import MAX_FEATURES, MAX_NUMBER, clean, tokens

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
