"""What is fast does what the plain way does: the same bits, for whatever comes.

The plain way to use VW is in this file: every example is made anew at every call, with all its features, and
nothing is kept.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate
from math import asinh, exp
from random import Random
from typing import Any
from zlib import crc32

import msgspec
import numpy as np
import pylibvw
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from banditads import events, features, policies
from banditads.choosing import Request, choose, spread
from banditads.events import FEW, Ad, AdsPut, Advised, Chosen, apart
from banditads.features import MISSING, PART, clean, tokens
from banditads.history import EVERY, MAX_STREAMS, History
from banditads.policies import vw
from banditads.sampling import pick, uniform
from banditads.shares import Shares
from banditads.state import State

CB = pylibvw.vw.lContextualBandit
WORDS = st.text("abc=%:| \n", max_size=4) | st.text(max_size=3)
VALUES = st.one_of(
    WORDS, st.floats(), st.integers(), st.booleans(), st.none(), st.lists(WORDS, max_size=2),
    st.dictionaries(WORDS, WORDS, max_size=2),
)  # fmt: skip
NUMBERS = st.floats(-1e6, 1e6).map(lambda value: value + 0.0)
NAMED = st.dictionaries(st.sampled_from(["a", "b", "c=d", "price", "%"]), st.sampled_from("uvw") | NUMBERS)
OPTIONS = [{}, *vw.EXAMPLES]


class Plain:
    """VW as one would write it down, on the workspace and the scales of a policy."""

    def __init__(self, policy: vw.Policy) -> None:
        self.policy, self.vw = policy, policy._vw

    def example(self, label: str, namespace: str, named: list[tuple[str, float]]) -> Any:
        made = pylibvw.example(self.vw, CB)
        if label:
            made.set_label_string(self.vw, label, CB)
        made.ensure_namespace_exists(ord(namespace))
        made.push_feature_list(self.vw, ord(namespace), self.vw.hash_space(namespace), named)
        self.vw.setup_example(made)
        return made

    def shared(self, context: features.Features) -> Any:
        named = []
        for name, _ in tokens(context):
            named.append((name, 1.0))
        for name, value in context.items():
            if isinstance(value, float) and (scale := self.policy.scales.get(vw._place(name))):
                named.append((tokens({name: value})[0][0] + "=", scale.of(value)))
        return self.example("shared", "U", named)

    def ad(self, ad: Ad, said: float | None, label: str = "") -> Any:
        named = [(name, value if "=" in name else asinh(value)) for name, value in tokens(ad.features)]
        made = self.example(label, "A", [("=" + ad.id, 1.0), *named])
        if said is None:
            return made
        self.vw.unsetup_example(made)
        made.ensure_namespace_exists(ord("R"))
        told = [("recommended", 1 / (1 + exp(-said)))]
        made.push_feature_list(self.vw, ord("R"), self.vw.hash_space("R"), told)
        self.vw.setup_example(made)
        return made

    def all(self, ads: Sequence[Ad], pick: int = -1, label: str = "") -> list[Any]:
        plain, said = apart(ads)
        every = zip(plain, said or [None] * len(plain), strict=True)
        return [self.ad(*each, label if at == pick else "") for at, each in enumerate(every)]

    def pmf(self, context: features.Features, ads: Sequence[Ad]) -> np.ndarray:
        shared = self.shared(context)
        self.vw.predict_multi([shared, *self.all(ads)])
        scores = shared.get_action_scores()
        return np.array(scores) / sum(scores)

    def learn(self, context, ads: Sequence[Ad], pick: int, reward: float, propensity: float) -> None:
        for name, value in context.items():
            if isinstance(value, float):
                place = vw._place(name)
                self.policy.scales[place] = self.policy.scales.get(place, vw.Scale()).after(value)
        label = f"0:{-reward!r}:{max(propensity, self.policy.least)!r}"
        self.vw.learn_multi([self.shared(context), *self.all(ads, pick, label)])
        self.policy.learned += 1


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@settings(max_examples=12, deadline=None)  # of each of eleven options
@given(data=st.data())
def test_vw_with_kept_examples_gives_the_bits_of_vw_with_new_ones(options, data):
    fast, other = (policies.make("vw", **{**options, "bits": 12}) for _ in range(2))
    plain = Plain(other)
    catalog = [Ad(f"ad-{n}", clean(data.draw(NAMED))) for n in range(6)]
    slates = [tuple(catalog[:1]), tuple(catalog[:4]), tuple(catalog)]
    for _ in range(data.draw(st.integers(1, 12))):
        context, ads = clean(data.draw(NAMED)), data.draw(st.sampled_from(slates))
        if data.draw(st.booleans()):  # a recommender has something to say
            said = st.lists(st.floats(-10, 10, width=32), min_size=len(ads), max_size=len(ads))
            ads = Advised(ads, data.draw(said))
        said = fast.pmf(context, ads)
        assert said.tobytes() == plain.pmf(context, ads).tobytes()
        pick = data.draw(st.integers(0, len(ads) - 1))
        reward = data.draw(st.sampled_from([0.0, 0.5, 1.0]))
        for each in (fast, plain):
            each.learn(context, ads, pick, reward, float(said[pick]) or 0.01)
    assert fast.dump() == other.dump()


def test_the_plain_way_would_be_told_from_another():
    """The comparison above can fail: one lesson more is another model."""
    fast, other = (policies.make("vw", exploration="softmax") for _ in range(2))
    plain, ads = Plain(other), (Ad("a"), Ad("b"), Ad("c"))
    for each in (fast, plain):
        each.learn({"x": "y"}, ads, 1, 1.0, 0.5)
    assert fast.dump() == other.dump()
    plain.learn({"x": "y"}, ads, 2, 1.0, 0.5)
    assert fast.pmf({"x": "y"}, ads).tobytes() != plain.pmf({"x": "y"}, ads).tobytes()
    assert fast.dump() != other.dump()


@settings(max_examples=500, deadline=None)
@given(st.dictionaries(WORDS, VALUES, max_size=5))
def test_the_quick_way_to_clean_gives_what_the_whole_way_gives_or_nothing(raw):
    quick = features._clean_flat(raw)
    if quick:
        whole = features._clean(raw, "context")
        assert list(quick.items()) == list(whole.items())
        assert list(map(repr, quick.values())) == list(map(repr, whole.values()))  # -0.0, and int


def test_no_number_that_an_ad_may_have_leaves_a_policy_without_probabilities():
    """RegCB divided nothing by nothing where one ad had a price of a million and another one of 1e-22."""
    dice = Random(1)
    names, values = ["a", "b", "price"], [12769.0, -2.9e-22, 1e6, -1e6, 1e-300, 5.0, "u"]

    def some() -> features.Features:
        return {name: dice.choice(values) for name in sorted(dice.sample(names, dice.randrange(3)))}

    for _ in range(300):
        policy = policies.make("vw", exploration="regcb", mellowness=0.001, bits=12)
        catalog = tuple(Ad(f"ad-{n}", some()) for n in range(6))
        for _ in range(dice.randrange(1, 12)):
            ads, context = catalog[: dice.choice([1, 4, 6])], some()
            assert abs(policy.pmf(context, ads).sum() - 1) < 1e-9
            policy.learn(context, ads, dice.randrange(len(ads)), dice.choice([0.0, 0.5, 1.0]), 0.3)


LISTED = st.tuples(st.text(max_size=4), st.integers(1, 2 * FEW)).map(
    lambda drawn: [f"{drawn[0]}{place}" for place in range(drawn[1])]
)
CHANCES = st.sampled_from([0.0, 1e-300, 1 / 3, 0.1, 0.7, 5e-324])
WEIGHTS = st.tuples(CHANCES, st.dictionaries(st.integers(0, 2 * FEW), CHANCES, max_size=12))


def drawn(weights, n: int) -> list[float]:
    usual, others = weights
    return [others.get(place, usual) for place in range(n)]


@settings(max_examples=100, deadline=None)
@given(names=LISTED, weights=st.lists(WEIGHTS, min_size=1, max_size=3))
def test_probabilities_in_a_reply_read_as_if_each_were_written_down(names, weights):
    shares = Shares()
    for ids in (tuple(names), tuple(names[1:]), tuple(names[:-1])):
        for each in weights * 2:  # the second time names are kept
            pmf = drawn(each, len(ids))
            plain = dict(zip(ids, pmf, strict=True))
            found = shares(ids, struct.pack(f"<{len(ids)}d", *pmf))
            assert msgspec.json.encode([found]) == msgspec.json.encode([plain])


@settings(max_examples=100, deadline=None)
@given(st.sampled_from([1, 2, FEW, FEW + 1, 2 * FEW]), WEIGHTS, st.floats(0, 1), st.text(max_size=3))
def test_many_ads_are_chosen_among_as_few_are(n, weights, floor, event_id):
    listed = drawn(weights, n)
    # From Python 3.12 on `sum` is more exact; so it was for few.
    total = sum(listed) if n <= FEW else [*accumulate(listed)][-1]
    assume(total > 1e-200)
    state = State("uniform")
    state.apply(0, AdsPut(0.0, tuple(Ad(f"ad-{place:03d}") for place in range(n))))
    state.policy.pmf = lambda context, ads: np.array(listed)
    asked = {"at": 1.0, "event_id": event_id, "request": Request(), "floor": floor}
    scale, least = (1 - floor) / total, floor / n
    plain = [p * scale + least for p in listed]
    assert [p.hex() for p in spread(state, **asked).pmf] == [p.hex() for p in plain]
    chosen = choose(state, **asked)
    assert chosen.pmf == struct.pack(f"<{n}d", *plain)
    u = uniform(event_id)
    assert chosen.pick == next(at for at, edge in enumerate(accumulate(plain)) if u < edge)
    for edge in [0.0, *accumulate(plain[:3])]:
        assert pick(np.array(plain), edge) == pick(plain, edge)
    assert events.most_probable(chosen.pmf) == (plain.index(max(plain)), max(plain))
    turned = msgspec.structs.replace(chosen, ads=chosen.ads[::-1])
    for each in (chosen, chosen, turned):  # the ids are kept
        assert events.encode(each) == msgspec.msgpack.encode(each)


ODD_NAMES = st.text("ab=~?", min_size=1, max_size=4)
ODD_CONTEXTS = st.dictionaries(ODD_NAMES, st.text("ab=~?", min_size=1, max_size=3) | NUMBERS, max_size=6)


@settings(max_examples=200, deadline=None)
@given(st.lists(ODD_CONTEXTS, max_size=40))
@example([{"a": "b~=a"}, {"a=b~": "a"}])  # what has a "~", or no value, has no stream
@example([{"a=?": 1.0}, {"a": "?"}])
def test_streams_are_found_as_if_each_were_called_by_its_name(contexts):
    made, streams, sums, counts = History(), {}, {}, {}
    ids = [name for number in range(1000) if not crc32((name := str(number)).encode()) % EVERY]
    for offset, (context, event_id) in enumerate(zip(contexts, ids, strict=False)):
        made.apply(Chosen(0.0, event_id, ("x",), b"", 0, context), offset, 0.0, 1.0)
        if offset == len(contexts) // 2:
            saved, made = made.dump(), History()
            made.apply(Chosen(0.0, event_id, ("x",), b"", 0, {"b": 1.0, "a": "b"}), 0, 0.0, 1.0)
            made.load(msgspec.msgpack.decode(msgspec.msgpack.encode(saved)))
        for name, value in context.items():
            called = f"{name}={value}" if isinstance(value, str) else name
            if PART in name or value == MISSING:
                continue
            if called in streams or len(streams) < MAX_STREAMS:
                stream = streams.setdefault(called, len(streams))
                sums[stream] = sums.get(stream, 0.0) + (1.0 if isinstance(value, str) else value)
                if not isinstance(value, str):
                    counts[stream] = counts.get(stream, 0) + 1
    assert made.streams == streams
    if contexts:
        assert (made.open[0].sums, made.open[0].counts) == (sums, counts)


@pytest.mark.parametrize("count", [0, 2])
def test_a_policy_that_gives_another_number_of_probabilities_is_told_so(count):
    state = State("uniform")
    state.policy.pmf = lambda context, ads: np.full(count, 0.5)
    with pytest.raises(ArithmeticError, match=f"{count} probabilities for 1 ads"):
        choose(state, at=0.0, event_id="e", request=Request(ads=(Ad("hats"),)))
