"""What is wrong with a state, in words: what it looks like, why that may be, and what to do about it.

Reads, and changes nothing. The server says alarms in `/readyz`, in `/metrics` and in its log too; findings,
which take longer to find, only to who asks `/diagnostics`.

>>> state = State("uniform")
>>> alarms(state)
[]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import exp
from typing import NamedTuple

from .drift import newest
from .events import Ad
from .history import History
from .state import State
from .stats import REST, Counts

CODES = ("set_aside", "collapsed", "clock", "challenger")  # of all alarms there are, whoever raises them
SET_ASIDE_SECONDS = 86_400.0  # for so long an alarm is raised after a decision was set aside
COLLAPSED = 0.02  # probability that is left to all others: no more than the default floor, and a bit
DEAD = 0.001  # when it leaves less than this, nobody would notice that another one has become better
ENOUGH = 500  # shown so often, an ad's rate says something


FEW_SETTLED, FEW_REWARDED = 500, 10  # below either, nothing can be told from chance
CHANCE = 1e-6  # of an ad that is like the others to look dead
EXPECTED = 30.0  # rewards that a dead ad should have had
PATIENCE = 1000  # choices per ad, since the catalog last changed, in which each should have been shown
STOPPED = 1e-9  # chance that nobody rewards so many in a row
NAMED = 5  # ads or features that a sentence names


class Alarm(NamedTuple):
    """Something that somebody should look at, while the server goes on."""

    code: str
    message: str  # what is seen, and its likely cause
    advice: str


def alarms(state: State) -> list[Alarm]:
    """All there is to say of this state."""
    return [*_set_aside(state), *_collapsed(state)]


def challenged(better: list[str]) -> list[Alarm]:
    """What to say while a challenger is better and nobody has promoted it."""
    return [
        Alarm(
            "challenger",
            f"the challenger {name!r} earns more than the policy that decides",
            "look at GET /policies, and promote it with POST /policies/{name}/promote",
        )
        for name in better[:1]
    ]


class Finding(NamedTuple):
    """Something that is going on, for who wants to know; often it is nothing bad."""

    code: str
    message: str
    advice: str
    since: float | None = None  # seconds since the epoch, where that can be told


class View(NamedTuple):
    """What findings need of a state; taken in a few milliseconds, and read at leisure."""

    total: Counts
    by_ad: Mapping[str, Counts]
    catalog: Mapping[str, Ad]
    history: History
    reward_max: float
    now: float  # newest time seen

    @classmethod
    def of(cls, state: State) -> View:
        """As the state is now."""
        total = Counts(*[getattr(state.stats.total, name) for name in Counts.__struct_fields__])
        ads, catalog = dict(state.stats.ads), dict(state.catalog.ads)
        return cls(total, ads, catalog, state.history.copy(), state.reward_max, state.joiner.now)


def findings(view: View) -> list[Finding]:
    """All there is to say besides alarms."""
    return [*_little(view), *_dead(view), *_never_shown(view), *_rewards(view), *_traffic(view)]


def _little(view: View) -> Iterator[Finding]:
    settled = view.total.rewards + view.total.expired
    if settled < FEW_SETTLED or view.total.rewards < FEW_REWARDED:
        yield Finding(
            "little_data",
            f"{settled} decisions have settled and {view.total.rewards} of them were rewarded: too few to "
            "tell one ad from another",
            "wait, and believe no figure yet; if visitors do click, check that rewards are sent",
        )


def _dead(view: View) -> Iterator[Finding]:
    dead = []
    for name, each in view.by_ad.items():
        shown = each.rewards + each.expired
        if shown < ENOUGH or each.reward_sum > 0 or name == REST:
            continue
        others = view.total.rewards + view.total.expired - shown
        rate = (view.total.reward_sum - each.reward_sum) / max(1, others) / max(view.reward_max, 1e-9)
        if shown * rate >= EXPECTED and exp(-shown * rate) < CHANCE / len(view.by_ad):
            dead.append((shown, name, rate))
    if dead:
        dead.sort(reverse=True)
        yield Finding(
            "dead_ad",
            f"{_listed([name for _, name, _ in dead])}: never rewarded, in {dead[0][0]} showings of the "
            f"first; the others earn {dead[0][2] * view.reward_max:.4g} a showing",
            "look at the ad, at its landing page, and whether its clicks are reported; or remove it",
        )


def _never_shown(view: View) -> Iterator[Finding]:
    if view.history.since_catalog < PATIENCE * (1 + len(view.catalog)):
        return
    never = [
        ad.id
        for ad in view.catalog.values()
        if not (ad.house or view.by_ad.get(ad.id, Counts()).choices)
        and (ad.starts is None or ad.starts <= view.now)
        and (ad.ends is None or ad.ends > view.now)
    ]
    if never:
        yield Finding(
            "never_shown",
            f"{_listed(sorted(never))}: never shown in {view.history.since_catalog} choices",
            "see why they are filtered (GET /decisions/{id}): placements, say; raise `floor` if it is 0",
        )


def _rewards(view: View) -> Iterator[Finding]:
    history = view.history
    quiet, silent = 0, 0
    for each in reversed(history.over):
        if each.silent < each.settled:
            break
        quiet, silent = quiet + 1, silent + each.settled
    before = list(history.over)[: len(history.over) - quiet]
    settled = sum(each.settled for each in before)
    rewarded = settled - sum(each.silent for each in before)
    if settled and exp(-silent * rewarded / settled) < STOPPED:
        yield Finding(
            "rewards_stopped",
            f"none of the last {silent} decisions was rewarded; before, {rewarded / settled:.2%} were",
            "check that the site still sends rewards, and that what it sends is not refused (/metrics)",
            history.over[-quiet].at,
        )
        return
    silence = newest(history.values("silence"))
    if silence and silence.after > silence.before:
        yield Finding(
            "growing_silence",
            f"{silence.after:.2%} of decisions get no reward; it was {silence.before:.2%}",
            "if visitors are as they were, rewards get lost, come after `reward_wait`, or robots have come",
            silence.at,
        )
    reward = newest(history.values("reward"))
    if reward and reward.after < reward.before:
        yield Finding(
            "changed_reward",
            f"a decision earns {reward.after:.4g}; it was {reward.before:.4g}",
            "see whether traffic has changed, ads have ended, or the site is another; the policy learns what "
            "is new, sooner with a higher learning rate",
            reward.at,
        )
    promise = newest(history.values("calibration"))
    if promise and abs(promise.after) > abs(promise.before):
        yield Finding(
            "changed_calibration",
            f"decisions earn {promise.after:+.4g} beyond what is expected; it was {promise.before:+.4g}",
            "what the model knows no longer holds; it learns, but meanwhile trust expected rewards less",
            promise.at,
        )


def _traffic(view: View) -> Iterator[Finding]:
    changed = [
        (change.at, f"{name} was {change.before:.3g} and is {change.after:.3g}")
        for name in view.history.streams
        if (change := newest(view.history.values(name)))
    ]
    if changed:
        yield Finding(
            "changed_traffic",
            f"{_listed([words for _, words in sorted(changed)], '; ')} (means of numbers, shares of words)",
            "nothing, if that is the time of day or a campaign; if not, see what the site sends",
            min(at for at, _ in changed),
        )


def _listed(names: Sequence[str], between: str = ", ") -> str:
    rest = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return between.join(names[:NAMED]) + rest


def leap(ahead: float) -> list[Alarm]:
    """What to say while the system's clock is so many seconds ahead of ours."""
    if not ahead:
        return []
    return [
        Alarm(
            "clock",
            f"the system's clock leapt forwards and is {ahead:.0f} s ahead of the time that is used here",
            "if it is wrong, set it back: nothing has expired; if not, it is followed in some minutes",
        )
    ]


