"""Decide, append, catch up: what the engine promises whatever the disk and the clients do."""

import os
import threading

import pytest
from conftest import ADS, drive

from banditads import events
from banditads.choosing import Request
from banditads.engine import recover
from banditads.errors import Damaged, DiskFailure, Expired, Invalid, Unavailable, Unknown
from banditads.events import Ad, Chosen, Unfilled
from banditads.journal import connect
from banditads.journal.memory import Journal
from banditads.snapshots import Snapshots
from banditads.state import State


def test_the_draw_is_from_the_probabilities_that_are_logged(make_engine):
    engine = make_engine("uniform", floor=0.3)
    counts = {ad.id: 0 for ad in ADS}
    for _ in range(3000):
        event = engine.choose(Request(exclude=frozenset("c"))).event
        counts[event.ad_id] += 1
        assert event.probability == event.propensities[event.ad_id]
    assert counts["c"] == 0
    assert 1380 < counts["a"] < 1620  # 1500 +- 4.4 standard deviations


def test_the_floor_reaches_every_ad(make_engine):
    engine = make_engine("uniform", floor=0.3)

    class Stubborn:
        def pmf(self, context, ads):
            import numpy as np

            return np.eye(len(ads))[0]

    engine.state.policy = Stubborn()
    assert engine.predict(Request()).pmf == pytest.approx([0.8, 0.1, 0.1])


def test_a_request_id_makes_a_retry_one_event(make_engine):
    engine = make_engine()
    first = engine.choose(Request({"x": 1.0}, request_id="r1"))
    engine.reward(first.event.event_id, 1.0)
    again = engine.choose(Request({"x": 2.0}, request_id="r1"))

    assert again == first
    assert engine.state.stats.total.choices == 1


def test_a_retry_of_a_request_that_got_nothing_gets_nothing_again(make_engine):
    engine = make_engine(ads=[Ad("a", placements=("home",))])
    first = engine.choose(Request(request_id="r1"))
    engine.put_ads([Ad("b")])

    assert isinstance(first.event, Unfilled)
    assert engine.choose(Request(request_id="r1")) == first
    assert engine.state.stats.unfilled == 1


def test_a_request_id_that_came_twice_means_the_same_before_and_after_a_restart(make_engine):
    engine = make_engine(max_done=1)
    for event_id in ("e1", "e2"):
        engine.choose(Request(request_id="r1"), event_id)
    assert engine.choose(Request(request_id="r1")).event.event_id == "e1"  # the first one stands
    copy = State("uniform", max_done=1)
    for event_id in ("e2", "e1", None):
        copy.load(engine.state.dump())
        assert copy.joiner.requests == engine.state.joiner.requests
        assert copy.dump() == engine.state.dump()
        if event_id:
            engine.reward(event_id, 1.0)
    assert engine.state.joiner.requests == {"r1": "e1"}  # e2 was forgotten; it never had the name


def test_nothing_eligible_is_recorded_with_its_reasons(make_engine, clock):
    engine = make_engine(ads=[Ad("old", ends=1.0), Ad("other", placements=("news",)), Ad("no")])
    event = engine.choose(Request(placement="home", exclude=frozenset(["no"]))).event

    assert isinstance(event, Unfilled)
    assert event.filtered == {"old": "ended", "other": "placement", "no": "excluded"}
    assert engine.decision(event.event_id).event == event
    assert engine.state.stats.reasons == {"ended": 1, "placement": 1, "excluded": 1}
    with pytest.raises(Unknown):
        engine.reward(event.event_id, 1.0)


def test_a_house_ad_steps_in_only_when_nothing_else_is_eligible(make_engine):
    engine = make_engine(ads=[Ad("house", house=True), Ad("paid", placements=("home",))])

    assert engine.choose(Request(placement="home")).event.ads == ("paid",)
    assert engine.choose(Request(placement="news")).event.ads == ("house",)


def test_flights_begin_and_end_exactly(make_engine, clock):
    engine = make_engine(ads=[Ad("a", starts=clock.now + 10, ends=clock.now + 20), Ad("z")])
    for later, shown in [(9.999, ("z",)), (10, ("a", "z")), (19.999, ("a", "z")), (20, ("z",))]:
        engine.clock = lambda later=later: clock.now + later
        assert engine.choose(Request()).event.ads == shown


