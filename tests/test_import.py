"""Files of users and of what they did: rows are taken or refused one by one, and ids are written nowhere."""

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import Clock, banditads, ids
from hypothesis import given, settings
from hypothesis import strategies as st

from banditads import importing, server, signing
from banditads.directory import read_config
from banditads.engine import Engine
from banditads.errors import Invalid, Misconfigured
from banditads.importing import Directory, Names, acts, moment, users
from banditads.journal import connect
from banditads.settings import load
from banditads.signing import Pseudonyms
from banditads.state import State

NOW = 1.7e9
PSEUDONYM = Pseudonyms(b"k" * 32)


@pytest.fixture
def taker():
    return Directory(Engine(State("uniform"), connect("memory:"), ids=ids(), clock=Clock(NOW)), PSEUDONYM)


def known(taker, user):
    return taker.engine.state.users.known(PSEUDONYM(user), NOW)


def written(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


USERS = [
    {"user_id": "anna", "age": 31, "city": "Oslo", "zip": "0150", "consent": True},
    {"user_id": "bert", "age": None, "city": "Rome", "zip": "00118", "consent": True},
    {"user_id": "carl", "age": 77.5, "city": None, "zip": "10115", "consent": False},
]
EVENTS = [
    {"visitorid": "anna", "timestamp": 1_699_000_000_000, "event": "view", "itemid": 7, "price": None},
    {"visitorid": "anna", "timestamp": 1_699_000_001_500, "event": "transaction", "itemid": 8, "price": 9.5},
    {"visitorid": "carl", "timestamp": 1_699_000_000_000, "event": "view", "itemid": 7, "price": None},
]


def as_csv(rows):
    lines = [",".join(rows[0])]
    lines += [",".join("" if each is None else str(each) for each in row.values()) for row in rows]
    return "\n".join(lines) + "\n"


@pytest.fixture(params=["csv", "jsonl", "parquet"])
def files(request, tmp_path):
    """The same users and events in each format."""
    found = []
    for name, rows in (("users", USERS), ("events", EVENTS)):
        path = tmp_path / f"{name}.{request.param}"
        if request.param == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)
        elif request.param == "csv":
            path.write_text(as_csv(rows))
        else:
            path.write_text("\n".join(map(json.dumps, rows)))
        found.append(path)
    return found


def test_each_format_says_the_same(files, taker):
    report = users(files[0], taker, Names(), now=NOW)
    assert (report.rows, report.taken, report.without_consent, report.refused) == (3, 2, 1, [])
    assert {name: each.kind for name, each in report.columns.items()} == {
        "user_id": "word", "age": "number", "city": "word", "zip": "word", "consent": "yes or no"
    } | ({"consent": "word"} if files[0].suffix == ".csv" else {})  # fmt: skip
    assert report.columns["age"].missing == 1

    seen = []
    report = acts(files[1], taker, Names(), now=NOW, progress=lambda more, all: seen.append((more, all)))
    assert (report.rows, report.taken, report.without_consent) == (3, 2, 1)
    assert seen == [(1, 3)] * 3
    anna = known(taker, "anna")
    assert anna.attributes == {"age": 31.0, "city": "Oslo", "zip": "0150"}
    assert anna.items == {"8": 1_699_000_001, "7": 1_699_000_000}
    assert (anna.acts["purchase"].amount, anna.acts["view"].number) == (9.5, 1)
    assert known(taker, "bert").attributes == {"city": "Rome", "zip": "00118"}
    assert known(taker, "carl") is None


BAD = """user,time,kind,item,amount
anna,1699000000,view,a,1
,1699000000,view,b,1
anna,yesterday,view,c,1
anna,1699000000,view,d,many
anna,1699000000,view
anna,99999999999,view,f,1
anna,1699000000,view,"{long}",1

anna,2023-11-01T10:00:00+01:00,like,"h, i",nan
"""


