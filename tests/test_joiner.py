"""Rewards and silence, as scenarios that people can read: tests/scenarios/*.txt.

A line is a time, what happens, and what is answered. After each scenario the journal is folded again and must
give the same state.
"""

from collections import Counter
from pathlib import Path

import msgspec
import pytest
from conftest import Clock, drive, ids

from banditads.choosing import Request
from banditads.engine import Engine
from banditads.errors import Expired, Refused, Unknown
from banditads.events import Ad
from banditads.joiner import Joiner
from banditads.journal import connect
from banditads.replay import fold
from banditads.state import State

SCENARIOS = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


def step(engine, words):
    """What is answered to one line."""
    try:
        match words:
            case ["choose", event_id]:
                return engine.choose(Request(), event_id).event.event_id
            case ["reward", event_id, value]:
                return engine.reward(event_id, float(value)).status
            case ["tick"]:
                return "ticked" if engine.tick() else "nothing"
    except Refused as refused:
        return refused.code
    raise AssertionError(f"no such step: {words}")


@pytest.mark.parametrize("path", SCENARIOS, ids=lambda path: path.stem)
def test_scenario(path):
    clock, engine, wait = Clock(0.0), None, 600.0
    for number, line in enumerate(path.read_text().splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if words[0] == "wait":
            wait = float(words[1])
            engine = Engine(State("uniform", wait=wait), connect("memory:"), ids=ids(), clock=clock)
            engine.put_ads([Ad("a"), Ad("b")])
        elif words[0] == "expect":
            state = engine.state
            seen = {
                "choices": state.stats.total.choices,
                "rewards": state.stats.total.rewards,
                "sum": state.stats.total.reward_sum,
                "expired": state.stats.total.expired,
                "late": state.stats.late,
            }
            wanted = dict(zip(words[1::2], map(float, words[2::2]), strict=True))
            assert {name: seen[name] for name in wanted} == wanted, f"{path.name}:{number}"
        else:
            clock.now = float(words[0])
            words, _, answer = (" ".join(words[1:])).partition("->")
            said = step(engine, words.split())
            assert not answer or said == answer.strip(), f"{path.name}:{number}: {said}"

    assert fold(engine.journal.read(0), State("uniform", wait=wait)).digest() == engine.state.digest()


def test_a_choice_over_the_limit_gives_the_oldest_up(make_engine):
    engine = make_engine(max_open=2)
    learned = []
    engine.state.policy.learn = lambda *given: learned.append(given)
    for event_id in ("e1", "e2", "e3"):
        engine.choose(Request(), event_id)

    assert list(engine.state.joiner.open) == ["e2", "e3"]
    assert engine.state.joiner.given_up == 1
    assert learned == []
    with pytest.raises(Expired):
        engine.reward("e1", 1.0)
    assert learned == []


def test_a_settled_decision_over_the_limit_is_forgotten(make_engine):
    engine = make_engine(max_done=1)
    for event_id in ("e1", "e2"):
        engine.choose(Request(request_id=f"r-{event_id}"), event_id)
        engine.reward(event_id, 1.0)

    assert list(engine.state.joiner.done) == ["e2"]
    assert engine.state.joiner.requests == {"r-e2": "e2"}
    with pytest.raises(Unknown):
        engine.reward("e1", 1.0)


def test_an_old_id_of_ours_is_told_from_one_that_never_was(make_engine, clock):
    engine = make_engine(max_done=0)
    ours = engine.choose(Request()).event.event_id
    engine.reward(ours, 1.0)
    clock.now += 601

    with pytest.raises(Expired):
        engine.reward(ours, 1.0)
    with pytest.raises(Unknown):
        engine.reward(("B" if ours[0] == "A" else "A") + ours[1:], 1.0)


def test_it_counts_by_ad_what_waits(make_engine, clock):
    engine = make_engine(wait=200.0, max_open=15)
    for seed in range(20):
        drive(engine, clock, 15, seed=seed)
        engine.choose(Request(user_id=f"user-{seed}"))
        engine.erase(f"user-{seed - 1}")
        joiner, copy = engine.state.joiner, Joiner()
        copy.load(msgspec.msgpack.decode(msgspec.msgpack.encode(joiner.dump())))

        assert joiner.waiting == copy.waiting == Counter(each.choice.ad_id for each in joiner.open.values())
        assert joiner.waiting
