"""The command line, run as users run it."""

import json

import pytest
from conftest import banditads

from banditads import logs


@pytest.mark.parametrize("command", ["serve", "demo", "replay", "verify", "export"])
def test_help_says_what_each_command_does(command):
    assert command in banditads("--help").stdout
    shown = banditads(command, "--help").stdout
    assert "Usage:" in shown
    assert len(shown) > 300


def test_usage_errors_exit_2():
    banditads("fly", code=2)
    banditads("replay", code=2)
    banditads("export", "random/men", code=2)
    banditads("serve", "--option", "epsilon", code=2)
    banditads("serve", "--recommender-option", "prior", code=2)


@pytest.fixture
def data(tmp_path, make_engine, clock):
    """A data directory that a server left behind."""
    from conftest import drive

    from banditads import signing
    from banditads.directory import DataDirectory
    from banditads.journal import connect
    from banditads.snapshots import Snapshots

    folder = tmp_path / "data"
    key = signing.load_or_create(signing.key_path("", folder))
    with DataDirectory(folder) as directory:
        snapshots = Snapshots(folder, signing.derive(key, "snapshots"))
        engine = make_engine("vw", connect(f"file:{folder}"), snapshots=snapshots)
        directory.check(engine.state.identity)
        drive(engine, clock, 300)
        engine.snapshot()
        drive(engine, clock, 30, seed=2)
        engine.journal.close()
    return folder


def test_verify_compares_the_snapshots_with_the_folded_journal(data):
    said = banditads("verify", data).stdout

    assert "is whole" in said
    assert "1 snapshots compared" in said
    assert "never finished" not in said
    journal = max(data.glob("*.journal"))
    raw = journal.read_bytes()
    journal.write_bytes(raw + raw[-10:])
    assert "ends in 10 bytes of a record that was never finished" in banditads("verify", data).stdout
    (data.parent / "data.key").write_text("00" * 32 + "\n")
    assert "signed with another key" in banditads("verify", data, code=65).stderr
    banditads("verify", data.parent, code=78)


@pytest.mark.parametrize("kind", ["parquet", "dsjson"])
def test_an_export_is_the_log_itself(data, tmp_path, kind):
    out = tmp_path / f"out.{kind}"
    said = banditads("export", data, f"--{kind}", out).stdout
    ours = list(logs.read(data))

    assert f"{len(ours)} decisions" in said
    assert len(ours) > 100
    back = list(logs.read(out))
    assert [(r.choice.event_id, r.reward, r.choice.pmf) for r in back] == [
        (r.choice.event_id, r.reward, r.choice.pmf) for r in ours
    ]


def test_replay_judges_policies_on_a_journal_and_says_the_same_twice(data, tmp_path):
    picture = tmp_path / "curves.png"
    arguments = ("replay", data, "--policy", "uniform", "--policy", "vw:epsilon=0.2", "--json")
    first = banditads(*arguments, "--plot", picture).stdout
    report = json.loads(first)[0]

    assert [result["policy"] for result in report["results"]][1:] == ["uniform", "vw:epsilon=0.2"]
    assert banditads(*arguments).stdout == first
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "not enough" in banditads("replay", "bts/men", "--policy", "uniform", "--limit", "500").stdout
    table = banditads(
        "replay", "bts/men", "--policy", "uniform", "--limit", "500", "--estimator", "switch_dr"
    )
    assert "SWITCH" in table.stdout
    assert "SNIPS" not in table.stdout
    banditads("replay", data, "--policy", "nope", code=78)
    banditads("replay", data, "--estimator", "nope", code=78)
    banditads("replay", "nowhere", code=78)


def test_the_demo_runs_and_draws(tmp_path):
    picture = tmp_path / "demo.png"
    said = banditads("demo", "--visits", "600", "--policy", "uniform", "--plot", picture).stdout

    assert "600 visits" in said
    assert picture.stat().st_size > 10_000
