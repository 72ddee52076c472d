"""Evaluations in the background end, stay, can be stopped, and disturb nobody."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest
from conftest import banditads

from banditads import forking, jobs
from banditads.errors import Invalid, TooMany, Unavailable, Unknown
from banditads.evaluation import Report
from banditads.jobs import MAX_KEPT, MAX_WAITING, Job, Jobs, Question
from banditads.selecting import Selection


def visits(server, n=40):
    for number in range(n):
        chosen = server("POST", "/choose", {"context": {"device": "ab"[number % 2]}}).json()
        server("POST", "/reward", {"event_id": chosen["event_id"], "reward": float(number % 3 == 0)})


def until(server, id, *statuses):
    for _ in range(600):
        said = server.data(f"/evaluations/{id}")
        if said["status"] in statuses:
            return said
        time.sleep(0.1)
    raise AssertionError(said)


def children(pid):
    """Processes that a process has begun, and what they were begun with."""
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            words = (path / "cmdline").read_bytes().split(b"\0")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent == pid and b"evaluate" in words:
            yield int(path.name)


def child(pid):
    for _ in range(200):
        if found := list(children(pid)):
            return found[0]
        time.sleep(0.05)
    raise AssertionError("no evaluation is running")


def test_a_server_evaluates_its_own_journal_as_the_command_does_and_remembers(start):
    server = start()
    visits(server)
    question = {"policies": ["uniform", "vw:epsilon=0.2"], "by": "device", "end_offset": 60, "seed": 3}
    asked = server("POST", "/evaluations", question).json()
    bad = server("POST", "/evaluations", {"policies": ["vw:epsilon=7"]}).json()
    done = until(server, asked["id"], "done", "failed")
    failed = until(server, bad["id"], "done", "failed")

    assert (asked["status"], asked["of"]) == ("waiting", 40)
    assert (done["status"], done["rounds"], done["error"]) == ("done", 40, "")
    assert failed["error"] == "option epsilon must be in [0, 1], not 7.0"
    assert failed["report"] is None
    arguments = ("--policy", "uniform", "--policy", "vw:epsilon=0.2", "--by", "device")
    said = banditads("evaluate", server.folder, *arguments, "--end-offset=60", "--seed=3", "--json").stdout
    report = msgspec.convert(done["report"], Report)
    assert report == msgspec.json.decode(said, type=list[Report])[0]
    assert 0 < report.results[0].rounds < 40
    assert sorted(report.segments) == ["a", "b"]

    server.end()
    again = start(folder=server.folder)
    assert again.data(f"/evaluations/{asked['id']}") == done
    assert [each["id"] for each in again.data("/evaluations")["evaluations"]] == [bad["id"], asked["id"]]
    assert again("DELETE", f"/evaluations/{asked['id']}").json()["status"] == "done"
    assert again("GET", f"/evaluations/{asked['id']}").status_code == 404
    assert again.end()[0] == 0
    assert len(list((server.folder / "evaluations").iterdir())) == 1


@pytest.fixture
def endless(monkeypatch):
    """Evaluations that do not end by themselves, in the server's own process group."""
    code = "import sys, time; print(7, flush=True); time.sleep(600)"
    monkeypatch.setattr(Jobs, "_command", lambda self, question: [jobs.sys.executable, "-c", code])


def wait_for(condition):
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError


def test_one_runs_the_others_wait_and_each_can_be_stopped(tmp_path, endless, caplog):
    kept = Jobs(tmp_path)
    first = kept.ask(Question(("uniform",)), 9)
    wait_for(lambda: kept.get(first.id).rounds == 7)
    waiting = [kept.ask(Question(("uniform",)), 9) for _ in range(MAX_WAITING)]
    process = kept._process

    with pytest.raises(TooMany):
        kept.ask(Question(("uniform",)), 9)
    assert [each.status for each in kept.all()] == ["waiting"] * MAX_WAITING + ["running"]
    for each in waiting:
        kept.drop(each.id)
    kept.drop(first.id)
    assert process.wait(5) == -signal.SIGKILL
    wait_for(lambda: not kept._runner.is_alive())
    assert kept.all() == []
    assert list((tmp_path / "evaluations").iterdir()) == []
    assert "failed" not in caplog.text
    with pytest.raises(Unknown):
        kept.drop(first.id)


def test_an_evaluation_leaves_the_servers_processor_alone(tmp_path, endless, monkeypatch):
    own, both = {min(forking.PROCESSORS)}, forking.PROCESSORS
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: own)
    kept = Jobs(tmp_path)
    id = kept.ask(Question(("uniform",)), 9).id
    wait_for(lambda: kept.get(id).rounds == 7)
    monkeypatch.undo()
    found = os.sched_getaffinity(kept._process.pid)
    kept.drop(id)

    assert found == (both - own or both)


