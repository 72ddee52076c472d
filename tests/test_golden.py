"""Journals written by version 1 can still be read, and today's code still writes the same bytes.

The files in golden/journal-v1 were made once, by `python tests/test_golden.py`, with a fixed salt. They are
never made again: a change of the format gets a folder of its own, and these must go on being read.
"""

import json
import secrets
import struct
import sys
from pathlib import Path
from typing import get_args

import msgspec

from banditads import events
from banditads.events import Ad, AdRemoved, AdsPut, Chosen, Impressed, Rewarded, Ticked, Unfilled
from banditads.journal.file import Journal, scan

FOLDER = Path(__file__).parent / "golden" / "journal-v1"
AD = Ad(
    "ad\n|1",
    {"kind": "schön", "price": 2.5},
    "https://shop.test/1?a=b",
    {"image": "1.png", "size": [300, 250], "alt": None},
    ("home", "news"),
    1_700_000_000.0,
    1_800_000_000.5,
    True,
)
EVENTS = [
    AdsPut(1_700_000_000.001, (AD, Ad("2"))),
    Chosen(
        1_700_000_001.0,
        "e1",
        ("ad\n|1", "2"),
        struct.pack("<2d", 0.25, 0.75),
        1,
        {"age": 30.0, "page": "home"},
        "vw",
        "u1",
        "home",
        "r1",
        (AD,),
        {"3": "ended"},
    ),
    Unfilled(1_700_000_002.0, "e2", {"page": "news"}, "u2", "news", "r2", {"2": "placement"}),
    Impressed(1_700_000_003.0, "e1", "2"),
    Rewarded(1_700_000_004.0, "e1", -0.5),
    AdRemoved(1_700_000_005.0, "2"),
    Ticked(1_700_000_006.0),
]


def make() -> None:
    """Write the files."""
    FOLDER.mkdir(parents=True)
    secrets.token_bytes = lambda size: bytes(range(size))
    journal = Journal(str(FOLDER), segment_bytes=300)
    for event in EVENTS:
        journal.append(events.encode(event))
    journal.close()
    expected = [{"event": type(event).__name__, **msgspec.to_builtins(as_dict(event))} for event in EVENTS]
    (FOLDER / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n", "utf-8")


def as_dict(struct):
    """Field by field, by name: the order on disk does not matter to it."""
    if isinstance(struct, msgspec.Struct):
        return {name: as_dict(getattr(struct, name)) for name in struct.__struct_fields__}
    return [as_dict(each) for each in struct] if isinstance(struct, tuple) else struct


def test_a_journal_of_version_1_is_read_as_it_was_meant():
    expected = json.loads((FOLDER / "expected.json").read_text("utf-8"))
    records = list(scan(FOLDER))
    assert [offset for offset, _ in records] == list(range(len(expected)))
    for (_, record), known in zip(records, expected, strict=True):
        event = events.decode(record)
        read = {"event": type(event).__name__, **msgspec.to_builtins(as_dict(event))}
        assert known.items() <= read.items()  # fields may have been added since


def test_events_are_still_written_as_in_version_1():
    assert [record for _, record in scan(FOLDER)] == [events.encode(event) for event in EVENTS]


def test_a_journal_of_version_1_is_still_written_byte_for_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(secrets, "token_bytes", lambda size: bytes(range(size)))
    journal = Journal(str(tmp_path), segment_bytes=300)
    for event in EVENTS:
        journal.append(events.encode(event))
    journal.close()
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert written == {path.name: path.read_bytes() for path in FOLDER.glob("*.journal")}
    assert len(written) > 1


def test_every_kind_of_event_and_every_field_is_there_with_a_value_of_its_own():
    assert {type(event) for event in EVENTS} == set(get_args(events.Event))
    for each in (*EVENTS, AD):
        for field in msgspec.structs.fields(each):
            if not field.required:
                default = () if field.default is msgspec.NODEFAULT else field.default
                assert getattr(each, field.name) not in (default, {}, [], ()), field.name


if __name__ == "__main__":
    sys.exit(make())
