"""Evaluation: what any policy would have earned on a log, estimated in one pass and in two ways.

Both are progressive validation: a policy is asked about a round before it is told what came of it.

* **IPS and SNIPS** (`ope/`): the policy learns from every round of the log, with the logged propensity, and
  is judged by the probability it gives to what was shown.
* **Rejection replay**, Li, Chu, Langford and Wang (2011), arXiv:1003.5956: a second copy of the policy draws
  an ad, and only where that is the ad of the log does it get the reward and learn. On a uniform log the
  accepted rounds are a run of the policy itself, so their plain average is unbiased, exploration included.

Where the log is not uniform, a matching round is kept only with probability c / p: p is the logged
propensity of what was shown, c the smallest propensity that any ad had in any round up to this one
(rejection sampling, Dudík, Erhan, Langford and Li 2012, arXiv:1210.4862, with a fixed history bound). So each
ad is accepted with c times the probability the policy gives it, as if the log had been uniform. c falls only
while the log still brings smaller propensities; the rounds until then count a little more. A log that hardly
ever shows some ad has a tiny c, and leaves nothing to replay: the result then says so.

The order is that of the log, in which outcomes arrived. Decisions that were still open do not exist here.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from . import ope, policies
from .errors import Invalid, Misconfigured
from .events import Settled
from .ope import Estimate, Rounds
from .policies import Floats, Policy
from .sampling import pick, uniform

LOGGED = "logged"  # the label of the policy that made the log
POINTS = 200  # of a curve
STEP = 100  # rounds between two reports of progress


class Point(msgspec.Struct, frozen=True):
    """The estimate from the first `rounds` rounds of a log."""

    rounds: int
    estimate: Estimate


class Result(msgspec.Struct, frozen=True):
    """What one policy would have earned per round; for the logged policy, what it did earn.

    An estimate is only worth showing if its own `enough` says so, see `ope.enough`.
    """

    policy: str  # as it was asked for, or "logged"
    rounds: int  # in the log
    replay: Estimate  # rejection replay; for the logged policy the average reward
    accepted: int  # rounds that rejection replay kept
    match_rate: float  # accepted / rounds, 0 for an empty log
    replay_enough: bool
    ips: Estimate
    snips: Estimate
    effective_sample_size: float
    largest_weight: float
    weights_enough: bool
    notes: tuple[str, ...] = ()  # why something could not be estimated
    replay_curve: tuple[Point, ...] = ()
    snips_curve: tuple[Point, ...] = ()


def parse(spec: str) -> tuple[str, dict[str, Any]]:
    """A policy's name and options.

    >>> parse("vw:epsilon=0.05,exploration=squarecb,interactions=false")
    ('vw', {'epsilon': 0.05, 'exploration': 'squarecb', 'interactions': False})
    """
    name, _, rest = spec.partition(":")
    options: dict[str, Any] = {}
    for item in rest.split(",") if rest else ():
        option, equals, value = (part.strip() for part in item.partition("="))
        if not option or not equals or option in options:
            raise Misconfigured(f"policy {spec!r}: wanted name:option=value,option=value, not {item!r}")
        options[option] = _value(value)
    return name.strip(), options


def make(spec: str) -> Policy:
    """A new policy from its spec; unknown names and options are refused by `policies.make`."""
    name, options = parse(spec)
    return policies.make(name, **options)


def evaluate(
    rounds: Iterable[Settled],
    specs: Sequence[str],
    *,
    seed: int = 0,
    reward_min: float = 0.0,
    reward_max: float = 1.0,
    progress: Callable[[int], object] | None = None,
    make: Callable[[str], Policy] = make,
) -> list[Result]:
    """One result for the logged policy, then one for each spec, in order.

    Policies see rewards scaled from `reward_min` .. `reward_max` to [0, 1], as when serving; estimates are
    in the unit of the log. `progress` hears how many rounds are done. The same log, specs and seed give the
    same numbers to the last bit. Raises `errors.Invalid` for a reward or a propensity out of range.
    """
    candidates = [_Candidate(spec, make(spec), make(spec)) for spec in specs]
    rewards, logged = array("d"), array("d")
    smallest, done = 1.0, 0
    for done, settled in enumerate(rounds, 1):
        choice = settled.choice
        reward = (settled.reward - reward_min) / (reward_max - reward_min)
        if not 0 <= reward <= 1:
            raise Invalid(
                f"reward {settled.reward} of {choice.event_id} is not in {reward_min} .. {reward_max}",
                "reward",
            )
        propensity = choice.probability
        if not 0 < propensity <= 1:
            raise Invalid(f"{choice.event_id} has the propensity {propensity}", "propensity")
        smallest = min(smallest, float(np.frombuffer(choice.pmf, "<f8").min()))
        kept = uniform(choice.event_id, f"keep:{seed}") < smallest / propensity
        for candidate in candidates:
            candidate.learn(settled, reward, propensity)
            if kept and candidate.replay(settled, reward, f"replay:{seed}"):
                candidate.accepted.append(done - 1)
        rewards.append(settled.reward)
        logged.append(propensity)
        if progress and done % STEP == 0:
            progress(done)
    if progress:
        progress(done)
    earned, shown = np.array(rewards), np.array(logged)
    everything = np.arange(done)
    return [
        _result(LOGGED, Rounds(earned, shown, shown), everything, smallest),
        *(
            _result(each.label, Rounds(earned, shown, each.target), np.array(each.accepted), smallest)
            for each in candidates
        ),
    ]


class _Candidate:
    """Two copies of a policy: one learns from the whole log, one only from what it would have seen itself."""

    def __init__(self, label: str, learner: Policy, player: Policy) -> None:
        self.label, self.learner, self.player = label, learner, player
        self.target = array("d")  # probability of what was shown, each round
        self.accepted = array("q")  # places in the log

    def learn(self, settled: Settled, reward: float, propensity: float) -> None:
        """Ask the copy that sees everything, then tell it."""
        choice = settled.choice
        self.target.append(float(self._pmf(self.learner, settled)[choice.pick]))
        self.learner.learn(choice.context, settled.ads, choice.pick, reward, propensity)

    def replay(self, settled: Settled, reward: float, salt: str) -> bool:
        """Let the other copy draw; if it draws what was shown, it learns, with its own propensity."""
        choice, pmf = settled.choice, self._pmf(self.player, settled)
        if pick(pmf.tolist(), uniform(choice.event_id, salt)) != choice.pick:
            return False
        self.player.learn(choice.context, settled.ads, choice.pick, reward, float(pmf[choice.pick]))
        return True

    def _pmf(self, policy: Policy, settled: Settled) -> Floats:
        pmf = policy.pmf(settled.choice.context, settled.ads)
        good = pmf.shape == (len(settled.ads),) and np.isfinite(pmf).all() and (pmf >= 0).all()
        if not good or abs(pmf.sum() - 1) > 1e-6:
            raise ArithmeticError(
                f"policy {self.label} gave {pmf!r} for {len(settled.ads)} ads of {settled.choice.event_id}"
            )
        return pmf


def _result(label: str, rounds: Rounds, accepted: NDArray[np.int64], smallest: float) -> Result:
    n, size = len(rounds.reward), ope.effective_sample_size(rounds)
    replayed = Rounds(rounds.reward[accepted], np.ones(len(accepted)), np.ones(len(accepted)))
    ends = np.unique(np.linspace(0, n, POINTS + 1).astype(int))[1:].tolist()
    seen = np.searchsorted(accepted, ends).tolist()  # accepted rounds among the first so many of the log
    notes = []
    if n and not len(accepted):
        notes.append(f"nothing to replay: some ad of the log had a chance of only {smallest:.2g}")
    if n and not ope.covered(rounds):
        notes.append(f"the log hardly shows what it would: weights average {rounds.weight.mean():.2g}, not 1")
    if size >= ope.ENOUGH and ope.outcomes(rounds) < ope.OUTCOMES:
        notes.append(f"too few rewards: {ope.outcomes(rounds):.1f} among {size:.0f} effective rounds")
    return Result(
        policy=label,
        rounds=n,
        replay=ope.estimate("ips", replayed),
        accepted=len(accepted),
        match_rate=len(accepted) / n if n else 0.0,
        replay_enough=ope.enough(replayed),
        ips=ope.estimate("ips", rounds),
        snips=ope.estimate("snips", rounds),
        effective_sample_size=size,
        largest_weight=ope.largest_weight(rounds),
        weights_enough=ope.enough(rounds),
        notes=tuple(notes),
        replay_curve=tuple(
            Point(end, ope.estimate("ips", replayed.first(k))) for end, k in zip(ends, seen, strict=True)
        ),
        snips_curve=tuple(Point(end, ope.estimate("snips", rounds.first(end))) for end in ends),
    )


def _value(text: str) -> bool | int | float | str:
    if text in ("true", "false"):
        return text == "true"
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
