"""Who is erased is gone: from the disk, and from what was learned."""

import random
import re
import struct
import threading
import zlib
from contextlib import suppress

import msgspec
import pytest
from conftest import ADS, banditads, ids

from banditads import events, policies, signing
from banditads.choosing import Request
from banditads.directory import DataDirectory
from banditads.engine import Engine, recover
from banditads.erasing import Scrubber, Stopped, Traces
from banditads.errors import Refused, Unavailable, Unknown
from banditads.events import (
    Act,
    Ad,
    AdsPut,
    Chosen,
    Impressed,
    Rewarded,
    Scrubbed,
    Ticked,
    UserErased,
    UserPut,
)
from banditads.journal import connect
from banditads.replay import fold
from banditads.snapshots import HEAD, TAG_BYTES, Snapshots
from banditads.state import State
from banditads.verification import traces, verify

ANNA, BERT = "AnnaAnnaAnnaAnnaAnnaAA", "BertBertBertBertBertBB"


def visits(engine, clock, n=150, seed=1, users=(ANNA, BERT, "")):
    """n requests of several people, some of them with clicks, late, twice or never."""
    dice = random.Random(seed)
    for number in range(n):
        clock.now += dice.choice([0, 1, 7, 30])
        context = {"page": dice.choice(["home", "news"]), "age": float(dice.randrange(20, 60))}
        user = dice.choice(users)
        request = Request(context, user_id=user, request_id=f"r{user}{seed}-{number}")
        if dice.random() < 0.05:
            request = Request(context, user_id=user, exclude=frozenset("abc"))
        engine.choose(request, f"{user}{seed}-{number}")
        for _ in range(dice.choice([0, 0, 1, 2])):
            back = f"{dice.choice(users)}{seed}-{number - dice.randrange(40)}"
            with suppress(Refused):
                engine.impress(back)
            with suppress(Refused):
                engine.reward(back, dice.choice([0.0, 1.0]))


def erase(engine, user):
    with engine.lock:
        offset = engine._record(UserErased(engine.clock(), user))
    engine.journal.sync(offset)


def known(engine, user, at):
    with engine.lock:
        engine._record(UserPut(at, user, {"city": "Ulm"}, True))


def scrubber(engine):
    return Scrubber(engine, threading.Event())


def parts(state):
    return {part: getattr(state, part).dump() for part in state.PARTS}


def folded(engine):
    return fold(engine.journal.read(0), State.of(engine.state.identity))


def on_disk(folder, *words):
    return [
        (path.name, word)
        for path in folder.rglob("*")
        if path.is_file()
        for word in words
        if word.encode() in unpacked(path)
    ]


def unpacked(path):
    raw = path.read_bytes()
    return zlib.decompress(raw[HEAD.size : -TAG_BYTES]) if path.suffix == ".snapshot" else raw


@pytest.fixture
def make(make_engine, clock, tmp_path):
    """An engine on a disk, with small segments."""
    opened = []

    def make(policy="uniform", folder=None, **given):
        folder = folder or tmp_path / "data"
        folder.mkdir(exist_ok=True)
        journal = connect(f"file:{folder}", segment_bytes=4096)
        opened.append(journal)
        return make_engine(policy, journal, snapshots=Snapshots(folder, b"k" * 32), **given)

    yield make
    for journal in opened:
        if journal._file >= 0:
            journal.close()


@pytest.mark.parametrize("policy", policies.names())
def test_after_it_nothing_of_the_user_is_on_the_disk_and_the_state_is_the_fold(make, clock, policy, tmp_path):
    engine = make(policy)
    known(engine, ANNA, clock.now)
    visits(engine, clock)
    engine.snapshot()
    visits(engine, clock, seed=2)
    before = engine.journal.end
    erase(engine, ANNA)
    assert on_disk(tmp_path, ANNA)
    assert scrubber(engine).pending()
    assert scrubber(engine).scrub() > 100
    assert not scrubber(engine).pending()

    assert on_disk(tmp_path, ANNA) == []
    assert on_disk(tmp_path, BERT)
    assert engine.journal.end == before + 1
    assert engine.state.dump() == folded(engine).dump()
    recovered = State.of(engine.state.identity)
    recover(recovered, engine.journal, engine.snapshots)
    assert recovered.dump() == engine.state.dump()
    visits(engine, clock, seed=3)
    assert engine.state.dump() == folded(engine).dump()


