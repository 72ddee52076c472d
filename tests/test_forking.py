"""Snapshots by a copy of the process: the same bytes, and whatever becomes of the copy, all is well."""

import fcntl
import logging
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import drive

from banditads import forking
from banditads.choosing import Request
from banditads.errors import Unavailable
from banditads.forking import NICE, PROCESSORS, Copy, stay_on_one_processor
from banditads.journal import connect
from banditads.snapshots import Snapshots
from banditads.state import State

KEY = b"k" * 32


def children():
    """Processes of ours that have not been waited for."""
    with open(f"/proc/self/task/{threading.get_native_id()}/children") as file:
        return file.read().split()


@pytest.fixture
def engine(make_engine, clock, tmp_path):
    made = make_engine("vw", connect(f"file:{tmp_path}"), snapshots=Snapshots(tmp_path, KEY))
    drive(made, clock, 60)
    yield made
    made.journal.close()


def saved(engine):
    return list(Snapshots(engine.snapshots.folder, KEY).load())


@pytest.mark.parametrize("policy", ["ensemble", "vw", "linucb", "logistic"])
def test_a_snapshot_is_the_state_byte_for_byte(make_engine, clock, tmp_path, policy):
    engine = make_engine(policy, connect(f"file:{tmp_path}"), snapshots=Snapshots(tmp_path, KEY))
    drive(engine, clock, 100)
    others = children()
    offset = engine.snapshot()
    assert saved(engine) == [(offset, engine.state.dump())]
    assert children() == others
    engine.journal.close()


def test_requests_go_on_while_a_snapshot_is_made_and_are_not_in_it(engine, monkeypatch, tmp_path):
    before, dump, go = engine.state.dump(), State.dump, tmp_path / "go"

    def slow(state):
        while not go.exists():
            time.sleep(0.01)
        return dump(state)

    monkeypatch.setattr(State, "dump", slow)
    thread = threading.Thread(target=engine.snapshot)
    thread.start()
    for number in range(20):
        engine.choose(Request(), f"meanwhile-{number}")
        engine.reward(f"meanwhile-{number}", 1.0)
    assert saved(engine) == []
    go.touch()
    thread.join(30)
    monkeypatch.undo()

    ((offset, state),) = saved(engine)
    assert state == before
    assert engine.state.applied >= offset + 40


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda state: os.kill(os.getpid(), signal.SIGKILL), "died"),
        (lambda state: time.sleep(60), "longer than 0.3 seconds"),
        (lambda state: int("no number"), "invalid literal"),
    ],
    ids=["dies", "hangs", "fails"],
)
def test_a_copy_that_dies_hangs_or_fails_leaves_the_snapshots_and_the_server_well(
    engine, monkeypatch, what, said
):
    engine.snapshot()
    engine.choose(Request(), "one more")
    others, before, files = children(), saved(engine), sorted(os.listdir(engine.snapshots.folder))
    with monkeypatch.context() as patch:
        patch.setattr(State, "dump", what)
        patch.setattr(forking, "SECONDS", 0.3)
        with pytest.raises(Unavailable, match=said):
            engine.snapshot()
    assert saved(engine) == before
    assert sorted(os.listdir(engine.snapshots.folder)) == files
    assert children() == others

    engine.reward("one more", 1.0)
    offset = engine.snapshot()
    assert saved(engine) == [(offset, engine.state.dump()), *before]


def test_a_copy_killed_while_it_writes_leaves_no_half_a_file(engine, monkeypatch):
    monkeypatch.setattr(Snapshots, "_read", lambda *given: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(Unavailable, match="died"):
        engine.snapshot()
    assert not [name for name in os.listdir(engine.snapshots.folder) if "snapshot" in name]


def test_where_the_process_cannot_be_copied_it_saves_by_itself_and_says_so(engine, monkeypatch, caplog):
    def no_memory():
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(os, "fork", no_memory)
    files = len(os.listdir("/proc/self/fd"))
    with caplog.at_level(logging.WARNING):
        offset = engine.snapshot()
    assert saved(engine) == [(offset, engine.state.dump())]
    assert "Cannot allocate memory" in caplog.text
    assert len(os.listdir("/proc/self/fd")) == files


def test_a_copy_holds_no_file_or_socket_of_its_parent(tmp_path):
    with open(tmp_path / "held", "w"):
        left = Copy(lambda: "\n".join(map(os.readlink, map("/proc/self/fd/{}".format, "0123"))).encode())
        assert b"pipe:" in left.result().splitlines()[3]
        names = Copy(lambda: " ".join(os.listdir("/proc/self/fd")).encode()).result().split()
    assert set(names) <= {b"0", b"1", b"2", b"3", b"4"}  # 4 reads the list


def test_a_copy_goes_behind_everybody_else_and_its_parent_does_not():
    def standing():
        return b"%d %d" % (os.nice(0), os.sched_getscheduler(0))

    before = standing()
    assert Copy(standing).result() == b"%d %d" % (min(19, os.nice(0) + NICE), os.SCHED_BATCH)
    assert standing() == before


def test_a_copy_gives_any_number_of_bytes():
    assert Copy(lambda: b"x" * 10**6).result() == b"x" * 10**6


PARENT = """
import atexit, fcntl, os, sys, time
from banditads.forking import NICE, PROCESSORS, Copy, stay_on_one_processor
atexit.register(print, "the end of the parent", flush=True)
lock = open(sys.argv[1], "w")
fcntl.flock(lock, fcntl.LOCK_EX)
def work():
    if sys.argv[2] == "hang":
        os.write(1, b"working\\n")
        time.sleep(60)
    sys.exit("meant for the parent")
try:
    Copy(work).result()
finally:
    os.write(1, b"finally\\n")
"""


def test_a_lock_is_free_and_the_copy_dead_once_the_parent_was_killed(tmp_path):
    path = tmp_path / "LOCK"
    command = [sys.executable, "-c", PARENT, str(path), "hang"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout.readline() == "working\n"
        parent.send_signal(signal.SIGKILL)
        parent.wait()
        with path.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert select.select([parent.stdout], [], [], 20)[0]  # its end: the copy, which holds it too, is gone
        assert parent.stdout.read() == ""


def test_a_copy_runs_nothing_that_was_meant_for_the_end_of_its_parent(tmp_path):
    command = [sys.executable, "-c", PARENT, str(tmp_path / "LOCK"), "exit"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert done.stdout.splitlines() == ["finally", "the end of the parent"]
    assert "Unavailable: meant for the parent" in done.stderr


def test_a_server_stays_on_one_processor_and_its_copies_on_the_others(start, tmp_path):
    kept = start("--policy", "uniform", folder=tmp_path / "kept")
    free = start("--policy", "uniform", "--no-one-processor", folder=tmp_path / "free")
    for server, most in ((kept, 1), (free, len(PROCESSORS))):
        threads = [int(each.name) for each in Path(f"/proc/{server.process.pid}/task").iterdir()]
        assert {len(os.sched_getaffinity(each)) for each in threads} == {most}
    try:
        stay_on_one_processor()
        assert len(os.sched_getaffinity(0)) == 1
        mine, where = os.sched_getaffinity(0), Copy(lambda: str(os.sched_getaffinity(0)).encode()).result()
        assert where.decode() == str(PROCESSORS - mine or PROCESSORS)
        assert os.sched_getaffinity(0) == mine
    finally:
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), PROCESSORS)
