"""Erasing as people see it: a user comes over HTTP, and nothing is left of them."""

import signal
import subprocess
import time

from conftest import banditads

from banditads import signing

USER = "anna.lind@example.com"


def left(folder, key_file):
    """What `grep -r` finds of the user in a data directory."""
    pseudonym = signing.Pseudonyms(signing.load(key_file))(USER)
    words = ["-e", USER, "-e", pseudonym]
    return (
        subprocess.run(
            ["grep", "-r", "-a", "-c", *words, folder], capture_output=True, text=True, check=False
        ).returncode
        == 0
    )


def wait_until_gone(folder, key_file):
    end = time.monotonic() + 60
    while left(folder, key_file):
        assert time.monotonic() < end, "traces are left after a minute"
        time.sleep(0.1)


def others_choose(server):
    for number in range(30):
        assert server("GET", f"/choose?event_id=o{number}&page=p{number % 3}").status_code == 200


def others_click(server, numbers):
    for number in numbers:
        body = {"event_id": f"o{number}", "reward": float(number % 2)}
        assert server("POST", "/reward", body).status_code == 200


def predictions(server):
    return [server.data(f"/predict?page=p{number}&user_id={USER}") for number in range(3)]


def meet(server):
    """The user is told of, acts, is shown ads and clicks."""
    assert server("PUT", f"/users/{USER}", {"consent": True, "attributes": {"city": "Oslo"}}).ok
    assert server("POST", f"/users/{USER}/events", {"kind": "purchase", "item": "boot-7", "amount": 9.5}).ok
    for number in range(10):
        event_id = f"a{number}"
        assert server("GET", f"/choose?event_id={event_id}&page=p1&user_id={USER}").status_code == 200
        if number % 3:
            assert server("POST", "/reward", {"event_id": event_id, "reward": 1.0}).status_code == 200


def test_a_user_who_is_erased_leaves_nothing_and_the_model_is_as_if_they_had_never_come(start, tmp_path):
    for name in ("met", "twin"):
        (tmp_path / name).mkdir()
    server, twin = (start("--policy", "vw", folder=tmp_path / name / "data") for name in ("met", "twin"))
    for each in (server, twin):
        others_choose(each)
        others_click(each, range(10))
    meet(server)
    others_click(server, range(10, 20))
    others_click(twin, range(10, 20))
    key_file = tmp_path / "met" / "data.key"
    assert left(server.folder, key_file)
    assert predictions(server) != predictions(twin)

    assert server("DELETE", f"/users/{USER}").status_code == 200
    assert server("GET", f"/users/{USER}").json() == {"consent": False, "profile": None, "features": {}}
    assert server("POST", "/reward", {"event_id": "a0", "reward": 1.0}).status_code == 404
    wait_until_gone(server.folder, key_file)
    for _ in range(100):  # the pseudonym goes a moment before the new snapshot comes
        if list(server.folder.glob("*.snapshot")):
            break
        time.sleep(0.1)
    assert predictions(server) == predictions(twin)
    for each in (server, twin):
        others_click(each, range(20, 30))
    assert predictions(server) == predictions(twin)
    assert "equals a replay" in banditads("verify", server.folder, "--erased", USER).stdout

    code, said = server.end()
    assert code == 0
    assert USER not in said
    assert "1 users are erased" in said
    assert not left(server.folder, key_file)
    again = start(folder=server.folder)
    assert predictions(again) == predictions(twin)


def test_killed_while_it_erases_it_finishes_after_the_next_start(start, tmp_path):
    server = start()
    key_file = tmp_path / "data.key"
    for number in range(2000):
        server("GET", f"/choose?event_id=x{number}&page=p1&user_id={USER}")
    server("DELETE", f"/users/{USER}")
    for pause in (0.9, 1.3, 1.7):
        time.sleep(pause)
        server.end(signal.SIGKILL)
        server = start(folder=server.folder)
    wait_until_gone(server.folder, key_file)
    assert server.end()[0] == 0
    assert "0 places" in banditads("verify", server.folder, "--erased", USER).stdout
