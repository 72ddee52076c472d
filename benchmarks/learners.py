"""Who plays in `learning.py`: the policies here, and what else one could take, as its documentation has it.

Ours plays through the whole engine, as behind `GET /choose` and `POST /reward`, with the journal in memory
and without the server's floor, which costs everybody behind it the same.

Plain Vowpal Wabbit is written as in its tutorials: text, the context in a namespace, an ad's id and features
in another one, cost = -reward; where exploration needs costs within [0, 1] (`squarecb`, `regcb`) 1 - reward,
because with -reward and the default bounds they hardly learn. coba, contextualbandits, gittins, mabwiser and
River's bandits have the options that their documentation has, except where it says otherwise here. Those who
want vectors get them standardised beforehand (`games.vectors`), and those who want one model for each ad
never see the ads' features.

Left out: what takes 1 to 9 ms a choice among ten, which are coba's `LinUCBLearner` and `LinTSLearner`,
MABWiser's `LinTS` and contextualbandits' policies over scikit-learn's classifiers; and contextualbandits'
`LinTS`, which with its defaults was as good as chance after 2,000 visits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import numpy as np
from games import Game, Visit
from river import bandit, proba
from vowpalwabbit import Workspace

from banditads import policies
from banditads.choosing import Request
from banditads.engine import Engine
from banditads.events import Chosen, Features
from banditads.features import tokens
from banditads.journal import connect
from banditads.sampling import pick, uniform
from banditads.signing import EventIds
from banditads.state import State

FOREVER = 1e9  # visits: it is the game that says when an outcome is known
Choice = tuple[int, Any]  # place in `visit.ads`, and what `learn` wants to be told


class Learner(Protocol):
    """What decides which ad is shown."""

    def choose(self, visit: Visit) -> Choice:
        """Which of `visit.ads` is shown, and a ticket. `visit.chances` must not be looked at."""

    def learn(self, ticket: Any, reward: float) -> None:
        """What came of a choice: 1 for a click, else 0. Once for each ticket, in any order."""


class Ours:
    """The engine with a policy."""

    def __init__(self, game: Game, seed: int, *, policy: str, silence: str = "wait", **options: Any) -> None:
        self.now, self.ads = 0.0, ()
        self.engine = Engine(
            State(policy, options, wait=FOREVER, silence=silence),
            connect("memory:"),
            ids=EventIds(b"k" * 32),
            clock=lambda: self.now,
            salt=f"seed {seed}",
        )

    def choose(self, visit: Visit) -> Choice:
        """As `GET /choose`; ads come and go as by `PUT` and `DELETE /ads/{id}`."""
        self.now = float(visit.number)
        if visit.ads is not self.ads:
            there, before = {ad.id for ad in visit.ads}, {ad.id for ad in self.ads}
            for gone in before - there:
                self.engine.remove_ad(gone)
            if new := [ad for ad in visit.ads if ad.id not in before]:
                self.engine.put_ads(new)
            self.ads, self.places = visit.ads, {ad.id: place for place, ad in enumerate(visit.ads)}
        event, _ = self.engine.choose(Request(visit.context), f"visit-{visit.number}")
        assert isinstance(event, Chosen)
        return self.places[event.ad_id], event.event_id

    def learn(self, ticket: str, reward: float) -> None:
        """As `POST /reward`."""
        self.engine.reward(ticket, reward)
        self.engine.journal.drop_before(self.engine.state.applied)  # not what is measured here


class Undone(Ours):
    """Ours where silence is learned at once, and is taken back when the click comes: where sums allow it."""

    def __init__(self, game: Game, seed: int, **options: Any) -> None:
        super().__init__(game, seed, silence="immediate", **options)

    def learn(self, ticket: str, reward: float) -> None:
        """As if the reward had been known at the choice."""
        state = self.engine.state
        choice = state.joiner.open[ticket].choice
        super().learn(ticket, 0.0)  # was learned
        if reward:
            arm = state.policy.arms[choice.ad_id]
            if isinstance(arm, proba.Beta):
                arm.alpha, arm.beta = arm.alpha + 1, arm.beta - 1
            else:  # a regression by sums: only the one of features times reward knows the reward
                for feature, value in state.policy._vector(choice.context).items():
                    arm._eta_arr[arm._idx[feature]] += value
                arm._m_dirty = True


class VW:
    """Plain Vowpal Wabbit with such options."""

    def __init__(self, game: Game, seed: int, *, options: str, reward_0: float = 0.0) -> None:
        self.vw = Workspace(f"--cb_explore_adf {options} --random_seed {seed + 1} --quiet")
        self.reward_0, self.salt = reward_0, f"seed {seed}"
        self.lines = {ad.id: f"|A id={ad.id} {text(ad.features)}" for ad in game.ads}

    def choose(self, visit: Visit) -> Choice:
        """Draw from what VW predicts."""
        lines = [f"shared |U {text(visit.context)}", *[self.lines[ad.id] for ad in visit.ads]]
        pmf = self.vw.predict("\n".join(lines))
        pmf = [each / sum(pmf) for each in pmf]
        place = pick(pmf, uniform(f"visit-{visit.number}", self.salt))
        return place, (lines, place, pmf[place])

    def learn(self, ticket: Any, reward: float) -> None:
        """The label stands before the line of the ad that was shown."""
        lines, place, probability = ticket
        lines[1 + place] = f"0:{self.reward_0 - reward}:{probability} {lines[1 + place]}"
        self.vw.learn("\n".join(lines))


class Coba:
    """One of coba's learners."""

    def __init__(self, game: Game, seed: int, *, learner: str) -> None:
        self.learner = getattr(import_module("coba.learners"), learner)(seed=seed + 1)

    def choose(self, visit: Visit) -> Choice:
        """(action, probability), and for some learners more."""
        context, actions = dict(tokens(visit.context)), [ad.id for ad in visit.ads]
        action, probability, *more = self.learner.predict(context, actions)
        return actions.index(action), (context, action, probability, more[0] if more else {})

    def learn(self, ticket: Any, reward: float) -> None:
        """What `predict` said goes back."""
        context, action, probability, more = ticket
        self.learner.learn(context, action, reward, probability, **more)