@pytest.mark.parametrize("name", ["collaborative", "content", "hybrid"])
def test_what_a_recommender_learned_of_the_user_is_gone_too(make, clock, name):
    engine = make("vw", recommender=name, recommend_from=0, advise=True)
    for user in (ANNA, BERT):
        known(engine, user, clock.now)
        engine.act({user: [Act("like", "a", "shoes")]})
    visits(engine, clock, n=60)
    records = list(engine.journal.read(0))
    erase(engine, ANNA)
    kept = msgspec.msgpack.encode(engine.state.recommender.dump())
    assert ANNA.encode() not in kept
    assert BERT.encode() in kept
    scrubber(engine).scrub()
    alone = State.of(engine.state.identity)
    for offset, (_, event) in enumerate(without(records, ANNA)):
        alone.apply(offset, event)

    assert engine.state.dump() == folded(engine).dump()
    assert engine.state.recommender.dump() == alone.recommender.dump()


def without(records, user):
    """What the journal would be if that user had never come; the same events at other offsets."""
    mine, kept = set(), []
    for offset, record in records:
        event = events.decode(record)
        if user in (getattr(event, "user", ""), getattr(event, "user_id", "")):
            mine.add(getattr(event, "event_id", ""))
        elif getattr(event, "event_id", None) not in mine:
            kept.append((offset, event))
    return kept


def renumbered(joiner, offsets):
    """A joiner's dump as it would be if its events stood at other offsets."""
    now, counts, ads, slates, waiting, done, requests = joiner.dump()
    waiting = [[offsets[offset], *rest] for offset, *rest in waiting]
    done = {
        event_id: (offsets[each.offset], each.status, each.reward, offsets[each.reward_offset])
        for event_id, each in done.items()
    }
    return now, counts, ads, slates, waiting, done, requests


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("policy", policies.names())
def test_the_state_is_that_of_a_server_that_never_met_the_user(make_engine, clock, policy, seed):
    engine = make_engine(policy)
    visits(engine, clock, seed=seed)
    kept = without(engine.journal.read(0), ANNA)
    erase(engine, ANNA)
    scrubber(engine).scrub()
    twin = State.of(engine.state.identity)
    for number, (_, event) in enumerate([*kept, (engine.journal.end - 1, Ticked(clock.now))]):
        twin.apply(number, event)

    offsets = {offset: number for number, (offset, _) in enumerate(kept)} | {-1: -1}
    same = {number: number for number in range(-1, len(kept))}
    assert renumbered(engine.state.joiner, offsets) == renumbered(twin.joiner, same)
    mine, theirs = parts(engine.state), parts(twin)
    del mine["joiner"], theirs["joiner"]
    assert mine == theirs
    assert engine.state.stats.total.rewards > 5


def test_what_waits_for_the_user_is_forgotten_at_once_and_not_learned(make_engine, clock):
    engine = make_engine()
    learned = []
    engine.state.policy.learn = lambda *given: learned.append(given)
    first = engine.choose(Request(user_id=ANNA, request_id="r1"), "e1").event
    engine.choose(Request(user_id=BERT, request_id="r2"), "e2")
    erase(engine, ANNA)

    assert list(engine.state.joiner.open) == ["e2"]
    assert engine.state.joiner.requests == {"r2": "e2"}
    assert engine.state.joiner.open_bytes == engine.state.joiner.open["e2"].size
    for ask in (
        lambda: engine.reward("e1", 1.0),
        lambda: engine.decision("e1"),
        lambda: engine.impress("e1"),
    ):
        with pytest.raises(Unknown):
            ask()
    clock.now += 10_000
    engine.tick()
    assert [each[1] for each in learned] == [tuple(ADS)]  # e2 alone
    assert engine.state.stats.total.expired == 1
    assert engine.choose(Request(request_id="r1")).event.event_id != first.event_id


