"""On Ray the numbers are those of one process, whatever happens to workers. Runs where Ray is installed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import banditads

from banditads import cluster
from banditads.errors import Misconfigured

COMMAND = ("evaluate", "random/men", "--policy", "linucb", "--policy", "vw", "--limit", "800", "--json")


def workers(ancestor):
    """Processes below this one that are busy with a unit: Ray names them after it."""
    parents, busy = {}, []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(path.name)] = int((path / "stat").read_text().rpartition(")")[2].split()[1])
            if (path / "cmdline").read_bytes().startswith(b"ray::follow_log"):
                busy.append(int(path.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    for pid in busy:
        above = pid
        while above and above != ancestor:
            above = parents.get(above, 0)
        if above:
            yield pid


def test_a_killed_worker_changes_nothing(tmp_path):
    pytest.importorskip("ray")
    expected = banditads(*COMMAND).stdout
    command = [sys.executable, "-m", "banditads", *COMMAND, "--ray", "local"]
    said, errors = tmp_path / "said", tmp_path / "errors"  # nobody reads a pipe meanwhile
    with (
        said.open("w") as out,
        errors.open("w") as err,
        subprocess.Popen(command, stdout=out, stderr=err) as process,
    ):
        killed = set()
        end = time.monotonic() + 60
        while not killed and process.poll() is None and time.monotonic() < end:
            for pid in workers(process.pid):
                time.sleep(0.3)  # it is in the middle of the log
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
                break
            time.sleep(0.02)
        again = set()
        while process.poll() is None and time.monotonic() < end:
            again |= set(workers(process.pid)) - killed
            time.sleep(0.05)
        process.wait(60)

    assert killed, errors.read_text()
    assert again
    assert process.returncode == 0, errors.read_text()
    assert "killed while executing" in errors.read_text()
    assert said.read_text() == expected


def test_what_a_unit_refuses_is_refused_in_the_same_words():
    pytest.importorskip("ray")
    arguments = ("evaluate", "random/men", "--policy", "uniform", "--end-offset", "5")
    alone = banditads(*arguments, code=78).stderr

    assert (
        banditads(*arguments, "--ray", "local", code=78).stderr.splitlines()[-1:] == alone.splitlines()[-1:]
    )


def test_without_ray_one_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)

    with pytest.raises(Misconfigured, match=r"banditads\[ray\]"):
        cluster.spread([])
