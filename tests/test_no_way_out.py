"""The package runs nothing that it is told to, believes no model that it did not write, and calls nobody."""

import ast
import re
import threading
import time
import zlib
from pathlib import Path

import msgspec
import pytest
from conftest import drive
from test_deploy import serving, tool

from banditads import policies, signing
from banditads.client import Client
from banditads.directory import DataDirectory
from banditads.engine import recover
from banditads.journal import connect
from banditads.snapshots import HEAD, TAG_BYTES, Snapshots
from banditads.state import State

PACKAGE = Path(__file__).parent.parent / "banditads"
MODULES = {  # they turn data into code, or start programs
    *("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "dbm", "yaml"),
    *("subprocess", "multiprocessing", "pty", "codeop", "runpy", "ctypes", "cffi", "xmlrpc", "ftplib"),
    *("smtplib", "telnetlib", "http.server", "socketserver", "webbrowser"),
}
CALLS = {"eval", "exec", "compile", "__import__", "breakpoint", "input"}
ATTRIBUTES = {  # of whatever object: nothing here has one of these for another reason
    *("system", "popen", "execv", "execve", "execvp", "spawnv", "spawnl", "posix_spawn", "fork", "forkpty"),
    *("loads", "load_module", "allow_pickle", "literal_eval", "Pickler", "Unpickler"),
}
REASONS = {  # file, what is used -> why
    ("cli.py", "subprocess"): "`demo` starts a server: this very program, with arguments of its own",
    ("jobs.py", "subprocess"): "an evaluation is this very program, with checked values as arguments",
    ("settings.py", "loads"): "tomllib's, which gives data only",
    ("directory.py", "loads"): "json's",
    ("forking.py", "fork"): "a copy of this process writes the snapshot; it runs this program's code only",
    ("forking.py", "ctypes"): "calls prctl, so that the copy dies with its parent",
}


def used(tree):
    """What a module uses of the above."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            names = [node.value]  # import_module("pickle")
        else:
            names = []
        for name in names:
            yield from (
                {name, name.split(".")[0]} if not isinstance(node, ast.Constant) else {name}
            ) & MODULES
        if isinstance(node, ast.Name) and node.id in CALLS:
            yield node.id
        if isinstance(node, ast.Attribute) and node.attr in ATTRIBUTES:
            yield node.attr
        if isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell"):
            yield node.arg


def test_no_module_turns_data_into_code_or_starts_programs():
    found = {
        (str(path.relative_to(PACKAGE)), name)
        for path in PACKAGE.rglob("*.py")
        for name in used(ast.parse(path.read_text()))
    }
    assert found == REASONS.keys()


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from pickle import loads as read",
        "import os, marshal as m",
        "import yaml.loader",
        "from concurrent import futures; import multiprocessing.pool",
        "importlib.import_module('pickle')",
        "eval('1')",
        "run = exec",
        "compile('1', '', 'eval')",
        "os.system('ls')",
        "np.load(file, allow_pickle=True)",
        "Popen(line, shell=True)",
        "__import__('os')",
    ],
)
def test_the_test_before_this_would_notice(line):
    assert list(used(ast.parse(line)))


def test_the_server_connects_to_nobody_but_itself(tmp_path):
    """Nor does it ask for anybody's address: no update, no telemetry, no name to look up."""
    trace = tmp_path / "trace"
    calls = "--trace=connect,sendto,sendmsg,sendmmsg,execve,socket"
    with serving(tmp_path, tool("strace"), "-D", "-f", "-q", "-s", "200", calls, "-o", str(trace)) as url:

        def visit(number):
            with Client(url) as client:
                for each in range(30):
                    client.choose(f"{number}-{each}", f"u{each}", {"device": "mobile"})
                    client.reward(f"{number}-{each}", each % 2)
                for path in ("/metrics", "/stats", "/openapi.json", "/help", "/catalog/ads", "/nowhere"):
                    client._session.get(url + path, timeout=30)
                client._session.post(f"{url}/snapshot", timeout=30)
                client._session.put(
                    f"{url}/catalog/ads/x", json={"landing_url": "http://192.0.2.1/"}, timeout=30
                )
                client._session.get(f"{url}/click/{number}-1", allow_redirects=False, timeout=30)

        visitors = [threading.Thread(target=visit, args=(number,)) for number in range(4)]
        for visitor in visitors:
            visitor.start()
        for visitor in visitors:
            visitor.join()
    for _ in range(100):  # strace may still be writing
        text = trace.read_text()
        if text.rstrip().endswith("+++ exited with 0 +++"):
            break
        time.sleep(0.05)
    port = url.rpartition(":")[2]
    itself = rf'sin_port=htons\({port}\), sin_addr=inet_addr\("127\.0\.0\.1"\)'
    reached = re.findall(r" (?:connect|sendto|sendmsg|sendmmsg)\(.*?sa_family=(.*)", text)
    assert reached  # it looks for itself when it starts
    assert [each for each in reached if not re.search(itself, each)] == []
    assert len(re.findall(r" execve\(", text)) <= 1  # and starts no program; its own start may be seen


@pytest.fixture
def saved(tmp_path, make_engine, clock):
    """A data directory with a journal and one snapshot, as a server leaves it; and the key of snapshots."""
    folder = tmp_path / "data"
    key = signing.derive(signing.load_or_create(signing.key_path("", folder)), "snapshots")
    with DataDirectory(folder):
        engine = make_engine("vw", connect(f"file:{folder}"), snapshots=Snapshots(folder, key))
        drive(engine, clock, 200)
        engine.snapshot()
        drive(engine, clock, 20, seed=2)
        engine.journal.close()
    return folder, key


FORGED = ["another key", "another model", "no signature", "rubbish"]


@pytest.mark.parametrize("how", FORGED)
def test_a_forged_snapshot_reaches_neither_msgspec_nor_vw(saved, monkeypatch, how, caplog):
    folder, key = saved
    ((offset, genuine),) = Snapshots(folder, key).load()
    real = next(folder.glob("*.snapshot"))
    planted = folder / f"{offset + 1:020d}.snapshot"
    evil = genuine.replace(b"--cb_explore_adf", b"--ignore_linear x")  # the options in VW's model file
    assert evil != genuine
    if how == "another key":
        (other := folder.parent / "other").mkdir()
        Snapshots(other, b"x" * 32).save(offset + 1, evil).rename(planted)
    elif how == "another model":
        planted = real
        whole = real.read_bytes()
        real.write_bytes(whole[: HEAD.size] + zlib.compress(evil, 1) + whole[-TAG_BYTES:])
    elif how == "no signature":
        planted.write_bytes(real.read_bytes()[:-TAG_BYTES])
    else:
        planted.write_bytes(msgspec.msgpack.encode([offset + 1, [{}] * 4]))

    parsed, models = [], []
    real_decode, real_workspace = msgspec.msgpack.decode, policies.vw.Workspace

    def decode(raw, **given):
        parsed.append(bytes(raw))
        return real_decode(raw, **given)

    def workspace(*arguments, **given):
        if "arg_list" in given:
            models.append(Path(given["arg_list"][1]).read_bytes())
        return real_workspace(*arguments, **given)

    monkeypatch.setattr(msgspec.msgpack, "decode", decode)
    monkeypatch.setattr(policies.vw, "Workspace", workspace)
    state, journal = State("vw"), connect(f"file:{folder}")
    recover(state, journal, Snapshots(folder, key))
    journal.close()

    assert f"{planted} is damaged, not ours or of another build" in caplog.text
    assert evil not in parsed
    assert not any(b"ignore_linear" in each for each in (*parsed, *models))
    good = how != "another model"  # the genuine one is still there, and is used
    assert (parsed, len(models), state.applied) == ([genuine] * good, good, offset * good)
