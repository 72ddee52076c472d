"""The data directory: one holder, one configuration, old or new and nothing between."""

import errno
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from banditads.directory import DataDirectory, read_config, write_durably
from banditads.errors import Damaged, DiskFailure, InUse, Misconfigured

HOLD = """
import sys
from pathlib import Path
from banditads.directory import DataDirectory
with DataDirectory(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the directory until its input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_and_the_first_is_unharmed(holder, tmp_path):
    (tmp_path / "half.tmp").write_text("the first is writing this")
    with pytest.raises(InUse, match=rf"in use by another process \(process {holder.pid}\)"):
        DataDirectory(tmp_path)
    with pytest.raises(InUse):  # the refused one did not free it
        DataDirectory(tmp_path)

    assert (tmp_path / "half.tmp").exists()
    assert (tmp_path / "LOCK").read_text() == f"{holder.pid}\n"
    holder.communicate()
    assert holder.returncode == 0
    DataDirectory(tmp_path).close()


def test_a_killed_holder_leaves_no_stale_lock(holder, tmp_path):
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with DataDirectory(tmp_path):
        assert (tmp_path / "LOCK").read_text() == f"{os.getpid()}\n"


def test_a_directory_is_made_for_us_only_with_all_its_parents(tmp_path, monkeypatch):
    synced = []
    real = os.fsync

    def fsync(number):
        synced.append(os.readlink(f"/proc/self/fd/{number}"))
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "a" / "b"
    DataDirectory(path).close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert sorted(synced) == [str(tmp_path), str(tmp_path / "a")]  # its name is on the disk


@pytest.mark.parametrize("inside", ["file", "file/data"])
def test_a_directory_that_cannot_be_one_is_a_wrong_setting(tmp_path, inside):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Misconfigured, match=f"data directory {tmp_path / inside} cannot be used"):
        DataDirectory(tmp_path / inside)


def test_a_full_disk_does_not_stop_a_start(tmp_path):
    """Its owner cannot be written down, and is the owner all the same."""
    (tmp_path / "LOCK").touch()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        directory = DataDirectory(tmp_path)
        with pytest.raises(InUse, match=r"in use by another process$"):
            DataDirectory(tmp_path)
        directory.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_first_configuration_is_written_down_and_an_equal_one_accepted(tmp_path):
    with DataDirectory(tmp_path) as directory:
        assert read_config(tmp_path) is None
        assert directory.check({"policy": "vw", "floor": 0.1, "options": {"b": [1], "a": None}}) is False
    with DataDirectory(tmp_path) as directory:
        assert directory.check({"options": {"a": None, "b": [1]}, "floor": 0.1, "policy": "vw"}) is False
    assert read_config(tmp_path) == {"policy": "vw", "floor": 0.1, "options": {"b": [1], "a": None}}


def test_a_configuration_that_json_writes_another_way_is_the_same(tmp_path):
    with DataDirectory(tmp_path) as directory:
        directory.check({"slots": (1, 2), "by_number": {1: 0.5}})
        assert directory.check({"slots": (1, 2), "by_number": {1: 0.5}}) is False


def test_every_difference_is_named(tmp_path):
    with DataDirectory(tmp_path) as directory:
        directory.check({"policy": "vw", "wait": 60.0, "gone": 1, "same": 5})
        with pytest.raises(Misconfigured) as refused:
            directory.check({"policy": "linucb", "wait": 90.0, "new": "x", "same": 5})
    said = str(refused.value)
    for each in (
        "--policy was vw and is now linucb",
        "--reward-wait was 60 and is now 90",
        "gone was 1 and is now empty",
        "new was empty and is now x",
        "--relearn",
    ):
        assert each in said
    assert "same" not in said


def test_relearning_takes_the_new_configuration_once_it_is_committed(tmp_path):
    old, new = {"policy": "vw"}, {"policy": "linucb"}
    with DataDirectory(tmp_path) as directory:
        directory.check(old)
        assert directory.check(old, relearn=True) is False
        assert directory.check(new, relearn=True) is True
        assert read_config(tmp_path) == old  # a crash while learning again starts over
        directory.commit(new)
        assert directory.check(new) is False


def test_a_damaged_configuration_is_never_taken_for_another(tmp_path):
    identity = {"policy": "vw", "wait": 60.0}
    with DataDirectory(tmp_path) as directory:
        directory.check(identity)
        path = tmp_path / "CONFIG"
        whole = path.read_bytes()
        for place in range(len(whole)):
            for change in (1, 2, 4, 8, 16, 32, 64, 128, 255):
                broken = bytearray(whole)
                broken[place] ^= change
                path.write_bytes(broken)
                with pytest.raises(Damaged, match="CONFIG is damaged"):
                    directory.check(identity)
        for size in range(len(whole)):
            path.write_bytes(whole[:size])
            with pytest.raises(Damaged):
                directory.check(identity, relearn=True)


def test_what_was_left_half_written_is_deleted(tmp_path):
    (tmp_path / "CONFIG.tmp").write_text("half")
    (tmp_path / "keep.txt").write_text("whole")
    DataDirectory(tmp_path).close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["LOCK", "keep.txt"]


def test_what_is_checked_is_what_the_disk_has(tmp_path, monkeypatch):
    """Bytes that are still in memory would read back well from any disk."""
    told, real = [], os.posix_fadvise

    def advise(number, *args):
        told.append((os.readlink(f"/proc/self/fd/{number}"), args))
        real(number, *args)

    monkeypatch.setattr(os, "posix_fadvise", advise)
    write_durably(tmp_path / "file", b"one", check=told.append)
    new = tmp_path / "file.tmp"
    assert told == [(str(new), (0, 0, os.POSIX_FADV_DONTNEED)), new]


def test_a_file_is_durable_before_it_has_its_name_and_then_its_name_is(tmp_path, monkeypatch):
    calls = []
    real_fsync, real_replace = os.fsync, Path.replace

    def fsync(number):
        path = Path(os.readlink(f"/proc/self/fd/{number}"))
        calls.append(("fsync", path, path.read_bytes() if path.is_file() else None))
        real_fsync(number)

    def replace(path, target):
        calls.append(("replace", path, target))
        return real_replace(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "replace", replace)
    path, new = tmp_path / "file", tmp_path / "file.tmp"
    write_durably(path, b"one", b"two", check=lambda new: calls.append(("check", new, new.read_bytes())))
    assert calls == [
        ("fsync", new, b"onetwo"),
        ("check", new, b"onetwo"),
        ("replace", new, path),
        ("fsync", tmp_path, None),
    ]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_file_whose_fsync_failed_is_not_there(tmp_path, monkeypatch, number):
    (tmp_path / "file").write_bytes(b"old")

    def fails(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(DiskFailure, match="fsync failed"):
        write_durably(tmp_path / "file", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


@pytest.mark.parametrize("error", [OSError("no"), ValueError("bad"), KeyboardInterrupt()])
def test_whatever_is_raised_nothing_is_left_behind(tmp_path, monkeypatch, error):
    def fails(*args):
        raise error

    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(type(error)):
        write_durably(tmp_path / "file", b"new", check=fails)
    monkeypatch.setattr(Path, "replace", fails)
    with pytest.raises(type(error)):
        write_durably(tmp_path / "file", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]
