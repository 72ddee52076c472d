"""What a large catalog costs, and what it earns: `python benchmarks/catalogs.py cost`, `reward`, `proposed`.

`cost`: CPU of a choice in process, of its reward and of changing one ad, catalogs of every size taking turns.

`reward`: clicks per visit of seeded visitors when every ad is scored, when a few hundred are proposed, and at
random, feedback at once. `proposed`: what recommenders would propose after the same log.

A click has the probability sigmoid(bias + taste + popularity). Ads have hidden vectors in six dimensions: the
sum of one for each of six attributes (281 values), one along the price, and something of their own. Taste is
a hidden vector too: the sum of one for each of five context features and something of the visitor's own.
Popularity is each ad's own. `bias` makes ads picked at random earn 1.5 % clicks. No policy's and no
recommender's model is used.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import click
import numpy as np

from banditads import recommenders
from banditads.choosing import Request, choose
from banditads.events import Ad, AdsPut, Chosen, Rewarded, Settled
from banditads.features import clean
from banditads.state import State

DIM, UNIFORM = 6, 0.015
ATTRIBUTES = {  # of ads: values, weight
    "brand": (200, 0.6), "category": (30, 1.0), "colour": (15, 0.4), "material": (20, 0.4),
    "season": (4, 0.3), "style": (12, 0.7),
}  # fmt: skip
CONTEXT = {  # of visitors: values, weight
    "daypart": (4, 0.4), "device": (3, 0.4), "region": (10, 0.6), "segment": (8, 1.2), "source": (6, 0.5),
}  # fmt: skip
EVERYTHING = 10**6


class World:
    """Ads and visitors, drawn from a seed."""

    def __init__(self, n_ads: int, seed: int) -> None:
        self.dice = dice = np.random.default_rng(seed)
        price = np.exp(dice.normal(3.5, 1.0, n_ads))
        hidden = 0.4 * np.outer(np.log(price) - 3.5, dice.normal(size=DIM))
        hidden += 0.5 * dice.normal(size=(n_ads, DIM))  # stands in no feature
        values = {}
        for name, (n, weight) in ATTRIBUTES.items():
            values[name] = dice.choice(n, n_ads, p=dice.dirichlet(np.ones(n)))
            hidden += weight * dice.normal(size=(n, DIM))[values[name]]
        self.hidden = 0.5 * hidden / np.sqrt((hidden**2).sum(axis=1).mean())
        self.popularity = 0.4 * dice.normal(size=n_ads)
        described = [{name: f"{name}-{of[i]}" for name, of in values.items()} for i in range(n_ads)]
        self.ads = tuple(
            Ad(f"ad-{i:06}", clean({**named, "price": price[i]})) for i, named in enumerate(described)
        )
        self.taste = {name: weight * dice.normal(size=(n, DIM)) for name, (n, weight) in CONTEXT.items()}
        odds = np.array([self.visitor()[1] for _ in range(300)])
        self.bias = _bisect(lambda bias: float((1 / (1 + np.exp(-odds - bias))).mean()))

    def visitor(self) -> tuple[dict[str, str | float], np.ndarray]:
        """(context, log odds of a click on each ad without the bias)."""
        value = {name: int(self.dice.integers(n)) for name, (n, _) in CONTEXT.items()}
        taste = sum(self.taste[name][each] for name, each in value.items()) + 0.4 * self.dice.normal(size=DIM)
        return {name: f"{name}-{each}" for name, each in value.items()}, self.hidden @ taste + self.popularity


def _bisect(rising: Callable[[float], float]) -> float:
    low, high = -20.0, 5.0
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < UNIFORM else (low, middle)
    return low


def live(how: str, policy: str, options: dict[str, Any], *, n_ads: int, seed: int, visits: int) -> np.ndarray:
    """Probability of a click at each visit, of the ad shown and of the best, shape (visits, 2)."""
    world, found = World(n_ads, seed), []
    state = State(policy, options, recommender="crosses" if how == "direct" else how)
    state.apply(0, AdsPut(0.0, world.ads))
    row = {ad.id: i for i, ad in enumerate(world.ads)}
    for number in range(visits):
        context, odds = world.visitor()
        chances = _chance(odds, world)
        event = choose(
            state, at=float(number), event_id=f"visit-{number}", request=Request(context), floor=0.01,
            max_scored=EVERYTHING if how == "direct" else 1000,
        )  # fmt: skip
        shown = chances[row[event.ad_id]]
        state.apply(state.applied, event)
        click = float(world.dice.random() < shown)
        state.apply(state.applied, Rewarded(float(number), event.event_id, click))
        found.append((shown, chances.max()))
    return np.array(found)


@click.group(help=__doc__)
def main() -> None:
    pass


@main.command()
@click.option("--ads", "n_ads", default=2000, show_default=True)
@click.option("--visits", default=8000, show_default=True)
@click.option("--seeds", default=5, show_default=True)
@click.option("--policy", "specs", multiple=True, default=("squarecb",), show_default=True)
@click.option("--how", "ways", multiple=True, default=("direct", *recommenders.names()), show_default=True)
def reward(n_ads: int, visits: int, seeds: int, specs: tuple[str, ...], ways: tuple[str, ...]) -> None:
    """Clicks per visit; all, and in the last quarter. The interval is of the mean over worlds."""
    print(f"{n_ads:,} ads, {visits:,} visits, {seeds} worlds; clicks per 100 visits")
    print("| vw | candidates | all visits | last quarter | of the best possible |")
    print("|---|---|---|---|---|")
    for spec, how in itertools.product(specs, ways):
        options = {"exploration": spec, "kept_ads": n_ads}
        policy = ("uniform", {}) if spec == "uniform" else ("vw", options)
        runs = [live(how, *policy, n_ads=n_ads, seed=seed, visits=visits) for seed in range(seeds)]
        cells = [
            _interval([100 * run[first:, 0].mean() for run in runs]) for first in (0, visits - visits // 4)
        ]
        share = statistics.mean(run[:, 0].sum() / run[:, 1].sum() for run in runs)
        print(f"| {spec} | {how} | {' | '.join(cells)} | {share:.0%} |", flush=True)


def _interval(values: list[float]) -> str:
    spread = 1.96 * statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return f"{statistics.mean(values):.2f} ± {spread:.2f}"


@main.command()
@click.option("--ads", "n_ads", default=2000, show_default=True)
@click.option("--visits", default=48_000, show_default=True)
@click.option("--seeds", default=2, show_default=True)
def proposed(n_ads: int, visits: int, seeds: int) -> None:
    """What the 224 ads of the highest scores earn for 150 visitors, after a log of uniform visits.

    Clicks per 100 visits of all of them, and of the best of them relative to the best of all ads.
    """
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in recommenders.names()}
    for seed in range(seeds):
        world = World(n_ads, seed)
        learners = {name: recommenders.make(name) for name in found}
        for learner in learners.values():
            learner.apply(AdsPut(0.0, world.ads), range(n_ads))
        for number in range(visits):
            context, odds = world.visitor()
            row = int(world.dice.integers(n_ads))
            click = float(world.dice.random() < _chance(odds[row], world))
            choice = Chosen(0.0, f"visit-{number}", (world.ads[row].id,), b"", 0, context)
            for learner in learners.values():
                learner.learn(Settled(choice, (world.ads[row],), click, 0.0), row, click)
        for context, odds in (world.visitor() for _ in range(150)):
            chances = _chance(odds, world)
            for name, learner in learners.items():
                best = chances[np.argpartition(learner.scores(context), n_ads - 224)[n_ads - 224 :]]
                found[name].append((100 * best.mean(), best.max() / chances.max()))
    print(f"{n_ads:,} ads, {visits:,} visits, {seeds} worlds")
    print("| recommender | clicks per 100 visits | the best of them |")
    print("|---|---|---|")
    for name, each in found.items():
        earned, share = np.mean(each, axis=0)
        print(f"| {name} | {earned:.2f} | {share:.0%} |")


def _chance(odds: Any, world: World) -> Any:
    return 1 / (1 + np.exp(-odds - world.bias))


@main.command()
@click.option("--rounds", default=40, show_default=True)
@click.option("--policy", default="vw", show_default=True)
@click.option("--plot", type=click.Path(), help="Draw cost against size to this file.")
def cost(rounds: int, policy: str, plot: str | None) -> None:
    """CPU, median over rounds, milliseconds."""
    sizes = [10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000]
    context = {f"feature-{n:02}": f"value-{n}" for n in range(15)}
    states, spent = {}, {(n, what): [] for n in sizes for what in ("choose", "reward", "put", "after")}
    for n in sizes:
        states[n] = State(policy)
        states[n].apply(0, AdsPut(0.0, tuple(_ad(i, f"ad-{i:06}") for i in range(n))))

    for number, n in itertools.product(range(rounds), sizes):
        state = states[n]
        request = partial(choose, state, at=0.0, request=Request(context), floor=0.01)
        request(event_id=f"warm-{number}")
        event = timed(spent[n, "choose"], request, event_id=f"visit-{number}")
        timed(spent[n, "reward"], learn, state, event)
        changed = AdsPut(0.0, (_ad(number, f"ad-{n // 2:06}x{number}"),))
        timed(spent[n, "put"], state.apply, state.applied, changed)
        timed(spent[n, "after"], request, event_id=f"after-{number}")
    base = statistics.median(spent[1000, "choose"])
    print("| ads | choose | relative to 1,000 | its reward | one more ad | choose after it |")
    print("|---:|---:|---:|---:|---:|---:|")
    for n in sizes:
        found = [statistics.median(spent[n, what]) for what in ("choose", "reward", "put", "after")]
        rest = " | ".join(f"{each:.3f}" for each in found[1:])
        print(f"| {n:,} | {found[0]:.3f} | {found[0] / base:.2f} | {rest} |")
    if plot:
        _draw(sizes, [statistics.median(spent[n, "choose"]) for n in sizes], plot)


def timed(spent: list[float], work: Callable[..., Any], *given: Any, **named: Any) -> Any:
    """What this gives; its CPU in milliseconds is added to a list."""
    started = time.process_time()
    found = work(*given, **named)
    spent.append(1e3 * (time.process_time() - started))
    return found


def learn(state: State, event: Chosen) -> None:
    """Keep a choice, then learn that nobody clicked."""
    state.apply(state.applied, event)
    state.apply(state.applied, Rewarded(0.0, event.event_id, 0.0))


def _ad(number: int, ad_id: str) -> Ad:
    features = {f"feature-{k}": f"value-{(number * (k + 3)) % 50}" for k in range(7)}
    return Ad(ad_id, features | {"price": float(number % 300)})


def _draw(sizes: list[int], milliseconds: list[float], file: str) -> None:
    import matplotlib as mpl  # noqa: PLC0415  (an extra)

    mpl.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(figsize=(6, 3.5), layout="constrained")
    axes.loglog(sizes, milliseconds, "o-")
    axes.axvline(1000, color="grey", linestyle=":")
    axes.set(xlabel="eligible ads", ylabel="CPU of a choice, ms", title="Beyond 1,000, 256 are proposed")
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    main()
