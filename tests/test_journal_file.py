"""The journal of files: torn is cut, changed is refused, acknowledged is on the disk."""

import errno
import os
import shutil
import threading
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banditads.errors import Damaged, DiskFailure, Misconfigured, TooLarge, Unavailable
from banditads.journal import file
from banditads.journal.file import HEAD, HEADER, Journal, first_offset, scan, torn_bytes

PATIENCE = 10.0  # seconds until a test that waits for another thread gives up


def write(folder, records, **options):
    """A closed journal of these records; its segments, oldest first."""
    folder.mkdir(exist_ok=True)
    journal = Journal(str(folder), **options)
    for record in records:
        journal.append(record)
    journal.close()
    return sorted(folder.glob("*.journal"))


def read(folder):
    """Everything, as a server that starts reads it."""
    journal = Journal(str(folder))
    try:
        return list(journal.read(0))
    finally:
        journal.close()


def known(records):
    return list(enumerate(records))


@pytest.fixture
def no_fsync(monkeypatch):
    """For tests that open a journal thousands of times."""
    monkeypatch.setattr(os, "fsync", lambda number: None)
    monkeypatch.setattr(os, "fdatasync", lambda number: None)


class Calls:
    """What the journal asks of the system, in order, as (call, file name); fsync of the folder is of ''."""

    def __init__(self, monkeypatch, folder):
        self.made = []
        for owner, call in [
            (os, "write"), (os, "fsync"), (os, "fdatasync"),
            (Path, "replace"), (Path, "rename"), (Path, "unlink"),
        ]:  # fmt: skip
            monkeypatch.setattr(owner, call, self._recorded(getattr(owner, call), folder))

    def _recorded(self, real, folder):
        def recorded(what, *args, **options):
            path = Path(os.readlink(f"/proc/self/fd/{what}")) if isinstance(what, int) else what
            result = real(what, *args, **options)
            self.made.append((real.__name__, str(path.relative_to(folder)).removeprefix(".")))
            return result

        return recorded

    def take(self):
        made, self.made = self.made, []
        return made


def name(first):
    return f"{first:020d}.journal"


# What a crash leaves


def test_a_tail_torn_at_any_byte_is_cut_and_appending_goes_on(tmp_path):
    records = [b"first", b"", b"the one that is torn"]
    [path] = write(tmp_path / "whole", records)
    whole = path.read_bytes()
    ends = [HEADER.size]
    for record in records:
        ends.append(ends[-1] + HEAD.size + len(record))
    assert ends[-1] == len(whole)
    for size in range(HEADER.size, len(whole) + 1):
        folder = tmp_path / str(size)
        folder.mkdir()
        (folder / path.name).write_bytes(whole[:size])
        left = sum(end <= size for end in ends[1:])

        assert list(scan(folder)) == known(records[:left])
        assert torn_bytes(folder) == size - ends[left]
        journal = Journal(str(folder))
        assert journal.cut_bytes == size - ends[left]
        assert journal.append(b"after") == left
        journal.close()
        assert read(folder) == list(scan(folder)) == known([*records[:left], b"after"])
        assert torn_bytes(folder) == 0


def test_a_tail_of_zeros_is_torn(tmp_path):
    for zeros in (1, HEAD.size, 5000):
        folder = tmp_path / str(zeros)
        [path] = write(folder, [b"one", b"two"])
        path.write_bytes(path.read_bytes() + b"\0" * zeros)
        assert list(scan(folder)) == read(folder) == known([b"one", b"two"])


def test_a_segment_cut_within_its_header_is_damaged(tmp_path):
    [path] = write(tmp_path, [b"one"])
    whole = path.read_bytes()
    for size in range(HEADER.size):
        path.write_bytes(whole[:size])
        with pytest.raises(Damaged, match="at byte 0"):
            Journal(str(tmp_path))


