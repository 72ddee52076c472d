"""The pieces of benchmarks/serving.py do what its table says they do. How fast they are is no test."""

from __future__ import annotations

import json
import shutil
import sys
import urllib.error
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import falcon_routes
import load
import serving
import workload

from banditads import api

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
