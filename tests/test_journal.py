"""What every journal promises, whatever it is made of."""

import importlib
import itertools
from contextlib import suppress

import pytest

from banditads import journal
from banditads.errors import Damaged, Misconfigured

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


def scrub(offset, record):
    """Every third record becomes another one; the rest stay."""
    return b"scrubbed %d" % offset if offset % 3 == 1 else None


def rewritten(records):
    return [(offset, scrub(offset, record) or record) for offset, record in enumerate(records)]


def test_rewriting_replaces_payloads_and_nothing_else(opened):
    for record in RECORDS:
        opened.append(record)
    end = opened.seal()
    assert end == opened.end == len(RECORDS)
    asked = []
    assert opened.rewrite(lambda *each: asked.append(each), 0, end) == 0
    assert asked == list(enumerate(RECORDS))
    assert opened.rewrite(scrub, 0, end) == 34
    assert list(opened.read(0)) == rewritten(RECORDS)
    assert opened.append(b"next") == end
    assert list(opened.read(50)) == [*rewritten(RECORDS)[50:], (end, b"next")]


def test_only_the_records_that_are_meant_are_rewritten(opened):
    for record in RECORDS:
        opened.append(record)
    opened.seal()
    asked = []
    opened.rewrite(lambda offset, record: asked.append(offset) or b"new", 20, 50)
    assert asked == list(range(20, 50))
    assert [record for _, record in opened.read(0)] == RECORDS[:20] + [b"new"] * 30 + RECORDS[50:]


def test_a_journal_can_be_sealed_and_rewritten_again_and_again(opened):
    for number in range(9):
        assert opened.seal() == opened.seal() == number
        opened.append(b"%d" % number)
    for word in (b"a", b"", b"longer than before" * 9):
        opened.rewrite(lambda offset, record, word=word: word, 0, opened.seal())
        assert list(opened.read(0)) == [(offset, word) for offset in range(9)]


def test_who_reads_while_it_is_rewritten_reads_the_old_or_the_new(opened):
    many = RECORDS * (3 if getattr(opened, "segment_bytes", 0) == 200 else 11)
    for record in many:
        opened.append(record)
    end = opened.seal()
    known, new = list(enumerate(many)), rewritten(many)
    readers = [opened.read(start) for start in range(0, end, 200)]
    seen = [[next(reader)] for reader in readers]
    calls = itertools.count()
    opened.rewrite(scrub, 0, end, pause=lambda: next(calls) % 50 == 0 and opened.append(b"meanwhile"))
    for found, reader in zip(seen, readers, strict=True):
        found.extend(reader)
        start = found[0][0]
        assert [offset for offset, _ in found] == list(range(start, end))
        assert all(each in (known[each[0]], new[each[0]]) for each in found)
    for start in range(0, end, 97):
        assert next(opened.read(start)) == new[start]
    assert list(opened.read(0))[:end] == new
    assert opened.end >= end + end // 50


class GivenUp(Exception):
    pass


@pytest.mark.parametrize("after", [0, 1, 50, 101, 102, 103, 150, 204])
def test_rewriting_that_is_given_up_leaves_old_records_and_new_ones(opened, after):
    for record in RECORDS:
        opened.append(record)
    end, calls, new = opened.seal(), itertools.count(), rewritten(RECORDS)

    def pause():
        if next(calls) == after:
            raise GivenUp

    with suppress(GivenUp):
        opened.rewrite(scrub, 0, end, pause)
    for old, found, wanted in zip(enumerate(RECORDS), opened.read(0), new, strict=True):
        assert found in (old, wanted)
    opened.rewrite(scrub, 0, end)
    assert list(opened.read(0)) == new


def test_what_was_dropped_is_not_rewritten_and_does_not_come_back(opened):
    for record in RECORDS:
        opened.append(record)
    end = opened.seal()

    def drop_and_scrub(offset, record):
        if offset == 30:
            opened.drop_before(70)
        return scrub(offset, record)

    opened.rewrite(drop_and_scrub, 0, end)
    start = opened.start
    assert [offset for offset, _ in opened.read(start)] == list(range(start, end))
    assert list(opened.read(70)) == rewritten(RECORDS)[70:]
    if start:
        with pytest.raises(Damaged):
            next(opened.read(start - 1))


def test_an_unknown_kind_is_refused_with_the_kinds_there_are():
    with pytest.raises(Misconfigured, match=r"no journal 'tape'; there are: file, memory"):
        journal.connect("tape:/dev/st0")
