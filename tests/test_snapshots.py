"""Snapshots: whole and ours, or not used."""

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from banditads.directory import DataDirectory
from banditads.errors import Unavailable
from banditads.snapshots import TAG_BYTES, Snapshots

KEY = b"k" * 32


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def no_space(*args):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@settings(max_examples=20)
@given(saved=st.binary(max_size=300), offset=st.integers(0, 2**63))
def test_a_snapshot_comes_back_as_it_was_saved(tmp_path_factory, saved, offset):
    folder = tmp_path_factory.mktemp("snapshots")
    path = Snapshots(folder, KEY).save(offset, saved)
    assert list(Snapshots(folder, KEY).load()) == [(offset, saved)]
    assert path.name == f"{offset:020d}.snapshot"


def test_the_newest_two_are_kept_newest_first(tmp_path):
    snapshots = Snapshots(tmp_path, KEY)
    assert (snapshots.offsets(), snapshots.older_offset(), list(snapshots.load())) == ([], 0, [])
    snapshots.save(5, b"five")
    assert (snapshots.offsets(), snapshots.older_offset()) == ([5], 0)
    for offset in (9, 100, 1000):
        snapshots.save(offset, b"%d" % offset)
    assert (snapshots.offsets(), snapshots.older_offset()) == ([1000, 100], 100)
    assert list(snapshots.load()) == [(1000, b"1000"), (100, b"100")]
    assert len(names(tmp_path)) == 2


def test_saving_the_same_offset_again_replaces_it(tmp_path):
    snapshots = Snapshots(tmp_path, KEY)
    snapshots.save(5, b"old")
    snapshots.save(7, b"seven")
    snapshots.save(7, b"new")
    assert list(snapshots.load()) == [(7, b"new"), (5, b"old")]


def test_a_flipped_bit_anywhere_means_the_older_one_is_used(tmp_path, caplog):
    snapshots = Snapshots(tmp_path, KEY)
    snapshots.save(1, b"older")
    path = snapshots.save(2, b"newer state")
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        assert list(snapshots.load()) == [(1, b"older")]
    assert str(path) in caplog.text


def test_a_cut_or_longer_file_is_not_used(tmp_path):
    snapshots = Snapshots(tmp_path, KEY)
    path = snapshots.save(2, b"state")
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        assert list(snapshots.load()) == []
    path.write_bytes(whole + b"\0")
    assert list(snapshots.load()) == []


def test_a_snapshot_of_another_key_is_not_used(tmp_path):
    Snapshots(tmp_path, KEY).save(2, b"state")
    assert list(Snapshots(tmp_path, b"j" * 32).load()) == []


def test_a_snapshot_under_another_offset_is_not_used(tmp_path):
    snapshots = Snapshots(tmp_path, KEY)
    path = snapshots.save(2, b"state")
    path.rename(tmp_path / f"{3:020d}.snapshot")
    assert list(snapshots.load()) == []


def test_a_snapshot_whose_head_was_changed_to_fit_another_offset_is_not_used(tmp_path):
    snapshots = Snapshots(tmp_path, KEY)
    whole = snapshots.save(2, b"state").read_bytes()
    (tmp_path / f"{3:020d}.snapshot").write_bytes(whole.replace(b"\2" + b"\0" * 7, b"\3" + b"\0" * 7, 1))
    assert list(snapshots.load()) == [(2, b"state")]


def test_a_snapshot_that_the_disk_cannot_read_is_not_used(tmp_path, monkeypatch):
    snapshots = Snapshots(tmp_path, KEY)
    snapshots.save(1, b"older")
    bad = snapshots.save(2, b"newer")
    real = Path.read_bytes

    def read(path):
        if path == bad:
            raise OSError(errno.EIO, "Input/output error")
        return real(path)

    monkeypatch.setattr(Path, "read_bytes", read)
    assert list(snapshots.load()) == [(1, b"older")]