class Mabwiser:
    """One of MABWiser's policies. Until the first reward it cannot be asked, and the first ad is shown."""

    def __init__(self, game: Game, seed: int, *, policy: str) -> None:
        mab = import_module("mabwiser.mab")
        arms, made = [ad.id for ad in game.ads], getattr(mab.LearningPolicy, policy)()
        self.mab, self.fresh = mab.MAB(arms, made, seed=seed + 1), True

    def choose(self, visit: Visit) -> Choice:
        """By id."""
        arm = visit.ads[0].id if self.fresh else self.mab.predict([visit.vector])
        return [ad.id for ad in visit.ads].index(arm), (arm, visit.vector)

    def learn(self, ticket: Any, reward: float) -> None:
        """A batch of one."""
        arm, vector = ticket
        self.mab.partial_fit([arm], [reward], [vector])
        self.fresh = False


class ContextualBandits:
    """One of contextualbandits' policies. Its arms are fixed."""

    def __init__(self, game: Game, seed: int, *, policy: str) -> None:
        made = getattr(import_module("contextualbandits.online"), policy)
        self.policy = made(nchoices=len(game.ads), random_state=seed + 1, njobs=1)

    def choose(self, visit: Visit) -> Choice:
        """One row of a matrix."""
        place = int(self.policy.predict(visit.vector[None])[0])
        return place, (visit.vector, place)

    def learn(self, ticket: Any, reward: float) -> None:
        """A batch of one."""
        vector, place = ticket
        self.policy.partial_fit(vector[None], np.array([place]), np.array([reward]))


class River:
    """One of River's bandits."""

    def __init__(self, game: Game, seed: int, *, make: Callable[..., Any], contextual: bool = False) -> None:
        self.policy, self.contextual = make(seed=seed + 1), contextual

    def choose(self, visit: Visit) -> Choice:
        """By id, with the context where it takes one."""
        more = [{str(at): value for at, value in enumerate(visit.vector.tolist())}] if self.contextual else []
        ids = [ad.id for ad in visit.ads]
        arm = self.policy.pull(ids, *more)
        return ids.index(arm), (arm, *more)

    def learn(self, ticket: Any, reward: float) -> None:
        """The same, and the reward."""
        self.policy.update(*ticket, reward)


class Gittins:
    """gittins, a contextual bandit engine in Rust."""

    def __init__(self, game: Game, seed: int) -> None:
        self.gittins, self.now = import_module("gittins"), 0
        self.state, self.seed = self.gittins.create(bits=18, horizon=FOREVER), seed
        self.candidates = {ad.id: (ad.id, dict(ad.features)) for ad in game.ads}

    def choose(self, visit: Visit) -> Choice:
        """By dictionaries."""
        self.now = visit.number
        among = [self.candidates[ad.id] for ad in visit.ads]
        salt = f"{self.seed}-{visit.number}"
        record = self.gittins.decide(self.state, visit.context, among, float(self.now), salt)
        return record.chosen, record.decision_id

    def learn(self, ticket: Any, reward: float) -> None:
        """By the id of the decision."""
        self.gittins.learn(self.state, ticket, reward, float(self.now))