def test_an_evaluation_ends_with_its_server_and_begins_anew_with_the_next(start):
    server = start()
    visits(server, 10)
    ids = [server("POST", "/evaluations", {"policies": ["vw"]}).json()["id"] for _ in range(6)]
    evaluation = child(server.process.pid)
    server.end(signal.SIGKILL)
    wait_for(lambda: not running(evaluation))

    again = start(folder=server.folder)
    for id in ids:
        assert until(again, id, "done", "failed")["status"] == "done"


def test_the_command_does_nothing_for_a_server_that_is_gone():
    assert banditads("evaluate", "random/men", "--policy=uniform", "--parent=1", code=1).stdout == ""


def test_a_process_ends_with_who_began_it():
    """Killed, so that it could not end its child itself."""
    child = (
        "from banditads import forking; forking.end_with({0}); print(0, flush=True); forking.time.sleep(60)"
    )
    code = (
        "import os, subprocess, sys, time\n"
        f"words = {child!r}.format(os.getpid())\n"
        "made = subprocess.Popen([sys.executable, '-c', words], stdout=subprocess.PIPE)\n"
        "made.stdout.readline()\n"
        "print(made.pid, flush=True)\n"
        "time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        made = int(parent.stdout.readline())
        assert running(made)
        parent.kill()
    wait_for(lambda: not running(made))


def running(pid):
    """Whether there is such a process, and not only what is left of it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_what_crashes_says_nothing_of_the_inside(tmp_path, monkeypatch, caplog):
    code = "raise MemoryError('at 0x7f')"
    monkeypatch.setattr(Jobs, "_command", lambda self, question: [jobs.sys.executable, "-c", code])
    kept = Jobs(tmp_path)
    id = kept.ask(Question(("uniform",)), 9).id
    wait_for(lambda: kept.get(id).status == "failed")

    assert kept.get(id).error == "something went wrong here; it has been logged"
    assert "MemoryError: at 0x7f" in caplog.text


def test_old_results_make_room_and_rubbish_stays_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(Jobs, "_start", lambda self: None)
    folder = tmp_path / "evaluations"
    folder.mkdir()
    for number in range(MAX_KEPT):
        job = Job(f"{number:016x}", Question(("uniform",)), float(number), "done")
        (folder / f"{job.id}.json").write_bytes(msgspec.json.encode(job))
    (folder / "x.json").write_bytes(b"{")
    (folder / "y.json").write_bytes(msgspec.json.encode(Job("../../z", Question(("uniform",)), 1.0)))
    kept = Jobs(tmp_path)
    assert len(kept.all()) == MAX_KEPT
    assert caplog.text.count("left alone") == 2

    new = kept.ask(Question(("uniform",)), 0)
    assert len(kept.all()) == MAX_KEPT
    assert kept.all()[0].id == new.id
    with pytest.raises(Unknown):
        kept.get(f"{0:016x}")
    assert len(list(folder.glob("0000*.json"))) == MAX_KEPT - 1  # the new one has a random name


def test_a_full_disk_refuses_and_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(Jobs, "_start", lambda self: None)
    kept = Jobs(tmp_path)

    def full(*args, **given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jobs, "write_durably", full)
    with pytest.raises(Unavailable, match="No space left"):
        kept.ask(Question(("uniform",)), 0)
    assert kept.all() == []


@pytest.mark.parametrize(
    ("policies", "field"),
    [
        ((), "policies"),
        (("uniform",) * 11, "policies"),
        (("uniform", "magic"), "policies.1"),
        (("vw:eps=1",), "policies.0"),
        (("vw:epsilon",), "policies.0"),
        (("vw:epsilon=" + "1" * 256,), "policies.0"),
        (("../vw",), "policies.0"),
        (("--json",), "policies.0"),
    ],
    ids=str,
)
def test_what_is_no_policy_is_refused_before_anything_begins(policies, field, tmp_path):
    kept = Jobs(tmp_path)
    with pytest.raises(Invalid) as refused:
        kept.ask(Question(policies), 0)

    assert refused.value.field == field
    assert kept.all() == []
    assert not (tmp_path / "evaluations").exists()


def test_no_word_of_a_question_is_taken_for_an_option(tmp_path):
    question = Question(("uniform",), Selection(by="--json", since=1.5))
    words = Jobs(tmp_path)._command(question)

    assert words[-4:-2] == ["--since=1.5", "--by=--json"]
    assert words[-2:] == ["--", str(tmp_path)]