def test_inline_ads_are_candidates_with_their_own_features(make_engine):
    engine = make_engine()
    event = engine.choose(Request(ads=("b", Ad("mine", {"size": 2.0}))), "e").event

    assert event.ads == ("b", "mine")
    assert engine.state.joiner.open["e"].ads == (ADS[1], Ad("mine", {"size": 2.0}))
    with pytest.raises(Invalid, match="not in the catalog"):
        engine.choose(Request(ads=("nobody",)))
    with pytest.raises(Invalid, match="twice"):
        engine.choose(Request(ads=("b", Ad("b"))))


def test_ads_come_and_go_without_a_restart(make_engine):
    engine = make_engine("vw")
    engine.put_ads([Ad("aaa", {"kind": "new"})])
    assert "aaa" in engine.choose(Request(), "e1").event.ads
    assert engine.choose(Request()).event.propensities["aaa"] > 0
    engine.remove_ad("aaa")
    assert "aaa" not in engine.choose(Request()).event.ads
    engine.reward("e1", 1.0)  # a decision made with it still settles
    with pytest.raises(Unknown):
        engine.remove_ad("aaa")


class BrokenDisk(Journal):
    """A journal that can be told to fail."""

    full = False
    dead = False

    def append(self, payload):
        if self.full:
            raise Unavailable("no space left on device")
        return super().append(payload)

    def sync(self, offset):
        if self.dead:
            self.poisoned = "fdatasync failed"
            raise DiskFailure(self.poisoned)


def test_a_full_disk_refuses_rewards_keeps_choosing_and_recovers_live(make_engine):
    disk = BrokenDisk()
    engine = make_engine(journal=disk)
    engine.choose(Request(), "before")
    disk.full = True
    digest = engine.state.digest()
    unwritten = engine.choose(Request(), "during")

    assert isinstance(unwritten.event, Chosen)
    assert unwritten.offset is None
    assert "no space" in engine.trouble()
    with pytest.raises(Unavailable):
        engine.reward("before", 1.0)
    assert engine.state.digest() == digest
    with pytest.raises(Unavailable):
        engine.tick()  # looks whether there is space again, though nobody asks
    disk.full = False
    assert engine.tick()
    assert engine.trouble() == ""
    assert engine.reward("before", 1.0).status == "applied"
    with pytest.raises(Unknown):
        engine.reward("during", 1.0)


def test_after_a_failed_fsync_nothing_is_acknowledged_and_choices_are_not_recorded(make_engine):
    disk = BrokenDisk()
    engine = make_engine(journal=disk)
    engine.choose(Request(), "e")
    disk.dead = True

    with pytest.raises(DiskFailure):
        engine.reward("e", 1.0)
    assert engine.trouble()
    with pytest.raises(DiskFailure):
        engine.reward("e", 1.0)  # not even as a duplicate
    disk.append = lambda payload: (_ for _ in ()).throw(DiskFailure("fdatasync failed"))
    assert engine.choose(Request()).offset is None


def test_a_duplicate_is_acknowledged_only_once_the_first_is_durable(make_engine):
    disk = Journal()
    engine = make_engine(journal=disk)
    engine.choose(Request(), "e")
    synced = []
    disk.sync = synced.append
    first = engine.reward("e", 1.0)
    again = engine.reward("e", 1.0)

    assert again == ("duplicate", first.offset)
    assert synced == [first.offset, first.offset]


def test_a_slow_disk_does_not_hold_up_a_choice(make_engine):
    disk = Journal()
    engine = make_engine(journal=disk)
    engine.choose(Request(), "e")
    reached, release = threading.Event(), threading.Event()

    def slow(offset):
        reached.set()
        assert release.wait(30)

    disk.sync = slow
    waiting = threading.Thread(target=engine.reward, args=("e", 1.0))
    waiting.start()
    assert reached.wait(30)
    assert engine.choose(Request()).event.ads  # would hang if the lock were held
    release.set()
    waiting.join()


