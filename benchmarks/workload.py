"""What every contestant of `serving.py` is asked to do in process, and how their cost is taken.

A visitor has 12 words and 3 numbers, an ad 6 words and 2 numbers. A contestant is given some visitors, makes
itself ready (its request bodies, the choices whose rewards it will get) and hands back what is to be timed.
Contestants take turns in slices of some milliseconds, so whatever else the machine does hits all of them
alike; what is compared is always two slices of one turn.
"""

from __future__ import annotations

import gc
import io
import json
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from tempfile import TemporaryDirectory
from typing import Any

import pylibvw
from vowpalwabbit import Workspace

from banditads import api, policies
from banditads.choosing import Request
from banditads.columns import ALL
from banditads.engine import Engine
from banditads.events import Ad
from banditads.features import clean
from banditads.journal import connect
from banditads.signing import EventIds
from banditads.state import State

Context = dict[str, Any]
Contestant = Callable[[Sequence[Context]], Callable[[], object]]
Costs = dict[Any, dict[int, float]]  # contestant -> turn -> microseconds of CPU per request

EPSILON: dict[str, Any] = {"exploration": "epsilon", "epsilon": 0.1}  # learns by mtr; 2^18 weights
VW = "--cb_explore_adf --cb_type mtr --epsilon 0.1 -b 18 -q UA --quiet"  # the same by hand
CB_LABEL = pylibvw.vw.lContextualBandit


def contexts(count: int, seed: int = 0) -> list[Context]:
    """Visitors: 15 features each."""
    dice = random.Random(seed)
    return [
        {f"c{n}": f"w{dice.randrange(30)}" for n in range(12)} | {name: dice.random() for name in "xyz"}
        for _ in range(count)
    ]


def ads(count: int, seed: int = 0) -> list[Ad]:
    """Ads: 8 features each."""
    dice = random.Random(seed)
    return [
        Ad(
            f"ad-{number:06d}",
            {"age": float(number % 7)}
            | {f"f{n}": f"v{dice.randrange(20)}" for n in range(6)}
            | {"price": float(number % 50)},
        )
        for number in range(count)
    ]


class Ours:
    """An engine with a catalog and a real journal, behind its whole WSGI application."""

    def __init__(self, engine: Engine, application: Callable[..., Any]) -> None:
        self.engine, self.application = engine, application

    def ask(self, path: str, bodies: Sequence[bytes]) -> Callable[[], list[bytes]]:
        """Post these, one after the other. Anything but 200 raises."""
        environs = [_environ(path, body) for body in bodies]
        application = self.application

        def start(status: str, headers: object, error: object = None) -> None:
            if status != "200 OK":
                raise AssertionError(status)

        return lambda: [b"".join(application(environ, start)) for environ in environs]

    def choose(self, visitors: Sequence[Context]) -> Callable[[], list[bytes]]:
        """POST /choose."""
        return self.ask("/choose", [json.dumps({"context": each}).encode() for each in visitors])

    def reward(self, visitors: Sequence[Context]) -> Callable[[], list[bytes]]:
        """POST /reward, for choices made before."""
        ids = [json.loads(reply)["event_id"] for reply in self.choose(visitors)()]
        return self.ask("/reward", [json.dumps({"event_id": each, "reward": 1.0}).encode() for each in ids])