def _set_aside(state: State) -> list[Alarm]:
    stats = state.stats
    if not stats.set_aside or state.joiner.now - stats.set_aside_at > SET_ASIDE_SECONDS:
        return []
    return [
        Alarm(
            "set_aside",
            f"{stats.set_aside} decision(s), last {stats.set_aside_id!r}, spoilt the model, which was "
            "restored without: a number that no request should have let through, or a bug in the policy",
            "see GET /decisions/{id} and the log, and report it; learning goes on",
        )
    ]


def _collapsed(state: State) -> list[Alarm]:
    recent, total = state.stats.recent, state.stats.total
    if recent.left_over >= COLLAPSED or recent.top_share <= 0.99:
        return []
    counts = state.stats.ads.get(recent.top, Counts())
    others = total.choices - counts.choices
    rate = counts.reward_sum / max(1, counts.choices)
    rest = (total.reward_sum - counts.reward_sum) / max(1, others)
    advice = "raise `floor` (to 0.05, say), or start once with --relearn and options that explore more"
    if not total.reward_sum:
        cause, advice = "nothing was ever rewarded", "check that rewards are sent"
    elif min(counts.choices, others) < ENOUGH:
        cause = "too little was shown of the others to know that it is the best"
    elif rate <= rest:
        cause = f"it earned {rate:.4g} a choice, the others {rest:.4g}: stuck on what was learned early"
    elif recent.left_over < DEAD:
        cause = f"it earned {rate:.4g} a choice, the others {rest:.4g}: it may be the best, for now"
    else:
        return []  # it is the best, and the floor would notice if that changed
    seen = f"ad {recent.top!r} takes everything and leaves {recent.left_over:.2%} to the others"
    return [Alarm("collapsed", f"{seen}; {cause}", advice)]