def test_several_are_erased_in_one_go_and_who_comes_back_begins_anew(make, clock, tmp_path):
    engine = make("vw")
    visits(engine, clock)
    erase(engine, ANNA)
    visits(engine, clock, seed=2)
    erase(engine, BERT)
    visits(engine, clock, seed=3, users=(ANNA, "carl"))
    scrubber(engine).scrub()

    users = [getattr(events.decode(each), "user_id", "") for _, each in engine.journal.read(0)]
    assert BERT not in users
    assert on_disk(tmp_path, BERT) == []
    assert users.index(ANNA) > users.index("carl") or ANNA in users[-200:]
    assert not scrubber(engine).pending()
    assert engine.state.dump() == folded(engine).dump()
    erase(engine, ANNA)
    scrubber(engine).scrub()
    assert on_disk(tmp_path, ANNA) == []
    assert engine.state.dump() == folded(engine).dump()


def test_an_id_that_was_forgotten_and_given_to_somebody_else_is_theirs(make_engine, clock):
    engine = make_engine(max_done=0)
    for user in (BERT, ANNA, BERT):
        engine.choose(Request(user_id=user), "e")
        engine.reward("e", 1.0)
    erase(engine, ANNA)
    scrubber(engine).scrub()

    kinds = [type(events.decode(each)).__name__ for _, each in engine.journal.read(0)]
    assert kinds == ["AdsPut", "Chosen", "Rewarded", "Scrubbed", "Scrubbed", "Chosen", "Rewarded", "Scrubbed"]
    assert engine.state.stats.total.rewards == 2
    assert engine.state.dump() == folded(engine).dump()


def test_every_event_that_names_a_user_or_a_decision_is_found():
    """A new kind of event must call them what the others do."""
    from typing import get_args

    named = {"user", "user_id", "event_id"}
    about = {kind.__name__ for kind in get_args(events.Event) if named & set(kind.__struct_fields__)}
    assert about == {kind.__name__ for kind in get_args(events.Event)} - {
        "AdsPut", "AdRemoved", "Promoted", "Ticked", "Scrubbed"
    }  # fmt: skip
    traces = Traces({ANNA: 9})
    pmf = struct.pack("<d", 1.0)
    for event in (
        Chosen(1.0, "e", ("a",), pmf, 0, {}, user_id=ANNA),
        Rewarded(1.0, "e", 1.0),
        Impressed(1.0, "e", "a"),
        events.SetAside(1.0, "e"),
        events.Unfilled(1.0, "u", {}, user_id=ANNA),
        UserPut(1.0, ANNA, {}, True),
        events.UserActed(1.0, ANNA, ()),
        UserErased(1.0, ANNA),
    ):
        assert events.decode(traces.replace(5, events.encode(event))) == Scrubbed(1.0)
    for event in (
        AdsPut(1.0, (Ad("e"),)),
        Rewarded(1.0, "other", 1.0),
        UserPut(1.0, BERT, {}, True),
        Ticked(1.0),
    ):
        assert traces.replace(5, events.encode(event)) is None


def test_requests_go_on_meanwhile_and_nothing_of_theirs_is_lost(make, clock, tmp_path):
    engine = make("vw")
    visits(engine, clock, 400)
    erase(engine, ANNA)
    work, accepted, errors, over = scrubber(engine), [], [], threading.Event()

    def visitor(name):
        number = 0
        try:
            while not over.is_set() or number < 50:
                event = engine.choose(Request({"page": "home"}, user_id=BERT), f"t{name}-{number}").event
                assert engine.reward(event.event_id, 1.0).status == "applied"
                accepted.append(event.event_id)
                number += 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=visitor, args=(name,)) for name in range(3)]
    for thread in threads:
        thread.start()
    work.scrub()
    over.set()
    for thread in threads:
        thread.join()

    assert errors == []
    assert on_disk(tmp_path, ANNA) == []
    assert all(engine.state.joiner.done[event_id].reward == 1.0 for event_id in accepted)
    assert engine.state.dump() == folded(engine).dump()


