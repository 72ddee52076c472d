"""What every journal promises, whatever it is made of."""

import importlib

import pytest

from banditads import journal
from banditads.errors import Misconfigured

OPTIONS = {"file": [{}, {"segment_bytes": 200}, {"segment_bytes": 200, "fsync": "everysec"}]}
KINDS = [(name, options) for name in journal.names() for options in OPTIONS.get(name, [{}])]
RECORDS = [b"", b"\0" * 30, *(bytes([n]) * (n % 50) for n in range(100))]


def example(name, tmp_path):
    return importlib.import_module(f"banditads.journal.{name}").EXAMPLE.format(tmp=tmp_path)


@pytest.fixture(params=KINDS, ids=str)
def opened(request, tmp_path):
    name, options = request.param
    made = journal.connect(example(name, tmp_path), **options)
    yield made
    made.close()


def test_offsets_count_up_from_0_and_records_come_back(opened):
    assert (opened.start, opened.end, list(opened.read(0))) == (0, 0, [])
    assert [opened.append(record) for record in RECORDS] == list(range(len(RECORDS)))
    assert (opened.start, opened.end, opened.poisoned) == (0, len(RECORDS), "")
    assert list(opened.read(0)) == list(enumerate(RECORDS))


def test_a_record_can_be_read_as_soon_as_it_is_appended(opened):
    for record in RECORDS:
        offset = opened.append(record)
        assert list(opened.read(offset)) == [(offset, record)]
        opened.sync(offset)


def test_reading_begins_anywhere(opened):
    for record in RECORDS * 4:
        opened.append(record)
    known = list(enumerate(RECORDS * 4))
    for start in range(len(known)):
        assert next(opened.read(start)) == known[start]
    assert list(opened.read(257)) == known[257:]


def test_reading_from_the_end_gives_nothing(opened):
    opened.append(b"one")
    assert list(opened.read(1)) == []
    assert list(opened.read(9)) == []


def test_reading_ends_where_the_journal_ended_when_it_began(opened):
    for record in RECORDS:
        opened.append(record)
    seen = []
    for offset, _ in opened.read(0):
        seen.append(offset)
        opened.append(b"while reading")
    assert seen == list(range(len(RECORDS)))


def test_dropping_forgets_old_records_and_never_one_that_is_needed(opened):
    for record in RECORDS:
        opened.append(record)
    for offset in (0, 1, 40, 40, 39, len(RECORDS) - 1):
        before = opened.start
        opened.drop_before(offset)
        assert before <= opened.start <= max(offset, before)
        assert opened.end == len(RECORDS)
        assert list(opened.read(opened.start)) == list(enumerate(RECORDS))[opened.start :]
    opened.drop_before(10**6)
    assert opened.start <= opened.end == len(RECORDS)
    assert opened.append(b"next") == len(RECORDS)
    assert list(opened.read(len(RECORDS))) == [(len(RECORDS), b"next")]


def test_dropping_what_somebody_has_read_does_not_disturb_them(opened):
    for record in RECORDS:
        opened.append(record)
    seen = []
    for offset, record in opened.read(0):
        seen.append((offset, record))
        opened.drop_before(offset)
    assert seen == list(enumerate(RECORDS))


def test_an_unknown_kind_is_refused_with_the_kinds_there_are():
    with pytest.raises(Misconfigured, match=r"no journal 'tape'; there are: file, memory"):
        journal.connect("tape:/dev/st0")