def text(features: Features) -> str:
    """Features in VW's format, without what means something there."""
    plain = {name.replace(" ", "_").replace(":", "_"): value for name, value in features.items()}
    return " ".join(
        f"{name}={value}" if isinstance(value, str) else f"{name}:{value}" for name, value in plain.items()
    )


class Contestant(NamedTuple):
    """How a learner is made, and what may be asked of it."""

    make: Callable[[Game, int], Learner]
    needs: str = ""  # a module
    single: bool = True  # not made of several policies or models: may be "the best single policy"

    @property
    def missing(self) -> bool:
        """Whether what it needs is not installed."""
        return bool(self.needs) and find_spec(self.needs) is None


COMBINED = {"ensemble"}  # policies here that are made of several models
DEFAULT = State().policy_name

OURS = {
    name: Contestant(partial(Ours, policy=name), single=name not in COMBINED) for name in policies.names()
}
OURS |= {
    "vw, UA and UUA": Contestant(partial(Ours, policy="vw", interactions=["UA", "UUA"])),
    "vw, epsilon": Contestant(partial(Ours, policy="vw", exploration="epsilon")),
    "vw, regcb": Contestant(partial(Ours, policy="vw", exploration="regcb")),
    "linucb, 128 numbers": Contestant(partial(Ours, policy="linucb", dim=128)),
    "linucb, greedy": Contestant(partial(Ours, policy="linucb", width=0.0)),
    "logistic, epsilon": Contestant(partial(Ours, policy="logistic", exploration="epsilon")),
}


def _vw(options: str, **more: Any) -> Contestant:
    return Contestant(partial(VW, options=options, **more))


def _coba(learner: str) -> Contestant:
    return Contestant(partial(Coba, learner=learner), needs="coba")


def _contextualbandits(policy: str) -> Contestant:
    return Contestant(partial(ContextualBandits, policy=policy), needs="contextualbandits")


def _mabwiser(policy: str) -> Contestant:
    return Contestant(partial(Mabwiser, policy=policy), needs="mabwiser")


PEERS = {
    "VW epsilon": _vw("--epsilon 0.05 -q UA"),
    "VW epsilon, UUA": _vw("--epsilon 0.05 -q UA --cubic UUA"),
    "VW squarecb": _vw("--squarecb -q UA", reward_0=1.0),
    "VW squarecb, UUA": _vw("--squarecb -q UA --cubic UUA", reward_0=1.0),
    "VW regcb": _vw("--regcb -q UA", reward_0=1.0),
    "VW bag": _vw("--bag 5 -q UA"),
    "VW cover": _vw("--cover 5 -q UA"),
    "coba VW epsilon": _coba("VowpalEpsilonLearner"),
    "coba VW squarecb": _coba("VowpalSquarecbLearner"),
    "coba UCB": _coba("BanditUCBLearner"),
    "contextualbandits LinUCB": _contextualbandits("LinUCB"),
    "gittins": Contestant(Gittins, needs="gittins"),
    "MABWiser LinUCB": _mabwiser("LinUCB"),
    "MABWiser LinGreedy": _mabwiser("LinGreedy"),
    "River LinUCBDisjoint": Contestant(partial(River, make=bandit.LinUCBDisjoint, contextual=True)),
    "River ThompsonSampling": Contestant(
        partial(River, make=partial(bandit.ThompsonSampling, reward_obj=proba.Beta()))
    ),
}
CONTESTANTS = OURS | PEERS
SLOW = {
    "linucb",
    "logistic",
    "VW squarecb, UUA",
    "coba VW squarecb",
}  # 8 ms a choice among 1,000 ads, and more
# Who plays where there is much to play, or ads come and go.
FEW = [
    *policies.names(),
    "vw, UA and UUA",
    "VW epsilon",
    "VW squarecb, UUA",
    "coba VW squarecb",
    "gittins",
]

WAYS = ("wait", "immediate", "undone")
SILENCE = {
    f"{name}, {way}": Contestant(make, single=name not in COMBINED)
    for name in policies.names()
    for way, make in (
        ("wait", OURS[name].make),
        ("immediate", partial(Ours, policy=name, silence="immediate")),
        ("undone", partial(Undone, policy=name)),
    )
    if way != "undone" or name in ("linucb", "thompson")
}
