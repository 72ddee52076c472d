"""What only we could have written is known again; nothing else is."""

import base64
import os
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banditads import signing
from banditads.errors import DiskFailure, Misconfigured
from banditads.signing import EventIds

IDS = EventIds(b"k" * 32)
ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@given(st.integers(0, 2**48 - 1))
def test_an_id_says_to_the_millisecond_when_it_was_made(milliseconds):
    event_id = IDS.mint(milliseconds / 1000)
    assert IDS.minted_at(event_id) == milliseconds / 1000
    assert len(event_id) == 32
    assert set(event_id) <= set(ALPHABET)


def test_a_time_before_1970_does_not_stop_a_server_with_a_broken_clock():
    assert IDS.minted_at(IDS.mint(-5.0)) == 0.0


def test_two_ids_of_one_moment_differ():
    assert len({IDS.mint(1.0) for _ in range(1000)}) == 1000


@given(st.data())
def test_an_id_with_one_other_character_is_refused(data):
    event_id = IDS.mint(1_700_000_000.123)
    place = data.draw(st.integers(0, len(event_id) - 1))
    other = data.draw(st.sampled_from(ALPHABET) | st.characters())
    changed = event_id[:place] + other + event_id[place + 1 :]
    assert (IDS.minted_at(changed) is None) == (changed != event_id)


@given(st.text() | st.text(ALPHABET, min_size=32, max_size=32) | st.text("é√\ud800-_=A\n", max_size=40))
def test_made_up_ids_are_refused(text):
    assert IDS.minted_at(text) is None


def test_ids_of_another_key_are_refused():
    assert IDS.minted_at(EventIds(b"j" * 32).mint(1.0)) is None


def test_an_id_has_one_spelling():
    entropy = b"\xfb\xef\xbe\xff\xff\xff\xfb\xef\xbe\xff"  # many - and _
    ids = EventIds(b"k" * 32, entropy=lambda size: entropy)
    event_id = ids.mint(1.0)
    assert "-" in event_id
    assert "_" in event_id
    spellings = [
        event_id.replace("-", "+", 1),
        event_id.replace("_", "/", 1),
        event_id + "=",
        event_id + "====",
        event_id + "\n",
        " " + event_id,
        event_id[:16] + "\n" + event_id[16:],
        event_id + "A",
        event_id + "AA==",
        event_id[:-1],
        event_id + event_id,
    ]
    assert [ids.minted_at(each) for each in spellings] == [None] * len(spellings)
    assert ids.minted_at(event_id) == 1.0


def test_a_tag_made_for_another_purpose_is_no_good_for_an_id():
    key = b"k" * 32
    assert len({signing.derive(key, "event ids"), signing.derive(key, "snapshots"), key}) == 3
    body = base64.urlsafe_b64decode(IDS.mint(1.0))[:16]
    forged = body + EventIds(signing.derive(key, "snapshots"))._tag(body)
    assert IDS.minted_at(base64.urlsafe_b64encode(forged).decode()) is None


def test_a_key_is_made_once_and_for_us_only(tmp_path):
    path = tmp_path / "new" / "folder" / "ads.key"
    key = signing.load_or_create(path)

    assert len(key) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert signing.load_or_create(path) == key == signing.load(path)
    assert signing.load_or_create(tmp_path / "other.key") != key
    assert [each.name for each in path.parent.iterdir()] == ["ads.key"]


def test_a_key_is_on_the_disk_before_anything_is_signed_with_it(tmp_path, monkeypatch):
    calls = []
    for name in ("fsync", "link"):
        real = getattr(os, name)

        def record(*args, name=name, real=real):
            calls.append((name, args[0] if name == "link" else os.readlink(f"/proc/self/fd/{args[0]}")))
            return real(*args)

        monkeypatch.setattr(os, name, record)
    signing.load_or_create(tmp_path / "ads.key")
    new = calls[1][1]
    assert calls == [("fsync", str(new)), ("link", new), ("fsync", str(tmp_path))]


def test_a_key_that_cannot_be_written_leaves_nothing_behind(tmp_path, monkeypatch):
    def fails(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(DiskFailure, match="No space"):
        signing.load_or_create(tmp_path / "ads.key")
    assert list(tmp_path.iterdir()) == []


def test_a_key_that_cannot_be_made_says_so(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(Misconfigured, match=r"ads\.key cannot be made: File exists"):
        signing.load_or_create(tmp_path / "file" / "ads.key")


def test_what_a_killed_process_left_does_not_stop_the_next_with_the_same_pid(tmp_path):
    (tmp_path / f"ads.key.{os.getpid()}.tmp").write_text("half a k")  # in a container every pid is 1
    assert len(signing.load_or_create(tmp_path / "ads.key")) == 32


def test_of_two_who_make_a_key_at_once_both_use_the_first(tmp_path, monkeypatch):
    path = tmp_path / "ads.key"
    real, theirs = os.link, []

    def slower(source, target):
        monkeypatch.setattr(os, "link", real)
        theirs.append(signing.load_or_create(path))
        real(source, target)

    monkeypatch.setattr(os, "link", slower)
    assert signing.load_or_create(path) == theirs[0]
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("text", ["", "ab", "g" * 64, "a" * 63, "a" * 66, "é" * 32, "\0" * 64])
def test_a_malformed_key_is_refused(tmp_path, text):
    path = tmp_path / "ads.key"
    path.write_text(text)
    for read in (signing.load, signing.load_or_create):
        with pytest.raises(Misconfigured, match=r"ads\.key"):
            read(path)
    assert path.read_text() == text


def test_a_missing_key_is_not_made_by_reading(tmp_path):
    with pytest.raises(Misconfigured):
        signing.load(tmp_path / "ads.key")
    assert list(tmp_path.iterdir()) == []


def test_the_key_lies_beside_the_data_and_never_in_it(tmp_path, monkeypatch):
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.chdir(tmp_path)

    assert signing.key_path("", folder) == tmp_path / "data.key"
    assert signing.key_path("other.key", folder) == tmp_path / "other.key"
    for inside in ("data/k", str(folder / "deep" / "k"), "data/../data/k", "link/k", "data"):
        with pytest.raises(Misconfigured, match="inside the data directory"):
            signing.key_path(inside, folder)
