"""Who may be shown: what is kept answers like a plain scan, and only what changes is worked out again."""

from hypothesis import given, settings
from hypothesis import strategies as st

from banditads import catalog as catalogs
from banditads.catalog import Catalog
from banditads.events import Ad, AdRemoved, AdsPut, Chosen


def scan(ads, at, placement, exclude):
    """The truth: every ad looked at, in the order of ids."""
    found, house, filtered = [], [], {}
    for ad in sorted(ads, key=lambda ad: ad.id):
        reason = (
            "excluded" if ad.id in exclude
            else "placement" if ad.placements and placement not in ad.placements
            else "not started" if ad.starts is not None and at < ad.starts
            else "ended" if ad.ends is not None and at >= ad.ends
            else ""
        )  # fmt: skip
        if not reason:
            (house if ad.house else found).append(ad)
        elif len(filtered) < catalogs.MAX_REASONS:
            filtered[ad.id] = reason
    if found:
        for ad in house[: catalogs.MAX_REASONS - len(filtered)]:
            filtered[ad.id] = "house"
    shown = tuple(found or house)
    return shown, tuple(ad.id for ad in shown), filtered


names = st.sampled_from([f"ad{n}" for n in range(12)])
places = st.sampled_from(["", "home", "kitchen", "nowhere"])
times = st.integers(0, 6).map(float)
flights = st.one_of(st.none(), times)
ads = st.builds(
    Ad, names, placements=st.sampled_from([(), ("home",), ("home", "kitchen")]), starts=flights, ends=flights,
    house=st.sampled_from([False, False, True]),
)  # fmt: skip
steps = st.one_of(
    st.builds(lambda ads: AdsPut(0.0, tuple(ads)), st.lists(ads, max_size=6)),
    st.builds(lambda ad_id: AdRemoved(0.0, ad_id), names),
    st.tuples(times, places, st.sets(st.one_of(names, st.just("unknown")), max_size=4)),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(steps, max_size=40), st.sampled_from([1, 3, 256]), st.sampled_from([2, 100]))
def test_what_is_kept_answers_like_a_scan(history, few, most):
    """With clocks that run backwards, changes one by one and in bulk, and more reasons than are named."""
    before = catalogs.FEW, catalogs.MAX_REASONS
    catalogs.FEW, catalogs.MAX_REASONS = few, most
    catalog, truth = Catalog(), {}
    try:
        for step in history:
            if isinstance(step, AdsPut):
                truth |= {ad.id: ad for ad in step.ads}
                rows = catalog.apply(step)
                assert [catalog.rows[row] for row in rows] == [ad.id for ad in step.ads]
            elif isinstance(step, AdRemoved):
                truth.pop(step.ad_id, None)
                catalog.apply(step)
            else:
                at, placement, exclude = step
                expected = scan(truth.values(), at, placement, exclude)
                found = catalog.eligible(at=at, placement=placement, exclude=exclude)
                assert found == expected
                for above in (0, 3):
                    crowd = catalog.crowd(at=at, placement=placement, exclude=exclude, above=above)
                    assert (crowd is None) == (len(expected[0]) <= above)
                    if crowd:
                        left = [ad_id for ad_id in crowd.ids if ad_id not in crowd.excluded]
                        assert left == list(expected[1])
                        assert crowd.filtered == expected[2]
                        assert sorted(catalog.rows[row] for row in crowd.open.nonzero()[0]) == left
            assert catalog.ads == truth
            assert catalog.ids == sorted(truth) == sorted(catalog.rows)
            assert [catalog.row(ad_id) for ad_id in catalog.rows] == [*range(len(truth))]
            copy = Catalog()
            copy.load(catalog.dump() and [list(_raw(ad)) for ad in catalog.dump()])
            assert (copy.rows, copy.dump()) == (catalog.rows, catalog.dump())
    finally:
        catalogs.FEW, catalogs.MAX_REASONS = before


def _raw(ad):
    return [getattr(ad, name) for name in ad.__struct_fields__]


def test_the_same_objects_are_given_until_something_changes_at_the_placement():
    catalog = Catalog()
    catalog.apply(AdsPut(0.0, (Ad("a"), Ad("b", placements=("home",)), Ad("c", starts=50.0, ends=60.0))))
    first = catalog.eligible(at=0.0, placement="home")

    assert catalog.eligible(at=49.0, placement="home") is first
    assert catalog.eligible(at=0.0, placement="attic") is catalog.eligible(at=1.0, placement="cellar")
    assert catalog.eligible(at=50.0, placement="home").ids == ("a", "b", "c")
    assert catalog.eligible(at=60.0, placement="home").ids == ("a", "b")
    assert catalog.eligible(at=40.0, placement="home") == first
    changed = Ad("a", {"price": 1.0})
    catalog.apply(AdsPut(0.0, (changed,)))
    assert catalog.eligible(at=40.0, placement="home").ads[0] is changed


def test_a_flight_elsewhere_changes_nothing_here():
    catalog = Catalog()
    catalog.apply(AdsPut(0.0, (Ad("a"), Ad("b", placements=("home",), starts=50.0))))
    first = catalog.eligible(at=0.0, placement="kitchen")

    assert catalog.eligible(at=55.0, placement="kitchen") is first


def test_placements_from_outside_take_no_memory():
    catalog = Catalog()
    catalog.apply(AdsPut(0.0, tuple(Ad(f"ad{n}", placements=(f"p{n}",)) for n in range(100))))
    for n in range(1000):
        catalog.eligible(at=0.0, placement=f"p{n}")

    assert len(catalog._slates) <= catalogs.MAX_SLATES


def test_choices_among_the_same_ads_share_one_tuple():
    catalog = Catalog()
    catalog.apply(AdsPut(0.0, tuple(Ad(f"ad{n}") for n in range(9))))
    found = catalog.eligible(at=0.0)
    choice = Chosen(0.0, "e", found.ids, b"", 0, {})
    replayed = Chosen(0.0, "e", tuple(f"ad{n}" for n in range(9)), b"", 0, {})
    proposed = Chosen(0.0, "e", ("ad2", "ad5", "gone"), b"", 0, {})

    assert catalog.resolve(choice) is found.ads
    assert catalog.resolve(replayed) is found.ads
    assert catalog.resolve(proposed) == (catalog.ads["ad2"], catalog.ads["ad5"], Ad("gone"))
    catalog.apply(AdsPut(0.0, (Ad("ad2", {"new": 1.0}),)))
    assert catalog.resolve(proposed)[0].features == {"new": 1.0}
    assert catalog.resolve(replayed)[2].features == {"new": 1.0}


class Counted(str):
    """An id that counts how often any was compared."""

    compared = 0
    __slots__ = ()
    __hash__ = str.__hash__

    def __lt__(self, other):
        Counted.compared += 1
        return str.__lt__(self, other)


def test_a_request_or_a_change_does_not_look_at_every_ad():
    catalog = Catalog()
    catalog.apply(AdsPut(0.0, tuple(Ad(Counted(f"ad-{n:05d}")) for n in range(10_000))))
    catalog.crowd(at=0.0, placement="", exclude=(), above=1000)
    Counted.compared = 0
    catalog.apply(AdsPut(0.0, (Ad(Counted("ad-05000x")),)))
    catalog.apply(AdRemoved(0.0, "ad-07000"))
    crowd = catalog.crowd(at=0.0, placement="", exclude={"ad-00007", "ad-00009"}, above=1000)

    assert Counted.compared < 200
    assert len(crowd.ids) == 10_000
