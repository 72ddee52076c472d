"""Evaluation: what any policy would have earned on a log, estimated in one pass and in two ways.

Both are progressive validation: a policy is asked about a round before it is told what came of it.

* **Weighted** (IPS, SNIPS, DR and the others in `ope/`): the policy learns from every round of the log, with
  the logged propensity, and is judged by the probability it gives to what was shown. A model of the rewards
  learns along, for the estimators that want one.
* **Rejection replay**, Li, Chu, Langford and Wang (2011), arXiv:1003.5956: a second copy of the policy draws
  an ad, and only where that is the ad of the log does it get the reward and learn. On a uniform log the
  accepted rounds are a run of the policy itself, so their plain average is unbiased, exploration included.

Where the log is not uniform, a matching round is kept only with probability c / p: p is the logged
propensity of what was shown, c the smallest propensity that any ad had in any round up to this one
(rejection sampling, Dudík, Erhan, Langford and Li 2012, arXiv:1210.4862, with a fixed history bound). So each
ad is accepted with c times the probability the policy gives it, as if the log had been uniform. c falls only
while the log still brings smaller propensities; the rounds until then count a little more. A log that hardly
ever shows some ad has a tiny c, and leaves nothing to replay: the result then says so.

The order is that of the log, in which outcomes arrived. Decisions that were still open are not judged; where
they are many, whoever was rewarded is overrepresented, and the report says so.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from math import inf

import msgspec
import numpy as np
from numpy.typing import NDArray

from . import ope
from .errors import Invalid
from .events import Settled
from .ope import Estimate, Rounds
from .policies import Floats, Policy, from_spec
from .reward_model import RewardModel
from .sampling import pick, uniform
from .selecting import AD, Labels, Selection, groups

LOGGED = "logged"  # the label of the policy that made the log
POINTS = 200  # of a curve
STEP = 100  # rounds between two reports of progress
FEW = 0.05  # share of decisions that may still wait without a word
EVERYTHING = Selection()


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
    estimates: dict[str, Estimate]  # by the name of the estimator, every one in `ope`
    anytime: Estimate  # IPS with an interval that may be looked at while the log grows, see `ope.anytime`
    accepted: int  # rounds that rejection replay kept; all, for the logged policy
    match_rate: float  # accepted / rounds, 0 for an empty log
    replay_enough: bool
    effective_sample_size: float
    largest_weight: float
    weights_enough: bool
    notes: tuple[str, ...] = ()  # why something could not be estimated
    replay_curve: tuple[Point, ...] = ()
    snips_curve: tuple[Point, ...] = ()

    @property
    def replay(self) -> Estimate:
        """Rejection replay; for the logged policy the average reward."""
        return self.estimates["replay"]

    @property
    def ips(self) -> Estimate:
        """Inverse propensity scoring."""
        return self.estimates["ips"]

    @property
    def snips(self) -> Estimate:
        """Self-normalised inverse propensity scoring."""
        return self.estimates["snips"]


class Report(msgspec.Struct, frozen=True):
    """What policies would have earned on one log. `msgspec.json.encode` writes it down."""

    log: str
    seed: int
    results: list[Result]
    selection: Selection = EVERYTHING
    segments: dict[str, list[Result]] = {}  # by label; without curves
    waiting: int = 0  # decisions in the window that still waited for their reward, and are left out
    notes: tuple[str, ...] = ()  # what is to be known of all of these numbers

    @property
    def title(self) -> str:
        """The log, and how long it is."""
        return f"{self.log}, {self.results[0].rounds:,} rounds, seed {self.seed}"

    def parts(self) -> Iterator[Report]:
        """Itself, then each segment as if it were a log."""
        yield self
        by = self.selection.by
        for label, found in self.segments.items():
            name = f"{self.log}, earned through {label}" if by == AD else f"{self.log}, {by} {label}"
            yield Report(name, self.seed, found)


class Track(msgspec.Struct, frozen=True):
    """What one policy did along the n judged rounds of a log."""

    label: str
    rounds: Rounds


class Followed(msgspec.Struct, frozen=True):
    """What policies did along the n judged rounds of a log, whose rewards lie in `low` .. `high`."""

    tracks: list[Track]  # first that of the server
    group: NDArray[np.int32]  # shape (n,), places in `labels`
    labels: list[str]
    smallest: float  # propensity of any ad in any round
    low: float
    high: float
    waiting: int = 0  # decisions in the window that still waited when the log ended
    settled_until: float = inf  # seconds since the epoch: what was decided before then does not wait


def evaluate(
    rounds: Iterable[Settled],
    specs: Sequence[str],
    *,
    seed: int = 0,
    reward_min: float = 0.0,
    reward_max: float = 1.0,
    progress: Callable[[int], object] | None = None,
    make: Callable[[str], Policy] = from_spec,
) -> list[Result]:
    """One result for the logged policy, then one for each spec, in order. See `follow`."""
    return results(
        follow(
            rounds,
            specs,
            seed=seed,
            reward_min=reward_min,
            reward_max=reward_max,
            progress=progress,
            make=make,
        )
    )


def follow(
    rounds: Iterable[Settled],
    specs: Sequence[str],
    *,
    selection: Selection = EVERYTHING,
    seed: int = 0,
    reward_min: float = 0.0,
    reward_max: float = 1.0,
    progress: Callable[[int], object] | None = None,
    make: Callable[[str], Policy] = from_spec,
) -> Followed:
    """Go through a log once, with all policies.

    Policies see rewards scaled from `reward_min` .. `reward_max` to [0, 1], as when serving; estimates are
    in the unit of the log. `progress` hears how many rounds are done. The same log, specs and seed give the
    same numbers to the last bit. Raises `errors.Invalid` for a reward or a propensity out of range.
    """
    candidates = [_Candidate(spec, make(spec), make(spec)) for spec in specs]
    server = _Columns(LOGGED)
    model, span = RewardModel(), reward_max - reward_min
    rewards, logged, shown = array("d"), array("d"), array("d")
    group, labels = array("i"), Labels()
    smallest, done = 1.0, 0
    for done, settled in enumerate(rounds, 1):
        choice = settled.choice
        if progress and done % STEP == 0:
            progress(done)
        place = selection.place(choice.at, settled.offset)
        if place > 0 or (place < 0 and not selection.warm):
            continue
        reward = (settled.reward - reward_min) / span
        if not 0 <= reward <= 1:
            raise Invalid(
                f"reward {settled.reward} of {choice.event_id} is not in {reward_min} .. {reward_max}",
                "reward",
            )
        propensity, propensities = choice.probability, np.frombuffer(choice.pmf, "<f8")
        if not 0 < propensity <= 1:
            raise Invalid(f"{choice.event_id} has the propensity {propensity}", "propensity")
        smallest = min(smallest, float(propensities.min()))
        kept = uniform(choice.event_id, f"keep:{seed}") < smallest / propensity
        expected = reward_min + span * model.asked_and_told(choice.context, settled.ads, choice.pick, reward)
        for candidate in candidates:
            pmf = candidate.ask(settled)
            candidate.learn(settled, reward, propensity)
            matched = kept and candidate.replay(settled, reward, f"replay:{seed}")
            if place == 0:
                possible = (
                    pmf / np.maximum(propensities, 1e-300)
                ).max()  # as good as infinite without a chance
                candidate.add(float(pmf[choice.pick]), float(possible), float(pmf @ expected))
                candidate.matched.append(matched)
        if place == 0:
            # What the server did is known: nothing is to be averaged. Public logs say no other propensities.
            server.add(1.0, 1.0, float(expected[choice.pick]))
            server.matched.append(True)
            rewards.append(settled.reward)
            logged.append(propensity)
            shown.append(expected[choice.pick])
            group.append(labels.number(selection.label(settled)))
    if progress:
        progress(done)
    tracks = [Track(LOGGED, server.rounds(rewards, server.target, shown))]
    tracks += [Track(each.label, each.rounds(rewards, logged, shown)) for each in candidates]
    return Followed(tracks, np.array(group, np.int32), labels.all, smallest, reward_min, reward_max)


def joined(parts: Sequence[Followed]) -> Followed:
    """The same log, followed by several at once: their policies side by side.

    A log to which a server still writes was longer for who came later; the end of the shortest counts.
    """
    short = min(parts, key=lambda part: part.group.size)
    tracks = [short.tracks[0], *(each for part in parts for each in part.tracks[1:])]
    cut = [Track(each.label, each.rounds.first(short.group.size)) for each in tracks]
    return msgspec.structs.replace(short, tracks=cut)


def results(followed: Followed) -> list[Result]:
    """One result for the logged policy, then one for each that was followed."""
    return [
        _result(each.label, each.rounds, followed.smallest, followed.low, followed.high)
        for each in followed.tracks
    ]


def notes(followed: Followed) -> tuple[str, ...]:
    """What is to be known of all results: who is not among the judged, if that is more than `FEW`."""
    total = followed.waiting + followed.group.size
    if followed.waiting <= FEW * total:
        return ()
    return (
        f"{followed.waiting:,} of {total:,} decisions had not settled where reading stopped and are left "
        "out, but not those of the same time that were rewarded: what is estimated is mostly those that "
        f"clicked, and too high. Of those made before {int(followed.settled_until)} none waits: see `until`",
    )


def segments(followed: Followed, by: str) -> dict[str, list[Result]]:
    """Results by label, without curves.

    Of an ad they say what is earned through it, per round of all: the rounds in which one ad was shown are no
    run of any policy, because what it shows is what a policy is judged by. Those of IPS add up to the whole.
    DM, which knows rewards as a whole only, has nothing to say of that.
    """
    found = {}
    for label, which in groups(followed.group, followed.labels).items():
        if by == AD:
            low, high = min(0.0, followed.low), max(0.0, followed.high)
            parts = [Track(each.label, each.rounds.earned_in(which)) for each in followed.tracks]
            part = msgspec.structs.replace(followed, tracks=parts, low=low, high=high)
        else:
            parts = [Track(each.label, each.rounds.part(which)) for each in followed.tracks]
            part = msgspec.structs.replace(followed, tracks=parts)
        no_model = {"dm": Estimate()} if by == AD else {}
        found[label] = [
            msgspec.structs.replace(
                each, replay_curve=(), snips_curve=(), estimates={**each.estimates, **no_model}
            )
            for each in results(part)
        ]
    return found


class _Columns:
    """What a policy would have done, round by round, as `ope` wants it."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.target = array("d")  # probability of what was shown
        self.possible = array("d")  # the largest weight that the round could have had
        self.estimated = array("d")  # what the reward model expects of this policy
        self.matched = array("b")  # whether rejection replay keeps the round

    def add(self, target: float, possible: float, estimated: float) -> None:
        """One more round."""
        self.target.append(target)
        self.possible.append(possible)
        self.estimated.append(estimated)

    def rounds(self, rewards: array[float], logged: array[float], shown: array[float]) -> Rounds:
        """These columns, with those of the log."""
        return Rounds(
            rewards,
            logged,
            self.target,
            estimated_shown=shown,
            estimated_target=self.estimated,
            matched=self.matched,
            possible=self.possible,
        )