def test_each_refused_row_is_told_with_its_line_and_reason_and_the_rest_goes_on(taker, tmp_path):
    taker.engine.put_users({PSEUDONYM("anna"): {}})
    file = written(tmp_path, "e.csv", BAD.replace("{long}", "x" * 65))
    report = acts(file, taker, Names(), now=NOW)

    assert (report.rows, report.taken) == (8, 2)
    assert report.refused == [
        (3, "user: must be 1 to 128 printable characters"),
        (4, "time: neither seconds, milliseconds nor ISO 8601"),
        (5, "amount: not a number"),
        (6, "not as many values as there are columns"),
        (7, "act.at: must be seconds since the epoch, and not more than a day ahead of the server's clock"),
        (8, "act.item: must be 1 to 64 printable characters"),
    ]
    assert sum(report.reasons.values()) == 6
    text = "\n".join(importing.lines(report))
    assert "line 8: act.item" in text
    assert "anna" not in text


def test_only_the_first_refusals_are_told_one_by_one_and_all_are_counted(taker, tmp_path):
    file = written(tmp_path, "e.jsonl", "\n".join(["rubbish"] * 50 + ['{"user": "anna", "amount": []}'] * 7))
    report = acts(file, taker, Names(), now=NOW)
    assert len(report.refused) == importing.SHOWN
    assert report.reasons == {"not a JSON object": 50, "amount: not a number": 7}


@pytest.mark.parametrize(
    ("name", "raw", "said"),
    [
        ("e.txt", "user\nanna\n", "neither .csv"),
        ("e.csv", "", "column names"),
        ("e.csv", "user,user\n", "column names"),
        ("e.csv", "name\nanna\n", "no column looks like the user"),
        ("e.jsonl", json.dumps({f"c{n}": n for n in range(300)}), "more than 256 columns"),
        ("e.parquet", "PAR1 no", "not a whole Parquet file"),
        ("e.csv", "user,x\nanna,1\n", "nobody in this file consents"),
    ],
)
def test_a_file_that_is_of_no_use_is_refused_as_a_whole(name, raw, said, taker, tmp_path):
    with pytest.raises(Misconfigured, match=said):
        users(written(tmp_path, name, raw), taker, Names(), now=NOW)
    with pytest.raises(Misconfigured, match="has no column 'nope'"):
        users(written(tmp_path, "u.csv", "user\nanna\n"), taker, Names(user="nope"), now=NOW)


def test_columns_can_be_named_and_numbers_be_words(taker, tmp_path):
    file = written(tmp_path, "u.csv", "who,says,code,user\nanna,Y,12,x\nbert,,13,y\ncarl,maybe,14,z\n")
    report = users(file, taker, Names(user="who", consent="says"), now=NOW, words=["code"])

    assert (report.taken, report.without_consent) == (1, 1)
    assert report.reasons == {"consent: neither yes nor no": 1}
    assert known(taker, "anna").attributes == {"code": "12", "user": "x"}


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (1.7e9, 1.7e9), ("1700000000", 1.7e9), (1_700_000_000_000, 1.7e9), ("1700000000123", 1.7e9 + 0.123),
        ("2023-11-14T22:13:20", 1.7e9), ("2023-11-14T22:13:20Z", 1.7e9), ("2023-11-15 00:13:20+02:00", 1.7e9),
        ("2023-11-14", 1699920000.0), (0, 0.0),
    ],
)  # fmt: skip
def test_times_come_as_seconds_milliseconds_and_iso_8601(value, seconds):
    assert moment(value) == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize("value", ["soon", "", "1e999", "nan", [], {}, float("inf"), "0000-00-00"])
def test_what_is_no_time_is_refused(value):
    with pytest.raises(Invalid):
        moment(value)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(["csv", "jsonl"]))
def test_no_bytes_are_more_than_refused(tmp_path_factory, raw, suffix):
    path = written(tmp_path_factory.getbasetemp(), f"any.{suffix}", raw)
    engine = Engine(State("uniform"), connect("memory:"), ids=ids(), clock=Clock(NOW))
    for take in (users, acts):
        given = {"consent": True} if take is users else {}
        try:
            take(path, Directory(engine, PSEUDONYM), Names(), now=NOW, **given)
        except Misconfigured:
            continue


def test_the_same_file_in_another_order_gives_the_same_profiles(tmp_path):
    dice, dumps = random.Random(1), []
    rows = [f"u{n % 7},{1.69e9 + n % 5 * 86400},i{n % 11},c{n % 3}" for n in range(3000)]
    for _ in range(2):
        taker = Directory(
            Engine(State("uniform"), connect("memory:"), ids=ids(), clock=Clock(NOW)), PSEUDONYM
        )
        taker.engine.put_users({PSEUDONYM(f"u{n}"): {} for n in range(7)})
        acts(
            written(tmp_path, "e.csv", "user,time,item,category\n" + "\n".join(rows)), taker, Names(), now=NOW
        )
        dumps.append(dict(taker.engine.state.users.profiles))
        dice.shuffle(rows)
    assert dumps[0] == dumps[1]