def test_a_cut_tail_is_said_and_the_cut_is_durable(tmp_path, monkeypatch, caplog):
    folder = tmp_path / "data"
    [path] = write(folder, [b"one", b"two"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    real, synced = os.fsync, []

    def fsync(number):
        synced.append(os.fstat(number).st_size)
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    journal = Journal(str(folder))
    assert len(whole) - HEAD.size - len(b"two") in synced
    assert journal.cut_bytes == HEAD.size + len(b"two") - 1
    assert f"{path}: cut {journal.cut_bytes} bytes" in caplog.text
    journal.close()


def test_opening_makes_durable_what_a_killed_process_had_only_written(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    write(folder, [b"one"])
    calls = Calls(monkeypatch, folder)
    journal = Journal(str(folder))
    assert calls.take() == [("fsync", name(0)), ("fsync", "")]
    journal.sync(0)  # so this may return at once
    assert calls.take() == []
    journal.close()


# What nothing but damage leaves


def outcome(folder, open_it):
    """What was read; None if it was refused."""
    try:
        return open_it(folder)
    except Damaged:
        return None


def test_no_flipped_bit_goes_unseen(tmp_path, no_fsync):
    records = [b"a", b"", b"\0\0", b"bcd", b"efghij", b"", b"three", b"in the", b"last"]
    paths = write(tmp_path / "data", records, segment_bytes=HEADER.size + 3 * HEAD.size)
    assert len(paths) == 3
    for path in paths:
        whole = path.read_bytes()
        for bit in range(8 * len(whole)):
            broken = bytearray(whole)
            broken[bit // 8] ^= 1 << bit % 8
            path.write_bytes(broken)
            for open_it in (lambda folder: list(scan(folder)), read):
                assert outcome(tmp_path / "data", open_it) in (None, known(records)), (path.name, bit)
            assert path.read_bytes() == broken  # nothing was cut
        path.write_bytes(whole)
    assert read(tmp_path / "data") == known(records)


@pytest.mark.parametrize("records", [[b"only"], [b""], [b"one", b""], [b"one", b"x" * 60], [b"", b"", b""]])
def test_a_flipped_bit_in_the_last_record_is_not_taken_for_a_torn_tail(tmp_path, no_fsync, records):
    [path] = write(tmp_path, records)
    whole = path.read_bytes()
    for bit in range(8 * (len(whole) - HEAD.size - len(records[-1])), 8 * len(whole)):
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        assert outcome(tmp_path, lambda folder: list(scan(folder))) is None
        assert outcome(tmp_path, read) is None
        assert path.read_bytes() == broken


def test_a_flipped_bit_before_a_torn_tail_is_not_cut_off_with_it(tmp_path, no_fsync):
    records = [b"a", b"bc", b"def", b"torn"]
    [path] = write(tmp_path, records)
    whole = path.read_bytes()
    torn = len(whole) - HEAD.size - len(records[-1])
    for size in (torn + HEAD.size, len(whole) - 1):
        for bit in range(8 * size):
            broken = bytearray(whole[:size])
            broken[bit // 8] ^= 1 << bit % 8
            path.write_bytes(broken)
            for open_it in (lambda folder: list(scan(folder)), read):
                assert outcome(tmp_path, open_it) in (None, known(records[:-1])), (size, bit)


@pytest.mark.parametrize("destroyed", [1, 2, 3])
def test_nothing_is_cut_while_anything_intact_follows(tmp_path, destroyed):
    records = [b"one", b"two" * 9, b"three" * 3, b"four", b"five"]
    [path] = write(tmp_path, records)
    broken = bytearray(path.read_bytes())
    place = HEADER.size + HEAD.size + len(records[0])
    for record in records[1 : destroyed + 1]:
        broken[place : place + 4] = (9999).to_bytes(4, "little")  # longer than the file
        place += HEAD.size + len(record)
    path.write_bytes(broken)
    for open_it in (read, lambda folder: list(scan(folder))):
        assert outcome(tmp_path, open_it) is None
    assert path.read_bytes() == broken


@pytest.mark.parametrize("length", [0, 3, 5, 6, 9999, 2**32 - 1])
def test_a_record_is_not_cut_for_its_length_alone(tmp_path, length):
    [path] = write(tmp_path, [b"one", b"last"])
    broken = bytearray(path.read_bytes())
    place = len(broken) - HEAD.size - len(b"last")
    broken[place : place + 4] = length.to_bytes(4, "little")
    path.write_bytes(broken)
    for open_it in (read, lambda folder: list(scan(folder))):
        assert outcome(tmp_path, open_it) is None


def test_a_tail_that_no_write_of_ours_begins_with_is_damage(tmp_path):
    [path] = write(tmp_path, [b"one"])
    whole = path.read_bytes()
    for tail in (HEAD.pack(100, 5, 7), HEAD.pack(file.MAX_RECORD + 1, 5, 1), b"\0" * HEAD.size + b"x"):
        path.write_bytes(whole + tail + b"begun")
        assert outcome(tmp_path, read) is None
        assert outcome(tmp_path, lambda folder: list(scan(folder))) is None


def test_a_flipped_bit_in_a_header_is_seen_at_start(tmp_path, no_fsync):
    paths = write(tmp_path, [b"x"] * 3, segment_bytes=1)
    for path in paths:
        whole = path.read_bytes()
        for bit in range(8 * HEADER.size):
            broken = bytearray(whole)
            broken[bit // 8] ^= 1 << bit % 8
            path.write_bytes(broken)
            with pytest.raises(Damaged, match=f"{path} at byte 0 is damaged: its header"):
                Journal(str(tmp_path))
        path.write_bytes(whole)


def test_a_damaged_record_is_named_by_file_and_byte(tmp_path):
    [path] = write(tmp_path, [b"one", b"two", b"three"])
    place = HEADER.size + HEAD.size + len(b"one")
    broken = bytearray(path.read_bytes())
    broken[place + HEAD.size] ^= 1
    path.write_bytes(broken)
    with pytest.raises(Damaged, match=f"{path} at byte {place} is damaged: the record at offset 1 "):
        Journal(str(tmp_path))


def test_a_missing_segment_is_damage(tmp_path):
    paths = write(tmp_path, [b"x" * 50] * 6, segment_bytes=1)
    assert len(paths) == 6
    paths[3].unlink()
    for open_it in (read, lambda folder: list(scan(folder))):
        with pytest.raises(Damaged, match=f"{name(3)} at byte 0 is damaged: it is n"):
            open_it(tmp_path)
    paths[0].unlink()
    with pytest.raises(Damaged, match="from 0 to 0 are no longer there"):
        list(scan(tmp_path))


def test_opening_reads_the_last_segment_and_still_sees_that_another_is_missing(tmp_path, monkeypatch):
    paths = write(tmp_path, [b"x" * 50] * 9, segment_bytes=200)
    assert len(paths) == 3
    opened, real = [], file._records

    def records(segment, *args, **options):
        opened.append(segment.path)
        return real(segment, *args, **options)

    monkeypatch.setattr(file, "_records", records)
    Journal(str(tmp_path)).close()
    assert opened == paths[2:]
    paths[1].unlink()
    with pytest.raises(Damaged, match=f"{paths[1].name} at byte 0 is damaged: it is not there"):
        Journal(str(tmp_path))


def test_records_that_vanish_under_a_running_server_are_not_passed_over(tmp_path):
    journal = Journal(str(tmp_path))
    for record in (b"one", b"two"):
        journal.append(record)
    [path] = tmp_path.glob("*.journal")
    os.truncate(path, path.stat().st_size - HEAD.size - len(b"two"))
    with pytest.raises(Damaged, match="from 1 to 1 are no longer there"):
        list(journal.read(0))
    journal.close()


def test_a_tail_torn_off_an_earlier_segment_is_damage(tmp_path):
    paths = write(tmp_path, [b"x" * 50] * 3, segment_bytes=1)
    paths[1].write_bytes(paths[1].read_bytes()[:-1])
    for open_it in (read, lambda folder: list(scan(folder))):
        with pytest.raises(Damaged, match=f"{paths[1]} at byte {HEADER.size} is damaged"):
            open_it(tmp_path)


@pytest.mark.parametrize("change", ["lost", "repeated", "swapped"])
def test_a_record_lost_repeated_or_moved_is_damage(tmp_path, change):
    [path] = write(tmp_path, [b"a", b"b", b"c", b"d"])
    whole = path.read_bytes()
    header, size = whole[: HEADER.size], HEAD.size + 1
    a, b, c, d = (whole[HEADER.size + n * size :][:size] for n in range(4))
    path.write_bytes(
        header + {"lost": a + c + d, "repeated": a + b + b + c + d, "swapped": a + c + b + d}[change]
    )
    for open_it in (read, lambda folder: list(scan(folder))):
        with pytest.raises(Damaged):
            open_it(tmp_path)


def test_old_bytes_of_another_journal_are_never_taken_for_records(tmp_path):
    [one] = write(tmp_path / "one", [b"a", b"b"])
    [two] = write(tmp_path / "two", [b"a", b"B"])
    size = HEAD.size + 1
    one.write_bytes(one.read_bytes()[:-size] + two.read_bytes()[-size:])  # the disk had these bytes before
    for open_it in (read, lambda folder: list(scan(folder))):
        with pytest.raises(Damaged):
            open_it(tmp_path / "one")


def test_a_segment_under_another_name_is_damage(tmp_path):
    [path] = write(tmp_path, [b"a"])
    path.rename(tmp_path / name(1))
    with pytest.raises(Damaged, match="header"):
        Journal(str(tmp_path))


# What the disk refuses


def test_a_full_disk_takes_nothing_loses_nothing_and_recovers(tmp_path, monkeypatch):
    journal = Journal(str(tmp_path))
    journal.append(b"one")
    size = journal._segments[0].path.stat().st_size
    real = os.write
    for part in (0, 1, HEAD.size, HEAD.size + 4):
        written = []

        def full(number, data, part=part, written=written):
            if not part or written:
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(real(number, data[:part]))
            return written[0]

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(Unavailable, match="No space left on device"):
                journal.append(b"refused")
        assert journal._segments[0].path.stat().st_size == size
        assert (journal.end, journal.poisoned) == (1, "")
    assert journal.append(b"two") == 1
    journal.sync(1)
    journal.close()
    assert read(tmp_path) == known([b"one", b"two"])


def test_short_writes_are_continued(tmp_path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda number, data: real(number, data[:7]))
    write(tmp_path, [b"x" * 100, b"y"])
    assert read(tmp_path) == known([b"x" * 100, b"y"])


def test_a_write_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    journal = Journal(str(tmp_path))
    real = os.write

    def interrupted(number, data):
        real(number, data[:9])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.append(b"not this")
    assert journal.append(b"this") == 0
    journal.close()
    assert read(tmp_path) == known([b"this"])


def test_a_closed_journal_writes_to_nobody_elses_file(tmp_path):
    journal = Journal(str(tmp_path))
    number = journal._file
    journal.close()
    with (tmp_path / "theirs").open("wb") as theirs:
        assert theirs.fileno() == number
        with pytest.raises(DiskFailure):
            journal.append(b"late")
    assert (tmp_path / "theirs").read_bytes() == b""


def test_a_folder_that_cannot_be_used_is_a_disk_failure(tmp_path):
    with pytest.raises(DiskFailure, match="No such file or directory"):
        Journal(str(tmp_path / "missing"))


def test_a_broken_write_that_cannot_be_taken_back_ends_writing(tmp_path, monkeypatch):
    journal = Journal(str(tmp_path))
    journal.append(b"one")

    def fails(*args):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fails)
        patch.setattr(os, "ftruncate", fails)
        with pytest.raises(DiskFailure):
            journal.append(b"two")
    assert "cannot take back" in journal.poisoned
    with pytest.raises(DiskFailure):
        journal.append(b"three")
    journal.close()
    assert read(tmp_path) == known([b"one"])


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_after_a_failed_fdatasync_nothing_is_acknowledged_ever_again(tmp_path, monkeypatch, fsync):
    journal = Journal(str(tmp_path), fsync=fsync)
    offset = journal.append(b"not durable")

    def fails(number):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fails)
        with pytest.raises(DiskFailure, match="fdatasync failed: Input/output error"):
            journal._sync(offset)
    calls = Calls(monkeypatch, tmp_path)  # from here on the disk is well again
    for _ in range(3):
        with pytest.raises(DiskFailure):
            journal.sync(offset)
        with pytest.raises(DiskFailure):
            journal.append(b"more")
    assert "fdatasync" in journal.poisoned
    journal.close()
    assert calls.take() == []
    assert journal.end == 1


def test_all_who_wait_for_a_failing_fdatasync_are_told(tmp_path, monkeypatch):
    journal = Journal(str(tmp_path))
    begun, go, told = threading.Event(), threading.Event(), []

    def fails(number):
        begun.set()
        assert go.wait(PATIENCE)
        raise OSError(errno.EIO, "Input/output error")

    def sync(offset):
        try:
            journal.sync(offset)
        except DiskFailure:
            told.append(offset)

    monkeypatch.setattr(os, "fdatasync", fails)
    offsets = [journal.append(b"%d" % n) for n in range(8)]
    threads = [threading.Thread(target=sync, args=(offset,), daemon=True) for offset in offsets]
    for thread in threads:
        thread.start()
    assert begun.wait(PATIENCE)
    go.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(told) == offsets
    journal.close()


def test_what_interrupts_an_fdatasync_acknowledges_nothing(tmp_path, monkeypatch):
    journal = Journal(str(tmp_path))
    offset = journal.append(b"one")

    def interrupted(number):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            journal.sync(offset)
    calls = Calls(monkeypatch, tmp_path)
    journal.sync(offset)
    assert calls.take() == [("fdatasync", name(0))]
    journal.close()


def test_running_out_of_file_numbers_stops_no_sync(tmp_path, monkeypatch):
    journal = Journal(str(tmp_path))
    offset = journal.append(b"one")

    def none_left(*args):
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "dup", none_left)
        patch.setattr(os, "open", none_left)
        journal.sync(offset)
    journal.close()


def refuse(monkeypatch, owner, call, number, when):
    """Let this call fail, as often as `when` says so of its argument."""
    real = getattr(owner, call)

    def refused(what, *args, **options):
        path = os.readlink(f"/proc/self/fd/{what}") if isinstance(what, int) else str(what)
        if when(path):
            raise OSError(number, os.strerror(number))
        return real(what, *args, **options)

    monkeypatch.setattr(owner, call, refused)


@pytest.mark.parametrize("call", ["open", "write"])
def test_a_segment_that_cannot_begin_is_tried_again(tmp_path, monkeypatch, call):
    journal = Journal(str(tmp_path), segment_bytes=1)
    journal.append(b"one")
    with monkeypatch.context() as patch:
        refuse(patch, os, call, errno.ENOSPC, lambda path: path.endswith(".early"))
        for _ in range(3):
            with pytest.raises(Unavailable):
                journal.append(b"refused")
    assert journal.append(b"two") == 1
    assert journal.append(b"three") == 2
    assert list(journal.read(0)) == known([b"one", b"two", b"three"])
    journal.close()
    assert read(tmp_path) == known([b"one", b"two", b"three"])
    assert not list(tmp_path.glob("*.early"))


@pytest.mark.parametrize("which", ["folder", "file"])
def test_a_failed_fsync_of_a_new_segment_or_its_name_ends_writing(tmp_path, monkeypatch, which):
    journal = Journal(str(tmp_path), segment_bytes=1)
    journal.append(b"one")
    with monkeypatch.context() as patch:
        refuse(patch, os, "fsync", errno.EIO, lambda path: (path == str(tmp_path)) == (which == "folder"))
        journal.append(b"two")
        with pytest.raises(DiskFailure):
            journal.sync(1)
    with pytest.raises(DiskFailure, match="sync failed"):
        journal.append(b"three")
    journal.close()
    assert read(tmp_path)[:1] == known([b"one"])


def test_a_segment_that_cannot_be_deleted_leaves_no_hole(tmp_path, monkeypatch):
    journal = Journal(str(tmp_path), segment_bytes=1)
    for _ in range(4):
        journal.append(b"x")
    with monkeypatch.context() as patch:
        refuse(patch, Path, "unlink", errno.EPERM, lambda path: path.endswith(name(0)))
        with pytest.raises(Unavailable):
            journal.drop_before(3)
        with pytest.raises(Unavailable):
            journal.drop_before(3)
    assert list(journal.read(0)) == known([b"x"] * 4)
    journal.drop_before(3)
    assert (journal.start, journal.end) == (3, 4)
    journal.close()


def test_a_record_that_is_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(file, "MAX_RECORD", 100)
    journal = Journal(str(tmp_path))
    with pytest.raises(TooLarge):
        journal.append(b"x" * 101)
    assert journal.append(b"x" * 100) == 0
    journal.close()
    assert read(tmp_path) == known([b"x" * 100])


def test_an_unknown_durability_is_refused(tmp_path):
    with pytest.raises(Misconfigured, match="always or everysec"):
        Journal(str(tmp_path), fsync="never")


def test_a_segment_ends_with_its_time_too_but_never_empty(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(file.time, "monotonic", lambda: now[0])
    journal = Journal(str(tmp_path), segment_seconds=60.0)
    for at in (0.0, 59.9, 60.0, 119.9, 500.0, 1000.0):
        now[0] = at
        journal.append(b"at %g" % at)
    now[0] = 5000.0
    journal.close()
    assert [path.name for path in sorted(tmp_path.glob("*.journal"))] == [name(n) for n in (0, 2, 4, 5)]
    now[0] = 9000.0
    journal = Journal(str(tmp_path), segment_seconds=60.0)
    now[0] = 9059.0
    journal.append(b"the segment is as old as the process")
    assert len(list(tmp_path.glob("*.journal"))) == 4
    journal.close()


# The order of things


def test_a_full_segment_keeps_no_writer_waiting_and_is_durable_before_the_next_has_its_name(
    tmp_path, monkeypatch
):
    calls = Calls(monkeypatch, tmp_path)
    journal = Journal(str(tmp_path), segment_bytes=1)
    created = [("fsync", f"{name(0)}.tmp"), ("replace", f"{name(0)}.tmp"), ("fsync", "")]
    assert calls.take() == created
    journal.append(b"one")
    assert calls.take() == [("write", name(0))]
    journal.append(b"two")
    assert calls.take() == [("write", f"{name(1)}.early")] * 2
    journal.sync(1)
    assert calls.take() == [
        ("fdatasync", name(0)),  # what is durable is always a prefix
        ("fsync", f"{name(1)}.early"),
        ("rename", f"{name(1)}.early"),
        ("fsync", ""),
        ("fdatasync", name(1)),
    ]
    journal.append(b"three")
    calls.take()
    journal.settle()  # nobody has asked for it
    assert ("rename", f"{name(2)}.early") in calls.take()
    journal.settle()
    assert calls.take() == []
    journal.close()


def test_dropped_segments_go_one_by_one_oldest_first(tmp_path, monkeypatch):
    journal = Journal(str(tmp_path), segment_bytes=1)
    for _ in range(4):
        journal.append(b"x")
    journal.settle()
    calls = Calls(monkeypatch, tmp_path)
    journal.drop_before(2)
    assert calls.take() == [("unlink", name(0)), ("fsync", ""), ("unlink", name(1)), ("fsync", "")]
    assert first_offset(tmp_path) == journal.start == 2
    with pytest.raises(Damaged, match="from 1 to 1 are no longer there"):
        next(journal.read(1))
    assert list(journal.read(2)) == [(2, b"x"), (3, b"x")]
    journal.close()


def test_sync_returns_after_an_fdatasync_that_began_after_the_write(tmp_path, monkeypatch):
    """One fdatasync is held up; a record written meanwhile must wait for the next."""
    journal = Journal(str(tmp_path))
    begun, go = [threading.Event(), threading.Event()], [threading.Event(), threading.Event()]
    real, count = os.fdatasync, []

    def held(number):
        turn = len(count)
        count.append(turn)
        begun[turn].set()
        assert go[turn].wait(PATIENCE)
        real(number)

    monkeypatch.setattr(os, "fdatasync", held)
    done = [threading.Event(), threading.Event()]

    def sync(offset):
        journal.sync(offset)
        done[offset].set()

    threads = [threading.Thread(target=sync, args=(offset,), daemon=True) for offset in range(2)]
    journal.append(b"first")
    threads[0].start()
    assert begun[0].wait(PATIENCE)
    journal.append(b"second")
    threads[1].start()
    assert not done[0].is_set()
    go[0].set()
    assert done[0].wait(PATIENCE)
    assert begun[1].wait(PATIENCE)
    assert not done[1].is_set()
    go[1].set()
    assert done[1].wait(PATIENCE)
    for thread in threads:
        thread.join(PATIENCE)
    assert len(count) == 2
    journal.close()


@pytest.mark.parametrize("segment_bytes", [10**6, 500])
def test_many_threads_share_an_fdatasync_and_each_waits_for_its_own(tmp_path, monkeypatch, segment_bytes):
    journal = Journal(str(tmp_path), segment_bytes=segment_bytes)
    n_threads, n_each = 16, 30
    lock, clock = threading.Lock(), iter(range(10**9))  # `next` of a range is atomic
    syncs, waits = [], []
    real = os.fdatasync
    together = threading.Barrier(n_threads)

    def timed(number):
        begin = next(clock)
        real(number)
        syncs.append((begin, next(clock), os.readlink(f"/proc/self/fd/{number}")))

    def work():
        together.wait(PATIENCE)
        for _ in range(n_each):
            with lock:
                offset = journal.append(b"x" * 20)
                appended, path = next(clock), str(journal._segments[-1].path)
            journal.sync(offset)
            waits.append((appended, next(clock), path))

    monkeypatch.setattr(os, "fdatasync", timed)
    threads = [threading.Thread(target=work, daemon=True) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert len(waits) == n_threads * n_each
    for appended, returned, path in waits:
        assert any(appended < begin and end < returned and path == of for begin, end, of in syncs)
    if segment_bytes == 10**6:
        assert len(syncs) < len(waits)
    monkeypatch.undo()
    journal.close()
    assert len(read(tmp_path)) == n_threads * n_each


def test_who_waits_for_the_disk_is_told_at_once_when_writing_has_ended(tmp_path, monkeypatch):
    journal, go, begun, told = Journal(str(tmp_path)), threading.Event(), threading.Event(), threading.Event()
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda number: (begun.set(), go.wait(PATIENCE), real(number)))

    def wait():
        with pytest.raises(DiskFailure):
            journal.sync(1)
        told.set()

    leader = threading.Thread(target=journal.sync, args=(journal.append(b"first"),), daemon=True)
    leader.start()
    assert begun.wait(PATIENCE)
    journal.append(b"second")
    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    while not journal._waiting:
        time.sleep(0.001)
    with monkeypatch.context() as patch:
        for call in ("write", "ftruncate"):
            refuse(patch, os, call, errno.EIO, lambda path: path.endswith(".journal"))
        with pytest.raises(DiskFailure):
            journal.append(b"third")
    assert told.wait(PATIENCE)  # though the disk has not answered
    go.set()
    leader.join(PATIENCE)
    waiter.join(PATIENCE)


def test_everysec_returns_at_once_and_syncs_in_the_background(tmp_path, monkeypatch):
    synced, real = threading.Event(), os.fdatasync

    def fdatasync(number):
        real(number)
        synced.set()

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    journal = Journal(str(tmp_path), fsync="everysec")
    with journal._guard:  # no background sync can end while this is held
        journal.sync(journal.append(b"one"))
        assert journal._durable == 0
    assert synced.wait(PATIENCE)
    journal.close()


def test_a_flush_waits_for_the_disk_whatever_sync_promises(tmp_path, monkeypatch):
    journal = Journal(str(tmp_path), fsync="everysec")
    journal.append(b"one")
    journal.flush()
    calls = Calls(monkeypatch, tmp_path)
    journal.append(b"two")
    journal.append(b"three")
    journal.flush()
    assert calls.take() == [("write", name(0)), ("write", name(0)), ("fdatasync", name(0))]
    journal.flush()
    assert calls.take() == []
    journal.close()


def test_a_folder_without_a_journal_has_nothing_in_it(tmp_path):
    assert (list(scan(tmp_path)), first_offset(tmp_path), torn_bytes(tmp_path)) == ([], 0, 0)


def test_everysec_makes_all_durable_at_close(tmp_path, monkeypatch):
    calls = Calls(monkeypatch, tmp_path)
    journal = Journal(str(tmp_path), fsync="everysec")
    journal.append(b"one")
    journal.close()
    assert calls.take()[-2:] == [("write", name(0)), ("fdatasync", name(0))]


# Readers


def test_a_reader_in_another_process_only_ever_sees_a_prefix(tmp_path):
    """The journal is written and rotated as fast as can be while others scan it."""
    journal = Journal(str(tmp_path), segment_bytes=20_000)
    records = [bytes([n % 251]) * (n * 37 % 9000) for n in range(1500)]
    stop, wrong, sizes = threading.Event(), [], []

    def follow():
        try:
            while not stop.is_set():
                seen = list(scan(tmp_path))
                if seen != known(records[: len(seen)]):
                    wrong.append("not a prefix")
                sizes.append(len(seen))
                if len(seen) > 200:
                    start = len(seen) - 20
                    if list(scan(tmp_path, start))[:20] != known(records)[start : start + 20]:
                        wrong.append("not what stands there")
        except Damaged as damaged:
            wrong.append(str(damaged))

    readers = [threading.Thread(target=follow, daemon=True) for _ in range(3)]
    for reader in readers:
        reader.start()
    for record in records:
        journal.append(record)
    stop.set()
    for reader in readers:
        reader.join(PATIENCE)
    journal.close()
    assert wrong == []
    assert list(scan(tmp_path)) == known(records)


class Behind:
    """A file as a reader sees it to which somebody appends just when its end was seen."""

    def __init__(self, real, grow, when=lambda got, size: got < size):
        self.real, self.grow, self.when, self.seek = real, grow, when, real.seek

    def read(self, size=-1):
        got = self.real.read(size)
        if self.when(len(got), size):
            self.grow()
        return got

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.real.close()


@pytest.mark.parametrize("part", [0, 5, HEAD.size, HEAD.size + 2])
def test_a_record_that_is_finished_while_the_reader_looks_is_no_damage(tmp_path, monkeypatch, part):
    [path] = write(tmp_path / "data", [b"one", b"two", b"three"])
    whole = path.read_bytes()
    end = HEADER.size + HEAD.size + len(b"one")
    path.write_bytes(whole[: end + part])
    real = Path.open

    def finish():
        with real(path, "r+b") as out:
            out.write(whole)

    monkeypatch.setattr(Path, "open", lambda self, *how: Behind(real(self, *how), finish))
    assert list(scan(tmp_path / "data")) == known([b"one", b"two", b"three"])


def test_a_record_that_was_taken_back_and_written_anew_under_a_reader_is_no_damage(tmp_path, monkeypatch):
    """The reader has the first half of a write that then failed; now something else stands there."""
    [path] = write(tmp_path / "data", [b"one", b"x" * 100])
    salt_crc = zlib.crc32(HEADER.unpack_from(path.read_bytes())[4])
    records = [b"one", b"yy", b"three"]
    path.write_bytes(path.read_bytes()[:120])
    real = Path.open

    def rewrite():
        with real(path, "r+b") as out:
            out.seek(HEADER.size)
            out.write(b"".join(file._record(salt_crc, *each) for each in known(records)))

    monkeypatch.setattr(Path, "open", lambda self, *how: Behind(real(self, *how), rewrite))
    assert list(scan(tmp_path / "data")) == known(records)


def test_what_looks_damaged_while_it_changes_is_looked_at_again(tmp_path, monkeypatch):
    """One read of the reader had the beginning of a write that failed and the end of the next one."""
    [path] = write(tmp_path / "data", [b"one", b"two"])
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + b"!")
    real = Path.open

    def finish():
        with real(path, "r+b") as out:
            out.write(whole)

    def whole_rest(got, size):
        return size == -1

    monkeypatch.setattr(Path, "open", lambda self, *how: Behind(real(self, *how), finish, whole_rest))
    assert list(scan(tmp_path / "data")) == known([b"one", b"two"])


def test_a_segment_that_a_listing_missed_is_read(tmp_path, monkeypatch):
    """Segments that begin while a folder is listed may be in the list or not, the later ones first."""
    paths = write(tmp_path, [b"x" * 50] * 9, segment_bytes=200)
    real = file._segments
    monkeypatch.setattr(
        file, "_segments", lambda folder: [each for each in real(folder) if each.path != paths[1]]
    )
    assert list(scan(tmp_path)) == known([b"x" * 50] * 9)


def test_a_segment_dropped_under_a_reader_is_said(tmp_path):
    journal = Journal(str(tmp_path), segment_bytes=1)
    for _ in range(3):
        journal.append(b"x")
    reading = scan(tmp_path)
    next(reading)
    journal.drop_before(2)
    with pytest.raises(Damaged, match="no longer there"):
        list(reading)
    journal.close()


# All of it


@settings(max_examples=60, deadline=None)
@given(
    runs=st.lists(st.lists(st.binary(max_size=60), max_size=12), max_size=5),
    segment_bytes=st.integers(1, 400),
    dropped=st.integers(0, 70),
    start=st.integers(0, 70),
)
def test_whatever_is_written_and_however_often_reopened_it_comes_back(
    tmp_path_factory, runs, segment_bytes, dropped, start
):
    folder = tmp_path_factory.mktemp("journal")
    expected = []
    for records in runs:
        journal = Journal(str(folder), segment_bytes=segment_bytes)
        for record in records:
            assert journal.append(record) == len(expected)
            expected.append(record)
            assert list(journal.read(len(expected) - 1)) == [(len(expected) - 1, record)]
        journal.close()
    assert read(folder) == list(scan(folder)) == known(expected)

    journal = Journal(str(folder), segment_bytes=segment_bytes)
    assert list(journal.read(start)) == known(expected)[start:]
    journal.drop_before(dropped)
    assert list(journal.read(journal.start)) == known(expected)[journal.start :]
    assert journal.start <= dropped
    journal.close()
    journal = Journal(str(folder))
    assert (journal.end, list(journal.read(journal.start))) == (
        len(expected),
        known(expected)[journal.start :],
    )
    journal.close()
    shutil.rmtree(folder)


def test_one_record_is_read_from_the_nearest_remembered_place(tmp_path, monkeypatch):
    monkeypatch.setattr(file, "MARK_EVERY", 10)
    records = [b"%d" % n for n in range(300)]
    write(tmp_path, records[:200], segment_bytes=1000)
    journal = Journal(str(tmp_path), segment_bytes=1000)
    for record in records[200:]:
        journal.append(record)
    list(journal.read(0))  # as recovery does: places are remembered in older segments too
    looked, real = [], file._crc

    def crc(*args):
        looked.append(args)
        return real(*args)

    monkeypatch.setattr(file, "_crc", crc)
    for start in range(300):
        looked.clear()
        assert next(journal.read(start)) == (start, records[start])
        assert len(looked) <= 10
    journal.drop_before(250)
    assert min(journal._marks) >= journal.start > 200
    for start in range(journal.start, 300):
        assert list(journal.read(start)) == known(records)[start:]
    journal.close()


def sealed(folder, monkeypatch):
    """A journal of five records, of which the last two stand in a segment that was begun early."""
    folder.mkdir()
    journal = Journal(str(folder))
    for record in (b"a", b"b", b"c"):
        journal.append(record)

    def waits(number):
        raise AssertionError("waits for the disk")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", waits)
        patched.setattr(os, "fdatasync", waits)
        assert journal.seal() == 3
    for record in (b"d", b"e"):
        journal.append(record)
    return journal


def test_sealing_waits_for_no_disk_and_whoever_syncs_next_does_it_in_order(tmp_path, monkeypatch):
    journal = sealed(tmp_path / "journal", monkeypatch)
    expected = known([b"a", b"b", b"c", b"d", b"e"])
    assert list(journal.read(0)) == expected
    calls = Calls(monkeypatch, journal.folder)
    journal.sync(0)

    first, second = (f"{number:020d}.journal" for number in (0, 3))
    assert [call for call, _ in calls.made] == ["fdatasync", "fsync", "rename", "fsync", "fdatasync"]
    assert calls.made[0] == ("fdatasync", first)
    assert calls.made[3] == ("fsync", "")  # the name of the second, once both were durable
    assert sorted(path.name for path in journal.folder.iterdir()) == [first, second]
    assert journal.rewrite(lambda offset, record: record.upper(), 0, 3) == 3
    assert list(journal.read(0)) == known([b"A", b"B", b"C", b"d", b"e"])
    journal.close()


def test_what_a_killed_process_wrote_into_an_early_segment_is_there(tmp_path, monkeypatch):
    journal = sealed(tmp_path / "journal", monkeypatch)
    shutil.copytree(journal.folder, tmp_path / "killed")
    journal.close()

    assert read(tmp_path / "killed") == known([b"a", b"b", b"c", b"d", b"e"])
    assert read(tmp_path / "killed") == known([b"a", b"b", b"c", b"d", b"e"])


@pytest.mark.parametrize("lost", ["the end of the old one", "the header", "all of it"])
def test_after_a_power_cut_an_early_segment_counts_only_if_nothing_before_it_is_missing(
    tmp_path, monkeypatch, lost
):
    journal = sealed(tmp_path / "journal", monkeypatch)
    folder = tmp_path / "cut"
    shutil.copytree(journal.folder, folder)
    journal.close()
    old, early = sorted(folder.iterdir())
    if lost == "the end of the old one":
        os.truncate(old, old.stat().st_size - 3)
    elif lost == "the header":
        early.write_bytes(bytes(early.stat().st_size))
    else:
        os.truncate(early, 0)
    left = [b"a", b"b"] if lost == "the end of the old one" else [b"a", b"b", b"c"]

    assert read(folder) == known(left)
    assert [path.name for path in folder.iterdir()] == [old.name]
    write(folder, [b"x"] * 5)  # and nothing comes back where it would fit
    assert read(folder) == known([*left, *[b"x"] * 5])


def test_an_early_segment_without_a_record_gets_its_name_too(tmp_path):
    journal = Journal(str(tmp_path))
    journal.append(b"a")
    journal.sync(0)
    journal.seal()
    journal.flush()

    assert len(list(tmp_path.glob("*.journal"))) == 2
    journal.append(b"b")
    assert list(scan(tmp_path)) == known([b"a", b"b"])  # as another process sees it
    journal.close()


def test_what_stands_before_an_early_segment_is_not_dropped_until_that_has_its_name(tmp_path, monkeypatch):
    journal = sealed(tmp_path / "journal", monkeypatch)
    journal.drop_before(3)
    shutil.copytree(journal.folder, tmp_path / "killed")
    journal.close()
    copy = Journal(str(tmp_path / "killed"))
    assert list(copy.read(3)) == known([b"a", b"b", b"c", b"d", b"e"])[3:]
    copy.close()
