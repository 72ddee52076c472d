"""A window and its groups judge exactly the rounds that they should."""

import msgspec
import numpy as np
import pytest
from test_evaluation import MEANS, SITES, TARGET, Greedy, fixed, log

from banditads.errors import Invalid
from banditads.evaluation import evaluate, follow, joined, results, segments
from banditads.selecting import GROUPS, KNOWN, NONE, OTHER, Labels, Selection, groups


def placed(rounds):
    """Rounds as from a journal in which every decision took three records."""
    return [msgspec.structs.replace(each, offset=3 * number) for number, each in enumerate(rounds)]


@pytest.mark.parametrize(
    "window", [{"since": 100.0, "until": 300.0}, {"first_offset": 300, "end_offset": 900}], ids=str
)
def test_a_window_is_judged_as_if_it_were_the_log(window):
    rounds = placed(log(1, 500))
    whole = results(follow(rounds, ["greedy"], selection=Selection(**window), make=lambda _: Greedy()))

    assert whole == evaluate(rounds[100:300], ["greedy"], make=lambda _: Greedy())


def test_a_warm_policy_has_learned_what_came_before_and_is_not_judged_by_it():
    rounds = placed(log(2, 500))
    asked = follow(rounds, ["greedy"], make=lambda _: Greedy())
    warm = Selection(since=200.0, until=400.0, warm=True)
    found = follow(rounds, ["greedy"], selection=warm, make=lambda _: Greedy())

    mine, all_of = found.tracks[1].rounds, asked.tracks[1].rounds
    assert mine.target.tolist() == all_of.target[200:400].tolist()
    assert mine.matched.tolist() == all_of.matched[200:400].tolist()
    assert mine.reward.tolist() == all_of.reward[200:400].tolist()


def test_segments_are_evaluations_of_their_own_rounds():
    rounds = list(log(3, 4000))
    found = segments(follow(rounds, ["target"], selection=Selection(by="site"), make=fixed), "site")

    assert sorted(found) == sorted(SITES)
    for site, (logged, target) in found.items():
        mine = [each for each in rounds if each.choice.context["site"] == site]
        truth = float(TARGET[site] @ MEANS[site])
        assert logged.rounds == target.rounds == len(mine)
        assert target.ips.low < truth < target.ips.high
        assert target.replay.low < truth < target.replay.high
        alone = evaluate(mine, ["target"], make=fixed)[1]
        assert (target.snips, target.replay) == (alone.snips, alone.replay)


def test_what_is_earned_through_each_ad_adds_up_to_the_whole():
    followed = follow(log(4, 3000), ["target"], selection=Selection(by="ad"), make=fixed)
    found = segments(followed, "ad")
    whole = results(followed)

    assert len(found) == 4
    for number in (0, 1):
        values = [each[number].ips.value for each in found.values()]
        assert sum(values) == pytest.approx(whole[number].ips.value)
    for ad, place in zip(("boots", "hats", "tea", "toys"), range(4), strict=True):
        truth = np.mean([TARGET[site][place] * MEANS[site][place] for site in SITES])
        assert found[ad][1].ips.low < truth < found[ad][1].ips.high


def test_placements_numbers_and_gaps_are_labels():
    (one,) = log(5, 1)
    choice = msgspec.structs.replace(one.choice, placement="home", context={"age": 31.0})
    one = msgspec.structs.replace(one, choice=choice)

    assert Selection(by="placement").label(one) == "home"
    assert Selection(by="age").label(one) == "31"
    assert Selection(by="site").label(one) == NONE
    assert Selection(by="ad").label(one) == one.choice.ad_id


def test_few_groups_are_shown_and_nothing_of_the_others_is_lost():
    labels = Labels()
    numbers = np.array([labels.number(str(min(each, 2 * KNOWN))) for each in range(3 * KNOWN)], np.int32)
    found = groups(numbers, labels.all)

    assert len(labels.all) == KNOWN + 1
    assert len(found) == GROUPS + 1
    assert sum(which.sum() for which in found.values()) == 3 * KNOWN
    assert list(found)[-1] == OTHER


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"since": 5.0, "until": 5.0}, "until"),
        ({"first_offset": 9, "end_offset": 3}, "end_offset"),
        ({"since": float("nan")}, "since"),
        ({"first_offset": -1}, "first_offset"),
        ({"by": "x" * 129}, "by"),
        ({"by": "a\nb"}, "by"),
        ({"warm": True, "until": 7.0}, "warm"),
    ],
    ids=str,
)
def test_a_window_that_can_hold_nothing_is_refused(given, field):
    with pytest.raises(Invalid) as refused:
        Selection(**given).check()

    assert refused.value.field == field


def test_offsets_are_refused_where_a_log_has_none():
    with pytest.raises(Invalid, match="does not say at which offset"):
        follow(log(6, 10), ["even"], selection=Selection(end_offset=5), make=fixed)


def test_policies_that_followed_a_growing_log_apart_are_judged_on_the_same_rounds():
    rounds = list(log(7, 500))
    lengths = ((500, "target"), (420, "even"), (450, "target"))
    apart = [follow(rounds[:n], [name], make=fixed) for n, name in lengths]
    together = follow(rounds[:420], ["target", "even", "target"], make=fixed)

    assert results(joined(apart)) == results(together)
