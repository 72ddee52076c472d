"""What is acknowledged is there after a power cut, a kill or a full disk, and nothing half-written is."""

import os
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from banditads.directory import DataDirectory, read_config
from banditads.errors import Unavailable
from banditads.journal import file
from banditads.journal.file import Journal, scan
from banditads.snapshots import Snapshots

KEY = b"k" * 32


class Disk:
    """What a disk keeps: what was fsynced, and perhaps some of the rest.

    Around every change `check` is called with a copy of the folder as a power cut might leave it: once with
    only those bytes that were fsynced, under names whose folder was; once with half of the rest.
    """

    CHANGES = (
        (os, "write"),
        (os, "fsync"),
        (os, "fdatasync"),
        (Path, "replace"),
        (Path, "rename"),
        (Path, "unlink"),
    )

    def __init__(self, folder, copies):
        self.folder, self.copies = folder, copies
        self.bytes, self.names, self.kept, self.cuts = {}, {}, [], 0

    @contextmanager
    def watched(self, check):
        real = {(owner, name): getattr(owner, name) for owner, name in self.CHANGES}

        def put(calls):
            for (owner, name), call in calls.items():
                setattr(owner, name, call)

        def cut():
            put(real | {(os, "fsync"): lambda number: None, (os, "fdatasync"): lambda number: None})
            check(self.left(half=False))
            check(self.left(half=True))
            put(watching)

        def watch(call):
            def watched(what, *args, **options):
                cut()
                result = call(what, *args, **options)
                if call.__name__ in ("fsync", "fdatasync"):
                    self.synced(what)
                cut()
                return result

            return watched

        watching = {key: watch(call) for key, call in real.items()}
        put(watching)
        try:
            yield
            cut()
        finally:
            put(real)
            for number in self.kept:
                os.close(number)

    def synced(self, number):
        path = Path(os.readlink(f"/proc/self/fd/{number}"))
        if stat.S_ISDIR(os.fstat(number).st_mode):
            self.names[path] = {entry.name: entry.inode() for entry in os.scandir(path)}
        else:
            self.kept.append(os.dup(number))  # so that no other file gets its inode
            self.bytes[os.fstat(number).st_ino] = path.read_bytes()

    def left(self, half):
        self.cuts += 1
        copy = self.copies / str(self.cuts)
        copy.mkdir()
        for name, inode in self.names.get(self.folder, {}).items() if not half else ():
            (copy / name).write_bytes(self.bytes.get(inode, b""))
        for path in self.folder.iterdir() if half else ():
            kept, now = self.bytes.get(path.stat().st_ino, b""), path.read_bytes()
            (copy / path.name).write_bytes(now[: (len(kept) + len(now)) // 2])
        return copy


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "copies").mkdir()
    return Disk(tmp_path / "data", tmp_path / "copies")


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_after_a_power_cut_at_any_call_all_that_was_acknowledged_is_there(disk, fsync, monkeypatch):
    monkeypatch.setattr(file, "FLUSH_SECONDS", 3600.0)  # what another thread syncs during a check is not seen
    records = [b"%d" % n * (n % 7) for n in range(40)]
    acknowledged = {"config": None, "records": 0}

    def check(copy):
        with DataDirectory(copy) as directory:
            assert read_config(directory.path) == acknowledged["config"] or not acknowledged["config"]
            snapshots = [offset for offset, _ in Snapshots(copy, KEY).load()]
            journal = Journal(str(copy), segment_bytes=150)
            there = list(journal.read(journal.start))
            assert there == list(enumerate(records))[journal.start : journal.end]
            assert all(journal.start <= offset <= journal.end for offset in snapshots or [0])  # each leads on
            assert journal.end >= acknowledged["records"]
            assert journal.append(b"goes on") == len(there) + journal.start
            journal.close()
            assert list(scan(copy, journal.start)) == [*there, (journal.end - 1, b"goes on")]
        shutil.rmtree(copy)

    with disk.watched(check), DataDirectory(disk.folder) as directory:
        directory.check({"policy": "vw"})
        acknowledged["config"] = {"policy": "vw"}
        journal = Journal(str(disk.folder), fsync=fsync, segment_bytes=150)
        snapshots = Snapshots(disk.folder, KEY)
        for record in records:
            offset = journal.append(record)
            if offset % 7 == 5:
                journal.seal()
            if offset % 3 == 0:
                journal.sync(offset)
                acknowledged["records"] = offset + 1 if fsync == "always" else 0
            if offset % 10 == 9:
                journal.flush()  # as the engine does
                snapshots.save(offset + 1, b"state at %d" % offset)
                journal.drop_before(snapshots.older_offset())
        journal.close()
        acknowledged["records"] = len(records)
    assert disk.cuts > 400


def test_after_a_kill_a_power_cut_finds_no_name_of_a_segment_that_is_not_there_yet(disk):
    """What a killed process had sealed gets its name from the next one, which may lose its power too."""
    killed = []

    def check(copy):
        if killed:
            journal = Journal(str(copy))
            there = list(journal.read(0))
            assert there == [(n, b"record") for n in range(journal.end)]
            assert there
            journal.close()
        shutil.rmtree(copy)

    disk.folder.mkdir()
    with disk.watched(check):
        journal = Journal(str(disk.folder))
        journal.sync(journal.append(b"record"))
        journal.seal()
        journal.append(b"record")
        killed += [journal._early.old, journal._early.new]
        for number in killed:
            os.close(number)
        journal = Journal(str(disk.folder))
        assert journal.end == 2
        journal.close()
    assert disk.cuts > 30


def test_after_a_power_cut_while_it_is_rewritten_every_segment_is_the_old_or_the_new(disk):
    records = [b"%d:" % n * 5 for n in range(30)]
    state = {"complete": False, "sealed": 0, "durable": 0}

    def scrub(offset, record):
        return b"gone" if offset % 4 == 0 else None

    def check(copy):
        for path in copy.glob("*.tmp"):
            path.unlink()  # as whoever has the directory does first
        found = list(scan(copy))
        for offset, record in found:
            assert record in (records[offset], b"gone" if offset % 4 == 0 else b"")
        journal = Journal(str(copy), segment_bytes=150)
        assert journal.end >= state["durable"]
        assert list(journal.read(0))[: len(found)] == found
        if state["complete"]:
            assert [each for _, each in found].count(b"gone") == 8
        else:
            assert journal.rewrite(scrub, 0, journal.seal()) >= 7
        journal.close()
        shutil.rmtree(copy)

    disk.folder.mkdir()
    with disk.watched(lambda copy: check(copy) if state["sealed"] else shutil.rmtree(copy)):
        journal = Journal(str(disk.folder), segment_bytes=150)
        for record in records:
            journal.append(record)
        state["sealed"] = journal.seal()

        def scrub_really(offset, record):
            state["durable"] = state["sealed"]  # before it rewrites anything
            return scrub(offset, record)

        journal.rewrite(scrub_really, 0, state["sealed"])
        state["complete"] = True
        journal.close()
    assert disk.cuts > 100


REWRITE = """
import sys
from banditads.journal.file import Journal
journal = Journal(sys.argv[1], segment_bytes=3000)
print(journal.end, flush=True)
number = journal.end
while True:
    for _ in range(20):
        journal.append(b"%d," % journal.end * 40)
    journal.rewrite(lambda offset, record: record + b"!" if offset % 9 == 0 else None, 0, journal.seal())
    print(journal.end, flush=True)
"""


def test_a_journal_that_is_rewritten_survives_being_killed_again_and_again(tmp_path):
    for lines in (1, 2, 6):
        with subprocess.Popen(
            [sys.executable, "-c", REWRITE, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as process:
            for _ in range(lines):
                end = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
        there = list(scan(tmp_path))
        assert len(there) >= end
        for number, (offset, record) in enumerate(there):
            assert offset == number
            assert record.rstrip(b"!") == b"%d," % offset * 40
            assert offset % 9 == 0 or not record.endswith(b"!")
        for path in tmp_path.glob("*.tmp"):
            path.unlink()


APPEND = """
import sys
from banditads.journal.file import Journal
journal = Journal(sys.argv[1], segment_bytes=3000)
print(journal.end, flush=True)
while True:
    offset = journal.append(b"%d," % journal.end * 40)
    if offset % 5 == 0:
        journal.sync(offset)
        print(offset, flush=True)
"""


def test_all_that_was_acknowledged_survives_being_killed_again_and_again(tmp_path):
    acknowledged = -1
    for lines in (1, 2, 40, 100):
        with subprocess.Popen(
            [sys.executable, "-c", APPEND, str(tmp_path)], stdout=subprocess.PIPE, text=True
        ) as process:
            assert int(process.stdout.readline()) > acknowledged
            for _ in range(lines):
                acknowledged = int(process.stdout.readline())
            process.send_signal(signal.SIGKILL)
        there = list(scan(tmp_path))
        assert len(there) > acknowledged
        assert there == [(offset, b"%d," % offset * 40) for offset in range(len(there))]


def test_a_really_full_disk_takes_nothing_and_the_next_try_works(tmp_path):
    """The system itself writes half of it and then refuses."""
    journal = Journal(str(tmp_path))
    journal.append(b"one")
    size = journal._segments[-1].path.stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for room in (0, 1, 16, 50):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + room, hard))
        try:
            with pytest.raises(Unavailable, match="File too large"):
                journal.append(b"x" * 100)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert journal._segments[-1].path.stat().st_size == size
        assert list(scan(tmp_path)) == [(0, b"one")]
    assert journal.append(b"two") == 1
    journal.sync(1)
    journal.close()
    assert list(scan(tmp_path)) == [(0, b"one"), (1, b"two")]


ACKNOWLEDGE = """
import sys
from banditads.journal.file import Journal
journal = Journal(sys.argv[1], segment_bytes=1)
for _ in range(2):
    journal.sync(journal.append(b"record"))
    print("acknowledged", flush=True)
"""


def test_the_system_is_asked_in_the_right_order(tmp_path):
    """The same as the tests with recorded calls, but as the kernel saw it."""
    folder, seen = tmp_path / "data", tmp_path / "seen"
    folder.mkdir()
    strace = shutil.which("strace")
    if not strace:
        pytest.skip("strace is not installed")
    tried = subprocess.run([strace, "-o", seen, "true"], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip(f"strace may not be used here: {tried.stderr.decode()}")
    calls = "write,pwrite64,fsync,fdatasync,rename,renameat,renameat2"
    subprocess.run(
        [strace, "-f", "-y", "-e", f"trace={calls}", "-o", seen, sys.executable, "-c", ACKNOWLEDGE, folder],
        check=True,
        capture_output=True,
    )
    found = re.findall(
        rf'(\w+)\((?:\d+<{folder}/?([^>]*)>|"{folder}/([^"]*)"|1<.*acknowledged)', seen.read_text()
    )
    first, second = (f"{number:020d}.journal" for number in range(2))

    assert [(call.replace("pwrite64", "write"), path or renamed) for call, path, renamed in found] == [
        ("write", f"{first}.tmp"),
        ("fsync", f"{first}.tmp"),
        ("rename", f"{first}.tmp"),
        ("fsync", ""),
        ("write", first),
        ("fdatasync", first),
        ("write", ""),  # the acknowledgement
        ("write", f"{second}.early"),
        ("write", f"{second}.early"),
        ("fdatasync", first),
        ("fsync", f"{second}.early"),
        ("rename", f"{second}.early"),
        ("fsync", ""),
        ("fdatasync", second),
        ("write", ""),
    ]
