"""What was written once is read for ever.

`golden/journal-v1` was written by the first version of everything, one event of each kind with no field left
at its default. It is never written again. A new kind of event, or a new format, gets a folder of its own.
"""

import json
import shutil
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from banditads import events
from banditads.journal.file import Journal, scan

GOLDEN = sorted(Path(__file__).parent.glob("golden/journal-*"))


def plain(value):
    """As JSON has it: structs by the names of their fields, bytes in hexadecimal."""
    if isinstance(value, msgspec.Struct):
        return {name: plain(getattr(value, name)) for name in value.__struct_fields__}
    if isinstance(value, tuple):
        return [plain(each) for each in value]
    return value.hex() if isinstance(value, bytes) else value


def without_newer(found, expected):
    """`found` without the fields that did not exist when `expected` was written."""
    if isinstance(expected, dict):
        return {name: without_newer(found[name], expected[name]) for name in expected}
    if isinstance(expected, list):
        return [without_newer(*pair) for pair in zip(found, expected, strict=True)]
    return found


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_an_old_journal_still_says_what_it_said(folder):
    expected = json.loads((folder / "expected.json").read_text())
    decoded = [events.decode(record) for _, record in scan(folder)]
    found = [{"event": type(event).__name__, **plain(event)} for event in decoded]
    assert without_newer(found, expected) == expected


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_an_old_journal_can_be_gone_on_with(folder, tmp_path):
    old = list(scan(folder))
    for path in folder.glob("*.journal"):
        shutil.copy(path, tmp_path)
    journal = Journal(str(tmp_path))
    assert journal.cut_bytes == 0
    offset = journal.append(b"today's")
    journal.close()
    assert list(scan(tmp_path)) == [*old, (offset, b"today's")]


def test_every_kind_of_event_is_in_a_golden_journal():
    kept = {type(events.decode(record)) for folder in GOLDEN for _, record in scan(folder)}
    assert kept == set(get_args(events.Event))


def structs(value):
    """All structs there are in a value, itself among them."""
    if isinstance(value, msgspec.Struct):
        yield value
        for name in value.__struct_fields__:
            yield from structs(getattr(value, name))
    for each in value if isinstance(value, tuple) else ():
        yield from structs(each)


def test_every_field_of_an_event_is_in_a_golden_journal_with_a_value_of_its_own():
    kept, default = set(), set()
    for folder in GOLDEN:
        for _, record in scan(folder):
            for struct in structs(events.decode(record)):
                for field in msgspec.structs.fields(struct):
                    usual = field.default if field.default_factory is msgspec.NODEFAULT else {}
                    where = kept if getattr(struct, field.name) != usual else default
                    where.add((type(struct).__name__, field.name))
    assert ("Ad", "house") in kept
    assert default - kept == set()