def test_many_threads_lose_and_double_nothing(make_engine):
    engine = make_engine()
    errors = []

    def visitor(name):
        try:
            for number in range(50):
                event = engine.choose(Request(), f"{name}-{number}").event
                assert engine.reward(event.event_id, 1.0).status == "applied"
                assert engine.reward(event.event_id, 1.0).status == "duplicate"
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=visitor, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert errors == []
    total = engine.state.stats.total
    assert (total.choices, total.rewards, total.reward_sum) == (400, 400, 400.0)


@pytest.mark.parametrize("fsync", ["always", "everysec"])
def test_a_snapshot_is_never_more_durable_than_the_journal(make_engine, tmp_path, monkeypatch, fsync):
    monkeypatch.setattr("banditads.journal.file.FLUSH_SECONDS", 3600.0)  # nobody else makes it durable
    snapshots, calls = Snapshots(tmp_path, b"k"), []
    engine = make_engine(journal=connect(f"file:{tmp_path}", fsync=fsync), snapshots=snapshots)
    engine.choose(Request())
    fdatasync, publish = os.fdatasync, snapshots.publish
    monkeypatch.setattr(os, "fdatasync", lambda file: (fdatasync(file), calls.append("fdatasync")))
    monkeypatch.setattr(snapshots, "publish", lambda *given: (calls.append("publish"), publish(*given)))
    engine.snapshot()

    assert calls[:2] == ["fdatasync", "publish"]
    engine.journal.close()


def test_an_impression_counts_once(make_engine):
    engine = make_engine()
    event = engine.choose(Request(), "e").event
    for _ in range(3):
        engine.impress("e")
    engine.reward("e", 1.0)
    engine.impress("e")

    assert engine.state.stats.ads[event.ad_id].impressions == 1
    with pytest.raises(Unknown):
        engine.impress("nobody")


def test_a_settled_decision_is_read_back_from_the_journal(make_engine, tmp_path):
    journal = connect(f"file:{tmp_path}", segment_bytes=4096)
    engine = make_engine(journal=journal)
    first = engine.choose(Request({"page": "home"}), "first")
    for number in range(100):
        engine.choose(Request({"page": "x" * 100}), f"e{number}")
        engine.reward(f"e{number}", 0.0)
    engine.reward("first", 0.5)

    assert engine.decision("first").event == first.event
    assert engine.decision("first").reward == 0.5
    journal.drop_before(journal.end)
    with pytest.raises(Expired):
        engine.decision("first")
    journal.close()


def test_a_journal_that_lost_its_beginning_or_its_end_is_damaged(make_engine, clock, tmp_path):
    journal = connect(f"file:{tmp_path}", segment_bytes=4096)
    engine = make_engine(journal=journal, snapshots=Snapshots(tmp_path, b"k"), keep_journal=False)
    drive(engine, clock, 100)
    engine.snapshot()
    drive(engine, clock, 10, seed=2)
    end = engine.snapshot()
    assert journal.start > 0

    short = Journal()
    with pytest.raises(Damaged, match="before the snapshot"):
        recover(State("uniform"), short, engine.snapshots)
    for snapshot in tmp_path.glob("*.snapshot"):
        snapshot.unlink()
    with pytest.raises(Damaged, match="begins at offset"):
        recover(State("uniform"), journal, engine.snapshots)
    assert journal.end == end
    journal.close()


def test_many_ads_come_into_a_catalog_in_use_in_slices_and_are_refused_as_a_whole(make_engine, monkeypatch):
    engine = make_engine()
    known, before = set(engine.state.catalog.ads), engine.journal.end
    many = [Ad(f"more-{number:03d}") for number in range(50)]
    monkeypatch.setattr("banditads.engine.MAX_ADS", len(known) + 49)
    with pytest.raises(Invalid):
        engine.put_ads(many)
    assert (set(engine.state.catalog.ads), engine.journal.end) == (known, before)
    monkeypatch.setattr("banditads.engine.MAX_ADS", len(known) + 50)
    engine.put_ads(many)
    put = [events.decode(raw) for _, raw in engine.journal.read(before)]
    assert [len(each.ads) for each in put] == [20, 20, 10]
    assert set(engine.state.catalog.ads) == known | {ad.id for ad in many}