def test_a_reward_that_comes_late_while_it_is_erased_goes_too(make, clock, tmp_path):
    engine = make()
    engine.choose(Request(user_id=ANNA), "of-anna")
    clock.now += 10_000
    engine.tick()
    erase(engine, ANNA)
    work, pause, sent = scrubber(engine), Scrubber._pause, []

    def late():
        pause(work)
        if engine.journal._segments[-1].first > 3 and not sent:  # sealed
            sent.append(True)
            with suppress(Refused):
                engine.reward("of-anna", 1.0)

    work._pause = late
    work.scrub()
    assert sent
    assert on_disk(tmp_path, ANNA, "of-anna") == []
    assert engine.state.dump() == folded(engine).dump()
    with pytest.raises(Refused):
        engine.reward("of-anna", 1.0)


def test_given_up_anywhere_it_is_finished_after_the_next_start(make, clock, tmp_path):
    class Enough(Exception):
        pass

    ended = False
    for after in [0, 1, *range(5, 10_000, 173)]:
        folder = tmp_path / f"data-{after}"
        engine = make("linucb", folder)
        visits(engine, clock, 100)
        engine.snapshot()
        visits(engine, clock, 50, seed=2)
        erase(engine, ANNA)
        work, calls = scrubber(engine), iter(range(after))

        def pause(calls=calls):
            if next(calls, None) is None:
                raise Enough

        work._pause = pause
        try:
            work.scrub()
            ended = True
        except Enough:
            if after % 2:
                engine.snapshot()  # as a server does that stops
        engine.journal.close()

        again = State.of(engine.state.identity)
        journal = connect(f"file:{folder}", segment_bytes=4096)
        recover(again, journal, engine.snapshots)
        engine = Engine(again, journal, ids=ids(), clock=clock, snapshots=engine.snapshots)
        assert scrubber(engine).pending() != ended
        if not ended:
            scrubber(engine).scrub()
        assert not scrubber(engine).pending()
        assert on_disk(folder, ANNA) == []
        assert engine.state.dump() == folded(engine).dump()
        journal.close()
        if ended:
            break
    assert ended


def test_told_to_stop_it_stops(make, clock):
    engine = make()
    visits(engine, clock)
    erase(engine, ANNA)
    work = scrubber(engine)
    work._stop.set()
    with pytest.raises(Stopped):
        work.scrub()
    assert not engine.scrubbing
    assert work.pending()


def test_on_a_full_disk_it_is_still_to_be_done(make, clock, monkeypatch, tmp_path):
    engine = make()
    visits(engine, clock)
    erase(engine, ANNA)

    def full(*given, **more):
        raise OSError(28, "No space left on device")

    work = scrubber(engine)
    monkeypatch.setattr("banditads.journal.file.write_durably", full)
    with pytest.raises(Unavailable):
        work.scrub()
    monkeypatch.undo()
    assert work.pending()
    visits(engine, clock, seed=2)
    assert engine.state.dump() == folded(engine).dump()
    work.scrub()
    assert on_disk(tmp_path, ANNA, ANNA) == [] or ANNA in str(engine.state.dump())


def test_without_a_new_snapshot_the_next_start_does_not_know_the_user_either(
    make, clock, monkeypatch, tmp_path
):
    engine = make("vw")
    visits(engine, clock)
    engine.snapshot()
    erase(engine, ANNA)

    def full():
        raise Unavailable("no space left on device")

    monkeypatch.setattr(engine, "snapshot", full)
    with pytest.raises(Unavailable):
        scrubber(engine).scrub()
    assert on_disk(tmp_path, ANNA) == []
    recovered = State.of(engine.state.identity)
    recover(recovered, engine.journal, engine.snapshots)
    fold(engine.journal.read(recovered.applied), recovered)
    assert recovered.dump() == engine.state.dump() == folded(engine).dump()