class _Candidate(_Columns):
    """Two copies of a policy: one learns from the whole log, one only from what it would have seen itself."""

    def __init__(self, label: str, learner: Policy, player: Policy) -> None:
        super().__init__(label)
        self.learner, self.player = learner, player

    def ask(self, settled: Settled) -> Floats:
        """The distribution of the copy that sees everything."""
        return self._pmf(self.learner, settled)

    def learn(self, settled: Settled, reward: float, propensity: float) -> None:
        """Tell the copy that sees everything."""
        choice = settled.choice
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


def _result(label: str, rounds: Rounds, smallest: float, low: float, high: float) -> Result:
    n, size, accepted = len(rounds.reward), ope.effective_sample_size(rounds), int(rounds.matched.sum())
    ends = np.unique(np.linspace(0, n, POINTS + 1).astype(int))[1:].tolist()
    notes = []
    if n and not accepted:
        notes.append(f"nothing to replay: some ad of the log had a chance of only {smallest:.2g}")
    if n and not ope.covered(rounds):
        notes.append(f"the log hardly shows what it would: weights average {rounds.weight.mean():.2g}, not 1")
    if size >= ope.ENOUGH and ope.outcomes(rounds) < ope.OUTCOMES:
        notes.append(f"too few rewards: {ope.outcomes(rounds):.1f} among {size:.0f} effective rounds")
    return Result(
        policy=label,
        rounds=n,
        estimates={name: ope.estimate(name, rounds) for name in ope.names()},
        anytime=ope.anytime(rounds, low, high),
        accepted=accepted,
        match_rate=accepted / n if n else 0.0,
        replay_enough=ope.enough(rounds.replayed()),
        effective_sample_size=size,
        largest_weight=ope.largest_weight(rounds),
        weights_enough=ope.enough(rounds),
        notes=tuple(notes),
        replay_curve=tuple(Point(end, ope.estimate("replay", rounds.first(end))) for end in ends),
        snips_curve=tuple(Point(end, ope.estimate("snips", rounds.first(end))) for end in ends),
    )