def test_users_twice_change_nothing_and_events_twice_count_twice(files, taker):
    users(files[0], taker, Names(), now=NOW)
    acts(files[1], taker, Names(), now=NOW)
    once, before = known(taker, "anna"), dict(taker.engine.state.users.profiles)
    users(files[0], taker, Names(), now=NOW)
    assert dict(taker.engine.state.users.profiles) == before
    assert known(taker, "anna") == once
    acts(files[1], taker, Names(), now=NOW)

    assert known(taker, "anna").acts["view"].number == 2 * once.acts["view"].number
    assert known(taker, "anna").items == once.items


# The command


def profile(folder, user):
    settings = load(flags={"data_dir": str(folder)})
    with server.opened(settings, State.of(read_config(folder))) as engine:
        return engine.state.users.known(server.pseudonyms(settings)(user), engine.clock())


def test_the_command_writes_into_a_directory_and_writes_no_id(tmp_path):
    folder = tmp_path / "data"
    people = written(tmp_path, "u.csv", "user_id,age\nvery-private,31\nothers,44\n")
    done = written(tmp_path, "e.jsonl", '{"user": "very-private", "item": "boot"}\n{"user": "nobody"}\nx\n')
    said = banditads("import", "users", people, "--consent", "--data-dir", folder).stdout
    said += banditads("import", "events", done, "--data-dir", folder).stdout

    assert "2 rows read, 2 taken" in said
    assert "3 rows read, 1 taken" in said
    assert "1 about users without consent" in said
    assert "line 3: not a JSON object" in said
    assert "age: number, 0.0% missing, an attribute" in said
    assert "very-private" not in said
    assert profile(folder, "very-private").attributes == {"age": 31.0}
    assert list(profile(folder, "very-private").items) == ["boot"]
    for path in folder.iterdir():
        assert b"very-private" not in path.read_bytes()
    assert "is whole" in banditads("verify", folder).stdout
    assert (
        "no column 'x'"
        in banditads("import", "events", done, "--item", "x", "--data-dir", folder, code=78).stderr
    )


def test_a_directory_of_another_policy_stays_of_that_policy(tmp_path, start):
    server = start("--policy", "vw")
    people = written(tmp_path, "u.csv", "user_id\nanna\n")
    assert (
        "in use"
        in banditads("import", "users", people, "--consent", "--data-dir", server.folder, code=73).stderr
    )
    server.end()
    banditads("import", "users", people, "--consent", "--data-dir", server.folder)
    assert read_config(server.folder)["policy"] == "vw"
    assert start("--policy", "vw").data("/users/anna")["consent"] is True


def test_the_command_sends_to_a_server_with_its_key(tmp_path, start):
    folder = tmp_path / "data"
    key = banditads("key", "create", "--scope", "users", "--data-dir", folder).stdout.strip()
    server = start("--policy", "uniform")
    people = written(tmp_path, "u.csv", "user_id,age\n" + "".join(f"u{n},{n}\n" for n in range(1500)))
    done = written(tmp_path, "e.csv", "user_id,kind\n" + "".join(f"u{n % 2000},buy\n" for n in range(2500)))
    arguments = ("--url", server.url, "--key", key)

    assert (
        "1,500 rows read, 1,500 taken" in banditads("import", "users", people, "--consent", *arguments).stdout
    )
    said = banditads("import", "events", done, *arguments).stdout
    assert "2,500 rows read, 2,000 taken" in said
    assert "500 about users without consent" in said
    server.session.headers["Authorization"] = f"Bearer {key}"
    found = server.data("/users/u7")
    assert (found["profile"]["attributes"], found["profile"]["acts"]["purchase"]["number"]) == (
        {"age": 7.0},
        2,
    )
    refused = banditads("import", "events", done, "--url", server.url, code=74).stderr
    assert "401" in refused
    server.end()
    assert signing.load(Path(f"{folder}.key"))
