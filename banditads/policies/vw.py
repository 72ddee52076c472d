"""Vowpal Wabbit: a linear model of reward over visitor x ad features, and a choice of exploration rules.

The default is SquareCB: it learns by plain regression, so no logged propensity can ruin it, and it stays
random, so feedback may come late. Weights belong to features, not to ads: a new ad starts with what is
known of similar ones. VW is given hashed feature lists, never text, so no name or value from outside can
be read as a label, a namespace or another example.

Sources: Foster, Rakhlin 2020 (arXiv:2002.04926, SquareCB); Foster et al. 2018 (arXiv:1803.01088, RegCB);
Bietti, Agarwal, Langford 2018 (arXiv:1802.04064: epsilon-greedy with mtr, ips and dm compared).
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from math import asinh, exp, isfinite, nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

import numpy as np
import pylibvw
from vowpalwabbit import Workspace

from ..errors import Misconfigured
from ..events import FEW, Ad, Features, Saved, apart
from ..features import escape, tokens
from ..scaling import Scale
from . import Floats, check_ranges

LIBRARIES = ("vowpalwabbit",)
EXAMPLES: tuple[dict[str, Any], ...] = (
    {"exploration": "epsilon", "epsilon": 0.2},
    {"exploration": "epsilon", "cb_type": "ips", "interactions": ["UUA"]},
    {"exploration": "epsilon", "cb_type": "dm", "power_t": 0.3},
    {"exploration": "softmax", "lambda_": 20.0, "learning_rate": 0.2},
    {"exploration": "softmax", "cb_type": "ips", "min_propensity": 0.01},
    {"exploration": "softmax", "cb_type": "dm", "kept_ads": 2},
    {"exploration": "regcb", "mellowness": 0.001},
    {"exploration": "regcbopt", "mellowness": 0.0003, "bits": 20},
    {"exploration": "squarecb", "gamma_scale": 10.0, "interactions": ["UA", "UUA"]},
    {"exploration": "epsilon", "trust": 1.0},
)

EXPLORATIONS = {
    "squarecb": "--squarecb --gamma_scale {gamma_scale!r}",
    "epsilon": "--epsilon {epsilon!r}",
    "softmax": "--softmax --lambda {lambda_!r}",
    "regcb": "--regcb --mellowness {mellowness!r}",
    "regcbopt": "--regcbopt --mellowness {mellowness!r}",
}
# VW 9.11.9 goes on bit for bit after a load with all that is here. With --l1, --l2, --cb_type dr, --bag,
# --cover, --rnd and --sgd it does not: they are not offered.
CB_TYPES = ("mtr", "ips", "dm")
BY_PROPENSITY = ("epsilon", "softmax")  # the others regress unweighted: VW has mtr only for them
CROSSES = ("UA", "UU", "AA", "UUA", "UAA", "UUU", "AAA")
# cost = -reward: an ad that nobody saw looks like one that nobody clicks, and with cost = 1 - reward like one
# that everybody clicks. Neither earned clearly more over 80 ads, 5,000 visits, 24 seeds, where the noise is
# about .1: 2.20 and 2.09 times uniform for "squarecb", 2.16 and 2.28 for "epsilon". The bounds must fit it.
ALWAYS = "--cb_explore_adf --hash all --cb_min_cost -1 --cb_max_cost 0"
EACH_TIME = "--quiet --preserve_performance_counters"  # not kept in a model file
PLACES = 2**16  # scales that are kept; numbers whose names meet in one place share theirs
VISITOR = ord("U")  # namespace of the visitor's features
ADVICE = ord("R")  # namespace of what a recommender says of an ad; crossed with nothing
STEADY = 100.0  # sum of squared gradients that its weight begins with, if it is trusted: no click shakes it
NOTHING: tuple[Features, Sequence[Ad], list[Any]] = ({}, (), [])
SILENCE = nullcontext()  # where nothing is said of ads: 2 us less than saying it
CB_LABEL = pylibvw.vw.lContextualBandit


class Policy:
    """Contextual bandit by Vowpal Wabbit.

    Parameters
    ----------
    exploration
        "squarecb": the further an ad's estimate is behind the best, the less. "epsilon": now and then any
        ad. "softmax": in proportion to exp(lambda x estimate). "regcb": evenly among all ads that may still
        be the best. "regcbopt": the one that may be the best of all; deterministic, so it repeats itself
        until feedback comes.
    cb_type
        How "epsilon" and "softmax" learn: "mtr", "ips" or "dm"; for the others it is "mtr".
    epsilon
        Share of choices that "epsilon" spreads evenly, in [0, 1].
    gamma_scale
        How greedy "squarecb" is; grows with the square root of the number of rewards by itself.
    mellowness
        How much doubt "regcb" and "regcbopt" allow: more explores more.
    lambda_
        How greedy "softmax" is, per unit of reward.
    learning_rate, power_t
        Step size, and how fast a feature's steps shrink with use, in [0, 1].
    bits
        The model has 2 ** bits weights.
    interactions
        What is crossed with what, U for visitor and A for ad: any of UA, UU, AA, UUA, UAA, UUU, AAA. Time
        grows with the product of the numbers of features.
    min_propensity
        "epsilon" and "softmax" learn from a lower propensity as if it were this one: no weight is above its
        inverse. Over 80 ads, "epsilon" earned 2.1 times uniform with 0.1 and 1.7 with 0.001.
    trust
        What a recommender's word is worth from the start, in [0, 10], if the policy is told it (the setting
        `advise`): with 1 an ad is expected to earn what the recommender says, until rewards teach better.
    kept_ads
        Ads kept ready in VW's form, 31 KB each; others cost 25 us more at every request.

    >>> policy, ads = Policy(exploration="epsilon", epsilon=0.1), [Ad("shoes"), Ad("hats")]
    >>> policy.learn({"device": "mobile"}, ads, pick=1, reward=1.0, propensity=0.5)
    >>> policy.pmf({"device": "mobile"}, ads).round(3)
    array([0.05, 0.95])
    """

    _asked: tuple[Features, Sequence[Ad], list[Any]]  # the last question; its examples hold VW's estimates
    _vw: Any

    def __init__(
        self,
        *,
        exploration: str = "squarecb",
        cb_type: str = "mtr",
        epsilon: float = 0.05,
        gamma_scale: float = 200.0,
        mellowness: float = 1e-4,
        lambda_: float = 50.0,
        learning_rate: float = 0.3,
        power_t: float = 0.5,
        bits: int = 18,
        interactions: Sequence[str] = ("UA",),
        min_propensity: float = 0.1,
        trust: float = 0.0,
        kept_ads: int = 1000,
    ) -> None:
        check_ranges(
            ("epsilon", epsilon, 0.0, 1.0),
            ("gamma_scale", gamma_scale, 1e-3, 1e6),
            ("mellowness", mellowness, 1e-9, 1e3),
            ("lambda_", lambda_, 0.0, 1e3),
            ("learning_rate", learning_rate, 1e-6, 100.0),
            ("power_t", power_t, 0.0, 1.0),
            ("min_propensity", min_propensity, 1e-6, 1.0),
            ("trust", trust, 0.0, 10.0),
            ("bits", bits, 8, 26),
            ("kept_ads", kept_ads, 1, 10**6),
        )
        if exploration not in [*EXPLORATIONS]:
            raise Misconfigured(f"option exploration must be one of {[*EXPLORATIONS]}, not {exploration!r}")
        if cb_type not in (CB_TYPES if exploration in BY_PROPENSITY else ("mtr",)):
            raise Misconfigured(f"option cb_type cannot be {cb_type!r} with exploration {exploration!r}")
        if not isinstance(interactions, list | tuple) or not all(word in CROSSES for word in interactions):
            raise Misconfigured(f"option interactions must be a list of some of {CROSSES}")
        explore = EXPLORATIONS[exploration].format(
            epsilon=epsilon, gamma_scale=gamma_scale, mellowness=mellowness, lambda_=lambda_
        )
        step = f"--cb_type {cb_type} -l {learning_rate!r} --power_t {power_t!r} -b {bits}"
        crosses = [f"--interactions {word}" for word in CROSSES if word in interactions]
        self.command = " ".join([ALWAYS, explore, step, *crosses])  # our own words, and numbers
        # 1: where it regresses unweighted, VW ignores the propensity, except of the last ad in the list.
        self.least = min_propensity if exploration in BY_PROPENSITY else 1.0
        # There VW learns from the ad that was shown and counts the others: a fifth of the work at 100 ads.
        self.shown_only = exploration in BY_PROPENSITY and cb_type == "mtr"
        self.kept_ads = kept_ads
        self.learned = 0  # rewards
        self.scales: dict[int, Scale] = {}  # of the numbers in contexts, by hashed name
        self._start(Workspace(f"{self.command} {EACH_TIME}"))
        if trust:
            place = self._advice // self._vw.get_stride()
            self._vw.set_weight(place, 0, -trust)  # of costs
            self._vw.set_weight(place, 1, STEADY)

    def pmf(self, context: Features, ads: Sequence[Ad]) -> Floats:
        """VW's distribution over the ads, shape (n_ads,)."""
        kept = self._predicted(context, ads)
        scores = self._visitor.get_action_scores()
        total = sum(scores)  # 1 in float32 only
        # An estimate that is not finite makes all of them so, by the constant they share, and VW explores on.
        if not isfinite(kept[0].get_partial_prediction()):
            total = nan
        if len(scores) <= FEW:
            return np.array([score / total for score in scores])
        return np.frombuffer(struct.pack(f"={len(scores)}d", *scores)) / total  # half of numpy's time

    def expected(self, context: Features, ads: Sequence[Ad], pick: int) -> float | None:
        """VW's estimate, within the range of rewards."""
        asked, among, kept = self._asked
        if asked is not context or among is not ads:
            kept = self._predicted(context, ads)
        cost = kept[pick].get_partial_prediction()
        return min(1.0, max(0.0, -cost)) if isfinite(cost) else None

    def estimates(self, context: Features, ads: Sequence[Ad]) -> list[float]:
        """VW's estimate of each ad, as it is: not held within the range of rewards, perhaps not finite."""
        return [-example.get_partial_prediction() for example in self._predicted(context, ads)]

    def learn(
        self, context: Features, ads: Sequence[Ad], pick: int, reward: float, propensity: float
    ) -> None:
        """One step of VW towards the cost of the ad that was picked."""
        self._asked = NOTHING
        for name, value in context.items():
            if not isinstance(value, str):
                place = _place(name)
                self.scales[place] = self.scales.get(place, Scale()).after(value)
        label = f"0:{-float(reward)!r}:{float(max(propensity, self.least))!r}"
        plain, said = apart(ads)
        others = self._blanks(len(ads)) if self.shown_only else self._all_kept(plain)
        examples = [self._shared(context), *others]
        # Not the kept one: a label cannot be taken off again.
        examples[1 + pick] = self._ad(plain[pick], label)
        with self._told(examples[1:], said) if said else SILENCE:
            self._vw.learn_multi(examples)
        self.learned += 1

    def dump(self) -> Saved:
        """The command line, the number of rewards, the scales of numbers, and VW's model file."""
        with TemporaryDirectory() as private:
            file = Path(private, "model")
            self._vw.save(file)
            return [self.command, self.learned, list(self.scales.items()), file.read_bytes()]

    def load(self, saved: Saved) -> None:
        """The inverse of `dump`. VW does what a model file says: authenticate it before it comes here."""
        command, self.learned, scales, model = saved
        if command != self.command:  # the file's options would silently win over ours
            raise Misconfigured(f"the saved model has the options {command!r}, not {self.command!r}")
        self.scales = {place: Scale(*scale) for place, scale in scales}
        with TemporaryDirectory() as private:
            file = Path(private, "model")
            file.write_bytes(model)
            self._start(Workspace(arg_list=["-i", str(file), *EACH_TIME.split()]))

    def describe(self) -> dict[str, Any]:
        """VW's command line, and how much it learned."""
        return {
            "command": self.command,
            "learned": self.learned,
            "kept_ads": len(self._examples),
            "scales": len(self.scales),
        }

    def _predicted(self, context: Features, ads: Sequence[Ad]) -> list[Any]:
        """The examples of the ads, with VW's estimates in them."""
        self._asked = NOTHING  # should it fail
        plain, said = apart(ads)
        shared, kept = self._shared(context), self._all_kept(plain)
        with self._told(kept, said) if said else SILENCE:
            self._vw.predict_multi([shared, *kept])
        self._asked = context, ads, kept
        return kept

    def _start(self, workspace: Any) -> None:
        self._examples: OrderedDict[str, tuple[Ad, Any]] = OrderedDict()  # by id; least recently used first
        self._asked = NOTHING
        self._slate: tuple[Sequence[Ad], list[Any]] = (), []  # the last long one, and its examples
        self._empty: list[Any] = []  # examples without a feature
        self._vw = workspace
        self._hashes = {namespace: workspace.hash_space(namespace) for namespace in "UAR"}
        self._visitor = self._example("shared", "U", [])
        named = self._example("", "R", [("recommended", 1.0)])
        self._advice = named.feature(ADVICE, 0)  # place of its weight

    def _shared(self, context: Features) -> Any:
        """The one example of the visitor, made anew: half the time of another one."""
        visitor = self._visitor
        self._vw.unsetup_example(visitor)
        visitor.erase_namespace(VISITOR)
        visitor.push_feature_list(self._vw, VISITOR, self._hashes["U"], self._scaled(context))
        self._vw.setup_example(visitor)
        return visitor

    def _ad(self, ad: Ad, label: str = "") -> Any:
        # No feature can be called "=...": names are not empty, and `tokens` escapes what they contain.
        # Numbers are compressed: what 1e6 does to `regcb` leaves it without a probability to give.
        named = ((name, value if "=" in name else asinh(value)) for name, value in tokens(ad.features))
        return self._example(label, "A", [("=" + ad.id, 1.0), *named])

    def _scaled(self, context: Features) -> list[tuple[str, float]]:
        """Tokens; a number becomes two: that it is there, and how far it is from its mean."""
        there, scaled = [], []
        for name, value in context.items():
            token = escape(name) if "=" in name or "%" in name else name
            if isinstance(value, str):
                there.append((f"{token}={value}", 1.0))
            else:
                there.append((token, 1.0))
                if scale := self.scales.get(_place(name)):
                    scaled.append((token + "=", scale.of(value)))  # no category is called so: none is empty
        return there + scaled

    def _all_kept(self, ads: Sequence[Ad]) -> list[Any]:
        """The example of each ad; at once for a tuple that was asked for last time."""
        if ads is self._slate[0]:
            return self._slate[1]
        kept = [*map(self._kept, ads)]
        if isinstance(ads, tuple) and len(ads) > 2:  # a pair is what the state asks for after each step
            self._slate = ads, kept
        return kept

    @contextmanager
    def _told(self, examples: list[Any], said: Sequence[float]) -> Iterator[None]:
        """Add what is said of each ad, and take it away again: .3 us an ad, a new example takes 25."""
        for example, odds in zip(examples, said, strict=False):
            example.push_hashed_feature(ADVICE, self._advice, 1 / (1 + exp(-odds)))
        try:
            yield
        finally:  # examples are kept, and would say it twice the next time
            for example, _ in zip(examples, said, strict=False):
                example.pop_feature(ADVICE)

    def _blanks(self, n_ads: int) -> list[Any]:
        while len(self._empty) < n_ads:  # no example may stand twice in a list
            self._empty.append(self._example("", "A", []))
        return self._empty[:n_ads]

    def _kept(self, ad: Ad) -> Any:
        kept = self._examples.get(ad.id)
        if kept is None or (kept[0] is not ad and kept[0].features != ad.features):
            kept = self._examples[ad.id] = ad, self._ad(ad)
            if len(self._examples) > self.kept_ads:
                self._examples.popitem(last=False)
        self._examples.move_to_end(ad.id)
        return kept[1]

    def _example(self, label: str, namespace: str, features: list[tuple[str, float]]) -> Any:
        # Made this way, an example is freed with its Python object. Those of VW's parser must be "finished",
        # which counts them in the model file: a prediction would change what `dump` gives.
        example = pylibvw.example(self._vw, CB_LABEL)
        if label:
            example.set_label_string(self._vw, label, CB_LABEL)
        return self._filled(example, namespace, features)

    def _filled(self, example: Any, namespace: str, features: list[tuple[str, float]]) -> Any:
        example.ensure_namespace_exists(ord(namespace))
        if namespace == "A":
            example.ensure_namespace_exists(ADVICE)
        example.push_feature_list(self._vw, ord(namespace), self._hashes[namespace], features)
        self._vw.setup_example(example)
        return example


def _place(name: str) -> int:
    return crc32(name.encode()) % PLACES
