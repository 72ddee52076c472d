"""A few at once, the others in the order in which they came; nobody is forgotten."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from test_api import Site

from banditads import keys, server
from banditads.settings import Settings
from banditads.turns import ABREAST, Turns


def wait_for(what):
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end
        time.sleep(0.001)


@pytest.mark.parametrize("abreast", [1, 3])
def test_whoever_came_first_is_first(abreast):
    turns, order, crew = Turns(abreast), [], []

    def enter(number):
        with turns:
            order.append(number)

    for _ in range(abreast):
        turns.__enter__()
    for number in range(20):
        crew.append(threading.Thread(target=enter, args=(number,)))
        crew[-1].start()
        wait_for(lambda: len(turns.waiting) == len(crew))
    assert not order

    turns.__exit__()  # each lets the next one in
    for thread in crew:
        thread.join(10)
    assert order == list(range(20))
    assert turns.free == 1


def test_no_more_than_so_many_are_inside_and_in_the_end_nobody():
    turns, inside, most, done = Turns(3), set(), [], []

    def work(number):
        with turns:
            inside.add(number)
            most.append(len(inside))
            time.sleep(0.0001)
            inside.discard(number)
            done.append(number)

    with ThreadPoolExecutor(16) as crew:
        list(crew.map(work, range(2000)))
    assert sorted(done) == list(range(2000))
    assert max(most) == 3
    assert turns.free == 3
    assert not turns.waiting


def test_whoever_fails_inside_lets_the_next_one_in():
    turns = Turns(1)
    with pytest.raises(ZeroDivisionError), turns:
        1 / 0  # noqa: B018
    assert turns.free == 1


def test_a_place_that_is_given_to_somebody_who_waits_cannot_be_taken_by_whoever_comes():
    turns, entered = Turns(1), threading.Event()
    turns.__enter__()
    late = threading.Thread(target=lambda: (turns.__enter__(), entered.set()))
    late.start()
    wait_for(lambda: turns.waiting)
    turns.__exit__()
    assert turns.free == 0  # though it may not have woken yet
    assert entered.wait(10)
    turns.__exit__()
    assert turns.free == 1


class Full:
    """Turns that nobody gets, and who wanted one."""

    def __init__(self):
        self.wanted = 0

    def __enter__(self):
        self.wanted += 1
        raise RuntimeError("full")

    def __exit__(self, *error):
        pass


@pytest.mark.parametrize(
    ("method", "url", "body"),
    [
        ("GET", "/choose", None),
        ("POST", "/choose", {}),
        ("GET", "/predict", None),
        ("POST", "/predict", {}),
        ("POST", "/reward", {"event_id": "e", "reward": 1}),
        ("GET", "/ads", None),
        ("GET", "/impression/e", None),
        ("POST", "/impression/e", None),
        ("POST", "/click/e", None),
        ("POST", "/conversion/e?value=1", None),
        ("POST", "/conversion", {"event_id": "e", "value": 1}),
        ("POST", "/dwell/e?seconds=1", None),
    ],
)
def test_what_is_asked_for_often_waits_its_turn(make_engine, method, url, body):
    full = Full()
    assert Site(make_engine(), turns=full)(method, url, body).status == 500
    assert full.wanted == 1


@pytest.mark.parametrize(
    ("method", "url"),
    [("GET", "/healthz"), ("POST", "/snapshot"), ("GET", "/click/e"), ("GET", "/conversion/e?value=1")],
)
def test_what_is_seldom_or_may_wait_for_a_disk_takes_nobodys_turn(make_engine, method, url):
    assert Site(make_engine(), turns=Full())(method, url).status != 500


def test_who_is_refused_at_the_door_or_sends_what_cannot_be_read_takes_nobodys_turn(make_engine, tmp_path):
    full = Full()
    file = tmp_path / "keys"
    keys.create(file, ("choose",))
    assert Site(make_engine(), keys.Keys(file), turns=full)("GET", "/choose").status == 401
    assert Site(make_engine(), turns=full)("POST", "/choose", b"{").status == 400
    assert not full.wanted


def test_a_server_has_turns(monkeypatch, tmp_path):
    class Enough(Exception):
        pass

    def build(*given, turns, **others):
        raise Enough(turns)

    monkeypatch.setattr(server, "_announce", lambda *given: None)
    monkeypatch.setattr(server, "raise_limits", lambda: None)
    monkeypatch.setattr(server._Housekeeper, "start", lambda self: None)
    monkeypatch.setattr(server.api, "build", build)
    settings = Settings(data_dir=str(tmp_path / "data"), port=0, one_processor=False)
    with pytest.raises(Enough) as caught:
        server.serve(settings)
    (turns,) = caught.value.args
    assert isinstance(turns, Turns)
    assert turns.free == ABREAST