def _environ(path: str, body: bytes) -> dict[str, Any]:
    return {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": "",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "127.0.0.1:8000",
        "HTTP_ACCEPT": "*/*",
        "CONTENT_TYPE": "application/json",
        "CONTENT_LENGTH": str(len(body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }


@contextmanager
def ours(
    count: int,
    options: dict[str, Any] = EPSILON,
    *,
    policy: str = "vw",
    silence: str = "wait",
    journal: str = "file",
    build: Callable[[Engine], Callable[..., Any]] = api.build,
) -> Iterator[Ours]:
    """So many ads behind `build`, `journal` "file" (fsync everysec) or "memory".

    Its first choices are behind it: in each of those every feature is looked at, for some 40 us, and from
    then on in one of 16.
    """
    with TemporaryDirectory() as folder:
        address = connect(f"file:{folder}", fsync="everysec") if journal == "file" else connect("memory:")
        engine = Engine(State(policy, options, silence=silence), address, ids=EventIds(b"k" * 32))
        engine.put_ads(ads(count))
        for context in contexts(ALL):
            engine.choose(Request(clean(context)))
        yield Ours(engine, build(engine))
        engine.journal.close()


def update(count: int, options: dict[str, Any] = EPSILON) -> Contestant:
    """What a reward teaches, apart from the request around it."""
    policy, among = policies.make("vw", **options), tuple(ads(count))
    dice = random.Random(0)

    def contestant(visitors: Sequence[Context]) -> Callable[[], object]:
        rounds = [(each, dice.randrange(count)) for each in visitors]
        return lambda: [policy.learn(each, among, pick, 1.0, 0.5) for each, pick in rounds]

    return contestant


class RawVW:
    """VW by hand, as text and as examples that were parsed once and kept."""

    def __init__(self, count: int) -> None:
        self.ads = ads(count)
        self.vw = Workspace(VW)
        self.lines = [_ad_line(ad) for ad in self.ads]
        self.hashes = {namespace: self.vw.hash_space(namespace) for namespace in "UA"}
        self.kept = [self._example("", "A", _pairs(ad)) for ad in self.ads]
        self.dice = random.Random(0)

    def _example(self, label: str, namespace: str, features: list[tuple[str, float]]) -> Any:
        example = pylibvw.example(self.vw, CB_LABEL)
        if label:
            example.set_label_string(self.vw, label, CB_LABEL)
        example.ensure_namespace_exists(ord(namespace))
        example.push_feature_list(self.vw, ord(namespace), self.hashes[namespace], features)
        self.vw.setup_example(example)
        return example

    def _shared(self, visitor: Context) -> Any:
        features = [
            (f"{name}={value}", 1.0) if isinstance(value, str) else (name, value)
            for name, value in visitor.items()
        ]
        return self._example("shared", "U", features)

    def predict_text(self, visitors: Sequence[Context]) -> Callable[[], object]:
        """`Workspace.predict(text)`, the lines of the ads kept."""
        predict, lines = self.vw.predict, self.lines
        return lambda: [predict("\n".join([_shared_line(each), *lines])) for each in visitors]

    def predict_dicts(self, visitors: Sequence[Context]) -> Callable[[], object]:
        """`Workspace.predict(text)`, every line made from its dict: what a tutorial does."""
        predict = self.vw.predict
        return lambda: [
            predict("\n".join([_shared_line(each), *map(_ad_line, self.ads)])) for each in visitors
        ]

    def alone(self, visitors: Sequence[Context]) -> Callable[[], object]:
        """Ads parsed once and kept, the visitor parsed each time, and the scores fetched."""

        def predict(visitor: Context) -> list[float]:
            shared = self._shared(visitor)
            self.vw.predict_multi([shared, *self.kept])
            return shared.get_action_scores()

        return lambda: [predict(each) for each in visitors]

    def learner(self, visitors: Sequence[Context]) -> Callable[[], object]:
        """The learner and nothing else: all examples parsed before."""
        parsed = [[self._shared(each), *self.kept] for each in visitors]
        return lambda: [self.vw.predict_multi(each) for each in parsed]

    def learn_text(self, visitors: Sequence[Context]) -> Callable[[], object]:
        """`Workspace.learn(text)`, the lines of the ads kept."""
        picks = [self.dice.randrange(len(self.ads)) for _ in visitors]

        def learn(visitor: Context, pick: int) -> None:
            lines = [_shared_line(visitor), *self.lines]
            lines[1 + pick] = "0:-1:0.5 " + lines[1 + pick]
            self.vw.learn("\n".join(lines))

        return lambda: [learn(*each) for each in zip(visitors, picks, strict=True)]

    def learn_kept(self, visitors: Sequence[Context]) -> Callable[[], object]:
        """`learn_multi` on kept ads, the visitor and the labelled ad parsed each time."""
        picks = [self.dice.randrange(len(self.ads)) for _ in visitors]

        def learn(visitor: Context, pick: int) -> None:
            examples = [self._shared(visitor), *self.kept]
            examples[1 + pick] = self._example("0:-1:0.5", "A", _pairs(self.ads[pick]))
            self.vw.learn_multi(examples)

        return lambda: [learn(*each) for each in zip(visitors, picks, strict=True)]


def _pairs(ad: Ad) -> list[tuple[str, float]]:
    features = {"id": ad.id, **ad.features}
    return [
        (f"{name}={value}", 1.0) if isinstance(value, str) else (name, value)
        for name, value in features.items()
    ]


def _line(features: dict[str, Any]) -> str:
    return " ".join(
        f"{name}={value}" if isinstance(value, str) else f"{name}:{value}" for name, value in features.items()
    )


def _shared_line(visitor: Context) -> str:
    return "shared |U " + _line(visitor)


def _ad_line(ad: Ad) -> str:
    return f"|A id={ad.id} {_line(ad.features)}"


def race(contestants: dict[Any, Contestant], turns: int, budget: float = 0.008) -> Costs:
    """Every contestant's cost in every turn: user and system time of the whole process.

    `budget` is seconds of CPU per slice. One that needs ten times as much for a single request is asked in
    every sixth turn only. A slice begins with a tenth of it that is not counted: whoever ran before has
    emptied the caches, and a server that is busy does not meet each request with empty ones.
    """
    visitors = contexts(4000)
    pace = {name: _pace(contestant, visitors, budget) for name, contestant in contestants.items()}
    costs: Costs = {name: {} for name in contestants}
    order, dice = [*contestants], random.Random(0)
    for turn in range(turns):
        dice.shuffle(order)
        gc.collect()
        gc.freeze()  # what others left behind must not be searched at our expense
        for name in order:
            size, every = pace[name]
            if turn % every:
                continue
            warm = ceil(size / 10) if size > 1 else 0
            first = dice.randrange(len(visitors) - size - warm)
            between = first + warm
            contestants[name](visitors[first:between])()
            took = _seconds(contestants[name], visitors[between : between + size])
            costs[name][turn] = took / size * 1e6
    gc.unfreeze()
    return costs


def _seconds(contestant: Contestant, visitors: Sequence[Context]) -> float:
    run = contestant(visitors)
    began = time.process_time_ns()
    run()
    return (time.process_time_ns() - began) / 1e9


def _pace(contestant: Contestant, visitors: Sequence[Context], budget: float) -> tuple[int, int]:
    """(requests per slice, turns from one slice to the next)."""
    took = _seconds(contestant, visitors[:1])  # pays for what is kept from then on
    for _ in range(5):
        if took > 10 * budget:
            break
        took = min(took, _seconds(contestant, visitors[:1]))
    took = min(took, _seconds(contestant, visitors[:1]))
    return max(1, min(200, int(budget / took))), 1 if took < 10 * budget else 6