def test_where_the_journal_lost_its_beginning_the_model_stays_and_all_else_goes(
    make, clock, tmp_path, caplog
):
    engine = make("vw", keep_journal=False)
    for seed in range(3):
        visits(engine, clock, seed=seed)
        engine.snapshot()
    visits(engine, clock, seed=9)
    engine.choose(Request(user_id=ANNA, request_id=f"r-{ANNA}"), f"last-{ANNA}")
    engine.reward(f"last-{ANNA}", 1.0)
    assert engine.journal.start > 0
    model, counts = engine.state.policy.dump(), engine.state.stats.dump()
    erase(engine, ANNA)
    scrubber(engine).scrub()

    assert "does not go back to its beginning" in caplog.text
    found = on_disk(tmp_path, ANNA)
    assert [name for name, _ in found if name.endswith(".journal")] == []
    assert not scrubber(engine).pending()
    assert engine.state.policy.dump() == model
    assert engine.state.stats.dump() == counts
    assert f"last-{ANNA}" not in engine.state.joiner.done
    recovered = State.of(engine.state.identity)
    recover(recovered, engine.journal, engine.snapshots)
    assert recovered.dump() == engine.state.dump()
    visits(engine, clock, seed=10, users=(BERT,))
    fold(engine.journal.read(recovered.applied), recovered)
    assert recovered.dump() == engine.state.dump()


def test_verify_proves_that_a_user_is_erased_and_names_what_is_left(make_engine, clock, tmp_path):
    folder = tmp_path / "data"
    key = signing.load_or_create(signing.key_path("", folder))
    pseudonym = signing.Pseudonyms(key)("anna")
    with DataDirectory(folder) as directory:
        snapshots = Snapshots(folder, signing.derive(key, "snapshots"))
        engine = make_engine("vw", connect(f"file:{folder}"), snapshots=snapshots)
        directory.check(engine.state.identity)
        visits(engine, clock, users=(pseudonym, BERT))
        engine.snapshot()
        assert "pseudonym" in banditads("verify", folder, "--erased", "anna", code=65).stdout
        found = traces(folder, signing.derive(key, "snapshots"), "anna", pseudonym)
        assert {each.path.suffix for each in found if each.sure} == {".journal", ".snapshot"}
        (whole,) = folder.glob("*.snapshot")  # killed while one was written
        half = whole.with_name("99999999999999999999.snapshot.tmp")
        half.write_bytes(whole.read_bytes()[:-40])
        found = traces(folder, signing.derive(key, "snapshots"), "anna", pseudonym)
        assert half in {each.path for each in found if each.sure}
        half.unlink()
        erase(engine, pseudonym)
        told = banditads("verify", folder, "--erased", "anna", code=65)
        assert "still being erased" in told.stdout
        assert "(event 14, Chosen): the user's pseudonym" in told.stdout
        assert "not erased yet" in told.stderr
        scrubber(engine).scrub()

        told = banditads("verify", folder, "--erased", "anna").stdout
        assert "0 places with the pseudonym" in told
        assert "equals a replay without that user's data" in told
        assert "letters" not in told
        offset = engine.choose(Request({"name": "joanna"}, user_id=BERT), "e").offset
        told = banditads("verify", folder, "--erased", "anna").stdout
        assert f"event {offset}, Chosen): the letters of the id, in data that is not under this user" in told
        assert "anna@example.com" not in banditads("verify", folder, "--erased", "anna@example.com").stdout
        place = int(re.search(r"at byte (\d+) \(event", told)[1])
        assert max(folder.glob("*.journal")).read_bytes()[place:][:4] == b"anna"
        (folder / "left-over").write_bytes(b"x" * (2**20 - 3) + pseudonym.encode())
        told = banditads("verify", folder, "--erased", "anna", code=65).stdout
        assert f"left-over at byte {2**20 - 3}: the user's pseudonym" in told
        engine.journal.close()
    banditads("verify", folder, "--erased", "", code=2)


def test_verify_in_the_middle_of_erasing_is_no_false_alarm(make, clock, tmp_path):
    engine = make("linucb")
    visits(engine, clock)
    engine.snapshot()
    erase(engine, ANNA)
    folder = engine.snapshots.folder
    with DataDirectory(folder) as directory:
        directory.check(engine.state.identity)
    work, calls = scrubber(engine), []
    pause = work._pause

    def look():
        calls.append(pause())
        if len(calls) % 200 == 0:
            verdict = verify(folder, b"k" * 32)
            assert verdict.digest
            assert verdict.erasing <= 1

    work._pause = look
    work.scrub()
    assert len(calls) > 800
    assert verify(folder, b"k" * 32).snapshots == (engine.state.applied,)
