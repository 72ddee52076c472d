"""What is wrong with a state, in words: what it looks like, why that may be, and what to do about it.

Reads, and changes nothing. The server says the same in `/readyz`, in `/metrics` and in its log.

>>> state = State("uniform")
>>> alarms(state)
[]
"""

from __future__ import annotations

from typing import NamedTuple

from .state import State
from .stats import Counts

CODES = ("set_aside", "collapsed", "clock", "challenger")  # of all alarms there are, whoever raises them
SET_ASIDE_SECONDS = 86_400.0  # for so long an alarm is raised after a decision was set aside
COLLAPSED = 0.02  # probability that is left to all others: no more than the default floor, and a bit
DEAD = 0.001  # when it leaves less than this, nobody would notice that another one has become better
ENOUGH = 500  # shown so often, an ad's rate says something


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