def test_a_snapshot_that_went_bad_does_not_push_out_a_good_one(tmp_path):
    snapshots = Snapshots(tmp_path, KEY)
    snapshots.save(1, b"one")
    snapshots.save(2, b"two").write_bytes(b"rubbish")
    snapshots.save(3, b"three")
    assert list(snapshots.load()) == [(3, b"three"), (1, b"one")]
    assert snapshots.older_offset() == 1  # the journal is dropped only below this


def test_a_full_disk_leaves_those_that_were_there(tmp_path, monkeypatch):
    snapshots = Snapshots(tmp_path, KEY)
    snapshots.save(1, b"one")
    snapshots.save(2, b"two")
    before = names(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(Unavailable, match="No space left"):
            snapshots.save(3, b"three")
    assert names(tmp_path) == before

    real = open

    class Full:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, data):
            self.file.write(data[: len(data) // 2])
            no_space()

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", lambda path, mode="r", **rest: Full(real(path, mode, **rest)))
        with pytest.raises(Unavailable, match="No space left"):
            snapshots.save(3, b"three")
    assert names(tmp_path) == before
    assert list(snapshots.load()) == [(2, b"two"), (1, b"one")]


def test_a_snapshot_that_does_not_read_back_never_gets_its_name(tmp_path, monkeypatch):
    snapshots = Snapshots(tmp_path, KEY)
    snapshots.save(1, b"one")
    real = Path.read_bytes
    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", lambda path: real(path)[:-TAG_BYTES] + bytes(TAG_BYTES))
        with pytest.raises(Unavailable, match="does not read back"):
            snapshots.save(2, b"two")
    assert list(snapshots.load()) == [(1, b"one")]
    assert len(names(tmp_path)) == 1


def test_a_snapshot_is_durable_and_read_back_before_it_has_its_name(tmp_path, monkeypatch):
    snapshots = Snapshots(tmp_path, KEY)
    snapshots.save(1, b"one")
    snapshots.save(2, b"two")
    calls = []

    def record(owner, name, what):
        real = getattr(owner, name)

        def recorded(*args, **options):
            calls.append((name, what(args[0]).relative_to(tmp_path).name))
            return real(*args, **options)

        monkeypatch.setattr(owner, name, recorded)

    record(os, "fsync", lambda number: Path(os.readlink(f"/proc/self/fd/{number}")))
    for name in ("read_bytes", "replace", "unlink"):
        record(Path, name, lambda path: path)
    path = snapshots.save(3, b"three")
    new, oldest = f"{path.name}.tmp", f"{1:020d}.snapshot"

    assert calls[:2] == [("fsync", new), ("read_bytes", new)]
    assert [call for call in calls[2:] if call[0] != "read_bytes"] == [
        *(("replace", new), ("fsync", "")),
        *(("unlink", oldest), ("fsync", "")),
    ]


def test_all_are_gone_for_good_before_anything_else_is_learned(tmp_path, monkeypatch):
    snapshots = Snapshots(tmp_path, KEY)
    snapshots.save(1, b"one")
    snapshots.save(2, b"two").write_bytes(b"rubbish")
    left, real = [], os.fsync

    def fsync(number):
        left.append((os.readlink(f"/proc/self/fd/{number}"), names(tmp_path)))
        real(number)

    monkeypatch.setattr(os, "fsync", fsync)
    snapshots.clear()
    assert left == [(str(tmp_path), [])]
    assert (snapshots.offsets(), list(snapshots.load()), snapshots.older_offset()) == ([], [], 0)


def test_a_power_cut_before_the_rename_leaves_only_what_is_deleted_at_start(tmp_path, monkeypatch):
    snapshots = Snapshots(tmp_path, KEY)
    snapshots.save(1, b"one")
    (tmp_path / f"{2:020d}.snapshot.tmp").write_bytes(b"half a snap")
    assert list(snapshots.load()) == [(1, b"one")]
    DataDirectory(tmp_path).close()
    assert names(tmp_path) == [f"{1:020d}.snapshot", "LOCK"]


def test_a_snapshot_takes_no_more_of_the_disk_than_it_must(tmp_path):
    saved = b'{"device": "mobile"}' * 10_000
    assert Snapshots(tmp_path, KEY).save(1, saved).stat().st_size < len(saved) / 50
